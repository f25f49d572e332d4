"""Batch statistics: re-estimation after stage 2, and normalisation that exists during stage 1 only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import distributed
from ..errors import InputError
from ..network import BatchNorm, DecoupledNet


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object]) -> int:
    """Set every BatchNorm's mean and variance to the plain average over `batches` (SPEC section 6).

    Each batch goes through `forward(batch)` with batch statistics; its mean and biased variance count equally. Of
    several processes each brings whole batches of its own, any number of them. Returns how many batches were seen by
    all; raises InputError when there was none.
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm)]
    sums = {layer: (torch.zeros_like(layer.running_mean, dtype=torch.float64),) * 2 for layer in layers}

    def observe(layer: BatchNorm, mean: Tensor, var: Tensor) -> None:
        sums[layer] = (sums[layer][0] + mean, sums[layer][1] + var)

    training = {module: module.training for module in model.modules()}
    count = 0
    try:
        for layer in layers:
            layer.train()
            layer.observer = functools.partial(observe, layer)
        with distributed.alone():
            for batch in batches:
                forward(batch)
                count += 1
    finally:
        for layer in layers:
            layer.observer = None
        for module, was in training.items():
            module.training = was
    count = int(distributed.total(torch.tensor(count, device=next(model.parameters()).device)))
    if count == 0:
        raise InputError("reestimate: wanted at least one batch, got none")
    for layer in layers:
        mean, var = distributed.total(torch.stack(sums[layer])) / count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    return count


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, by the statistics of all shares of a batch where several processes have one each."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and distributed.together()):
            return super().forward(x)
        y, mean, var = distributed.batch_norm(x, self.weight, self.bias, self.eps)
        count = int(distributed.total(torch.tensor(x.numel() // x.shape[1], device=x.device)))
        with torch.no_grad():
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(var.detach() * count / max(1, count - 1), self.momentum)  # the unbiased one
        return y


def add_batch_norm(model: DecoupledNet) -> None:
    """Put a normalisation behind every convolution of the encoder and behind fc6 and fc7.

    The published network has none there: it starts from ImageNet weights. A network that starts from nothing learns
    much faster with it; :func:`fold_batch_norm` then turns each pair into the one convolution it equals.
    """
    for parent, name, conv in _normalised(model):
        conv_bn = nn.Sequential(conv, _SharedBatchNorm2d(conv.out_channels)).to(conv.weight)
        parent.add_module(name, conv_bn)


def fold_batch_norm(model: DecoupledNet) -> None:
    """The reverse of :func:`add_batch_norm`: the same function in eval mode, as plain convolutions."""
    for parent, name, pair in _normalised(model):
        conv, norm = pair.eval()
        parent.add_module(name, fuse_conv_bn_eval(conv, norm))


def _normalised(model: DecoupledNet) -> list[tuple[nn.Module, str, Any]]:
    encoder = [(model.encoder, name, module) for name, module in model.encoder.named_children()]
    return encoder + [(model.head, name, model.head.get_submodule(name)) for name in ("fc6", "fc7")]
