"""One process of tests/test_training_distributed.py: trains cases in its process group; what others write is noted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_training import toy_run
from training_cases import loaded, run_case, trained_part

from ddn_fast import distributed
from ddn_fast.errors import DDNError
from ddn_fast.process_group import joined
from ddn_fast.training.loss import segmentation_loss

voc, out, resumed, saw = map(Path, sys.argv[1:5])
names = sys.argv[5:]
written: list[str] = []


def note(event: str, arguments: Any) -> None:
    """Audit hook: files opened to be written, made, renamed and removed below `out`."""
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    if "part" in str(arguments[0]):  # this program's own
        return
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(str(out)):
        written.append(f"{event} {arguments[0]}")


def main() -> dict[str, Any]:
    """Everything that is claimed of several processes; returns what this one saw."""
    rank, size = distributed.rank(), distributed.size()
    samples = {}
    for name in names:
        run_case(name, voc, out / name)
        samples[name] = loaded.copy()
        loaded.clear()
    if resumed.exists():
        run_case("masks", voc, resumed, resume=True)  # begun by one process
        run_case("masks", voc, out / "stopped", stop=3)  # ended by one process

    low, high = 5 * rank // size, 5 * (rank + 1) // size
    save_file(trained_part(low, high), out / f"part{rank}.safetensors")

    # void pixels: of one process alone, and of all
    scores = torch.zeros(1, 2, 1, 4, dtype=torch.float64, requires_grad=True)
    void, some = torch.full((1, 1, 4), 255), torch.tensor([[[0, 1, 255, 1]]])
    part = segmentation_loss(scores, some if rank == size - 1 else void)
    assert part is not None
    part.backward()
    assert scores.grad is not None
    found = {"part": part.item(), "gradient": scores.grad.abs().sum().item()}
    assert segmentation_loss(scores, void) is None

    # errors that all meet
    errors = []
    toy_run(out / "diverged", [1.0, 2.0, 0.5, 1.5, 0.5, 1.0], batch=6, accumulate=1).train()
    nan = [1.0] * 24 + [float("nan")] + [1.0] * 11  # in the share of the first process of six, iteration 4
    with contextlib.suppress(DDNError):
        toy_run(out / "nan", nan, batch=6, accumulate=1).train()
        errors.append("none")
    dropout = [toy_run(out / "diverged", batch=6, accumulate=1).share.seed(k) for k in (0, 0, 1)]
    try:
        toy_run(out / "diverged", batch=1, accumulate=1)
    except DDNError as error:
        errors.append(str(error))
    # processes that do not have the same before them
    apart = toy_run(out / "apart", batch=6, accumulate=1)
    with torch.no_grad():
        next(apart.model.parameters()).add_(rank)
    apart.train()
    found["weight"] = next(apart.model.parameters()).item()
    other = toy_run(out / "other", batch=6, accumulate=1)
    other.identity = {"data": rank}
    try:
        other.train()
    except DDNError as error:
        errors.append(str(error))
    return found | {"written": written, "samples": samples, "errors": errors, "seeds": dropout}


warnings.simplefilter("ignore")
with joined(lambda: "cpu"):
    sys.addaudithook(note)
    result = main()
    (saw / f"{distributed.rank()}.json").write_text(json.dumps(result))
