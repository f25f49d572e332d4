"""The few-mask experiment: the rival learns what it should, and the driver gets through whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import few_shot
import few_shot_runs
import masks_alone
import numpy as np
import pytest
import torch
from few_shot import Driver, table
from few_shot_runs import ALONE, TAGS, Name
from PIL import Image
from tiny_training import fresh_net, tiny_recipe

from ddn_fast import ops
from ddn_fast.data.synthetic import CLASSES
from ddn_fast.data.voc import VocFolder
from ddn_fast.data.windows import WindowItem
from ddn_fast.network import DecoupledNet
from ddn_fast.training.bn import add_batch_norm, fold_batch_norm
from ddn_fast.training.loop import Batch
from ddn_fast.training.recipe import from_dict
from ddn_fast.weights import load

pytestmark = pytest.mark.usefixtures("one_thread")


def normalised_net() -> DecoupledNet:
    """A network with batch normalisation in encoder and head, and statistics that are not those of a fresh one."""
    model = fresh_net(CLASSES).double()
    add_batch_norm(model)
    model.ops = ops
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight.data):
                value.copy_(0.5 + torch.rand_like(value))
    return model


def test_rivals_class_map_is_that_of_the_network_it_folds_to() -> None:
    model = normalised_net().eval()
    x, subset = 40 * torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.zeros(2, len(CLASSES))
    subset[:, 3], subset[1, 5] = 1, 1
    head = model.head(model.encoder(x, ops).pool5)
    got = masks_alone.class_map(model, head, subset)
    fold_batch_norm(model)
    _, head = model.encode(x)
    wanted = model.head.class_map(head, head.max_scores * subset, torch.arange(2))
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.fixture
def model() -> DecoupledNet:
    """In training, and the same whenever it is called."""
    model = normalised_net().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    return model


@pytest.fixture
def batch() -> Batch:
    """Four items."""
    torch.manual_seed(1)
    return {
        "data": 40 * torch.randn(4, 3, 64, 64),
        "target": torch.randint(0, 2, (4, 64, 64)),
        "subset": torch.nn.functional.one_hot(torch.arange(4), len(CLASSES)).float(),
        "labels": torch.randint(-1, 2, (4, len(CLASSES))),
    }


def test_rivals_loss_and_gradients_are_those_of_the_plain_network(model: DecoupledNet, batch: Batch) -> None:
    batch["data"] = batch["data"].double()
    masks_alone.joint_loss(model, batch, 3).backward()
    got = {name: 0 if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    features = model.encoder(batch["data"], ops)
    head = model.head(features.pool5)
    given = masks_alone.class_map(model, head, batch["subset"])[:3]
    scores = model.decoder(model.bridge(features.pool5[:3], given), tuple(s[:3] for s in features.switches), None, ops)
    tags, known = batch["labels"].double(), batch["labels"] >= 0
    losses = torch.nn.functional.binary_cross_entropy_with_logits(head.score_map.mean((2, 3)), tags, reduction="none")
    wanted = losses[known].sum() / 4 + torch.nn.functional.cross_entropy(scores, batch["target"][:3])
    wanted.backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max() + 1e-6  # biases before a normalisation have a gradient of rounding errors
        assert (got[name] - parameter.grad).abs().max() < 1e-6 * scale, name


def test_rival_learns_masks_and_tags_together_and_decodes_only_the_first_items(
    model: DecoupledNet, batch: Batch
) -> None:
    model = model.float()
    loss = masks_alone.joint_loss(model, batch, 2)
    loss.backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if name.endswith("weight")), (
        "a layer learns nothing"
    )
    batch["target"][2:] = 1 - batch["target"][2:]
    assert masks_alone.joint_loss(model, batch, 2) == loss, "the items behind the first two were decoded"
    batch["labels"][3] = 1
    assert masks_alone.joint_loss(model, batch, 2) != loss


def test_a_window_has_the_tags_of_what_it_shows() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[:, :2], mask[2:6, 8:18], mask[0, 19] = 1, 3, 255
    tags = masks_alone.window_tags(mask, WindowItem("i", "m", (-3, -5, 7, 30), (0,)), 4)
    assert tags.tolist() == [1, 0, 0, 0]
    assert masks_alone.window_tags(mask, WindowItem("i", "m", (2, 0, 9, 9), (2,)), 4).tolist() == [0, 0, -1, 0]
    assert masks_alone.window_tags(mask, WindowItem("i", "m", (1, 0, 11, 9), (2,)), 4).tolist() == [1, 0, 1, 0]
    assert masks_alone.window_tags(mask, WindowItem("i", "m", (8, 0, 19, 3), (2,)), 4).tolist() == [0, 0, 1, 0]
    assert masks_alone.window_tags(mask, WindowItem("i", "m", (30, 30, 40, 40), (2,)), 4).tolist() == [0, 0, 0, 0]


def settings(folder: Path) -> dict[str, Any]:
    stage1 = tiny_recipe("classifier", batch_norm=True, accumulate=1)
    stage2 = tiny_recipe("segmenter", accumulate=1)
    recipes = {name: recipe.to_dict() for name, recipe in few_shot.recipes(stage1, stage2).items()}
    return {
        "recipes": recipes,
        "decoded": 1,
        "few": {"masks_per_class": 2, "lr": 0.5},
        "folder": str(folder),
        "images": None,
        "device": "cpu",
    }


@pytest.mark.filterwarnings("ignore:wanted 1 masked images")
def test_every_kind_of_run_trains_and_is_scored(generated: VocFolder, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings(generated.root)))
    names = few_shot.plan([0], [0, 1])
    assert [str(name) for name in names] == [
        "seed0/tags", "seed0/alone-0", "seed0/alone-1", "seed0/tags-0", "seed0/tags-1"
    ]  # fmt: skip
    assert [Name.of(str(name)) for name in names] == names
    results = [few_shot_runs.run(tmp_path, name) for name in (names[0], names[1], names[4])]
    assert results[0] == {}
    assert [(r["rival"], r["masks_per_class"], r["seed"]) for r in results[1:]] == [(ALONE, 0, 0), (TAGS, 1, 0)]
    assert results[1]["masks"] == 12
    assert results[2]["masks"] <= 12
    assert all(0 <= r[key] <= 1 for r in results[1:] for key in ("mean_iu", "mean_iu_true_labels"))
    frozen = load(tmp_path / "seed0/tags/weights").state_dict()
    trained = load(tmp_path / "seed0/tags-1/weights").state_dict()
    assert all(torch.equal(frozen[name], trained[name]) for name in frozen if name.startswith(("encoder", "head")))
    log = [json.loads(line) for line in (tmp_path / "seed0/alone-0/log.jsonl").read_text().splitlines()]
    assert log[-1]["iteration"] == 12, "the rival has the solver steps of both stages"


def test_shipped_recipes_give_the_rival_as_many_steps_and_images() -> None:
    settings = few_shot.settings_of(few_shot.parser().parse_args(["--out", "x", "--device", "cpu"]))
    made = {kind: from_dict(recipe) for kind, recipe in settings["recipes"].items()}
    assert made["alone"].samples == made["classifier"].samples + made["segmenter"].samples
    assert made["alone"].network == made["classifier"].network
    assert made["alone"].batch >= settings["decoded"]
    assert settings["decoded"] * made["alone"].iterations >= made["segmenter"].samples


def test_rivals_learning_rate_is_the_one_for_its_number_of_masks(tmp_path: Path) -> None:
    rates = [few_shot_runs.recipe_of(Name(0, "alone", count), settings(tmp_path)).lr for count in (0, 1, 2, 3)]
    assert rates == [few_shot.ALONE_LR, 0.5, 0.5, few_shot.ALONE_LR]
    assert few_shot_runs.recipe_of(Name(0, "tags", 1), settings(tmp_path)).lr == tiny_recipe("segmenter").lr


@pytest.mark.parametrize(
    ("size", "device", "side"), [(None, "cpu", 64), (None, "cuda", 320), ("narrow", "cuda", 64), ("full", "cpu", 320)]
)
def test_network_is_the_full_size_one_where_there_is_a_gpu(size: str | None, device: str, side: int) -> None:
    options = ["--out", "x", "--device", device, *(["--size", size] if size else [])]
    made = few_shot.settings_of(few_shot.parser().parse_args(options))
    found = {kind: from_dict(recipe) for kind, recipe in made["recipes"].items()}
    assert found["classifier"].network.side == found["alone"].network.side == side
    assert {recipe.resize for recipe in found.values()} == {350 if side == 320 else 72}


SCRIPT = """
import json, pathlib, sys
out, name = pathlib.Path(sys.argv[1]), sys.argv[2]
kind = json.loads((out / "behaviour.json").read_text()).get(name, "good")
with (out / "started.txt").open("a") as file:
    file.write(name + "\\n")
if kind == "bad" or kind == "once" and (out / "started.txt").read_text().split().count(name) < 2:
    sys.exit("broken")
rival = {"alone": "masks alone", "tags": "masks and tags"}[name.split("/")[1].split("-")[0]]
figures = {"mean_iu": 0.5, "mean_iu_true_labels": 0.75, "mean_average_precision": 1.0, "masks": 40}
result = {"rival": rival, "masks_per_class": 2, "seed": int(name[4]), **figures} if name[-1] == "2" else {}
(out / name / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a driver whose runs are a script that behaves as told, and counts the starts."""
    (tmp_path / "few_shot_runs.py").write_text(SCRIPT)
    monkeypatch.setattr(few_shot, "HERE", tmp_path)

    def make(**behaviour: str) -> Driver:
        told = {f"seed0/{name.replace('_', '-')}": how for name, how in behaviour.items()}
        (tmp_path / "behaviour.json").write_text(json.dumps(told))
        return Driver(tmp_path, few_shot.plan([0, 1], [2]), settings(tmp_path), 2)

    return make


def started(path: Path) -> list[str]:
    return sorted((path / "started.txt").read_text().split())


def test_a_run_that_fails_is_tried_again_and_holds_up_no_other(driver: Any, tmp_path: Path) -> None:
    assert [str(name) for name in driver(alone_2="once", tags_2="bad").run()] == ["seed0/tags-2"]
    assert len(started(tmp_path)) == 6 + 2
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["results"]) == 3
    assert (tmp_path / "seed0/tags-2/output.txt").read_text().split() == ["broken", "broken"]
    assert driver().run() == []
    assert len(started(tmp_path)) == 6 + 2 + 1, "the same command runs only what is missing"
    report = json.loads((tmp_path / "results.json").read_text())
    assert "\n2 | 40 | 50.0 ± 0.0 | 50.0 ± 0.0 | 75.0 ± 0.0 | 75.0 ± 0.0\n" in table(report)


def test_what_needs_a_failed_stage_1_is_not_started(driver: Any, tmp_path: Path) -> None:
    assert [str(name) for name in driver(tags="bad").run()] == ["seed0/tags", "seed0/tags-2"]
    assert "seed0/tags-2" not in started(tmp_path)


def test_a_folder_of_other_settings_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings(tmp_path)))
    monkeypatch.setattr("sys.argv", ["few_shot.py", "--out", str(tmp_path), "--size", "narrow", "--device", "cpu"])
    assert few_shot.main() == 2
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json"}


def test_results_are_shown_as_they_are(tmp_path: Path) -> None:
    figures = {"mean_iu_true_labels": 0.5, "mean_average_precision": 0.5}
    rows = [(TAGS, 0, 0, 0.625), (TAGS, 5, 0, 0.5), (TAGS, 5, 1, 0.52), (ALONE, 5, 0, 0.25)]
    results = [
        {"rival": rival, "masks_per_class": count, "masks": 20 * count or 1200, "seed": seed, "mean_iu": iu, **figures}
        for rival, count, seed, iu in rows
    ]
    machine = {"cpu": "a CPU", "cores": 2}
    report = {"benchmark": "few_shot", "machine": machine, "seconds": 1200.0, "results": results}
    lines = table(report, ["plot"]).splitlines()
    assert lines[2:4] == ["5 | 100 | 51.0 ± 1.4 | 25.0 | 50.0 ± 0.0 | 50.0", "every | 1200 | 62.5 | - | 50.0 | -"]
    assert lines[5] == "Mean and standard deviation over 2 seeds; a CPU, 2 cores, 20 minutes in all."
    assert lines[-1] == "![Mean IU against masks a class](docs/few_shot.png)"
    few_shot.draw(report, tmp_path / "plot.png")
    if (tmp_path / "plot.png").exists():
        with Image.open(tmp_path / "plot.png") as plot:
            assert plot.size[0] > 400
    assert table({"results": []}) == "Not run yet."
