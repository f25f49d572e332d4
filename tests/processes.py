"""Runs a program in several processes that form one process group on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets, and one thread: several processes share few cores."""
    values = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, sys.path)]),
    }  # fmt: skip
    return os.environ | {name: str(value) for name, value in values.items()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """`size` processes of ``python ARGUMENTS...``."""
    port, command = free_port(), [sys.executable, *map(str, arguments)]
    return [
        subprocess.Popen(
            command, env=environment(rank, size, port), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(size)
    ]


def torchrun(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node SIZE ARGUMENTS...``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size, *arguments]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": environment(0, 1, 0)["PYTHONPATH"]}
    return subprocess.run(
        [str(part) for part in command], env=os.environ | variables, text=True, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip


def finish(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each; none is left running."""
    try:
        found = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def run(size: int, *arguments: object) -> list[str]:
    """Run to the end, which must be a good one; stdout of each process."""
    results = finish(start(size, *arguments))
    for status, _, errors in results:
        assert status == 0, errors[-4000:]
    return [text for _, text, _ in results]
