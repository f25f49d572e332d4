"""The generated dataset: a valid VOC folder, the same from the same seed, with everything the network is to learn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddn_fast.data import synthetic
from ddn_fast.data.few import few_masks
from ddn_fast.data.synthetic import CLASSES, SHAPES, TEXTURES, VOID, Settings, generate, render
from ddn_fast.data.tags import read_tags
from ddn_fast.data.voc import VocFolder
from ddn_fast.errors import DataError

SMALL = Settings(sides=(48, 64))


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def make(root: Path, **options: object) -> Path:
    defaults = {"train": 4, "closeups": 3, "val": 2, "settings": SMALL, "workers": 1, "progress": False}
    return generate(root, **{**defaults, **options})  # type: ignore[arg-type]


def test_classes_are_every_pair_of_texture_and_shape() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 20
    assert {tuple(name.split("-")) for name in CLASSES} == {(t, s) for t in TEXTURES for s in SHAPES}


def test_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    one, two = make(tmp_path / "1", workers=1), make(tmp_path / "2", workers=2)
    assert content(one) == content(two)
    assert len(content(one)) == (4 + 3 + 2) + (4 + 2) + 4 + 2 * 20 + 1
    other = make(tmp_path / "3", seed=1)
    same = [name for name, data in content(other).items() if name.endswith(".jpg") and data == content(one)[name]]
    assert not same


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, more = make(tmp_path / "1"), make(tmp_path / "2", train=6, closeups=0)
    for name in ("JPEGImages/train_000003.jpg", "SegmentationClass/train_000003.png", "JPEGImages/val_000001.jpg"):
        assert (few / name).read_bytes() == (more / name).read_bytes()


def test_folder_is_a_valid_voc_folder(generated: VocFolder) -> None:
    assert generated.classes == CLASSES
    assert generated.splits() == ("train", "val")
    scenes, val = generated.ids("train"), generated.ids("val")
    assert (len(scenes), len(generated.ids("Main/train")), len(val)) == (12, 24, 4)
    assert generated.masked_ids("train") == scenes
    assert generated.masked_ids("Main/train") == scenes  # close-ups have tags alone
    assert generated.masked_ids("val") == generated.ids("Main/val") == val
    assert not set(val) & set(generated.ids("Main/train"))
    for name in (*scenes, *val):
        image, mask = generated.pair(name)
        assert image.shape[:2] == mask.shape
        with Image.open(generated.mask_path(name)) as file:
            assert file.mode == "P"


@pytest.mark.parametrize("split", ["train", "Main/train", "val"])
def test_tags_agree_with_masks(generated: VocFolder, split: str) -> None:
    tags = read_tags(generated, split, "main", progress=False)
    assert set(tags) == set(generated.ids(split))
    for name, vector in tags.items():
        assert vector.max() == 1, "an image without an object"
        if generated.mask_path(name) is not None:
            shown = {int(v) - 1 for v in np.unique(generated.mask(name)) if 0 < v < VOID}
            assert shown == set(np.flatnonzero(vector == 1))


def test_masks_can_be_chosen_for_each_class(tmp_path: Path) -> None:
    folder = VocFolder(make(tmp_path / "voc", train=120, closeups=0, val=0))
    tags = read_tags(folder, "train", progress=False)
    count = np.sum([vector == 1 for vector in tags.values()], 0)
    assert (count >= 3).all(), "all classes occur"
    assert len(few_masks(folder, "train", 2, progress=False)) == 40


def test_closeups_show_one_class_and_all_of_them_in_turn(tmp_path: Path) -> None:
    folder = VocFolder(make(tmp_path / "voc", train=1, closeups=80, val=0))
    tags = read_tags(folder, "Main/train", progress=False)
    closeups = [vector for name, vector in tags.items() if name.startswith("closeup")]
    assert len(closeups) == 80
    assert all((vector == 1).sum() == 1 for vector in closeups)
    assert (np.sum([vector == 1 for vector in closeups], 0) >= 1).sum() >= 18


def test_scenes_without_masks_have_tags_alone(tmp_path: Path) -> None:
    folder = VocFolder(make(tmp_path / "voc", train=2, scenes=6, closeups=0, val=1))
    assert len(folder.ids("train")) == 2
    scenes = [name for name in folder.ids("Main/train") if name.startswith("scene")]
    assert len(scenes) == 6
    assert not any(folder.mask_path(name) for name in scenes)
    tags = read_tags(folder, "Main/train", progress=False)
    assert all((tags[name] == 1).any() for name in scenes)


@pytest.fixture(scope="module")
def rendered() -> list[tuple[np.ndarray, np.ndarray]]:
    return [render(np.random.default_rng(seed)) for seed in range(40)]


def touching(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of different values that are neighbours in a row or a column, smaller first."""
    pairs = [(mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])]
    both = np.concatenate([np.stack([a, b], -1).reshape(-1, 2) for a, b in pairs])
    return {(min(a, b), max(a, b)) for a, b in np.unique(both, axis=0).tolist() if a != b}


def test_scenes_show_one_to_four_objects_of_all_classes(rendered: list[tuple[np.ndarray, np.ndarray]]) -> None:
    numbers: Counter[int] = Counter()
    seen: set[int] = set()
    for image, mask in rendered:
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert all(144 <= side <= 224 for side in mask.shape)
        labels = {int(v) for v in np.unique(mask)} - {0, VOID}
        numbers[len(labels)] += 1
        seen |= labels
    assert seen == set(range(1, 21))
    assert set(numbers) == {1, 2, 3, 4}


def test_void_lies_between_objects_that_hide_each_other(rendered: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, mask in rendered:
        assert 0.001 < (mask == VOID).mean() < 0.2
        assert not [pair for pair in touching(mask) if pair[0] > 0 and pair[1] < VOID]


def test_objects_have_a_void_border_but_where_a_stick_lies_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = synthetic._draw_clutter

    def without_sticks(rng: np.random.Generator, image: np.ndarray, thin: bool = False) -> np.ndarray:
        return np.zeros(image.shape[:2], bool) if thin else draw(rng, image)

    monkeypatch.setattr(synthetic, "_draw_clutter", without_sticks)
    for seed in range(30):
        _, mask = render(np.random.default_rng(seed))
        assert {pair[1] for pair in touching(mask)} == {VOID}


def test_a_folder_that_holds_images_is_refused_and_left(tmp_path: Path) -> None:
    root = make(tmp_path / "voc")
    before = content(root)
    with pytest.raises(DataError, match="holds something already"):
        make(root, seed=1)
    assert content(root) == before


@pytest.mark.parametrize(
    "options",
    [
        {"train": 0},
        {"train": -1},
        {"scenes": -1},
        {"closeups": -1},
        {"val": -2},
        {"seed": -1},
        {"workers": 0},
        {"workers": -1},
    ],
    ids=str,
)
def test_impossible_counts_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(DataError, match="generate: wanted"):
        make(tmp_path / "voc", **options)
    assert not (tmp_path / "voc").exists()


def test_kinds_of_which_no_image_is_wanted_leave_no_empty_split(tmp_path: Path) -> None:
    folder = VocFolder(make(tmp_path / "voc", closeups=0, val=0))
    assert folder.splits() == ("train",)
    assert folder.ids("Main/train") == folder.ids("train")


def test_what_a_stopped_run_left_is_replaced_and_a_folder_appears_only_complete(tmp_path: Path) -> None:
    left = tmp_path / "voc.part/JPEGImages"
    left.mkdir(parents=True)
    (left / "train_000099.jpg").write_bytes(b"half")
    folder = VocFolder(generate(tmp_path / "voc", train=2, closeups=1, val=1, workers=1, progress=False))
    assert "train_000099" not in folder
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]
