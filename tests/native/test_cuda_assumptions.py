"""What the GPU probe asks the hardware, asked of the host emulation (test_cuda_assumptions.cpp); the probe compiles."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from native_build import HERE, build, check_equal


def test_emulation_agrees_with_what_the_probe_asks_the_gpu(tmp_path: Path) -> None:
    check_equal(build("test_cuda_assumptions", tmp_path))


def test_gpu_probe_compiles(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc to compile the probe with")
    source, include = HERE / "gpu_probe/gpu_probe.cu", HERE.parent.parent / "csrc"
    target = "-gencode=arch=compute_90a,code=sm_90a"
    command = [nvcc, "-std=c++17", "-O3", f"-I{include}", "-DDDN_HAVE_WGMMA", target, "-c", str(source)]
    built = subprocess.run([*command, "-o", str(tmp_path / "probe.o")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
