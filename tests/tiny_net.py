"""A DecoupledNet small enough for a test, with random weights under which several classes are identified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ddn_fast.config import NetConfig
from ddn_fast.network import BatchNorm, DecoupledNet

CLASSES = ("ant", "bee", "cow", "dog", "elk", "fox")


def tiny_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> DecoupledNet:
    """Six classes, 64 x 64 input, 2 x 2 class grid; every bias, scale and shift random; eval mode."""
    config = NetConfig(CLASSES, side=64, widths=(4, 5, 6, 7, 8), fc=16, bridge=12, fc_kernel=1)
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    net = DecoupledNet(config)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.weight.copy_(1 + normal(module.weight, 0.2))
                module.bias.copy_(normal(module.bias, 0.3))
                module.running_mean.copy_(normal(module.running_mean, 0.1))
                module.running_var.copy_(0.5 + normal(module.running_var, 0.3).abs())
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan = module.weight[0].numel()
                module.weight.copy_(normal(module.weight, (2 / fan) ** 0.5))
                module.bias.copy_(normal(module.bias, 0.1))
        net.encoder.conv1_1.weight /= 64  # pixels are of order 100
        score = net.head.cls_score
        x = torch.stack([net.network_input(random_image(100 + k, 60, 60)) for k in range(4)])
        logits = net.eval().encode(x)[1].score_map.mean((2, 3))
        score.weight *= (1.0 / logits.std(0).clamp(min=1e-3))[:, None, None, None]
        score.bias.copy_(torch.linspace(1.2, -1.2, len(CLASSES)) - (logits.mean(0) - score.bias) / logits.std(0))
        difference = net(x, torch.ones(4, 6), torch.arange(4))
        net.decoder.seg_score.weight *= 4 / (difference[:, 1] - difference[:, 0]).std()
        difference = net(x, torch.ones(4, 6), torch.arange(4))
        net.decoder.seg_score.bias[0] += (difference[:, 1] - difference[:, 0]).mean()
    return net.to(dtype)


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    """HxWx3 uint8 RGB: blobs of colour with noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def write_image(path: Path, seed: int, height: int, width: int) -> Path:
    """A random image as PNG."""
    Image.fromarray(random_image(seed, height, width)).save(path)
    return path
