"""Joining the processes that torchrun started: who is who, on which device, and one message where something fails."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from .errors import DistributedError, InputError

# A process that ends closes its connections, and torchrun ends the others: this bounds only how long the first may
# draw and write while the others wait.
TIMEOUT = datetime.timedelta(hours=2)

_store: Any = None
_first: bool | None = None


@contextlib.contextmanager
def joined(choose: Callable[[], str]) -> Iterator[str]:
    """The device of this process, inside a process group where torchrun started several.

    choose  gives "cpu" (gloo), or "cuda" (nccl): each process then has the GPU of its LOCAL_RANK. What it raises is
            raised once all have met, so that one message comes of it

    InputError where there is no such GPU, or where several processes are given one by its number. DistributedError
    where the variables that torchrun sets are incomplete or the others do not come.
    """
    global _store
    size = _variable("WORLD_SIZE", 1)
    if size == 1:
        yield choose()
        return
    try:
        _store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"processes: cannot meet: {error}") from error
    device = own_device(choose(), _variable("LOCAL_RANK", rank))
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    # torch.optim brings this module, whose functions have the group of that moment as their default argument
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group(backend, store=dist.PrefixStore("run", _store), rank=rank, world_size=size, timeout=TIMEOUT)
    done = False
    try:
        yield device
        done = True
    except BaseException:
        is_first_failure()  # before the group goes, which the others notice and tell of
        raise
    finally:
        # Joins gloo's threads, if nothing else holds the group. One that still lets go of a tensor when the interpreter
        # ends finds no GIL, and aborts the process. After an error NCCL's would wait for others, who may never answer.
        if done or backend == "gloo":
            dist.destroy_process_group()


def own_device(device: str, local_rank: int) -> str:
    """Of the `local_rank`-th process of this machine; see :func:`joined`."""
    if device == "cpu":
        return device
    if device != "cuda":
        raise InputError(f"--device: wanted cpu or cuda where torchrun starts several processes, got {device!r}")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"processes: wanted at most {torch.cuda.device_count()} on this machine, one for each GPU, "
            f"got {_variable('LOCAL_WORLD_SIZE', local_rank + 1)}"
        )
    return f"cuda:{local_rank}"


def is_first_failure() -> bool:
    """Whether this process is the first of its run to ask: it tells the reason, the others fail in consequence."""
    global _first
    if _first is None:
        try:
            _first = _store is None or bool(_store.add("failed", 1) == 1)
        except RuntimeError:  # the process that kept the store is gone
            _first = True
    return _first


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise DistributedError(f"processes: {name}: wanted a number, as torchrun sets it, got {text!r}")
    return int(text)
