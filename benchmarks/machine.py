"""The machine a benchmark ran on: its description, its ceilings, and the settings that are the same for every rival."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddn_fast
from ddn_fast.files import write_atomic

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PARTIAL = ROOT / "runs/benchmarks"
OUT_HELP = f"folder (default {RESULTS.relative_to(ROOT)}; {PARTIAL.relative_to(ROOT)} if quick or a part)"

# glibc hands large blocks back to the system and gets them zeroed, page by page, at the next call: half the time of an
# eager network. These keep them, on huge pages. They are read when a process starts.
ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2000000000:"
    "glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=67108864"
)

# Instruction sets that kernels are written for, as DDN_MAX_CPU_ISA names them, worst first.
ISAS = ("plain", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16")


def use_allocator_settings() -> None:
    """Start this program again with ALLOCATOR, unless GLIBC_TUNABLES says something (empty: the defaults)."""
    if "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": ALLOCATOR}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def save(report: dict[str, Any], path: Path) -> None:
    """Write a report; whole or not at all."""
    write_atomic(path, (json.dumps(report, indent=1) + "\n").encode())


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1, got {number}")
    return number


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Ends the program where there is no such device."""
    if device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: wanted a CUDA device for {device}, torch {torch.__version__} finds none")


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


def describe_cuda() -> dict[str, Any]:
    """:func:`describe` of a machine whose CUDA device is what is measured."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    native = extension()
    build = native.build_info() if native else {}
    return describe() | {
        "name": cuda_name(),
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "gpu_cache_bytes": cuda_cache_bytes(),
        "cuda": {"torch": torch.version.cuda, "nvcc": build.get("cuda"), "archs": build.get("cuda_archs")},
        "cudnn": torch.backends.cudnn.version(),
        "clocks": cuda_clocks(),
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
    }


def cuda_name() -> str:
    """Of the CUDA device, for file names, as in ``nvidia-h200``."""
    return "-".join(re.findall("[a-z0-9]+", torch.cuda.get_device_name().lower()))


def cuda_cache_bytes() -> int:
    """Of the second-level cache; 64 MiB where torch does not tell."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return getattr(properties, "L2_cache_size", 0) or 64 << 20


def cuda_isas() -> list[str]:
    """Matrix instructions that the device's convolutions may use, as DDN_MAX_CUDA_ISA names them, worst first."""
    native = extension()
    return {"wgmma": ["mma", "wgmma"], "mma": ["mma"]}.get(native.cuda_isa() if native else None, [])


def cuda_clocks() -> dict[str, str]:
    """What nvidia-smi says now: driver, clocks, temperature, power; nothing where it is not there."""
    keys = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "pstate")
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = found.splitlines()[torch.cuda.current_device()].split(",") if found.strip() else []
    return dict(zip(keys, (value.strip() for value in values), strict=False))


def cuda_ceilings(side: int = 8192, megabytes: int = 2048, repeats: int = 10) -> dict[str, float | None]:
    """What the device gives, measured: TFLOP/s of a product of random matrices in each dtype, GB/s of a copy.

    Keys: ``cuda_bfloat16``, ``cuda_float16``, and ``dram_read_gb_s``, bytes read and written counted.
    """
    found: dict[str, float | None] = {}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def ms(run: Any) -> float:
        for _ in range(3):
            run()
        times = []
        for _ in range(repeats):
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times)[len(times) // 2]

    for dtype in (torch.bfloat16, torch.float16):
        a, b = torch.randn(2, side, side, device="cuda", dtype=torch.float32).to(dtype)
        out = torch.empty_like(a)
        found[f"cuda_{str(dtype).removeprefix('torch.')}"] = 2 * side**3 / ms(lambda: torch.mm(a, b, out=out)) / 1e9  # noqa: B023
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    found["dram_read_gb_s"] = 2 * source.numel() / ms(lambda: target.copy_(source)) / 1e6
    return {key: round(value, 2) for key, value in found.items() if value}


def result_path(folder: Path | None, benchmark: str, machine_name: str | None = None, *, whole: bool = True) -> Path:
    """Where a benchmark's JSON goes: `folder`, else RESULTS, whose files README's tables are made from.

    What is not the `whole` of it goes elsewhere unless told. Makes the folder: no measurement ends in vain.
    """
    folder = folder or (RESULTS if whole else PARTIAL)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{benchmark}-{machine_name or name()}.json"


def name() -> str:
    """Of the machine, for file names: CPU model and threads, as in ``amd-epyc-family-26-model-2-2-threads``."""
    model = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", cpu_name().lower())
    return "-".join(re.findall("[a-z0-9]+", model)) + f"-{torch.get_num_threads()}-threads"


def cpu_name() -> str:
    """As /proc/cpuinfo has it, with family and model where the name has no number, as virtual machines call theirs."""
    found = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return found if re.search(r"\d", found) or not (family and model) else f"{found} family {family} model {model}"


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16, without which libraries widen them at great cost."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return not flags or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


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

    Keys: each of :func:`isas`: TFLOP/s of multiply-adds with operands in registers (float32; 16-bit integers for
    avx_vnni and avx512_vnni, bfloat16 for the last two), and ``dram_read_gb_s``. Nothing where there is no g++.
    """
    arguments = [*map(str, (torch.get_num_threads(), milliseconds, megabytes)), *isas()]
    try:
        return said_by_program([ROOT / "benchmarks/peak.cpp"], ["-pthread", "-ffp-contract=fast"], arguments)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no ceilings: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
        return {}


def said_by_program(sources: Sequence[Path], flags: Sequence[str], arguments: Sequence[str]) -> Any:
    """The JSON that a C++ program prints, compiled with -O3 and `flags`. Raises OSError, CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "program")
        for command in (["g++", "-O3", *flags, *map(str, sources), "-o", program], [program, *arguments]):
            result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def peak_of(ceilings: dict[str, float | None], dtype: torch.dtype, isa: str | None) -> float | None:
    """TFLOP/s of `dtype` with instruction sets up to `isa` (None: all of the machine's), as :func:`ceilings` has it.

    Where the ceilings are a CUDA device's, that dtype's.

    bfloat16 may be multiplied in integers of 16 bits, or, without instructions for either, in float32: so for AVX2,
    where integers take two instructions and may come to more.
    """
    if (on_cuda := ceilings.get(f"cuda_{str(dtype).removeprefix('torch.')}")) is not None:
        return on_cuda
    order = list(ISAS)
    usable = order[: order.index(isa) + 1] if isa else order
    if isa == "avx512":  # no part of AVX-512
        usable.remove("avx_vnni")
    if dtype != torch.bfloat16:
        usable = [known for known in usable if not known.endswith(("vnni", "bf16"))]
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
