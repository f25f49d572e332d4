"""Every op once on each of its small ragged cases, and a tiny engine: what compute-sanitizer watches.

python benchmarks/gpu_every_op.py [--device cuda] [--only conv3x3 dense]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import machine
import torch
from groups import CUDA_ISA_VARIABLE, limited
from machine import ROOT
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ddn_fast import FastDecoupledNet, ops, reference

sys.path.append(str(ROOT / "tests"))
from op_cases import CASES, INPUTS, SHAPES, dtypes_of
from tiny_net import tiny_net

LARGE = 200_000  # elements: a shape with more is not one of the small ones


def dtypes(op: str, device: str) -> tuple[torch.dtype, ...]:
    """What the op takes there."""
    on_cuda = (torch.bfloat16, torch.float16)
    return on_cuda if device == "cuda" and op.startswith("conv3x3") else dtypes_of(op)


def calls(device: str, only: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What to call, with a line that says what it is; ops without a kernel there are left out."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in (name for name in only if has_kernel(f"ddn_fast::{name}", device.upper())):
        op = getattr(ops, name)
        for dtype in dtypes(name, device):
            if name in INPUTS:
                for shape in (s for s in SHAPES if s.images * s.channels * s.height * s.width <= LARGE):
                    yield f"{name} {shape} {dtype}", partial(op, *INPUTS[name](shape, dtype, device))
            else:
                for case in CASES[name]:
                    arguments = tree_map_only(Tensor, lambda x: x.to(device), case(dtype))
                    for isa in machine.cuda_isas() if device == "cuda" and name.startswith("conv3x3") else [""]:
                        yield f"{name} {case} {dtype} {isa}", partial(held_to, isa, op, *arguments)
    if set(only) == set(reference.OPS):
        yield "engine", partial(engine, device)


def held_to(isa: str, op: Callable[..., Any], *arguments: Any) -> Any:
    """`op` by these matrix instructions, where any are named."""
    if not isa:
        return op(*arguments)
    with limited(CUDA_ISA_VARIABLE, isa):
        return op(*arguments)


def engine(device: str) -> Tensor:
    """A few passes of a tiny network."""
    twin = FastDecoupledNet(tiny_net().to(device), graphs=False)
    x = 40 * torch.randn(2, 3, 64, 64, device=device)
    return twin.fast(x, torch.full((3, 6), 0.5), torch.tensor([0, 1, 1]))


def main() -> int:
    """Call them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=reference.OPS, default=list(reference.OPS), metavar="OP")
    arguments = parser.parse_args()
    count = 0
    for what, call in calls(arguments.device, arguments.only):
        print(what, flush=True)  # before: the last line names what failed
        call()
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        count += 1
    print(f"{count} calls")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
