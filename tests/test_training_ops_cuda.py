"""CUDA's side of the ops of training, which is put together from torch's own and so runs on the CPU, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from op_cases import CASES, TRAINING
from test_ops_inference import map_tensors, results
from test_trained_part import gradients, kept_and_most, made, plain_scores
from torch import Tensor

from ddn_fast import dense_ops, ops, reference, training_ops_cuda
from ddn_fast.config import NetConfig
from ddn_fast.training.trained_part import trained_scores

ON_CUDA = SimpleNamespace(
    **{name: getattr(training_ops_cuda if name in TRAINING else ops, name) for name in reference.OPS}
)


@pytest.fixture(params=[1, 1 << 30], ids=["image by image", "all at once"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_ops_cuda, "AT_ONCE", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRAINING)
def test_equals_the_formula_in_float64(name: str, dtype: torch.dtype, at_once: None) -> None:
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for case in CASES[name]:
        got, wanted = (
            getattr(ON_CUDA, name)(*case(dtype)),
            getattr(reference, name)(*map_tensors(Tensor.double, case(dtype))),
        )
        compiled = getattr(ops, name)(*case(dtype))
        pairs = [(got, wanted, compiled)] if isinstance(got, Tensor) else list(zip(got, wanted, compiled, strict=True))
        for place, (g, w, c) in enumerate(pairs):
            assert (g.dtype, g.shape, g.stride()) == (c.dtype, c.shape, c.stride()), (case, place)
            assert (g.double() - w).norm() <= tolerance * w.norm() + 1e-12, (case, place)


@pytest.mark.parametrize("name", ["dense", "dense_outer", *TRAINING])
def test_gives_under_autocast_the_bits_it_gives_without(name: str) -> None:
    """torch leaves autocast on in a kernel that is registered from Python, and on CUDA these are."""
    kernel = getattr(training_ops_cuda, name, None) or getattr(dense_ops, f"_{name}_cuda")
    for case in CASES[name]:
        arguments = case(torch.float32)
        plain = results(kernel(*arguments))
        with torch.autocast("cpu", torch.bfloat16):
            found = results(dense_ops.without_autocast(kernel)(*arguments))
        assert all(map(torch.equal, found, plain))


def test_every_kernel_of_torchs_own_ops_is_registered_without_autocast() -> None:
    with mock.patch.object(torch.library, "register_kernel") as register:
        training_ops_cuda.register()
    kernels = {
        call.args[0]: done.args[0]
        for call, done in zip(register.call_args_list, register.return_value.call_args_list, strict=True)
    }
    assert kernels.keys() == {f"ddn_fast::{name}" for name in TRAINING}
    assert all(kernel.__wrapped__ is not kernel for kernel in kernels.values())


def test_takes_what_the_cpu_takes_and_refuses_the_rest_by_name() -> None:
    for name in TRAINING:
        arguments = CASES[name][0](torch.float32)
        with pytest.raises(RuntimeError, match=f"^{name}: "):
            getattr(ON_CUDA, name)(*(a[..., :0] if isinstance(a, Tensor) and a.dim() == 4 else a for a in arguments))


def scores(net: Any, fixed: Any) -> Tensor:
    with mock.patch.object(net, "ops", ON_CUDA):
        return trained_scores(net, *fixed)


def test_trains_as_the_compiled_ops_do(at_once: None) -> None:
    net, fixed, target = made()
    found = [
        {name: value.clone() for name, value in gradients(net, way(), target).items()}
        for way in (lambda: scores(net, fixed), lambda: trained_scores(net, *fixed))
    ]
    assert found[0].keys() == found[1].keys()
    distance = sum(float((found[0][name] - found[1][name]).square().sum()) for name in found[0]) ** 0.5
    assert distance < 1e-3 * sum(float(value.square().sum()) for value in found[1].values()) ** 0.5


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_peak_of_memory_is_half_of_the_plain_networks(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_ops_cuda, "AT_ONCE", 1)
    config = NetConfig(("ant", "bee", "cow"), 64, (16, 32, 64, 64, 64), fc=8, bridge=8, fc_kernel=1)
    net, fixed, target = made(config, images=16)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        ours = kept_and_most(net, target, lambda: scores(net, fixed))
        plain = kept_and_most(net, target, lambda: plain_scores(net, fixed))
    assert ours[0] < 0.45 * plain[0]
    assert ours[1] < 0.5 * plain[1]
