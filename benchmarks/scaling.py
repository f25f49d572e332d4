"""How far the bfloat16 engine's stages could gain from threads, on a machine that has few.

``scaling.cpp``, compiled for this machine, runs the shares of each parallel loop one after the other and counts the
longest: what as many threads would take if they did not hinder each other. Writes ``scaling-<machine>.json``.

    python benchmarks/scaling.py [--threads 1 2 4 8 16 32] [--maps 1 8] [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine

METHOD = {
    "counted": "processor time of the longest share of each parallel loop, summed over a stage's loops; best of tries",
    "left out": "memory and caches that threads share, and waiting for each other",
    "stages": "those of the full-size network in the winograd_int16 layout, without conv1_1 and the score",
}
SIDE, QUICK_SIDE = 320, 32


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    parser.add_argument("--threads", type=machine.positive, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--maps", type=machine.positive, nargs="+", default=[1, 8])
    parser.add_argument("--tries", type=machine.positive, default=5)
    parser.add_argument("--quick", action="store_true", help="small maps, one try: does it run?")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "scaling",
        "quick": arguments.quick,
        "machine": machine.describe(),
        "method": METHOD,
    }
    path = machine.result_path(arguments.out, "scaling", report["machine"]["name"], whole=not arguments.quick)
    side, tries = (QUICK_SIDE, 1) if arguments.quick else (SIDE, arguments.tries)
    try:
        report["rows"] = measured(side, tries, arguments.maps, arguments.threads)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"scaling: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
        return 1
    machine.save(report, path)
    for maps in arguments.maps:
        print(f"{maps} map{'s' if maps > 1 else ''}: {sums(report['rows'], maps)}")
    print(path)
    return 0


def measured(side: int, tries: int, maps: list[int], threads: list[int]) -> list[dict[str, Any]]:
    """The program's rows. Raises OSError or CalledProcessError where it cannot be built."""
    csrc = machine.ROOT / "csrc"
    sources = [machine.ROOT / "benchmarks/scaling.cpp", csrc / "cpu/conv3x3_plain.cpp", csrc / "cpu/scratch.cpp"]
    flags = ["-std=c++20", "-march=native", "-Wno-psabi", f"-I{csrc}"]
    lists = [",".join(map(str, values)) for values in (maps, threads)]
    return machine.said_by_program(sources, flags, [str(side), str(tries), *lists])


def sums(rows: list[dict[str, Any]], maps: int) -> str:
    """All stages together, for each number of threads."""
    total: dict[int, float] = {}
    for row in rows:
        if row["maps"] == maps:
            total[row["threads"]] = total.get(row["threads"], 0.0) + row["longest_ms"]
    return ", ".join(f"{threads} threads {ms:.1f} ms" for threads, ms in total.items())


if __name__ == "__main__":
    sys.exit(main())
