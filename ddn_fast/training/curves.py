"""Loss, learning rate and validation as a picture; matplotlib is an extra (``pip install ddn-fast[plots]``)."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomic

_log = logging.getLogger(__name__)


def draw_curves(entries: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the entries of a run's log.jsonl; returns False (and says so in the log) where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # not pyplot: it has a state, and a backend that is the user's choice
    except ImportError:
        _log.warning("matplotlib is not installed: %s is not drawn (pip install 'ddn-fast[plots]')", path)
        return False
    steps = [entry for entry in entries if entry.get("loss") is not None]
    checks = [entry for entry in entries if entry.get("mean_iu") is not None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot([e["iteration"] for e in steps], [e["loss"] for e in steps], color="tab:blue", label="loss")
    left.set_xlabel("iteration")
    left.set_ylabel("loss")
    right = left.twinx()  # the colour of a line is its axis's
    left.yaxis.label.set_color("tab:blue")
    if checks:
        right.plot([e["iteration"] for e in checks], [e["mean_iu"] for e in checks], "o-", color="tab:green")
        right.set_ylabel("validation mean IU", color="tab:green")
    else:
        right.plot([e["iteration"] for e in steps], [e["lr"] for e in steps], color="tab:orange", alpha=0.6)
        right.set_ylabel("learning rate", color="tab:orange")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
    return True
