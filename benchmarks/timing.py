"""Honest times: rivals take turns in one process, and a sample in which our threads waited for a core does not count.

Other tenants of a machine and its clock drift by more than what is measured; the ratio of two rivals that took turns
within one process holds. What a CUDA device does is timed by its own events, with its caches cold.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import machine
import torch

Weights = TypeVar("Weights")

WAIT_TOLERANCE = 0.03
COLD_FACTOR = 4  # weights that are taken in turn fill the largest cache this many times

METHOD = {
    "order": "rivals take turns in one process, a slow one in fewer rounds; the first of a round changes",
    "statistic": "median and quartiles of the samples that count; all samples where fewer than three do",
    "rejected": f"samples in which the process's threads waited for a core for more than {WAIT_TOLERANCE:.0%} "
    "of the time (/proc/self/task/*/schedstat)",
}


CUDA_METHOD = {
    "order": METHOD["order"],
    "statistic": "median and quartiles of the samples, by CUDA events",
    "caches": "overwritten before every sample; maps and weights come from memory",
    "queue": "a wait on the device ahead of each sample lets the host enqueue all of it: gaps are the device's own",
}


class HostClock:
    """Milliseconds of a call, and whether they count: not if this process's threads waited for a core meanwhile."""

    def __call__(self, run: Callable[[], object]) -> tuple[float, bool]:
        """Run it once."""
        waited = waiting_ns()
        start = time.perf_counter()
        run()
        ms = 1e3 * (time.perf_counter() - start)
        after = waiting_ns()
        wait_ms = 1e-6 * sum(after[task] - before for task, before in waited.items() if task in after)
        return ms, wait_ms <= WAIT_TOLERANCE * ms


class CudaClock:
    """Milliseconds that a CUDA device takes for what a call enqueues on the current stream, with nothing in its caches.

    lead  cycles that the device waits first; a millisecond is about two million
    """

    def __init__(self, lead: int = 1_000_000) -> None:
        self._lead = lead
        self._flush = torch.empty(4 * machine.cuda_cache_bytes(), dtype=torch.uint8, device="cuda")

    def __call__(self, run: Callable[[], object]) -> tuple[float, bool]:
        """Run it once."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda._sleep(self._lead)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), True


Clock = Callable[[Callable[[], object]], tuple[float, bool]]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one rival: median, quartiles, and how many samples were taken and how many of them count."""

    ms: float
    low: float
    high: float
    clean: int
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded to 0.1 microseconds."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass
class _Record:
    run: Callable[[], object]
    quota: int = 0
    times: list[float] | None = None  # ms of the samples that count
    every: list[float] | None = None  # ms of all samples

    def sample(self, clock: Clock) -> None:
        assert self.times is not None
        assert self.every is not None
        ms, counts = clock(self.run)
        self.every.append(ms)
        if counts:
            self.times.append(ms)

    def due(self, turn: int, rounds: int) -> bool:
        """Whether this rival runs in round `turn`, so that its samples are spread over all rounds."""
        assert self.times is not None
        assert self.every is not None
        if len(self.times) >= self.quota or len(self.every) >= 2 * self.quota:
            return False
        return (turn + 1) * self.quota // rounds > turn * self.quota // rounds

    def timing(self) -> Timing:
        assert self.times is not None
        assert self.every is not None
        used = self.times if len(self.times) >= min(3, self.quota) else self.every
        low, median, high = statistics.quantiles(used, n=4, method="inclusive") if len(used) > 1 else used * 3
        return Timing(median, low, high, len(self.times), len(self.every))


def interleave(
    rivals: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 20.0,
    samples: int = 15,
    least: int = 3,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time each of `rivals`, in turns. They have been called once already: whatever happens only then is over.

    seconds  what all of them together may take; each gets the same part of it for its samples
    samples  how many of one rival are enough
    least    how many it gets however slow it is
    clock    by default HostClock
    """
    clock = clock or HostClock()
    records = {}
    for name, run in rivals.items():
        start = time.perf_counter()
        run()
        cost = time.perf_counter() - start
        quota = max(least, min(samples, int(seconds / len(rivals) / max(cost, 1e-9))))
        records[name] = _Record(run, quota, [], [])
    rounds = max((record.quota for record in records.values()), default=0)
    for turn in range(2 * rounds):
        order = list(records.values())
        shift = turn % len(order)
        for record in order[shift:] + order[:shift]:
            if record.due(turn, rounds):
                record.sample(clock)
    return {name: record.timing() for name, record in records.items()}


def waiting_ns() -> dict[str, int]:
    """Nanoseconds that each thread of this process has waited for a core; nothing where the system does not tell."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[path.parent.name] = int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that has just ended
            continue
    return found


class Cold(Generic[Weights]):
    """Equal weights in several places, taken in turn: each call finds them outside the caches, as the network does.

    `make` gives one more copy of them, `size` bytes large. There are enough to fill the largest cache COLD_FACTOR
    times, as far as an eighth of the memory still free allows; `cold` says whether that is so. One does where the
    clock empties the caches (`flushed`).
    """

    def __init__(self, make: Callable[[], Weights], size: int, quick: bool = False, flushed: bool = False) -> None:
        if flushed:
            self.cold, self._copies, self._turn = True, [make()], 0
            return
        wanted = max(2, math.ceil(COLD_FACTOR * machine.last_level_bytes() / max(size, 1)))
        allowed = 2 if quick else max(1, machine.available_bytes() // 8 // max(size, 1))
        self.cold = wanted <= allowed
        self._copies = [make() for _ in range(min(wanted, allowed))]
        self._turn = 0

    def __call__(self) -> Weights:
        """The copy that was used longest ago."""
        self._turn += 1
        return self._copies[self._turn % len(self._copies)]
