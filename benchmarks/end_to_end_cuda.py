"""The full-size network end to end on a CUDA device: images a second of streams of batches, against its rivals.

From resized images in pinned memory to label maps of 375x500 on the host. First every rival that needs no compiler, in
turns, in every scenario; then stock PyTorch compiled, beside ours again, scenario by scenario as long as --budget
allows. ``end_to_end-<gpu>.json`` is written after each, and what fails is noted in it.

    python benchmarks/end_to_end_cuda.py [--budget 200] [--rivals NAME ..] [--mode max-autotune] [--quick]
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import machine
import networks
import timing
import torch
from end_to_end import CROP, QUICK, QUICK_CROP, blobs, input_of, show
from torch import Tensor

from ddn_fast.config import NetConfig
from ddn_fast.plan import passes_of
from ddn_fast.segmentation import Inputs

# how many labels each image has; 1.9 passes an image is about what photographs of PASCAL VOC need
FEW = [1, 1, 1, 1, 1, 2, 2, 3]
MANY = [1] * 19 + [2] * 10 + [3] * 3

# batches of a stream, the most important scenario first; the fourth "B=1" is one call from input to label map
SCENARIOS: dict[str, list[list[int]]] = {
    "B=32, 1.9 passes": [MANY] * 3,
    "B=1, 1 pass, alone": [[1]],
    "B=8, 1.9 passes": [FEW] * 6,
    "B=1, 1 pass": [[1]] * 24,
    "B=1, 1.9 passes": [[count] for count in FEW] * 3,
    "B=32, 1 pass": [[1] * 32] * 3,
    "B=32, 4 passes": [[3] * 32] * 2,
    "B=8, 1 pass": [[1] * 8] * 6,
    "B=8, 4 passes": [[3] * 8] * 4,
    "B=1, 4 passes": [[3]] * 24,
}
COMPILED_LAST = networks.STOCK_BEST
DEFAULT = (
    networks.EAGER_LOOP, networks.EAGER_BFLOAT16, COMPILED_LAST, networks.OURS_BFLOAT16, networks.OURS_NO_GRAPHS
)  # fmt: skip
FIRST_COMPILE_S = 90.0  # what compiling for the first scenario may take
UNCOMPILED_SHARE = 0.5  # of the budget, at most, for rivals without a compiler, where there is one to come
CUDNN_TRIALS = 4  # of its algorithms for each shape

METHOD = {
    "from": "resized images, float32, in pinned memory of the host",
    "to": f"label maps of {CROP[0]}x{CROP[1]} pixels on the host",
    "time": "host clock of a whole stream of batches; medians; rivals take turns",
    "ours": "two batches in flight (FastDecoupledNet.run); rivals one after the other",
    "network": "random weights, batch statistics from the images themselves; half of all units are on",
    "labels": "forced, their scores as they come",
    "agreement": f"pixels with the labels of {networks.EAGER_LOOP!r}, whose convolutions torch lets run in TF32",
    "memory": "MiB: weights when built; peak of a call above what was there before it, and its reserve",
}

Stream = Callable[[], list[Tensor]]


def main() -> int:
    """Measure; returns the exit status, 1 where a rival failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    parser.add_argument("--rivals", nargs="+", choices=networks.ON_CUDA, default=list(DEFAULT), metavar="NAME")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which nothing is begun")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the samples of one scenario")
    parser.add_argument("--mode", default="max-autotune", help="of torch.compile; none: not compiled")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: does it run?
    parser.add_argument("--ops", choices=("compiled", "reference"), default="compiled", help="whose ops are ours")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two samples: does it run?")
    arguments = parser.parse_args()
    machine.check_device(parser, arguments.device)
    bench = Bench(arguments)
    bench.measure([name for name in arguments.rivals if name != COMPILED_LAST])
    if COMPILED_LAST in arguments.rivals:
        bench.measure_compiled()
    bench.report["machine"]["clocks_after"] = machine.cuda_clocks() if bench.on_cuda else {}
    print(bench.save())
    return 1 if bench.report["failed"] else 0


class Bench:
    """The network, its input, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.start = arguments, time.perf_counter()
        self.on_cuda = arguments.device == "cuda"
        if self.on_cuda:
            torch.backends.cudnn.benchmark = True  # the rivals' best algorithms
            torch.backends.cudnn.benchmark_limit = CUDNN_TRIALS
        config = QUICK if arguments.quick else NetConfig()
        self.crop = QUICK_CROP if arguments.quick else CROP
        images = max(len(counts) for name in arguments.scenarios for counts in SCENARIOS[name])
        distinct = [input_of(blobs(seed, self.crop), config.side) for seed in range(min(images, 8))]
        self.x = torch.stack([distinct[k % len(distinct)] for k in range(images)])
        if self.on_cuda:
            self.x = self.x.pin_memory()
        self.model = networks.random_network(config, self.x[:2].to(arguments.device))
        self.limits: dict[str, Any] = {"seconds": arguments.seconds, "samples": 9, "clock": timing.HostClock()}
        if arguments.quick:
            self.limits = {"seconds": 0.01, "samples": 2, "least": 2}
        self.report: dict[str, Any] = {
            "benchmark": "end_to_end_cuda",
            "quick": arguments.quick,
            "machine": machine.describe_cuda() if self.on_cuda else machine.describe(),
            "method": METHOD | {"compile": arguments.mode},
            "rivals": {name: {"about": networks.ABOUT[name]} for name in arguments.rivals},
            "scenarios": [],
            "failed": [],
        }
        whole = (arguments.scenarios, arguments.ops) == (list(SCENARIOS), "compiled") and not arguments.quick
        self.path = machine.result_path(arguments.out, "end_to_end", self.report["machine"]["name"], whole=whole)
        self.truth: dict[str, Tensor] = {}

    def save(self) -> Path:
        """Write what there is; returns where."""
        machine.save(self.report, self.path)
        return self.path

    def left(self) -> float:
        """Seconds of the budget."""
        return self.arguments.budget - (time.perf_counter() - self.start)

    def build(self, name: str) -> Any:
        """A rival, its build time and its weights noted; None if it cannot be built."""
        before, start = self._memory()["allocated"], time.perf_counter()
        try:
            if name in (networks.OURS_BFLOAT16, networks.OURS_NO_GRAPHS, networks.OURS_FLOAT16):
                rival: Any = networks.make_engine(name, self.model, self._ops())
            else:
                mode = self.arguments.mode
                rival = networks.make(name, self.model, None, mode != "none", mode)
        except (RuntimeError, ValueError, ImportError) as error:
            self.fail(f"{name}: {error}")
            return None
        self.report["rivals"][name] |= {
            "build_s": round(time.perf_counter() - start, 2),
            "weights_mib": round(self._memory()["allocated"] - before, 1),
        }
        return rival

    def _ops(self) -> Any:
        return None if self.arguments.ops == "compiled" else import_module("ddn_fast.reference")

    def fail(self, what: str) -> None:
        """Note it and go on."""
        print(f"failed: {what[:400]}", flush=True)
        self.report["failed"].append(what[:2000])

    def stream(self, rival: Any, scenario: str) -> Stream:
        """One call: all batches of a scenario, each image with its first classes."""
        batches = [(self.x[: len(counts)], [list(range(n)) for n in counts]) for counts in SCENARIOS[scenario]]
        square = max(self.crop)
        if not hasattr(rival, "run"):
            return lambda: [m for x, chosen in batches for m in rival(x, chosen, square, self.crop)]
        inputs = [Inputs(x, [self.crop] * len(x), chosen) for x, chosen in batches]

        def run() -> list[Tensor]:
            found = [one.label_map for labelled in rival.run(inputs) for one in labelled]
            assert all(label_map is not None for label_map in found), "the network gave NaN"
            return found

        return run

    @torch.no_grad()
    def measure(self, names: list[str]) -> None:
        """Every rival in every scenario."""
        rivals = {name: rival for name in names if (rival := self.build(name)) is not None}
        compiling = COMPILED_LAST in self.arguments.rivals
        reserve = (
            self.arguments.budget * UNCOMPILED_SHARE if compiling and self.arguments.budget < float("inf") else 0.0
        )
        for scenario in self.arguments.scenarios:
            if self.report["scenarios"] and self.left() < reserve:
                self.report["stopped"] = f"before {scenario}"
                break
            counts = SCENARIOS[scenario]
            entry = {
                "name": scenario,
                "batches": counts,
                "passes": sum(passes_of(n) for batch in counts for n in batch),
                "rivals": self._times({name: self.stream(rival, scenario) for name, rival in rivals.items()}, scenario),
            }
            self.report["scenarios"].append(entry)
            show({"labels": f"of {len(counts)} batches", **entry})
            self.save()

    @torch.no_grad()
    def measure_compiled(self) -> None:
        """Stock PyTorch compiled, beside ours, in the scenarios there is time for."""
        ours = self.build(networks.OURS_BFLOAT16) if networks.OURS_BFLOAT16 in self.arguments.rivals else None
        stock = self.build(COMPILED_LAST)
        needed = 0.0 if self.arguments.quick else FIRST_COMPILE_S
        for entry in self.report["scenarios"]:
            if self.left() < needed or stock is None:
                self.report["not_compiled"] = [e["name"] for e in self.report["scenarios"] if "beside" not in e]
                break
            start = time.perf_counter()
            rows = self._beside(stock, ours, entry["name"])
            while COMPILED_LAST not in rows and self.arguments.mode != "none":  # better a weaker rival than none
                self.arguments.mode = "none" if self.arguments.mode == "default" else "default"
                self.report["method"]["compile"] += f", then {self.arguments.mode}"
                stock, start = self.build(COMPILED_LAST), time.perf_counter()
                rows = self._beside(stock, ours, entry["name"])
            needed = 0.0 if self.arguments.quick else 1.2 * (time.perf_counter() - start)
            if COMPILED_LAST in rows:
                entry["rivals"][COMPILED_LAST] = rows[COMPILED_LAST] | {"compile": self.arguments.mode}
            entry["beside"] = rows
            show({"labels": "beside ours", **entry, "rivals": rows})
            self.save()

    def _beside(self, stock: Any, ours: Any, scenario: str) -> dict[str, dict[str, Any]]:
        """Rows of those two of them that there are."""
        pair = {COMPILED_LAST: stock, networks.OURS_BFLOAT16: ours}
        there = {name: rival for name, rival in pair.items() if rival is not None}
        return self._times({name: self.stream(rival, scenario) for name, rival in there.items()}, scenario)

    def _times(self, streams: dict[str, Stream], scenario: str) -> dict[str, dict[str, Any]]:
        """Rows of the rivals that work; the first call of each is where it records, tunes or compiles."""
        rows: dict[str, dict[str, Any]] = {}
        for name, stream in list(streams.items()):
            before, start = self._memory(peak=True), time.perf_counter()
            try:
                maps = torch.stack(stream())
                first = time.perf_counter() - start
                first_peak = self._memory()["peak"] - before["allocated"]
                before = self._memory(peak=True)
                stream()
            except (RuntimeError, AssertionError) as error:
                self.fail(f"{name}, {scenario}: {type(error).__name__}: {error}")
                del streams[name]
                continue
            after = self._memory()
            if name == networks.EAGER_LOOP:
                self.truth[scenario] = maps
            truth = self.truth.get(scenario)
            rows[name] = {
                "first_call_s": round(first, 2),
                "agreement": round((maps == truth).double().mean().item(), 6) if truth is not None else None,
                "peak_mib": round(after["peak"] - before["allocated"], 1),
                "first_peak_mib": round(first_peak, 1),
                "reserved_mib": after["reserved"],
            }
        for name, time_ in timing.interleave(streams, **self.limits).items():
            images = sum(map(len, SCENARIOS[scenario]))
            rows[name] |= time_.to_dict() | {"images_s": round(1e3 * images / time_.ms, 2)}
        return rows

    def _memory(self, peak: bool = False) -> dict[str, float]:
        """MiB of the device; `peak`: begin a new one, with nothing kept that is free."""
        if not self.on_cuda:
            return {"allocated": 0.0, "peak": 0.0, "reserved": 0.0}
        if peak:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
        return {key: value / 2**20 for key, value in zip(("allocated", "peak", "reserved"), found, strict=True)}


if __name__ == "__main__":
    raise SystemExit(main())
