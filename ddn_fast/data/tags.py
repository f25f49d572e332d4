"""Image-level labels: from VOC's tag files, from masks, or from a CSV file."""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DataError
from ..files import write_atomic
from ..labels import is_nearly_known, unknown_class
from .voc import IMAGE_SUFFIXES, VocFolder, checked_id, numbered_lines, read_text

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
CSV_NAME = "tags.csv"  # what "auto" looks for in the folder

_MAIN_FLAGS = {"1": PRESENT, "0": UNKNOWN, "-1": ABSENT}  # VOC writes 0 for objects that are all difficult
_CACHE_VERSION = 1
_MAX_CACHE_BYTES = 256 << 20
_MAX_LINE = 1 << 16  # characters, of a CSV file

Tags = dict[str, NDArray[np.int8]]


def read_tags(
    folder: VocFolder,
    split: str,
    source: str | Path = "auto",
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Tags:
    """``{id: [L] int8}`` for every id of a split: 1 present, 0 absent, -1 unknown (VOC's "difficult").

    ``source`` says where the labels come from:

    ``"main"``   the files ``ImageSets/Main/<class>_<split>.txt``; an id they lack may stand in ``<class>_trainval.txt``
    ``"masks"``  the labels that occur in each image's mask
    a ``.csv``   a file with the header ``image,tags``; see :func:`tags_from_csv`
    ``"auto"``   ``"main"`` when the folder has a tag file of the split; else ``tags.csv`` in the folder; else
                 ``"masks"``

    ``cache_dir`` keeps what was read from masks (see :func:`tags_from_masks`). Raises DataError for a source that is
    missing, malformed, or says nothing about an id of the split.
    """
    ids = folder.ids(split)
    if source == "auto":
        if any(path.is_file() for name in folder.classes for path in _main_files(folder, split, name)):
            source = "main"
        elif (folder.root / CSV_NAME).is_file():
            source = folder.root / CSV_NAME
        else:
            source = "masks"
            if missing := _without_mask(folder, ids):
                raise DataError(
                    f"{folder.root}: split {split!r} has no tags: neither ImageSets/Main/<class>_{split}.txt nor "
                    f"{CSV_NAME} are there, and {len(missing)} of {len(ids)} images have no mask to take them from, "
                    f"the first is {missing[0]!r}"
                )
    if source == "main":
        return _tags_from_main(folder, split, ids)
    if source == "masks":
        return tags_from_masks(folder, ids, cache_dir=cache_dir, progress=progress)
    if Path(source).suffix.lower() == ".csv":
        return tags_from_csv(folder, ids, Path(source))
    raise DataError(f"tags: wanted 'main', 'masks', 'auto' or a .csv file, got {str(source)!r}")


def tags_from_masks(
    folder: VocFolder, ids: Sequence[str], *, cache_dir: str | Path | None = None, progress: bool = True
) -> Tags:
    """Labels that occur in each image's mask, void and background left out; ``{id: [L] int8}`` of 0 and 1.

    With ``cache_dir`` the labels found are kept in one JSON file for each dataset folder, and a mask is read again
    only when its path, size or time of change differs. A damaged cache is ignored and written anew.
    Raises DataError for an id without a mask and for a mask with unknown labels.
    """
    if missing := _without_mask(folder, ids):
        raise DataError(f"{folder.root}: {len(missing)} of {len(ids)} images have no mask, the first is {missing[0]!r}")
    cache_path = None if cache_dir is None else _cache_path(folder, Path(cache_dir))
    known = {} if cache_path is None else _read_cache(cache_path, folder.num_classes)
    fresh: dict[str, dict[str, Any]] = {}
    tags: Tags = {}
    try:
        for image_id in tqdm(ids, desc="labels of masks", unit="mask", disable=not progress, leave=False):
            path = folder.mask_path(image_id)
            assert path is not None
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
            stamp = {"mask": folder.relative(path), "mtime_ns": stat.st_mtime_ns, "size": stat.st_size}
            entry = known.get(image_id)
            if entry is None or any(entry[key] != value for key, value in stamp.items()):
                entry = fresh[image_id] = {**stamp, "labels": mask_classes(folder.mask(image_id))}
            vector = np.zeros(folder.num_classes, np.int8)
            vector[entry["labels"]] = PRESENT
            tags[image_id] = vector
    finally:  # a scan that ends at a bad mask keeps what it has read
        if cache_path is not None and fresh:
            _write_cache(cache_path, {**known, **fresh})
    return tags


def _without_mask(folder: VocFolder, ids: Sequence[str]) -> list[str]:
    return [image_id for image_id in ids if folder.mask_path(image_id) is None]


def mask_classes(mask: NDArray[np.uint8]) -> list[int]:
    """Sorted class indexes of an HxW uint8 mask; label l + 1 is class l, 0 and 255 are left out."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return [int(label) - 1 for label in np.flatnonzero(counts[1:255]) + 1]


def tags_from_csv(folder: VocFolder, ids: Sequence[str], path: Path) -> Tags:
    """Labels from a UTF-8 CSV file with the header ``image,tags``; ``{id: [L] int8}`` of 0 and 1.

    ``image`` is an id or an image's file name. ``tags`` holds class names separated by ``;``, or by spaces when it has
    no ``;`` and is not one class name as a whole; it may be empty. Images that are not in ``ids`` are passed over.
    Raises DataError, naming the line, for another header, a class or image that the folder lacks, or an image that
    occurs twice; and for an id without a line.
    """
    found: Tags = {}
    for where, image, labels in csv_rows(path, folder.classes):
        image_id = _image_id(folder, image, where)
        if image_id in found:
            raise DataError(f"{where}: image {image_id!r} occurs twice")
        vector = found[image_id] = np.zeros(folder.num_classes, np.int8)
        vector[labels] = PRESENT
    if missing := [image_id for image_id in ids if image_id not in found]:
        raise DataError(f"{path}: {len(missing)} of {len(ids)} images have no line, the first is {missing[0]!r}")
    return {image_id: found[image_id] for image_id in ids}


def csv_rows(path: Path, classes: Sequence[str]) -> Iterator[tuple[str, str, list[int]]]:
    """Line by line what a CSV file of :func:`tags_from_csv` says: ``file:line``, image, class indices.

    Raises DataError, naming the line, for a file that cannot be read, another header or an unknown class.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(_bounded_lines(file, path), strict=True)
            header = [field.strip().lower() for field in next(reader, [])]
            if header != ["image", "tags"]:
                raise DataError(f"{path}:1: wanted the header 'image,tags', got {','.join(header)!r}")
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                where = f"{path}:{reader.line_num}"
                if len(row) != 2:
                    raise DataError(f"{where}: wanted 2 fields, got {len(row)}")
                names = _split_names(row[1].strip(), numbers)
                if unknown := [name for name in names if name not in numbers]:
                    if ";" in row[1]:
                        raise DataError(f"{where}: {unknown_class(unknown[0], classes)}")
                    name = row[1].strip() if is_nearly_known(row[1].strip(), classes) else unknown[0]
                    apart = "classes stand apart by ';', or by spaces"
                    raise DataError(f"{where}: {unknown_class(name, classes)} ({apart})")
                yield where, row[0].strip(), [numbers[name] for name in names]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted UTF-8 text, byte {error.start} of a part of it is none") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), ""), 1):
        if len(line) > _MAX_LINE:
            raise DataError(f"{path}:{number}: wanted lines of at most {_MAX_LINE} characters")
        yield line


def _image_id(folder: VocFolder, name: str, where: str) -> str:
    stem = Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
    for candidate in (name, stem):
        if checked_id(candidate, where) in folder:
            return candidate
    raise DataError(f"{where}: the folder has no image {name!r}")


def _split_names(cell: str, numbers: Mapping[str, int]) -> list[str]:
    if ";" in cell:
        return [name for part in cell.split(";") if (name := part.strip())]
    return [cell] if cell in numbers else cell.split()


def _main_files(folder: VocFolder, split: str, name: str) -> list[Path]:
    """Tag files of one class; where both hold an id, the first counts."""
    main = folder.root / "ImageSets" / "Main"
    return [main / f"{name}_{part}.txt" for part in (split.rpartition("/")[2], "trainval")]


def _tags_from_main(folder: VocFolder, split: str, ids: Sequence[str]) -> Tags:
    tags: Tags = {image_id: np.empty(folder.num_classes, np.int8) for image_id in ids}
    for number, name in enumerate(folder.classes):
        paths = _main_files(folder, split, name)
        flags: dict[str, int] = {}
        for path in reversed([path for path in paths if path.is_file()]):
            flags.update(_read_main_file(path))
        if not flags:
            raise DataError(f"{paths[0]}: no tags of class {name!r}; wanted lines '<id> 1|0|-1'")
        if missing := [image_id for image_id in ids if image_id not in flags]:
            raise DataError(
                f"{paths[0]}: {len(missing)} of {len(ids)} images of split {split!r} have no line here, "
                f"the first is {missing[0]!r}"
            )
        for image_id in ids:
            tags[image_id][number] = flags[image_id]
    return tags


def _read_main_file(path: Path) -> dict[str, int]:
    flags: dict[str, int] = {}
    for number, line in numbered_lines(path):
        fields = line.rsplit(None, 1)
        if len(fields) != 2 or fields[1] not in _MAIN_FLAGS:
            raise DataError(f"{path}:{number}: wanted '<id> 1', '<id> 0' or '<id> -1', got {line!r}")
        if fields[0] in flags:
            raise DataError(f"{path}:{number}: {fields[0]!r} occurs twice")
        flags[fields[0]] = _MAIN_FLAGS[fields[1]]
    return flags


def _cache_path(folder: VocFolder, cache_dir: Path) -> Path:
    key = f"{folder.root.resolve()}\n{folder.num_classes}"
    return cache_dir / f"mask-tags-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read_cache(path: Path, num_classes: int) -> dict[str, dict[str, Any]]:
    """Entries of a cache file that are well formed; nothing when the file is missing or damaged."""
    try:
        content = json.loads(read_text(path, _MAX_CACHE_BYTES))
    except (DataError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _CACHE_VERSION:
        return {}
    entries = content.get("entries")
    if not isinstance(entries, dict):
        return {}
    return {image_id: entry for image_id, entry in entries.items() if _is_entry(entry, num_classes)}


def _write_cache(path: Path, entries: Mapping[str, Any]) -> None:
    content = json.dumps({"version": _CACHE_VERSION, "entries": entries}, separators=(",", ":")).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:  # the labels themselves are known: the next run reads the masks again
        warnings.warn(f"{path}: cannot keep the labels of masks: {error}", stacklevel=3)


def _is_entry(entry: Any, num_classes: int) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"mask", "mtime_ns", "size", "labels"}
        and isinstance(entry["labels"], list)
        and all(type(label) is int and 0 <= label < num_classes for label in entry["labels"])
    )
