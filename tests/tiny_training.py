"""Recipes, networks and comparisons for the tests of ddn_fast.training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddn_fast.config import NetConfig
from ddn_fast.data.voc import VocFolder
from ddn_fast.network import DecoupledNet
from ddn_fast.training.classifier import train_classifier
from ddn_fast.training.loop import CHECKPOINT, LOG, Run
from ddn_fast.training.recipe import Recipe, from_dict
from ddn_fast.training.segmenter import train_segmenter
from ddn_fast.training.solver import MomentumSGD

NETWORK = {"side": 64, "widths": [4, 5, 6, 7, 8], "fc": 12, "bridge": 10, "fc_kernel": 1}


def tiny_recipe(stage: str, /, **values: Any) -> Recipe:
    """Six iterations of 2 x 2 samples; checkpoints every three, which falls between two entries of the log."""
    defaults: dict[str, Any] = {
        "stage": stage, "iterations": 6, "batch": 2, "accumulate": 2, "lr": 0.01, "step": 4, "resize": 72,
        "bn_batches": 2, "bn_batch": 4, "log_every": 2, "checkpoint_every": 3, "windows_per_subset": 1,
        "network": NETWORK,
    }  # fmt: skip
    return from_dict({**defaults, **values})


def fresh_net(classes: tuple[str, ...], seed: int = 3) -> DecoupledNet:
    """A narrow network with fresh weights."""
    torch.manual_seed(seed)
    return DecoupledNet(NetConfig(classes=classes, **NETWORK))


def read_checkpoint(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a run's checkpoint; without the figures that depend on the clock."""
    with safe_open(out / CHECKPOINT, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        state = json.loads(file.metadata()["state"])
    for entry in state["log"]:
        entry.pop("images_per_second", None)
    return tensors, state


def read_log(out: Path) -> list[dict[str, Any]]:
    """Entries of log.jsonl; without the figures that depend on the clock."""
    entries = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    for entry in entries:
        entry.pop("images_per_second", None)
    return entries


def assert_same_run(a: Path, b: Path) -> None:
    """Both folders' checkpoints, logs and weights agree bit for bit."""
    (tensors_a, state_a), (tensors_b, state_b) = read_checkpoint(a), read_checkpoint(b)
    assert state_a == state_b
    assert read_log(a) == read_log(b)
    assert tensors_a.keys() == tensors_b.keys()
    different = [name for name, value in tensors_a.items() if not torch.equal(value, tensors_b[name])]
    assert not different
    for name in ("config.json", "model.safetensors"):
        if (a / "weights").exists():
            assert (a / "weights" / name).read_bytes() == (b / "weights" / name).read_bytes()


class Numbers(Dataset[dict[str, Tensor]]):
    """Sample n is the number n, and a target."""

    def __init__(self, targets: list[float], samples: int) -> None:
        self.targets, self.samples = targets, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([float(n)]), "target": torch.tensor([self.targets[n % len(self.targets)]])}


class Line(nn.Module):
    """One weight and one bias, and a dropout that depends on torch's random state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.constant_(self.linear.bias, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B,1]`` to the same shape."""
        return nn.functional.dropout(self.linear(x / 16), 0.2)


def toy_run(out: Path, targets: list[float] | None = None, **values: Any) -> Run:
    """A run that takes no time: a line through the targets. A batch of nothing but -1 counts as all void."""
    recipe = tiny_recipe("segmenter", **values)
    torch.manual_seed(recipe.seed)
    model = Line()

    def loss(batch: dict[str, Tensor]) -> Tensor | None:
        if bool((batch["target"] == -1).all()):
            return None
        return (model(batch["x"]) - batch["target"]).square().mean()

    return Run(
        recipe=recipe,
        model=model,  # type: ignore[arg-type]  # the loop needs parameters only
        optimizer=MomentumSGD([{"params": list(model.parameters())}], recipe.lr, recipe.momentum, recipe.accumulate),
        items=Numbers(targets or [1.0, 2.0, 0.5], recipe.samples),
        loss=loss,
        out=out,
        identity={"network": {"side": 1}, "data": {"split": "train"}},
        progress=False,
    )


class StoppedError(Exception):
    """Raised where a run is to end early."""


def stop_at(run: Run, iteration: int) -> Run:
    """The run raises when it comes to `iteration`."""
    step = run._step

    def stopping(number: int, batches: Any) -> float:
        if number == iteration:
            raise StoppedError
        return step(number, batches)

    run._step = stopping  # type: ignore[method-assign]
    return run


def stage_1(folder: VocFolder, out: Path, values: dict[str, Any] | None = None, **options: Any) -> DecoupledNet:
    """Train a narrow network's encoder and head."""
    recipe = tiny_recipe("classifier", **{"batch_norm": True, "dropout": 0.5, **(values or {})})
    return train_classifier(folder, out, recipe, **{"workers": 0, "progress": False, **options})


def stage_2(folder: VocFolder, out: Path, values: dict[str, Any] | None = None, **options: Any) -> DecoupledNet:
    """Train its bridge and decoder, of `init` or a fresh one."""
    recipe = tiny_recipe("segmenter", **{"masks_per_class": 1, **(values or {})})
    init = options.pop("init", None) or fresh_net(folder.classes)
    return train_segmenter(folder, out, recipe, init=init, **{"workers": 0, "progress": False, **options})
