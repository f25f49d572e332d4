"""The engine on a device that records and works ahead: on the CPU by recorded.py, without values, and on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from recorded import RecordedRuntime
from test_engine import CONFIGS, NAMED, SHAPES, difference, passes_of, random_net, same, some_passes
from test_segment import slow_segment
from tiny_net import random_image, tiny_net, write_image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ddn_fast import FastDecoupledNet, engine, info, ops, reference, runtime
from ddn_fast.captured import Captured
from ddn_fast.errors import ImageError, InputError, NumericsError
from ddn_fast.folding import fold
from ddn_fast.image_part import ImagePart
from ddn_fast.network import DecoupledNet
from ddn_fast.packing import CUDA
from ddn_fast.segmentation import Inputs, Segmenter

NAMESPACES = pytest.mark.parametrize("namespace", [reference, ops], ids=["reference", "ops"])


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [random_image(seed, *shape) for seed, shape in enumerate(SHAPES)]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> RecordedRuntime:
    """The runtime that engines get."""
    made = RecordedRuntime()
    monkeypatch.setattr(engine, "runtime_for", lambda *_: made)
    return made


def recorded_engine(net: DecoupledNet, dtype: torch.dtype, namespace: Any) -> FastDecoupledNet:
    found = FastDecoupledNet(net, dtype, namespace)
    assert isinstance(found.runtime, RecordedRuntime)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_stack_is_torchs_bit_for_bit(dtype: torch.dtype) -> None:
    items = [torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(k)).to(dtype) for k in range(3)]
    items[1][0, 0, 0], items[2][0, 0, 0] = torch.nan, -0.0
    items[2] = items[2].transpose(1, 2).contiguous().transpose(1, 2)
    got, wanted = (y.view(torch.uint8) for y in (runtime.CpuRuntime().stack(items), torch.stack(items)))
    assert torch.equal(got, wanted)
    assert runtime.CpuRuntime().stack(items[:1]).shape == (1, 3, 5, 7)


@pytest.mark.parametrize("takes", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_images_come_from_the_decoding_threads_in_the_dtype_that_the_network_takes(
    takes: torch.dtype, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the thread that calls only gathers them, and on CUDA sends half the bytes."""
    net, stacked = tiny_net(), []

    class Stops(runtime.Runtime):
        def stack(self, items: Any) -> Tensor:
            stacked.extend(items)
            raise InterruptedError

    monkeypatch.setattr(net, "runtime", Stops())
    monkeypatch.setattr(net, "ops", ops)
    monkeypatch.setattr(net, "image_dtype", lambda: takes)
    with pytest.raises(InterruptedError):
        net.segment(pictures[:2])
    for x, picture in zip(stacked, pictures, strict=False):
        assert torch.equal(x, net.network_input(picture).to(takes))
        assert x.dtype == takes


def test_an_engine_takes_images_in_its_own_dtype_where_they_are_sent_to_a_device(
    pictures: list[np.ndarray], recorded: RecordedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded once, by whichever: the scores are the same bits."""
    net = random_net(CONFIGS["wide"])
    half = recorded_engine(net, torch.bfloat16, ops)
    assert half.image_dtype() == torch.float32
    wanted = half.segment(pictures[:2])
    monkeypatch.setattr(recorded, "device", torch.device("cuda", 0), raising=False)
    assert half.image_dtype() == torch.bfloat16
    put, dtypes = recorded.put, []
    monkeypatch.setattr(recorded, "put", lambda x, like: dtypes.append(x.dtype) or put(x, like))
    found = half.segment(pictures[:2])
    assert set(dtypes) == {torch.bfloat16}
    for got, right in zip(found, wanted, strict=True):
        assert np.array_equal(got.scores, right.scores)
        assert np.array_equal(got.mask, right.mask)


@pytest.mark.gpu
def test_a_stack_for_cuda_lies_in_pinned_memory_and_is_not_copied_again(last_gpu: torch.device) -> None:
    found = runtime.CudaRuntime(last_gpu)
    batch = found.stack([torch.full((2, 3), float(k)).bfloat16() for k in range(3)])
    assert batch.is_pinned()
    assert torch.equal(found.put(batch, torch.empty(0, dtype=torch.bfloat16, device=last_gpu)).cpu(), batch)
    assert 2 <= found.host_threads <= runtime.MAX_HOST_THREADS


def test_passes_that_run_together_on_cuda_follow_memory_and_side() -> None:
    gigabyte = 1 << 30
    of_one = 3 * 64 * 320 * 320 * 2
    assert runtime.passes_on_cuda(80 * gigabyte, 320) == runtime.MAX_PASSES_ON_CUDA
    assert runtime.passes_on_cuda(8 * gigabyte, 320) == gigabyte // of_one == 27
    assert runtime.passes_on_cuda(8 * gigabyte, 640) == gigabyte // (4 * of_one)
    assert runtime.passes_on_cuda(8 * of_one * 5 - 1, 320) == runtime.passes_on_cuda(1, 320) == 4


# recordings and padding


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_and_padded_parts_are_the_plain_network(name: str, recorded: RecordedRuntime) -> None:
    net = random_net(CONFIGS[name])
    twin = recorded_engine(net, torch.float64, reference)
    for images, passes in ((3, 9), (2, 3), (3, 11), (3, 9)):  # 9 and 11 are padded
        x, labels, image_of_pass = some_passes(net.config, images, passes, seed=passes)
        same(passes_of(twin, x, labels, image_of_pass), difference(net, x, labels, image_of_pass), 1e-10)
    assert recorded.recorder.recorded < recorded.recorder.replayed
    for part in (twin._run_encode, twin._run_halves, twin._run_decode):
        assert isinstance(part, Captured)
        assert part._recordings


def test_recorded_and_padded_parts_give_the_bits_of_the_engine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    plain = FastDecoupledNet(net, torch.float32)
    monkeypatch.setattr(engine, "runtime_for", lambda *_: RecordedRuntime())
    twin = recorded_engine(net, torch.float32, None)
    for passes in (1, 9, 11, 17):
        x, labels, image_of_pass = some_passes(net.config, 3, passes)
        x = (40 * x).float()
        assert torch.equal(twin.classify(x), plain.classify(x))
        assert torch.equal(twin.fast(x, labels, image_of_pass), plain.fast(x, labels, image_of_pass))


def test_images_and_pairs_are_padded_apart(recorded: RecordedRuntime) -> None:
    net = tiny_net(dtype=torch.float64)
    twin = recorded_engine(net, torch.float64, reference)
    x, labels, _ = some_passes(net.config, 12, 11)  # of 12 images 9 are used, padded to 10
    x, image_of_pass = 40 * x, torch.tensor([11, 0, 3, 4, 5, 6, 7, 8, 9, 0, 4])
    same(passes_of(twin, x, labels, image_of_pass), difference(net, x, labels, image_of_pass), 1e-10)


def test_what_was_given_stays_when_more_batches_run(recorded: RecordedRuntime) -> None:
    twin = recorded_engine(tiny_net(), torch.float32, ops)
    x, labels, image_of_pass = some_passes(twin.config, 3, 7)
    x = (40 * x).float()
    scores, state = twin.score_images(x)
    first = twin.score_passes(state, labels, image_of_pass)
    kept = scores.clone(), first.clone()
    for seed in range(3):
        other, *rest = some_passes(twin.config, 3, 7, seed=seed + 5)
        twin.fast((40 * other).float(), *rest)
    assert torch.equal(scores, kept[0])
    assert torch.equal(first, kept[1])
    assert torch.equal(twin.score_passes(state, labels, image_of_pass), kept[1])


def test_one_images_nan_reaches_no_other(recorded: RecordedRuntime) -> None:
    twin = recorded_engine(tiny_net(), torch.float32, ops)
    x, labels, image_of_pass = some_passes(twin.config, 3, 9)
    labels[0], labels[3] = 0.7, 0.4  # an image's passes stand beside the others'
    x, image_of_pass = (40 * x).float(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    _, state = twin.score_images(x)
    wanted = twin.score_passes(state, labels, image_of_pass)
    _, state = twin.score_images(x)
    for part in (state.encoded.windows, state.encoded.fc6, state.encoded.fc7):
        part[1] = torch.nan
    got = twin.score_passes(state, labels, image_of_pass)
    others = image_of_pass != 1
    assert torch.equal(got[others], wanted[others])
    assert got[~others].isnan().any()


@NAMESPACES
def test_segment_gives_the_labels_of_the_plain_network(
    namespace: Any, pictures: list[np.ndarray], recorded: RecordedRuntime
) -> None:
    net = tiny_net(dtype=torch.float64)
    twin = recorded_engine(net, torch.float64, reference)
    for batch_size in (1, 3, 4):
        for ours, theirs in zip(
            twin.segment(pictures, NAMED, batch_size=batch_size), net.segment(pictures, NAMED), strict=True
        ):
            assert np.array_equal(ours.mask, theirs.mask)
            assert [label.name for label in ours.labels] == [label.name for label in theirs.labels]


# batches begun ahead


def test_the_next_batch_is_encoded_before_scores_are_read(
    pictures: list[np.ndarray], recorded: RecordedRuntime
) -> None:
    twin = recorded_engine(tiny_net(), torch.float32, ops)
    twin.segment(pictures[:3], batch_size=1)
    # scores of batch k are fetched by 0, 1, 3, maps by 2, 4, 5
    assert recorded.events == [
        *("put", "fetch 0", "put", "fetch 1", "wait 0", "fetch 2"),
        *("put", "fetch 3", "wait 1", "fetch 4", "wait 2"),
        *("wait 3", "fetch 5", "wait 4", "wait 5"),
    ]


def test_nothing_is_begun_ahead_where_the_device_is_the_host(pictures: list[np.ndarray]) -> None:
    taken: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for k, picture in enumerate(pictures):
            taken.append(k)
            yield picture

    results = FastDecoupledNet(tiny_net()).run(
        Inputs(torch.zeros(1, 3, 64, 64), [picture.shape[:2]], [None]) for picture in images()
    )
    for k, _ in enumerate(results):
        assert taken == list(range(k + 1))


def test_bad_images_and_batches_of_nothing_else_keep_their_places(
    tmp_path: Any, pictures: list[np.ndarray], recorded: RecordedRuntime
) -> None:
    twin = recorded_engine(tiny_net(), torch.float32, ops)
    missing = tmp_path / "none.png"
    mixed = [missing, missing, pictures[0], missing, missing, missing, pictures[1], pictures[2], missing]
    results = twin.segment(mixed, on_error="keep", batch_size=2)
    assert [result.error is None for result in results] == [source is not missing for source in mixed]
    for result, picture in zip(results, mixed, strict=True):
        if result.error is None:
            assert np.array_equal(result.mask, twin.segment(picture)[0].mask)
    stream = twin.segment_iter(mixed[2:])
    assert next(stream).error is None
    with pytest.raises(ImageError, match="no such file"):
        next(stream)


def test_a_score_map_of_nan_is_that_images_error_alone(pictures: list[np.ndarray], recorded: RecordedRuntime) -> None:
    twin = recorded_engine(tiny_net(), torch.float32, ops)
    wanted = twin.segment(pictures, [["dog"], ["elk", "dog"], [], ["ant", "bee"]])
    run, calls = twin.score_passes, []

    def spoiled(*arguments: Any) -> Tensor:
        scores = run(*arguments)
        calls.append(len(scores))
        if len(calls) == 2:
            scores[0, 5, 5] = torch.nan  # the second image's last; its others were in the first call
        return scores

    twin.score_passes = spoiled  # type: ignore[method-assign]
    results = twin.segment(pictures, [["dog"], ["elk", "dog"], [], ["ant", "bee"]], on_error="keep")
    assert [type(result.error) for result in results] == [type(None), NumericsError, type(None), type(None)]
    for ours, theirs in zip(results, wanted, strict=True):
        if ours.error is None:
            assert np.array_equal(ours.mask, theirs.mask)
    assert calls == [3, 4]


def test_run_takes_tensors_and_gives_maps_of_the_named_classes(
    pictures: list[np.ndarray], recorded: RecordedRuntime
) -> None:
    net = tiny_net(dtype=torch.float64)
    twin = recorded_engine(net, torch.float64, reference)
    batch = Inputs(
        torch.stack([net.network_input(picture) for picture in pictures[:3]]),
        [picture.shape[:2] for picture in pictures[:3]],
        [[1, 3], [], None],
    )
    for found in twin.run([batch] * 3):
        for one, wanted in zip(found, net.segment(pictures[:3], [["bee", "dog"], [], None]), strict=True):
            assert one.label_map is not None
            lookup = torch.tensor([0, *(k + 1 for k in one.classes)], dtype=torch.uint8)
            assert np.array_equal(lookup[one.label_map.long()].numpy(), wanted.mask)


def test_four_threads_share_recordings(pictures: list[np.ndarray], recorded: RecordedRuntime, one_thread: None) -> None:
    twin = recorded_engine(tiny_net(), torch.bfloat16, ops)
    wanted = [result.mask for result in twin.segment(pictures, batch_size=2)]
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                results = twin.segment(pictures, batch_size=2)
                assert all(np.array_equal(r.mask, mask) for r, mask in zip(results, wanted, strict=True))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# without values, on a device of their own: whatever would wait for a GPU, or meet a tensor of the host, is an error


class OnOneDevice(TorchDispatchMode):
    """Every op takes tensors of the meta device only, and makes no others."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.dim():  # numbers may come along
                assert tensor.is_meta, f"{function}: a tensor {list(tensor.shape)} on {tensor.device}"
        return result


class CudaRules(RecordedRuntime):
    """What a CUDA engine is made by, and no more."""

    dtypes = runtime.CudaRuntime.dtypes

    def __init__(self) -> None:
        super().__init__()
        self.isa = CUDA


@pytest.fixture
def valueless(monkeypatch: pytest.MonkeyPatch) -> FastDecoupledNet:
    """An engine folded for CUDA, its weights on the meta device."""
    monkeypatch.setattr(engine, "runtime_for", lambda *_: CudaRules())
    twin = FastDecoupledNet(tiny_net(), torch.bfloat16, ops)
    twin._weights = tree_map_only(Tensor, lambda t: t.to("meta"), twin._weights)
    twin._images = ImagePart(twin.config, twin._weights.image_part, torch.bfloat16, ops)
    twin._shifts = twin._shifts.to("meta")
    return twin


def test_every_part_reads_no_value_and_makes_nothing_on_the_host(valueless: FastDecoupledNet) -> None:
    index = [torch.zeros(count, dtype=torch.int64, device="meta") for count in (2, 5, 5, 7)]
    with OnOneDevice():
        encoded = valueless._images.encode(torch.empty(3, 3, 64, 64, device="meta"))
        table = valueless._halves(encoded.before_decoder(), *index[:3])
        scores = valueless.decode(table, encoded.switches, index[3])
        label_map = valueless.merge_scores(scores[:3], 2, 50, (40, 50))
    assert encoded.scores.shape == (3, 6)
    assert table.shape == (7, 4 * valueless.config.bridge)
    assert (scores.shape, scores.dtype) == ((7, 64, 64), torch.float32)
    assert (label_map.shape, label_map.dtype) == ((40, 50), torch.uint8)


def test_the_device_without_values_finds_what_would_wait_and_what_meets_the_host() -> None:
    x = torch.empty(2, device="meta")
    for wrong in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x.tolist()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()
    host = torch.empty(2)
    for wrong in (lambda: x + host, lambda: x.add_(host), lambda: torch.arange(3)):
        with pytest.raises((RuntimeError, AssertionError)), OnOneDevice():
            wrong()


# what an engine is refused


class Properties:
    name, major, minor, total_memory = "NVIDIA Old", 7, 5, 2**34


@pytest.mark.parametrize(
    ("archs", "capability", "message"),
    [
        ([], (9, 0), r"built without CUDA kernels: rebuild it where nvcc is found \(DDN_CUDA=ON\)"),
        (["80-real"], (7, 5), r"no CUDA kernel for NVIDIA Old \(7\.5\): they need compute capability 8\.0 or newer"),
        (
            ["80-real", "90a-real"],
            (10, 3),
            r"among those built \(80-real, 90a-real\): rebuild with 10\.3 in TORCH_CUDA",
        ),
    ],
)
def test_a_gpu_without_kernels_is_a_named_error_that_names_the_flag(
    archs: list[str], capability: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Native:
        @staticmethod
        def build_info() -> dict[str, Any]:
            return {"cuda_archs": archs}

    properties = type("Other", (Properties,), dict(zip(("major", "minor"), capability, strict=True)))
    monkeypatch.setattr(info, "_extension", lambda: (Native, []))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    with pytest.raises(InputError, match=f"{message}.*; the plain network may run there"):
        runtime.runtime_for(torch.device("cuda:0"), True, None, 320)


def test_float32_on_cuda_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        InputError,
        match=r"dtype: wanted torch\.bfloat16 or torch\.float16 on .*, got torch\.float32; the plain network computes",
    ):
        CudaRules().check_dtype(torch.float32, compiled=True)
    CudaRules().check_dtype(torch.float32, compiled=False)  # of the plain formulas


def test_a_network_on_two_devices_is_a_named_error() -> None:
    net = tiny_net()
    net.bridge.to("meta")
    with pytest.raises(InputError, match="model: wanted a network on one device, got cpu, meta"):
        FastDecoupledNet(net)


def test_half_weights_are_packed_for_cuda() -> None:
    weights = fold(tiny_net(), torch.float16, CUDA)
    for stage in (*weights.image_part.encoder, *weights.decoder):
        assert {weight.dtype for weight in stage.weights} == {torch.float16}
        assert {weight.dim() for weight in stage.weights} == {7}
        assert {bias.dtype for bias in stage.biases} == {torch.float32}


# on a GPU


@pytest.fixture
def last_gpu(cuda: str) -> torch.device:
    """Not the current one, where there are several."""
    return torch.device(cuda, torch.cuda.device_count() - 1)


DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
GRAPHS = pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@GRAPHS
@DTYPES
def test_on_cuda_it_is_as_close_to_the_plain_network_as_the_formulas(
    dtype: torch.dtype, graphs: bool, name: str, last_gpu: torch.device
) -> None:
    net = random_net(CONFIGS[name])
    x, labels, image_of_pass = some_passes(net.config, 3, 9)
    wanted = difference(net, x, labels, image_of_pass).sigmoid()
    with torch.no_grad():
        scores = net.classify(x)
    formulas = FastDecoupledNet(net.float(), torch.bfloat16, reference)  # on the CPU
    plain = formulas.fast(x.float(), labels, image_of_pass)
    net = net.to(last_gpu)
    twin = FastDecoupledNet(net, dtype, graphs=graphs)
    for _ in range(2):
        got = twin.fast(x.float().to(last_gpu), labels, image_of_pass)
        assert got.device == last_gpu
        assert (got.cpu() - wanted).abs().mean() <= 1.5 * (plain - wanted).abs().mean() + 1e-3
        same(twin.classify(x.float().to(last_gpu)).cpu(), scores, 0.05)


@pytest.mark.gpu
@GRAPHS
def test_segment_on_cuda_gives_labels_that_hold(
    graphs: bool, pictures: list[np.ndarray], last_gpu: torch.device
) -> None:
    exact = tiny_net(dtype=torch.float64)
    twin = FastDecoupledNet(tiny_net().to(last_gpu), torch.float16, graphs=graphs)
    names = [["dog"], ["elk", "dog", "ant"], None, []]
    chosen = [[3], [0, 3, 4], None, []]
    for batch_size in (1, 3, 4):
        results = twin.segment(pictures, names, batch_size=batch_size)
        for image, result, classes in zip(pictures, results, chosen, strict=True):
            expected, gap = slow_segment(exact, image, classes)
            assert (result.mask != expected)[gap > 0.05].mean() < 0.01


@pytest.mark.gpu
@GRAPHS
def test_on_cuda_nothing_waits_between_reading_and_reading(graphs: bool, last_gpu: torch.device) -> None:
    twin = FastDecoupledNet(tiny_net().to(last_gpu), graphs=graphs)
    x, labels, image_of_pass = some_passes(twin.config, 3, 7)
    x = (40 * x).float().to(last_gpu)
    wanted = twin.fast(x, labels, image_of_pass)
    torch.cuda.synchronize(last_gpu)
    try:
        torch.cuda.set_sync_debug_mode("error")
        got = twin.fast(x, labels, image_of_pass)
        twin.merge_scores(got[:3], 2, 50, (40, 50))
        fetched = twin.runtime.fetch([got])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(fetched()[0], wanted.cpu())


@pytest.mark.gpu
@GRAPHS
def test_work_is_in_the_order_of_the_callers_stream(graphs: bool, last_gpu: torch.device) -> None:
    twin = FastDecoupledNet(tiny_net().to(last_gpu), graphs=graphs)
    x, labels, image_of_pass = some_passes(twin.config, 3, 7)
    x = (40 * x).float().to(last_gpu)
    wanted = twin.fast(x, labels, image_of_pass)
    given = torch.full_like(x, torch.nan)
    stream = torch.cuda.Stream(last_gpu)
    stream.wait_stream(torch.cuda.current_stream(last_gpu))
    with torch.cuda.stream(stream):
        for _ in range(3):
            given.fill_(torch.nan)
            torch.cuda._sleep(20_000_000)  # what does not wait for the stream sees NaN
            given.copy_(x)
            got = twin.fast(given, labels, image_of_pass)
    stream.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.gpu
def test_threads_on_their_own_streams_share_an_engine(pictures: list[np.ndarray], last_gpu: torch.device) -> None:
    twin = FastDecoupledNet(tiny_net().to(last_gpu))
    wanted = [result.mask for result in twin.segment(pictures, batch_size=2)]
    problems: list[BaseException] = []

    def work(own: bool) -> None:
        try:
            stream = torch.cuda.Stream(last_gpu) if own else torch.cuda.default_stream(last_gpu)
            with torch.cuda.stream(stream):
                for _ in range(10):
                    results = twin.segment(pictures, batch_size=2)
                    assert all(np.array_equal(r.mask, mask) for r, mask in zip(results, wanted, strict=True))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in (True, True, False, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.gpu
def test_the_command_line_takes_the_engine_on_cuda(last_gpu: torch.device, tmp_path: Any, capsys: Any) -> None:
    from ddn_fast.cli import main
    from ddn_fast.weights import save

    save(tiny_net(), tmp_path / "weights")
    image = write_image(tmp_path / "a.png", 1, 40, 30)
    arguments = ["predict", str(image), "--weights", str(tmp_path / "weights"), "--quiet", "--device", str(last_gpu)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert f"engine: bfloat16 on {last_gpu}" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "none"), "--dtype", "float32"]) == 2
    assert "wanted torch.bfloat16 or torch.float16" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_plain_network_on_cuda_is_the_one_on_the_cpu(pictures: list[np.ndarray], last_gpu: torch.device) -> None:
    plain: Segmenter = tiny_net(dtype=torch.float64).to(last_gpu)
    for image, result in zip(pictures, plain.segment(pictures), strict=True):
        expected, gap = slow_segment(tiny_net(dtype=torch.float64), image)
        assert not ((result.mask != expected) & (gap > 1e-5)).any()
