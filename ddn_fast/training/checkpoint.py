"""Checkpoints: one safetensors file that holds everything needed to go on bit for bit, written beside and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_atomic

FORMAT = 1


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Model, optimizer and torch's random state as tensors, `state` as JSON in the header.

    `state` must hold what decides whether a checkpoint fits a run: ``recipe``, ``network``, ``iteration``.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in _optimizer_tensors(model, optimizer).items()}
    tensors["random/cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":  # of that one: others may be other processes'
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, **state})
    write_atomic(Path(path), to_bytes(plain, {"state": text, "sha256": _digest(text, plain)}), durable=True)


def load_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer, expected: dict[str, Any]
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote; returns its `state`.

    `expected` names entries of the state that must be equal (``recipe``, ``network``, ``data``); CheckpointError names
    the first that is not, a damaged file, and tensors that are missing or misshapen.
    """
    try:
        with torch.device("cpu"), safe_open(path, "pt") as file:  # as in weights.py
            metadata = file.metadata() or {}
            state, digest = json.loads(metadata["state"]), metadata["sha256"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: wanted a checkpoint of format {FORMAT}")
    if _digest(metadata["state"], tensors) != digest:
        raise CheckpointError(f"{path}: damaged: its content is not what its checksum says")
    if not isinstance(state.get("iteration"), int) or "random/cpu" not in tensors:
        raise CheckpointError(f"{path}: the iteration or the random state is missing")
    for name, value in expected.items():
        if (difference := _first_difference(state.get(name), json.loads(json.dumps(value)), name)) is not None:
            where, theirs, ours = difference
            raise CheckpointError(f"{path}: belongs to another run: {where} is {theirs!r} there and {ours!r} here")
    _restore_model(path, model, tensors)
    _restore_optimizer(path, model, optimizer, tensors)
    torch.set_rng_state(tensors["random/cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
    return state


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(state.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def _restore_model(path: Any, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _restore_optimizer(
    path: Any, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, value in tensors.items():
        if not name.startswith("optimizer/"):
            continue
        owner, _, key = name.removeprefix("optimizer/").rpartition("/")
        if owner not in parameters:
            raise CheckpointError(f"{path}: optimizer state of {owner!r}, which this network has not")
        parameter = parameters[owner]
        if value.shape == parameter.shape:  # in the parameter's memory format: another one may round differently
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif value.dim():  # a step counter is a scalar, on the CPU
            raise CheckpointError(
                f"{path}: {name}: wanted {list(parameter.shape)}, the parameter's shape, got {list(value.shape)}"
            )
        optimizer.state[parameter][key] = value


def _first_difference(theirs: Any, ours: Any, where: str) -> tuple[str, Any, Any] | None:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(set(theirs) | set(ours)):
            if (found := _first_difference(theirs.get(key), ours.get(key), f"{where}.{key}")) is not None:
                return found
        return None
    return None if theirs == ours else (where, theirs, ours)
