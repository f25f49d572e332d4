"""The DecoupledNet in a ``.caffemodel`` of the release: which layer holds which parameter, how large it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .caffemodel import Blob, CaffeModel
from .config import STAGE_CONVS, VOC_CLASSES, NetConfig
from .errors import ConfigError, WeightsError
from .network import DecoupledNet

RELEASE_SIDE = 320  # the release's files do not store the input side
MAX_PROBLEMS = 10  # listed in one message

# DecoupledNet's module name -> the layer's name in the release, where they differ
_LAYERS = {
    "cls_score": "cls-score-voc",
    "pool5_bn": "pool5-bn",
    "class_map_bn": "pool5-bp-bn",
    "fc6_seg": "fc6-seg",
    "fc6_seg_bn": "bnfc6-seg",
    "fc7_seg": "fc7-seg",
    "fc7_seg_bn": "bnfc7-seg",
    "fc6_deconv": "fc6-deconv",
    "fc6_deconv_bn": "fc6-deconv-bn",
    "seg_score": "seg-score-voc",
}


def layer_of(parameter: str) -> str:
    """The release's layer of a parameter of DecoupledNet: ``bridge.fc6_seg_bn.weight`` -> ``bnfc6-seg``."""
    module = parameter.split(".")[1]
    if module in _LAYERS:
        return _LAYERS[module]
    return "debn" + module[len("deconv") : -len("_bn")] if module.endswith("_bn") else module


# Layers that repeat the head's weights for the way back (section 4); DecoupledNet ties them, so they are not loaded.
_TIED = {"cls-score-voc-bp": "cls-score-voc", "fc7-bp": "fc7", "fc6-bp": "fc6"}


class _NoRandom(TorchFunctionMode):
    """Skips random initialisation; on the meta device torch would import its whole compiler for it, over a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def blank(config: NetConfig) -> DecoupledNet:
    """A network on the meta device: shapes without memory, to be filled by ``load_state_dict(.., assign=True)``."""
    with torch.device("meta"), _NoRandom():
        return DecoupledNet(config)


def read_caffemodel(
    path: str | Path, *, side: int | None = None, classes: tuple[str, ...] | None = None, verify_tied: bool = False
) -> tuple[NetConfig, dict[str, Tensor]]:
    """Configuration and state dict of the DecoupledNet in a ``.caffemodel`` of the release.

    Widths, fc, bridge, fc_kernel and the number of classes follow from the blobs' shapes. `side` is what the argument
    says, else the file's input_dim, else 320. `classes` names the classes; without it they are PASCAL VOC's when there
    are 20, else ``class_1``, ``class_2``, ... The tensors are float32, views of the file where that is possible (see
    :mod:`ddn_fast.caffemodel`). BN layers hold a scale and a shift alone: mean 0 and variance 1 are added.

    `verify_tied` also reads ``cls-score-voc-bp``, ``fc7-bp`` and ``fc6-bp``, which repeat the head's weights, and
    raises where one disagrees or has a bias. Off by default: they are 30 % of the file and nothing uses them.

    Raises WeightsError: the file is missing, damaged, or another network; all problems are listed, the first ten.
    """
    with CaffeModel(Path(path)) as model:
        config = _infer_config(model, side, classes)
        wanted = blank(config).state_dict()
        problems: list[str] = []
        found = {name: _place(model, name, value.shape, problems) for name, value in wanted.items()}
        raise_all(f"{model.path}: not a DecoupledNet", problems)
        tensors = {}
        for name, value in wanted.items():
            blob = found[name]
            if blob is not None:
                tensors[name] = model.tensor(blob).view(value.shape)
            else:
                fill = 0.0 if name.endswith("running_mean") else 1.0
                tensors[name] = torch.full(value.shape, fill, dtype=torch.float32, device="cpu")
        if verify_tied:
            _verify_tied(model, problems)
            raise_all(f"{model.path}: not a DecoupledNet", problems)
        return config, tensors


def raise_all(what: str, problems: list[str]) -> None:
    """WeightsError with the first MAX_PROBLEMS of `problems` and how many more there are; returns if there is none."""
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise WeightsError(f"{what}: {'; '.join(problems[:MAX_PROBLEMS])}{more}")


def _infer_config(model: CaffeModel, side: int | None, classes: tuple[str, ...] | None) -> NetConfig:
    ends = [f"conv{stage}_{convs}" for stage, convs in enumerate(STAGE_CONVS, 1)]
    problems: list[str] = []
    shapes = {}
    for name in (*ends, "fc6", "cls-score-voc", "fc6-seg"):
        blobs = model.blobs(name) if name in model else ()
        if blobs and len(blobs[0].shape) == 4:
            shapes[name] = blobs[0].shape
        else:
            got = f"got {list(blobs[0].shape)}" if blobs else "the layer is missing"
            problems.append(f"{name}: wanted a weight of 4 axes, {got}")
    raise_all(f"{model.path}: not a DecoupledNet", problems)
    count = shapes["cls-score-voc"][0]
    if classes is None:
        classes = VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class_{k + 1}" for k in range(min(count, 1000)))
    elif len(classes) != count:
        raise WeightsError(f"{model.path}: classes: wanted {count} names, as the file has, got {len(classes)}")
    if side is None and (dims := model.input_dim[:4]):
        if len(dims) != 4 or dims[2] != dims[3]:
            raise WeightsError(f"{model.path}: input_dim: wanted [B,3,S,S], got {dims}; pass side")
        side = dims[2]
    try:
        return NetConfig(
            classes=classes,
            side=RELEASE_SIDE if side is None else side,
            widths=tuple(shapes[name][0] for name in ends),  # type: ignore[arg-type]  # five stages
            fc=shapes["fc6"][0],
            bridge=shapes["fc6-seg"][0],
            fc_kernel=shapes["fc6"][2],
        )
    except ConfigError as error:
        raise WeightsError(f"{model.path}: not a DecoupledNet: {error}") from error


def _place(model: CaffeModel, parameter: str, shape: torch.Size, problems: list[str]) -> Blob | None:
    """The blob of one parameter, or None with the reason in `problems`; None for BN's mean and variance."""
    kind = parameter.rpartition(".")[2]
    if kind not in ("weight", "bias"):
        return None
    layer, index = layer_of(parameter), ("weight", "bias").index(kind)
    if layer not in model:
        problems.append(f"{layer}: the layer is missing")
        return None
    blobs = model.blobs(layer)
    if index >= len(blobs):
        problems.append(f"{layer}: wanted blob {index} ({kind}), got {len(blobs)} blobs")
        return None
    blob = blobs[index]
    # a vector comes as (1,1,1,C) or (1,C,1,1), in newer files as (C)
    got = blob.shape if len(shape) > 1 else tuple(n for n in blob.shape if n != 1) or (1,)
    if got != tuple(shape):
        problems.append(f"{layer}: wanted blob {index} ({kind}) of shape {list(shape)}, got {list(blob.shape)}")
        return None
    return blob


def _verify_tied(model: CaffeModel, problems: list[str]) -> None:
    for back, forward in _TIED.items():
        if back not in model:
            continue  # a training definition has them, others need not
        blobs, weight = model.blobs(back), model.blobs(forward)[0]
        if not blobs or math.prod(blobs[0].shape) != math.prod(weight.shape):
            problems.append(f"{back}: wanted the {list(weight.shape)} weights of {forward}")
        elif back == "cls-score-voc-bp":
            classes, channels = weight.shape[:2]  # of a 1x1 kernel; the other blob may have any axes
            if not torch.equal(model.tensor(blobs[0]).view(channels, classes).T, model.tensor(weight)[:, :, 0, 0]):
                problems.append(f"{back}: differs from {forward} (transposed)")
        elif not _same_bytes(model, blobs[0], weight):
            problems.append(f"{back}: differs from {forward}")
        if len(blobs) > 1 and 0 not in blobs[1].shape and bool(model.tensor(blobs[1]).any()):
            problems.append(f"{back}: wanted a bias of zeros")


def _same_bytes(model: CaffeModel, a: Blob, b: Blob, step: int = 2**22) -> bool:
    """Whether two blobs hold the same values; compared piece by piece so that neither becomes resident."""
    if len(a.pieces) != 1 or len(b.pieces) != 1 or a.dtype != b.dtype:
        return torch.equal(model.tensor(a).flatten(), model.tensor(b).flatten())
    buffers = np.empty((2, step), np.uint8)
    (start_a, length), (start_b, _) = a.pieces[0], b.pieces[0]
    for at in range(0, length, step):
        size = min(step, length - at)
        for buffer, start in zip(buffers, (start_a, start_b), strict=True):
            model.read_into(buffer[:size].data, start + at)
        if not np.array_equal(buffers[0, :size], buffers[1, :size]):
            return False
    return True
