"""One sub-batch of stage 2, forward and backward, against the same network in plain PyTorch, eager and compiled.

Writes ``training_step-<machine>.json``: milliseconds of the step and of its frozen part, images a second; rivals take
turns in one process. With ``--memory`` each runs in a process of its own instead, solver steps included, and the peaks
are added to that JSON.

    python benchmarks/training_step.py [--case NAME ...] [--precision bfloat16 float32] [--memory]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine
import torch
from plain_training import PlainTraining
from torch import Tensor

from ddn_fast import ops
from ddn_fast.config import VOC_CLASSES, NetConfig
from ddn_fast.network import DecoupledNet
from ddn_fast.training.loss import segmentation_loss
from ddn_fast.training.recipe import Recipe
from ddn_fast.training.segmenter import frozen_part
from ddn_fast.training.solver import MomentumSGD, build_optimizer, train_only, trained_modules
from ddn_fast.training.trained_part import trained_scores

NARROW = NetConfig(VOC_CLASSES, 64, (16, 32, 48, 64, 96), fc=192, bridge=96, fc_kernel=1)


class Case(NamedTuple):
    """A network, how many images a sub-batch has, and how many are timed."""

    config: NetConfig
    images: int
    steps: int


CASES = {
    "full, 4 images": Case(NetConfig(), 4, 5),
    "full, 1 image": Case(NetConfig(), 1, 7),
    "full, 16 images": Case(NetConfig(), 16, 3),
    "full, 32 images": Case(NetConfig(), 32, 3),
    "narrow, 32 images": Case(NARROW, 32, 15),
}
PLAIN, COMPILED, OURS, RECOMPUTE = "plain eager", "plain compiled", "ddn_fast", "ddn_fast, recompute"
WAYS = (PLAIN, COMPILED, OURS, RECOMPUTE)
RIVALS = (PLAIN, COMPILED)
# of memory alone: the plain network under a solver that holds no gradients, as ours does
PLAIN_ABSORBING = "plain eager, no gradients held"
MEMORY_WAYS = (PLAIN, PLAIN_ABSORBING, OURS, RECOMPUTE)
TIME_PAIRS = ((PLAIN, OURS), (COMPILED, OURS), (COMPILED, RECOMPUTE))
MEMORY_PAIRS = ((PLAIN, OURS), (PLAIN, RECOMPUTE), (PLAIN_ABSORBING, RECOMPUTE))


class _Step:
    """Forward and backward of one batch, without the solver's own arithmetic, which all ways share."""

    def __init__(self, case: Case, half: bool, ways: tuple[str, ...]) -> None:
        torch.manual_seed(0)
        config, images, _ = case
        self.model = DecoupledNet(config, ops).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        modules = trained_modules(self.model, "segmenter")
        train_only(self.model, modules)
        self.optimizer = build_optimizer(modules, Recipe("segmenter", 1, lr=1e-6))
        self.half = half
        self.data = 40 * torch.randn(images, 3, config.side, config.side)
        self.subset = torch.zeros(images, config.num_classes)
        self.subset[:, :2] = 1  # two labels an item
        self.target = torch.randint(0, 2, (images, config.side, config.side))
        self.parts: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {}
        for way in ways:
            if way in (OURS, RECOMPUTE):
                scores = functools.partial(trained_scores, self.model, recompute=way == RECOMPUTE)
                self.parts[way] = frozen_part(self.model, half), scores
            else:
                plain = PlainTraining(self.model, compiled=way == COMPILED)
                self.parts[way] = plain.frozen, plain.trained

    def run(self, way: str) -> tuple[float, float, float]:
        """Milliseconds of the step and of its frozen part, and the loss."""
        frozen, trained = self.parts[way]
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            fixed = frozen(self.data, self.subset)
            done = time.perf_counter()
            loss = segmentation_loss(trained(*fixed), self.target)
        assert loss is not None
        loss.backward()
        return 1e3 * (time.perf_counter() - start), 1e3 * (done - start), loss.item()


def measure(name: str, precision: str, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
    """Medians of all ways, after one round that does not count; each round begins with another way."""
    case = CASES[name]
    step = _Step(case, precision == "bfloat16", ways)
    samples: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for turn in range(case.steps + 1):
        for place in range(len(ways)):
            way = ways[(turn + place) % len(ways)]
            step.model.zero_grad(set_to_none=True)
            samples[way].append(step.run(way))
    row: dict[str, Any] = {"case": name, "precision": precision, "images": case.images, "steps": case.steps}
    for way in ways:
        whole, frozen, loss = zip(*samples[way][1:], strict=True)
        quartiles = statistics.quantiles(whole, n=4, method="inclusive")
        row[way] = {
            "step_ms": round(quartiles[1], 2),
            "quartiles_ms": [round(quartiles[0], 2), round(quartiles[2], 2)],
            "frozen_ms": round(statistics.median(frozen), 2),
            "images_per_second": round(1e3 * case.images / quartiles[1], 3),
            "loss": round(loss[0], 4),
        }
        print(f"{name}, {precision}, {way}: {json.dumps(row[way])}", flush=True)
    return row


def peak(name: str, precision: str, way: str) -> dict[str, int]:
    """Peak resident bytes of a process that trains this way for some solver steps, and what its solver must hold."""
    step = _Step(CASES[name], precision == "bfloat16", (way,))
    assert isinstance(step.optimizer, MomentumSGD)
    with contextlib.nullcontext() if way in RIVALS else step.optimizer.absorbing():
        for sub_batches in (1, 2):  # with momentum there, a second gradient comes beside the first
            step.optimizer.zero_grad()
            for _ in range(sub_batches):
                step.run(way)
            step.optimizer.step()
    trained = [p for p in step.model.parameters() if p.requires_grad]
    held = sum(p.nbytes for p in step.model.parameters()) + 2 * sum(p.nbytes for p in trained)
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "weights_gradients_momentum": held}


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precision", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--ways", nargs="+", choices=sorted({*WAYS, *MEMORY_WAYS}))
    parser.add_argument("--memory", action="store_true", help="peak memory of each way instead of times")
    parser.add_argument("--memory-of", choices=MEMORY_WAYS, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if not (arguments.memory or arguments.memory_of):  # they keep what was freed: faster, and no measure of memory
        machine.use_allocator_settings()
    machine.use_threads(None)
    if arguments.memory_of:
        print(json.dumps(peak(arguments.case[0], arguments.precision[0], arguments.memory_of)))
        return 0
    path = machine.result_path(arguments.out, "training_step")
    report = json.loads(path.read_text()) if path.exists() else {"benchmark": "training_step", "rows": [], "memory": []}
    report["machine"] = machine.describe()
    kind = "memory" if arguments.memory else "rows"
    for name in arguments.case:
        for precision in arguments.precision:
            take = _peaks if arguments.memory else measure
            row = take(name, precision, tuple(arguments.ways or (MEMORY_WAYS if arguments.memory else WAYS)))
            row["glibc_tunables"] = os.environ.get("GLIBC_TUNABLES") or None
            others = [r for r in report[kind] if (r["case"], r["precision"]) != (name, precision)]
            report[kind] = [*others, row]
            machine.save(report, path)
    draw(report, path.with_suffix(".png"))
    print(path)
    return 0


def table(report: dict[str, Any], words: Sequence[str] = ()) -> str:
    """Markdown: milliseconds of a sub-batch, or with the word "memory" peak gigabytes, of each way and their ratios."""
    memory = "memory" in words
    rows, ways = report["memory" if memory else "rows"], MEMORY_WAYS if memory else WAYS
    pairs = MEMORY_PAIRS if memory else TIME_PAIRS
    lines = [
        " | ".join(["GB" if memory else "ms", *ways, *(f"{b} : {a}" if memory else f"{a} : {b}" for a, b in pairs)]),
        "---" + "|---:" * (len(ways) + len(pairs)),
    ]
    for row in rows:
        values = {way: _value(row[way]) if way in row else None for way in ways}
        cells = [f"{value:.{2 if memory else 0}f}" if value else "-" for value in values.values()]
        for a, b in pairs:
            over, under = (values[b], values[a]) if memory else (values[a], values[b])
            cells.append(f"{over / under:.2f}" if over and under else "-")
        lines.append(" | ".join([f"{row['case']}, {row['precision']}", *cells]))
    return "\n".join(lines)


def _value(figures: dict[str, Any]) -> float:
    """Milliseconds, or gigabytes."""
    return float(figures["step_ms"]) if "step_ms" in figures else figures["peak"] / 1e9


def draw(report: dict[str, Any], path: Path) -> None:
    """Images a second of each way in each case."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in report["rows"] if all(way in row for way in WAYS)]
    names = [f"{row['case']}\n{row['precision']}" for row in rows]
    for place, way in enumerate(WAYS):
        speeds = [row[way]["images_per_second"] for row in rows]
        axes.bar([at + 0.2 * (place - 1.5) for at in range(len(names))], speeds, 0.2, label=way)
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("images a second, forward and backward")
    axes.legend()
    figure.savefig(path, dpi=120)


def _peaks(name: str, precision: str, ways: tuple[str, ...]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "precision": precision}
    for way in ways:
        command = [sys.executable, __file__, "--case", name, "--precision", precision, "--memory-of", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}, {precision}, {way}: {row[way]}", flush=True)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
