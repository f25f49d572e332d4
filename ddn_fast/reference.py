"""Each fused op as its plain formula: same names, same arguments and results as in :mod:`ddn_fast.ops`.

These are the definitions. They run anywhere, in any floating dtype, are differentiable by plain autograd, and are what
the fused ops are tested against. Maps are ``[B,C,H,W]`` in any memory format; a switch map is ``[B,h,w,ceil(C/4)]``
uint8, channel ``c`` in bits ``2*(c%4)`` of byte ``c//4``, value ``2*dy + dx`` of the winner in its 2x2 window.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .config import MEAN_BGR
from .images import resize_matlab, resize_taps, weighted_rows
from .packing import unpack_conv3x3

_Table = tuple[NDArray[np.int64], NDArray[np.float64]]

OPS = (  # those with a fused twin in ddn_fast.ops
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
)


def network_input(image: Tensor, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The network's input ``[3,side,side]`` from an image (SPEC section 1).

    image ``[H,W,3]`` uint8, red, green, blue. Zero padding at the bottom and right to a square, MATLAB's bilinear
    resize, blue before red, minus MEAN_BGR, all in float64; rounded to float32, and from there to `dtype`. The square
    is not made: taps in the padding add nothing. Rows of the result come in bands of 32, for each of which a part of
    the image is held in float64.
    """
    height, width = image.shape[:2]
    index, weight = resize_taps(max(height, width), side, "bilinear")
    bands = []
    for first in range(0, side, 32):
        rows, of_rows = _within(index[first : first + 32], weight[first : first + 32], height)
        low, high = int(rows.min()), int(rows.max()) + 1
        bands.append(weighted_rows(image[low:high].double(), rows - low, of_rows))
    y = weighted_rows(torch.cat(bands).transpose(0, 1), *_within(index, weight, width))  # [S,S,3], columns first
    mean = torch.tensor(MEAN_BGR, dtype=torch.float64, device=image.device)
    return (y.permute(2, 1, 0).flip(0) - mean[:, None, None]).float().to(dtype).contiguous()


def _within(index: NDArray[np.int64], weight: NDArray[np.float64], size: int) -> _Table:
    """A resize's table where the signal ends at `size` and zeros follow."""
    return np.minimum(index, size - 1), np.where(index < size, weight, 0.0)


def pack_switches(position: Tensor) -> Tensor:
    """Positions 0..3 ``[B,C,h,w]`` (any integer dtype) to switches ``[B,h,w,ceil(C/4)]`` uint8 (SPEC identity 7)."""
    by_channel = F.pad(position.permute(0, 2, 3, 1).to(torch.uint8), (0, -position.shape[1] % 4))
    four = by_channel.unflatten(3, (-1, 4))
    return four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6


def unpack_switches(switches: Tensor, channels: int) -> Tensor:
    """The reverse: switches ``[B,h,w,ceil(C/4)]`` to positions ``[B,C,h,w]`` uint8."""
    four = torch.stack([switches >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    return four.flatten(3)[..., :channels].permute(0, 3, 1, 2)


def max_pool2x2(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling, stride 2, that remembers which of the four won (SPEC section 2).

    x ``[B,C,H,W]``; returns y ``[B,C,ceil(H/2),ceil(W/2)]`` and its switches. On a tie the first in row-major order
    wins; a window that sticks out over an odd edge holds only what exists.
    """
    y, index = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    width = x.shape[3]
    return y, pack_switches(2 * (index // width % 2) + index % width % 2)


def max_unpool2x2(x: Tensor, switches: Tensor, height: int, width: int, image_of_pass: Tensor | None = None) -> Tensor:
    """Put each value at the place its switch names, 0 at the other three (SPEC section 6).

    x ``[P,C,h,w]``, switches ``[B,h,w,ceil(C/4)]``, image_of_pass ``[P]`` (which image's switches a pass uses; without
    it B = P); returns ``[P,C,height,width]`` with ``h = ceil(height/2)``, ``w = ceil(width/2)``.
    """
    position = unpack_switches(switches, x.shape[1])
    if image_of_pass is not None:
        position = position[image_of_pass]
    four = torch.stack([torch.where(position == k, x, 0) for k in range(4)], dim=2)
    return F.pixel_shuffle(four.flatten(1, 2), 2)[:, :, :height, :width]


def gather2x2(x: Tensor, switches: Tensor, image_of_pass: Tensor | None = None) -> Tensor:
    """Pick from each 2x2 window the value its switch names: the transpose of :func:`max_unpool2x2`, and its gradient.

    x ``[P,C,H,W]``, switches ``[B,h,w,ceil(C/4)]``, image_of_pass ``[P]`` as there; returns ``[P,C,h,w]``. A switch
    that names a place outside an odd edge picks 0.
    """
    position = unpack_switches(switches, x.shape[1])
    if image_of_pass is not None:
        position = position[image_of_pass]
    even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    windows = even.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)  # [P,C,h,w,4]
    return windows.gather(4, position[..., None].long())[..., 0]


def conv3x3(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> Tensor:
    """One stage of the network: 3x3 convolutions that follow each other, each with zero padding, bias and ReLU.

    x ``[N,C,H,W]``; with `switches` x is the pooled map ``[P,C,h,w]`` and is unpooled first, to H = 2h, W = 2w, by
    ``[B,h,w,ceil(C/4)]`` and image_of_pass ``[P]`` as in :func:`max_unpool2x2` (identity 8: the unpooled map need not
    exist). weights: of each layer, packed by :mod:`ddn_fast.packing`; biases ``[O]`` float32. Returns ``[N,O,H,W]`` in
    x's dtype. A transposed convolution is packed as identity 9 has it; batch normalisation folds into both (6).
    """
    if switches is not None:
        x = max_unpool2x2(x, switches, 2 * x.shape[2], 2 * x.shape[3], image_of_pass)
    for weight, bias in zip(weights, biases, strict=True):
        plain = unpack_conv3x3(weight, len(bias), x.shape[1]).to(x.dtype)
        x = F.relu(F.conv2d(x, plain, bias.to(x.dtype), padding=1))
    return x


def conv3x3_max_pool2x2(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`conv3x3`, then :func:`max_pool2x2`: the stages of the encoder. H and W are even.

    Returns y ``[N,O,H/2,W/2]`` and its switches ``[N,H/2,W/2,ceil(O/4)]``.
    """
    return max_pool2x2(conv3x3(x, weights, biases, switches, image_of_pass))


def conv3x3_score(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    score_weight: Tensor,
    score_bias: Tensor,
    switches: Tensor | None = None,
    image_of_pass: Tensor | None = None,
) -> Tensor:
    """:func:`conv3x3`, then a 1x1 convolution to one channel: the last stage of the decoder.

    score_weight ``[O]``, score_bias ``[1]``, float32: foreground minus background (identity 5: the softmax over both is
    the sigmoid of the result). Returns ``[N,H,W]``, float32 at least.
    """
    y = conv3x3(x, weights, biases, switches, image_of_pass)
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    return torch.einsum("nchw,c->nhw", y, score_weight.to(y.dtype)) + score_bias.to(y.dtype)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then perhaps ReLU: fc6, fc7 and their kin as products of matrices.

    x ``[M,K]``, weight ``[N,K]``, bias ``[N]`` float32; returns ``[M,N]``, float32 at least. Values are rounded to
    weight's dtype before they are multiplied and summed in float32 (float64 stays as it is: an oracle).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype != torch.float64:
        x = x.to(weight.dtype)
    y = x.to(wide) @ weight.to(wide).T
    if bias is not None:
        y = y + bias.to(y.dtype)
    return F.relu(y) if relu else y


def dense_outer(a: Tensor, b: Tensor) -> Tensor:
    """``a.T @ b``: the sum of the outer products of their rows, of which the gradients of :func:`dense` are made.

    a ``[D,R]``, b ``[D,C]``; returns ``[R,C]``.
    """
    return a.T @ b


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

    cls_weight ``[L,F]``, fc7_weight ``[F,F]``, fc6_weight ``[F,K]``: the head's forward weights, K = kernel^2 * C.
    fc6, fc7 ``[B,G*G,F]``: the head's activations after ReLU, of which it only matters where they are > 0. position
    ``[B,L]`` int64 in 0..G*G-1. image, label ``[Q]`` int64: the pairs wanted. Returns ``[Q,K]``, float32 at least, for
    y_l = 1 (identity 2: any pass is the sum of its labels' windows times y). It belongs at the place `position` names.
    """
    dtype = torch.promote_types(fc7_weight.dtype, torch.float32)
    at = position[image, label]
    g7 = cls_weight[label].to(dtype) * (fc7[image, at] > 0)
    g6 = (g7 @ fc7_weight.to(dtype)) * (fc6[image, at] > 0)
    return g6 @ fc6_weight.to(dtype)


def pixel_scores(difference: Tensor, classes: int) -> Tensor:
    """Scores of background and K classes at every pixel of the network's output, summing to 1 (SPEC section 7.3).

    difference ``[P,S,S]``: foreground minus background seg-score of the image's passes, the pass of all K = `classes`
    labels first; with K = 1 the one pass is both (identity 4). Returns ``[K+1,S,S]``, background first.
    """
    # sigmoid(-d), not 1 - sigmoid(d): the rule below tests for exact zeros
    scores = torch.cat([torch.sigmoid(-difference[:1]), torch.sigmoid(difference[-classes:])])
    total = scores.sum(0)
    nothing = total <= 0
    return (scores + nothing) / (total + nothing * (classes + 1))


def merge_scores(difference: Tensor, classes: int, square: int, crop: list[int]) -> Tensor:
    """Label map of one image from its passes (SPEC section 7.3): ``[h,w]`` uint8, 0 background, k the k-th class.

    difference ``[P,S,S]`` and `classes` as in :func:`pixel_scores`. The scores are resized to the padded square
    (`square` pixels a side, MATLAB's bicubic), cropped to the image (`crop` = h, w); the first maximum wins.
    """
    planes = pixel_scores(difference, classes)
    best = resize_matlab(planes[0], (square, square), "bicubic", (crop[0], crop[1]))
    label = torch.zeros(crop, dtype=torch.uint8, device=difference.device)
    for k in range(1, classes + 1):  # one plane at a time: a large image has room for few
        plane = resize_matlab(planes[k], (square, square), "bicubic", (crop[0], crop[1]))
        label.masked_fill_(plane > best, k)
        best = torch.maximum(best, plane)
    return label


def deconv3x3_moments(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer of the segmentation network in training (SPEC section 6): a 3x3 transposed convolution, and its moments.

    x ``[N,C,h,w]``: what the layer before gave, normalised and cut off here, ``relu(scale * x + shift)`` with scale and
    shift ``[C]``; with switches ``[N,h,w,ceil(C/4)]`` then unpooled to H = 2h, W = 2w (identity 8). weight
    ``[C,O,3,3]``, without a bias: batch normalisation takes it away again. Returns y ``[N,O,H,W]`` in x's dtype, and
    its mean and biased variance over N, H and W, ``[O]`` in weight's dtype, in which everything is computed.
    """
    y = F.conv_transpose2d(_activated(x, scale, shift, switches), weight, padding=1)
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    return y.to(x.dtype), mean, var


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

    Beside its arguments it takes what it returned: y and mean. Shapes and dtypes as there.
    """
    count = y.numel() // y.shape[1]
    of_moments = _by_channel(grad_mean) + 2 * _by_channel(grad_var) * (y.to(weight.dtype) - _by_channel(mean))
    grad = grad_y.to(weight.dtype) + of_moments / count
    grad_weight = conv2d_weight(grad, list(weight.shape), _activated(x, scale, shift, switches), padding=1)
    grad_a = F.conv2d(grad, weight, padding=1)
    if switches is not None:
        grad_a = gather2x2(grad_a, switches)
    grad_x, grad_scale, grad_shift = _activation_gradients(grad_a, x, scale, shift)
    return grad_x, grad_weight, grad_scale, grad_shift


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

    grad_score ``[N,2,H,W]`` stands for grad_y, which is what ``seg_score(y, score_scale, score_shift, score_weight,
    ..)`` gives back. The rest as there.
    """
    grad_y = seg_score_backward(grad_score, y, score_scale, score_shift, score_weight)[0]
    return deconv3x3_moments_backward(grad_y, grad_mean, grad_var, y, mean, x, weight, scale, shift, switches)


def seg_score(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The two seg-scores in training (SPEC section 6): a 1x1 convolution of ``relu(scale * x + shift)``.

    x ``[N,C,H,W]``, scale and shift ``[C]``, weight ``[2,C]``, bias ``[2]``; returns ``[N,2,H,W]`` (background,
    foreground) in weight's dtype, in which it is computed.
    """
    return F.conv2d(_activated(x, scale, shift), weight[:, :, None, None], bias)


def seg_score_backward(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`seg_score` for x, scale, shift, weight and bias, from grad_y ``[N,2,H,W]``."""
    grad_weight = torch.einsum("nkhw,nchw->kc", grad_y, _activated(x, scale, shift))
    grad_a = torch.einsum("nkhw,kc->nchw", grad_y, weight)
    return *_activation_gradients(grad_a, x, scale, shift), grad_weight, grad_y.sum((0, 2, 3))


def seg_score_backward_vectors(
    grad_y: Tensor, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of :func:`seg_score_backward` that are not maps: for scale, shift, weight and bias."""
    return seg_score_backward(grad_y, x, scale, shift, weight)[1:]


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _activated(x: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None = None) -> Tensor:
    """What batch normalisation, by its scale and shift, and ReLU make of x; unpooled where there are switches."""
    a = F.relu(x.to(scale.dtype) * _by_channel(scale) + _by_channel(shift))
    return a if switches is None else max_unpool2x2(a, switches, 2 * x.shape[2], 2 * x.shape[3])


def _activation_gradients(grad_a: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x (in its dtype), scale and shift, from that of ``relu(scale * x + shift)``."""
    wide = x.to(scale.dtype)
    grad = grad_a * (wide * _by_channel(scale) + _by_channel(shift) > 0)
    return (grad * _by_channel(scale)).to(x.dtype), (grad * wide).sum((0, 2, 3)), grad.sum((0, 2, 3))
