"""What stands between two layers of the segmentation network from the forward pass to the backward one.

    layer k -> map k -> layer k + 1    the gradients of layer k + 1 read map k, as x, and then those of layer k, as y

The ops of training leave one map a layer; here it is held once for both, given back as soon as the second has read it,
and, where that was asked for, dropped on the way forward and computed again on the way back: by the same deterministic
op from the same vectors, so bit for bit the same. What the score gives back to the last map has two numbers a pixel and
is handed on as such (:func:`ddn_fast.ops.deconv3x3_moments_backward_score`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..training_ops import LayerBackward

_Context = Any  # torch's autograd context has no public type


class KeptMap:
    """A map between two layers, as their gradients find it."""

    def __init__(self, value: Tensor, again: Callable[[], Tensor] | None = None) -> None:
        self._value: Tensor | None = value.detach()  # with its graph it would hold the node that holds it
        self._again = again
        self.of_score: tuple[Tensor, ...] | None = (
            None  # grad_score, scale, shift, weight: what its gradient is made of
        )

    def read(self) -> Tensor:
        """Its values, computed again if they were dropped; they stay from then on."""
        if self._value is None:
            assert self._again is not None
            self._value = self._again()
        return self._value

    def drop(self) -> None:
        """Forget the values where they can be computed again."""
        if self._again is not None:
            self._value = None


class KeptMaps:
    """The layers of one forward pass, in their order, each reading what the one before left.

    ops    :mod:`ddn_fast.ops` or :mod:`ddn_fast.reference`
    x      what the first layer reads
    again  of each layer, whether its map is dropped when the next one has read it, and computed a second time for the
           gradients
    """

    def __init__(self, ops: Any, x: Tensor, again: Iterable[bool]) -> None:
        self._ops, self._last, self._again = ops, KeptMap(x), iter(again)

    def deconv3x3_moments(
        self, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, switches: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`ddn_fast.ops.deconv3x3_moments` of what the layer before gave."""
        made: list[KeptMap] = []  # the map exists inside only
        again = next(self._again)
        y, mean, var = _Deconv3x3Moments.apply(x, weight, scale, shift, switches, self._ops, self._last, made, again)
        (self._last,) = made
        return y, mean, var

    def seg_score(self, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """:func:`ddn_fast.ops.seg_score` of what the last layer gave."""
        scores: Tensor = _SegScore.apply(x, scale, shift, weight, bias, self._ops, self._last)
        return scores


class _Deconv3x3Moments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        switches: Tensor | None,
        ops: Any,
        source: KeptMap,
        made: list[KeptMap],
        again: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, var = ops.deconv3x3_moments(x, weight, scale, shift, switches)
        constants = weight.detach(), scale.detach(), shift.detach(), switches

        def compute() -> Tensor:
            computed: Tensor = ops.deconv3x3_moments(source.read(), *constants)[0]
            return computed

        target = KeptMap(y, compute if again else None)
        made.append(target)
        source.drop()
        ctx.save_for_backward(weight, scale, shift, switches, mean)
        ctx.ops, ctx.source, ctx.target = ops, source, target
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad_y: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, shift, switches, mean = ctx.saved_tensors
        if ctx.source is None:
            raise RuntimeError("deconv3x3_moments: wanted the first backward pass, got another: the maps are gone")
        x, y, of_score = ctx.source.read(), ctx.target.read(), ctx.target.of_score
        layer = LayerBackward(grad_mean, grad_var, y, mean, x, weight, scale, shift, switches)
        if of_score is None:
            gradients = ctx.ops.deconv3x3_moments_backward(grad_y, *layer)
        elif x.shape == y.shape:
            gradients = _gradients_in_place(ctx.ops, of_score, layer)
        else:
            gradients = ctx.ops.deconv3x3_moments_backward_score(*of_score, *layer)
        ctx.source = ctx.target = None  # the node lives as long as the loss does, the maps must not
        return *gradients, None, None, None, None, None


def _gradients_in_place(ops: Any, of_score: tuple[Tensor, ...], layer: LayerBackward) -> list[Tensor]:
    """``deconv3x3_moments_backward_score`` with the gradient of x in the memory of y, which nobody reads after it.

    Here, where x, y and that gradient are the largest maps of all, the batch's memory is at its peak. Some images at a
    time: their y is overwritten when their gradients are there. n of N images see n / N of the moments' gradients,
    which are those of means over all.
    """
    grad_score, *score = of_score
    x, y = layer.x, layer.y
    step = 1 if y.device.type == "cpu" else 4  # one is too little work for a GPU
    sums: list[Tensor] = []
    for first in range(0, len(y), step):
        some = slice(first, first + step)
        share = len(y[some]) / len(y)
        own = layer._replace(grad_mean=share * layer.grad_mean, grad_var=share * layer.grad_var, y=y[some], x=x[some])
        y[some], *others = ops.deconv3x3_moments_backward_score(grad_score[some], *score, *own)
        sums = [total.add_(other) for total, other in zip(sums, others, strict=True)] if sums else others
    return [y, *sums]


class _SegScore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, ops: Any, source: KeptMap
    ) -> Tensor:
        ctx.save_for_backward(scale, shift, weight)
        ctx.ops, ctx.source = ops, source
        scores: Tensor = ops.seg_score(x, scale, shift, weight, bias)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.source is None:
            raise RuntimeError("seg_score: wanted the first backward pass, got another: the map is gone")
        x = ctx.source.read()
        vectors = ctx.ops.seg_score_backward_vectors(grad, x, *ctx.saved_tensors)
        ctx.source.of_score = grad, *ctx.saved_tensors
        ctx.source = None
        # autograd wants something of the map's shape; the layer before reads of_score instead
        return x.new_zeros(()).expand(x.shape), *vectors, None, None
