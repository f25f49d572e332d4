"""Caffe's ``.caffemodel`` format: layers and their blobs, in place (SPEC section 9, last paragraph).

The file is protobuf wire format and is parsed by hand: only a dozen field numbers matter, and a generated parser would
first copy 1.7 GB. The file is mapped copy-on-write; parsing touches the few kB between the blobs and never the blobs.
Every length is checked against the end of the message around it before it is used, a blob's values against its shape,
and the number of fields, layers and blobs is bounded, so a damaged file costs neither memory nor time.

Where the values lie. protobuf aligns nothing, so a blob's floats start at any byte. A tensor over misaligned floats
would be undefined behaviour for every kernel that sees it (compilers peel loops up to an aligned address, which a float
at an odd address never reaches). So a blob at a multiple of 4 becomes a view of the map, copied nowhere; its pages are
read when first used, may be written to (copy-on-write, the file never changes) and stay in the page cache, shared
between processes. Any other blob is read straight from the file into its own tensor. Such reads do not go through the
map, so the file's pages never count twice: in either case memory grows by the parameters once. (Kernels may add in
another order at other addresses: a view and a copy can give results that differ in the last bit. A converted network,
see weights.py, always lies as torch itself would allocate it.)

A view stays valid when the file is deleted or replaced by a rename. Truncating the file in place under a loaded model
is fatal to any program that maps it; replace files, do not overwrite them.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import WeightsError

# Bounds on what a file may claim; the release's own has 106 layers of at most 2 blobs.
MAX_LAYERS = 4096
MAX_BLOBS = 64  # in one layer
MAX_AXES = 32  # Caffe's own limit
MAX_NAME = 1024  # bytes
MAX_FIELDS = 2**17  # walked in one file; the release's has some 2000
MAX_PIECES = 2**15  # a blob's values come in one piece; protobuf allows more

READ_SIZE = 2**24  # bytes of one read
READERS = 4  # at a time

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
SPLIT = 22  # V1 layer type; V2 has the name "Split"


class Field(NamedTuple):
    """One protobuf field: its number, wire type and where its bytes lie; `value` is set for a varint only."""

    number: int
    wire: int
    start: int
    end: int
    value: int = 0


@dataclass(frozen=True)
class Blob:
    """Shape and place of one array of the file; nothing of it is read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # float32, or float64 where the file was written by a double build
    pieces: tuple[tuple[int, int], ...]  # (offset in the file, bytes), in order

    @property
    def aligned(self) -> bool:
        """Whether the values can be used where they lie."""
        return len(self.pieces) == 1 and self.pieces[0][0] % self.dtype.itemsize == 0 and self.dtype == torch.float32


@dataclass(frozen=True)
class _Layer:
    blob_number: int  # the field's number inside the layer: 6 in V1, 7 in V2
    span: tuple[int, int]


class CaffeModel:
    """An open ``.caffemodel``: the layers that have blobs, by name. Use as a context manager.

    Where a name occurs twice, the first layer with blobs counts (Caffe lets both phases of a layer share a name).
    SPLIT layers, layers without blobs and layers without a name are left out. Tensors made from the map outlive it.
    Raises WeightsError when the file is missing, unreadable, empty, or not a caffemodel.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.input_dim: list[int] = []  # empty where the file does not say
        self._layers: dict[str, _Layer] = {}
        self._fields_left = MAX_FIELDS
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # a FIFO would block, a device never end
                raise OSError("wanted a .caffemodel file, got something that is not a regular file")
            self._file = io.FileIO(self.path)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise WeightsError(f"{self.path}: cannot read: {error}") from error
        with contextlib.ExitStack() as opened:  # closed at once where the file is none; the map has a descriptor, too
            opened.enter_context(self._file)
            try:
                self.size = os.fstat(self._file.fileno()).st_size
                if not self.size:
                    raise self._damaged(0, "the file is empty")
                self._map = opened.enter_context(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_COPY))
            except OSError as error:
                raise WeightsError(f"{self.path}: cannot map: {error}") from error
            self._read_top()
            opened.pop_all()

    def __enter__(self) -> CaffeModel:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()  # the map closes with its last view

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers that have blobs, in the file's order."""
        return tuple(self._layers)

    def blobs(self, name: str) -> tuple[Blob, ...]:
        """Shapes and places of a layer's blobs; WeightsError when the layer is absent or damaged."""
        layer = self._layers.get(name)
        if layer is None:
            raise WeightsError(f"{self.path}: layer {name!r} is missing")
        found = (f for f in self._fields(*layer.span) if f.number == layer.blob_number)
        blobs = tuple(self._read_blob(f) for f in itertools.islice(found, MAX_BLOBS + 1))
        if len(blobs) > MAX_BLOBS:
            raise self._damaged(layer.span[0], f"layer {name!r} has more than {MAX_BLOBS} blobs")
        return blobs

    def tensor(self, blob: Blob) -> Tensor:
        """The blob's values, float32, in its shape: a view of the map where `blob.aligned`, else a copy."""
        if sys.byteorder != "little":
            raise WeightsError(f"{self.path}: .caffemodel files can only be read on a little-endian machine")
        count = math.prod(blob.shape)
        if not count:  # frombuffer takes no empty range
            return torch.empty(blob.shape, dtype=torch.float32, device="cpu")
        if blob.aligned:
            offset = blob.pieces[0][0]
            return torch.frombuffer(self._map, dtype=torch.float32, count=count, offset=offset).view(blob.shape)
        values = torch.empty(count, dtype=blob.dtype, device="cpu")
        into, done = values.numpy().data.cast("B"), 0
        for offset, length in blob.pieces:
            self.read_into(into[done : done + length], offset)
            done += length
        return values.view(blob.shape).float()

    def read_into(self, into: memoryview, offset: int) -> None:
        """Fill `into` (bytes) from the file, past the map: pages read this way are nobody's resident memory."""
        starts = range(0, len(into), READ_SIZE)
        # several at a time: what costs is not the copy but the kernel's handing out of fresh pages
        with ThreadPoolExecutor(READERS) if len(starts) > 1 else contextlib.nullcontext() as pool:
            apply = pool.map if pool else map
            list(apply(lambda at: self._read_part(into[at : at + READ_SIZE], offset + at), starts))

    def _read_part(self, into: memoryview, offset: int) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._file.fileno(), [into[done:]], offset + done)
            except OSError as error:
                raise WeightsError(f"{self.path}: cannot read: {error}") from error
            if not got:
                raise self._damaged(offset + done, "the file became shorter while it was read")
            done += got

    def _damaged(self, offset: int, what: str) -> WeightsError:
        return WeightsError(f"{self.path}: not a whole .caffemodel file: {what} (at byte {offset} of {self.size})")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for k in range(10):
            if at + k >= end:
                raise self._damaged(at, "a number runs past the end of its message")
            byte = self._map[at + k]
            value |= (byte & 0x7F) << (7 * k)
            if byte < 0x80:
                return value, at + k + 1
        raise self._damaged(at, "a number of more than 10 bytes")

    def _fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of one message, none of which reaches past `end`."""
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self._damaged(at, f"more than {MAX_FIELDS} fields")
            tag_at = at
            tag, at = self._varint(at, end)
            number, wire, value = tag >> 3, tag & 7, 0
            begin = at
            if wire == VARINT:
                value, at = self._varint(at, end)
            elif wire == BYTES:
                length, begin = self._varint(at, end)
                at = begin + length
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            else:
                raise self._damaged(tag_at, f"a field of unknown wire type {wire}")
            if number == 0:
                raise self._damaged(tag_at, "a field numbered 0")
            if at > end:
                raise self._damaged(tag_at, f"a field of {at - begin} bytes where {max(end - begin, 0)} are left")
            yield Field(number, wire, begin, at, value)

    def _numbers(self, f: Field) -> list[int]:
        """Values of a repeated integer field, packed or not; at most MAX_AXES."""
        if f.wire == VARINT:
            return [f.value]
        values: list[int] = []
        at = f.start
        while f.wire == BYTES and at < f.end and len(values) <= MAX_AXES:
            value, at = self._varint(at, f.end)
            values.append(value)
        return values

    def _read_top(self) -> None:
        for f in self._fields(0, self.size):
            if f.wire == BYTES and f.number in (2, 100):  # layers of V1 and of V2
                self._read_layer(f, v1=f.number == 2)
            elif f.number == 4 and len(self.input_dim) < MAX_AXES:
                self.input_dim += self._numbers(f)
        if not self._layers:
            raise self._damaged(self.size, "no layer has weights")

    def _read_layer(self, layer: Field, v1: bool) -> None:
        name_number, type_number, blob_number = (4, 5, 6) if v1 else (1, 2, 7)
        name, split, blobs = "", False, False
        for f in self._fields(layer.start, layer.end):
            if f.number == name_number and f.wire == BYTES:
                if f.end - f.start > MAX_NAME:
                    raise self._damaged(f.start, f"a layer name of {f.end - f.start} bytes")
                name = self._map[f.start : f.end].decode("utf-8", "replace")
            elif f.number == type_number:
                split = f.value == SPLIT if v1 else self._map[f.start : min(f.end, f.start + 6)] == b"Split"
            elif f.number == blob_number and f.wire == BYTES:
                blobs = True
        if name and blobs and not split and name not in self._layers:
            if len(self._layers) == MAX_LAYERS:
                raise self._damaged(layer.start, f"more than {MAX_LAYERS} layers with weights")
            self._layers[name] = _Layer(blob_number, (layer.start, layer.end))

    def _read_blob(self, blob: Field) -> Blob:
        if blob.wire != BYTES:
            raise self._damaged(blob.start, "a blob that is not a message")
        four, shape = [1, 1, 1, 1], None
        pieces: dict[int, list[tuple[int, int]]] = {5: [], 8: []}  # data and double_data, by field number
        legacy = False
        for f in self._fields(blob.start, blob.end):
            if f.number in (1, 2, 3, 4) and f.wire == VARINT:
                four[f.number - 1], legacy = f.value, True
            elif f.number == 7 and f.wire == BYTES:
                shape = [n for dim in self._fields(f.start, f.end) if dim.number == 1 for n in self._numbers(dim)]
            elif f.number in pieces and f.wire in (BYTES, FIXED32 if f.number == 5 else FIXED64):
                pieces[f.number].append((f.start, f.end - f.start))
                if len(pieces[f.number]) > MAX_PIECES:
                    raise self._damaged(f.start, f"a blob in more than {MAX_PIECES} pieces")
        dtype = torch.float64 if pieces[8] and not pieces[5] else torch.float32
        where = tuple((at, length) for at, length in pieces[8 if dtype == torch.float64 else 5] if length)
        held = sum(length for _, length in where)
        dims = shape if shape is not None else four if legacy else [held // dtype.itemsize]
        if len(dims) > MAX_AXES or any(not 0 <= n < 2**31 for n in dims):
            raise self._damaged(blob.start, f"a blob of impossible shape {dims[:8]}")
        if math.prod(dims) * dtype.itemsize != held:
            raise self._damaged(blob.start, f"a blob of shape {dims} that holds {held} bytes of {dtype}")
        return Blob(tuple(dims), dtype, where)
