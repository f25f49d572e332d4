"""Polygons and run lengths of labelling tools against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ddn_fast.data import shapes
from ddn_fast.data.shapes import Shape, polygons, run_lengths
from ddn_fast.errors import DataError

SIZE = (11, 17)


def painted(shape: Shape, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    shape.paint(mask, 1)
    return mask


def slow_polygon(ring: list[float], height: int, width: int) -> np.ndarray:
    """A ray from each pixel's centre to the left, edge by edge."""
    points = list(zip(ring[::2], ring[1::2], strict=True))
    mask = np.zeros((height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            x, y, inside = column + 0.5, row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                if min(y0, y1) <= y < max(y0, y1) and x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x:
                    inside ^= 1
            mask[row, column] = inside
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_a_polygon_holds_the_pixels_whose_centres_lie_inside(seed: int) -> None:
    """Stars that cross themselves, reach beyond the image, and have corners on centres and on lines between pixels."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-6, 24, (rng.integers(3, 12), 2))
    if seed % 2:
        corners = np.round(2 * corners) / 2
    ring = corners.ravel().tolist()
    np.testing.assert_array_equal(painted(polygons([ring], *SIZE)), slow_polygon(ring, *SIZE))


def test_many_corners_are_counted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = np.random.default_rng(0).uniform(-3, 20, 60).tolist()
    whole = painted(polygons([ring], *SIZE))
    monkeypatch.setattr(shapes, "_CROSSINGS_AT_ONCE", 25)
    np.testing.assert_array_equal(painted(polygons([ring], *SIZE)), whole)


def test_a_rectangle_between_pixels_is_those_pixels_and_parts_are_all_of_them() -> None:
    rectangle, other = [2, 3, 7, 3, 7, 5, 2, 5], [6, 4, 9, 4, 9, 6, 6, 6]
    wanted = np.zeros(SIZE, np.uint8)
    wanted[3:5, 2:7] = 1
    np.testing.assert_array_equal(painted(polygons([rectangle], *SIZE)), wanted)
    wanted[4:6, 6:9] = 1
    np.testing.assert_array_equal(painted(polygons([rectangle, other], *SIZE)), wanted)
    whole = polygons([[-5, -5, 99, -5, 99, 99, -5, 99]], *SIZE)
    assert painted(whole).all()
    assert not painted(polygons([[-9, 1, -2, 1, -2, 8]], *SIZE)).any()


@pytest.mark.parametrize(
    "parts", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], ["polygon"], [[1, 2, 3, 4, 5, "6"]], [[0, 0, 9, 0, 9, True]]]
)
def test_what_is_no_polygon_is_an_error(parts: list[Any]) -> None:
    with pytest.raises(DataError, match="wanted"):
        polygons(parts, *SIZE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e7])
def test_coordinates_of_no_image_are_an_error(value: float) -> None:
    with pytest.raises(DataError, match="wanted coordinates"):
        polygons([[0, 0, 5, 0, 5, value]], *SIZE)


def packed(lengths: list[int]) -> str:
    """COCO's text: five bits a character, the lowest first, signed, of differences from the fourth number on."""
    text = ""
    for n, length in enumerate(lengths):
        number = length - lengths[n - 2] if n > 2 else length
        more = True
        while more:
            digit = number & 31
            number >>= 5
            more = number != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
    return text


def lengths_of(mask: np.ndarray) -> list[int]:
    """Runs down the columns, zeros first."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=flat[-1] + 1))
    return np.diff(edges, prepend=0).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_the_mask_they_were_made_of(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
    mask = (rng.random(size) < rng.choice([0.01, 0.5, 0.99])).astype(np.uint8)
    mask[rng.integers(size[0]) :] = seed % 2
    lengths = lengths_of(mask)
    for counts in (lengths, packed(lengths)):
        np.testing.assert_array_equal(painted(run_lengths({"size": list(size), "counts": counts}, *size), size), mask)


def test_a_text_of_cocos_own_program_is_read() -> None:
    """Pixels (row, column) of 9 rows and 7 columns with 2 <= row < 6 and 1 <= column < 5, by pycocotools 2.0."""
    shape = run_lengths({"size": [9, 7], "counts": ";4500000`0"}, 9, 7)
    assert (shape.top, shape.left, shape.inside.shape, bool(shape.inside.all())) == (2, 1, (4, 4), True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "wanted run lengths"),
        ({"size": [3, 3], "counts": [9]}, r"the image's size \[2, 3\], got \[3, 3\]"),
        ({"size": [2, 3]}, "wanted counts"),
        ({"size": [2, 3], "counts": [1, -1, 6]}, "wanted counts"),
        ({"size": [2, 3], "counts": [2, True, 3]}, "wanted counts"),
        ({"size": [2, 3], "counts": [2, 3]}, "of 6 pixels in all, got 5"),
        ({"size": [2, 3], "counts": [1 << 62, 1 << 62]}, "of 6 pixels in all"),
        ({"size": [2, 3], "counts": "2\x80"}, "got other text"),
        ({"size": [2, 3], "counts": "oooooooooo0"}, "got other text"),
        ({"size": [2, 3], "counts": "2o"}, "cut short"),
    ],
)
def test_what_is_no_run_length_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_lengths(value, 2, 3)
