"""One process of tests/test_process_group.py: the threads that it has before, inside and after its process group."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from ddn_fast import distributed
from ddn_fast.errors import DistributedError
from ddn_fast.process_group import joined


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


ending = sys.argv[1]
found: dict[str, Any] = {"before": threads(), "error": None}
try:
    with joined(lambda: "cpu"):
        weight = torch.ones(4, requires_grad=True)
        torch.optim.SGD([weight], 1.0).step()
        distributed.total(weight)
        found["inside"] = threads()
        if ending == "left" and distributed.rank() == 0:
            os._exit(0)
        if ending == "left":
            while True:
                distributed.total(weight)
        if ending == "raised":
            raise DistributedError("of its own")
except DistributedError as error:
    found["error"] = str(error)
found["after"] = threads()
print(json.dumps(found))
