"""One training run of ``few_shot.py``, in a process of its own: ``python few_shot_runs.py OUT RUN``.

RUN is ``seedS/tags`` (stage 1 on every image's tags), ``seedS/tags-K`` (stage 2 on top of it, K masks a class, 0: every
mask) or ``seedS/alone-K`` (the rival on the same masks, see ``masks_alone.py``). ``OUT/settings.json`` says the rest.
Leaves ``result.json`` beside its checkpoints, at the end; goes on from the last checkpoint if it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from masks_alone import train_masks_alone

from ddn_fast.data.few import few_masks
from ddn_fast.data.voc import VocFolder
from ddn_fast.evaluate import evaluate
from ddn_fast.files import write_atomic
from ddn_fast.network import DecoupledNet
from ddn_fast.training.classifier import train_classifier
from ddn_fast.training.recipe import Recipe, from_dict
from ddn_fast.training.segmenter import train_segmenter
from ddn_fast.weights import load

CACHE_BYTES = 1 << 30
SETTINGS, RESULT = "settings.json", "result.json"
TAGS, ALONE = "masks and tags", "masks alone"


@dataclass(frozen=True)
class Name:
    """A run's name, taken apart: ``seed0/tags-25``."""

    seed: int
    kind: str  # tags or alone
    count: int | None = None  # masks a class, 0: every mask; None: stage 1

    def __str__(self) -> str:
        """As the folder is called."""
        return f"seed{self.seed}/{self.kind}" + ("" if self.count is None else f"-{self.count}")

    @classmethod
    def of(cls, text: str) -> Name:
        """The reverse of str."""
        seed, _, rest = text.removeprefix("seed").partition("/")
        kind, _, count = rest.partition("-")
        return cls(int(seed), kind, int(count) if count else None)


def recipe_of(name: Name, settings: dict[str, Any]) -> Recipe:
    """The recipe of a run: its kind's, with the run's seed and masks; the rival's rate depends on how many they are."""
    kind = "classifier" if name.count is None else {"tags": "segmenter", "alone": "alone"}[name.kind]
    recipe = from_dict(settings["recipes"][kind], kind)
    few = settings["few"]
    if kind == "alone" and 0 < (name.count or 0) <= few["masks_per_class"]:
        recipe = dataclasses.replace(recipe, lr=few["lr"])
    return dataclasses.replace(recipe, seed=name.seed, masks_per_class=name.count or 0)


def run(out: Path, name: Name) -> dict[str, Any]:
    """Train, or go on training, and score on the held-out split."""
    settings = json.loads((out / SETTINGS).read_text())
    folder, recipe, here = VocFolder(settings["folder"]), recipe_of(name, settings), out / str(name)
    on_gpu = settings["device"] != "cpu"
    common: dict[str, Any] = {
        "resume": True, "device": settings["device"], "workers": None if on_gpu else 0, "progress": False,
        "cache_bytes": CACHE_BYTES,
    }  # fmt: skip
    if name.count is None:
        train_classifier(folder, here, recipe, **common)
        return {}
    if name.count:
        ids = few_masks(folder, "train", name.count, name.seed, cache_dir=out, progress=False)
    else:
        ids = list(folder.masked_ids("train"))
    if name.kind == "tags":
        stage1 = load(out / f"seed{name.seed}/tags/weights")
        model, rival = train_segmenter(folder, here, recipe, init=stage1, val_split=None, **common), TAGS
    else:
        common["workers"] = common["workers"] or 0
        model, rival = train_masks_alone(folder, here, recipe, ids, decoded=settings["decoded"], **common), ALONE
    return {
        "rival": rival, "masks_per_class": name.count, "masks": len(ids), "seed": name.seed, **score(model, folder)
    }  # fmt: skip


def score(model: DecoupledNet, folder: VocFolder) -> dict[str, float]:
    """Mean IU with the labels it identifies, mean IU with the true labels, mean average precision."""
    found, told = evaluate(model, folder, "val"), evaluate(model, folder, "val", labels="truth")
    return {
        "mean_iu": found.mean_iu,
        "mean_iu_true_labels": told.mean_iu,
        "mean_average_precision": found.mean_average_precision,
    }


def _end_with_parent() -> None:
    """Two processes must never write one run: this one ends when the pipe from the other does."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    cv2.setNumThreads(1)
    folder, text = Path(sys.argv[1]), sys.argv[2]
    write_atomic(folder / text / RESULT, json.dumps(run(folder, Name.of(text))).encode())
