"""Writes ``.caffemodel`` files for the tests: any layers in V1 or V2 form, and a whole DecoupledNet of any width.

Run as a program it writes the full-size network of the release, 1.7 GB, as a sparse file in well under a second:
``python tests/caffemodel_writer.py FILE [remainder of every data offset modulo 4, or "natural"]``.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

CONVOLUTION, SPLIT, RELU, DECONVOLUTION, BN = 4, 22, 18, 39, 43  # V1 layer types


def varint(value: int) -> bytes:
    """A protobuf base-128 number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def scalar(number: int, value: int) -> bytes:
    """A varint field."""
    return varint(number << 3) + varint(value)


def message(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


@dataclasses.dataclass
class Blob:
    """One array: `data` None leaves a hole (zeros that take no disk); `form` is how shape and data are written."""

    shape: tuple[int, ...]
    data: np.ndarray | None = None
    form: str = "legacy"  # legacy, shape, unpacked, pieces, double

    def parts(self) -> tuple[bytes, int, bytes]:
        """Bytes before the data field's payload, the payload's length, and the payload (empty for a hole)."""
        count = math.prod(self.shape)
        if self.form in ("shape", "double"):
            head = message(7, message(1, b"".join(varint(n) for n in self.shape)))
        else:
            four = (1,) * (4 - len(self.shape)) + tuple(self.shape)
            head = b"".join(scalar(k, n) for k, n in enumerate(four, 1))
        if self.data is None:
            return head + varint(5 << 3 | 2) + varint(4 * count), 4 * count, b""
        data = np.ascontiguousarray(self.data).ravel()
        if self.form == "unpacked":
            return head + b"".join(varint(5 << 3 | 5) + value.tobytes() for value in data.astype("<f4")), 0, b""
        if self.form == "pieces":
            half = data.astype("<f4")[: count // 2].tobytes()
            rest = data.astype("<f4")[count // 2 :].tobytes()
            return head + message(5, half) + varint(5 << 3 | 2) + varint(len(rest)), len(rest), rest
        payload = data.astype("<f8" if self.form == "double" else "<f4").tobytes()
        number = 8 if self.form == "double" else 5
        return head + varint(number << 3 | 2) + varint(len(payload)), len(payload), payload


@dataclasses.dataclass
class Layer:
    """One layer; `v1` False writes the newer form (field 100)."""

    name: str | bytes | None
    blobs: Sequence[Blob] = ()
    type: int = CONVOLUTION
    v1: bool = True


def write(
    path: Path, layers: Iterable[Layer], remainder: int | None = None, extra: bytes = b"", input_dim: Sequence[int] = ()
) -> None:
    """Write a network. `remainder`: every payload starts at that offset modulo 4 (None: wherever it falls).

    `extra` goes before the layers, `input_dim` behind them, where Caffe puts it.
    """
    with path.open("wb") as file:
        file.write(message(1, b"net") + extra)
        for layer in layers:
            _write_layer(file, layer, remainder)
        file.write(b"".join(scalar(4, n) for n in input_dim))
        file.truncate()  # a hole at the very end counts too


def _write_layer(file: BinaryIO, layer: Layer, remainder: int | None) -> None:
    name_number, type_number, blob_number, number = (4, 5, 6, 2) if layer.v1 else (1, 2, 7, 100)
    name = layer.name.encode() if isinstance(layer.name, str) else layer.name
    head = b"" if name is None else message(name_number, name)
    head += scalar(type_number, layer.type) if layer.v1 else message(2, b"Split" if layer.type == SPLIT else b"Other")
    blobs = [blob.parts() for blob in layer.blobs]
    pads = [b""] * len(blobs)
    # pad one blob after the other by an unknown field until its payload stands where it should
    choices = [b""] + [message(15, b"\0" * n) for n in range(6)]
    for k in range(len(blobs) if remainder is not None else 0):
        for pads[k] in choices:
            if _plan(file.tell(), number, blob_number, head, blobs, pads)[1][k] % 4 == remainder:
                break
        else:
            raise AssertionError("no padding gives that alignment")
    if remainder is not None and any(
        p % 4 != remainder for p in _plan(file.tell(), number, blob_number, head, blobs, pads)[1]
    ):
        raise AssertionError("padding a later blob moved an earlier one")
    pieces, _ = _plan(file.tell(), number, blob_number, head, blobs, pads)
    for piece in pieces:
        if isinstance(piece, bytes):
            file.write(piece)
        else:
            file.truncate(file.seek(piece, 1))


def _plan(
    at: int, number: int, blob_number: int, head: bytes, blobs: list[tuple[bytes, int, bytes]], pads: list[bytes]
) -> tuple[list[bytes | int], list[int]]:
    """What to write for a layer that starts at `at` (an int is a hole of so many bytes), and where its payloads lie."""
    sizes = [len(pad) + len(before) + length for (before, length, _), pad in zip(blobs, pads, strict=True)]
    heads = [varint(blob_number << 3 | 2) + varint(size) for size in sizes]
    body = len(head) + sum(len(h) + size for h, size in zip(heads, sizes, strict=True))
    pieces: list[bytes | int] = [varint(number << 3 | 2) + varint(body) + head]
    at += len(pieces[0])  # type: ignore[arg-type]
    offsets = []
    for (before, length, payload), pad, blob_head in zip(blobs, pads, heads, strict=True):
        pieces += [blob_head + pad + before, payload if payload or not length else length]
        at += len(blob_head) + len(pad) + len(before)
        offsets.append(at)
        at += length
    return pieces, offsets


def network(
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    fc: int = 4096,
    bridge: int = 2048,
    kernel: int = 7,
    classes: int = 20,
    rng: np.random.Generator | None = None,
) -> list[Layer]:
    """All layers of a DecoupledNet in the release's order and names; random with `rng`, else holes (zeros)."""

    def values(*shape: int) -> Blob:
        return Blob(shape, None if rng is None else rng.standard_normal(shape).astype(np.float32))

    def weights(name: str, first: int, second: int, k: int, kind: int = CONVOLUTION) -> Layer:
        return Layer(
            name, [values(first, second, k, k), values(1, 1, 1, first if kind == CONVOLUTION else second)], kind
        )

    def norm(name: str, channels: int) -> Layer:
        return Layer(name, [values(1, channels, 1, 1), values(1, channels, 1, 1)], BN)

    convs, layers, channels = (2, 2, 3, 3, 3), [], 3
    for stage, (width, count) in enumerate(zip(widths, convs, strict=True), 1):
        for k in range(1, count + 1):
            layers += [weights(f"conv{stage}_{k}", width, channels, 3), Layer(f"relu{stage}_{k}", (), RELU)]
            channels = width
    head = [weights("fc6", fc, channels, kernel), weights("fc7", fc, fc, 1), weights("cls-score-voc", classes, fc, 1)]
    layers += head
    for name, forward, out in zip(("fc6-bp", "fc7-bp", "cls-score-voc-bp"), head, (channels, fc, fc), strict=True):
        weight = copy.deepcopy(forward.blobs[0])
        if name == "cls-score-voc-bp":
            weight = Blob((fc, classes, 1, 1), None if weight.data is None else weight.data.swapaxes(0, 1))
        bias = Blob((1, 1, 1, out), None if rng is None else np.zeros(out, np.float32))
        layers.append(Layer(name, [weight, bias], DECONVOLUTION))
    layers += [norm("pool5-bn", channels), norm("pool5-bp-bn", channels)]
    layers += [weights("fc6-seg", bridge, 2 * channels, kernel), norm("bnfc6-seg", bridge)]
    layers += [weights("fc7-seg", bridge, bridge, 1), norm("bnfc7-seg", bridge)]
    layers += [weights("fc6-deconv", bridge, channels, kernel, DECONVOLUTION), norm("fc6-deconv-bn", channels)]
    for stage in range(5, 0, -1):
        for k in range(1, convs[stage - 1] + 1):
            out = widths[max(stage - 2, 0)] if k == convs[stage - 1] else widths[stage - 1]
            layers += [
                weights(f"deconv{stage}_{k}", widths[stage - 1], out, 3, DECONVOLUTION),
                norm(f"debn{stage}_{k}", out),
            ]
    return [*layers, weights("seg-score-voc", 2, widths[0], 1)]


if __name__ == "__main__":
    modulo = sys.argv[2] if len(sys.argv) > 2 else "natural"
    write(Path(sys.argv[1]), network(), None if modulo == "natural" else int(modulo))
