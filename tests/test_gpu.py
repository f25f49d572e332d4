"""make gpu where there is no GPU: every part walked with stubs, and what fails, hangs or dies costs its own results."""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import end_to_end_cuda
import gpu
import gpu_table
import groups_conv
import machine
import networks
import ops as op_benchmark
import pytest
import stock
import timing
import torch
from groups import Setting
from stock_network import StockNetwork
from test_engine import CONFIGS, random_net, some_passes

from ddn_fast import ops
from ddn_fast.plan import passes_of

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable


def arguments(out: Path, **changes: Any) -> argparse.Namespace:
    found = {"part": [], "budget": 60.0, "out": out, "commit": "abc", "archs": "device", "smoke": True}
    return argparse.Namespace(**(found | changes))


@pytest.fixture
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: {"gpu": None, "torch": "0"})


def run_steps(
    steps: dict[str, list[gpu.Step]], out: Path, work: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[int, dict[str, Any]]:
    """Parts made of `steps`; the exit status and what stands in the file."""
    monkeypatch.setattr(gpu, "smoke_steps", lambda part, *_: iter(steps.get(part, [])))
    run = gpu.Run(arguments(out, part=[part for part in gpu.PARTS if part in steps], **changes))
    status = run.everything(work)
    return status, json.loads((out / "smoke.json").read_text())


def python(program: str) -> list[str]:
    return [PYTHON, "-c", program]


OK = gpu.Step("build", python("print('built')"), 20)


def test_every_part_runs_with_stubs_and_the_table_comes_last(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OUT": str(tmp_path),
    }
    command = [PYTHON, str(ROOT / "benchmarks/gpu.py"), "--smoke", "--commit", "0123abc"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "smoke.json").read_text())
    assert {step["part"] for step in report["steps"].values()} == set(gpu.PARTS)
    assert {step["status"] for step in report["steps"].values()} == {"ok"}
    assert report["commit"] == "0123abc"
    assert set(report["results"]) == {"ops", "end_to_end_cuda", "predict"}
    assert all(row["correct"] for row in report["results"]["ops"]["rows"])
    last = done.stdout.split("== profile: ok")[-1]
    assert len(last) < 12_000
    assert "merge_scores" in last
    assert "B=1, 1 pass, alone" in last
    assert "files to label maps" in last
    assert len(list(tmp_path.iterdir())) <= 8  # as many as come back from some machines


def test_what_fails_or_hangs_loses_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_probe: None
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    result = {"benchmark": "ops", "rows": [], "ceilings": {}, "machine": {}}
    write = f"open({str(work / 'ops-x.json')!r}, 'w').write({json.dumps(result)!r}); print('rows', flush=True)"
    steps = {
        "build": [OK],
        "test": [gpu.Step("test_a", python("raise SystemExit('no kernel')"), 20), gpu.Step("test_b", ["/nowhere"], 20)],
        "ops": [gpu.Step("ops", python(f"{write}; import time; time.sleep(60)"), 5.5, results="ops-*.json")],
        "sanitize": [gpu.Step("memcheck", python("import os; os.abort()"), 20)],
        "profile": [gpu.Step("profile", python("print('end')"), 20, needs="no-such-program")],
    }
    start = time.monotonic()
    status, report = run_steps(steps, out, work, monkeypatch)
    assert time.monotonic() - start < 30
    assert status == 1
    found = {name: step["status"] for name, step in report["steps"].items()}
    assert found == {
        "build": "ok", "test_a": "failed", "test_b": "failed", "ops": "out of time", "memcheck": "failed",
        "profile": "left out",
    }  # fmt: skip
    assert report["results"]["ops"] == result
    assert report["steps"]["ops"]["tail"] == ["rows"]
    assert "no kernel" in report["steps"]["test_a"]["tail"]
    text = gpu_table.text(report)
    assert "test_a: no kernel" in text
    assert "ops                          out of time" in text


@pytest.mark.parametrize("end", [0, 1])
def test_what_ncu_writes_into_its_log_is_in_the_report(
    end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_probe: None
) -> None:
    """It says nowhere else that counters may not be read, and may end with status 0."""
    said = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    write = f"open({str(tmp_path / 'ncu.csv')!r}, 'w').write('==PROF== Connected\\n' + {said!r} + '\\n')"
    step = gpu.Step("profile", python(f"{write}; raise SystemExit({end})"), 20)
    status, report = run_steps({"build": [OK], "profile": [step]}, tmp_path, tmp_path, monkeypatch)
    assert status == 1
    assert (report["steps"]["profile"]["status"], report["steps"]["profile"]["tail"]) == ("failed", [said])


def test_a_build_that_fails_ends_the_run_and_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_probe: None
) -> None:
    steps = {"build": [gpu.Step("build", python("raise SystemExit(3)"), 20)], "test": [OK]}
    status, report = run_steps(steps, tmp_path, tmp_path, monkeypatch)
    assert status == 1
    assert list(report["steps"]) == ["build"]
    assert report["steps"]["build"]["exit"] == 3


def test_a_step_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    program = "trap '' TERM; sleep 300 & echo $!; wait; sleep 300"
    start = time.monotonic()
    record = gpu.run_step(["bash", "-c", program], dict(os.environ), 1.0, tmp_path / "log")
    assert time.monotonic() - start < 15
    assert (record["status"], record["exit"]) == ("out of time", None)
    child = int(record["tail"][0])
    for _ in range(50):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the step started still runs")


def test_no_step_begins_without_time_and_none_gets_more_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_probe: None
) -> None:
    limits: list[float] = []

    def noted(command: list[str], environment: dict[str, str], limit: float, log: Path) -> dict[str, Any]:
        limits.append(limit)
        return {"status": "ok", "seconds": 0.0, "exit": 0, "command": command, "tail": [], "output": ""}

    monkeypatch.setattr(gpu, "run_step", noted)
    steps = {"build": [OK], "ops": [gpu.Step("ops", ["x"], 500, 0.5)], "profile": [gpu.Step("p", ["x"], 500)]}
    run_steps(steps, tmp_path, tmp_path, monkeypatch, budget=100.0)
    assert limits == [20, pytest.approx(46, abs=1), pytest.approx(92, abs=1)]
    other = tmp_path / "other"
    other.mkdir()
    _, report = run_steps(steps, other, tmp_path, monkeypatch, budget=10.0)
    assert {step["status"] for step in report["steps"].values()} == {"left out"}


def test_the_last_part_gets_all_that_is_left_though_a_build_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: {"gpu": "Some GPU", "capability": [9, 0]})
    monkeypatch.setattr(gpu, "is_built", lambda _: False)
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(gpu, "gpu_steps", lambda part, _work, _left, last: told.append((part, last)) or ())
    for parts in (["end_to_end"], ["ops", "build", "test"], []):
        told.clear()
        gpu.Run(arguments(tmp_path, part=parts, smoke=False)).everything(tmp_path)
        wanted = [part for part in gpu.PARTS if part in (parts or gpu.PARTS) or part == "build"]
        assert told == [(part, part == wanted[-1]) for part in wanted]


def test_parts_run_apart_stand_in_one_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_probe: None
) -> None:
    run_steps({"build": [OK]}, tmp_path, tmp_path, monkeypatch)
    _, report = run_steps({"ops": [gpu.Step("ops", python("pass"), 20)]}, tmp_path, tmp_path, monkeypatch)
    assert set(report["steps"]) == {"build", "ops"}
    files = []
    for name in ("build", "ops"):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(report | {"steps": {name: report["steps"][name]}}))
    assert gpu.merge(files, tmp_path) == 0
    assert set(json.loads((tmp_path / "smoke.json").read_text())["steps"]) == {"build", "ops"}
    files[0].write_text(json.dumps(report | {"commit": "other"}))
    assert gpu.merge(files, tmp_path) == 1


def test_steps_of_a_gpu_machine_are_programs_and_files_that_exist(tmp_path: Path) -> None:
    for part in gpu.PARTS:
        steps = list(gpu.gpu_steps(part, tmp_path, 300.0, False))
        assert steps
        for step in steps:
            assert step.command[0] == PYTHON or step.needs or step.command[0].startswith(str(tmp_path))
            scripts = [word for word in step.command if word.endswith((".py", ".cu"))]
            assert scripts or step.name in ("info", "probe")
            assert all((ROOT / script).is_file() for script in scripts)
            assert part != "sanitize" or "kernel_substring=ddn" in step.command
    names = [path.stem for path in gpu.test_files()]
    assert {"test_ops", "test_ops_inference", "test_runtime", "test_captured"} <= set(names)


@pytest.mark.parametrize("script", ["ops.py", "end_to_end_cuda.py", "predict.py", "gpu_every_op.py", "gpu_profile.py"])
def test_options_of_the_scripts_are_those_that_the_steps_give(script: str, tmp_path: Path) -> None:
    """Their parsers, read from the source."""
    tree = ast.parse((ROOT / "benchmarks" / script).read_text())
    known = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument"
        if isinstance(node.args[0], ast.Constant)
    }
    steps: Iterator[gpu.Step] = (s for part in gpu.PARTS for s in gpu.gpu_steps(part, tmp_path, 300.0, False))
    for step in steps:
        if any(word.endswith(script) for word in step.command):
            at = next(k for k, word in enumerate(step.command) if word.endswith(script))
            assert {word for word in step.command[at + 1 :] if word.startswith("--")} <= known


def test_the_command_needs_nothing_but_python() -> None:
    for name in ("gpu.py", "gpu_machine.py", "gpu_table.py"):
        tree = ast.parse((ROOT / "benchmarks" / name).read_text(), feature_version=(3, 10))
        found = {
            word.split(".")[0]
            for node in ast.walk(tree)
            for word in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        assert found <= {*sys.stdlib_module_names, "gpu_machine", "gpu_table"}


def test_names_and_architectures() -> None:
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert [gpu.arch_of(*c) for c in ((8, 0), (9, 0), (10, 0), (12, 1))] == ["8.0", "9.0a", "10.0", "12.1"]


def test_a_build_is_made_again_only_for_other_sources_or_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "STAMP", tmp_path / "stamp.json")
    environment = {"TORCH_CUDA_ARCH_LIST": "9.0a"}
    assert not gpu.is_built(environment)
    gpu.STAMP.write_text(json.dumps(gpu.stamp(environment)))
    assert gpu.is_built(environment)
    assert not gpu.is_built({"TORCH_CUDA_ARCH_LIST": "8.0"})
    monkeypatch.setattr(gpu, "build_fingerprint", lambda: "changed")
    assert not gpu.is_built(environment)


# what is made of the output


def test_outcomes_of_tests_are_counted_even_where_they_were_cut_off() -> None:
    output = """
tests/test_a.py::test_one PASSED                                         [ 10%]
tests/test_a.py::test_two[a b-c] FAILED                                  [ 20%]
tests/test_a.py::test_three SKIPPED (no CUDA device)                     [ 30%]
tests/test_a.py::test_four ERROR
E   RuntimeError: x
FAILED tests/test_a.py::test_two[a b-c] - RuntimeError: x
tests/test_a.py::test_five """
    found = gpu_table.counts(output)
    assert found["passed"] == 1
    assert found["failed"] == ["tests/test_a.py::test_two[a b-c]", "tests/test_a.py::test_four"]
    assert found["skipped"] == ["tests/test_a.py::test_three"]
    assert found["errors"] == ["RuntimeError: x"]
    assert found["last"] == "tests/test_a.py::test_five"
    assert gpu_table.counts("ERROR tests/test_b.py - ImportError")["failed"] == ["tests/test_b.py"]


def test_kernels_are_read_from_what_ncu_writes() -> None:
    output = """==PROF== Connected
"ID","Process ID","Kernel Name","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","void ddn::conv3x3_kernel<x>(ddn::P)","(10, 1, 1)","SOL","Duration","us","12.5"
"0","7","void ddn::conv3x3_kernel<x>(ddn::P)","(10, 1, 1)","SOL","DRAM Throughput","%","40.1"
"1","7","gate","(1, 1, 1)","SOL","Duration","ms","1,002.5"
"1","7","gate","(1, 1, 1)","SOL","Something else","%","1"
"""
    rows = gpu_table.ncu_rows(output)
    assert [row["Duration"] for row in rows] == ["12.5 us", "1,002.5 ms"]
    assert rows[0]["DRAM Throughput"] == "40.1 %"
    table = gpu_table.text({"machine": {}, "commit": None, "steps": {}, "results": {"profile": rows}})
    assert table.index("gate") < table.index("conv3x3_kernel<x>")
    assert gpu_table.ncu_rows("==ERROR== no permission") == []


def test_targets_are_worked_out_from_the_results() -> None:
    def row(number: int, ms: float, tflops: float, maps: int = 32) -> dict[str, Any]:
        case = f"stage {number} to _2, {maps} maps"
        return {"rival": "ddn_fast", "case": case, "ms": ms, "tflops": tflops, "correct": True}

    def rival(images_s: float, peak: float = 0.0) -> dict[str, Any]:
        return {"images_s": images_s, "ms": 1e3 / images_s, "peak_mib": peak}

    found = dict(
        gpu_table.measured(
            {
                "ops": {
                    "ceilings": {"cuda_bfloat16": 800.0},
                    "rows": [
                        *(row(k, 1.0, 700.0) for k in range(5)), *(row(k, 3.0, 500.0) for k in range(5, 10)),
                        row(0, 1, 9, 8), row(0, 2.0, 350.0),
                        row(1, 0.1, 7000.0) | {"correct": False},
                    ],
                },
                "end_to_end_cuda": {
                    "rivals": {
                        "eager bf16 batched": {"weights_mib": 500}, "ddn_fast bf16, no graphs": {"weights_mib": 600},
                    },
                    "scenarios": [
                        {
                            "name": "B=32, 1.9 passes",
                            "rivals": {
                                "ddn_fast bf16": rival(3000), "stock best": rival(1500), "eager fp32 loop": rival(150),
                                "eager bf16 batched": rival(1, 5500), "ddn_fast bf16, no graphs": rival(2, 1400),
                            },
                        },
                        {"name": "B=1, 1 pass, alone", "rivals": {"ddn_fast bf16": rival(2000)}},
                    ],
                },
            }
        )
    )  # fmt: skip
    assert found == {
        "convolutions, of the matrix rate": pytest.approx(550 / 800),
        "images/s at B=32, 1.9 passes": 3000,
        "of stock best": 2,
        "of the eager loop": 20,
        "latency, ms": 0.5,
        "peak memory of max_unpool2d": 3,
    }
    assert set(found) == set(gpu_table.TARGETS)
    assert dict(gpu_table.measured({})) == {}


def test_the_table_fits_what_comes_back() -> None:
    failed = {"status": "failed", "seconds": 1.0, "tail": ["x" * 400] * 30}
    tests = {
        "passed": 1,
        "failed": [f"tests/test_x.py::test_{k}" * 5 for k in range(900)],
        "skipped": [],
        "errors": ["e"],
        "last": "t",
    }
    steps = {f"step {k}": failed | {"tests": tests} for k in range(20)}
    assert len(gpu_table.text({"machine": {}, "commit": None, "steps": steps})) <= 11_000


# the rivals' CUDA side, on the CPU


def test_scenarios_have_the_passes_they_are_named_for() -> None:
    for name, batches in end_to_end_cuda.SCENARIOS.items():
        images, wanted = int(name.split(",")[0].removeprefix("B=")), float(name.split(", ")[1].split()[0])
        assert {len(batch) for batch in batches} == {images}
        counts = [passes_of(count) for batch in batches for count in batch]
        assert sum(counts) / len(counts) == pytest.approx(wanted, abs=0.05)


def test_the_rivals_on_cuda_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "on_cuda", lambda _: True)
    monkeypatch.setattr(stock, "conv_fused", stock.conv)
    monkeypatch.setattr(machine, "cuda_isas", lambda: ["mma", "wgmma"])
    setting = Setting(ops, op_benchmark.QUICK, (2, 1), (), True, "cuda")
    ceilings = {"cuda_bfloat16": 1.0, "dram_read_gb_s": 10.0}
    limits = {"seconds": 0.01, "samples": 2, "least": 2, "clock": timing.HostClock()}
    names = ["conv3x3", "conv3x3_max_pool2x2", "conv3x3_score", "dense", "class_gate", "merge_scores", "max_unpool2x2"]
    found: list[dict[str, Any]] = []
    for rows, failure in op_benchmark.measured(setting, names, ceilings, limits):
        assert failure is None
        found += rows
    assert all(row["correct"] for row in found)
    assert {row["dtype"] for row in found} == {"bfloat16", "float32"}  # that of merge_scores
    assert {row["layout"] for row in found if row["op"].startswith("conv") and row["rival"] == "ddn_fast"} == {"pairs"}
    assert {row["rival"] for row in found if row["op"].startswith("conv")} == {"ddn_fast", "cuDNN", "cuDNN, ReLU fused"}
    assert {row["isa"] for row in found if row["op"].startswith("conv")} == {"mma", "wgmma", None}
    assert "DDN_MAX_CUDA_ISA" not in os.environ
    stages = [row["case"] for row in found if row["case"].startswith("stage")]
    assert stages[0].endswith("2 maps")
    assert len({case for case in stages if case.endswith("2 maps")}) == len(groups_conv.stages(op_benchmark.QUICK))


def test_a_group_that_fails_on_cuda_is_noted_and_the_next_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "on_cuda", lambda _: True)
    monkeypatch.setattr(machine, "cuda_isas", lambda: ["mma"])

    def broken(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stock, "merge", broken)
    setting = Setting(ops, op_benchmark.QUICK, (1,), (), True, "cuda")
    limits = {"seconds": 0.01, "samples": 2, "least": 2, "clock": timing.HostClock()}
    found = list(op_benchmark.measured(setting, ["merge_scores", "class_gate"], {}, limits))
    failures = [failure for _, failure in found if failure]
    assert len(failures) == 3
    assert all("merge_group" in failure and "out of memory" in failure for failure in failures)
    assert sum(bool(rows) for rows, _ in found) == 3


def test_where_stock_pytorch_cannot_be_compiled_it_is_measured_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = networks.make

    def make(name: str, model: Any, ops: Any, compiled: bool, mode: str) -> Any:
        def refused(*_: Any) -> None:
            raise RuntimeError(f"no {mode}")

        return refused if compiled else made(name, model, ops, False)

    monkeypatch.setattr(networks, "make", make)
    scenario = "B=1, 1 pass, alone"
    options = ["--quick", "--device", "cpu", "--rivals", networks.STOCK_BEST, "--scenarios", scenario]
    monkeypatch.setattr(sys, "argv", ["end_to_end_cuda.py", *options, "--out", str(tmp_path)])
    assert end_to_end_cuda.main() == 1
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert [line.rsplit(" ", 1)[1] for line in report["failed"]] == ["max-autotune", "default"]
    assert report["method"]["compile"] == "max-autotune, then default, then none"
    assert report["scenarios"][0]["rivals"][networks.STOCK_BEST]["compile"] == "none"


@torch.no_grad()
def test_the_stock_network_on_cuda_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(CONFIGS["kernel 3"]).float()
    x, labels, image_of_pass = some_passes(net.config, 3, 5)
    found = []
    for on_cuda in (False, True):
        monkeypatch.setattr(stock, "on_cuda", lambda _, on_cuda=on_cuda: on_cuda)
        twin = StockNetwork(net, torch.float32, compiled=False)
        _, state = twin.score_images(x.float())
        found.append(twin.score_passes(state, labels.float(), image_of_pass))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * found[0].abs().max().item())
