"""Fills a dataset folder in the layout of PASCAL VOC from what a labelling tool exported; coco.py and labelmap.py read
that.
"""

from __future__ import annotations

import csv
import filecmp
import io
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .. import info
from ..errors import DataError, DDNError
from ..files import alone_in, write_atomic, write_lines
from ..images import save_mask
from ..threads import in_order
from .tags import CSV_NAME, csv_rows, mask_classes
from .voc import (
    CLASS_FILES,
    IMAGE_FOLDER,
    IMAGE_SUFFIXES,
    MASK_FOLDERS,
    checked_classes,
    checked_id,
    image_size,
    read_classes,
)

MASKS = MASK_FOLDERS[1]


class Labelled(NamedTuple):
    """An image that somebody labelled: its file, the classes it is known to show, and what draws its mask from its
    height and width (HxW uint8, 255 where unknown), None where nothing outlines them.
    """

    image: Path
    classes: Sequence[int]
    draw: Callable[[int, int], NDArray[np.uint8]] | None


@dataclass
class Imported:
    """What an import did."""

    images: int = 0
    masks: int = 0
    unlabelled: int = 0  # images that nobody labelled, left out
    wrong: list[str] = field(default_factory=list)  # what is wrong with those that were left out, too

    def __str__(self) -> str:
        text = f"{self.images} images with tags, {self.masks} of them with masks"
        left = [f"{self.unlabelled} without labels"] * bool(self.unlabelled)
        left += [f"{len(self.wrong)} with errors"] * bool(self.wrong)
        return text + (f"; left out: {', '.join(left)}" if left else "")


def write_split(
    root: str | Path, classes: Sequence[str], split: str, labelled: Sequence[Labelled], *, progress: bool = True
) -> Imported:
    """Write images, masks, lists and tags of one split into the dataset folder `root`, new or of these classes.

    Writes ``JPEGImages`` (links where the disk is the same, else copies), ``SegmentationClass``, ``classes.txt``,
    ``tags.csv`` and, at the end, two lists: ``ImageSets/Main/<split>.txt`` names all images,
    ``ImageSets/Segmentation/<split>.txt`` those with masks. An import again replaces the split and its masks, and
    leaves other splits as they are. An image that is missing, damaged, or of another size than its labels is told of
    in the result, and left out.

    Raises DataError where the folder is of other classes or holds something else, where names could not be told apart,
    and where no image is left; InputError while another import writes there.
    """
    root, classes = Path(root), checked_classes(classes, "classes")
    checked_id(split, "split")
    if separated := [name for name in classes if ";" in name]:
        raise DataError(f"classes: wanted names without ';', which stands between tags, got {separated[0]!r}")
    with alone_in(root):
        _begin(root, classes)
        targets = _targets(root, labelled)
        found, rows, masked = Imported(), dict[str, Sequence[int]](), list[str]()

        def write(pair: tuple[Labelled, Path]) -> tuple[str, bool, Sequence[int]] | str:
            try:
                return _write(root, *pair)
            except DDNError as error:
                return str(error)

        threads = info.cores()
        pairs = zip(labelled, targets, strict=True)
        results = in_order(write, pairs, threads=threads, ahead=4 * threads)
        for result in tqdm(results, total=len(targets), desc="import", unit="image", disable=not progress):
            if isinstance(result, str):
                found.wrong.append(result)
                continue
            name, has_mask, shown = result
            rows[name] = shown
            masked += [name] * has_mask
        found.images, found.masks = len(rows), len(masked)
        if not rows:
            reasons = "; ".join(found.wrong[:3])
            raise DataError(f"{root}: none of {len(labelled)} images can be used{': ' if reasons else ''}{reasons}")
        _write_tags(root / CSV_NAME, classes, rows)
        _write_list(root / f"ImageSets/Main/{split}.txt", rows)
        _write_list(root / f"ImageSets/Segmentation/{split}.txt", masked)
    return found


def _begin(root: Path, classes: Sequence[str]) -> None:
    path = root / CLASS_FILES[0]
    if path.is_file():
        if (there := read_classes(path)) != tuple(classes):
            raise DataError(f"{path}: wanted the classes {list(classes)}, got {list(there)}; name a new folder")
    elif any(root.iterdir()):
        raise DataError(f"{root}: wanted a new folder, or one of an earlier import, got one without {path.name}")
    for name in (IMAGE_FOLDER, MASKS, "ImageSets/Main", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    write_lines(path, classes)


def _targets(root: Path, labelled: Iterable[Labelled]) -> list[Path]:
    """Where each image goes; DataError where two would be one."""
    sources: dict[str, Path] = {}
    for one in labelled:
        stem = checked_id(one.image.stem, str(one.image))
        if stem in sources:
            raise DataError(f"{one.image}: wanted names that differ, {sources[stem]} is called {stem!r}, too")
        sources[stem] = one.image
    return [root / IMAGE_FOLDER / (stem + image.suffix) for stem, image in sources.items()]


def _write(root: Path, one: Labelled, target: Path) -> tuple[str, bool, Sequence[int]]:
    """Name, whether there is a mask, and the classes of an image that is now there."""
    if target.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{one.image}: wanted {', '.join(IMAGE_SUFFIXES)}")
    size = image_size(one.image)
    shown, path = set(one.classes), root / MASKS / f"{target.stem}.png"
    try:
        mask = one.draw(*size) if one.draw else None
    except DataError as error:
        raise DataError(f"{one.image}: {error}") from error
    _place(one.image, target)
    if mask is None:
        path.unlink(missing_ok=True)  # of an earlier import
    else:
        save_mask(mask, path)
        shown |= set(mask_classes(mask))
    return target.stem, mask is not None, sorted(shown)


def _place(image: Path, target: Path) -> None:
    """A link to the file, or a copy; DataError where another image has that name."""
    for suffix in IMAGE_SUFFIXES:
        if suffix != target.suffix.lower() and (other := target.with_suffix(suffix)).exists():
            raise DataError(f"{image}: {other} is another image: rename one")
    try:
        os.link(image.resolve(), target)
    except FileExistsError:
        if not (target.samefile(image) or filecmp.cmp(target, image, shallow=False)):
            raise DataError(f"{image}: {target} is another image: rename one") from None
    except OSError:  # another disk, or one without links
        write_atomic(target, image.read_bytes())


def _write_tags(path: Path, classes: Sequence[str], rows: dict[str, Sequence[int]]) -> None:
    """Those of other images stay."""
    kept = {name: shown for _, name, shown in csv_rows(path, classes)} if path.is_file() else {}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "tags"])
    writer.writerows([name, ";".join(classes[k] for k in shown)] for name, shown in sorted({**kept, **rows}.items()))
    write_atomic(path, text.getvalue().encode())


def _write_list(path: Path, names: Collection[str]) -> None:
    if names:
        write_lines(path, sorted(names))
    else:
        path.unlink(missing_ok=True)  # a split is never empty
