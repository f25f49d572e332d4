"""The paper's experiment on generated images: few masks with many tags, against the same network on the masks alone.

Both rivals get the same network, recipes, solver steps and masks. The decoupled one's stage 1 sees the tags of every
training image; the other's sees only the images that have masks (their tags come from the masks). Writes
``results.json``, prints the table, draws ``few_shot.png`` where matplotlib is installed. A run that was stopped goes
on from its checkpoints.

    python benchmarks/few_shot.py --out runs/few_shot [--masks 5 10 25] [--seeds 0]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import commit, cpu_name

import ddn_fast
from ddn_fast.data.few import few_masks
from ddn_fast.data.synthetic import generate
from ddn_fast.data.voc import VocFolder
from ddn_fast.evaluate import evaluate
from ddn_fast.images import write_atomic
from ddn_fast.network import DecoupledNet
from ddn_fast.training.classifier import train_classifier
from ddn_fast.training.recipe import Recipe, load_recipe
from ddn_fast.training.segmenter import train_segmenter

CACHE_BYTES = 1 << 30
TAGS, MASKS_ALONE = "masks and tags", "masks alone"


def main() -> int:
    """Run every pair; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--data", type=Path, help="a VOC folder; default: generate one in OUT")
    parser.add_argument("--masks", type=int, nargs="+", default=[5, 10, 25], help="masks a class (default 5 10 25)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--classifier", default="demo-classifier", help="recipe of stage 1")
    parser.add_argument("--segmenter", default="demo-segmenter", help="recipe of stage 2")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    data = arguments.data or arguments.out / "data"
    if not (data / "classes.txt").is_file():
        generate(data)
    folder = VocFolder(data)
    results = []
    for seed in arguments.seeds:
        stage1 = dataclasses.replace(load_recipe(arguments.classifier), seed=seed)
        for count in arguments.masks:
            stage2 = dataclasses.replace(load_recipe(arguments.segmenter), seed=seed, masks_per_class=count)
            for rival in (TAGS, MASKS_ALONE):
                results.append(run(folder, arguments.out, rival, stage1, stage2, arguments.device))
                write_atomic(arguments.out / "results.json", (json.dumps(report(results), indent=1) + "\n").encode())
                print(json.dumps(results[-1]), flush=True)
    print(table(results))
    draw(results, arguments.out / "few_shot.png")
    return 0


def run(folder: VocFolder, out: Path, rival: str, stage1: Recipe, stage2: Recipe, device: str) -> dict[str, Any]:
    """Train one rival and score it on the held-out split."""
    start, count, seed = time.perf_counter(), stage2.masks_per_class, stage1.seed
    common: dict[str, Any] = {"resume": True, "device": device, "cache_bytes": CACHE_BYTES}
    if rival == TAGS:  # the tags do not depend on the masks: one stage 1 serves every count
        first = out / f"seed{seed}/tags"
        model = train_classifier(folder, first, stage1, **common)
    else:
        first = out / f"seed{seed}/masks{count}"
        ids = few_masks(folder, "train", count, seed, cache_dir=out, progress=False)
        model = train_classifier(folder, first, stage1, split="train", ids=ids, tags="masks", **common)
    second = first / f"segmenter{count}"
    model = train_segmenter(folder, second, stage2, init=model, val_split=None, **common)
    return score(model, folder) | {
        "rival": rival, "masks_per_class": count, "seed": seed, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def score(model: DecoupledNet, folder: VocFolder) -> dict[str, float]:
    """Mean IU with the labels it identifies, mean IU with the true labels, mean average precision."""
    found, told = evaluate(model, folder, "val"), evaluate(model, folder, "val", labels="truth")
    return {
        "mean_iu": found.mean_iu,
        "mean_iu_true_labels": told.mean_iu,
        "mean_average_precision": found.mean_average_precision,
    }


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The results with what produced them."""
    return {
        **commit(),
        "ddn_fast": ddn_fast.__version__,
        "torch": torch.__version__,
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "results": results,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Mean IU in percent by masks a class, mean over seeds (and spread where there are several)."""
    lines = ["masks a class | masks and tags | masks alone", "---:|---:|---:"]
    for count in sorted({r["masks_per_class"] for r in results}):
        cells = [_cell([r["mean_iu"] for r in results if (r["rival"], r["masks_per_class"]) == (rival, count)])
                 for rival in (TAGS, MASKS_ALONE)]  # fmt: skip
        lines.append(f"{count} | " + " | ".join(cells))
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    percent = 100 * np.array(values)
    return f"{percent.mean():.1f}" + (f" ± {percent.std(ddof=1):.1f}" if len(values) > 1 else "")


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Mean IU against masks a class, one line a rival."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for rival in (TAGS, MASKS_ALONE):
        counts = sorted({r["masks_per_class"] for r in results})
        values = [
            [100 * r["mean_iu"] for r in results if (r["rival"], r["masks_per_class"]) == (rival, count)]
            for count in counts
        ]
        axes.errorbar(counts, [np.mean(v) for v in values], [np.std(v) for v in values], marker="o", label=rival)
    axes.set_xlabel("masks a class")
    axes.set_ylabel("mean IU of held-out images, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
