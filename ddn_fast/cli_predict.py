"""``ddn-fast predict``: files and folders in; masks, overlay pictures and one JSON record per image out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import DDNError, InputError
from .images import IMAGE_SUFFIXES, save_image, write_atomic
from .segmentation import Segmentation, Segmenter

RECORDS = "scores.jsonl"
MASKS = "masks"
OVERLAYS = "overlays"


@dataclass
class Summary:
    """What a run of :func:`predict` did."""

    done: int = 0
    failed: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        skipped = f", {self.skipped} already there" if self.skipped else ""
        return f"{self.done} image{'' if self.done == 1 else 's'} segmented, {self.failed} failed{skipped}"


def predict(
    model: Segmenter,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    overlays: bool = True,
    resume: bool = False,
    progress: bool = True,
) -> Summary:
    """Segment every image of `inputs` (files, or folders with all below them) into the folder `out`.

    Writes ``masks/<name>.png``, ``overlays/<name>.jpg`` and ``scores.jsonl``, one record per image, written after its
    pictures. Names are the files' stems, with ``-2``, ``-3`` .. where stems meet. A bad image becomes a record with an
    ``error``. With `resume`, images with a record and a mask are skipped and keep their names. Every file appears whole
    or not at all. Raises InputError on wrong arguments and when there are no images.
    """
    out = Path(out)
    paths = find_images(inputs, exclude=out)
    records = _read_records(out / RECORDS) if resume else []
    kept = [record for record in records if (out / str(record.get("mask", ""))).is_file()]
    done = {record["image"] for record in kept}
    todo = [path for path in paths if _key(path) not in done]
    results = model.segment_iter(todo, labels, threshold=threshold, batch_size=batch_size, on_error="keep")
    for folder in (MASKS, OVERLAYS) if overlays else (MASKS,):
        (out / folder).mkdir(parents=True, exist_ok=True)
    names = Names(record["name"] for record in kept)
    summary = Summary(skipped=len(paths) - len(todo))
    write_atomic(out / RECORDS, b"".join(_line(record) for record in kept))
    with (
        (out / RECORDS).open("ab", buffering=0) as file,
        tqdm(results, total=len(todo), desc="predict", unit="image", disable=not progress) as bar,
    ):
        for path, result in zip(todo, bar, strict=True):
            record = _write(result, path, names.take(path.stem), out, overlays)
            file.write(_line(record))
            if "error" in record:
                summary.failed += 1
                tqdm.write(f"{record['error']['type']}: {record['error']['message']}", file=sys.stderr)
            else:
                summary.done += 1
    return summary


class Names:
    """Output names that never meet, not even where the file system ignores case."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {name.casefold() for name in taken}
        self._next: dict[str, int] = {}

    def take(self, stem: str) -> str:
        """`stem`, or the first free of ``stem-2``, ``stem-3`` .."""
        name, key = stem, stem.casefold()
        while name.casefold() in self._taken:
            self._next[key] = self._next.get(key, 1) + 1
            name = f"{stem}-{self._next[key]}"
        self._taken.add(name.casefold())
        return name


def find_images(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Path]:
    """Image files in the order given, each once; folders sorted, with all below them but `exclude` and hidden files.

    A dataset folder stands for its JPEGImages: its masks are no images to segment. A file named outright is taken
    whatever its suffix, even one that is missing: segmenting it says why it cannot be.
    Raises InputError if nothing is found.
    """
    hidden = exclude.resolve() if exclude else None
    found: dict[str, Path] = {}
    for item in map(Path, inputs):
        root = item / "JPEGImages" if (item / "JPEGImages").is_dir() else item
        paths = sorted(_below(root, hidden)) if root.is_dir() else [root]
        for path in paths:
            found.setdefault(_key(path), path)
    if not found:
        where = ", ".join(map(str, inputs)) or "no files or folders"
        raise InputError(f"predict: wanted images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none in {where}")
    return list(found.values())


def _below(root: Path, exclude: Path | None) -> Iterable[Path]:
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and (here / name).resolve() != exclude]
        yield from (
            here / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        )


def _key(path: Path) -> str:
    return str(Path(os.path.abspath(path)))  # noqa: PTH100  # a link is an image of its own: no resolve


def _write(result: Segmentation, path: Path, name: str, out: Path, overlays: bool) -> dict[str, Any]:
    """Write the pictures of one image and return its record; what is wrong with the image becomes part of it."""
    record: dict[str, Any] = {"image": _key(path), "name": name}
    try:
        mask, picture = Path(MASKS, f"{name}.png"), Path(OVERLAYS, f"{name}.jpg")
        if overlays and result.error is None:
            save_image(result.overlay(), out / picture)
        result.save_png(out / mask)
    except DDNError as error:
        return {**record, "error": {"type": type(error).__name__, "message": str(error)}}
    record |= {"height": result.mask.shape[0], "width": result.mask.shape[1], "mask": mask.as_posix()}
    if overlays:
        record["overlay"] = picture.as_posix()
    record["labels"] = [{"name": label.name, "score": label.score} for label in result.labels]
    record["scores"] = {name: float(score) for name, score in zip(result.classes, result.scores, strict=True)}
    return record


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Records of an earlier run; lines that are none (a last one cut short) are dropped: their images run again."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("image"), str) and isinstance(record.get("name"), str):
            records.append(record)
    return records
