"""How an engine runs on its device: dtypes, layout of weights, transfers, how much at once. The one place that knows.

:class:`Runtime` is any device as torch has it: what is read is waited for. :class:`CpuRuntime` and :class:`CudaRuntime`
are those of an engine; :func:`runtime_for` chooses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import info
from .captured import Captured, CudaGraphs, padded_size
from .errors import InputError
from .packing import CUDA

GRAPHS_VARIABLE = "DDN_CUDA_GRAPHS"  # 0: no CUDA graphs
MAX_HOST_THREADS = 8  # more would wait for each other's Python
MAX_PASSES_ON_CUDA = 64  # of small maps, a multiprocessor each and some more

_PLAIN = "; the plain network may run there (fast=False, --no-fast)"

Fetched = Callable[[], list[Tensor]]


def stacked(items: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """``torch.stack`` of tensors of the host, by this thread alone.

    Torch's wakes a thread for each core to share out a copy, and those spin for milliseconds in case there is more to
    do: time that threads which read and write images need (measured: half of what they get, on 2 cores).
    """
    result = torch.empty(len(items), *items[0].shape, dtype=items[0].dtype, device="cpu", pin_memory=pinned)
    for place, item in zip(result, items, strict=True):
        np.copyto(place.view(torch.uint8).numpy(), item.contiguous().view(torch.uint8).numpy())
    return result


class Runtime:
    """A device on which nothing is special.

    ahead       batches that are begun before the results of one are read
    max_passes  how many passes run through the decoder together; None: as many as suit a CPU
    host_threads  how many threads read images, and how many write what came of them, beside the network
    """

    ahead = 0
    max_passes: int | None = None
    host_threads = 2

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Tensors ``[...]`` of the host as one ``[N,...]`` there, in the memory that :meth:`put` takes best."""
        return stacked(items)

    def put(self, x: Tensor, like: Tensor) -> Tensor:
        """x, on the host or already there, with the dtype and device of `like`."""
        return x.to(like)

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Begin to bring tensors to the host; the function returned waits for them and gives them."""
        on_host = [tensor.cpu() for tensor in tensors]
        return lambda: on_host


class CpuRuntime(Runtime):
    """The CPU with the compiled kernels of the instruction set `isa`, or the plain formulas."""

    device = torch.device("cpu")
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)

    def __init__(self) -> None:
        self.isa = info.cpu_isa() or "plain"
        self.name = self.isa

    def check_dtype(self, dtype: torch.dtype, compiled: bool) -> None:
        """InputError unless an engine here may compute in `dtype`; the plain formulas take more than compiled ops."""
        wanted = self.dtypes if compiled else tuple(dict.fromkeys((*self.dtypes, torch.float32, torch.float64)))
        if dtype not in wanted:
            plain = "; the plain network computes in it (fast=False, --no-fast)" if dtype == torch.float32 else ""
            names = " or ".join(map(str, wanted))
            raise InputError(f"dtype: wanted {names} on {self.device.type}, got {dtype!r}{plain}")

    def image_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What images are gathered in for an engine of `dtype`: its own, half of the bytes, where they are sent."""
        return torch.float32 if self.device.type == "cpu" else dtype

    def captured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of tensors, as this device runs it best."""
        return function

    def padded(self, count: int) -> int:
        """How many rows, pairs or passes `count` of them are padded to."""
        return count

    def move(self, small: Tensor) -> Tensor:
        """A small tensor of the host on the device."""
        return small


def passes_on_cuda(memory: int, side: int) -> int:
    """How many passes over images of `side` pixels run together: their largest maps, three of 64 channels, take at most
    an eighth of `memory` bytes, where that holds four passes at all.
    """
    pass_bytes = max(1, 3 * 64 * 2 * side * side)
    return max(4, min(MAX_PASSES_ON_CUDA, memory // 8 // pass_bytes))


class CudaRuntime(CpuRuntime):
    """A CUDA device: transfers that nobody waits for, two batches in flight, fixed parts as CUDA graphs.

    All work is ordered by the caller's current stream of the device. `graphs` None: as DDN_CUDA_GRAPHS says, else yes.
    """

    ahead = 1
    dtypes = (torch.bfloat16, torch.float16)

    def __init__(self, device: torch.device, graphs: bool | None = None, side: int = 0) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.isa = CUDA
        self.name = f"{self.device}, {info.kernels_of(self.device.index)}"
        wanted = os.environ.get(GRAPHS_VARIABLE, "1") != "0" if graphs is None else graphs
        self._graphs = CudaGraphs(self.device) if wanted else None
        self._copies = torch.cuda.Stream(self.device)
        self.max_passes = passes_on_cuda(torch.cuda.get_device_properties(self.device).total_memory, side)
        self.host_threads = max(2, min(MAX_HOST_THREADS, info.cores()))

    def captured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As a CUDA graph for each shape of its arguments, recorded when first met."""
        return function if self._graphs is None else Captured(function, self._graphs)

    def padded(self, count: int) -> int:
        """Graphs are of few sizes."""
        return count if self._graphs is None else padded_size(count)

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """In pinned memory."""
        return stacked(items, pinned=True)

    def put(self, x: Tensor, like: Tensor) -> Tensor:
        """The host goes on at once; the caller's stream waits for the copy, which runs beside what it does now."""
        if x.device.type != "cpu":
            return x.to(like)
        host = x if x.dtype.itemsize <= like.dtype.itemsize else x.to(like.dtype)  # widened there
        host = host if host.is_pinned() else host.pin_memory()
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):  # its memory, too: no other work of the stream may still use it
            on_device = host.to(self.device, non_blocking=True)
        stream.wait_stream(self._copies)
        on_device.record_stream(stream)
        return on_device.to(like.dtype)

    def move(self, small: Tensor) -> Tensor:
        """By way of pinned memory, in the order of the caller's stream."""
        return small.pin_memory().to(self.device, non_blocking=True)

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Copies into pinned memory, in the order of the caller's stream; the function returned waits for them only."""
        on_host = [torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in tensors]
        for host, tensor in zip(on_host, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> list[Tensor]:
            done.synchronize()
            return on_host

        return wait


def runtime_for(device: torch.device, compiled: bool, graphs: bool | None, side: int) -> CpuRuntime:
    """The runtime of an engine on `device` for images of `side` pixels; InputError where it cannot run there.

    compiled  whether its ops are the compiled ones, which may lack kernels for the device
    """
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"model: wanted a network on the CPU or a CUDA device, got one on {device}{_PLAIN}")
    if compiled and (lack := info.engine_lacks(device)):
        raise InputError(f"model: {lack}{_PLAIN}")
    return CpuRuntime() if device.type == "cpu" else CudaRuntime(device, graphs, side)
