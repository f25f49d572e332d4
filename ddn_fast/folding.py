"""A trained network as the weights that the fused ops take: folded, permuted, packed, once.

    DecoupledNet -> fold -> Folded

Every batch normalisation goes into the layer before it, those before fc6-seg into fc6-seg (SPEC identity 6); transposed
convolutions become convolutions (9), the two seg-scores their difference (5), layers of the size of a map products of
matrices. Folding is done in float64. B images, G x G class grid, k = fc_kernel, C5 = widths[4].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import STAGE_CONVS
from .errors import NumericsError
from .network import BN_EPS, BatchNorm, Bridge, DecoupledNet
from .packing import Layout, conv3x3_layout, one_block, pack_conv3x3

_MOST_LEVEL = 60.0  # binary exponent, so that nothing leaves bfloat16's range


class Stage(NamedTuple):
    """The 3x3 convolutions between two poolings, as :func:`ddn_fast.ops.conv3x3` takes them."""

    weights: list[Tensor]  # packed
    biases: list[Tensor]  # [O]


class _Layer(NamedTuple):
    """A convolution before it is packed."""

    weight: Tensor  # [O,C,3,3] float64
    bias: Tensor  # [O] float64


class Dense(NamedTuple):
    """A layer as :func:`ddn_fast.ops.dense` takes it."""

    weight: Tensor  # [N,K]
    bias: Tensor  # [N]


class FoldedBridge(NamedTuple):
    """The bridge, its first layer in two halves (identity 3)."""

    fc6_seg_image: Dense  # [bridge,k*k*C5], of pool5; its bias is the whole layer's
    fc6_seg_class: Tensor  # [bridge,k*k*C5], of the class-specific activation map
    fc7_seg: Dense  # [bridge,bridge]
    fc6_deconv: Dense  # [k*k*C5,bridge], bias [C5]


class FoldedImagePart(NamedTuple):
    """Encoder and head, which run once per image. Windows of a map are rows of ``k*k*C5``: row, column, channel."""

    encoder: tuple[Stage, ...]  # of pool1..pool5
    fc6: Dense  # [fc,k*k*C5]
    fc7: Dense  # [fc,fc]
    cls_score: Dense  # [L,fc], float32 at least


class Folded(NamedTuple):
    """All weights of the engine."""

    image_part: FoldedImagePart
    bridge: FoldedBridge
    decoder: tuple[Stage, ...]  # of unpool5..unpool1
    score_weight: Tensor  # [widths[0]], foreground minus background
    score_bias: Tensor  # [1]


@torch.no_grad()
def fold(model: DecoupledNet, dtype: torch.dtype, isa: str) -> Folded:
    """The weights of `model` (in eval mode), in memory of their own, on the device where it is.

    `dtype`: of maps and of the large dense layers; biases and class scores are float32 at least. `isa` decides how the
    convolutions are packed (:func:`ddn_fast.packing.conv3x3_layout`). Raises NumericsError where a value is NaN or
    infinite: kernels may lose a NaN that the plain formulas carry through.
    """
    wide = torch.promote_types(dtype, torch.float32)
    score = model.decoder.seg_score
    assert score.bias is not None
    _check_finite(model, "bridge", "decoder")
    last = model.bridge.fc6_deconv_bn
    decoder, factor = _pack(
        [_decoder_layers(model, stage) for stage in range(5, 0, -1)],
        torch.hypot(last.weight.double(), last.bias.double()),
        dtype,
        isa,
    )
    return Folded(
        image_part=fold_image_part(model, dtype, isa),
        bridge=_fold_bridge(model.bridge, factor, dtype, wide),
        decoder=decoder,
        score_weight=_own((score.weight[1].double() - score.weight[0].double()).flatten(), wide),
        score_bias=_own((score.bias[1].double() - score.bias[0].double())[None], wide),
    )


@torch.no_grad()
def fold_image_part(model: DecoupledNet, dtype: torch.dtype, isa: str, share: bool = False) -> FoldedImagePart:
    """Those of its encoder and head, as :func:`fold` has them.

    With `share` weights that are right as they lie are the model's own: for one whose encoder and head do not change.
    """
    wide = torch.promote_types(dtype, torch.float32)
    head = model.head
    fc6 = head.fc6.weight.permute(0, 2, 3, 1)
    assert head.fc6.bias is not None
    _check_finite(model, "encoder", "head")
    return FoldedImagePart(
        encoder=_pack([_encoder_layers(model, stage) for stage in range(1, 6)], None, dtype, isa)[0],
        fc6=Dense((_shared if share else _own)(fc6, dtype).flatten(1), _own(head.fc6.bias, wide)),
        fc7=_point(head.fc7, None, dtype, wide, share),
        cls_score=_point(head.cls_score, None, wide, wide),
    )


def _check_finite(model: DecoupledNet, *parts: str) -> None:
    for name, value in model.state_dict().items():
        if name.split(".")[0] in parts and value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
            raise NumericsError(f"{name}: wanted finite values, got NaN or infinity")


def affine(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch normalisation at inference as scale and shift ``[C]``, float64."""
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + BN_EPS)
    if not scale.isfinite().all():
        raise NumericsError("batch normalisation: wanted variances above 0, got a negative one")
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def _encoder_layers(model: DecoupledNet, stage: int) -> list[_Layer]:
    layers = []
    for k in range(1, STAGE_CONVS[stage - 1] + 1):
        weight, bias = (model.encoder.get_parameter(f"conv{stage}_{k}.{part}") for part in ("weight", "bias"))
        layers.append(_Layer(weight.double(), bias.double()))
    return layers


def _decoder_layers(model: DecoupledNet, stage: int) -> list[_Layer]:
    layers = []
    for k in range(1, STAGE_CONVS[stage - 1] + 1):
        deconv, bn = (model.decoder.get_submodule(f"deconv{stage}_{k}{suffix}") for suffix in ("", "_bn"))
        assert isinstance(deconv, nn.ConvTranspose2d)
        assert isinstance(bn, BatchNorm)
        assert deconv.bias is not None
        scale, shift = affine(bn)
        weight = deconv.weight.double().flip(2, 3).transpose(0, 1) * scale[:, None, None, None]
        layers.append(_Layer(weight, deconv.bias.double() * scale + shift))
    return layers


def _pack(
    stages: list[list[_Layer]], first: Tensor | None, dtype: torch.dtype, isa: str
) -> tuple[tuple[Stage, ...], Tensor]:
    """Stages that follow each other; and by what the first one's input channels ``[C]`` have to be multiplied.

    Every channel between two layers is multiplied by what :func:`_factor` says, and the next one's weights are divided
    by it. Powers of two: no rounding of floats changes; ReLU, pooling and unpooling let them pass. `first`: how large
    the first one's channels are, None: an image's.
    """
    wide = torch.promote_types(dtype, torch.float32)
    packed_dtype = dtype if dtype == torch.float16 else wide
    packed: list[Stage] = []
    sizes = _sizes([layer for layers in stages for layer in layers], first)
    factor = torch.ones_like(stages[-1][-1].bias)
    for layers in reversed(stages):
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for layer in reversed(layers):
            weight, size = layer.weight * factor[:, None, None, None], sizes.pop()
            biases.insert(0, _own(layer.bias * factor, wide))
            layout = conv3x3_layout(dtype, isa, weight.shape[1])
            factor = _factor(weight, size, layout, dtype)
            weights.insert(0, pack_conv3x3(weight / factor[:, None, None], layout, packed_dtype))
        packed.insert(0, Stage(weights, biases))
    return tuple(packed), factor


def _sizes(layers: list[_Layer], first: Tensor | None) -> list[Tensor]:
    """How large the inputs ``[C]`` of each layer are, as far as weights and biases before it tell."""
    image = torch.full_like(layers[0].weight[0, :, 0, 0], 64.0)  # grey levels
    sizes = [image if first is None else first]
    for layer in layers[:-1]:
        varying = (layer.weight * sizes[-1][:, None, None]).square().sum((1, 2, 3))
        sizes.append((varying + layer.bias.square()).sqrt())
    return sizes


def _factor(weight: Tensor, size: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """By what the inputs ``[C]`` of a layer are multiplied: powers of two.

    Where products are of whole numbers a tile's largest input sets the unit of all its channels: one that is small, but
    has large weights, would be lost in it. In float16 a channel that is large by itself would overflow: each is made
    about 1, which leaves a factor of 65504 for what sizes do not tell.
    """
    if layout == "winograd_int16":
        return _level(weight, size)
    if dtype == torch.float16 and not one_block(weight.shape[1]):  # an image is as it is
        exponent = torch.where(size > 0, -torch.frexp(size).exponent, 0)
        return exponent.to(size).clamp(-_MOST_LEVEL, _MOST_LEVEL).exp2()
    return torch.ones_like(size)


def _level(weight: Tensor, size: Tensor) -> Tensor:
    """Powers of two ``[C]`` for inputs of these sizes ``[C]``: halfway between what makes the inputs equally large and
    what makes the weights ``[O,C,3,3]`` that read them so.

    All the way by the weights alone was worse than nothing on ImageNet's VGG-16, where large channels have large ones.
    """
    norm = weight.square().sum((0, 2, 3)).sqrt()
    live = (norm > 0) & (size > 0)
    if not live.any():
        return torch.ones_like(norm)
    half = torch.frexp((norm / size).sqrt()).exponent.to(norm)
    mean = torch.frexp((norm * size).sqrt()).exponent.to(norm)[live].mean().round()
    unread = torch.where(size > 0, -_MOST_LEVEL, 0.0)  # what nobody reads sets no unit
    return torch.where(live, half - mean, unread).clamp(-_MOST_LEVEL, _MOST_LEVEL).exp2()


def _fold_bridge(bridge: Bridge, factor: Tensor, dtype: torch.dtype, wide: torch.dtype) -> FoldedBridge:
    """`factor`: by what fc6-deconv's outputs are multiplied, ``[C5]``."""
    fc6_seg, fc6_deconv = bridge.fc6_seg, bridge.fc6_deconv
    assert fc6_seg.bias is not None
    assert fc6_deconv.bias is not None
    half = fc6_seg.in_channels // 2
    scale, shift = affine(bridge.fc6_seg_bn)
    of_image, image_constant = _rows(fc6_seg.weight[:, :half], scale, *affine(bridge.pool5_bn), dtype)
    of_class, class_constant = _rows(fc6_seg.weight[:, half:], scale, *affine(bridge.class_map_bn), dtype)
    bias = fc6_seg.bias.double() * scale + shift + image_constant + class_constant
    scale, shift = (part * factor for part in affine(bridge.fc6_deconv_bn))
    return FoldedBridge(
        fc6_seg_image=Dense(of_image, _own(bias, wide)),
        fc6_seg_class=of_class,
        fc7_seg=_point(bridge.fc7_seg, bridge.fc7_seg_bn, dtype, wide),
        fc6_deconv=Dense(
            _columns(fc6_deconv.weight, scale, dtype), _own(fc6_deconv.bias.double() * scale + shift, wide)
        ),
    )


def _rows(
    weight: Tensor, scale: Tensor, in_scale: Tensor, in_shift: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``scale * weight * (in_scale * x + in_shift)`` as rows ``[O,k*k*C]`` for x, and a constant ``[O]`` float64.

    weight ``[O,C,k,k]``, scale ``[O]``, in_scale and in_shift ``[C]``. Row by row: in float64 a whole layer of the
    paper's size is a gigabyte, and one row is transposed in the cache.
    """
    taps = weight.flatten(2)
    rows = torch.empty(len(taps), taps.shape[2], taps.shape[1], dtype=dtype, device=weight.device)
    constant = torch.empty(len(taps), dtype=torch.float64, device=weight.device)
    for k in range(len(taps)):
        row = taps[k].double() * scale[k]  # [C,k*k]
        constant[k] = row.sum(1) @ in_shift
        rows[k] = (row * in_scale[:, None]).T.contiguous()
    return rows.flatten(1), constant


def _columns(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale * weight`` of a transposed convolution ``[N,C,k,k]``, scale ``[C]``, as ``[k*k*C,N]``."""
    taps = weight.flatten(2)
    columns = torch.empty(taps.shape[2], taps.shape[1], len(taps), dtype=dtype, device=weight.device)
    for channel in range(taps.shape[1]):
        columns[:, channel] = (taps[:, channel].double() * scale[channel]).T.contiguous()
    return columns.flatten(0, 1)


def _point(layer: nn.Conv2d, bn: BatchNorm | None, dtype: torch.dtype, wide: torch.dtype, share: bool = False) -> Dense:
    """A 1x1 convolution and the batch normalisation that follows it."""
    weight, bias = layer.weight.flatten(1), layer.bias
    assert bias is not None
    if bn is None:
        return Dense((_shared if share else _own)(weight, dtype), _own(bias, wide))
    scale, shift = affine(bn)
    return Dense(_own(weight.double() * scale[:, None], dtype), _own(bias.double() * scale + shift, wide))


def _own(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of x: the model may change or go."""
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)


def _shared(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x itself where it is contiguous and of this dtype."""
    return x.detach().to(dtype).contiguous()
