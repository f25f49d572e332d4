"""The benchmarks run, keep what they promise, and measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import end_to_end
import groups_conv
import machine
import networks
import ops as op_benchmark
import plain_training
import predict
import pytest
import stock
import timing
import torch
import training_step
from groups import Group, Rival
from plain_training import PlainTraining
from stock_network import StockNetwork

from ddn_fast import reference
from ddn_fast.config import NetConfig
from ddn_fast.network import DecoupledNet
from ddn_fast.training.solver import train_only, trained_modules

ROOT = Path(__file__).parent.parent
LAYOUTS = {"float32": ("direct", "winograd"), "bfloat16": ("pairs", "direct", "winograd", "winograd_int16")}
SOURCES = ("reference", "compiled")
MACHINE = {"cpu", "cores", "threads", "isa", "caches", "governor", "versions", "commit", "dirty", "glibc_tunables"}


def run(script: str, out: Path, *arguments: str) -> dict[str, Any]:
    """A quick run in a process of its own; returns the JSON it wrote, the only one, in a folder that it made."""
    out = out / "results/new"
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--threads", "1", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (path,) = out.glob("*.json")
    report = json.loads(path.read_text())
    assert path.stem == f"{report['benchmark']}-{report['machine']['name']}"
    assert report["machine"].keys() >= MACHINE
    return report


@pytest.mark.parametrize("source", SOURCES)
def test_every_op_is_measured_beside_a_rival_in_every_dtype(source: str, tmp_path: Path) -> None:
    report = run("ops.py", tmp_path, "--ops", source)
    assert report["machine"]["glibc_tunables"]
    assert report["ceilings"]["dram_read_gb_s"] > 0
    assert {row["op"].split()[0] for row in report["rows"]} == set(reference.OPS)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault((row["op"], row["case"], row["dtype"]), []).append(row)
        assert 0 < row["low"] <= row["ms"] <= row["high"]
        assert row["samples"] >= 2
        assert row["fraction"] > 0
        assert row["correct"], row
        # torch alone, where bfloat16 cuts y off at other pixels, is further from the truth than any op of ours may be
        farther = row["op"] == "deconv3x3_moments_backward_score" and row["rival"] == "torch"
        assert row["error"] < ((0.06 if farther else 0.03) if row["dtype"] == "bfloat16" else 2e-5), row
    for rows in groups.values():
        names = {row["rival"] for row in rows}
        assert "ddn_fast" in names
        assert len(names) > 1
    layouts = {(row["dtype"], row["layout"]) for row in report["rows"] if row["layout"]}
    assert layouts == {(dtype, layout) for dtype, found in LAYOUTS.items() for layout in found}
    assert len(op_benchmark.table(report).splitlines()) == 2 + len({(op, case) for op, case, _ in groups})


def test_every_network_is_measured_in_every_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # spares starting twice
    rivals = networks.RIVALS
    report = run("end_to_end.py", tmp_path, "--no-compile")
    assert [s["name"] for s in report["scenarios"]] == list(end_to_end.SCENARIOS)
    assert [s["passes"] for s in report["scenarios"]] == [0, 1, 3, 4, 6, 9, 14]
    for scenario in report["scenarios"]:
        assert list(scenario["rivals"]) == list(rivals)
        for name, row in scenario["rivals"].items():
            assert row["ms"] > 0
            assert row["images_s"] == pytest.approx(1e3 * len(scenario["labels"]) / row["ms"], rel=1e-2)
            assert row["agreement"] >= (0.999 if "fp32" in name or scenario["name"] == "K=0" else 0.5), (scenario, name)
    for rival in report["rivals"].values():
        assert rival["build_s"] >= 0
        assert rival["first_call_s"].keys() == end_to_end.SCENARIOS.keys()
    times = json.loads(json.dumps(report["scenarios"]))
    report = run("end_to_end.py", tmp_path, "--memory", "--rivals", networks.EAGER_LOOP, "--scenarios", "K=1")
    memory = report["memory"][networks.EAGER_LOOP]
    assert memory["peak K=1"] >= memory["built"] >= memory["before"] > 0
    assert report["scenarios"] == times, "the times were lost"


@torch.no_grad()
def test_the_best_stock_network_is_the_plain_one() -> None:
    x = torch.stack([end_to_end.input_of(end_to_end.blobs(seed, (60, 80)), 64) for seed in range(3)])
    model = networks.random_network(end_to_end.QUICK, x)
    twin = StockNetwork(model, torch.float32, compiled=False)  # compiling takes longer than all other tests here
    scores, state = twin.score_images(x)
    wanted, plain_state = model.score_images(x)
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-5)
    labels = torch.zeros(4, model.config.num_classes)
    labels[0, [0, 2]], labels[1, 0], labels[2, 2], labels[3, 5] = torch.tensor([0.7, 0.4]), 0.7, 0.4, 0.9
    image_of_pass = torch.tensor([1, 1, 1, 2])
    got = twin.score_passes(state, labels, image_of_pass)
    wanted = model.score_passes(plain_state, labels, image_of_pass)
    assert wanted.std() > 1, "the network says nothing"
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_merging_with_torchs_filter_gives_the_same_labels_but_at_borders() -> None:
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(4, 16, 16, generator=generator)
    wanted = reference.merge_scores(difference, 3, 50, [40, 50])
    got = stock.merge(difference, 3, 50, [40, 50])
    assert torch.equal(got[5:-5, 5:-5], wanted[5:-5, 5:-5])
    assert len(wanted.unique()) == 4
    assert (got == wanted).double().mean() > 0.97


def test_a_wrong_result_is_marked_and_never_wins() -> None:
    truth = torch.arange(4.0).double()

    def rival(name: str, result: torch.Tensor, ms: int, isa: str | None = None) -> Rival:
        def run() -> torch.Tensor:
            time.sleep(1e-3 * ms)
            return result

        return Rival(name, run, isa)

    rivals = [
        rival("ddn_fast", truth.float() + 1, 0, "avx2"),
        rival("ddn_fast", truth.float() * torch.nan, 0, "avx512"),
        rival("ddn_fast", truth.float(), 1, "plain"),
        rival("stock", truth.float(), 2),
    ]
    group = Group("dense", "case", torch.float32, 1e6, 1e6, lambda: truth, rivals)
    rows, _ = op_benchmark.measure(group, {}, {"seconds": 0.01, "samples": 3})
    assert [row["correct"] for row in rows] == [False, False, True, True]
    ((ours, other),) = op_benchmark.best_pairs({"rows": rows})["dense", "case"].values()
    assert (ours["isa"], other["rival"]) == ("plain", "stock")


def test_layers_are_those_of_the_network() -> None:
    config = NetConfig()
    stages = groups_conv.stages(config)
    wanted = [name for name, m in DecoupledNet(end_to_end.QUICK).named_modules() if "conv" in name.split(".")[-1]]
    wanted = [name.split(".")[1] for name in wanted if name.startswith(("encoder", "decoder")) and "bn" not in name]
    assert [name for stage in stages for name in stage.names] == wanted
    layers = groups_conv.layers(config)
    assert sorted(name for layer in layers for name in layer.names) == sorted(wanted)
    first, last = next(x for x in layers if "deconv1_1" in x.names), next(x for x in layers if "deconv1_2" in x.names)
    assert (first.channels, first.side, first.op, first.unpooled) == ((64, 64), 320, "conv3x3", True)
    assert (last.channels, last.side, last.op, last.unpooled) == ((64, 64), 320, "conv3x3_score", False)


def test_a_slow_rival_gets_fewer_turns_and_a_fast_one_no_more_than_wanted() -> None:
    turns: list[str] = []

    def slow() -> None:
        turns.append("slow")
        time.sleep(0.02)

    found = timing.interleave({"slow": slow, "fast": lambda: turns.append("fast")}, seconds=0.1, samples=9, least=2)
    assert 2 <= found["slow"].samples < found["fast"].samples
    assert found["slow"].ms >= 20
    assert found["fast"].ms < 20
    measured = turns[2:]
    assert "".join(name[0] for name in measured).strip("f").count("f") > 0, "they did not take turns"


def test_samples_that_waited_for_a_core_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter(range(0, 10**12, 10**9))  # a second more, whenever asked
    monkeypatch.setattr(timing, "waiting_ns", lambda: {"1": next(waits)})
    waited = timing.interleave({"a": lambda: None}, seconds=1, samples=4)["a"]
    assert (waited.clean, waited.samples) == (0, 8)
    monkeypatch.setattr(timing, "waiting_ns", dict)
    calm = timing.interleave({"a": lambda: None}, seconds=1, samples=4)["a"]
    assert (calm.clean, calm.samples) == (4, 4)


def test_cold_weights_are_equal_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_bytes", lambda: 1000)
    weight = torch.arange(100.0)
    cold = timing.Cold(weight.clone, 400)
    taken = [cold() for _ in range(20)]
    assert cold.cold
    assert len({t.data_ptr() for t in taken}) == 10
    assert len({t.data_ptr() for t in taken[:10]}) == 10
    assert all(torch.equal(t, weight) for t in taken)
    monkeypatch.setattr(machine, "available_bytes", lambda: 8000)
    assert not timing.Cold(weight.clone, 400).cold


def test_names_and_peaks_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_name", lambda: "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz")
    assert machine.name() == f"intel-xeon-platinum-8481c-{torch.get_num_threads()}-threads"
    ceilings = {
        "plain": 0.1,
        "avx2": 0.2,
        "avx_vnni": 0.35,
        "avx512": 0.3,
        "avx512_vnni": 0.6,
        "avx512_bf16": 0.5,
        "amx_bf16": None,
        "dram_read_gb_s": 30.0,
    }
    assert machine.peak_of(ceilings, torch.float32, "avx2") == 0.2
    assert machine.peak_of(ceilings, torch.float32, None) == 0.3
    assert machine.peak_of(ceilings, torch.bfloat16, "avx2") == 0.2
    assert machine.peak_of(ceilings, torch.bfloat16, "avx_vnni") == 0.35
    assert machine.peak_of(ceilings, torch.bfloat16, "avx512") == 0.3
    assert machine.peak_of(ceilings, torch.bfloat16, "avx512_vnni") == 0.6
    assert machine.peak_of(ceilings | {"avx512_vnni": None}, torch.bfloat16, "amx_bf16") == 0.5
    assert machine.peak_of({}, torch.float32, None) is None


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("flags : sse2 avx2 avx512f avx512_vnni", torch.float32),
        ("flags : avx512f avx512_bf16", torch.bfloat16),
        ("flags : amx_bf16 amx_tile", torch.bfloat16),
        ("Features : asimd bf16", torch.bfloat16),
        ("Features : asimd", torch.float32),
        ("model name : unknown", torch.bfloat16),
    ],
)
def test_stock_best_runs_in_the_dtype_that_the_cpu_multiplies(
    monkeypatch: pytest.MonkeyPatch, line: str, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: f"processor : 0\n{line}\n")
    assert networks.stock_dtype(torch.empty(0)) == wanted


def test_others_in_float32_count_for_bfloat16_where_they_are_faster() -> None:
    times = {"float32": {"ddn_fast": 2.0, "oneDNN": 3.0}, "bfloat16": {"ddn_fast": 2.5, "oneDNN": 9.0}}
    rows = [
        {"op": "dense", "case": "case", "dtype": dtype, "rival": rival, "ms": ms, "correct": True}
        for dtype, rivals in times.items()
        for rival, ms in rivals.items()
    ]
    ((float32, bfloat16),) = (pair.values() for pair in op_benchmark.best_pairs({"rows": rows}).values())
    assert [row["ms"] for row in float32] == [2.0, 3.0]
    assert [row["ms"] for row in bfloat16] == [2.5, 3.0]


def test_training_step_times_ways_that_reach_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = NetConfig(tuple("ab"), 32, (4, 8, 8, 8, 8), fc=8, bridge=8, fc_kernel=1)
    monkeypatch.setitem(training_step.CASES, "tiny", training_step.Case(tiny, 3, 2))
    row = training_step.measure("tiny", "float32", (training_step.PLAIN, training_step.OURS))
    for way in (training_step.PLAIN, training_step.OURS):
        assert 0 < row[way]["frozen_ms"] < row[way]["step_ms"]
        assert row[way]["images_per_second"] == pytest.approx(3000 / row[way]["step_ms"], rel=1e-2)
    assert row[training_step.PLAIN]["loss"] == pytest.approx(row[training_step.OURS]["loss"], abs=2e-3)


def test_plain_training_keeps_the_values_and_gradients_when_its_unpooling_is_opaque() -> None:
    """What the compiled rival runs, without the compiler."""
    net = DecoupledNet(NetConfig(tuple("ab"), 32, (4, 8, 8, 8, 8), fc=8, bridge=8, fc_kernel=1))
    train_only(net, trained_modules(net, "segmenter"))
    data, subset = 40 * torch.randn(3, 3, 32, 32), torch.ones(3, 2)
    found = []
    for opaque in (False, True):
        plain = PlainTraining(net, compiled=False)
        if opaque:
            plain.unpool = plain_training._max_unpool
        net.zero_grad()
        scores = plain.trained(*plain.frozen(data, subset))
        scores.square().sum().backward()
        found.append((scores, net.decoder.deconv5_1.weight.grad, net.bridge.fc6_seg.weight.grad))
    for got, wanted in zip(*found, strict=True):
        assert (got - wanted).norm() < 1e-3 * wanted.norm()  # in float32 normalisation of few values magnifies rounding


def test_a_part_of_a_benchmark_does_not_replace_the_results_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RESULTS", "PARTIAL"):
        monkeypatch.setattr(machine, name, tmp_path / name)
    assert machine.result_path(None, "ops", "x") == tmp_path / "RESULTS/ops-x.json"
    assert machine.result_path(None, "ops", "x", whole=False) == tmp_path / "PARTIAL/ops-x.json"
    assert machine.result_path(tmp_path / "named", "ops", "x", whole=False) == tmp_path / "named/ops-x.json"
    assert (tmp_path / "named").is_dir()


def test_loading_is_measured_for_both_stages_with_and_without_kept_images(tmp_path: Path) -> None:
    report = run("data_loading.py", tmp_path)
    assert report["size"] == [500, 375]
    assert 50_000 < report["jpeg_bytes"] < 200_000, "not the size of a photograph of VOC's"
    assert {(row["stage"], row["workers"], row["cached"]) for row in report["rows"]} == {
        (stage, workers, cached)
        for stage in ("classifier", "segmenter")
        for workers in (0, 1)
        for cached in (False, True)
    }
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] for row in report["rows"])


def test_the_way_from_files_to_masks_is_measured_with_and_without_a_network(tmp_path: Path) -> None:
    report = run("predict.py", tmp_path)
    wanted = {(network, way) for network in ("no network", "ddn_fast bf16") for way in report["ways"]}
    assert {(row["network"], row["way"]) for row in report["rows"]} == wanted
    assert all(0 < row["low"] <= row["ms"] <= row["high"] and row["cpu_ms"] > 0 for row in report["rows"])
    assert len(predict.table(report).splitlines()) == 2 + len(report["ways"])


def test_longest_shares_of_threads_are_measured_for_every_stage(tmp_path: Path) -> None:
    report = run("scaling.py", tmp_path, "--threads", "1", "3", "--maps", "2")
    assert [row["threads"] for row in report["rows"]] == [1, 3] * 10
    for row in report["rows"]:
        assert 0 < row["longest_ms"] <= row["all_ms"] <= row["threads"] * row["longest_ms"] + 1e-3


def test_a_librarys_special_way_that_does_not_run_here_is_named_and_left_out() -> None:
    """cuDNN may have no fused convolution for some shape; whatever else fails, fails."""

    def lacking() -> torch.Tensor:
        raise RuntimeError("no engine for this shape")

    x = torch.ones(4)
    ours, torchs = Rival(op_benchmark.OURS, lambda: x * 2), Rival("torch", lambda: x + x)

    def measured(*rivals: Rival) -> tuple[list[dict[str, Any]], str | None]:
        group = Group("double", "4", torch.float32, 4, 32, lambda: x.double() * 2, list(rivals))
        return op_benchmark.measure(group, {}, {"seconds": 0.01})

    rows, failure = measured(ours, torchs, Rival("cuDNN", lacking, special=True))
    assert [row["rival"] for row in rows] == [ours.name, "torch"]
    assert failure == "double, 4, torch.float32: cuDNN: no engine for this shape"
    assert measured(ours, torchs)[1] is None
    with pytest.raises(RuntimeError, match="no engine"):
        measured(ours, torchs, Rival("cuDNN", lacking))
