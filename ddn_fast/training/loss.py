"""The two losses of SPEC section 8.

Of several processes that share a batch each gets its part of the loss; the loss is their sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed
from ..images import VOID
from ..segmentation import at_least_float32


def classification_loss(score_map: Tensor, tags: Tensor) -> Tensor:
    """Sigmoid cross entropy of the grid's mean score, summed over classes, averaged over images.

    score_map ``[B,L,G,G]`` before any sigmoid; tags ``[B,L]``: 1 present, 0 absent, -1 unknown (does not count).
    """
    known = tags >= 0
    scores = at_least_float32(score_map).mean((2, 3))
    losses = F.binary_cross_entropy_with_logits(scores, tags.clamp(min=0).to(scores), reduction="none")
    return torch.where(known, losses, 0).sum() / distributed.total(torch.tensor(len(tags), device=tags.device))


def segmentation_loss(scores: Tensor, target: Tensor) -> Tensor | None:
    """Two-class softmax loss, averaged over the pixels of the sub-batch that are not void.

    scores ``[P,2,S,S]``, target ``[P,S,S]`` integers 0, 1 or 255. A sub-batch with nothing but void has no loss: None
    (the release divides by zero there).
    """
    count = distributed.total((target != VOID).sum())
    if not bool(count):
        return None
    losses = F.cross_entropy(at_least_float32(scores), target.to(torch.int64), ignore_index=VOID, reduction="sum")
    return losses / count
