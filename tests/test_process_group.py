"""However a process leaves its group, the group's threads end before the interpreter does."""

from __future__ import annotations

import json
import sys

import pytest
from processes import HERE, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


@pytest.mark.parametrize(
    ("ending", "error"), [("done", None), ("raised", "of its own"), ("left", "another process of this run has ended")]
)
def test_no_thread_outlives_the_group(ending: str, error: str | None) -> None:
    """One that lets go of a tensor while the interpreter ends aborts the process, with status -6 after good work."""
    last = json.loads(run(2, HERE / "process_group_program.py", ending)[1])  # the first one keeps the store, too
    assert last["inside"] > last["before"] == last["after"]
    assert last["error"] is None if error is None else error in last["error"]
