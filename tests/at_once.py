"""How many threads are in a place at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence


class Place:
    """Whoever is inside stays long enough for others to come in, where nothing keeps them out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self._most = 0

    def stay(self) -> None:
        """Be inside for a moment."""
        with self._lock:
            self._inside += 1
            self._most = max(self._most, self._inside)
        time.sleep(0.05)
        with self._lock:
            self._inside -= 1

    def most_of(self, calls: Sequence[Callable[[], object]]) -> int:
        """How many were inside at once, at most, of calls that begin together, each in a thread."""
        self._most = 0
        barrier = threading.Barrier(len(calls))

        def run(call: Callable[[], object]) -> None:
            barrier.wait(20)
            call()

        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return self._most
