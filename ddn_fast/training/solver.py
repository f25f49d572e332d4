"""The release's solver: SGD with momentum, in Caffe's order of operations (SPEC section 8)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..network import BatchNorm, DecoupledNet
from .recipe import Recipe


class MomentumSGD(torch.optim.Optimizer):
    """``h = momentum * h + lr * lr_mult / accumulate * (G + decay * w); w = w - h``.

    G is the sum of the gradients of `accumulate` sub-batches, so the decay is divided by `accumulate` too: 5e-4 over
    16 sub-batches acts as 3.1e-5. Unlike torch.optim.SGD the momentum holds steps, not gradients: after the learning
    rate drops, earlier steps keep their size. Each parameter group has ``lr_mult`` and ``weight_decay``.

    Inside :meth:`absorbing` the network's gradients are never held beside its momentum.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, accumulate: int) -> None:
        super().__init__(
            list(groups),
            {"lr": lr, "momentum": momentum, "accumulate": accumulate, "lr_mult": 1.0, "weight_decay": 0.0},
        )

    @contextlib.contextmanager
    def absorbing(self) -> Iterator[None]:
        """Inside, a gradient goes into h as soon as a backward pass has it, and ``.grad`` is None again.

        At the rate that its group has at that moment. What was absorbed cannot be taken back: :meth:`step` must end the
        step. Not for several processes, whose gradients are summed before h, on which all agree, holds a part of them.
        """
        with contextlib.ExitStack() as hooks:
            for group in self.param_groups:
                for parameter in group["params"]:
                    take = functools.partial(self._absorb_one, group)
                    hooks.callback(parameter.register_post_accumulate_grad_hook(take).remove)
            yield

    def _absorb_one(self, group: dict[str, Any], parameter: Tensor) -> None:
        self._absorb(group, [parameter])

    @torch.no_grad()
    def _absorb(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Add what their ``.grad`` holds to h, which forgets a part of itself first where it is the step's first."""
        rate = group["lr"] * group["lr_mult"] / group["accumulate"]
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        first = [p for p in parameters if not self.state[p].get("begun")]
        if first:
            begun = [self.state[p]["momentum"] for p in first]
            torch._foreach_mul_(begun, group["momentum"])
            if group["weight_decay"]:
                torch._foreach_add_(begun, first, alpha=rate * group["weight_decay"])
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_add_([self.state[p]["momentum"] for p in parameters], gradients, alpha=rate)
        for p in parameters:
            self.state[p]["begun"] = True
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients absorbed and those in ``.grad``; a parameter without any stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if waiting := [p for p in group["params"] if p.grad is not None]:
                self._absorb(group, waiting)
            if moved := [p for p in group["params"] if self.state[p].pop("begun", False)]:
                torch._foreach_sub_(moved, [self.state[p]["momentum"] for p in moved])
        return loss


def parameter_groups(
    modules: Iterable[nn.Module], recipe: Recipe, last_layer: nn.Module | None = None
) -> list[dict[str, Any]]:
    """The rates of SPEC section 8: weights x1 with decay, convolution biases x2 without, BN scale and shift x1 with.

    `last_layer` (stage 1's cls-score) learns ``recipe.last_layer_lr`` times as fast.
    """
    merged: dict[tuple[float, float], list[nn.Parameter]] = {}
    for root in modules:
        for module in root.modules():
            mult = recipe.last_layer_lr if module is last_layer else 1.0
            norm = isinstance(module, BatchNorm | nn.BatchNorm2d)
            for name, parameter in module.named_parameters(recurse=False):
                plain_bias = name == "bias" and not norm
                key = (2 * mult, 0.0) if plain_bias else (mult, recipe.weight_decay)
                merged.setdefault(key, []).append(parameter)
    return [{"params": params, "lr_mult": mult, "weight_decay": decay} for (mult, decay), params in merged.items()]


def build_optimizer(
    modules: list[nn.Module], recipe: Recipe, last_layer: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of `modules`."""
    groups = parameter_groups(modules, recipe, last_layer)
    if recipe.optimizer == "sgd":
        return MomentumSGD(groups, recipe.lr, recipe.momentum, recipe.accumulate)
    decayed = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in groups]
    return torch.optim.AdamW(decayed, recipe.lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group (``lr_mult`` stays with the group)."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def train_only(model: DecoupledNet, modules: list[nn.Module]) -> None:
    """Freeze the network but for `modules`, which go into training mode."""
    model.eval().requires_grad_(False)
    for module in modules:
        module.requires_grad_(True).train()


def trained_modules(model: DecoupledNet, stage: str) -> list[nn.Module]:
    """What a stage trains: encoder and head in stage 1, bridge and decoder in stage 2 (the rest is frozen)."""
    return [model.encoder, model.head] if stage == "classifier" else [model.bridge, model.decoder]
