"""Seeded choice of the few images whose masks stage 2 may use: k for each class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .tags import PRESENT, tags_from_masks
from .voc import VocFolder


def few_masks(
    folder: VocFolder,
    split: str,
    k: int,
    seed: int = 0,
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> list[str]:
    """Sorted ids of a split's masked images, k for each class (paper, section 5: 25 for each of 20 is 500 images).

    The choice is :func:`choose_few` on the labels found in the masks. Raises DataError when no image has a mask.
    """
    masked = folder.masked_ids(split)
    tags = tags_from_masks(folder, masked, cache_dir=cache_dir, progress=progress)
    return _choose(tags, folder.classes, k, seed)


def choose_few(tags: Mapping[str, NDArray[np.int8]], classes: Sequence[str], k: int, seed: int = 0) -> list[str]:
    """Sorted ids, k chosen for each class, from ``{id: [L] int8}`` tags.

    The classes are served one after the other, the rarest first (fewest images; on a tie the lower index). A class
    takes the first k images, in a seeded order of its own, that no class before it has taken. So an image counts only
    for the class it was taken for, no image is taken twice, and k * L are taken in all. A class with fewer than k
    images left takes them all; one warning names these classes. The choice depends on the ids and the seed, not on the
    order of ``tags``.
    """
    return _choose(tags, classes, k, seed)


def _choose(tags: Mapping[str, NDArray[np.int8]], classes: Sequence[str], k: int, seed: int) -> list[str]:
    if k < 1:
        raise DataError(f"k: wanted at least 1 image for each class, got {k}")
    if seed < 0:
        raise DataError(f"seed: wanted at least 0, got {seed}")
    holders = [
        sorted(image_id for image_id, vector in tags.items() if vector[number] == PRESENT)
        for number in range(len(classes))
    ]
    taken: set[str] = set()
    short: list[str] = []
    for number in sorted(range(len(classes)), key=lambda number: (len(holders[number]), number)):
        # Ranks from raw doubles: numpy may change the algorithm of shuffle and choice between versions.
        ranks = np.random.Generator(np.random.PCG64([seed, number])).random(len(holders[number]))
        order = [holders[number][place] for place in np.argsort(ranks, kind="stable")]
        chosen = [image_id for image_id in order if image_id not in taken][:k]
        taken.update(chosen)
        if len(chosen) < k:
            short.append(f"{classes[number]!r} {len(chosen)} (of {len(holders[number])} that hold it)")
    if short:
        warnings.warn(
            f"wanted {k} masked images for each class, took all that were left for {', '.join(short)}", stacklevel=3
        )
    if not taken:
        raise DataError("no masked image holds any class: of labels, 0 is background, 255 void, 1 the first class")
    return sorted(taken)
