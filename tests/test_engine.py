"""FastDecoupledNet against the plain network: exactly in float64 by the plain formulas, closely by the compiled ops."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_golden import FLOAT32, SEG, Golden, close
from test_segment import slow_segment
from tiny_net import CLASSES, random_image, tiny_net
from torch import Tensor, nn

import ddn_fast
from ddn_fast import _C, FastDecoupledNet, folding, ops, reference, segmentation, weights
from ddn_fast.config import MEAN_BGR, NetConfig
from ddn_fast.engine import overlap_add, place_windows, window_shifts
from ddn_fast.errors import InputError, NumericsError
from ddn_fast.network import BatchNorm, DecoupledNet
from ddn_fast.packing import conv3x3_layout, pack_conv3x3

GOLDEN = Path(__file__).parent / "golden"
NAMESPACES = pytest.mark.parametrize("namespace", [reference, ops], ids=["reference", "ops"])
SHAPES = [(60, 60), (37, 50), (80, 41), (64, 64)]

CONFIGS = {
    "kernel 1": NetConfig(CLASSES, side=64, widths=(4, 5, 6, 7, 8), fc=16, bridge=12, fc_kernel=1),
    "kernel 3": NetConfig(tuple("abcde"), side=160, widths=(4, 5, 6, 8, 8), fc=24, bridge=12, fc_kernel=3),
    "kernel 7": NetConfig(("one",), side=256, widths=(4, 4, 5, 6, 7), fc=9, bridge=10, fc_kernel=7),
    "one place": NetConfig(tuple(map(str, range(25))), side=96, widths=(5, 4, 4, 4, 5), fc=8, bridge=7, fc_kernel=3),
    "wide": NetConfig(("a", "b"), side=64, widths=(33, 40, 31, 64, 35), fc=70, bridge=33, fc_kernel=2),
}


def random_net(config: NetConfig, seed: int = 0) -> DecoupledNet:
    """Every bias, scale, shift, mean and variance random; float64, eval mode."""
    torch.manual_seed(seed)
    model = DecoupledNet(config).double().eval()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def some_passes(config: NetConfig, images: int, passes: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x of `images`, labels with every count from none to all, image_of_pass in no order; float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 3, config.side, config.side, generator=generator, dtype=torch.float64)
    labels = torch.rand(passes, config.num_classes, generator=generator, dtype=torch.float64)
    labels *= torch.rand(labels.shape, generator=generator) < torch.linspace(0, 1, passes)[:, None]
    return x, labels, torch.randint(0, images, (passes,), generator=generator)


@torch.no_grad()
def difference(net: DecoupledNet, x: Tensor, labels: Tensor, image_of_pass: Tensor) -> Tensor:
    scores = net(x, labels, image_of_pass)
    return scores[:, 1] - scores[:, 0]


def passes_of(engine: FastDecoupledNet, x: Tensor, labels: Tensor, image_of_pass: Tensor) -> Tensor:
    return engine.score_passes(engine.score_images(x)[1], labels, image_of_pass)


def same(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert wanted.abs().max() > 0, "the case says nothing"
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * wanted.abs().max().item())


def nearly_everywhere(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """All but 1 % of pixels: where two values of a pooling window tie within rounding, a switch turns."""
    error = (got.double() - wanted.double()).abs() / wanted.abs().max()
    assert error.flatten().quantile(0.99) <= tolerance


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [random_image(seed, *shape) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module", params=[reference, ops], ids=["reference", "ops"])
def engine(request: pytest.FixtureRequest) -> FastDecoupledNet:
    """The tiny network in float32."""
    return FastDecoupledNet(tiny_net(), torch.float32, request.param)


# --- the same network ---


@pytest.mark.parametrize("name", CONFIGS)
def test_in_float64_it_is_the_plain_network(name: str) -> None:
    net = random_net(CONFIGS[name])
    x, labels, image_of_pass = some_passes(net.config, 3, 7)
    engine = FastDecoupledNet(net, torch.float64, reference)
    with torch.no_grad():
        same(engine.classify(x), net.classify(x), 1e-10)
        assert torch.equal(engine.encode(x).position, net.encode(x)[1].position)
    wanted = difference(net, x, labels, image_of_pass)
    same(passes_of(engine, x, labels, image_of_pass), wanted, 1e-10)
    same(engine.fast(x, labels, image_of_pass), wanted.sigmoid(), 1e-10)


@pytest.mark.parametrize("name", CONFIGS)
@NAMESPACES
def test_in_float32_it_is_the_plain_network_but_for_rounding(namespace: Any, name: str) -> None:
    net = random_net(CONFIGS[name])
    x, labels, image_of_pass = some_passes(net.config, 3, 7)
    engine = FastDecoupledNet(net, torch.float32, namespace)
    with torch.no_grad():
        same(engine.classify(x.float()), net.classify(x), 1e-5)
    got = engine.fast(x.float(), labels, image_of_pass)
    assert got.dtype == torch.float32
    nearly_everywhere(got, difference(net, x, labels, image_of_pass).sigmoid(), 1e-4)


def mean_error(engine: FastDecoupledNet, exact: FastDecoupledNet) -> float:
    """Over several inputs: one alone may have a maximum that bfloat16 moves to another pixel, and errors all over."""
    errors = []
    for seed in range(1, 9):
        x, labels, image_of_pass = some_passes(engine.config, 2, 4, seed)
        got, wanted = (one.fast(40 * x.float(), labels, image_of_pass) for one in (engine, exact))
        errors.append(float((got - wanted).abs().mean()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("isa", _C.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_instruction_set_gives_what_the_formulas_give(
    dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDN_MAX_CPU_ISA", isa)
    net = tiny_net()
    x, labels, image_of_pass = some_passes(net.config, 2, 4)
    x = (40 * x).float()
    engine = FastDecoupledNet(net, dtype, ops)
    assert isa in repr(engine)
    with torch.no_grad():
        wanted = difference(net, x, labels.float(), image_of_pass).sigmoid()
        same(engine.classify(x), net.classify(x), 1e-5 if dtype == torch.float32 else 0.05)
    got = engine.fast(x, labels, image_of_pass)
    if dtype == torch.float32:
        nearly_everywhere(got, wanted, 1e-4)
    else:  # no further from the truth than the formulas in bfloat16 are, or hardly
        exact, formulas = FastDecoupledNet(net, torch.float32, reference), FastDecoupledNet(net, dtype, reference)
        assert mean_error(engine, exact) <= 1.5 * mean_error(formulas, exact) + 1e-3


@pytest.mark.parametrize("layout", ["pairs", "direct", "winograd", "winograd_int16"])
def test_every_layout_of_weights_works(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()

    def chosen(dtype: torch.dtype, isa: str, channels: int) -> str:
        return "direct" if "winograd" in layout and channels == 3 else layout

    monkeypatch.setattr(folding, "conv3x3_layout", chosen)
    formulas, compiled = (FastDecoupledNet(net, torch.bfloat16, namespace) for namespace in (reference, ops))
    exact = FastDecoupledNet(net, torch.float32, reference)
    assert mean_error(compiled, exact) <= 1.5 * mean_error(formulas, exact) + 1e-3


def test_a_layout_packs_for_every_dtype_and_instruction_set() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for isa in ("plain", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"):
            for channels in (3, 4, 64):
                pack_conv3x3(torch.randn(8, channels, 3, 3), conv3x3_layout(dtype, isa, channels))
    assert pack_conv3x3(torch.ones(2, 8, 3, 3), "direct", torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("isa", "layout"),
    [
        ("plain", "winograd"),
        ("avx2", "winograd_int16"),
        ("avx_vnni", "winograd_int16"),
        ("avx512", "winograd"),
        ("avx512_vnni", "winograd_int16"),
        ("avx512_bf16", "winograd_int16"),
        ("amx_bf16", "pairs"),
    ],
)
def test_a_bfloat16_layer_has_the_fastest_layout_of_each_instruction_set(isa: str, layout: str) -> None:
    assert conv3x3_layout(torch.bfloat16, isa, 64) == layout
    assert conv3x3_layout(torch.bfloat16, isa, 3) == ("pairs" if layout == "pairs" else "direct")
    assert conv3x3_layout(torch.float32, isa, 64) == "winograd"
    assert conv3x3_layout(torch.float32, isa, 3) == "direct"


# --- the authors' numbers ---


@pytest.fixture(scope="module")
def cases() -> Golden:
    return Golden("cases")


@NAMESPACES
def test_goldens_through_the_engine(cases: Golden, namespace: Any) -> None:
    engine = FastDecoupledNet(ddn_fast.load(GOLDEN / "tiny_a.caffemodel"), torch.float32, namespace)
    encoded = engine.encode(cases["input"])
    close(encoded.score_map, cases["cls-score"], FLOAT32)
    close(engine.classify(cases["input"]), cases["cls-score-avg-sigmoid"], FLOAT32)
    assert torch.equal(encoded.position, cases["score-pool-mask"].long())
    got = passes_of(engine, cases["input"], cases["pass_y"], cases["pass_image"])
    close(got[:, ::5, ::5], cases["seg_score_s5"][:, 1] - cases["seg_score_s5"][:, 0], 2 * SEG)
    crop = slice(136, 184)
    close(got[:, crop, crop], cases["seg_score_crop"][:, 1] - cases["seg_score_crop"][:, 0], 2 * SEG)
    close(got[0], cases["seg_score_full_f32_0"][1] - cases["seg_score_full_f32_0"][0], 2 * SEG)
    images = (cases["input"] + torch.tensor(MEAN_BGR)[:, None, None]).round().byte()
    results = engine.segment([rgb.permute(1, 2, 0).numpy()[:, :, ::-1] for rgb in images])
    for result, wanted in zip(results, cases["segmask_320"].numpy(), strict=True):
        assert (result.mask != wanted).mean() <= 1e-4


# --- segment ---


def test_segment_gives_the_labels_of_the_plain_network(engine: FastDecoupledNet, pictures: list[np.ndarray]) -> None:
    exact, plain = tiny_net(dtype=torch.float64), tiny_net()
    for image, ours, theirs in zip(pictures, engine.segment(pictures), plain.segment(pictures), strict=True):
        expected, gap = slow_segment(exact, image)
        assert not ((ours.mask != expected) & (gap > 2e-3)).any()
        assert (ours.mask != theirs.mask).mean() < 0.01
        assert [label.name for label in ours.labels] == [label.name for label in theirs.labels]
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


NAMED = [[], ["dog"], ["elk", "dog", "ant"], None]


def test_mixed_label_counts_in_a_batch(pictures: list[np.ndarray]) -> None:
    net = tiny_net(dtype=torch.float64)
    engine = FastDecoupledNet(net, torch.float64, reference)
    for ours, theirs in zip(engine.segment(pictures, NAMED), net.segment(pictures, NAMED), strict=True):
        assert np.array_equal(ours.mask, theirs.mask)
        assert [label.name for label in ours.labels] == [label.name for label in theirs.labels]
    assert not engine.segment(pictures, NAMED)[0].mask.any()


class Calls(dict[str, list[tuple[Any, ...]]]):
    """Arguments of every call, by op."""

    def counts(self, name: str) -> list[int]:
        """How many maps, rows or (image, label) pairs each call was given."""
        return [len(arguments[7 if name == "class_gate" else 0]) for arguments in self[name]]


def noting(namespace: Any, calls: Calls) -> SimpleNamespace:
    """`namespace`, each call of which is noted."""

    def wrap(name: str) -> Any:
        def op(*arguments: Any, **options: Any) -> Any:
            calls.setdefault(name, []).append(arguments)
            return getattr(namespace, name)(*arguments, **options)

        return op

    return SimpleNamespace(**{name: wrap(name) for name in reference.OPS})


@pytest.mark.parametrize("max_passes", [1, 2, 3, 100])
@NAMESPACES
def test_chunks_of_passes_compute_nothing_twice(
    namespace: Any, max_passes: int, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "MAX_PASSES", max_passes)
    calls = Calls()
    engine = FastDecoupledNet(tiny_net(), torch.float32, noting(namespace, calls))
    whole = FastDecoupledNet(tiny_net(), torch.float32, namespace)
    names = [[], ["dog"], ["elk", "dog", "ant"], ["fox", "bee"]]
    results = engine.segment(pictures, names)
    assert sum(calls.counts("class_gate")) == 1 + 3 + 2
    assert calls.counts("conv3x3_max_pool2x2") == [4] * 5
    assert sum(calls.counts("conv3x3_score")) == 1 + 4 + 3
    assert max(calls.counts("conv3x3_score")) <= max_passes
    assert calls.counts("merge_scores") == [1, 4, 3]
    of_image = [x for x, weight, *_ in calls["dense"] if weight is engine._weights.bridge.fc6_seg_image.weight]
    assert sum(map(len, of_image)) == 3 * engine.config.grid**2
    for ours, theirs, image, labels in zip(results, whole.segment(pictures, names), pictures, names, strict=True):
        assert (ours.mask != theirs.mask).mean() < 0.005
        assert (ours.mask != whole.segment(image, [labels])[0].mask).mean() < 0.005


def test_an_image_without_labels_costs_no_pass(pictures: list[np.ndarray]) -> None:
    calls = Calls()
    engine = FastDecoupledNet(tiny_net(), torch.float32, noting(ops, calls))
    results = engine.segment(pictures, threshold=1.0)
    assert not any(result.mask.any() for result in results)
    assert set(calls) == {"network_input", "conv3x3_max_pool2x2", "dense"}
    assert len(calls["dense"]) == 3


def test_passes_are_the_same_alone_in_any_order_and_asked_again(engine: FastDecoupledNet) -> None:
    x, labels, image_of_pass = some_passes(engine.config, 3, 7)
    x = (40 * x).float()
    together = passes_of(engine, x, labels, image_of_pass)
    _, state = engine.score_images(x)
    for order in ([6, 2, 0, 1, 3, 5, 4], [6], [0, 0], list(range(7))):
        again = engine.score_passes(state, labels[order], image_of_pass[order])
        same(again, together[order], 1e-5)
    for p, image in enumerate(image_of_pass.tolist()):
        alone = passes_of(engine, x[image : image + 1], labels[p : p + 1], torch.tensor([0]))
        same(alone[0], together[p], 1e-5)


def test_no_passes_no_images_and_no_labels(engine: FastDecoupledNet) -> None:
    net = tiny_net(dtype=torch.float64)
    x, labels, image_of_pass = some_passes(engine.config, 2, 3)
    x = (40 * x).float()
    assert engine.fast(x, labels[:0], image_of_pass[:0]).shape == (0, 64, 64)
    assert engine.classify(x[:0]).shape == (0, 6)
    assert engine.fast(x[:0], labels[:0], image_of_pass[:0]).shape == (0, 64, 64)
    nothing = torch.zeros(1, 6)
    wanted = difference(net, x.double(), nothing.double(), torch.tensor([1])).sigmoid()
    nearly_everywhere(engine.fast(x, nothing, torch.tensor([1])), wanted, 1e-4)
    assert engine.segment([]) == []


def test_any_memory_format_and_integer_dtype_is_taken(engine: FastDecoupledNet) -> None:
    x, labels, image_of_pass = some_passes(engine.config, 2, 3)
    x = (40 * x).float()
    wanted = engine.fast(x, labels, image_of_pass)
    strided = torch.empty(64, 2, 64, 6).permute(1, 3, 2, 0)[:, ::2].copy_(x)
    for view in (x.contiguous(memory_format=torch.channels_last), strided, x.flip(3).flip(3)):
        assert torch.equal(engine.fast(view, labels, image_of_pass), wanted)
    assert torch.equal(engine.fast(x, labels.T.contiguous().T, image_of_pass.to(torch.uint8)), wanted)
    assert torch.equal(engine.fast(x.expand(2, -1, -1, -1).requires_grad_(), labels, image_of_pass), wanted)
    x.requires_grad_(False)
    wide = x[:1].expand(2, -1, -1, -1)
    assert torch.equal(engine.fast(wide, labels, image_of_pass), engine.fast(wide.clone(), labels, image_of_pass))


# --- a twin of its own ---


def test_the_model_is_not_changed_and_shares_no_memory() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        model = tiny_net()
        model.train()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        engine = FastDecoupledNet(model, dtype)
        x, labels, image_of_pass = some_passes(model.config, 2, 3)
        before = engine.fast(x.float(), labels, image_of_pass)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(part.training for part in model.modules())
        held = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(engine._weights)}
        assert held.isdisjoint(value.untyped_storage().data_ptr() for value in model.state_dict().values())
        with torch.no_grad():
            for value in model.state_dict().values():
                value.fill_(float("nan"))
        assert torch.equal(engine.fast(x.float(), labels, image_of_pass), before)


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from tensors_in(part)


def test_large_weights_are_held_once_in_the_engines_dtype() -> None:
    engine = FastDecoupledNet(tiny_net(), torch.bfloat16)
    large = [
        engine._weights.image_part.fc6,
        engine._weights.image_part.fc7,
        engine._weights.bridge.fc7_seg,
        engine._weights.bridge.fc6_deconv,
    ]
    assert {layer.weight.dtype for layer in large} == {torch.bfloat16}
    assert {layer.bias.dtype for layer in large} == {torch.float32}
    storages = [tensor.untyped_storage() for tensor in tensors_in(engine._weights)]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    assert all(t.numel() * t.itemsize == t.untyped_storage().nbytes() for t in tensors_in(engine._weights))


def test_results_carry_no_gradient(engine: FastDecoupledNet) -> None:
    x, labels, image_of_pass = some_passes(engine.config, 1, 2)
    y = engine.fast(x.float().requires_grad_(), labels.requires_grad_(), image_of_pass)
    assert not y.requires_grad
    assert not engine.classify(x.float().requires_grad_()).requires_grad


def test_four_threads_share_one_engine(pictures: list[np.ndarray], one_thread: None) -> None:
    engine = FastDecoupledNet(tiny_net(), torch.bfloat16)
    x, labels, image_of_pass = some_passes(engine.config, 3, 6)
    x = (40 * x).float()
    wanted, masks = engine.fast(x, labels, image_of_pass), [result.mask for result in engine.segment(pictures)]
    problems: list[object] = []

    def work() -> None:
        try:
            for _ in range(10):
                assert torch.equal(engine.fast(x, labels, image_of_pass), wanted)
                results = engine.segment(pictures)
                assert all(np.array_equal(result.mask, mask) for result, mask in zip(results, masks, strict=True))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_does_not_grow_over_batches(pictures: list[np.ndarray], one_thread: None) -> None:
    engine = FastDecoupledNet(tiny_net(), torch.bfloat16)
    generator = torch.Generator().manual_seed(0)

    def run(batches: int) -> None:
        for _ in range(batches):
            images, passes = torch.randint(1, 5, (2,), generator=generator).tolist()
            x, labels, image_of_pass = some_passes(engine.config, images, 3 * passes, seed=passes)
            engine.fast(x.float(), labels, image_of_pass)
            engine.segment(pictures[:images])

    run(40)
    start = resident_bytes()
    run(1000)
    assert resident_bytes() - start < 12 * 2**20  # an x kept of each batch would be 120 MB


def test_encode_and_decode_compile_whole() -> None:
    engine = FastDecoupledNet(tiny_net(), torch.float32)
    x, labels, image_of_pass = some_passes(engine.config, 2, 3)
    x = (40 * x).float()
    torch._dynamo.reset()
    compiled = torch.compile(engine.encode, fullgraph=True, backend="aot_eager")(x)
    plain = engine.encode(x)
    same(compiled.score_map, plain.score_map, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(compiled.switches, plain.switches, strict=True))
    fc6_seg = torch.randn(3, 4 * engine.config.bridge)
    decode = torch.compile(engine.decode, fullgraph=True, backend="aot_eager")
    got = decode(fc6_seg, plain.switches, image_of_pass)
    same(got, engine.decode(fc6_seg, plain.switches, image_of_pass), 1e-6)
    any_passes = fc6_seg.clone(), image_of_pass.clone()  # one graph for any number of passes
    for given in any_passes:
        torch._dynamo.mark_dynamic(given, 0)
    decode = torch.compile(engine.decode, fullgraph=True, backend="aot_eager")
    same(decode(any_passes[0], plain.switches, any_passes[1]), got, 1e-6)
    whole = torch.compile(engine.fast, backend="aot_eager")
    same(whole(x, labels, image_of_pass), engine.fast(x, labels, image_of_pass), 1e-6)


# --- its two helpers ---


@pytest.mark.parametrize(("grid", "kernel"), [(4, 7), (3, 3), (1, 5), (5, 1), (2, 3)])
def test_overlap_add_is_a_transposed_convolution(grid: int, kernel: int) -> None:
    x = torch.randn(3, 6, grid, grid, dtype=torch.float64)
    weight = torch.randn(6, 5, kernel, kernel, dtype=torch.float64)
    columns = torch.einsum("pnij,ncab->pijabc", x, weight)
    same(overlap_add(columns).permute(0, 3, 1, 2), F.conv_transpose2d(x, weight), 1e-12)


@pytest.mark.parametrize(("grid", "kernel"), [(4, 7), (3, 3), (1, 5), (5, 1), (2, 3)])
def test_place_windows_is_im2col_of_a_map_with_one_window(grid: int, kernel: int) -> None:
    count, channels, side = grid * grid, 3, grid + kernel - 1
    window, position = torch.randn(count, kernel, kernel, channels), torch.randperm(count)
    maps = torch.zeros(count, side, side, channels)
    for q, (row, column) in enumerate((divmod(int(p), grid)) for p in position):
        maps[q, row : row + kernel, column : column + kernel] = window[q]
    wanted = F.unfold(maps.permute(0, 3, 1, 2), kernel).unflatten(1, (channels, -1)).permute(0, 3, 2, 1)
    got = place_windows(window.flatten(1), position, window_shifts(grid, kernel, position.device))
    assert torch.equal(got, wanted.reshape(count * grid * grid, -1))


# --- wrong input ---


def test_an_input_the_engine_cannot_take_is_a_named_error(engine: FastDecoupledNet) -> None:
    x, labels, image_of_pass = torch.zeros(2, 3, 64, 64), torch.zeros(3, 6), torch.tensor([0, 1, 1])
    for wrong, message in [
        (np.zeros((1, 3, 64, 64), np.float32), r"x: wanted a tensor \[B,3,64,64\], got ndarray"),
        (torch.zeros(1, 3, 32, 64), r"x: wanted \[B,3,64,64\], got \[1, 3, 32, 64\]"),
        (torch.zeros(3, 64, 64), "x: wanted"),
        (x.byte(), "x: wanted torch.float32 on cpu, .*, got torch.uint8 on cpu"),
        (x.bfloat16(), "got torch.bfloat16"),
        (x.to("meta"), "got torch.float32 on meta"),
    ]:
        for call in (engine.classify, engine.score_images, lambda x: engine.fast(x, labels, image_of_pass)):
            with pytest.raises(InputError, match=message):
                call(wrong)
    for labels_given, images_given, message in [
        (labels[:, :5], image_of_pass, r"labels: wanted \[P,6\], got \[3, 5\]"),
        (labels[0], image_of_pass, "labels: wanted"),
        (labels.tolist(), image_of_pass, "labels: wanted a tensor, got list"),
        (labels, image_of_pass[:2], r"image_of_pass: wanted \[3\], got \[2\]"),
        (labels, image_of_pass.float(), "image_of_pass: wanted an integer dtype"),
        (labels, image_of_pass + 1, "image_of_pass: wanted values from 0 to 1"),
        (labels, image_of_pass - 1, "image_of_pass: wanted values from 0 to 1"),
        (labels, [0, 1, 1], "image_of_pass: wanted a tensor, got list"),
    ]:
        with pytest.raises(InputError, match=message):
            engine.fast(x, labels_given, images_given)


def test_a_model_the_engine_cannot_take_is_a_named_error() -> None:
    model = tiny_net()
    with pytest.raises(InputError, match="model: wanted a DecoupledNet, got Linear"):
        FastDecoupledNet(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"on meta; the plain network may run there \(fast=False, --no-fast\)"):
        FastDecoupledNet(tiny_net().to("meta"))
    for dtype in (torch.float16, torch.int8, "float32"):
        with pytest.raises(InputError, match=r"dtype: wanted torch\.bfloat16 or torch\.float32"):
            FastDecoupledNet(model, dtype)  # type: ignore[arg-type]
    narrow = NetConfig(("a",), side=32, widths=(3, 4, 4, 4, 4), fc=4, bridge=4, fc_kernel=1)
    with pytest.raises(InputError, match="at least 4 channels"):
        FastDecoupledNet(DecoupledNet(narrow))


def test_weights_that_are_no_numbers_are_a_named_error() -> None:
    for name in ("encoder.conv1_1.bias", "decoder.deconv5_1_bn.running_mean", "head.fc6.weight"):
        model = tiny_net()
        model.state_dict()[name].view(-1)[-1] = float("inf")
        with pytest.raises(NumericsError, match=f"{name}: wanted finite values"):
            FastDecoupledNet(model)
    model = tiny_net()
    model.bridge.fc6_seg_bn.running_var[0] = -1.0
    with pytest.raises(NumericsError, match="variances above 0"):
        FastDecoupledNet(model)


def test_load_gives_the_engine(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    weights.save(tiny_net(), tmp_path)
    loaded = ddn_fast.load(tmp_path, fast=True, dtype=torch.float32)
    built = FastDecoupledNet(tiny_net(), torch.float32)
    assert np.array_equal(loaded.segment(pictures[0])[0].mask, built.segment(pictures[0])[0].mask)
    assert ddn_fast.load(tmp_path, fast=True).dtype == torch.bfloat16
    assert ddn_fast.load(GOLDEN / "tiny_a.caffemodel", fast=True).config.num_classes == 20
    with pytest.raises(InputError, match="dtype: wanted only with fast=True"):
        ddn_fast.load(tmp_path, dtype=torch.float32)  # type: ignore[call-overload]


def test_the_package_imports_without_its_extension_and_the_engine_says_what_is_missing() -> None:
    program = """
import sys
sys.modules["ddn_fast._C"] = None
import ddn_fast
from ddn_fast import reference
net = ddn_fast.DecoupledNet(ddn_fast.NetConfig(("a",), side=32, widths=(4,) * 5, fc=4, bridge=4, fc_kernel=1))
assert ddn_fast.FastDecoupledNet(net, ops=reference).runtime.isa == "plain"
try:
    ddn_fast.FastDecoupledNet(net)
except ImportError as error:
    assert "pip install" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
