"""The CUDA convolution's own source, on the host under sanitizers, against plain loops (test_cuda_conv3x3*.cpp)."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import build, check_contract, check_equal


@pytest.fixture(scope="module", params=["test_cuda_conv3x3", "test_cuda_conv3x3_wgmma"], ids=["portable", "sm_90a"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("emulation"))


def test_cuda_convolution_equals_plain_loops_under_sanitizers(program: Path) -> None:
    check_equal(program)


def test_cuda_convolution_refuses_an_image_of_pass_out_of_range(program: Path) -> None:
    check_contract(program)
