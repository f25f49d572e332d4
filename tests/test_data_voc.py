from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from voc_writer import CLASSES, mask_of, save_grey, write_voc

from ddn_fast.config import VOC_CLASSES
from ddn_fast.data import VocFolder, tags_from_masks
from ddn_fast.data.voc import read_text
from ddn_fast.errors import DataError, ImageError

LABELS = {"a": [1], "b": [2, 3], "c": None}
SAMPLE = os.environ.get("DDN_VOC_SAMPLE", "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", LABELS, {"train": ["b", "a"], "Main/train": ["c", "a"], "Main/val": ["c"]})


def write_split(root: Path, text: str) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_text(text)


def test_folder_is_read(root: Path) -> None:
    folder = VocFolder(root)
    assert folder.classes == CLASSES
    assert folder.num_classes == 3
    assert folder.splits() == ("train", "val")
    assert folder.ids("train") == ("b", "a")
    assert folder.masked_ids("train") == ("b", "a")
    assert folder.image_path("a") == root / "JPEGImages/a.png"
    assert folder.mask_path("a") == root / "SegmentationClass/a.png"
    np.testing.assert_array_equal(folder.mask("b"), mask_of([2, 3]))
    image, mask = folder.pair("a")
    assert image.shape == (24, 32, 3)
    assert mask.shape == (24, 32)
    assert folder.image_size("a") == (24, 32)
    assert folder.relative(folder.image_path("a")) == "JPEGImages/a.png"
    assert pickle.loads(pickle.dumps(folder)).ids("train") == ("b", "a")


def test_split_of_segmentation_comes_before_main_and_either_can_be_named(root: Path) -> None:
    folder = VocFolder(root)
    assert folder.ids("Segmentation/train") == folder.ids("train") == ("b", "a")
    assert folder.ids("Main/train") == ("c", "a")
    assert folder.ids("val") == ("c",)
    assert folder.masked_ids("Main/train") == ("a",)


def test_per_class_tag_files_are_no_splits(root: Path) -> None:
    (root / "ImageSets/Main/cat_train.txt").write_text("a 1\n")
    assert VocFolder(root).splits() == ("train", "val")
    with pytest.raises(DataError, match=r"cat_train.txt:1: wanted the id of an image in .*, got 'a 1'.*tag file"):
        VocFolder(root).ids("Main/cat_train")


def test_blank_lines_crlf_and_byte_order_mark_in_a_split_are_fine(root: Path) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_bytes(b"\xef\xbb\xbfb\r\n\r\n  a  \r\n")
    assert VocFolder(root).ids("train") == ("b", "a")


def test_folder_without_image_sets_has_the_split_all(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", LABELS))
    assert folder.splits() == ("all",)
    assert folder.ids("all") == ("a", "b", "c")
    with pytest.raises(DataError, match=r"no ImageSets, its only split is 'all'; got 'train'"):
        folder.ids("train")


def test_aug_mask_is_preferred_where_it_exists(root: Path) -> None:
    save_grey(mask_of([3]), root / "SegmentationClassAug/a.png")
    folder = VocFolder(root)
    assert folder.mask_path("a") == root / "SegmentationClassAug/a.png"
    assert folder.mask_path("b") == root / "SegmentationClass/b.png"
    only = VocFolder(root, masks="SegmentationClass")
    assert only.mask_path("a") == root / "SegmentationClass/a.png"
    with pytest.raises(DataError, match="no such mask folder"):
        VocFolder(root, masks="Other")


def test_palette_mask_holds_labels_not_colours(root: Path) -> None:
    picture = Image.new("P", (32, 24))
    picture.putdata(mask_of([2]).ravel().tolist())
    picture.putpalette([value for label in range(256) for value in (label, 255 - label, 7)])
    picture.save(root / "SegmentationClass/a.png")
    np.testing.assert_array_equal(VocFolder(root).mask("a"), mask_of([2]))


def test_image_without_mask_is_tag_only(root: Path) -> None:
    folder = VocFolder(root)
    assert folder.mask_path("c") is None
    with pytest.raises(DataError, match="'c' has no mask"):
        folder.mask("c")
    with pytest.raises(DataError, match="no image of split 'val' has a mask"):
        folder.masked_ids("val")


def test_class_names_come_from_argument_then_file_then_voc(root: Path, tmp_path: Path) -> None:
    assert VocFolder(root, ("x", "y")).classes == ("x", "y")
    (root / "classes.txt").rename(root / "labels.txt")
    assert VocFolder(root).classes == CLASSES
    (root / "labels.txt").unlink()
    assert VocFolder(root).classes == VOC_CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ncat\n", "'cat' occurs twice"),
        ("", "wanted 1 to 254 class names, got 0"),
        ("".join(f"c{n}\n" for n in range(255)), "got 255"),
        ("background\ncat\n", "foreground classes only"),
        ("cat\nBackground\n", "foreground classes only, got 'Background'"),
        ("../cat\n", "plain name"),
    ],
)
def test_bad_class_file_is_a_named_error(root: Path, text: str, message: str) -> None:
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        VocFolder(root)
    assert "classes.txt" in str(caught.value)


def test_classes_as_one_text_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match="sequence of names"):
        VocFolder(root, "cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the split is empty"),
        ("\n \n", "the split is empty"),
        ("a\nmissing\n", r"train.txt:2: JPEGImages has no image 'missing'"),
        ("a\nb\na\n", r"train.txt:3: 'a' occurs already in line 1"),
        ("../a\n", r"train.txt:1: wanted a plain name of an image, got '../a'"),
        ("/etc/passwd\n", "plain name"),
        ("..\n", "plain name"),
        ("a\\b\n", "plain name"),
        ("a\0\n", "plain name"),
        ("a  1\n", r"train.txt:1: wanted the id of an image in JPEGImages, got 'a  1'; this looks like a tag file"),
        ("a extra\n", "wanted the id of an image in JPEGImages"),
    ],
)
def test_bad_split_file_is_a_named_error(root: Path, text: str, message: str) -> None:
    write_split(root, text)
    with pytest.raises(DataError, match=message):
        VocFolder(root).ids("train")


def test_split_file_of_other_bytes_is_a_named_error(root: Path) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match=r"train.txt: wanted UTF-8 text, byte 2 is none"):
        VocFolder(root).ids("train")


def test_oversized_split_file_is_a_named_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_text, "__defaults__", (16,))
    write_split(root, "a\n" * 9)
    with pytest.raises(DataError, match="wanted at most 16 bytes"):
        VocFolder(root).ids("train")


@pytest.mark.parametrize("split", ["absent", "Segmentation/val", "../../train", "Other/train", "", "Main/"])
def test_missing_split_is_a_named_error(root: Path, split: str) -> None:
    with pytest.raises(DataError, match="split"):
        VocFolder(root).ids(split)


def test_missing_split_names_those_that_exist(root: Path) -> None:
    with pytest.raises(DataError, match="splits here: train, val"):
        VocFolder(root).ids("test")


def test_missing_folder_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        VocFolder(tmp_path / "absent")
    with pytest.raises(DataError, match="JPEGImages: no such folder"):
        VocFolder(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(DataError, match=r"wanted images .* found none"):
        VocFolder(tmp_path)


def test_two_images_of_one_id_are_a_named_error(root: Path) -> None:
    (root / "JPEGImages/a.JPG").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.JPG and a\.png have the same id 'a'"):
        VocFolder(root)


def test_unknown_id_is_a_named_error(root: Path) -> None:
    folder = VocFolder(root)
    for method in (folder.image_path, folder.mask_path, folder.mask, folder.pair, folder.image_size):
        with pytest.raises(DataError, match="no image 'zzz'"):
            method("zzz")


def test_mask_with_unknown_labels_is_a_named_error(root: Path) -> None:
    save_grey(mask_of([4]), root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"a\.png.*4"):
        VocFolder(root).mask("a")


def test_mask_of_another_size_is_a_named_error(root: Path) -> None:
    save_grey(mask_of([1], (24, 40)), root / "SegmentationClass/a.png")
    folder = VocFolder(root)
    message = r"a\.png: the mask is 40x24 pixels \(width x height\), its image 32x24"
    with pytest.raises(DataError, match=message):
        folder.pair("a")
    with pytest.raises(DataError, match=message):
        folder.mask("a", check_size=True)
    assert folder.mask("a").shape == (24, 40)
    save_grey(mask_of([1], (32, 24)), root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"its image 32x24; masks lie as images are shown, upright by their EXIF"):
        folder.pair("a")


def test_turned_image_has_the_size_it_is_shown_in(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(root / "JPEGImages/d.jpg", exif=exif)
    folder = VocFolder(root)
    assert folder.image_size("d") == folder.image("d").shape[:2] == (40, 20)


def test_file_that_is_no_image_is_a_named_error(root: Path) -> None:
    (root / "JPEGImages/a.png").write_bytes(b"not an image")
    folder = VocFolder(root)
    for method in (folder.image, folder.image_size, folder.pair):
        with pytest.raises(ImageError, match=r"a\.png"):
            method("a")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_format_that_is_read_has_a_size(root: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(root / "JPEGImages/d.jpg", kind, exif=exif)
    folder = VocFolder(root)
    assert folder.image_size("d") == folder.image("d").shape[:2]


def test_pictures_with_other_suffixes_are_warned_of_once(root: Path) -> None:
    for name in ("y.tiff", "x.WEBP", "notes.md"):
        (root / "JPEGImages" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"JPEGImages: .*passed over 2 files .*, as 'x\.WEBP'") as caught:
        assert VocFolder(root).splits() == ("train", "val")
    assert len(caught) == 1


def test_a_link_that_leads_nowhere_is_not_left_out_in_silence(root: Path) -> None:
    for name in ("JPEGImages/d.png", "SegmentationClass/c.png"):
        (root / name).symlink_to("../absent.png")
    (root / "JPEGImages/e.png").symlink_to("e.png")
    (root / "JPEGImages/f.png").symlink_to("a.png")
    (root / "JPEGImages/g.png").symlink_to(".")
    shutil.rmtree(root / "ImageSets")
    folder = VocFolder(root)
    assert folder.ids("all") == ("a", "b", "c", "d", "e", "f")
    for image_id in "de":
        for method in (folder.image, folder.image_size):
            with pytest.raises(ImageError, match=rf"{image_id}\.png: "):
                method(image_id)
    for read in (folder.mask, lambda image_id: tags_from_masks(folder, [image_id], progress=False)):
        with pytest.raises(DataError, match=r"SegmentationClass/c\.png: "):
            read("c")


def test_name_that_is_not_utf_8_is_a_named_error(root: Path) -> None:
    try:
        (root / "JPEGImages/\udcff.png").write_bytes(b"")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(DataError, match=r"JPEGImages: wanted names in UTF-8, got '\\udcff\.png': rename"):
        VocFolder(root)


@pytest.mark.skipif(not SAMPLE, reason="DDN_VOC_SAMPLE names no folder with VOC's 2011_000003")
def test_real_voc_image_and_mask_are_read() -> None:
    folder = VocFolder(SAMPLE)
    assert folder.ids("all") == ("2011_000003",)
    image, mask = folder.pair("2011_000003")
    assert image.shape == (338, 500, 3)
    assert sorted(np.unique(mask)) == [0, 5, 15, 255]
