"""Labels to passes: identities 2 and 4."""

from __future__ import annotations

import pytest
import torch

from ddn_fast.errors import InputError
from ddn_fast.plan import even_slices, identify, passes_of, plan_passes

SCORES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.9, 0.1, 0.6, 0.7], [0.2, 0.8, 0.5, 0.1]])


def test_identified_is_above_the_threshold_not_at_it():
    assert identify(SCORES) == [[], [0, 2, 3], [1]]
    assert identify(SCORES, 0.25) == [[2, 3], [0, 2, 3], [1, 2]]


def test_identity_4_zero_one_or_all_and_each():
    passes = plan_passes(SCORES, identify(SCORES))
    assert passes.classes == ((), (0, 2, 3), (1,))
    assert passes.counts() == [0, 4, 1]
    assert passes.image_of_pass.tolist() == [1, 1, 1, 1, 2]
    expected = [[0.9, 0, 0.6, 0.7], [0.9, 0, 0, 0], [0, 0, 0.6, 0], [0, 0, 0, 0.7], [0, 0.8, 0, 0]]
    assert torch.equal(passes.labels, torch.tensor(expected))


def test_identity_2_first_pass_is_the_sum_of_the_others():
    passes = plan_passes(SCORES, [[], [3, 0, 2], []])
    assert torch.equal(passes.labels[0], passes.labels[1:].sum(0))


def test_named_labels_keep_their_own_scores_and_count_once():
    passes = plan_passes(SCORES, [[3, 0, 3], [], [2]])
    assert passes.classes == ((0, 3), (), (2,))
    assert passes.labels[:, 3].tolist() == pytest.approx([0.4, 0, 0.4, 0])
    assert passes.image_of_pass.tolist() == [0, 0, 0, 2]


def test_no_label_anywhere_is_no_pass():
    passes = plan_passes(SCORES, [[], [], []])
    assert len(passes) == 0
    assert passes.labels.shape == (0, 4)
    assert passes.image_of_pass.dtype == torch.int64
    assert plan_passes(SCORES[:0], []).classes == ()


@pytest.mark.parametrize("count", range(5))
def test_counts_agree_with_the_plan(count):
    assert len(plan_passes(SCORES[:1], [list(range(count))])) == passes_of(count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_labels_have_the_dtype_of_the_scores_and_no_gradient(dtype):
    passes = plan_passes(SCORES.to(dtype).requires_grad_(), [[0], [1, 2], []])
    assert passes.labels.dtype == dtype
    assert not passes.labels.requires_grad


@pytest.mark.parametrize("chosen", [[[4], [], []], [[-1], [], []], [[], []]])
def test_wrong_classes_or_counts_are_named_errors(chosen):
    with pytest.raises(InputError, match="wanted"):
        plan_passes(SCORES, chosen)


@pytest.mark.parametrize(
    ("count", "most", "lengths"), [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (17, 16, [8, 9]), (7, 3, [2, 2, 3])]
)
def test_slices_are_as_few_and_as_even_as_can_be(count, most, lengths):
    slices = even_slices(count, most)
    assert [len(range(count)[part]) for part in slices] == lengths
    assert [k for part in slices for k in range(count)[part]] == list(range(count))
