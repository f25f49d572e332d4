"""The training command in several processes: what it prints and writes, and how it ends where one of them fails."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import finish, start, torchrun
from test_training_cli import write_recipe
from tiny_training import fresh_net, read_log, tiny_recipe

from ddn_fast import process_group, weights
from ddn_fast.cli import main
from ddn_fast.data.voc import VocFolder
from ddn_fast.errors import DistributedError, InputError
from ddn_fast.process_group import joined, own_device
from ddn_fast.training.loop import CHECKPOINT, LOG, default_workers


def test_torchrun_trains_and_one_process_finds_it_done(generated: VocFolder, tmp_path: Path) -> None:
    weights.save(fresh_net(generated.classes), tmp_path / "init")
    values = tiny_recipe("segmenter", masks_per_class=1, log_every=1)  # whole sub-batches: cut ones round differently
    recipe = write_recipe(values, tmp_path / "r.toml")
    common = ("segmenter", "--data", generated.root, "--recipe", recipe, "--init", tmp_path / "init", "--device", "cpu")
    arguments = (*common, "--out", tmp_path / "out", "--workers", "1", "--quiet")
    result = torchrun(2, "-m", "ddn_fast.train", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("mean IU") == 1
    assert result.stderr.count("ddn-fast: warning: wanted 1 masked images") == 1
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("mask-tags")}
    assert names - {"curves.png"} == {"weights", CHECKPOINT, LOG, "items.txt", "masks.txt", "validation"}
    before = (tmp_path / "out/weights/model.safetensors").read_bytes(), read_log(tmp_path / "out")
    assert main([str(part) for part in ("train", *arguments, "--resume")]) == 0
    assert main([str(part) for part in ("train", *common, "--out", tmp_path / "one", "--quiet")]) == 0
    logs = [[entry["loss"] for entry in read_log(out)[:3]] for out in (tmp_path / "one", tmp_path / "out")]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)  # float32, by the compiled ops
    assert read_log(tmp_path / "out") == before[1]
    assert weights.load(tmp_path / "out/weights").config == weights.load(tmp_path / "init").config


UNCHECKED = """
import sys
from ddn_fast.cli import main
from ddn_fast.training import classifier
classifier.check_data = lambda *_: None
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("checked", [True, False], ids=["before", "meanwhile"])
def test_an_error_is_told_once_and_ends_all(checked: bool, generated: VocFolder, tmp_path: Path) -> None:
    """Every image is damaged: the first process finds it before the run, or each one while it trains."""
    voc = tmp_path / "voc"
    shutil.copytree(generated.root, voc)
    for path in (voc / "JPEGImages").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    recipe = write_recipe(tiny_recipe("classifier"), tmp_path / "r.toml")
    arguments = ("classifier", "--data", voc, "--recipe", recipe, "--out", tmp_path / "out", "--device", "cpu")
    (tmp_path / "unchecked.py").write_text(UNCHECKED)
    program = ("-m", "ddn_fast.train") if checked else (tmp_path / "unchecked.py",)
    result = torchrun(2, *program, *arguments, "--workers", "0", "--quiet")
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if "ddn-fast: error" in line]
    assert "cannot be read as an image" in line
    assert ("of 24 images cannot be trained on" in line) == checked
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_a_process_that_is_killed_ends_the_others_at_once(generated: VocFolder, tmp_path: Path) -> None:
    values = {"iterations": 10**6, "checkpoint_every": 1, "log_every": 1, "lr": 1e-6}  # too little to diverge
    recipe = write_recipe(tiny_recipe("classifier", **values), tmp_path / "r.toml")
    out = tmp_path / "out"
    arguments = ("classifier", "--data", generated.root, "--recipe", recipe, "--out", out, "--device", "cpu")
    processes = start(2, "-m", "ddn_fast.train", *arguments, "--workers", "0", "--quiet")
    try:
        deadline = time.monotonic() + 100
        while not (out / CHECKPOINT).exists():
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        processes[1].kill()
    (status, _, errors), (killed, _, _) = finish(processes, timeout=60)
    assert killed == -signal.SIGKILL
    assert status == 2
    assert errors.count("ddn-fast: error: another process of this run has ended") == 1


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [own_device("cuda", rank) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert own_device("cpu", 5) == "cpu"
    with pytest.raises(InputError, match="wanted at most 2 on this machine, one for each GPU, got 3"):
        own_device("cuda", 2)
    with pytest.raises(InputError, match=r"wanted cpu or cuda .*, got 'cuda:1'"):
        own_device("cuda:1", 0)


def test_variables_that_torchrun_would_not_set_are_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(DistributedError, match=r"WORLD_SIZE: wanted a number, .*, got 'two'"), joined(lambda: "cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DistributedError, match="cannot meet"), joined(lambda: "cpu"):
        pass
    assert process_group._store is None


def test_processes_share_out_the_cores_among_their_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("ddn_fast.distributed.local_size", lambda: 4)
    assert default_workers() == 3
