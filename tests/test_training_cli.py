"""From nothing to masks by commands alone, and the pictures of the curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_training import tiny_recipe

from ddn_fast.cli import main
from ddn_fast.data.synthetic import CLASSES
from ddn_fast.training.curves import draw_curves
from ddn_fast.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write_recipe(recipe: Recipe, path: Path) -> Path:
    """The recipe as TOML; its text form of numbers, strings and lists is JSON's."""
    values = recipe.to_dict()
    network = values.pop("network")
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    lines += ["[network]", *(f"{name} = {json.dumps(value)}" for name, value in network.items())]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.filterwarnings("ignore:class .*wanted 1 masked images")
def test_commands_lead_from_nothing_to_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc, one, two = tmp_path / "voc", tmp_path / "one", tmp_path / "two"
    sizes = ("--train", 6, "--closeups", 4, "--val", 2, "--workers", 1)
    assert run("generate", voc, *sizes, "--quiet") == 0

    # stage 1
    recipe = write_recipe(tiny_recipe("classifier", batch_norm=True), tmp_path / "1.toml")
    train = ("--data", voc, "--device", "cpu", "--workers", 0, "--quiet")
    assert run("train", "classifier", *train, "--split", "Main/train", "--recipe", recipe, "--out", one) == 0
    files = {"weights", "log.jsonl", "checkpoint.safetensors"}
    assert files <= {path.name for path in one.iterdir()}

    # a run is never written over; a finished one resumes to itself
    before = (one / "checkpoint.safetensors").read_bytes()
    again = ("train", "classifier", *train, "--split", "Main/train", "--out", one)
    assert run(*again, "--recipe", recipe) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run(*again, "--recipe", recipe, "--resume") == 0
    other = write_recipe(tiny_recipe("classifier", batch_norm=True, lr=0.5), tmp_path / "other.toml")
    assert run(*again, "--recipe", other, "--resume") == 2
    assert "recipe.lr is 0.01 there and 0.5 here" in capsys.readouterr().err
    assert (one / "checkpoint.safetensors").read_bytes() == before

    # stage 2
    wrong = ("train", "segmenter", *train, "--init", one / "weights", "--out", two)
    assert run(*wrong, "--recipe", recipe) == 2
    assert "stage: wanted 'segmenter', got 'classifier'" in capsys.readouterr().err
    assert run(*wrong, "--recipe", "6-per-class") == 2
    assert "5-per-class" in capsys.readouterr().err
    assert not two.exists()
    recipe = write_recipe(tiny_recipe("segmenter", masks_per_class=1, validate_every=3), tmp_path / "2.toml")
    assert run(*wrong, "--recipe", recipe, "--cache-gb", -1) == 2
    assert "cache: wanted 0 gigabytes or more, got -1.0" in capsys.readouterr().err
    assert run(*wrong, "--recipe", recipe, "--cache-gb", 0.5, "--recompute") == 0
    assert files | {"items.txt", "masks.txt"} <= {path.name for path in two.iterdir()}
    logged = [json.loads(line) for line in (two / "log.jsonl").read_text().splitlines()]
    assert any("mean_iu" in entry for entry in logged)

    # use
    weights = ("--weights", two / "weights", "--device", "cpu", "--quiet")
    assert run("evaluate", "--data", voc, *weights, "--json", tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    trained = json.loads((two / "weights/config.json").read_text())["metadata"]["validation"]
    assert result["mean_iu"] == trained["mean_iu"]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8")
    assert run("predict", voc / "JPEGImages/val_000000.jpg", broken, *weights, "--out", tmp_path / "out") == 1
    with (
        Image.open(voc / "JPEGImages/val_000000.jpg") as image,
        Image.open(tmp_path / "out/masks/val_000000.png") as mask,
    ):
        assert image.size == mask.size
        assert mask.mode == "P"
    masks = voc / "JPEGImages/val_000001.jpg"
    assert run("predict", masks, *weights, "--out", tmp_path / "named", "--labels", CLASSES[3]) == 0


def test_curves_are_drawn_for_every_kind_of_log(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    steps = [{"iteration": i, "loss": 1 / i, "lr": 0.1, "images_per_second": 3.0} for i in (1, 2, 3)]
    logs = {
        "steps": steps,
        "void": [{"iteration": 1, "loss": None, "lr": 0.1, "images_per_second": 3.0}],
        "validated": [*steps, {"iteration": 2, "mean_iu": 0.5}],
        "empty": [],
    }
    for name, log in logs.items():
        assert draw_curves(log, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size[0] > 400
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}


def test_curves_leave_the_choice_of_backend_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    loaded = "matplotlib.pyplot" in sys.modules
    draw_curves([], tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_training_goes_on_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not draw_curves([], tmp_path / "a.png")
    assert "matplotlib is not installed" in caplog.text
    assert not list(tmp_path.iterdir())
