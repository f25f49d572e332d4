"""VGG-16's ImageNet weights as the start of encoder and head (SPEC sections 2, 3 and 8).

The file is the user's: torchvision's state dict of ``vgg16``, ``.pth`` or ``.safetensors``.

    features.0 .. features.28 -> encoder.conv1_1 .. conv5_3
    classifier.0 [4096,25088] -> head.fc6 [4096,512,7,7]      (flattened as C,H,W, as the convolution reads it)
    classifier.3 [4096,4096]  -> head.fc7 [4096,4096,1,1]
    classifier.6              -> nothing: it knows ImageNet's 1000 classes; head.cls_score stays as it is
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .config import MEAN_BGR, STAGE_CONVS
from .errors import InputError, WeightsError
from .network import DecoupledNet
from .release import raise_all

CONVENTIONS = ("torchvision", "caffe")

# torchvision's input is (rgb / 255 - mean) / std
TORCHVISION_MEAN_RGB = (0.485, 0.456, 0.406)
TORCHVISION_STD_RGB = (0.229, 0.224, 0.225)

_CONVS = [f"encoder.conv{stage}_{k}" for stage, convs in enumerate(STAGE_CONVS, 1) for k in range(1, convs + 1)]
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_MODULES = {f"features.{index}": conv for index, conv in zip(_FEATURES, _CONVS, strict=True)} | {
    "classifier.0": "head.fc6",
    "classifier.3": "head.fc7",
}


def load_vgg16(model: DecoupledNet, path: str | Path, convention: str = "torchvision") -> None:
    """Copy a VGG-16 into `model`'s encoder, fc6 and fc7; everything else of the model stays as it is.

    `convention` says what input the file's conv1_1 expects; nothing in the file tells. ``"caffe"``: BGR, 0..255, minus
    Caffe's mean, as this network feeds it. ``"torchvision"``: RGB, 0..1, normalised by mean and deviation; conv1_1 is
    then rewritten for this network's input, see :func:`fold_input`.

    Raises WeightsError, naming every tensor that is missing, misshapen or not finite, before anything is changed;
    InputError for an unknown convention.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"convention: wanted one of {CONVENTIONS}, got {convention!r}")
    path = Path(path)
    source, target = _read(path), model.state_dict()
    loaded: dict[str, Tensor] = {}
    problems = []
    for module, name in _MODULES.items():
        for kind in ("weight", "bias"):
            value, wanted = source.get(f"{module}.{kind}"), target[f"{name}.{kind}"]
            shape = list(wanted.shape)
            if module.startswith("classifier") and kind == "weight":
                shape = [shape[0], wanted[0].numel()]
            if not _is_float(value):
                problems.append(f"{module}.{kind}: wanted a float tensor {shape}, got {_kind(value)}")
            elif list(value.shape) != shape:
                problems.append(f"{module}.{kind}: wanted {shape}, got {list(value.shape)}")
            elif not torch.stack(torch.aminmax(value.float())).isfinite().all():
                problems.append(f"{module}.{kind}: holds NaN or infinity")
            else:
                loaded[f"{name}.{kind}"] = value.reshape(wanted.shape)
    raise_all(f"{path}: wanted a VGG-16 of widths {model.config.widths} and {model.config.fc}", problems)
    if convention == "torchvision":
        first = "encoder.conv1_1"
        loaded[f"{first}.weight"], loaded[f"{first}.bias"] = fold_input(
            loaded[f"{first}.weight"], loaded[f"{first}.bias"]
        )
    with torch.no_grad():
        for name, value in loaded.items():
            target[name].copy_(value)


def fold_input(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """conv1_1 for torchvision's input, rewritten for this network's: weight ``[O,3,3,3]``, bias ``[O]``.

    Per channel torchvision sees ``(v - 255 mean) / (255 std)`` where this network sees ``v - MEAN_BGR``, v in 0..255.
    The weights are divided by 255 std and their input channels reversed; the difference of the two means (at most 1.1
    grey levels) goes into the bias. That is exact except at the border: the zeros padded there mean MEAN_BGR here and
    torchvision's mean there, and no bias can tell the two apart. The one row and column of pixels concerned see values
    shifted by 1.1 grey levels at most outside the image.
    """
    scale = 1 / (255 * torch.tensor(TORCHVISION_STD_RGB, dtype=torch.float64))  # of R, G, B
    shift = torch.tensor(MEAN_BGR, dtype=torch.float64).flip(0) - 255 * torch.tensor(
        TORCHVISION_MEAN_RGB, dtype=torch.float64
    )
    scaled = weight.double() * scale[:, None, None]
    moved = bias.double() + (scaled * shift[:, None, None]).sum((1, 2, 3))
    return scaled.flip(1).to(torch.float32), moved.to(torch.float32)


def _is_float(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor of ordinary memory: torch's files may hold sparse ones, and some without values."""
    return (
        isinstance(value, Tensor)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}, {value.layout}, on {value.device.type}"


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            with torch.device("cpu"):  # as in weights.py
                return dict(safetensors.torch.load_file(path))
        zipped = zipfile.is_zipfile(path)  # torchvision's own download is not: torch's older format, not to be mapped
        packed = zipped and _is_packed(path)
        values = None if packed else torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot read VGG-16 weights: {type(error).__name__}: {error}") from error
    except Exception as error:  # a damaged file raises anything out of torch.load, with advice to load it unsafely
        wanted = "wanted an undamaged file of torch.save that holds tensors and nothing else"
        raise WeightsError(f"{path}: cannot read VGG-16 weights: {type(error).__name__}: {wanted}") from error
    if packed:  # mapped, its bytes would be taken for values; and what they unpack to has no bound
        raise WeightsError(f"{path}: wanted a file as torch.save writes it, got one whose parts are compressed")
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: wanted a state dict, got {type(values).__name__}")
    return values


def _is_packed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
