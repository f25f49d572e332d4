"""A folder laid out as PASCAL VOC: images, masks, splits, class names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from ..config import VOC_CLASSES
from ..errors import DataError, ImageError
from ..images import EXIF_ORIENTATION, IMAGE_FORMATS, load_image, load_mask, open_picture
from ..images import IMAGE_SUFFIXES as ALL_IMAGE_SUFFIXES

IMAGE_FOLDER = "JPEGImages"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")  # first that holds the id wins
SPLIT_FOLDERS = ("Segmentation", "Main")
CLASS_FILES = ("classes.txt", "labels.txt")
BACKGROUND_NAMES = ("background", "_background_", "__background__")  # of label 0, which is no class
ALL = "all"  # the one split of a folder without ImageSets

MAX_TEXT_BYTES = 64 << 20


class VocFolder:
    """One dataset folder in the layout of PASCAL VOC.

    ::

        JPEGImages/<id>.jpg|.jpeg|.png
        SegmentationClass/<id>.png       palette (its indices) or grey: 0 background, l + 1 for classes[l], 255 void
        SegmentationClassAug/<id>.png    preferred where it holds the id (the extended annotation, SBD)
        ImageSets/Segmentation/<split>.txt, ImageSets/Main/<split>.txt    one id per line
        classes.txt or labels.txt        one class per line, background not listed; without it the 20 VOC classes

    A folder without ``ImageSets`` has the single split ``"all"``: every image, in sorted order.
    An image without a mask is legal: it can serve wherever only image-level tags are needed.

    root     the folder
    classes  class names; overrides the folder's own file
    masks    name of the only mask folder to use, in place of the rule above

    Raises DataError when the folder, its images or its class list cannot be used.
    """

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None, *, masks: str | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: wanted a VOC folder, found no such folder")
        self.classes: tuple[str, ...] = _class_names(self.root, classes)
        self._images = images_of(self.root / IMAGE_FOLDER, IMAGE_SUFFIXES)
        if not self._images:
            raise DataError(f"{self.root / IMAGE_FOLDER}: wanted images ({', '.join(IMAGE_SUFFIXES)}), found none")
        if masks is not None and not (self.root / masks).is_dir():
            raise DataError(f"{self.root / masks}: no such mask folder")
        self._masks: dict[str, Path] = {}
        for name in reversed(MASK_FOLDERS if masks is None else (masks,)):
            if (self.root / name).is_dir():
                self._masks.update(images_of(self.root / name, (".png",)))

    @property
    def num_classes(self) -> int:
        """L."""
        return len(self.classes)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._images

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted; the per-class tag files of ``ImageSets/Main`` are not splits."""
        if not (self.root / "ImageSets").is_dir():
            return (ALL,)
        names = {
            path.stem
            for folder in SPLIT_FOLDERS
            for path in (self.root / "ImageSets" / folder).glob("*.txt")
            if not (folder == "Main" and path.stem.startswith(tuple(f"{name}_" for name in self.classes)))
        }
        return tuple(sorted(names))

    def ids(self, split: str) -> tuple[str, ...]:
        """Ids of a split, in the order of its file.

        ``"train"`` is ``ImageSets/Segmentation/train.txt``, or the file of ``Main`` when ``Segmentation`` has none;
        ``"Main/train"`` and ``"Segmentation/train"`` name one of the two.
        Raises DataError when there is no such split, when it is empty, and for a line that is no id, names no image
        of this folder, or occurs twice.
        """
        path = self._split_file(split)
        if path is None:
            return tuple(sorted(self._images))
        ids: dict[str, int] = {}
        for number, line in numbered_lines(path):
            where = f"{path}:{number}"
            fields = [line] if line in self._images else line.split()  # a name may have spaces in it
            if len(fields) > 1:
                hint = "; this looks like a tag file of one class" if fields[-1] in ("1", "0", "-1") else ""
                raise DataError(f"{where}: wanted the id of an image in {IMAGE_FOLDER}, got {line!r}{hint}")
            image_id = checked_id(fields[0], where)
            if image_id in ids:
                raise DataError(f"{where}: {image_id!r} occurs already in line {ids[image_id]}")
            if image_id not in self._images:
                raise DataError(f"{where}: {IMAGE_FOLDER} has no image {image_id!r}")
            ids[image_id] = number
        if not ids:
            raise DataError(f"{path}: the split is empty")
        return tuple(ids)

    def masked_ids(self, split: str) -> tuple[str, ...]:
        """Those ids of a split that have a mask, in the split's order; DataError when none has."""
        ids = tuple(image_id for image_id in self.ids(split) if image_id in self._masks)
        if not ids:
            raise DataError(f"{self.root}: no image of split {split!r} has a mask in {' or '.join(MASK_FOLDERS)}")
        return ids

    def image_path(self, image_id: str) -> Path:
        """Path of an image; DataError when there is none of that id."""
        try:
            return self._images[image_id]
        except KeyError:
            raise DataError(f"{self.root / IMAGE_FOLDER}: no image {image_id!r}") from None

    def mask_path(self, image_id: str) -> Path | None:
        """Path of an image's mask, or None when it has none; DataError when there is no such image."""
        self.image_path(image_id)
        return self._masks.get(image_id)

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """HxWx3 uint8 RGB; raises ImageError for a file that cannot be read."""
        return load_image(self.image_path(image_id))

    def image_size(self, image_id: str) -> tuple[int, int]:
        """(height, width) of an image from its header alone, EXIF orientation applied; ImageError as :meth:`image`."""
        return image_size(self.image_path(image_id))

    def mask(self, image_id: str, *, check_size: bool = False) -> NDArray[np.uint8]:
        """HxW uint8 mask: 0 background, l + 1 for ``classes[l]``, 255 void.

        Raises DataError when the image has no mask, the mask holds other labels, or, with ``check_size``, has another
        size than its image (of which only the header is read).
        """
        path = self.mask_path(image_id)
        if path is None:
            raise DataError(f"{self.root}: image {image_id!r} has no mask in {' or '.join(MASK_FOLDERS)}")
        mask = load_mask(path, classes=self.num_classes)
        if check_size:
            check_same_size(self.image_size(image_id), mask, path)
        return mask

    def pair(self, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image HxWx3 uint8 RGB and mask HxW uint8 of the same size; errors as :meth:`image` and :meth:`mask`."""
        image, mask = self.image(image_id), self.mask(image_id)
        check_same_size(image.shape[:2], mask, self._masks[image_id])
        return image, mask

    def relative(self, path: Path) -> str:
        """A path inside the folder, from its root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def _split_file(self, split: str) -> Path | None:
        """The file of a split; None stands for all images."""
        if not (self.root / "ImageSets").is_dir():
            if split == ALL:
                return None
            raise DataError(f"{self.root}: the folder has no ImageSets, its only split is {ALL!r}; got {split!r}")
        folder, slash, name = split.rpartition("/")
        folders = (folder,) if slash else SPLIT_FOLDERS
        checked_id(name, f"split {split!r}")
        if slash and folder not in SPLIT_FOLDERS:
            raise DataError(f"split {split!r}: wanted a name, or one after {' or '.join(SPLIT_FOLDERS)}/")
        paths = [self.root / "ImageSets" / candidate / f"{name}.txt" for candidate in folders]
        for path in paths:
            if path.is_file():
                return path
        known = ", ".join(self.splits()) or "none"
        raise DataError(f"split {split!r}: found neither {' nor '.join(map(str, paths))}; splits here: {known}")


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file from its header alone, EXIF orientation applied; ImageError without one."""
    try:
        with open_picture(path, IMAGE_FORMATS) as header:
            width, height = header.size
            if isinstance(header, TiffImageFile):  # some versions of Pillow turn its size, others do not
                width, height = (int(header.tag_v2[tag]) for tag in (IMAGEWIDTH, IMAGELENGTH))
            turned = _is_turned(header)
    except Exception as error:  # a decoder of a hostile file may raise nearly anything
        raise ImageError(f"{path}: cannot read the image's header: {error}") from error
    return (width, height) if turned else (height, width)


def check_same_size(size: Iterable[int], mask: NDArray[np.uint8], path: Path) -> None:
    """DataError unless the mask read from ``path`` has the image's (height, width)."""
    height, width = size
    if mask.shape != (height, width):
        turned = "; masks lie as images are shown, upright by their EXIF" if mask.shape == (width, height) else ""
        sizes = f"{mask.shape[1]}x{mask.shape[0]} pixels (width x height), its image {width}x{height}"
        raise DataError(f"{path}: the mask is {sizes}{turned}")


def checked_id(image_id: str, where: str) -> str:
    """The id itself; DataError when it is no plain file name, as an id that leaves its folder would be."""
    if not image_id or image_id in (".", "..") or any(char in image_id for char in '/\\:\0"'):
        raise DataError(f"{where}: wanted a plain name of an image, got {image_id!r}")
    return image_id


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A whole UTF-8 file; DataError when it is missing, larger than ``limit`` bytes, or no text."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
    if len(raw) > limit:
        raise DataError(f"{path}: wanted at most {limit} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted UTF-8 text, byte {error.start} is none") from error


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, stripped line) of every line that is not blank."""
    lines = read_text(path).split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _is_turned(header: Image.Image) -> bool:
    try:
        return header.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # load_image passes over a broken EXIF block, too
        return False


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names of a text file, one a line; DataError for one that a dataset folder could not have."""
    return checked_classes([line for _, line in numbered_lines(path)], str(path))


def _class_names(root: Path, classes: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise DataError(f"classes: wanted a sequence of names, got the text {classes!r}")
    if classes is not None:
        return checked_classes(classes, "classes")
    path = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    return VOC_CLASSES if path is None else read_classes(path)


def checked_classes(classes: Sequence[str], where: str) -> tuple[str, ...]:
    """The names as a tuple; DataError, naming `where`, for those that a dataset folder could not have."""
    names = tuple(classes)
    if not 1 <= len(names) <= 254:
        raise DataError(f"{where}: wanted 1 to 254 class names, got {len(names)}")
    for name in names:
        checked_id(name, where)  # a class is part of the names of its tag files
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: class {twice!r} occurs twice")
    if background := [name for name in names if name.lower() in BACKGROUND_NAMES]:
        hint = "label 0 is always background"
        raise DataError(f"{where}: wanted the foreground classes only, got {background[0]!r}; {hint}")
    return names


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """A file, or a link that leads nowhere: reading that says so, where leaving it out would say nothing."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:  # a link in circles
        return True


def images_of(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """id -> path of a folder's files with one of the suffixes; DataError for no folder, or for one id in two files.

    A warning tells of pictures with other suffixes.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    others: list[str] = []
    with os.scandir(folder) as entries:
        for name in sorted(entry.name for entry in entries if _may_be_file(entry)):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122  (ten thousands of names)
            if suffix.lower() not in suffixes:
                if suffix.lower() in ALL_IMAGE_SUFFIXES:
                    others.append(name)
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(f"{folder}: wanted names in UTF-8, got {name!r}: rename this file") from None
            if stem in found:
                raise DataError(f"{folder}: {found[stem].name} and {name} have the same id {stem!r}")
            found[stem] = folder / name
    if others:
        wanted, files = ", ".join(suffixes), "file" if len(others) == 1 else "files"
        warnings.warn(
            f"{folder}: wanted {wanted}, passed over {len(others)} {files} with another suffix, as {others[0]!r}",
            stacklevel=3,
        )
    return found
