"""DecoupledNet: semantic segmentation learned from many image-level labels and a few pixel masks."""

from .config import NetConfig
from .engine import FastDecoupledNet
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DDNError,
    DistributedError,
    DivergedError,
    ImageError,
    InputError,
    NumericsError,
    WeightsError,
)
from .network import DecoupledNet
from .segmentation import Segmentation
from .weights import load

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DDNError",
    "DataError",
    "DecoupledNet",
    "DistributedError",
    "DivergedError",
    "FastDecoupledNet",
    "ImageError",
    "InputError",
    "NetConfig",
    "NumericsError",
    "Segmentation",
    "WeightsError",
    "load",
]
