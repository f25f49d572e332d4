"""Pieces of the network as an expert runs them in stock PyTorch: the rivals of this project's ops.

On a CPU convolutions and dense layers call oneDNN with weights packed beforehand and the ReLU fused, which is what
inductor's frozen graphs call too; on CUDA cuDNN and cuBLAS, with bias and ReLU apart unless a name says otherwise. Maps
are channels_last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddn_fast.config import MEAN_BGR
from ddn_fast.images import resize_matlab


def on_cuda(x: Tensor) -> bool:
    """Whether x is on a CUDA device, so that its libraries are the rivals."""
    return x.is_cuda


def channels_last(x: Tensor) -> Tensor:
    """x in memory order NHWC."""
    return x.contiguous(memory_format=torch.channels_last)


def pack_conv(weight: Tensor, padding: int, shape: tuple[int, ...]) -> Tensor:
    """weight ``[O,C,k,k]`` as oneDNN wants it for maps of `shape` ``[N,C,H,W]``, or as cuDNN does."""
    if on_cuda(weight):
        return channels_last(weight)
    pads = [padding, padding]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, pads, [1, 1], [1, 1], 1, list(shape))


def conv(x: Tensor, packed: Tensor, bias: Tensor, padding: int = 1, relu: bool = True) -> Tensor:
    """oneDNN's packed convolution with its ReLU in one call, or cuDNN's; x channels_last, bias in x's dtype."""
    if on_cuda(x):
        y = F.conv2d(x, packed, bias, padding=padding)
        return y.relu_() if relu else y
    pads, after = [padding, padding], "relu" if relu else "none"
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, pads, [1, 1], [1, 1], 1, after, [], "")


def conv_fused(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """cuDNN's convolution with bias and ReLU in one call, which torch has but does not choose by itself."""
    return torch.cudnn_convolution_relu(x, packed, bias, (1, 1), (1, 1), (1, 1), 1)


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """weight ``[N,K]`` as oneDNN wants it for inputs of `rows` rows; cuBLAS takes it as it is."""
    if on_cuda(weight):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """oneDNN's packed ``x @ weight.T + bias`` with its ReLU in one call, or cuBLAS's."""
    if on_cuda(x):
        y = F.linear(x, packed, bias)
        return y.relu_() if relu else y
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "relu" if relu else "none", [], "")


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling with torch's int64 indices, both channels_last."""
    return F.max_pool2d(x, 2, 2, return_indices=True)


def max_unpool(x: Tensor, index: Tensor, image_of_pass: Tensor) -> Tensor:
    """Unpool x ``[P,C,h,w]`` by the indices ``[B,C,h,w]`` of each pass's image.

    On the CPU pass by pass: that beats gathering a full set of 64-bit indices for every pass. On CUDA that would wait
    for image_of_pass, and torch's result is not channels_last.
    """
    if len(x) == len(index) == 1:
        return channels_last(F.max_unpool2d(x, index, 2, 2)) if on_cuda(x) else F.max_unpool2d(x, index, 2, 2)
    if on_cuda(x):
        return channels_last(F.max_unpool2d(x, index[image_of_pass], 2, 2))
    passes = enumerate(image_of_pass.tolist())
    return torch.cat([F.max_unpool2d(x[p : p + 1], index[i : i + 1], 2, 2) for p, i in passes])


def gather(x: Tensor, index: Tensor, image_of_pass: Tensor) -> Tensor:
    """Pick the values of x ``[P,C,H,W]`` at the indices ``[B,C,h,w]``: the gradient of unpooling."""
    picked = index[image_of_pass]
    return x.flatten(2).gather(2, picked.flatten(2)).view(picked.shape)


def network_input(image: Tensor, side: int) -> Tensor:
    """An image ``[H,W,3]`` uint8 in the network's form ``[3,S,S]``: MATLAB's filter as torch's sums of rows."""
    height, width = image.shape[:2]
    x = F.pad(image.permute(2, 0, 1).flip(0).float(), (0, max(height, width) - width, 0, max(height, width) - height))
    return resize_matlab(x, (side, side), "bilinear") - torch.tensor(MEAN_BGR, device=x.device)[:, None, None]


def merge(difference: Tensor, classes: int, square: int, crop: tuple[int, int]) -> Tensor:
    """``merge_scores`` with torch's bicubic filter, rows cropped before columns are made, and no arg max over planes.

    torch cuts the filter off at borders where MATLAB mirrors: labels of the outermost pixels may differ.
    """
    planes = torch.cat([torch.sigmoid(-difference[:1]), torch.sigmoid(difference[-classes:])])
    total = planes.sum(0)
    nothing = total <= 0
    if on_cuda(total) or bool(nothing.any()):  # reading it there would wait
        planes, total = planes + nothing, torch.where(nothing, classes + 1.0, total)
    planes = (planes / total)[None]
    rows = F.interpolate(planes, size=(square, planes.shape[3]), mode="bicubic", antialias=True)[:, :, : crop[0]]
    resized = F.interpolate(rows, size=(crop[0], square), mode="bicubic", antialias=True)[0, :, :, : crop[1]]
    best, label = resized[0], torch.zeros(crop, dtype=torch.uint8, device=difference.device)
    for k in range(1, classes + 1):
        label.masked_fill_(resized[k] > best, k)
        best = torch.maximum(best, resized[k])
    return label


class TorchPooling:
    """Torch's own pooling with its indices under the names that :class:`ddn_fast.network.DecoupledNet` calls."""

    @staticmethod
    def max_pool2x2(x: Tensor) -> tuple[Tensor, Tensor]:
        """x ``[B,C,H,W]`` to the pooled map and int64 indices ``[B,C,H/2,W/2]``."""
        return max_pool(x)

    @staticmethod
    def max_unpool2x2(
        x: Tensor, switches: Tensor, height: int, width: int, image_of_pass: Tensor | None = None
    ) -> Tensor:
        """x ``[P,C,h,w]`` and indices ``[B,C,h,w]`` to ``[P,C,height,width]``."""
        index = switches if image_of_pass is None else switches[image_of_pass]
        return F.max_unpool2d(x, index, 2, 2, output_size=(height, width))
