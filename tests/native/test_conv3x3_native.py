"""The convolutions' own source, AMX tiles emulated, under sanitizers against plain loops (test_*conv3x3*.cpp)."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import QUIET, VECTORS, build, check_equal

from ddn_fast import _C

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512bf16", "-mbmi2"]


@pytest.mark.parametrize("flags", [[], AVX512], ids=["plain", "avx512_bf16"])
def test_convolution_equals_plain_loops_under_sanitizers(flags: list[str], tmp_path: Path) -> None:
    if flags and "avx512_bf16" not in _C.cpu_isas():
        pytest.skip("no AVX512_BF16 here to run the intrinsics around the tiles")
    check_equal(build("test_conv3x3", tmp_path, ["-DDDN_EMULATE_AMX", *VECTORS, *QUIET, *flags]))


@pytest.mark.parametrize("flags", [[], AVX512], ids=["plain", "avx512"])
def test_layer_in_training_and_its_gradients_equal_plain_loops_under_sanitizers(
    flags: list[str], tmp_path: Path
) -> None:
    if flags and "avx512_bf16" not in _C.cpu_isas():
        pytest.skip("no AVX512_BF16 here")
    check_equal(build("test_deconv3x3_moments", tmp_path, [*VECTORS, *QUIET, *flags]))
