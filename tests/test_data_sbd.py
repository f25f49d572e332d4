"""SBD's masks: the MAT-file reader, and the split they make with VOC's own."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from mat_writer import element, fields, head, mat_file, numbers, sbd_file, write_sbd
from voc_writer import mask_of, write_voc

from ddn_fast.cli import main
from ddn_fast.data import VocFolder, matfile
from ddn_fast.data.matfile import read_struct_field
from ddn_fast.data.sbd import Added, add_sbd, read_mask
from ddn_fast.errors import DataError

MASK = np.random.default_rng(0).integers(0, 21, (7, 5)).astype(np.uint8)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_mask_of_a_file_like_sbds_is_read(tmp_path: Path) -> None:
    mask = read_mask(write(tmp_path / "a.mat", sbd_file(MASK)))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, MASK)
    present = read_struct_field(tmp_path / "a.mat", "GTcls", "CategoriesPresent")
    assert present.ravel().tolist() == [n for n in range(1, 21) if n in MASK]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
def test_numbers_of_every_form_are_read(order: str, compressed: bool, tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(2, 3, 2)
    struct_ = fields("s", {"a": numbers(values, order=order), "b": numbers(values, order=order, stored="int16")}, order)
    other = numbers(values[0], "other", order)
    path = write(tmp_path / "a.mat", mat_file(other, struct_, order=order, compressed=compressed))
    for field in "ab":
        got = read_struct_field(path, "s", field)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, values)


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that cannot be used, and what the error says."""
    struct_ = fields("GTcls", {"Segmentation": numbers(MASK)})
    whole = mat_file(struct_, compressed=False)
    huge = struct.pack("<II", 14, 2**32 - 8)
    lies = element(14, struct_[8:64])
    nothing = element(14, head(9, (0, *[2**31 - 1] * 20), "", "<") + element(2, b""))
    bomb = zlib.compress(b"\0" * (matfile.MAX_BYTES + 1))
    return {
        "no bytes": (b"", "version 5"),
        "hdf5": (b"MATLAB 7.3 MAT-file".ljust(126) + b"IM", "version 5"),
        "text": (b"x" * 300, "version 5"),
        "no variable": (mat_file(numbers(MASK, "x")), "'GTcls', found none"),
        "no struct": (mat_file(numbers(MASK, "GTcls")), "1x1 struct, got class 9"),
        "several": (mat_file(fields("GTcls", {"Segmentation": numbers(MASK)}, shape=(1, 2))), "1x1 struct"),
        "no field": (mat_file(fields("GTcls", {"a": numbers(MASK)})), "'Segmentation', found a"),
        "complex": (mat_file(fields("GTcls", {"Segmentation": numbers(MASK, flags=0x800)})), "real numbers"),
        "of doubles": (mat_file(fields("GTcls", {"Segmentation": numbers(MASK.astype(float))})), "uint8, got float64"),
        "empty": (mat_file(fields("GTcls", {"Segmentation": numbers(MASK[:0])})), "HxW uint8|empty"),
        "empty and huge": (mat_file(fields("GTcls", {"Segmentation": nothing})), "HxW uint8|empty"),
        "unknown label": (sbd_file(MASK + np.uint8(1)), "labels 0 to 20, got 21"),
        "cut short": (whole[:-40], "bytes where"),
        "a length beyond the end": (whole[:128] + huge, "bytes where"),
        "an array cut inside": (whole[:128] + lies, "damaged"),
        "bad zlib": (whole[:128] + struct.pack("<II", 15, 8) + b"\0" * 8, "damaged"),
        "a bomb": (whole[:128] + struct.pack("<II", 15, len(bomb)) + bomb, "unpacks to more than"),
        "many elements": (whole[:128] + element(1, b"") * (matfile.MAX_ELEMENTS + 1), "more than 4096 elements"),
    }


@pytest.mark.parametrize("name", broken())
def test_a_file_that_cannot_be_used_is_named_with_what_was_wanted(name: str, tmp_path: Path) -> None:
    data, message = broken()[name]
    with pytest.raises(DataError, match=rf"a\.mat: .*{message}"):
        read_mask(write(tmp_path / "a.mat", data))


def test_what_a_file_unpacks_to_is_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, wanted = numbers(np.zeros((1, 600)), "x"), fields("GTcls", {"Segmentation": numbers(MASK)})
    path = write(tmp_path / "a.mat", mat_file(other, other, wanted))
    monkeypatch.setattr(matfile, "MAX_BYTES", 2 * len(other) + len(wanted))
    np.testing.assert_array_equal(read_mask(path), MASK)
    for less in (1, len(wanted), len(wanted) + 1, len(other) + len(wanted)):
        monkeypatch.setattr(matfile, "MAX_BYTES", 2 * len(other) + len(wanted) - less)
        with pytest.raises(DataError, match=r"a\.mat: .*unpacks to more than"):
            read_mask(path)


def test_a_file_damaged_anywhere_gives_a_mask_or_a_named_error(tmp_path: Path) -> None:
    whole, rng = mat_file(fields("GTcls", {"Segmentation": numbers(MASK)}), compressed=False), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(126, len(data))] = rng.randrange(256)
        with contextlib.suppress(DataError):
            assert read_mask(write(tmp_path / "a.mat", bytes(data))).ndim == 2


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """VOC: a in train, v in val, both with masks; b, c with none. SBD: a, b to train on, c, v to test on."""
    voc = write_voc(tmp_path / "voc", {"a": [1], "v": [2], "b": None, "c": None}, {"train": ["a"], "val": ["v"]}, None)
    masks = {name: mask_of([label]) % 255 for name, label in (("a", 3), ("b", 4), ("c", 5), ("v", 6))}
    return voc, write_sbd(tmp_path / "sbd", masks, ["a", "b"], ["c", "v"])


def test_split_is_vocs_train_and_all_of_sbd_without_vocs_val(roots: tuple[Path, Path]) -> None:
    assert add_sbd(*roots, progress=False) == Added(images=3, voc=1, sbd=2)
    folder = VocFolder(roots[0])
    assert folder.masked_ids("trainaug") == ("a", "b", "c")
    assert [folder.mask(name).max() for name in "abc"] == [255, 4, 5], "VOC's own mask comes first"
    assert folder.mask("v").max() == 255
    assert not (roots[0] / "SegmentationClassAug/v.png").exists()


def test_a_stopped_run_goes_on_and_its_split_comes_last(roots: tuple[Path, Path]) -> None:
    voc, sbd = roots
    whole = (sbd / "cls/c.mat").read_bytes()
    (sbd / "cls/c.mat").write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"c\.mat"):
        add_sbd(voc, sbd, progress=False)
    assert not (voc / "ImageSets/Segmentation/trainaug.txt").exists()
    done = (voc / "SegmentationClassAug/b.png").stat().st_mtime_ns
    (sbd / "cls/c.mat").write_bytes(whole)
    assert add_sbd(voc, sbd, progress=False).sbd == 2
    assert (voc / "SegmentationClassAug/b.png").stat().st_mtime_ns == done


def test_wrong_folders_are_named(roots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    voc, sbd = roots
    assert main(["add-sbd", str(voc), str(sbd / "cls"), "--quiet"]) == 2
    assert "wanted SBD's folder 'dataset'" in capsys.readouterr().err
    (sbd / "cls/b.mat").write_bytes(sbd_file(MASK))
    assert main(["add-sbd", str(voc), str(sbd), "--quiet"]) == 2
    assert "the mask is 5x7 pixels" in capsys.readouterr().err
    (voc / "JPEGImages/c.png").unlink()
    assert main(["add-sbd", str(voc), str(sbd), "--quiet"]) == 2
    assert "1 of SBD's images are missing, the first is 'c'" in capsys.readouterr().err
