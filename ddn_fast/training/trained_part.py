"""What stage 2 trains: bridge and segmentation network, with batch statistics and gradients (SPEC sections 5 and 6).

    pool5, class map -> bridge -> (layer: op of training -> moments -> scale and shift of the next) x 13 -> seg-scores

The same function as :class:`ddn_fast.network.Bridge` and :class:`ddn_fast.network.Decoder` in training mode, put
together so that of each layer one map is kept for the gradients. A bias in front of a batch normalisation is taken away
again by it: it is not added, and has no gradient. P passes, M x M the pool5 map, G x G the class grid, k = fc_kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..config import STAGE_CONVS
from ..engine import overlap_add
from ..image_part import windows_of
from ..network import BatchNorm, Bridge, DecoupledNet
from .kept_maps import KeptMaps

LEAST_CHANNELS = 4  # of a map that the ops of training take


def trained_scores(
    model: DecoupledNet, pool5: Tensor, class_map: Tensor, switches: tuple[Tensor, ...], recompute: bool = False
) -> Tensor:
    """Seg-scores ``[P,2,S,S]``, float32 at least, of pool5 and class_map ``[P,C5,M,M]``, switches of pool1..pool5.

    Bridge and decoder are in training mode. Maps are bfloat16 under autocast to it. By ``model.ops``, but by the plain
    formulas where those do not serve: in float64, and for stages of fewer than 4 channels. With `recompute` the maps
    inside the stages 5 to 2 are computed again in the backward pass instead of kept; the results are the same bits.
    Gradients can be taken once. Under ``torch.compile`` the compiler decides what is kept.
    """
    served = pool5.dtype == torch.float32 and min(model.config.widths) >= LEAST_CHANNELS
    ops = model.ops if served else reference
    half = torch.get_autocast_dtype(pool5.device.type) if torch.is_autocast_enabled(pool5.device.type) else None
    joined = _bridge(model.bridge, pool5, class_map, ops)
    layer = _Layer(
        joined if half is None else joined.to(half), model.bridge.fc6_deconv_bn, model.bridge.fc6_deconv.bias
    )
    maps: Any = ops if torch.compiler.is_compiling() else KeptMaps(ops, layer.x, _computed_again(recompute))
    for stage in range(5, 0, -1):
        for k in range(1, STAGE_CONVS[stage - 1] + 1):
            deconv, norm = (model.decoder.get_submodule(f"deconv{stage}_{k}{suffix}") for suffix in ("", "_bn"))
            switch = switches[stage - 1] if k == 1 else None
            y, mean, var = maps.deconv3x3_moments(layer.x, deconv.weight, *layer.affine, switch)
            layer = _Layer(y, norm, deconv.bias, mean, var)
    score = model.decoder.seg_score
    scores: Tensor = maps.seg_score(layer.x, *layer.affine, score.weight.flatten(1), score.bias)
    return scores


def _computed_again(recompute: bool) -> Iterator[bool]:
    """Of each layer whether its map is: with `recompute` those that another layer of their stage reads.

    What lies between stages is small, and enough to make the others of. Those of stage 1 are wanted again as soon as
    they are there.
    """
    for stage in range(5, 0, -1):
        convs = STAGE_CONVS[stage - 1]
        yield from (recompute and stage > 1 and k < convs for k in range(1, convs + 1))


class _Layer:
    """What a layer gave, and how the next one is to normalise it."""

    def __init__(self, x: Tensor, norm: Any, bias: Any, mean: Tensor | None = None, var: Tensor | None = None) -> None:
        self.x = x
        if mean is None or var is None:
            var, mean = torch.var_mean(_wide(x), (0, 2, 3), correction=0)
        self.affine = norm.affine(mean, var, x.numel() // x.shape[1], bias)  # scale, shift


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise(x: Tensor, norm: BatchNorm, bias: Tensor | None = None) -> Tensor:
    """x ``[N,C]`` by its batch statistics; `bias` as in :meth:`ddn_fast.network.BatchNorm.affine`."""
    values = _wide(x)
    var, mean = torch.var_mean(values, 0, correction=0)
    scale, shift = norm.affine(mean, var, len(x), bias)
    return torch.addcmul(shift, values, scale)


def _bridge(bridge: Bridge, pool5: Tensor, class_map: Tensor, ops: Any) -> Tensor:
    """pool5, class_map ``[P,C5,M,M]`` to what fc6-deconv gives before its normalisation, ``[P,C5,M,M]``.

    fc6-seg and fc6-deconv are products of matrices: as convolutions their weights, which are larger than all maps,
    would be laid out anew at every step. In float32 even under autocast, which would round them all at every step.
    """
    passes, _, side, _ = pool5.shape
    kernel, grid = bridge.fc6_seg.kernel_size[0], side - bridge.fc6_seg.kernel_size[0] + 1
    pixels = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in (pool5, class_map)]  # [P*M*M,C5]
    joined = torch.cat([_normalise(pixels[0], bridge.pool5_bn), _normalise(pixels[1], bridge.class_map_bn)], 1)
    x = ops.dense(_Windows.apply(joined.view(passes, side, side, -1), kernel), _matrix(bridge.fc6_seg.weight))
    x = F.relu(_normalise(x, bridge.fc6_seg_bn, bridge.fc6_seg.bias))
    x = ops.dense(x, _matrix(bridge.fc7_seg.weight))
    x = F.relu(_normalise(x, bridge.fc7_seg_bn, bridge.fc7_seg.bias))
    columns = ops.dense_outer(x.T, _matrix(bridge.fc6_deconv.weight))
    y: Tensor = _OverlapAdd.apply(columns.view(passes, grid, grid, kernel, kernel, -1))
    return y.permute(0, 3, 1, 2)


def _matrix(weight: Tensor) -> Tensor:
    """``[A,B,k,k]`` to ``[A,k*k*B]``, a view where the weight is channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


class _Windows(torch.autograd.Function):
    """``[P,M,M,C]`` to the windows under each place of the grid, ``[P*G*G,k*k*C]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int) -> Tensor:
        ctx.kernel, ctx.side = kernel, x.shape[1]
        return windows_of(x, kernel).flatten(3).flatten(0, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        kernel, grid = ctx.kernel, ctx.side - ctx.kernel + 1
        return overlap_add(grad.view(-1, grid, grid, kernel, kernel, grad.shape[1] // kernel**2)), None


class _OverlapAdd(torch.autograd.Function):
    """Its transpose: ``[P,G,G,k,k,C]`` to ``[P,M,M,C]``."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> Tensor:
        ctx.kernel = columns.shape[3]
        return overlap_add(columns)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return windows_of(grad, ctx.kernel)
