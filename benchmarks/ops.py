"""Every op at the network's shapes, in each dtype, instruction set and weight layout, against plain PyTorch.

Writes ``ops-<machine>.json``, draws ``ops-<machine>.png`` where matplotlib is installed, prints a line for each rival:
median, ratio to ours, GB/s, TFLOP/s, part of the ceiling, error against float64. On CUDA a group that fails is noted
under "failed" and the next one runs.

    python benchmarks/ops.py [--device cuda] [--only conv3x3 dense] [--isa avx2 avx512] [--ops reference] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import groups_conv
import groups_head
import groups_maps
import groups_training
import machine
import timing
import torch
from groups import OURS, Group, Rival, Setting

from ddn_fast import reference
from ddn_fast.config import NetConfig

METHOD = timing.METHOD | {
    "weights": f"cold: copies that fill the largest cache {timing.COLD_FACTOR} times are taken in turn",
    "maps": "warm, as the layer before leaves them; pooling's are larger than the caches",
    "tflops": "operations of the direct algorithm, whichever a rival uses",
    "gb_s": "bytes that have to be read or written once: inputs, weights that matter, results",
    "fraction": "of the roofline: the time the operations or the bytes take at the ceiling of dtype and instruction "
    "set, whichever is longer, by the time measured",
    "error": "largest distance from float64 by its largest value; of labels the share that differs; "
    "correct: at most ten times what stock PyTorch's is",
}
CUDA_METHOD = timing.CUDA_METHOD | {
    key: METHOD[key] for key in ("tflops", "gb_s", "error")
} | {"fraction": "of the roofline of the product of large matrices and the copy measured in the same run"}  # fmt: skip
QUICK = NetConfig(tuple("abcdef"), side=64, widths=(8, 16, 16, 32, 32), fc=64, bridge=32, fc_kernel=1)


def main() -> int:
    """Measure; returns the exit status, 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    parser.add_argument("--ops", choices=("compiled", "reference"), default="compiled", help="whose ops are ours")
    parser.add_argument(
        "--only", nargs="+", choices=reference.OPS, metavar="OP", help="default: all; on CUDA those of inference"
    )
    parser.add_argument("--isa", nargs="+", choices=machine.isas(), default=[], help="default: those that matter")
    parser.add_argument(
        "--batches",
        type=machine.positive,
        nargs="+",
        help="maps or images (default 1 4; on CUDA 32 8 1)",
    )
    parser.add_argument("--seconds", type=float, help="for the samples of one shape and dtype (default 6; on CUDA 0.4)")
    parser.add_argument("--samples", type=machine.positive, default=15, help="of one rival, at most")
    parser.add_argument("--threads", type=machine.positive, help="default: one for each core")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no group is begun")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, two samples: does it run?")
    arguments = parser.parse_args()
    machine.check_device(parser, arguments.device)
    start = time.perf_counter()
    on_cuda = arguments.device == "cuda"
    if not on_cuda:
        machine.use_allocator_settings()
    machine.use_threads(arguments.threads)
    setting = Setting(
        import_module("ddn_fast.ops") if arguments.ops == "compiled" else reference,
        QUICK if arguments.quick else NetConfig(),
        tuple(arguments.batches or ((32, 8, 1) if on_cuda else (1, 4))),
        tuple(arguments.isa),
        arguments.quick,
        arguments.device,
    )
    limits: dict[str, Any] = {"seconds": arguments.seconds or (0.4 if on_cuda else 6.0), "samples": arguments.samples}
    if arguments.quick:
        limits = {"seconds": 0.01, "samples": 2, "least": 2}
    if on_cuda:
        torch.backends.cudnn.benchmark = True  # the rival's best algorithm
        limits["clock"] = timing.CudaClock()
    report: dict[str, Any] = {
        "benchmark": "ops",
        "quick": arguments.quick,
        "ops": arguments.ops,
        "machine": machine.describe_cuda() if on_cuda else machine.describe(),
        "ceilings": _ceilings(arguments),
        "method": CUDA_METHOD if on_cuda else METHOD,
        "rows": [],
    }
    whole = not (arguments.quick or arguments.only or arguments.isa or arguments.batches or arguments.ops != "compiled")
    path = machine.result_path(arguments.out, "ops", report["machine"]["name"], whole=whole)
    with torch.device(arguments.device):
        only = arguments.only or [op for op in reference.OPS if not (on_cuda and op in groups_training.OPS)]
        for rows, failure in measured(setting, only, report["ceilings"], limits):
            report["rows"] += rows
            if failure:
                report.setdefault("failed", []).append(failure)
                print(f"failed: {failure}", flush=True)
            machine.save(report, path)
            if time.perf_counter() - start > arguments.budget:
                report["stopped"] = f"after {arguments.budget:.0f} s"
                print(f"stopped {report['stopped']}")
                break
    if on_cuda:
        report["machine"]["clocks_after"] = machine.cuda_clocks()
    machine.save(report, path)
    draw(report, path.with_suffix(".png"))
    wrong = sum(not row["correct"] for row in report["rows"])
    print(f"{path}{f': {wrong} results are wrong' if wrong else ''}")
    return 1 if wrong or "failed" in report else 0


def _ceilings(arguments: argparse.Namespace) -> dict[str, float | None]:
    if arguments.device == "cuda":
        return machine.cuda_ceilings(1024, 64, 3) if arguments.quick else machine.cuda_ceilings()
    return machine.ceilings(milliseconds=5, megabytes=64) if arguments.quick else machine.ceilings()


def measured(
    setting: Setting, only: list[str], ceilings: dict[str, float | None], limits: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], str | None]]:
    """Rows of each group, and what went wrong; on the CPU an error ends the run."""
    for make in all_groups(setting, only):
        try:
            rows, failure = measure(make(), ceilings, limits)
        except (RuntimeError, NotImplementedError) as error:  # memory, too
            if not setting.on_cuda:
                raise
            what = ", ".join(str(part) for part in make.args[1:])
            yield [], f"{make.func.__name__}, {what}: {type(error).__name__}: {str(error)[:300]}"
            continue
        show(rows)
        yield rows, failure


def all_groups(setting: Setting, only: list[str]) -> Iterator[partial[Group]]:
    """What makes the groups of the ops asked for, one by one: each holds gigabytes."""
    sources = {
        groups_conv: [op for op in reference.OPS if op.startswith("conv3x3")],
        groups_head: ["dense", "class_gate"],
        groups_maps: ["network_input", *groups_maps.POOLING, "merge_scores"],
        groups_training: list(groups_training.OPS),
    }
    for source, names in sources.items():
        wanted = [op for op in names if op in only]
        if wanted:
            yield from source.groups(setting, wanted)


@torch.no_grad()
def measure(
    group: Group, ceilings: dict[str, float | None], limits: dict[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """One row for each rival of a group, and which special ones do not run here."""
    errors, failure = _errors(group)
    rivals = [rival for rival in group.rivals if rival.label in errors]
    times = timing.interleave({rival.label: rival.run for rival in rivals}, **limits)
    tolerance = group.tolerance([errors[rival.label] for rival in rivals if rival.name != OURS])
    correct = {label: error <= tolerance for label, error in errors.items()}  # a NaN is not
    ours = [times[rival.label].ms for rival in rivals if rival.name == OURS and correct[rival.label]]
    rows = []
    for rival in rivals:
        time = times[rival.label]
        rows.append(
            {
                "op": group.op,
                "case": group.case,
                "dtype": str(group.dtype).removeprefix("torch."),
                "rival": rival.name,
                "isa": rival.isa,
                "layout": rival.layout,
                **time.to_dict(),
                "by_ours": significant(time.ms / min(ours)) if ours else None,
                "gb_s": significant(group.moved / time.ms / 1e6),
                "tflops": significant(group.flops / time.ms / 1e9),
                **_roofline(group, rival, time.ms, ceilings),
                "error": significant(errors[rival.label]),
                "correct": correct[rival.label],
                "cold_weights": group.cold,
            }
        )
    return rows, failure


def _errors(group: Group) -> tuple[dict[str, float], str | None]:
    """Of each rival that runs here, and why others do not."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):  # once each: not worth a search
        truth = group.truth()
    errors, failure = {}, None
    for rival in group.rivals:
        try:
            errors[rival.label] = group.error(rival.result(), truth)
        except RuntimeError as error:
            if not rival.special or isinstance(error, torch.OutOfMemoryError):
                raise
            failure = f"{group.op}, {group.case}, {group.dtype}: {rival.label}: {str(error)[:300]}"
    return errors, failure


def _roofline(group: Group, rival: Rival, ms: float, ceilings: dict[str, float | None]) -> dict[str, Any]:
    """Which ceiling a rival runs into, and how near it is; None where ceilings were not measured."""
    peak, bandwidth = machine.peak_of(ceilings, group.dtype, rival.isa), ceilings.get("dram_read_gb_s")
    if not peak or not bandwidth:
        return {"bound": None, "fraction": None}
    math, memory = group.flops / peak / 1e9, group.moved / bandwidth / 1e6
    return {"bound": "math" if math > memory else "memory", "fraction": significant(max(math, memory) / ms)}


def significant(value: float) -> float:
    """Rounded to four digits that mean something."""
    return float(f"{value:.4g}")


def show(rows: list[dict[str, Any]]) -> None:
    """A block of lines for people."""
    print(f"{rows[0]['op']}, {rows[0]['case']}, {rows[0]['dtype']}")
    for row in rows:
        name = " ".join(filter(None, (row["rival"], row["isa"], row["layout"])))
        fraction = "" if row["fraction"] is None else f" {row['fraction']:7.1%} of {row['bound']}"
        print(
            f"  {name:28s} {row['ms']:9.3f} ms ({row['low']:.3f} to {row['high']:.3f}, {row['clean']}/{row['samples']})"
            f" {row['by_ours'] or float('nan'):6.2f}x {row['gb_s']:7.1f} GB/s {row['tflops']:7.3f} TFLOP/s{fraction}"
            f"  error {row['error']:.1e}{'' if row['correct'] else '  WRONG'}",
            flush=True,
        )


def best_pairs(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """For each op and case, by dtype: our fastest row and the fastest of the others; wrong results do not count.

    Others that are faster in float32 count for bfloat16, too: on CPUs without instructions for its products.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        if row["correct"]:
            groups.setdefault((row["op"], row["case"], row["dtype"]), []).append(row)
    for (op, case, dtype), rows in groups.items():
        if dtype == "bfloat16":
            rows += [row for row in groups.get((op, case, "float32"), []) if row["rival"] != OURS]
    pairs: dict[tuple[str, str], dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {}
    for (op, case, dtype), rows in groups.items():
        ours, others = ([r for r in rows if (r["rival"] == OURS) == mine] for mine in (True, False))
        if ours and others:
            best = [min(side, key=lambda r: r["ms"]) for side in (ours, others)]
            pairs.setdefault((op, case), {})[dtype] = best[0], best[1]
    return pairs


def table(report: dict[str, Any], words: Sequence[str] = ()) -> str:
    """Markdown: milliseconds of ours and of the best rival, their ratio and our part of the ceiling, in each dtype.

    `words` choose rows: those whose op or case holds one of them; none: all.
    """
    dtypes = ("float32", "bfloat16")
    heads = [f"{dtype}: ours, ms | stock, ms | ratio | of ceiling" for dtype in dtypes]
    lines = ["op | case | " + " | ".join(heads), "---|---" + "|---:" * 4 * len(dtypes)]
    for (op, case), by_dtype in best_pairs(report).items():
        if words and not any(word in f"{op} {case}" for word in words):
            continue
        cells = [op, case]
        for dtype in dtypes:
            if dtype not in by_dtype:
                cells += [""] * 4
                continue
            ours, other = by_dtype[dtype]
            fraction = "" if ours["fraction"] is None else f"{ours['fraction']:.0%}"
            cells += [f"{ours['ms']:.2f}", f"{other['ms']:.2f}", f"{other['ms'] / ours['ms']:.2f}", fraction]
        lines.append(" | ".join(cells).strip())
    return "\n".join(lines)


def draw(report: dict[str, Any], path: Path) -> None:
    """How many times faster ours is than the best rival, a bar for each case and dtype."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    pairs = best_pairs(report)
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.22 * len(pairs)), layout="constrained")
    for shift, dtype in ((-0.2, "float32"), (0.2, "bfloat16")):
        places = [k + shift for k, by_dtype in enumerate(pairs.values()) if dtype in by_dtype]
        found = [by_dtype[dtype] for by_dtype in pairs.values() if dtype in by_dtype]
        axes.barh(places, [other["ms"] / ours["ms"] for ours, other in found], height=0.4, label=dtype)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(pairs)), [f"{op}: {case}" for op, case in pairs], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times faster than the best of stock PyTorch")
    axes.set_title(f"{report['machine']['cpu']}, {report['machine']['threads']} threads", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
