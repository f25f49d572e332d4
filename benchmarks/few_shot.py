"""The paper's experiment on generated images: few masks with many tags, against the same network on the masks alone.

Left, "masks and tags": stage 1 learns from the tags of all training images, one stage 1 a seed; stage 2 from K masks a
class. Right, "masks alone" (``masks_alone.py``): the same network on the same K masks a class and nothing else, trained
end to end, without a stage 1. It gets as many solver steps and images through encoder and head as both stages together,
at least as many through bridge and decoder as stage 2, and the best learning rate of those tried.

Every run is a process of its own, one a core. Results are written after each; a run that fails is tried once more and
holds up no other; whatever stops this program, the same command goes on.

    python benchmarks/few_shot.py --out runs/few_shot [--masks 5 10 25 0] [--seeds 0 1 2] [--keep]

With a GPU the network is the full-size one by default; that has not run anywhere yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import machine
import numpy as np
import torch
from few_shot_runs import ALONE, RESULT, SETTINGS, TAGS, Name, recipe_of
from tqdm import tqdm

from ddn_fast.data.synthetic import generate
from ddn_fast.files import write_atomic
from ddn_fast.training.recipe import NetworkShape, Recipe, load_recipe

HERE = Path(__file__).parent
PLOT = "docs/few_shot.png"
IMAGES: dict[str, Any] = {"train": 1200, "scenes": 6000, "closeups": 3600, "val": 200}
# The rival's learning rate, and another for up to so many masks a class. Trials, mean IU of one seed: 10 masks a class,
# 1,500 steps: 13.6 at 1e-2, 12.4 at 3e-3, 10.3 at 1e-3; every mask, 700 steps: 7.8 at 1e-2, 10.9 at 3e-3.
ALONE_LR, FEW, ALONE_LR_OF_FEW = 3e-3, 10, 1e-2
COST = {"classifier": 1.0, "segmenter": 1.4, "alone": 1.5}  # of an iteration, roughly: for the estimate of time left
TRIES = 2


def main() -> int:
    """Run what is missing; returns the exit status."""
    arguments = parser().parse_args()
    settings = settings_of(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if (other := differing(arguments.out / SETTINGS, settings)) is not None:
        print(f"{arguments.out}: holds an experiment with other {other}; name another folder", file=sys.stderr)
        return 2
    write_atomic(arguments.out / SETTINGS, json.dumps(settings, indent=1).encode())
    if not arguments.data and not (Path(settings["folder"]) / "classes.txt").is_file():
        generate(settings["folder"], **IMAGES)
    names = plan(arguments.seeds, arguments.masks)
    jobs = arguments.jobs or (1 if arguments.device != "cpu" else len(os.sched_getaffinity(0)))
    failed = Driver(arguments.out, names, settings, jobs).run()
    report = json.loads((arguments.out / "results.json").read_text())
    if report["results"]:
        print(table(report))
        draw(report, arguments.out / "few_shot.png")
    for name in failed:
        print(f"failed: {name}; see {arguments.out / str(name)}/output.txt", file=sys.stderr)
    if arguments.keep and not failed:
        machine.save(report, machine.RESULTS / "few_shot.json")
        draw(report, machine.ROOT / PLOT)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, required=True, help="folder for data, runs and results")
    options.add_argument("--data", type=Path, help="a VOC folder; default: generate one in OUT")
    options.add_argument("--masks", type=int, nargs="+", default=[0, 25, 10, 5], help="masks a class, 0: every mask")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--classifier", default=HERE / "few_shot_classifier.toml", help="recipe of stage 1")
    options.add_argument("--segmenter", default=HERE / "few_shot_segmenter.toml", help="recipe of stage 2")
    options.add_argument("--size", choices=("narrow", "full"), help="network (default: full with a GPU, else narrow)")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--jobs", type=int, help="runs at a time (default: one a core, or one with a GPU)")
    options.add_argument(
        "--keep", action="store_true", help="when all is done, put JSON and plot where README shows them"
    )
    return options


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that runs of one folder have in common, as plain JSON values."""
    stage1, stage2 = load_recipe(arguments.classifier), load_recipe(arguments.segmenter)
    if (arguments.size or ("narrow" if arguments.device == "cpu" else "full")) == "full":
        stage1 = dataclasses.replace(stage1, network=NetworkShape(), resize=350)
        stage2 = dataclasses.replace(stage2, resize=350)
    made = recipes(stage1, stage2)
    settings = {
        "recipes": {name: recipe.to_dict() for name, recipe in made.items()},
        "decoded": math.ceil(stage2.samples / made["alone"].iterations),  # of each of the rival's batches
        "few": {"masks_per_class": FEW, "lr": ALONE_LR_OF_FEW},
        "folder": str(arguments.data or arguments.out / "data"),
        "images": None if arguments.data else IMAGES,
        "device": arguments.device,
    }
    return json.loads(json.dumps(settings))


def recipes(stage1: Recipe, stage2: Recipe) -> dict[str, Recipe]:
    """The recipe of each kind of run; the rival's follows from the two others."""
    steps = stage1.iterations + stage2.iterations * stage2.batch // stage1.batch
    alone = dataclasses.replace(
        stage2, network=stage1.network, iterations=steps, batch=stage1.batch, lr=ALONE_LR, warmup=stage1.warmup,
        weight_decay=stage1.weight_decay, checkpoint_every=stage1.checkpoint_every,
    )  # fmt: skip
    return {"classifier": stage1, "segmenter": stage2, "alone": alone}


def differing(path: Path, settings: dict[str, Any]) -> str | None:
    """Which of the settings differ from those kept in `path`; None: nothing, or nothing is kept."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return next((name for name in settings if kept.get(name) != settings[name]), None)


def plan(seeds: Sequence[int], masks: Sequence[int]) -> list[Name]:
    """All runs, seed by seed, what others wait for first, the shortest last."""
    return [
        name
        for seed in seeds
        for name in (
            Name(seed, "tags"),
            *(Name(seed, "alone", count) for count in masks),
            *(Name(seed, "tags", count) for count in masks),
        )
    ]


class Running(NamedTuple):
    """A run at work, and where it writes what it has to say."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]


class Driver:
    """Runs the runs that have no result yet, `jobs` at a time."""

    def __init__(self, out: Path, names: list[Name], settings: dict[str, Any], jobs: int) -> None:
        self.out, self.names, self.settings, self.jobs = out, names, settings, jobs
        self.running: dict[Name, Running] = {}
        self.tries: Counter[Name] = Counter()
        self.cost = {name: self._cost(name) for name in names}
        self.threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        self.spent = json.loads(self.results.read_text())["seconds"] if self.results.exists() else 0.0
        self.start = time.perf_counter()

    @property
    def results(self) -> Path:
        """Where the results of all runs go."""
        return self.out / "results.json"

    def run(self) -> list[Name]:
        """Returns once nothing is left to run; the runs that failed."""
        self.write()
        total = sum(self.cost.values())
        bar = tqdm(
            total=total, initial=self.progress(), desc="experiment", smoothing=0, dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 60,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} spent, {remaining} left{postfix}",
        )  # fmt: skip
        try:
            with bar:
                while self.step(bar):
                    bar.set_postfix_str(" ".join(map(str, self.running)), refresh=False)
                    bar.update(self.progress() - bar.n)
                    time.sleep(0.2)
        finally:
            for run in self.running.values():
                run.process.kill()
        return [name for name in self.names if not self.done(name)]

    def step(self, bar: tqdm[Any]) -> bool:
        """Collect what has ended, start what may; False once nothing runs and nothing can."""
        for name, run in list(self.running.items()):
            if run.process.poll() is not None:
                del self.running[name]
                run.output.close()
                self.write()
                ended = "done" if self.done(name) else f"failed (exit status {run.process.returncode})"
                bar.write(f"{name}: {ended}", file=sys.stderr)
        for name in self.names:
            if len(self.running) < self.jobs and self.ready(name):
                self.running[name] = self.launch(name)
        return bool(self.running)

    def ready(self, name: Name) -> bool:
        """Whether a run is to be started and what it starts from is there."""
        if name in self.running or self.done(name) or self.tries[name] >= TRIES:
            return False
        return name.kind == "alone" or name.count is None or self.done(Name(name.seed, "tags"))

    def done(self, name: Name) -> bool:
        """Whether a run has its result."""
        return (self.out / str(name) / RESULT).exists()

    def launch(self, name: Name) -> Running:
        """Start a run in a process that ends with this one."""
        self.tries[name] += 1
        folder = self.out / str(name)
        folder.mkdir(parents=True, exist_ok=True)
        output = (folder / "output.txt").open("ab")
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, str(HERE / "few_shot_runs.py"), str(self.out), str(name)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        return Running(process, output)

    def write(self) -> None:
        """The results so far, with what produced them."""
        found = {
            name: json.loads((self.out / str(name) / RESULT).read_text()) for name in self.names if self.done(name)
        }
        report = {
            "benchmark": "few_shot",
            "machine": machine.describe() | {"threads": self.threads, "jobs": self.jobs},
            "seconds": round(self.spent + time.perf_counter() - self.start, 1),
            "settings": self.settings,
            "results": [result for result in found.values() if result],
        }
        machine.save(report, self.results)

    def progress(self) -> float:
        """Cost of what is done, runs at work counted by the last line of their log."""
        return sum(self.cost[name] * (1.0 if self.done(name) else self._share(name)) for name in self.names)

    def _cost(self, name: Name) -> float:
        kind = "classifier" if name.count is None else {"tags": "segmenter", "alone": "alone"}[name.kind]
        recipe = recipe_of(name, self.settings)
        return COST[kind] * recipe.iterations * recipe.batch

    def _share(self, name: Name) -> float:
        try:
            last = (self.out / str(name) / "log.jsonl").read_text().splitlines()[-1]
            return 0.99 * min(1.0, json.loads(last)["iteration"] / recipe_of(name, self.settings).iterations)
        except (OSError, ValueError, LookupError):  # none yet, or it is being written
            return 0.0


def table(report: dict[str, Any], words: Sequence[str] = ()) -> str:
    """Markdown: mean IU in percent by masks a class, mean over seeds (and spread where there are several)."""
    results = report["results"]
    if not results:
        return "Not run yet."
    lines = [
        f"masks a class | images with masks | {TAGS} | {ALONE} | told the labels: {TAGS} | {ALONE}",
        "---:|---:|---:|---:|---:|---:",
    ]
    for count in counts(results):
        images = {r["masks"] for r in results if r["masks_per_class"] == count}
        cells = [f"{count or 'every'}", "-".join(map(str, sorted({min(images), max(images)})))]
        cells += [
            _cell(values(results, rival, count, key))
            for key in ("mean_iu", "mean_iu_true_labels")
            for rival in (TAGS, ALONE)
        ]
        lines.append(" | ".join(cells))
    seeds = len({r["seed"] for r in results})
    over = f"Mean and standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    where = report["machine"]
    lines += ["", f"{over}; {where['cpu']}, {where['cores']} cores, {report['seconds'] / 60:.0f} minutes in all."]
    if words:  # README's: where the plot is
        lines += ["", f"![Mean IU against masks a class]({PLOT})"]
    return "\n".join(lines)


def counts(results: list[dict[str, Any]]) -> list[int]:
    """Masks a class that occur, fewest first, every mask (0) last."""
    return sorted({r["masks_per_class"] for r in results}, key=lambda count: count or np.inf)


def values(results: list[dict[str, Any]], rival: str, count: int, key: str = "mean_iu") -> list[float]:
    """A figure of a rival with so many masks, seed by seed, in percent."""
    return [100 * r[key] for r in results if (r["rival"], r["masks_per_class"]) == (rival, count)]


def _cell(percent: list[float]) -> str:
    if not percent:
        return "-"
    return f"{np.mean(percent):.1f}" + (f" ± {np.std(percent, ddof=1):.1f}" if len(percent) > 1 else "")


def draw(report: dict[str, Any], path: Path) -> None:
    """Mean IU against masks a class, one line a rival."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    results = report["results"]
    shown = counts(results)
    figure, axes = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    for rival in (TAGS, ALONE):
        here = [(x, values(results, rival, count)) for x, count in enumerate(shown) if values(results, rival, count)]
        means = [float(np.mean(v)) for _, v in here]
        spreads = [float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for _, v in here]
        axes.errorbar([x for x, _ in here], means, spreads, marker="o", capsize=3, label=rival)
    axes.set_xticks(range(len(shown)), [str(count or "every") for count in shown])
    axes.set_xlabel("masks a class")
    axes.set_ylabel("mean IU of held-out images, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
