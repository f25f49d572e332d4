"""One batch of the full-size network, eagerly, between the marks a profiler looks for: what ncu watches.

ncu --profile-from-start off .. python benchmarks/gpu_profile.py [--images 8]
"""

from __future__ import annotations

import argparse

import torch
from networks import make_engine

from ddn_fast.config import NetConfig
from ddn_fast.network import DecoupledNet
from ddn_fast.plan import plan_passes


@torch.no_grad()
def main() -> int:
    """Run it once as warm-up and once between the marks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    with torch.device("cuda"):
        engine = make_engine("ddn_fast bf16, no graphs", DecoupledNet(NetConfig()).eval())
        x = 40 * torch.randn(arguments.images, 3, 320, 320)
    chosen = [[0, 1] if k % 2 else [0] for k in range(arguments.images)]

    def run() -> None:
        scores, state = engine.score_images(x)
        passes = plan_passes(scores, chosen)
        difference = engine.score_passes(state, passes.labels, passes.image_of_pass)
        engine.merge_scores(difference[:1], 1, 500, (375, 500))
        torch.cuda.synchronize()

    run()
    torch.cuda.profiler.start()
    run()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
