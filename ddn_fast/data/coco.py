"""Labels in COCO's JSON, which most labelling tools export: polygons, run lengths and boxes of instances.

A box says what an image shows and not where: an image with boxes alone gets tags, one with outlines a mask, in which
boxes without outlines, and crowds, are void. Of shapes that overlap the smaller lies on top.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images import VOID
from .importing import Imported, Labelled, write_split
from .shapes import Shape, polygons, run_lengths
from .voc import BACKGROUND_NAMES, read_text

MAX_JSON_BYTES = 2 << 30


def import_coco(
    annotations: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> Imported:
    """Write a COCO file's images, masks and tags as a split of the dataset folder `out` (see :func:`write_split`).

    images   the folder that the file's names start from
    classes  which categories, in which order; the others are background. Default: all, by their numbers

    Images without any annotation are left out: nobody may have looked at them. Raises DataError for a file that is
    not of COCO's form, and as :func:`write_split`; what is wrong with one image is told of in the result.
    """
    path = Path(annotations)
    tables = _tables(path)
    chosen = _classes(path, [row["name"] for row in sorted(tables["categories"], key=lambda row: row["id"])], classes)
    label_of = {name: label for label, name in enumerate(chosen, 1)}
    labels = {row["id"]: label_of.get(row["name"], 0) for row in tables["categories"]}
    found: dict[int, list[tuple[int, dict[str, Any]]]] = {image["id"]: [] for image in tables["images"]}
    for n, annotation in enumerate(tables["annotations"]):
        if annotation["image_id"] not in found:
            raise DataError(f"{path}: annotations[{n}]: no image has the id {annotation['image_id']}")
        if annotation["category_id"] not in labels:
            raise DataError(f"{path}: annotations[{n}]: no category has the id {annotation['category_id']}")
        found[annotation["image_id"]].append((n, annotation))
    entries = [
        _labelled(Path(images), image, found[image["id"]], labels, f"{path}: images[{n}]")
        for n, image in enumerate(tables["images"])
        if found[image["id"]]
    ]
    result = write_split(out, chosen, split, entries, progress=progress)
    result.unlabelled = len(tables["images"]) - len(entries)
    return result


def _tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    text = read_text(path, MAX_JSON_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: wanted COCO's JSON: {error}") from error
    wanted: dict[str, dict[str, type]] = {
        "categories": {"id": int, "name": str},
        "images": {"id": int, "file_name": str},
        "annotations": {"image_id": int, "category_id": int},
    }
    tables = {}
    for table, fields in wanted.items():
        rows = content.get(table) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path}: wanted COCO's JSON, with a list {table!r}")
        for n, row in enumerate(rows):
            for name, kind in fields.items():
                if not isinstance(row, dict) or type(row.get(name)) is not kind:  # a bool is no number
                    raise DataError(f"{path}: {table}[{n}]: wanted {name!r}, {kind.__name__}, got {_short(row)}")
        numbers = [row["id"] for row in rows] if "id" in fields else []
        if len(set(numbers)) < len(numbers):
            raise DataError(f"{path}: {table}: wanted ids that differ")
        tables[table] = rows
    return tables


def _classes(path: Path, categories: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """Those of the categories that are classes, as `classes` chooses and orders them."""
    if classes is None:
        return [name for name in categories if name.lower() not in BACKGROUND_NAMES]
    if unknown := [name for name in classes if name not in categories]:
        raise DataError(f"{path}: no category is called {unknown[0]!r}; there are {', '.join(map(repr, categories))}")
    return list(classes)


def _labelled(
    folder: Path,
    image: Mapping[str, Any],
    annotations: Sequence[tuple[int, dict[str, Any]]],
    labels: Mapping[int, int],
    where: str,
) -> Labelled:
    name = PurePosixPath(image["file_name"].replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or not name.name:
        raise DataError(f"{where}: wanted a name below the folder of images, got {image['file_name']!r}")
    shown = {labels[annotation["category_id"]] - 1 for _, annotation in annotations} - {-1}
    declared = image.get("height"), image.get("width")

    def draw(height: int, width: int) -> NDArray[np.uint8]:
        if declared not in ((None, None), (height, width)):
            turned = "; labels lie as images are shown, upright by their EXIF" if declared == (width, height) else ""
            raise DataError(f"the labels are of {declared[1]}x{declared[0]} pixels, the image {width}x{height}{turned}")
        return _mask(annotations, labels, height, width)

    outlined = any(annotation.get("segmentation") for _, annotation in annotations)
    return Labelled(folder / name, sorted(shown), draw if outlined else None)


def _mask(
    annotations: Sequence[tuple[int, dict[str, Any]]], labels: Mapping[int, int], height: int, width: int
) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    shapes: list[tuple[Shape, int]] = []
    for n, annotation in annotations:
        try:
            shape, label = _shape(annotation, height, width), labels[annotation["category_id"]]
        except DataError as error:
            raise DataError(f"annotations[{n}]: {error}") from error
        if not annotation.get("segmentation") or annotation.get("iscrowd"):
            if label:
                shape.paint(mask, VOID)
        else:
            shapes.append((shape, label))
    for shape, label in sorted(shapes, key=lambda pair: -int(pair[0].inside.sum())):
        shape.paint(mask, label)
    return mask


def _shape(annotation: Mapping[str, Any], height: int, width: int) -> Shape:
    outline, box = annotation.get("segmentation"), annotation.get("bbox")
    if isinstance(outline, dict):
        return run_lengths(outline, height, width)
    if outline:
        return polygons(outline if isinstance(outline, list) else [outline], height, width)
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise DataError(f"wanted a segmentation or a bbox of x, y, width, height, got {_short(box)}")
    x, y, w, h = box
    return polygons([[x, y, x + w, y, x + w, y + h, x, y + h]], height, width)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} .."
