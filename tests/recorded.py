"""An engine's runtime that does on the CPU what the one on CUDA does: recordings, padding, batches begun ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ddn_fast.captured import Captured, padded_size
from ddn_fast.runtime import CpuRuntime, Fetched


def poison(tensors: Sequence[Tensor]) -> None:
    """Values that no result may show."""
    for tensor in tensors:
        tensor.fill_(torch.nan if tensor.is_floating_point() else tensor.flatten()[:1].new_tensor(97).item())


class Replays:
    """A recorder whose replays call the function again, by the same tensors, into the same results."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.recorded = self.replayed = 0

    def place(self) -> object:
        """One device, one stream for each thread."""
        return threading.get_ident()

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Results hold poison until replayed."""
        self.recorded += 1
        results = function()
        kept = tree_leaves(results)
        poison(kept)

        def replay() -> None:
            self.replayed += 1
            poison(kept)
            for to, value in zip(kept, tree_leaves(function()), strict=True):
                to.copy_(value)

        return replay, results


class RecordedRuntime(CpuRuntime):
    """Transfers come late and once only; what was fetched too early would be poison."""

    ahead = 1

    def __init__(self, max_passes: int = 5) -> None:
        super().__init__()
        self.recorder = Replays()
        self.max_passes = max_passes
        self.events: list[str] = []

    def captured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """From recordings."""
        return Captured(function, self.recorder)

    def padded(self, count: int) -> int:
        """As for graphs."""
        return padded_size(count)

    def put(self, x: Tensor, like: Tensor) -> Tensor:
        """Noted."""
        self.events.append("put")
        return x.to(like)

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """The values that the tensors have now, given when asked for."""
        number = sum(event.startswith("fetch") for event in self.events)
        self.events.append(f"fetch {number}")
        copies = [tensor.clone() for tensor in tensors]

        def wait() -> list[Tensor]:
            self.events.append(f"wait {number}")
            return copies

        return wait
