"""The machine a benchmark ran on: its description, its ceilings, and the settings that are the same for every rival."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddn_fast

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"

# glibc hands large blocks back to the system and gets them zeroed, page by page, at the next call: half the time of an
# eager network. These keep them, on huge pages. They are read when a process starts.
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:"
    "glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=67108864"
)

# Instruction sets that kernels are written for, as DDN_MAX_CPU_ISA names them, worst first.
ISAS = ("plain", "avx2", "avx512", "avx512_bf16", "amx_bf16")


def use_allocator_settings() -> None:
    """Start this program again with ALLOCATOR, unless GLIBC_TUNABLES says something (empty: the defaults)."""
    if "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": ALLOCATOR}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def use_threads(threads: int | None) -> None:
    """Torch's threads: as many as named, or one for each core this process may use."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def describe() -> dict[str, Any]:
    """Everything a reader of results needs to know about where they come from, as plain JSON values."""
    native = extension()
    return {
        "name": name(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "isa": native.cpu_isa() if native else None,
        "isas": isas(),
        "caches": caches(),
        "memory_gib": round(_memory("MemTotal") / 2**30, 1),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES") or None,
        "kernel": platform.release(),
        "versions": {
            "ddn_fast": ddn_fast.__version__,
            "compiler": native.build_info()["compiler"] if native else None,
            "torch": torch.__version__,
            "onednn": _found(r"MKL-DNN v([\d.]+)", torch.__config__.show()),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **commit(),
    }


def name() -> str:
    """Of the machine, for file names: CPU model and threads, as in ``amd-epyc-2-threads``."""
    model = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", cpu_name().lower())
    return "-".join(re.findall("[a-z0-9]+", model)) + f"-{torch.get_num_threads()}-threads"


def cpu_name() -> str:
    """As /proc/cpuinfo has it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def isas() -> list[str]:
    """Those of ISAS that this machine has and the extension was built with, worst first."""
    native = extension()
    return list(native.cpu_isas()) if native else ["plain"]


def caches() -> dict[str, int]:
    """Bytes of the first core's data caches: L1, L2, L3 where the system tells."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(folder / part) for part in ("level", "type", "size"))
        if level and kind in ("Data", "Unified") and size and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) * 1024
    return sizes


def last_level_bytes() -> int:
    """Of the largest cache; 32 MiB where the system does not tell."""
    return max(caches().values(), default=32 << 20)


def available_bytes() -> int:
    """Memory that may still be taken."""
    return _memory("MemAvailable")


def commit() -> dict[str, Any]:
    """The commit the sources are at, and whether they differ from it (kept results aside); None outside of git."""

    def git(*arguments: str) -> str | None:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    try:
        status = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
    except OSError:  # no git
        return {"commit": None, "dirty": None}


def ceilings(milliseconds: int = 100, megabytes: int = 1024) -> dict[str, float | None]:
    """What the hardware gives, measured by ``peak.cpp`` with torch's number of threads.

    Keys: each of :func:`isas`: TFLOP/s of multiply-adds with operands in registers (float32; bfloat16 for the last
    two), and ``dram_read_gb_s``. Nothing where there is no g++.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        build = ["g++", "-O3", "-pthread", "-ffp-contract=fast", str(ROOT / "benchmarks/peak.cpp"), "-o", str(program)]
        try:
            subprocess.run(build, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no ceilings: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
            return {}
        sizes = [str(value) for value in (torch.get_num_threads(), milliseconds, megabytes)]
        result = subprocess.run([program, *sizes, *isas()], check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def peak_of(ceilings: dict[str, float | None], dtype: torch.dtype, isa: str | None) -> float | None:
    """TFLOP/s of `dtype` with instruction sets up to `isa` (None: all of the machine's), as :func:`ceilings` has it.

    bfloat16 without instructions for it is multiplied in float32.
    """
    order = list(ISAS)
    usable = order[: order.index(isa) + 1] if isa else order
    if dtype != torch.bfloat16:
        usable = [known for known in usable if not known.endswith("bf16")]
    return max((value for known in usable if (value := ceilings.get(known))), default=None)


def extension() -> Any:
    """ddn_fast's compiled extension, or None where it was not built."""
    try:
        return import_module("ddn_fast._C")
    except ImportError:
        return None


def _cpuinfo(key: str) -> str | None:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.split(":")[0].strip() == key:
            return line.split(":", 1)[1].strip()
    return None


def _memory(key: str) -> int:
    return 1024 * int(_found(rf"^{key}:\s+(\d+)", _read("/proc/meminfo") or "") or 0)


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
