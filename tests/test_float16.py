"""float16 overflows at 65504: maps of the engine stay far below, however large the network's are (folding._factor)."""

from __future__ import annotations

import pytest
import torch
from test_levelling import inputs, network, scale_channels, truth

from ddn_fast import folding, reference
from ddn_fast.engine import FastDecoupledNet
from ddn_fast.network import DecoupledNet
from ddn_fast.packing import CUDA
from ddn_fast.runtime import CpuRuntime


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as an engine on CUDA packs them, for the plain formulas."""
    monkeypatch.setattr(CpuRuntime, "dtypes", (torch.bfloat16, torch.float16))
    monkeypatch.setattr("ddn_fast.info.cpu_isa", lambda: CUDA)


def error(net: DecoupledNet, dtype: torch.dtype) -> float:
    found = FastDecoupledNet(net.float(), dtype, reference).fast(*inputs())
    return float((found - truth(net)).abs().mean())


def test_float16_is_several_times_as_exact_as_bfloat16() -> None:
    net = network()
    assert 3 * error(net, torch.float16) < error(net, torch.bfloat16)


def test_large_maps_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(lambda net: scale_channels(net, lambda like: torch.full_like(like, 16), together=False))
    assert 3 * error(net, torch.float16) < error(net, torch.bfloat16)
    monkeypatch.setattr(folding, "_factor", lambda weight, size, layout, dtype: torch.ones_like(size))
    assert not error(net, torch.float16) < 1
