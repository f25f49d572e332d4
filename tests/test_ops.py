"""The fused ops against their plain formulas, torch's own pooling, and their contract."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from op_cases import (
    CASES,
    DTYPES,
    INPUTS,
    LAYOUTS,
    SHAPES,
    TRAINING,
    Shape,
    channels_last,
    make_image_of_pass,
    make_map,
    make_switches,
    results,
    small_case,
)
from torch import Tensor

import ddn_fast
from ddn_fast import ops, reference

ROOT = Path(__file__).parent.parent
SMALL = Shape(2, 3, 5, 5, 4)


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape and values, NaN equal to NaN, in float64 so that no dtype is narrowed."""
    a, b = a.cpu().double(), b.cpu().double()
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def torch_index(switches: Tensor, channels: int, width: int) -> Tensor:
    """Switches as the flat indices of torch.max_pool2d ``[B,C,h,w]``."""
    position = reference.unpack_switches(switches, channels).long()
    rows = 2 * torch.arange(position.shape[2], device=switches.device)[:, None]
    columns = 2 * torch.arange(position.shape[3], device=switches.device)
    return (rows + position // 2) * width + columns + position % 2


# values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_op_equals_its_plain_formula_in_float64(name: str, shape: Shape, dtype: torch.dtype, device: str) -> None:
    x, *rest = INPUTS[name](shape, dtype, device)
    wanted = results(getattr(reference, name)(x.double(), *rest))
    for layout, relayout in LAYOUTS.items():
        got = results(getattr(ops, name)(relayout(x), *rest))
        assert got[0].dtype == dtype
        assert got[0].is_contiguous(memory_format=torch.channels_last)
        for g, w in zip(got, wanted, strict=True):
            assert equal(g, w), layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool_agrees_with_torch_on_ties_nan_infinities_and_signed_zeros(dtype: torch.dtype, device: str) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, -torch.nan], dtype=dtype)
    choice = torch.randint(0, 8, (8, 21, 16, 17), generator=torch.Generator().manual_seed(3))
    x = special[choice].to(device)
    y, switches = ops.max_pool2x2(x)
    wanted, index = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    assert equal(y, wanted)
    assert torch.equal(torch_index(switches, 21, 17), index)


def test_first_of_equals_wins(device: str) -> None:
    _, switches = ops.max_pool2x2(torch.zeros(1, 8, 4, 4, device=device))
    assert not switches.any()


def test_unused_switch_bits_are_zero(device: str) -> None:
    x = torch.zeros(1, 5, 2, 2, device=device)
    x[:, :, 1, 1] = 1  # every switch is 3
    assert ops.max_pool2x2(x)[1].flatten().tolist() == [0b11111111, 0b00000011]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [(8, 8), (7, 5)])
def test_unpool_agrees_with_torch_max_unpool2d(dtype: torch.dtype, side: tuple[int, int], device: str) -> None:
    x = make_map((2, 11, *side), dtype, device)
    y, switches = ops.max_pool2x2(x)
    wanted = F.max_unpool2d(y, torch_index(switches, 11, side[1]), 2, 2, output_size=side)
    assert torch.equal(ops.max_unpool2x2(y, switches, *side), wanted)


def test_gather_undoes_unpool(device: str) -> None:
    x = make_map((2, 6, 9, 7), torch.float32, device)
    y, switches = ops.max_pool2x2(x)
    assert torch.equal(ops.gather2x2(ops.max_unpool2x2(y, switches, 9, 7), switches), y)
    assert torch.equal(ops.gather2x2(x, switches), y)


def test_gather_is_the_transpose_of_unpool_for_any_switches(device: str) -> None:
    shape = Shape(2, 4, 10, 7, 5)
    x, switches, height, width, of_pass = INPUTS["max_unpool2x2"](shape, torch.float64, device)
    g = make_map((4, 10, 7, 5), torch.float64, device, seed=1)
    unpooled, gathered = ops.max_unpool2x2(x, switches, height, width, of_pass), ops.gather2x2(g, switches, of_pass)
    assert (unpooled * g).sum() == (x * gathered).sum()  # multiples of 1/4: no rounding


def test_values_not_named_by_a_switch_are_never_used(device: str) -> None:
    x = make_map((1, 8, 6, 6), torch.float32, device)
    y, switches = ops.max_pool2x2(x)
    poisoned = torch.where(ops.max_unpool2x2(torch.ones_like(y), switches, 6, 6) == 1, x, torch.nan)
    assert torch.equal(ops.gather2x2(poisoned, switches), y)
    unpooled = ops.max_unpool2x2(torch.full_like(y, torch.nan), switches, 6, 6)
    assert int(unpooled.isnan().sum()) == y.numel()
    assert int((unpooled == 0).sum()) == 3 * y.numel()


@pytest.mark.parametrize("name", reference.OPS)
def test_result_does_not_depend_on_the_number_of_threads(name: str, restore_threads: None) -> None:
    cases = CASES.get(name) or (lambda dtype: INPUTS[name](Shape(3, 5, 33, 61, 47), dtype, "cpu"),)
    for case in cases:
        args = case(torch.float32)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(getattr(ops, name)(*args)))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_result_does_not_alias_an_already_fitting_input() -> None:
    x = channels_last(make_map((1, 4, 2, 2), torch.float32))
    before = x.clone()
    y, switches = ops.max_pool2x2(x)
    y.fill_(99)
    ops.max_unpool2x2(y, switches, 2, 2).fill_(7)
    assert torch.equal(x, before)


# torch's machinery


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_opcheck_passes(name: str, dtype: torch.dtype, device: str) -> None:
    for shape in (SMALL, Shape(1, 0, 8, 4, 4)):
        x, *rest = INPUTS[name](shape, dtype, device)
        torch.library.opcheck(getattr(torch.ops.ddn_fast, name).default, (x.requires_grad_(), *rest))


def distinct_map(shape: tuple[int, ...], device: str) -> Tensor:
    """No ties and no two values closer than gradcheck's step."""
    generator = torch.Generator().manual_seed(5)
    count = int(torch.tensor(shape).prod())
    return torch.randperm(count, generator=generator).reshape(shape).to(device, torch.float64).requires_grad_()


def test_pool_passes_gradcheck_and_gradgradcheck(device: str) -> None:
    x = distinct_map((2, 3, 5, 4), device)
    assert torch.autograd.gradcheck(lambda x: ops.max_pool2x2(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: ops.max_pool2x2(x)[0], (x,))


@pytest.mark.parametrize("name", ["max_unpool2x2", "gather2x2"])
def test_unpool_and_gather_pass_gradcheck_and_gradgradcheck_by_pass(name: str, device: str) -> None:
    x, *rest = INPUTS[name](SMALL, torch.float64, device)
    for arguments in (rest, [make_switches(SMALL.passes, *SMALL[2:], device=device), *rest[1:-1]]):
        assert torch.autograd.gradcheck(lambda x, a=arguments: getattr(ops, name)(x, *a), (x.requires_grad_(),))
        assert torch.autograd.gradgradcheck(lambda x, a=arguments: getattr(ops, name)(x, *a), (x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_equal_those_of_the_plain_formula(dtype: torch.dtype, device: str) -> None:
    of_pass = make_image_of_pass(SMALL, device)
    found = []
    for space in (ops, reference):
        x = make_map((2, 5, 5, 4), dtype, device).requires_grad_()
        y, switches = space.max_pool2x2(x)
        unpooled = space.max_unpool2x2(y[of_pass], switches, 5, 4, of_pass)
        gathered = space.gather2x2(unpooled * unpooled, switches, of_pass)
        (gathered * make_map(tuple(gathered.shape), dtype, device, seed=2)).sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_switches_carry_no_gradient() -> None:
    y, switches = ops.max_pool2x2(make_map((1, 4, 4, 4), torch.float32).requires_grad_())
    assert y.requires_grad
    assert not switches.requires_grad


def whole_way(x: Tensor, of_pass: Tensor) -> Tensor:
    y, switches = ops.max_pool2x2(x)
    unpooled = ops.max_unpool2x2(y[of_pass] * 2, switches, x.shape[2], x.shape[3], of_pass)
    return ops.gather2x2(unpooled + 1, switches, of_pass)


def test_compiles_into_one_graph_of_any_size(device: str) -> None:
    compiled = torch.compile(whole_way, fullgraph=True, dynamic=True, backend="aot_eager")
    of_pass = make_image_of_pass(SMALL, device)
    for height, width in ((5, 4), (8, 6), (9, 7)):
        x = make_map((2, 5, height, width), torch.float32, device)
        ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, wanted = compiled(ours, of_pass), whole_way(plain, of_pass)
        assert torch.equal(got, wanted)
        got.sum().backward()
        wanted.sum().backward()
        assert torch.equal(ours.grad, plain.grad)


def test_inductor_calls_the_ops_and_their_gradients(device: str) -> None:
    def there_and_back(x: Tensor) -> Tensor:  # nothing but fused ops: the compiler has no kernel of its own to build
        y, switches = ops.max_pool2x2(x)
        return ops.max_unpool2x2(y, switches, 5, 4)

    x = make_map((2, 5, 5, 4), torch.float32, device).requires_grad_()
    y = torch.compile(there_and_back, fullgraph=True)(x)
    assert torch.equal(y, there_and_back(x))
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    switches = ops.max_pool2x2(x)[1]
    assert torch.equal(grad, ops.max_unpool2x2(torch.ones(2, 5, 3, 2, device=device), switches, 5, 4))


def test_runs_under_deterministic_algorithms(device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        x = make_map((2, 5, 5, 4), torch.float32, device).requires_grad_()
        whole_way(x, make_image_of_pass(SMALL, device)).sum().backward()
        assert not x.grad.isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", reference.OPS)
def test_meta_tensors_give_shapes_and_strides(name: str) -> None:
    args = small_case(name, torch.float32)
    wanted = results(getattr(ops, name)(*args))
    on_meta = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to("meta"), args)
    for m, w in zip(results(getattr(ops, name)(*on_meta)), wanted, strict=True):
        assert (m.shape, m.stride(), m.dtype) == (w.shape, w.stride(), w.dtype)


# wrong arguments


X = torch.zeros(3, 5, 3, 2)  # a pooled map of SMALL
MAP = torch.zeros(3, 5, 5, 4)
SWITCHES = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
OF_PASS = torch.tensor([0, 1, 1])
BAD = [
    ("max_pool2x2", (MAP[0],), "x must be [N,C,H,W], got [5,5,4]"),
    ("max_pool2x2", (MAP.int(),), "x must be Float, Double, BFloat16 or Half, got Int"),
    ("max_pool2x2", (MAP[:, :, :0],), "x must be [N,C,H,W] with C, H and W at least 1, got [3,5,0,4]"),
    ("max_pool2x2", (MAP[:, :0],), "x must be [N,C,H,W] with C, H and W at least 1, got [3,0,5,4]"),
    ("max_unpool2x2", (X[0], SWITCHES, 5, 4, OF_PASS), "x must be [N,C,H,W], got [5,3,2]"),
    ("max_unpool2x2", (X.long(), SWITCHES, 5, 4, OF_PASS), "x must be Float, Double, BFloat16 or Half, got Long"),
    ("max_unpool2x2", (X, SWITCHES, 0, 4, OF_PASS), "height and width must be at least 1, got 0 and 4"),
    ("max_unpool2x2", (X, SWITCHES, 7, 4, OF_PASS), "x must be [3,5,4,2], got [3,5,3,2]"),
    ("max_unpool2x2", (X, SWITCHES, 5, 4), "switches must be [3,3,2,2], got [2,3,2,2]"),
    ("max_unpool2x2", (X, SWITCHES[..., :1], 5, 4, OF_PASS), "switches must be [2,3,2,2], got [2,3,2,1]"),
    ("max_unpool2x2", (X, SWITCHES[0], 5, 4, OF_PASS), "switches must be [3,3,2,2], got [3,2,2]"),
    ("max_unpool2x2", (X, SWITCHES.int(), 5, 4, OF_PASS), "switches must be Byte, got Int"),
    ("max_unpool2x2", (X, SWITCHES, 5, 4, OF_PASS.int()), "image_of_pass must be Long, got Int"),
    ("max_unpool2x2", (X, SWITCHES, 5, 4, OF_PASS[:2]), "image_of_pass must be [3], got [2]"),
    ("max_unpool2x2", (X, SWITCHES, 5, 4, OF_PASS + 1), "image_of_pass must be in 0..1, got 2 at [1]"),
    ("max_unpool2x2", (X, SWITCHES, 5, 4, OF_PASS - 1), "image_of_pass must be in 0..1, got -1 at [0]"),
    ("gather2x2", (MAP[0], SWITCHES, OF_PASS), "x must be [N,C,H,W], got [5,5,4]"),
    ("gather2x2", (MAP, SWITCHES), "switches must be [3,3,2,2], got [2,3,2,2]"),
    ("gather2x2", (MAP, SWITCHES, OF_PASS[None]), "image_of_pass must be [3], got [1,3]"),
    ("gather2x2", (MAP, SWITCHES, OF_PASS + 5), "image_of_pass must be in 0..1, got 5 at [0]"),
    ("gather2x2", (MAP, SWITCHES[:0], OF_PASS), "image_of_pass must be in 0..-1, got 0 at [0]"),
]


@pytest.mark.parametrize(("name", "args", "message"), BAD, ids=[f"{name}: {message}" for name, _, message in BAD])
def test_wrong_argument_is_named_with_what_was_wanted_and_got(name: str, args: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"{name}: {message}")):
        getattr(ops, name)(*args)


@pytest.mark.gpu
def test_arguments_on_two_devices_are_named(cuda: str) -> None:
    with pytest.raises(RuntimeError, match=r"gather2x2: switches must be on cuda:0 where x is, got cpu"):
        ops.gather2x2(MAP.to(cuda), SWITCHES, OF_PASS.to(cuda))


def test_missing_extension_is_an_import_error_that_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ddn_fast, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "ddn_fast._C", None)
    monkeypatch.delitem(sys.modules, "ddn_fast.ops")
    with pytest.raises(ImportError, match=r"pip install --no-build-isolation"):
        importlib.import_module("ddn_fast.ops")


# one concept, one name


def schema_names() -> list[str]:
    every = torch._C._dispatch_get_all_op_names()
    return sorted({name.removeprefix("ddn_fast::").split(".")[0] for name in every if name.startswith("ddn_fast::")})


def test_plain_formulas_and_schemas_name_the_same_ops() -> None:
    assert schema_names() == sorted(reference.OPS)


@pytest.mark.parametrize("name", schema_names())
def test_every_schema_has_its_op_formula_case_kernels_and_gradient(name: str) -> None:
    schema = getattr(torch.ops.ddn_fast, name).default._schema
    arguments = [argument.name for argument in schema.arguments]
    for space in (ops, reference):
        code = getattr(space, name).__code__
        assert list(code.co_varnames[: code.co_argcount]) == arguments, space.__name__
    assert (name in INPUTS) != (name in CASES)
    kernel = "conv3x3" if name.startswith("conv3x3") else name  # one kernel with three ends
    kernel = kernel.partition("_backward")[0]
    vendors = name in ("network_input", "dense", "dense_outer", *TRAINING)  # put together from torch's own
    on_cuda = [f"cuda/{kernel}.cu", f"cuda/{kernel}.cuh"] if not vendors else []
    for file in (f"cpu/{kernel}.cpp", *on_cuda):
        assert (ROOT / "csrc" / file).is_file(), file
    emulated = "".join(path.read_text() for path in (ROOT / "tests/native").glob("test_*.cpp"))
    for file in on_cuda[:1]:
        assert file in emulated
    for key in ("CPU", "CUDA", "Autograd", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ddn_fast::{name}", key), key
