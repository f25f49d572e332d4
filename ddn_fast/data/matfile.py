"""MATLAB's MAT-files, version 5: numeric fields of a struct, which is how SBD keeps its masks.

A file is a header of 128 bytes and then elements, each a tag (type, bytes) and data padded to 8 bytes; an element of
at most 4 bytes may stand inside its tag, and one of type COMPRESSED is a zlib stream of one element. An array is an
element of elements: flags, dimensions, name, then its values, or for a struct the length of a field name, the names and
one array for each. (MathWorks, "MAT-File Format".) Only what is asked for is decoded; every length is checked against
what is left before it is used, and what is unpacked is bounded.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

MAX_BYTES = 64 << 20  # of a file, and of what it unpacks to; SBD's have some 10 kB
MAX_ELEMENTS = 4096  # of one array or of the file
MAX_DIMENSIONS = 32
MAX_NAME = 64  # bytes of a struct's field name; MATLAB has 63 characters

_HEADER = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15  # types of elements
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_STRUCT = 2  # classes of arrays
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x800

_Element = tuple[int, memoryview]  # type, data


def read_struct_field(path: str | Path, variable: str, field: str) -> NDArray[Any]:
    """The numeric array in a field of a 1x1 struct variable of a MAT-file, in the shape MATLAB has it in.

    Raises DataError: no such file, variable or field, another format (version 7.3 is HDF5), sparse or complex numbers,
    a damaged file, or one that unpacks to more than MAX_BYTES.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise DataError(f"{path}: wanted at most {MAX_BYTES} bytes")
    try:
        return _field_of_file(raw, variable, field)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _field_of_file(raw: bytes, variable: str, field: str) -> NDArray[Any]:
    if len(raw) < _HEADER or raw[126:128] not in (b"IM", b"MI") or raw[:10] == b"MATLAB 7.3":
        raise DataError("wanted a MAT-file of version 5 (as MATLAB's -v6 and -v7 write)")
    order = "<" if raw[126:128] == b"IM" else ">"
    left = MAX_BYTES
    for kind, data in _elements(memoryview(raw)[_HEADER:], order):
        if kind == _COMPRESSED:
            plain = _unpacked(data, left)
            left -= len(plain)
            kind, data = next(_elements(plain, order), (0, memoryview(b"")))
        if kind != _MATRIX:
            continue
        parts = _elements(data, order)
        flags, shape, name = _array_head(parts, order)
        if name != variable.encode():
            continue
        if flags & 0xFF != _STRUCT or math.prod(shape) != 1:
            raise DataError(f"{variable}: wanted a 1x1 struct, got class {flags & 0xFF} of shape {shape}")
        return _numbers(_struct_field(parts, order, variable, field), order, f"{variable}.{field}")
    raise DataError(f"wanted a variable {variable!r}, found none")


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The elements that follow each other in `data`, none of which reaches past its end."""
    at, count = 0, 0
    while at + 8 <= len(data):
        count += 1
        if count > MAX_ELEMENTS:
            raise DataError(f"damaged: more than {MAX_ELEMENTS} elements")
        kind, size = (int(n) for n in np.frombuffer(data, order + "u4", 2, at))
        if kind >> 16:  # small: two 16-bit numbers in the place of the first, the data in the place of the second
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 8
            if size > 4:
                raise DataError(f"damaged: a small element of {size} bytes")
        else:
            start = at + 8
            end = start + size if kind == _COMPRESSED else start + (size + 7) // 8 * 8
        if start + size > len(data):
            raise DataError(f"damaged: an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = end


def _unpacked(data: memoryview, most: int) -> memoryview:
    """At most `most` bytes, of the MAX_BYTES that all of a file may unpack to."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, most + 1)  # 0 would be no bound
    except zlib.error as error:
        raise DataError(f"damaged: {error}") from error
    if not stream.eof or len(plain) > most:
        raise DataError(f"damaged, or it unpacks to more than {MAX_BYTES} bytes")
    return memoryview(plain)


def _next(parts: Iterator[_Element], wanted: tuple[int, ...], what: str) -> memoryview:
    kind, data = next(parts, (0, memoryview(b"")))
    if kind not in wanted:
        raise DataError(f"damaged: wanted {what}, got an element of type {kind}")
    return data


def _array_head(parts: Iterator[_Element], order: str) -> tuple[int, tuple[int, ...], bytes]:
    """Flags (with the class in the low byte), dimensions and name of an array."""
    flags = _next(parts, (_UINT32,), "flags of an array")
    dimensions = _next(parts, (_INT32,), "dimensions of an array")
    if len(flags) != 8 or len(dimensions) % 4 or not 8 <= len(dimensions) <= 4 * MAX_DIMENSIONS:
        raise DataError("damaged: wanted 8 bytes of flags and 2 to 32 dimensions")
    shape = tuple(int(n) for n in np.frombuffer(dimensions, order + "i4"))
    if min(shape) < 0:
        raise DataError(f"damaged: an array of shape {shape}")
    name = _next(parts, (_INT8,), "the name of an array")
    return int(np.frombuffer(flags, order + "u4", 1)[0]), shape, bytes(name)


def _struct_field(parts: Iterator[_Element], order: str, variable: str, field: str) -> memoryview:
    """The array element of one field; `parts` stands behind the struct's name."""
    size = _next(parts, (_INT32,), "the length of field names")
    length = int(np.frombuffer(size, order + "i4", 1)[0]) if len(size) == 4 else 0
    names = bytes(_next(parts, (_INT8,), "field names"))
    if not 1 <= length <= MAX_NAME or len(names) % length:
        raise DataError(f"damaged: {len(names)} bytes of field names of {length} each")
    fields = [names[at : at + length].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), length)]
    if field not in fields:
        raise DataError(f"{variable}: wanted a field {field!r}, found {', '.join(fields) or 'none'}")
    for name in fields:
        data = _next(parts, (_MATRIX,), f"the array of field {name!r}")
        if name == field:
            return data
    raise AssertionError


def _numbers(data: memoryview, order: str, what: str) -> NDArray[Any]:
    """A full, real, numeric array; MATLAB keeps values in the smallest type that holds them."""
    parts = _elements(data, order)
    flags, shape, _ = _array_head(parts, order)
    target = _CLASSES.get(flags & 0xFF)
    if target is None or flags & _COMPLEX:
        raise DataError(f"{what}: wanted a full array of real numbers, got class {flags & 0xFF}, flags {flags:#x}")
    kind, values = next(parts, (0, memoryview(b"")))
    if kind not in _TYPES:
        raise DataError(f"{what}: damaged: numbers of unknown type {kind}")
    stored = np.dtype(order + _TYPES[kind])
    if math.prod(shape) * stored.itemsize != len(values):
        raise DataError(f"{what}: damaged: {len(values)} bytes for an array {shape} of {stored.itemsize} bytes each")
    if not len(values):  # numpy has bounds on the shape, even of nothing
        raise DataError(f"{what}: wanted numbers, got an empty array of shape {shape}")
    return np.frombuffer(values, stored).reshape(shape, order="F").astype(target)
