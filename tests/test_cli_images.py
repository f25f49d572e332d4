"""What ``ddn-fast predict`` segments, and into which tags: lists, splits, parts, CSV files; and what a run resumes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from test_cli import predict, records
from tiny_net import CLASSES, tiny_net, write_image
from voc_writer import write_voc

from ddn_fast import cli_predict
from ddn_fast.cli_images import Part, find_images, tags_of_images
from ddn_fast.errors import DataError, InputError
from ddn_fast.images import load_mask
from ddn_fast.weights import fingerprint, save


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "c.png", "sub/a.png")):
        write_image(root / name, seed, 20 + seed, 24)
    return root


def found_labels(out: Path) -> dict[str, list[str]]:
    return {
        "/".join(Path(record["image"]).parts[-2:]): [label["name"] for label in record["labels"]]
        for record in records(out)
    }


def test_each_image_gets_the_tags_that_the_csv_has_for_it(weights, photos, tmp_path, capsys):
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\nb,dog;ant\nphotos/sub/a.png,fox\nc.png,\nelsewhere.jpg,bee\n")
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert predict(weights, out, photos, "--tags", tags) == 0
    assert predict(weights, plain, photos) == 0
    identified = found_labels(plain)["photos/a.png"]
    assert identified not in ([], ["fox"])
    assert found_labels(out) == {
        "photos/a.png": identified, "photos/b.png": ["ant", "dog"], "photos/c.png": [], "sub/a.png": ["fox"],
    }  # fmt: skip
    assert "no line for 1 of 4 images, the first is" in capsys.readouterr().err
    masks = {record["image"]: load_mask(out / record["mask"], 6) for record in records(out)}
    assert not masks[str(photos / "c.png")].any()
    assert set(masks[str(photos / "sub/a.png")].flat) <= {0, 1 + CLASSES.index("fox")}


def test_resume_goes_on_with_the_tags_of_what_is_left(weights, photos, tmp_path):
    tags = tmp_path / "tags.csv"
    lines = [f"{path},{name}" for path, name in zip(find_images([photos]), CLASSES, strict=False)]
    tags.write_text("\n".join(["image,tags", *lines]))
    out = tmp_path / "out"
    assert predict(weights, out, photos, "--tags", tags) == 0
    expected = found_labels(out)
    assert sorted(expected.values()) == [[name] for name in CLASSES[:4]]
    (out / "masks/b.png").unlink()
    assert predict(weights, out, photos, "--tags", tags, "--resume") == 0
    assert found_labels(out) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("image,tags\na,ant\n", r"tags\.csv:2: 'a' may be .*photos/a\.png or .*sub/a\.png: wanted their paths"),
        ("image,tags\nzebra,ant\n", r"no line for 4 of 4 images, the first is .*a\.png"),
        ("image,tags\nb,lion\n", r"tags\.csv:2: unknown class 'lion'"),
        ("image,tags\nb,ant\nb,bee\n", r"tags\.csv:3: image 'b' occurs twice"),
        ("image,tags\nphotos/b.png,ant\n./photos/b.png,bee\n", r"tags\.csv:3: .* occurs twice"),
        ("image,tags\nb.png,ant\nb,bee\n", r"tags\.csv:3: .*b\.png has a line already, .*tags\.csv:2"),
        ("image,tags\nb.png,ant\nphotos/b.png,bee\n", r"tags\.csv:2: .*b\.png has a line already, .*tags\.csv:3"),
        ("image;tags\nb;ant\n", r"tags\.csv:1: wanted the header"),
        ("image,tags\n" + "b" * 70_000 + ",ant\n", r"tags\.csv:2: wanted lines of at most"),
        ("image,tags\nb,\xff\n", r"wanted UTF-8 text"),
    ],
)
def test_bad_tags_are_one_named_error_and_nothing_is_written(weights, photos, tmp_path, capsys, text, error):
    (tmp_path / "tags.csv").write_text(text, encoding="latin-1")
    assert predict(weights, tmp_path / "out", photos, "--tags", tmp_path / "tags.csv") == 2
    with pytest.raises(DataError, match=error):
        tags_of_images(str(tmp_path / "tags.csv"), find_images([photos]), [photos], None, CLASSES)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_split_of_a_dataset_is_segmented_into_its_own_tags(weights, tmp_path, capsys):
    root = write_voc(tmp_path / "voc", {"x": [1], "y": [2, 3], "z": [1]}, {"some": ["y", "x"]}, CLASSES)
    main = root / "ImageSets/Main"
    main.mkdir()
    for name, x, y in (("ant", 1, -1), ("bee", -1, 1), ("cow", 0, 1), ("dog", -1, -1), ("elk", -1, 0), ("fox", -1, -1)):
        (main / f"{name}_some.txt").write_text(f"x {x}\ny {y}\nz 1\n")
    assert predict(weights, tmp_path / "main", root, "--split", "some", "--tags", "main") == 0
    assert found_labels(tmp_path / "main") == {"JPEGImages/y.png": ["bee", "cow"], "JPEGImages/x.png": ["ant"]}
    capsys.readouterr()
    assert predict(weights, tmp_path / "masks", root, "--split", "some", "--tags", "masks") == 0
    assert capsys.readouterr().err == ""  # --quiet
    assert found_labels(tmp_path / "masks") == {"JPEGImages/y.png": ["bee", "cow"], "JPEGImages/x.png": ["ant"]}
    capsys.readouterr()
    for arguments, message in (
        ((root, "--tags", "main"), "tags main: wanted the split"),
        ((root / "JPEGImages", "--split", "some"), "split: wanted one folder with JPEGImages in it"),
        ((root, "--split", "none"), "splits here: some"),
        ((root, "--split", "some", "--tags", "guess"), "got 'guess'"),
    ):
        assert predict(weights, tmp_path / "bad", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("source", ["masks", "main"])
def test_tags_of_a_dataset_with_other_classes_go_by_name(weights, tmp_path, capsys, source):
    """Its masks' labels are places in its own classes.txt, not in the network's."""
    classes = ("gnu", *reversed(CLASSES))
    root = write_voc(tmp_path / "voc", {"x": [2], "y": [6, 7], "z": [1]}, {"two": ["x", "y"], "all": "xyz"}, classes)
    (root / "ImageSets/Main").mkdir()
    for split in ("two", "all"):
        for k, name in enumerate(classes, 1):
            lines = [
                f"{image} {1 if k in labels else -1}\n" for image, labels in (("x", [2]), ("y", [6, 7]), ("z", [1]))
            ]
            (root / f"ImageSets/Main/{name}_{split}.txt").write_text("".join(lines))
    assert predict(weights, tmp_path / "out", root, "--split", "two", "--tags", source) == 0
    assert found_labels(tmp_path / "out") == {
        "JPEGImages/x.png": [classes[1]], "JPEGImages/y.png": sorted(classes[5:7], key=CLASSES.index),
    }  # fmt: skip
    assert predict(weights, tmp_path / "bad", root, "--split", "all", "--tags", source) == 2
    assert "unknown class 'gnu'" in capsys.readouterr().err
    (root / "classes.txt").unlink()
    assert predict(weights, tmp_path / "bad", root, "--split", "all", "--tags", source) == 2
    assert "no classes.txt, so its classes are PASCAL VOC's" in capsys.readouterr().err


def test_parts_are_disjoint_complete_and_stay_when_images_are_added(tmp_path):
    for k in range(60):
        (tmp_path / f"{k}.jpg").touch()
    parts = [Part(k + 1, 3) for k in range(3)]
    before = [set(find_images([tmp_path], part=part)) for part in parts]
    assert sorted(path for found in before for path in found) == sorted(find_images([tmp_path]))
    assert all(8 < len(found) < 32 for found in before)
    (tmp_path / "00.jpg").touch()
    after = [set(find_images([tmp_path], part=part)) for part in parts]
    assert [len(new - old) for old, new in zip(before, after, strict=True)].count(1) == 1
    assert all(old <= new for old, new in zip(before, after, strict=True))


def test_parts_are_those_of_earlier_versions():
    """A run in parts may go on with another version."""
    for name, of_eight, of_three in (("a", 7, 1), ("b", 7, 2), ("ä", 3, 3)):
        path = f"/data/photos/{name}.jpg"
        assert [k for k in range(1, 9) if path in Part(k, 8)] == [of_eight]
        assert [k for k in range(1, 4) if path in Part(k, 3)] == [of_three]


def test_parts_together_write_what_one_run_writes_each_into_its_folder(weights, photos, tmp_path, capsys):
    assert predict(weights, tmp_path / "whole", photos, "--batch-size", 1) == 0
    out = tmp_path / "out"
    for index in (1, 2, 3, 4, 5):  # of four images: one part at least is empty
        assert predict(weights, out, photos, "--batch-size", 1, "--part", f"{index}/5") == 0
    assert "0 images segmented, 0 failed" in capsys.readouterr().out
    folders = [out / Part(index, 5).folder for index in (1, 2, 3, 4, 5)]
    assert sorted(out.iterdir()) == sorted(folders)
    masks = {record["image"]: folder / record["mask"] for folder in folders for record in records(folder)}
    for record in records(tmp_path / "whole"):
        mask = masks.pop(record["image"])
        assert mask.read_bytes() == (tmp_path / "whole" / record["mask"]).read_bytes()
    assert not masks
    assert predict(weights, out, photos, "--part", "1/5", "--resume", "--batch-size", 1) == 0


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_a_part_is_named_by_two_numbers(text):
    with pytest.raises(InputError, match=r"part: wanted which of how many, as in 2/8"):
        Part.parse(text)


def test_a_list_names_files_one_a_line(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"b.png\r\n\n" + os.fsencode(photos / "sub/a.png") + b"\nnone.jpg\n./b.png\n \xff.png")
    wanted = [Path("b.png"), photos / "sub/a.png", Path("none.jpg"), Path(" \udcff.png")]
    assert find_images([listed]) == wanted
    assert find_images([listed, photos / "c.png"]) == [*wanted, photos / "c.png"]
    listed.write_bytes(b"\xef\xbb\xbfb.png\r\n")  # as Windows writes it
    assert find_images([listed]) == [Path("b.png")]


def test_a_path_beside_the_csv_file_comes_before_one_of_the_working_directory(photos, tmp_path, monkeypatch):
    """Two lines may name one file by one reading and two files by the other."""
    monkeypatch.chdir(photos)
    (photos / "photos").mkdir()
    write_image(photos / "photos/b.png", 1, 20, 20)
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\nphotos/b.png,ant\nphotos/photos/b.png,bee\n")
    images = find_images([photos])
    with pytest.warns(UserWarning, match="no line for 3 of 5 images"):
        found = tags_of_images(str(tags), images, [photos], None, CLASSES)
    named = dict(zip(images, found, strict=True))
    assert (named[photos / "b.png"], named[photos / "photos/b.png"]) == (["ant"], ["bee"])


def test_results_of_a_run_are_no_images(weights, photos, capsys):
    """Wherever they lie: of an earlier run into another folder, of a part, of this one."""
    images = find_images([photos])
    assert predict(weights, photos / "one", photos) == 0
    assert predict(weights, photos / "two", photos, "--part", "1/2") == 0
    assert find_images([photos]) == images
    assert predict(weights, photos, photos) == 0
    assert predict(weights, photos, photos, "--resume") == 0
    assert "0 images segmented, 0 failed, 4 already there" in capsys.readouterr().out
    (photos / "one/run.json").unlink()
    assert len(find_images([photos])) == 4 + 8


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("lists", [("scores.jsonl", "run.json"), ("scores.jsonl",), ("run.json",), ()])
def test_results_are_known_by_both_lists_beside_them(tmp_path, lists):
    """What else lies beside the lists are images, and so is all in folders of those names with one of them or none."""
    images = ["a.jpg", "deep/masks/b.png", "masks.old/c.png", "other/overlays/d.jpg", "e/f/g.png"]
    pictures = ["masks/a.png", "masks/more/a.png", "overlays/a.jpg"]
    touch(tmp_path / "run", *images, *pictures, *lists, ".hidden/h.jpg", ".i.jpg", "masks/.j.png")
    wanted = [*images, *([] if len(lists) == 2 else pictures)]
    assert find_images([tmp_path]) == sorted(tmp_path / "run" / name for name in wanted)
    assert find_images([tmp_path / "run"]) == sorted(tmp_path / "run" / name for name in wanted)
    assert find_images([tmp_path / "run/masks"]) == [tmp_path / "run" / name for name in pictures[:2]]


@pytest.mark.parametrize("name", ["out", "./other/../out", "link", "{}/out"])
def test_the_folder_that_is_written_to_is_left_out_whatever_it_is_called(tmp_path, monkeypatch, name):
    """Without the lists of a run in it, as it is before the first one; other folders of its name are not."""
    touch(tmp_path, "a.jpg", "out/b.jpg", "out/masks/c.png", "other/out/d.jpg", "outer/e.jpg")
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    exclude = Path(name.format(tmp_path))
    wanted = [Path("a.jpg"), Path("other/out/d.jpg"), Path("outer/e.jpg")]
    assert find_images(["."], exclude) == wanted
    assert find_images([tmp_path], exclude) == [tmp_path / path for path in wanted]
    assert find_images(["out"], exclude) == [Path("out/b.jpg"), Path("out/masks/c.png")]  # as it was asked for


def test_a_folder_that_cannot_be_read_is_left_out_with_a_warning(photos, monkeypatch):
    scandir = os.scandir

    def refuses(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.warns(UserWarning, match=r"sub: Permission denied; what is in it is left out"):
        assert find_images([photos]) == [photos / name for name in ("a.png", "b.png", "c.png")]


def test_a_link_is_an_image_of_its_own(weights, tmp_path):
    root, out = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    write_image(root / "a.png", 1, 20, 24)
    (root / "b.png").symlink_to("a.png")
    assert predict(weights, out, root) == 0
    assert [record["image"] for record in records(out)] == [str(root / "a.png"), str(root / "b.png")]
    assert (out / "masks/a.png").read_bytes() == (out / "masks/b.png").read_bytes()


def test_images_below_a_folder_come_in_the_order_of_their_paths(tmp_path):
    for name in ("b/1.jpg", "b.jpg", "a/z/1.jpg", "a/1.jpg", "a-/1.jpg", "A.jpg", "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert len(found) == 7
    assert found == sorted(found)


@pytest.mark.parametrize("content", [b"a\0b.png\n", b"x" * 5000, b"ok.png\n" + b"x" * 10_000_000])
def test_a_list_that_is_none_is_a_named_error(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.txt:\d: wanted a path of an image"):
        find_images([tmp_path / "list.txt"])
    with pytest.raises(InputError, match=r"none\.txt: cannot read the list: No such file"):
        find_images([tmp_path / "none.txt"])


def test_a_run_is_resumed_with_its_own_settings_only(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(weights, out, photos, "--threshold", "0.4") == 0
    written = json.loads((out / "run.json").read_text())
    assert written == {
        "threshold": 0.4, "labels": None, "tags": None, "network": written["network"], "weights": fingerprint(weights),
    }  # fmt: skip
    other = tmp_path / "other"
    save(tiny_net(1), other)
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\nb,ant\n")
    assert fingerprint(other) != fingerprint(weights)
    (out / "masks/b.png").unlink()
    before = (out / "scores.jsonl").read_bytes()
    capsys.readouterr()
    for given, arguments, message in (
        (weights, (), "threshold 0.4, now 0.5"),
        (weights, ("--threshold", "0.4", "--labels", "ant"), "labels None, now ['ant']"),
        (weights, ("--threshold", "0.4", "--tags", tags), "tags None, now 'csv, sha256 "),
        (weights, ("--threshold", "0.4", "--no-fast"), "now 'plain, float32'"),
        (other, ("--threshold", "0.4"), "weights "),
    ):
        assert predict(given, out, photos, "--resume", *arguments) == 2
        assert message in capsys.readouterr().err
    assert (out / "scores.jsonl").read_bytes() == before
    assert predict(weights, out, photos, "--resume", "--threshold", "0.4", "--batch-size", "2") == 0
    (out / "run.json").write_text("[")
    assert predict(weights, out, photos, "--resume") == 2
    (out / "run.json").unlink()  # as runs before it was written left it
    assert predict(weights, out, photos, "--resume") == 0


def test_tags_and_labels_are_the_same_whatever_they_are_called(weights, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tags, out = tmp_path / "tags.csv", tmp_path / "out"
    tags.write_text("image,tags\n" + "".join(f"{path},ant\n" for path in find_images([photos])))
    assert predict(weights, out, photos, "--tags", tags) == 0
    assert predict(weights, out, photos, "--tags", "tags.csv", "--resume") == 0
    tags.write_text(tags.read_text().replace("ant", "bee"))
    assert predict(weights, out, photos, "--tags", tags, "--resume") == 2
    assert "tags 'csv, sha256 " in capsys.readouterr().err
    assert predict(weights, out, photos, "--labels", "ant,bee", "--overwrite") == 0
    assert predict(weights, out, photos, "--labels", "bee,ant,bee", "--resume") == 0


def test_a_folder_that_holds_a_run_is_not_begun_anew_unasked(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(weights, out, photos) == 0
    before = (out / "scores.jsonl").read_bytes()
    capsys.readouterr()
    assert predict(weights, out, photos) == 2
    assert "already holds a run; resume it, overwrite it or name another folder" in capsys.readouterr().err
    assert (out / "scores.jsonl").read_bytes() == before
    assert predict(weights, out, photos / "a.png", "--overwrite", "--threshold", "0.3") == 0
    assert len(records(out)) == 1
    assert json.loads((out / "run.json").read_text())["threshold"] == 0.3


def test_two_runs_do_not_write_into_one_folder(photos, tmp_path, monkeypatch):
    """The second begins while the first one is at its first image, and is refused; the first one is unharmed."""
    net, out, refused = tiny_net(), tmp_path / "out", []
    write = cli_predict._write

    def second(*arguments):
        if not refused:
            with pytest.raises(InputError, match="another run is writing there") as error:
                cli_predict.predict(net, [photos], out, overwrite=True, progress=False)
            refused.append(error)
        return write(*arguments)

    monkeypatch.setattr(cli_predict, "_write", second)
    assert cli_predict.predict(net, [photos], out, progress=False).done == 4
    assert len(records(out)) == 4
    assert refused
    assert cli_predict.predict(net, [photos], out, resume=True, progress=False).skipped == 4
