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

    Whoever draws results draws the items: a result is given when `ahead` more items have been drawn, or, with `early`,
    when one more has and it is there. An exception of `function` comes where its result would; what no thread has begun
    by then, or when the generator is closed, is left out, and what one has begun is waited for. An exception of `items`
    comes after the results of all that were drawn before it.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ddn-images")
    failure: BaseException | None = None
    remaining = iter(items)
    try:
        while True:
            try:
                item = next(remaining)
            except StopIteration:
                break
            except BaseException as error:  # Ctrl-C, too: what was drawn before it is nearly done
                failure = error
                break
            waiting.append(pool.submit(function, item))
            while len(waiting) > ahead or (early and waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # which holds this frame
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
