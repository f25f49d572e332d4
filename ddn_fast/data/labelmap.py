"""Masks that say classes by colours, beside a ``labelmap.txt``: CVAT's "Segmentation mask", Datumaro's VOC.

# label:color_rgb:parts:actions
background:0,0,0::
dog:128,0,0::
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ImageError
from ..images import VOID, load_image, voc_palette
from .importing import MASKS, Imported, Labelled, write_split
from .voc import BACKGROUND_NAMES, IMAGE_FOLDER, check_same_size, images_of, numbered_lines

FILE = "labelmap.txt"
VOID_NAMES = ("void", "ignore", "ignored", "__ignore__", "unlabeled", "unlabelled")
ONLY_SPLIT = "default"  # what CVAT calls the one list of a task


class LabelMap(NamedTuple):
    """Class names, and which label a colour ``(r, g, b)`` stands for: 0 background, l + 1 ``classes[l]``, 255 void."""

    classes: tuple[str, ...]
    labels: Mapping[tuple[int, int, int], int]


def read_label_map(path: str | Path) -> LabelMap:
    """Lines ``name:r,g,b:..``; one without a colour has PASCAL VOC's of its label.

    A background, and names of what is to be ignored (VOID_NAMES), are no classes. Black is background and VOC's colour
    of void is void where no line says otherwise. DataError, naming the line, for anything else.
    """
    path, classes, labels = Path(path), list[str](), dict[tuple[int, int, int], int]()
    for number, line in numbered_lines(path):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        name, colour = name.strip(), rest.partition(":")[0].strip()
        if name.lower() in BACKGROUND_NAMES:
            label = 0
        elif name.lower() in VOID_NAMES:
            label = VOID
        else:
            classes.append(name)
            label = len(classes)
        if colour and not re.fullmatch(r"\d{1,3}(\s*,\s*\d{1,3}){2}", colour):
            raise DataError(f"{path}:{number}: wanted name:r,g,b:.., got {line!r}")
        red, green, blue = map(int, colour.split(",") if colour else voc_palette()[min(label, VOID)])
        if max(red, green, blue) > 255:
            raise DataError(f"{path}:{number}: wanted a colour of 0 to 255, got {colour}")
        if labels.setdefault((red, green, blue), label) != label:
            raise DataError(f"{path}:{number}: the colour {red},{green},{blue} stands for another label, too")
    labels.setdefault((0, 0, 0), 0)
    red, green, blue = map(int, voc_palette()[VOID])
    labels.setdefault((red, green, blue), VOID)
    return LabelMap(tuple(classes), labels)


def mask_of_colours(path: str | Path, label_map: LabelMap) -> NDArray[np.uint8]:
    """The mask HxW uint8 of a picture of colours; DataError for one that cannot be read, or for another colour."""
    try:
        picture = load_image(path).astype(np.uint32)
    except ImageError as error:
        raise DataError(str(error)) from error
    codes = picture[..., 0] << 16 | picture[..., 1] << 8 | picture[..., 2]
    known = sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in label_map.labels.items())
    values = np.array([code for code, _ in known], np.uint32)
    place = np.minimum(np.searchsorted(values, codes), len(values) - 1)
    strange = codes != values[place]
    if strange.any():
        row, column = np.argwhere(strange)[0]
        colour = ",".join(map(str, picture[row, column]))
        raise DataError(f"{path}: wanted colours of {FILE}, got {colour} in {strange.sum()} pixels")
    return np.array([label for _, label in known], np.uint8)[place]


def import_label_map(
    folder: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    split: str = "train",
    progress: bool = True,
) -> dict[str, Imported]:
    """Write the images and masks of `folder` as splits of the dataset folder `out` (see :func:`write_split`).

    `folder` holds ``labelmap.txt``, ``SegmentationClass`` and, but for all masks to be one split, lists in
    ``ImageSets/Segmentation``; ``images``, default its ``JPEGImages``, the images. Lists keep their names;
    ``default``, and all masks together, become `split`. Raises DataError as :func:`write_split`, and for a folder of
    another kind; what is wrong with one image is told of in the result of its split.
    """
    folder = Path(folder)
    label_map = read_label_map(folder / FILE)
    masks = images_of(folder / MASKS, (".png",))
    images = Path(images) if images else folder / IMAGE_FOLDER
    if not images.is_dir():
        raise DataError(f"{images}: wanted the images' folder, found none; exported without them, name it (--images)")
    pictures = images_of(images)
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    splits = {path.stem: [line for _, line in numbered_lines(path)] for path in lists} or {ONLY_SPLIT: sorted(masks)}
    if ONLY_SPLIT in splits:
        if split != ONLY_SPLIT and split in splits:
            raise DataError(f"{folder}: lists {ONLY_SPLIT!r} and {split!r} would be one; name another split (--split)")
        splits[split] = splits.pop(ONLY_SPLIT)
    found = {}
    for name, ids in splits.items():
        labelled = [_labelled(folder, Path(one).name, pictures, masks, label_map) for one in ids]
        found[name] = write_split(out, label_map.classes, name, labelled, progress=progress)
    return found


def _labelled(
    folder: Path, name: str, pictures: Mapping[str, Path], masks: Mapping[str, Path], label_map: LabelMap
) -> Labelled:
    def draw(height: int, width: int) -> NDArray[np.uint8]:
        path = masks.get(name, folder / MASKS / f"{name}.png")
        mask = mask_of_colours(path, label_map)
        check_same_size((height, width), mask, path)
        return mask

    return Labelled(pictures.get(name, folder / IMAGE_FOLDER / f"{name}.jpg"), (), draw)
