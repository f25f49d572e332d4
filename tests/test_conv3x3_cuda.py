"""The convolution on a GPU, by the portable kernel and by the device's best, in shapes that sm_90a's takes."""

from __future__ import annotations

import pytest
import torch
from op_cases import Conv3x3, results
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ddn_fast import _C, ops, reference

# one and several tiles of each kind, with a rest and without; slices of the input channels; unpooled and not
STAGES = (
    Conv3x3(2, (64, 128, 64), 40, 32, 1),
    Conv3x3(3, (96, 64), 20, 20, 2),
    Conv3x3(1, (512, 512, 72), 10, 26),
    Conv3x3(5, (8, 64), 22, 18),
)
OPS = ("conv3x3", "conv3x3_max_pool2x2", "conv3x3_score")


@pytest.mark.parametrize("isa", ["mma", "the device's best"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", OPS)
def test_convolution_on_cuda_is_as_exact_as_plain_torch_by_either_instruction(
    name: str, dtype: torch.dtype, isa: str, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDN_MAX_CUDA_ISA", raising=False)
    if isa == "mma":
        monkeypatch.setenv("DDN_MAX_CUDA_ISA", isa)
        assert _C.cuda_isa() == "mma"
    for case in STAGES:
        args = case.scored(dtype) if name == "conv3x3_score" else case(dtype)
        exact = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, args)
        on_cuda = tree_map_only(Tensor, lambda x: x.to(cuda), args)
        wanted, plain = (results(getattr(reference, name)(*of))[0] for of in (exact, args))
        got = results(getattr(ops, name)(*on_cuda))[0].cpu()
        error, plain_error = ((y.double() - wanted).abs().max() for y in (got, plain))
        tiny = 8 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert error <= 2 * plain_error + tiny, (case, error, plain_error)


def test_unknown_instructions_of_cuda_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _C.build_info()["cuda_archs"]:
        pytest.skip("built without CUDA kernels")
    monkeypatch.setenv("DDN_MAX_CUDA_ISA", "sse9")
    with pytest.raises(RuntimeError, match="DDN_MAX_CUDA_ISA must be mma or wgmma, got sse9"):
        _C.cuda_isa()


def test_instructions_of_cuda_are_none_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDN_MAX_CUDA_ISA", raising=False)
    assert (_C.cuda_isa() is None) == (not torch.cuda.is_available() or not _C.build_info()["cuda_archs"])
