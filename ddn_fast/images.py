"""Images, masks and MATLAB's resize: everything between files and tensors (SPEC sections 1 and 7).

An image is HxWx3 uint8 RGB. A mask is HxW uint8: 0 background, ``l + 1`` for class index ``l``, 255 void.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import (  # the plugins: each enters its format into Image.OPEN
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from torch import Tensor

from .errors import DataError, ImageError, InputError
from .files import write_atomic

Kernel = Literal["bilinear", "bicubic"]
Array = NDArray[np.uint8]
Decoded = TypeVar("Decoded")

VOID = 255
EXIF_ORIENTATION = 0x0112  # the tag
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

# Bounds on what a file may unpack to, checked on its header. The area is where Pillow, unasked, refuses.
MAX_PIXELS = 178_956_970
MAX_SIDE = 65_535
MAX_JPEG_SIDE = 65_500  # that the JPEG library writes

# Only what is decoded in this process (Pillow hands EPS to Ghostscript). JPEG covers the MPO that phones write.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
LARGE_PIXELS = 1 << 24
_LARGE = threading.RLock()
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _after_fork() -> None:  # another thread of the parent may have held it
    global _LARGE
    _LARGE = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def one_large(pixels: int) -> AbstractContextManager[object]:
    """What an image of so many pixels is decoded and drawn in: of large ones one at a time, whatever threads there are.

    Decoding takes 7 bytes a pixel for a moment, drawing some 15.
    """
    return _LARGE if pixels > LARGE_PIXELS else contextlib.nullcontext()


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Array:
    """Read an image file as HxWx3 uint8 RGB, upright as its EXIF orientation says.

    JPEG, PNG, BMP, GIF, TIFF, WebP or PNM; of an animation the first frame. Grey and palette images get three channels,
    transparency is laid on white, 16-bit grey keeps its high byte. Raises ImageError if the file is missing, not an
    image, cut short or damaged, or has more than `max_pixels` (its header decides, before anything is decoded). For
    TIFF and WebP beyond the default, raise ``PIL.Image.MAX_IMAGE_PIXELS`` as well: their decoders look at it.
    """
    path = Path(path)

    def to_array(picture: Image.Image) -> Array:
        try:
            return np.array(_to_rgb(picture, path))
        except ImageError:
            raise
        except Exception as error:  # colour conversion of a dozen formats
            raise ImageError(f"{path}: cannot convert mode {picture.mode} to RGB: {error}") from error

    return _decode(path, ImageError, IMAGE_FORMATS, max_pixels, to_array)


def as_image(source: str | Path | NDArray[Any]) -> Array:
    """An image from a path (see :func:`load_image`) or an HxWx3 uint8 RGB array; ImageError on anything else."""
    if isinstance(source, str | os.PathLike):
        return load_image(source)
    if not isinstance(source, np.ndarray):
        raise ImageError(f"image: wanted a path or an HxWx3 uint8 array, got {kind_of(source)}")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        raise ImageError(f"image: wanted an HxWx3 uint8 RGB array, got {source.dtype} of shape {list(source.shape)}")
    _check_size(source.shape[1], source.shape[0], "image", ImageError, MAX_PIXELS)
    return source


def kind_of(source: object) -> str:
    """What something is that should have been an image, and how it becomes one."""
    hint = ": np.asarray(image.convert('RGB')) is one" if isinstance(source, Image.Image) else ""
    return type(source).__name__ + hint


def load_mask(path: str | Path, classes: int) -> Array:
    """Read a mask as HxW uint8 labels: a palette or 8-bit grey PNG with values 0..`classes` and 255.

    Of a palette the indices count, whatever the colours. Raises DataError if the file is missing, damaged, not such a
    PNG, or holds another label; and for a palette of VOC's colours in another order (see :func:`_renumbered`).
    """
    path = Path(path)
    picture = _decode(path, DataError, ("PNG",), MAX_PIXELS, lambda picture: picture)
    with path.open("rb") as file:
        depth, colour = file.read(26)[24:]  # of IHDR, which comes first
    if colour == 0 and depth < 8:  # grey, whose values Pillow spreads over 0 to 255
        raise DataError(f"{path}: wanted a palette or 8-bit grey PNG, got grey of {depth} bit{'s' * (depth > 1)}")
    if picture.mode not in ("P", "L"):
        hint = "; `ddn-fast import` reads masks in colours" if picture.mode in ("RGB", "RGBA") else ""
        raise DataError(f"{path}: wanted a palette or 8-bit grey PNG, got mode {picture.mode}{hint}")
    mask = np.array(picture)
    present = np.bincount(mask.ravel(), minlength=256) > 0
    if meant := _renumbered(picture, np.flatnonzero(present), classes):
        raise DataError(
            f"{path}: wanted labels as indices of the palette, got {np.flatnonzero(present).tolist()[:8]} in PASCAL "
            f"VOC's colours of {meant[:8]}: has a program renumbered them? Save labels as indices, or as grey levels"
        )
    if unknown := [label for label in range(classes + 1, VOID) if present[label]]:
        raise DataError(f"{path}: wanted labels 0 to {classes} and {VOID}, got {unknown[:8]}")
    return mask


def _renumbered(picture: Image.Image, used: NDArray[np.int64], classes: int) -> list[int]:
    """The labels that the colours of the indices `used` stand for, where they contradict these; else none.

    Editors and optimizers that store a palette anew keep its colours and number them as they like. Palettes are free,
    so colours speak only where all of the palette's are PASCAL VOC's for possible labels, a palette for this very
    purpose, and no two of those used are the same.
    """
    if picture.mode != "P":
        return []
    colours = [tuple(colour) for colour in np.reshape(picture.getpalette("RGB") or [], (-1, 3)).tolist()]
    label_of = {tuple(voc_palette()[label].tolist()): label for label in (*range(classes + 1), VOID)}
    if not label_of.keys() >= set(colours):
        return []
    labels = [label_of[colours[index]] for index in used if index < len(colours)]
    return [] if labels == used.tolist() or len(set(labels)) < len(used) else labels


def _decode(
    path: Path,
    error_type: type[Exception],
    formats: tuple[str, ...],
    max_pixels: int,
    convert: Callable[[Image.Image], Decoded],
) -> Decoded:
    try:
        if not path.is_file():
            raise error_type(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        picture = open_picture(path, formats)
        with picture:
            _check_size(*picture.size, str(path), error_type, max_pixels)
            with one_large(picture.width * picture.height):
                picture.load()
                return convert(picture.copy() if getattr(picture, "is_animated", False) else picture)
    except (ImageError, DataError):
        raise
    except Image.DecompressionBombError as error:  # the decoders of TIFF and WebP ask again
        bound = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise error_type(f"{path}: wanted at most {bound} pixels, got more") from error
    except Exception as error:  # a decoder of a hostile file may raise nearly anything
        raise error_type(f"{path}: cannot be read as an image: {str(error) or type(error).__name__}") from error


def open_picture(path: Path, formats: tuple[str, ...]) -> Image.Image:
    """``Image.open``, header only, without Pillow's bound on pixels: it is one for the whole process and only warns.

    The caller checks the size before decoding. Raises OSError, and whatever a decoder raises on a damaged header.
    """
    with path.open("rb") as file:
        prefix = file.read(16)
    source: Any = str(path)  # the plugins take a path, too, and then close the file themselves
    for name in formats:
        factory, accept = Image.OPEN.get(name, (None, None))
        accepted = accept is None or accept(prefix)
        if factory is None or not accepted or isinstance(accepted, str):  # a text says why this Pillow cannot
            continue
        try:
            return factory(source, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # not that format after all
            continue
    raise UnidentifiedImageError(f"not an undamaged {', '.join(formats)} file")


def _check_size(width: int, height: int, what: str, error_type: type[Exception], max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise error_type(f"{what}: wanted at least one pixel, got {width}x{height}")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise error_type(
            f"{what}: wanted at most {max_pixels} pixels and {MAX_SIDE} a side, got {width}x{height} = {width * height}"
        )


def _to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block spoils the orientation, not the picture
        orientation = 1
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    if picture.mode == "F":
        raise ImageError(f"{path}: wanted 8- or 16-bit samples, got floating point")
    if picture.mode.startswith("I"):
        samples = np.array(picture)
        if samples.min() < 0 or samples.max() > 65535:
            raise ImageError(f"{path}: wanted 8- or 16-bit samples, got values {samples.min()} to {samples.max()}")
        picture = Image.fromarray((samples >> 8).astype(np.uint8))
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    return picture.convert("RGB")


@functools.lru_cache(maxsize=128)
def resize_taps(size_in: int, size_out: int, kernel: Kernel) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """MATLAB's imresize along one axis as a table: which inputs make an output, and with what weights.

    Returns index and weight, both ``[size_out,taps]``: ``y[i] = sum_t weight[i,t] * x[index[i,t]]``. Pixel centres lie
    at half-integers; the kernel (triangle, or cubic with a = -0.5) is stretched by the scale when the axis shrinks;
    weights sum to 1; beyond the edges the signal is mirrored. Shared by all callers: do not write into it.
    """
    if kernel not in ("bilinear", "bicubic"):
        raise InputError(f"kernel: wanted 'bilinear' or 'bicubic', got {kernel!r}")
    if size_in < 1 or size_out < 1:
        raise InputError(f"resize: wanted at least one pixel, got {size_in} to {size_out}")
    scale = size_out / size_in
    shrink = min(scale, 1.0)
    width = (2.0 if kernel == "bilinear" else 4.0) / shrink
    centre = (np.arange(size_out) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64)
    position = first[:, None] + np.arange(math.ceil(width) + 2)
    distance = shrink * (centre[:, None] - position)
    weight = _triangle(distance) if kernel == "bilinear" else _cubic(distance)
    weight /= weight.sum(1, keepdims=True)
    index = position % (2 * size_in)
    index = np.where(index < size_in, index, 2 * size_in - 1 - index)
    used = weight.any(0)
    return np.ascontiguousarray(index[:, used]), np.ascontiguousarray(weight[:, used])


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def resize_matlab(x: Tensor, size: tuple[int, int], kernel: Kernel, crop: tuple[int, int] | None = None) -> Tensor:
    """MATLAB's ``imresize(x, size, kernel)`` with its antialiasing, unrounded (SPEC sections 1 and 7).

    x ``[...,H,W]`` float32 or float64, computed in its own dtype; returns ``[...,h,w]``, of which only the upper left
    `crop` is computed where given. The axis that shrinks most goes first. Raises InputError on other dtypes, empty
    sizes, or a crop larger than `size`.

    ``interpolate(.., antialias=True)`` is the same filter in the interior (to 1e-13). At the borders it cuts the kernel
    off and renormalises where MATLAB mirrors: 0.07 of the range apart on noise at most, 5 of 255 grey levels in the
    outermost pixels of a photograph going from 500 to 320.
    """
    if x.dim() < 2 or x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"resize_matlab: x must be [...,H,W] float32 or float64, got {x.dtype} {list(x.shape)}")
    crop = size if crop is None else crop
    if not (1 <= crop[0] <= size[0] and 1 <= crop[1] <= size[1]):
        raise InputError(f"resize_matlab: crop must lie within {tuple(size)}, got {tuple(crop)}")
    scales = [size[axis] / max(x.shape[axis - 2], 1) for axis in (0, 1)]
    for axis in (0, 1) if scales[0] <= scales[1] else (1, 0):
        size_in = x.shape[axis - 2]
        if size_in == size[axis]:
            x = x.narrow(axis - 2, 0, crop[axis])
        else:
            index, weight = resize_taps(size_in, size[axis], kernel)
            x = weighted_rows(x.movedim(axis - 2, 0), index[: crop[axis]], weight[: crop[axis]]).movedim(0, axis - 2)
    return x.contiguous()


def weighted_rows(x: Tensor, index: NDArray[np.int64], weight: NDArray[np.float64]) -> Tensor:
    """``y[i] = sum_t weight[i,t] * x[index[i,t]]`` over the first axis of x; embedding_bag is exactly this sum.

    index and weight ``[outputs,taps]``, as :func:`resize_taps` gives them.
    """
    rows = F.embedding_bag(
        torch.tensor(index, device=x.device),
        x.reshape(len(x), -1),
        per_sample_weights=torch.tensor(weight, dtype=x.dtype, device=x.device),
        mode="sum",
    )
    return rows.view(len(index), *x.shape[1:])


@functools.lru_cache(maxsize=1)
def voc_palette() -> Array:
    """The ``[256,3]`` RGB colours of PASCAL VOC masks: bits of the label dealt to R, G, B from the top bit down."""
    label = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((label >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    colours.setflags(write=False)
    return colours


def save_mask(mask: Array, path: str | Path) -> None:
    """Write an HxW uint8 mask as a PNG with the VOC palette; whole or not at all.

    Raises InputError on other arrays, and on a name that does not end in .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"{path}: wanted a name ending in .png, as other formats would change labels")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"mask: wanted HxW uint8, got {got}")
    picture = Image.fromarray(mask).convert("L")
    picture.putpalette(voc_palette().tobytes())
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomic(path, data.getvalue())


def save_image(image: Array, path: str | Path) -> None:
    """Write an HxWx3 uint8 RGB image as JPEG or PNG, by the suffix; whole or not at all.

    Raises InputError on another suffix and on a JPEG of more than MAX_JPEG_SIDE pixels a side, ImageError on no image.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".jpg", ".jpeg", ".png"):
        raise InputError(f"{path}: wanted a name ending in .jpg, .jpeg or .png")
    image = as_image(image)
    if suffix != ".png" and max(image.shape) > MAX_JPEG_SIDE:
        raise InputError(f"{path}: wanted at most {MAX_JPEG_SIDE} pixels a side in a JPEG, got {list(image.shape[:2])}")
    # OpenCV lets go of the GIL while it encodes; without options that a format does not have
    full_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 93, *full_colour]
    written, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not written:  # of some version
        raise InputError(f"{path}: OpenCV cannot write such a file")
    write_atomic(path, data.tobytes())
