"""COCO's JSON to a dataset folder: what is drawn, what is void, what is left out, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_training import stage_1, stage_2

from ddn_fast.cli import main
from ddn_fast.data import VocFolder, build_items, import_coco, read_tags
from ddn_fast.data.importing import write_split
from ddn_fast.errors import DataError, InputError
from ddn_fast.files import alone_in

SIZE = (20, 30)
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
INNER = [[5, 5, 8, 5, 8, 9, 5, 9]]


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right - left, bottom - top]


def write_coco(root: Path, images: Mapping[str, list[dict[str, Any]]], /, **tables: Any) -> Path:
    """photos/<name> for each name, and labels.json; categories are cat (7), dog (3) and owl (5)."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 5, "name": "owl"}],
    }
    for number, (name, of_image) in enumerate(images.items(), 100):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
        content["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        content["annotations"] += [{"image_id": number, "category_id": 7, **one} for one in of_image]
    (root / "labels.json").write_text(json.dumps({**content, **tables}))
    return root / "labels.json"


def imported(root: Path, images: Mapping[str, list[dict[str, Any]]], **options: Any) -> VocFolder:
    import_coco(write_coco(root, images), root / "photos", root / "voc", progress=False, **options)
    return VocFolder(root / "voc")


def mask_with(*rectangles: tuple[int, int, int, int, int]) -> np.ndarray:
    """Left, top, right, bottom, label; later ones on top."""
    mask = np.zeros(SIZE, np.uint8)
    for left, top, right, bottom, label in rectangles:
        mask[top:bottom, left:right] = label
    return mask


def test_outlines_become_masks_and_boxes_tags(tmp_path: Path) -> None:
    folder = imported(
        tmp_path,
        {
            "sub/a.jpg": [{"segmentation": SQUARE}, {"category_id": 5, "segmentation": INNER}],
            "b.PNG": [{"category_id": 3, "bbox": box(1, 1, 9, 9)}],
            "never looked at.jpg": [],
        },
    )
    assert folder.classes == ("dog", "owl", "cat")  # by their numbers
    assert folder.splits() == ("train",)
    assert folder.ids("Main/train") == ("a", "b")
    assert folder.ids("Segmentation/train") == ("a",)
    np.testing.assert_array_equal(folder.mask("a", check_size=True), mask_with((2, 2, 12, 12, 3), (5, 5, 8, 9, 2)))
    tags = {name: tag.tolist() for name, tag in read_tags(folder, "Main/train").items()}
    assert tags == {"a": [0, 1, 1], "b": [1, 0, 0]}
    assert (folder.root / "JPEGImages/a.jpg").samefile(tmp_path / "photos/sub/a.jpg")
    assert build_items(folder, ["a"], progress=False)


@pytest.mark.parametrize("swap", [False, True])
def test_of_shapes_that_overlap_the_smaller_lies_on_top(tmp_path: Path, swap: bool) -> None:
    both = [{"segmentation": SQUARE}, {"category_id": 3, "segmentation": INNER}]
    folder = imported(tmp_path, {"a.png": both[::-1] if swap else both})
    np.testing.assert_array_equal(folder.mask("a"), mask_with((2, 2, 12, 12, 3), (5, 5, 8, 9, 1)))


def test_crowds_and_boxes_without_outlines_are_void_below_what_is_outlined(tmp_path: Path) -> None:
    crowd = mask_with((10, 4, 20, 18, 1))
    runs = np.flatnonzero(np.diff(crowd.T.ravel(), prepend=0, append=2))
    annotations = [
        {"segmentation": SQUARE},
        {"iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": np.diff(runs, prepend=0).tolist()}},
        {"category_id": 3, "bbox": box(0, 0, 4, 4), "segmentation": []},
    ]
    folder = imported(tmp_path, {"a.png": annotations})
    wanted = mask_with((10, 4, 20, 18, 255), (0, 0, 4, 4, 255), (2, 2, 12, 12, 3))
    np.testing.assert_array_equal(folder.mask("a"), wanted)
    assert read_tags(folder, "Main/train")["a"].tolist() == [1, 0, 1]


def test_categories_that_are_no_classes_are_background(tmp_path: Path) -> None:
    annotations = {
        "a.png": [{"segmentation": SQUARE}, {"category_id": 3, "segmentation": INNER}, {"bbox": box(14, 0, 20, 9)}],
        "b.png": [{"segmentation": SQUARE}],
    }
    folder = imported(tmp_path, annotations, classes=["owl", "dog"])
    assert folder.classes == ("owl", "dog")
    np.testing.assert_array_equal(folder.mask("a"), mask_with((5, 5, 8, 9, 2)))
    assert not folder.mask("b").any()  # somebody looked, and saw neither
    assert read_tags(folder, "Main/train")["b"].tolist() == [0, 0]
    with pytest.raises(DataError, match=r"no category is called 'cow'; there are 'dog', 'owl', 'cat'"):
        imported(tmp_path / "unknown", annotations, classes=["cow"])


def test_a_category_called_background_is_label_0(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path,
        {"a.png": [{"segmentation": SQUARE}, {"category_id": 0, "segmentation": INNER}]},
        categories=[{"id": 0, "name": "Background"}, {"id": 7, "name": "cat"}],
    )
    import_coco(path, tmp_path / "photos", tmp_path / "voc", progress=False)
    folder = VocFolder(tmp_path / "voc")
    assert folder.classes == ("cat",)
    np.testing.assert_array_equal(folder.mask("a"), mask_with((2, 2, 12, 12, 1), (5, 5, 8, 9, 0)))


def test_splits_share_a_folder_and_an_import_again_replaces_its_own(tmp_path: Path) -> None:
    imported(tmp_path / "1", {"a.png": [{"segmentation": SQUARE}], "b.png": [{"segmentation": SQUARE}]})
    out = tmp_path / "1/voc"
    path = write_coco(tmp_path / "2", {"c.png": [{"segmentation": INNER}]})
    import_coco(path, tmp_path / "2/photos", out, split="val", progress=False)
    again = write_coco(tmp_path / "1", {"a.png": [{"segmentation": INNER}], "b.png": [{"bbox": box(0, 0, 9, 9)}]})
    import_coco(again, tmp_path / "1/photos", out, progress=False)
    folder = VocFolder(out)
    assert [folder.ids(f"Segmentation/{split}") for split in ("train", "val")] == [("a",), ("c",)]
    np.testing.assert_array_equal(folder.mask("a"), mask_with((5, 5, 8, 9, 3)))
    assert folder.mask_path("b") is None
    assert read_tags(folder, "Main/val")["c"].tolist() == [0, 0, 1]
    with pytest.raises(DataError, match=r"wanted the classes \['owl'\], got \['dog', 'owl', 'cat'\]"):
        import_coco(path, tmp_path / "2/photos", out, split="val", classes=["owl"], progress=False)


def test_a_split_without_any_mask_has_tags_alone(tmp_path: Path) -> None:
    folder = imported(tmp_path, {"a.png": [{"bbox": box(0, 0, 5, 5)}]})
    assert folder.splits() == ("train",)
    assert folder.ids("train") == ("a",)
    assert not (folder.root / "ImageSets/Segmentation/train.txt").exists()


def test_images_with_errors_are_told_of_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {
        name: [{"segmentation": SQUARE}]
        for name in ("good.png", "missing.png", "junk.png", "turned.jpg", "d.webp", "e.jpg", "f.png")
    }
    images["e.jpg"] = [{"segmentation": [[1, 2]]}]
    images["f.png"] = [{"bbox": [1, 2], "category_id": 3}, {"segmentation": SQUARE}]
    path = write_coco(tmp_path, images)
    photos = tmp_path / "photos"
    (photos / "missing.png").unlink()
    (photos / "junk.png").write_bytes(b"junk")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos / "turned.jpg").save(photos / "turned.jpg", exif=exif)
    arguments = ["import", path, "--images", photos, "--out", tmp_path / "voc", "--quiet"]
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/voc: split train: 1 images with tags, 1 of them with masks; left out: 6 with errors\n"
    for text in (
        "missing.png: cannot read the image's header",
        "junk.png: cannot read the image's header",
        "turned.jpg: the labels are of 30x20 pixels, the image 20x30; labels lie as images are shown",
        "d.webp: wanted .jpg, .jpeg, .png",
        r"e.jpg: annotations\[5\]: wanted polygons",
        r"f.png: annotations\[6\]: wanted a segmentation or a bbox of x, y, width, height, got \[1, 2\]",
    ):
        assert re.search(text, err), text
    assert VocFolder(tmp_path / "voc").ids("train") == ("good",)


def test_an_image_by_the_name_of_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wanted names that differ, .*a/1.png is called '1', too"):
        imported(tmp_path / "two", {"a/1.png": [{"segmentation": SQUARE}], "b/1.jpg": [{"segmentation": SQUARE}]})
    imported(tmp_path / "1", {"a.png": [{"segmentation": SQUARE}]})
    rest = {"0.png": [{"segmentation": SQUARE}], "a.png": [{"segmentation": SQUARE}], "b.png": [{"bbox": [0, 0, 2, 2]}]}
    path = write_coco(tmp_path / "2", rest)  # other pixels
    found = import_coco(path, tmp_path / "2/photos", tmp_path / "1/voc", split="val", progress=False)
    assert found.images == 2
    assert re.search(r"2/photos/a.png: .*1/voc/JPEGImages/a.png is another image", found.wrong[0])
    (tmp_path / "2/photos/a.jpg").write_bytes((tmp_path / "2/photos/0.png").read_bytes())
    path = write_coco(tmp_path / "2", {"0.png": [{"segmentation": SQUARE}], "a.jpg": [{"segmentation": SQUARE}]})
    found = import_coco(path, tmp_path / "2/photos", tmp_path / "1/voc", split="val", progress=False)
    assert re.search(r"2/photos/a.jpg: .*1/voc/JPEGImages/a.png is another image", found.wrong[0])


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png", "..\\a.png", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = write_coco(
        tmp_path, {"a.png": [{"image_id": 1, "segmentation": SQUARE}]}, images=[{"id": 1, "file_name": name}]
    )
    with pytest.raises(DataError, match=r"images\[0\]: wanted a name below the folder of images"):
        import_coco(path, tmp_path / "photos", tmp_path / "voc", progress=False)
    assert not (tmp_path / "voc").exists()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"images": None}, "with a list 'images'"),
        ({"images": [{"id": "1", "file_name": "a"}]}, r"images\[0\]: wanted 'id', int, got"),
        ({"categories": [{"id": True, "name": "a"}]}, r"categories\[0\]: wanted 'id', int"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "categories: wanted ids that differ"),
        ({"categories": [{"id": 7, "name": "a;b"}]}, "wanted names without ';'"),
        ({"categories": [{"id": 7, "name": "a/b"}]}, "wanted a plain name"),
        ({"annotations": [3]}, r"annotations\[0\]: wanted 'image_id'"),
        ({"annotations": [{"image_id": 9, "category_id": 7}]}, r"annotations\[0\]: no image has the id 9"),
        ({"annotations": [{"image_id": 100, "category_id": 9}]}, r"annotations\[0\]: no category has the id 9"),
        ({"annotations": []}, "none of 0 images can be used"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, tables: dict[str, Any], message: str) -> None:
    path = write_coco(tmp_path, {"a.png": [{"segmentation": SQUARE}]}, **tables)
    with pytest.raises(DataError, match=message):
        import_coco(path, tmp_path / "photos", tmp_path / "voc", progress=False)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x80"])
def test_what_is_no_json_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="wanted"):
        import_coco(tmp_path / "a.json", tmp_path, tmp_path / "voc")


def test_a_folder_of_something_else_and_one_that_is_being_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(DataError, match=r"wanted a new folder, or one of an earlier import"):
        write_split(tmp_path / "notes", ["cat"], "train", [], progress=False)
    with alone_in(tmp_path / "busy"), pytest.raises(InputError, match="another run is writing there"):
        write_split(tmp_path / "busy", ["cat"], "train", [], progress=False)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:class .*wanted 1 masked images", "ignore:no image shows")
def test_what_was_imported_trains_both_stages_and_is_segmented_by_its_tags(tmp_path: Path) -> None:
    folder = imported(
        tmp_path,
        {
            "a.jpg": [{"segmentation": SQUARE}],
            "b.jpg": [{"category_id": 3, "segmentation": INNER}],
            "c.jpg": [{"bbox": box(1, 1, 9, 9)}],
        },
    )
    net = stage_1(folder, tmp_path / "c", {"iterations": 2})
    stage_2(folder, tmp_path / "s", {"iterations": 2}, init=net)
    arguments = ["predict", folder.root, "--split", "Main/train", "--tags", folder.root / "tags.csv", "--quiet"]
    arguments += ["--weights", tmp_path / "s/weights", "--out", tmp_path / "masks"]
    assert main([str(argument) for argument in arguments]) == 0
    records = [json.loads(line) for line in (tmp_path / "masks/scores.jsonl").read_text().splitlines()]
    shown = {record["name"]: [label["name"] for label in record["labels"]] for record in records}
    assert shown == {"a": ["cat"], "b": ["dog"], "c": ["cat"]}
