"""What ends a training run before it begins, not hours later; and what must not be mixed up in its folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_training import fresh_net, stage_1, stage_2
from voc_writer import save_grey

from ddn_fast.data.voc import VocFolder
from ddn_fast.data.windows import read_list
from ddn_fast.errors import CheckpointError, DataError, InputError
from ddn_fast.files import alone_in
from ddn_fast.images import load_mask
from ddn_fast.training import classifier, segmenter
from ddn_fast.training.loop import CHECKPOINT, Batch, _named
from ddn_fast.training.segmenter import ITEMS
from ddn_fast.weights import read_metadata

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:class .*wanted 1 masked images"),
]


def test_images_and_masks_to_validate_on_are_looked_at_before_training(small: VocFolder, tmp_path: Path) -> None:
    net = fresh_net(small.classes)
    first, second = small.masked_ids("val")[:2]
    mask = small.mask_path(second)
    assert mask
    small.image_path(first).write_bytes(b"junk")
    save_grey(np.full((5, 7), 1, np.uint8), mask)
    with pytest.raises(DataError, match=rf"(?s){first}.*cannot be read.*{second}.*the mask is 7x5"):
        stage_2(small, tmp_path, init=net)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_run_does_not_go_on_with_other_masks(small: VocFolder, tmp_path: Path) -> None:
    net = fresh_net(small.classes)
    stage_2(small, tmp_path, {"checkpoint_every": 1}, init=copy.deepcopy(net))
    name = read_list(tmp_path / ITEMS, small.num_classes)[0].mask
    mask = load_mask(small.root / name, small.num_classes)
    save_grey(np.where(mask == 1, 2, mask).astype(np.uint8)[::-1], small.root / name)
    with pytest.raises(CheckpointError, match="masks"):
        stage_2(small, tmp_path, {"checkpoint_every": 1}, init=copy.deepcopy(net), resume=True)
    (small.root / name).unlink()
    with pytest.raises(DataError, match=r"cannot read: No such file"):
        stage_2(small, tmp_path, {"checkpoint_every": 1}, init=copy.deepcopy(net), resume=True)


def test_tags_without_a_class_are_an_error_and_a_class_without_an_image_is_told(
    small: VocFolder, tmp_path: Path
) -> None:
    ids = small.ids("Segmentation/train")
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\n" + "".join(f"{name},\n" for name in ids))
    with pytest.raises(DataError, match=rf"by the tags of all {len(ids)} images no class is there"):
        stage_1(small, tmp_path / "none", split="Segmentation/train", tags=tags)
    tags.write_text("image,tags\n" + "".join(f"{name},{small.classes[0]}\n" for name in ids))
    with pytest.warns(UserWarning, match=rf"no image shows {small.classes[1]}"):
        stage_1(small, tmp_path / "one", split="Segmentation/train", tags=tags)


def test_what_validation_says_fits_beside_the_weights_of_254_classes(small: VocFolder, tmp_path: Path) -> None:
    stage_2(small, tmp_path, init=fresh_net(small.classes))
    said = read_metadata(tmp_path / "weights")["validation"]
    assert "mean_iu" in said
    assert "confusion" not in said


def test_two_runs_do_not_share_a_folder_and_the_second_reads_no_image(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "read_tags", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(segmenter, "few_masks", lambda *_, **__: pytest.fail("read"))
    for stage in (stage_1, stage_2):
        with alone_in(tmp_path), pytest.raises(InputError, match="another run is writing there"):
            stage(generated, tmp_path)


def test_images_both_trained_and_validated_on_are_told_of(small: VocFolder, tmp_path: Path) -> None:
    apart = "images to validate on are trained on"
    with pytest.warns(UserWarning, match=rf"[1-9]\d* of the \d+ {apart}, such as .*JPEGImages.*"):
        stage_2(small, tmp_path / "shared", val_split="train")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", apart)
        stage_2(small, tmp_path / "apart")


def test_a_folder_that_cannot_hold_a_run_is_told_before_anything_is_read(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "read_tags", lambda *_, **__: pytest.fail("read"))
    (tmp_path / "weights").write_text("")
    with pytest.raises(InputError, match="wanted a folder for the trained network, got a file"):
        stage_1(generated, tmp_path)
    with pytest.raises(OSError, match="weights"):
        stage_1(generated, tmp_path / "weights" / "below")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "has ended, for want of memory"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "has ended, for want of memory"),
        (
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
            "docker --shm-size",
        ),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_the_system_does_to_loaders_is_a_named_error(said: str, wanted: str | None) -> None:
    def batches() -> Iterator[Batch]:
        yield {}
        raise RuntimeError(said)

    found = _named(batches())
    assert next(found) == {}
    with pytest.raises(DataError if wanted else RuntimeError, match=wanted or "mat1"):
        next(found)
