"""The drop-in for inference: a trained network folded and packed once, run by the fused ops.

    x -> encoder stages (+ switches) -> windows of pool5 -> fc6 -> fc7 -> class scores
      -> per image: half of fc6-seg; per (image, label): gate, the other half -> their sum, per pass
      -> fc7-seg -> fc6-deconv -> decoder stages -> foreground minus background

Numbers in brackets below are identities of SPEC section 9. B images, L classes, P passes, S x S input, M x M the pool5
map, G x G the class grid, k = fc_kernel, C5 = widths[4].
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .folding import fold
from .image_part import Encoded, ImagePart
from .network import DecoupledNet, check_images, check_passes
from .runtime import CpuRuntime, runtime_for
from .segmentation import Segmenter

OWN = -1  # stands where a label would: the half that an image's pool5 gives

Half = tuple[int, int]  # image, and label or OWN


class Batch:
    """A batch between :meth:`FastDecoupledNet.score_images` and its passes; for one thread at a time.

    Halves of fc6-seg before its ReLU (3) are rows of a table, computed when a pass first needs them: of an image what
    its pool5 gives, of an (image, label) pair what its class-specific activation map gives for y = 1.
    """

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded
        self.rows: dict[Half, int] = {}
        self.table: Tensor | None = None  # [R,G*G*bridge]

    def missing(self, halves: Iterable[Half]) -> list[Half]:
        """Those of `halves` that have no row yet, in order, each once."""
        return sorted(set(halves) - self.rows.keys())

    def add(self, rows: Tensor, halves: Sequence[Half], first: int = 0) -> None:
        """`rows` join the table; those from `first` on are of `halves`, one by one."""
        start = 0 if self.table is None else len(self.table)
        self.table = rows if self.table is None else torch.cat([self.table, rows])
        self.rows.update((half, start + first + k) for k, half in enumerate(halves))


class FastDecoupledNet(Segmenter):
    """A trained network, for inference: :meth:`segment`, :meth:`classify` and :meth:`fast`, with its own weights.

    model   on the CPU or a CUDA device, and there the engine runs; it is not changed, and changes of it later do not
            reach the engine. Batch normalisation acts as in eval mode
    dtype   of weights and maps. torch.bfloat16 (the default) for speed; on the CPU torch.float32 for the labels of the
            plain network, but where two scores, or two values of a pooling window, tie within float32's rounding; on
            CUDA torch.float16; torch.float32 and torch.float64 where `ops` takes them (the plain formulas do)
    ops     where the ops come from: :mod:`ddn_fast.ops` (compiled, the default) or :mod:`ddn_fast.reference`
    graphs  on CUDA, whether fixed parts are recorded as CUDA graphs; None: unless DDN_CUDA_GRAPHS=0

    Images are float32 ``[B,3,S,S]`` (float64 in a float64 engine), in any memory format. No gradient flows. Any number
    of threads may use one engine. Raises InputError on a network that is no DecoupledNet, or on a device without
    kernels for it, and on other dtypes, NumericsError on weights that are NaN or infinite, ImportError where the
    compiled ops are wanted and were not built.

    On CUDA all work is in the order of the caller's current stream, and the host waits only where :meth:`segment`
    reads: scores, while the next batch is encoded, and label maps. A graph holds memory for one batch of its size.

    :meth:`encode` and :meth:`decode` compile with ``torch.compile(fullgraph=True)``. Between them, which halves of
    fc6-seg to compute depends on values of `labels`: :meth:`fast` and :meth:`score_passes` break the graph there.
    """

    runtime: CpuRuntime

    def __init__(
        self, model: DecoupledNet, dtype: torch.dtype | None = None, ops: Any = None, graphs: bool | None = None
    ) -> None:
        if not isinstance(model, DecoupledNet):
            raise InputError(f"model: wanted a DecoupledNet, got {type(model).__name__}")
        if min(model.config.widths) < 4:  # fewer are laid out as an image is, and no image is unpooled
            raise InputError(
                f"model: wanted at least 4 channels in every stage, got widths {model.config.widths}; "
                "the plain network takes fewer (fast=False, --no-fast)"
            )
        compiled = ops is None
        if compiled:
            ops = importlib.import_module("ddn_fast.ops")
        self.runtime = runtime_for(_device_of(model), compiled, graphs, model.config.side)
        self.config = model.config
        self.dtype = torch.bfloat16 if dtype is None else dtype
        self.runtime.check_dtype(self.dtype, compiled)
        self.ops = ops
        self._weights = fold(model, self.dtype, self.runtime.isa)
        self._images = ImagePart(model.config, self._weights.image_part, self.dtype, ops)
        self._shifts = window_shifts(self.config.grid, self.config.fc_kernel, self.runtime.device)
        self._run_encode = self.runtime.captured(self._images.encode)
        self._run_halves = self.runtime.captured(self._halves)
        self._run_decode = self.runtime.captured(self.decode)

    def __copy__(self) -> FastDecoupledNet:
        return self  # its weights are never written to: one serves all

    def __deepcopy__(self, memo: dict[int, Any]) -> FastDecoupledNet:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "an engine cannot be pickled: its weights lie as this machine's instructions want them; load it in each "
            "process (ddn_fast.load maps the file, which processes share) or pickle the network"
        )

    def __repr__(self) -> str:
        name, where = str(self.dtype).removeprefix("torch."), self.runtime.name
        return f"FastDecoupledNet({name}, {where}, side {self.config.side}, {self.config.num_classes} classes)"

    def classify(self, x: Tensor) -> Tensor:
        """Image-level scores ``[B,L]`` in 0..1 of x ``[B,3,S,S]`` (section 3); InputError on another x."""
        return self.score_images(x)[0]

    def fast(self, x: Tensor, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """Probability of foreground ``[P,S,S]``, one map per pass (5), float32 at least.

        x ``[B,3,S,S]``; labels ``[P,L]``, the y of section 4; image_of_pass ``[P]`` integers; both best on the CPU,
        where their values are needed. All passes run together: memory grows with P. Raises InputError on other shapes,
        dtypes or devices.
        """
        return torch.sigmoid(self.score_passes(self.score_images(x)[1], labels, image_of_pass))

    # --- what Segmenter.segment needs ---

    def input_like(self) -> Tensor:
        """An empty tensor of the input's dtype."""
        return self._images.input_like()

    def image_dtype(self) -> torch.dtype:
        """The runtime's word; :meth:`encode` rounds to the engine's own in any case."""
        return self.runtime.image_dtype(self.dtype)

    def merge_scores(self, difference: Tensor, classes: int, square: int, crop: tuple[int, int]) -> Tensor:
        """Label map of one image from its passes, by `ops`."""
        return self.ops.merge_scores(difference, classes, square, list(crop))

    def score_images(self, x: Tensor) -> tuple[Tensor, Batch]:
        """Scores ``[B,L]`` and what :meth:`score_passes` needs of this batch."""
        check_images(x, self.config, self.input_like())
        encoded = self._run_encode(x)
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
        y = labels.detach().to("cpu", self.input_like().dtype)
        terms: list[list[tuple[Half, float]]] = [[((image, OWN), 1.0)] for image in images]
        for p, label in y.nonzero().tolist():
            terms[p].append(((images[p], label), y[p, label].item()))
        self._compute(state, [half for of_pass in terms for half, _ in of_pass])
        return self._run_decode(*self._sum(state, terms))[: len(images)]

    def _compute(self, state: Batch, halves: list[Half]) -> None:
        """Give `state` the rows of `halves` that it has not got yet."""
        own = state.missing(half for half in halves if half[1] == OWN)
        pairs = state.missing(half for half in halves if half[1] != OWN)
        if not own and not pairs:
            return
        size = min(self.runtime.padded(len(own)), len(state.encoded.windows))
        padded = [*pairs, *[(0, 0)] * (self.runtime.padded(len(pairs)) - len(pairs))]
        index = self._indices(
            [*(image for image, _ in own), *[0] * (size - len(own))],
            [image for image, _ in padded],
            [label for _, label in padded],
        )
        rows = self._run_halves(state.encoded.before_decoder(), *index)
        state.add(rows[: len(own)], own)
        state.add(rows[size : size + len(pairs)], pairs)

    def _sum(self, state: Batch, terms: list[list[tuple[Half, float]]]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """What :meth:`decode` takes, of passes that are sums of rows (2, 3), and of empty ones up to a padded size."""
        passes = self.runtime.padded(len(terms))
        terms = [*terms, *[[]] * (passes - len(terms))]
        rows = [state.rows[half] for of_pass in terms for half, _ in of_pass]
        first = [sum(map(len, terms[:p])) for p in range(passes)]
        images = [of_pass[0][0][0] if of_pass else 0 for of_pass in terms]
        row, offset, image_of_pass = self._indices(rows, first, images)
        values = [value for of_pass in terms for _, value in of_pass]
        weight = torch.tensor(values, dtype=self.input_like().dtype, device="cpu")
        assert state.table is not None
        # each pass in its order, and nothing of another's, were that NaN
        weight = self.runtime.move(weight)
        fc6_seg = F.embedding_bag(row, state.table, offset, mode="sum", per_sample_weights=weight)
        return fc6_seg, state.encoded.switches, image_of_pass

    def _indices(self, *lists: Sequence[int]) -> list[Tensor]:
        """Each list as int64 on the device, all of them in one transfer."""
        flat = torch.tensor([value for values in lists for value in values], dtype=torch.int64, device="cpu")
        return list(self.runtime.move(flat).split([len(values) for values in lists]))

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
        columns = ops.dense(x, weights.bridge.fc6_deconv.weight).view(fc6_seg.shape[0], grid, grid, kernel, kernel, -1)
        x = F.relu(overlap_add(columns).add_(weights.bridge.fc6_deconv.bias)).to(self.dtype).permute(0, 3, 1, 2)
        *stages, last = zip(weights.decoder, reversed(switches), strict=True)
        for stage, switch in stages:
            x = ops.conv3x3(x, stage.weights, stage.biases, switch, image_of_pass)
        stage, switch = last
        score = weights.score_weight, weights.score_bias
        return ops.conv3x3_score(x, stage.weights, stage.biases, *score, switch, image_of_pass)

    @torch.no_grad()
    def _halves(self, encoded: Encoded, own: Tensor, image: Tensor, label: Tensor) -> Tensor:
        """Halves of fc6-seg ``[I+Q,G*G*bridge]``: of images `own` ``[I]``, then of pairs image, label ``[Q]`` (1)."""
        ops, bridge = self.ops, self._weights.bridge
        rows = []
        if len(own):
            rows.append(ops.dense(encoded.windows[own].flatten(0, 1), *bridge.fc6_seg_image))
        if len(image):
            window, position = self._images.gate(encoded, image, label)
            windows = place_windows(window.to(self.dtype), position, self._shifts)
            rows.append(ops.dense(windows, bridge.fc6_seg_class))
        return torch.cat(rows).view(len(own) + len(image), -1)


def _device_of(model: DecoupledNet) -> torch.device:
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        raise InputError(f"model: wanted a network on one device, got {', '.join(sorted(map(str, devices)))}")
    return devices.pop()


def window_shifts(grid: int, kernel: int, device: torch.device) -> Tensor:
    """What each place of the grid sees of a window, along one side: ``[G,G,k]`` int64.

    Place of the window, place that looks, step under it; where no part of the window is, ``k * k``.
    """
    place, step = torch.arange(grid, device=device), torch.arange(kernel, device=device)
    shifts = place[:, None] + step - place[:, None, None]
    return shifts.masked_fill_((shifts < 0) | (shifts >= kernel), kernel * kernel)


def place_windows(window: Tensor, position: Tensor, shifts: Tensor) -> Tensor:
    """The windows under each place of the grid of a map that is zero but for one window.

    window ``[Q,k*k*C]``, position ``[Q]`` in 0..G*G-1: where it lies, shifts of :func:`window_shifts`; returns
    ``[Q*G*G,k*k*C]``. The map itself, ``[Q,M,M,C]``, is never made.
    """
    grid, _, kernel = shifts.shape
    count, taps = len(window), kernel * kernel
    row, column = shifts[position // grid] * kernel, shifts[position % grid]  # [Q,G,k]
    source = row[:, :, None, :, None] + column[:, None, :, None, :]  # [Q,G,G,k,k]
    source = source.flatten(1).clamp_(max=taps)  # row k*k of each window is zeros
    source += torch.arange(count, device=window.device)[:, None] * (taps + 1)
    rows = F.pad(window.unflatten(1, (taps, -1)), (0, 0, 0, 1)).flatten(0, 1)
    return rows.index_select(0, source.flatten()).view(count * grid * grid, window.shape[1])


def overlap_add(columns: Tensor) -> Tensor:
    """A transposed convolution after its product of matrices: each place of the grid adds its window to the map.

    columns ``[P,G,G,k,k,C]`` to ``[P,M,M,C]``, M = G + k - 1. Rows first, then columns: 2 * G sums, not G * G.
    """
    if columns.shape[1] > columns.shape[3]:  # grid and window may change places: the shorter one is the loop
        columns = columns.permute(0, 3, 4, 1, 2, 5)
    passes, steps, _, span, _, channels = columns.shape
    side = steps + span - 1
    rows = columns.new_zeros(passes, side, steps, span, channels)
    for i in range(steps):
        rows[:, i : i + span].add_(columns[:, i].transpose(1, 2))
    y = columns.new_zeros(passes, side, side, channels)
    for j in range(steps):
        y[:, :, j : j + span].add_(rows[:, :, j])
    return y
