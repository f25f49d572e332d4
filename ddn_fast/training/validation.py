"""Validation on the way: figures by all processes together, and a sheet of masks to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import distributed
from ..data.tags import mask_classes
from ..data.voc import VocFolder
from ..drawing import MARGIN, cell, overlay, sheet, shrunk
from ..evaluate import Counts, Evaluation, count
from ..images import Array
from ..network import DecoupledNet

CELL = 240  # pixels a side
IMAGES = 8


def evaluate(model: DecoupledNet, folder: VocFolder, split: str, *, progress: bool = False) -> Evaluation:
    """:func:`ddn_fast.evaluate.evaluate`, with the same result, each of several processes on its part of the images."""
    part = (distributed.rank(), distributed.size())
    own = count(model, folder, split, part=part, progress=progress)
    device = model.input_like().device

    def moved(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    matrix = distributed.total(moved(own.confusion)).cpu().numpy()
    scores = distributed.gather_rows(moved(own.scores)).cpu().numpy()
    shown = distributed.gather_rows(moved(own.shown.astype(np.uint8))).cpu().numpy().astype(bool)
    return Counts(matrix, scores, shown).figures(model.config.classes)


def chosen_ids(folder: VocFolder, split: str) -> list[str]:
    """Up to IMAGES of the split's images with masks, spread over it; always the same ones."""
    ids = folder.masked_ids(split)
    return [ids[number * len(ids) // IMAGES] for number in range(IMAGES)] if len(ids) > IMAGES else list(ids)


def draw(model: DecoupledNet, folder: VocFolder, ids: Sequence[str]) -> Array:
    """One column an image: the image, its true mask, the mask found; class names lie on the masks."""
    columns = []
    for name, result in zip(ids, model.segment([folder.image_path(name) for name in ids]), strict=True):
        image, truth = folder.pair(name)
        side = CELL - 2 * MARGIN  # first the size, then the text: it stays readable
        small, small_truth = shrunk(image, truth, side)
        _, small_found = shrunk(image, result.mask, side)
        true_names = [(label + 1, folder.classes[label]) for label in mask_classes(truth)]
        found_names = [(folder.classes.index(label) + 1, f"{label} {score:.2f}") for label, score in result.labels]
        columns.append(
            [
                cell(image, name, CELL),
                cell(overlay(small, small_truth, true_names), "truth", CELL),
                cell(overlay(small, small_found, found_names), "found", CELL),
            ]
        )
    return sheet(columns)
