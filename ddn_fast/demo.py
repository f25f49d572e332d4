"""The whole way on generated images: many tags, few masks, both stages, label maps of images never trained on.

``python -m ddn_fast.demo`` (or ``make demo``) writes everything into one folder and ends with a table and a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .data.synthetic import generate
from .data.tags import mask_classes
from .data.voc import VocFolder
from .drawing import PAPER, cell, overlay, sheet
from .errors import DDNError
from .evaluate import Evaluation, evaluate
from .files import write_atomic
from .images import resize_matlab, save_image
from .network import DecoupledNet
from .plan import identify, plan_passes
from .training.classifier import train_classifier
from .training.recipe import load_recipe
from .training.segmenter import train_segmenter

Picture = NDArray[np.uint8]
CELL = 190  # pixels a side
CLASS_MAPS = 3  # rows of class maps in the picture, at most
CACHE_BYTES = 1 << 30


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ddn_fast.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.out, progress=not arguments.quiet)
    except DDNError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(out: Path, progress: bool = True) -> None:
    """Everything, into `out`; what an earlier run finished there is taken over."""
    start = time.perf_counter()
    data = out / "data"
    if not (data / "classes.txt").is_file():  # written last: a folder with it is complete
        generate(data, progress=progress)
    folder = VocFolder(data)
    classifier, segmenter = load_recipe("demo-classifier"), load_recipe("demo-segmenter")
    model = train_classifier(
        folder, out / "classifier", classifier, resume=True, progress=progress, cache_bytes=CACHE_BYTES
    )
    model = train_segmenter(
        folder, out / "segmenter", segmenter, init=model, val_split=None, resume=True, progress=progress,
        cache_bytes=CACHE_BYTES,
    )  # fmt: skip
    result = evaluate(model, folder, "val", progress=progress)
    write_atomic(out / "result.json", (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    save_image(draw_sheet(model, folder, choose_ids(folder)), out / "demo.png")
    print(table(folder, out, result, time.perf_counter() - start))


def table(folder: VocFolder, out: Path, result: Evaluation, seconds: float) -> str:
    """What was trained on what, and how well it does."""
    masks = len((out / "segmenter/masks.txt").read_text().split())
    lines = [
        result.table(),
        "",
        f"tags       {len(folder.ids('Main/train'))} images (stage 1)",
        f"masks      {masks} images, {masks // folder.num_classes} a class (stage 2)",
        f"held out   {result.images} images: mean IU {100 * result.mean_iu:.1f} %, "
        f"mean average precision {100 * result.mean_average_precision:.1f} %",
        f"time       {seconds:.0f} s",
        f"weights    {out / 'segmenter/weights'}",
        f"picture    {out / 'demo.png'}",
    ]
    return "\n".join(lines)


def choose_ids(folder: VocFolder, count: int = 6) -> list[str]:
    """The first held-out images that show two or three classes, for a picture that says something."""
    busy = [name for name in folder.masked_ids("val") if 2 <= len(mask_classes(folder.mask(name))) <= CLASS_MAPS]
    return busy[:count]


def draw_sheet(model: DecoupledNet, folder: VocFolder, ids: list[str]) -> Picture:
    """One column an image; rows: image, truth, the foreground probability of each identified class, result."""
    paths = [folder.image_path(name) for name in ids]
    results = model.segment(paths)
    pairs = [folder.pair(name) for name in ids]
    maps = [class_maps(model, image)[:CLASS_MAPS] for image, _ in pairs]
    rows = max(map(len, maps), default=0)
    columns = []
    for name, (image, mask), found, result in zip(ids, pairs, maps, results, strict=True):
        cells = [cell(image, name, CELL), cell(overlay(image, mask), "truth", CELL)]
        cells += [cell(_heat(image, plane), f"{label} {score:.2f}", CELL) for label, score, plane in found]
        cells += [cell(np.full_like(image, PAPER), "", CELL)] * (rows - len(found))
        columns.append([*cells, cell(result.overlay(legend=False), "result", CELL)])
    return sheet(columns)


def class_maps(model: DecoupledNet, image: Picture) -> list[tuple[str, float, NDArray[np.float32]]]:
    """Name, score and foreground probability ``[H,W]`` of each class identified in an image ``[H,W,3]`` uint8 RGB."""
    height, width = image.shape[:2]
    with torch.inference_mode():
        scores, state = model.score_images(model.network_input(image)[None])
        passes = plan_passes(scores, identify(scores))
        if not len(passes):
            return []
        difference = model.score_passes(state, passes.labels, passes.image_of_pass)
        square = max(height, width)
        planes = resize_matlab(torch.sigmoid(difference), (square, square), "bicubic", (height, width)).clamp(0, 1)
    classes = passes.classes[0]
    found = zip(classes, planes[-len(classes) :], strict=True)
    return [(model.config.classes[c], float(scores[0, c]), plane.float().numpy()) for c, plane in found]


def _heat(image: Picture, plane: NDArray[np.float32]) -> Picture:
    colours = cv2.applyColorMap((plane * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    return np.asarray(0.25 * image + 0.75 * colours, np.uint8)


if __name__ == "__main__":
    raise SystemExit(main())
