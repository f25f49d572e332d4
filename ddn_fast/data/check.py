"""Whether a dataset's files can be read, before hours go into them: all that is wrong with them in one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from .. import info
from ..errors import DataError, DDNError
from ..images import load_image, load_mask
from ..threads import in_order
from .voc import VocFolder, check_same_size
from .windows import MAX_SHARE, Window, WindowItem, check_padded, visible_part

SHOWN = 10  # of what is wrong

Pair = tuple[Path, Path | None]  # an image and its mask


def pairs_of(folder: VocFolder, ids: Sequence[str], masks: bool) -> list[Pair]:
    """The files of images of a folder; with `masks` those they have, too."""
    return [(folder.image_path(name), folder.mask_path(name) if masks else None) for name in ids]


def check_files(pairs: Sequence[Pair], num_classes: int, progress: bool = True, padded: bool = True) -> None:
    """Decode every image and mask, by a thread a core; DataError names those that training could not use.

    A mask must have its image's size and labels 0 to `num_classes` and 255 (see :meth:`VocFolder.mask`). Of images that
    are trained on (`padded`) the square must not be too large, nor the windows that :func:`build_items` draws where
    there is a mask.
    """

    def check(pair: Pair) -> None:
        image, mask = pair
        size = _size(pair, num_classes)
        if padded:
            check_padded(size, 1 if mask is None else MAX_SHARE, str(image))

    _check_all(pairs, check, progress)


def check_items(root: str | Path, items: Sequence[WindowItem], num_classes: int, progress: bool = True) -> None:
    """The same for a list of windows, whose paths start at `root`: each must show some of its image."""
    windows: dict[Pair, dict[Window, None]] = {}
    for item in items:
        windows.setdefault((Path(root, item.image), Path(root, item.mask)), {})[item.window] = None

    def check(pair: Pair) -> None:
        size = _size(pair, num_classes)
        for window in windows[pair]:
            try:
                visible_part(window, size)
            except DataError as error:
                raise DataError(f"{pair[0]}: {error}") from error

    _check_all(list(windows), check, progress)


def _size(pair: Pair, num_classes: int) -> tuple[int, int]:
    """(height, width) of an image that can be read, as its mask can."""
    image, mask = pair
    height, width = load_image(image).shape[:2]
    if mask is not None:
        check_same_size((height, width), load_mask(mask, num_classes), mask)
    return height, width


def _check_all(pairs: Sequence[Pair], check: Callable[[Pair], None], progress: bool) -> None:
    def problem(pair: Pair) -> str | None:
        try:
            check(pair)
        except DDNError as error:
            return str(error)
        return None

    threads = info.cores()
    found = in_order(problem, pairs, threads=threads, ahead=4 * threads)
    with tqdm(found, total=len(pairs), desc="check", unit="image", disable=not progress, leave=False) as bar:
        wrong = [text for text in bar if text is not None]
    if wrong:
        rest = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise DataError(
            f"{len(wrong)} of {len(pairs)} images cannot be trained on: mend them, or take them out of the split: "
            f"{'; '.join(wrong[:SHOWN])}{rest}"
        )
