"""3x3 convolutions: each layer of the network, fused with what stands beside it, and each stage as a whole.

The rival is oneDNN's packed convolution with its ReLU, on CUDA cuDNN's with bias and ReLU apart and in one, with
torch's own pooling, unpooling and 1x1 convolution around it. Counted are the operations of the direct algorithm:
Winograd's needs a quarter of the multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import stock
import torch
import torch.nn.functional as F
from groups import Group, Rival, Setting, random, size_of
from timing import Cold
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import STAGE_CONVS, NetConfig
from ddn_fast.packing import Layout, one_block, pack_conv3x3

LAYOUTS: dict[torch.dtype, tuple[Layout, ...]] = {
    torch.float32: ("direct", "winograd"),
    torch.bfloat16: ("pairs", "direct", "winograd", "winograd_int16"),
}


@dataclass(frozen=True)
class Convs:
    """Convolutions that follow each other on maps of side x side pixels.

    channels  of the input and of each layer's output
    op        conv3x3, conv3x3_max_pool2x2 or conv3x3_score
    unpooled  whether the input is a pooled map that is unpooled first
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    side: int
    op: str = "conv3x3"
    unpooled: bool = False

    def split(self) -> Iterator[Convs]:
        """Its layers one by one; the first keeps the unpooling, the last what follows the stage."""
        last = len(self.names) - 1
        for k, name in enumerate(self.names):
            op = self.op if k == last else "conv3x3"
            yield Convs((name,), self.channels[k : k + 2], self.side, op, self.unpooled and k == 0)

    @property
    def shape(self) -> tuple[Any, ...]:
        """What makes two of them the same case."""
        return self.channels, self.side, self.op, self.unpooled


def stages(config: NetConfig) -> list[Convs]:
    """The five stages of the encoder and the five of the decoder, in the order they run."""
    found = []
    channels = 3
    for stage, (width, convs) in enumerate(zip(config.widths, STAGE_CONVS, strict=True), 1):
        names = tuple(f"conv{stage}_{k}" for k in range(1, convs + 1))
        side = config.side >> stage - 1
        found.append(Convs(names, (channels, *[width] * convs), side, "conv3x3_max_pool2x2"))
        channels = width
    for stage in range(5, 0, -1):
        width, convs = config.widths[stage - 1], STAGE_CONVS[stage - 1]
        names = tuple(f"deconv{stage}_{k}" for k in range(1, convs + 1))
        sides = (*[width] * convs, config.widths[max(stage - 2, 0)])
        op = "conv3x3" if stage > 1 else "conv3x3_score"
        found.append(Convs(names, sides, config.side >> stage - 1, op, unpooled=True))
    return found


def layers(config: NetConfig) -> list[Convs]:
    """Single layers of every shape that occurs; a name lists all layers of that shape."""
    found: dict[tuple[Any, ...], Convs] = {}
    for stage in stages(config):
        for layer in stage.split():
            same = found.get(layer.shape)
            names = (*same.names, *layer.names) if same else layer.names
            found[layer.shape] = Convs(names, *layer.shape)
    return list(found.values())


def groups(setting: Setting, only: list[str]) -> Iterator[partial[Group]]:
    """Of the ops named: every layer on one map, then every stage on each number of maps; on CUDA stages first."""
    parts = (_stage_groups, _layer_groups) if setting.on_cuda else (_layer_groups, _stage_groups)
    for dtype in setting.dtypes:
        for part in parts:
            yield from part(setting, only, dtype)


def _layer_groups(setting: Setting, only: list[str], dtype: torch.dtype) -> Iterator[partial[Group]]:
    for layer in (layer for layer in layers(setting.config) if layer.op in only):
        yield partial(case_group, setting, layer, 1, dtype, ", ".join(layer.names))


def _stage_groups(setting: Setting, only: list[str], dtype: torch.dtype) -> Iterator[partial[Group]]:
    chosen = [stage for stage in stages(setting.config) if stage.op in only]
    pairs = [(stage, maps) for stage in chosen for maps in setting.batches]
    if setting.on_cuda:  # the most important first: all stages of one batch
        pairs = [(stage, maps) for maps in setting.batches for stage in chosen]
    for stage, maps in pairs:
        last = stage.names[-1].split("_")[1]
        title = f"stage {stage.names[0]} to _{last}, {maps} map{'s' if maps > 1 else ''}"
        yield partial(case_group, setting, stage, maps, dtype, title)


def case_group(setting: Setting, convs: Convs, maps: int, dtype: torch.dtype, title: str) -> Group:
    """Convolutions on `maps` maps, in all variants and beside their rivals."""
    return _Case(convs, maps, dtype).group(setting, title)


class _Case:
    """Values for one Convs, `maps` maps and a dtype: about as large as in a network, half of the inputs zeros."""

    def __init__(self, convs: Convs, maps: int, dtype: torch.dtype) -> None:
        self.convs, self.maps, self.dtype = convs, maps, dtype
        first, side = convs.channels[0], convs.side
        pairs = list(zip(convs.channels, convs.channels[1:], strict=False))
        self.pairs = pairs
        self.weights = [
            random(o, i, 3, 3, seed=k, scale=(2 / (9 * i)) ** 0.5).to(dtype) for k, (i, o) in enumerate(pairs)
        ]
        self.biases = [random(o, seed=10 + k, scale=0.1) for k, (_, o) in enumerate(pairs)]
        self.score_weight, self.score_bias = random(convs.channels[-1], seed=20), random(1, seed=21)
        self.image_of_pass = torch.zeros(maps, dtype=torch.int64)
        self.index: Tensor | None = None
        self.switches: Tensor | None = None
        if convs.unpooled:
            encoder_map = stock.channels_last(F.relu(random(1, first, side, side, seed=30)))
            self.index = stock.max_pool(encoder_map)[1]
            self.switches = reference.max_pool2x2(encoder_map)[1]
            side //= 2
        x = random(maps, first, side, side, seed=31)
        self.x = stock.channels_last((60 * x if first == 3 else F.relu(x)).to(dtype))

    def group(self, setting: Setting, title: str) -> Group:
        """The op in all variants, and the vendor library."""
        area = self.maps * self.convs.side**2
        out = self.convs.channels[-1]
        score = self.convs.op == "conv3x3_score"
        result_bytes = 4 * area if score else area * out * self.x.element_size()
        if self.convs.op == "conv3x3_max_pool2x2":
            result_bytes = result_bytes // 4 + area * out // 16
        inputs = [self.x, *self.weights, *self.biases, *([] if self.switches is None else [self.switches])]
        group = Group(
            self.convs.op + (" unpooled" if self.convs.unpooled else ""),
            title,
            self.dtype,
            flops=2 * area * (9 * sum(i * o for i, o in self.pairs) + (out if score else 0)),
            moved=size_of(*inputs) + result_bytes,
            truth=self.truth,
        )
        layouts: tuple[Layout, ...] = ("pairs",) if setting.on_cuda else LAYOUTS[self.dtype]
        for layout in layouts:
            packed = self._packed(layout)
            if packed is None:
                continue
            cold = setting.cold(partial(_clones, packed), size_of(*packed))
            group.rivals += setting.ours(self.convs.op, self.dtype, partial(self._arguments, cold), layout)
            group.cold = cold.cold
        group.rivals.append(Rival("cuDNN" if setting.on_cuda else "oneDNN packed", self._stock(setting, stock.conv)))
        if setting.on_cuda:
            group.rivals.append(Rival("cuDNN, ReLU fused", self._stock(setting, stock.conv_fused), special=True))
        return group

    def _packed(self, layout: Layout) -> list[Tensor] | None:
        """Each layer's weights; the first layer of the network has no Winograd form."""
        if "winograd" in layout and all(one_block(i) for i, _ in self.pairs):
            return None
        dtype = self.dtype if self.dtype == torch.float16 else torch.float32
        return [
            pack_conv3x3(weight, "direct" if "winograd" in layout and one_block(i) else layout, dtype)
            for weight, (i, _) in zip(self.weights, self.pairs, strict=True)
        ]

    def _arguments(self, weights: Cold[list[Tensor]]) -> tuple[Any, ...]:
        score = (self.score_weight, self.score_bias) if self.convs.op == "conv3x3_score" else ()
        unpooling = (self.switches, self.image_of_pass) if self.convs.unpooled else ()
        return self.x, weights(), self.biases, *score, *unpooling

    def _stock(self, setting: Setting, conv: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        side = self.convs.side
        biases = [bias.to(self.dtype) for bias in self.biases]
        score_weight = stock.pack_conv(
            self.score_weight.to(self.dtype)[None, :, None, None], 0, (self.maps, len(self.score_weight), side, side)
        )
        score_bias = self.score_bias.to(self.dtype)

        def pack() -> list[Tensor]:
            return [
                stock.pack_conv(weight, 1, (self.maps, i, side, side))
                for weight, (i, _) in zip(self.weights, self.pairs, strict=True)
            ]

        cold = setting.cold(pack, size_of(*self.weights))

        def run() -> Any:
            x = self.x if self.index is None else stock.max_unpool(self.x, self.index, self.image_of_pass)
            for weight, bias in zip(cold(), biases, strict=True):
                x = conv(x, weight, bias)
            if self.convs.op == "conv3x3_max_pool2x2":
                return stock.max_pool(x)
            if self.convs.op == "conv3x3_score":
                return stock.conv(x, score_weight, score_bias, padding=0, relu=False)[:, 0].float()
            return x

        return run

    def truth(self) -> Tensor:
        """In float64, nothing rounded on the way."""
        x = self.x.double()
        if self.index is not None:
            x = F.max_unpool2d(x, self.index[self.image_of_pass], 2, 2)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = F.relu(F.conv2d(x, weight.double(), bias.double(), padding=1))
        if self.convs.op == "conv3x3_max_pool2x2":
            return F.max_pool2d(x, 2, 2)
        if self.convs.op == "conv3x3_score":
            return torch.einsum("nchw,c->nhw", x, self.score_weight.double()) + self.score_bias.double()
        return x


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]
