"""The project's own weights format and the one door to all others: :func:`save`, :func:`load`, :func:`convert`.

A saved network is a folder: ``model.safetensors`` (every tensor of the state dict, float32, no pickle) and
``config.json``::

    {"format": 1, "config": {NetConfig}, "metadata": {anything}, "id": "..."}

Each file is replaced in one step, the weights first, so the folder always holds a whole network. Between the two steps
new weights would stand beside the old config.json; therefore the header of ``model.safetensors`` holds the new
config.json's text and id too. Equal ids: the files belong together and config.json counts (it may be edited, say to
rename classes). Different ids: a save was cut short there, or another is under way, and the header's text counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import NetConfig
from .engine import FastDecoupledNet
from .errors import ConfigError, InputError, WeightsError
from .files import sync
from .network import DecoupledNet
from .release import blank, raise_all, read_caffemodel
from .vgg import load_vgg16

__all__ = ["convert", "load", "load_vgg16", "read_metadata", "save"]

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 2**20
ALIGNMENT = 64  # bytes, as torch allocates
VGG_SUFFIXES = (".pth", ".pt", ".safetensors")


def save(model: DecoupledNet, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write `model` into `folder` (made if need be) so that at every moment it holds the old network or the new one.

    `metadata` is a dict of anything JSON can hold (recipe, metrics); :func:`read_metadata` gives it back. Weights in
    half precision are widened to float32, which changes no value. Raises WeightsError when a tensor is float64, NaN or
    infinite or when the folder cannot be written, InputError when `metadata` is not JSON.
    """
    folder = Path(folder)
    text, identity = _config_text(model.config, metadata)
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    problems = [f"{name}: cannot store {t.dtype}" for name, t in tensors.items() if t.dtype == torch.float64]
    raise_all(f"{folder}: not saved", problems or _not_finite(tensors))
    document = json.dumps(json.loads(text) | {"id": identity}, indent=2, ensure_ascii=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _beside(folder / WEIGHTS) as weights, _beside(folder / CONFIG) as config:
            _write_tensors(weights, tensors, {"id": identity, "config": text})
            config.write_text(document, encoding="utf-8")
            sync(weights)
            sync(config)
            os.replace(weights, folder / WEIGHTS)  # noqa: PTH105  # from here on the folder holds the new network
            os.replace(config, folder / CONFIG)  # noqa: PTH105
            sync(folder)
    except OSError as error:
        raise WeightsError(f"{folder}: cannot write: {error.strerror or error}") from error


@overload
def load(
    path: str | Path,
    *,
    side: int | None = ...,
    classes: Sequence[str] | None = ...,
    device: str | torch.device = ...,
    fast: Literal[False] = ...,
    dtype: None = ...,
) -> DecoupledNet: ...


@overload
def load(
    path: str | Path,
    *,
    side: int | None = ...,
    classes: Sequence[str] | None = ...,
    device: str | torch.device = ...,
    fast: Literal[True],
    dtype: torch.dtype | None = ...,
) -> FastDecoupledNet: ...


def load(
    path: str | Path,
    *,
    side: int | None = None,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    fast: bool = False,
    dtype: torch.dtype | None = None,
) -> DecoupledNet | FastDecoupledNet:
    """The network in a saved folder or in a ``.caffemodel`` of the release, in eval mode on `device`.

    `side` and `classes` replace what the file says about the input side and the class names (as many as it has).
    On the CPU the parameters are views of the file wherever possible (read when first used, private when written to).
    With `fast` it is the network's drop-in for inference, computing in `dtype`: see :class:`FastDecoupledNet`.
    Raises WeightsError: nothing there, damaged, of another format or width, NaN or infinity among the values; and
    InputError for `classes` that are one text, for a `device` or a `dtype` that cannot be used.
    """
    if dtype is not None and not fast:
        raise InputError(f"dtype: wanted only with fast=True (the plain network has .to), got {dtype!r}")
    path = Path(path)
    config, tensors, _ = _read(path, side, _names(classes))
    raise_all(str(path), _not_finite(tensors))
    try:
        model = _assemble(config, tensors).to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise InputError(f"device: cannot put the network on {device!r}: {error}") from error
    return FastDecoupledNet(model, dtype) if fast else model


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """What :func:`save` was given as `metadata`; WeightsError when `folder` holds no saved network."""
    folder = Path(folder)
    with _open_safetensors(folder / WEIGHTS) as file:
        metadata = _document(folder, file.metadata() or {})["metadata"]
    return dict(metadata)


def fingerprint(path: str | Path) -> str:
    """32 hexadecimal digits that tell one trained network from another: of the size and 256 blocks of its file.

    path: as for :func:`load`, which has read it. Raises OSError.
    """
    path = Path(path)
    blocks, size = 256, 4096
    with (path / WEIGHTS if path.is_dir() else path).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(end).encode())
        for k in range(blocks):
            file.seek(max(end - size, 0) * k // (blocks - 1))
            digest.update(file.read(size))
    return digest.hexdigest()[:32]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    side: int | None = None,
    classes: Sequence[str] | None = None,
    convention: str = "torchvision",
    seed: int = 0,
) -> DecoupledNet:
    """Turn `source` into a saved folder at `destination` and return the network, in eval mode.

    A ``.pth``, ``.pt`` or ``.safetensors`` file is a VGG-16 (`convention` as in :func:`load_vgg16`): the result is the
    paper's network with its encoder, fc6 and fc7, all else fresh from `seed`. Any other file is a ``.caffemodel``,
    whose tied layers are compared too. Raises WeightsError (see :func:`load`); `destination` is then untouched.
    """
    source = Path(source)
    names = _names(classes)
    metadata: dict[str, Any] = {"source": source.name}
    if source.suffix in VGG_SUFFIXES:
        given = {"side": side, "classes": names}
        config = NetConfig(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = DecoupledNet(config).eval()
        load_vgg16(model, source, convention)
        metadata |= {"convention": convention, "seed": seed}
    else:
        _expect_file(source)
        model = _assemble(*read_caffemodel(source, side=side, classes=names, verify_tied=True))
    save(model, destination, metadata)
    return model


def _names(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(classes, str):
        raise InputError(f"classes: wanted a sequence of names, got the text {classes!r}")
    return None if classes is None else tuple(classes)


def _assemble(config: NetConfig, tensors: dict[str, Tensor]) -> DecoupledNet:
    """A network whose parameters are `tensors` themselves: nothing is initialised, nothing copied."""
    model = blank(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _read(path: Path, side: int | None, classes: tuple[str, ...] | None) -> tuple[NetConfig, dict[str, Tensor], Any]:
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot read: {error}") from error
    if folder:
        return _read_folder(path, side, classes)
    _expect_file(path)
    return *read_caffemodel(path, side=side, classes=classes), None


def _expect_file(path: Path) -> None:
    wanted = "wanted a folder that save() wrote or a .caffemodel file"
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot read: {error}") from error
    if not there:
        raise WeightsError(f"{path}: {wanted}, got nothing: there is no such file or folder")
    if path.name in (WEIGHTS, CONFIG):
        raise WeightsError(f"{path}: {wanted}, got one file of such a folder; pass {path.parent}")
    if path.suffix in VGG_SUFFIXES:
        raise WeightsError(f"{path}: {wanted}, got a {path.suffix} file; a VGG-16 has to be converted first")


def _read_folder(
    folder: Path, side: int | None, classes: tuple[str, ...] | None
) -> tuple[NetConfig, dict[str, Tensor], dict[str, Any]]:
    with _open_safetensors(folder / WEIGHTS) as file:
        document = _document(folder, file.metadata() or {})
        try:
            config = NetConfig.from_dict(document["config"])
            if classes is not None and len(classes) != config.num_classes:
                raise ConfigError(f"classes: wanted {config.num_classes} names, as the file has, got {len(classes)}")
            if side is not None:
                config = dataclasses.replace(config, side=side)
            if classes is not None:
                config = dataclasses.replace(config, classes=classes)
        except ConfigError as error:
            raise WeightsError(f"{folder / CONFIG}: {error}") from error
        wanted = {name: list(value.shape) for name, value in blank(config).state_dict().items()}
        held = set(file.keys())
        problems = [f"{name}: missing" for name in wanted if name not in held]
        problems += [f"{name}: unexpected" for name in sorted(held - set(wanted))]
        for name in (name for name in wanted if name in held):
            part = file.get_slice(name)
            shape, dtype = list(part.get_shape()), part.get_dtype()
            if (shape, dtype) != (wanted[name], "F32"):
                problems.append(f"{name}: wanted {wanted[name]} of F32, got {shape} of {dtype}")
        raise_all(f"{folder / WEIGHTS}: not the network of its {CONFIG}", problems)
        tensors = {name: _aligned(file.get_tensor(name)) for name in wanted}
    return config, tensors, document


def _aligned(x: Tensor) -> Tensor:
    """`x` where an allocation might have put it, else a copy: kernels may add in another order at other addresses."""
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file whose tensors lie as :func:`_aligned` wants them, so that loading copies next to nothing.

    The library's own writer packs by name, which misaligns all that follows the first odd size, and needs a second copy
    of everything in memory; this one pads the header, puts odd sizes last, and takes one tensor at a time.
    """
    order = sorted(tensors, key=lambda name: tensors[name].numel() * 4 % ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).data)


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        there = path.is_file()
        below = path.parent / "weights"
        hint = f"; pass {below}" if not there and (below / WEIGHTS).is_file() else ""
    except OSError as error:
        raise WeightsError(f"{path}: cannot read: {error}") from error
    if not there:
        raise WeightsError(f"{path}: wanted a saved network, the file is missing{hint}")
    try:
        # older releases of safetensors make tensors on torch's default device, whatever they are told
        with torch.device("cpu"), safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file: {error}") from error


def _config_text(config: NetConfig, metadata: dict[str, Any] | None) -> tuple[str, str]:
    if metadata is not None and not isinstance(metadata, dict):
        raise InputError(f"metadata: wanted a dict, got {type(metadata).__name__}")
    document = {"format": FORMAT, "config": config.to_dict(), "metadata": metadata or {}}
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata: wanted values that JSON can hold: {error}") from error
    if len(data) > MAX_CONFIG_BYTES // 4:  # indented it grows
        raise InputError(f"metadata: wanted at most {MAX_CONFIG_BYTES // 4} bytes, got {len(data)}")
    return text, hashlib.sha256(data).hexdigest()[:32]


def _document(folder: Path, header: dict[str, str]) -> dict[str, Any]:
    """The config.json that belongs to weights with this header: the file, or the header's text after a cut-off save."""
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot read: {error}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise WeightsError(f"{path}: wanted at most {MAX_CONFIG_BYTES} bytes")
    document = _parse(path, data)
    if "config" in header and document.get("id") != header.get("id"):
        document = _parse(folder / WEIGHTS, header["config"].encode())
    if document.get("format") != FORMAT:
        raise WeightsError(f"{path}: wanted format {FORMAT}, got {document.get('format')!r}")
    if "config" not in document or not isinstance(document.setdefault("metadata", {}), dict):
        raise WeightsError(f"{path}: wanted an object with config and metadata, got keys {sorted(document)}")
    return document


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path}: wanted a JSON object, got {type(document).__name__}")
    return document


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    # the extremes carry NaN and infinity out in one pass and without a mask as large as the tensor
    return [
        f"{name}: holds NaN or infinity"
        for name, value in tensors.items()
        if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all()
    ]


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in the folder of `path` to write under; whatever still stands there at the end is removed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # as remove_leftovers knows it
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
