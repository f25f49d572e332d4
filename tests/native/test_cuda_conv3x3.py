"""The CUDA convolution's own source, on the host under sanitizers, against plain loops (test_cuda_conv3x3.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the emulation with")
    out = tmp_path_factory.mktemp("emulation") / "test_cuda_conv3x3"
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{HERE.parent.parent / 'csrc'}"]
    command = [compiler, *flags, *SANITIZE, str(HERE / "test_cuda_conv3x3.cpp"), "-o", str(out)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


def test_cuda_convolution_equals_plain_loops_under_sanitizers(program: Path) -> None:
    run = subprocess.run([program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stderr


def test_cuda_convolution_refuses_an_image_of_pass_out_of_range(program: Path) -> None:
    run = subprocess.run([program, "contract"], capture_output=True, text=True)
    assert run.returncode != 0
    assert "contract violated" in run.stderr
