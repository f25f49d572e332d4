"""in_order: a function of many items by threads, whose results keep their order and whose number stays small."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ddn_fast.threads import in_order


def noted(count: int, drawn: list[int], seconds: float = 0.0) -> Iterator[int]:
    """0 .. count - 1, each noted as it is drawn; the next one comes after so many seconds."""
    for item in range(count):
        drawn.append(item)
        yield item
        time.sleep(seconds)


def test_results_come_in_order_however_long_each_takes() -> None:
    last_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 3:
            last_is_done.set()
        elif item == 0:
            assert last_is_done.wait(20)
        return 10 * item

    assert list(in_order(work, range(4), threads=2, ahead=4)) == [0, 10, 20, 30]


def test_no_more_than_ahead_items_begin_before_a_result_is_taken() -> None:
    drawn: list[int] = []
    results = in_order(abs, noted(100, drawn), threads=2, ahead=5)
    assert next(results) == 0
    assert drawn == list(range(6))
    assert next(results) == 1
    assert drawn == list(range(7))
    results.close()
    assert drawn == list(range(7))


def test_early_results_do_not_wait_for_others() -> None:
    drawn: list[int] = []
    results = in_order(abs, noted(1000, drawn, 0.01), threads=2, ahead=1000, early=True)
    assert next(results) == 0
    assert len(drawn) < 500
    results.close()


def test_an_exception_comes_in_its_place_and_ends_the_rest() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    results = in_order(work, range(100), threads=1, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert len(begun) < 10
    assert list(results) == []


def test_an_exception_of_the_items_comes_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    for early in (False, True):
        results = in_order(abs, items(), threads=2, ahead=10, early=early)
        found = [next(results) for _ in range(3)]
        with pytest.raises(KeyboardInterrupt):
            next(results)
        assert found == [0, 1, 2]


def closed_while_item_1_runs(items: int, ahead: int) -> tuple[list[int], list[int]]:
    """What has begun and what has ended when a generator of one thread is closed."""
    begun: list[int] = []
    ended: list[int] = []
    runs, release = threading.Event(), threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            runs.set()
            assert release.wait(20)
        ended.append(item)
        return item

    results = in_order(work, range(items), threads=1, ahead=ahead)
    assert next(results) == 0
    assert runs.wait(20)
    threading.Timer(0.3, release.set).start()
    results.close()
    return begun, ended


def test_closing_waits_for_what_has_begun() -> None:
    assert 1 in closed_while_item_1_runs(3, ahead=1)[1]


def test_closing_leaves_out_what_has_not_begun() -> None:
    assert closed_while_item_1_runs(10, ahead=5)[0] == [0, 1]
