"""Pictures for people: masks laid over images, cells with a caption, sheets of cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .errors import InputError
from .images import Array, as_image, voc_palette

PAPER = 250  # grey level
CAPTION, MARGIN = 16, 4  # pixels above and around the image of a cell


def overlay(image: Array, mask: Array, legend: Sequence[tuple[int, str]] = (), opacity: float = 0.5) -> Array:
    """The image with its mask in translucent VOC colours and bright outlines; returns HxWx3 uint8.

    image HxWx3 uint8, mask HxW uint8 (void too is painted), legend: (mask label, text) lines for the emptiest corner,
    left out where they do not fit. Raises InputError if the sizes differ.
    """
    image = as_image(image)
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise InputError(f"mask: wanted uint8 {list(image.shape[:2])}, got {mask.dtype} {list(mask.shape)}")
    colours = cv2.LUT(cv2.merge([mask, mask, mask]), voc_palette()[None])
    result = np.array(image, order="C")
    cv2.copyTo(cv2.addWeighted(result, 1 - opacity, colours, opacity, 0, dst=colours), mask, result)
    result[_outline(mask)] = 255
    return _draw_legend(result, mask, legend) if legend else result


def _outline(mask: Array) -> NDArray[np.bool_]:
    """Pixels of a labelled region that touch another label, about two pixels wide on a 500-pixel image."""
    edge = np.zeros(mask.shape, bool)
    for reach in range(1, 2 + max(mask.shape) // 600):
        across, down = mask[:, reach:] != mask[:, :-reach], mask[reach:] != mask[:-reach]
        edge[:, reach:] |= across
        edge[:, :-reach] |= across
        edge[reach:] |= down
        edge[:-reach] |= down
    return edge & (mask > 0)


def _draw_legend(image: Array, mask: Array, legend: Sequence[tuple[int, str]]) -> Array:
    """A box of colour patches and texts in the corner where it hides the fewest labelled pixels."""
    height, width = mask.shape
    size = min(max(9, round(0.032 * max(height, width))), 64)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow without FreeType knows Latin-1 only
        legend = [(label, text.encode("latin-1", "replace").decode("latin-1")) for label, text in legend]
    line, pad = round(1.35 * size), max(2, size // 3)
    box_width = math.ceil(max(font.getbbox(text)[2] for _, text in legend)) + size + 3 * pad
    box_height = line * len(legend) + 2 * pad
    if box_width > width or box_height > height:
        return image
    corners = [(x, y) for y in (0, height - box_height) for x in (0, width - box_width)]
    x, y = min(corners, key=lambda at: np.count_nonzero(mask[at[1] : at[1] + box_height, at[0] : at[0] + box_width]))
    image[y : y + box_height, x : x + box_width] //= 4
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for row, (label, text) in enumerate(legend):
        top = y + pad + row * line + (line - size) // 2
        colour = tuple(int(value) for value in voc_palette()[label])
        draw.rectangle((x + pad, top, x + pad + size - 1, top + size - 1), fill=colour, outline="white")
        draw.text((x + 2 * pad + size, top + size // 2), text, fill="white", font=font, anchor="lm")
    return np.array(picture)


def shrunk(image: Array, mask: Array, side: int) -> tuple[Array, Array]:
    """Image ``[H,W,3]`` and mask ``[H,W]`` resized so that the longer side has `side` pixels."""
    size = _fitted(image, side)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def cell(image: Array, text: str, side: int) -> Array:
    """The image ``[H,W,3]`` in a square of `side` pixels with a line of text above: ``[side + CAPTION,side,3]``."""
    small = cv2.resize(image, _fitted(image, side - 2 * MARGIN), interpolation=cv2.INTER_AREA)
    paper = np.full((side + CAPTION, side, 3), PAPER, np.uint8)
    paper[CAPTION + 2 :, MARGIN:][: small.shape[0], : small.shape[1]] = small
    cv2.putText(paper, text, (MARGIN, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
    return paper


def sheet(columns: Sequence[Sequence[Array]]) -> Array:
    """Cells of one size, column by column."""
    return np.hstack([np.vstack(list(cells)) for cells in columns])


def _fitted(image: Array, side: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
