from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from ddn_fast.config import TRAIN_MEAN_BGR
from ddn_fast.data import classification_item, read_list, segmentation_item
from ddn_fast.data.items import jittered_window, random_offset
from ddn_fast.errors import DataError
from ddn_fast.images import load_image, load_mask

GOLDEN = Path(__file__).parent / "golden/segdata"
MEAN = np.array(TRAIN_MEAN_BGR, np.float32)[:, None, None]
# OpenCV's 8-bit resize and the JPEG decoder give the golden's very bytes on x86-64; elsewhere both may use other
# roundings: a grey level in the resize, two more in a decoded JPEG.
EXACT = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "segdata.npz") as arrays:
        return {key: arrays[key] for key in arrays}


@pytest.mark.parametrize(("name", "new_side", "side"), [("small", 70, 64), ("full", 350, 320)])
def test_items_equal_those_of_the_authors_program(golden, name: str, new_side: int, side: int) -> None:
    items = read_list(GOLDEN / "list.txt", 20)
    assert len(golden[f"{name}_items"])
    for place, index in enumerate(golden[f"{name}_items"]):
        item = items[index]
        data, target = segmentation_item(
            load_image(GOLDEN / item.image),
            load_mask(GOLDEN / item.mask, classes=254),  # seg3.png holds a label 30
            item.window,
            item.subset_vector(20),
            new_side=new_side,
            side=side,
        )
        assert (data.dtype, data.shape, data.flags.c_contiguous) == (np.float32, (3, side, side), True)
        assert (target.dtype, target.flags.c_contiguous) == (np.uint8, True)
        np.testing.assert_array_equal(target, golden[f"{name}_seg_label"][place, 0])
        expected = golden[f"{name}_data_u8"][place].astype(np.float32) - MEAN
        tolerance = 0 if EXACT else 3 if item.image.endswith(".jpg") else 1
        np.testing.assert_allclose(data, expected, rtol=0, atol=tolerance)
        assert np.abs(data - expected).mean() <= tolerance / 20
        if name == "small":
            np.testing.assert_allclose(data, golden["small_data"][place], rtol=0, atol=tolerance)
            np.testing.assert_array_equal(item.subset_vector(20), golden["cls_label"][index])


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(1).choice(np.array([0, 1, 2, 3, 255], np.uint8), (30, 40))


def pad(array: np.ndarray, window: tuple[int, int, int, int], fill: int) -> np.ndarray:
    """The window pixel by pixel."""
    x1, y1, x2, y2 = window
    rows = []
    for y in range(y1, y2 + 1):
        for x in range(x1, x2 + 1):
            inside = 0 <= y < array.shape[0] and 0 <= x < array.shape[1]
            rows.append(array[y, x] if inside else np.full(array.shape[2:], fill, np.uint8))
    return np.array(rows).reshape(y2 - y1 + 1, x2 - x1 + 1, *array.shape[2:])


@pytest.mark.parametrize(
    "window", [(0, 0, 19, 19), (-7, -3, 12, 16), (30, 20, 49, 39), (-19, 10, 0, 29), (39, 29, 58, 48)]
)
def test_window_without_resize_is_the_plain_crop(image, mask, window) -> None:
    subset = [1, 0, 1]
    data, target = segmentation_item(image, mask, window, subset, new_side=20, side=20)
    expected = pad(image, window, 0).transpose(2, 0, 1)[::-1].astype(np.float32) - MEAN
    np.testing.assert_array_equal(data, expected)
    labels = pad(mask, window, 255)
    np.testing.assert_array_equal(target, np.select([labels == 255, np.isin(labels, (1, 3))], [255, 1], 0))


def test_offset_and_mirror_move_image_and_mask_alike(image, mask) -> None:
    def take(**options):
        return segmentation_item(image, mask, (0, 0, 29, 29), [0, 1, 0], new_side=30, **options)

    whole_data, whole_target = take(side=30)
    data, target = take(side=20, offset=(3, 7), mirror=True)
    np.testing.assert_array_equal(data, whole_data[:, 3:23, 7:27][:, :, ::-1])
    np.testing.assert_array_equal(target, whole_target[3:23, 7:27][:, ::-1])
    assert data.flags.c_contiguous
    assert target.flags.c_contiguous
    centre, _ = take(side=20)
    np.testing.assert_array_equal(centre, whole_data[:, 5:25, 5:25])


def test_inputs_are_left_unchanged_and_may_be_strided_and_read_only(image, mask) -> None:
    options = {"window": (-2, -2, 20, 20), "subset": [1, 1, 1], "new_side": 24, "side": 24}
    wide, tall = np.repeat(image, 2, 1), np.repeat(mask, 2, 1)
    for array in (wide, tall):
        array.flags.writeable = False
    before = wide.copy()
    expected = segmentation_item(image, mask, **options)
    got = segmentation_item(wide[:, ::2], tall[:, ::2], **options)
    np.testing.assert_array_equal(wide, before)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_pixel_image_works() -> None:
    data, target = segmentation_item(
        np.full((1, 1, 3), (1, 2, 3), np.uint8), np.full((1, 1), 1, np.uint8), (0, 0, 0, 0), [1], new_side=5, side=3
    )
    np.testing.assert_array_equal(data, np.broadcast_to(np.float32([3, 2, 1])[:, None, None] - MEAN, (3, 3, 3)))
    assert (target == 1).all()
    assert classification_item(np.zeros((1, 1, 3), np.uint8), new_side=5, side=3).shape == (3, 3, 3)


def test_label_254_is_a_class_and_255_is_not() -> None:
    mask = np.array([[254, 255], [1, 0]], np.uint8)
    subset = np.zeros(254)
    subset[253] = 1
    _, target = segmentation_item(np.zeros((2, 2, 3), np.uint8), mask, (0, 0, 1, 1), subset, new_side=2, side=2)
    assert target.tolist() == [[1, 255], [0, 0]]


@pytest.mark.parametrize(
    "window", [(-(10**9), 0, 10**9, 9), (0, 0, 32767, 0), (0, 0, 12000, 12000), (-(2**62), -(2**62), 2**62, 2**62)]
)
def test_absurd_window_is_an_error_before_memory_is_taken(image, mask, window) -> None:
    with pytest.raises(DataError, match="wanted sides up to"):
        segmentation_item(image, mask, window, [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": (5, 0, 4, 9)}, "x1 <= x2"),
        ({"window": (40, 0, 50, 9)}, "lies outside the image of 40x30"),
        ({"window": (0, -9, 9, -1)}, "lies outside"),
        ({"side": 400}, "side <= new_side"),
        ({"side": 0}, "side <= new_side"),
        ({"new_side": 5000}, "side <= new_side"),
        ({"offset": (31, 0)}, "offset: wanted 0 to 30"),
        ({"offset": (0, -1)}, "offset"),
        ({"subset": []}, "subset"),
        ({"subset": [[1]]}, "subset"),
        ({"mask": np.zeros((30, 41), np.uint8)}, "mask: wanted 30x40"),
    ],
)
def test_impossible_arguments_are_named_errors(image, mask, change, message: str) -> None:
    arguments = {"image": image, "mask": mask, "window": (0, 0, 9, 9), "subset": [1, 0, 0], **change}
    with pytest.raises(DataError, match=message):
        segmentation_item(**arguments)


def test_classification_item_is_the_padded_square(image) -> None:
    square = np.zeros((40, 40, 3), np.uint8)
    square[:30] = image
    expected = square.transpose(2, 0, 1)[::-1].astype(np.float32) - MEAN
    np.testing.assert_array_equal(classification_item(image, new_side=40, side=40), expected)
    np.testing.assert_array_equal(
        classification_item(image, new_side=40, side=30, offset=(10, 0), mirror=True),
        expected[:, 10:, :30][:, :, ::-1],
    )


def test_classification_item_averages_when_it_shrinks() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 200  # bilinear sampling at every eighth pixel would miss or meet them, not average them
    data = classification_item(stripes, new_side=8, side=8, mean=(0, 0, 0))
    np.testing.assert_array_equal(data, 50)


def test_jittered_window_stays_in_scale_and_aspect() -> None:
    rng = np.random.default_rng(0)
    seen = [jittered_window((60, 100), rng, (0.5, 0.8), 1.5) for _ in range(300)]
    for x1, y1, x2, y2 in seen:
        width, height = x2 - x1 + 1, y2 - y1 + 1
        assert 0.49 <= (width * height) ** 0.5 / 100 <= 0.81
        assert 0.64 <= width / height <= 1.56
        assert min(x1, y1) >= 0
        assert max(x2, y2) <= 99
    assert len(set(seen)) > 250
    x1, y1, x2, y2 = jittered_window((60, 100), rng, (2, 2), 1)
    assert x1 <= 0 < 99 <= x2
    assert y1 <= 0 < 99 <= y2


def test_random_offset_reaches_every_place() -> None:
    rng = np.random.default_rng(0)
    assert {random_offset(rng, 5, 3) for _ in range(200)} == {(y, x) for y in range(3) for x in range(3)}
    assert random_offset(rng, 5, 5) == (0, 0)
