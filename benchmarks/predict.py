"""From image files to masks on the disk: what labelling a million images takes beside the network.

JPEGs of PASCAL VOC's size are made in a temporary folder and segmented into the same classes each. "No network" stands
for one that costs nothing: what is left is what this process can do at most, however fast its device. Networks here
have random weights, whose label maps are noise that no mask is: once computed, each map is replaced by ellipses.

    python benchmarks/predict.py [--device cuda] [--images 64]

Writes ``predict-<machine>.json``. Ways take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import machine
import networks
import numpy as np
import timing
import torch
from end_to_end import CROP, QUICK, blobs, input_of
from torch import Tensor

from ddn_fast import ops
from ddn_fast.cli_predict import predict
from ddn_fast.config import NetConfig
from ddn_fast.engine import FastDecoupledNet
from ddn_fast.images import save_image
from ddn_fast.runtime import runtime_for
from ddn_fast.segmentation import Inputs, Segmenter

NO_NETWORK, BFLOAT16 = "no network", "ddn_fast bf16"
TENSORS, MAPS, MASKS, OVERLAYS, ONE_BY_ONE = (
    "tensors to label maps",
    "files to label maps",
    "predict, masks",
    "predict, masks and overlays",
    "one by one, masks and overlays",
)
ABOUT = {
    TENSORS: "run(): what the network alone takes, images being there as tensors",
    MAPS: "segment_iter() of paths",
    MASKS: "ddn-fast predict --no-overlay",
    OVERLAYS: "ddn-fast predict",
    ONE_BY_ONE: "a loop: segment() of a batch of paths, then save_png() and overlay() of each result",
}
BATCH = 8
CHOSEN = [0, 4]  # class indices: three passes an image


class Ellipses(Segmenter):
    """Mixin: label maps are two ellipses."""

    def merge_scores(self, difference: Tensor, classes: int, square: int, crop: tuple[int, int]) -> Tensor:
        """As the network does, then forgotten."""
        super().merge_scores(difference, classes, square, crop)
        return self.label_map

    def show(self, device: str) -> Any:
        """Make the map they all get."""
        mask = np.zeros(CROP, np.uint8)
        for label, (centre, axes) in enumerate([((180, 170), (110, 90)), ((370, 260), (90, 60))], 1):
            cv2.ellipse(mask, centre, axes, 20, 0, 360, label, -1)
        self.label_map = torch.from_numpy(mask).to(device)
        return self


class Engine(Ellipses, FastDecoupledNet):
    """The engine."""


class NoNetwork(Ellipses):
    """Scores and passes that cost nothing, by an engine's runtime."""

    def __init__(self, config: NetConfig, device: str) -> None:
        self.config, self.ops, self.device = config, ops, torch.device(device)
        self.runtime = runtime_for(self.device, True, False, config.side)
        self._scores = torch.full((1, config.num_classes), 0.5, device=device)

    def input_like(self) -> Tensor:
        """bfloat16, as the engine's."""
        return torch.empty(0, dtype=torch.bfloat16, device=self.device)

    def score_images(self, x: Tensor) -> tuple[Tensor, Any]:
        """The same for all."""
        return self._scores.expand(len(x), -1), None

    def score_passes(self, state: Any, labels: Tensor, image_of_pass: Tensor) -> Tensor:
        """One value a pass."""
        return self._scores.new_zeros(len(labels), 1, 1)

    def merge_scores(self, difference: Tensor, classes: int, square: int, crop: tuple[int, int]) -> Tensor:
        """Nothing to merge."""
        return self.label_map


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help=machine.OUT_HELP)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--images", type=machine.positive, default=64, help="of a sample; with no network four times that"
    )
    parser.add_argument("--samples", type=machine.positive, default=5, help="of each way")
    parser.add_argument("--threads", type=machine.positive, help="default: one for each core")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few images: does it run?")
    arguments = parser.parse_args()
    machine.check_device(parser, arguments.device)
    machine.use_allocator_settings()
    machine.use_threads(arguments.threads)
    if arguments.quick:
        arguments.images, arguments.samples = 4, 2
    report: dict[str, Any] = {
        "benchmark": "predict",
        "quick": arguments.quick,
        "machine": machine.describe() if arguments.device == "cpu" else machine.describe_cuda(),
        "method": timing.METHOD | {"cpu_ms": "of all threads, an image, those that spin between parallel loops too"},
        "ways": ABOUT,
        "size": list(CROP),
        "classes": len(CHOSEN),
        "batch": BATCH,
        "rows": [],
    }
    path = machine.result_path(arguments.out, "predict", report["machine"]["name"], whole=not arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        for net, count in segmenters(arguments):
            report["rows"] += measure(net, count, arguments, Path(folder))
            machine.save(report, path)  # with what there is, should time run out
    print(path)
    return 0


def segmenters(arguments: argparse.Namespace) -> list[tuple[Any, int]]:
    """What segments, and how many images of it are a sample."""
    config = QUICK if arguments.quick else NetConfig()
    x = torch.stack([input_of(blobs(seed, CROP), config.side) for seed in range(2)])
    model = networks.random_network(config, x.to(arguments.device))
    return [
        (NoNetwork(config, arguments.device).show(arguments.device), 4 * arguments.images),
        (Engine(model, torch.bfloat16).show(arguments.device), arguments.images),
    ]


def measure(net: Any, count: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every way's images a second, of `count` images."""
    paths = write_images(folder / str(count), count)
    calls = {name: Measured(call, count) for name, call in ways(net, paths, folder / "out").items()}
    times = timing.interleave(calls, seconds=0, least=arguments.samples)
    name = NO_NETWORK if isinstance(net, NoNetwork) else BFLOAT16
    rows = []
    for way, time_of in times.items():
        row = {"network": name, "way": way, "images": count, "images_s": round(1e3 * count / time_of.ms, 2)}
        row |= {"cpu_ms": round(calls[way].cpu_ms(), 3)} | time_of.to_dict()
        print(f"{name}, {way}: {row['images_s']:.1f} images/s, {row['cpu_ms']:.2f} ms of CPU an image", flush=True)
        rows.append(row)
    return rows


class Measured:
    """A call of many images that notes the processor time each took."""

    def __init__(self, call: Callable[[], None], images: int) -> None:
        self._call, self._images, self._seconds = call, images, list[float]()

    def __call__(self) -> None:
        start = time.process_time()
        self._call()
        self._seconds.append(time.process_time() - start)

    def cpu_ms(self) -> float:
        """Median, an image."""
        return 1e3 * float(np.median(self._seconds)) / self._images


def ways(net: Any, paths: Sequence[Path], out: Path) -> dict[str, Callable[[], None]]:
    """How images become masks."""
    names = [net.config.classes[index] for index in CHOSEN]
    x = net.runtime.stack([net.network_input(path) for path in paths[:BATCH]]).to(net.input_like().dtype)
    batches = [Inputs(x[: len(part)], [CROP] * len(part), [CHOSEN] * len(part)) for part in parts(paths)]

    def drain(results: Any) -> None:
        for _ in results:
            pass

    def written(overlays: bool) -> None:
        shutil.rmtree(out, ignore_errors=True)
        predict(net, paths, out, labels=names, batch_size=BATCH, overlays=overlays, progress=False)

    def one_by_one() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for part in parts(paths):
            for path, result in zip(part, net.segment(part, names), strict=True):
                result.save_png(out / f"{path.stem}.png")
                save_image(result.overlay(), out / f"{path.stem}.jpg")

    return {
        TENSORS: lambda: drain(net.run(batches)),
        MAPS: lambda: drain(net.segment_iter(paths, names, batch_size=BATCH)),
        MASKS: lambda: written(False),
        OVERLAYS: lambda: written(True),
        ONE_BY_ONE: one_by_one,
    }


def parts(paths: Sequence[Path]) -> list[Sequence[Path]]:
    """Batches."""
    return [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]


def write_images(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs, of a photograph's size on the disk."""
    folder.mkdir()
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number < BATCH:
            _, jpeg = cv2.imencode(".jpg", blobs(number, CROP), [cv2.IMWRITE_JPEG_QUALITY, 90])
            path.write_bytes(jpeg.tobytes())
        else:
            os.link(paths[number % BATCH], path)
    return paths


def table(report: dict[str, Any], words: Sequence[str] = ()) -> str:
    """Markdown: images a second of each way, with the engine and without a network."""
    found = {(row["network"], row["way"]): row for row in report["rows"]}
    nets = list(dict.fromkeys(row["network"] for row in report["rows"]))[::-1]
    lines = ["images/s | " + " | ".join(nets), "---" + "|---:" * len(nets)]
    for way in report["ways"]:
        lines.append(f"{way} | " + " | ".join(f"{found[net, way]['images_s']:.1f}" for net in nets))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
