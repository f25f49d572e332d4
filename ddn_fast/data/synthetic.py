"""A generated dataset laid out as PASCAL VOC: 20 classes told apart by shape and texture together.

A class is a pair (texture, shape), for example ``striped-star``; neither the shape alone nor the texture alone tells
it, and its colours scatter so widely around the class's own hue that colour only hints. A scene holds one to four
objects that may partly hide each other, before a background of clouds, blobs and sticks (none of them labelled), some
sticks in front. Masks have a void border around every object as VOC's have.
"""

from __future__ import annotations

import colorsys
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import DataError
from ..files import write_atomic, write_lines
from ..images import VOID, save_mask
from ..info import cores
from .tags import mask_classes

Image = NDArray[np.uint8]


def _polygon(corners: int, inner: float = 1.0, turn: float = 0.0) -> NDArray[np.float64]:
    """Points on the unit circle, every second one drawn in to radius `inner`."""
    angle = np.arange(corners) * 2 * np.pi / corners + turn
    radius = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


_ARM = 0.36
SHAPES: dict[str, NDArray[np.float64]] = {
    "disc": 0.9 * _polygon(48),
    "bar": np.array([(-1.2, -0.4), (1.2, -0.4), (1.2, 0.4), (-1.2, 0.4)]),
    "triangle": 1.1 * _polygon(3, turn=-np.pi / 2),
    "star": 1.15 * _polygon(10, inner=0.42, turn=-np.pi / 2),
    "cross": np.array(
        [(_ARM, _ARM), (1, _ARM), (1, -_ARM), (_ARM, -_ARM), (_ARM, -1), (-_ARM, -1),
         (-_ARM, -_ARM), (-1, -_ARM), (-1, _ARM), (-_ARM, _ARM), (-_ARM, 1), (_ARM, 1)]),
}  # fmt: skip


# A texture says, for coordinates in units of its period, where the second colour goes.
TEXTURES: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]] = {
    "ringed": lambda u, v: np.mod(np.hypot(u, v), 1) < 0.5,
    "striped": lambda u, v: np.mod(u, 1) < 0.5,
    "checkered": lambda u, v: (np.mod(u / 1.4, 1) < 0.5) ^ (np.mod(v / 1.4, 1) < 0.5),
    "dotted": lambda u, v: (np.mod(u, 1) - 0.5) ** 2 + (np.mod(v, 1) - 0.5) ** 2 < 0.07,
}

CLASSES = tuple(f"{texture}-{shape}" for shape in SHAPES for texture in TEXTURES)


@dataclass(frozen=True)
class Settings:
    """How hard the images are. Lengths are in pixels of the written image.

    sides: shortest and longest image side; radius: of an object, as a fraction of the shorter image side;
    period: of a texture; clutter: fewest and most background pieces; noise: standard deviation in grey levels.
    """

    sides: tuple[int, int] = (144, 224)
    radius: tuple[float, float] = (0.2, 0.36)
    period: tuple[float, float] = (12.0, 16.0)
    tilt: float = 20.0
    hue_spread: float = 25.0
    objects: tuple[int, int] = (1, 4)
    hidden: float = 0.35
    outline: int = 4
    clutter: tuple[int, int] = (1, 6)
    noise: float = 6.0
    void: int = 2


KINDS = ("train", "val", "closeup", "scene")  # of images; the place in this list enters the seed
MASKED = ("train", "val")
CLOSEUP = Settings(sides=(110, 150), radius=(0.3, 0.48), objects=(1, 1), clutter=(0, 3))


def render(rng: np.random.Generator, settings: Settings | None = None) -> tuple[Image, Image]:
    """One image ``[H,W,3]`` uint8 RGB and its mask ``[H,W]`` uint8 (0 background, class index + 1, 255 void)."""
    settings = settings or Settings()
    height, width = (int(v) for v in rng.integers(settings.sides[0], settings.sides[1] + 1, 2))
    image = _background(rng, height, width)
    for _ in range(rng.integers(settings.clutter[0], settings.clutter[1] + 1)):
        _draw_clutter(rng, image)
    mask = np.zeros((height, width), np.uint8)
    objects: list[NDArray[np.bool_]] = []
    for _ in range(rng.integers(settings.objects[0], settings.objects[1] + 1)):
        _draw_object(rng, image, mask, objects, settings)
    edges = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((settings.void + 1,) * 2, np.uint8)) > 0
    for _ in range(rng.integers(0, 2)):
        covered = _draw_clutter(rng, image, thin=True)
        mask[covered] = 0
        edges[covered] = False
    mask[edges] = VOID
    image *= _light(rng, height, width)[:, :, None]
    image += rng.normal(0, settings.noise, image.shape).astype(np.float32)
    blurred = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.8))
    return np.clip(blurred, 0, 255).astype(np.uint8), mask


def generate(
    root: str | os.PathLike[str],
    *,
    train: int = 1200,
    scenes: int = 0,
    closeups: int = 2400,
    val: int = 200,
    seed: int = 0,
    settings: Settings | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a VOC-shaped folder: JPEGImages, SegmentationClass, ImageSets, classes.txt.

    `train` scenes with masks and tags, `scenes` further ones and `closeups` images of one object with tags alone (as
    most images with tags are: they stand in ``Main/train``, not in ``Segmentation/train``), and `val` scenes. Image n
    of a kind depends on (settings, seed, kind, n) only, whatever the number of workers. Returns the folder. Raises
    DataError where the folder already holds images, so that two datasets never mix. The folder appears when it is
    complete: until then everything lies in one beside it, named ``<root>.part``. Works in processes: from Python 3.14
    on a script calls this below ``if __name__ == "__main__":``, as they begin by importing it.
    """
    root, complete = Path(root).with_name(Path(root).name + ".part"), Path(root)
    counts = {"train": train, "scene": scenes, "closeup": closeups, "val": val}
    if train < 1 or min(counts.values()) < 0:
        raise DataError(f"generate: wanted at least one training image and no negative count, got {counts}")
    if seed < 0 or (workers is not None and workers < 1):
        raise DataError(f"generate: wanted seed >= 0 and workers >= 1, got {seed} and {workers}")
    if complete.exists() and (not complete.is_dir() or any(complete.iterdir())):
        raise DataError(f"{complete}: wanted a new or empty folder, this one holds something already")
    if root.exists():  # of a run that was stopped
        shutil.rmtree(root)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    jobs = [(kind, n) for kind, count in counts.items() for n in range(count)]
    write = partial(_write_one, root, seed, settings or Settings())
    with ProcessPoolExecutor(workers or cores()) as pool:
        written = list(tqdm(pool.map(write, jobs, chunksize=16), "images", len(jobs), disable=not progress, unit="img"))
    for split, kinds in (("train", ("train", "scene", "closeup")), ("val", ("val",))):
        present = {name: classes for (kind, _), (name, classes) in zip(jobs, written, strict=True) if kind in kinds}
        if not present:  # a split that is empty is none
            continue
        masked = [name for name in present if name.startswith(split)]
        write_lines(root / f"ImageSets/Segmentation/{split}.txt", masked)
        write_lines(root / f"ImageSets/Main/{split}.txt", present)
        for index, label in enumerate(CLASSES):
            lines = "".join(f"{n} {1 if index in classes else -1:2d}\n" for n, classes in present.items())
            write_atomic(root / f"ImageSets/Main/{label}_{split}.txt", lines.encode())
    write_lines(root / "classes.txt", CLASSES)
    root.replace(complete)
    return complete


def _write_one(root: Path, seed: int, settings: Settings, job: tuple[str, int]) -> tuple[str, list[int]]:
    kind, n = job
    cv2.setNumThreads(0)  # the parent's thread pool does not survive a fork
    rng = np.random.default_rng([seed, KINDS.index(kind), n])
    image, mask = render(rng, CLOSEUP if kind == "closeup" else settings)
    name = f"{kind}_{n:06d}"
    jpeg = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    write_atomic(root / f"JPEGImages/{name}.jpg", jpeg.tobytes())
    if kind in MASKED:
        save_mask(mask, root / f"SegmentationClass/{name}.png")
    return name, mask_classes(mask)


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Soft clouds between two colours."""
    coarse = rng.random((int(rng.integers(2, 7)), int(rng.integers(2, 7)), 1), np.float32)
    cloud = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[:, :, None]
    a, b = rng.uniform(30, 225, (2, 3)).astype(np.float32)
    return np.ascontiguousarray(a + (b - a) * cloud)


def _light(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A slow change of brightness across the image."""
    corners = rng.uniform(0.75, 1.15, (2, 2)).astype(np.float32)
    return np.asarray(cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _colours(rng: np.random.Generator, index: int, spread: float) -> NDArray[np.float32]:
    """Body and accent colour ``[2,3]`` of an object: a hue around the class's own, and a dark or a pale neighbour."""
    hue = (index * 7 % len(CLASSES)) / len(CLASSES) + rng.normal(0, spread / 360)
    value = rng.uniform(0.55, 1)
    accent = rng.uniform(0.05, 0.3) if value > 0.75 or rng.random() < 0.5 else 1.0
    body = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), value)
    other = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.1)) % 1, rng.uniform(0, 0.5), accent)
    return np.array([body, other], np.float32) * 255


def _place(
    rng: np.random.Generator, shape: NDArray[np.float64], size: float, tilt: float, height: int, width: int
) -> tuple[Any, ...]:
    """Turn, scale and move a shape; returns its corner points, centre and angle."""
    angle = rng.uniform(-tilt, tilt)
    centre = np.array([rng.uniform(0.12, 0.88) * width, rng.uniform(0.12, 0.88) * height])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return shape * size @ turn + centre, centre, angle


def _fill(image: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.round(points * 16).astype(np.int32)], 1, lineType=cv2.LINE_8, shift=4)
    return inside.astype(bool)


def _draw_object(
    rng: np.random.Generator,
    image: NDArray[np.float32],
    mask: Image,
    objects: list[NDArray[np.bool_]],
    settings: Settings,
) -> None:
    """Draw one object of a random class where it hides no earlier one beyond ``settings.hidden``, if there is room."""
    height, width = mask.shape
    index = int(rng.integers(len(CLASSES)))
    texture, shape = CLASSES[index].split("-")
    for _ in range(20):
        size = rng.uniform(*settings.radius) * min(height, width)
        points, centre, angle = _place(rng, SHAPES[shape], size, np.radians(settings.tilt), height, width)
        inside = _fill(image, points)
        if all(np.count_nonzero(other & inside) <= settings.hidden * np.count_nonzero(other) for other in objects):
            break
    else:
        return
    for other in objects:
        other &= ~inside
    objects.append(inside)
    y, x = np.nonzero(inside)
    period, slant = rng.uniform(*settings.period), angle + rng.normal(0, 0.3)
    dx, dy = x - centre[0], y - centre[1]
    u = (dx * np.cos(slant) + dy * np.sin(slant)) / period
    v = (dy * np.cos(slant) - dx * np.sin(slant)) / period
    colours = _colours(rng, index, settings.hue_spread)
    image[y, x] = colours[TEXTURES[texture](u, v).astype(int)]
    outline = [np.round(points * 16).astype(np.int32)]
    cv2.polylines(image, outline, True, colours[rng.integers(2)].tolist(), settings.outline, cv2.LINE_AA, shift=4)
    mask[inside] = index + 1


def _draw_clutter(rng: np.random.Generator, image: NDArray[np.float32], thin: bool = False) -> NDArray[np.bool_]:
    """A thin stick or a blob; returns the pixels it covers."""
    height, width = image.shape[:2]
    size = rng.uniform(0.05, 0.25) * min(height, width)
    if thin or rng.random() < 0.4:
        shape = np.array([(-1, -0.06), (1, -0.06), (1, 0.06), (-1, 0.06)]) * 2.5
    else:
        corners = int(rng.integers(5, 10))
        shape = _polygon(corners) * rng.uniform(0.4, 1, (corners, 1))
    inside = _fill(image, _place(rng, shape, size, np.pi, height, width)[0])
    image[inside] = rng.uniform(10, 245, 3).astype(np.float32)
    return inside
