"""The training loop that both stages share: steps, progress, log, checkpoints, resuming.

Of several processes each runs the loop on its share; the first alone shows progress and writes files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .. import _C, distributed, info, weights
from ..errors import CheckpointError, DataError, DDNError, DistributedError, DivergedError, InputError
from ..files import remove_leftovers, write_atomic
from ..images import Array, save_image
from ..network import DecoupledNet
from .board import FOLDER as BOARD
from .board import Board, check_tensorboard
from .checkpoint import load_checkpoint, save_checkpoint
from .curves import draw_curves
from .recipe import Recipe
from .share import Share
from .solver import MomentumSGD, set_learning_rate

Batch = dict[str, Tensor]
CHECKPOINT, LOG, CURVES = "checkpoint.safetensors", "log.jsonl", "curves.png"
DRAW_EVERY = 60.0  # seconds, at least: a picture takes half of one


@dataclass
class Run:
    """One training run in one folder.

    `loss` maps a batch to a scalar, or None where the batch says nothing (all void); of several processes that share a
    batch each gives its part of the sum. `validate` gets the iteration, in every process, and adds to the log.
    `identity` holds, beside the recipe, what a checkpoint must agree on: the network and the data. `on_start` is called
    once the folder is known to be this run's, to write files of its own there.
    """

    recipe: Recipe
    model: DecoupledNet
    optimizer: torch.optim.Optimizer
    items: Dataset[Batch]
    loss: Callable[[Batch], Tensor | None]
    out: Path
    identity: dict[str, Any]
    validate: Callable[[int], object] | None = None
    on_start: Callable[[], None] | None = None
    workers: int = 0
    progress: bool = True
    tensorboard: bool = False
    description: str = "training"
    log: list[dict[str, Any]] = field(default_factory=list)
    window: list[float] = field(default_factory=list)  # losses since the last entry of the log

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def half(self) -> bool:
        """Whether convolutions run in bfloat16: asked for, or "auto" on a device with instructions for it."""
        if self.recipe.precision == "auto":
            return has_bfloat16(self.device)
        return self.recipe.precision == "bfloat16"

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.share.rank == 0

    @property
    def shows_progress(self) -> bool:
        """Whether it draws bars."""
        return self.progress and self.writes

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"workers: wanted 0 or more, got {self.workers}")
        if self.device.type == "cuda" and not _C.build_info()["cuda_archs"]:
            raise InputError(
                f"device {self.device}: ddn-fast was built without CUDA kernels; rebuild it where nvcc is found "
                "(DDN_CUDA=ON)"
            )
        if self.tensorboard:
            check_tensorboard()
        self.share = Share.own(self.recipe)
        self._board: Board | None = None
        self._drawn = time.monotonic()

    def train(self, resume: bool = False) -> None:
        """Run from the start, or with `resume` from the folder's checkpoint if there is one.

        A folder that holds another run's checkpoint is refused, never overwritten. Raises DivergedError on a loss that
        is not finite, CheckpointError where the checkpoint belongs to another recipe, network or dataset.
        """
        start = self._start(resume)
        if start >= self.recipe.iterations:
            return
        batches = batches_from(self.items, self.share.samples(start), self.workers)
        bar = tqdm(
            total=self.recipe.iterations, initial=start, desc=self.description, unit="it", mininterval=0.5,
            dynamic_ncols=True, disable=not self.shows_progress,
        )  # fmt: skip
        clock, timed = time.perf_counter(), start
        with bar, self._without_gradients():
            for iteration in range(start, self.recipe.iterations):
                self.window.append(self._step(iteration, batches))
                done = iteration + 1
                last = done == self.recipe.iterations
                bar.update()
                if done % self.recipe.log_every == 0 or last:
                    now = time.perf_counter()
                    self._record(bar, done, (done - timed) / (now - clock))
                    clock, timed = now, done
                if self.validate and _due(done, self.recipe.validate_every) and not last:
                    self.validate(done)
                    clock, timed = time.perf_counter(), done
                if _due(done, self.recipe.checkpoint_every) or last:
                    self.checkpoint(done)

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write ``out/weights`` and the last curves."""
        if self.writes:
            weights.save(self.model, self.out / "weights", metadata)
            draw_curves(self.log, self.out / CURVES)

    def _without_gradients(self) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients are not held beside the momentum, where the solver can do so and one process trains."""
        if self.share.size == 1 and isinstance(self.optimizer, MomentumSGD):
            return self.optimizer.absorbing()
        return contextlib.nullcontext()

    def checkpoint(self, iteration: int) -> None:
        """Write the state after `iteration` solver steps; DivergedError, and nothing written, where a weight is NaN."""
        for name, value in self.model.named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise DivergedError(self._diverged(iteration - 1, f"{name} holds values that are not finite"))
        if not self.writes:
            return
        state = {"iteration": iteration, "log": self.log, "window": self.window, **self._expected()}
        save_checkpoint(self.out / CHECKPOINT, self.model, self.optimizer, state)
        if time.monotonic() - self._drawn >= DRAW_EVERY:
            draw_curves(self.log, self.out / CURVES)
            self._drawn = time.monotonic()

    def _start(self, resume: bool) -> int:
        checkpoint, start = self.out / CHECKPOINT, 0
        if checkpoint.exists():
            if not resume:
                raise CheckpointError(f"{self.out}: already holds a run; resume it or name another folder")
            state = load_checkpoint(checkpoint, self.model, self.optimizer, self._expected())
            self.log, self.window = list(state.get("log", [])), list(state.get("window", []))
            start = int(state["iteration"])
        self._check_that_processes_agree(start)
        if self.writes:
            self.out.mkdir(parents=True, exist_ok=True)
            for folder in (self.out, *(path for path in self.out.iterdir() if path.is_dir())):
                remove_leftovers(folder)
            if self.on_start:
                self.on_start()
            self._write_log()
            if self.tensorboard:
                self._board = Board(self.out / BOARD, start + 1)
        return start

    def _check_that_processes_agree(self, start: int) -> None:
        """DistributedError unless all have the same run before them; then the first one's weights go to all."""
        if self.share.size == 1:
            return
        digest = hashlib.sha256(json.dumps(self._expected(), sort_keys=True).encode()).digest()
        own = torch.tensor([start, int.from_bytes(digest[:7], "little")], device=self.device)
        first, *others = distributed.gather_rows(own[None]).tolist()
        for rank, other in enumerate(others, 1):
            if other != first:
                raise DistributedError(
                    f"{self.out}: process 0 starts at iteration {first[0]} and process {rank} at {other[0]}"
                    f"{'' if other[0] != first[0] else ', of another recipe, network or dataset'}; "
                    "all must see the same files"
                )
        distributed.copy_from_first(self.model.state_dict().values())

    def _expected(self) -> dict[str, Any]:
        return {"recipe": self.recipe.to_dict(), **self.identity}

    def _step(self, iteration: int, batches: Iterator[Batch]) -> float:
        """One solver step; returns the mean loss of its sub-batches. DivergedError leaves the weights as they were."""
        recipe, share = self.recipe, self.share
        set_learning_rate(self.optimizer, recipe.lr_at(iteration))
        self.optimizer.zero_grad(set_to_none=True)
        if share.size > 1:
            torch.manual_seed(share.seed(iteration))
        found = torch.zeros(2, recipe.accumulate, dtype=torch.float64, device=self.device)  # loss, whether there is one
        with distributed.alone() if share.whole else contextlib.nullcontext():
            for number in share.sub_batches:
                batch = next(batches)
                batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    loss = self.loss(batch)
                if loss is not None:
                    loss.backward()
                    found[0, number], found[1, number] = loss.detach(), 1
        losses, counted = distributed.total(found).tolist()
        known = [loss for loss, count in zip(losses, counted, strict=True) if count]
        if (wrong := next((loss for loss in known if not math.isfinite(loss)), None)) is not None:
            raise DivergedError(self._diverged(iteration, f"the loss is {wrong}"))
        distributed.sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.optimizer.step()
        return sum(known) / len(known) if known else math.nan

    def _diverged(self, iteration: int, what: str) -> str:
        kept = f"the last checkpoint in {self.out} is intact; " if (self.out / CHECKPOINT).exists() else ""
        return f"iteration {iteration}: {what}; {kept}a lower lr than {self.recipe.lr} may help"

    def _record(self, bar: tqdm[Any], done: int, steps_per_second: float) -> None:
        known = [loss for loss in self.window if math.isfinite(loss)]
        self.window = []
        entry = {
            "iteration": done,
            "loss": sum(known) / len(known) if known else None,
            "lr": self.recipe.lr_at(done - 1),
            "images_per_second": round(steps_per_second * self.recipe.batch * self.recipe.accumulate, 2),
        }
        shown = "all void" if entry["loss"] is None else f"{entry['loss']:.4f}"
        bar.set_postfix_str(f"loss {shown}, lr {entry['lr']:.2g}, {entry['images_per_second']:.0f} images/s")
        self.add(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """One more line of the log."""
        self.log.append(entry)
        if not self.writes:
            return
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board:
            self._board.add(entry)

    def picture(self, name: str, image: Array, iteration: int) -> None:
        """Keep an image ``[H,W,3]`` uint8 RGB as ``NAME/ITERATION.png``; only where this process :attr:`writes`."""
        (self.out / name).mkdir(exist_ok=True)
        save_image(image, self.out / name / f"{iteration:06d}.png")
        if self._board:
            self._board.picture(name, image, iteration)

    def _write_log(self) -> None:
        """The log up to the checkpoint: lines of a run that was killed later are lived again."""
        write_atomic(self.out / LOG, "".join(json.dumps(entry) + "\n" for entry in self.log).encode())


def batches_from(items: Dataset[Batch], samples: Iterable[range], workers: int) -> Iterator[Batch]:
    """A batch for each range of `samples`: sample n of a run is item n, so nothing drops or repeats."""
    loader: DataLoader[Any] = DataLoader(
        items,
        batch_sampler=samples,  # type: ignore[arg-type]  # iterated once, and only iterated
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the default one would be drawn from at each start, and dropout after it differ
    )
    # OpenCV's thread pool does not survive a fork, where that starts a worker: without one there is nothing to survive
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return _named(iter(loader))
    finally:
        cv2.setNumThreads(threads)


def _named(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; an error of ours from a loader's process without the traceback that it comes in, and what the
    system does to such a process as one of ours.
    """
    try:
        yield from batches
    except DDNError as error:
        raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
    except RuntimeError as error:
        told = str(error).split("\n")[0]
        if re.search(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", str(error)):
            raise DataError(f"a process that loads images has ended, for want of memory perhaps: {told}") from error
        if re.search(r"shared memory|\bshm\b", str(error)):
            last = str(error).strip().split("\n")[-1]
            raise DataError(
                f"no room for batches in /dev/shm: give it more (docker --shm-size), or take --workers 0: {last}"
            ) from error
        raise


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = _C.cpu_features()
    return features["avx512_bf16"] or features["amx_bf16"]


def default_workers() -> int:
    """Loader processes of this process: one core is left to the network where there are few."""
    return max(1, min(8, info.cores() // distributed.local_size() - 1))


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
