"""Work on images beside the network: a function of many items, by threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int, early: bool = False
) -> Generator[Result, None, None]:
    """``function(item)`` of each item, in order, by that many threads.

    Whoever draws results draws the items: a result comes when `ahead` more items have begun, or, with `early`, as soon
    as it is there. An exception comes where its result would; what has not begun by then, or when the generator is
    closed, never does, and what has begun is waited for.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ddn-images")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while len(waiting) > ahead or (early and waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
