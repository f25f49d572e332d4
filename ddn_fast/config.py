"""What a network is made of: one frozen dataclass, checked when built, stored as config.json beside the weights."""

from __future__ import annotations

import dataclasses
import unicodedata
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

# Mean of the ImageNet training set in B, G, R (SPEC section 1). Training subtracts the release's rounded figures
# (section 8): the difference is 0.001 of a grey level and both are kept because the goldens show both.
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
TRAIN_MEAN_BGR = (104.008, 116.669, 122.675)

MAX_SIDE = 4096  # an input of it takes 200 MB, a map of 64 channels 4 GB
MAX_NAME = 255  # characters of a class's name

POOLS = 5  # the encoder halves its input five times

# Convolutions of the five encoder stages: VGG-16 (SPEC section 2).
STAGE_CONVS = (2, 2, 3, 3, 3)


@dataclass(frozen=True)
class NetConfig:
    """Shape of a DecoupledNet. The defaults are the paper's network on PASCAL VOC.

    classes    names of the L classes, background not counted; label ``l + 1`` of a mask is ``classes[l]``
    side       S, the input is S x S pixels; a multiple of 32, at most 4096
    widths     output channels of the five encoder stages (VGG-16: 64, 128, 256, 512, 512); the decoder mirrors them
    fc         channels of fc6 and fc7 (4096)
    bridge     channels of fc6-seg and fc7-seg (2048)
    fc_kernel  side of the fc6, fc6-seg and fc6-deconv kernels (7)
    """

    classes: tuple[str, ...] = VOC_CLASSES
    side: int = 320
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    fc: int = 4096
    bridge: int = 2048
    fc_kernel: int = 7

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ConfigError(f"classes: wanted a sequence of names, got the text {self.classes!r}")
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "widths", tuple(self.widths))
        if not 1 <= len(self.classes) <= 254:
            raise ConfigError(f"classes: wanted 1 to 254 names, got {len(self.classes)}")
        if any(not isinstance(name, str) or not name.strip() for name in self.classes):
            raise ConfigError(f"classes: wanted non-empty names, got {self.classes!r}")
        if wrong := [name for name in self.classes if not _can_be_shown(name)]:
            raise ConfigError(
                f"classes: wanted names of at most {MAX_NAME} characters, none of them a control character, "
                f"got {wrong[0][: MAX_NAME + 1]!r}"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError("classes: a name occurs twice")
        if len(self.widths) != POOLS:
            raise ConfigError(f"widths: wanted {POOLS} channel counts, got {len(self.widths)}")
        for name in ("side", "fc", "bridge", "fc_kernel"):
            _positive(name, getattr(self, name))
        for width in self.widths:
            _positive("widths", width)
        if self.side % 32:
            raise ConfigError(f"side: wanted a multiple of 32, got {self.side}")
        if self.side > MAX_SIDE:
            raise ConfigError(f"side: wanted at most {MAX_SIDE}, got {self.side}")
        if self.grid < 1:
            raise ConfigError(f"fc_kernel: wanted at most side/32 = {self.map_side}, got {self.fc_kernel}")

    @property
    def num_classes(self) -> int:
        """L."""
        return len(self.classes)

    @property
    def map_side(self) -> int:
        """Side of the pool5 map (10)."""
        return self.side // 2**POOLS

    @property
    def grid(self) -> int:
        """Side of the class-score map (4)."""
        return self.map_side - self.fc_kernel + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> NetConfig:
        """The reverse of :meth:`to_dict`; raises ConfigError naming the first key that is missing, unknown or wrong."""
        if not isinstance(values, dict):
            raise ConfigError(f"network configuration: wanted an object, got {type(values).__name__}")
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ConfigError(f"network configuration: unknown key {unknown[0]!r}; known are {sorted(names)}")
        if missing := sorted(names - set(values)):
            raise ConfigError(f"network configuration: key {missing[0]!r} is missing")
        for name in ("classes", "widths"):
            if not isinstance(values[name], list | tuple):
                raise ConfigError(f"{name}: wanted a list, got {type(values[name]).__name__}")
        return cls(**values)


def _can_be_shown(name: str) -> bool:
    """Whether a name fits into a line of text: no line breaks, no other control characters, no half characters."""
    return len(name) <= MAX_NAME and not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)


def _positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
        raise ConfigError(f"{name}: wanted a whole number from 1 to 65536, got {value!r}")
