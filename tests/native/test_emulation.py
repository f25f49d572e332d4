"""The kernels' own source, CUDA's too, compiled by g++ with sanitizers, against plain loops (test_emulation.cpp)."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import VECTORS, build, check_contract, check_equal


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("test_emulation", tmp_path_factory.mktemp("emulation"), VECTORS)


def test_kernels_of_both_devices_equal_plain_loops_under_sanitizers(program: Path) -> None:
    check_equal(program)


def test_kernel_refuses_an_image_of_pass_out_of_range(program: Path) -> None:
    check_contract(program)
