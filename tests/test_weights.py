"""The project's own weights format: exact round trips, strict loading, saves that never half happen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddn_fast import weights
from ddn_fast.config import NetConfig
from ddn_fast.errors import ConfigError, DDNError, InputError, WeightsError
from ddn_fast.network import DecoupledNet

GOLDEN = Path(__file__).parent / "golden" / "tiny_a.caffemodel"
CONFIG = NetConfig(classes=("кот", "dog"), side=96, widths=(4, 4, 5, 6, 6), fc=8, bridge=7, fc_kernel=3)


@pytest.fixture
def model() -> DecoupledNet:
    torch.manual_seed(0)
    return DecoupledNet(CONFIG).eval()


@pytest.fixture
def saved(model: DecoupledNet, tmp_path: Path) -> Path:
    weights.save(model, tmp_path / "saved", {"recipe": "5 per class", "metrics": {"iou": 0.5}})
    return tmp_path / "saved"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def other(config: NetConfig = CONFIG) -> DecoupledNet:
    torch.manual_seed(1)
    return DecoupledNet(config)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_is_bit_exact(model: DecoupledNet, saved: Path) -> None:
    model.bridge.pool5_bn.running_mean.fill_(1e-42)  # a denormal survives too
    weights.save(model, saved)
    again = weights.load(saved)
    assert again.config == CONFIG
    assert not again.training
    assert same(model, again)
    assert all(p.requires_grad for p in again.parameters())
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in again.named_parameters()}


def test_metadata_round_trip(saved: Path) -> None:
    assert weights.read_metadata(saved) == {"recipe": "5 per class", "metrics": {"iou": 0.5}}


def test_loaded_network_computes_the_same(model: DecoupledNet, saved: Path) -> None:
    x, labels, image_of_pass = torch.randn(1, 3, 96, 96), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(model(x, labels, image_of_pass), weights.load(saved)(x, labels, image_of_pass))


def test_stored_tensors_are_views_and_lie_as_if_allocated(tmp_path: Path) -> None:
    """Only odd sizes are copied: with full widths seg-score's and cls-score's biases, here a few small tensors."""
    model = DecoupledNet(NetConfig(side=96, widths=(16, 16, 16, 16, 16), fc=16, bridge=16, fc_kernel=3))
    weights.save(model, tmp_path)
    maps = Path("/proc/self/maps")
    state = weights.load(tmp_path).state_dict()
    ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if str(tmp_path) in line]
    start, end = int(ranges[0][0], 16), int(ranges[-1][1], 16)
    copied = {name for name, value in state.items() if not start <= value.data_ptr() < end}
    assert copied <= {"decoder.seg_score.bias", "head.cls_score.bias"}
    assert all(value.data_ptr() % 64 == 0 for value in state.values())


def test_a_file_packed_by_another_writer_loads_the_same(model: DecoupledNet, saved: Path) -> None:
    save_file(model.state_dict(), saved / "model.safetensors")
    again = weights.load(saved)
    assert same(model, again)
    assert all(value.data_ptr() % 64 == 0 for value in again.state_dict().values())


def test_caffemodel_survives_conversion_bit_for_bit(tmp_path: Path) -> None:
    converted = weights.convert(GOLDEN, tmp_path / "net", classes=[f"c{k}" for k in range(20)], side=224)
    again = weights.load(tmp_path / "net")
    assert again.config == converted.config
    assert (again.config.side, again.config.classes[3]) == (224, "c3")
    assert same(weights.load(GOLDEN), again)
    assert weights.read_metadata(tmp_path / "net") == {"source": "tiny_a.caffemodel"}


def test_side_and_classes_can_be_replaced(saved: Path) -> None:
    assert weights.load(saved, side=160, classes=["a", "b"]).config.classes == ("a", "b")
    for wrong in ({"side": 0}, {"side": 100}, {"classes": ()}, {"classes": ("a", "a")}, {"classes": ("a",)}):
        with pytest.raises(WeightsError, match=r"side|classes"):
            weights.load(saved, **wrong)  # type: ignore[arg-type]


def test_device_that_is_not_there_is_a_named_error(saved: Path) -> None:
    with pytest.raises(InputError, match="device"):
        weights.load(saved, device="cuda:77")
    assert weights.load(saved, device="meta").head.fc6.weight.is_meta


def test_half_precision_is_widened_and_double_refused(model: DecoupledNet, tmp_path: Path) -> None:
    weights.save(model.bfloat16(), tmp_path / "half")
    again = weights.load(tmp_path / "half")
    assert again.head.fc6.weight.dtype == torch.float32
    assert same(model.float(), again)
    with pytest.raises(WeightsError, match=r"encoder.conv1_1.weight: cannot store torch.float64"):
        weights.save(model.double(), tmp_path / "double")
    assert not (tmp_path / "double").exists()


def test_channels_last_weights_are_saved_as_their_values(model: DecoupledNet, saved: Path) -> None:
    weights.save(model.to(memory_format=torch.channels_last), saved)
    assert same(model, weights.load(saved))


def test_a_network_can_be_saved_where_it_was_loaded_from(saved: Path) -> None:
    model = weights.load(saved)
    with torch.no_grad():
        model.head.fc7.weight.add_(1)
    weights.save(model, saved)
    assert same(model, weights.load(saved))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(model: DecoupledNet, saved: Path, bad: float) -> None:
    tensors = {name: value.clone() for name, value in load_file(saved / "model.safetensors").items()}  # not views of it
    tensors["head.fc7.weight"].view(-1)[-1] = bad
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(WeightsError, match=r"head.fc7.weight: holds NaN or infinity"):
        weights.load(saved)
    model.load_state_dict(tensors)
    with pytest.raises(WeightsError, match=r"not saved: head.fc7.weight: holds NaN"):
        weights.save(model, saved)


def test_wrong_tensors_are_all_named(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["head.fc6.bias"]
    tensors["head.fc6.weight"] = tensors["head.fc6.weight"][:, :2].contiguous()
    tensors["head.fc7.weight"] = tensors["head.fc7.weight"].half()
    tensors["head.fc8.weight"] = torch.zeros(1)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        weights.load(saved)
    for text in (
        "head.fc6.bias: missing",
        "head.fc8.weight: unexpected",
        "head.fc6.weight: wanted [8, 6, 3, 3] of F32, got [8, 2, 3, 3] of F32",
        "head.fc7.weight: wanted [8, 8, 1, 1] of F32, got [8, 8, 1, 1] of F16",
    ):
        assert text in str(error.value)


def test_configuration_of_another_width_is_a_named_error(saved: Path) -> None:
    edit(saved / "config.json", config=CONFIG.to_dict() | {"fc": 9})
    with pytest.raises(WeightsError, match=r"head.fc6.weight: wanted \[9, 6, 3, 3\] of F32, got \[8, 6, 3, 3\]"):
        weights.load(saved)
    edit(saved / "config.json", config=CONFIG.to_dict() | {"fc": 65536, "bridge": 65536})  # takes no memory
    with pytest.raises(WeightsError, match=r"head.fc6.weight: wanted"):
        weights.load(saved)


def test_classes_may_be_renamed_in_config_json(saved: Path) -> None:
    edit(saved / "config.json", config=CONFIG.to_dict() | {"classes": ["cat", "dog"]})
    assert weights.load(saved).config.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "wanted a JSON object, got list"),
        ('{"id": "%s"}', "wanted format 1, got None"),
        ('{"id": "%s", "format": 2}', "wanted format 1, got 2"),
        ('{"id": "%s", "format": 1}', "wanted an object with config and metadata"),
        ('{"id": "%s", "format": 1, "config": []}', "wanted an object, got list"),
        ('{"id": "%s", "format": 1, "config": {"side": 1}}', "is missing"),
        (" " * (2**20 + 1), "at most 1048576 bytes"),
        ("\udcff", "not JSON"),
    ],
)
def test_damaged_config_is_a_named_error(saved: Path, text: str, what: str) -> None:
    path = saved / "config.json"
    text = text.replace("%s", json.loads(path.read_text())["id"])
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=what):
        weights.load(saved)


def test_what_is_no_saved_network_is_a_named_error(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vgg.pth").touch()
    (tmp_path / "empty.caffemodel").touch()
    for path, what in (
        (tmp_path / "absent", "got nothing"),
        (tmp_path / "nul\0", "cannot read|got nothing"),
        (tmp_path / ("x" * 5000), "cannot read|got nothing"),
        (tmp_path, "model.safetensors: wanted a saved network, the file is missing"),
        (saved / "model.safetensors", "pass .*saved"),
        (saved / "config.json", "pass .*saved"),
        (tmp_path / "vgg.pth", "has to be converted first"),
        (tmp_path / "empty.caffemodel", "the file is empty"),
    ):
        with pytest.raises(WeightsError, match=what):
            weights.load(path)
    with pytest.raises(WeightsError, match="cannot read"):
        weights.read_metadata(tmp_path / ("x" * 5000))
    run = tmp_path / "run"
    weights.save(other(), run / "weights")
    with pytest.raises(WeightsError, match=r"run/model.safetensors: .* missing; pass .*run/weights"):
        weights.load(run)
    (saved / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config.json: cannot read"):
        weights.load(saved)
    with pytest.raises(WeightsError, match="cannot write"):
        weights.save(other(), tmp_path / "vgg.pth")  # a file stands there


def test_metadata_that_is_no_dict_leaves_the_folder_alone(model: DecoupledNet, saved: Path) -> None:
    for wrong in (["x"], "x", 7, []):
        with pytest.raises(InputError, match=f"metadata: wanted a dict, got {type(wrong).__name__}"):
            weights.save(other(), saved, wrong)  # type: ignore[arg-type]
    assert same(model, weights.load(saved))


def test_one_text_is_no_list_of_class_names(saved: Path, tmp_path: Path) -> None:
    """Its letters would be."""
    for call in (
        lambda: weights.load(saved, classes="ab"),
        lambda: weights.convert(GOLDEN, tmp_path / "net", classes="ab"),
        lambda: NetConfig("ab"),  # type: ignore[arg-type]
    ):
        with pytest.raises((InputError, ConfigError), match="classes: wanted a sequence of names, got the text 'ab'"):
            call()


def test_a_configuration_that_could_only_fail_later_is_a_named_error(saved: Path) -> None:
    for change, message in (
        ({"side": 65536}, "side: wanted at most 4096, got 65536"),
        ({"classes": ["a\nb", "c"]}, r"classes: wanted names .* got 'a\\nb'"),
        ({"classes": ["a", "\ud800"]}, r"classes: wanted names .* got '\\ud800'"),
        ({"classes": ["a", "b" * 500_000]}, "classes: wanted names of at most 255 characters, .* got 'b+'$"),
    ):
        edit(saved / "config.json", config=CONFIG.to_dict() | change)
        with pytest.raises(WeightsError, match=message) as error:
            weights.load(saved)
        assert len(str(error.value)) < 1000
    edit(saved / "config.json", config=CONFIG.to_dict() | {"classes": ["a\u200cb", "👩\u200d🌾 2"]})
    assert weights.load(saved).config.num_classes == 2


def test_metadata_that_is_no_json_leaves_the_folder_alone(model: DecoupledNet, saved: Path) -> None:
    for wrong in ({"x": object()}, {"x": float("nan")}, {"x": "\ud800"}, {"x": "y" * 2**20}):
        with pytest.raises(InputError, match="metadata"):
            weights.save(other(), saved, wrong)
    assert same(model, weights.load(saved))


@pytest.mark.parametrize("fails", ["open", "write_text", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_network(
    model: DecoupledNet, saved: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    where = {"open": Path, "write_text": Path}.get(fails, os)
    with monkeypatch.context() as patch:
        patch.setattr(where, fails, full)
        with pytest.raises(WeightsError, match=r"saved: cannot write: .*No space left"):
            weights.save(other(), saved)
    assert same(model, weights.load(saved))
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "config.json"}


def test_a_save_killed_between_its_files_leaves_the_new_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights beside the old config.json, whose class names and side are other ones."""
    new = other(NetConfig(("x", "y"), 128, CONFIG.widths, CONFIG.fc, CONFIG.bridge, CONFIG.fc_kernel))
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "config.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            weights.save(new, saved, {"run": 2})
    again = weights.load(saved)
    assert again.config == new.config
    assert same(new, again)
    assert weights.read_metadata(saved) == {"run": 2}


def test_a_loaded_network_holds_no_file_open(saved: Path) -> None:
    model = weights.load(saved)
    held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert not [path for path in held if str(saved) in path]
    weights.save(other(), saved)  # the old file lives on under the loaded network
    assert not same(model, weights.load(saved))
    assert all(value.isfinite().all() for value in model.parameters())


FUZZ = settings(max_examples=120, deadline=None, derandomize=True, database=None)


@FUZZ
@given(
    name=st.sampled_from(["model.safetensors", "config.json"]),
    where=st.floats(0, 0.999),
    kind=st.sampled_from(["cut", "flip", "grow", "length"]),
    noise=st.binary(min_size=1, max_size=9),
    head=st.booleans(),
)
def test_damaged_folder_is_a_named_error_or_a_network(
    tmp_path_factory: pytest.TempPathFactory, name: str, where: float, kind: str, noise: bytes, head: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    weights.save(other(), folder)
    data = bytearray((folder / name).read_bytes())
    at = int(where * min(len(data), 12000 if head else len(data)))  # the header is the interesting part
    if kind == "cut":
        del data[at:]
    elif kind == "flip":
        data[at] ^= 1 << noise[0] % 8
    elif kind == "grow":
        data[at:at] = noise
    else:
        data[: len(noise)] = noise
    (folder / name).write_bytes(data)
    try:
        loaded = weights.load(folder)
    except DDNError:
        return
    shapes = {key: value.shape for key, value in DecoupledNet(loaded.config).state_dict().items()}
    assert {key: value.shape for key, value in loaded.state_dict().items()} == shapes
    assert all(value.isfinite().all() for value in loaded.state_dict().values())
