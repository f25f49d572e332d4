"""The convolution's own source, AMX tiles emulated, under sanitizers against plain loops (test_conv3x3.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ddn_fast import _C

HERE = Path(__file__).parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
    "-Wno-array-bounds",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mbmi2"]


@pytest.mark.parametrize("flags", [[], AVX512], ids=["plain", "avx512_bf16"])
def test_convolution_equals_plain_loops_under_sanitizers(flags: list[str], tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    if flags and "avx512_bf16" not in _C.cpu_isas():
        pytest.skip("no AVX512_BF16 here to run the intrinsics around the tiles")
    out = tmp_path / "test_conv3x3"
    source = ["-DDDN_EMULATE_AMX", "-I", str(HERE.parent.parent / "csrc"), str(HERE / "test_conv3x3.cpp")]
    command = [compiler, "-std=c++20", "-O1", "-g", *flags, *WARNINGS, *SANITIZE, *source, "-o", str(out)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    run = subprocess.run([out], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr
