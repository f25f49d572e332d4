"""Adds SBD's masks to a PASCAL VOC 2012 folder: the 10,582 training images that are known as "trainaug".

SBD (Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011) is ``benchmark.tgz``; unpacked, its folder
``benchmark_RELEASE/dataset`` holds train.txt, val.txt and ``cls/<id>.mat``, in each a struct GTcls whose field
Segmentation is the mask: 0 background, 1 to 20 VOC's classes, no void. Its images are VOC's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DataError
from ..files import write_lines
from ..images import save_mask
from .matfile import read_struct_field
from .voc import MASK_FOLDERS, VocFolder, check_same_size, checked_id, numbered_lines

SPLIT = "trainaug"
AUGMENTED, OWN = MASK_FOLDERS


class Added(NamedTuple):
    """How many images the new split has, and whose masks."""

    images: int
    voc: int
    sbd: int


def add_sbd(root: str | Path, sbd: str | Path, *, progress: bool = True) -> Added:
    """Write ``SegmentationClassAug/<id>.png`` and ``ImageSets/Segmentation/trainaug.txt`` into the VOC folder `root`.

    The split holds VOC's ``train`` and every image of SBD's two lists, without VOC's ``val``. An image of VOC's
    ``train`` keeps VOC's mask; SBD's stand in for those that VOC has none for. `sbd` is the folder of train.txt,
    val.txt and cls. Masks that are there already stay, so a run that was stopped goes on; the split appears last.
    Raises DataError: a folder of another kind, an image that VOC's folder lacks, a damaged mask or one of another size.
    """
    folder, sbd = VocFolder(root, masks=OWN), Path(sbd)
    if not all((sbd / name).exists() for name in ("train.txt", "val.txt", "cls")):
        raise DataError(f"{sbd}: wanted SBD's folder 'dataset', with train.txt, val.txt and cls")
    held_out = set(folder.ids("Segmentation/val"))
    own = folder.masked_ids("Segmentation/train")
    lists = [sbd / f"{name}.txt" for name in ("train", "val")]
    listed = {checked_id(line, str(path)) for path in lists for _, line in numbered_lines(path)}
    more = sorted(listed - held_out - set(own))
    if missing := [image_id for image_id in more if image_id not in folder]:
        raise DataError(f"{folder.root}: {len(missing)} of SBD's images are missing, the first is {missing[0]!r}")
    (folder.root / AUGMENTED).mkdir(exist_ok=True)
    for image_id in tqdm(more, desc="masks of SBD", unit="mask", disable=not progress):
        target = folder.root / AUGMENTED / f"{image_id}.png"
        if not target.exists():
            source = sbd / "cls" / f"{image_id}.mat"
            mask = read_mask(source, folder.num_classes)
            check_same_size(folder.image_size(image_id), mask, source)
            save_mask(mask, target)
    ids = sorted({*own, *more})
    write_lines(folder.root / f"ImageSets/Segmentation/{SPLIT}.txt", ids)
    return Added(len(ids), len(own), len(more))


def read_mask(path: str | Path, num_classes: int = 20) -> NDArray[np.uint8]:
    """The mask ``[H,W]`` uint8 of one of SBD's ``cls/<id>.mat``; DataError for anything else."""
    mask = read_struct_field(path, "GTcls", "Segmentation")
    if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
        raise DataError(f"{path}: wanted GTcls.Segmentation HxW uint8, got {mask.dtype} {list(mask.shape)}")
    if mask.max() > num_classes:
        raise DataError(f"{path}: wanted labels 0 to {num_classes}, got {mask.max()}")
    return np.ascontiguousarray(mask)
