"""Full disks, and runs that are killed: the last checkpoint is intact, and the run goes on from it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_training_cli import write_recipe
from tiny_training import StoppedError, assert_same_run, read_checkpoint, stop_at, tiny_recipe, toy_run

from ddn_fast.cli import main
from ddn_fast.data.voc import VocFolder
from ddn_fast.files import write_atomic
from ddn_fast.training.loop import CHECKPOINT, LOG

# full disks


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_failed_write_of_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    toy_run(tmp_path / "straight").train()
    run = stop_at(toy_run(tmp_path / "a"), 3)
    with pytest.raises(StoppedError):
        run.train()
    kept = (tmp_path / "a" / CHECKPOINT).read_bytes()
    write = Path.write_bytes

    def full(self: object, data: object = b"", *_: object) -> None:
        if call == "write":
            write(self, data[:20])  # type: ignore[arg-type, index]
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "rename": (Path, "replace")}[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OSError, match=rf"No space left on device: .*{CHECKPOINT}"):
            run.checkpoint(4)
    assert (tmp_path / "a" / CHECKPOINT).read_bytes() == kept
    assert {path.name for path in (tmp_path / "a").iterdir()} == {CHECKPOINT, LOG}
    toy_run(tmp_path / "a").train(resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "a")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skips where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_run_on_a_full_disk_ends_and_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    toy_run(tmp_path / "straight").train()
    with pytest.raises(StoppedError):
        stop_at(toy_run(small_disk), 4).train()  # a checkpoint of iteration 3
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - 4096))
    with pytest.raises(OSError, match="No space left on device") as caught:
        toy_run(small_disk, **{"log_every": 2}).train(resume=True)
    assert caught.value.errno == errno.ENOSPC
    assert read_checkpoint(small_disk)[1]["iteration"] == 3
    assert {path.name for path in small_disk.iterdir()} <= {CHECKPOINT, LOG, "filler"}
    filler.unlink()
    toy_run(small_disk).train(resume=True)
    assert_same_run(tmp_path / "straight", small_disk)


def test_a_durable_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append("folder" if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        events.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomic(tmp_path / "a", b"x", durable=True)
    assert events == ["file", "name", "folder"]
    write_atomic(tmp_path / "b", b"x")
    assert events[3:] == ["name"]
    toy_run(tmp_path).train()
    assert events.count("folder") == 3, "a checkpoint was not written to last"


def test_diverged_and_unwritable_runs_are_one_line_and_status_2(
    generated: VocFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tiny_recipe("classifier", lr=1e30), tmp_path / "1.toml")
    arguments = ["train", "classifier", "--data", generated.root, "--recipe", recipe, "--device", "cpu", "--quiet"]
    arguments += ["--workers", 0, "--out"]
    assert main([str(part) for part in [*arguments, tmp_path / "out"]]) == 2
    assert "error: iteration 1: the loss is nan; a lower lr than 1e+30 may help" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(part) for part in [*arguments, tmp_path / "file"]]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# runs that are killed


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from tiny_training import toy_run
torch.set_num_threads(int(sys.argv[3]))
replace, seen = os.replace, []
def killing(source, target):
    if Path(target).name == "checkpoint.safetensors":
        seen.append(target)
        if len(seen) == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
toy_run(Path(sys.argv[2]), **eval(sys.argv[5])).train()
"""


def start_victim(out: Path, dies_in_write: int, **values: object) -> subprocess.Popen[bytes]:
    arguments = [str(Path(__file__).parent), str(out), str(torch.get_num_threads()), str(dies_in_write), repr(values)]
    return subprocess.Popen([sys.executable, "-c", KILLED, *arguments])


def test_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(tmp_path: Path) -> None:
    assert start_victim(tmp_path / "killed", 2).wait(timeout=120) == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "killed")[1]["iteration"] == 3
    toy_run(tmp_path / "killed").train(resume=True)
    toy_run(tmp_path / "straight").train()
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_run_killed_at_any_moment_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    long = {"iterations": 10**6, "checkpoint_every": 1, "log_every": 5}
    victim = start_victim(tmp_path / "killed", -1, **long)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / LOG).exists() or len((tmp_path / "killed" / LOG).read_bytes()) < 500:
            assert victim.poll() is None
            assert time.monotonic() < deadline, "the run writes no log"
            time.sleep(0.003)
    finally:
        victim.kill()
        victim.wait()
    iteration = read_checkpoint(tmp_path / "killed")[1]["iteration"]
    assert iteration >= 4
    for resume, name in ((True, "killed"), (False, "straight")):
        with pytest.raises(StoppedError):
            stop_at(toy_run(tmp_path / name, **long), iteration + 3).train(resume)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


KILLED_AGAIN = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch._dynamo  # the first solver step would: two seconds in each child
from tiny_training import read_checkpoint, toy_run
torch.set_num_threads(1)
out, chance, kills, reached = Path(sys.argv[2]), random.Random(0), 0, 0
def written():
    path = out / "checkpoint.safetensors"
    return path.stat().st_mtime_ns if path.exists() else 0
while kills < int(sys.argv[3]):
    before, child = written(), os.fork()
    if not child:
        toy_run(out, **eval(sys.argv[4])).train(resume=True)
        os._exit(0)
    while written() == before:
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("a child ended before it was killed")
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    kills += os.waitpid(child, 0)[1] == signal.SIGKILL
    iteration = read_checkpoint(out)[1]["iteration"]
    assert iteration >= reached, "a kill undid what a checkpoint held"
    reached = iteration
print(reached)
"""


def test_run_killed_again_and_again_ends_where_the_one_that_ran_through_does(tmp_path: Path) -> None:
    # far more than a fast machine reaches between the kills
    values = {"iterations": 600, "checkpoint_every": 1, "log_every": 3}
    arguments = [Path(__file__).parent, tmp_path / "killed", 12, repr(values)]
    command = [sys.executable, "-c", KILLED_AGAIN, *map(str, arguments)]
    reached = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert 0 < reached < 600, "too early or too late to say anything"
    toy_run(tmp_path / "killed", **values).train(resume=True)
    toy_run(tmp_path / "straight", **values).train()
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {CHECKPOINT, LOG}


def test_what_a_killed_write_left_is_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        stop_at(toy_run(tmp_path), 4).train()
    (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"half a checkpoint")
    (tmp_path / ".mine.tmp").write_bytes(b"of somebody else")
    toy_run(tmp_path).train(resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, LOG, ".mine.tmp"}
