"""Everything there is to do on a machine with a CUDA device, in one command: ``make gpu``.

Builds the extension for the device, runs the GPU tests, compute-sanitizer, both benchmarks and ncu, each in processes
of its own under a time limit, and writes ``<gpu>.json`` after every one of them: what failed or ran out of time costs
its own results only. A table of what was found is printed last. Needs what docs/gpu.md lists, neither a network nor an
installed ddn_fast.

    python3 benchmarks/gpu.py [--part build test ops ..] [--budget 570] [--commit HASH] [--archs all]
    python3 benchmarks/gpu.py --merge a.json b.json     # parts run apart into one file
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_table
from gpu_machine import ROOT, arch_of, build_fingerprint, fingerprint, git, nvidia_smi, probe, program, slug

HERE = ROOT / "benchmarks"
STAMP = ROOT / "build/gpu-build.json"
# the most important first, but that probe is brief, needs nvcc alone and so says something where nothing else can
PARTS = ("probe", "build", "test", "ops", "end_to_end", "sanitize", "profile")
RESERVE_S = 8.0  # of the budget, to write and print what was found
TAIL_LINES = 30
MAX_OUTPUT = 4 << 20  # bytes of a step's output that are looked at
PYTEST_NONE = 5  # its exit status where a file has no test of the kind asked for
INFO = "import ddn_fast.ops; from ddn_fast import info; print(info.text())"  # imports what was built


@dataclass(frozen=True)
class Step:
    """One process.

    limit    seconds it may take, if as many are left
    share    of what is left of the budget, at most, where parts come after it
    needs    a program without which it is left out; the reason is noted
    results  a pattern of JSON files that it leaves in the folder of work, put into the report
    """

    name: str
    command: list[str]
    limit: float
    share: float = 1.0
    needs: str | None = None
    results: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Run the parts asked for; returns the exit status, 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[], help="default: all, as far as time allows")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds in all (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or HERE / "results"))
    parser.add_argument("--commit", help="of the sources, where there is no git to ask")
    parser.add_argument("--archs", default="device", help="device (the default), all, or a TORCH_CUDA_ARCH_LIST")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="join these reports, run nothing")
    parser.add_argument("--smoke", action="store_true", help="on any machine: every part, with stubs for the GPU's")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.merge:
        return merge(arguments.merge, arguments.out)
    run = Run(arguments)
    with tempfile.TemporaryDirectory(prefix="ddn-gpu-") as folder:
        status = run.everything(Path(folder))
    print(gpu_table.text(run.report), flush=True)
    print(run.path)
    return status


class Run:
    """One call of this program: its report and what is left of its time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.start = arguments, time.monotonic()
        self.parts = arguments.part or list(PARTS)
        self.machine = probe()
        found = self.machine.get("gpu")
        if found is None and not arguments.smoke:
            raise SystemExit(
                f"wanted a CUDA device that torch sees, got none: {self.machine.get('error', 'no device')}"
            )
        if missing := self.machine.get("missing"):
            print(f"== missing here, so that parts will fail: {', '.join(missing)}", flush=True)
        self.name = slug(found) if found and not arguments.smoke else "smoke"
        self.path = arguments.out / f"{self.name}.json"
        self.report = self._before() | {
            "benchmark": "gpu",
            "machine": self.machine,
            "commit": arguments.commit or os.environ.get("DDN_COMMIT") or git("rev-parse", "HEAD"),
            "sources": fingerprint(),
            "smoke": arguments.smoke,
        }
        self.report.setdefault("steps", {})

    def _before(self) -> dict[str, Any]:
        """The report of earlier calls on the same sources, to which this one adds its parts."""
        with contextlib.suppress(OSError, ValueError):
            old = json.loads(self.path.read_text())
            if isinstance(old, dict) and old.get("sources") == fingerprint():
                return old
        return {}

    def left(self) -> float:
        """Seconds that steps may still take."""
        return self.arguments.budget - RESERVE_S - (time.monotonic() - self.start)

    def everything(self, work: Path) -> int:
        """Every part in turn; returns the exit status."""
        self.save()
        if (
            self.parts != ["probe"]
            and "build" not in self.parts
            and not self.arguments.smoke
            and not is_built(self.environment())
        ):
            self.parts = ["build", *self.parts]
        bad = False
        parts = [part for part in PARTS if part in self.parts]
        for part in parts:
            if part == "probe" and self.machine.get("capability") != [9, 0] and not self.arguments.smoke:
                continue
            for step in self.steps(part, work, part == parts[-1]):
                record = self.step(step, part)
                record["part"] = part
                if step.name == "profile" and record["status"] in ("ok", "failed"):
                    said = ncu_errors(work / "ncu.csv")  # ncu speaks in its log file
                    record["tail"] += said
                    record["status"] = "failed" if said else record["status"]
                if record["status"] != "left out" or step.name not in self.report["steps"]:
                    self.report["steps"][step.name] = record
                if step.results:
                    self.report.setdefault("results", {}).update(collect(work, step.results))
                self.save()
                bad |= record["status"] in ("failed", "out of time")
                if part == "build" and record["status"] not in ("ok", "as it was"):
                    print("nothing else can run without the build", flush=True)
                    return 1
        self.report["seconds"] = round(time.monotonic() - self.start, 1)
        self.save()
        return int(bad)

    def environment(self) -> dict[str, str]:
        """Of every step."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        found = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "DDN_COMMIT": self.report["commit"] or "",
            "DDN_CUDA": "ON",
            "DDN_REQUIRE_GPU": "1",
        }
        if nvcc := program("nvcc"):
            found["CUDACXX"] = nvcc
        if self.arguments.archs == "device" and self.machine.get("capability"):
            found["TORCH_CUDA_ARCH_LIST"] = arch_of(*self.machine["capability"])
        elif self.arguments.archs not in ("device", "all"):
            found["TORCH_CUDA_ARCH_LIST"] = self.arguments.archs
        return found

    def steps(self, part: str, work: Path, last: bool) -> Iterator[Step]:
        """The processes of a part."""
        yield from (smoke_steps if self.arguments.smoke else gpu_steps)(part, work, self.left(), last)

    def step(self, step: Step, part: str) -> dict[str, Any]:
        """Run one process; what became of it."""
        environment = os.environ | self.environment() | step.environment
        if step.needs and program(step.needs) is None:
            return note(step, "left out", f"no {step.needs}")
        if step.name == "build" and not self.arguments.smoke and is_built(self.environment()):
            return note(step, "as it was", json.loads(STAMP.read_text())["archs"])
        limit = min(step.limit, self.left() * step.share)
        if limit < 5:
            return note(step, "left out", "no time left")
        print(f"== {step.name}: at most {limit:.0f} s: {' '.join(step.command)}", flush=True)
        log = self.arguments.out / f"{self.name}-{part}.log"
        record = run_step(step.command, environment, limit, log)
        if part == "test":
            record["tests"] = gpu_table.counts(record.pop("output"))
            if record["exit"] == PYTEST_NONE:
                record["status"] = "ok"
            if record["tests"]["skipped"]:  # here there is a GPU
                record["status"] = "failed"
        record.pop("output", None)
        record["clocks"] = nvidia_smi()
        if step.name == "build" and record["status"] == "ok" and not self.arguments.smoke:
            STAMP.parent.mkdir(exist_ok=True)
            STAMP.write_text(json.dumps(stamp(self.environment())))
        print(f"== {step.name}: {record['status']} after {record['seconds']:.1f} s", flush=True)
        return record

    def save(self) -> None:
        """Write the report; whole or not at all."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.report, indent=1) + "\n")
        temporary.replace(self.path)


def gpu_steps(part: str, work: Path, left: float, last: bool) -> Iterator[Step]:
    """The processes of a part on a GPU machine. `last`: all that is left of the budget is its own."""
    python = sys.executable
    if part == "build":
        yield Step("build", [python, "setup.py", "build_ext", "--inplace"], 420)
        yield Step("info", [python, "-c", INFO], 90)
    elif part == "probe":  # tests/native/gpu_probe has its own program: it is the first to meet the hardware
        sources = ["tests/native/gpu_probe/gpu_probe.cu", *sorted(map(str, relative("csrc/cuda", "conv3x3*.cu")))]
        flags = ["-t0", "-std=c++17", "-O3", "-Icsrc", "-DDDN_HAVE_WGMMA", HOPPER]
        probe = str(work / "gpu_probe")
        command = [program("nvcc") or "", *flags, "-o", probe, *sources, "csrc/cuda/isa.cu"]
        yield Step("probe-build", command, 240, needs="nvcc")
        yield Step("probe", [probe, "--json", str(work / "gpu_probe.json")], 150, 0.4, results="gpu_probe.json")
    elif part == "test":
        # a file is a process: an error of the device loses what comes after it in the same process
        options = ["-v", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=90"]
        for path in test_files():
            command = [python, "-m", "pytest", *options, str(path.relative_to(ROOT))]
            yield Step(path.stem, command, 300, 0.6 if last else 0.3)
    elif part == "ops":
        seconds = left if last else min(120.0, 0.4 * left)
        command = [
            python,
            str(HERE / "ops.py"),
            "--device",
            "cuda",
            "--out",
            str(work),
            "--budget",
            f"{seconds - 25:.0f}",
        ]
        yield Step("ops", command, seconds, results="ops-*.json")
    elif part == "end_to_end":
        seconds = left - 60 if last else 0.5 * left
        command = [python, str(HERE / "end_to_end_cuda.py"), "--out", str(work), "--budget", f"{seconds - 15:.0f}"]
        yield Step("end_to_end", command, seconds, results="end_to_end-*.json")
        few = ["--images", "64", "--samples", "3"]
        command = [python, str(HERE / "predict.py"), "--device", "cuda", "--out", str(work), *few]
        yield Step("predict", command, 90, 1.0 if last else 0.3, results="predict-*.json")
    elif part == "sanitize":
        every = [python, str(HERE / "gpu_every_op.py")]
        for tool, share in (("memcheck", 0.4), ("racecheck", 0.5), ("synccheck", 0.8)):
            options = ["--tool", tool, "--error-exitcode", "9", *OUR_KERNELS]
            if tool == "memcheck":
                options += ["--report-api-errors", "no"]  # torch asks what it need not know
            sanitizer = [program("compute-sanitizer") or "", *options]
            yield Step(tool, [*sanitizer, *every], 300, share, "compute-sanitizer", None, NO_CACHE)
    elif part == "profile":
        ncu = [program("ncu") or "", "--profile-from-start", "off", "--clock-control", "none"]
        sections = [word for name in NCU_SECTIONS for word in ("--section", name)]
        log = ["--log-file", str(work / "ncu.csv")]
        command = [*ncu, *sections, "--csv", "--page", "details", *log, python, str(HERE / "gpu_profile.py")]
        yield Step("profile", command, 300, 1.0, "ncu", "ncu.csv")


def test_files() -> list[Path]:
    """Files of tests that hold some for a GPU."""
    marks = re.compile(r"\b(cuda|device): str|mark\.gpu")
    return [path for path in sorted((ROOT / "tests").glob("test_*.py")) if marks.search(path.read_text())]


def relative(folder: str, pattern: str) -> list[Path]:
    """Files of the sources, from their root."""
    return [path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern)]


HOPPER = "-gencode=arch=compute_90a,code=sm_90a"  # all that the probe is for
OUR_KERNELS = ["--kernel-name", "kernel_substring=ddn"]  # the vendor's, many and large, are its own affair
NO_CACHE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation of its own: nothing beside it is its
NCU_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy")


def smoke_steps(part: str, work: Path, left: float, last: bool) -> Iterator[Step]:
    """Every part on any machine: what needs a GPU is left to the CPU, made small or only listed."""
    python, quick = sys.executable, ["--quick", "--out", str(work)]
    commands = {
        "build": [python, "setup.py", "--version"],
        "probe": [python, "-c", "pass"],
        "test": [python, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider",
                 "tests/test_captured.py"],
        "ops": [python, str(HERE / "ops.py"), *quick, "--threads", "1", "--only", "merge_scores"],
        "end_to_end": [python, str(HERE / "end_to_end_cuda.py"), *quick, "--device", "cpu", "--mode", "none",
                       "--rivals", "ddn_fast bf16", "--scenarios", "B=1, 1 pass, alone"],
        "sanitize": [python, str(HERE / "gpu_every_op.py"), "--device", "cpu", "--only", "dense"],
        "profile": [python, str(HERE / "gpu_profile.py"), "--help"],
    }  # fmt: skip
    results = {"ops": "ops-*.json", "end_to_end": "end_to_end-*.json"}
    name = "memcheck" if part == "sanitize" else part
    yield Step(name, commands[part], 300, results=results.get(part), environment={"GLIBC_TUNABLES": ""})
    if part == "end_to_end":
        command = [python, str(HERE / "predict.py"), *quick, "--threads", "1"]
        yield Step("predict", command, 300, results="predict-*.json", environment={"GLIBC_TUNABLES": ""})


def run_step(command: list[str], environment: dict[str, str], limit: float, log: Path) -> dict[str, Any]:
    """Run a command in a process group of its own, its output added to `log`; at the limit the group ends."""
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{error}\n".encode())
            return {"status": "failed", "seconds": 0.0, "exit": None, "command": command, "tail": [str(error)],
                    "output": ""}  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    status = "out of time" if code is None else "ok" if code == 0 else "failed"
    seconds = round(time.monotonic() - start, 1)
    with log.open("rb") as file:
        file.seek(begin)
        output = file.read(MAX_OUTPUT).decode(errors="replace")
        file.seek(max(begin, log.stat().st_size - 20_000))
        last = [line[:400] for line in file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]]
    return {"status": status, "seconds": seconds, "exit": code, "command": command, "tail": last, "output": output}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it started: asked first, then not."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
            if kind == signal.SIGTERM:
                continue
            return


def note(step: Step, status: str, why: Any) -> dict[str, Any]:
    """The record of a step that did not run."""
    print(f"== {step.name}: {status}: {why}", flush=True)
    return {"status": status, "seconds": 0.0, "exit": None, "command": step.command, "tail": [str(why)]}


def collect(work: Path, pattern: str) -> dict[str, Any]:
    """What steps left in the folder of work, by the benchmark's name."""
    found: dict[str, Any] = {}
    for path in sorted(work.glob(pattern)):
        with contextlib.suppress(OSError, ValueError):
            if path.suffix == ".csv":
                found["profile"] = gpu_table.ncu_rows(path.read_text(errors="replace"))
            else:
                report = json.loads(path.read_text())
                found[report.get("benchmark", path.stem)] = report
    return found


def ncu_errors(log: Path) -> list[str]:
    """What ncu says went wrong."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        return [line[:400] for line in lines if line.startswith("==ERROR==")][-5:]
    return []


def stamp(environment: dict[str, str]) -> dict[str, Any]:
    """What a build is made of."""
    archs = environment.get("TORCH_CUDA_ARCH_LIST", "all")
    return {"sources": build_fingerprint(), "archs": archs, "python": sys.executable, "version": sys.version}


def is_built(environment: dict[str, str]) -> bool:
    """Whether the extension there is was built from these sources for this."""
    with contextlib.suppress(OSError, ValueError):
        return bool(list((ROOT / "ddn_fast").glob("_C*.so"))) and json.loads(STAMP.read_text()) == stamp(environment)
    return False


def merge(paths: list[Path], out: Path) -> int:
    """Join reports of one machine and one state of the sources; later ones win."""
    reports = [json.loads(path.read_text()) for path in paths]
    for key in ("sources", "commit"):
        if len({report.get(key) for report in reports}) > 1:
            print(f"wanted reports of one state of the sources, got several of {key}", file=sys.stderr)
            return 1
    joined: dict[str, Any] = {}
    for report in reports:
        steps, results = (
            joined.get("steps", {}) | report["steps"],
            joined.get("results", {}) | report.get("results", {}),
        )
        joined |= report | {"steps": steps, "results": results}
    path = out / f"{slug(joined['machine'].get('gpu') or 'smoke')}.json"
    path.write_text(json.dumps(joined, indent=1) + "\n")
    print(gpu_table.text(joined))
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
