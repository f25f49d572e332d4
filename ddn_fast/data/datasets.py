"""Map-style datasets in which item n is the n-th sample of the whole training run.

A sample is a function of (seed, n) alone, whatever the number of workers, so a run resumes at any n bit for bit:
``DataLoader(items, sampler=range(start, len(items)), ...)``. An epoch is a seeded permutation of the items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from .. import distributed
from ..config import TRAIN_MEAN_BGR
from ..errors import DataError, ImageError, InputError
from ..images import load_image, load_mask
from .items import NEW_SIDE, classification_item, jittered_window, random_offset, segmentation_item
from .voc import VocFolder, check_same_size
from .windows import WindowItem

_ORDER, _SAMPLE = 0, 1  # separate random streams of one seed


class ImageStore:
    """Decoded images and masks of a folder, kept in memory while they fit into ``max_bytes``.

    Files are kept in the order they come until the bound is reached, and none is dropped again: with a permutation
    each epoch that keeps as large a share of hits as any rule. Every worker process has a store, and a bound, of its
    own; pickling leaves the content behind. Arrays are read-only.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._kept: dict[Path, NDArray[np.uint8]] = {}
        self._bytes = 0

    def image(self, path: Path) -> NDArray[np.uint8]:
        """HxWx3 uint8 RGB; raises ImageError."""
        return self._get(path, None)

    def mask(self, path: Path, num_classes: int) -> NDArray[np.uint8]:
        """HxW uint8; raises DataError."""
        return self._get(path, num_classes)

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "_kept": {}, "_bytes": 0}

    def _get(self, path: Path, num_classes: int | None) -> NDArray[np.uint8]:
        if (kept := self._kept.get(path)) is not None:
            return kept
        array = load_image(path) if num_classes is None else load_mask(path, classes=num_classes)
        array.flags.writeable = False
        if self._bytes + array.nbytes <= self.max_bytes:
            self._kept[path] = array
            self._bytes += array.nbytes
        return array


def cache_bytes_of_each(gigabytes: float, workers: int) -> int:
    """What each store may keep where all of this machine's together keep `gigabytes`; `workers` per process, 0: itself.

    Raises InputError unless it is 0 or more.
    """
    if not 0 <= gigabytes < math.inf:
        raise InputError(f"cache: wanted 0 gigabytes or more, got {gigabytes}")
    return int(gigabytes * 2**30 / (max(1, workers) * distributed.local_size()))


class _RunItems(Dataset[dict[str, Tensor]]):
    """What both datasets share: which item sample n is, and its random numbers."""

    def __init__(
        self,
        count: int,
        *,
        samples: int | None,
        seed: int,
        new_side: int,
        side: int,
        mean: Sequence[float],
        augment: bool,
        shuffle: bool,
        cache_bytes: int,
    ) -> None:
        if count < 1:
            raise DataError("items: wanted at least one, got none")
        if seed < 0:
            raise DataError(f"seed: wanted at least 0, got {seed}")
        if not 1 <= side <= new_side:
            raise DataError(f"side, new_side: wanted 1 <= side <= new_side, got {side}, {new_side}")
        if samples is not None and samples < 1:
            raise DataError(f"samples: wanted at least 1, got {samples}")
        self.count, self.samples = count, count if samples is None else samples
        self.seed, self.new_side, self.side, self.mean = seed, new_side, side, tuple(mean)
        self.augment, self.shuffle = augment, shuffle
        self.store = ImageStore(cache_bytes)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Samples of the whole run; one epoch when ``samples`` was not given."""
        return self.samples

    def item_index(self, n: int) -> int:
        """Index of the item that sample ``n`` shows."""
        if not 0 <= n < self.samples:
            raise IndexError(f"sample: wanted 0 to {self.samples - 1}, got {n}")
        epoch, place = divmod(n, self.count)
        if not self.shuffle:
            return place
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a loader that works ahead needs two epochs at once
                del self._orders[min(self._orders)]
            self._orders[epoch] = self._rng(_ORDER, epoch).permutation(self.count)
        return int(self._orders[epoch][place])

    def _rng(self, stream: int, n: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, stream, n]))

    def _random_crop(self, rng: np.random.Generator) -> dict[str, Any]:
        if not self.augment:
            return {}
        return {"offset": random_offset(rng, self.new_side, self.side), "mirror": bool(rng.integers(2))}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}


class SegmentationItems(_RunItems):
    """Stage-2 samples.

    Sample n is a dict of ``data`` float32 [3,side,side] (BGR minus the mean), ``target`` uint8 [side,side] (0, 1, 255),
    ``subset`` float32 [L] (0, 1) and ``index`` int64 [] (of the item). See :func:`segmentation_item`.

    root         the dataset folder that the items' paths start from
    items        from :func:`build_items` or :func:`read_list`
    num_classes  L
    samples      length of the run; default one epoch
    augment      random crop and mirror; otherwise the centre
    shuffle      a new order each epoch; otherwise that of ``items``
    cache_bytes  bound of the decoded images and masks kept in memory, in each worker

    A file that cannot be used raises DataError naming it: training never passes over data in silence.
    """

    def __init__(
        self,
        root: str | Path,
        items: Sequence[WindowItem],
        num_classes: int,
        *,
        samples: int | None = None,
        seed: int = 0,
        new_side: int = NEW_SIDE,
        side: int = 320,
        mean: Sequence[float] = TRAIN_MEAN_BGR,
        augment: bool = True,
        shuffle: bool = True,
        cache_bytes: int = 0,
    ) -> None:
        super().__init__(
            len(items),
            samples=samples,
            seed=seed,
            new_side=new_side,
            side=side,
            mean=mean,
            augment=augment,
            shuffle=shuffle,
            cache_bytes=cache_bytes,
        )
        for number, item in enumerate(items):
            if not all(0 <= label < num_classes for label in item.subset):
                raise DataError(f"item {number}: wanted classes 0 to {num_classes - 1}, got {item.subset}")
        self.root, self.items, self.num_classes = Path(root), items, num_classes

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        index = self.item_index(n)
        item = self.items[index]
        _one_thread_in_workers()
        image_path, mask_path = self.root / item.image, self.root / item.mask
        try:
            image = self.store.image(image_path)
            mask = self.store.mask(mask_path, self.num_classes)
            check_same_size(image.shape[:2], mask, mask_path)
            subset = item.subset_vector(self.num_classes)
            data, target = segmentation_item(
                image,
                mask,
                item.window,
                subset,
                new_side=self.new_side,
                side=self.side,
                mean=self.mean,
                **self._random_crop(self._rng(_SAMPLE, n)),
            )
        except (DataError, ImageError) as error:
            raise DataError(f"sample {n}, item {index} ({image_path}): {error}") from error
        return {
            "data": torch.from_numpy(data),
            "target": torch.from_numpy(target),
            "subset": torch.from_numpy(subset.astype(np.float32)),
            "index": torch.tensor(index),
        }


class ClassificationItems(_RunItems):
    """Stage-1 samples.

    Sample n is a dict of ``data`` float32 [3,side,side] (BGR minus the mean), ``labels`` int8 [L] (1 present, 0 absent,
    -1 unknown) and ``index`` int64 [] (into ``ids``). See :func:`classification_item`.

    ids          images of ``folder``
    tags         from :func:`read_tags`; must hold every id
    scale        range of a random window's side, of the padded square's; (1, 1) takes the whole square
    max_aspect   largest random stretch of that window; 1 for none

    The rest as in :class:`SegmentationItems`.
    """

    def __init__(
        self,
        folder: VocFolder,
        ids: Sequence[str],
        tags: Mapping[str, NDArray[np.int8]],
        *,
        samples: int | None = None,
        seed: int = 0,
        new_side: int = NEW_SIDE,
        side: int = 320,
        mean: Sequence[float] = TRAIN_MEAN_BGR,
        augment: bool = True,
        shuffle: bool = True,
        scale: tuple[float, float] = (1.0, 1.0),
        max_aspect: float = 1.0,
        cache_bytes: int = 0,
    ) -> None:
        super().__init__(
            len(ids),
            samples=samples,
            seed=seed,
            new_side=new_side,
            side=side,
            mean=mean,
            augment=augment,
            shuffle=shuffle,
            cache_bytes=cache_bytes,
        )
        if not 0.05 <= scale[0] <= scale[1] <= 2 or not 1 <= max_aspect <= 4:
            raise DataError(f"scale, max_aspect: wanted 0.05 <= low <= high <= 2 and 1 to 4, got {scale}, {max_aspect}")
        if missing := [image_id for image_id in ids if image_id not in tags]:
            raise DataError(f"tags: {len(missing)} of {len(ids)} images have none, the first is {missing[0]!r}")
        self.paths = [folder.image_path(image_id) for image_id in ids]
        self.labels = np.stack([tags[image_id] for image_id in ids])  # [N,L] int8
        if self.labels.shape != (len(ids), folder.num_classes):
            raise DataError(f"tags: wanted {folder.num_classes} for each image, got {self.labels.shape[1:]}")
        self.scale, self.max_aspect = scale, max_aspect

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        index = self.item_index(n)
        _one_thread_in_workers()
        try:
            image = self.store.image(self.paths[index])
            rng = self._rng(_SAMPLE, n)
            jitters = self.augment and (self.scale != (1.0, 1.0) or self.max_aspect != 1.0)
            height, width = image.shape[:2]
            window = jittered_window((height, width), rng, self.scale, self.max_aspect) if jitters else None
            data = classification_item(
                image,
                new_side=self.new_side,
                side=self.side,
                mean=self.mean,
                window=window,
                **self._random_crop(rng),
            )
        except (DataError, ImageError) as error:
            raise DataError(f"sample {n}, item {index} ({self.paths[index]}): {error}") from error
        return {
            "data": torch.from_numpy(data),
            "labels": torch.from_numpy(self.labels[index].copy()),
            "index": torch.tensor(index),
        }


def _one_thread_in_workers() -> None:
    """A loader's worker is one of many: OpenCV's own threads would only compete."""
    if get_worker_info() is not None and cv2.getNumThreads() > 1:
        cv2.setNumThreads(
            0
        )  # not 1: that joins the pool's threads, which a forked worker has not got, and waits forever
