"""How far label maps of the plain float32 network and of the engines agree with those of the plain network in float64.

Every held-out image that has a mask is segmented by each. A pixel whose two best scores lie within 1e-3 in float64 is a
near tie, which any rounding may turn; an image whose class scores straddle the threshold gets other classes altogether.
Prints a table, writes JSON.

    python benchmarks/agreement.py --weights runs/s/weights --data VOC [--limit 20] [--out agreement.json]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ddn_fast.data.voc import VocFolder
from ddn_fast.evaluate import confusion, intersection_over_union
from ddn_fast.images import Array, as_image, load_mask, resize_matlab
from ddn_fast.network import DecoupledNet
from ddn_fast.plan import identify, plan_passes
from ddn_fast.reference import pixel_scores
from ddn_fast.segmentation import Segmenter
from ddn_fast.weights import load

MARGIN = 1e-3
ORACLE = "plain float64"


@dataclass
class Tally:
    """Pixels of one rival against the oracle, and its confusion matrix."""

    matrix: NDArray[np.int64]
    pixels: int = 0
    differ: int = 0
    outside: int = 0  # of these, not near ties
    outside_same_labels: int = 0  # of these, in images with the oracle's classes
    other_labels: int = 0  # images

    def add(self, mask: Array, labels: list[int], wanted: Oracle, truth: Array) -> None:
        """Count one image."""
        differs = mask != wanted.mask
        outside = int((differs & (wanted.gap > MARGIN)).sum())
        self.pixels += mask.size
        self.differ += int(differs.sum())
        self.outside += outside
        self.outside_same_labels += outside if labels == wanted.labels else 0
        self.other_labels += labels != wanted.labels
        self.matrix += confusion(truth, mask, len(self.matrix) - 1)

    @property
    def mean_iu(self) -> float:
        """In percent."""
        return 100 * float(np.nanmean(intersection_over_union(self.matrix)))


@dataclass
class Oracle:
    """What the plain network says of an image in float64."""

    mask: Array  # [H,W]
    gap: NDArray[np.float64]  # [H,W], between the two best scores
    labels: list[int]


def main() -> int:
    """Run all rivals over all images; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="saved folder or .caffemodel")
    parser.add_argument("--data", type=Path, required=True, help="a VOC folder")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="images at most")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rivals: dict[str, Segmenter] = {"plain float32": load(arguments.weights)}
    for dtype in (torch.float32, torch.bfloat16):
        rivals[f"engine {str(dtype).removeprefix('torch.')}"] = load(arguments.weights, fast=True, dtype=dtype)
    oracle = load(arguments.weights).double()
    folder = VocFolder(arguments.data, classes=oracle.config.classes)
    ids = folder.masked_ids(arguments.split)[: arguments.limit]
    tallies = compare(oracle, rivals, folder, ids, arguments.batch_size)
    figures = report(tallies, len(ids))
    print(table(figures))
    if arguments.out:
        machine.save(figures, arguments.out)
    return 0


def compare(
    oracle: DecoupledNet, rivals: dict[str, Segmenter], folder: VocFolder, ids: tuple[str, ...], batch_size: int
) -> dict[str, Tally]:
    """Every rival's figures, the oracle's own first."""
    size = oracle.config.num_classes + 1
    tallies = {name: Tally(np.zeros((size, size), np.int64)) for name in (ORACLE, *rivals)}
    index = {name: k for k, name in enumerate(oracle.config.classes)}
    streams = [
        rival.segment_iter((folder.image_path(name) for name in ids), batch_size=batch_size)
        for rival in rivals.values()
    ]
    for name, *results in zip(tqdm(ids, unit="image"), *streams, strict=True):
        wanted = look(oracle, as_image(folder.image_path(name)))
        mask_path = folder.mask_path(name)
        assert mask_path is not None
        truth = load_mask(mask_path, size - 1)
        tallies[ORACLE].add(wanted.mask, wanted.labels, wanted, truth)
        for rival, result in zip(rivals, results, strict=True):
            tallies[rival].add(result.mask, [index[label.name] for label in result.labels], wanted, truth)
    return tallies


@torch.inference_mode()
def look(net: DecoupledNet, image: Array) -> Oracle:
    """The plain formulas from input to scores at the image's size, in float64."""
    height, width = image.shape[:2]
    scores, state = net.score_images(net.network_input(image)[None].double())
    (labels,) = identify(scores)
    if not labels:
        return Oracle(np.zeros((height, width), np.uint8), np.full((height, width), np.inf), labels)
    passes = plan_passes(scores, [labels])
    difference = net.score_passes(state, passes.labels, passes.image_of_pass)
    square = max(height, width)
    planes = resize_matlab(pixel_scores(difference, len(labels)), (square, square), "bicubic", (height, width))
    best = planes.topk(2, 0).values
    lookup = np.array([0, *(label + 1 for label in labels)], np.uint8)
    return Oracle(lookup[planes.numpy().argmax(0)], (best[0] - best[1]).numpy(), labels)


def report(tallies: dict[str, Tally], images: int) -> dict[str, Any]:
    """The figures with what produced them."""
    base = tallies[ORACLE].mean_iu
    rows = {
        name: {
            "same_label_percent": 100 * (1 - tally.differ / tally.pixels),
            "pixels_that_differ": tally.differ,
            "outside_margin": tally.outside,
            "outside_margin_in_images_with_the_same_labels": tally.outside_same_labels,
            "images_with_other_labels": tally.other_labels,
            "mean_iu_percent": tally.mean_iu,
            "mean_iu_difference": tally.mean_iu - base,
        }
        for name, tally in tallies.items()
    }
    return {
        "machine": machine.describe(),
        "images": images,
        "pixels": tallies[ORACLE].pixels,
        "margin": MARGIN,
        "rivals": rows,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a table of Markdown."""
    lines = [
        f"{figures['images']} images | same label, % | differ | of these no near tie | images with other labels "
        "| mean IU, % | difference",
        "---|---:|---:|---:|---:|---:|---:",
    ]
    for name, row in figures["rivals"].items():
        lines.append(
            f"{name} | {row['same_label_percent']:.4f} | {row['pixels_that_differ']} | {row['outside_margin']} "
            f"| {row['images_with_other_labels']} | {row['mean_iu_percent']:.2f} | {row['mean_iu_difference']:+.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
