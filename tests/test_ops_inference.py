"""What holds for every op that rounds: exactness on every instruction set, strides, and torch's machinery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from op_cases import CASES, TRAINING, WINOGRAD, dtypes_of, results, small_case, strided
from torch import Tensor

from ddn_fast import _C, ops, reference


@pytest.mark.parametrize("isa", _C.cpu_isas())
@pytest.mark.parametrize("name", CASES)
def test_op_is_as_exact_as_plain_torch(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floating results against float64: at most twice the error of the plain formula in the same dtype."""
    monkeypatch.setenv("DDN_MAX_CPU_ISA", isa)
    for case in CASES[name]:
        for dtype in dtypes_of(name):
            args = case(dtype)
            check_exactness(name, args, results(getattr(ops, name)(*args)), (case, dtype))


def check_exactness(name: str, args: tuple, found: tuple[Tensor, ...], where: Any) -> None:
    """Each floating result but what is discrete, labels and switches."""
    exact = results(getattr(reference, name)(*map_tensors(Tensor.double, args)))
    plain = results(getattr(reference, name)(*args))
    units = 32 if name in WINOGRAD else 8
    for place, (got, wanted, usual) in enumerate(zip(found, exact, plain, strict=True)):
        assert got.shape == wanted.shape
        if not got.is_floating_point() or not got.numel():
            continue
        error, usual_error = ((y.double() - wanted).abs().max() for y in (got, usual))
        tiny = units * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert error <= 2 * usual_error + tiny, (where, place)


def map_tensors(change: Callable[[Tensor], Tensor], values: Sequence[Any]) -> list[Any]:
    """`change` on the floating tensors among the arguments of an op, those in lists too."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return map_tensors(change, value)
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return [one(value) for value in values]


@pytest.mark.parametrize("name", CASES)
def test_strides_do_not_matter(name: str) -> None:
    def spread(x: Tensor) -> Tensor:
        return strided(x) if x.dim() == 4 else x.repeat_interleave(2, dim=-1)[..., ::2]

    for dtype in dtypes_of(name):
        args = small_case(name, dtype)
        for a, b in zip(
            results(getattr(ops, name)(*args)), results(getattr(ops, name)(*map_tensors(spread, args))), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "avx512_bf16 "])
def test_unknown_instruction_set_is_named(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDN_MAX_CPU_ISA", isa)
    with pytest.raises(RuntimeError, match=f"DDN_MAX_CPU_ISA must be .* got {isa}"):
        ops.dense(*small_case("dense", torch.float32))


@pytest.mark.parametrize("name", CASES)
def test_opcheck_passes_for_ops_that_round(name: str) -> None:
    for dtype in dtypes_of(name):
        torch.library.opcheck(getattr(torch.ops.ddn_fast, name).default, small_case(name, dtype))


@pytest.mark.parametrize("name", CASES)
def test_op_that_rounds_compiles_into_one_graph(name: str) -> None:
    args = small_case(name, torch.float32)

    def around(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return tuple(y + 1 for y in results(getattr(ops, name)(x * 1, *rest)))

    torch._dynamo.reset()  # every op's `around` is one function to dynamo, which recompiles it a few times only
    compiled = torch.compile(around, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(*args), around(*args), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "name",
    [name for name in CASES if name not in ("network_input", "merge_scores", "dense", "dense_outer", *TRAINING)],
)
def test_backward_through_an_inference_op_says_that_there_is_none(name: str) -> None:
    x, *rest = small_case(name, torch.float32)
    y = results(getattr(ops, name)(x.requires_grad_(), *rest))[0]
    with pytest.raises(RuntimeError, match=f"{name} has no gradient"):
        y.sum().backward()


def test_labels_carry_no_gradient() -> None:
    x, *rest = small_case("merge_scores", torch.float32)
    assert not ops.merge_scores(x.requires_grad_(), *rest).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_inference_op_on_cuda_is_as_exact_as_plain_torch(name: str, cuda: str) -> None:
    """As on the CPU; labels may differ where rounding decides, which is rare."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the vendor's convolutions, which training takes
    for case in CASES[name]:
        for dtype in (torch.bfloat16, torch.float16) if name.startswith("conv3x3") else dtypes_of(name):
            args = case(dtype)
            on_cuda = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to(cuda), args)
            got = [y.cpu() for y in results(getattr(ops, name)(*on_cuda))]
            wanted = results(getattr(reference, name)(*map_tensors(Tensor.double, args)))
            assert [y.shape for y in got] == [y.shape for y in wanted]
            if not got[0].numel():
                continue
            if name in TRAINING:
                for g, w in zip(got, wanted, strict=True):
                    assert (g - w).abs().max() <= tolerance[dtype] * w.abs().max(), (case, dtype)
                continue
            if not got[0].is_floating_point():
                assert (got[0] != wanted[0]).float().mean() < 1e-3
                continue
            plain = results(getattr(reference, name)(*args))[0]
            error, plain_error = ((y.double() - wanted[0]).abs().max() for y in (got[0], plain))
            roundings = 8
            if name == "dense":  # matrix units may cut off every sum of 16 products, always towards 0
                roundings = max(roundings, args[0].shape[1] // 16)
            tiny = roundings * torch.finfo(torch.float32).eps * wanted[0].abs().max()
            assert error <= 2 * plain_error + tiny, (case, dtype)


@pytest.mark.gpu
def test_float32_convolution_on_cuda_says_what_it_takes(cuda: str) -> None:
    args = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to(cuda), small_case("conv3x3", torch.float32))
    with pytest.raises(RuntimeError, match="conv3x3: x must be BFloat16 or Half on CUDA, got Float"):
        ops.conv3x3(*args)
