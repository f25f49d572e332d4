"""Stage-2 items: windows around the objects of every subset of an image's classes (SPEC section 8), and their list.

The paper takes its windows from object proposals, which need a program of their own. Here an object is a connected
component of a class's mask; windows are drawn around those.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import quote, unquote

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DataError
from ..files import write_atomic
from ..images import VOID
from .tags import mask_classes
from .voc import VocFolder

Window = tuple[int, int, int, int]  # x1, y1, x2, y2: pixels from 0, the last ones inclusive; may leave the image
Box = tuple[float, float, float, float]  # the same corners while they are being moved, x2 and y2 exclusive

MAX_SUBSETS = 15  # of one image by default: all subsets of up to four classes
MAX_COUNT = 1000  # of an image's subsets, and of a subset's windows
MAX_SIDE = 32767  # of a window; OpenCV counts rows and columns in 16 bits in places
MAX_AREA = 1 << 27  # pixels of a window: 384 MiB of RGB

MARGIN = 0.5  # a window is longer than the objects' box by up to this share of it at either end
MAX_ASPECT = 4 / 3  # a window is widened to a random aspect between this and its inverse
MIN_SHARE = 0.25  # smallest side of a window, of the image's longer side: tiny objects keep their surroundings
MAX_SHARE = 1.25  # largest, of the same: more would only add padding
FRAGMENT = 0.05  # components below this share of their class's largest are cut-offs, not objects

_MAX_LIST_BYTES = 1 << 30
_MAX_LINE_BYTES = 16384
_NUMBER = re.compile(r"-?[0-9]{1,9}\Z")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowItem:
    """One stage-2 item.

    image, mask  paths from the dataset folder, with forward slashes
    window       x1, y1, x2, y2 inclusive
    subset       sorted class indexes; these classes are foreground
    """

    image: str
    mask: str
    window: Window
    subset: tuple[int, ...]

    def subset_vector(self, num_classes: int) -> NDArray[np.uint8]:
        """The subset as an [L] vector of 0 and 1."""
        vector = np.zeros(num_classes, np.uint8)
        vector[list(self.subset)] = 1
        return vector


def build_items(
    folder: VocFolder,
    ids: Sequence[str],
    *,
    seed: int = 0,
    windows_per_subset: int = 3,
    max_subsets: int = MAX_SUBSETS,
    progress: bool = True,
) -> list[WindowItem]:
    """Items of the masked images ``ids``: for each subset of the classes in the mask, :func:`subset_windows`.

    An image's items depend on its mask, its id and the seed alone. An image whose mask holds no class has none.
    Raises DataError for an id without a mask, a mask with unknown labels or of another size than its image, and when
    no item results.
    """
    _check_counts(seed, windows_per_subset, max_subsets)
    items: list[WindowItem] = []
    empty, void = 0, False
    for image_id in tqdm(ids, desc="windows", unit="image", disable=not progress, leave=False):
        mask = folder.mask(image_id, check_size=True)
        check_padded(mask.shape[:2], MAX_SHARE, f"image {image_id!r}")
        mask_path = folder.mask_path(image_id)
        assert mask_path is not None
        image, target = folder.relative(folder.image_path(image_id)), folder.relative(mask_path)
        rng = _image_rng(seed, image_id)
        subsets = class_subsets(mask_classes(mask), max_subsets, rng)
        empty += not subsets
        void = void or (not subsets and bool((mask == VOID).any()))
        objects = {number: object_boxes(mask, number) for subset in subsets for number in subset}
        for subset in subsets:
            boxes = [objects[number] for number in subset]
            for window in subset_windows(mask.shape[:2], boxes, windows_per_subset, rng):
                items.append(WindowItem(image, target, window, subset))
    if empty:
        _log.info("%d of %d masks hold no class and give no items", empty, len(ids))
    if not items:
        hint = f": they hold 0 and {VOID} only; {VOID} is void, the first class is label 1" if void else ""
        raise DataError(f"{folder.root}: none of the {len(ids)} masks holds a class, so there are no items{hint}")
    return items


def class_subsets(
    classes: Sequence[int], max_subsets: int = MAX_SUBSETS, rng: np.random.Generator | None = None
) -> list[tuple[int, ...]]:
    """Non-empty subsets of the class indexes, smallest first; all ``2**n - 1`` of them when the cap allows.

    Above the cap: the single classes, the whole set, and random others up to ``max_subsets`` (random single classes
    when already these are more). ``rng`` is needed only then.
    """
    numbers = tuple(sorted(set(classes)))
    n = len(numbers)
    if n == 0:
        return []
    if 2**n - 1 <= max_subsets:
        return [subset for size in range(1, n + 1) for subset in itertools.combinations(numbers, size)]
    rng = rng or np.random.Generator(np.random.PCG64(0))
    chosen: set[tuple[int, ...]] = {(number,) for number in _sample(numbers, min(n, max_subsets), rng)}
    if len(chosen) < max_subsets:
        chosen.add(numbers)
    if n <= 12:
        others = [subset for size in range(2, n) for subset in itertools.combinations(numbers, size)]
        places = _sample(range(len(others)), min(len(others), max_subsets - len(chosen)), rng)
        chosen.update(others[place] for place in places)
    while len(chosen) < max_subsets:  # n > 12: far more subsets than any cap, so this soon ends
        chosen.add(_sample(numbers, int(rng.integers(2, n)), rng))
    return sorted(chosen, key=lambda subset: (len(subset), subset))


def object_boxes(mask: NDArray[np.uint8], number: int) -> list[Box]:
    """Boxes of the objects of one class in an HxW mask, largest object first.

    An object is an 8-connected component of label ``number + 1``; fragments (see FRAGMENT) are left out.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats((mask == number + 1).astype(np.uint8), connectivity=8)
    parts = stats[1:]  # row 0 is everything else
    parts = parts[np.argsort(-parts[:, cv2.CC_STAT_AREA], kind="stable")]
    large = parts[:, cv2.CC_STAT_AREA] >= FRAGMENT * parts[:1, cv2.CC_STAT_AREA]
    return [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in parts[large, :4]]


def subset_windows(
    size: tuple[int, int], objects: Sequence[Sequence[Box]], count: int, rng: np.random.Generator
) -> list[Window]:
    """The whole padded square and ``count`` random windows, each around objects of a subset; no window twice.

    ``size`` is the image's (height, width), ``objects`` the boxes of each class of the subset. The random windows are
    drawn in turn around all objects and around one object of each class: the box of those is lengthened by up to
    twice MARGIN, then the shorter side to a random aspect of up to MAX_ASPECT, within MIN_SHARE to MAX_SHARE of the
    image's longer side. Every window holds its box in full, at a random place, and may leave the image on any side.
    """
    side = max(size)
    windows: dict[Window, None] = {(0, 0, side - 1, side - 1): None}  # SPEC section 1: padded at the bottom and right
    for turn in range(count):
        if turn % 2 == 0:
            boxes = [box for of_class in objects for box in of_class]
        else:
            boxes = [of_class[int(rng.integers(len(of_class)))] for of_class in objects]
        windows[_enlarged(_union(boxes), side, rng)] = None
    return list(windows)


def _union(boxes: Sequence[Box]) -> Box:
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _enlarged(box: Box, side: int, rng: np.random.Generator) -> Window:
    """A random window that holds the box; ``side`` is the image's longer side."""
    x1, y1, x2, y2 = box
    spread = 1 + 2 * MARGIN * rng.random(2)
    width, height = spread[0] * (x2 - x1), spread[1] * (y2 - y1)
    aspect = MAX_ASPECT ** rng.uniform(-1, 1)
    width, height = max(width, height * aspect, MIN_SHARE * side), max(height, width / aspect, MIN_SHARE * side)
    columns, rows = (int(np.ceil(min(length, MAX_SHARE * side))) for length in (width, height))
    place = rng.random(2)
    left = int(np.floor(x1 - place[0] * (columns - (x2 - x1))))
    top = int(np.floor(y1 - place[1] * (rows - (y2 - y1))))
    return left, top, left + columns - 1, top + rows - 1


def read_list(path: str | Path, num_classes: int) -> list[WindowItem]:
    """Items of a list file: in each line image, mask, x1 y1 x2 y2 and L subset flags, separated by spaces.

    The two paths start at the dataset folder, with or without a slash before them; a space in them is %20, a percent
    sign %25, a colon %3A, as in addresses. This is, but for that, the form of the lists that the authors' program
    reads. Raises DataError naming the first line that has another form, a path that leaves the folder, an impossible
    window, or an empty subset.
    """
    path = Path(path)
    items: list[WindowItem] = []
    for number, raw in _raw_lines(path):
        try:
            items.append(_parse_line(raw, num_classes))
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
    if not items:
        raise DataError(f"{path}: the list is empty")
    return items


def write_list(path: str | Path, items: Sequence[WindowItem], num_classes: int) -> None:
    """Writes items as :func:`read_list` reads them, atomically; DataError for an item that the form cannot hold."""
    lines = []
    for number, item in enumerate(items):
        if not item.subset or not all(0 <= label < num_classes for label in item.subset):
            raise DataError(f"item {number}: wanted class indexes from 0 to {num_classes - 1}, got {item.subset}")
        check_window(item.window)
        flags = " ".join(map(str, item.subset_vector(num_classes)))
        corners = " ".join(map(str, item.window))
        lines.append(f"/{_quoted(item.image)} /{_quoted(item.mask)} {corners} {flags}\n")
    write_atomic(Path(path), "".join(lines).encode())


def check_window(window: Window) -> None:
    """DataError for a window without pixels, or larger than could be cropped."""
    x1, y1, x2, y2 = window
    if x2 < x1 or y2 < y1:
        raise DataError(f"window {window}: wanted x1 <= x2 and y1 <= y2")
    width, height = x2 - x1 + 1, y2 - y1 + 1
    if max(width, height) > MAX_SIDE or width * height > MAX_AREA:
        raise DataError(f"window {window}: wanted sides up to {MAX_SIDE} and {MAX_AREA} pixels, got {width}x{height}")


def check_padded(size: tuple[int, int], share: float, what: str) -> None:
    """DataError where a window of `share` times the longer side of an image (height, width) is too large to crop."""
    limit = int(MAX_AREA**0.5 / share)
    if max(size) > limit:
        raise DataError(f"{what}: wanted sides up to {limit} pixels for training, got {size[1]}x{size[0]}")


def visible_part(window: Window, size: tuple[int, int]) -> Window:
    """What of a window lies in an image of ``size`` (height, width); DataError where nothing does."""
    check_window(window)
    x1, y1, x2, y2 = window
    height, width = size
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width - 1), min(y2, height - 1)
    if left > right or top > bottom:
        raise DataError(f"window {window}: lies outside the image of {width}x{height} pixels (width x height)")
    return left, top, right, bottom


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            total = 0
            for number in itertools.count(1):
                raw = file.readline(_MAX_LINE_BYTES + 1)
                total += len(raw)
                if not raw:
                    return
                if len(raw) > _MAX_LINE_BYTES or total > _MAX_LIST_BYTES:
                    limits = f"lines up to {_MAX_LINE_BYTES} and a file up to {_MAX_LIST_BYTES} bytes"
                    raise DataError(f"{path}:{number}: wanted {limits}")
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error


def _parse_line(raw: bytes, num_classes: int) -> WindowItem:
    fields = raw.decode("utf-8").split()
    if len(fields) != 6 + num_classes:
        raise DataError(
            f"wanted image, mask, 4 window corners and {num_classes} flags: {6 + num_classes} fields, got {len(fields)}"
        )
    if wrong := [field for field in fields[2:6] if not _NUMBER.match(field)]:
        raise DataError(f"wanted whole numbers as window corners, got {wrong[0]!r}")
    if wrong := [field for field in fields[6:] if field not in ("0", "1")]:
        raise DataError(f"wanted subset flags 0 or 1, got {wrong[0]!r}")
    x1, y1, x2, y2 = map(int, fields[2:6])
    check_window((x1, y1, x2, y2))
    subset = tuple(number for number, flag in enumerate(fields[6:]) if flag == "1")
    if not subset:
        raise DataError("wanted at least one class in the subset, all flags are 0")
    image, mask = (_inside(unquote(field, errors="strict")) for field in fields[:2])
    return WindowItem(image, mask, (x1, y1, x2, y2), subset)


def _quoted(path: str) -> str:
    return "".join(quote(char) if char.isspace() or char in "%:" else char for char in _inside(path))


def _inside(path: str) -> str:
    """The path without leading slashes; DataError when it would leave the folder it starts from."""
    parts = PurePosixPath(path.lstrip("/")).parts
    inside = "/".join(parts)
    if not parts or ".." in parts or any(char in path for char in "\\\0") or PureWindowsPath(inside).drive:
        raise DataError(f"wanted a path inside the dataset folder, got {path!r}")
    return inside


def _sample(values: Sequence[int], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    """``count`` distinct values in sorted order."""
    places = np.argsort(rng.random(len(values)), kind="stable")[:count]
    return tuple(sorted(values[place] for place in places))


def _image_rng(seed: int, image_id: str) -> np.random.Generator:
    digest = hashlib.sha256(image_id.encode()).digest()[:8]
    return np.random.Generator(np.random.PCG64([seed, int.from_bytes(digest, "little")]))


def _check_counts(seed: int, windows_per_subset: int, max_subsets: int) -> None:
    for name, value, low, high in (
        ("seed", seed, 0, 2**63 - 1),
        ("windows_per_subset", windows_per_subset, 0, MAX_COUNT),
        ("max_subsets", max_subsets, 1, MAX_COUNT),
    ):
        if not low <= value <= high:
            raise DataError(f"{name}: wanted {low} to {high}, got {value}")
