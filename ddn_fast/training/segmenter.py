"""Stage 2: the bridge and the segmentation network, from few masks (SPEC section 8)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops, weights
from ..data.datasets import SegmentationItems
from ..data.few import few_masks
from ..data.voc import VocFolder
from ..data.windows import WindowItem, build_items, read_list, write_list
from ..evaluate import evaluate
from ..images import write_atomic
from ..network import DecoupledNet
from .bn import reestimate
from .classifier import check_classes, data_identity
from .curves import draw_curves
from .loop import Batch, Run, batches_from, check_stage, default_workers
from .loss import segmentation_loss
from .recipe import Recipe
from .solver import build_optimizer, train_only, trained_modules

DEFAULT_VAL_SPLIT = "val"


def train_segmenter(
    folder: VocFolder,
    out: str | os.PathLike[str],
    recipe: Recipe,
    *,
    init: DecoupledNet,
    split: str = "train",
    val_split: str | None = DEFAULT_VAL_SPLIT,
    items: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: bool = True,
    cache_bytes: int = 0,
) -> DecoupledNet:
    """Train bridge and decoder, re-estimate batch statistics, validate, write ``out/weights``; return the network.

    init       a network that has been through stage 1; its encoder and head are left as they are
    items      a list file of windows (the release's format); default: windows of ``recipe.masks_per_class`` images a
               class, chosen by the recipe's seed, written to ``out/items.txt``
    val_split  where mean IU is measured at the end and every ``validate_every`` iterations; None, a split without
               masks, or the default one where the folder has no such split: nowhere
    """
    check_stage(recipe, "segmenter")
    torch.manual_seed(recipe.seed)
    check_classes(init, folder)
    out, model = Path(out), init
    model.ops = ops
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ids, windows = _windows(folder, split, recipe, items, out, progress)
    modules = trained_modules(model, "segmenter")
    train_only(model, modules)

    def items_of(plan: Recipe, seed: int) -> SegmentationItems:
        return SegmentationItems(
            folder.root, windows, folder.num_classes, samples=plan.samples, seed=seed, new_side=plan.resize,
            side=model.config.side, cache_bytes=cache_bytes,
        )  # fmt: skip

    def validate() -> dict[str, float]:
        _reestimate(run, items_of)
        result = evaluate(model, folder, val_split)
        train_only(model, modules)
        return {"mean_iu": result.mean_iu}

    validates = _has_masks(folder, val_split)
    run = Run(
        recipe=recipe,
        model=model,
        optimizer=build_optimizer(modules, recipe),
        items=items_of(recipe, recipe.seed),
        loss=lambda batch: segmentation_loss(training_scores(model, batch), batch["target"]),
        out=out,
        identity={
            "network": model.config.to_dict(),
            "frozen": _digest(model.encoder, model.head),
            "data": data_identity(folder, split, [f"{i.image} {i.window} {i.subset}" for i in windows]),
        },
        validate=validate if validates else None,
        on_start=lambda: _write_windows(out, folder, ids, windows),
        workers=default_workers() if workers is None else workers,
        progress=progress,
        description="stage 2: segmenter",
    )
    run.train(resume)
    _reestimate(run, items_of)
    model.eval().requires_grad_(True)
    metadata: dict[str, Any] = {"stage": "segmenter", "recipe": recipe.to_dict()}
    if validates:
        result = evaluate(model, folder, val_split, progress=progress)
        run.add({"iteration": recipe.iterations, "mean_iu": result.mean_iu})
        metadata["validation"] = result.to_dict()
    weights.save(model, out / "weights", metadata)
    draw_curves(run.log, out / "curves.png")
    return model


def _digest(*modules: torch.nn.Module) -> str:
    """What the frozen part holds: a checkpoint must not go on with another."""
    digest = hashlib.sha256()
    for module in modules:
        for value in module.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def training_scores(model: DecoupledNet, batch: Batch) -> Tensor:
    """Seg-scores ``[P,2,S,S]`` of a batch of items, one pass each.

    The label vector holds the max-pooled sigmoid scores times the item's subset (SPEC section 8). Encoder, head and
    class map are frozen and kept out of the graph.
    """
    with torch.no_grad():
        data = batch["data"].contiguous(memory_format=torch.channels_last)
        features, head = model.encode(data)
        passes = torch.arange(len(data), device=data.device)
        class_map = model.head.class_map(head, head.max_scores * batch["subset"].to(data), passes)
    joined = model.bridge(features.pool5, class_map)
    return model.decoder(joined, features.switches, None, model.ops)


def _windows(
    folder: VocFolder, split: str, recipe: Recipe, items: Any, out: Path, progress: bool
) -> tuple[list[str], list[WindowItem]]:
    """The images whose masks are used (unknown, so none, for a finished list), and the windows of them."""
    if items is not None:
        return [], read_list(items, folder.num_classes)
    if recipe.masks_per_class:
        ids = few_masks(folder, split, recipe.masks_per_class, recipe.seed, cache_dir=out, progress=progress)
    else:
        ids = list(folder.masked_ids(split))
    windows = build_items(
        folder, ids, seed=recipe.seed, windows_per_subset=recipe.windows_per_subset, max_subsets=recipe.max_subsets,
        progress=progress,
    )  # fmt: skip
    return ids, windows


def _write_windows(out: Path, folder: VocFolder, ids: list[str], windows: list[WindowItem]) -> None:
    write_list(out / "items.txt", windows, folder.num_classes)
    if ids:
        write_atomic(out / "masks.txt", "".join(f"{name}\n" for name in ids).encode())


def _reestimate(run: Run, items_of: Callable[[Recipe, int], SegmentationItems]) -> None:
    """101 augmented batches of 16 that no solver step has seen: the stream of another seed."""
    recipe = run.recipe
    plan = dataclasses.replace(recipe, iterations=recipe.bn_batches, batch=recipe.bn_batch, accumulate=1)
    reestimate(
        run.model,
        batches_from(items_of(plan, recipe.seed + 1), plan, 0, run.workers),
        lambda batch: training_scores(run.model, {name: value.to(run.device) for name, value in batch.items()}),
    )


def _has_masks(folder: VocFolder, split: str | None) -> bool:
    if split is None or (split == DEFAULT_VAL_SPLIT and split not in folder.splits()):
        return False
    return any(folder.mask_path(name) for name in folder.ids(split))
