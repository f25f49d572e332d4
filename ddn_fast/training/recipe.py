"""A training recipe: one frozen dataclass, read strictly from TOML.

The release's four recipes for stage 2 (SPEC section 8) and one for stage 1 ship with the package and are named without
a path: ``full``, ``25-per-class``, ``10-per-class``, ``5-per-class``, ``classifier``; ``demo-classifier`` and
``demo-segmenter`` are those of ``make demo``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..config import NetConfig
from ..data.windows import MAX_COUNT
from ..errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
MAX_BYTES = 1 << 20
MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class NetworkShape:
    """The ``[network]`` table: used when training starts from nothing; fields as in NetConfig."""

    side: int = 320
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    fc: int = 4096
    bridge: int = 2048
    fc_kernel: int = 7

    def __post_init__(self) -> None:
        NetConfig(("any",), **dataclasses.asdict(self))  # raises ConfigError


@dataclass(frozen=True)
class Recipe:
    """What a training run does. Iterations count solver steps; one step sees ``batch * accumulate`` samples."""

    stage: Literal["classifier", "segmenter"]
    iterations: int
    batch: int = 4
    accumulate: int = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    schedule: Literal["step", "cosine"] = "step"
    step: int = 10_000  # schedule "step": lr is multiplied by gamma every `step` iterations
    gamma: float = 0.1
    warmup: int = 0  # iterations of linearly growing lr
    momentum: float = 0.9  # sgd; adamw uses its usual (0.9, 0.999)
    weight_decay: float = 5e-4
    precision: Literal["float32", "bfloat16", "auto"] = "float32"  # of convolutions; weights and solver stay float32
    resize: int = 350  # images are resized to this side, then cropped to the network's
    seed: int = 0
    # stage 1
    last_layer_lr: float = 10.0  # sgd: rate of cls-score relative to the others (SPEC section 8)
    dropout: float = 0.5
    batch_norm: bool = False  # train with batch normalisation behind every convolution, folded away at the end
    # stage 2
    masks_per_class: int = 0  # 0: every mask of the split
    windows_per_subset: int = 4
    max_subsets: int = 15
    bn_batches: int = 101
    bn_batch: int = 16
    # bookkeeping, in iterations; 0: never
    log_every: int = 20
    checkpoint_every: int = 500
    validate_every: int = 0
    network: NetworkShape = NetworkShape()

    def __post_init__(self) -> None:
        may_be_zero = {"seed", "warmup", "masks_per_class", "checkpoint_every", "validate_every"}
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            least = 0 if name in may_be_zero else 1
            if type(value) is int and not least <= value <= MAX_INT:
                raise ConfigError(f"{name}: wanted {least} to {MAX_INT}, got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay: wanted 0 or more, got {self.weight_decay}")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: wanted 0 <= {name} < 1, got {getattr(self, name)}")
        for name in ("lr", "gamma", "last_layer_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: wanted a positive number, got {getattr(self, name)}")
        for name in ("windows_per_subset", "max_subsets"):
            if getattr(self, name) > MAX_COUNT:
                raise ConfigError(f"{name}: wanted at most {MAX_COUNT}, got {getattr(self, name)}")
        if self.batch_norm and self.batch < 2:
            raise ConfigError(f"batch: wanted at least 2 with batch_norm, got {self.batch}")

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return self.iterations * self.batch * self.accumulate

    def lr_at(self, iteration: int) -> float:
        """Learning rate of a 0-based iteration."""
        if self.schedule == "cosine":
            rate = self.lr * 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))
        else:
            rate = self.lr * self.gamma ** (iteration // self.step)
        return rate * min(1.0, (iteration + 1) / self.warmup) if self.warmup else rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values; :func:`from_dict` reads them back."""
        return dataclasses.asdict(self)


def from_dict(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from plain values; ConfigError names the source and the first wrong key."""
    values = dict(values)
    if "network" in values:
        values["network"] = _fill(NetworkShape, values["network"], f"{source}: [network]")
    recipe = _fill(Recipe, values, source)
    assert isinstance(recipe, Recipe)
    return recipe


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """A recipe by the name of one that ships with the package, or by the path of a TOML file."""
    shipped = {path.stem: path for path in RECIPES.glob("*.toml")}
    path = shipped.get(str(name)) or Path(name)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{path}: wanted a recipe of at most {MAX_BYTES} bytes")
        values = tomllib.loads(text.decode())
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no TOML and absurd numbers are ValueErrors
        known = ", ".join(sorted(shipped))
        raise ConfigError(f"recipe {name}: cannot be read ({error}); shipped with the package: {known}") from error
    return from_dict(values, str(path))


def _fill(cls: type, values: Any, source: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: wanted a table, got {type(values).__name__}")
    hints, fields = get_type_hints(cls), dataclasses.fields(cls)
    if unknown := sorted(set(values) - {field.name for field in fields}):
        raise ConfigError(f"{source}: unknown key {unknown[0]!r}; known are {sorted(f.name for f in fields)}")
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{source}: key {missing[0]!r} is missing")
    typed = {name: _typed(value, hints[name], f"{source}: {name}") for name, value in values.items()}
    try:
        return cls(**typed)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _typed(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where}: wanted one of {get_args(hint)}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: wanted a list, got {value!r}")
        return tuple(_typed(item, get_args(hint)[0], where) for item in value)
    if hint is float and type(value) is int and abs(value) <= MAX_INT:
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: wanted {hint.__name__}, got {value!r}")
    return value
