"""``torchrun --nproc-per-node N -m ddn_fast.train classifier|segmenter ...``: ``ddn-fast train`` in N processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .cli import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """As ``ddn-fast train``, with the same arguments; returns the exit status."""
    return command(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
