"""How many samples a second the loader gives: both stages, by worker processes, with decoded images kept and without.

JPEGs of PASCAL VOC's size (500x375) and their masks are made in a temporary folder; samples go through the datasets and
the loader that training uses, at side 320. Writes ``data_loading-<machine>.json``. A network that takes fewer images a
second than the last column of its stage never waits.

    python benchmarks/data_loading.py [--workers 1 2 4]
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import machine
import numpy as np
from torch.utils.data import Dataset

from ddn_fast.config import VOC_CLASSES
from ddn_fast.data.datasets import ClassificationItems, SegmentationItems
from ddn_fast.data.tags import tags_from_masks
from ddn_fast.data.voc import VocFolder
from ddn_fast.data.windows import build_items
from ddn_fast.images import save_mask
from ddn_fast.training.loop import Batch, batches_from

HEIGHT, WIDTH = 375, 500
SIDE, NEW_SIDE, BATCH = 320, 350, 16
CACHE_BYTES = 1 << 30
AHEAD = 4  # batches a worker prepares before they are asked for, as the loader has it

Make = Callable[..., Dataset[Batch]]


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, nargs="+", default=range(cores + 1), help="0: the process itself")
    parser.add_argument("--images", type=machine.positive, default=96)
    parser.add_argument("--batches", type=machine.positive, default=12, help="of each of five measured stretches")
    parser.add_argument("--threads", type=machine.positive, help="name the machine, too (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    arguments = parser.parse_args()
    machine.use_threads(arguments.threads)
    path = machine.result_path(arguments.out, "data_loading", whole=not arguments.quick)
    if arguments.quick:
        arguments.workers, arguments.images, arguments.batches = [0, 1], 6, 1
    with tempfile.TemporaryDirectory() as folder:
        jpeg_bytes = write_folder(Path(folder), arguments.images)
        stages = datasets(VocFolder(folder))
        rows = [
            measure(stage, make, arguments.images, workers, cached, arguments.batches)
            for stage, make in stages.items()
            for workers in arguments.workers
            for cached in (False, True)
        ]
    report: dict[str, Any] = {"benchmark": "data_loading", "machine": machine.describe()}
    report |= {
        "images": arguments.images,
        "jpeg_bytes": jpeg_bytes,
        "size": [WIDTH, HEIGHT],
        "side": SIDE,
        "rows": rows,
    }
    machine.save(report, path)
    print(path)
    return 0


def write_folder(root: Path, count: int) -> int:
    """`count` images with masks in VOC's layout; returns the mean size of a JPEG, which is that of a photograph."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    sizes = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int64)
        image = np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 93])
        sizes.append(len(jpeg))
        (root / f"JPEGImages/{number:06d}.jpg").write_bytes(jpeg.tobytes())
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            centre, axes = rng.integers(80, 300, 2).tolist(), rng.integers(40, 120, 2).tolist()
            cv2.ellipse(mask, centre, axes, 0, 0, 360, int(rng.integers(1, len(VOC_CLASSES) + 1)), -1)
        save_mask(mask, root / f"SegmentationClass/{number:06d}.png")
    names = "".join(f"{number:06d}\n" for number in range(count))
    (root / "ImageSets/Segmentation/train.txt").write_text(names)
    return round(statistics.mean(sizes))


def datasets(folder: VocFolder) -> dict[str, Make]:
    """How each stage's samples are made."""
    ids = folder.ids("train")
    tags = tags_from_masks(folder, ids, progress=False)
    items = build_items(folder, ids, progress=False)
    common: dict[str, Any] = {"new_side": NEW_SIDE, "side": SIDE}
    return {
        "classifier": functools.partial(ClassificationItems, folder, ids, tags, **common),
        "segmenter": functools.partial(SegmentationItems, folder.root, items, folder.num_classes, **common),
    }


def measure(stage: str, make: Make, images: int, workers: int, cached: bool, batches: int) -> dict[str, Any]:
    """Samples a second in five stretches, after every worker's queue and, with `cached`, its memory has filled."""
    processes = max(1, workers)
    warm = AHEAD * processes + 1
    if cached:  # a worker meets a given image once in `workers` epochs: after three times that it has 95 % of them
        warm += 3 * processes * -(-images // BATCH)
    wanted = warm + 5 * batches
    loading = make(samples=(wanted + AHEAD * processes) * BATCH, cache_bytes=CACHE_BYTES if cached else 0)
    loader = batches_from(loading, (range(n * BATCH, (n + 1) * BATCH) for n in range(wanted)), workers)
    for _ in range(warm):
        next(loader)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        rates.append(BATCH * batches / (time.perf_counter() - start))
    low, median, high = statistics.quantiles(rates, n=4, method="inclusive")
    kept = "kept" if cached else "decoded each time"
    print(f"{stage}, {workers} workers, images {kept}: {median:.0f} images/s", flush=True)
    row: dict[str, Any] = {"stage": stage, "workers": workers, "cached": cached}
    return row | {"images_per_second": round(median, 1), "low": round(low, 1), "high": round(high, 1)}


if __name__ == "__main__":
    raise SystemExit(main())
