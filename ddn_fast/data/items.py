"""One training sample from one decoded image: crop, resize, random crop, mirror, minus the mean (SPEC section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..config import TRAIN_MEAN_BGR
from ..errors import DataError
from ..images import VOID
from .windows import Window, visible_part

NEW_SIDE = 350  # side a window is resized to; the sample is a crop of SPEC's 320 from it

Offset = tuple[int, int]  # y, x of the crop


def segmentation_item(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    window: Window,
    subset: NDArray[np.generic] | Sequence[int],
    *,
    new_side: int = NEW_SIDE,
    side: int = 320,
    mean: Sequence[float] = TRAIN_MEAN_BGR,
    offset: Offset | None = None,
    mirror: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Data [3,side,side] float32 BGR and target [side,side] uint8 of one stage-2 item.

    ``image`` is HxWx3 uint8 RGB, ``mask`` HxW uint8, ``window`` x1, y1, x2, y2 inclusive (outside the image: zeros,
    void), ``subset`` [L] flags of the classes that are foreground. The window is resized to ``new_side`` squared
    (8-bit bilinear; mask nearest), cropped to ``side`` squared at ``offset`` (y, x; None is the centre) and mirrored.
    The target is 1 where the mask's class is in the subset, 255 where it is void, else 0.
    Raises DataError for a mask of another size than the image, and for a window or crop that cannot be taken.
    """
    if mask.shape != image.shape[:2]:
        raise DataError(f"mask: wanted {image.shape[0]}x{image.shape[1]} (height x width), got {mask.shape}")
    flags = np.asarray(subset)
    if flags.ndim != 1 or not 1 <= len(flags) <= 254:
        raise DataError(f"subset: wanted 1 to 254 flags, got shape {flags.shape}")
    table = np.zeros(256, np.uint8)
    table[1 : len(flags) + 1] = flags != 0
    table[VOID] = VOID
    rows, columns = _crop_slices(new_side, side, offset)
    data = _resized_window(image, window, new_side, 0, cv2.INTER_LINEAR)[rows, columns]
    labels = _resized_window(mask, window, new_side, VOID, cv2.INTER_NEAREST)[rows, columns]
    if mirror:
        data, labels = data[:, ::-1], labels[:, ::-1]
    return _network_data(data, mean), table[labels]


def classification_item(
    image: NDArray[np.uint8],
    *,
    new_side: int = NEW_SIDE,
    side: int = 320,
    mean: Sequence[float] = TRAIN_MEAN_BGR,
    window: Window | None = None,
    offset: Offset | None = None,
    mirror: bool = False,
) -> NDArray[np.float32]:
    """Data [3,side,side] float32 BGR of one stage-1 item from an image HxWx3 uint8 RGB.

    The image is padded with zeros at the bottom and right to a square (or cropped to ``window``), then treated as in
    :func:`segmentation_item`. A window larger than ``new_side`` is shrunk by area averages, near to inference's
    antialiased resize; the release holds no recipe for this stage.
    """
    if window is None:
        last = max(image.shape[:2]) - 1
        window = (0, 0, last, last)
    rows, columns = _crop_slices(new_side, side, offset)
    shrinks = max(window[2] - window[0], window[3] - window[1]) >= new_side
    data = _resized_window(image, window, new_side, 0, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    data = data[rows, columns]
    return _network_data(data[:, ::-1] if mirror else data, mean)


def random_offset(rng: np.random.Generator, new_side: int, side: int) -> Offset:
    """Uniform (y, x) of a crop of ``side`` from ``new_side``."""
    y, x = rng.integers(0, new_side - side + 1, size=2)
    return int(y), int(x)


def jittered_window(
    size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float], max_aspect: float
) -> Window:
    """A random window of the padded square of an image of ``size`` (height, width).

    Its sides are a uniform share in ``scale`` of the square's side, stretched by a log-uniform aspect of up to
    ``max_aspect``; it lies inside the square where it fits, else the square lies inside it.
    """
    square = max(size)
    share, stretch = rng.uniform(*scale), max_aspect ** rng.uniform(-0.5, 0.5)
    sides = [max(1, round(square * share * stretch)), max(1, round(square * share / stretch))]
    first = [round(place * (square - length)) for place, length in zip(rng.random(2), sides, strict=True)]
    return first[0], first[1], first[0] + sides[0] - 1, first[1] + sides[1] - 1


def _resized_window(
    image: NDArray[np.uint8], window: Window, new_side: int, fill: int, interpolation: int
) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = window
    left, top, right, bottom = visible_part(window, image.shape[:2])
    crop: NDArray[Any] = image[top : bottom + 1, left : right + 1]
    if (left, top, right, bottom) != window:
        borders = (top - y1, y2 - bottom, left - x1, x2 - right)
        crop = cv2.copyMakeBorder(crop, *borders, cv2.BORDER_CONSTANT, value=(fill, fill, fill))
    return np.asarray(cv2.resize(crop, (new_side, new_side), interpolation=interpolation), np.uint8)


def _crop_slices(new_side: int, side: int, offset: Offset | None) -> tuple[slice, slice]:
    if not 1 <= side <= new_side <= 4096:
        raise DataError(f"side, new_side: wanted 1 <= side <= new_side <= 4096, got {side}, {new_side}")
    y, x = ((new_side - side) // 2,) * 2 if offset is None else offset
    if not (0 <= y <= new_side - side and 0 <= x <= new_side - side):
        raise DataError(f"offset: wanted 0 to {new_side - side}, got {offset}")
    return slice(y, y + side), slice(x, x + side)


def _network_data(rgb: NDArray[np.uint8], mean: Sequence[float]) -> NDArray[np.float32]:
    """[side,side,3] uint8 RGB -> [3,side,side] float32 BGR minus the mean, in one pass."""
    bgr = rgb.transpose(2, 0, 1)[::-1]
    data = np.empty(bgr.shape, np.float32)
    np.subtract(bgr, np.asarray(mean, np.float32)[:, None, None], out=data, dtype=np.float32)
    return data
