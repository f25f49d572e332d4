"""What ``ops.py`` times together: one op at one shape in one dtype, in each of its variants and beside its rivals.

Maps are warm, as the layer before leaves them; weights are taken from copies in turn and so are cold, as the network
finds them after everything else it has read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import machine
import torch
from timing import Cold
from torch import Tensor

from ddn_fast import reference
from ddn_fast.config import NetConfig

OURS = "ddn_fast"
DTYPES = (torch.float32, torch.bfloat16)
ISA_VARIABLE = "DDN_MAX_CPU_ISA"
CUDA_ISA_VARIABLE = "DDN_MAX_CUDA_ISA"

_VECTOR = ("avx2", "avx512")
_INTEGER = ("avx2", "avx_vnni", "avx512_vnni")
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Rival:
    """One way to compute a group's result.

    run     the call that is timed; returns the result, or a tuple that starts with it
    isa     the instruction set that our kernels may use at most; None: somebody else's code, or no choice
    layout  of our convolution's weights, as :mod:`ddn_fast.packing` has it
    view    brings what `run` returns into the form of the group's truth
    special a library's way that some version of it lacks for some shape: left out and named there
    """

    name: str
    run: Callable[[], Any]
    isa: str | None = None
    layout: str | None = None
    view: Callable[[Any], Tensor] | None = None
    special: bool = False

    @property
    def label(self) -> str:
        """Name, instruction set and layout."""
        return " ".join(part for part in (self.name, self.isa, self.layout) if part)

    def result(self) -> Tensor:
        """What the group's truth is compared with."""
        value = self.run()
        if self.view is not None:
            return self.view(value)
        return value[0] if isinstance(value, tuple) else value


@dataclass
class Group:
    """Rivals at one op, shape and dtype.

    flops     of the direct algorithm, whichever a rival uses
    moved     bytes that have to be read and written at least once: inputs, weights that matter, results
    truth     computes the result in float64
    discrete  results are labels: their error is the share that differs from the truth, not a distance
    cold      whether weights are outside the caches; None: there are none
    """

    op: str
    case: str
    dtype: torch.dtype
    flops: float
    moved: float
    truth: Callable[[], Tensor]
    rivals: list[Rival] = field(default_factory=list)
    discrete: bool = False
    cold: bool | None = None

    def error(self, got: Tensor, truth: Tensor) -> float:
        """Largest distance from the truth as a part of its largest value; of labels, the share that differs."""
        if self.discrete:
            return (got != truth).double().mean().item()
        return ((got.double() - truth).abs().max() / truth.abs().max()).item()

    def tolerance(self, errors: list[float]) -> float:
        """What an error may be where those of somebody else's code are `errors`: more is a fault, not rounding."""
        return max(errors) + 1e-3 if self.discrete else 10 * max(errors) + 1e-5


class Setting(NamedTuple):
    """What all groups depend on.

    namespace  :mod:`ddn_fast.ops` or :mod:`ddn_fast.reference`
    config     the network whose shapes are taken
    batches    maps of a stage and images of a dense layer
    isas       instruction sets asked for by name; empty: those that matter for the op
    quick      few copies of weights: nothing is cold
    device     where everything is; it is torch's default device while groups are made and run
    """

    namespace: Any
    config: NetConfig
    batches: tuple[int, ...]
    isas: tuple[str, ...] = ()
    quick: bool = False
    device: str = "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Those that inference is for: float32 only on the CPU."""
        return DTYPES if self.device == "cpu" else (torch.bfloat16,)

    @property
    def on_cuda(self) -> bool:
        """Whether a CUDA device is measured."""
        return self.device != "cpu"

    def isas_of(self, op: str, dtype: torch.dtype, layout: str | None = None) -> list[str | None]:
        """Instruction sets under which `op` differs, as far as this machine has them.

        Those with products of bfloat16 matter to dense layers and to convolutions whose weights lie in pairs, the one
        with products of integers to those whose weights are integers.
        """
        if self.namespace is reference:
            return [None]
        if self.on_cuda:
            return list(machine.cuda_isas()) if op.startswith("conv3x3") else [None]
        present = machine.isas()
        if self.isas:
            return [isa for isa in present if isa in self.isas]
        products = layout == "pairs" or (op == "dense" and dtype == torch.bfloat16)
        wanted = _BFLOAT16 if products else _INTEGER if layout == "winograd_int16" else _VECTOR
        return [isa for isa in present if isa in wanted] or [present[-1]]

    def ours(
        self, op: str, dtype: torch.dtype, arguments: Callable[[], tuple[Any, ...]], layout: str | None = None
    ) -> Iterator[Rival]:
        """The op in each instruction set; `arguments` gives those of the next call."""
        function = getattr(self.namespace, op)
        variable = CUDA_ISA_VARIABLE if self.on_cuda else ISA_VARIABLE
        for isa in self.isas_of(op, dtype, layout):
            yield Rival(OURS, _held_to(isa, variable, lambda: function(*arguments())), isa, layout)

    def cold(self, make: Callable[[], Any], size: int) -> Cold[Any]:
        """Copies of weights, `size` bytes each; on CUDA one, the clock empties the caches."""
        return Cold(make, size, self.quick, flushed=self.on_cuda)


def _held_to(isa: str | None, variable: str, call: Callable[[], Any]) -> Callable[[], Any]:
    if isa is None:
        return call

    def run() -> Any:
        with limited(variable, isa):
            return call()

    return run


@contextlib.contextmanager
def limited(variable: str, isa: str) -> Iterator[None]:
    """Inside, our kernels use at most this instruction set: every op reads the variable when it is called."""
    before = os.environ.get(variable)
    os.environ[variable] = isa
    try:
        yield
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normally distributed float32 on the default device, the same on every CPU."""
    return scale * torch.randn(shape, generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    """Of the default device."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def size_of(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)
