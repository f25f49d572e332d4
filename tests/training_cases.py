"""Runs that must end the same in any number of processes: tiny networks in float64, so that only an error shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from tiny_training import StoppedError, fresh_net, tiny_recipe

from ddn_fast import distributed, ops
from ddn_fast.data.datasets import ClassificationItems, SegmentationItems
from ddn_fast.data.voc import VocFolder
from ddn_fast.network import DecoupledNet
from ddn_fast.training import classifier, loop, segmenter
from ddn_fast.training.loop import Run
from ddn_fast.training.trained_part import trained_scores

# Name: stage, recipe. Two processes take whole sub-batches of the first two, and cut those of the others.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tags": ("classifier", {"batch": 3, "dropout": 0.0, "lr": 1e-4, "optimizer": "adamw"}),
    "masks": ("segmenter", {"batch": 4, "masks_per_class": 1, "validate_every": 3, "bn_batches": 5}),
    "tags, batch norm": ("classifier", {"batch": 4, "dropout": 0.0, "batch_norm": True}),
    "masks, one sub-batch": ("segmenter", {"batch": 5, "accumulate": 1, "masks_per_class": 1}),
}

loaded: list[str] = []  # seed and number of each sample that this process has loaded


def run_case(name: str, voc: Path, out: Path, *, resume: bool = False, stop: int | None = None) -> None:
    """Train case `name` in this process, or the process group it is in; with `stop` up to that iteration."""
    stage, values = CASES[name]
    folder = VocFolder(voc)
    options: dict[str, Any] = {"init": fresh_net(folder.classes).double(), "resume": resume}
    options |= {"workers": 0, "progress": False}
    train = classifier.train_classifier if stage == "classifier" else segmenter.train_segmenter
    with in_float64(), stopping_at(stop), contextlib.suppress(StoppedError):
        train(folder, out, tiny_recipe(stage, **{"iterations": 4, "checkpoint_every": 2, **values}), **options)


def trained_part(low: int, high: int) -> dict[str, torch.Tensor]:
    """Scores of passes `low` to `high` of five and the sum of all processes' gradients, float32, by the compiled ops.

    What the frozen part gives is made up: where pixels tie its switches depend on how a convolution rounds, and that on
    how many images there are.
    """
    generator = torch.Generator().manual_seed(0)
    net = fresh_net(("ant", "bee", "cow")).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.ops = ops
    pool5, class_map, target = (torch.randn(5, n, m, m, generator=generator) for n, m in ((8, 2), (8, 2), (2, 64)))
    switches = [
        torch.randint(0, 256, (5, side, side, -(-width // 4)), dtype=torch.uint8, generator=generator)
        for side, width in zip((32, 16, 8, 4, 2), net.config.widths, strict=True)
    ]
    own = slice(low, high)
    parts = [x[own].contiguous(memory_format=torch.channels_last) for x in (pool5, class_map)]
    net.train()
    scores = trained_scores(net, *parts, tuple(switch[own] for switch in switches))
    (scores * target[own]).sum().backward()
    parameters = {name: p for name, p in net.named_parameters() if name.startswith(("bridge", "decoder"))}
    distributed.sum_gradients(parameters.values())
    gradients = {name: p.grad.contiguous() for name, p in parameters.items() if p.grad is not None}
    return {"scores": scores.detach().contiguous(), **gradients}


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Samples are double, and so are the weights that are kept, which a saved network cannot hold."""
    with contextlib.ExitStack() as stack:
        for kind in (ClassificationItems, SegmentationItems):
            plain = kind.__getitem__

            def widened(self: Any, n: int, plain: Any = plain) -> dict[str, torch.Tensor]:
                sample = plain(self, n)
                loaded.append(f"{self.seed} {n}")
                return sample | {"data": sample["data"].double()}

            stack.enter_context(mock.patch.object(kind, "__getitem__", widened))
        stack.enter_context(mock.patch.object(loop.weights, "save", keep))
        stack.enter_context(mock.patch.object(loop, "draw_curves"))
        yield


def keep(model: DecoupledNet, folder: Path, metadata: dict[str, Any]) -> None:
    """Every weight and statistic at the end of the run."""
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps(metadata))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "all.safetensors")


@contextlib.contextmanager
def stopping_at(iteration: int | None) -> Iterator[None]:
    """Inside, a run raises StoppedError when it comes to `iteration`."""
    step = Run._step

    def stopped(self: Run, number: int, batches: Any) -> float:
        if number == iteration:
            raise StoppedError
        return step(self, number, batches)

    with mock.patch.object(Run, "_step", stopped):
        yield
