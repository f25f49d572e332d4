"""The full-size network end to end, from resized images to label maps at the images' size, against its rivals.

Rivals take turns in one process on the same random weights and forced labels; each one's labels are compared with the
eager float32 loop's. Writes ``end_to_end-<machine>.json`` and draws ``end_to_end-<machine>.png``. With ``--memory``
each rival runs in a process of its own instead, and the peaks are added to that JSON.

    python benchmarks/end_to_end.py [--rivals "stock best" "ddn_fast bf16"] [--memory] [--ops reference] [--quick]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import machine
import networks
import numpy as np
import timing
import torch
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import NetConfig
from ddn_fast.plan import passes_of

CROP = (375, 500)  # height and width of most photographs in PASCAL VOC
QUICK_CROP = (90, 120)
QUICK = NetConfig(tuple("abcdef"), side=64, widths=(8, 16, 16, 32, 32), fc=64, bridge=32, fc_kernel=1)

# how many labels each image of a scenario has
SCENARIOS = {
    **{f"K={k}": [k] for k in (0, 1, 2, 3, 5)},
    "4 images": [1, 1, 2, 3],
    "8 images": [0, 1, 1, 1, 2, 2, 1, 3],
}
IMAGES = max(len(counts) for counts in SCENARIOS.values())

METHOD = timing.METHOD | {
    "from": "network_input of each image, float32",
    "to": f"a label map of {CROP[0]}x{CROP[1]} pixels an image",
    "network": "random weights, batch statistics from the images themselves; half of all units are on",
    "labels": "forced, their scores as they come",
    "agreement": f"pixels with the labels of {networks.EAGER_LOOP!r}; the scores of random weights nearly tie in many, "
    "so bfloat16 rivals agree less than with trained weights, each about as much as the others",
    "build": "seconds for folding and packing; first call: with compiling and whatever else happens once",
}


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    parser.add_argument("--ops", choices=("compiled", "reference"), default="compiled", help="whose ops are ours")
    parser.add_argument("--rivals", nargs="+", choices=networks.RIVALS, default=list(networks.RIVALS), metavar="NAME")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=40.0, help="for the samples of one scenario")
    parser.add_argument("--samples", type=machine.positive, default=15, help="of one rival, at most")
    parser.add_argument("--threads", type=machine.positive, help="default: one for each core")
    parser.add_argument("--no-compile", action="store_true", help=f"{networks.STOCK_BEST!r} without torch.compile")
    parser.add_argument("--memory", action="store_true", help="peak memory of each rival instead of times")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two samples: does it run?")
    parser.add_argument("--memory-of", choices=networks.RIVALS, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    machine.use_allocator_settings()
    machine.use_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of, arguments)))
        return 0
    whole = (arguments.rivals, arguments.scenarios) == (list(networks.RIVALS), list(SCENARIOS)) or arguments.memory
    usual = arguments.ops == "compiled" and not (arguments.quick or arguments.no_compile)
    path = machine.result_path(arguments.out, "end_to_end", whole=whole and usual)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # a first call that compiles, on every run
        if arguments.memory:
            report = json.loads(path.read_text()) if path.is_file() else _report(arguments)
            peaks = {name: _in_own_process(name, arguments) for name in arguments.rivals}
            report["memory"] = report.get("memory", {}) | peaks
            machine.save(report, path)
        else:
            report = measure(arguments, path)
    draw(report, path.with_suffix(".png"))
    print(path)
    return 0


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "end_to_end",
        "quick": arguments.quick,
        "ops": arguments.ops,
        "machine": machine.describe(),
        "method": METHOD,
        "rivals": {name: {"about": networks.ABOUT[name]} for name in arguments.rivals},
        "scenarios": [],
    }


class _Bench:
    """The network, its input and the rivals of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        config = QUICK if arguments.quick else NetConfig()
        self.crop = QUICK_CROP if arguments.quick else CROP
        self.x = torch.stack([input_of(blobs(seed, self.crop), config.side) for seed in range(IMAGES)])
        self.model = networks.random_network(config, self.x[:2])
        self.arguments = arguments

    def make(self, name: str) -> networks.Network:
        """A rival of this network."""
        ops = import_module("ddn_fast.ops") if self.arguments.ops == "compiled" else reference
        return networks.make(name, self.model, ops, compiled=not self.arguments.no_compile)

    def call(self, rival: networks.Network, scenario: str) -> Callable[[], list[Tensor]]:
        """One call of a rival: the scenario's first images, each with its first classes."""
        counts = SCENARIOS[scenario]
        chosen = [list(range(count)) for count in counts]
        x = self.x[: len(counts)]
        return lambda: rival(x, chosen, max(self.crop), self.crop)


def input_of(image: np.ndarray, side: int) -> Tensor:
    """The network's input ``[3,side,side]`` of an HxWx3 uint8 image."""
    return reference.network_input(torch.from_numpy(image), side)


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """An image of `size`, HxWx3 uint8: coarse noise enlarged, with fine noise on it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(1, 3, 6, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].permute(1, 2, 0)
    noise = 20 * torch.randn(smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255).to(torch.uint8).numpy()


@torch.no_grad()
def measure(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Times, images a second and agreement of every rival in every scenario; written to `path` after each."""
    report = _report(arguments)
    bench = _Bench(arguments)
    limits = {"seconds": 0.01, "samples": 2, "least": 2} if arguments.quick else {
        "seconds": arguments.seconds, "samples": arguments.samples,
    }  # fmt: skip
    rivals = {}
    for name in arguments.rivals:
        start = time.perf_counter()
        rivals[name] = bench.make(name)
        report["rivals"][name]["build_s"] = round(time.perf_counter() - start, 3)
        report["rivals"][name]["first_call_s"] = {}
    truth = rivals.get(networks.EAGER_LOOP) or bench.make(networks.EAGER_LOOP)
    for scenario in arguments.scenarios:
        counts = SCENARIOS[scenario]
        calls = {name: bench.call(rival, scenario) for name, rival in rivals.items()}
        maps = {}
        for name, call in calls.items():
            start = time.perf_counter()
            maps[name] = torch.stack(call())
            report["rivals"][name]["first_call_s"][scenario] = round(time.perf_counter() - start, 3)
        wanted = (
            maps[networks.EAGER_LOOP] if networks.EAGER_LOOP in maps else torch.stack(bench.call(truth, scenario)())
        )
        agreement = {name: round((got == wanted).double().mean().item(), 6) for name, got in maps.items()}
        times = timing.interleave(calls, **limits)
        rows = {
            name: time.to_dict() | {"images_s": round(1e3 * len(counts) / time.ms, 3), "agreement": agreement[name]}
            for name, time in times.items()
        }
        passes = sum(passes_of(count) for count in counts)
        shares = (torch.bincount(wanted.flatten(), minlength=max(counts) + 1) / wanted.numel()).tolist()
        entry = {
            "name": scenario,
            "labels": counts,
            "passes": passes,
            "share_of_labels": [round(share, 4) for share in shares],
            "rivals": rows,
        }
        report["scenarios"].append(entry)
        show(entry)
        machine.save(report, path)
    return report


def show(scenario: dict[str, Any]) -> None:
    """A block of lines for people."""
    print(f"{scenario['name']}: labels {scenario['labels']}, {scenario['passes']} passes")
    for name, row in scenario["rivals"].items():
        print(
            f"  {name:20s} {row['ms']:10.2f} ms ({row['low']:.2f} to {row['high']:.2f},"
            f" {row['clean']}/{row['samples']}) {row['images_s']:8.2f} images/s"
            + ("" if row["agreement"] is None else f", agreement {row['agreement']:.4%}"),
            flush=True,
        )


@torch.no_grad()
def memory_of(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """MiB of this process: at first, with the rival built and the plain model gone, and at most in each scenario."""
    before = _status("VmRSS")
    bench = _Bench(arguments)
    rival = bench.make(name)
    calls = {scenario: bench.call(rival, scenario) for scenario in arguments.scenarios}
    bench.model = None  # type: ignore[assignment]
    _give_back()
    built = _status("VmRSS")
    result = {"before": before, "built": built, "peak_build": _status("VmHWM")}
    for scenario, call in calls.items():
        call()  # compiling is not what is asked about
        _give_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
        call()
        result[f"peak {scenario}"] = _status("VmHWM")
    return result


def _in_own_process(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", name, "--ops", arguments.ops]
    command += ["--threads", str(torch.get_num_threads()), "--scenarios", *arguments.scenarios]
    command += [flag for flag in ("--quick", "--no-compile") if getattr(arguments, flag[2:].replace("-", "_"))]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    print(name, found, flush=True)
    return found


def _give_back() -> None:
    """Free memory goes back to the system, so that a peak is of what is in use."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status(key: str) -> float:
    """MiB of an entry of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(key)


def table(report: dict[str, Any], words: Sequence[str] = ()) -> str:
    """Markdown: milliseconds of each rival in each scenario, and how many times faster ours is than stock best.

    `words` choose scenarios by name; none: all.
    """
    scenarios = [s for s in report["scenarios"] if not words or s["name"] in words]
    lines = ["ms | " + " | ".join(s["name"] for s in scenarios), "---" + "|---:" * len(scenarios)]
    present = [name for name in networks.RIVALS if all(name in s["rivals"] for s in scenarios)]
    for name in present:
        lines.append(f"{name} | " + " | ".join(f"{s['rivals'][name]['ms']:.1f}" for s in scenarios))
    for name in (networks.OURS_FLOAT32, networks.OURS_BFLOAT16):
        if name in present and networks.STOCK_BEST in present:
            ratios = [s["rivals"][networks.STOCK_BEST]["ms"] / s["rivals"][name]["ms"] for s in scenarios]
            lines.append(f"stock best / {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios))
    return "\n".join(lines)


def draw(report: dict[str, Any], path: Path) -> None:
    """Milliseconds an image, a bar for each rival in each scenario."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    scenarios = report["scenarios"]
    names = [name for name in networks.RIVALS if all(name in s["rivals"] for s in scenarios)]
    if not scenarios or not names:
        return
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        values = [s["rivals"][name]["ms"] / len(s["labels"]) for s in scenarios]
        axes.bar([i + (k - (len(names) - 1) / 2) * width for i in range(len(scenarios))], values, width, label=name)
    axes.set_xticks(range(len(scenarios)), [s["name"] for s in scenarios])
    axes.set_yscale("log")
    axes.set_ylabel("ms an image")
    axes.set_title(f"{report['machine']['cpu']}, {report['machine']['threads']} threads", fontsize=9)
    axes.legend(fontsize=8, ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
