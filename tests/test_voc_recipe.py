"""docs/voc.md: its commands, as they stand there, lead from archives to figures; its arithmetic is right.

Run on archives of the same layout with a few small images. The recipes keep their names and are made short, VGG-16
narrow; nothing else differs.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mat_writer import write_sbd
from PIL import Image
from test_vgg import vgg16_state
from tiny_training import NETWORK

from ddn_fast import weights
from ddn_fast.cli import main
from ddn_fast.config import VOC_CLASSES, NetConfig
from ddn_fast.data import VocFolder
from ddn_fast.images import save_mask
from ddn_fast.release import blank
from ddn_fast.training import recipe as recipes

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:wanted .* masked images")]

DOCUMENT = (Path(__file__).parent.parent / "docs/voc.md").read_text(encoding="utf-8")
TORCHRUN = re.compile(r"torchrun --nproc-per-node \d+ -m ddn_fast\.train ")
SHORT = {
    "iterations": 2, "batch": 2, "accumulate": 1, "resize": 72, "windows_per_subset": 1, "bn_batches": 2, "bn_batch": 2,
    "checkpoint_every": 1, "validate_every": 1,
}  # fmt: skip
TRAIN, VAL = ["2007_000032", "2007_000039", "2008_000008"], ["2007_000033", "2008_000003"]
SBD_TRAIN, SBD_VAL = ["2008_000008", "2008_000015", "2008_000019"], ["2008_000003", "2009_000001"]


def commands() -> list[str]:
    """What the document has in its blocks, one command a line; several processes as the one they are started from."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [TORCHRUN.sub("ddn-fast train ", line) for line in lines if line and not line.startswith("#")]


def mask(rng: np.random.Generator, void: bool) -> np.ndarray:
    """Two objects of random classes."""
    result = np.zeros((48, 64), np.uint8)
    for left in (4, 36):
        result[8:40, left : left + 24] = 255 if void else 0
        result[10:38, left + 2 : left + 22] = rng.integers(1, len(VOC_CLASSES) + 1)
    return result


def write_archives(folder: Path) -> None:
    """The two archives and VGG-16's file, in `folder`."""
    rng = np.random.default_rng(0)
    voc, sbd = folder / "VOCdevkit/VOC2012", folder / "benchmark_RELEASE/dataset"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    everything = sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL})
    for name in everything:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(voc / f"JPEGImages/{name}.jpg")
    for name in (*TRAIN, *VAL):
        save_mask(mask(rng, void=True), voc / f"SegmentationClass/{name}.png")
    for split, ids in (("train", TRAIN), ("val", VAL), ("trainval", sorted(TRAIN + VAL))):
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    tagged = [name for name in everything if not name.startswith("2007")]  # as in VOC 2012
    (voc / "ImageSets/Main/trainval.txt").write_text("".join(f"{name}\n" for name in tagged))
    for label in VOC_CLASSES:
        lines = "".join(f"{name} {rng.choice([-1, 1]):2d}\n" for name in tagged)
        (voc / f"ImageSets/Main/{label}_trainval.txt").write_text(lines)
    write_sbd(sbd, {name: mask(rng, void=False) for name in (*SBD_TRAIN, *SBD_VAL)}, SBD_TRAIN, SBD_VAL)
    for archive, top in (("VOCtrainval_11-May-2012.tar", "VOCdevkit"), ("benchmark.tgz", "benchmark_RELEASE")):
        with tarfile.open(folder / archive, "w:gz" if archive.endswith("tgz") else "w") as tar:
            tar.add(folder / top, top)
        (folder / top).rename(folder / f"{top}.packed")
    state = {name: value / value[0].numel() ** 0.5 for name, value in vgg16_state(NetConfig(**NETWORK)).items()}
    torch.save(state, folder / "vgg16-397923af.pth")


def shorten_recipes(into: Path) -> None:
    """The shipped recipes under their names, with the values of SHORT."""
    into.mkdir()
    for path in recipes.RECIPES.glob("*.toml"):
        values = {**recipes.load_recipe(path).to_dict(), **SHORT}
        values.pop("network")
        (into / path.name).write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))


def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_archives(tmp_path)
    shorten_recipes(tmp_path / "recipes")
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "recipes")
    lines = commands()
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "tar":
            subprocess.run([program, *arguments], check=True)
            continue
        assert program == "ddn-fast", line
        extra = {"convert": [], "train": ["--workers", "0", "--quiet"]}.get(arguments[0], ["--quiet"])
        with monkeypatch.context() as patch:
            if arguments[0] == "convert":
                patch.setattr(weights, "NetConfig", functools.partial(NetConfig, **NETWORK))
            assert main([*arguments, *extra]) == 0, line + capsys.readouterr().err
    said = capsys.readouterr().out
    folder = VocFolder("VOCdevkit/VOC2012")
    assert "VOCdevkit/VOC2012: split trainaug of 6 images, 3 masks of VOC and 3 of SBD" in said
    assert set(folder.masked_ids("trainaug")) == {*TRAIN, *SBD_TRAIN, *SBD_VAL} - set(VAL)
    assert json.loads(Path("runs/25/val.json").read_text())["images"] == len(VAL)
    assert Path("masks/masks/2007_000033.png").is_file()
    assert {path.stem for path in Path("masks-of-tags/masks").iterdir()} == set(folder.ids("Main/trainval"))
    chosen = {run: Path(f"runs/{run}/masks.txt").read_text().split() for run in ("25", "10", "5", "full", "25x4")}
    assert set(chosen["full"]) == set(folder.ids("trainaug"))
    assert all(set(chosen[run]) <= set(TRAIN) for run in ("25", "10", "5", "25x4"))
    assert Path("runs/25-again/items.txt").read_bytes() == Path("runs/25/items.txt").read_bytes()
    used = {shlex.split(line)[shlex.split(line).index("--recipe") + 1] for line in lines if "--recipe" in line}
    assert used == {path.stem for path in recipes.RECIPES.glob("*.toml")} - {"demo-classifier", "demo-segmenter"}


def gflop(config: NetConfig) -> dict[str, float]:
    """Of one forward pass, two for each multiplication; of a convolution what its output positions take."""
    work = dict.fromkeys(("encoder", "head", "bridge", "decoder"), 0.0)
    for name, module in blank(config).named_modules():
        if hasattr(module, "kernel_size"):
            stage = re.search(r"conv(\d)_", name.replace("seg_score", "conv1_"))
            side = config.side // 2 ** (int(stage[1]) - 1) if stage else config.grid
            work[name.split(".")[0]] += 2e-9 * module.weight.numel() * side**2
    return work


def test_its_times_are_the_arithmetic_it_says() -> None:
    work = gflop(NetConfig())
    stated = re.search(
        r"is ([\d.]+) GFLOP in the encoder, ([\d.]+) in the head, .*?, ([\d.]+) in\s+the bridge and ([\d.]+) in",
        DOCUMENT, re.DOTALL,
    )  # fmt: skip
    assert stated
    assert [float(value) for value in stated.groups()] == [round(value, 1) for value in work.values()]
    image = 3 * (work["encoder"] + work["head"])
    item = work["encoder"] + 2 * work["head"] + 3 * (work["bridge"] + work["decoder"])
    assert f"is\n{image:.0f} GFLOP and an item of stage 2 {item:.0f}." in DOCUMENT
    for name in ("classifier", "full", "25-per-class", "10-per-class", "5-per-class"):
        recipe = recipes.load_recipe(name)
        pflop = 1e-6 * recipe.samples * (image if name == "classifier" else item)
        steps = f"{recipe.iterations:,} x {recipe.batch * recipe.accumulate}"
        minutes = [f"{1e15 * pflop / rate / 60:.0f} min" for rate in (790e12, 120e12)]
        assert " | ".join([name, steps, f"{pflop:.0f}", *minutes]) in DOCUMENT


def test_its_sizes_are_those_of_the_networks_parameters() -> None:
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in blank(NetConfig()).named_children()}
    everything = sum(sizes.values())
    stage1, stage2 = sizes["encoder"] + sizes["head"], sizes["bridge"] + sizes["decoder"]
    assert f"{everything / 1e6:.0f} million parameters" in DOCUMENT
    assert f"stage 1\ntrains {stage1 / 1e6:.0f} million and stage 2 {stage2 / 1e6:.0f}" in DOCUMENT
    checkpoints = [4e-9 * (everything + trained) for trained in (stage1, stage2)]
    assert f"weights {4e-9 * everything:.1f}, checkpoint {checkpoints[0]:.1f}" in DOCUMENT
    assert f"weights {4e-9 * everything:.1f}, checkpoint {checkpoints[1]:.1f}" in DOCUMENT
