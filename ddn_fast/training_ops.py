"""The fused ops of training, part of :mod:`ddn_fast.ops`: layers of the segmentation network and their gradients.

    x -> relu(scale * x + shift) -> unpool -> transposed 3x3 convolution -> y, mean, var
                  |_______________ batch normalisation of the layer before, as its scale and shift

One op is a layer: it normalises where it reads, so that neither the normalised nor the unpooled map ever exists, and
what is kept for the gradients is x, y and 2-bit switches. Between two ops stand vectors of one value a channel: batch
normalisation is plain torch there, and so is its synchronisation among processes.

Maps are float32 or bfloat16 in any strides, results channels_last; weights, vectors and all sums are float32. Results
do not depend on the number of threads. On the CPU convolutions are winograd's F(4x4, 3x3) in float; CUDA's side is
:mod:`ddn_fast.training_ops_cuda`. Gradients of gradients are not there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_Context = Any  # torch's autograd context has no public type


def deconv3x3_moments(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of the segmentation network in training (SPEC section 6): a 3x3 transposed convolution, and its moments.

    x ``[N,C,h,w]``: what the layer before gave, normalised and cut off here, ``relu(scale * x + shift)`` with scale and
    shift ``[C]``; with switches ``[N,h,w,ceil(C/4)]`` then unpooled to H = 2h, W = 2w (identity 8). weight
    ``[C,O,3,3]`` (channels_last is native). N at least 1, C and O at least 4. Returns y ``[N,O,H,W]`` in x's dtype, and
    its mean and biased variance over N, H and W, ``[O]`` float32, which are summed row by row around each row's own
    mean: no large number is subtracted from another.
    """
    return torch.ops.ddn_fast.deconv3x3_moments.default(x, weight, scale, shift, switches)


def deconv3x3_moments_backward(
    grad_y: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    y: Tensor,
    mean: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    switches: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`deconv3x3_moments` for x, weight, scale and shift, from those of its three results.

    Beside its arguments it takes what it returned: y and mean. grad_y is of x's dtype; shapes as there.
    """
    return torch.ops.ddn_fast.deconv3x3_moments_backward.default(
        grad_y, grad_mean, grad_var, y, mean, x, weight, scale, shift, switches
    )


def deconv3x3_moments_backward_score(
    grad_score: Tensor,
    score_scale: Tensor,
    score_shift: Tensor,
    score_weight: Tensor,
    grad_mean: Tensor,
    grad_var: Tensor,
    y: Tensor,
    mean: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    switches: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`deconv3x3_moments_backward` where y goes to :func:`seg_score` alone, from that one's gradient.

    grad_score ``[N,2,H,W]`` float32 stands for grad_y, which is what ``seg_score(y, score_scale, score_shift,
    score_weight, ..)`` gives back: formed where it is read, it is never a map of O channels. The rest as there.
    """
    return torch.ops.ddn_fast.deconv3x3_moments_backward_score.default(
        grad_score, score_scale, score_shift, score_weight, grad_mean, grad_var, y, mean, x, weight, scale, shift,
        switches,
    )  # fmt: skip


def seg_score(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The two seg-scores in training (SPEC section 6): a 1x1 convolution of ``relu(scale * x + shift)``.

    x ``[N,C,H,W]``, scale and shift ``[C]``, weight ``[2,C]``, bias ``[2]``; returns ``[N,2,H,W]`` float32 (background,
    foreground).
    """
    return torch.ops.ddn_fast.seg_score.default(x, scale, shift, weight, bias)


def seg_score_backward(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`seg_score` for x, scale, shift, weight and bias, from grad_y ``[N,2,H,W]``."""
    return torch.ops.ddn_fast.seg_score_backward.default(grad_y, x, scale, shift, weight)


def seg_score_backward_vectors(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of :func:`seg_score_backward` that are not maps: for scale, shift, weight and bias."""
    return torch.ops.ddn_fast.seg_score_backward_vectors.default(grad_y, x, scale, shift, weight)


def register() -> None:
    """Gives torch the fake kernels and the gradients; the schemas must be there."""
    library = torch.library
    for name, fake in (
        ("deconv3x3_moments", _moments_fake),
        ("deconv3x3_moments_backward", _moments_backward_fake),
        ("deconv3x3_moments_backward_score", _moments_backward_score_fake),
        ("seg_score", _score_fake),
        ("seg_score_backward", _score_backward_fake),
        ("seg_score_backward_vectors", _score_backward_vectors_fake),
    ):
        library.register_fake(f"ddn_fast::{name}")(fake)
    library.register_autograd("ddn_fast::deconv3x3_moments", _moments_gradient, setup_context=_moments_context)
    library.register_autograd("ddn_fast::seg_score", _score_gradient, setup_context=_score_context)


# contracts


def _check(condition: bool, op: str, text: str) -> None:
    torch._check(condition, lambda: f"{op}: {text}")


def _check_map(op: str, name: str, x: Tensor) -> None:
    _check(
        x.dtype in (torch.float32, torch.bfloat16) or (x.is_cuda and x.dtype == torch.float16),
        op, f"{name} must be Float or BFloat16{', or Half' if x.is_cuda else ''}, got {x.dtype}",
    )  # fmt: skip
    _check(x.dim() == 4 and x.numel() > 0, op, f"{name} must be [N,C,H,W] with no empty axis, got {list(x.shape)}")


def check_vector(op: str, name: str, value: Tensor, *shape: int) -> None:
    """A float32 tensor of this shape."""
    _check(value.dtype == torch.float32, op, f"{name} must be Float, got {value.dtype}")
    _check(list(value.shape) == list(shape), op, f"{name} must be {list(shape)}, got {list(value.shape)}")


def layer_size(
    op: str, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None
) -> tuple[int, int, int, int]:
    """Shape of what a layer gives; its arguments checked."""
    _check_map(op, "x", x)
    maps, channels, height, width = x.shape
    fits = weight.dim() == 4 and weight.shape[0] == channels and tuple(weight.shape[2:]) == (3, 3)
    _check(fits, op, f"weight must be [{channels},O,3,3], got {list(weight.shape)}")
    _check(weight.dtype == torch.float32, op, f"weight must be Float, got {weight.dtype}")
    check_vector(op, "scale", scale, channels)
    check_vector(op, "shift", shift, channels)
    if switches is None:
        return maps, weight.shape[1], height, width
    wanted = [maps, height, width, (channels + 3) // 4]
    _check(list(switches.shape) == wanted, op, f"switches must be {wanted}, got {list(switches.shape)}")
    return maps, weight.shape[1], 2 * height, 2 * width


def map_like(like: Tensor, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A new channels_last map of this shape on the device of `like`, in its dtype where none is named."""
    dtype = like.dtype if dtype is None else dtype
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _moments_fake(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    shape = layer_size("deconv3x3_moments", x, weight, scale, shift, switches)
    return map_like(x, shape), scale.new_empty(shape[1]), scale.new_empty(shape[1])


class LayerBackward(NamedTuple):
    """What both gradients of a layer take beside that of y, in the order of their schemas."""

    grad_mean: Tensor
    grad_var: Tensor
    y: Tensor
    mean: Tensor
    x: Tensor
    weight: Tensor
    scale: Tensor
    shift: Tensor
    switches: Tensor | None = None

    def check(self, op: str) -> list[int]:
        """The shape of y; everything checked."""
        shape = list(layer_size(op, self.x, self.weight, self.scale, self.shift, self.switches))
        check_like_y(op, "y", self.y, self.x, shape)
        for name in ("mean", "grad_mean", "grad_var"):
            check_vector(op, name, getattr(self, name), shape[1])
        return shape

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New tensors for the gradients of x, weight, scale and shift."""
        vectors = self.scale.new_empty(self.scale.shape), self.shift.new_empty(self.shift.shape)
        return map_like(self.x, self.x.shape), map_like(self.weight, self.weight.shape), *vectors


def _moments_backward_fake(grad_y: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op, layer = "deconv3x3_moments_backward", LayerBackward(*others)
    check_like_y(op, "grad_y", grad_y, layer.x, layer.check(op))
    return layer.gradients()


def _moments_backward_score_fake(
    grad_score: Tensor, score_scale: Tensor, score_shift: Tensor, score_weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op, layer = "deconv3x3_moments_backward_score", LayerBackward(*others)
    check_of_score(op, grad_score, score_scale, score_shift, score_weight, layer.check(op))
    return layer.gradients()


def check_of_score(op: str, grad_score: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, shape: list[int]) -> None:
    """What stands for the gradient of y, which is of this shape."""
    maps, outputs, *size = shape
    check_vector(op, "grad_score", grad_score, maps, 2, *size)
    check_vector(op, "score_scale", scale, outputs)
    check_vector(op, "score_shift", shift, outputs)
    check_vector(op, "score_weight", weight, 2, outputs)


def check_like_y(op: str, name: str, value: Tensor, x: Tensor, shape: list[int]) -> None:
    """A map of this shape, in x's dtype."""
    _check(list(value.shape) == shape, op, f"{name} must be {shape}, got {list(value.shape)}")
    _check(value.dtype == x.dtype, op, f"{name} must be {x.dtype}, got {value.dtype}")


def _score_fake(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    check_score("seg_score", x, scale, shift, weight)
    check_vector("seg_score", "bias", bias, 2)
    return map_like(x, (x.shape[0], 2, x.shape[2], x.shape[3]), torch.float32)


def check_score(op: str, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> None:
    """What seg_score and its gradients read."""
    _check_map(op, "x", x)
    check_vector(op, "scale", scale, x.shape[1])
    check_vector(op, "shift", shift, x.shape[1])
    check_vector(op, "weight", weight, 2, x.shape[1])


def _score_backward_fake(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return map_like(x, x.shape), *_score_vectors("seg_score_backward", grad_y, x, scale, shift, weight)


def _score_backward_vectors_fake(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _score_vectors("seg_score_backward_vectors", grad_y, x, scale, shift, weight)


def _score_vectors(
    op: str, grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_score(op, x, scale, shift, weight)
    check_vector(op, "grad_y", grad_y, x.shape[0], 2, x.shape[2], x.shape[3])
    vectors = scale.new_empty(scale.shape), shift.new_empty(shift.shape), weight.new_empty(weight.shape)
    return *vectors, weight.new_empty(2)


# gradients


def _moments_context(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, scale, shift, switches = inputs
    ctx.save_for_backward(output[0], output[1], x, weight, scale, shift, switches)


def _moments_gradient(ctx: _Context, grad_y: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
    return *deconv3x3_moments_backward(grad_y, grad_mean, grad_var, *ctx.saved_tensors), None


def _score_context(ctx: _Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _score_gradient(ctx: _Context, grad_y: Tensor) -> tuple[Tensor, ...]:
    return seg_score_backward(grad_y, *ctx.saved_tensors)
