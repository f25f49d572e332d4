"""The fused ops of training on CUDA, part of :mod:`ddn_fast.ops`: put together from torch's own, some images at a time.

Names, arguments and results as in :mod:`ddn_fast.training_ops`. Convolutions are the vendor library's, in the dtype of
the maps. What the CPU's kernels never write (the activated map, the unpooled one, gradients in float32) exists here,
but of a few images only, so that the peak of memory is that of the maps that training keeps. They run on any device,
which is how they are tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense_ops import without_autocast
from .distributed import pooled_moments
from .training_ops import LayerBackward, check_like_y, check_of_score, check_score, check_vector, layer_size, map_like

AT_ONCE = 64 << 20  # bytes, in float32, of an op's larger map that are worked on together


def deconv3x3_moments(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`ddn_fast.ops.deconv3x3_moments`."""
    y = map_like(x, layer_size("deconv3x3_moments", x, weight, scale, shift, switches))
    rounded = weight.to(x.dtype)
    parts = []  # [3,O] each: mean, variance, how many images
    for some in _parts(x, y):
        y[some] = F.conv_transpose2d(_activated(x, scale, shift, switches, some), rounded, padding=1)
        var, mean = torch.var_mean(y[some].float(), (0, 2, 3), correction=0)
        parts.append(torch.stack([mean, var, torch.full_like(mean, len(y[some]))]).double())
    _, mean, var = pooled_moments(*torch.stack(parts, 1))
    return y, mean.float(), var.float()


def deconv3x3_moments_backward(grad_y: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`ddn_fast.ops.deconv3x3_moments_backward`."""
    op, layer = "deconv3x3_moments_backward", LayerBackward(*others)
    check_like_y(op, "grad_y", grad_y, layer.x, layer.check(op))
    return _layer_gradients(lambda some: grad_y[some], layer)


def deconv3x3_moments_backward_score(
    grad_score: Tensor, score_scale: Tensor, score_shift: Tensor, score_weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`ddn_fast.ops.deconv3x3_moments_backward_score`."""
    op, layer = "deconv3x3_moments_backward_score", LayerBackward(*others)
    check_of_score(op, grad_score, score_scale, score_shift, score_weight, layer.check(op))

    def of_score(some: slice) -> Tensor:
        return _through_score(grad_score[some], layer.y[some], score_scale, score_shift, score_weight)[0]

    return _layer_gradients(of_score, layer)


def seg_score(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """:func:`ddn_fast.ops.seg_score`."""
    check_score("seg_score", x, scale, shift, weight)
    check_vector("seg_score", "bias", bias, 2)
    y = map_like(x, (x.shape[0], 2, x.shape[2], x.shape[3]), torch.float32)
    for some in _parts(x):  # in float32, which a convolution of maps in bfloat16 would not give
        by_pixel = _activated(x, scale, shift, None, some).float().permute(0, 2, 3, 1) @ weight.T + bias
        y[some] = by_pixel.permute(0, 3, 1, 2)
    return y


def seg_score_backward(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`ddn_fast.ops.seg_score_backward`."""
    grad_x = map_like(x, x.shape)
    return grad_x, *_score_gradients("seg_score_backward", grad_y, x, scale, shift, weight, grad_x)


def seg_score_backward_vectors(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`ddn_fast.ops.seg_score_backward_vectors`."""
    return _score_gradients("seg_score_backward_vectors", grad_y, x, scale, shift, weight, None)


def register() -> None:
    """Gives torch what runs on CUDA; the schemas must be there."""
    for kernel in (
        deconv3x3_moments,
        deconv3x3_moments_backward,
        deconv3x3_moments_backward_score,
        seg_score,
        seg_score_backward,
        seg_score_backward_vectors,
    ):
        torch.library.register_kernel(f"ddn_fast::{kernel.__name__}", "cuda")(without_autocast(kernel))


def _parts(*maps: Tensor) -> Iterator[slice]:
    """Images in parts of at most AT_ONCE bytes of the largest map."""
    images = len(maps[0])
    step = max(1, AT_ONCE // max(4 * one.numel() // images for one in maps))
    return (slice(first, first + step) for first in range(0, images, step))


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _activated(x: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None, some: slice) -> Tensor:
    """What a layer convolves of some images."""
    a = torch.addcmul(_by_channel(shift), x[some], _by_channel(scale)).relu_().to(x.dtype)
    if switches is None:
        return a
    return torch.ops.ddn_fast.max_unpool2x2.default(a, switches[some], 2 * x.shape[2], 2 * x.shape[3])


def _through_activation(grad_a: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, float32, scale and shift, from that of ``relu(scale * x + shift)``."""
    grad = grad_a.float() * (torch.addcmul(_by_channel(shift), x, _by_channel(scale)) > 0)
    of_scale, of_shift = (grad * x).sum((0, 2, 3)), grad.sum((0, 2, 3))
    return grad.mul_(_by_channel(scale)), of_scale, of_shift


def _through_score(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the gradient of the two scores."""
    grad_a = (grad_y.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)
    return _through_activation(grad_a, x, scale, shift)


def _layer_gradients(
    gradient_of: Callable[[slice], Tensor], layer: LayerBackward
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a layer for x, weight, scale and shift; `gradient_of` some images is that of their y."""
    grad_mean, grad_var, y, mean, x, weight, scale, shift, switches = layer
    count, rounded = y.numel() // y.shape[1], weight.to(x.dtype)
    grad_x, *sums = layer.gradients()
    grad_weight, grad_scale, grad_shift = (total.zero_() for total in sums)
    for some in _parts(x, y):
        of_moments = (y[some].float() - _by_channel(mean)).mul_(_by_channel(2 * grad_var / count))
        grad = of_moments.add_(_by_channel(grad_mean / count)).add_(gradient_of(some)).to(x.dtype)
        del of_moments
        grad_a, of_weight, _ = torch.ops.aten.convolution_backward.default(
            grad, _activated(x, scale, shift, switches, some), rounded,
            None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1, [True, True, False],
        )  # fmt: skip
        del grad
        if switches is not None:
            grad_a = torch.ops.ddn_fast.gather2x2.default(grad_a, switches[some])
        grad_x[some], of_scale, of_shift = _through_activation(grad_a, x[some], scale, shift)
        grad_weight += of_weight
        grad_scale += of_scale
        grad_shift += of_shift
    return grad_x, grad_weight, grad_scale, grad_shift


def _score_gradients(
    op: str, grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, grad_x: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the score for scale, shift, weight and bias, and for x where it is to be written."""
    check_score(op, x, scale, shift, weight)
    check_vector(op, "grad_y", grad_y, x.shape[0], 2, x.shape[2], x.shape[3])
    grad_scale, grad_shift, grad_weight = torch.zeros_like(scale), torch.zeros_like(shift), torch.zeros_like(weight)
    for some in _parts(x):
        of_x, of_scale, of_shift = _through_score(grad_y[some], x[some], scale, shift, weight)
        if grad_x is not None:
            grad_x[some] = of_x
        pixels = _activated(x, scale, shift, None, some).permute(0, 2, 3, 1).flatten(0, 2)
        grad_weight += grad_y[some].permute(0, 2, 3, 1).flatten(0, 2).T @ pixels.float()
        grad_scale += of_scale
        grad_shift += of_shift
    return grad_scale, grad_shift, grad_weight, grad_y.sum((0, 2, 3))
