"""What ``gpu.py`` found as a short text: steps, tests that failed, tables of the benchmarks, and the targets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

MAX_NAMES = 4  # of tests of a file that failed
MAX_FAILED = 40  # lines about what failed
MAX_OPS = 45  # lines about ops
SHOWN = ("ddn_fast bf16", "ddn_fast bf16, no graphs", "stock best", "eager bf16 batched", "eager fp32 loop")
OURS, STOCK, LOOP = "ddn_fast bf16", "stock best", "eager fp32 loop"
PROFILED = ("Duration", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput", "Registers Per Thread",
            "Achieved Occupancy")  # fmt: skip

# what an H200 is asked for: scenario and value, or a ratio of two rivals
TARGETS = {"images/s at B=32, 1.9 passes": 2500.0, "of stock best": 1.7, "of the eager loop": 15.0, "latency, ms": 0.7,
           "convolutions, of the matrix rate": 0.75, "peak memory of max_unpool2d": 3.0}  # fmt: skip


def text(report: dict[str, Any]) -> str:
    """The whole report for people, at most some 10,000 characters."""
    machine = report["machine"]
    lines = [f"{machine.get('gpu')}, torch {machine.get('torch')}, {machine.get('nvcc')}, commit {report['commit']}"]
    results = report.get("results", {})
    # where not all of it comes back it is the end that does
    for part in (_ops(results.get("ops")), _network(results.get("end_to_end_cuda")), _predict(results.get("predict")),
                 _profile(results.get("profile")), _failed(report), _steps(report), _targets(results)):  # fmt: skip
        lines += part
    return "\n".join(lines)[-11_000:]


def counts(output: str) -> dict[str, Any]:
    """How many tests passed, and which failed or were skipped, from what ``pytest -v`` printed."""
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": []}
    for name, outcome in re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", output, re.MULTILINE):
        if outcome == "PASSED":
            found["passed"] += 1
        else:
            found["skipped" if outcome == "SKIPPED" else "failed"].append(name)
    for name in re.findall(r"^(?:FAILED|ERROR) (\S+\.py(?:::\S+)?)", output, re.MULTILINE):
        if not any(name in known or known in name for known in found["failed"]):
            found["failed"].append(name)
    found["errors"] = list(dict.fromkeys(re.findall(r"^E   +(\S.*)", output, re.MULTILINE)))[:4]
    started = re.findall(r"^(\S+::\S+)(?: |$)", output, re.MULTILINE)
    found["last"] = started[-1] if started else None
    return found


def ncu_rows(output: str) -> list[dict[str, str]]:
    """What ncu wrote as CSV: a row for each kernel, with the metrics of PROFILED that it has."""
    start = output.find('"ID"')
    if start < 0:
        return []
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(output[start:])):
        metric, number = row.get("Metric Name"), row.get("ID")
        if number is None or row.get("Kernel Name") is None:
            continue
        kernel = kernels.setdefault(number, {"kernel": row["Kernel Name"][:120], "grid": row.get("Grid Size", "")})
        if metric in PROFILED:
            kernel[metric] = f"{row.get('Metric Value')} {row.get('Metric Unit')}".strip()
    return list(kernels.values())


def _steps(report: dict[str, Any]) -> list[str]:
    found = ["", "step            status        seconds"]
    for name, step in report["steps"].items():
        tests = step.get("tests")
        more = (
            f"  {tests['passed']} passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped"
            if tests
            else ""
        )
        found.append(f"{name:28s} {step['status']:12s} {step['seconds']:8.1f}{more}")
    return found


def _failed(report: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, step in report["steps"].items():
        tests = step.get("tests") or {"failed": [], "skipped": [], "errors": [], "last": None}
        names = [f"FAILED {test}" for test in tests["failed"]] + [f"SKIPPED {test}" for test in tests["skipped"]]
        found += [f"  {line[:150]}" for line in names[:MAX_NAMES]]
        found += [f"  .. and {len(names) - MAX_NAMES} more of {name}"] if len(names) > MAX_NAMES else []
        found += [f"    {line[:200]}" for line in tests["errors"]]
        if step["status"] == "out of time" and tests["last"]:
            found.append(f"  out of time in {tests['last'][:150]}")
        elif step["status"] == "failed" and not names:
            found += [f"  {name}: {line[:160]}" for line in step["tail"][-5:]]
    for what, result in report.get("results", {}).items():
        if isinstance(result, dict):
            found += [f"  {what}: {str(line)[:200]}" for line in result.get("failed", [])[:6]]
            found += [f"  {what}: stopped {result['stopped']}"] if "stopped" in result else []
    return ["", "what failed:", *found[:MAX_FAILED]] if found else []


def _ops(ops: dict[str, Any] | None) -> list[str]:
    if not ops or not ops["rows"]:
        return []
    rates = ", ".join(f"{key} {value}" for key, value in ops["ceilings"].items())
    found = [
        "",
        f"ceilings: {rates}",
        f"{'op':46s} {'ours ms':>9s} {'TFLOP/s':>8s} {'of bound':>8s}  rivals, times ours",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in ops["rows"]:
        groups.setdefault((row["op"], row["case"]), []).append(row)
    for (op, case), rows in groups.items():
        mine = [row for row in rows if row["rival"] == "ddn_fast"]
        if not mine:
            continue
        ours = min(mine, key=lambda row: (not row["correct"], row["ms"]))
        others = " ".join(
            f"{row['isa'] if row in mine else row['rival']} {row['ms'] / ours['ms']:.2f}"
            + ("" if row["correct"] else " (wrong)")
            for row in rows if row is not ours
        )  # fmt: skip
        fraction = "" if ours["fraction"] is None else f"{ours['fraction']:.0%}"
        wrong = "" if ours["correct"] else f"  WRONG {ours['error']:.1e}"
        name = (case if case.startswith("stage") else f"{op.split()[0]} {case}")[:46]
        found.append(f"{name:46s} {ours['ms']:9.4f} {ours['tflops']:8.1f} {fraction:>8s}  {others}{wrong}")
    return found[:MAX_OPS]


def _network(report: dict[str, Any] | None) -> list[str]:
    if not report:
        return []
    found = ["", "images/s (agreement with the eager loop; peak MiB above the weights)"]
    for scenario in report["scenarios"]:
        found.append(f"{scenario['name']}:")
        for name, row in scenario["rivals"].items():
            if "ms" in row and name in SHOWN:
                agreement = "" if row["agreement"] is None else f"{row['agreement']:.2%}"
                rate = f"{row['images_s']:9.1f} {row['ms']:9.3f} ms"
                found.append(f"  {name:26s} {rate} {agreement:>8s} {row['peak_mib']:9.0f} MiB")
    return found


def _predict(report: dict[str, Any] | None) -> list[str]:
    if not report:
        return []
    found = ["", "from files to masks: images/s, ms of CPU an image"]
    found += [
        f"  {row['network']:14s} {row['way']:34s} {row['images_s']:9.1f} {row['cpu_ms']:8.2f}" for row in report["rows"]
    ]
    return found


def _profile(kernels: list[dict[str, str]] | None) -> list[str]:
    if not kernels:
        return []
    found = ["", "kernel                           duration      SM       DRAM     registers  occupancy"]
    for kernel in sorted(kernels, key=_microseconds, reverse=True)[:12]:
        name = re.sub(r"^void |ddn::|\(.*", "", kernel["kernel"])[:32]
        keys = ("Duration", "Compute (SM) Throughput", "DRAM Throughput", "Registers Per Thread", "Achieved Occupancy")
        found.append(f"{name:32s} " + " ".join(f"{kernel.get(key, ''):>10s}" for key in keys))
    return found


def _microseconds(kernel: dict[str, str]) -> float:
    value, _, unit = kernel.get("Duration", "0 us").partition(" ")
    scale = {"ns": 1e-3, "nsecond": 1e-3, "ms": 1e3, "msecond": 1e3}.get(unit, 1.0)
    try:
        return float(value.replace(",", "")) * scale
    except ValueError:
        return 0.0


def _targets(results: dict[str, Any]) -> list[str]:
    found = [f"  {name}: {value:.2f} (wanted {TARGETS[name]})" for name, value in measured(results)]
    return ["", "targets for an H200:", *found] if found else []


def measured(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Those of TARGETS that the results tell."""
    ops, network = results.get("ops"), results.get("end_to_end_cuda")
    if ops and (peak := ops["ceilings"].get("cuda_bfloat16")):
        rows = [
            row for row in ops["rows"]
            if row["rival"] == "ddn_fast" and row["correct"]
            and row["case"].startswith("stage") and row["case"].endswith(" 32 maps")
        ]  # fmt: skip
        fastest = {row["case"]: row for row in sorted(rows, key=lambda row: -row["ms"])}  # of its matrix instructions
        rows = list(fastest.values())
        if len(rows) == 10:  # five stages of the encoder, five of the decoder
            rate = sum(row["tflops"] * row["ms"] for row in rows) / sum(row["ms"] for row in rows)
            yield "convolutions, of the matrix rate", rate / peak
    scenarios = {s["name"]: s["rivals"] for s in network["scenarios"]} if network else {}
    rivals = scenarios.get("B=32, 1.9 passes", {})
    if ours := rivals.get(OURS, {}).get("images_s"):
        yield "images/s at B=32, 1.9 passes", ours
        for name, rival in (("of stock best", STOCK), ("of the eager loop", LOOP)):
            if other := rivals.get(rival, {}).get("images_s"):
                yield name, ours / other
    if latency := scenarios.get("B=1, 1 pass, alone", {}).get(OURS, {}).get("ms"):
        yield "latency, ms", latency
    plain, eager = (
        sum((network["rivals"].get(name, {}).get("weights_mib", 0.0), rivals.get(name, {}).get("peak_mib", 0.0)))
        for name in ("eager bf16 batched", "ddn_fast bf16, no graphs")
    ) if network else (0.0, 0.0)  # fmt: skip
    if plain and eager:
        yield "peak memory of max_unpool2d", plain / eager
