"""Masks in colours with a labelmap.txt, as CVAT exports them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddn_fast.cli import main
from ddn_fast.data import VocFolder, import_label_map
from ddn_fast.data.labelmap import LabelMap, mask_of_colours, read_label_map
from ddn_fast.errors import DataError
from ddn_fast.images import voc_palette

TEXT = """# label:color_rgb:parts:actions
dog:10,128,0::
background:0,0,0::
ignored:255,255,255::
cat:250,50,83:head,tail:runs
"""
COLOURS = {0: (0, 0, 0), 1: (10, 128, 0), 2: (250, 50, 83), 255: (255, 255, 255)}


def picture_of(mask: np.ndarray, palette: bool = False) -> Image.Image:
    """In colours; with a palette in another order than the labels."""
    colours = np.zeros((*mask.shape, 3), np.uint8)
    for label, colour in COLOURS.items():
        colours[mask == label] = colour
    picture = Image.fromarray(colours)
    return picture.quantize(8) if palette else picture


def random_mask(seed: int, size: tuple[int, int] = (12, 9)) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2, 255], size).astype(np.uint8)


def write_export(root: Path, lists: dict[str, list[str]]) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    (root / "labelmap.txt").write_text(TEXT)
    for list_name, names in lists.items():
        (root / f"ImageSets/Segmentation/{list_name}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            stem, seed = Path(name).name, ord(Path(name).name[0])
            picture_of(random_mask(seed), palette=bool(seed % 2)).save(root / f"SegmentationClass/{stem}.png")
            picture_of(random_mask(seed)).save(root / f"JPEGImages/{stem}.jpg")
    return root


def test_a_label_map_names_classes_and_colours(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(TEXT)
    label_map = read_label_map(tmp_path / "labelmap.txt")
    assert label_map.classes == ("dog", "cat")
    void = tuple(voc_palette()[255].tolist())
    assert label_map.labels == {colour: label for label, colour in COLOURS.items()} | {void: 255}


def test_colours_that_a_label_map_leaves_out_are_vocs(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("background:::\naeroplane:::\nbicycle\n")
    label_map = read_label_map(tmp_path / "labelmap.txt")
    assert label_map == LabelMap(
        ("aeroplane", "bicycle"), {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2, (224, 224, 192): 255}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog:1,2::", r":1: wanted name:r,g,b"),
        ("dog:1,2,300::", r":1: wanted a colour of 0 to 255, got 1,2,300"),
        ("dog:1,2,3::\ncat:1,2,3::", r":2: the colour 1,2,3 stands for another label, too"),
        ("dog:red::", r":1: wanted name:r,g,b"),
    ],
)
def test_a_label_map_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_label_map(tmp_path / "labelmap.txt")


@pytest.mark.parametrize("palette", [False, True])
def test_colours_say_the_class_whatever_their_place_in_a_palette(tmp_path: Path, palette: bool) -> None:
    (tmp_path / "labelmap.txt").write_text(TEXT)
    label_map = read_label_map(tmp_path / "labelmap.txt")
    mask = random_mask(3)
    picture_of(mask, palette).save(tmp_path / "a.png")
    np.testing.assert_array_equal(mask_of_colours(tmp_path / "a.png", label_map), mask)
    colours = np.array(picture_of(mask))
    colours[4, 5] = (9, 9, 9)
    Image.fromarray(colours).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b.png: wanted colours of labelmap.txt, got 9,9,9 in 1 pixels"):
        mask_of_colours(tmp_path / "b.png", label_map)


def test_an_export_becomes_a_dataset_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_export(tmp_path / "export", {"default": ["a", "sub/b"], "val": ["c"]})
    assert main(["import", str(source), "--out", str(tmp_path / "voc"), "--quiet"]) == 0
    folder = VocFolder(tmp_path / "voc")
    assert folder.classes == ("dog", "cat")
    assert [folder.ids(name) for name in ("train", "val")] == [("a", "b"), ("c",)]
    for name in "abc":
        np.testing.assert_array_equal(folder.mask(name, check_size=True), random_mask(ord(name)))
    out = capsys.readouterr().out
    assert out.splitlines() == [
        f"{tmp_path}/voc: split {split}: {count} images with tags, {count} of them with masks"
        for split, count in (("val", 1), ("train", 2))
    ]


def test_two_lists_do_not_become_one_split(tmp_path: Path) -> None:
    source = write_export(tmp_path / "export", {"default": ["a"], "train": ["b"]})
    with pytest.raises(DataError, match=r"lists 'default' and 'train' would be one; name another split"):
        import_label_map(source, tmp_path / "voc", progress=False)
    assert list(import_label_map(source, tmp_path / "voc", split="more", progress=False)) == ["train", "more"]


def test_masks_without_lists_are_one_split_of_images_elsewhere(tmp_path: Path) -> None:
    source = write_export(tmp_path / "export", {"default": ["a", "b"]})
    (source / "ImageSets/Segmentation/default.txt").unlink()
    (source / "JPEGImages").rename(tmp_path / "photos")
    (tmp_path / "photos/b.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages: wanted the images' folder, found none"):
        import_label_map(source, tmp_path / "voc", progress=False)
    found = import_label_map(source, tmp_path / "voc", images=tmp_path / "photos", split="few", progress=False)
    assert list(found) == ["few"]
    assert (found["few"].images, len(found["few"].wrong)) == (1, 1)
    assert "b.jpg: cannot read" in found["few"].wrong[0]
    assert VocFolder(tmp_path / "voc").ids("few") == ("a",)


def test_classes_are_the_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_export(tmp_path / "export", {"default": ["a"]})
    assert main(["import", str(source), "--out", str(tmp_path / "voc"), "--classes", "dog"]) == 2
    assert "labelmap.txt names the classes" in capsys.readouterr().err
