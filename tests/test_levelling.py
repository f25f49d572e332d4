"""Layers multiplied in whole numbers lose nothing to how large their channels happen to be (folding._level)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from test_engine import CONFIGS, difference, random_net, some_passes
from torch import Tensor, nn

from ddn_fast import folding
from ddn_fast.engine import FastDecoupledNet
from ddn_fast.network import DecoupledNet

CONFIG = CONFIGS["wide"]


def chosen(dtype: torch.dtype, isa: str, channels: int) -> str:
    return "direct" if channels == 3 else "winograd_int16"


def unlevelled(weight: Tensor, size: Tensor) -> Tensor:
    return torch.ones_like(size)


@pytest.fixture(autouse=True)
def in_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "conv3x3_layout", chosen)


@torch.no_grad()
def network(change: Callable[[DecoupledNet], None] | None = None) -> DecoupledNet:
    net = random_net(CONFIG).float()
    net.encoder.conv1_1.weight /= 64
    if change:
        change(net)
    return net


@torch.no_grad()
def truth(net: DecoupledNet) -> Tensor:
    x, labels, image_of_pass = inputs()
    return difference(net.double(), x.double(), labels.double(), image_of_pass).sigmoid()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x, labels, image_of_pass = some_passes(CONFIG, 2, 3)
    return (40 * x).float(), labels.float(), image_of_pass


def found(net: DecoupledNet) -> Tensor:
    return FastDecoupledNet(net.float(), torch.bfloat16).fast(*inputs())


def error(net: DecoupledNet) -> float:
    return float((found(net) - truth(net)).abs().mean())


def encoder_convs(net: DecoupledNet) -> list[nn.Module]:
    return [module for name, module in net.encoder.named_modules() if name.startswith("conv")]


def scale_channels(net: DecoupledNet, draw: Callable[[Tensor], Tensor], together: bool) -> None:
    """Multiply the channels between two convolutions by powers of two of the exponents drawn, and the weights that read
    them by their inverse or, `together`, by the same.
    """
    encoder = encoder_convs(net)
    decoder = [module for name, module in net.decoder.named_modules() if name.startswith("deconv")]
    givers = [*encoder[:-1], net.bridge.fc6_deconv_bn, *decoder[1:-2:2]]
    takers = [(m, 1) for m in encoder[1:]] + [(m, 0) for m in decoder[::2]]
    for giver, (taker, dim) in zip(givers, takers, strict=True):
        factor = 2.0 ** draw(giver.bias)
        giver.weight.mul_(factor.view(-1, *[1] * (giver.weight.dim() - 1)))
        giver.bias.mul_(factor)
        read = factor if together else 1 / factor
        taker.weight.mul_(read.view(-1, 1, 1) if dim else read.view(-1, 1, 1, 1))


def within(spread: int) -> Callable[[Tensor], Tensor]:
    """Draws exponents of -spread to +spread."""
    generator = torch.Generator().manual_seed(3)
    return lambda like: torch.randint(-spread, spread + 1, like.shape, generator=generator)


def test_small_channels_with_large_weights_count_as_much_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the size that training happened to leave a channel, nor that of its weights, is what counts."""
    net, scaled = network(), network(lambda net: scale_channels(net, within(8), together=False))
    torch.testing.assert_close(truth(scaled), truth(net))
    assert torch.equal(found(scaled), found(net))
    levelled = error(scaled)
    monkeypatch.setattr(folding, "_level", unlevelled)
    assert error(scaled) > 5 * levelled


def test_large_channels_with_large_weights_stay_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what the sums are made of, as in ImageNet's VGG-16; to enlarge them further would lose the others."""
    net = network(lambda net: scale_channels(net, within(2), together=True))
    levelled = error(net)
    monkeypatch.setattr(folding, "_level", unlevelled)
    assert levelled < 1.2 * error(net)


def test_a_channel_that_nobody_reads_takes_no_accuracy_from_others() -> None:
    def change(net: DecoupledNet, bias: float) -> None:
        for giver, taker in itertools.pairwise(encoder_convs(net)):
            giver.bias[0] = bias
            taker.weight[:, 0] = 0

    large, dark = (error(network(lambda net, bias=bias: change(net, bias))) for bias in (1e4, -1e4))
    assert large < 1.5 * dark


def test_a_channel_that_is_a_constant_is_as_large_as_its_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(net: DecoupledNet) -> None:
        for giver, taker in itertools.pairwise(encoder_convs(net)):
            giver.weight[0] = 0
            giver.bias[0] = 2.0**14
            taker.weight[:, 0] /= 2.0**14

    net = network(change)
    levelled = error(net)
    monkeypatch.setattr(folding, "_level", unlevelled)
    assert error(net) > 5 * levelled


@pytest.mark.parametrize("dead", ["unread", "of size 0"])
def test_dead_channels_do_not_change_the_level_of_live_ones(dead: str) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = 2.0**-30 * torch.randn(8, 12, 3, 3, generator=generator, dtype=torch.float64)
    size = 2.0 ** torch.arange(12, dtype=torch.float64)
    wanted = folding._level(weight[:, 4:], size[4:])
    if dead == "unread":
        weight[:, :4] = 0
    else:
        size[:4] = 0
    assert len(wanted.unique()) > 2
    assert torch.equal(folding._level(weight, size)[4:], wanted)
