"""Stage 2's step as one writes it in PyTorch, without one line of compiled code of this project.

The network's own modules (convolutions, transposed convolutions, batch normalisation), torch's max_pool2d with int64
indices and max_unpool2d; channels_last, autocast. Eager, or compiled in two graphs: the frozen part, the trained part
with its backward. The compiler lowers max_unpool2d badly: there it stands as a custom op around torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddn_fast.config import STAGE_CONVS
from ddn_fast.network import DecoupledNet


@torch.library.custom_op("ddn_plain::max_unpool", mutates_args=())
def _max_unpool(x: Tensor, index: Tensor) -> Tensor:
    return F.max_unpool2d(x, index, 2).contiguous(memory_format=torch.channels_last)


@_max_unpool.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    shape = x.shape[0], x.shape[1], 2 * x.shape[2], 2 * x.shape[3]
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _max_unpool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return grad.flatten(2).gather(2, index.flatten(2)).view(index.shape), None


_max_unpool.register_autograd(
    _max_unpool_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1])
)


class PlainTraining:
    """``frozen(data, subset)`` and ``trained(*frozen(...))``: seg-scores ``[P,2,S,S]`` of a batch of items."""

    def __init__(self, model: DecoupledNet, compiled: bool) -> None:
        self.model = model
        self.unpool: Callable[[Tensor, Tensor], Tensor] = lambda x, index: F.max_unpool2d(x, index, 2)
        self.frozen, self.trained = torch.no_grad()(self._frozen), self._trained
        if compiled:
            self.unpool = _max_unpool
            import_module("torch._dynamo.config").recompile_limit = 64
            self.frozen = torch.no_grad()(torch.compile(self._frozen, dynamic=False))
            self.trained = torch.compile(self._trained, dynamic=False)

    def _frozen(self, data: Tensor, subset: Tensor) -> tuple[Any, ...]:
        x, indices = data.contiguous(memory_format=torch.channels_last), []
        for stage, convs in enumerate(STAGE_CONVS, 1):
            for k in range(1, convs + 1):
                x = F.relu(self.model.encoder.get_submodule(f"conv{stage}_{k}")(x))
            x, index = F.max_pool2d(x, 2, return_indices=True)
            indices.append(index)
        head = self.model.head(x)
        class_map = self.model.head.class_map(head, head.max_scores * subset, torch.arange(len(data)))
        return x, class_map, indices

    def _trained(self, pool5: Tensor, class_map: Tensor, indices: list[Tensor]) -> Tensor:
        x = self.model.bridge(pool5, class_map)
        for stage in range(5, 0, -1):
            x = self.unpool(x, indices[stage - 1])
            for k in range(1, STAGE_CONVS[stage - 1] + 1):
                deconv, bn = (self.model.decoder.get_submodule(f"deconv{stage}_{k}{s}") for s in ("", "_bn"))
                x = F.relu(bn(deconv(x)))
        scores: Tensor = self.model.decoder.seg_score(x)
        return scores
