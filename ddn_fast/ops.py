"""The fused ops: same names, arguments and results as their plain formulas in :mod:`ddn_fast.reference`.

Maps are logically ``[N,C,H,W]`` in any strides; channels_last is native, other layouts are converted once, and results
are channels_last. Switches are ``[B,h,w,ceil(C/4)]`` uint8 (see :mod:`ddn_fast.reference`). N may be 0; C, H and W may
not. Every op is deterministic and works under ``torch.compile``.

:func:`network_input` takes uint8 images and has no gradient; on CUDA it is put together from torch's own ops. Pooling
and unpooling take float32, float64, bfloat16 and float16, run on CPU and, where it was built, on CUDA, and can be
differentiated any number of times. The convolutions, the gate and the merge are for inference: backward through them
raises RuntimeError. Products of matrices in float32 (:mod:`ddn_fast.dense_ops`) and the ops of training
(:mod:`ddn_fast.training_ops`) can be differentiated. All of these take float32 or bfloat16, on CUDA weights in
float16, too (:func:`merge_scores`: float32 or float64; the convolutions on CUDA: bfloat16 or float16, with weights of
that dtype in the pairs layout). On the CPU they use the best of the machine's instruction sets, up to the one that the
environment variable ``DDN_MAX_CPU_ISA`` names (see ``ddn-fast info``).

A wrong argument raises ``RuntimeError`` with a message "op: argument must be WANTED, got GOT", as torch's own ops do.

Each function below is one op; beside it stand its fake kernel (shapes, strides and dtypes without values) and its
gradient. Kernels: ``csrc/cpu`` and ``csrc/cuda``, one file per op; ``csrc/torch/ops_*.cpp`` check and launch.
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

from . import dense_ops, reference, training_ops, training_ops_cuda
from .dense_ops import check_float, check_shape, dense, dense_outer
from .training_ops import (
    deconv3x3_moments,
    deconv3x3_moments_backward,
    deconv3x3_moments_backward_score,
    seg_score,
    seg_score_backward,
    seg_score_backward_vectors,
)

__all__ = [  # noqa: RUF022  in the order of reference.OPS
    "network_input",
    "max_pool2x2",
    "max_unpool2x2",
    "gather2x2",
    "conv3x3",
    "conv3x3_max_pool2x2",
    "conv3x3_score",
    "dense",
    "dense_outer",
    "class_gate",
    "merge_scores",
    "deconv3x3_moments",
    "deconv3x3_moments_backward",
    "deconv3x3_moments_backward_score",
    "seg_score",
    "seg_score_backward",
    "seg_score_backward_vectors",
]

_Context = Any  # torch's autograd context has no public type


def network_input(image: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The network's input ``[3,side,side]`` from an image (SPEC section 1).

    image ``[H,W,3]`` uint8, red, green, blue. Zero padding at the bottom and right to a square, MATLAB's bilinear
    resize, blue before red, minus MEAN_BGR. Sums are float64, so that constant areas stay constant, rounded to float32
    and from there to `dtype`, float32, bfloat16 or float16. Runs on the caller's thread alone and lets go of the GIL:
    threads prepare images beside each other.
    """
    return torch.ops.ddn_fast.network_input.default(image, side, dtype)


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


def conv3x3(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> Tensor:
    """One stage of the network: 3x3 convolutions that follow each other, each with zero padding, bias and ReLU.

    x ``[N,C,H,W]``; with switches ``[B,h,w,ceil(C/4)]`` x is the pooled map ``[N,C,h,w]``, H = 2h, W = 2w, unpooled as
    in :func:`max_unpool2x2` while it is read (identity 8); image_of_pass ``[N]`` int64 as there. weights: of each
    layer, packed by :mod:`ddn_fast.packing`; biases: ``[O]`` float32 each. Returns ``[N,O,H,W]`` in x's dtype. At most
    8 layers; all but the first, and that too where x is unpooled, take at least 4 channels.
    """
    return torch.ops.ddn_fast.conv3x3.default(x, weights, biases, switches, image_of_pass)


def conv3x3_max_pool2x2(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`conv3x3`, then :func:`max_pool2x2`, of even H and W: a stage of the encoder.

    Returns y ``[N,O,H/2,W/2]`` in x's dtype and its switches ``[N,H/2,W/2,ceil(O/4)]``.
    """
    return torch.ops.ddn_fast.conv3x3_max_pool2x2.default(x, weights, biases, switches, image_of_pass)


def conv3x3_score(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    score_weight: Tensor,
    score_bias: Tensor,
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> Tensor:
    """:func:`conv3x3`, then a 1x1 convolution to one channel: the last stage of the decoder (identity 5).

    score_weight ``[O]``, score_bias ``[1]``, float32. Returns ``[N,H,W]`` float32.
    """
    return torch.ops.ddn_fast.conv3x3_score.default(
        x, weights, biases, score_weight, score_bias, switches, image_of_pass
    )


def class_gate(
    cls_weight: Tensor,
    fc7_weight: Tensor,
    fc6_weight: Tensor,
    fc6: Tensor,
    fc7: Tensor,
    position: Tensor,
    image: Tensor,
    label: Tensor,
) -> Tensor:
    """The window of the class-specific activation map that label l of image i fills (section 4, identities 1, 2, 10).

    cls_weight ``[L,F]``, fc7_weight ``[F,F]``, fc6_weight ``[F,K]``: the head's forward weights, the last two of one
    dtype. fc6, fc7 ``[B,G*G,F]``: the head's activations after ReLU. position ``[B,L]`` int64 in 0..G*G-1. image, label
    ``[Q]`` int64: the pairs wanted. Returns ``[Q,K]`` float32, for y_l = 1. Only rows of weights that are on for one of
    the pairs are read, once for up to four pairs (eight on CUDA); no result of finite weights depends on which pairs
    stand beside it.
    """
    return torch.ops.ddn_fast.class_gate.default(cls_weight, fc7_weight, fc6_weight, fc6, fc7, position, image, label)


def merge_scores(difference: Tensor, classes: int, square: int, crop: list[int]) -> Tensor:
    """Label map of one image from its passes (SPEC section 7.3): ``[h,w]`` uint8, 0 background, k the k-th class.

    difference ``[P,S,S]`` float32 or float64: foreground minus background seg-score, the pass of all K = `classes`
    (1..254) labels first, P = K + 1; with K = 1 the one pass is both (identity 4). The scores are resized to `square`
    pixels a side by MATLAB's bicubic and cropped to `crop` = h, w; the first maximum wins. A label differs from that
    of the plain formula in float64 only where the two largest scores are closer than rounding: 1e-5 in float32.
    """
    return torch.ops.ddn_fast.merge_scores.default(difference, classes, square, crop)


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


def _check_stage_dtype(op: str, x: Tensor) -> None:
    wanted, names = (torch.float32, torch.bfloat16), "Float or BFloat16"
    if x.is_cuda:
        wanted, names = (torch.bfloat16, torch.float16), "BFloat16 or Half on CUDA"
    torch._check(x.dtype in wanted, lambda: f"{op}: x must be {names}, got {x.dtype}")


def _check_image(image: Tensor, side: int, dtype: torch.dtype) -> None:
    op = "network_input"
    torch._check(image.dtype == torch.uint8, lambda: f"{op}: image must be Byte, got {image.dtype}")
    torch._check(
        image.dim() == 3 and image.shape[0] > 0 and image.shape[1] > 0 and image.shape[2] == 3,
        lambda: f"{op}: image must be [H,W,3] with H and W at least 1, got {list(image.shape)}",
    )
    torch._check(side > 0, lambda: f"{op}: side must be at least 1, got {side}")
    wanted = (torch.float32, torch.bfloat16, torch.float16)
    torch._check(dtype in wanted, lambda: f"{op}: dtype must be Float, BFloat16 or Half, got {dtype}")


@torch.library.register_fake("ddn_fast::network_input")
def _network_input_fake(image: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    _check_image(image, side, dtype)
    return image.new_empty(3, side, side, dtype=dtype)


@torch.library.register_kernel("ddn_fast::network_input", "cuda")
def _network_input_cuda(image: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    # images are decoded on the host, and prepared there; where one is on the device already, torch's own ops do it
    _check_image(image, side, dtype)
    return reference.network_input(image, side, dtype)


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


def _stage_size(
    op: str,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None,
    image_of_pass: Tensor | None,
) -> tuple[int, int, int]:
    """Channels, height and width of what a stage's last layer gives."""
    _check_map(op, x)
    _check_stage_dtype(op, x)
    torch._check(
        len(weights) == len(biases) and len(weights) > 0,
        lambda: f"{op}: weights and biases must be of as many layers, at least 1, got {len(weights)} and {len(biases)}",
    )
    height, width = x.shape[2:]
    if switches is not None:
        _check_switches(op, x, height, width, switches, image_of_pass)
        height, width = 2 * height, 2 * width
    return biases[-1].shape[0], height, width


@torch.library.register_fake("ddn_fast::conv3x3")
def _conv3x3_fake(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> Tensor:
    return _channels_last(x, x.shape[0], *_stage_size("conv3x3", x, weights, biases, switches, image_of_pass))


@torch.library.register_fake("ddn_fast::conv3x3_max_pool2x2")
def _conv3x3_max_pool2x2_fake(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    op = "conv3x3_max_pool2x2"
    channels, height, width = _stage_size(op, x, weights, biases, switches, image_of_pass)
    torch._check(height % 2 == 0 and width % 2 == 0, lambda: f"{op}: H and W must be even, got {height} and {width}")
    y = _channels_last(x, x.shape[0], channels, height // 2, width // 2)
    return y, x.new_empty(x.shape[0], height // 2, width // 2, (channels + 3) // 4, dtype=torch.uint8)


@torch.library.register_fake("ddn_fast::conv3x3_score")
def _conv3x3_score_fake(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    score_weight: Tensor,
    score_bias: Tensor,
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> Tensor:
    channels, height, width = _stage_size("conv3x3_score", x, weights, biases, switches, image_of_pass)
    check_shape("conv3x3_score", "score_weight", score_weight, [channels])
    check_shape("conv3x3_score", "score_bias", score_bias, [1])
    return x.new_empty(x.shape[0], height, width, dtype=torch.float32)


def _check_matrix(op: str, name: str, tensor: Tensor, wanted: str) -> None:
    torch._check(tensor.dim() == 2, lambda: f"{op}: {name} must be {wanted}, got {list(tensor.shape)}")


@torch.library.register_fake("ddn_fast::class_gate")
def _class_gate_fake(
    cls_weight: Tensor,
    fc7_weight: Tensor,
    fc6_weight: Tensor,
    fc6: Tensor,
    fc7: Tensor,
    position: Tensor,
    image: Tensor,
    label: Tensor,
) -> Tensor:
    op = "class_gate"
    check_float(op, fc7_weight=fc7_weight, fc6_weight=fc6_weight)
    for name, tensor in (("cls_weight", cls_weight), ("fc6", fc6), ("fc7", fc7)):  # not float16, on CUDA either
        takes = tensor.dtype in (torch.float32, torch.bfloat16)
        torch._check(takes, lambda: f"{op}: {name} must be Float or BFloat16, got {tensor.dtype}")  # noqa: B023
    for name, tensor, wanted in (("cls_weight", cls_weight, "[L,F]"), ("fc6_weight", fc6_weight, "[F,K]")):
        _check_matrix(op, name, tensor, wanted)
    labels, features = cls_weight.shape
    check_shape(op, "fc7_weight", fc7_weight, [features, features])
    check_shape(op, "fc6_weight", fc6_weight, [features, fc6_weight.shape[1]])
    torch._check(
        fc6.dim() == 3 and fc6.shape[2] == features,
        lambda: f"{op}: fc6 must be [B,G*G,{features}], got {list(fc6.shape)}",
    )
    check_shape(op, "fc7", fc7, list(fc6.shape))
    check_shape(op, "position", position, [fc6.shape[0], labels])
    torch._check(image.dim() == 1, lambda: f"{op}: image must be [Q], got {list(image.shape)}")
    check_shape(op, "label", label, list(image.shape))
    return cls_weight.new_empty(image.shape[0], fc6_weight.shape[1], dtype=torch.float32)


@torch.library.register_fake("ddn_fast::merge_scores")
def _merge_scores_fake(difference: Tensor, classes: int, square: int, crop: list[int]) -> Tensor:
    torch._check(
        difference.dim() == 3 and difference.shape[1] == difference.shape[2],
        lambda: f"merge_scores: difference must be [P,S,S], got {list(difference.shape)}",
    )
    return difference.new_empty(*crop, dtype=torch.uint8)


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


def _register_without_gradient(op: str) -> None:
    purpose = "gives gradients" if "_backward" in op else "is for inference"

    def backward(ctx: _Context, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{op} has no gradient: it {purpose} (use ddn_fast.reference.{op}, or torch.no_grad around it)"
        )

    torch.library.register_autograd(f"ddn_fast::{op}", backward)


dense_ops.register()
training_ops.register()
training_ops_cuda.register()
for _op in (
    *("network_input", "conv3x3", "conv3x3_max_pool2x2", "conv3x3_score", "class_gate", "merge_scores"),
    *("deconv3x3_moments_backward", "deconv3x3_moments_backward_score"),
    *("seg_score_backward", "seg_score_backward_vectors"),
):
    _register_without_gradient(_op)
