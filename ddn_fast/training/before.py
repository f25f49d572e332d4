"""What is looked at before a training run begins, so that it does not end in an error hours later."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from .. import distributed
from ..config import NetConfig
from ..data.check import Pair, check_files
from ..data.voc import VocFolder
from ..errors import ConfigError
from .loop import CHECKPOINT
from .recipe import NetworkShape, Recipe


def check_data(pairs: Sequence[Pair], folder: VocFolder, out: Path, progress: bool) -> None:
    """:func:`check_files` before a run begins; where `out` holds one it goes on, and has been there, or is refused."""
    with distributed.first_before_others():
        if not distributed.rank() and not (out / CHECKPOINT).is_file():
            check_files(pairs, folder.num_classes, progress)


def check_network(recipe: Recipe, config: NetConfig) -> None:
    """ConfigError where a recipe's ``[network]`` is not the network that training starts from."""
    if recipe.network == NetworkShape():  # the recipe has none
        return
    wanted = dataclasses.asdict(recipe.network)
    here = {name: getattr(config, name) for name in wanted}
    if wanted != here:
        told = ", ".join(f"{name} {wanted[name]}, not {here[name]}" for name in wanted if wanted[name] != here[name])
        raise ConfigError(f"recipe: [network]: wants {told} of the network to start from, which keeps its own shape")


def check_stage(recipe: Recipe, stage: str) -> None:
    """ConfigError where a recipe is of the other stage."""
    if recipe.stage != stage:
        raise ConfigError(f"recipe: stage: wanted {stage!r}, got {recipe.stage!r}")
