"""The fused ops' cases, once: shapes, dtypes, layouts and the inputs made of them, for tests and benchmarks alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
