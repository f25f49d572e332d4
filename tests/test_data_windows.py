from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from voc_writer import CLASSES, mask_of, save_grey, write_voc

from ddn_fast.data import VocFolder, WindowItem, build_items, class_subsets, read_list, windows, write_list
from ddn_fast.data.check import check_files, check_items, pairs_of
from ddn_fast.errors import DataError, ImageError

GOLDEN_LIST = Path(__file__).parent / "golden/segdata/list.txt"
SAMPLE = os.environ.get("DDN_VOC_SAMPLE", "")
ITEM = WindowItem("JPEGImages/a.png", "SegmentationClass/a.png", (-3, 0, 20, 23), (0, 2))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def one_mask_folder(root: Path, mask: np.ndarray) -> VocFolder:
    write_voc(root, {"a": []})
    save_grey(mask, root / "SegmentationClass/a.png")
    Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(root / "JPEGImages/a.png")
    return VocFolder(root)


def test_all_subsets_are_made_when_the_cap_allows() -> None:
    assert class_subsets([]) == []
    assert class_subsets([4]) == [(4,)]
    assert class_subsets([2, 0, 1]) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert len(class_subsets([1, 2, 3, 4])) == 15


@pytest.mark.parametrize(("n", "cap"), [(4, 14), (5, 15), (5, 6), (8, 100), (13, 15), (20, 300), (254, 400)])
def test_capped_subsets_are_distinct_and_hold_singles_and_the_whole_set(n: int, cap: int) -> None:
    subsets = class_subsets(range(n), cap, rng())
    assert len(subsets) == len(set(subsets)) == cap
    assert all(subset == tuple(sorted(set(subset))) and subset for subset in subsets)
    assert {(number,) for number in range(n)} <= set(subsets)
    assert subsets[-1] == tuple(range(n))
    assert class_subsets(range(n), cap, rng()) == subsets
    if n + 1 < cap < 2**n - 2:
        assert class_subsets(range(n), cap, rng(1)) != subsets


def test_more_classes_than_the_cap_give_singles_only() -> None:
    subsets = class_subsets(range(20), 7, rng())
    assert len(subsets) == 7
    assert all(len(subset) == 1 for subset in subsets)


def test_objects_are_components_without_fragments() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[0:5, 0:6] = 1
    mask[10:20, 10:30] = 1
    mask[7, 3] = 1  # 1 of 200 pixels
    mask[5, 6] = 2
    assert windows.object_boxes(mask, 0) == [(10, 10, 30, 20), (0, 0, 6, 5)]
    assert windows.object_boxes(mask, 1) == [(6, 5, 7, 6)]
    diagonal = np.eye(6, dtype=np.uint8)
    assert windows.object_boxes(diagonal, 0) == [(0, 0, 6, 6)]


def random_mask(height: int, width: int, seed: int) -> np.ndarray:
    """A few rectangles of three classes and void."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for label in random.choice([1, 2, 3, 255], size=random.integers(0, 6)):
        y, x = random.integers(height), random.integers(width)
        mask[y : y + random.integers(1, height + 1), x : x + random.integers(1, width + 1)] = label
    return mask


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 6))
def test_windows_meet_their_subset_and_stay_near_the_image(height: int, width: int, seed: int, count: int) -> None:
    mask = random_mask(height, width, seed)
    side = max(height, width)
    for subset in class_subsets(windows.mask_classes(mask)):
        boxes = [windows.object_boxes(mask, number) for number in subset]
        made = windows.subset_windows((height, width), boxes, count, rng(seed))
        assert made[0] == (0, 0, side - 1, side - 1)
        assert 1 <= len(made) == len(set(made)) <= count + 1
        for window in made:
            x1, y1, x2, y2 = window
            inside = mask[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1]
            assert all((inside == number + 1).any() for number in subset)
            assert all(isinstance(corner, int) for corner in window)
            for length in (x2 - x1 + 1, y2 - y1 + 1):
                assert length <= np.ceil(windows.MAX_SHARE * side)
                assert length >= min(side, np.ceil(windows.MIN_SHARE * side))
            assert -1.25 * side - 1 <= x1 <= x2 <= 2.25 * side + 1
            assert -1.25 * side - 1 <= y1 <= y2 <= 2.25 * side + 1
        if count:  # the first random window is around all objects
            x1, y1, x2, y2 = made[1] if len(made) > 1 else made[0]
            for box in itertools.chain(*boxes):
                assert x1 <= box[0]
                assert y1 <= box[1]
                assert x2 + 1 >= box[2]
                assert y2 + 1 >= box[3]


@pytest.mark.parametrize("size", [(400, 400), (400, 100), (100, 400)])
def test_windows_reach_every_length_and_aspect_and_go_no_further(size: tuple[int, int]) -> None:
    """One side is the box's, up to twice as long; the other one follows from it by the aspect."""
    width, height = size
    box = (300.0, 300.0, 300.0 + width, 300.0 + height)
    made = windows.subset_windows((1000, 1000), [[box]], 1000, rng())[1:]
    assert len(made) > 900
    lengths = np.array([(x2 - x1 + 1, y2 - y1 + 1) for x1, y1, x2, y2 in made], float)
    own = ((lengths - 1) / size).min(1)  # less what rounding up may add
    assert 1.9 < own.max() < 1 + 2 * windows.MARGIN
    assert own.min() < 1.1
    for one, other in (lengths.T, lengths.T[::-1]):
        assert (one / other).max() > 1.3
        assert ((one - 1) / other).max() < windows.MAX_ASPECT


def test_items_cover_every_subset_with_square_and_windows(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1], "b": [2, 3, 2], "c": None, "d": []}))
    items = build_items(folder, ["a", "b", "d"], windows_per_subset=2, progress=False)
    assert {(item.image, item.subset) for item in items} == {
        ("JPEGImages/a.png", (0,)),
        ("JPEGImages/b.png", (1,)),
        ("JPEGImages/b.png", (2,)),
        ("JPEGImages/b.png", (1, 2)),
    }
    assert len(items) == 4 * 3
    assert all(item.mask == item.image.replace("JPEGImages", "SegmentationClass") for item in items)
    assert items[0].window == (0, 0, 31, 31)
    assert items[0].subset_vector(3).tolist() == [1, 0, 0]
    assert len(set(items)) == len(items)


def test_items_of_an_image_depend_on_seed_and_id_alone(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1, 2], "b": [1, 2]}))
    both = build_items(folder, ["a", "b"], seed=3, progress=False)
    alone = build_items(folder, ["b"], seed=3, progress=False)
    assert both[len(both) - len(alone) :] == alone
    assert build_items(folder, ["b"], seed=4, progress=False) != alone
    assert [item.window for item in both[: len(alone)]] != [item.window for item in alone]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (40, 1), (30, 30)])
def test_full_image_object_and_one_pixel_image_work(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = one_mask_folder(tmp_path / "voc", np.full(size, 3, np.uint8))
    items = build_items(folder, ["a"], windows_per_subset=4, progress=False)
    assert {item.subset for item in items} == {(2,)}
    assert items[0].window == (0, 0, max(size) - 1, max(size) - 1)


def test_tiny_object_keeps_its_surroundings(tmp_path: Path) -> None:
    mask = np.zeros((100, 80), np.uint8)
    mask[99, 79] = 1
    for item in build_items(one_mask_folder(tmp_path / "voc", mask), ["a"], windows_per_subset=9, progress=False):
        x1, y1, x2, y2 = item.window
        assert min(x2 - x1, y2 - y1) >= 24
        assert x1 <= 79 <= x2
        assert y1 <= 99 <= y2


@pytest.mark.parametrize("label", [0, 255])
def test_masks_without_any_class_are_a_named_error(tmp_path: Path, label: int) -> None:
    folder = one_mask_folder(tmp_path / "voc", np.full((8, 8), label, np.uint8))
    with pytest.raises(DataError, match="none of the 1 masks holds a class"):
        build_items(folder, ["a"], progress=False)


def test_binary_masks_are_told_that_255_is_void(tmp_path: Path) -> None:
    hint = "255 is void, the first class is label 1"
    mask = np.zeros((8, 8), np.uint8)
    with pytest.raises(DataError) as caught:
        build_items(one_mask_folder(tmp_path / "empty", mask), ["a"], progress=False)
    assert hint not in str(caught.value)
    mask[2:5] = 255
    with pytest.raises(DataError, match=hint):
        build_items(one_mask_folder(tmp_path / "binary", mask), ["a"], progress=False)


def test_unusable_images_are_named_errors(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1], "b": None}))
    with pytest.raises(DataError, match="'b' has no mask"):
        build_items(folder, ["b"], progress=False)
    save_grey(mask_of([1], (24, 33)), tmp_path / "voc/SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"33x24 pixels.*its image 32x24"):
        build_items(folder, ["a"], progress=False)
    (tmp_path / "voc/JPEGImages/a.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.png"):
        build_items(folder, ["a"], progress=False)


def test_image_too_large_to_pad_is_a_named_error(tmp_path: Path) -> None:
    folder = one_mask_folder(tmp_path / "voc", np.ones((1, 20_000), np.uint8))
    with pytest.raises(DataError, match="image 'a': wanted sides up to 9268 pixels"):
        build_items(folder, ["a"], progress=False)


def test_check_names_all_images_too_large_to_pad(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1], "b": [1], "c": [1]}))
    for name, width in (("a", 11_585), ("b", 11_586)):
        Image.fromarray(np.zeros((4, width, 3), np.uint8)).save(tmp_path / f"voc/JPEGImages/{name}.png")
        save_grey(np.ones((4, width), np.uint8), tmp_path / f"voc/SegmentationClass/{name}.png")
    ids = folder.ids("all")
    one = r"^1 of 3 images .*b\.png: wanted sides up to 11585 pixels for training, got 11586x4$"
    with pytest.raises(DataError, match=one):
        check_files(pairs_of(folder, ids, masks=False), 3, progress=False)
    with pytest.raises(DataError, match=r"^2 of 3 images .*a\.png: wanted sides up to 9268 .*b\.png: wanted sides"):
        check_files(pairs_of(folder, ids, masks=True), 3, progress=False)


def test_check_names_all_images_that_a_list_has_windows_outside_of(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1], "b": [1], "c": [1]}))
    items = [
        WindowItem(f"JPEGImages/{name}.png", f"SegmentationClass/{name}.png", window, (0,))
        for name, window in (("a", (31, 23, 99, 99)), ("b", (32, 0, 40, 9)), ("a", (0, 0, 9, 9)), ("c", (0, -9, 9, -1)))
    ]
    check_items(folder.root, [items[0], items[2]], 3, progress=False)
    outside = r"lies outside the image of 32x24 pixels"
    with pytest.raises(DataError, match=rf"^2 of 3 .*b\.png: window \(32, .*{outside}.*c\.png: window .*{outside}"):
        check_items(folder.root, items, 3, progress=False)
    (tmp_path / "voc/SegmentationClass/a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^1 of 1 images .*SegmentationClass/a\.png: cannot be read"):
        check_items(str(folder.root), [items[0]], 3, progress=False)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"windows_per_subset": -1}, {"windows_per_subset": 1001}, {"max_subsets": 0}]
)
def test_senseless_counts_are_named_errors(tmp_path: Path, wrong: dict[str, int]) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1]}))
    with pytest.raises(DataError, match=next(iter(wrong))):
        build_items(folder, ["a"], progress=False, **wrong)


def test_golden_list_is_read_and_written_back_byte_for_byte(tmp_path: Path) -> None:
    items = read_list(GOLDEN_LIST, 20)
    assert items[1] == WindowItem("img1.jpg", "seg1.png", (-9, -6, 83, 61), (6, 19))
    write_list(tmp_path / "list.txt", items, 20)
    assert (tmp_path / "list.txt").read_bytes() == GOLDEN_LIST.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


def test_items_survive_a_round_trip_through_a_list(tmp_path: Path) -> None:
    folder = VocFolder(write_voc(tmp_path / "voc", {"a": [1, 2, 3], "b": [2]}))
    items = build_items(folder, ["a", "b"], windows_per_subset=5, progress=False)
    write_list(tmp_path / "list.txt", items, len(CLASSES))
    assert read_list(tmp_path / "list.txt", len(CLASSES)) == items


def test_paths_with_colons_survive_a_list_and_drives_do_not(tmp_path: Path) -> None:
    items = [WindowItem("JPEGImages/shot 12:30.jpg", "masks/c:d.png", (0, 0, 1, 1), (0,))]
    write_list(tmp_path / "list.txt", items, 3)
    assert read_list(tmp_path / "list.txt", 3) == items
    assert "/JPEGImages/shot%2012%3A30.jpg /masks/c%3Ad.png " in (tmp_path / "list.txt").read_text()
    for bad in ("/c%3A/a.png", "./c%3aa.png", "c%3A%5Ca.png", "/JPEGImages/a%5Cb.png"):
        (tmp_path / "bad.txt").write_text(f"{bad} /m.png 0 0 1 1 1 0 0\n")
        with pytest.raises(DataError, match=r"bad\.txt:1: wanted a path inside"):
            read_list(tmp_path / "bad.txt", 3)


def test_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\n".encode())
    assert read_list(tmp_path / "list.txt", 3) == [WindowItem("i.png", "m.png", (0, 0, 9, 9), (0,))]


def test_paths_with_spaces_survive_a_list(tmp_path: Path) -> None:
    items = [
        WindowItem(f"JPEGImages/{name}.png", f"masks/{name}.png", (0, 0, 1, 1), (0,))
        for name in ("my image", "100% ö", "%20", "tab\there", "thin\u2009space")
    ]
    write_list(tmp_path / "list.txt", items, 3)
    assert read_list(tmp_path / "list.txt", 3) == items
    assert "/JPEGImages/my%20image.png /masks/my%20image.png 0 0 1 1 1 0 0" in (tmp_path / "list.txt").read_text()
    for bad in ("/%2e%2e/a.png", "/a%00.png", "/a%ff.png"):
        (tmp_path / "bad.txt").write_text(f"{bad} /m.png 0 0 1 1 1 0 0\n")
        with pytest.raises(DataError, match=r"bad\.txt:1: "):
            read_list(tmp_path / "bad.txt", 3)


GOOD = "/i.png /m.png 0 0 9 9 1 0 0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/i.png /m.png 0 0 9 9 1 0", "9 fields, got 8"),
        (GOOD + " 0", "9 fields, got 10"),
        ("/i.png /m.png 0 0 9.5 9 1 0 0", "whole numbers as window corners, got '9.5'"),
        ("/i.png /m.png 0 0 9 ٣ 1 0 0", "whole numbers"),
        ("/i.png /m.png 0 0 9 1_0 1 0 0", "whole numbers"),
        ("/i.png /m.png 0 0 9 9 1 2 0", "flags 0 or 1, got '2'"),
        ("/i.png /m.png 0 0 9 9 0 0 0", "all flags are 0"),
        ("/i.png /m.png 9 0 8 9 1 0 0", "wanted x1 <= x2"),
        ("/i.png /m.png -999999999 0 999999999 9 1 0 0", "wanted sides up to 32767"),
        ("/i.png /m.png 0 0 20000 20000 1 0 0", "134217728 pixels"),
        ("/i.png /m.png 0 0 99999999999 9 1 0 0", "whole numbers"),
        ("/../i.png /m.png 0 0 9 9 1 0 0", "path inside the dataset folder, got '/../i.png'"),
        ("/i.png a/../../m.png 0 0 9 9 1 0 0", "path inside"),
        ("/ /m.png 0 0 9 9 1 0 0", "path inside"),
        ("C:\\i.png /m.png 0 0 9 9 1 0 0", "path inside"),
        ("x" * 20_000, "wanted lines up to 16384"),
    ],
)
def test_malformed_list_line_is_a_named_error(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_list(path, 3)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_list_that_is_missing_empty_or_no_text_is_a_named_error(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(DataError, match=r"list\.txt: cannot read"):
        read_list(path, 3)
    path.write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        read_list(path, 3)
    path.write_bytes(b"\xff\xfe 1\n")
    with pytest.raises(DataError, match=r"list\.txt:1: "):
        read_list(path, 3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (WindowItem("../i.png", "m.png", (0, 0, 1, 1), (0,)), "path inside"),
        (WindowItem("i.png", "m.png", (0, 0, 1, 1), (3,)), "class indexes from 0 to 2"),
        (WindowItem("i.png", "m.png", (0, 0, 1, 1), ()), "class indexes"),
        (WindowItem("i.png", "m.png", (2, 0, 1, 1), (0,)), "x1 <= x2"),
    ],
)
def test_item_that_a_list_cannot_hold_leaves_the_old_list(tmp_path: Path, item: WindowItem, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old")
    with pytest.raises(DataError, match=message):
        write_list(path, [ITEM, item], 3)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not SAMPLE, reason="DDN_VOC_SAMPLE names no folder with VOC's 2011_000003")
def test_real_voc_image_gives_items_of_its_three_subsets() -> None:
    items = build_items(VocFolder(SAMPLE), ["2011_000003"], progress=False)
    assert {item.subset for item in items} == {(4,), (14,), (4, 14)}
    assert items[0].window == (0, 0, 499, 499)
