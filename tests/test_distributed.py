"""What several processes compute together equals what one computes of all their values."""

from __future__ import annotations

import pytest
import torch
from processes import HERE, run
from safetensors.torch import load_file, save_file

from ddn_fast import distributed

COUNTS = [5, 0, 2]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """What three processes were given, of which one has nothing, and what each got."""
    folder = tmp_path_factory.mktemp("moments")
    generator = torch.Generator().manual_seed(0)
    offset = torch.tensor([0.0, 3.0, 1e4, -1e5])  # E[x^2] - E[x]^2 in float32 has nothing left of the last two
    x = offset + torch.randn(sum(COUNTS), 4, generator=generator).double()
    given = {
        "x": x.float().double(),
        "weight": torch.randn(x.shape, generator=generator).double(),
        "counts": torch.tensor(COUNTS),
    }
    save_file(given, folder / "given.safetensors")
    run(3, HERE / "moments_program.py", folder)
    return given, [load_file(folder / f"{rank}.safetensors") for rank in range(3)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_global_moments_are_those_of_all_values_with_their_gradient(
    moments: tuple, dtype: torch.dtype, tolerance: float
) -> None:
    given, found = moments
    x = given["x"].requires_grad_()
    var, mean = torch.var_mean(x, 0, correction=0)
    loss = ((x - mean) / var.sqrt() * given["weight"]).sum() + (1 + 2 + 3) * (mean.square() + var).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    for rank, (got, wanted) in enumerate(zip(found, gradient.split(COUNTS), strict=True)):
        assert got[f"{dtype} mean"].dtype == dtype
        assert torch.equal(got[f"{dtype} mean"], found[0][f"{dtype} mean"]), rank
        torch.testing.assert_close(got[f"{dtype} mean"].double(), mean, rtol=tolerance, atol=0)
        if dtype == torch.float64:  # in float32 a process's own mean of order 1e5 is rounded before it comes here
            torch.testing.assert_close(got[f"{dtype} var"], var, rtol=1e-10, atol=0)
            torch.testing.assert_close(got[f"{dtype} gradient"], wanted, rtol=1e-9, atol=1e-9)
        else:
            torch.testing.assert_close(got[f"{dtype} var"].double(), var, rtol=5e-3, atol=0)
            near = got[f"{dtype} gradient"].double()[:, :2]
            torch.testing.assert_close(near, wanted[:, :2], rtol=1e-4, atol=1e-5)


def test_a_process_that_works_alone_keeps_its_own_moments(moments: tuple) -> None:
    assert [got["alone"].tolist() for got in moments[1]] == [[0, 0], [1, 1], [2, 2]]


def test_without_a_process_group_nothing_changes() -> None:
    mean, var = torch.randn(3), torch.rand(3)
    got = distributed.global_moments(mean, var, 7)
    assert got[0] is mean
    assert got[1] is var
    assert (distributed.size(), distributed.rank(), distributed.together()) == (1, 0, False)
