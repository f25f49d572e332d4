"""The command line: what it writes, what it survives, and how it says no."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from at_once import Place
from PIL import Image
from test_evaluate import random_mask, voc_folder
from tiny_net import CLASSES, random_image, tiny_net, write_image

from ddn_fast import cli_predict, images, info
from ddn_fast.cli import main
from ddn_fast.cli_images import find_images
from ddn_fast.cli_predict import Names
from ddn_fast.errors import InputError
from ddn_fast.images import load_image, load_mask
from ddn_fast.weights import load

GOLDEN = Path(__file__).parent / "golden"
LISTS = ["run.json", "scores.jsonl"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    write_image(root / "a.png", 1, 30, 40)
    write_image(root / "b.PNG", 2, 41, 20)
    write_image(root / "sub" / "a.png", 3, 64, 64)
    write_image(root / ".hidden.png", 4, 5, 5)
    (root / "notes.md").write_text("not an image")
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def predict(weights: Path, out: Path, *arguments: object) -> int:
    return run("predict", *arguments, "--weights", weights, "--out", out, "--device", "cpu", "--quiet")


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_predict_writes_masks_overlays_and_scores(weights, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(weights, out, photos) == 0
    expected = ["masks/a-2.png", "masks/a.png", "masks/b.png"]
    expected += ["overlays/a-2.jpg", "overlays/a.jpg", "overlays/b.jpg", *LISTS]
    assert files(out) == expected
    net = load(weights)
    for record in records(out):
        (result,) = net.segment(record["image"])
        assert (load_mask(out / record["mask"], 6) == result.mask).mean() > 0.999  # rounding depends on the batch
        assert load_image(out / record["overlay"]).shape == (*result.mask.shape, 3)
        assert (record["height"], record["width"]) == result.mask.shape
        scores = {label["name"]: label["score"] for label in record["labels"]}
        assert scores == pytest.approx(dict(result.labels), abs=1e-4)
        assert list(record["scores"]) == list(CLASSES)
    assert "3 images segmented, 0 failed" in capsys.readouterr().out


def test_named_labels_and_threshold_reach_the_network(weights, photos, tmp_path):
    assert predict(weights, tmp_path / "named", photos / "a.png", "--labels", "dog, fox", "--no-overlay") == 0
    (record,) = records(tmp_path / "named")
    assert [label["name"] for label in record["labels"]] == ["dog", "fox"]
    assert files(tmp_path / "named") == ["masks/a.png", *LISTS]
    assert predict(weights, tmp_path / "none", photos / "a.png", "--threshold", "1") == 0
    assert not load_mask(tmp_path / "none" / "masks/a.png", 6).any()


def test_engine_and_plain_network_write_the_same_masks(weights, photos, tmp_path, capsys):
    lines, masks = {}, {}
    for options in (["--no-fast"], [], ["--fast"], ["--dtype", "bfloat16"]):
        out = tmp_path / "-".join(["out", *options])
        assert predict(weights, out, photos, "--no-overlay", *options) == 0
        lines[out.name] = capsys.readouterr().out.splitlines()[0]
        masks[out.name] = np.concatenate([load_mask(out / record["mask"], 6).ravel() for record in records(out)])
    isa = info.cpu_isa()
    assert list(lines.values()) == ["plain network: float32 on cpu"] + [f"engine: float32 on {isa}"] * 2 + [
        f"engine: bfloat16 on {isa}"
    ]
    plain, default, fast, narrow = masks.values()
    assert (plain == default).mean() > 0.995
    assert np.array_equal(default, fast)
    assert (plain == narrow).mean() > 0.5


def test_without_the_extension_the_plain_network_is_the_default_and_fast_says_why(
    weights, photos, tmp_path, capsys, monkeypatch
):
    for name in ("_C", "ops"):
        monkeypatch.setitem(sys.modules, f"ddn_fast.{name}", None)
    assert predict(weights, tmp_path / "out", photos, "--no-overlay") == 0
    assert "plain network: float32 on cpu" in capsys.readouterr().out
    assert predict(weights, tmp_path / "none", photos, "--fast") == 2
    assert capsys.readouterr().err.startswith("ddn-fast: error: --fast: ")
    assert not (tmp_path / "none").exists()


def test_bad_images_are_recorded_and_the_rest_goes_on(weights, photos, tmp_path, capsys):
    (photos / "aa.png").write_bytes((photos / "a.png").read_bytes()[:700])
    out = tmp_path / "out"
    assert predict(weights, out, photos, photos / "none.jpg", photos / "notes.md") == 1
    bad = {Path(record["image"]).name: record["error"] for record in records(out) if "error" in record}
    assert set(bad) == {"aa.png", "none.jpg", "notes.md"}
    assert all(error["type"] == "ImageError" for error in bad.values())
    printed = capsys.readouterr()
    assert "3 images segmented, 3 failed" in printed.out
    assert "none.jpg: no such file" in printed.err
    assert not [name for name in files(out) if "aa" in name or "none" in name]


def test_resume_runs_only_what_is_missing_and_keeps_names(weights, photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    (photos / "c.png").write_text("broken")
    assert predict(weights, out, photos) == 1
    before = {record["image"]: record["name"] for record in records(out)}
    (out / "masks/b.png").unlink()  # must run again
    write_image(photos / "c.png", 5, 20, 20)  # was bad, is good now
    write_image(photos / "0.png", 6, 20, 20)  # is new, and first in order
    with (out / "scores.jsonl").open("a") as file:
        file.write('{"image": "cut short by a power fai')
    ran: list[str] = []
    write = cli_predict._write
    monkeypatch.setattr(cli_predict, "_write", lambda *args: ran.append(args[1].name) or write(*args))
    assert predict(weights, out, photos, "--resume") == 0
    assert sorted(ran) == ["0.png", "b.PNG", "c.png"]
    assert "3 images segmented, 0 failed, 2 already there" in capsys.readouterr().out
    after = {record["image"]: record["name"] for record in records(out)}
    assert len(after) == len(records(out)) == 5
    assert all(after[image] == name for image, name in before.items())


def test_resume_ends_a_last_line_that_lacks_its_end(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert predict(weights, out, photos) == 0
    written = (out / "scores.jsonl").read_bytes()
    first, *_, last = records(out)
    (out / "scores.jsonl").write_bytes(written.removesuffix(b"\n"))
    (out / first["mask"]).unlink()
    assert predict(weights, out, photos, "--resume") == 0
    assert last in records(out)
    assert sorted(record["image"] for record in records(out)) == sorted(map(str, find_images([photos])))


def test_interrupted_run_leaves_whole_files_and_can_resume(weights, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first, second, _ = find_images([photos])
    write = cli_predict._write

    def interrupt(result, path, *args):
        if path == second:
            raise KeyboardInterrupt
        return write(result, path, *args)

    monkeypatch.setattr(cli_predict, "_write", interrupt)
    assert predict(weights, out, photos) == 130
    (record,) = records(out)  # the third may have been drawn beside the second, but nothing says so
    assert record["image"] == str(first)
    assert {record["mask"], record["overlay"], "scores.jsonl"} <= set(files(out))
    assert not list(out.rglob(".*"))
    monkeypatch.setattr(cli_predict, "_write", write)
    assert predict(weights, out, photos, "--resume") == 0
    assert [record["image"] for record in records(out)] == [str(path) for path in find_images([photos], exclude=out)]
    assert files(out) == sorted(
        [name for record in records(out) for name in (record["mask"], record["overlay"])] + LISTS
    )


def test_what_was_segmented_before_an_interruption_is_recorded(photos, tmp_path, monkeypatch):
    net = tiny_net()
    encode, batches = net.score_images, []

    def interrupt(x):
        batches.append(len(x))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return encode(x)

    monkeypatch.setattr(net, "score_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cli_predict.predict(net, [photos], tmp_path / "out", batch_size=1, progress=False)
    found = records(tmp_path / "out")
    assert [record["image"] for record in found] == [str(path) for path in find_images([photos])[:2]]
    assert len(files(tmp_path / "out")) == len(LISTS) + 2 * len(found)


def test_pictures_are_written_while_the_network_runs(photos, tmp_path, monkeypatch):
    """The second batch is begun before the first image's pictures are there; records come in order all the same."""
    for k in range(4):
        write_image(photos / f"z{k}.png", k, 20, 20)
    net = tiny_net()
    second_batch = threading.Event()
    encode, batches = net.score_images, []

    def note(x):
        batches.append(len(x))
        if len(batches) == 2:
            second_batch.set()
        return encode(x)

    write, order = cli_predict._write, []

    def wait(result, path, *args):
        if not order:
            order.append(path)
            assert second_batch.wait(20)
        return write(result, path, *args)

    monkeypatch.setattr(net, "score_images", note)
    monkeypatch.setattr(cli_predict, "_write", wait)
    summary = cli_predict.predict(net, [photos], tmp_path / "out", batch_size=2, progress=False)
    assert (summary.done, batches) == (7, [2, 2, 2, 1])
    assert [record["image"] for record in records(tmp_path / "out")] == [str(path) for path in find_images([photos])]


def test_large_pictures_are_drawn_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    place = Place()
    for side, wanted in ((20, 1), (5, 2)):
        mask = np.zeros((side, side), np.uint8)
        picture = {"mask": mask, "error": None, "labels": [], "classes": (), "scores": ()}
        result = SimpleNamespace(**picture, save_png=lambda _path: place.stay())
        calls = [partial(cli_predict._write, result, tmp_path / name, name, tmp_path, overlays=False) for name in "ab"]
        assert place.most_of(calls) == wanted


def test_a_second_run_does_not_read_its_own_output(weights, photos):
    assert predict(weights, photos / "out", photos) == 0
    assert predict(weights, photos / "out", photos, "--overwrite") == 0
    assert len(records(photos / "out")) == 3


def test_names_never_meet_even_without_case():
    names = Names(["a"])
    assert [names.take(stem) for stem in ("A", "a", "b", "a-2", "B")] == ["A-2", "a-3", "b", "a-2-2", "B-2"]


def test_names_are_cut_to_what_a_file_may_be_called(tmp_path):
    names = Names()
    stems = ["x" * 251, "x" * 251, "x" * 255, "é" * 125, "É" * 125, "画" * 90 + "\udcff"]
    taken = [names.take(stem) for stem in stems]
    assert taken[:3] == ["x" * 251, "x" * 249 + "-2", "x" * 249 + "-3"]
    assert taken[3:] == ["é" * 125, "É" * 124 + "-2", "画" * 83]
    for name in taken:
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert len({name.casefold() for name in taken}) == len(list(tmp_path.iterdir())) == 6


def test_long_names_that_meet_do_not_end_the_run(weights, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / ("x" * 251 + ".png"), 1, 20, 20)
    assert predict(weights, tmp_path / "out", tmp_path / "a", tmp_path / "b") == 0
    assert len(list((tmp_path / "out/masks").iterdir())) == 2


def test_an_image_that_cannot_be_written_is_recorded_and_a_full_disk_ends_the_run(
    weights, photos, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    (out / "masks/a.png").mkdir(parents=True)
    assert predict(weights, out, photos) == 1
    (bad,) = (record for record in records(out) if "error" in record)
    assert (bad["name"], bad["error"]["type"]) == ("a", "IsADirectoryError")
    assert not (out / "overlays/a.jpg").exists()
    assert "2 images segmented, 1 failed" in capsys.readouterr().out

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli_predict, "save_image", full)
    assert predict(weights, tmp_path / "full", photos) == 2
    assert records(tmp_path / "full") == []

    def refused(*_args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cli_predict, "save_image", refused)  # as each other one would be
    assert predict(weights, tmp_path / "refused", photos) == 2
    assert records(tmp_path / "refused") == []


def test_names_that_no_file_can_have_are_bad_images(weights, photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([str(photos / ("x" * 300 + ".png")), str(photos / "a.png")]))
    assert predict(weights, tmp_path / "out", listed) == 1
    bad, good = records(tmp_path / "out")
    assert (bad["error"]["type"], good["name"]) == ("ImageError", "a")
    assert "File name too long" in bad["error"]["message"]


def test_a_record_that_does_not_fit_ends_the_run(weights, photos, tmp_path):
    """Where the system takes less than a whole line, and says so only when asked again."""
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024));"
    program += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    program += "from ddn_fast.cli import main; sys.exit(main())"
    for k in range(4):
        write_image(photos / f"sub/{k}.png", k, 8, 8)
    options = ["--weights", weights, "--out", tmp_path / "out", "--no-overlay", "--device", "cpu", "--quiet"]
    command = [sys.executable, "-c", program, "predict", photos / "sub", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "File too large" in done.stderr


def test_what_a_killed_run_left_half_written_goes_with_the_next(weights, photos, tmp_path):
    out = tmp_path / "out"
    for folder in ("masks", "overlays", "."):
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / folder / ".0123456789abcdef.tmp").write_bytes(b"half")
    assert predict(weights, out, photos) == 0
    assert not list(out.rglob("*.tmp"))


def test_an_image_that_fails_leaves_no_pictures_of_an_earlier_run(weights, photos, tmp_path):
    out = tmp_path / "out"
    assert predict(weights, out, photos) == 0
    (photos / "b.PNG").write_text("broken")
    assert predict(weights, out, photos, "--overwrite") == 1
    assert files(out) == ["masks/a-2.png", "masks/a.png", "overlays/a-2.jpg", "overlays/a.jpg", *LISTS]


def test_resume_does_not_hold_the_records(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"")
    scores = {f"class {k}": k / 7 for k in range(200)}
    with (tmp_path / "scores.jsonl").open("w") as file:
        for k in range(1000):
            record = {"image": f"/{k}.png", "name": str(k), "mask": "mask.png" if k else "none.png", "scores": scores}
            file.write(json.dumps(record) + "\n")
    names = Names()
    tracemalloc.start()
    try:
        done = cli_predict._keep_done(tmp_path, names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done == {f"/{k}.png" for k in range(1, 1000)}
    assert [record["name"] for record in records(tmp_path)] == [str(k) for k in range(1, 1000)]
    assert (names.take("0"), names.take("999")) == ("0", "999-2")
    assert peak < 10**6 < (tmp_path / "scores.jsonl").stat().st_size / 4


def test_wrong_arguments_change_nothing_on_resume(weights, photos, tmp_path):
    out = tmp_path / "out"
    (photos / "c.png").write_text("broken")
    assert predict(weights, out, photos) == 1
    before = (out / "scores.jsonl").read_bytes()
    assert predict(weights, out, photos, "--resume", "--labels", "dgo") == 2
    assert (out / "scores.jsonl").read_bytes() == before


def test_a_file_named_twice_runs_once(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert find_images(["a.png", photos / "a.png", "./a.png"]) == [Path("a.png")]
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match="found none"):
        find_images([photos / "empty"])


def test_a_dataset_folder_stands_for_its_images(tmp_path):
    root = voc_folder(tmp_path / "voc", [random_mask(seed, 20, 30) for seed in range(2)])
    assert find_images([root]) == [root / "JPEGImages/0.png", root / "JPEGImages/1.png"]


def test_image_names_outside_ascii_work(weights, tmp_path):
    path = write_image(tmp_path / "ö 画像.png", 1, 20, 20)
    assert predict(weights, tmp_path / "out", path) == 0
    assert records(tmp_path / "out")[0]["image"] == str(path)
    assert (tmp_path / "out/masks/ö 画像.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "dgo"], "'dgo'; did you mean dog"),
        (["--labels", ","], "at least one class name"),
        (["--threshold", "2"], "threshold: wanted a number from 0 to 1"),
        (["--batch-size", "0"], "batch_size: wanted"),
        (["--device", "cuda:99"], "--device: wanted one of"),
        (["--device", "gpu"], "--device: wanted one of"),
        (["--weights", "/nowhere"], "/nowhere"),
        (["--dtype", "bfloat16", "--no-fast"], "--dtype: wanted only with the engine"),
        (["--dtype", "float16", "--device", "cpu"], "dtype: wanted torch.bfloat16 or torch.float32 on cpu"),
    ],
)
def test_errors_are_one_line_exit_2_and_nothing_written(weights, photos, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert run("predict", photos, "--weights", weights, "--out", out, "--quiet", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("ddn-fast: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not out.exists()


def test_debug_shows_the_traceback(weights, photos, tmp_path, capsys):
    assert run("--debug", "predict", photos, "--weights", weights, "--out", tmp_path / "o", "--threshold", "9") == 2
    assert "Traceback" in capsys.readouterr().err


def test_output_folder_that_is_a_file_is_an_error(weights, photos, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert predict(weights, tmp_path / "out", photos) == 2
    assert "ddn-fast: error: " in capsys.readouterr().err


def test_evaluate_prints_a_table_and_writes_json(weights, tmp_path, capsys):
    root = voc_folder(tmp_path / "voc", [random_mask(seed, 20, 30) for seed in range(3)])
    arguments = ["--data", root, "--weights", weights, "--quiet", "--device", "cpu"]
    assert run("evaluate", *arguments, "--json", tmp_path / "figures.json") == 0
    assert "mean" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 3
    assert run("evaluate", *arguments, "--labels", "truth", "--no-fast") == 0
    printed = capsys.readouterr().out
    assert "truth labels" in printed
    assert "plain network" in printed
    assert run("evaluate", *arguments, "--split", "test") == 2
    assert "test" in capsys.readouterr().err
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in reversed(CLASSES)))
    assert run("evaluate", *arguments) == 2
    assert "wanted the network's classes ['ant', " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/figures.json", "No such file or directory"), (".", "Is a directory"), ("file/a", "Not a directory")],
)
def test_evaluate_looks_whether_it_can_write_before_it_runs(tmp_path, capsys, monkeypatch, name, message):
    monkeypatch.setattr("ddn_fast.cli._load", lambda _: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    assert run("evaluate", "--data", tmp_path, "--weights", tmp_path, "--json", tmp_path / name) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert str(tmp_path / name) in printed.err
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_figures_of_an_earlier_run_stay_until_there_are_new_ones(weights, tmp_path):
    (tmp_path / "figures.json").write_text("old")
    assert run("evaluate", "--data", tmp_path, "--weights", weights, "--json", tmp_path / "figures.json") == 2
    assert (tmp_path / "figures.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_evaluate_refuses_a_mask_of_another_size(weights, tmp_path, capsys):
    root = voc_folder(tmp_path / "voc", [random_mask(seed, 20, 30) for seed in range(2)])
    write_image(root / "JPEGImages/1.png", 1, 30, 20)
    assert run("evaluate", "--data", root, "--weights", weights, "--quiet") == 2
    assert "wanted a mask of its size" in capsys.readouterr().err


def test_convert_turns_a_caffemodel_into_a_folder_that_predicts(tmp_path, capsys):
    assert run("convert", GOLDEN / "tiny_a.caffemodel", tmp_path / "net") == 0
    assert "20 classes" in capsys.readouterr().out
    Image.fromarray(random_image(0, 50, 60)).save(tmp_path / "a.png")
    assert predict(tmp_path / "net", tmp_path / "out", tmp_path / "a.png") == 0
    assert len(records(tmp_path / "out")[0]["scores"]) == 20
    assert run("convert", tmp_path / "none.caffemodel", tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_convert_takes_class_names_or_a_file_of_them(tmp_path, capsys, monkeypatch):
    given = []

    def convert(*_, classes, **__):
        given.append(classes)
        raise InputError("enough")

    monkeypatch.setattr("ddn_fast.weights.convert", convert)
    names = tuple(f"kind, number {n}" for n in range(171))
    (tmp_path / "classes.txt").write_text("\n".join(names))
    many = ",".join(f"kind {n}" for n in range(171))
    for classes in (("--classes", tmp_path / "classes.txt"), ("--classes", "dog, cat"), ("--classes", many), ()):
        assert run("convert", "a.pth", tmp_path / "net", *classes) == 2
    assert given == [names, ["dog", "cat"], many.split(","), None]
    (tmp_path / "classes.txt").write_text("dog\ndog\n")
    for name, message in (("classes.txt", "'dog' occurs twice"), ("clases.txt", "clases.txt: cannot read")):
        assert run("convert", "a.pth", tmp_path / "net", "--classes", tmp_path / name) == 2
        assert message in capsys.readouterr().err


def test_generate_writes_a_folder_that_evaluates(tmp_path, capsys):
    sizes = ("--train", 2, "--closeups", 1, "--val", 1)
    assert run("generate", tmp_path / "voc", *sizes, "--workers", 1, "--quiet") == 0
    assert len(list((tmp_path / "voc/JPEGImages").iterdir())) == 4
    assert (tmp_path / "voc/ImageSets/Segmentation/val.txt").is_file()
    assert run("generate", tmp_path / "voc", "--train", 2, "--quiet") == 2
    assert "holds something already" in capsys.readouterr().err


def test_info_prints_text_and_json(capsys):
    assert run("info") == 0
    assert "torch" in capsys.readouterr().out
    assert run("info", "--json") == 0
    assert "versions" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "command",
    [[], ["predict"], ["evaluate"], ["train", "classifier"], ["train", "segmenter"], ["convert"], ["generate"]],
)
def test_help_of_every_command_is_there(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    assert "usage: ddn-fast" in capsys.readouterr().out


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([])
    assert exit_info.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
