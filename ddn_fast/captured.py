"""Functions of tensors recorded once for each shape and replayed: their launches cost the host one call.

What a recording is, is the recorder's: :class:`CudaGraphs` makes CUDA graphs, tests have one that runs anywhere.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

MAX_RECORDINGS = 64  # of one function at one place; other shapes run as they are
MAX_FAILURES = 3  # of one function: another thread that waits for the whole device spoils what is being recorded

_log = logging.getLogger(__name__)
_recording = threading.Lock()  # one graph of the process at a time


class Recorder(Protocol):
    """Makes recordings of functions, which may share memory with each other."""

    lock: threading.Lock  # held from the copying of arguments to that of results, as one replay may spoil another's

    def place(self) -> object:
        """Where work goes now: recordings made at one place are not replayed at another."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What replays `function`, and its results, which live where each replay leaves them anew."""


class _Recording(NamedTuple):
    inputs: list[Tensor]
    replay: Callable[[], None]
    outputs: list[Tensor]
    form: Any  # of the outputs


class Captured:
    """`function` of tensors (in tuples, if need be), run from a recording of each shape that it meets.

    Arguments are copied into the recording's own and results out of it, so nothing that a caller holds changes later.
    The function must not wait for the device. Any number of threads may call it. Where recording fails, a warning is
    logged and that call runs as it is, after MAX_FAILURES every call of a shape without a recording; so do calls with
    nothing in any argument.
    """

    def __init__(self, function: Callable[..., Any], recorder: Recorder, limit: int = MAX_RECORDINGS) -> None:
        self.function, self._recorder, self._limit = function, recorder, limit
        self._recordings: dict[object, dict[object, _Recording]] = {}  # by place
        self._failures = 0

    def __call__(self, *arguments: Any) -> Any:
        """As `function`."""
        given, form = tree_flatten(arguments)
        if not any(tensor.numel() for tensor in given):
            return self.function(*arguments)
        key = str(form), *((tuple(t.shape), t.dtype) for t in given)
        with self._recorder.lock, torch.no_grad():
            here = self._recordings.setdefault(self._recorder.place(), {})
            recording = here.get(key)
            if recording is None and len(here) < self._limit and self._failures < MAX_FAILURES:
                recording = self._record(given, form)
                if recording is not None:
                    here[key] = recording
            if recording is not None:
                copy_all(recording.inputs, given)
                recording.replay()
                results = [torch.empty_like(tensor) for tensor in recording.outputs]
                copy_all(results, recording.outputs)
                return tree_unflatten(results, recording.form)
        return self.function(*arguments)

    def _record(self, given: list[Tensor], form: Any) -> _Recording | None:
        try:
            with torch.inference_mode(False), torch.no_grad():  # tensors that may be written to in any mode
                inputs = [torch.empty_like(tensor) for tensor in given]
                copy_all(inputs, given)
                arguments = tree_unflatten(inputs, form)
                replay, outputs = self._recorder.record(lambda: self.function(*arguments))
            return _Recording(inputs, replay, *tree_flatten(outputs))
        except RuntimeError as error:  # what torch raises where capturing fails, memory included
            self._failures += 1
            name = getattr(self.function, "__qualname__", repr(self.function))
            again = "from now on" if self._failures == MAX_FAILURES else "this time"
            _log.warning("%s is not recorded and runs as it is %s: %s", name, again, error)
            return None


def copy_all(to: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy tensor by tensor, those of one dtype in one launch."""
    for dtype in {tensor.dtype for tensor in to}:
        pairs = [(a, b) for a, b in zip(to, given, strict=True) if a.dtype == dtype]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


def padded_size(count: int) -> int:
    """The next of 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24 ..: at most a quarter more, and few of them."""
    step = max(1, 1 << (max(count, 1) - 1).bit_length() - 3) if count > 8 else 1
    return -(-count // step) * step


class CudaGraphs:
    """Records CUDA graphs on a device; those of one stream share memory for what lives only within a replay.

    Their results do, too: one graph's replay may overwrite what another's left. :class:`Captured` copies them out in
    the same stream before anything else is replayed there, by whichever thread.
    """

    def __init__(self, device: torch.device) -> None:
        self.lock = threading.Lock()
        self._device = device
        # Of each place, the memory of its graphs and where they are recorded: cuBLAS has a workspace for each stream of
        # recording, which graphs that run at the same time must not share.
        self._places: dict[object, tuple[Any, torch.cuda.Stream]] = {}
        self._refused: list[Any] = []  # graphs that failed

    def place(self) -> object:
        """The current stream of the device."""
        return torch.cuda.current_stream(self._device).cuda_stream

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """See :class:`Recorder`; runs `function` once as it is, so that whatever happens only once has happened."""
        here, place = torch.cuda.current_stream(self._device), self.place()
        # the stream in any case: torch.cuda.graph leaves its own behind where recording fails
        with _recording, torch.cuda.device(self._device), torch.cuda.stream(here):
            function()
            if place not in self._places:
                # of high priority: torch gives out 32 streams of each in turn, and one that another thread works in
                # would take that thread's launches into the graph
                beside = torch.cuda.Stream(self._device, priority=-1)
                self._places[place] = torch.cuda.graph_pool_handle(), beside
            pool, beside = self._places[place]
            graph = torch.cuda.CUDAGraph()
            try:
                # other threads may allocate memory meanwhile
                with torch.cuda.graph(graph, pool=pool, stream=beside, capture_error_mode="thread_local"):
                    outputs = function()
            except RuntimeError:
                self._abandon(place, graph)
                raise
            return graph.replay, outputs

    def _abandon(self, place: object, graph: Any) -> None:
        """After a recording that failed: the next one at `place` gets memory of its own.

        Where the device ends a capture with an error, CUDAGraph.capture_end raises before it tells torch's allocators
        that recording is over. They would refuse the pool to any other graph, keep all memory that several streams have
        used, and go on asking this graph which streams are recorded: so they are told here, and the graph stays. The
        generator of the device's random numbers, which belongs to the whole process, would refuse every draw until some
        recording succeeds: so one of next to nothing does.
        """
        pool, beside = self._places.pop(place)
        self._refused.append(graph)
        with contextlib.suppress(RuntimeError):  # they know: the function itself failed, or this torch has told them
            torch._C._cuda_endAllocateToPool(self._device.index, pool)
        nothing = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=beside, capture_error_mode="thread_local")
        with contextlib.suppress(RuntimeError), nothing:
            torch.cuda._sleep(0)
