"""Which images ``ddn-fast predict`` is about: files, folders, lists, a split, one part of many; and their tags."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data.tags import PRESENT, csv_rows, read_tags
from .data.voc import CLASS_FILES, IMAGE_FOLDER, VocFolder
from .errors import DataError, InputError
from .images import IMAGE_SUFFIXES
from .labels import unknown_class

RECORDS = "scores.jsonl"
SETTINGS = "run.json"
MASKS = "masks"
OVERLAYS = "overlays"
LIST_SUFFIX = ".txt"
MAX_PATH_BYTES = 4096  # what Linux takes


@dataclass(frozen=True)
class Part:
    """One of several parts of a set of images, the same wherever and whenever it is asked for.

    An image's part follows from its path alone, so parts do not change when images are added.
    """

    index: int  # from 1
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of ``2/8``; InputError on anything else."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= part.index <= part.count:
            raise InputError(f"part: wanted which of how many, as in 2/8, got {text!r}")
        return part

    def __contains__(self, path: object) -> bool:
        return zlib.crc32(os.fsencode(str(path))) % self.count == self.index - 1

    @property
    def folder(self) -> str:
        """Name of the folder its results go to."""
        return f"part-{self.index}-of-{self.count}"


def find_images(inputs: Sequence[str | Path], exclude: Path | None = None, part: Part | None = None) -> list[Path]:
    """Image files in the order given, each once; folders sorted, with all below them but `exclude` and hidden files.

    A dataset folder stands for its JPEGImages: its masks are no images to segment, nor are the results of a run. Links
    to folders are not followed; folders that cannot be read are left out with a warning. A ``.txt`` file is a list of
    files, one a line, relative to the working directory. A file named outright is taken whatever its suffix, even one
    that is missing: segmenting it says why it cannot be. Of all these those of `part`.
    Raises InputError if nothing is found, of all parts together.
    """
    hidden = exclude.resolve() if exclude else None
    found: dict[str, Path] = {}
    nothing = True
    for path in _each(inputs, hidden):
        nothing = False
        key = key_of(path)
        if part is None or key in part:
            found.setdefault(key, path)
    if nothing:
        where = ", ".join(map(str, inputs)) or "no files or folders"
        raise InputError(f"predict: wanted images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none in {where}")
    return list(found.values())


def key_of(path: Path) -> str:
    """What an image is known by: its absolute path."""
    return os.path.abspath(path)  # noqa: PTH100  # a link is an image of its own: no resolve


def split_images(inputs: Sequence[str | Path], split: str, part: Part | None) -> list[Path]:
    """Images of a split of the one dataset folder in `inputs`, in the split's order, those of `part`."""
    folder = _dataset(inputs, "split")
    paths = [folder.image_path(image_id) for image_id in folder.ids(split)]
    return [path for path in paths if part is None or key_of(path) in part]


def tags_of_images(
    source: str,
    images: Sequence[Path],
    inputs: Sequence[str | Path],
    split: str | None,
    classes: Sequence[str],
    progress: bool = True,
) -> list[list[str] | None]:
    """The class names that `source` has for each image; None where it has none, for the network to identify.

    source  a CSV file as for training, whose images are names with or without suffix, or, with a slash in them, paths
            from the file's folder or the working directory. Or ``main`` or ``masks``: tags of `split` of a dataset,
            see :func:`ddn_fast.data.read_tags`; what it calls difficult is left out. The folder's classes are its own
            (classes.txt) and meet the network's by name
    """
    if _is_csv(source):
        return _csv_tags(Path(source), images, classes)
    folder = _dataset(inputs, f"tags {source}")
    if split is None:
        raise InputError(f"tags {source}: wanted the split that they are tags of, too")
    if not set(classes) <= set(folder.classes) and not any((folder.root / name).is_file() for name in CLASS_FILES):
        warnings.warn(f"{folder.root}: no classes.txt, so its classes are PASCAL VOC's", stacklevel=2)
    tags = read_tags(folder, split, source, progress=progress)
    present = [(tags[path.stem] == PRESENT).nonzero()[0] for path in images]
    for k in sorted({int(k) for of_image in present for k in of_image}):
        if folder.classes[k] not in classes:
            raise DataError(f"{folder.root}: {unknown_class(folder.classes[k], classes)}")
    return [[folder.classes[k] for k in of_image] for of_image in present]


def tags_told(source: str) -> str:
    """What a run says of its tags: a CSV file's content, wherever it lies."""
    if not _is_csv(source):
        return source
    return f"csv, sha256 {hashlib.sha256(Path(source).read_bytes()).hexdigest()}"


def _is_csv(source: str) -> bool:
    return Path(source).suffix.lower() == ".csv"


def _dataset(inputs: Sequence[str | Path], what: str) -> VocFolder:
    if len(inputs) != 1 or not (Path(inputs[0]) / IMAGE_FOLDER).is_dir():
        raise InputError(f"{what}: wanted one folder with {IMAGE_FOLDER} in it, got {', '.join(map(str, inputs))}")
    return VocFolder(inputs[0])


def _csv_tags(source: Path, images: Sequence[Path], classes: Sequence[str]) -> list[list[str] | None]:
    rows: dict[str, tuple[str, list[str]]] = {}
    folder, here = os.path.abspath(source.parent), os.getcwd()  # noqa: PTH100, PTH109
    for where, image, labels in csv_rows(source, classes):
        name = image
        if "/" in image:
            beside = os.path.normpath(os.path.join(folder, image))  # noqa: PTH118
            name = beside if os.path.lexists(beside) else os.path.normpath(os.path.join(here, image))  # noqa: PTH118
        if name in rows:
            raise DataError(f"{where}: image {image!r} occurs twice")
        rows[name] = where, [classes[k] for k in labels]
    taken: dict[str, Path] = {}
    found: list[list[str] | None] = []
    for path in images:
        key = key_of(path)
        names = [name for name in dict.fromkeys((key, path.name, path.stem)) if name in rows]
        if len(names) > 1:
            raise DataError(f"{rows[names[1]][0]}: {path} has a line already, {rows[names[0]][0]}")
        if names and names[0] != key and taken.setdefault(names[0], path) != path:
            raise DataError(f"{rows[names[0]][0]}: {names[0]!r} may be {taken[names[0]]} or {path}: wanted their paths")
        found.append(rows[names[0]][1] if names else None)
    if lacking := [path for path, names in zip(images, found, strict=True) if names is None]:
        of = f"{len(lacking)} of {len(images)} images, the first is {lacking[0]}"
        if len(lacking) == len(images):
            raise DataError(f"{source}: no line for {of}")
        warnings.warn(f"{source}: no line for {of}; they get what the network identifies", stacklevel=3)
    return found


def _each(inputs: Iterable[str | Path], hidden: Path | None) -> Iterator[Path]:
    for item in map(Path, inputs):
        root = item / IMAGE_FOLDER if os.path.isdir(item / IMAGE_FOLDER) else item  # noqa: PTH112  # raises nothing
        if root.is_dir():
            yield from map(Path, sorted(_below(root, hidden), key=_in_folders))
        elif root.suffix.lower() == LIST_SUFFIX:
            yield from _listed(root)
        else:
            yield root


def _in_folders(path: str) -> list[str]:
    """Paths by it are in the order of Path's."""
    return path.split("/")


def _below(root: Path, exclude: Path | None) -> Iterator[str]:
    suffixes = tuple(IMAGE_SUFFIXES)
    for folder, subfolders, files in os.walk(root, onerror=_left_out):
        results = (MASKS, OVERLAYS) if {RECORDS, SETTINGS} <= set(files) else ()
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and name not in results and Path(folder, name).resolve() != exclude
        ]
        here = os.path.join(folder, "")  # noqa: PTH118  # of millions: no Path until they are sorted
        yield from (here + name for name in files if name.lower().endswith(suffixes) and not name.startswith("."))


def _left_out(error: OSError) -> None:
    warnings.warn(f"{error.filename}: {error.strerror}; what is in it is left out", stacklevel=2)


def _listed(path: Path) -> Iterator[Path]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_PATH_BYTES + 2), b""), 1):
                name = line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")
                if len(name) > MAX_PATH_BYTES or b"\0" in name:
                    raise InputError(f"{path}:{number}: wanted a path of an image, got {name[:40]!r} ..")
                if name.strip():
                    yield Path(os.fsdecode(name))
    except OSError as error:
        raise InputError(f"{path}: cannot read the list: {error.strerror or error}") from error
