"""Checkpoints: what they restore, and every way in which one can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ddn_fast.errors import CheckpointError
from ddn_fast.training.checkpoint import load_checkpoint, save_checkpoint
from ddn_fast.training.solver import MomentumSGD

STATE = {"iteration": 7, "recipe": {"lr": 0.01, "network": {"side": 64}}, "network": {"fc": 3}, "data": {"split": "a"}}
EXPECTED = {name: STATE[name] for name in ("recipe", "network", "data")}

Make = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return MomentumSGD([{"params": list(model.parameters())}], lr=0.1, momentum=0.9, accumulate=1)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.1)


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Conv2d(5, 2, 1))
    return model.to(memory_format=torch.channels_last)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = {f"{name}/{key}": v for name, p in model.named_parameters() for key, v in optimizer.state[p].items()}
    return {**model.state_dict(), **state, "random": torch.get_rng_state()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = make_model(0)
    optimizer = sgd(model)
    step(model, optimizer)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, STATE)
    return tmp_path / "c.safetensors"


def load(path: Path, expected: dict[str, Any] = EXPECTED, model: nn.Module | None = None) -> dict[str, Any]:
    model = model or make_model(1)
    return load_checkpoint(path, model, sgd(model), expected)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path, make: Make) -> None:
    model = make_model(0)
    optimizer = make(model)
    step(model, optimizer)
    save_checkpoint(tmp_path / "c", model, optimizer, STATE)
    other = make_model(1)
    other_optimizer = make(other)
    state = load_checkpoint(tmp_path / "c", other, other_optimizer, EXPECTED)
    assert {name: state[name] for name in STATE} == STATE
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert other_optimizer.state[q][key].stride() == value.stride(), "another layout may round differently"
    restored = torch.get_rng_state()
    torch.manual_seed(9)  # whatever happens between saving and loading
    load_checkpoint(tmp_path / "c", other, other_optimizer, EXPECTED)
    assert torch.equal(torch.get_rng_state(), restored)
    step(other, other_optimizer)
    torch.set_rng_state(restored)
    step(model, optimizer)
    wanted, got = snapshot(model, optimizer), snapshot(other, other_optimizer)
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []


def test_checkpoint_before_the_first_step_has_no_optimizer_state(tmp_path: Path) -> None:
    model = make_model(0)
    save_checkpoint(tmp_path / "c", model, sgd(model), STATE)
    other = make_model(1)
    optimizer = sgd(other)
    step(other, optimizer)
    load_checkpoint(tmp_path / "c", other, optimizer, EXPECTED)
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"recipe": {"lr": 0.02, "network": {"side": 64}}}, r"recipe\.lr is 0\.01 there and 0\.02 here"),
        ({"recipe": {"lr": 0.01, "network": {"side": 96}}}, r"recipe\.network\.side is 64 there and 96 here"),
        ({"recipe": {"lr": 0.01, "network": {"side": 64}, "new": 1}}, r"recipe\.new is None there and 1 here"),
        ({"network": {"fc": 4}}, r"network\.fc is 3 there and 4 here"),
        ({"data": {"split": "b"}}, r"data\.split is 'a' there and 'b' here"),
        ({"other": {"a": 1}}, r"other is None there"),
    ],
)
def test_checkpoint_of_another_run_is_refused_naming_the_difference(saved: Path, expected: dict, message: str) -> None:
    model = make_model(1)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(CheckpointError, match=message) as caught:
        load(saved, {**EXPECTED, **expected}, model)
    assert str(saved) in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_tuples_of_a_recipe_equal_the_lists_they_are_stored_as(tmp_path: Path) -> None:
    model = make_model(0)
    save_checkpoint(tmp_path / "c", model, sgd(model), {**STATE, "network": {"widths": (1, 2)}})
    load(tmp_path / "c", {"network": {"widths": (1, 2)}})


def test_checkpoint_of_a_network_of_other_shape_is_a_named_error(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        load(saved, model=nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Conv2d(6, 2, 1)))
    with pytest.raises(CheckpointError, match=r"4\.weight"):
        load(saved, model=nn.Sequential(*make_model(0), nn.Conv2d(2, 2, 1)))


def test_missing_checkpoint_is_a_named_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            load(path)


def test_truncated_checkpoint_is_a_named_error(saved: Path) -> None:
    data = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"c\.safetensors"):
            load(saved)
    saved.write_bytes(data + b"x")
    with pytest.raises(CheckpointError):
        load(saved)


def test_any_flipped_byte_is_a_named_error(saved: Path) -> None:
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    generator = torch.Generator().manual_seed(0)
    places = [*range(8), *torch.randint(8, header, (60,), generator=generator).tolist()]
    places += torch.randint(header, len(data), (30,), generator=generator).tolist()
    for place in places:
        bit = 1 << int(torch.randint(8, (1,), generator=generator))
        saved.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        try:
            load(saved)
        except CheckpointError:
            continue
        # white space and escapes of the header's JSON: the same content, written differently
        assert 8 <= place < header
        assert chr(data[place] ^ bit).isspace() or chr(data[place]).isspace(), f"byte {place} of {len(data)}"


@pytest.mark.parametrize(
    "metadata", [None, {"state": "[1]", "sha256": ""}, {"state": "{", "sha256": ""}, {"state": "{}"}]
)
def test_safetensors_file_that_is_no_checkpoint_is_a_named_error(tmp_path: Path, metadata: dict | None) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "c", metadata)
    with pytest.raises(CheckpointError):
        load(tmp_path / "c")


def test_pickle_is_never_read(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(tmp_path / "c")
