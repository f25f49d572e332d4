"""float16 as the CPU kernels write it (test_vec.cpp), in every width of register that this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import QUIET, VECTORS, build, check_equal

from ddn_fast import _C

WIDTHS = {"plain": [], "avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]}


@pytest.mark.parametrize("isa", WIDTHS)
def test_float16_is_the_nearest_and_even_in_ties(tmp_path: Path, isa: str) -> None:
    if isa not in _C.cpu_isas():
        pytest.skip(f"this machine has no {isa}")
    check_equal(build("test_vec", tmp_path, [*VECTORS, *QUIET, *WIDTHS[isa]]))
