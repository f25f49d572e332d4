"""How good label maps and image-level scores are: mean IU from one accumulated confusion matrix, average precision."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .errors import DataError, InputError
from .images import VOID, Array, load_mask
from .segmentation import Segmenter, Source, source_name

Floats = NDArray[np.float64]


@runtime_checkable
class MaskedFolder(Protocol):
    """What :func:`evaluate` needs of a dataset folder (:class:`ddn_fast.data.voc.VocFolder` has it)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the L classes."""

    def masked_ids(self, split: str) -> tuple[str, ...]:
        """Ids of the split's images that have a mask."""

    def image_path(self, image_id: str) -> Path:
        """Where the image is."""

    def mask_path(self, image_id: str) -> Path | None:
        """Where its mask is."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of :func:`evaluate` over `images` images.

    confusion          ``[L+1,L+1]`` int64 pixel counts, truth down, prediction across, background first
    average_precision  ``[L]`` of the image-level scores, NaN for a class that no image shows
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64] = field(repr=False)
    average_precision: Floats = field(repr=False)
    images: int
    labels: str
    threshold: float

    @property
    def iu(self) -> Floats:
        """Intersection over union of background and each class, ``[L+1]``; see :func:`intersection_over_union`."""
        return intersection_over_union(self.confusion)

    @property
    def mean_iu(self) -> float:
        """Mean of :attr:`iu` over the classes that occur in truth or prediction; NaN if no pixel was counted."""
        return _mean(self.iu)

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that some image shows."""
        return _mean(self.average_precision)

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that got their label."""
        return float(np.trace(self.confusion) / total) if (total := self.confusion.sum()) else float("nan")

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes in neither truth nor prediction, left out of the mean."""
        names = ("background", *self.classes)
        return tuple(name for name, value in zip(names, self.iu, strict=True) if np.isnan(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null where there is no figure."""
        iu = [_or_none(value) for value in self.iu]
        ap = [_or_none(value) for value in self.average_precision]
        return {
            "images": self.images,
            "labels": self.labels,
            "threshold": float(self.threshold),
            "mean_iu": _or_none(self.mean_iu),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "mean_average_precision": _or_none(self.mean_average_precision),
            "iu": dict(zip(("background", *self.classes), iu, strict=True)),
            "average_precision": dict(zip(self.classes, ap, strict=True)),
            "absent": list(self.absent),
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """Figures per class as aligned text, in percent."""
        names = ("background", *self.classes, "mean")
        width = max(map(len, names))
        iu = [*self.iu, self.mean_iu]
        ap = [np.nan, *self.average_precision, self.mean_average_precision]
        lines = [f"{'':{width}}      IU      AP"]
        lines += [f"{name:{width}}  {_percent(a)}  {_percent(b)}" for name, a, b in zip(names, iu, ap, strict=True)]
        lines.append(
            f"images: {self.images}, {self.labels} labels, pixel accuracy {_percent(self.pixel_accuracy).strip()}"
        )
        if self.absent:
            lines.append(f"not counted in the mean IU, being in neither truth nor prediction: {', '.join(self.absent)}")
        return "\n".join(lines)


def confusion(truth: Array, prediction: Array, num_classes: int) -> NDArray[np.int64]:
    """Pixel counts ``[L+1,L+1]`` int64, truth down, prediction across; void pixels of the truth are not counted.

    truth and prediction are masks of one shape, L = `num_classes`. Add up the matrices of all images, then ask for
    figures. Raises DataError if the shapes differ or a label is neither 0..L nor (in the truth) void.
    """
    if truth.shape != prediction.shape:
        raise DataError(f"confusion: wanted a prediction of shape {truth.shape}, got {prediction.shape}")
    counted = truth != VOID
    rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    size = num_classes + 1
    for what, labels in (("truth", rows), ("prediction", columns)):
        if labels.size and not 0 <= labels.min() <= labels.max() < size:
            raise DataError(f"confusion: {what} wanted labels 0 to {num_classes}, got {labels.min()} to {labels.max()}")
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def intersection_over_union(matrix: NDArray[np.int64]) -> Floats:
    """IU of each class of a confusion matrix; NaN for a class in neither truth nor prediction."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def average_precision(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve as PASCAL VOC computes it since 2010; NaN without a positive.

    scores and truth ``[N]``. Precision at a recall is the best at that recall or any higher; equal scores count as
    one step, so their order does not matter.
    """
    if scores.shape != truth.shape or scores.ndim != 1:
        raise InputError(f"average_precision: wanted scores and truth [N], got {scores.shape} and {truth.shape}")
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each run of equal scores
    hits = np.cumsum(truth[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    recall = hits / hits[-1]
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))


@dataclass(frozen=True, eq=False)
class Counts:
    """What figures are made of: those of a set are its parts' put together.

    confusion  ``[L+1,L+1]`` int64 pixel counts, as in :class:`Evaluation`
    scores     ``[N,L]`` float32, image-level, of each image
    shown      ``[N,L]`` bool, whether its mask shows the class
    """

    confusion: NDArray[np.int64]
    scores: NDArray[np.float32]
    shown: NDArray[np.bool_]

    def figures(self, classes: tuple[str, ...], labels: str = "identified", threshold: float = 0.5) -> Evaluation:
        """Raises DataError where no image was counted."""
        if not len(self.scores):
            raise DataError("evaluate: wanted at least one image with a mask, got none")
        ap = np.array([average_precision(self.scores[:, k], self.shown[:, k]) for k in range(len(classes))])
        return Evaluation(classes, self.confusion, ap, len(self.scores), labels, threshold)


class _Sample(NamedTuple):
    image: Source
    mask: Array
    tags: list[int]  # class indices in the mask


def evaluate(
    model: Segmenter,
    data: MaskedFolder | Iterable[tuple[Source, Array | str | Path]],
    split: str | None = None,
    *,
    labels: Literal["identified", "truth"] = "identified",
    threshold: float = 0.5,
    batch_size: int = 8,
    progress: bool = False,
) -> Evaluation:
    """Segment every image that has a mask and compare (mean IU, pixel accuracy, average precision of the scores).

    data    a VOC folder, of which `split` is taken, or (image, mask) pairs, each a path or an array
    labels  "identified": as in use. "truth": every image is segmented into the classes its mask shows, which
            measures the segmentation network apart from the classifier

    The truth of the average precision is what the masks show. Raises DataError on an empty set, masks of another size
    or with unknown labels, and a folder with other classes; ImageError on an image that cannot be read: figures over a
    part of the images would be figures of another set.
    """
    if labels not in ("identified", "truth"):
        raise InputError(f"labels: wanted 'identified' or 'truth', got {labels!r}")
    counts = count(model, data, split, labels=labels, threshold=threshold, batch_size=batch_size, progress=progress)
    return counts.figures(model.config.classes, labels, threshold)


def count(
    model: Segmenter,
    data: MaskedFolder | Iterable[tuple[Source, Array | str | Path]],
    split: str | None = None,
    *,
    part: tuple[int, int] = (0, 1),
    labels: Literal["identified", "truth"] = "identified",
    threshold: float = 0.5,
    batch_size: int = 8,
    progress: bool = False,
) -> Counts:
    """Segment and compare, as :func:`evaluate` does; `part` (k, n) takes every n-th image from the k-th on."""
    classes = model.config.classes
    pairs = _pairs(data, split, classes)
    if part != (0, 1):
        pairs = list(itertools.islice(pairs, part[0], None, part[1]))
    waiting: deque[_Sample] = deque()  # decoded ahead and not yet compared: as many as the network holds, no more
    tags: deque[list[int]] = deque()

    def images() -> Iterator[Source]:
        for sample in _samples(pairs, len(classes)):
            waiting.append(sample)
            if labels == "truth":
                tags.append(sample.tags)
            yield sample.image

    def named() -> Iterator[list[str]]:  # asked after each image
        while tags:
            yield [classes[index] for index in tags.popleft()]

    results = model.segment_iter(
        images(),
        named() if labels == "truth" else None,
        threshold=threshold,
        batch_size=batch_size,
    )
    matrix = np.zeros((len(classes) + 1,) * 2, np.int64)
    scores: list[NDArray[np.float32]] = []
    shown: list[NDArray[np.bool_]] = []
    total = len(pairs) if isinstance(pairs, Sequence) else None
    with contextlib.closing(results):  # its threads end here, whoever keeps an error
        for result in tqdm(results, total=total, desc="evaluate", unit="image", disable=not progress):
            sample = waiting.popleft()
            if sample.mask.shape != result.mask.shape:
                raise DataError(
                    f"{source_name(sample.image)}: wanted a mask of its size {result.mask.shape}, "
                    f"got {sample.mask.shape}"
                )
            matrix += confusion(sample.mask, result.mask, len(classes))
            scores.append(result.scores)
            shown.append(np.isin(np.arange(len(classes)), sample.tags))
    rows = len(scores), len(classes)
    return Counts(matrix, np.reshape(scores, rows).astype(np.float32), np.reshape(shown, rows).astype(bool))


def _pairs(data: Any, split: str | None, classes: tuple[str, ...]) -> Iterable[tuple[Source, Array | str | Path]]:
    if not isinstance(data, MaskedFolder):
        if split is not None:
            raise InputError(f"split: wanted only with a dataset folder, got {split!r} with {type(data).__name__}")
        if not isinstance(data, Iterable) or isinstance(data, str):
            raise InputError(f"data: wanted a dataset folder or (image, mask) pairs, got {type(data).__name__}")
        return data
    if split is None:
        raise InputError("split: wanted the name of a split of the dataset folder, got None")
    if data.classes != classes:
        raise DataError(f"dataset: wanted the network's classes {list(classes)}, got {list(data.classes)}")
    return [(data.image_path(name), mask) for name in data.masked_ids(split) if (mask := data.mask_path(name))]


def _samples(pairs: Iterable[tuple[Source, Array | str | Path]], num_classes: int) -> Iterator[_Sample]:
    for pair in pairs:
        try:
            image, mask = pair
        except (TypeError, ValueError):
            raise InputError(f"data: wanted (image, mask) pairs, got {type(pair).__name__} among them") from None
        array = load_mask(mask, num_classes) if isinstance(mask, str | os.PathLike) else mask
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 2:
            got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(f"{source_name(image)}: wanted a mask HxW uint8, got {got}")
        present = np.flatnonzero(np.bincount(array.ravel(), minlength=256))
        tags = [int(label) - 1 for label in present if label not in (0, VOID)]
        if tags and tags[-1] >= num_classes:
            raise DataError(f"{source_name(image)}: wanted labels 0 to {num_classes} and {VOID}, got {tags[-1] + 1}")
        yield _Sample(image, array, tags)


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(value: float) -> str:
    return "     -" if np.isnan(value) else f"{100 * value:6.2f}"
