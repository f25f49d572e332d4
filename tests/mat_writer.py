"""Writes MAT-files of version 5 for the tests: structs as SBD keeps its masks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

TYPES = {"int8": 1, "uint8": 2, "int16": 3, "uint16": 4, "int32": 5, "uint32": 6, "float32": 7, "float64": 9}
CLASSES = {"float64": 6, "float32": 7, "int8": 8, "uint8": 9, "int16": 10, "uint16": 11, "int32": 12, "uint32": 13}
CELL, STRUCT, SPARSE = 1, 2, 5


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    if 0 < len(data) <= 4 and kind != 14:  # the small form
        head = (kind | len(data) << 16) if order == "<" else len(data) << 16 | kind
        return struct.pack(f"{order}I", head) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def head(kind: int, shape: tuple[int, ...], name: str, order: str, flags: int = 0) -> bytes:
    dimensions = struct.pack(f"{order}{len(shape)}i", *shape)
    return (
        element(6, struct.pack(f"{order}II", kind | flags, 0), order)
        + element(5, dimensions, order)
        + element(1, name.encode(), order)
    )


def numbers(values: np.ndarray, name: str = "", order: str = "<", stored: str | None = None, flags: int = 0) -> bytes:
    """A numeric array; `stored` names the smaller type that MATLAB would keep its values in."""
    stored = stored or str(values.dtype)
    data = values.astype(np.dtype(stored).newbyteorder(order)).tobytes(order="F")
    start = head(CLASSES[str(values.dtype)], values.shape, name, order, flags)
    return element(14, start + element(TYPES[stored], data, order), order)


def fields(name: str, values: Mapping[str, bytes], order: str = "<", shape: tuple[int, ...] = (1, 1)) -> bytes:
    names = b"".join(field.encode().ljust(32, b"\0") for field in values)
    body = head(STRUCT, shape, name, order) + element(5, struct.pack(f"{order}i", 32), order)
    return element(14, body + element(1, names, order) + b"".join(values.values()), order)


def mat_file(*arrays: bytes, order: str = "<", compressed: bool = True) -> bytes:
    start = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    if compressed:
        arrays = tuple(struct.pack(f"{order}II", 15, len(z)) + z for z in map(zlib.compress, arrays))
    return start + b"".join(arrays)


def sbd_file(mask: np.ndarray) -> bytes:
    """A file as those of SBD's ``cls``: boundaries (a cell of sparse arrays), mask, classes present."""
    sparse = element(6, struct.pack("<II", SPARSE | 0x200, 1)) + element(5, struct.pack("<2i", *mask.shape))
    sparse += element(1, b"") + element(5, struct.pack("<i", 0)) + element(5, b"\0" * 4 * (mask.shape[1] + 1))
    boundaries = element(14, head(CELL, (20, 1), "", "<") + 20 * element(14, sparse + element(2, b"")))
    present = np.setdiff1d(mask, [0]).astype(np.float64)[:, None]
    return mat_file(
        fields("GTcls", {
            "Boundaries": boundaries,
            "Segmentation": numbers(mask),
            "CategoriesPresent": numbers(present, stored="uint8"),
        })
    )  # fmt: skip


def write_sbd(root: Path, masks: Mapping[str, np.ndarray], train: list[str], val: list[str]) -> Path:
    """A folder as benchmark_RELEASE/dataset is."""
    (root / "cls").mkdir(parents=True)
    for name, mask in masks.items():
        (root / f"cls/{name}.mat").write_bytes(sbd_file(mask))
    for split, ids in (("train", train), ("val", val)):
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    return root
