"""One process of tests/test_distributed.py: global_moments of its rows; writes what it got and its gradient."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddn_fast import distributed

dist.init_process_group("gloo")
rank, found = dist.get_rank(), {}
given = load_file(sys.argv[1] + "/given.safetensors")
for kind in (torch.float32, torch.float64):
    counts = given["counts"].tolist()
    x = given["x"].to(kind).split(counts)[rank].clone().requires_grad_()  # [n,C]
    weight = given["weight"].to(kind).split(counts)[rank]
    var, mean = torch.var_mean(x, 0, correction=0)
    mean, var = distributed.global_moments(mean, var, len(x))
    y = (x - mean) / var.sqrt()
    loss: Tensor = (y * weight).sum() + (rank + 1) * (mean.square() + var).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    found |= {f"{kind} mean": mean.detach(), f"{kind} var": var.detach(), f"{kind} gradient": gradient}
with distributed.alone():
    own = distributed.global_moments(torch.ones(2), torch.ones(2) * rank, 1)
assert not distributed._alone
save_file(found | {"alone": own[1]}, f"{sys.argv[1]}/{rank}.safetensors")
dist.destroy_process_group()
