"""The dense layers of the head and the bridge, and the class gate: products that wait for their weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import stock
import torch
import torch.nn.functional as F
from groups import Group, Rival, Setting, generator, random, size_of
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import NetConfig


class Dense(NamedTuple):
    """One dense layer: its name, inputs and outputs, and whether bias and ReLU are its own."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    relu: bool


def dense_layers(config: NetConfig) -> list[Dense]:
    """Of the network: 7x7 kernels are products with unfolded windows, fc6_seg is split in halves (identity 3)."""
    window = config.widths[-1] * config.fc_kernel**2
    return [
        Dense("fc6", window, config.fc, True, True),
        Dense("fc7", config.fc, config.fc, True, True),
        Dense("cls_score", config.fc, config.num_classes, True, False),
        Dense("fc6_seg, one half", window, config.bridge, False, False),
        Dense("fc7_seg", config.bridge, config.bridge, True, True),
        Dense("fc6_deconv", config.bridge, window, False, False),
    ]


def groups(setting: Setting, only: list[str]) -> Iterator[partial[Group]]:
    """Of the ops named: every dense layer for each number of images, the gate for one and several classes."""
    for dtype in setting.dtypes:
        for layer in dense_layers(setting.config) if "dense" in only else []:
            for images in setting.batches:
                yield partial(dense_group, setting, layer, images, dtype)
        for labels, share in ((1, 0.5), (1, 0.2), (3, 0.5)) if "class_gate" in only else []:
            yield partial(gate_group, setting, labels, share, dtype)


def dense_group(setting: Setting, layer: Dense, images: int, dtype: torch.dtype) -> Group:
    """``dense`` against F.linear and, on the CPU, oneDNN's packed product (float32: MKL's, too)."""
    rows = images * setting.config.grid**2
    x = F.relu(random(rows, layer.inputs, seed=0)).to(dtype)
    weight = random(layer.outputs, layer.inputs, seed=1, scale=layer.inputs**-0.5).to(dtype)
    bias = random(layer.outputs, seed=2, scale=0.1) if layer.bias else None
    stock_bias = None if bias is None else bias.to(dtype)
    plain = setting.cold(weight.clone, size_of(weight))

    def linear() -> Tensor:
        y = F.linear(x, plain(), stock_bias)
        return F.relu_(y) if layer.relu else y

    def truth() -> Tensor:
        y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        return F.relu(y) if layer.relu else y

    group = Group(
        "dense",
        f"{layer.name}, {rows} rows",
        dtype,
        flops=2 * rows * weight.numel(),
        moved=size_of(x, weight) + 4 * rows * layer.outputs,
        truth=truth,
        cold=plain.cold,
    )
    group.rivals += setting.ours("dense", dtype, lambda: (x, plain(), bias, layer.relu))
    group.rivals.append(Rival("F.linear", linear))
    if setting.on_cuda:
        return group
    packed = setting.cold(lambda: stock.pack_linear(weight, rows), size_of(weight))
    group.rivals.append(Rival("oneDNN packed", lambda: stock.linear(x, packed(), stock_bias, layer.relu)))
    if dtype == torch.float32 and torch.backends.mkl.is_available():
        group.rivals.append(Rival("MKL packed", _mkl(setting, x, weight, stock_bias, layer.relu)))
    return group


def _mkl(setting: Setting, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Any:
    packed = setting.cold(lambda: torch.ops.mkl._mkl_reorder_linear_weight(weight, len(x)), size_of(weight))

    def run() -> Tensor:
        y = torch.ops.mkl._mkl_linear(x, packed(), weight, bias, len(x))
        return F.relu_(y) if relu else y

    return run


def gate_group(setting: Setting, labels: int, share: float, dtype: torch.dtype) -> Group:
    """``class_gate`` of one image's labels with a share of units on, against skinny products and the dense formula."""
    config = setting.config
    places, channels, kernel = config.grid**2, config.widths[-1], config.fc_kernel
    cls = random(config.num_classes, config.fc, seed=0).to(dtype)
    fc7_weight = random(config.fc, config.fc, seed=1, scale=config.fc**-0.5).to(dtype)
    fc6_weight = random(config.fc, channels * kernel**2, seed=2, scale=config.fc**-0.5).to(dtype)
    chance = generator(3)
    fc6, fc7 = (torch.rand(2, 1, places, config.fc, generator=chance) < share).float()
    position = torch.randint(0, places, (1, config.num_classes), generator=chance)
    image, label = torch.zeros(labels, dtype=torch.int64), torch.arange(labels)
    at = position[0, label]
    rows7, rows6 = (int((on[0, at] > 0).any(0).sum()) for on in (fc7, fc6))  # that any of the labels needs
    weights = setting.cold(lambda: (fc7_weight.clone(), fc6_weight.clone()), size_of(fc7_weight, fc6_weight))

    def skinny() -> Tensor:
        w7, w6 = weights()
        g7 = cls[label] * (fc7[image, at] > 0)
        return torch.mm(torch.mm(g7, w7) * (fc6[image, at] > 0), w6)

    transposed = setting.cold(
        lambda: (fc7_weight.t().contiguous(), fc6_weight.t().contiguous()), size_of(fc7_weight, fc6_weight)
    )

    def skinny_transposed() -> Tensor:
        w7, w6 = transposed()
        g7 = cls[label] * (fc7[image, at] > 0)
        return F.linear(F.linear(g7, w7) * (fc6[image, at] > 0), w6)

    def dense() -> Tensor:
        w7, w6 = weights()
        on7, on6 = (on.unflatten(1, (config.grid, config.grid)).permute(0, 3, 1, 2) > 0 for on in (fc7, fc6))
        y = torch.zeros(labels, config.num_classes, places, dtype=dtype)
        y[torch.arange(labels), label, at] = 1
        y = y.unflatten(2, (config.grid, config.grid))
        g7 = F.conv_transpose2d(y, cls[:, :, None, None]) * on7
        # the head keeps its weights as [F,F,1,1] and [F,C,k,k]
        g6 = F.conv_transpose2d(g7, w7[:, :, None, None]) * on6
        return F.conv_transpose2d(g6, w6.view(-1, channels, kernel, kernel))

    corners = [divmod(int(place), config.grid) for place in at]

    def window(maps: Tensor) -> Tensor:
        """Of each label the part of its map that is not zero."""
        return torch.stack(
            [m[:, r : r + kernel, c : c + kernel].flatten() for m, (r, c) in zip(maps, corners, strict=True)]
        )

    arguments = (fc6, fc7, position, image, label)
    group = Group(
        "class_gate",
        f"{labels} label{'s' if labels > 1 else ''}, {share:.0%} of units on",
        dtype,
        flops=2 * labels * (rows7 * config.fc + rows6 * fc6_weight.shape[1]),
        moved=(rows7 * config.fc + rows6 * fc6_weight.shape[1]) * cls.element_size(),
        truth=lambda: reference.class_gate(cls.double(), fc7_weight.double(), fc6_weight.double(), *arguments),
        cold=weights.cold,
    )
    group.rivals += setting.ours("class_gate", dtype, lambda: (cls, *weights(), *arguments))
    group.rivals.append(Rival("torch.mm", skinny))
    group.rivals.append(Rival("F.linear, transposed", skinny_transposed))
    group.rivals.append(Rival("conv_transpose2d", dense, view=window))
    return group
