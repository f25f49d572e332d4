"""Writes small VOC-shaped folders for the tests of ddn_fast.data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def mask_of(labels: Sequence[int], size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """HxW mask with one separate 6x4 rectangle for each label, four in a row; 255 surrounds the first one."""
    mask = np.zeros(size, np.uint8)
    for place, label in enumerate(labels):
        y, x = 2 + 8 * (place // 4), 1 + 8 * (place % 4)
        if place == 0:
            mask[y - 1 : y + 5, x - 1 : x + 7] = 255
        mask[y : y + 4, x : x + 6] = label
    return mask


def save_grey(mask: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def write_voc(
    root: Path,
    labels: Mapping[str, Sequence[int] | None],
    splits: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] | None = CLASSES,
) -> Path:
    """A folder with one image for each id; ``labels`` names the mask's labels, None for an image without a mask."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    rng = np.random.default_rng(0)
    for image_id, present in labels.items():
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(root / f"JPEGImages/{image_id}.png")
        if present is not None:
            save_grey(mask_of(present), root / f"SegmentationClass/{image_id}.png")
    for name, ids in (splits or {}).items():
        path = root / f"ImageSets/{name if '/' in name else f'Segmentation/{name}'}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{image_id}\n" for image_id in ids))
    if classes is not None:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return root
