"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from ddn_fast.data.voc import VocFolder


def pytest_configure() -> None:
    """Share the cores out among pytest-xdist's processes, unless OMP_NUM_THREADS says how many threads to use."""
    if "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for `cuda` by itself is one of the gpu tests, too."""
    for item in items:
        if "cuda" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def cuda() -> str:
    """A CUDA device: skips where there is none, fails there when DDN_REQUIRE_GPU=1."""
    if not torch.cuda.is_available():
        if os.environ.get("DDN_REQUIRE_GPU") == "1":
            pytest.fail("DDN_REQUIRE_GPU=1, but torch sees no CUDA device")
        pytest.skip("no CUDA device")
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions in float32; tests compare with float64
    return "cuda"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device in turn."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else request.param


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """The number of torch's threads is the same after the test as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks so narrow that threads would only wait for each other, for long where other work fills the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, saved."""
    from tiny_net import tiny_net

    from ddn_fast.weights import save

    folder = tmp_path_factory.mktemp("weights")
    save(tiny_net(), folder)
    return folder


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> VocFolder:
    """24 small training images (12 with masks), 4 for validation, 20 classes; not to be written to."""
    from ddn_fast.data.synthetic import Settings, generate  # wants OpenCV, which tests of the network do not
    from ddn_fast.data.voc import VocFolder

    root = tmp_path_factory.mktemp("generated") / "voc"
    settings = Settings(sides=(64, 80), objects=(1, 2), clutter=(0, 2))
    generate(root, train=12, closeups=12, val=4, seed=5, settings=settings, workers=1, progress=False)
    return VocFolder(root)


@pytest.fixture
def small(generated: VocFolder, tmp_path: Path) -> VocFolder:
    """A copy of the generated folder that a test may change."""
    from ddn_fast.data.voc import VocFolder

    shutil.copytree(generated.root, tmp_path / "voc")
    return VocFolder(tmp_path / "voc")
