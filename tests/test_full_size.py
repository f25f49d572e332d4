"""Stages of the full-size network on a GPU, as exact as cuDNN's; on the CPU the same test on a tiny one."""

from __future__ import annotations

import groups_conv
import groups_head
import machine
import pytest
import stock
import torch
from end_to_end import QUICK
from groups import OURS, Group, Setting

from ddn_fast import ops
from ddn_fast.config import NetConfig


@pytest.fixture
def setting(device: str, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Of the device; the rivals are those of CUDA, whose fused convolution the CPU has not got."""
    if device == "cpu":
        monkeypatch.setattr(stock, "on_cuda", lambda _: True)
        monkeypatch.setattr(stock, "conv_fused", stock.conv)
        monkeypatch.setattr(machine, "cuda_isas", lambda: ["mma"])
    return Setting(ops, QUICK if device == "cpu" else NetConfig(), (3,), (), True, "cuda")


def assert_as_exact(group: Group) -> None:
    """At most twice as far from float64 as the best of the others; some version of a library lacks a special one."""
    truth, errors = group.truth(), {}
    for rival in group.rivals:
        try:
            errors[rival.label] = group.error(rival.result(), truth)
        except RuntimeError:
            if not rival.special:
                raise
    limit = 2 * min(error for rival, error in errors.items() if not rival.startswith(OURS)) + 1e-5
    assert all(error <= limit for rival, error in errors.items() if rival.startswith(OURS)), errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stage", range(10))
def test_a_stage_is_as_exact_as_the_vendors_library(
    stage: int, dtype: torch.dtype, setting: Setting, device: str
) -> None:
    if device == "cpu" and dtype == torch.float16:
        dtype = torch.bfloat16  # CPU kernels have no other
    with torch.device(device), torch.no_grad():
        convs = groups_conv.stages(setting.config)[stage]
        assert_as_exact(groups_conv.case_group(setting, convs, 3, dtype, "stage"))


@pytest.mark.parametrize("layer", range(6))
def test_a_dense_layer_is_as_exact_as_the_vendors_library(layer: int, setting: Setting, device: str) -> None:
    with torch.device(device), torch.no_grad():
        dense = groups_head.dense_layers(setting.config)[layer]
        assert_as_exact(groups_head.dense_group(setting, dense, 3, torch.bfloat16))


@pytest.mark.parametrize("labels", [1, 3])
def test_the_gate_is_as_exact_as_products_of_matrices(labels: int, setting: Setting, device: str) -> None:
    with torch.device(device), torch.no_grad():
        assert_as_exact(groups_head.gate_group(setting, labels, 0.5, torch.bfloat16))
