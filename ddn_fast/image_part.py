"""What runs once per image, by the fused ops: encoder, head, and the way back of a label through the head.

    x -> encoder stages (+ switches) -> windows of pool5 -> fc6 -> fc7 -> class scores
    label -> gate -> its window of the class-specific activation map

Numbers in brackets below are identities of SPEC section 9. B images, L classes, S x S input, M x M the pool5 map,
G x G the class grid, k = fc_kernel, C5 = widths[4].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import NetConfig
from .folding import FoldedImagePart
from .network import best_position, check_images, max_scores, mean_scores


class Encoded(NamedTuple):
    """What runs once per image leaves behind for one batch."""

    pool5: Tensor  # [B,C5,M,M]
    windows: Tensor  # [B,G*G,k*k*C5], of pool5 under each place of the grid
    fc6: Tensor  # [B,G*G,fc], after ReLU
    fc7: Tensor  # [B,G*G,fc], after ReLU
    score_map: Tensor  # [B,L,G,G], before any sigmoid
    switches: tuple[Tensor, ...]  # of pool1..pool5: [B,h,w,ceil(C/4)] uint8

    @property
    def scores(self) -> Tensor:
        """Image-level scores ``[B,L]`` (section 3)."""
        return mean_scores(self.score_map)

    @property
    def max_scores(self) -> Tensor:
        """``[B,L]``: sigmoid of the maximum over the grid; used in training only (section 8)."""
        return max_scores(self.score_map)

    @property
    def position(self) -> Tensor:
        """``[B,L]`` int64: where each class scores highest, row-major, first on a tie (section 3)."""
        return best_position(self.score_map)

    def before_decoder(self) -> Encoded:
        """The same without what the decoder alone reads: what bridge and gate do."""
        # not _replace: torch 2.11's compiler makes an empty tuple of it
        return Encoded(self.pool5[:0], self.windows, self.fc6, self.fc7, self.score_map, ())


class ImagePart:
    """Encoder and head of a network, folded and run by the fused ops; stage 2 of training leaves them as they are.

    weights by :func:`ddn_fast.folding.fold_image_part`, dtype of maps and large layers, ops: a namespace of ops. No
    gradient flows. Never written to after it is built, so any number of threads may use one.
    """

    def __init__(self, config: NetConfig, weights: FoldedImagePart, dtype: torch.dtype, ops: Any) -> None:
        self.config, self.weights, self.dtype, self.ops = config, weights, dtype, ops
        wide, device = torch.promote_types(dtype, torch.float32), weights.cls_score.weight.device
        self._input_like = torch.empty(0, dtype=wide, device=device)

    def input_like(self) -> Tensor:
        """An empty tensor of the input's dtype."""
        return self._input_like

    @torch.no_grad()
    def encode(self, x: Tensor) -> Encoded:
        """x ``[B,3,S,S]`` to what its passes need; InputError on another x."""
        check_images(x, self.config, self._input_like)
        ops, weights, grid = self.ops, self.weights, self.config.grid**2
        x = x.to(self.dtype, memory_format=torch.channels_last)
        switches = []
        for stage in weights.encoder:
            x, switch = ops.conv3x3_max_pool2x2(x, stage.weights, stage.biases)
            switches.append(switch)
        windows = windows_of(x.permute(0, 2, 3, 1), self.config.fc_kernel).flatten(3).flatten(0, 2)
        fc6 = ops.dense(windows, *weights.fc6, relu=True)
        fc7 = ops.dense(fc6, *weights.fc7, relu=True)
        score_map = ops.dense(fc7, *weights.cls_score).unflatten(0, (-1, grid)).transpose(1, 2).contiguous()
        return Encoded(
            x,
            windows.unflatten(0, (-1, grid)),
            fc6.unflatten(0, (-1, grid)),
            fc7.unflatten(0, (-1, grid)),
            score_map.unflatten(2, (self.config.grid, self.config.grid)),
            tuple(switches),
        )

    @torch.no_grad()
    def gate(self, encoded: Encoded, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of class-specific activation maps for y = 1 (1, 2, 10).

        image, label ``[Q]`` int64; returns them, ``[Q,k*k*C5]``, and where each lies, ``[Q]`` in 0..G*G-1.
        """
        weights, position = self.weights, encoded.position
        window = self.ops.class_gate(
            weights.cls_score.weight, weights.fc7.weight, weights.fc6.weight,
            encoded.fc6, encoded.fc7, position, image, label,
        )  # fmt: skip
        return window, position[image, label]

    @torch.no_grad()
    def class_maps(self, encoded: Encoded, labels: Tensor) -> Tensor:
        """Class-specific activation maps ``[B,C5,M,M]`` of labels ``[B,L]``, one pass an image (section 4)."""
        side, kernel, grid = self.config.map_side, self.config.fc_kernel, self.config.grid
        image, label = labels.nonzero(as_tuple=True)
        window, corner = self.gate(encoded, image, label)
        window *= labels[image, label, None].to(window)
        maps = window.new_zeros(len(labels), side * side, self.config.widths[-1])
        steps = torch.arange(kernel, device=window.device)
        offsets = steps[:, None] * side + steps
        pixels = (corner // grid * side + corner % grid)[:, None] + offsets.flatten()  # [Q,k*k]
        maps.index_put_((image[:, None], pixels), window.view(len(image), kernel * kernel, -1), accumulate=True)
        return maps.view(len(labels), side, side, -1).permute(0, 3, 1, 2)


def windows_of(x: Tensor, kernel: int) -> Tensor:
    """The windows under each place of the grid: ``[P,M,M,C]`` to ``[P,G,G,k,k,C]``."""
    return x.unfold(1, kernel, 1).unfold(2, kernel, 1).permute(0, 1, 2, 4, 5, 3).contiguous()
