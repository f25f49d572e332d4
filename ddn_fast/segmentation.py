"""Images in, label maps out: inference as SPEC section 7 has it, for every network that can score images and passes.

    image -> network_input -> scores -> plan_passes -> score_passes -> merge_scores -> Segmentation

Threads of their own decode images ahead, passes run in bounded groups, results come in order: neither a million
images nor twenty labels in one of them need more memory than a handful. Where a device works on its own, the next
batch is encoded while the scores of this one are read, and label maps are waited for when the next passes are on their
way.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import reference
from .config import NetConfig
from .drawing import overlay
from .errors import ImageError, InputError, NumericsError
from .images import Array, as_image, kind_of, save_mask
from .labels import Labels, pair_labels
from .plan import Passes, even_slices, identify, passes_of, plan_passes
from .runtime import Runtime
from .threads import in_order

Source = str | Path | NDArray[Any]

MAX_PASSES = 16  # how many passes run through the decoder together, where the runtime names no other number


class Label(NamedTuple):
    """A class that an image was segmented into."""

    name: str
    score: float  # image-level, 0..1


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What :meth:`Segmenter.segment` found in one image.

    mask    ``[H,W]`` uint8 at the image's own size: 0 background, ``l + 1`` for ``classes[l]``
    labels  the classes it was segmented into, ascending by index
    scores  ``[L]`` float32, image-level scores of all classes
    error   why there is no result (mask empty or all background, scores NaN), when asked to go on after a bad image
    """

    source: Source = field(repr=False)
    mask: Array = field(repr=False)
    labels: tuple[Label, ...]
    scores: NDArray[np.float32] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    error: ImageError | NumericsError | None = None

    def save_png(self, path: str | Path) -> None:
        """Write the mask as a PNG with the VOC palette; whole or not at all."""
        self._raise()
        save_mask(self.mask, path)

    def overlay(self, legend: bool = True) -> Array:
        """The image, ``[H,W,3]`` uint8 RGB, with the mask in translucent colours, outlines, and names and scores.

        A path is read again for it. Raises ImageError if it has changed its size or is gone.
        """
        self._raise()
        image = as_image(self.source)
        if image.shape[:2] != self.mask.shape:
            raise ImageError(
                f"{source_name(self.source)}: wanted the size {self.mask.shape} of its mask, got {image.shape[:2]}"
            )
        index = {name: label for label, name in enumerate(self.classes, 1)}
        entries = [(index[label.name], f"{label.name} {label.score:.2f}") for label in self.labels]
        return overlay(image, self.mask, entries if legend else [])

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


class _Item(NamedTuple):
    """One decoded image on its way to the network, or why it is not."""

    source: Source
    chosen: list[int] | None  # class indices the caller named
    size: tuple[int, int]  # height, width
    x: Tensor | None  # [3,S,S] float32, bfloat16 or float16
    error: ImageError | NumericsError | None


class Inputs(NamedTuple):
    """A batch for :meth:`Segmenter.run`."""

    x: Tensor  # [B,3,S,S], of network_input; on the host or the network's device
    sizes: Sequence[tuple[int, int]]  # height and width of each image
    chosen: Sequence[list[int] | None]  # of each: class indices to segment it into; None: those identified


class Labelled(NamedTuple):
    """What came of one image of a batch."""

    classes: tuple[int, ...]  # class indices it was segmented into, ascending
    scores: Tensor  # [L], image-level scores of all classes
    label_map: Tensor | None  # [H,W] uint8, 0 background, k the k-th of `classes`; None: the network gave NaN


class _Started(NamedTuple):
    """A batch whose scores are on their way to the host."""

    inputs: Inputs
    state: Any
    scores: Callable[[], list[Tensor]]


class _Launched(NamedTuple):
    """A batch whose label maps are."""

    passes: Passes
    sizes: Sequence[tuple[int, int]]
    scores: Tensor
    failed: Tensor  # [B] bool: scores that are no numbers
    results: Callable[[], list[Tensor]]  # [P] bool: passes with NaN; then the maps of images that have passes


Kind = TypeVar("Kind")


class Segmenter:
    """Mixin for a network that can score images and passes; gives it :meth:`segment`."""

    config: NetConfig
    ops: Any = reference  # or the compiled ones
    runtime: Runtime = Runtime()

    def network_input(self, image: Source) -> Tensor:
        """The network's input ``[3,S,S]`` float32, on the host, of one image (SPEC section 1).

        image: a path or an HxWx3 uint8 RGB array. Raises ImageError as :func:`ddn_fast.images.as_image` does.
        """
        return self._input_of(as_image(image), torch.float32)

    def _input_of(self, image: Array, dtype: torch.dtype) -> Tensor:
        # torch would refuse it (numpy calls a row contiguous whose stride is negative), or warn
        if not (image.flags.c_contiguous and image.flags.writeable) or min(image.strides) < 0:
            image = image.copy()
        return self.ops.network_input(torch.from_numpy(image), self.config.side, dtype)

    def input_like(self) -> Tensor:
        """A tensor whose device and dtype the network's input must have."""
        raise NotImplementedError

    def image_dtype(self) -> torch.dtype:
        """What :meth:`segment` prepares images in, by many threads: half of float32 where the network takes that."""
        wanted = self.input_like().dtype
        return wanted if wanted in (torch.bfloat16, torch.float16) else torch.float32

    def score_images(self, x: Tensor) -> tuple[Tensor, Any]:
        """Image-level scores ``[B,L]`` of x ``[B,3,S,S]``, and whatever :meth:`score_passes` needs of this batch."""
        raise NotImplementedError

    def score_passes(self, state: Any, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """Foreground minus background seg-score ``[P,S,S]`` for labels ``[P,L]``, image_of_pass ``[P]``."""
        raise NotImplementedError

    def merge_scores(self, difference: Tensor, classes: int, square: int, crop: tuple[int, int]) -> Tensor:
        """Label map of one image from its passes, as :func:`ddn_fast.reference.merge_scores` has it."""
        return reference.merge_scores(difference, classes, square, list(crop))

    def inferring(self) -> AbstractContextManager[None]:
        """What :meth:`segment` runs a batch in: a network that has an eval mode is in it inside."""
        return contextlib.nullcontext()

    def segment(
        self,
        images: Source | Iterable[Source],
        labels: Labels = None,
        *,
        threshold: float = 0.5,
        batch_size: int = 8,
        on_error: Literal["raise", "keep"] = "raise",
    ) -> list[Segmentation]:
        """Segment images (SPEC section 7); returns one :class:`Segmentation` each, in order.

        images      paths or HxWx3 uint8 RGB arrays; a single one is taken as a list of one
        labels      None: the identified classes (score above `threshold`). Class names: these instead, for every
                    image. One list of names (or None) per image: these for it; an empty list finds background only
        batch_size  images that run through the encoder together
        on_error    what a bad image does: "raise" its ImageError, or "keep" it in ``Segmentation.error`` and go on

        Raises InputError on unknown class names and other wrong arguments, ImageError on bad images, NumericsError if
        the network returns NaN.
        """
        return list(self.segment_iter(images, labels, threshold=threshold, batch_size=batch_size, on_error=on_error))

    def segment_iter(
        self,
        images: Source | Iterable[Source],
        labels: Labels = None,
        *,
        threshold: float = 0.5,
        batch_size: int = 8,
        on_error: Literal["raise", "keep"] = "raise",
    ) -> Generator[Segmentation, None, None]:
        """:meth:`segment` as a stream: holds a few batches however many images there are."""
        if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
            raise InputError(f"threshold: wanted a number from 0 to 1, got {threshold!r}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
            raise InputError(f"batch_size: wanted a whole number from 1, got {batch_size!r}")
        if on_error not in ("raise", "keep"):
            raise InputError(f"on_error: wanted 'raise' or 'keep', got {on_error!r}")
        if _is_one_image(images):
            images = [images]
        elif not isinstance(images, Iterable) or isinstance(images, bytes | bytearray | io.IOBase):
            raise InputError(f"images: wanted paths or HxWx3 uint8 arrays, got {kind_of(images)}")
        pairs = pair_labels(images, labels, self.config.classes)
        return self._segment_pairs(pairs, float(threshold), int(batch_size), on_error == "keep")

    def run(self, batches: Iterable[Inputs], threshold: float = 0.5) -> Iterator[list[Labelled]]:
        """Label maps of batches that are tensors already; what :meth:`segment` does between decoding and results.

        One list a batch, in order, on the host. How many batches are begun before the first list comes is the
        runtime's: a stream, not an answer to each.
        """
        ahead = self.runtime.ahead
        started = _behind((self._start(inputs) for inputs in batches), ahead)
        launched = _behind((self._launch(batch, threshold) for batch in started), ahead)
        return (self._collect(batch) for batch in launched)

    def _segment_pairs(
        self, pairs: Iterator[tuple[Source, list[int] | None]], threshold: float, batch_size: int, keep: bool
    ) -> Generator[Segmentation, None, None]:
        items = in_order(self._decode, pairs, threads=self.runtime.host_threads, ahead=2 * batch_size)
        waiting: deque[list[_Item]] = deque()  # batches whose results are not there yet

        def inputs() -> Iterator[Inputs]:
            while batch := list(itertools.islice(items, batch_size)):
                waiting.append(batch)
                good = [item for item in batch if item.x is not None]
                sizes, chosen = [item.size for item in good], [item.chosen for item in good]
                x = [item.x for item in good if item.x is not None]
                empty = torch.empty(0, 3, self.config.side, self.config.side, device="cpu")
                yield Inputs(self.runtime.stack(x) if x else empty, sizes, chosen)

        with contextlib.closing(items):
            for found in self.run(inputs(), threshold):
                results = iter(found)
                for item in waiting.popleft():
                    result = self._failed(item) if item.x is None else self._result(item, next(results))
                    if result.error is not None and not keep:
                        raise result.error
                    yield result

    def _decode(self, pair: tuple[Source, list[int] | None]) -> _Item:
        source, chosen = pair
        try:
            image = as_image(source)
            x = self._input_of(image, self.image_dtype())
            return _Item(source, chosen, (image.shape[0], image.shape[1]), x, None)
        except ImageError as error:
            return _Item(source, chosen, (0, 0), None, error)

    def _start(self, inputs: Inputs) -> _Started:
        with torch.inference_mode(), self.inferring():
            if not len(inputs.x):  # not one image of the batch could be read
                return _Started(inputs, None, lambda: [torch.empty(0, self.config.num_classes, device="cpu")])
            scores, state = self.score_images(self.runtime.put(inputs.x, self.input_like()))
            return _Started(inputs, state, self.runtime.fetch([at_least_float32(scores)]))

    def _launch(self, batch: _Started, threshold: float) -> _Launched:
        (scores,) = batch.scores()
        with torch.inference_mode(), self.inferring():
            failed = ~torch.isfinite(scores).all(1)
            named = zip(batch.inputs.chosen, identify(scores, threshold), strict=True)
            chosen = [found if names is None else names for names, found in named]
            passes = plan_passes(scores, [[] if bad else names for bad, names in zip(failed, chosen, strict=True)])
            maps = self._label_maps(batch.state, passes, batch.inputs.sizes)
            return _Launched(passes, batch.inputs.sizes, scores, failed, self.runtime.fetch(maps))

    def _label_maps(self, state: Any, passes: Passes, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Which passes are NaN, ``[P]`` bool, and of each image that has passes its map of 0..K ``[H,W]`` uint8."""
        nan: list[Tensor] = []
        step = self.runtime.max_passes or MAX_PASSES

        def chunks() -> Iterator[Tensor]:
            for part in even_slices(len(passes), step):
                difference = self.score_passes(state, passes.labels[part], passes.image_of_pass[part])
                nan.append(difference.isnan().flatten(1).any(1))
                yield at_least_float32(difference)

        planes = _Planes(chunks())
        maps = [
            self.merge_scores(planes.take(count), len(classes), max(size), size)
            for size, classes, count in zip(sizes, passes.classes, passes.counts(), strict=True)
            if count
        ]
        return [torch.cat(nan) if nan else torch.zeros(0, dtype=torch.bool, device="cpu"), *maps]

    def _collect(self, batch: _Launched) -> list[Labelled]:
        nan, *maps = batch.results()
        of_pass, of_image = iter(nan.tolist()), iter(maps)
        found = []
        for classes, size, scores, failed in zip(
            batch.passes.classes, batch.sizes, batch.scores, batch.failed.tolist(), strict=True
        ):
            bad = any([failed, *itertools.islice(of_pass, passes_of(len(classes)))])
            label_map = next(of_image) if classes else torch.zeros(size, dtype=torch.uint8, device="cpu")
            found.append(Labelled(classes, scores, None if bad else label_map))
        return found

    def _result(self, item: _Item, found: Labelled) -> Segmentation:
        if found.label_map is None:
            error = NumericsError(
                f"{source_name(item.source)}: the network's scores are not finite: check weights and dtype"
            )
            return self._failed(item._replace(error=error))
        names = self.config.classes
        lookup = np.zeros(256, np.uint8)
        lookup[1 : 1 + len(found.classes)] = [index + 1 for index in found.classes]
        labels = tuple(Label(names[index], float(found.scores[index])) for index in found.classes)
        scores = found.scores.numpy().astype(np.float32)
        mask = np.asarray(cv2.LUT(found.label_map.numpy(), lookup), np.uint8)
        return Segmentation(item.source, mask, labels, scores, names)

    def _failed(self, item: _Item) -> Segmentation:
        scores = np.full(self.config.num_classes, np.nan, np.float32)
        mask = np.zeros(item.size, np.uint8)
        return Segmentation(item.source, mask, (), scores, self.config.classes, item.error)


def _behind(items: Iterator[Kind], count: int) -> Iterator[Kind]:
    """The items in order, each when `count` more have been drawn, the last ones when there are no more."""
    waiting: deque[Kind] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


class _Planes:
    """Planes that come in chunks ``[N,S,S]`` and are taken by image: copied only where one's lie in two chunks."""

    def __init__(self, chunks: Iterator[Tensor]) -> None:
        self._chunks = chunks
        self._rest: Tensor | None = None

    def take(self, count: int) -> Tensor:
        """The next `count` planes, ``[count,S,S]``."""
        parts: list[Tensor] = []
        while count:
            chunk = next(self._chunks) if self._rest is None else self._rest
            parts.append(chunk[:count])
            self._rest = chunk[count:] if len(chunk) > count else None
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64; any shape."""
    return x if x.dtype == torch.float64 else x.float()


def _is_one_image(images: Any) -> bool:
    return isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim < 4)


def source_name(source: Any) -> str:
    """What messages call an image: its path, or "image" for an array."""
    return str(source) if isinstance(source, str | os.PathLike) else "image"
