"""Stage 1: the encoder and the head, from image-level labels (SPEC section 8)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import distributed, ops
from ..config import NetConfig
from ..data.check import pairs_of
from ..data.datasets import ClassificationItems
from ..data.tags import PRESENT, read_tags
from ..data.voc import VocFolder
from ..errors import DataError, WeightsError
from ..network import DecoupledNet
from .before import check_data, check_network, check_stage, own_folder
from .bn import add_batch_norm, fold_batch_norm
from .loop import Batch, Run, default_workers
from .loss import classification_loss
from .recipe import Recipe
from .solver import build_optimizer, train_only, trained_modules


def train_classifier(
    folder: VocFolder,
    out: str | Path,
    recipe: Recipe,
    *,
    init: DecoupledNet | None = None,
    split: str | None = None,
    tags: str | Path = "auto",
    ids: list[str] | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: bool = True,
    cache_bytes: int = 0,
    tensorboard: bool = False,
) -> DecoupledNet:
    """Train encoder and head, write ``out/weights`` (and log, curves, checkpoint beside it), return the network.

    init      where to start (VGG-16 weights, see :func:`ddn_fast.vgg.load_vgg16`); without it a fresh network of the
              recipe's ``[network]`` shape
    split     default ``Main/train``, where a VOC folder lists the images with tags, else ``train``
    ids       images to train on; default all of `split`
    tags      as in :func:`ddn_fast.data.tags.read_tags`
    workers   processes that load data, of each training process; from Python 3.14 on a script that has them does its
              work below ``if __name__ == "__main__":``, as they begin by importing it
    cache_bytes  of decoded images kept in memory, by each worker
    tensorboard  whether to write ``out/tensorboard``, too

    Every image is decoded once before a run begins: DataError names all that cannot be.
    Several processes that share a process group train one network together; the first of them writes.
    """
    check_stage(recipe, "classifier")
    torch.manual_seed(recipe.seed)
    model = init or DecoupledNet(NetConfig(classes=folder.classes, **recipe.to_dict()["network"]))
    check_classes(model, folder)
    check_network(recipe, model.config)
    model.ops = ops
    if recipe.batch_norm:
        add_batch_norm(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules = trained_modules(model, "classifier")
    train_only(model, modules)
    if split is None:
        split = "Main/train" if (folder.root / "ImageSets/Main/train.txt").is_file() else "train"
    chosen = list(ids) if ids is not None else list(folder.ids(split))
    shows_progress = progress and not distributed.rank()
    with own_folder(Path(out)):
        with distributed.first_before_others():
            labels = read_tags(folder, split, tags, progress=shows_progress, cache_dir=out)
        _check_tags(folder, [labels[name] for name in chosen])
        check_data(pairs_of(folder, chosen, masks=False), folder, Path(out), shows_progress)
        items = ClassificationItems(
            folder, chosen, labels, samples=recipe.samples, seed=recipe.seed, new_side=recipe.resize,
            side=model.config.side, cache_bytes=cache_bytes,
        )  # fmt: skip
        run = Run(
            recipe=recipe,
            model=model,
            optimizer=build_optimizer(modules, recipe, last_layer=model.head.cls_score),
            items=items,
            loss=lambda batch: _loss(model, recipe, batch),
            out=Path(out),
            identity={
                "network": model.config.to_dict(),
                "data": data_identity(folder, split, [f"{name} {labels[name].tolist()}" for name in chosen]),
            },
            workers=default_workers() if workers is None else workers,
            progress=progress,
            tensorboard=tensorboard,
            description="stage 1: classifier",
        )
        run.train(resume)
        if recipe.batch_norm:
            fold_batch_norm(model)
        model.eval().requires_grad_(True)
        run.finish({"stage": "classifier", "recipe": recipe.to_dict()})
    return model


def _check_tags(folder: VocFolder, labels: Sequence[NDArray[np.int8]]) -> None:
    """DataError where no image shows any class; a warning that names those which none shows."""
    if not labels:
        return  # is told elsewhere
    shown = (np.stack(labels) == PRESENT).any(0)
    if not shown.any():
        raise DataError(
            f"{folder.root}: by the tags of all {len(labels)} images no class is there; in masks 0 is background, "
            "255 void, 1 the first class"
        )
    if missing := [name for name, there in zip(folder.classes, shown, strict=True) if not there]:
        warnings.warn(f"no image shows {', '.join(missing)}: the network cannot learn that", stacklevel=3)


def _loss(model: DecoupledNet, recipe: Recipe, batch: Batch) -> Tensor:
    data = batch["data"].contiguous(memory_format=torch.channels_last)
    head = model.head(model.encoder(data, model.ops).pool5, recipe.dropout)
    return classification_loss(head.score_map, batch["labels"])


def check_classes(model: DecoupledNet, folder: VocFolder) -> None:
    """The network's classes must be the folder's, in the same order; WeightsError names both."""
    if model.config.classes != tuple(folder.classes):
        raise WeightsError(
            f"{folder.root}: the network knows {list(model.config.classes)}, the folder {list(folder.classes)}; "
            "`ddn-fast convert --classes` names those of a network to start from"
        )


def data_identity(folder: VocFolder, split: str, items: list[str]) -> dict[str, Any]:
    """What two runs on the same data agree on; `items` says of each what it shows. Paths may differ."""
    digest = hashlib.sha256("\n".join(items).encode()).hexdigest()[:16]
    return {"classes": list(folder.classes), "split": split, "items": len(items), "sha256": digest}
