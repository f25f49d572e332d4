"""One step of stage 2 with the frozen part as the plain network and by the fused ops, taking turns in one process.

Writes ``training_step-<machine>.json``: milliseconds of the step and of its frozen part, images a second. With
``--memory`` each runs in a process of its own instead, and the peaks are added to that JSON.

    python benchmarks/training_step.py [--size full narrow] [--precision bfloat16 float32] [--memory]
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor

from ddn_fast import ops
from ddn_fast.config import VOC_CLASSES, NetConfig
from ddn_fast.images import write_atomic
from ddn_fast.network import DecoupledNet
from ddn_fast.training.loss import segmentation_loss
from ddn_fast.training.segmenter import Frozen, frozen_part, frozen_plain, training_scores
from ddn_fast.training.solver import train_only, trained_modules

NARROW = NetConfig(VOC_CLASSES, 64, (16, 32, 48, 64, 96), fc=192, bridge=96, fc_kernel=1)
SIZES = {"full": (NetConfig(), 2, 3), "narrow": (NARROW, 16, 30)}  # network, images a step, steps
WAYS = ("plain", "fast")


class _Step:
    """Forward and backward of one batch, without the solver's own arithmetic, which both ways share."""

    def __init__(self, config: NetConfig, images: int, half: bool, ways: tuple[str, ...]) -> None:
        torch.manual_seed(0)
        self.model = DecoupledNet(config, ops).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train_only(self.model, trained_modules(self.model, "segmenter"))
        self.half = half
        self.data = 40 * torch.randn(images, 3, config.side, config.side)
        self.subset = torch.zeros(images, config.num_classes)
        self.subset[:, :2] = 1  # two labels an item
        self.target = torch.randint(0, 2, (images, config.side, config.side))
        makers = {
            "plain": lambda: functools.partial(frozen_plain, self.model),
            "fast": lambda: frozen_part(self.model, half),
        }
        self.frozen: dict[str, Callable[[Tensor, Tensor], Frozen]] = {way: makers[way]() for way in ways}

    def run(self, way: str) -> tuple[float, float]:
        """Milliseconds of the step and of its frozen part."""
        self.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            fixed = self.frozen[way](self.data, self.subset)
            frozen = time.perf_counter()
            scores = training_scores(self.model, {"data": self.data, "subset": self.subset}, lambda *_: fixed)
            loss = segmentation_loss(scores, self.target)
        assert loss is not None
        loss.backward()
        return 1e3 * (time.perf_counter() - start), 1e3 * (frozen - start)


def measure(size: str, precision: str, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
    """Medians of all ways, after one round that does not count."""
    config, images, steps = SIZES[size]
    step = _Step(config, images, precision == "bfloat16", ways)
    samples: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(steps + 1):
        for way in ways:
            samples[way].append(step.run(way))
    row: dict[str, Any] = {"size": size, "precision": precision, "images": images, "steps": steps}
    for way in ways:
        whole, frozen = (statistics.median(values) for values in zip(*samples[way][1:], strict=True))
        row[way] = {"step_ms": whole, "frozen_ms": frozen, "images_per_second": 1e3 * images / whole}
        print(f"{size} {precision} {way}: step {whole:.0f} ms, frozen part {frozen:.0f} ms", flush=True)
    return row


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precision", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--memory", action="store_true", help="peak memory of each way instead of times")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    machine.use_threads(None)
    if arguments.memory_of:
        measure(arguments.size[0], arguments.precision[0], (arguments.memory_of,))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return 0
    path = arguments.out / f"training_step-{machine.name()}.json"
    cases = [(size, precision) for size in arguments.size for precision in arguments.precision]
    if arguments.memory:
        report = json.loads(path.read_text())
        report["peak_bytes"] = {" ".join([*case, way]): _peak(*case, way) for case in cases for way in WAYS}
    else:
        report = {"benchmark": "training_step", "machine": machine.describe()}
        report["rows"] = [measure(*case) for case in cases]
    write_atomic(path, (json.dumps(report, indent=1) + "\n").encode())
    print(path)
    return 0


def _peak(size: str, precision: str, way: str) -> int:
    command = [sys.executable, __file__, "--size", size, "--precision", precision, "--memory-of", way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
