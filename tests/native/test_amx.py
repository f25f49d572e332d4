"""dense for AMX: its own source, compiled with emulated tiles and sanitizers, against plain loops (test_amx.cpp)."""

from __future__ import annotations

from pathlib import Path

from native_build import VECTORS, build, check_equal


def test_amx_kernels_equal_plain_loops_under_sanitizers(tmp_path: Path) -> None:
    check_equal(build("test_amx", tmp_path, ["-DDDN_EMULATE_AMX", *VECTORS]))
