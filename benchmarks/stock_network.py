"""DecoupledNet as an expert runs it in stock PyTorch, without one line of compiled code of this project.

It is given every identity of SPEC section 9 that stock PyTorch can use: the gate as two skinny products a label (1),
the labels' halves of fc6-seg once and summed (2, 3), no pass twice (4), one output channel (5), BN folded (6),
transposed convolutions as convolutions (9). Encoder, head, bridge and decoder are compiled with frozen weights; pooling
and unpooling stay outside of the compiler, which lowers them badly, as custom ops around torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import stock
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddn_fast.config import STAGE_CONVS
from ddn_fast.network import BN_EPS, BatchNorm, Bridge, Decoder, DecoupledNet, Encoder, Head


@torch.library.custom_op("ddn_stock::max_pool", mutates_args=())
def _max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    return stock.max_pool(stock.channels_last(x))


@_max_pool.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    y = stock.channels_last(x.new_empty(x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2))
    return y, torch.empty_like(y, dtype=torch.int64)


@torch.library.custom_op("ddn_stock::max_unpool", mutates_args=())
def _max_unpool(x: Tensor, index: Tensor, image_of_pass: Tensor) -> Tensor:
    return stock.max_unpool(stock.channels_last(x), index, image_of_pass)


@_max_unpool.register_fake
def _(x: Tensor, index: Tensor, image_of_pass: Tensor) -> Tensor:
    return stock.channels_last(x.new_empty(x.shape[0], x.shape[1], 2 * x.shape[2], 2 * x.shape[3]))


class StockNetwork:
    """What ``DecoupledNet`` offers to run batches: score_images, score_passes, input_like.

    mode  of torch.compile; on CUDA what a part gives holds until the next batch (CUDA graphs)
    """

    def __init__(self, model: DecoupledNet, dtype: torch.dtype, compiled: bool = True, mode: str | None = None) -> None:
        self.classes = model.config.num_classes
        self.like = torch.empty(0, dtype=dtype, device=model.input_like().device)
        with torch.no_grad():
            self.gate = _Gate(model.head, dtype)
            parts = (
                _Encoder(model.encoder),
                _Head(model.head),
                _Bridge(model.bridge, model.config.map_side),
                _Decoder(model.decoder),
            )
        prepared = [_prepare(part, dtype, compiled, mode) for part in parts]
        self.encoder, self.head, self.bridge, self.decoder = prepared

    def input_like(self) -> Tensor:
        """A tensor of the dtype that x must have."""
        return self.like

    @torch.no_grad()
    def score_images(self, x: Tensor) -> tuple[Tensor, Any]:
        """Scores ``[B,L]`` of x ``[B,3,S,S]``, and what :meth:`score_passes` needs."""
        if stock.on_cuda(x):  # results of the batch before are done with
            torch.compiler.cudagraph_mark_step_begin()
        pool5, indices = self.encoder(stock.channels_last(x))
        score_map, fc6, fc7 = self.head(pool5)
        scores = torch.sigmoid(score_map.mean(1))
        return scores, (pool5, indices, score_map.transpose(1, 2).argmax(2), fc6, fc7)

    @torch.no_grad()
    def score_passes(self, state: Any, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """Foreground minus background ``[P,S,S]`` float32 for labels ``[P,L]``."""
        pool5, indices, position, fc6, fc7 = state
        # a label's window is made once, however many passes it takes part in: keys are image and label
        used = labels.nonzero()
        keys, pair_of = (image_of_pass[used[:, 0]] * self.classes + used[:, 1]).unique(return_inverse=True)
        mix = torch.zeros(len(labels), len(keys))
        mix[used[:, 0], pair_of] = labels[used[:, 0], used[:, 1]].float()
        keys, mix, image_of_pass = (t.to(pool5.device, non_blocking=True) for t in (keys, mix, image_of_pass))
        maps = self.gate(keys // self.classes, keys % self.classes, position, fc6, fc7, pool5.shape)
        x = self.bridge(pool5, maps, mix, image_of_pass)
        return self.decoder(x, indices, image_of_pass)


def _prepare(part: nn.Module, dtype: torch.dtype, compiled: bool, mode: str | None) -> Callable[..., Any]:
    part = part.eval().requires_grad_(False).to(dtype)
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    if not compiled:
        return part
    import_module("torch._inductor.config").freezing = True  # weights are constants: packed once for oneDNN
    import_module("torch._dynamo.config").recompile_limit = 64  # one graph for each number of images and passes
    return torch.compile(part, dynamic=False, mode=mode)


def _affine(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    scale = bn.weight / torch.sqrt(bn.running_var + BN_EPS)
    return scale, bn.bias - bn.running_mean * scale


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """weight ``[O,C,k,k]``, 3x3 kernels padded."""
    size = weight.shape[2]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], size, padding=size // 2, device="meta")
    conv.weight, conv.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return conv


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """weight ``[N,K]``."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def _windows(x: Tensor, kernel: int) -> Tensor:
    """x ``[N,C,M,M]`` to the values under the kernel at each place ``[N,G*G,C*k*k]``."""
    return x.unfold(2, kernel, 1).unfold(3, kernel, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class _Encoder(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage, convs in enumerate(STAGE_CONVS, 1):
            layers = [encoder.get_submodule(f"conv{stage}_{k}") for k in range(1, convs + 1)]
            self.stages.append(nn.ModuleList(_conv(layer.weight, layer.bias) for layer in layers))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        indices = []
        for stage in self.stages:
            for conv in stage:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
            x, index = torch.ops.ddn_stock.max_pool(x)
            indices.append(index)
        return x, indices


class _Head(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.kernel = head.fc6.kernel_size[0]
        self.fc6 = _linear(head.fc6.weight.flatten(1), head.fc6.bias)
        self.fc7 = _linear(head.fc7.weight.flatten(1), head.fc7.bias)
        self.cls_score = _linear(head.cls_score.weight.flatten(1), head.cls_score.bias)

    def forward(self, pool5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score map ``[B,G*G,L]`` float32, fc6 and fc7 ``[B,G*G,F]``."""
        fc6 = F.relu(self.fc6(_windows(pool5, self.kernel)))
        fc7 = F.relu(self.fc7(fc6))
        return self.cls_score(fc7).float(), fc6, fc7


class _Gate:
    """Not compiled: two products, and windows whose places are data."""

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        self.kernel = head.fc6.kernel_size[0]
        self.cls = head.cls_score.weight.flatten(1).to(dtype)
        self.fc7 = head.fc7.weight.flatten(1).t().to(dtype).contiguous()
        self.fc6 = head.fc6.weight.flatten(1).t().to(dtype).contiguous()

    def __call__(
        self, image: Tensor, label: Tensor, position: Tensor, fc6: Tensor, fc7: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        """Maps ``[Q,C,M,M]`` of the pairs of image and label, for a score of 1."""
        at = position[image, label]
        g7 = self.cls[label] * (fc7[image, at] > 0)
        g6 = F.linear(g7, self.fc7) * (fc6[image, at] > 0)
        windows = F.linear(g6, self.fc6).view(-1, shape[1], self.kernel, self.kernel)
        maps = windows.new_zeros(len(windows), *shape[1:])
        grid = shape[2] - self.kernel + 1
        if stock.on_cuda(windows):  # reading the places would wait
            steps = torch.arange(self.kernel, device=at.device)
            pixels = (at // grid * shape[3] + at % grid)[:, None] + (steps[:, None] * shape[3] + steps).flatten()
            index = pixels[:, None].expand(-1, shape[1], -1)
            maps.flatten(2).scatter_(2, index, windows.flatten(2))
            return maps
        for window, map_, place in zip(windows, maps, at.tolist(), strict=True):
            row, column = divmod(place, grid)
            map_[:, row : row + self.kernel, column : column + self.kernel] = window
        return maps


class _Bridge(nn.Module):
    def __init__(self, bridge: Bridge, map_side: int) -> None:
        super().__init__()
        self.kernel, self.side = bridge.fc6_seg.kernel_size[0], map_side
        scales, shifts = zip(_affine(bridge.pool5_bn), _affine(bridge.class_map_bn), strict=True)
        weight = bridge.fc6_seg.weight
        bias = _bias(bridge.fc6_seg) + (weight * torch.cat(shifts)[:, None, None]).sum((1, 2, 3))
        scale, shift = _affine(bridge.fc6_seg_bn)
        halves = (weight * torch.cat(scales)[:, None, None] * scale[:, None, None, None]).chunk(2, 1)
        self.of_image = _linear(halves[0].flatten(1), bias * scale + shift)
        self.of_label = _linear(halves[1].flatten(1), None)
        scale, shift = _affine(bridge.fc7_seg_bn)
        self.fc7_seg = _linear(bridge.fc7_seg.weight.flatten(1) * scale[:, None], _bias(bridge.fc7_seg) * scale + shift)
        scale, shift = _affine(bridge.fc6_deconv_bn)
        deconv = bridge.fc6_deconv.weight * scale[:, None, None]
        self.fc6_deconv = _linear(deconv.flatten(1).t(), None)
        self.bias = nn.Parameter(_bias(bridge.fc6_deconv) * scale + shift)

    def forward(self, pool5: Tensor, maps: Tensor, mix: Tensor, image_of_pass: Tensor) -> Tensor:
        """pool5 ``[B,C,M,M]``, labels' maps ``[Q,C,M,M]``, their parts in each pass ``[P,Q]`` to ``[P,C,M,M]``."""
        of_image = self.of_image(_windows(pool5, self.kernel))[image_of_pass]
        of_label = self.of_label(_windows(maps, self.kernel)).float()
        mixed = (mix @ of_label.flatten(1)).view(len(mix), *of_label.shape[1:])
        x = F.relu(of_image + mixed).to(pool5.dtype)
        x = self.fc6_deconv(F.relu(self.fc7_seg(x))).transpose(1, 2)
        x = F.fold(x.float(), (self.side, self.side), (self.kernel, self.kernel)).to(pool5.dtype)
        return F.relu(x + self.bias[:, None, None])


class _Decoder(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in range(5, 0, -1):
            convs = nn.ModuleList()
            for k in range(1, STAGE_CONVS[stage - 1] + 1):
                deconv, bn = (decoder.get_submodule(f"deconv{stage}_{k}{suffix}") for suffix in ("", "_bn"))
                assert isinstance(deconv, nn.ConvTranspose2d)
                assert isinstance(bn, BatchNorm)
                scale, shift = _affine(bn)
                weight = deconv.weight.flip(2, 3).transpose(0, 1) * scale[:, None, None, None]
                convs.append(_conv(weight, _bias(deconv) * scale + shift))
            self.stages.append(convs)
        score = decoder.seg_score
        self.score = _conv(score.weight[1:] - score.weight[:1], _bias(score)[1:] - _bias(score)[:1])

    def forward(self, x: Tensor, indices: list[Tensor], image_of_pass: Tensor) -> Tensor:
        """x ``[P,C,M,M]``, indices of pool1 to pool5 to foreground minus background ``[P,S,S]`` float32."""
        for convs, index in zip(self.stages, reversed(indices), strict=True):
            x = torch.ops.ddn_stock.max_unpool(x, index, image_of_pass)
            for conv in convs:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
        return self.score(x)[:, 0].float()
