"""Recorded functions give what the functions give, and fall back where nothing can be recorded."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from recorded import Replays
from torch import Tensor

from ddn_fast.captured import Captured, CudaGraphs, copy_all, padded_size


class Pair(NamedTuple):
    a: Tensor
    b: tuple[Tensor, ...]


def work(x: Tensor, pair: Pair) -> Pair:
    return Pair(x * 2 + pair.a, tuple(b.flip(0) for b in pair.b))


def arguments(rows: int, seed: int = 0) -> tuple[Tensor, Pair]:
    generator = torch.Generator().manual_seed(seed)
    x, a = torch.randn(2, rows, 3, generator=generator)
    return x, Pair(a, (torch.arange(rows) + seed, torch.full((rows, 2), seed, dtype=torch.uint8)))


def equal(got: Pair, wanted: Pair) -> None:
    assert type(got) is type(wanted)
    for g, w in zip((got.a, *got.b), (wanted.a, *wanted.b), strict=True):
        assert torch.equal(g, w)


def test_each_shape_is_recorded_once_and_gives_what_the_function_gives() -> None:
    recorder = Replays()
    captured = Captured(work, recorder)
    for rows in (4, 5, 4, 5, 4):
        for seed in range(3):
            equal(captured(*arguments(rows, seed)), work(*arguments(rows, seed)))
    assert (recorder.recorded, recorder.replayed) == (2, 15)
    x, pair = arguments(4)
    equal(captured(x.double(), pair), work(x.double(), pair))
    assert recorder.recorded == 3


def test_later_calls_change_no_earlier_result_and_no_argument() -> None:
    captured = Captured(work, Replays())
    given = [arguments(6, seed) for seed in range(4)]
    found = [captured(*one) for one in given]
    for seed, one in enumerate(found):
        equal(one, work(*arguments(6, seed)))
        assert torch.equal(given[seed][0], arguments(6, seed)[0])


def test_arguments_of_another_form_are_recorded_anew() -> None:
    recorder = Replays()
    captured = Captured(lambda x, y: x[0] - y[0], recorder)
    a, b, c = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        assert torch.equal(captured((a, b), c), a - c[0])
        assert torch.equal(captured(a, (b, c)), a[0] - b)
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_each_thread_of_a_stream_of_its_own_has_its_own_recordings() -> None:
    recorder = Replays()
    captured = Captured(work, recorder)
    equal(captured(*arguments(3)), work(*arguments(3)))
    other = threading.Thread(target=captured, args=arguments(3))
    other.start()
    other.join()
    equal(captured(*arguments(3)), work(*arguments(3)))
    assert (recorder.recorded, recorder.replayed) == (2, 3)


def test_arguments_may_have_any_strides() -> None:
    captured = Captured(work, Replays())
    x, pair = arguments(4)
    for view in (x, x.T.contiguous().T, x.repeat_interleave(2, 0)[::2], x[:1].expand(4, 3)):
        equal(captured(view, pair), work(view, pair))


def test_inference_mode_may_come_and_go() -> None:
    captured = Captured(work, Replays())
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            equal(captured(*arguments(4, 1)), work(*arguments(4, 1)))


def test_nothing_is_recorded_of_nothing() -> None:
    recorder = Replays()
    equal(Captured(work, recorder)(*arguments(0)), work(*arguments(0)))
    assert recorder.recorded == 0


def test_shapes_beyond_the_limit_of_a_place_run_as_they_are() -> None:
    recorder = Replays()
    captured = Captured(work, recorder, limit=2)
    for rows in (1, 2, 3, 4, 1):
        equal(captured(*arguments(rows)), work(*arguments(rows)))
    assert (recorder.recorded, recorder.replayed) == (2, 3)
    recorder.place = lambda: "another"  # type: ignore[method-assign]
    for rows in (3, 4, 5):
        equal(captured(*arguments(rows)), work(*arguments(rows)))
    assert (recorder.recorded, recorder.replayed) == (4, 5)


class Fails(Replays):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def record(self, function: Callable[[], Any]) -> Any:
        if self.times:
            self.times -= 1
            self.recorded += 1
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().record(function)


def test_where_recording_fails_a_warning_is_logged_and_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Fails(100)
    captured = Captured(work, recorder)
    with caplog.at_level(logging.WARNING):
        for rows in (3, 3, 4, 5, 3):
            equal(captured(*arguments(rows)), work(*arguments(rows)))
    assert recorder.recorded == 3  # and no more
    said = [record.getMessage() for record in caplog.records]
    assert (
        said[:2]
        == ["work is not recorded and runs as it is this time: operation not permitted when stream is capturing"] * 2
    )
    assert said[2:] == [said[0].replace("this time", "from now on")]


def test_a_recording_that_failed_once_is_made_at_the_next_call() -> None:
    recorder = Fails(1)
    captured = Captured(work, recorder)
    for _ in range(3):
        equal(captured(*arguments(3)), work(*arguments(3)))
    assert (recorder.recorded, recorder.replayed) == (2, 2)


def recordings(captured: Captured) -> int:
    return sum(map(len, captured._recordings.values()))


class Allocator:
    """Of torch.cuda what CudaGraphs takes, and torch's rules: a pool being recorded to is recorded to by no other, and
    whoever draws random numbers is refused while something is recorded.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded_to: set[int] = set()
        self.pools = 0
        self.refuses_draws = False
        for name in ("current_stream", "device", "stream", "Stream", "graph_pool_handle", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda _cycles: None)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    def current_stream(self, _device: object = None) -> Any:
        return SimpleNamespace(cuda_stream=7)

    def device(self, _device: object) -> Any:
        return contextlib.nullcontext()

    stream = device

    def Stream(self, _device: object, priority: int) -> Any:  # noqa: N802
        assert priority == -1  # of a pool that nobody else takes streams from
        return self.current_stream()

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: None)

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    @contextlib.contextmanager
    def graph(self, _graph: Any, pool: int = 0, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        if pool in self.recorded_to:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.recorded_to.add(pool)
        self.refuses_draws = True
        try:
            yield
        except RuntimeError as error:  # before the allocator is told
            raise RuntimeError("operation failed due to a previous error during capture") from error
        self.recorded_to.remove(pool)
        self.refuses_draws = False

    def end(self, _device: int | None, pool: int) -> None:
        if pool not in self.recorded_to:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recorded_to.remove(pool)


def test_after_a_recording_that_the_device_refused_others_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    calls = []

    def waits(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) % 2 == 0 and len(calls) < 6:
            raise RuntimeError("operation not permitted when stream is capturing")
        return x + 1

    graphs = CudaGraphs(torch.device("cuda", 0))
    refused, good = Captured(waits, graphs), Captured(lambda x: x * 2, graphs)
    for _ in range(2):
        assert torch.equal(refused(torch.ones(2)), torch.full((2,), 2.0))
        assert not allocator.refuses_draws
        assert torch.equal(good(torch.ones(2)), torch.full((2,), 2.0))
    assert (recordings(refused), recordings(good)) == (0, 1)
    assert not allocator.recorded_to


def test_recordings_of_one_place_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    graphs = CudaGraphs(torch.device("cuda", 0))
    for captured in (Captured(lambda x: x + 1, graphs), Captured(lambda x: x * 2, graphs)):
        for rows in (2, 3):
            captured(torch.ones(rows))
        assert recordings(captured) == 2
    assert allocator.pools == 1


def test_an_error_of_the_function_itself_is_raised() -> None:
    captured = Captured(work, Replays())
    x, pair = arguments(3)
    with pytest.raises(RuntimeError, match="size of tensor"):
        captured(x[:2], pair)
    with pytest.raises(TypeError):
        captured(x)


class OnePlace(Replays):
    """All threads on one stream."""

    def place(self) -> object:
        return "here"


def test_no_other_thread_replays_before_results_are_copied_out() -> None:
    """Not even another function of the recorder: recordings share memory."""
    waiting: list[threading.Thread] = []

    class Interrupted(OnePlace):
        def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            replay, results = super().record(function)

            def replay_and_meet_another() -> None:
                replay()
                if not waiting:
                    waiting.append(threading.Thread(target=other, args=arguments(3, 1)))
                    waiting[0].start()
                    waiting[0].join(0.2)
                    assert waiting[0].is_alive()

            return replay_and_meet_another, results

    recorder = Interrupted()
    captured, other = Captured(work, recorder), Captured(work, recorder)
    equal(captured(*arguments(3)), work(*arguments(3)))
    waiting[0].join()
    assert recorder.replayed == 2


def test_threads_share_recordings_of_one_place() -> None:
    recorder = OnePlace()
    captured = Captured(work, recorder)
    problems: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            for turn in range(50):
                equal(captured(*arguments(2 + turn % 3, seed)), work(*arguments(2 + turn % 3, seed)))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert (recorder.recorded, recorder.replayed) == (3, 200)


def test_sizes_are_few_and_at_most_a_quarter_more() -> None:
    sizes = [padded_size(count) for count in range(1000)]
    assert sizes[:18] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16, 20]
    assert all(count <= size <= max(count + count // 4, count) for count, size in enumerate(sizes) if count)
    assert sizes == sorted(sizes)
    assert all(padded_size(size) == size for size in sizes)
    assert len(set(sizes[:65])) <= 21


def test_copies_go_to_their_own_whatever_the_order_of_dtypes() -> None:
    given = [torch.arange(3.0), torch.arange(4), torch.arange(5.0) + 9, torch.ones(2, dtype=torch.uint8)]
    to = [torch.zeros_like(tensor) for tensor in given]
    copy_all(to, given)
    assert all(torch.equal(a, b) for a, b in zip(to, given, strict=True))


# on a GPU


@pytest.mark.gpu
def test_graphs_give_what_the_function_gives(cuda: str) -> None:
    recorder = CudaGraphs(torch.device("cuda", torch.cuda.device_count() - 1))
    captured = Captured(work, recorder)
    on_cuda = [torch.utils._pytree.tree_map(lambda t: t.to(recorder._device), arguments(6, seed)) for seed in range(5)]
    for _ in range(3):
        found = [captured(*one) for one in on_cuda]
        for one, got in zip(on_cuda, found, strict=True):
            equal(got, work(*one))
    assert recordings(captured) == 1


@pytest.mark.gpu
def test_streams_have_graphs_of_their_own(cuda: str) -> None:
    captured = Captured(work, CudaGraphs(torch.device(cuda, 0)))
    problems: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                one = torch.utils._pytree.tree_map(lambda t: t.to(cuda), arguments(50000, seed))
                wanted = work(*one)
                for _ in range(30):
                    equal(captured(*one), wanted)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.gpu
def test_streams_of_one_thread_run_at_the_same_time(cuda: str) -> None:
    """The vendor library's sums of a product cut along its inputs lie in a workspace of the stream of recording."""
    weight = torch.randn(8192, 512, device=cuda)
    captured = Captured(lambda x: x @ weight, CudaGraphs(torch.device(cuda, 0)))
    given = list(torch.randn(2, 4, 8192, device=cuda))
    wanted = [x @ weight for x in given]
    streams = [torch.cuda.Stream() for _ in given]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[] for _ in given]
    for _ in range(50):
        for x, stream, results in zip(given, streams, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(captured(x))
    torch.cuda.synchronize()
    for results, right in zip(found, wanted, strict=True):
        for result in results:
            torch.testing.assert_close(result, right)


@pytest.mark.gpu
def test_a_function_that_waits_for_the_device_is_run_as_it_is(cuda: str, caplog: pytest.LogCaptureFixture) -> None:
    captured = Captured(lambda x: x * x.sum().item(), CudaGraphs(torch.device(cuda, 0)))
    x = torch.arange(4.0, device=cuda)
    here = torch.cuda.current_stream()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(captured(x), x * 6)
            assert torch.cuda.current_stream() == here
        torch.rand(2, device=cuda)  # the generator knows that nothing is recorded any more
        recorded = Captured(lambda x: x + 1, captured._recorder)
        assert torch.equal(recorded(x), x + 1)
    assert "runs as it is" in caplog.text
    assert recordings(recorded) == 1
