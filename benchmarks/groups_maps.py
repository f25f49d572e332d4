"""An image on its way in, pooling, unpooling and their gradient at the network's shapes, score maps to labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import stock
import torch
from groups import OURS, Group, Rival, Setting, random, size_of
from machine import ROOT
from torch import Tensor

from ddn_fast import reference

sys.path.append(str(ROOT / "tests"))
from op_cases import INPUTS, NETWORK_SHAPES, Shape

IMAGE = (375, 500)  # height and width of most photographs in PASCAL VOC
POOLING = ("max_pool2x2", "max_unpool2x2", "gather2x2")


def groups(setting: Setting, only: list[str]) -> Iterator[partial[Group]]:
    """Of the ops named: pooling in each shape and dtype, one image, merge_scores for some numbers of labels."""
    shapes = (Shape(2, 3, 16, 8, 8),) if setting.quick else NETWORK_SHAPES
    for dtype in setting.dtypes:
        for op in (op for op in POOLING if op in only):
            for shape in shapes:
                yield partial(pooling_group, setting, op, shape, dtype)
    if "network_input" in only:
        yield partial(input_group, setting)
    for labels in (1, 3, 5) if "merge_scores" in only else []:
        yield partial(merge_group, setting, labels)


def pooling_group(setting: Setting, op: str, shape: Shape, dtype: torch.dtype) -> Group:
    """One of POOLING against torch's own with 64-bit indices. Exact: results are moved, not computed."""
    device = str(torch.get_default_device())
    with torch.device("cpu"):  # where their generators are
        x, *others = INPUTS[op](shape, dtype, device)
    x = stock.channels_last(x)
    function = getattr(setting.namespace, op)
    inputs = [x] if op == "max_pool2x2" else [x, others[0]]
    results = function(x, *others)
    group = Group(
        op,
        f"{shape.channels} channels, {shape.height}x{shape.width}, {len(x)} maps",
        dtype,
        flops=0,
        moved=size_of(*inputs) + size_of(*(results if isinstance(results, tuple) else (results,))),
        truth=lambda: _first(getattr(reference, op)(x.double(), *others)),
    )
    group.rivals.append(Rival(OURS, lambda: function(x, *others)))
    if op == "max_pool2x2":
        group.rivals.append(Rival("F.max_pool2d", lambda: stock.max_pool(x)))
        return group
    index, image_of_pass = _indices(others[0], shape), others[-1]
    if op == "max_unpool2x2":
        group.rivals.append(Rival("F.max_unpool2d", lambda: stock.max_unpool(x, index, image_of_pass)))
    else:
        group.rivals.append(Rival("torch.gather", lambda: stock.gather(x, index, image_of_pass)))
    return group


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _indices(switches: Tensor, shape: Shape) -> Tensor:
    """Torch's indices ``[B,C,h,w]``, channels_last, for switches ``[B,h,w,ceil(C/4)]``."""
    position = reference.unpack_switches(switches, shape.channels).long()
    rows = 2 * torch.arange(position.shape[2])[:, None] + position // 2
    columns = 2 * torch.arange(position.shape[3]) + position % 2
    return stock.channels_last(rows * shape.width + columns)


def input_group(setting: Setting) -> Group:
    """``network_input`` of one image of IMAGE's size against its plain formula and torch's float32."""
    side, (height, width) = setting.config.side, IMAGE
    noise = random(height, width, 3, seed=0)
    arguments = ((128 + 40 * noise).clamp(0, 255).to(torch.uint8), side)
    taps = -(-2 * width // side)  # along each axis, of a triangle that is stretched by width / side
    group = Group(
        "network_input",
        f"{height}x{width} to {side}x{side}",
        torch.float32,
        flops=2 * 3 * taps * (side * width + side * side),
        moved=size_of(arguments[0]) + 4 * 3 * side * side,
        truth=lambda: reference.network_input(*arguments).double(),
    )
    group.rivals += setting.ours("network_input", torch.float32, lambda: arguments)
    group.rivals.append(Rival("plain formula", lambda: reference.network_input(*arguments)))
    group.rivals.append(Rival("F.embedding_bag", lambda: stock.network_input(*arguments)))
    return group


def merge_group(setting: Setting, labels: int) -> Group:
    """``merge_scores`` of one image of IMAGE's size against its plain formula and torch's filter."""
    side, square, crop = setting.config.side, max(IMAGE), IMAGE
    passes = labels if labels < 2 else labels + 1
    # smooth, as a network's scores are: coarse noise, enlarged
    coarse = random(1, passes, side // 16, side // 16, seed=0, scale=4.0)
    difference = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[0].contiguous()
    arguments = (difference, labels, square, list(crop))
    pixels = crop[0] * crop[1]
    group = Group(
        "merge_scores",
        f"{labels} label{'s' if labels > 1 else ''}, {side}x{side} to {crop[0]}x{crop[1]}",
        torch.float32,
        # 4 taps along each axis and plane: columns of all pixels, rows of the square's width
        flops=2 * 4 * (labels + 1) * (pixels + crop[0] * side),
        moved=size_of(difference) + pixels,
        truth=lambda: reference.merge_scores(difference.double(), labels, square, list(crop)),
        discrete=True,
    )
    group.rivals += setting.ours("merge_scores", torch.float32, lambda: arguments)
    group.rivals.append(Rival("plain formula", lambda: reference.merge_scores(*arguments)))
    group.rivals.append(Rival("F.interpolate", lambda: stock.merge(difference, labels, square, crop)))
    return group
