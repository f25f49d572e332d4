"""The ops of training: layers of the segmentation network and their gradients, the score, products of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import stock
import torch
import torch.nn.functional as F
from groups import Group, Rival, Setting, generator, random, size_of
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import STAGE_CONVS

LAYERS = ("deconv3x3_moments", "deconv3x3_moments_backward")
SCORED_LAYER = "deconv3x3_moments_backward_score"
SCORES = ("seg_score", "seg_score_backward", "seg_score_backward_vectors")
OPS = (*LAYERS, SCORED_LAYER, *SCORES, "dense_outer")


def groups(setting: Setting, only: list[str]) -> Iterator[partial[Group]]:
    """The first two layers of every stage of the decoder: the first is unpooled; its score; fc6-seg's gradients."""
    maps = setting.batches[-1]
    for dtype in setting.dtypes:
        for stage in range(5, 0, -1):
            for first in (True, False):
                for op in (op for op in LAYERS if op in only):
                    yield partial(layer_group, setting, op, stage, first, maps, dtype)
        if SCORED_LAYER in only:
            yield partial(scored_layer_group, setting, maps, dtype)
        for op in (op for op in SCORES if op in only):
            yield partial(score_group, setting, op, maps, dtype)
    if "dense_outer" in only:
        for of_weight in (True, False):
            yield partial(outer_group, setting, of_weight, maps)


def layer_group(setting: Setting, op: str, stage: int, first: bool, maps: int, dtype: torch.dtype) -> Group:
    """A layer against torch's unpooling, transposed convolution, batch normalisation and ReLU of the layer before."""
    config = setting.config
    side, channels = config.side >> (stage - 1), config.widths[stage - 1]
    outputs = channels if STAGE_CONVS[stage - 1] > 2 or first else config.widths[max(stage - 2, 0)]
    height = side // 2 if first else side
    x = stock.channels_last(random(maps, channels, height, height, seed=0).to(dtype))
    weight = stock.channels_last(random(channels, outputs, 3, 3, seed=1, scale=(2 / (9 * outputs)) ** 0.5))
    gamma, beta = torch.rand(channels, generator=generator(2)) + 0.5, random(channels, seed=3, scale=0.1)
    var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    scale = gamma * torch.rsqrt(var + 1e-5)
    vectors = scale, beta - mean * scale
    index = switches = None
    if first:
        pooled = random(maps, channels, side, side, seed=4)
        _, index = stock.max_pool(stock.channels_last(pooled))
        switches = reference.max_pool2x2(pooled)[1]
    y, y_mean, _ = reference.deconv3x3_moments(x, weight, *vectors, switches)
    grad_y = stock.channels_last(random(*y.shape, seed=5).to(dtype))
    zeros = torch.zeros(outputs)

    def forward(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        a = F.relu(F.batch_norm(x, None, None, gamma, beta, training=True))
        if index is not None:
            a = F.max_unpool2d(a, index, 2)
        return F.conv_transpose2d(a, weight.to(x.dtype), padding=1)

    leaves = [t.detach().requires_grad_() for t in (x, weight, gamma, beta)]

    def torchs() -> Tensor:
        if op == LAYERS[0]:
            with torch.no_grad():
                return forward(*leaves)
        return torch.autograd.grad(graph, leaves, grad_y, retain_graph=True)[1]

    graph = forward(*leaves) if op == LAYERS[1] else None
    arguments: tuple[Any, ...] = (x, weight, *vectors, switches)
    if op == LAYERS[1]:
        arguments = (grad_y, zeros, zeros, y, y_mean, *arguments)

    def truth() -> Tensor:
        wide = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in arguments]
        return getattr(reference, op)(*wide)[1 if op == LAYERS[1] else 0]

    flops = 18.0 * y.numel() * channels * (2 if op == LAYERS[1] else 1)
    group = Group(
        op,
        f"deconv{stage}_{1 if first else 2}, {maps} maps",
        dtype,
        flops=flops,
        moved=size_of(x, weight, y) * (2 if op == LAYERS[1] else 1),
        truth=truth,
    )
    for rival in setting.ours(op, dtype, lambda: arguments):
        view = (lambda found: found[1]) if op == LAYERS[1] else None  # the gradient of the weights
        group.rivals.append(Rival(rival.name, rival.run, rival.isa, view=view))
    group.rivals.append(Rival("torch", torchs))
    return group


def scored_layer_group(setting: Setting, maps: int, dtype: torch.dtype) -> Group:
    """The last layer's gradients from its score's, against torch's of both: deconv1_2, normalisation, ReLU, score."""
    side, channels = setting.config.side, setting.config.widths[0]
    x = stock.channels_last(random(maps, channels, side, side, seed=0).to(dtype))
    weight = stock.channels_last(random(channels, channels, 3, 3, seed=1, scale=(2 / (9 * channels)) ** 0.5))
    scale, shift = torch.rand(channels, generator=generator(2)) + 0.5, random(channels, seed=3)
    score_weight, grad_score = random(2, channels, seed=4), stock.channels_last(random(maps, 2, side, side, seed=5))
    y, mean, var = reference.deconv3x3_moments(x, weight, scale, shift)
    score = torch.rsqrt(var + 1e-5), -mean * torch.rsqrt(var + 1e-5), score_weight
    of_scale, of_shift, *_ = reference.seg_score_backward_vectors(grad_score, y, *score)
    of_moments = -of_shift * score[0], (of_shift * mean - of_scale) / 2 * score[0] ** 3
    leaves = [t.detach().requires_grad_() for t in (x, weight, scale, shift)]
    a = F.relu(F.batch_norm(leaves[0], torch.zeros(channels), torch.ones(channels), *leaves[2:], eps=1e-30))
    b = F.relu(F.batch_norm(F.conv_transpose2d(a, leaves[1].to(dtype), padding=1), None, None, training=True))
    graph = F.conv2d(b, score_weight.to(dtype)[:, :, None, None])
    arguments = (grad_score, *score, *of_moments, y, mean, x, weight, scale, shift)

    def truth() -> Tensor:
        # of the weights: in that of x bfloat16 shows where y is cut off at other pixels
        return reference.deconv3x3_moments_backward_score(*(t.double() for t in arguments))[1]

    group = Group(
        SCORED_LAYER,
        f"deconv1_2, {maps} maps",
        dtype,
        flops=36.0 * y.numel() * channels,
        moved=2 * size_of(x, weight, y) + size_of(grad_score),
        truth=truth,
    )
    for rival in setting.ours(SCORED_LAYER, dtype, lambda: arguments):
        group.rivals.append(Rival(rival.name, rival.run, rival.isa, view=lambda found: found[1]))
    group.rivals.append(
        Rival("torch", lambda: torch.autograd.grad(graph, leaves, grad_score.to(dtype), retain_graph=True)[1])
    )
    return group


def score_group(setting: Setting, op: str, maps: int, dtype: torch.dtype) -> Group:
    """The score against torch's normalised map, ReLU and 1x1 convolution."""
    config = setting.config
    channels, side = config.widths[0], config.side
    x = stock.channels_last(random(maps, channels, side, side, seed=0).to(dtype))
    scale, shift = torch.rand(channels, generator=generator(1)) + 0.5, random(channels, seed=2)
    weight, bias = random(2, channels, seed=3), random(2, seed=4)
    grad_y = stock.channels_last(random(maps, 2, side, side, seed=5))
    leaves = [t.detach().requires_grad_() for t in (x, scale, shift, weight, bias)]

    def forward(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        a = F.relu(F.batch_norm(x, torch.zeros(channels), torch.ones(channels), scale, shift, eps=1e-30))
        return F.conv2d(a, weight.to(x.dtype)[:, :, None, None], bias.to(x.dtype))

    def torchs() -> Tensor:
        if op == SCORES[0]:
            with torch.no_grad():
                return forward(*leaves)
        wanted = leaves if op == SCORES[1] else leaves[1:]
        return torch.autograd.grad(graph, wanted, grad_y.to(dtype), retain_graph=True)[0]

    graph = forward(*leaves) if op != SCORES[0] else None
    arguments = (x, scale, shift, weight, bias) if op == SCORES[0] else (grad_y, x, scale, shift, weight)

    def truth() -> Tensor:
        found = getattr(reference, op)(*(t.double() for t in arguments))
        return found if op == SCORES[0] else found[0]

    group = Group(
        op,
        f"{maps} maps",
        dtype,
        flops=4.0 * x.numel() * (1 if op == SCORES[0] else 2),
        moved=size_of(x, grad_y) + (size_of(x) if op == SCORES[1] else 0),
        truth=truth,
    )
    group.rivals += setting.ours(op, dtype, lambda: arguments)
    group.rivals.append(Rival("torch", torchs))
    return group


def outer_group(setting: Setting, of_weight: bool, maps: int) -> Group:
    """The gradients of fc6-seg, for its weight and for its input, against torch.mm."""
    config = setting.config
    rows, window = maps * config.grid**2, 2 * config.widths[-1] * config.fc_kernel**2
    grad, x = random(rows, config.bridge, seed=0), random(rows, window, seed=1)
    weight = random(config.bridge, window, seed=2)
    a, b = (grad, x) if of_weight else (grad.T.contiguous(), weight)
    group = Group(
        "dense_outer",
        f"fc6_seg's {'weight' if of_weight else 'input'}, {rows} rows",
        torch.float32,
        flops=2.0 * rows * weight.numel(),
        moved=size_of(grad, x, weight),
        truth=lambda: a.double().T @ b.double(),
    )
    group.rivals += setting.ours("dense_outer", torch.float32, lambda: (a, b))
    group.rivals.append(Rival("torch.mm", lambda: a.T @ b))
    return group
