"""The rival of ``few_shot.py``: the same network trained end to end on the images that have masks, and on nothing else.

What somebody would do who has these masks and no further tags. It sees the windows, crops and mirror images that
stage 2 sees, and learns two things from each at once: the mask of the window's subset, and which classes the window
shows (as its mask says: without a head that identifies labels nothing could be segmented). Every weight is trained from
the start, encoder and head with the batch normalisation that stage 1 has. There is no stage 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.data import DataLoader

from ddn_fast import ops
from ddn_fast.config import NetConfig
from ddn_fast.data.datasets import SegmentationItems
from ddn_fast.data.voc import VocFolder
from ddn_fast.data.windows import WindowItem, build_items
from ddn_fast.network import DecoupledNet, Head, HeadOutput
from ddn_fast.training.bn import add_batch_norm, fold_batch_norm, reestimate
from ddn_fast.training.classifier import data_identity
from ddn_fast.training.loop import Batch, Run
from ddn_fast.training.loss import classification_loss, segmentation_loss
from ddn_fast.training.recipe import Recipe
from ddn_fast.training.segmenter import training_scores
from ddn_fast.training.solver import build_optimizer
from ddn_fast.training.trained_part import trained_scores

SHOWN = 0.3  # of a class's pixels must lie in a window for it to show the class; with fewer it is not asked


class TaggedItems(SegmentationItems):
    """Stage-2 samples with ``labels`` int8 [L] beside them: 1 shown by the window, 0 absent, -1 cut off."""

    def __init__(
        self, folder: VocFolder, items: Sequence[WindowItem], recipe: Recipe, side: int, seed: int, cache: int
    ) -> None:
        super().__init__(
            folder.root, items, folder.num_classes, samples=recipe.samples, seed=seed, new_side=recipe.resize,
            side=side, cache_bytes=cache,
        )  # fmt: skip
        masks: dict[str, NDArray[np.uint8]] = {}
        rows = []
        for item in items:
            if item.mask not in masks:
                masks = {item.mask: folder.mask(Path(item.image).stem)}  # items of an image stand together
            rows.append(window_tags(masks[item.mask], item, folder.num_classes))
        self.labels = torch.from_numpy(np.stack(rows))  # [N,L]

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        """Sample n of the run."""
        sample = super().__getitem__(n)
        return sample | {"labels": self.labels[sample["index"]]}


def window_tags(mask: NDArray[np.uint8], item: WindowItem, num_classes: int) -> NDArray[np.int8]:
    """``[L]`` int8 tags of a window of a mask ``[H,W]``: 1 if SHOWN of a class's pixels lie in it, -1 fewer, 0 none."""
    x1, y1, x2, y2 = item.window
    inside = mask[max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)]
    here, all_of = (np.bincount(m.ravel(), minlength=256)[1 : num_classes + 1] for m in (inside, mask))
    return np.where(here == 0, 0, np.where(here >= SHOWN * all_of, 1, -1)).astype(np.int8)


def train_masks_alone(
    folder: VocFolder,
    out: Path,
    recipe: Recipe,
    ids: list[str],
    *,
    decoded: int,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 0,
    progress: bool = True,
    cache_bytes: int = 0,
) -> DecoupledNet:
    """Train everything on the windows of `ids`; returns the network.

    recipe   of stage "segmenter", with the ``[network]`` to build
    decoded  the first so many items of each batch go through bridge and decoder, too; all go through encoder and head
    """
    torch.manual_seed(recipe.seed)
    model = DecoupledNet(NetConfig(classes=folder.classes, **recipe.to_dict()["network"]), ops)
    add_batch_norm(model)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    windows = build_items(
        folder, ids, seed=recipe.seed, windows_per_subset=recipe.windows_per_subset, max_subsets=recipe.max_subsets,
        progress=progress,
    )  # fmt: skip
    side = model.config.side
    run = Run(
        recipe=recipe,
        model=model,
        optimizer=build_optimizer([model.encoder, model.head, model.bridge, model.decoder], recipe),
        items=TaggedItems(folder, windows, recipe, side, recipe.seed, cache_bytes),
        loss=lambda batch: joint_loss(model, batch, decoded),
        out=out,
        identity={
            "network": model.config.to_dict(),
            "data": data_identity(folder, "train", [f"{i.image} {i.window} {i.subset}" for i in windows]),
            "decoded": decoded,
        },
        workers=workers,
        progress=progress,
        description="masks alone",
    )
    run.train(resume)
    fold_batch_norm(model)
    model.eval()
    plan = dataclasses.replace(recipe, iterations=recipe.bn_batches, batch=recipe.bn_batch, accumulate=1)
    unseen = TaggedItems(folder, windows, plan, side, recipe.seed + 1, cache_bytes)  # the stream of another seed
    reestimate(
        model,
        DataLoader(unseen, plan.batch, num_workers=workers),
        lambda batch: training_scores(model, {name: value.to(run.device) for name, value in batch.items()}),
    )
    return model.eval().requires_grad_(True)


def joint_loss(model: DecoupledNet, batch: Batch, decoded: int) -> Tensor:
    """Stage 1's loss of the whole batch plus stage 2's of its first `decoded` items."""
    data = batch["data"].contiguous(memory_format=torch.channels_last)
    features = model.encoder(data, model.ops)
    head = model.head(features.pool5)
    tags = classification_loss(head.score_map, batch["labels"])
    first = slice(decoded)
    few = HeadOutput(*(part[first] for part in head))
    maps = (features.pool5[first].to(data), class_map(model, few, batch["subset"][first]).to(data))
    scores = trained_scores(model, *maps, tuple(part[first].contiguous() for part in features.switches))
    masks = segmentation_loss(scores, batch["target"][first])
    return tags if masks is None else tags + masks


def class_map(model: DecoupledNet, head: HeadOutput, subset: Tensor) -> Tensor:
    """The class map (SPEC section 4) of a head that still has its batch normalisation, by the weights it will fold to.

    It is a reading of the head: no gradient goes through it.
    """
    with torch.no_grad():
        pairs: list[Any] = [model.head.fc6, model.head.fc7]
        weights = [folded_weight(*pair) for pair in pairs]
        parts = [SimpleNamespace(weight=weight) for weight in (*weights, model.head.cls_score.weight)]
        folded: Any = SimpleNamespace(**dict(zip(("fc6", "fc7", "cls_score"), parts, strict=True)))
        passes = torch.arange(len(subset), device=subset.device)
        return Head.class_map(folded, head, head.max_scores * subset.to(head.score_map), passes)


def folded_weight(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """What :func:`ddn_fast.training.bn.fold_batch_norm` makes of a convolution's weight now."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, _ = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return weight
