"""Stage 2: the bridge and the segmentation network, from few masks (SPEC section 8)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import distributed, ops
from ..data.check import Pair, pairs_of
from ..data.datasets import SegmentationItems
from ..data.few import few_masks
from ..data.voc import VocFolder, read_text
from ..data.windows import WindowItem, build_items, read_list, write_list
from ..errors import DataError
from ..evaluate import Evaluation
from ..files import write_lines
from ..folding import fold_image_part
from ..image_part import ImagePart
from ..info import cpu_isa
from ..network import DecoupledNet
from .before import check_data, check_network, check_stage, own_folder
from .bn import reestimate
from .classifier import check_classes, data_identity
from .loop import CHECKPOINT, Batch, Run, batches_from, default_workers
from .loss import segmentation_loss
from .recipe import Recipe
from .solver import build_optimizer, train_only, trained_modules
from .trained_part import trained_scores
from .validation import chosen_ids, draw, evaluate

DEFAULT_VAL_SPLIT = "val"
ITEMS, MASKS = "items.txt", "masks.txt"


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
    tensorboard: bool = False,
    recompute: bool = False,
) -> DecoupledNet:
    """Train bridge and decoder, re-estimate batch statistics, validate, write ``out/weights``; return the network.

    Beside the weights: log, curves, checkpoint, windows, and at each validation ``out/validation/ITERATION.png``.

    init       a network that has been through stage 1; its encoder and head are left as they are
    items      a list file of windows (the release's format); default: windows of ``recipe.masks_per_class`` images a
               class, chosen by the recipe's seed, written to ``out/items.txt``
    val_split  where mean IU is measured at the end and every ``validate_every`` iterations; None, a split without
               masks, or the default one where the folder has no such split: nowhere
    recompute  less memory for more time, with the same weights at the end (:func:`trained_scores`)
    The rest as in :func:`ddn_fast.training.classifier.train_classifier`.
    """
    check_stage(recipe, "segmenter")
    torch.manual_seed(recipe.seed)
    check_classes(init, folder)
    check_network(recipe, init.config)
    out, model = Path(out), init
    model.ops = ops
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules = trained_modules(model, "segmenter")
    train_only(model, modules)

    def items_of(plan: Recipe, seed: int) -> SegmentationItems:
        return SegmentationItems(
            folder.root, windows, folder.num_classes, samples=plan.samples, seed=seed, new_side=plan.resize,
            side=model.config.side, cache_bytes=cache_bytes,
        )  # fmt: skip

    def validate(iteration: int) -> Evaluation:
        _reestimate(run, items_of, frozen)
        assert val_split is not None
        result = evaluate(model, folder, val_split, progress=run.shows_progress and iteration == recipe.iterations)
        if run.writes:
            run.picture("validation", draw(model, folder, chosen_ids(folder, val_split)), iteration)
        run.add({"iteration": iteration, "mean_iu": None if math.isnan(result.mean_iu) else result.mean_iu})
        train_only(model, modules)
        return result

    with own_folder(out):
        validated = _validated(folder, val_split)
        ids, windows = _windows(folder, split, recipe, items, out, progress, resume, validated)
        _warn_of_shared(folder, windows, validated)
        run = Run(
            recipe=recipe,
            model=model,
            optimizer=build_optimizer(modules, recipe),
            items=items_of(recipe, recipe.seed),
            loss=lambda batch: segmentation_loss(training_scores(model, batch, frozen, recompute), batch["target"]),
            out=out,
            identity={
                "network": model.config.to_dict(),
                "frozen": _digest(model.encoder, model.head),
                "data": data_identity(folder, split, [f"{i.image} {i.window} {i.subset}" for i in windows]),
                "masks": _mask_digest(folder, windows),
            },
            validate=validate if validated else None,
            on_start=lambda: _write_windows(out, folder, ids, windows),
            workers=default_workers() if workers is None else workers,
            progress=progress,
            tensorboard=tensorboard,
            description="stage 2: segmenter",
        )
        frozen = frozen_part(model, run.half)
        run.train(resume)
        metadata: dict[str, Any] = {"stage": "segmenter", "recipe": recipe.to_dict()}
        if validated:
            metadata["validation"] = validate(recipe.iterations).to_dict()
            del metadata["validation"]["confusion"]  # of 254 classes more than metadata may be
        else:
            _reestimate(run, items_of, frozen)
        model.eval().requires_grad_(True)
        run.finish(metadata)
    return model


def _warn_of_shared(folder: VocFolder, windows: list[WindowItem], validated: list[Pair]) -> None:
    if shared := {image for image, _ in validated} & {folder.root / item.image for item in windows}:
        warnings.warn(
            f"{len(shared)} of the {len(validated)} images to validate on are trained on, such as {min(shared)}: "
            "mean IU will flatter the network",
            stacklevel=3,
        )


def _mask_digest(folder: VocFolder, windows: list[WindowItem]) -> str:
    """Of the files of the masks that are used: a checkpoint must not go on with others."""
    digest = hashlib.sha256()
    for mask in dict.fromkeys(item.mask for item in windows):
        try:
            digest.update((folder.root / mask).read_bytes())
        except OSError as error:
            raise DataError(f"{folder.root / mask}: cannot read: {error.strerror or error}") from error
    return digest.hexdigest()[:16]


def _digest(*modules: torch.nn.Module) -> str:
    """What the frozen part holds: a checkpoint must not go on with another."""
    digest = hashlib.sha256()
    for module in modules:
        for value in module.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


class Frozen(NamedTuple):
    """What encoder, head and class map give for a batch of items, out of any graph."""

    pool5: Tensor  # [P,C5,M,M]
    class_map: Tensor  # [P,C5,M,M], of the max-pooled sigmoid scores times the item's subset (SPEC section 8)
    switches: tuple[Tensor, ...]


@torch.no_grad()
def frozen_plain(model: DecoupledNet, data: Tensor, subset: Tensor) -> Frozen:
    """data ``[P,3,S,S]``, subset ``[P,L]`` through the frozen part of the network as it is."""
    features, head = model.encode(data.contiguous(memory_format=torch.channels_last))
    passes = torch.arange(len(data), device=data.device)
    class_map = model.head.class_map(head, head.max_scores * subset.to(data), passes)
    return Frozen(features.pool5.to(data), class_map.to(data), features.switches)  # as the ops of training want them


@torch.no_grad()
def frozen_fast(part: ImagePart, data: Tensor, subset: Tensor) -> Frozen:
    """The same by the fused ops."""
    encoded = part.encode(data)
    class_map = part.class_maps(encoded, encoded.max_scores * subset.to(encoded.score_map))
    return Frozen(encoded.pool5.to(data), class_map.to(data), encoded.switches)


def frozen_part(model: DecoupledNet, half: bool) -> Callable[[Tensor, Tensor], Frozen]:
    """The frozen part of `model` as a function of data and subset: on the CPU folded once and run by the fused ops."""
    # kernels work in blocks of 32 channels: narrower stages are mostly padding
    if next(model.parameters()).device.type != "cpu" or min(model.config.widths) < 32:
        return functools.partial(frozen_plain, model)
    dtype = torch.bfloat16 if half else torch.float32
    weights = fold_image_part(model, dtype, cpu_isa() or "plain", share=True)  # frozen: it does not change
    return functools.partial(frozen_fast, ImagePart(model.config, weights, dtype, ops))


def training_scores(
    model: DecoupledNet,
    batch: Batch,
    frozen: Callable[[Tensor, Tensor], Frozen] | None = None,
    recompute: bool = False,
) -> Tensor:
    """Seg-scores ``[P,2,S,S]`` of a batch of items, one pass each; `frozen` by :func:`frozen_part`, or the plain."""
    fixed = (frozen or functools.partial(frozen_plain, model))(batch["data"], batch["subset"])
    return trained_scores(model, fixed.pool5, fixed.class_map, fixed.switches, recompute)


def _windows(
    folder: VocFolder,
    split: str,
    recipe: Recipe,
    items: Any,
    out: Path,
    progress: bool,
    resume: bool,
    validated: list[Pair],
) -> tuple[list[str], list[WindowItem]]:
    """The images whose masks are used (unknown, so none, for a finished list), and the windows of them.

    The files of these, and of those `validated` on, are looked at. A run that goes on reads the list it wrote when it
    started: every mask again would take minutes.
    """
    progress = progress and not distributed.rank()
    if items is not None:
        found = read_list(items, folder.num_classes)
        check_data([], folder, out, progress, found, validated)
        return [], found
    if resume and (out / CHECKPOINT).is_file() and (out / ITEMS).is_file() and (out / MASKS).is_file():
        return read_text(out / MASKS).split("\n")[:-1], read_list(out / ITEMS, folder.num_classes)
    if recipe.masks_per_class:
        with distributed.first_before_others():
            ids = few_masks(folder, split, recipe.masks_per_class, recipe.seed, cache_dir=out, progress=progress)
    else:
        ids = list(folder.masked_ids(split))
        if others := len(folder.ids(split)) - len(ids):
            warnings.warn(f"{others} images of split {split!r} have no mask and are not used", stacklevel=4)
    check_data(pairs_of(folder, ids, masks=True), folder, out, progress, validated=validated)
    windows = build_items(
        folder, ids, seed=recipe.seed, windows_per_subset=recipe.windows_per_subset, max_subsets=recipe.max_subsets,
        progress=progress,
    )  # fmt: skip
    return ids, windows


def _write_windows(out: Path, folder: VocFolder, ids: list[str], windows: list[WindowItem]) -> None:
    write_list(out / ITEMS, windows, folder.num_classes)
    if ids:
        write_lines(out / MASKS, ids)


def _reestimate(
    run: Run, items_of: Callable[[Recipe, int], SegmentationItems], frozen: Callable[[Tensor, Tensor], Frozen]
) -> None:
    """101 augmented batches of 16 that no solver step has seen: the stream of another seed."""
    recipe = run.recipe
    plan = dataclasses.replace(recipe, iterations=recipe.bn_batches, batch=recipe.bn_batch, accumulate=1)
    own = range(run.share.rank, recipe.bn_batches, run.share.size)
    samples = (range(number * recipe.bn_batch, (number + 1) * recipe.bn_batch) for number in own)
    reestimate(
        run.model,
        batches_from(items_of(plan, recipe.seed + 1), samples, run.workers),
        lambda batch: training_scores(run.model, {name: value.to(run.device) for name, value in batch.items()}, frozen),
    )


def _validated(folder: VocFolder, split: str | None) -> list[Pair]:
    """The files of the images to validate on; empty where there are none."""
    if split is None or (split == DEFAULT_VAL_SPLIT and split not in folder.splits()):
        return []
    return pairs_of(folder, [name for name in folder.ids(split) if folder.mask_path(name)], masks=True)
