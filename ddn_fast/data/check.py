"""Whether a dataset's files can be read, before hours go into them: all that is wrong with them in one error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from .. import info
from ..errors import DataError, DDNError
from ..images import load_image, load_mask
from ..threads import in_order
from .voc import VocFolder, check_same_size

SHOWN = 10  # of what is wrong

Pair = tuple[Path, Path | None]  # an image and its mask


def pairs_of(folder: VocFolder, ids: Sequence[str], masks: bool) -> list[Pair]:
    """The files of images of a folder; with `masks` those they have, too."""
    return [(folder.image_path(name), folder.mask_path(name) if masks else None) for name in ids]


def check_files(pairs: Sequence[Pair], num_classes: int, progress: bool = True) -> None:
    """Decode every image and mask, by a thread a core; DataError names those that training could not read.

    A mask must have its image's size and labels 0 to `num_classes` and 255 (see :meth:`VocFolder.mask`).
    """

    def problem(pair: Pair) -> str | None:
        image, mask = pair
        try:
            size = load_image(image).shape[:2]
            if mask is not None:
                check_same_size(size, load_mask(mask, num_classes), mask)
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
