"""pip's way into CMakeLists.txt.

Read from the environment: DDN_CUDA=AUTO|ON|OFF, TORCH_CUDA_ARCH_LIST, CUDACXX, CUDA_HOME, MAX_JOBS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_tool(name: str) -> str | None:
    """The program of this interpreter's environment (``pip install cmake ninja``), else the system's."""
    here = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", os.defpath)]))


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cmake = find_tool("cmake")
        if cmake is None:
            raise SystemExit("building ddn-fast needs CMake >= 3.24: `pip install cmake`, or your system's package")
        out = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        work = Path(self.build_temp).resolve() / "cmake"
        work.mkdir(parents=True, exist_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(work), "--fresh"),
            *("-DDDN_PYTHON=ON", "-DDDN_TESTS=OFF"),
            f"-DDDN_CUDA={os.environ.get('DDN_CUDA') or 'AUTO'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        if ninja := find_tool("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(work), "--target", "_C", "--parallel", jobs], check=True)


setup(ext_modules=[Extension("ddn_fast._C", [])], cmdclass={"build_ext": CMakeBuild})
