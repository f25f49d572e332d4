"""What is looked at before a training run begins, so that it does not end in an error hours later."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import distributed
from ..config import NetConfig
from ..data.check import Pair, check_files, check_items
from ..data.voc import VocFolder
from ..data.windows import WindowItem
from ..errors import ConfigError, InputError
from ..files import alone_in
from .loop import CHECKPOINT
from .recipe import NetworkShape, Recipe


def check_data(
    pairs: Sequence[Pair],
    folder: VocFolder,
    out: Path,
    progress: bool,
    items: Sequence[WindowItem] = (),
    validated: Sequence[Pair] = (),
) -> None:
    """Images trained on, windows of a list, images validated on; where `out` holds a run it has been here, or is
    refused.
    """
    with distributed.first_before_others():
        if not distributed.rank() and not (out / CHECKPOINT).is_file():
            check_items(folder.root, items, folder.num_classes, progress)
            check_files(pairs, folder.num_classes, progress)
            check_files(validated, folder.num_classes, progress, padded=False)


@contextlib.contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """Makes the folder of a run and holds it; OSError, or InputError, where nothing could be written or another run
    writes there.
    """
    with contextlib.ExitStack() as held:
        with distributed.first_before_others():
            if not distributed.rank():
                held.enter_context(alone_in(out))
                weights = out / "weights"
                if weights.exists() and not weights.is_dir():
                    raise InputError(f"{weights}: wanted a folder for the trained network, got a file")
                with tempfile.TemporaryFile(dir=out):
                    pass
        yield


def check_network(recipe: Recipe, config: NetConfig) -> None:
    """ConfigError where a recipe's images are too small for the network that training starts from, or its
    ``[network]`` is another.
    """
    if recipe.resize < config.side:
        raise ConfigError(f"recipe: resize: wanted at least the network's side {config.side}, got {recipe.resize}")
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
