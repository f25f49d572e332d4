"""Several processes that train one network: what they sum, and batch statistics over all of them.

Every function is the identity without a process group, and where a process works :func:`alone`. The loss of several
processes is the sum of theirs, and so are its gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def size() -> int:
    """How many processes there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, a batch belongs to this process and nothing is summed over the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def shares_batches() -> bool:
    """Whether a batch is spread over several processes here."""
    return not _alone and size() > 1


def global_moments(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all processes' values, from those over this one's; differentiable.

    mean, var ``[C]`` float32 or float64 over `count` values each; a process without values passes 0 and any tensors.
    Returns ``[C]`` of the same dtype. Computed in float64 around the common mean, ``M = sum n_r m_r / N`` and
    ``V = sum n_r (v_r + (m_r - M)^2) / N``: nothing cancels. The gradient is that of the sum of all processes' losses.
    Every process must call it, forward and backward, equally often and in the same order.
    """
    if not shares_batches():
        return mean, var
    moments: tuple[Tensor, Tensor] = _GlobalMoments.apply(mean, var, count)
    return moments


class _GlobalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        mean64, var64 = mean.double(), var.double()
        own = torch.stack([mean64, var64, torch.full_like(mean64, count)])
        if not count:
            own = torch.zeros_like(own)  # the mean of nothing is NaN
        means, variances, counts = gather(own).unbind(1)  # [W,C]
        weight = counts / counts.sum(0)
        common = (weight * means).sum(0)
        spread = (weight * (variances + (means - common).square())).sum(0)
        ctx.save_for_backward(weight[rank()], own[0] - common)
        return common.to(mean.dtype), spread.to(var.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, offset = ctx.saved_tensors
        by_mean, by_var = gather(torch.stack([grad_mean, grad_var]).double()).sum(0)
        own_mean = weight * (by_mean + 2 * by_var * offset)
        return own_mean.to(grad_mean.dtype), (weight * by_var).to(grad_var.dtype), None


def gather(x: Tensor) -> Tensor:
    """``[W,...]``: x of each process, of one shape and dtype, in the order of the ranks: the same bits everywhere."""
    if not shares_batches():
        return x[None]
    rows = x.new_empty(size() * x.numel())
    dist.all_gather_into_tensor(rows, x.reshape(-1))
    return rows.view(size(), *x.shape)
