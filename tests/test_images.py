"""Reading, writing, drawing; MATLAB's resize against a slow loop and against torch's antialiased interpolate."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from at_once import Place
from PIL import Image
from slow_resize import slow_imresize_axis
from tiny_net import random_image, write_image

from ddn_fast import images
from ddn_fast.drawing import overlay
from ddn_fast.errors import DataError, ImageError, InputError
from ddn_fast.files import write_atomic
from ddn_fast.images import as_image, load_image, load_mask, resize_matlab, save_image, save_mask, voc_palette

SIZES = [((7, 9), (7, 9)), ((7, 9), (3, 4)), ((5, 6), (13, 7)), ((40, 3), (6, 11)), ((1, 1), (4, 2)), ((2, 30), (1, 1))]


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_resize_is_matlabs_imresize(kernel, size_in, size_out):
    x = torch.rand(2, *size_in, dtype=torch.float64)
    by_row = slow_imresize_axis(x.numpy().transpose(1, 2, 0), size_out[0], kernel == "bicubic")
    expected = slow_imresize_axis(by_row.transpose(1, 0, 2), size_out[1], kernel == "bicubic").transpose(2, 1, 0)
    result = resize_matlab(x, size_out, kernel)
    assert result.is_contiguous()
    torch.testing.assert_close(result, torch.from_numpy(expected), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_out", [(32, 32), (90, 81), (20, 140)])
def test_resize_is_torchs_antialiased_interpolate_in_the_interior(kernel, size_out):
    x = torch.rand(3, 50, 70, dtype=torch.float64)
    ours = resize_matlab(x, size_out, kernel)
    theirs = F.interpolate(x[None], size_out, mode=kernel, antialias=True)[0]
    reach = 1 if kernel == "bilinear" else 2
    rows, columns = (int(np.ceil(reach * max(1, size_out[k] / x.shape[k + 1]))) for k in (0, 1))
    inside = (slice(None), slice(rows, -rows), slice(columns, -columns))
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1e-12)
    if size_out != (90, 81) or kernel == "bicubic":  # mirroring and clamping agree for one bilinear tap
        assert (ours - theirs).abs().max() > 1e-3


def test_resize_to_the_same_size_is_the_identity():
    x = torch.rand(4, 5)
    assert torch.equal(resize_matlab(x, (4, 5), "bicubic"), x)


def test_crop_is_the_upper_left_of_the_whole():
    x = torch.rand(3, 20, 20, dtype=torch.float64)
    whole = resize_matlab(x, (33, 33), "bicubic")
    assert torch.equal(resize_matlab(x, (33, 33), "bicubic", (17, 29)), whole[:, :17, :29])
    assert torch.equal(resize_matlab(x, (20, 20), "bicubic", (3, 20)), x[:, :3])


def test_resize_takes_non_contiguous_float32_and_is_differentiable():
    x = torch.rand(9, 8, 2, requires_grad=True)
    y = resize_matlab(x.permute(2, 0, 1), (4, 5), "bilinear")
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, resize_matlab(x.permute(2, 0, 1).contiguous(), (4, 5), "bilinear"))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(40.0))


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_resize_to_nothing_is_a_named_error(size):
    with pytest.raises(InputError):
        resize_matlab(torch.rand(5, 5), size, "bilinear")


def test_resize_of_nothing_and_of_other_dtypes_are_named_errors():
    with pytest.raises(InputError, match="at least one pixel"):
        resize_matlab(torch.rand(0, 5), (4, 4), "bilinear")
    with pytest.raises(InputError, match="float32 or float64"):
        resize_matlab(torch.ones(5, 5, dtype=torch.uint8), (4, 4), "bilinear")
    with pytest.raises(InputError, match="crop"):
        resize_matlab(torch.rand(5, 5), (4, 4), "bilinear", (5, 4))


# --- files ---


def test_modes_of_one_picture_all_load_as_rgb(tmp_path):
    grey = np.arange(12 * 17, dtype=np.uint8).reshape(12, 17)
    expected = np.repeat(grey[..., None], 3, 2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(expected).save(tmp_path / "rgb.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([expected, np.full_like(grey, 255)])).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.int32) * 256 + 77).save(tmp_path / "deep.tif")
    for path in sorted(tmp_path.iterdir()):
        image = load_image(path)
        assert image.dtype == np.uint8, path.name
        assert np.array_equal(image, expected), path.name
        image[0, 0] = 0  # it is the caller's


def test_a_deep_picture_is_read_in_the_memory_that_one_large_counts_on(tmp_path):
    """7 bytes a pixel; of Pillow's own, 2 for the picture, none is counted here."""
    deep = np.arange(1000 * 1000, dtype=np.uint32).astype(np.uint16).reshape(1000, 1000)
    Image.fromarray(deep).save(tmp_path / "a.png")
    tracemalloc.start()
    try:
        image = load_image(tmp_path / "a.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(image[..., 1], deep >> 8)
    assert peak < 7 * deep.size


def test_cmyk_jpeg_loads_as_rgb(tmp_path):
    rgb = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - rgb).max() < 8


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    upright = random_image(4, 6, 9)
    undo = {2: "fliplr", 3: "r2", 4: "flipud", 5: "t", 6: "r1", 7: "tv", 8: "r3"}.get(orientation)
    stored = {
        None: lambda a: a,
        "fliplr": np.fliplr,
        "flipud": np.flipud,
        "r1": lambda a: np.rot90(a, 1),
        "r2": lambda a: np.rot90(a, 2),
        "r3": lambda a: np.rot90(a, 3),
        "t": lambda a: a.swapaxes(0, 1),
        "tv": lambda a: np.rot90(a, 2).swapaxes(0, 1),
    }[undo](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png"), upright)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((5, 6), value, np.uint8)) for value in (40, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.all(load_image(tmp_path / "a.gif") == 40)


def test_names_outside_ascii_work(tmp_path):
    path = write_image(tmp_path / "Ünïcødé 画像 🐈.png", 1, 4, 5)
    assert load_image(path).shape == (4, 5, 3)
    assert as_image(str(path)).shape == (4, 5, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF tags
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_truncated_file_is_a_named_error_never_a_partly_grey_image(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(random_image(5, 80, 60)).save(path)
    data, whole = path.read_bytes(), load_image(path)
    errors = 0
    for keep in (0, 1, 10, len(data) // 4, len(data) // 2, len(data) * 9 // 10, len(data) - 1):
        path.write_bytes(data[:keep])
        try:
            assert np.array_equal(load_image(path), whole), f"cut to {keep} of {len(data)} bytes"
        except ImageError as error:
            assert str(path) in str(error)  # noqa: PT017  # either outcome is right, nothing between
            errors += 1
    assert errors >= 5


def test_missing_folder_and_text_files_are_named_errors(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="not a file"):
        load_image(tmp_path)
    (tmp_path / "a.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"a\.jpg.*cannot be read"):
        load_image(tmp_path / "a.jpg")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (70_000, 1), (14_000, 13_000)])
def test_huge_dimensions_are_refused_by_the_header(tmp_path, size, monkeypatch):
    (tmp_path / "a.png").write_bytes(png_header(*size))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"a\.png: wanted at most 178956970 pixels"):
        load_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "ppm", "jpeg"])
def test_a_bound_above_pillows_own_holds(tmp_path, suffix, monkeypatch):
    Image.fromarray(random_image(1, 20, 30)).save(tmp_path / f"a.{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above, and raises above twice as many
    assert load_image(tmp_path / f"a.{suffix}", max_pixels=10**9).shape == (20, 30, 3)


def asks_since(suffix, pillow):
    older = int(PIL.__version__.split(".")[0]) < pillow
    return pytest.param(suffix, marks=pytest.mark.skipif(older, reason=f"Pillow's decoder asks since {pillow}"))


@pytest.mark.parametrize("suffix", [asks_since("tiff", 12), asks_since("webp", 13)])
def test_a_bound_inside_pillows_decoder_is_a_named_error(tmp_path, suffix, monkeypatch):
    Image.fromarray(random_image(1, 20, 30)).save(tmp_path / f"a.{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="wanted at most 200 pixels, got more"):
        load_image(tmp_path / f"a.{suffix}", max_pixels=10**9)


def test_the_bound_on_pixels_is_the_callers(tmp_path):
    path = write_image(tmp_path / "a.png", 1, 10, 11)
    assert load_image(path, max_pixels=110).shape == (10, 11, 3)
    with pytest.raises(ImageError, match="at most 109 pixels"):
        load_image(path, max_pixels=109)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.array([]),
        torch.zeros(3, 5, 5),
        Image.new("RGB", (5, 5)),
        None,
    ],
)
def test_arrays_that_are_no_image_are_named_errors(array):
    with pytest.raises(ImageError, match="wanted"):
        as_image(array)


# --- masks and pictures ---


@pytest.mark.parametrize("mode", ["P", "L"])
def test_palette_and_grey_masks_read_the_same_labels(tmp_path, mode):
    mask = np.array([[0, 1, 20], [255, 5, 0]], np.uint8)
    picture = Image.fromarray(mask)
    if mode == "P":
        picture.putpalette(voc_palette().tobytes())
    picture.save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png", 20), mask)
    with pytest.raises(DataError, match=r"labels 0 to 19 and 255, got \[20\]"):
        load_mask(tmp_path / "m.png", 19)


def save_palette(path: Path, mask: np.ndarray, colours: np.ndarray) -> Path:
    picture = Image.fromarray(mask)
    picture.putpalette(np.ascontiguousarray(colours, np.uint8).tobytes())
    picture.save(path)
    return path


@pytest.mark.parametrize("order", [[0, 15, 255], [15, 255, 0], [255, 8, 0], [15, 0], [3]])
@pytest.mark.parametrize("padding", [0, 200])
def test_a_renumbered_palette_is_a_named_error(tmp_path, order, padding):
    """As editors store masks that were made with VOC's: the colours that occur here or elsewhere, in any order."""
    index = np.resize(np.arange(len(order), dtype=np.uint8), (4, 5))
    colours = np.concatenate([voc_palette()[[*order, 3]], np.zeros((padding, 3), np.uint8)])
    path = save_palette(tmp_path / "m.png", index, colours)
    wanted = rf"m\.png: wanted labels as indices of the palette, got \[0.*\] in PASCAL VOC's colours of \[{order[0]}"
    with pytest.raises(DataError, match=wanted):
        load_mask(path, 20)
    assert load_image(path)[0, 0].tolist() == voc_palette()[order[0]].tolist()


def test_a_mask_stored_anew_by_pillow_is_a_named_error(tmp_path):
    mask = np.resize(np.array([0, 0, 0, 12, 12, 255], np.uint8), (12, 18))
    save_mask(mask, tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        picture.save(tmp_path / "optimized.png", optimize=True)
        picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "converted.png")
    for name in ("optimized", "converted"):
        try:
            assert np.array_equal(load_mask(tmp_path / f"{name}.png", 20), mask), name
        except DataError as error:
            assert "renumbered them" in str(error)  # noqa: PT017  # either outcome is right
    with pytest.raises(DataError, match="renumbered"):
        load_mask(tmp_path / "converted.png", 20)


SWAPPED = voc_palette()[:, ::-1]  # blue first, by mistake


@pytest.mark.parametrize(
    ("labels", "colours"),
    [
        ([0, 1, 20, 255], voc_palette()),
        ([0, 1, 2], voc_palette()[:3]),
        ([0, 1, 4], SWAPPED),
        ([0, 1, 4], SWAPPED[:21]),
        ([1, 0, 2], [(0, 0, 0), (255, 0, 0), (0, 128, 0)]),  # not all are VOC's
        ([0, 1], [(0, 0, 0), (0, 128, 0), (255, 0, 0)]),
        ([0, 1, 2], [(0, 0, 0), tuple(voc_palette()[21]), (0, 128, 0)]),  # no label here
        ([0, 1, 2], [(255, 255, 255), (0, 0, 0), (90, 90, 90)]),
        ([0, 1, 2], [(0, 0, 0)] * 3),
    ],
)
def test_indices_count_where_the_colours_are_not_surely_vocs(tmp_path, labels, colours):
    mask = np.resize(np.array(labels, np.uint8), (4, 5))
    assert np.array_equal(load_mask(save_palette(tmp_path / "m.png", mask, np.array(colours)), 20), mask)


def test_colour_deep_and_one_bit_masks_are_named_errors(tmp_path):
    for name, array in {"rgb": np.zeros((3, 3, 3), np.uint8), "deep": np.zeros((3, 3), np.uint16)}.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    Image.new("1", (3, 3)).save(tmp_path / "bit.png")
    Image.new("L", (3, 3)).save(tmp_path / "lossy.jpg")
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=path.name):
            load_mask(path, 20)
    with pytest.raises(DataError, match="no such file"):
        load_mask(tmp_path / "none.png", 20)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_below_eight_bits_are_refused_and_palettes_are_not(tmp_path, bits):
    labels = [[0, 1], [1, 0]]
    palette = Image.new("P", (2, 2))
    palette.putdata(np.ravel(labels).tolist())
    palette.putpalette(voc_palette().tobytes()[: 3 << bits])
    palette.save(tmp_path / "palette.png", bits=bits)
    assert load_mask(tmp_path / "palette.png", 20).tolist() == labels
    write_grey_png(tmp_path / "grey.png", labels, bits)
    with pytest.raises(DataError, match=rf"grey\.png: .*got grey of {bits} bits?$"):
        load_mask(tmp_path / "grey.png", 20)


def write_grey_png(path, labels, bits):
    """Pillow writes none of 2 or 4 bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = [sum(label << (8 - bits * (place + 1)) for place, label in enumerate(row)) for row in labels]
    header = struct.pack(">IIBBBBB", 2, len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(bytes([0, row]) for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_saved_mask_reads_back_with_the_voc_palette(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_mask(mask[:, ::-1], tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), mask[:, ::-1])
        assert np.array_equal(np.array(picture.convert("RGB")), voc_palette()[mask[:, ::-1]])


def test_voc_palette_has_the_known_colours():
    assert voc_palette()[[0, 1, 2, 8, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [64, 0, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2), np.uint8), [[1]]]
)
def test_saving_what_is_no_mask_is_a_named_error(tmp_path, mask):
    with pytest.raises(InputError, match="wanted HxW uint8"):
        save_mask(mask, tmp_path / "m.png")
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_failed_write_names_the_file_that_was_wanted(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    mask = np.zeros((2, 2), np.uint8)
    for name, kind in (
        ("nodir/a.png", FileNotFoundError),
        ("file/a.png", NotADirectoryError),
        ("folder.png", IsADirectoryError),
    ):
        with pytest.raises(kind) as error:
            save_mask(mask, tmp_path / name)
        assert error.value.filename == str(tmp_path / name)
        assert ".tmp" not in str(error.value)


def test_a_mask_is_a_png_by_its_name(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: wanted a name ending in \.png"):
        save_mask(np.zeros((2, 2), np.uint8), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_written_file_has_the_usual_permissions(tmp_path):
    write_atomic(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "b").st_mode  # noqa: PTH116


def test_overlay_leaves_background_alone_and_paints_labels():
    image = random_image(6, 40, 50)
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10:30] = 15
    picture = overlay(image, mask)
    assert np.array_equal(picture[mask == 0], image[mask == 0])
    blend = (image[20, 20].astype(int) + voc_palette()[15]) / 2
    assert np.abs(picture[20, 20] - blend).max() <= 1
    assert np.all(picture[10, 10:30] == 255)
    assert np.array_equal(image, random_image(6, 40, 50))


def test_legend_avoids_the_labelled_corner_and_is_left_out_where_it_cannot_fit():
    image, mask = np.full((120, 200, 3), 100, np.uint8), np.zeros((120, 200), np.uint8)
    mask[:60, :100] = 1
    plain, labelled = overlay(image, mask), overlay(image, mask, [(1, "cat 0.99")])
    changed = (plain != labelled).any(2)
    assert changed.any()
    assert not (changed & (mask > 0)).any()
    small = random_image(7, 5, 5)
    assert np.array_equal(overlay(small, mask[:5, :5], [(1, "cat 0.99")]), overlay(small, mask[:5, :5]))
    one = np.zeros((1, 1, 3), np.uint8)
    assert overlay(one, np.ones((1, 1), np.uint8), [(1, "cat")]).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("height", "width", "legend"),
    [(60, 200, [(1, 20 * "long ")]), (200, 60, [(1, 20 * "long ")]), (60, 200, 10 * [(1, "cat")])],
)
def test_a_legend_that_fits_one_way_only_is_left_out(height, width, legend):
    image, mask = random_image(8, height, width), np.zeros((height, width), np.uint8)
    mask[20:40, 20:40] = 1
    assert np.array_equal(overlay(image, mask, legend), overlay(image, mask))


def test_overlay_of_another_size_is_a_named_error():
    with pytest.raises(InputError, match=r"wanted uint8 \[4, 5\]"):
        overlay(random_image(1, 4, 5), np.zeros((5, 4), np.uint8))


def test_saved_image_reads_back(tmp_path):
    image = random_image(8, 20, 30)
    save_image(image, tmp_path / "a.png")
    save_image(image, tmp_path / "a.jpg")
    assert np.array_equal(load_image(tmp_path / "a.png"), image)
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - image).mean() < 12
    with pytest.raises(InputError, match="jpg"):
        save_image(image, tmp_path / "a.xyz")
    for strip in (np.zeros((65_501, 1, 3), np.uint8), np.zeros((1, 65_535, 3), np.uint8)):
        with pytest.raises(InputError, match="at most 65500 pixels a side in a JPEG"):
            save_image(strip, tmp_path / "strip.jpg")
        save_image(strip, tmp_path / "strip.png")
    save_image(np.zeros((65_500, 1, 3), np.uint8), tmp_path / "strip.jpg")


def test_a_saved_jpeg_keeps_colours_and_fine_detail(tmp_path):
    """Quality 93 at full colour resolution: single red pixels on blue stay red."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 200
    image[::4, ::4] = (200, 0, 0)
    save_image(image, tmp_path / "a.jpg")
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - image).mean() < 6


@pytest.mark.parametrize(("mode", "hint"), [("RGB", "; `ddn-fast import` reads masks in colours"), ("LA", "")])
def test_a_mask_that_holds_no_labels_is_named_by_its_mode(tmp_path, mode, hint):
    Image.new(mode, (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=f"a.png: wanted a palette or 8-bit grey PNG, got mode {mode}{hint}$"):
        load_mask(tmp_path / "a.png", 3)


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    paths = [write_image(tmp_path / f"{k}.png", k, *size) for k, size in enumerate([(20, 20), (20, 20), (5, 5)])]
    place, load = Place(), images._to_rgb

    def slow(picture, path):
        place.stay()
        return load(picture, path)

    monkeypatch.setattr(images, "_to_rgb", slow)
    for chosen, wanted in ((paths[:2], 1), (paths[2:] * 2, 2)):
        assert place.most_of([partial(load_image, path) for path in chosen]) == wanted


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_fork_while_a_thread_decodes_a_large_image_leaves_the_child_free_to_decode():
    held, released = threading.Event(), threading.Event()

    def hold():
        with images.one_large(images.LARGE_PIXELS + 1):
            held.set()
            released.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    child = os.fork()
    if not child:
        os._exit(0 if images._LARGE.acquire(timeout=5) else 1)
    released.set()
    thread.join(20)
    assert os.waitpid(child, 0)[1] == 0


def test_a_decoder_that_raises_anything_becomes_an_image_error(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png", 1, 4, 4)

    def crash(*_args: object, **_options: object) -> None:
        raise RuntimeError("unpack")

    monkeypatch.setitem(Image.OPEN, "PNG", (crash, None))
    with pytest.raises(ImageError, match="unpack"):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged TIFF tags
def test_flipped_bytes_load_or_raise_an_image_error(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpeg", "gif", "tiff", "bmp", "webp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(random_image(9, 30, 30)).save(buffer, suffix)
        for _ in range(12):
            data = bytearray(buffer.getvalue())
            for position in rng.integers(0, min(len(data), 400), 4):
                data[position] = rng.integers(0, 256)
            (tmp_path / "a").write_bytes(data)
            with contextlib.suppress(ImageError):
                assert load_image(tmp_path / "a", max_pixels=10**6).dtype == np.uint8


def test_the_two_picture_jpeg_of_phones_loads(tmp_path):
    first, second = (Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (60, 200))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - 60).max() <= 2
