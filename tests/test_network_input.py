"""network_input: an image as the network takes it, against MATLAB's slow loop and, bit for bit, the plain formula."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from op_cases import CASES
from slow_resize import slow_imresize_axis
from tiny_net import random_image

from ddn_fast import _C, ops, reference
from ddn_fast.config import MEAN_BGR, NetConfig
from ddn_fast.errors import ImageError
from ddn_fast.segmentation import Segmenter

SIDE = 64


class Square(Segmenter):
    """What takes images of SIDE pixels, by the compiled op."""

    config = NetConfig(side=SIDE, fc_kernel=1)
    ops = ops


network_input = Square().network_input

MEAN = torch.tensor(MEAN_BGR, dtype=torch.float64)[:, None, None]


@pytest.fixture(params=_C.cpu_isas(), autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine in turn."""
    monkeypatch.setenv("DDN_MAX_CPU_ISA", request.param)
    return request.param


@pytest.mark.parametrize(("height", "width"), [(37, 50), (50, 37), (64, 64), (5, 3), (1, 1), (300, 7)])
def test_it_pads_then_resizes_then_subtracts_the_mean(height: int, width: int) -> None:
    image = random_image(1, height, width)
    side = max(height, width)
    square = np.zeros((side, side, 3))
    square[:height, :width] = image
    resized = slow_imresize_axis(slow_imresize_axis(square, SIDE, False).transpose(1, 0, 2), SIDE, False).transpose(
        1, 0, 2
    )
    expected = (resized[..., ::-1] - np.array(MEAN_BGR)).transpose(2, 0, 1)
    result = network_input(image)
    assert result.dtype == torch.float32
    assert result.shape == (3, SIDE, SIDE)
    assert result.is_contiguous()
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=8e-6)  # half a unit in float32's last place


@pytest.mark.parametrize("case", [*CASES["network_input"], (375, 500, 320), (500, 333, 320)], ids=str)
def test_it_rounds_the_sums_of_float64_once(case: tuple[int, int, int]) -> None:
    height, width, side = case
    image = torch.from_numpy(random_image(2, height, width))
    got, wanted = ops.network_input(image, side), reference.network_input(image, side)
    for half in (torch.bfloat16, torch.float16):
        assert torch.equal(ops.network_input(image, side, half), got.to(half))
    # sums in another order may differ in float64's last places, and so fall on the other side of a tie: next to never
    assert (got != wanted).double().mean() <= 1e-5
    torch.testing.assert_close(got, wanted, rtol=2e-7, atol=1e-5)


@pytest.mark.parametrize("size", [(375, 500), (333, 500), (500, 281), (64, 64), (200, 100)])
def test_a_constant_area_stays_constant(size: tuple[int, int]) -> None:
    """In it every pooling window is an exact tie (SPEC section 9), which sums that round here and there would break."""
    for level in range(0, 256, 17):
        image = torch.full((*size, 3), level, dtype=torch.uint8)
        x = ops.network_input(image, 320)
        rows, columns = (int(n * 320 / max(size)) - 2 for n in size)
        assert torch.equal(x[:, :rows, :columns], (level - MEAN).float().expand(3, rows, columns))


def test_padding_reaches_the_network_as_minus_the_mean_exactly() -> None:
    for size, padding in (((64, 40), (slice(None), slice(41, None))), ((40, 64), (slice(41, None), slice(None)))):
        x = network_input(random_image(3, *size))[:, padding[0], padding[1]]
        assert torch.equal(x, -MEAN.float().expand_as(x))


def test_it_takes_any_strides_and_arrays_that_must_not_be_written_to() -> None:
    image = random_image(2, 20, 30)
    turned = image[::-1, ::-1]
    frozen = image.copy()
    frozen.flags.writeable = False
    wide = torch.from_numpy(np.ascontiguousarray(image.repeat(2, 1)))[:, ::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(network_input(turned), network_input(turned.copy()))
        assert torch.equal(network_input(frozen), network_input(image))
    assert torch.equal(ops.network_input(wide, SIDE), network_input(image))
    for row in (image[:1][::-1], image[:, :1][:, ::-1], image[:1, :1][::-1, ::-1]):  # contiguous, as numpy sees them
        assert torch.equal(network_input(row), network_input(row.copy()))


def test_what_is_no_image_is_a_named_error() -> None:
    with pytest.raises(ImageError, match="uint8"):
        network_input(np.zeros((4, 4, 3)))


BAD = [
    ((torch.zeros(4, 4, 3), 8), "image must be Byte, got Float"),
    ((torch.zeros(4, 3, dtype=torch.uint8), 8), "image must be [H,W,3] with H and W at least 1, got [4,3]"),
    ((torch.zeros(3, 4, 4, dtype=torch.uint8), 8), "image must be [H,W,3] with H and W at least 1, got [3,4,4]"),
    ((torch.zeros(0, 4, 3, dtype=torch.uint8), 8), "image must be [H,W,3] with H and W at least 1, got [0,4,3]"),
    ((torch.zeros(4, 4, 3, dtype=torch.uint8), 0), "side must be at least 1, got 0"),
    ((torch.zeros(4, 4, 3, dtype=torch.uint8), 8, torch.float64), "dtype must be Float, BFloat16 or Half, got Double"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[message for _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(args: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"network_input: {message}")):
        ops.network_input(*args)
