"""What the README says is what the project holds."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from ddn_fast.cli import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_few_shot_table_is_made_from_the_kept_results() -> None:
    spec = importlib.util.spec_from_file_location("few_shot", ROOT / "benchmarks/few_shot.py")
    assert spec is not None
    assert spec.loader is not None
    few_shot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(few_shot)
    kept = json.loads((ROOT / "benchmarks/results/few_shot.json").read_text())
    assert few_shot.table(kept["results"]) in README


def test_commands_are_ones_the_program_takes() -> None:
    commands = re.findall(r"^    ddn-fast (.+?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        build_parser().parse_args(command.split())


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[[^]]*]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
