"""Figures and pictures of a run for TensorBoard, an extra (``pip install 'ddn-fast[tensorboard]'``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images import Array

FOLDER = "tensorboard"
SCALARS = ("loss", "lr", "images_per_second", "mean_iu")


def check_tensorboard() -> None:
    """InputError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard: wanted the package of that name, which is not installed here: "
                         "pip install 'ddn-fast[tensorboard]'")  # fmt: skip


class Board:
    """Event files in a folder; what an earlier run wrote there from iteration `start` on is taken back."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard

        self._writer: Any = SummaryWriter(str(folder), purge_step=start)

    def add(self, entry: dict[str, Any]) -> None:
        """The figures of an entry of a run's log."""
        for name in SCALARS:
            if entry.get(name) is not None:
                self._writer.add_scalar(name, entry[name], entry["iteration"])
        self._writer.flush()

    def picture(self, name: str, image: Array, iteration: int) -> None:
        """An image ``[H,W,3]`` uint8 RGB."""
        self._writer.add_image(name, image, iteration, dataformats="HWC")
        self._writer.flush()
