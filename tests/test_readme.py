"""What the README says is what the project holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import readme

from ddn_fast.cli import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_benchmark_tables_are_made_from_the_kept_results() -> None:
    assert readme.update(README) == README, "run python benchmarks/readme.py"


def test_a_marked_table_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    times = {"stock best": {"ms": 30.0}, "ddn_fast bf16": {"ms": 10.04}}
    report = {"benchmark": "end_to_end", "scenarios": [{"name": "K=1", "labels": [1], "rivals": times}]}
    (tmp_path / "e2e.json").write_text(json.dumps(report))
    text = "before\n<!-- results: e2e -->\n{}<!-- /results -->\nafter\n<!-- results -->"
    made = readme.update(text.format("old | table\n"), tmp_path)
    assert made == text.format(
        "\nms | K=1\n---|---:\nstock best | 30.0\nddn_fast bf16 | 10.0\nstock best / ddn_fast bf16 | 2.99\n\n"
    )
    assert readme.update(made, tmp_path) == made


def test_a_table_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        readme.update("<!-- results: nowhere -->\n<!-- /results -->", tmp_path)


@pytest.mark.parametrize(("document", "count"), [("README.md", 8), ("docs/import.md", 6)])
def test_commands_are_ones_the_program_takes(document: str, count: int) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = re.findall(r"^    ddn-fast (.+?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) >= count
    for command in commands:
        build_parser().parse_args(command.split())


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[[^]]*]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
