"""The machine and the sources that ``gpu.py`` reports, found with nothing but Python and the tools there are."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# where programs of the CUDA toolkit are, beside PATH
PLACES = (
    "/usr/local/cuda*/bin",
    "/usr/local/cuda*/compute-sanitizer",
    "/opt/cuda*/bin",
    "/opt/nvidia/nsight-compute/*",
)

TOOLS = ("nvcc", "cmake", "ninja", "g++")
# What the steps import, but for torch.
MODULES = ("numpy", "PIL", "cv2", "safetensors", "tqdm", "pytest", "pybind11", "setuptools")

PROBE = """
import json, torch
ok = torch.cuda.is_available()
p = torch.cuda.get_device_properties(torch.cuda.current_device()) if ok else None
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": p.name if ok else None,
                  "capability": [p.major, p.minor] if ok else None, "gpus": torch.cuda.device_count()}))
"""


def probe() -> dict[str, Any]:
    """The machine, as torch in a process of its own and the tools on it say."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        found["error"] = str(getattr(error, "stderr", None) or error)[-500:]
    for tool in TOOLS:
        found[tool] = version(tool)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    found["missing"] = [
        *(name for name in MODULES if importlib.util.find_spec(name) is None),
        *(tool for tool in TOOLS if found[tool] is None),
        *([] if header.is_file() else [str(header)]),
    ]
    return found | {"nvidia_smi": nvidia_smi()}


def version(tool: str) -> str | None:
    """The last line but blank ones of what a tool says of itself, of g++ and cmake the first."""
    where = program(tool)
    if where is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        lines = subprocess.run([where, "--version"], capture_output=True, text=True, timeout=30).stdout.split("\n")
        lines = [line for line in lines if line.strip()]
        return lines[-1 if tool == "nvcc" else 0]
    return None


def program(name: str) -> str | None:
    """Where a program is, on PATH or among those of the CUDA toolkit."""
    homes = [f"{os.environ[key]}/bin" for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    folders = [*homes, *(folder for place in PLACES for folder in sorted(glob.glob(place), reverse=True))]  # noqa: PTH207
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def nvidia_smi() -> str | None:
    """Driver, clocks, temperature and power now."""
    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,memory.used"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip() or None
    return None


def git(*arguments: str) -> str | None:
    """What git says of the sources; None without it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip() or None
    return None


def slug(name: str) -> str:
    """For file names, as in ``nvidia-h200``."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in name.lower()).split())


def arch_of(major: int, minor: int) -> str:
    """As TORCH_CUDA_ARCH_LIST has it; Hopper with what is its own."""
    return f"{major}.{minor}" + "a" * ((major, minor) == (9, 0))


def fingerprint() -> str:
    """Of everything that is compiled or run, whatever git knows."""
    digest = hashlib.sha256()
    names = ["CMakeLists.txt", "setup.py", "pyproject.toml"]
    for folder in ("csrc", "cmake", "ddn_fast", "benchmarks", "tests"):
        names += [
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".cmake", ".txt") and path.is_file()
        ]
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def build_fingerprint() -> str:
    """Of what is compiled."""
    digest = hashlib.sha256()
    sources = [p for folder in ("csrc", "cmake") for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    for path in [*sources, ROOT / "CMakeLists.txt", ROOT / "setup.py"]:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
