"""The fused ops' cases, once: shapes, dtypes, layouts and the inputs made of them, for tests and benchmarks alike.

Pooling ops (INPUTS) take maps of any shape and layout and are exact; the others (CASES) round, and have cases each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_fast import reference
from ddn_fast.packing import Layout, pack_conv3x3
from ddn_fast.plan import passes_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INFERENCE_DTYPES = (torch.float32, torch.bfloat16)


class Shape(NamedTuple):
    """B images and P passes of C channels on H x W pixels."""

    images: int
    passes: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"B{self.images}-P{self.passes}-C{self.channels}-{self.height}x{self.width}"


# whole and cut vectors of channels, odd edges, one pixel, one channel, rows that several threads share, nothing at all
SHAPES = (
    Shape(2, 3, 16, 8, 8),
    Shape(2, 3, 64, 5, 7),
    Shape(1, 2, 40, 4, 6),
    Shape(2, 5, 3, 7, 4),
    Shape(3, 2, 1, 5, 5),
    Shape(2, 2, 19, 1, 1),
    Shape(1, 1, 8, 1, 9),
    Shape(2, 3, 6, 9, 1),
    Shape(4, 7, 32, 80, 80),
    Shape(2, 0, 8, 4, 4),
    Shape(0, 0, 5, 4, 4),
)

# of the full-size network (SPEC sections 2 and 6), largest map first
NETWORK_SHAPES = tuple(
    Shape(4, 8, channels, side, side) for channels, side in ((64, 320), (128, 160), (256, 80), (512, 40), (512, 20))
)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def strided(x: Tensor) -> Tensor:
    """Every second column of a map twice as wide."""
    return x.repeat_interleave(2, dim=3)[..., ::2]


def misaligned(x: Tensor) -> Tensor:
    """channels_last, one element off the boundary that wide accesses need."""
    n, c, h, w = x.shape
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    return flat.view(n, h, w, c).permute(0, 3, 1, 2).copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": channels_last,
    "contiguous": torch.Tensor.contiguous,
    "strided": strided,
    "misaligned": misaligned,
}


def make_map(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Tensor:
    """A map of multiples of 1/2 in -4..4: exact in every dtype, and full of ties."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-8, 9, shape, generator=generator) / 2).to(device, dtype)


def make_switches(images: int, channels: int, height: int, width: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Random bits, so at an odd edge also switches that name places outside the map."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, -(-height // 2), -(-width // 2), -(-channels // 4))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)


def make_image_of_pass(shape: Shape, device: str = "cpu", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, max(shape.images, 1), (shape.passes,), generator=generator).to(device)


def _max_pool2x2(shape: Shape, dtype: torch.dtype, device: str) -> tuple:
    return (make_map((shape.images, *shape[2:]), dtype, device),)


def _max_unpool2x2(shape: Shape, dtype: torch.dtype, device: str) -> tuple:
    pooled = (shape.passes, shape.channels, -(-shape.height // 2), -(-shape.width // 2))
    switches = make_switches(shape.images, *shape[2:], device=device)
    of_pass = make_image_of_pass(shape, device)
    return make_map(pooled, dtype, device), switches, shape.height, shape.width, of_pass


def _gather2x2(shape: Shape, dtype: torch.dtype, device: str) -> tuple:
    switches = make_switches(shape.images, *shape[2:], device=device)
    return make_map((shape.passes, *shape[2:]), dtype, device), switches, make_image_of_pass(shape, device)


# op name to its arguments for a shape; the first is the map that LAYOUTS apply to
INPUTS: dict[str, Callable[[Shape, torch.dtype, str], tuple]] = {
    "max_pool2x2": _max_pool2x2,
    "max_unpool2x2": _max_unpool2x2,
    "gather2x2": _gather2x2,
}


class Dense(NamedTuple):
    """M rows, N outputs, K inputs."""

    rows: int
    outputs: int
    inputs: int

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.inputs)
        x = torch.randn(self.rows, self.inputs, generator=generator).to(dtype)
        weight = torch.randn(self.outputs, self.inputs, generator=generator).to(dtype)
        return x, weight, torch.randn(self.outputs, generator=generator), True


class DenseOuter(NamedTuple):
    """D rows, of R and of C columns."""

    depth: int
    rows: int
    columns: int

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.depth)
        a, b = (torch.randn(self.depth, n, generator=generator).to(dtype) for n in self[1:])
        return a, b


class ClassGate(NamedTuple):
    """F features, K inputs of fc6, L labels, B images, A places, Q pairs."""

    features: int
    inputs: int
    labels: int
    images: int
    places: int
    pairs: int

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.inputs)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def index(end: int, *shape: int) -> Tensor:
            return torch.randint(0, max(end, 1), shape, generator=generator)

        features, activations = self.features, (self.images, self.places, self.features)
        return (
            *(normal(self.labels, features).to(dtype), normal(features, features).to(dtype)),
            *(normal(features, self.inputs).to(dtype), normal(*activations).relu(), normal(*activations).relu()),
            index(self.places, self.images, self.labels),
            *(index(self.images, self.pairs), index(self.labels, self.pairs)),
        )


class NetworkInput(NamedTuple):
    """An image of H x W, resized to S x S of the dtype asked for."""

    height: int
    width: int
    side: int

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.height)
        shape = (self.height, self.width, 3)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), self.side, dtype


class MergeScores(NamedTuple):
    """K classes on S x S, resized to `square`, cropped to h x w."""

    classes: int
    side: int
    square: int
    height: int
    width: int

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.side)
        shape = (passes_of(self.classes), self.side, self.side)
        difference = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return difference.to(dtype), self.classes, self.square, [self.height, self.width]


class Conv3x3(NamedTuple):
    """A stage of C, then `layers` channels on N maps of H x W; unpooled by the switches of B images if B is not 0."""

    maps: int
    channels: tuple[int, ...]
    height: int
    width: int
    images: int = 0

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.height)
        pairs = tuple(zip(self.channels, self.channels[1:], strict=False))
        scale = [(9 * inputs / 2) ** -0.5 for inputs, _ in pairs]
        plain = [torch.randn(o, i, 3, 3, generator=generator) * s for (i, o), s in zip(pairs, scale, strict=True)]
        layout: Layout = "pairs" if dtype.itemsize == 2 else "direct"
        packed = torch.float16 if dtype == torch.float16 else torch.float32
        weights = [pack_conv3x3(weight, layout, packed) for weight in plain]
        biases = [torch.randn(outputs, generator=generator) for outputs in self.channels[1:]]
        half = 2 if self.images else 1
        x = torch.randn(self.maps, self.channels[0], self.height // half, self.width // half, generator=generator)
        if not self.images:
            return x.to(dtype), weights, biases
        switches = make_switches(self.images, self.channels[0], self.height, self.width)
        of_pass = torch.randint(0, self.images, (self.maps,), generator=generator)
        return x.to(dtype), weights, biases, switches, of_pass

    def scored(self, dtype: torch.dtype) -> tuple:
        """The same with the weight and bias of a score."""
        x, weights, biases, *rest = self(dtype)
        generator = torch.Generator().manual_seed(self.width)
        score = torch.randn(self.channels[-1], generator=generator), torch.randn(1, generator=generator)
        return x, weights, biases, *score, *rest


_STAGES = (
    Conv3x3(1, (3, 40, 64), 8, 12),
    Conv3x3(3, (64, 32), 6, 10, 2),
    Conv3x3(0, (32, 32), 4, 4),
)


class Deconv3x3Moments(NamedTuple):
    """A layer of C to O channels on N maps of h x w, unpooled first if `pooled`."""

    maps: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    pooled: bool

    def __call__(self, dtype: torch.dtype) -> tuple:
        maps, inputs, outputs, height, width, pooled = self
        generator = torch.Generator().manual_seed(inputs + height)
        x = 2 * torch.randn(maps, inputs, height, width, generator=generator) + 1
        weight = torch.randn(inputs, outputs, 3, 3, generator=generator) * (9 * inputs / 2) ** -0.5
        scale, shift = torch.rand(inputs, generator=generator) + 0.5, torch.randn(inputs, generator=generator)
        switches = make_switches(maps, inputs, 2 * height, 2 * width, seed=outputs) if pooled else None
        return x.to(dtype), weight, scale, shift, switches

    def backward(self, dtype: torch.dtype) -> tuple:
        """Arguments of its gradients."""
        arguments = self(dtype)
        y, mean, _ = reference.deconv3x3_moments(*arguments)
        generator = torch.Generator().manual_seed(self.out_channels)
        grad_y = torch.randn(y.shape, generator=generator).to(dtype)
        of_moments = torch.randn(2, self.out_channels, generator=generator) * y[:, 0].numel() ** 0.5
        return grad_y, *of_moments, y, mean, *arguments

    def backward_score(self, dtype: torch.dtype) -> tuple:
        """Arguments of its gradients where a score follows."""
        grad_y, *others = self.backward(dtype)
        generator = torch.Generator().manual_seed(self.in_channels)
        scale, shift = (
            torch.rand(self.out_channels, generator=generator) + 0.5,
            torch.randn(self.out_channels, generator=generator),
        )
        weight = torch.randn(2, self.out_channels, generator=generator)
        return torch.randn(self.maps, 2, *grad_y.shape[2:], generator=generator), scale, shift, weight, *others


class SegScore(NamedTuple):
    """N maps of C channels on H x W pixels."""

    maps: int
    channels: int
    height: int
    width: int

    def __call__(self, dtype: torch.dtype) -> tuple:
        generator = torch.Generator().manual_seed(self.channels)
        x = torch.randn(*self, generator=generator).to(dtype)
        scale, shift = (
            torch.rand(self.channels, generator=generator) + 0.5,
            torch.randn(self.channels, generator=generator),
        )
        return x, scale, shift, torch.randn(2, self.channels, generator=generator), torch.tensor([0.5, -2.0])

    def backward(self, dtype: torch.dtype) -> tuple:
        """Arguments of its gradients."""
        generator = torch.Generator().manual_seed(self.width)
        grad_y = torch.randn(self.maps, 2, self.height, self.width, generator=generator)
        return grad_y, *self(dtype)[:4]


# whole and cut blocks of 32 channels and tiles of 4x4, one pixel, many input channels, several groups of tiles
_LAYERS = (
    Deconv3x3Moments(2, 40, 33, 3, 5, True),
    Deconv3x3Moments(1, 36, 64, 7, 9, False),
    Deconv3x3Moments(2, 4, 5, 1, 1, False),
    Deconv3x3Moments(3, 16, 48, 5, 6, True),
    Deconv3x3Moments(1, 288, 32, 4, 4, True),
    Deconv3x3Moments(2, 64, 64, 30, 41, True),
)
_SCORED = (SegScore(2, 40, 5, 3), SegScore(1, 64, 8, 16), SegScore(3, 1, 1, 1), SegScore(1, 7, 30, 20))

# of those the plain formula's rounding is half as large, and places within a tile differ (ddn_fast/packing.py)
WINOGRAD = ("deconv3x3_moments", "deconv3x3_moments_backward", "deconv3x3_moments_backward_score")

# op to its cases, each of which makes its arguments in a dtype; the first one is small and has whole and cut blocks
CASES: dict[str, tuple[Callable[[torch.dtype], tuple], ...]] = {
    "network_input": (
        NetworkInput(37, 50, 32),
        NetworkInput(50, 37, 64),
        NetworkInput(64, 64, 64),
        NetworkInput(5, 3, 64),
        NetworkInput(1, 1, 8),
        NetworkInput(300, 7, 32),
        NetworkInput(7, 1000, 3),
        NetworkInput(2, 2, 1),
    ),
    "conv3x3": _STAGES,
    "conv3x3_max_pool2x2": _STAGES,
    "conv3x3_score": tuple(stage.scored for stage in _STAGES),
    "dense": (
        Dense(17, 33, 65),
        Dense(16, 64, 128),
        Dense(1, 1, 1),
        Dense(3, 20, 31),
        Dense(5, 7, 2100),
        Dense(40, 16, 32),
        Dense(130, 150, 1100),
        Dense(300, 5, 33),
        Dense(0, 3, 4),
    ),
    "dense_outer": (
        DenseOuter(17, 33, 65),
        DenseOuter(5, 400, 36),
        DenseOuter(300, 12, 32),
        DenseOuter(600, 13, 1000),
        DenseOuter(1, 1, 1),
        DenseOuter(0, 3, 4),
    ),
    "class_gate": (
        ClassGate(40, 100, 5, 2, 4, 7),
        ClassGate(5, 7, 3, 2, 1, 1),
        ClassGate(64, 4500, 4, 3, 16, 4),
        ClassGate(33, 96, 3, 1, 9, 2),
        ClassGate(48, 64, 20, 3, 4, 130),
        ClassGate(16, 32, 2, 1, 4, 0),
    ),
    "merge_scores": (
        MergeScores(3, 20, 33, 33, 21),
        MergeScores(1, 20, 20, 13, 20),
        MergeScores(2, 31, 7, 7, 5),
        MergeScores(4, 9, 100, 99, 100),
        MergeScores(1, 1, 5, 5, 2),
        MergeScores(7, 5, 1, 1, 1),
        MergeScores(20, 40, 23, 20, 23),
        MergeScores(3, 64, 100, 75, 100),
    ),
    "deconv3x3_moments": _LAYERS,
    "deconv3x3_moments_backward": tuple(layer.backward for layer in _LAYERS),
    "deconv3x3_moments_backward_score": tuple(layer.backward_score for layer in _LAYERS),
    "seg_score": _SCORED,
    "seg_score_backward": tuple(scored.backward for scored in _SCORED),
    "seg_score_backward_vectors": tuple(scored.backward for scored in _SCORED),
}
TRAINING = tuple(name for name in CASES if name.startswith(("deconv3x3_moments", "seg_score")))


def dtypes_of(op: str) -> tuple[torch.dtype, ...]:
    """What the op takes."""
    if op in INPUTS:
        return DTYPES
    special = {
        "merge_scores": (torch.float32, torch.float64),
        "dense_outer": (torch.float32,),
    }
    return special.get(op, INFERENCE_DTYPES)


def small_case(op: str, dtype: torch.dtype, device: str = "cpu") -> tuple:
    """Arguments of a small case of any op."""
    if op in INPUTS:
        return INPUTS[op](Shape(2, 3, 5, 5, 4), dtype, device)
    return CASES[op][0](dtype)


def results(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What an op gave, always as a tuple."""
    return value if isinstance(value, tuple) else (value,)
