"""dense: what is its own among the fused ops."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from ddn_fast import _C, ops, reference


@pytest.fixture(params=_C.cpu_isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine in turn."""
    monkeypatch.setenv("DDN_MAX_CPU_ISA", request.param)
    return request.param


def whole_numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """-4..4: products and sums are exact, so that a wrong or missing one shows."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 128, 129])
def test_every_product_is_there_once(rows: int, dtype: torch.dtype) -> None:
    for outputs, inputs in ((1, 1), (16, 32), (31, 33), (129, 31), (47, 1057), (6, 2049)):
        x, weight = whole_numbers(rows, inputs, dtype=dtype), whole_numbers(outputs, inputs, dtype=dtype)
        bias = whole_numbers(outputs)
        assert torch.equal(ops.dense(x, weight, bias), x.float() @ weight.float().T + bias)
        assert torch.equal(ops.dense(x, weight), x.float() @ weight.float().T)


def test_nothing_beside_the_matrices_is_read() -> None:
    """NaN stands before and after every row that counts."""
    for dtype in (torch.float32, torch.bfloat16):
        for outputs, inputs in ((5, 37), (33, 64), (16, 2)):
            weight = torch.full((outputs * inputs + 128,), torch.nan, dtype=dtype)
            weight = weight[64:-64].view(outputs, inputs).copy_(whole_numbers(outputs, inputs))
            x = torch.full((3 * inputs + 128,), torch.nan, dtype=dtype)
            x = x[64:-64].view(3, inputs).copy_(whole_numbers(3, inputs))
            assert torch.equal(ops.dense(x, weight), x.float() @ weight.float().T)


def test_x_is_rounded_to_the_dtype_of_the_weights() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 300, generator=generator), torch.randn(40, 300, generator=generator)
    rounded = reference.dense(x.bfloat16().double(), weight.bfloat16().double())
    assert torch.allclose(ops.dense(x, weight.bfloat16()).double(), rounded, rtol=0, atol=1e-4)
    assert not torch.allclose(rounded, reference.dense(x.double(), weight.bfloat16().double()), rtol=0, atol=1e-3)
    exact = reference.dense(x.bfloat16().double(), weight.double())
    assert torch.allclose(ops.dense(x.bfloat16(), weight).double(), exact, rtol=0, atol=1e-4)


def test_relu_keeps_nan_and_only_it() -> None:
    x, weight = torch.ones(3, 40), torch.ones(20, 40)
    x[1, 3] = torch.nan
    x[2] = -1
    y = ops.dense(x, weight, relu=True)
    assert torch.equal(y[0], torch.full((20,), 40.0))
    assert y[1].isnan().all()
    assert not y[2].any()


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(50, 1500, generator=generator).bfloat16()
    x = torch.randn(140, 1500, generator=generator)
    y = ops.dense(x, weight)
    for rows in (slice(0, 1), slice(3, 20), slice(120, 140)):
        assert torch.equal(ops.dense(x[rows], weight), y[rows])


X, WEIGHT, BIAS = torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(5)
BAD = [
    ((X[0], WEIGHT), "x must be [M,8], got [8]"),
    ((X[:, :7], WEIGHT), "x must be [M,8], got [3,7]"),
    ((X.double(), WEIGHT), "x must be Float or BFloat16, got Double"),
    ((X, WEIGHT.half()), "weight must be Float or BFloat16, got Half"),
    ((X, WEIGHT[0]), "weight must be [N,K] with no empty axis, got [8]"),
    ((X, WEIGHT[:0]), "weight must be [N,K] with no empty axis, got [0,8]"),
    ((X[:, :0], WEIGHT[:, :0]), "weight must be [N,K] with no empty axis, got [5,0]"),
    ((X, WEIGHT, BIAS[:4]), "bias must be [5], got [4]"),
    ((X, WEIGHT, BIAS.bfloat16()), "bias must be Float, got BFloat16"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[message for _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(args: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"dense: {message}")):
        ops.dense(*args)


def test_gradients_of_dense_and_of_dense_outer_are_those_of_the_products() -> None:
    """First and second ones: both ops are made of each other."""
    generator = torch.Generator().manual_seed(2)
    x, weight, a = (torch.randn(n, 37, generator=generator) for n in (6, 33, 6))
    for op, plain, left in (
        (ops.dense, lambda x, w: x @ w.T, x),
        (ops.dense_outer, lambda a, b: a.T @ b, a),
    ):
        right = weight if op is ops.dense else x
        found = []
        for function, dtype in ((op, torch.float32), (plain, torch.float64)):
            leaves = [t.detach().to(dtype).requires_grad_() for t in (left, right)]
            first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
            found.append((*first, *second))
        for got, wanted in zip(*found, strict=True):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_gradients_of_no_rows_are_there() -> None:
    x, a, weight = (torch.ones(n, 37, requires_grad=True) for n in (0, 0, 33))
    (ops.dense(x, weight).sum() + ops.dense_outer(a, x).sum()).backward()
    assert x.grad is not None
    assert a.grad is not None
    assert x.grad.shape == a.grad.shape == (0, 37)
    assert torch.equal(weight.grad, torch.zeros(33, 37))


@pytest.mark.parametrize(
    "change", [{"bias": torch.zeros(33)}, {"relu": True}, {"weight": torch.zeros(33, 37).bfloat16()}]
)
def test_gradients_of_dense_that_are_not_there_are_refused(change: dict[str, Any]) -> None:
    x = torch.zeros(6, 37, requires_grad=True)
    y = ops.dense(**{"x": x, "weight": torch.zeros(33, 37), **change})
    with pytest.raises(RuntimeError, match="dense has gradients of float32 x and weight only, without bias and relu"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), "a must be [D,R], got [3]"),
        (torch.zeros(3, 2), torch.zeros(4, 2), "b must be [3,C] with C at least 1, got [4,2]"),
        (torch.zeros(3, 2).bfloat16(), torch.zeros(3, 2), "a must be Float, got BFloat16"),
        (torch.zeros(3, 2), torch.zeros(3, 2).double(), "b must be Float, got Double"),
    ],
)
def test_wrong_argument_of_dense_outer_is_named(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"dense_outer: {message}")):
        ops.dense_outer(a, b)
