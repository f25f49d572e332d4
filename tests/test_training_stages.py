"""Both stages on generated images: what they train, that they learn and resume, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import NETWORK, assert_same_run, fresh_net, read_checkpoint, read_log, stage_1, stage_2
from voc_writer import save_grey

import ddn_fast
from ddn_fast import ops, reference
from ddn_fast.config import NetConfig
from ddn_fast.data.check import check_files, pairs_of
from ddn_fast.data.tags import read_tags
from ddn_fast.data.voc import VocFolder
from ddn_fast.errors import CheckpointError, ConfigError, DataError, InputError, WeightsError
from ddn_fast.network import BatchNorm, DecoupledNet
from ddn_fast.training import classifier, loop, segmenter
from ddn_fast.training.bn import add_batch_norm
from ddn_fast.training.loop import CHECKPOINT, CURVES, Run
from ddn_fast.training.loss import segmentation_loss
from ddn_fast.training.segmenter import frozen_part, frozen_plain, training_scores
from ddn_fast.weights import read_metadata

Train = Callable[..., DecoupledNet]


class StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of the curves has a test of its own."""
    monkeypatch.setattr(loop, "draw_curves", lambda entries, path: False)


STAGES = pytest.mark.parametrize("train", [stage_1, stage_2])
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:class .*wanted 1 masked images"),
]


def stop_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    step = Run._step

    def stopping(self: Run, number: int, batches: Iterator[Any]) -> float:
        if number == iteration:
            raise StoppedError
        return step(self, number, batches)

    monkeypatch.setattr(Run, "_step", stopping)


def state_of(net: DecoupledNet, *parts: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items() if name.startswith(parts)}


def changed(before: dict[str, torch.Tensor], net: DecoupledNet) -> list[str]:
    after = net.state_dict()
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


# resuming


@pytest.fixture(scope="module", params=[("sgd", "float32"), ("adamw", "bfloat16")], ids="-".join)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    optimizer, precision = request.param
    return {"optimizer": optimizer, "precision": precision, "validate_every": 2}


@pytest.fixture(scope="module", params=[stage_1, stage_2], ids=["classifier", "segmenter"])
def straight(
    request: pytest.FixtureRequest,
    one_thread: None,
    generated: VocFolder,
    values: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Train, Path]:
    """A stage, and the folder of a run of it that was never interrupted."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda entries, path: False)
        request.param(generated, out, values)
    return request.param, out


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_stage_equals_the_one_that_ran_through(
    straight: tuple[Train, Path],
    generated: VocFolder,
    values: dict[str, Any],
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, wanted = straight
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(StoppedError):
            train(generated, tmp_path, values)
    assert read_checkpoint(tmp_path)[1]["iteration"] == 3
    assert not (tmp_path / "weights").exists()
    train(generated, tmp_path, values, resume=True, workers=workers)
    assert_same_run(wanted, tmp_path)
    assert (wanted / "weights").is_dir()


@pytest.mark.parametrize("straight", [stage_1], indirect=True, ids=["classifier"])
def test_classifier_run_holds_what_the_resume_test_needs_to_mean_anything(straight: tuple[Train, Path]) -> None:
    tensors, state = read_checkpoint(straight[1])
    assert state["recipe"]["dropout"] == 0.5
    assert "model/encoder.conv1_1.1.running_mean" in tensors
    assert any(name.startswith("optimizer/") and value.any() for name, value in tensors.items())


def test_another_seed_gives_another_run(generated: VocFolder, tmp_path: Path) -> None:
    for seed in (0, 1):
        stage_1(generated, tmp_path / str(seed), {"seed": seed, "iterations": 2})
    assert read_log(tmp_path / "0") != read_log(tmp_path / "1")


def test_both_stages_run_and_resume_on_every_device(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    for train, kind in ((stage_1, "sgd"), (stage_2, "adamw")):
        out = tmp_path / kind
        with monkeypatch.context() as patch:
            stop_at(patch, 4)
            with pytest.raises(StoppedError):
                train(generated, out, {"optimizer": kind}, device=device)
        net = train(generated, out, {"optimizer": kind}, device=device, resume=True)
        assert next(net.parameters()).device.type == device
        assert [entry["iteration"] for entry in read_log(out) if "loss" in entry] == [2, 4, 6]
        assert changed(state_of(ddn_fast.load(out / "weights"), ""), net.cpu()) == []


# what is trained


def test_stage_1_leaves_bridge_and_decoder(generated: VocFolder, tmp_path: Path) -> None:
    net = fresh_net(generated.classes)
    frozen, trained = state_of(net, "bridge.", "decoder."), state_of(net, "encoder.", "head.")
    got = stage_1(generated, tmp_path, {"batch_norm": False, "dropout": 0.0, "iterations": 2}, init=net)
    assert changed(frozen, got) == []
    assert set(changed(trained, got)) == set(trained)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_stage_2_leaves_encoder_and_head_bit_for_bit(generated: VocFolder, tmp_path: Path, kind: str) -> None:
    net = fresh_net(generated.classes)
    frozen, trained = state_of(net, "encoder.", "head."), state_of(net, "bridge.", "decoder.")
    got = stage_2(generated, tmp_path, {"iterations": 2, "optimizer": kind}, init=net)
    assert changed(frozen, got) == []
    normalised = {name.replace("_bn.weight", ".bias") for name in trained if name.endswith("_bn.weight")}
    assert set(changed(trained, got)) == set(trained) - normalised  # batch normalisation takes a bias away again


def test_maps_computed_again_train_the_same_network_bit_for_bit(generated: VocFolder, tmp_path: Path) -> None:
    kept, again = (
        stage_2(generated, tmp_path / str(recompute), {"iterations": 3}, recompute=recompute)
        for recompute in (False, True)
    )
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in kept.state_dict().items())


@pytest.mark.parametrize(("optimizer", "held"), [("sgd", False), ("adamw", True)])
def test_gradients_are_not_held_beside_the_momentum(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, held: bool
) -> None:
    seen = []
    step = Run._step

    def watched(self: Run, iteration: int, batches: Any) -> float:
        loss = step(self, iteration, batches)
        seen.append(any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"]))
        return loss

    monkeypatch.setattr(Run, "_step", watched)
    net = stage_2(generated, tmp_path, {"iterations": 2, "optimizer": optimizer})
    assert seen == [held, held]
    net.bridge.fc6_seg.weight.square().sum().backward()
    assert net.bridge.fc6_seg.weight.grad is not None  # a run that is over takes none


@STAGES
def test_trained_network_is_in_eval_mode_and_is_the_one_on_disk(
    generated: VocFolder, tmp_path: Path, train: Train
) -> None:
    net = train(generated, tmp_path, {"iterations": 2})
    assert not any(module.training for module in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    saved = ddn_fast.load(tmp_path / "weights")
    assert changed(state_of(net, ""), saved) == []
    x = 60 * torch.randn(2, 3, 64, 64)
    with torch.no_grad():  # in another memory format
        torch.testing.assert_close(saved.classify(x), net.classify(x), rtol=0, atol=1e-4)
    assert read_metadata(tmp_path / "weights")["recipe"] == read_checkpoint(tmp_path)[1]["recipe"]


def test_statistics_are_reestimated_over_the_recipes_batches(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    plain = segmenter.reestimate

    def spy(model: DecoupledNet, batches: Any, forward: Any) -> int:
        batches = list(batches)
        seen.append([len(batch["data"]) for batch in batches])
        return plain(model, batches, forward)

    monkeypatch.setattr(segmenter, "reestimate", spy)
    net = stage_2(generated, tmp_path, {"iterations": 2, "bn_batches": 3, "bn_batch": 5})
    assert seen == [[5, 5, 5]]
    for module in net.modules():
        if isinstance(module, BatchNorm):
            assert not module.running_mean.eq(0).all()
            assert not module.running_var.eq(1).all()


def test_validation_on_the_way_measures_reestimated_statistics(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics as they were initialised say nothing about the network."""
    plain, fresh = segmenter.evaluate, []

    def spy(model: DecoupledNet, *rest: Any, **options: Any) -> Any:
        fresh.append([m.running_var.eq(1).all().item() for m in model.modules() if isinstance(m, BatchNorm)])
        return plain(model, *rest, **options)

    monkeypatch.setattr(segmenter, "evaluate", spy)
    stage_2(generated, tmp_path, {"iterations": 4, "validate_every": 2})
    assert len(fresh) == 2  # after two iterations, and at the end
    assert not any(flag for flags in fresh for flag in flags)
    assert [e["iteration"] for e in read_log(tmp_path) if "mean_iu" in e] == [2, 4]
    metadata = read_metadata(tmp_path / "weights")
    assert 0 <= metadata["validation"]["mean_iu"] <= 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_namespaces_of_ops_give_the_same_loss_and_gradients(accumulate: int) -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [
        {
            "data": 60 * torch.randn(3, 3, 64, 64, generator=generator),
            "subset": torch.ones(3, 4),
            "target": torch.randint(0, 2, (3, 64, 64), generator=generator),
        }
        for _ in range(accumulate)
    ]
    losses, gradients = [], []
    for namespace in (reference, ops):
        net = fresh_net(("ant", "bee", "cow", "dog"))
        net.ops = namespace
        net.bridge.train()
        net.decoder.train()
        for batch in batches:
            loss = segmentation_loss(training_scores(net, batch), batch["target"])
            assert loss is not None
            loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for m in (net.bridge, net.decoder) for p in m.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_label_vector_of_training_holds_max_pooled_scores_times_the_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fresh_net(("ant", "bee", "cow", "dog"))
    seen = {}
    plain = net.head.class_map

    def spy(head: Any, labels: torch.Tensor, passes: torch.Tensor) -> torch.Tensor:
        seen.update(head=head, labels=labels, passes=passes)
        return plain(head, labels, passes)

    monkeypatch.setattr(net.head, "class_map", spy)
    subset = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    training_scores(net, {"data": 0.1 * torch.randn(2, 3, 64, 64), "subset": subset})
    wanted = torch.sigmoid(seen["head"].score_map.flatten(2).max(2)[0]) * subset
    torch.testing.assert_close(seen["labels"], wanted)
    assert not torch.allclose(seen["labels"], seen["head"].scores * subset)
    assert seen["passes"].tolist() == [0, 1]


# learning


def mean_loss(log: list[dict[str, Any]], entries: slice) -> float:
    losses = [entry["loss"] for entry in log if "loss" in entry][entries]
    return sum(losses) / len(losses)


def test_both_stages_learn(generated: VocFolder, tmp_path: Path) -> None:
    """Each falls below what a constant answer reaches: the tags' entropy, and the foreground's."""
    wide = {"network": {"side": 64, "widths": [8, 12, 16, 24, 32], "fc": 48, "bridge": 32, "fc_kernel": 1}}
    common = {
        "optimizer": "adamw",
        "batch": 8,
        "accumulate": 1,
        "lr": 5e-3,
        "schedule": "cosine",
        "log_every": 5,
        **wide,
    }
    values = {**common, "iterations": 80, "dropout": 0.0, "weight_decay": 1e-4}
    net = stage_1(generated, tmp_path / "1", values, split="Main/train")
    log = read_log(tmp_path / "1")
    tags = read_tags(generated, "Main/train", progress=False)
    frequency = torch.stack([torch.from_numpy(t) for t in tags.values()]).double().mean(0)
    entropy = torch.nn.functional.binary_cross_entropy(frequency, frequency, reduction="sum").item()
    assert mean_loss(log, slice(0, 1)) > entropy
    assert mean_loss(log, slice(-2, None)) < 0.75 * entropy
    stage_2(generated, tmp_path / "2", {**common, "iterations": 60, "masks_per_class": 0}, init=net, val_split=None)
    log = read_log(tmp_path / "2")
    assert mean_loss(log, slice(-2, None)) < 0.7 * mean_loss(log, slice(0, 1))


# files


def test_windows_and_chosen_masks_are_written_and_read_back(generated: VocFolder, tmp_path: Path) -> None:
    values = {"iterations": 2, "checkpoint_every": 0}
    stage_2(generated, tmp_path / "a", values)
    ids = (tmp_path / "a" / "masks.txt").read_text().split()
    assert set(ids) <= set(generated.masked_ids("train"))
    assert 1 <= len(ids) <= 20
    lines = (tmp_path / "a" / "items.txt").read_text().splitlines()
    assert {Path(line.split()[0]).stem for line in lines} == set(ids)
    stage_2(generated, tmp_path / "b", values, items=tmp_path / "a" / "items.txt")
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")


def test_a_run_that_goes_on_reads_the_windows_it_wrote(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mask again would take minutes on a large folder; a list that somebody changed is another run's."""
    stage_2(generated, tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("items.txt", "masks.txt")}
    for name in ("build_items", "few_masks"):
        monkeypatch.setattr(segmenter, name, lambda *_, **__: pytest.fail("the masks were read again"))
    stage_2(generated, tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    lines = files["items.txt"].decode().splitlines(keepends=True)
    (tmp_path / "items.txt").write_text("".join(reversed(lines)))
    with pytest.raises(CheckpointError, match=r"data\.sha256"):
        stage_2(generated, tmp_path, resume=True)


def test_refused_run_leaves_every_file_of_the_folder(small: VocFolder, tmp_path: Path) -> None:
    """The list of windows, too, which another recipe would choose otherwise."""
    stage_2(small, tmp_path / "a", {"iterations": 2})
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="already holds a run"):
        stage_2(small, tmp_path / "a", {"iterations": 2, "seed": 1, "windows_per_subset": 2})
    with pytest.raises(CheckpointError, match=r"data|recipe"):
        stage_2(small, tmp_path / "a", {"iterations": 2, "seed": 1, "windows_per_subset": 2}, resume=True)
    after = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert {p: v for p, v in after.items() if "tags" not in p.name} == {
        p: v for p, v in before.items() if "tags" not in p.name
    }


def test_other_tags_are_other_data(small: VocFolder, tmp_path: Path) -> None:
    stage_1(small, tmp_path / "a", {"iterations": 2}, split="Main/train")
    path = min((small.root / "ImageSets/Main").glob("*_train.txt"))
    first, *rest = path.read_text().splitlines()
    name, flag = first.split()
    path.write_text("\n".join([f"{name} {-int(flag):2d}", *rest]))
    with pytest.raises(CheckpointError, match=r"data\.sha256"):
        stage_1(small, tmp_path / "a", {"iterations": 2}, split="Main/train", resume=True)


# wrong input


@STAGES
def test_recipe_of_the_other_stage_is_refused(generated: VocFolder, tmp_path: Path, train: Train) -> None:
    other = "segmenter" if train is stage_1 else "classifier"
    with pytest.raises(ConfigError, match=f"stage: wanted '.*', got '{other}'"):
        train(generated, tmp_path / "out", {"stage": other})
    assert not (tmp_path / "out").exists()


@STAGES
def test_empty_split_is_refused(small: VocFolder, tmp_path: Path, train: Train) -> None:
    (small.root / "ImageSets/Segmentation/none.txt").write_text("\n")
    with pytest.raises(DataError, match="the split is empty"):
        train(small, tmp_path / "out", split="none")


@STAGES
def test_unknown_split_is_refused_naming_those_there_are(generated: VocFolder, tmp_path: Path, train: Train) -> None:
    with pytest.raises(DataError, match="splits here: train, val"):
        train(generated, tmp_path / "out", split="trian")


@STAGES
def test_network_with_other_classes_is_refused(generated: VocFolder, tmp_path: Path, train: Train) -> None:
    with pytest.raises(WeightsError, match="the network knows"):
        train(generated, tmp_path / "out", init=fresh_net(("ant", "bee")))
    with pytest.raises(WeightsError, match="the network knows"):
        train(generated, tmp_path / "out", init=fresh_net(tuple(reversed(generated.classes))))


@pytest.mark.parametrize("masks", [0, 1])
def test_split_without_masks_cannot_train_the_segmenter(small: VocFolder, tmp_path: Path, masks: int) -> None:
    closeups = [name for name in small.ids("Main/train") if name.startswith("closeup")]
    (small.root / "ImageSets/Segmentation/tagged.txt").write_text("\n".join(closeups))
    with pytest.raises(DataError, match="no image of split 'tagged' has a mask"):
        stage_2(small, tmp_path / "out", {"masks_per_class": masks}, split="tagged")


@pytest.mark.parametrize("val_split", [None, "tagged"])
def test_training_without_masks_to_validate_on_says_nothing_of_mean_iu(
    small: VocFolder, tmp_path: Path, val_split: str | None
) -> None:
    closeups = [name for name in small.ids("Main/train") if name.startswith("closeup")]
    (small.root / "ImageSets/Segmentation/tagged.txt").write_text("\n".join(closeups))
    stage_2(small, tmp_path / "out", {"iterations": 2, "validate_every": 1}, val_split=val_split)
    assert not any("mean_iu" in entry for entry in read_log(tmp_path / "out"))
    assert "validation" not in read_metadata(tmp_path / "out" / "weights")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("1 " * 21, "26 fields"),
        ("1 " * 19, "26 fields"),
        ("2 " + "0 " * 19, "flags 0 or 1"),
        ("0 " * 20, "at least one"),
    ],
)
def test_list_of_windows_with_classes_out_of_range_is_refused(
    generated: VocFolder, tmp_path: Path, flags: str, message: str
) -> None:
    (tmp_path / "items.txt").write_text(
        f"/JPEGImages/train_000000.jpg /SegmentationClass/train_000000.png 0 0 9 9 {flags}\n"
    )
    with pytest.raises(DataError, match=message):
        stage_2(generated, tmp_path / "out", items=tmp_path / "items.txt")
    assert not (tmp_path / "out" / "weights").exists()


def test_network_larger_than_the_resized_images_is_refused(generated: VocFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resize: wanted at least the network's side 64, got 60"):
        stage_1(generated, tmp_path, {"resize": 60})


def test_every_damaged_image_and_mask_is_named_before_training(small: VocFolder, tmp_path: Path) -> None:
    ids = small.masked_ids("Segmentation/train")
    first, second, third = ids[:3]
    small.image_path(first).write_bytes(small.image_path(first).read_bytes()[:300])
    masks = [small.mask_path(name) for name in (second, third)]
    save_grey(np.full((5, 7), 1, np.uint8), masks[0])
    save_grey(np.full(small.mask(third).shape, 200, np.uint8), masks[1])
    with pytest.raises(DataError, match=rf"^1 of {len(ids)} images cannot be trained on: .*{first}.*cannot be read"):
        stage_1(small, tmp_path / "one", split="Segmentation/train", tags="main")
    with pytest.raises(DataError, match=rf"^3 of .*{first}.*cannot be read.*{second}.*7x5.*{third}.*got \[200\]"):
        check_files(pairs_of(small, ids, masks=True), small.num_classes, progress=False)
    assert not (tmp_path / "one" / CHECKPOINT).exists()


def test_an_image_damaged_meanwhile_ends_training_with_its_name(
    small: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddn_fast.training.classifier.check_data", lambda *_: None)
    for path in (small.root / "JPEGImages").glob("train_*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"train_0000\d\d\.jpg"):
        stage_1(small, tmp_path / "out", split="Segmentation/train")


def test_curves_are_drawn_at_checkpoints_of_a_run_that_takes_its_time(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Path, int]] = []
    monkeypatch.setattr(loop, "draw_curves", lambda log, path: drawn.append((path, log[-1]["iteration"])))
    stage_1(generated, tmp_path / "quick")
    assert drawn == [(tmp_path / "quick" / CURVES, 6)]  # at the end
    monkeypatch.setattr(loop, "DRAW_EVERY", 0.0)
    stage_1(generated, tmp_path)
    steps = 2, 6, 6  # checkpoints after 3 and 6, a log every 2, the end
    assert drawn[1:] == [(tmp_path / CURVES, step) for step in steps]


def test_a_network_to_start_from_is_not_of_another_shape_than_the_recipe_wants(
    generated: VocFolder, tmp_path: Path
) -> None:
    shape = {**NETWORK, "fc": NETWORK["fc"] + 1}
    with pytest.raises(ConfigError, match=r"\[network\]: wants fc \d+, not \d+ of the network to start from"):
        stage_1(generated, tmp_path, {"network": shape}, init=fresh_net(generated.classes))


def test_normalisation_is_added_behind_every_convolution_but_the_last(generated: VocFolder) -> None:
    net = fresh_net(generated.classes)
    add_batch_norm(net)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) == 15
    assert isinstance(net.head.cls_score, torch.nn.Conv2d)


def test_stage_1_takes_the_images_with_tags_where_the_folder_lists_them(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Run, "train", lambda run, resume: seen.append(run.items.count))
    stage_1(generated, tmp_path / "all")
    stage_1(generated, tmp_path / "masked", split="train")
    assert seen == [24, 12]


def test_a_bad_image_is_one_line_from_a_loaders_process_too(
    small: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "check_data", lambda *_: None)  # damaged after it
    for name in small.ids("Main/train"):
        small.image_path(name).write_bytes(small.image_path(name).read_bytes()[:200])
    with pytest.raises(DataError, match=r"^sample \d+, item \d+ \(.*\): [^\n]*$"):
        stage_1(small, tmp_path / "out", workers=1)


def test_a_split_named_for_validation_must_exist_and_the_default_one_need_not(small: VocFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vall"):
        stage_2(small, tmp_path / "misspelt", val_split="vall")
    for folder in ("Segmentation", "Main"):
        (small.root / f"ImageSets/{folder}/val.txt").unlink()
    stage_2(small, tmp_path / "none")
    assert "validation" not in read_metadata(tmp_path / "none/weights")


def test_the_last_validation_is_in_the_log(generated: VocFolder, tmp_path: Path) -> None:
    stage_2(generated, tmp_path)
    wanted = read_metadata(tmp_path / "weights")["validation"]["mean_iu"]
    assert read_log(tmp_path)[-1]["mean_iu"] == wanted


def test_a_checkpoint_over_another_frozen_part_is_refused(generated: VocFolder, tmp_path: Path) -> None:
    init = fresh_net(generated.classes)
    stage_2(generated, tmp_path, init=init)
    with torch.no_grad():
        init.head.fc7.weight *= 2
    with pytest.raises(CheckpointError, match="frozen"):
        stage_2(generated, tmp_path, init=init, resume=True)


def test_a_negative_number_of_workers_is_an_error_before_anything_is_written(
    generated: VocFolder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="workers"):
        stage_1(generated, tmp_path / "out", workers=-1)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("half", [False, True])
def test_frozen_part_by_the_fused_ops_equals_the_plain_network(half: bool) -> None:
    torch.manual_seed(0)
    net = DecoupledNet(NetConfig(tuple("abcde"), 96, (32, 32, 40, 40, 48), fc=64, bridge=32, fc_kernel=2)).eval()
    data = 40 * torch.randn(3, 3, 96, 96)
    subset = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    plain, fast = frozen_plain(net, data, subset), frozen_part(net, half)(data, subset)
    for wanted, got in ((plain.pool5, fast.pool5), (plain.class_map, fast.class_map)):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        assert (got - wanted).abs().mean() <= (0.03 if half else 1e-5) * wanted.abs().mean()
    if not half:
        assert all(torch.equal(a, b) for a, b in zip(plain.switches, fast.switches, strict=True))
    assert frozen_part(net, half).func is not frozen_plain
    assert not fast.pool5.requires_grad
    assert not fast.class_map[1].any()


def test_maps_of_a_narrow_frozen_part_reach_the_ops_of_training_under_autocast() -> None:
    net = fresh_net(tuple("abc"))
    data, subset = 40 * torch.randn(2, 3, 64, 64), torch.eye(3)[:2]
    with torch.autocast("cpu", torch.bfloat16):
        fixed = frozen_part(net, True)(data, subset)
    assert fixed.pool5.dtype == fixed.class_map.dtype == torch.float32, "trained_scores falls back to plain formulas"
