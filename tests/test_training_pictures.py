"""What people look at: the sheet of validation masks, and TensorBoard's files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_training_cli import write_recipe
from tiny_net import random_image
from tiny_training import StoppedError, fresh_net, stop_at, tiny_recipe, toy_run

from ddn_fast.cli import main
from ddn_fast.data.voc import VocFolder
from ddn_fast.drawing import CAPTION, MARGIN, PAPER, cell, sheet, shrunk
from ddn_fast.images import voc_palette
from ddn_fast.training.segmenter import train_segmenter
from ddn_fast.training.validation import CELL, IMAGES, chosen_ids, draw

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:class .*wanted 1 masked images", "ignore:wanted 1 masked images"),
]


@pytest.mark.parametrize("size", [(30, 60), (60, 30), (1, 400), (300, 300)])
def test_a_cell_holds_its_whole_image_below_a_caption(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    got = cell(image, "text", 50)
    assert got.shape == (50 + CAPTION, 50, 3)
    rows, columns = np.nonzero((got[CAPTION + 2 :] == 0).all(2))
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    assert longest == 50 - 2 * MARGIN
    assert (got[: CAPTION + 1] < PAPER).any(), "no caption"


def test_a_shrunk_mask_has_no_labels_between_its_own() -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[20:50, 30:90] = 17
    small, small_mask = shrunk(random_image(0, 90, 120), mask, 52)  # no whole factor, which would hit pixels alone
    assert small.shape == (39, 52, 3)
    assert small_mask.shape == (39, 52)
    assert set(np.unique(small_mask)) == {0, 17}


def test_a_sheet_is_its_columns_side_by_side() -> None:
    cells = [[np.full((2, 3, 3), 2 * column + row, np.uint8) for row in range(2)] for column in range(3)]
    got = sheet(cells)
    assert got.shape == (4, 9, 3)
    assert got[::2, ::3, 0].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_validation_sheet_shows_image_truth_and_what_was_found(generated: VocFolder) -> None:
    ids = list(generated.masked_ids("val"))
    model = fresh_net(generated.classes)
    plain = model.segment

    def perfect(paths: list[Path], *_: Any) -> list[Any]:
        results = plain(paths)
        for name, result in zip(ids, results, strict=True):
            object.__setattr__(result, "mask", generated.mask(name))
            object.__setattr__(result, "labels", ())  # no legend, which may be large
        return results

    got = draw(model, generated, ids)
    assert got.shape == (3 * (CELL + CAPTION), len(ids) * CELL, 3)
    model.segment = perfect  # type: ignore[method-assign, assignment]
    image, truth, found = np.split(draw(model, generated, ids), 3)
    body = slice(CAPTION + 60, CELL - 60), slice(0, None)  # between captions and legends
    assert (truth[body] != image[body]).mean() > 0.05
    assert (truth[body] != found[body]).mean() < 0.05
    assert (got[2 * (CELL + CAPTION) :][body] != found[body]).mean() > 0.05


def test_truth_is_named_in_the_colour_of_its_class(generated: VocFolder) -> None:
    (name,) = chosen_ids(generated, "val")[:1]
    label = int(np.unique(generated.mask(name))[1])
    truth = np.split(draw(fresh_net(generated.classes), generated, [name]), 3)[1]
    patch = (truth == voc_palette()[label]).all(2)
    assert patch.sum() >= 25, "no patch of the class's colour"


def test_the_same_images_are_chosen_each_time_and_from_all_over_the_split(generated: VocFolder) -> None:
    class Split:
        def masked_ids(self, _: str) -> tuple[str, ...]:
            return tuple(map(str, range(1449)))

    ids = chosen_ids(Split(), "val")  # type: ignore[arg-type]
    assert len(set(ids)) == IMAGES
    assert (ids[0], ids[4]) == ("0", "724")
    assert chosen_ids(generated, "val") == list(generated.masked_ids("val"))


def test_each_validation_leaves_a_sheet(generated: VocFolder, tmp_path: Path) -> None:
    recipe = tiny_recipe("segmenter", masks_per_class=1, validate_every=2, iterations=3)
    train_segmenter(generated, tmp_path, recipe, init=fresh_net(generated.classes), workers=0, progress=False)
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == ["000002.png", "000003.png"]
    with Image.open(tmp_path / "validation/000003.png") as picture:
        assert picture.size == (4 * CELL, 3 * (CELL + CAPTION))


# TensorBoard


def scalars(folder: Path, name: str) -> dict[int, float]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_shows_the_log_and_the_sheets(generated: VocFolder, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = tiny_recipe("segmenter", masks_per_class=1, validate_every=4)
    init = fresh_net(generated.classes)
    train_segmenter(generated, tmp_path, recipe, init=init, workers=0, progress=False, tensorboard=True)
    assert list(scalars(tmp_path / "tensorboard", "loss")) == [2, 4, 6]
    assert list(scalars(tmp_path / "tensorboard", "mean_iu")) == [4, 6]
    assert scalars(tmp_path / "tensorboard", "lr") == pytest.approx({2: 0.01, 4: 0.01, 6: 0.001})
    assert all(value > 0 for value in scalars(tmp_path / "tensorboard", "images_per_second").values())
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.width) for event in events.Images("validation")] == [(4, 4 * CELL), (6, 4 * CELL)]


def test_a_resumed_run_takes_back_what_it_lives_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = toy_run(tmp_path, log_every=1)
    run.tensorboard = True
    with pytest.raises(StoppedError):
        stop_at(run, 5).train()  # the checkpoint is of iteration 3
    again = toy_run(tmp_path, log_every=1)
    again.tensorboard = True
    again.train(resume=True)
    assert scalars(tmp_path / "tensorboard", "loss") == pytest.approx(
        {entry["iteration"]: entry["loss"] for entry in again.log}
    )
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_tensorboard_asked_for_and_missing_is_a_named_error(
    generated: VocFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else plain(name))
    recipe = write_recipe(tiny_recipe("classifier"), tmp_path / "1.toml")
    arguments = ["train", "classifier", "--data", generated.root, "--recipe", recipe, "--out", tmp_path / "out"]
    assert main([str(part) for part in [*arguments, "--device", "cpu", "--quiet", "--tensorboard"]]) == 2
    message = capsys.readouterr().err
    assert "error: tensorboard: wanted the package of that name" in message
    assert "pip install 'ddn-fast[tensorboard]'" in message
    assert not (tmp_path / "out/checkpoint.safetensors").exists()
