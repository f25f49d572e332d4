"""class_gate: what is its own among the fused ops."""

from __future__ import annotations

import re

import pytest
import torch
from op_cases import ClassGate
from torch._subclasses import FakeTensorMode

from ddn_fast import _C, ops, reference


@pytest.fixture(params=_C.cpu_isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine in turn."""
    monkeypatch.setenv("DDN_MAX_CPU_ISA", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 6])
def test_identity_10_rows_that_are_off_are_never_read(pairs: int, dtype: torch.dtype) -> None:
    cls, fc7_weight, fc6_weight, fc6, fc7, *indices = ClassGate(64, 300, 5, 2, 4, pairs)(dtype)
    position, image, label = indices
    at = position[image, label]
    g7 = cls[label].float() * (fc7[image, at] > 0)
    g6 = (g7 @ fc7_weight.float()) * (fc6[image, at] > 0)
    wanted = ops.class_gate(cls, fc7_weight, fc6_weight, fc6, fc7, *indices)
    off7, off6 = ~(g7 != 0).any(0), ~(g6 != 0).any(0)
    fc7_weight[off7] = torch.nan
    fc6_weight[off6] = torch.nan
    assert off7.any() or pairs > 3
    got = ops.class_gate(cls, fc7_weight, fc6_weight, fc6, fc7, *indices)
    assert torch.equal(got, wanted)
    assert got.isfinite().all()


def test_nothing_on_gives_zeros() -> None:
    cls, fc7_weight, fc6_weight, fc6, fc7, *indices = ClassGate(40, 70, 3, 2, 4, 5)(torch.float32)
    poison = torch.full_like(fc6_weight, torch.nan)
    assert not ops.class_gate(cls, fc7_weight, poison, torch.zeros_like(fc6), fc7, *indices).any()
    assert not ops.class_gate(cls, poison[:, :40], poison, fc6, -fc7, *indices).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pair_does_not_depend_on_those_beside_it(dtype: torch.dtype) -> None:
    *tensors, image, label = ClassGate(48, 4200, 6, 3, 4, 70)(dtype)
    together = ops.class_gate(*tensors, image, label)
    for pair in (0, 1, 33, 69):
        one = slice(pair, pair + 1)
        assert torch.equal(ops.class_gate(*tensors, image[one], label[one]), together[one])


def test_only_the_sign_of_activations_matters() -> None:
    cls, fc7_weight, fc6_weight, fc6, fc7, *indices = ClassGate(40, 50, 3, 2, 4, 5)(torch.float32)
    wanted = ops.class_gate(cls, fc7_weight, fc6_weight, fc6, fc7, *indices)
    for dtype in (torch.float32, torch.bfloat16):
        got = ops.class_gate(cls, fc7_weight, fc6_weight, (3 * fc6).to(dtype), (fc7 / 2).to(dtype), *indices)
        assert torch.equal(got, wanted)


def test_dtypes_of_the_score_weights_and_of_the_others_may_differ() -> None:
    cls, fc7_weight, fc6_weight, *rest = ClassGate(40, 50, 3, 2, 4, 5)(torch.float32)
    narrow = fc7_weight.bfloat16(), fc6_weight.bfloat16()
    wanted = reference.class_gate(cls.double(), *(w.double() for w in narrow), *rest)
    assert torch.allclose(ops.class_gate(cls, *narrow, *rest).double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["cls_weight", "fc6", "fc7"])
def test_fake_tensors_are_refused_what_cuda_refuses(name: str) -> None:
    """There the two large weights alone may be float16."""
    with FakeTensorMode():
        args = {
            key: torch.empty(value.shape, dtype=value.dtype, device="cuda")
            for key, value in zip(NAMES, GOOD, strict=True)
        }
        args |= {key: args[key].half() for key in ("fc7_weight", "fc6_weight")}
        assert ops.class_gate(**args).shape == (5, 20)
        args[name] = args[name].half()
        with pytest.raises(RuntimeError, match=f"{name} must be Float or BFloat16, got torch.float16"):
            ops.class_gate(**args)


CLS, FC7, FC6 = torch.zeros(3, 8), torch.zeros(8, 8), torch.zeros(8, 20)
GRID, POSITION = torch.zeros(2, 4, 8), torch.zeros(2, 3, dtype=torch.long)
PAIRS = torch.zeros(5, dtype=torch.long)
GOOD = (CLS, FC7, FC6, GRID, GRID, POSITION, PAIRS, PAIRS)
NAMES = ("cls_weight", "fc7_weight", "fc6_weight", "fc6", "fc7", "position", "image", "label")
BAD = [
    ("cls_weight", CLS[0], "cls_weight must be [L,F] with no empty axis, got [8]"),
    ("cls_weight", CLS.half(), "cls_weight must be Float or BFloat16, got Half"),
    ("fc7_weight", FC7[:7], "fc7_weight must be [8,8], got [7,8]"),
    ("fc7_weight", FC7.double(), "fc7_weight must be Float or BFloat16, got Double"),
    ("fc6_weight", FC6[:7], "fc6_weight must be [F,K] with no empty axis, got [7,20]"),
    ("fc6_weight", FC6.bfloat16(), "fc6_weight must be Float, got BFloat16"),
    ("fc6", GRID[0], "fc6 must be [B,G*G,8], got [4,8]"),
    ("fc6", GRID[..., :7], "fc6 must be [B,G*G,8], got [2,4,7]"),
    ("fc6", GRID.double(), "fc6 must be Float or BFloat16, got Double"),
    ("fc7", GRID[:1], "fc7 must be [2,4,8], got [1,4,8]"),
    ("position", POSITION[:, :2], "position must be [2,3], got [2,2]"),
    ("position", POSITION.int(), "position must be Long, got Int"),
    ("position", POSITION + 4, "position must be in 0..3, got 4 at [0]"),
    ("position", POSITION - 1, "position must be in 0..3, got -1 at [0]"),
    ("image", PAIRS[None], "image must be [Q], got [1,5]"),
    ("image", PAIRS.int(), "image must be Long, got Int"),
    ("image", PAIRS + 2, "image must be in 0..1, got 2 at [0]"),
    ("label", PAIRS[:4], "label must be [5], got [4]"),
    ("label", PAIRS - 1, "label must be in 0..2, got -1 at [0]"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[message for _, _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(name: str, value: torch.Tensor, message: str) -> None:
    args = dict(zip(NAMES, GOOD, strict=True))
    args[name] = value
    with pytest.raises(RuntimeError, match=re.escape(f"class_gate: {message}")):
        ops.class_gate(**args)
