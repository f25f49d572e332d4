"""Instruction sets from features, for CPUs that the tests do not run on (test_isa.cpp); features, as Linux has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import build, check_equal

from ddn_fast import _C


def test_instruction_sets_follow_from_features(tmp_path: Path) -> None:
    check_equal(build("test_isa", tmp_path))


def test_features_are_those_that_linux_lists() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    if "avx2" not in flags:
        pytest.skip("Linux lists no x86 features here")
    found = _C.cpu_features()
    for name in ("avx2", "fma", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"):
        assert found[name] == (name in flags), name
