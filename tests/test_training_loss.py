"""The two losses: what counts, what does not, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddn_fast.training.loss import classification_loss, segmentation_loss


def scores_and_target(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2, (3, 4, 5), generator=generator).byte()
    target[0, 1:3] = 255
    target[2] = 255
    return scores, target


def test_segmentation_loss_is_the_mean_over_pixels_that_are_not_void() -> None:
    scores, target = scores_and_target()
    wanted, count = 0.0, 0
    for p in range(3):
        for y in range(4):
            for x in range(5):
                if target[p, y, x] != 255:
                    wanted -= scores[p, :, y, x].log_softmax(0)[int(target[p, y, x])].item()
                    count += 1
    loss = segmentation_loss(scores, target)
    assert loss is not None
    assert loss.item() == pytest.approx(wanted / count, rel=1e-12)


def test_void_pixels_move_neither_loss_nor_gradient() -> None:
    scores, target = scores_and_target()
    void = (target == 255)[:, None].expand_as(scores)
    results = []
    for fill in (0.0, 1e30):
        x = torch.where(void, fill, scores).requires_grad_()
        loss = segmentation_loss(x, target)
        assert loss is not None
        results.append((loss.item(), *torch.autograd.grad(loss, x)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert not results[0][1][void].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_all_void_sub_batch_has_no_loss(dtype: torch.dtype) -> None:
    assert segmentation_loss(torch.zeros(2, 2, 3, 3), torch.full((2, 3, 3), 255, dtype=dtype)) is None


def test_single_counted_pixel_is_enough() -> None:
    target = torch.full((2, 3, 3), 255, dtype=torch.uint8)
    target[1, 2, 0] = 1
    loss = segmentation_loss(torch.zeros(2, 2, 3, 3), target)
    assert loss is not None
    assert loss.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_classification_loss_sums_over_classes_and_averages_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    score_map = torch.randn(3, 5, 2, 2, generator=generator, dtype=torch.float64)
    tags = torch.randint(0, 2, (3, 5), generator=generator).to(torch.int8)
    probability = torch.sigmoid(score_map.mean((2, 3)))
    wanted = -(tags * probability.log() + (1 - tags) * (1 - probability).log()).sum() / 3
    torch.testing.assert_close(classification_loss(score_map, tags), wanted)


def test_unknown_tags_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    score_map = torch.randn(2, 3, 2, 2, generator=generator, requires_grad=True)
    tags = torch.tensor([[1, -1, 0], [-1, -1, 1]], dtype=torch.int8)
    loss = classification_loss(score_map, tags)
    mean = score_map.mean((2, 3))
    wanted = F.binary_cross_entropy_with_logits(mean[tags >= 0], tags[tags >= 0].float(), reduction="sum") / 2
    torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(loss, score_map)
    assert not gradient[tags < 0].any()
    assert gradient[tags >= 0].all()


def test_image_of_unknown_tags_alone_has_loss_zero() -> None:
    assert classification_loss(torch.randn(1, 3, 2, 2), torch.full((1, 3), -1, dtype=torch.int8)).item() == 0


def test_gradients_of_both_losses() -> None:
    scores, target = scores_and_target()
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, target), scores.requires_grad_())
    tags = torch.tensor([[1, -1], [0, 1], [0, 0]], dtype=torch.int8)
    assert torch.autograd.gradcheck(lambda x: classification_loss(x, tags), scores)
