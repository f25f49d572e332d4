"""VGG-16 weights in torchvision's names: what they become, what is refused."""

from __future__ import annotations

import functools
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddn_fast import vgg, weights
from ddn_fast.config import MEAN_BGR, NetConfig
from ddn_fast.errors import InputError, WeightsError
from ddn_fast.network import DecoupledNet

CONFIG = NetConfig(classes=("cat", "dog"), side=96, widths=(4, 4, 5, 6, 6), fc=8, bridge=7, fc_kernel=3)


@pytest.fixture
def model() -> DecoupledNet:
    torch.manual_seed(0)
    return DecoupledNet(CONFIG).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def vgg16_state(config: NetConfig = CONFIG) -> dict[str, torch.Tensor]:
    """torchvision's names, this configuration's widths."""
    torch.manual_seed(2)
    state, channels = {}, 3
    features = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    for width, convs in zip(config.widths, (2, 2, 3, 3, 3), strict=True):
        for _ in range(convs):
            index = next(features)
            state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3)
            state[f"features.{index}.bias"] = torch.randn(width)
            channels = width
    flat = channels * config.fc_kernel**2
    for index, inputs, outputs in ((0, flat, config.fc), (3, config.fc, config.fc), (6, config.fc, 1000)):
        state[f"classifier.{index}.weight"] = torch.randn(outputs, inputs)
        state[f"classifier.{index}.bias"] = torch.randn(outputs)
    return state


def vgg16_forward(state: dict[str, torch.Tensor], x: torch.Tensor, kernel: int) -> list[torch.Tensor]:
    """The first convolution's map and fc7 of torchvision's layers on a pool5 map of the kernel's size."""
    first = torch.conv2d(x, state["features.0.weight"], state["features.0.bias"], padding=1)
    x = first
    for index in (2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        x = torch.relu(x)
        if index in (5, 10, 17, 24):
            x = torch.max_pool2d(x, 2)
        x = torch.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
    x = torch.max_pool2d(torch.relu(x), 2).flatten(1)
    for index in (0, 3):
        x = torch.relu(
            torch.nn.functional.linear(x, state[f"classifier.{index}.weight"], state[f"classifier.{index}.bias"])
        )
    return [first, x]


@pytest.mark.parametrize("form", ["pth", "legacy", "safetensors"])
def test_vgg16_in_caffe_convention_computes_as_torchvision_does(model: DecoupledNet, tmp_path: Path, form: str) -> None:
    state = vgg16_state()
    path = tmp_path / ("vgg.safetensors" if form == "safetensors" else "vgg.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights.load_vgg16(model, path, convention="caffe")
    for name, value in model.state_dict().items():
        fresh = name.startswith(("bridge", "decoder", "head.cls_score"))
        assert torch.equal(value, before[name]) == fresh, name
    x = torch.randn(1, 3, 96, 96)
    trace: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        model.encode(x, trace)
        _, fc7 = vgg16_forward(state, x, CONFIG.fc_kernel)
    torch.testing.assert_close(trace["fc7"].flatten(1), fc7, rtol=1e-4, atol=1e-4 * float(fc7.abs().max()))


def test_torchvision_input_is_folded_into_the_first_layer_exactly_but_for_the_border() -> None:
    state = vgg16_state()
    weight, bias = state["features.0.weight"], state["features.0.bias"]
    rgb = torch.randint(0, 256, (2, 3, 9, 11)).double()
    seen_there = (
        rgb / 255 - torch.tensor(vgg.TORCHVISION_MEAN_RGB, dtype=torch.float64)[:, None, None]
    ) / torch.tensor(vgg.TORCHVISION_STD_RGB, dtype=torch.float64)[:, None, None]
    seen_here = rgb.flip(1) - torch.tensor(MEAN_BGR, dtype=torch.float64)[:, None, None]
    wanted = torch.conv2d(seen_there, weight.double(), bias.double(), padding=1)
    folded, moved = vgg.fold_input(weight, bias)
    got = torch.conv2d(seen_here, folded.double(), moved.double(), padding=1)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(got[inner], wanted[inner], rtol=0, atol=1e-5)
    assert 1e-3 < (got - wanted).abs().max() < 0.2  # the border: at most 1.1 / (255 std) per tap


def test_wrong_vgg16_is_named_and_changes_nothing(model: DecoupledNet, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = vgg16_state(NetConfig(CONFIG.classes, 96, (4, 4, 5, 6, 9), 8, 7, 3))
    del state["features.2.bias"]
    state["features.5.bias"][0] = torch.nan
    state["classifier.3.bias"] = state["classifier.3.bias"].int()
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError) as error:
        weights.load_vgg16(model, tmp_path / "vgg.pth")
    for text in (
        "wanted a VGG-16 of widths (4, 4, 5, 6, 6) and 8",
        "features.2.bias: wanted a float tensor [4], got NoneType",
        "features.5.bias: holds NaN",
        "features.24.weight: wanted [6, 6, 3, 3], got [9, 6, 3, 3]",
        "classifier.0.weight: wanted [8, 54], got [8, 81]",
        "classifier.3.bias: wanted a float tensor",
    ):
        assert text in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="convention"):
        weights.load_vgg16(model, tmp_path / "vgg.pth", "pytorch")


def test_tensors_without_ordinary_values_are_named(model: DecoupledNet, tmp_path: Path) -> None:
    """Files of torch.save may hold them, and they are shaped as the others."""
    state = vgg16_state()
    state["features.0.bias"] = state["features.0.bias"].to(torch.float8_e4m3fn)
    state["features.2.bias"] = state["features.2.bias"].to_sparse()
    state["features.5.bias"] = state["features.5.bias"].to("meta")
    state["features.7.bias"] = state["features.7.bias"].double() * 1e300
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError) as error:
        weights.load_vgg16(model, tmp_path / "vgg.pth")
    for text in (
        "features.0.bias: wanted a float tensor [4], got torch.float8_e4m3fn, torch.strided, on cpu",
        "features.2.bias: wanted a float tensor [4], got torch.float32, torch.sparse_coo, on cpu",
        "features.5.bias: wanted a float tensor [4], got torch.float32, torch.strided, on meta",
        "features.7.bias: holds NaN or infinity",
    ):
        assert text in str(error.value)


def test_a_file_that_was_compressed_is_refused(model: DecoupledNet, tmp_path: Path) -> None:
    """Its parts cannot be mapped, and may unpack to anything."""
    good, path = tmp_path / "good.pth", tmp_path / "vgg.pth"
    torch.save(vgg16_state(), good)
    with zipfile.ZipFile(good) as parts, zipfile.ZipFile(path, "w") as archive:
        for part in parts.infolist():
            archive.writestr(part.filename, parts.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"vgg\.pth: wanted a file as torch\.save writes it, got .* compressed"):
        weights.load_vgg16(model, path)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_damaged_or_evil_vgg16_is_a_named_error(
    model: DecoupledNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, path = tmp_path / "good.pth", tmp_path / "vgg.pth"
    torch.save(vgg16_state(), good)
    data = good.read_bytes()
    for damage in (b"", b"text", data[:5000], data[:-200], b"PK\3\4" + data[:100]):
        for suffix in (".pth", ".safetensors"):
            path.with_suffix(suffix).write_bytes(damage)
            with pytest.raises(WeightsError, match="vgg"):
                weights.load_vgg16(model, path.with_suffix(suffix))
    torch.save({"features.0.weight": Evil()}, path)
    with pytest.raises(WeightsError, match="cannot read VGG-16 weights: UnpicklingError: wanted an undam") as error:
        weights.load_vgg16(model, path)
    assert "weights_only" not in str(error.value)
    assert not Path("evil").exists()
    torch.save([1], path)
    with pytest.raises(WeightsError, match="wanted a state dict, got list"):
        weights.load_vgg16(model, path)
    with pytest.raises(WeightsError, match="FileNotFoundError"):
        weights.load_vgg16(model, tmp_path / "absent.pth")


def test_vgg16_is_converted_reproducibly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = functools.partial(
        NetConfig, widths=CONFIG.widths, fc=CONFIG.fc, bridge=CONFIG.bridge, fc_kernel=CONFIG.fc_kernel
    )
    monkeypatch.setattr(weights, "NetConfig", narrow)
    torch.save(vgg16_state(), tmp_path / "vgg.pth")
    state = torch.get_rng_state()
    first = weights.convert(tmp_path / "vgg.pth", tmp_path / "a", side=96, classes=["a", "b"])
    assert torch.equal(state, torch.get_rng_state())
    assert same(first, weights.convert(tmp_path / "vgg.pth", tmp_path / "b", side=96, classes=["a", "b"]))
    assert not same(first, weights.convert(tmp_path / "vgg.pth", tmp_path / "c", side=96, classes=["a", "b"], seed=1))
    monkeypatch.undo()
    assert same(first, weights.load(tmp_path / "a"))
    with pytest.raises(WeightsError, match="widths"):
        weights.convert(tmp_path / "vgg.pth", tmp_path / "d")
    assert not (tmp_path / "d").exists()
