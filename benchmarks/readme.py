"""README's tables of results, made from the JSON that benchmarks keep.

A table stands between ``<!-- results: NAME [WORD ...] -->`` and ``<!-- /results -->``; NAME is that of a file in
``benchmarks/results`` without ``.json``. Words choose rows of ``ops`` (whose op or case holds one of them) or scenarios
of ``end_to_end``.

    python benchmarks/readme.py          # writes the tables into README.md; a test checks that they are these
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import end_to_end
import few_shot
import ops
import predict
import training_step
from machine import RESULTS, ROOT

from ddn_fast.files import write_atomic

TABLES = {
    "ops": ops.table,
    "end_to_end": end_to_end.table,
    "few_shot": few_shot.table,
    "predict": predict.table,
    "training_step": training_step.table,
}
_TABLE = re.compile(r"(<!-- results: (\S+)((?: \S+)*) -->\n).*?(<!-- /results -->)", re.DOTALL)


def update(text: str, results: Path = RESULTS) -> str:
    """`text` with every marked table as `results` has it; FileNotFoundError where there is no such file."""

    def table(match: re.Match[str]) -> str:
        opening, name, words, closing = match.groups()
        report = json.loads((results / f"{name}.json").read_text())
        return f"{opening}\n{TABLES[report['benchmark']](report, words.split())}\n\n{closing}"

    return _TABLE.sub(table, text)


def main() -> int:
    """Rewrite README.md; returns the exit status."""
    readme = ROOT / "README.md"
    write_atomic(readme, update(readme.read_text(encoding="utf-8")).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
