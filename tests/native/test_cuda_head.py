"""class_gate and merge_scores for CUDA, their own source, on the host under sanitizers (test_cuda_head.cpp)."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_build import build, check_contract, check_equal


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("test_cuda_head", tmp_path_factory.mktemp("emulation"))


def test_cuda_class_gate_and_merge_scores_equal_plain_loops_under_sanitizers(program: Path) -> None:
    check_equal(program)


def test_cuda_class_gate_refuses_a_label_out_of_range(program: Path) -> None:
    check_contract(program)
