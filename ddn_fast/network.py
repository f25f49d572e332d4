"""DecoupledNet in plain PyTorch: readable as the paper, trainable, the oracle of everything fast.

    image -> Encoder (+ switches) -> Head (class scores) -> class_map (gate) -> Bridge -> Decoder -> seg-scores

Section numbers are those of SPEC.md. B images, L classes, P passes (one pass = one image with one label vector),
S x S input pixels, M x M the pool5 map (10 x 10), G x G the class-score map (4 x 4).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import distributed, reference
from .config import STAGE_CONVS, NetConfig
from .errors import InputError
from .segmentation import Segmenter

BN_EPS = 1e-9  # section 6

Trace = dict[str, Tensor] | None  # where given, every intermediate is written into it by name


class Features(NamedTuple):
    """What the encoder leaves behind for one batch; all passes of an image share it (identity 7)."""

    pool5: Tensor  # [B,C5,M,M]
    switches: tuple[Tensor, ...]  # of pool1..pool5: [B,h,w,ceil(C/4)] uint8


class HeadOutput(NamedTuple):
    """What the classification head leaves behind for one batch."""

    score_map: Tensor  # [B,L,G,G], before any sigmoid
    mask6: Tensor  # [B,fc,G,G] bool, where fc6's ReLU was on
    mask7: Tensor  # [B,fc,G,G] bool, where fc7's ReLU was on

    @property
    def scores(self) -> Tensor:
        """Image-level scores ``[B,L]``: sigmoid of the mean over the grid (section 3)."""
        return mean_scores(self.score_map)

    @property
    def max_scores(self) -> Tensor:
        """``[B,L]``: sigmoid of the maximum over the grid; used in training only (section 8)."""
        return max_scores(self.score_map)

    @property
    def position(self) -> Tensor:
        """``[B,L]`` int64: where each class scores highest, row-major, first on a tie (section 3)."""
        return best_position(self.score_map)


def mean_scores(score_map: Tensor) -> Tensor:
    """Image-level scores ``[B,L]`` of score_map ``[B,L,G,G]``: sigmoid of the mean over the grid (section 3)."""
    return torch.sigmoid(score_map.mean((2, 3)))


def max_scores(score_map: Tensor) -> Tensor:
    """``[B,L]``: sigmoid of the maximum over the grid; used in training only (section 8)."""
    return torch.sigmoid(score_map.amax((2, 3)))


def best_position(score_map: Tensor) -> Tensor:
    """``[B,L]`` int64: where each class scores highest, row-major, first on a tie (section 3)."""
    # max_pool2d promises the first maximum; argmax promises none
    return F.max_pool2d(score_map, tuple(score_map.shape[2:]), return_indices=True)[1].flatten(1)


class BatchNorm(nn.Module):
    """Batch normalisation as section 6 has it: ``weight * (x - mean) / sqrt(var + eps) + bias``, biased variance.

    In training mode mean and variance are the batch's, of all its shares where several processes have one each; in eval
    mode those of the buffers, which :func:`ddn_fast.training.bn.reestimate` sets after training. Nothing is averaged on
    the way.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.full((channels,), 0.001))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.observer: Callable[[Tensor, Tensor], None] | None = None  # is shown the mean and variance of each batch

    def forward(self, x: Tensor) -> Tensor:
        """x ``[N,C,H,W]`` to the same shape."""
        if self.training and distributed.together():
            return distributed.batch_norm(x, self.weight, self.bias, BN_EPS)[0]
        if self.training and self.observer:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            self.observer(mean, var)
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=BN_EPS)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=BN_EPS)

    def affine(self, mean: Tensor, var: Tensor, count: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and shift ``[C]`` with which a batch of these statistics is normalised: ``scale * x + shift``.

        mean and var ``[C]``, biased, over the batch's `count` values a channel, in training mode. `bias` ``[C]`` was
        left out of x: normalisation takes it away again, but it belongs to the statistics that stay.
        """
        mean, var = distributed.global_moments(mean, var, count)
        if self.observer:
            self.observer(mean if bias is None else mean + bias, var)
        scale = self.weight * torch.rsqrt(var + BN_EPS)
        return scale, self.bias - mean * scale


class Encoder(nn.Module):
    """The thirteen 3x3 convolutions of VGG-16 with pooling that remembers its switches (section 2)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        channels = 3
        for stage, (width, convs) in enumerate(zip(config.widths, STAGE_CONVS, strict=True), 1):
            for k in range(1, convs + 1):
                self.add_module(f"conv{stage}_{k}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width

    def forward(self, x: Tensor, ops: Any = reference, trace: Trace = None) -> Features:
        """x ``[B,3,S,S]`` to :class:`Features`; `ops` is :mod:`reference` or :mod:`ops`."""
        switches = []
        for stage, convs in enumerate(STAGE_CONVS, 1):
            for k in range(1, convs + 1):
                x = keep(trace, f"conv{stage}_{k}", F.relu(self.get_submodule(f"conv{stage}_{k}")(x)))
            x, switch = ops.max_pool2x2(x)
            keep(trace, f"pool{stage}", x)
            switches.append(keep(trace, f"pool{stage}_switches", switch))
        return Features(x, tuple(switches))


class Head(nn.Module):
    """fc6, fc7 and cls-score as convolutions over the pool5 map (section 3), and their way back (section 4)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(config.widths[-1], config.fc, config.fc_kernel)
        self.fc7 = nn.Conv2d(config.fc, config.fc, 1)
        self.cls_score = nn.Conv2d(config.fc, config.num_classes, 1)

    def forward(self, pool5: Tensor, dropout: float = 0.0, trace: Trace = None) -> HeadOutput:
        """pool5 ``[B,C5,M,M]`` to :class:`HeadOutput`; dropout (training only) follows fc6 and fc7 as in VGG-16."""
        fc6 = keep(trace, "fc6", F.relu(self.fc6(pool5)))
        fc7 = keep(trace, "fc7", F.relu(self.fc7(F.dropout(fc6, dropout, self.training))))
        score_map = keep(trace, "cls_score", self.cls_score(F.dropout(fc7, dropout, self.training)))
        return HeadOutput(score_map, fc6 > 0, fc7 > 0)

    def class_map(self, head: HeadOutput, labels: Tensor, image_of_pass: Tensor, trace: Trace = None) -> Tensor:
        """The class-specific activation map f_cls (section 4): labels sent back through the head.

        labels ``[P,L]`` (the y of section 4), image_of_pass ``[P]`` int64; returns ``[P,C5,M,M]``. Weights are tied
        to the forward ones, no biases, gated by the forward ReLU masks.
        """
        grid = head.score_map.shape[2]
        y = labels.new_zeros(*labels.shape, grid * grid)
        y.scatter_(2, head.position[image_of_pass][:, :, None], labels[:, :, None])
        y = keep(trace, "cls_score_unpooled", y.unflatten(2, (grid, grid)))
        g7 = keep(trace, "fc7_back", F.conv_transpose2d(y, self.cls_score.weight) * head.mask7[image_of_pass])
        g6 = keep(trace, "fc6_back", F.conv_transpose2d(g7, self.fc7.weight) * head.mask6[image_of_pass])
        return keep(trace, "class_map", F.conv_transpose2d(g6, self.fc6.weight))


class Bridge(nn.Module):
    """Joins the image's features and the class's map (section 5)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        features = config.widths[-1]
        self.pool5_bn = BatchNorm(features)
        self.class_map_bn = BatchNorm(features)
        self.fc6_seg = nn.Conv2d(2 * features, config.bridge, config.fc_kernel)
        self.fc6_seg_bn = BatchNorm(config.bridge)
        self.fc7_seg = nn.Conv2d(config.bridge, config.bridge, 1)
        self.fc7_seg_bn = BatchNorm(config.bridge)
        self.fc6_deconv = nn.ConvTranspose2d(config.bridge, features, config.fc_kernel)
        self.fc6_deconv_bn = BatchNorm(features)

    def forward(self, pool5: Tensor, class_map: Tensor, trace: Trace = None) -> Tensor:
        """pool5 and class_map ``[P,C5,M,M]`` to ``[P,C5,M,M]``."""
        pool5 = keep(trace, "pool5_bn", self.pool5_bn(pool5))
        class_map = keep(trace, "class_map_bn", self.class_map_bn(class_map))
        x = torch.cat([pool5, class_map], 1)
        x = keep(trace, "fc6_seg", F.relu(self.fc6_seg_bn(self.fc6_seg(x))))
        x = keep(trace, "fc7_seg", F.relu(self.fc7_seg_bn(self.fc7_seg(x))))
        return keep(trace, "fc6_deconv", F.relu(self.fc6_deconv_bn(self.fc6_deconv(x))))


class Decoder(nn.Module):
    """The encoder mirrored: unpooling by the encoder's switches and transposed convolutions (section 6)."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        for stage in range(5, 0, -1):
            width, convs = config.widths[stage - 1], STAGE_CONVS[stage - 1]
            last = config.widths[max(stage - 2, 0)]  # what the next unpooling expects
            for k in range(1, convs + 1):
                out = last if k == convs else width
                self.add_module(f"deconv{stage}_{k}", nn.ConvTranspose2d(width, out, 3, padding=1))
                self.add_module(f"deconv{stage}_{k}_bn", BatchNorm(out))
        self.seg_score = nn.Conv2d(config.widths[0], 2, 1)

    def forward(
        self,
        x: Tensor,
        switches: tuple[Tensor, ...],
        image_of_pass: Tensor | None = None,
        ops: Any = reference,
        trace: Trace = None,
    ) -> Tensor:
        """x ``[P,C5,M,M]``, switches of pool1..pool5 to seg-scores ``[P,2,S,S]`` (background, foreground)."""
        for stage in range(5, 0, -1):
            side = 2 * x.shape[2]
            x = ops.max_unpool2x2(x, switches[stage - 1], side, side, image_of_pass)
            keep(trace, f"unpool{stage}", x)
            for k in range(1, STAGE_CONVS[stage - 1] + 1):
                deconv, bn = (self.get_submodule(f"deconv{stage}_{k}{suffix}") for suffix in ("", "_bn"))
                x = keep(trace, f"deconv{stage}_{k}", F.relu(bn(deconv(x))))
        return keep(trace, "seg_score", self.seg_score(x))


class DecoupledNet(nn.Module, Segmenter):
    """The whole network. Fresh weights are random; :func:`ddn_fast.load` reads trained ones.

    `ops` names where pooling and unpooling come from: :mod:`ddn_fast.reference` (plain formulas, the default) or
    :mod:`ddn_fast.ops` (compiled); the results are the same.
    """

    def __init__(self, config: NetConfig | None = None, ops: Any = reference) -> None:
        super().__init__()
        self.config = config or NetConfig()
        self.ops = ops
        self.encoder = Encoder(self.config)
        self.head = Head(self.config)
        self.bridge = Bridge(self.config)
        self.decoder = Decoder(self.config)
        self.apply(_initialise)

    def __getstate__(self) -> dict[str, Any]:
        # a module of code can be neither copied nor pickled, but by its name
        ops = self.ops.__name__ if isinstance(self.ops, ModuleType) else self.ops
        return self.__dict__ | {"ops": ops}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)

    def encode(self, x: Tensor, trace: Trace = None) -> tuple[Features, HeadOutput]:
        """The part that runs once per image: x ``[B,3,S,S]`` as section 1 leaves it.

        Raises InputError if x has another shape, or another dtype or device than the network's parameters.
        """
        check_images(x, self.config, self.input_like())
        features = self.encoder(x, self.ops, trace)
        return features, self.head(features.pool5, trace=trace)

    def decode(
        self, features: Features, head: HeadOutput, labels: Tensor, image_of_pass: Tensor, trace: Trace = None
    ) -> Tensor:
        """The part that runs once per pass: labels ``[P,L]``, image_of_pass ``[P]`` to seg-scores ``[P,2,S,S]``."""
        check_passes(labels, image_of_pass, self.config, len(features.pool5))
        labels = labels.to(features.pool5)
        image_of_pass = image_of_pass.to(features.pool5.device, torch.int64)
        class_map = self.head.class_map(head, labels, image_of_pass, trace)
        x = self.bridge(features.pool5[image_of_pass], class_map, trace)
        return self.decoder(x, features.switches, image_of_pass, self.ops, trace)

    def forward(self, x: Tensor, labels: Tensor, image_of_pass: Tensor, trace: Trace = None) -> Tensor:
        """Seg-scores ``[P,2,S,S]`` (background, foreground, before softmax), one per pass.

        x ``[B,3,S,S]`` as section 1 leaves it; labels ``[P,L]``, the y of section 4; image_of_pass ``[P]`` integers.
        With `trace` (a dict) every intermediate is left in it by name. Raises InputError on other shapes and,
        of x, another dtype or device than the parameters'.
        """
        features, head = self.encode(x, trace)
        return self.decode(features, head, labels, image_of_pass, trace)

    def classify(self, x: Tensor) -> Tensor:
        """Image-level scores ``[B,L]`` in 0..1: sigmoid of the mean score over the grid (section 3)."""
        return self.encode(x)[1].scores

    # --- what Segmenter.segment needs ---

    def score_images(self, x: Tensor) -> tuple[Tensor, Any]:
        """Scores ``[B,L]`` and what :meth:`score_passes` needs of this batch."""
        state = self.encode(x)
        return state[1].scores, state

    def score_passes(self, state: Any, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """Foreground minus background seg-score ``[P,S,S]`` (identity 5: softmax over two is its sigmoid)."""
        features, head = state
        scores = self.decode(features, head, labels, image_of_pass)
        return scores[:, 1] - scores[:, 0]

    def input_like(self) -> Tensor:
        """Its first parameter."""
        return next(self.parameters())

    @contextlib.contextmanager
    def inferring(self) -> Iterator[None]:
        """Eval mode inside, every submodule's own mode again afterwards."""
        training = [part for part in self.modules() if part.training]
        self.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True


def check_images(x: Tensor, config: NetConfig, like: Tensor) -> None:
    """InputError unless x is ``[B,3,S,S]``, with the dtype and device of `like`."""
    side = config.side
    if not isinstance(x, Tensor):
        raise InputError(f"x: wanted a tensor [B,3,{side},{side}], got {type(x).__name__}")
    if x.dim() != 4 or tuple(x.shape[1:]) != (3, side, side):
        raise InputError(f"x: wanted [B,3,{side},{side}], got {list(x.shape)}")
    if x.dtype != like.dtype or x.device != like.device:
        raise InputError(f"x: wanted {like.dtype} on {like.device}, as the network is, got {x.dtype} on {x.device}")


def check_passes(labels: Tensor, image_of_pass: Tensor, config: NetConfig, images: int) -> None:
    """InputError unless labels is ``[P,L]`` and image_of_pass ``[P]`` integers from 0 to `images` - 1."""
    classes = config.num_classes
    for name, value in (("labels", labels), ("image_of_pass", image_of_pass)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name}: wanted a tensor, got {type(value).__name__}")
    if labels.dim() != 2 or labels.shape[1] != classes:
        raise InputError(f"labels: wanted [P,{classes}], got {list(labels.shape)}")
    if image_of_pass.dim() != 1 or len(image_of_pass) != len(labels):
        raise InputError(f"image_of_pass: wanted [{len(labels)}], got {list(image_of_pass.shape)}")
    if image_of_pass.dtype.is_floating_point or image_of_pass.dtype == torch.bool:
        raise InputError(f"image_of_pass: wanted an integer dtype, got {image_of_pass.dtype}")
    if len(image_of_pass) and not 0 <= int(image_of_pass.min()) <= int(image_of_pass.max()) < images:
        raise InputError(f"image_of_pass: wanted values from 0 to {images - 1}, got {image_of_pass.tolist()}")


def keep(trace: Trace, name: str, value: Tensor) -> Tensor:
    """Leave `value` in `trace` under `name` if anybody asked for it."""
    if trace is not None:
        trace[name] = value
    return value


def _initialise(module: nn.Module) -> None:
    """He's initialisation: every weight layer here but the two score layers is followed by a ReLU."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in" if isinstance(module, nn.Conv2d) else "fan_out")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
