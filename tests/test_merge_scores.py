"""merge_scores: labels against the plain formula in float64, and the rules of SPEC section 7.3."""

from __future__ import annotations

import re

import pytest
import torch
from op_cases import CASES
from torch import Tensor

from ddn_fast import _C, ops, reference
from ddn_fast.images import resize_matlab


@pytest.fixture(params=_C.cpu_isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine in turn."""
    monkeypatch.setenv("DDN_MAX_CPU_ISA", request.param)
    return request.param


def assert_labels_hold(difference: Tensor, classes: int, square: int, crop: list[int], margin: float = 1e-5) -> None:
    """Labels equal those of the float64 formula but where its two largest scores are within `margin`."""
    wanted = reference.merge_scores(difference.double(), classes, square, crop)
    got = ops.merge_scores(difference, classes, square, crop)
    planes = reference.pixel_scores(difference.double(), classes)
    first, second = resize_matlab(planes, (square, square), "bicubic", (crop[0], crop[1])).topk(2, dim=0).values
    assert got.shape == wanted.shape
    assert bool(((got == wanted) | (first - second < margin)).all())


@pytest.mark.parametrize("case", CASES["merge_scores"], ids=str)
def test_labels_are_those_of_the_plain_formula(case) -> None:
    assert_labels_hold(*case(torch.float32))
    assert_labels_hold(*case(torch.float64), margin=1e-12)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_labels_hold_at_the_size_of_voc(classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    coarse = torch.randn(1, 1 if classes == 1 else classes + 1, 20, 20, generator=generator)
    difference = scale * torch.nn.functional.interpolate(coarse, size=320, mode="bilinear")[0]
    assert_labels_hold(difference, classes, 500, [375, 500])


def test_sigmoids_that_underflow_are_exact_zeros() -> None:
    """Then every plane gets an equal share and background wins; in the smallest numbers that are left, the larger."""
    for low in (-89.0, -100.0, -200.0, -torch.inf):
        difference = torch.full((3, 4, 4), low)
        difference[0] = 200.0  # background has none either
        assert not ops.merge_scores(difference, 2, 4, [4, 4]).any()
        difference[2, :2] = -85.0
        labels = ops.merge_scores(difference, 2, 4, [4, 4])
        assert labels.tolist() == reference.merge_scores(difference, 2, 4, [4, 4]).tolist()
        assert labels[:2].unique().tolist() == [2]


def test_the_smallest_scores_are_told_from_none() -> None:
    """From -88 to where float32 overflows, a class's score is small, but more than that of a background without any."""
    for low in (-88.1, -88.3, -88.7):
        difference = torch.full((3, 4, 4), low)
        difference[0], difference[1] = 200.0, -200.0
        labels = ops.merge_scores(difference, 2, 4, [4, 4])
        assert labels.unique().tolist() == [2]
        assert torch.equal(labels, reference.merge_scores(difference.double(), 2, 4, [4, 4]))


def test_first_of_equal_scores_wins() -> None:
    difference = torch.zeros(4, 6, 6)
    assert not ops.merge_scores(difference, 3, 9, [9, 8]).any()
    difference[0], difference[2:] = 5.0, 5.0
    assert ops.merge_scores(difference, 3, 9, [9, 8]).unique().tolist() == [2]


def test_exponential_is_exact_to_rounding() -> None:
    """Two classes whose scores differ by one part in 10^6 anywhere between underflow and saturation."""
    values = torch.linspace(-80, 10, 60 * 60).view(60, 60)
    difference = torch.stack([torch.full_like(values, 30.0), values, values + 3e-6 * values.abs().clamp(min=1)])
    labels = ops.merge_scores(difference, 2, 60, [60, 60])
    wanted = reference.merge_scores(difference.double(), 2, 60, [60, 60])
    scores = reference.pixel_scores(difference.double(), 2)
    apart = (scores[1] - scores[2]).abs() > 1.5e-6 * scores[2]
    assert apart.float().mean() > 0.5
    assert torch.equal(labels[apart], wanted[apart])


def test_rows_can_be_shared_out_in_any_way(restore_threads: None) -> None:
    difference = torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(2))
    for square in (16, 10, 4):
        torch.set_num_threads(1)
        wanted = ops.merge_scores(difference, 2, square, [square, square])
        for threads in (2, square // 2, square):
            torch.set_num_threads(threads)
            assert torch.equal(ops.merge_scores(difference, 2, square, [square, square]), wanted)


def test_nan_scores_spread_as_in_the_plain_formula() -> None:
    difference = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(1))
    difference[1, 5, 5] = torch.nan
    args = (2, 12, [12, 12])
    assert torch.equal(ops.merge_scores(difference, *args), reference.merge_scores(difference, *args))


def test_254_classes_fit_a_byte() -> None:
    difference = torch.full((255, 3, 3), -4.0)
    difference[0], difference[254] = 9.0, 9.0
    assert ops.merge_scores(difference, 254, 5, [5, 5]).unique().tolist() == [254]


D = torch.zeros(3, 6, 6)
BAD = [
    ((D.bfloat16(), 2, 9, [9, 9]), "difference must be Float or Double, got BFloat16"),
    ((D, 0, 9, [9, 9]), "classes must be 1..254, got 0"),
    ((D, 255, 9, [9, 9]), "classes must be 1..254, got 255"),
    ((D, 3, 9, [9, 9]), "difference must be [4,S,S] with 3 classes, got [3,6,6]"),
    ((D[:2], 1, 9, [9, 9]), "difference must be [1,S,S] with 1 classes, got [2,6,6]"),
    ((D[..., :5], 2, 9, [9, 9]), "difference must be [3,S,S] with 2 classes, got [3,6,5]"),
    ((D[:, :0, :0], 2, 9, [9, 9]), "difference must be [3,S,S] with 2 classes, got [3,0,0]"),
    ((D[0], 2, 9, [9, 9]), "difference must be [3,S,S] with 2 classes, got [6,6]"),
    ((D, 2, 0, [1, 1]), "square must be at least 1, got 0"),
    ((D, 2, 9, [9, 10]), "crop must be [h,w], each in 1..9, got [9,10]"),
    ((D, 2, 9, [0, 9]), "crop must be [h,w], each in 1..9, got [0,9]"),
    ((D, 2, 9, [9]), "crop must be [h,w], each in 1..9, got [9]"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[message for _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(args: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"merge_scores: {message}")):
        ops.merge_scores(*args)
