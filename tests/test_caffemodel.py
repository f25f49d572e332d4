"""The ``.caffemodel`` reader: the golden file bit for bit, every form of the format, and damage of every kind."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import caffemodel_writer as writer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_fast import caffemodel, release, weights
from ddn_fast.caffemodel import CaffeModel
from ddn_fast.config import VOC_CLASSES, NetConfig
from ddn_fast.errors import DDNError, WeightsError
from ddn_fast.release import layer_of, read_caffemodel

GOLDEN = Path(__file__).parent / "golden" / "tiny_a.caffemodel"
Small = tuple[Path, bytes, dict[str, torch.Tensor]]
NARROW = {"widths": (4, 4, 5, 6, 6), "fc": 8, "bridge": 7, "kernel": 3, "classes": 3}


@pytest.fixture
def layers() -> list[writer.Layer]:
    return writer.network(**NARROW, rng=np.random.default_rng(0))


def by_name(layers: list[writer.Layer], name: str) -> writer.Layer:
    return next(layer for layer in layers if layer.name == name)


def written(path: Path, layers: list[writer.Layer], **how: object) -> Path:
    writer.write(path / "net.caffemodel", layers, **how)  # type: ignore[arg-type]
    return path / "net.caffemodel"


def expect_equal(path: Path, layers: list[writer.Layer]) -> None:
    _, tensors = read_caffemodel(path)
    for name, value in tensors.items():
        if name.endswith(("weight", "bias")):
            blob = by_name(layers, layer_of(name)).blobs[name.endswith("bias")].data
            assert blob is not None
            assert np.array_equal(blob.ravel(), value.numpy().ravel()), name


def test_configuration_follows_from_the_golden_file() -> None:
    config, _ = read_caffemodel(GOLDEN)
    assert config == NetConfig(VOC_CLASSES, 320, (8, 8, 12, 16, 16), 32, 24, 7)


def test_every_golden_blob_is_the_loaded_parameter() -> None:
    """Values are searched for in the file's raw bytes: no other parser is trusted."""
    data = GOLDEN.read_bytes()
    _, tensors = read_caffemodel(GOLDEN)
    end = 0
    for name, value in tensors.items():
        if name.endswith("running_mean"):
            assert not value.any()
        elif name.endswith("running_var"):
            assert (value == 1).all()
        else:
            if name.endswith("weight"):  # the layer's name, then its type, then its blobs
                end = data.index(b"\x22" + bytes([len(layer_of(name))]) + layer_of(name).encode() + b"\x28")
            place = data.find(value.numpy().tobytes(), end)
            assert end < place < end + 50, name
            end = place + value.nbytes
    with CaffeModel(GOLDEN) as model:
        loaded = {layer_of(name) for name in tensors}
        assert set(model.names) - loaded == {"cls-score-voc-bp", "fc7-bp", "fc6-bp"}


def test_golden_head_and_its_tied_layers_agree() -> None:
    read_caffemodel(GOLDEN, verify_tied=True)


def test_a_tied_layer_that_differs_is_named_when_asked(tmp_path: Path, layers: list[writer.Layer]) -> None:
    for name in ("cls-score-voc-bp", "fc7-bp", "fc6-bp"):
        by_name(layers, name).blobs[0].data.flat[-1] += 1  # type: ignore[union-attr]
    by_name(layers, "fc7-bp").blobs[1].data[0] = 1  # type: ignore[index]
    path = written(tmp_path, layers)
    read_caffemodel(path)
    with pytest.raises(
        WeightsError, match=r"cls-score-voc-bp: differs .*fc7-bp: differs .*bias of zeros.*fc6-bp: differs"
    ):
        read_caffemodel(path, verify_tied=True)


def test_tied_layers_may_have_any_axes(tmp_path: Path, layers: list[writer.Layer]) -> None:
    for name in ("cls-score-voc-bp", "fc7-bp", "fc6-bp"):
        blob = by_name(layers, name).blobs[0]
        blob.shape, blob.form = (math.prod(blob.shape),), "shape"
    path = written(tmp_path, layers)
    read_caffemodel(path, verify_tied=True)
    by_name(layers, "cls-score-voc-bp").blobs[0].data.flat[0] += 1  # type: ignore[union-attr]
    strange = writer.Blob((2**31 - 1,) * 20 + (0,), np.zeros(0), "shape")
    by_name(layers, "fc7-bp").blobs = [by_name(layers, "fc7-bp").blobs[0], strange]
    with pytest.raises(WeightsError, match=r"DecoupledNet: cls-score-voc-bp: differs from .* \(transposed\)$"):
        read_caffemodel(written(tmp_path, layers), verify_tied=True)


@pytest.mark.parametrize("remainder", [0, 1, 2, 3, None])
def test_values_are_right_at_every_alignment(tmp_path: Path, layers: list[writer.Layer], remainder: int | None) -> None:
    path = written(tmp_path, layers, remainder=remainder)
    expect_equal(path, layers)
    _, tensors = read_caffemodel(path)
    assert all(value.data_ptr() % 4 == 0 for value in tensors.values())


def test_aligned_blobs_are_views_of_the_file_and_others_copies(tmp_path: Path, layers: list[writer.Layer]) -> None:
    for remainder, aligned in ((0, True), (2, False)):
        with CaffeModel(written(tmp_path, layers, remainder=remainder)) as model:
            blob = model.blobs("fc6")[0]
            assert blob.aligned == aligned
            # two views of one place share an address, two copies do not
            first, second = model.tensor(blob), model.tensor(blob)
            assert (first.data_ptr() == second.data_ptr()) == aligned


def test_large_blobs_are_read_in_parts(
    tmp_path: Path, layers: list[writer.Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caffemodel, "READ_SIZE", 37)
    expect_equal(written(tmp_path, layers, remainder=1), layers)


def test_writing_to_a_loaded_model_leaves_the_file_alone(tmp_path: Path, layers: list[writer.Layer]) -> None:
    path = written(tmp_path, layers, remainder=0)
    before = path.read_bytes()
    model = weights.load(path, side=128)
    x = torch.randn(1, 3, 128, 128)
    model.train()
    twin = copy.deepcopy(model.decoder)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x, torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)).square().mean().backward()
    optimiser.step()
    assert not torch.equal(model.decoder.seg_score.weight, twin.seg_score.weight)
    assert path.read_bytes() == before
    path.unlink()  # the map outlives the name
    weights.save(model, tmp_path / "saved")
    again = weights.load(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert model.to(torch.bfloat16).head.fc6.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["shape", "unpacked", "pieces", "double"])
def test_other_encodings_of_the_same_values(tmp_path: Path, layers: list[writer.Layer], form: str) -> None:
    for layer in layers:
        for blob in layer.blobs:
            blob.form = form
    expect_equal(written(tmp_path, layers), layers)


def test_v2_layers(tmp_path: Path, layers: list[writer.Layer]) -> None:
    for layer in layers:
        layer.v1 = False
    expect_equal(written(tmp_path, [writer.Layer("conv1_1", [writer.Blob((9,))], 22, False), *layers]), layers)


def test_unknown_nameless_split_and_repeated_layers_are_skipped(tmp_path: Path, layers: list[writer.Layer]) -> None:
    one = [writer.Blob((1,), np.ones(1))]
    strange = [
        writer.Layer("conv1_1", one, writer.SPLIT),
        writer.Layer("conv1_1"),
        writer.Layer(None, one),
        writer.Layer("", one),
        writer.Layer("свёртка", one),
        writer.Layer(b"\xff\xfe\x00", one),
        writer.Layer("prob", one),
    ]
    extra = writer.message(2, b"") + writer.message(2047, b"unknown") + writer.scalar(99, 2**64 - 1)
    path = written(tmp_path, [*strange, *layers, writer.Layer("conv1_1", one)], extra=extra)
    expect_equal(path, layers)
    with CaffeModel(path) as model:
        assert {"свёртка", "prob"} < set(model.names)


def test_side_comes_from_the_argument_the_file_or_the_release(tmp_path: Path, layers: list[writer.Layer]) -> None:
    path = written(tmp_path, layers)
    assert read_caffemodel(path)[0].side == 320
    assert read_caffemodel(path, side=160)[0].side == 160
    path = written(tmp_path, layers, input_dim=[1, 3, 192, 192, 1, 20, 1, 1])
    assert read_caffemodel(path)[0].side == 192
    assert read_caffemodel(path, side=160)[0].side == 160
    path = written(tmp_path, layers, input_dim=[1, 3, 192, 160])
    with pytest.raises(WeightsError, match=r"input_dim.*pass side"):
        read_caffemodel(path)
    with pytest.raises(WeightsError, match="multiple of 32"):
        read_caffemodel(path, side=100)


def test_class_names_have_to_be_as_many_as_the_file_has(tmp_path: Path, layers: list[writer.Layer]) -> None:
    path = written(tmp_path, layers)
    assert read_caffemodel(path)[0].classes == ("class_1", "class_2", "class_3")
    assert read_caffemodel(path, classes=("a", "b", "c"))[0].classes == ("a", "b", "c")
    with pytest.raises(WeightsError, match="wanted 3 names, as the file has, got 2"):
        read_caffemodel(path, classes=("a", "b"))


def test_all_missing_and_misshapen_blobs_are_named(tmp_path: Path, layers: list[writer.Layer]) -> None:
    layers.remove(by_name(layers, "fc7"))
    by_name(layers, "debn5_2").blobs = by_name(layers, "debn5_2").blobs[:1]
    by_name(layers, "conv2_1").blobs[0].shape = (4, 3, 4, 3)
    by_name(layers, "fc6-seg").blobs[1].data = None
    by_name(layers, "fc6-seg").blobs[1].shape = (1, 1, 1, 9)
    with pytest.raises(WeightsError) as error:
        read_caffemodel(written(tmp_path, layers))
    for text in (
        "net.caffemodel: ",
        "fc7: the layer is missing",
        "debn5_2: wanted blob 1 (bias), got 1 blobs",
        "conv2_1: wanted blob 0 (weight) of shape [4, 4, 3, 3], got [4, 3, 4, 3]",
        "fc6-seg: wanted blob 1 (bias) of shape [7], got [1, 1, 1, 9]",
    ):
        assert text in str(error.value)


def test_a_layer_that_fixes_the_widths_is_named_when_missing(tmp_path: Path, layers: list[writer.Layer]) -> None:
    layers.remove(by_name(layers, "cls-score-voc"))
    by_name(layers, "fc6").blobs = ()
    with pytest.raises(WeightsError, match=r"fc6: wanted a weight of 4 axes.*cls-score-voc: wanted .* is missing"):
        read_caffemodel(written(tmp_path, layers))


def test_nan_is_named(tmp_path: Path, layers: list[writer.Layer]) -> None:
    for name, value in (("fc7", np.nan), ("debn1_1", -np.inf)):
        by_name(layers, name).blobs[0].data.flat[1] = value  # type: ignore[union-attr]
    with pytest.raises(WeightsError, match=r"fc7.weight: holds NaN or infinity; decoder.deconv1_1_bn.weight: holds"):
        weights.load(written(tmp_path, layers))


def test_what_is_no_file_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("not a model, but text that is long enough to be one")
    for path in (tmp_path, *tmp_path.iterdir(), tmp_path / "absent", Path("/dev/zero"), tmp_path / "nul\0"):
        with pytest.raises(WeightsError, match=r"wanted|not a whole|cannot read"):
            read_caffemodel(path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(caffemodel.io, "FileIO", refuse)
    with pytest.raises(WeightsError, match="Permission denied"):
        read_caffemodel(GOLDEN)


@pytest.mark.parametrize("data", [b"", b"\x0b", b"\x12\xff", b"\x12\x00"])
def test_what_is_no_caffemodel_is_let_go_of_at_once(tmp_path: Path, data: bytes) -> None:
    """While its error is held, too: a map has a descriptor of its own."""
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as error:
        CaffeModel(path)
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [link for link in links if str(path) in str(link.readlink())]
    assert str(path) in str(error.value)


def test_file_that_shrinks_while_it_is_read_is_a_named_error(tmp_path: Path, layers: list[writer.Layer]) -> None:
    path = written(tmp_path, layers, remainder=1)
    with CaffeModel(path) as model:
        blob = model.blobs("seg-score-voc")[0]
        os.truncate(path, 100)
        with pytest.raises(WeightsError, match="became shorter"):
            model.tensor(blob)


def layer(*blob_fields: bytes) -> bytes:
    return writer.message(2, writer.message(4, b"a") + writer.message(6, b"".join(blob_fields)))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (layer(writer.scalar(1, 2**60), b"\x2a\x04\0\0\0\0"), "impossible shape"),
        (layer(writer.scalar(1, 2**64 - 4), b"\x2a\x04\0\0\0\0"), "impossible shape"),
        (layer(*(writer.scalar(k, 2**31 - 1) for k in (1, 2, 3, 4)), b"\x2a\x04\0\0\0\0"), "that holds 4 bytes"),
        (layer(writer.scalar(1, 2), b"\x2a\x04\0\0\0\0"), "that holds 4 bytes"),
        (layer(b"\x2a" + writer.varint(2**62)), "where 0 are left"),
        (layer(b"\x2a" + b"\xff" * 10), "more than 10 bytes"),
        (layer(b"\x2a\xff"), "runs past the end"),
        (layer(b"\x2d\0\0"), "a field of 4 bytes where 2"),
        (layer(b"\x2b"), "unknown wire type 3"),
        (layer(b"\x02\x00"), "a field numbered 0"),
        (layer(writer.message(7, writer.message(1, b"\1" * 40))), "impossible shape"),
        (layer(b"\x2d\0\0\0\0" * 33000), "pieces"),
        (writer.message(2, writer.message(4, b"a") + writer.message(6, b"") * 70), "more than 64 blobs"),
        (writer.message(2, writer.message(4, b"a" * 5000) + writer.message(6, b"")), "a layer name of 5000 bytes"),
        (
            layer() + b"".join(writer.message(2, writer.message(4, b"%d" % k) + b"\x32\0") for k in range(4200)),
            "4096 layers",
        ),
        (layer() + b"\x18\x00" * (2**17), "131072 fields"),
    ],
)
def test_every_length_is_bounded_before_it_is_used(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "file").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=what), CaffeModel(tmp_path / "file") as model:
            model.blobs("a")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def outcome(path: Path, reference: dict[str, torch.Tensor]) -> None:
    """A damaged file may raise a named error or load; what loads has the shapes its configuration promises."""
    try:
        config, tensors = read_caffemodel(path)
        shapes = {name: value.shape for name, value in release.blank(config).state_dict().items()}
        assert {name: value.shape for name, value in tensors.items()} == shapes
        assert sum(value.numel() for value in tensors.values()) <= 2 * sum(v.numel() for v in reference.values())
        for value in tensors.values():
            value.sum()  # every byte can be read
    except DDNError:
        pass


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    path = tmp_path_factory.mktemp("fuzz") / "small.caffemodel"
    layers = writer.network((1, 1, 1, 1, 1), 1, 1, 1, 1, np.random.default_rng(0))
    writer.write(path, layers, input_dim=(1, 3, 32, 32))
    data = path.read_bytes()
    return path, data, read_caffemodel(path)[1]


FUZZ = settings(max_examples=250, deadline=None, derandomize=True, database=None)


@FUZZ
@given(change=st.data())
def test_damaged_bytes_give_a_named_error_or_a_network(small: Small, change: st.DataObject) -> None:
    path, data, reference = small
    damaged = bytearray(data)
    for _ in range(change.draw(st.integers(1, 4))):
        at = change.draw(st.integers(0, max(len(damaged) - 1, 0)))
        kind = change.draw(st.sampled_from(["cut", "flip", "set", "grow", "drop", "varint", "copy"]))
        if kind == "cut":
            del damaged[at:]
        elif kind == "flip" and damaged:
            damaged[at] ^= 1 << change.draw(st.integers(0, 7))
        elif kind == "set" and damaged:
            damaged[at] = change.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "grow":
            damaged[at:at] = change.draw(st.binary(max_size=30))
        elif kind == "drop":
            del damaged[at : at + change.draw(st.integers(1, 30))]
        elif kind == "varint":  # a length or a dimension replaced by any other
            damaged[at : at + 1] = writer.varint(
                change.draw(st.integers(0, 2**64 - 1) | st.sampled_from([2**31, 2**32]))
            )
        else:
            damaged[at:at] = damaged[change.draw(st.integers(0, at)) : at]
    path.write_bytes(damaged)
    outcome(path, reference)


@settings(FUZZ, max_examples=150)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    with pytest.raises(DDNError):
        read_caffemodel(path)


def test_every_cut_of_a_file_is_a_named_error(
    small: Small,
) -> None:
    path, data, _ = small
    tail = len(b"".join(writer.scalar(4, n) for n in (1, 3, 32, 32)))
    for end in range(0, len(data) - tail, 7):  # behind it only the side is lost, which has a default
        path.write_bytes(data[:end])
        with pytest.raises(WeightsError):
            read_caffemodel(path)


FULL_SIZE = """
import json, sys, time
import torch
from ddn_fast import weights

def memory():
    lines = (line.split() for line in open("/proc/self/status"))
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "VmHWM:")}

before, start = memory(), time.perf_counter()
model = weights.load(sys.argv[1])
seconds, after = time.perf_counter() - start, memory()
size = sum(value.nbytes for value in model.state_dict().values())
print(json.dumps({"seconds": seconds, "size": size} | {key: after[key] - before[key] for key in after}))
"""


@pytest.mark.parametrize(("remainder", "copied"), [(0, 0), (1, 1)], ids=["aligned", "misaligned"])
def test_full_size_file_loads_without_doubling_memory(tmp_path: Path, remainder: int, copied: int) -> None:
    """1.7 GB, mostly holes. The time bound is generous: machines of continuous integration are slow and shared."""
    path = tmp_path / "full.caffemodel"
    writer.write(path, writer.network(), remainder)
    assert 1.7e9 < path.stat().st_size < 1.72e9
    run = subprocess.run([sys.executable, "-c", FULL_SIZE, str(path)], capture_output=True, text=True, check=True)
    path.unlink()
    seen = json.loads(run.stdout)
    assert 1.2e9 < seen["size"] < 1.25e9
    margin = 150e6
    assert seen["VmHWM"] < seen["size"] + margin
    assert seen["RssAnon"] < copied * seen["size"] + margin
    assert seen["seconds"] < 20
