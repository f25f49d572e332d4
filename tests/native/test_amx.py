"""dense for AMX: its own source, compiled with emulated tiles and sanitizers, against plain loops (test_amx.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def test_amx_kernels_equal_plain_loops_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    out = tmp_path / "test_amx"
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-DDDN_EMULATE_AMX"]
    source = ["-I", str(HERE.parent.parent / "csrc"), str(HERE / "test_amx.cpp")]
    built = subprocess.run([compiler, *flags, *SANITIZE, *source, "-o", str(out)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    run = subprocess.run([out], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr
