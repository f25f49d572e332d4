"""The fused ops: same names, arguments and results as their plain formulas in :mod:`ddn_fast.reference`.

Maps are logically ``[N,C,H,W]``, float32, float64, bfloat16 or float16, in any strides; channels_last is native, other
layouts are converted once, and results are channels_last. Switches are ``[B,h,w,ceil(C/4)]`` uint8 (see
:mod:`ddn_fast.reference`). N may be 0; C, H and W may not. Every op runs on CPU and, where it was built, on CUDA, is
deterministic, can be differentiated any number of times, and works under ``torch.compile``.

A wrong argument raises ``RuntimeError`` with a message "op: argument must be WANTED, got GOT", as torch's own ops do.

Each function below is one op; beside it stand its fake kernel (shapes, strides and dtypes without values) and its
gradient. Kernels: ``csrc/cpu`` and ``csrc/cuda``, one file per op; ``csrc/torch/ops.cpp`` checks and launches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from . import _C as _C  # registers torch.ops.ddn_fast
except ImportError as error:
    raise ImportError(
        f"ddn_fast's compiled extension cannot be imported ({error}). Build it with "
        "`pip install --no-build-isolation -e .` in the project's folder; it needs a C++ compiler, CMake and pybind11, "
        "and builds CUDA kernels too where nvcc is found."
    ) from error

_Context = Any  # torch's autograd context has no public type


def max_pool2x2(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling, stride 2, that remembers which of the four won (SPEC section 2, identity 7).

    x ``[B,C,H,W]``; returns y ``[B,C,h,w]`` and switches ``[B,h,w,ceil(C/4)]``, with ``h = ceil(H/2)``,
    ``w = ceil(W/2)``. On a tie the first in row-major order wins; NaN wins over numbers, the last of several; a window
    that sticks out over an odd edge holds only what exists. Unused bits of the last switch byte are 0. The gradient of
    x is :func:`max_unpool2x2` of y's; switches have none.
    """
    return torch.ops.ddn_fast.max_pool2x2.default(x)


def max_unpool2x2(x: Tensor, switches: Tensor, height: int, width: int, image_of_pass: Tensor | None = None) -> Tensor:
    """Put each value at the place its switch names, 0 at the other three (SPEC section 6).

    x ``[P,C,h,w]``, switches ``[B,h,w,ceil(C/4)]``, image_of_pass ``[P]`` int64 in 0..B-1 (whose switches a pass uses;
    without it B = P); returns ``[P,C,height,width]`` with ``h = ceil(height/2)``, ``w = ceil(width/2)``. A value whose
    switch names a place outside an odd edge is dropped. On CUDA an image_of_pass out of range is found by the kernel,
    as torch's own indexing finds it: the device reports it later and is lost to the process. The gradient of x is
    :func:`gather2x2` of the result's.
    """
    return torch.ops.ddn_fast.max_unpool2x2.default(x, switches, height, width, image_of_pass)


def gather2x2(x: Tensor, switches: Tensor, image_of_pass: Tensor | None = None) -> Tensor:
    """Pick from each 2x2 window the value its switch names: the transpose of :func:`max_unpool2x2`.

    x ``[P,C,H,W]``, switches ``[B,h,w,ceil(C/4)]``, image_of_pass ``[P]`` as there; returns ``[P,C,h,w]``. A switch
    that names a place outside an odd edge picks 0. The gradient of x is :func:`max_unpool2x2` of the result's.
    """
    return torch.ops.ddn_fast.gather2x2.default(x, switches, image_of_pass)


def _half_up(n: int) -> int:
    return (n + 1) // 2


def _channels_last(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _check_map(op: str, x: Tensor) -> None:
    torch._check(x.dim() == 4, lambda: f"{op}: x must be [N,C,H,W], got {list(x.shape)}")
    torch._check(x.is_floating_point(), lambda: f"{op}: x must be Float, Double, BFloat16 or Half, got {x.dtype}")


def _check_switches(op: str, x: Tensor, h: int, w: int, switches: Tensor, image_of_pass: Tensor | None) -> None:
    wanted = [x.shape[0], h, w, (x.shape[1] + 3) // 4]
    if image_of_pass is not None and switches.dim() == 4:
        wanted[0] = switches.shape[0]
    torch._check(
        switches.dtype == torch.uint8 and list(switches.shape) == wanted,
        lambda: f"{op}: switches must be uint8 {wanted}, got {switches.dtype} {list(switches.shape)}",
    )


@torch.library.register_fake("ddn_fast::max_pool2x2")
def _max_pool2x2_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    _check_map("max_pool2x2", x)
    images, channels, height, width = x.shape
    h, w = _half_up(height), _half_up(width)
    return _channels_last(x, images, channels, h, w), x.new_empty(images, h, w, (channels + 3) // 4, dtype=torch.uint8)


@torch.library.register_fake("ddn_fast::max_unpool2x2")
def _max_unpool2x2_fake(
    x: Tensor, switches: Tensor, height: int, width: int, image_of_pass: Tensor | None = None
) -> Tensor:
    _check_map("max_unpool2x2", x)
    _check_switches("max_unpool2x2", x, _half_up(height), _half_up(width), switches, image_of_pass)
    return _channels_last(x, x.shape[0], x.shape[1], height, width)


@torch.library.register_fake("ddn_fast::gather2x2")
def _gather2x2_fake(x: Tensor, switches: Tensor, image_of_pass: Tensor | None = None) -> Tensor:
    _check_map("gather2x2", x)
    h, w = _half_up(x.shape[2]), _half_up(x.shape[3])
    _check_switches("gather2x2", x, h, w, switches, image_of_pass)
    return _channels_last(x, x.shape[0], x.shape[1], h, w)


def _max_pool2x2_context(ctx: _Context, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.size = inputs[0].shape[2:]


def _max_pool2x2_backward(ctx: _Context, grad_y: Tensor, _grad_switches: None) -> Tensor:
    (switches,) = ctx.saved_tensors
    height, width = ctx.size
    return max_unpool2x2(grad_y, switches, height, width)


def _max_unpool2x2_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, switches, _, _, image_of_pass = inputs
    ctx.save_for_backward(switches, image_of_pass)


def _max_unpool2x2_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gather2x2(grad, *ctx.saved_tensors), None, None, None, None


def _gather2x2_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, switches, image_of_pass = inputs
    ctx.save_for_backward(switches, image_of_pass)
    ctx.size = x.shape[2:]


def _gather2x2_backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    switches, image_of_pass = ctx.saved_tensors
    height, width = ctx.size
    return max_unpool2x2(grad, switches, height, width, image_of_pass), None, None


torch.library.register_autograd("ddn_fast::max_pool2x2", _max_pool2x2_backward, setup_context=_max_pool2x2_context)
torch.library.register_autograd(
    "ddn_fast::max_unpool2x2", _max_unpool2x2_backward, setup_context=_max_unpool2x2_context
)
torch.library.register_autograd("ddn_fast::gather2x2", _gather2x2_backward, setup_context=_gather2x2_context)
