"""The AMX path from Python on a machine without AMX: an extension with emulated tiles (csrc/emu/amx.h), and the tests
that choose by instruction set run on it in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddn_fast import _C

ROOT = Path(__file__).parent.parent.parent
FILES = ("test_dense.py", "test_conv3x3.py", "test_ops_inference.py", "test_engine.py")
CHOSEN = "amx_bf16 or pairs or chosen_layout"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ddn_fast is this one with emulated tiles."""
    features = _C.cpu_features()
    if features["amx_bf16"]:
        pytest.skip("this machine has AMX: the same tests run on it as they are")
    if not features["avx512_bf16"]:
        pytest.skip("no AVX512_BF16, which the AMX kernels use around their tiles")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    if cmake is None or ninja is None:
        pytest.skip("no cmake and ninja to build with")
    folder = tmp_path_factory.mktemp("emulated")
    package = folder / "ddn_fast"
    shutil.copytree(ROOT / "ddn_fast", package, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    options = {
        "DDN_PYTHON": "ON",
        "DDN_TESTS": "OFF",
        "DDN_CUDA": "OFF",
        "DDN_EMULATE_AMX": "ON",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": package,
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
    }
    configure = [cmake, "-S", ROOT, "-B", folder / "build", "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())]
    for command in (configure, [cmake, "--build", folder / "build", "--target", "_C"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def in_python(emulated: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(emulated), *filter(None, sys.path)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DDN_", "PYTEST_"))}
    done = subprocess.run(  # not in ROOT, whose ddn_fast would come first
        [sys.executable, *arguments],
        cwd=emulated,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_amx_is_found_and_chosen(emulated: Path) -> None:
    assert re.search(r"kernels use +amx_bf16\n", in_python(emulated, "-m", "ddn_fast.cli", "info"))


def test_what_is_tested_by_instruction_set_holds_for_amx(emulated: Path) -> None:
    files = [ROOT / "tests" / name for name in FILES]
    options = ("-v", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CHOSEN)
    said = in_python(emulated, "-m", "pytest", *map(str, (*options, *files)))
    assert len(re.findall(r"amx_bf16.* PASSED", said)) > 200, said
