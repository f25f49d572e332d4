"""conv3x3 and its two other ends: every layout of the weights on every instruction set this machine has."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddn_fast import _C, ops, reference
from ddn_fast.errors import InputError
from ddn_fast.packing import Layout, pack_conv3x3, unpack_conv3x3

ISAS = _C.cpu_isas()
LAYOUTS: tuple[Layout, ...] = ("direct", "winograd", "winograd_int16", "pairs")


class Stage(NamedTuple):
    """N maps of channels[0] on H x W pixels through layers of channels[1:]."""

    maps: int
    channels: tuple[int, ...]
    height: int
    width: int

    def __str__(self) -> str:
        return f"N{self.maps}-{'x'.join(map(str, self.channels))}-{self.height}x{self.width}"


# the first layer's 3 channels, cut blocks, tiles cut both ways, maps narrower than a register tile, both ways through a
# stage (large maps by rows, small ones with wide layers by channels), several bands, more maps than one group
STAGES = (
    Stage(2, (3, 16, 16), 8, 12),
    Stage(1, (3, 40, 33), 64, 36),
    Stage(2, (64, 64, 64), 40, 28),
    Stage(3, (40, 33, 64, 70), 10, 14),
    Stage(1, (32, 32), 2, 2),
    Stage(5, (96, 96, 96, 64), 4, 4),
    Stage(1, (4, 5), 6, 10),
    Stage(2, (2, 7), 6, 4),
    Stage(0, (8, 8), 4, 4),
    Stage(2, (5, 8, 6), 2, 18),
    Stage(1, (36, 32), 34, 2),
    Stage(1, (24, 32, 40, 20), 130, 20),
)


class Case(NamedTuple):
    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


def make(stage: Stage, layout: Layout, dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(stage.maps, stage.channels[0], stage.height, stage.width, generator=generator).to(dtype)
    weights, biases = [], []
    for c, o in zip(stage.channels, stage.channels[1:], strict=False):
        weight = torch.randn(o, c, 3, 3, generator=generator) / (4.5 * c) ** 0.5
        weights.append(pack_conv3x3(weight, "direct" if "winograd" in layout and 9 * c <= 32 else layout))
        biases.append(0.1 * torch.randn(o, generator=generator))
    return Case(x, weights, biases)


def exact(case: Case, *switches: Tensor) -> Tensor:
    return reference.conv3x3(case.x.double(), case.weights, case.biases, *switches)


def tolerance(case: Case, layout: Layout) -> float:
    """A few times the error of torch's own convolution in the same dtype.

    Ours adds all inputs of a pixel in one row, on the plain instruction set without fused multiply-adds; winograd
    doubles what is rounded. winograd_int16 rounds a tile's inputs by its largest one: see also
    :func:`test_whole_numbers_are_those_of_the_formula`.
    """
    wanted = exact(case)
    if not wanted.numel():
        return 0.0
    plain = float((reference.conv3x3(case.x, case.weights, case.biases).double() - wanted).abs().max())
    rounded = float(wanted.abs().max()) * (2**-8 if case.x.dtype == torch.bfloat16 or layout == "pairs" else 0)
    rounded += float(wanted.abs().max()) * 2**-7 * len(case.weights) * (layout == "winograd_int16")
    return (8 if layout == "winograd" else 4) * plain + rounded + 1e-6


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got.double() - wanted).abs().max()) if got.numel() else 0.0


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DDN_MAX_CPU_ISA", request.param)
    assert _C.cpu_isa() == request.param
    return request.param


# packing


@pytest.mark.parametrize("channels", [(5, 4), (64, 64), (70, 40), (7, 3), (33, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_is_undone_by_unpacking(layout: Layout, channels: tuple[int, int]) -> None:
    out, inputs = channels
    weight = torch.randn(out, inputs, 3, 3, generator=torch.Generator().manual_seed(0))
    if "winograd" in layout and inputs <= 3:
        with pytest.raises(InputError, match="at least 4 input channels"):
            pack_conv3x3(weight, layout)
        return
    found = unpack_conv3x3(pack_conv3x3(weight, layout), out, inputs)
    wanted = weight.bfloat16().double() if layout == "pairs" else weight.double()
    assert error(found, wanted) <= {"winograd": 1e-6, "winograd_int16": 2e-3}.get(layout, 0)


def test_pairs_layout_is_float16_where_that_is_asked_for() -> None:
    weight = torch.randn(33, 40, 3, 3)
    packed = pack_conv3x3(weight, "pairs", torch.float16)
    assert packed.dtype == torch.float16
    assert torch.equal(unpack_conv3x3(packed, 33, 40), weight.half().double())


def test_packed_padding_is_zero() -> None:
    for layout in LAYOUTS:
        packed = pack_conv3x3(torch.ones(5, 4, 3, 3), layout)
        taps = 36 if "winograd" in layout else 9
        scales = 36 * 5 * 2 if layout == "winograd_int16" else 0  # halves of float32
        assert int((packed != 0).sum()) <= 5 * 4 * taps + scales


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (torch.zeros(2, 2), "wanted 5, 6 or 7 dimensions, got 2"),
        (torch.zeros(1, 1, 9, 32, 32), "wanted the weights of 40 to 5 channels, got [1, 1, 9, 32, 32]"),
        (torch.zeros(1, 6, 6, 17, 32, 2).short(), "wanted the weights of 40 to 5 channels, got [1, 6, 6, 17, 32, 2]"),
        (torch.zeros(1, 6, 6, 1, 32, 32).short(), "wanted the weights of 40 to 5 channels, got [1, 6, 6, 1, 32, 32]"),
    ],
)
def test_unpacking_what_was_not_packed_is_an_error(packed: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        unpack_conv3x3(packed, 5, 40)


# values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stage_equals_its_plain_formula_in_float64(layout: Layout, stage: Stage, dtype: torch.dtype, isa: str) -> None:
    case = make(stage, layout, dtype)
    got = ops.conv3x3(*case)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert error(got, exact(case)) <= tolerance(case, layout)


@pytest.mark.parametrize("stage", [s for s in STAGES if s.channels[0] > 3], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpooling_on_the_way_in_changes_no_bit(layout: Layout, stage: Stage, isa: str) -> None:
    """Identity 8: the same as a convolution of the unpooled map, which need not exist."""
    for dtype in (torch.float32, torch.bfloat16):
        case = make(stage, layout, dtype)
        images = max(stage.maps - 1, 1)
        generator = torch.Generator().manual_seed(1)
        shape = images, stage.height, stage.width, -(-stage.channels[0] // 4)
        switches = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        of_pass = torch.randint(0, images, (stage.maps,), generator=generator)
        unpooled = ops.max_unpool2x2(case.x, switches, 2 * stage.height, 2 * stage.width, of_pass)
        got = ops.conv3x3(*case, switches, of_pass)
        assert torch.equal(got, ops.conv3x3(unpooled, case.weights, case.biases))
        if stage.maps == images:
            assert torch.equal(ops.conv3x3(*case, switches), ops.conv3x3(*case, switches, torch.arange(images)))


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooling_on_the_way_out_changes_no_bit(layout: Layout, stage: Stage, isa: str) -> None:
    case = make(stage, layout)
    y, switches = ops.conv3x3_max_pool2x2(*case)
    wanted, wanted_switches = ops.max_pool2x2(ops.conv3x3(*case))
    assert torch.equal(y, wanted)
    assert torch.equal(switches, wanted_switches)
    y, switches = ops.conv3x3_max_pool2x2(case.x.bfloat16(), case.weights, case.biases)
    full = ops.conv3x3(case.x.bfloat16(), case.weights, case.biases)
    assert torch.equal(y, ops.max_pool2x2(full)[0])
    assert torch.equal(ops.gather2x2(full, switches), y)  # rounding makes ties, so switches may name another of equals


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_score_is_a_dot_product_of_the_result(layout: Layout, stage: Stage, isa: str) -> None:
    case = make(stage, layout)
    weight, bias = torch.randn(stage.channels[-1], generator=torch.Generator().manual_seed(2)), torch.tensor([0.5])
    got = ops.conv3x3_score(*case, weight, bias)
    wanted = torch.einsum("nchw,c->nhw", ops.conv3x3(*case).double(), weight.double()) + 0.5
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    limit = 2**-8 if layout == "pairs" and isa == "amx_bf16" else 1e-6
    assert error(got, wanted) <= 4 * limit * float(weight.abs().sum())


@pytest.mark.parametrize("layout", ["direct", "winograd", "winograd_int16"])
def test_layers_in_one_stage_equal_layers_one_by_one(layout: Layout, isa: str) -> None:
    case = make(Stage(2, (40, 33, 64, 70), 24, 20), layout)
    x = case.x
    for weight, bias in zip(case.weights, case.biases, strict=True):
        x = ops.conv3x3(x, [weight], [bias])
    assert torch.equal(ops.conv3x3(*case), x)


def test_layouts_may_be_mixed_in_a_stage(isa: str) -> None:
    stage = Stage(2, (3, 40, 64, 40, 36), 12, 16)
    cases = [make(stage, layout) for layout in LAYOUTS]
    mixed = Case(cases[0].x, [case.weights[k] for k, case in enumerate(cases)], cases[0].biases)
    assert error(ops.conv3x3(*mixed), exact(mixed)) <= tolerance(mixed, "winograd_int16")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_depends_neither_on_threads_nor_on_the_batch(layout: Layout, restore_threads: None) -> None:
    """In bands of rows, layer by layer, by parts of a map: each of the stages goes more than one of these ways."""
    stages = (
        Stage(3, (16, 33, 20), 60, 28),
        Stage(5, (96, 64, 96), 12, 12),
        Stage(1, (96, 64, 96), 26, 22),
        Stage(1, (64, 64, 64), 96, 96),
    )
    for stage in stages:
        case = make(stage, layout)
        found = []
        for threads in (1, 2, 3, 5, 40):
            torch.set_num_threads(threads)
            found.append(ops.conv3x3(*case))
        assert all(torch.equal(found[0], other) for other in found[1:])
        one_by_one = [ops.conv3x3(case.x[k : k + 1], case.weights, case.biases) for k in range(stage.maps)]
        assert torch.equal(found[0], torch.cat(one_by_one))


@pytest.mark.parametrize("layers", [1, 3, 5, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_above_a_band_are_all_there(layout: Layout, layers: int, restore_threads: None) -> None:
    """However many layers reach up from a band, to the map's own edge too; what scratch held before must not matter."""
    case = make(Stage(1, (8,) * (layers + 1), 24, 24), layout)
    poison = Case(torch.full((1, 8, 64, 64), torch.nan), case.weights, case.biases)
    torch.set_num_threads(1)
    wanted = ops.conv3x3(*case)
    assert wanted.isfinite().all()
    torch.set_num_threads(6)
    ops.conv3x3(*poison)
    assert torch.equal(ops.conv3x3(*case), wanted)


def constant_in_places(stage: Stage) -> Tensor:
    """Noise with rectangles over each other: constant, the same along rows, columns or a diagonal, or in steps."""
    generator = torch.Generator().manual_seed(0)
    size = (stage.maps, stage.channels[0])
    x = torch.randn(*size, stage.height, stage.width, generator=generator)
    row, column = torch.arange(stage.height)[:, None], torch.arange(stage.width)
    lines = (0 * row, row, 0 * row + column, row + column, row - column, row // 5, 0 * row + column // 5)
    for line in (line + 0 * column for line in lines * 4):
        top, left = (int(torch.randint(0, side - 5, (), generator=generator)) for side in (stage.height, stage.width))
        here = (slice(None), slice(None), slice(top, top + 14), slice(left, left + max(11, stage.width // 3)))
        values = torch.randn(*size, stage.height + stage.width, generator=generator)
        x[here] = values[..., line][here]  # a negative place counts from the end
    return x.relu()


@pytest.mark.parametrize("layout", ["direct", "winograd"])
@pytest.mark.parametrize(
    "stage",
    [
        Stage(2, (32, 40, 32), 46, 34),
        Stage(1, (16, 20, 24, 20), 90, 26),
        Stage(2, (64, 64, 33), 20, 22),
        Stage(1, (8, 8, 8), 34, 230),
    ],
    ids=str,
)
def test_of_values_that_tie_in_a_window_the_first_wins(
    stage: Stage, layout: Layout, isa: str, restore_threads: None
) -> None:
    """Where neighbouring places have the same inputs: winograd or not, by rows or by channels, whatever the threads."""
    case = make(stage, layout)._replace(x=constant_in_places(stage))
    y = exact(case)
    largest, second = F.unfold(y.flatten(0, 1)[:, None], 2, stride=2).topk(2, 1).values.unbind(1)
    pooled_size = (*y.shape[:2], stage.height // 2, stage.width // 2)
    gap = (largest - second).view(pooled_size)
    tied, clear = gap < 1e-12, gap > 1e-5
    assert (tied & (largest.view(pooled_size) > 0)).sum() > 100
    equal = torch.where(F.interpolate(largest.view(pooled_size), scale_factor=2) - y < 1e-12, 1.0, 0.0)
    wanted = reference.max_pool2x2(equal)[1]
    torch.set_num_threads(1)
    pooled, got = ops.conv3x3_max_pool2x2(*case)
    torch.set_num_threads(3)
    for one, other in zip(ops.conv3x3_max_pool2x2(*case), (pooled, got), strict=True):
        assert torch.equal(one, other)

    def places(switches: Tensor) -> Tensor:
        return ops.max_unpool2x2(torch.ones(pooled_size), switches, stage.height, stage.width)

    wrong = F.max_pool2d((places(got) - places(wanted)).abs(), 2) > 0
    assert not (wrong & (tied | clear)).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_reach_the_result(layout: Layout, isa: str) -> None:
    case = make(Stage(1, (8, 8), 12, 12), layout)
    for value in (torch.nan, -torch.nan, torch.inf):
        case.x[0, 3, 5, 5] = value
        y = ops.conv3x3(*case)
        assert not y[:, :, 4:7, 4:7].isfinite().all()
        assert not ops.conv3x3_max_pool2x2(*case)[0].isfinite().all()
        assert y[:, :, 10:, :2].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unused_switch_bits_are_zero_whatever_the_input(layout: Layout, isa: str) -> None:
    """What is padded with zero weights is NaN, too, where an input is infinite."""
    case = make(Stage(1, (8, 37), 12, 12), layout)
    for value in (torch.nan, torch.inf):
        case.x[0, 3, 5, 5] = value
        assert not (ops.conv3x3_max_pool2x2(*case)[1][..., -1] >> 2).any()


def test_input_of_any_strides_and_alignment(isa: str) -> None:
    case = make(Stage(2, (8, 8), 8, 6), "direct")
    wanted = ops.conv3x3(*case)
    channels_last = case.x.contiguous(memory_format=torch.channels_last)
    strided = case.x.repeat_interleave(2, dim=3)[..., ::2]
    flat = torch.empty(case.x.numel() + 1)[1:].view(2, 8, 6, 8).permute(0, 3, 1, 2).copy_(case.x)
    for x in (channels_last, strided, flat):
        assert torch.equal(ops.conv3x3(x, case.weights, case.biases), wanted)
    biases = [torch.stack([b, b], dim=1)[:, 0] for b in case.biases]
    assert torch.equal(ops.conv3x3(case.x, case.weights, biases), wanted)


def test_transposed_convolution_is_packed_as_the_convolution_it_equals(isa: str) -> None:
    """Identity 9."""
    weight = torch.randn(12, 20, 3, 3, generator=torch.Generator().manual_seed(0)) / 10
    x = torch.randn(1, 12, 10, 10, generator=torch.Generator().manual_seed(1))
    packed = pack_conv3x3(weight.flip(2, 3).transpose(0, 1), "direct")
    wanted = F.relu(F.conv_transpose2d(x.double(), weight.double(), padding=1))
    assert error(ops.conv3x3(x, [packed], [torch.zeros(20)]), wanted) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_sides_and_single_pixels(layout: Layout, isa: str) -> None:
    for height, width in ((1, 1), (1, 9), (7, 1), (5, 7), (33, 3)):
        case = make(Stage(2, (6, 9, 33), height, width), layout)
        assert error(ops.conv3x3(*case), exact(case)) <= tolerance(case, layout)


# winograd_int16

# B^T and A^T of F(4x4, 3x3) at 0, +-sqrt(1/2), +-sqrt(2), infinity
R = 2**0.5
INPUTS = torch.tensor(
    [
        [1, 0, -2.5, 0, 1, 0],
        [0, -R, -2, R / 2, 1, 0],
        [0, R, -2, -R / 2, 1, 0],
        [0, -R / 2, -0.5, R, 1, 0],
        [0, R / 2, -0.5, -R, 1, 0],
        [0, 1, 0, -2.5, 0, 1],
    ],
    dtype=torch.float64,
)
OUTPUTS = torch.tensor(
    [
        [1, 1, 1, 1, 1, 0],
        [0, R / 2, -R / 2, R, -R, 0],
        [0, 0.5, 0.5, 2, 2, 0],
        [0, R / 4, -R / 4, 2 * R, -2 * R, 1],
    ],
    dtype=torch.float64,
)


def by_whole_numbers(x: Tensor, packed: Tensor, out: int, *, rounded: bool = True) -> tuple[Tensor, Tensor]:
    """The layer without bias and ReLU as conv3x3_winograd_int16.h says, in float64; and the sums of its products.

    x ``[N,C,H,W]``, H and W multiples of 4. Returns ``[N,O,H,W]``, and ``[N,T,36,C/64,O]``, T tiles.
    """
    n, c, h, w = x.shape
    blocks = -(-c // 64)
    windows = F.pad(x.double(), (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4)  # [N,C,H/4,W/4,6,6]
    largest = windows.abs().amax((1, 4, 5))  # [N,H/4,W/4]
    bound = INPUTS.abs().sum(1)
    unit = largest[:, None, :, :, None, None] * bound[:, None] * bound / 32760
    d = torch.einsum("ij,ncyxjk,lk->ncyxil", INPUTS, windows, INPUTS) / unit.clamp(min=1e-30)
    d = (d.round() if rounded else d).permute(0, 2, 3, 4, 5, 1).reshape(n, -1, 36, c)
    rows = packed.flatten(1, 2)
    scale = rows[:, :, -1].contiguous().view(torch.float32).double().squeeze(3).permute(1, 0, 2).flatten(1)[:, :out]
    g = rows[:, :, :-1].double().permute(1, 2, 4, 0, 3).flatten(3).flatten(1, 2)[:, :c, :out]  # [36,C,O]
    d = F.pad(d, (0, 64 * blocks - c)).unflatten(3, (blocks, 64))
    g = F.pad(g, (0, 0, 0, 64 * blocks - c)).unflatten(1, (blocks, 64))
    sums = torch.einsum("ntkbc,kbco->ntkbo", d, g)
    m = (sums.sum(3) * scale).unflatten(2, (6, 6)).unflatten(1, (h // 4, w // 4))
    y = torch.einsum("pi,nyxijo,qj->noypxq", OUTPUTS, m, OUTPUTS) * largest[:, None, :, None, :, None]
    return y.reshape(n, out, h, w), sums


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("channels", [(8, 8), (70, 40), (200, 33)])
def test_whole_numbers_are_those_of_the_formula(channels: tuple[int, int], isa: str) -> None:
    """But for inputs that lie between two in float64 and fall to the other side in float."""
    c, o = channels
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, c, 12, 20, generator=generator).relu()
    weight = torch.randn(o, c, 3, 3, generator=generator) / (4.5 * c) ** 0.5
    packed = pack_conv3x3(weight, "winograd_int16")
    wanted, _ = by_whole_numbers(x, packed, o)
    got = ops.conv3x3(x, [packed], [torch.full((o,), 9.0)]) - 9.0  # no sum is below
    exactly = F.conv2d(x.double(), weight.double(), padding=1)
    lost = rms(wanted - exactly) / rms(exactly)
    assert 1e-4 < lost < 2e-3  # 1.7e-3 is what rounding weights to bfloat16 costs
    assert rms(got - wanted) < 0.25 * lost * rms(exactly)
    inputs_whole, _ = by_whole_numbers(x, packed, o, rounded=False)
    assert rms(inputs_whole - exactly) < 0.9 * rms(wanted - exactly)  # both roundings tell: the formula has both


@pytest.mark.parametrize("inputs", [64, 96, 512])
def test_no_sum_of_whole_numbers_overflows(inputs: int, isa: str) -> None:
    """Where every input is as large as can be and has its weight's sign, at each of the points in turn."""
    corner = INPUTS.sign()[:, None, :, None] * INPUTS.sign()[None, :, None, :]  # what makes a point as large as can be
    x = corner.reshape(36, 1, 6, 6).expand(36, inputs, 6, 6).float()
    x = F.pad(x, (3, 3, 3, 3)).contiguous()  # the window of the tile that begins at pixel 4
    signs = torch.randint(0, 2, (inputs,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    x *= signs[:, None, None]
    weight = (torch.randn(32, 1, 3, 3, generator=torch.Generator().manual_seed(1)) * signs[:, None, None]).float()
    packed = pack_conv3x3(weight, "winograd_int16")
    wanted, sums = by_whole_numbers(x, packed, 32)
    assert 0.9 * 2**31 < float(sums.abs().max()) < 2**31
    got = ops.conv3x3(x, [packed], [torch.full((32,), 1e4)]) - 1e4
    assert error(got, wanted) < 1e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("odd", [0, 32])
def test_rounding_takes_no_sum_of_whole_weights_too_far(odd: int) -> None:
    """Where all inputs have one weight, all are rounded the same way: by 32 together at worst."""
    weight = torch.ones(96, 128, 3, 3) * (1 + torch.arange(96) / 96)[:, None, None, None]
    weight[:, :odd] *= -1.25
    whole = pack_conv3x3(weight, "winograd_int16")[:, :, :, :-1].long()  # [O/32,6,6,C/2,32,2]
    sums = whole.abs().unflatten(3, (2, 32)).sum((4, 6))
    assert 65000 < int(sums.max()) <= 65535


def test_a_tile_of_small_values_is_as_exact_as_one_of_large_ones(isa: str) -> None:
    """Scales are a tile's own."""
    case = make(Stage(1, (40, 32), 16, 16), "winograd_int16")
    bias = [torch.zeros(32)]
    wanted = ops.conv3x3(case.x, case.weights, bias)
    for factor in (2.0**-90, 2.0**60):  # powers of two: the same bits
        assert torch.equal(ops.conv3x3(case.x * factor, case.weights, bias), wanted * factor)
    assert not ops.conv3x3(case.x * 1e-36, case.weights, bias).any()  # too small to be scaled
    assert torch.equal(ops.conv3x3(case.x * 0, case.weights, bias), wanted * 0)
    apart = case.x.clone()
    apart[:, :, :5] *= 2.0**-20  # all that the first row of tiles sees
    assert torch.equal(ops.conv3x3(apart, case.weights, bias)[:, :, :4], wanted[:, :, :4] * 2.0**-20)


def test_weights_of_any_size_are_packed_as_whole_numbers(isa: str) -> None:
    """Outputs have scales of their own; one of nothing but zeros gives its bias."""
    case = make(Stage(1, (40, 4), 8, 8), "direct")
    weight = unpack_conv3x3(case.weights[0], 4, 40)
    weight *= torch.tensor([1.0, 1e-30, 0.0, 1e6])[:, None, None, None]
    y = ops.conv3x3(case.x, [pack_conv3x3(weight, "winograd_int16")], [torch.tensor([0.0, 0.0, 0.5, 0.0])])
    wanted = F.relu(F.conv2d(case.x.double(), weight, torch.tensor([0, 0, 0.5, 0]).double(), padding=1))
    for o in range(4):
        assert rms(y[:, o] - wanted[:, o]) <= 2e-3 * rms(wanted[:, o])
    assert (y[:, 2] == 0.5).all()


# wrong arguments

X = torch.zeros(2, 8, 4, 4)
W = [pack_conv3x3(torch.zeros(8, 8, 3, 3), "direct")]
B = [torch.zeros(8)]
SWITCHES = torch.zeros(2, 4, 4, 2, dtype=torch.uint8)
SCORE = torch.zeros(8), torch.zeros(1)
BAD = [
    ("conv3x3", (X[0], W, B), "x must be [N,C,H,W], got [8,4,4]"),
    ("conv3x3", (X.double(), W, B), "x must be Float or BFloat16, got Double"),
    ("conv3x3", (X, [], []), "weights and biases must be lists of 1 to 8 layers, got 0 and 0"),
    ("conv3x3", (X, W, B * 2), "weights and biases must be lists of 1 to 8 layers, got 1 and 2"),
    ("conv3x3", (X, [torch.zeros(8, 8, 3, 3)], B), "weights[0] must be packed by pack_conv3x3 for 8 to 8 channels"),
    ("conv3x3", (X, W, [torch.zeros(40)]), "weights[0] must be packed by pack_conv3x3 for 8 to 40 channels"),
    ("conv3x3", (X, W, [torch.zeros(0)]), "biases[0] must be [O] with O at least 1, got [0]"),
    ("conv3x3", (X, W, [torch.zeros(8).double()]), "biases[0] must be Float, got Double"),
    ("conv3x3", (X, W, B, SWITCHES[:, :3]), "switches must be [2,4,4,2], got [2,3,4,2]"),
    ("conv3x3", (X, W, B, SWITCHES, torch.tensor([0, 2])), "image_of_pass must be in 0..1, got 2 at [1]"),
    ("conv3x3", (X, W, B, None, torch.tensor([0, 1])), "image_of_pass must be None where switches are"),
    ("conv3x3_max_pool2x2", (X[:, :, :3], W, B), "x must have an even height and width, got [2,8,3,4]"),
    ("conv3x3_score", (X, W, B, torch.zeros(7), SCORE[1]), "score_weight must be [8], got [7]"),
    ("conv3x3_score", (X, W, B, SCORE[0], torch.zeros(2)), "score_bias must be [1], got [2]"),
]


@pytest.mark.parametrize(("name", "args", "message"), BAD, ids=[f"{name}: {message}" for name, _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(name: str, args: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"{name}: {message}")):
        getattr(ops, name)(*args)


def test_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDN_MAX_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match=r"DDN_MAX_CPU_ISA must be plain, avx2, .* got sse9"):
        ops.conv3x3(X, W, B)


def test_memory_that_runs_out_in_a_thread_is_a_memory_error() -> None:
    """And what is asked for next is computed."""
    program = """
import resource, torch
from ddn_fast import ops
from ddn_fast.packing import pack_conv3x3

torch.set_num_threads(2)
weights, biases = [pack_conv3x3(torch.randn(32, 32, 3, 3), "winograd")], [torch.zeros(32)]
small, wide = (torch.rand(1, 32, 4, w).to(memory_format=torch.channels_last) for w in (8, 400_000))
wanted = ops.conv3x3(small, weights, biases)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (400 << 20),) * 2)
for _ in range(2):
    try:
        ops.conv3x3(wide, weights, biases)
    except MemoryError as error:
        print(error)
assert torch.equal(ops.conv3x3(small, weights, biases), wanted)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["std::bad_alloc"] * 2
