"""How the native tests are compiled: a source of this folder, with sanitizers and warnings as errors."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
VECTORS = ["-Wno-psabi"]  # for the CPU kernels: vectors are passed between inlined functions only
# for gcc 12's own headers, and what it makes of the emulated tiles' strides
QUIET = ["-Wno-array-bounds", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(name: str, folder: Path, flags: Sequence[str] = ()) -> Path:
    """Compile ``NAME.cpp`` into `folder`; skips the test where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    out = folder / name
    include = f"-I{HERE.parent.parent / 'csrc'}"
    command = [compiler, "-std=c++20", "-O1", "-g", *WARNINGS, *flags, *SANITIZE, include, str(HERE / f"{name}.cpp")]
    built = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


def check_equal(program: Path) -> None:
    """The program compares with plain loops and says "ok"."""
    run = subprocess.run([program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr


def check_contract(program: Path) -> None:
    """Given an index out of range, its kernel traps."""
    run = subprocess.run([program, "contract"], capture_output=True, text=True)
    assert run.returncode != 0
    assert "contract violated" in run.stderr
