"""Several processes that train one network: what they sum, and batch statistics over all of them.

Every function is the identity without a process group, and where a process works :func:`alone`. The loss of several
processes is the sum of theirs, and so are its gradients. Collectives raise DistributedError when a process has ended.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import DistributedError

BUCKET_BYTES = 64 << 20  # of gradients that are summed at once: large enough for bandwidth, small beside a network

_alone = False


def size() -> int:
    """How many processes there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def local_size() -> int:
    """How many of them share this machine's cores, as torchrun says; all where nothing says it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if size() > 1 else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, a batch belongs to this process and nothing is summed over the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def together() -> bool:
    """Whether there are several processes, and none works alone here."""
    return not _alone and size() > 1


def global_moments(mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all processes' values, from those over this one's; differentiable.

    mean, var ``[C]`` float32 or float64 over `count` values each; a process without values passes 0 and any tensors,
    which require a gradient where the others' do. Returns ``[C]`` of the same dtype. Computed in float64 around the
    common mean, ``M = sum n_r m_r / N`` and ``V = sum n_r (v_r + (m_r - M)^2) / N``: nothing cancels. The gradient is
    that of the sum of all processes' losses. Every process must call it, forward and backward, equally often and in the
    same order.
    """
    if not together():
        return mean, var
    moments: tuple[Tensor, Tensor] = _GlobalMoments.apply(mean, var, count)
    return moments


def pooled_moments(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of parts of a set, rows of ``[W,C]``: what each weighs, and mean and biased variance ``[C]`` of the whole."""
    weight = counts / counts.sum(0)
    common = (weight * means).sum(0)
    return weight, common, (weight * (variances + (means - common).square())).sum(0)


class _GlobalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        mean64, var64 = mean.double(), var.double()
        own = torch.stack([mean64, var64, torch.full_like(mean64, count)])
        if not count:
            own = torch.zeros_like(own)  # the mean of nothing is NaN
        means, variances, counts = _all_gather(own).unbind(1)  # [W,C]
        weight, common, spread = pooled_moments(means, variances, counts)
        ctx.save_for_backward(weight[rank()], own[0] - common)
        return common.to(mean.dtype), spread.to(var.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, offset = ctx.saved_tensors
        by_mean, by_var = _all_gather(torch.stack([grad_mean, grad_var]).double()).sum(0)
        own_mean = weight * (by_mean + 2 * by_var * offset)
        return own_mean.to(grad_mean.dtype), (weight * by_var).to(grad_var.dtype), None


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation by the statistics of all processes' x, and those: mean and biased variance ``[C]``.

    x ``[N,C,H,W]`` of any floating dtype, N > 0 in every process; weight and bias ``[C]``. Returns x's shape and dtype.
    """
    values = x.to(torch.promote_types(x.dtype, weight.dtype))
    var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    mean, var = global_moments(mean, var, x.numel() // x.shape[1])
    scale = weight * torch.rsqrt(var + eps)
    normal = (values - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
    return normal.to(x.dtype), mean, var


def total(x: Tensor) -> Tensor:
    """The sum of every process's x, of one shape and dtype, in the order of the ranks; without a gradient."""
    return _all_gather(x.detach()).sum(0) if together() else x


def gather_rows(x: Tensor) -> Tensor:
    """Every process's rows of x ``[n,...]`` below each other in the order of the ranks; n may differ."""
    if not together():
        return x
    counts = _all_gather(torch.tensor([len(x)], device=x.device)).flatten().tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    return torch.cat([rows[:count] for rows, count in zip(_all_gather(padded), counts, strict=True)])


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every ``.grad`` by the sum of all processes'; one that no process has stays None.

    Buckets in the order of the parameters, after the last backward pass of a solver step. DDP would overlap this with
    that pass, but averages, and needs hooks that fire in every process, which a skipped sub-batch does not do. What
    the overlap saves is small beside a step of many sub-batches.
    """
    if not together():
        return
    known = list(parameters)
    present = total(torch.tensor([p.grad is not None for p in known], dtype=torch.int64, device=known[0].device))
    for bucket in _buckets([p for p, count in zip(known, present.tolist(), strict=True) if count]):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
        with _named():
            dist.all_reduce(flat)
        for p, values in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = torch.empty_like(p) if p.grad is None else p.grad
            p.grad.copy_(values.view(p.shape))


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, up to BUCKET_BYTES together."""
    bucket: list[Tensor] = []
    for p in parameters:
        if bucket and (p.dtype != bucket[0].dtype or sum(q.nbytes for q in bucket) + p.nbytes > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the inside before any other does: they find what it left on the disk."""
    if together() and rank():
        with _named():
            dist.barrier()
    yield
    if together() and not rank():
        with _named():
            dist.barrier()


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor by the first process's."""
    if together():
        for tensor in tensors:
            values = tensor.detach().contiguous()
            with _named():
                dist.broadcast(values, 0)
            tensor.detach().copy_(values)


def _all_gather(x: Tensor) -> Tensor:
    """``[W,...]``: x of each process, of one shape and dtype, in the order of the ranks: the same bits everywhere."""
    rows = x.new_empty(size(), *x.shape)
    with _named():
        dist.all_gather(list(rows), x.contiguous())
    return rows


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # a closed connection, a timeout
        reason = f"another process of this run has ended or cannot be reached ({error})"
        raise DistributedError(reason) from error.with_traceback(None)  # its frames would keep the process group
