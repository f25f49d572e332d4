"""Shapes as labelling tools save them, as sets of pixels: polygons and run lengths.

A pixel belongs to a polygon when its centre does, by the even-odd rule; x runs right and y down, pixel (0, 0) is the
square from 0 to 1. Run lengths are COCO's: down the columns, zeros first, as numbers or packed into text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_CROSSINGS_AT_ONCE = 1 << 20
_MAX_COORDINATE = 1e6  # pixels: beyond is no image
_MAX_DIGITS = 7  # of a packed number: 35 bits


class Shape(NamedTuple):
    """Pixels of an image: ``inside`` bool ``[h,w]`` begins at row `top` and column `left`."""

    top: int
    left: int
    inside: NDArray[np.bool_]

    def paint(self, mask: NDArray[np.uint8], label: int) -> None:
        """Give the shape's pixels of mask ``[H,W]`` that label."""
        height, width = self.inside.shape
        mask[self.top : self.top + height, self.left : self.left + width][self.inside] = label


def polygons(parts: Sequence[Any], height: int, width: int) -> Shape:
    """All that lies inside any of `parts`, each ``[x0, y0, x1, y1, ..]``, of an image; DataError for anything else."""
    rings = [_ring(part) for part in parts]
    if not rings:
        raise DataError("wanted at least one polygon")
    corners = np.concatenate(rings)
    left, top = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int)
    inside = np.zeros((bottom - top, right - left), bool)
    for ring in rings:
        inside |= _even_odd(ring - (left, top), *inside.shape)
    return Shape(int(top), int(left), inside)


def _ring(part: Any) -> NDArray[np.float64]:
    numbers = isinstance(part, list) and all(type(value) in (int, float) for value in part)
    if not numbers or len(part) < 6 or len(part) % 2:
        raise DataError("wanted polygons of at least three points, each a list x0, y0, x1, y1, ..")
    ring = np.array(part, np.float64).reshape(-1, 2)
    if not (np.abs(ring) <= _MAX_COORDINATE).all():  # NaN, too
        raise DataError(f"wanted coordinates of at most {_MAX_COORDINATE:.0f}, got {np.abs(ring).max()}")
    return ring


def _even_odd(ring: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Each row's centre line crosses edges; right of an odd number of them is inside."""
    crossed = np.zeros((height, width + 1), np.uint8)
    starts, ends = ring, np.roll(ring, -1, 0)
    step = max(1, _CROSSINGS_AT_ONCE // max(1, height))
    for k in range(0, len(ring), step):
        (x0, y0), (x1, y1) = starts[k : k + step].T, ends[k : k + step].T
        first, until = (np.clip(np.ceil(y - 0.5), 0, height).astype(int) for y in np.sort([y0, y1], axis=0))
        edge = np.repeat(np.arange(len(first)), until - first)
        row = np.arange(len(edge)) + (until - np.cumsum(until - first))[edge]
        x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
        np.add.at(crossed, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)  # modulo 256: odd stays odd
    return np.cumsum(crossed, axis=1, dtype=np.uint8)[:, :width] % 2 == 1


def run_lengths(value: Any, height: int, width: int) -> Shape:
    """The pixels of ``{"size": [height, width], "counts": ..}``, of an image of that size; DataError for all else."""
    if not isinstance(value, dict) or value.get("size") != [height, width]:
        size = value.get("size") if isinstance(value, dict) else value
        raise DataError(f"wanted run lengths of the image's size {[height, width]}, got {size!r}")
    counts = value.get("counts")
    lengths = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise DataError("wanted counts of zeros, ones, zeros, ..")
    if sum(lengths) != height * width:
        raise DataError(f"wanted counts of {height * width} pixels in all, got {sum(lengths)}")
    ones = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    rows, columns = np.flatnonzero(ones.any(1)), np.flatnonzero(ones.any(0))
    if not len(rows):
        return Shape(0, 0, ones[:0, :0])
    return Shape(int(rows[0]), int(columns[0]), ones[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())


def _unpacked(text: str) -> list[int]:
    """Numbers of 5-bit digits from chr(48) on, the lowest first, bit 5 where more follow, bit 4 of the last the sign;
    from the fourth number on each is a difference to the last but one.
    """
    lengths: list[int] = []
    number = digits = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or digits == _MAX_DIGITS:
            raise DataError("wanted packed counts, got other text")
        number |= (digit & 31) << (5 * digits)
        digits += 1
        if digit & 32:
            continue
        if digit & 16:
            number -= 1 << (5 * digits)
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = digits = 0
    if digits:
        raise DataError("wanted packed counts, got some cut short")
    return lengths
