"""The drop-in for inference: a trained network folded and packed once, run by the fused ops.

    x -> encoder stages (+ switches) -> windows of pool5 -> fc6 -> fc7 -> class scores
      -> per image: half of fc6-seg; per (image, label): gate, the other half -> their sum, per pass
      -> fc7-seg -> fc6-deconv -> decoder stages -> foreground minus background

Numbers in brackets below are identities of SPEC section 9. B images, L classes, P passes, S x S input, M x M the pool5
map, G x G the class grid, k = fc_kernel, C5 = widths[4].
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import info
from .errors import InputError
from .folding import fold
from .image_part import Encoded, ImagePart
from .network import DecoupledNet, check_passes
from .segmentation import Segmenter


class Batch:
    """A batch between :meth:`FastDecoupledNet.score_images` and its passes; for one thread at a time.

    Halves of fc6-seg before its ReLU (3), ``[G*G*bridge]`` each, computed when a pass first needs them.
    """

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded
        self.of_image: dict[int, Tensor] = {}
        self.of_class: dict[tuple[int, int], Tensor] = {}  # by image and label, for y = 1


class FastDecoupledNet(Segmenter):
    """A trained network, for inference: :meth:`segment`, :meth:`classify` and :meth:`fast`, with its own weights.

    model  on the CPU; it is not changed, and changes of it later do not reach the engine. Batch normalisation acts as
           in eval mode
    dtype  of weights and maps. torch.bfloat16 (the default) for speed; torch.float32 for the labels of the plain
           network, but where two scores, or two values of a pooling window, tie within float32's rounding;
           torch.float64 where `ops` takes it (the plain formulas do)
    ops    where the ops come from: :mod:`ddn_fast.ops` (compiled, the default) or :mod:`ddn_fast.reference`

    Images are float32 ``[B,3,S,S]`` (float64 in a float64 engine), in any memory format. No gradient flows. The engine
    is never written to after it is built: any number of threads may use one. Raises InputError on a network that is no
    DecoupledNet or not on the CPU and on other dtypes, NumericsError on weights that are NaN or infinite, ImportError
    where the compiled ops are wanted and were not built.

    :meth:`encode` and :meth:`decode` compile with ``torch.compile(fullgraph=True)``. Between them, which halves of
    fc6-seg to compute depends on values of `labels`: :meth:`fast` and :meth:`score_passes` break the graph there.
    """

    def __init__(self, model: DecoupledNet, dtype: torch.dtype | None = None, ops: Any = None) -> None:
        if not isinstance(model, DecoupledNet):
            raise InputError(f"model: wanted a DecoupledNet, got {type(model).__name__}")
        if elsewhere := {p.device.type for p in model.parameters()} - {"cpu"}:
            raise InputError(
                f"model: wanted a network on the CPU, got {', '.join(sorted(elsewhere))}: the engine does not run "
                "there yet; the plain network does (fast=False, --no-fast)"
            )
        if min(model.config.widths) < 4:  # fewer are laid out as an image is, and no image is unpooled
            raise InputError(
                f"model: wanted at least 4 channels in every stage, got widths {model.config.widths}; "
                "the plain network takes fewer (fast=False, --no-fast)"
            )
        dtype = torch.bfloat16 if dtype is None else dtype
        if dtype not in (torch.bfloat16, torch.float32, torch.float64):
            raise InputError(f"dtype: wanted torch.bfloat16 or torch.float32, got {dtype!r}")
        if dtype == torch.float64 and ops is None:
            raise InputError("dtype: wanted torch.bfloat16 or torch.float32 with the compiled ops, got torch.float64")
        self.config = model.config
        self.dtype = dtype
        self.ops = importlib.import_module("ddn_fast.ops") if ops is None else ops
        self.isa = info.cpu_isa() or "plain"
        self._weights = fold(model, dtype, self.isa)
        self._images = ImagePart(model.config, self._weights.image_part, dtype, self.ops)

    def __deepcopy__(self, memo: dict[int, Any]) -> FastDecoupledNet:
        return self  # never written to: one serves all

    def __repr__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"FastDecoupledNet({name}, {self.isa}, side {self.config.side}, {self.config.num_classes} classes)"

    def classify(self, x: Tensor) -> Tensor:
        """Image-level scores ``[B,L]`` in 0..1 of x ``[B,3,S,S]`` (section 3); InputError on another x."""
        return self.encode(x).scores

    def fast(self, x: Tensor, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """Probability of foreground ``[P,S,S]``, one map per pass (5), float32 at least.

        x ``[B,3,S,S]``; labels ``[P,L]``, the y of section 4; image_of_pass ``[P]`` integers. All passes run together:
        memory grows with P. Raises InputError on other shapes, dtypes or devices.
        """
        return torch.sigmoid(self.score_passes(Batch(self.encode(x)), labels, image_of_pass))

    # --- what Segmenter.segment needs ---

    def input_like(self) -> Tensor:
        """An empty tensor of the input's dtype."""
        return self._images.input_like()

    def merge_scores(self, difference: Tensor, classes: int, square: int, crop: tuple[int, int]) -> Tensor:
        """Label map of one image from its passes, by `ops`."""
        return self.ops.merge_scores(difference, classes, square, list(crop))

    def score_images(self, x: Tensor) -> tuple[Tensor, Batch]:
        """Scores ``[B,L]`` and what :meth:`score_passes` needs of this batch."""
        encoded = self.encode(x)
        return encoded.scores, Batch(encoded)

    @torch.no_grad()
    def score_passes(self, state: Batch, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """Foreground minus background seg-score ``[P,S,S]`` for labels ``[P,L]``, image_of_pass ``[P]``.

        Called again with the same `state`, it computes only what no earlier pass needed.
        """
        check_passes(labels, image_of_pass, self.config, len(state.encoded.windows))
        images = image_of_pass.tolist()
        if not images:
            return self.input_like().new_empty(0, self.config.side, self.config.side)
        y = labels.to(self.input_like())
        terms = [(p, (images[p], label), y[p, label].item()) for p, label in y.nonzero().tolist()]
        self._add_image_halves(state, images)
        self._add_class_halves(state, [pair for _, pair, _ in terms])
        fc6_seg = torch.stack([state.of_image[image] for image in images])
        for p, pair, weight in terms:
            fc6_seg[p].add_(state.of_class[pair], alpha=weight)
        return self.decode(fc6_seg, state.encoded.switches, image_of_pass.to("cpu", torch.int64))

    # --- the parts ---

    def encode(self, x: Tensor) -> Encoded:
        """The part that runs once per image: x ``[B,3,S,S]``; InputError on another x."""
        return self._images.encode(x)

    @torch.no_grad()
    def decode(self, fc6_seg: Tensor, switches: Sequence[Tensor], image_of_pass: Tensor) -> Tensor:
        """The part that runs once per pass: fc6-seg before its ReLU ``[P,G*G*bridge]`` to the difference ``[P,S,S]``.

        switches of pool1..pool5, image_of_pass ``[P]`` int64.
        """
        ops, weights, grid, kernel = self.ops, self._weights, self.config.grid, self.config.fc_kernel
        x = ops.dense(F.relu(fc6_seg).view(-1, self.config.bridge), *weights.bridge.fc7_seg, relu=True)
        columns = ops.dense(x, weights.bridge.fc6_deconv.weight).view(len(fc6_seg), grid, grid, kernel, kernel, -1)
        x = F.relu(overlap_add(columns).add_(weights.bridge.fc6_deconv.bias)).to(self.dtype).permute(0, 3, 1, 2)
        *stages, last = zip(weights.decoder, reversed(switches), strict=True)
        for stage, switch in stages:
            x = ops.conv3x3(x, stage.weights, stage.biases, switch, image_of_pass)
        stage, switch = last
        score = weights.score_weight, weights.score_bias
        return ops.conv3x3_score(x, stage.weights, stage.biases, *score, switch, image_of_pass)

    def _add_image_halves(self, state: Batch, images: list[int]) -> None:
        """What pool5 gives of fc6-seg, for the images that `state` has not got yet."""
        if missing := sorted(set(images) - state.of_image.keys()):
            windows = state.encoded.windows[missing].flatten(0, 1)
            halves = self.ops.dense(windows, *self._weights.bridge.fc6_seg_image).view(len(missing), -1)
            state.of_image.update(zip(missing, halves, strict=True))

    def _add_class_halves(self, state: Batch, pairs: list[tuple[int, int]]) -> None:
        """What the class-specific activation maps give of it, for the (image, label) pairs that are missing (1, 2)."""
        missing = sorted(set(pairs) - state.of_class.keys())
        if not missing:
            return
        image, label = torch.tensor(missing).T.contiguous()
        window, position = self._images.gate(state.encoded, image, label)
        windows = place_windows(window.to(self.dtype), position, self.config.grid, self.config.fc_kernel)
        halves = self.ops.dense(windows, self._weights.bridge.fc6_seg_class).view(len(missing), -1)
        state.of_class.update(zip(missing, halves, strict=True))


def place_windows(window: Tensor, position: Tensor, grid: int, kernel: int) -> Tensor:
    """The windows under each place of the grid of a map that is zero but for one window.

    window ``[Q,k*k*C]``, position ``[Q]`` in 0..G*G-1: where it lies; returns ``[Q*G*G,k*k*C]``. The map itself,
    ``[Q,M,M,C]``, is never made.
    """
    count, taps = len(window), kernel * kernel
    places, offsets = torch.arange(grid * grid)[:, None], torch.arange(taps)
    row = places // grid + offsets // kernel - (position // grid)[:, None, None]  # [Q,G*G,k*k], within the window
    column = places % grid + offsets % kernel - (position % grid)[:, None, None]
    inside = (row >= 0) & (row < kernel) & (column >= 0) & (column < kernel)
    source = torch.where(inside, row * kernel + column, taps)  # row k*k of each window is zeros
    source = source + torch.arange(count)[:, None, None] * (taps + 1)
    rows = F.pad(window.view(count, taps, -1), (0, 0, 0, 1)).flatten(0, 1)
    return rows.index_select(0, source.flatten()).view(count * grid * grid, -1)


def overlap_add(columns: Tensor) -> Tensor:
    """A transposed convolution after its product of matrices: each place of the grid adds its window to the map.

    columns ``[P,G,G,k,k,C]`` to ``[P,M,M,C]``, M = G + k - 1.
    """
    if columns.shape[1] > columns.shape[3]:  # grid and window may change places: the shorter one is the loop
        columns = columns.permute(0, 3, 4, 1, 2, 5)
    passes, steps, _, span, _, channels = columns.shape
    side = steps + span - 1
    y = columns.new_zeros(passes, side, side, channels)
    for i, j in product(range(steps), repeat=2):
        y[:, i : i + span, j : j + span] += columns[:, i, j]
    return y
