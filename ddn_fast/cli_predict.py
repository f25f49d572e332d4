"""``ddn-fast predict``: files and folders in; masks, overlay pictures and one JSON record per image out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import DDNError, InputError
from .images import IMAGE_SUFFIXES, one_large, save_image, write_atomic
from .segmentation import Segmentation, Segmenter
from .threads import in_order

RECORDS = "scores.jsonl"
MASKS = "masks"
OVERLAYS = "overlays"
MAX_NAME_BYTES = 255  # of a file's name, on every common file system
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other image could be written either


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
    ``error``, with no pictures left of an earlier run. After a kill the last few pictures may have no record. With
    `resume`, images with a record and a mask are skipped and keep their names. Every file appears whole or not at all.
    Raises InputError on wrong arguments and when there are no images, OSError when `out` cannot be written to or is
    full.
    """
    out = Path(out)
    paths = find_images(inputs, exclude=out)
    done: set[str] = set()  # filled below: wrong arguments end the run here, with nothing written
    remaining = (path for path in paths if _key(path) not in done)
    results = model.segment_iter(remaining, labels, threshold=threshold, batch_size=batch_size, on_error="keep")
    for folder in (MASKS, OVERLAYS) if overlays else (MASKS,):
        (out / folder).mkdir(parents=True, exist_ok=True)
    names = Names()
    if resume and (out / RECORDS).is_file():
        done |= _keep_done(out, names)
    else:
        write_atomic(out / RECORDS, b"")
    todo = [path for path in paths if _key(path) not in done]
    summary = Summary(skipped=len(paths) - len(todo))
    # the network goes on while the pictures of a batch are drawn and written
    jobs = ((result, path, names.take(path.stem)) for path, result in zip(todo, results, strict=True))

    def write(job: tuple[Segmentation, Path, str]) -> dict[str, Any]:
        return _write(*job, out, overlays)

    with (
        (out / RECORDS).open("ab", buffering=0) as file,
        contextlib.closing(results),
        contextlib.closing(
            in_order(write, jobs, threads=model.runtime.host_threads, ahead=batch_size, early=True)
        ) as written,
        tqdm(written, total=len(todo), desc="predict", unit="image", disable=not progress) as bar,
    ):
        for record in bar:
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
        """`stem`, or the first free of ``stem-2``, ``stem-3`` ..; cut where the file's name would be too long."""
        name = _cut(stem, "")
        key = name.casefold()
        while name.casefold() in self._taken:
            self._next[key] = self._next.get(key, 1) + 1
            name = _cut(stem, f"-{self._next[key]}")
        self.add(name)
        return name

    def add(self, name: str) -> None:
        """Take `name` as it is."""
        self._taken.add(name.casefold())


def _cut(stem: str, suffix: str) -> str:
    while len(os.fsencode(f"{stem}{suffix}.png")) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


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
    mask, picture = Path(MASKS, f"{name}.png"), Path(OVERLAYS, f"{name}.jpg")
    try:
        with one_large(result.mask.size):
            if overlays and result.error is None:
                save_image(result.overlay(), out / picture)
            result.save_png(out / mask)
    except (DDNError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        for stale in (out / mask, out / picture):
            with contextlib.suppress(OSError):
                stale.unlink()
        return {**record, "error": {"type": type(error).__name__, "message": str(error)}}
    record |= {"height": result.mask.shape[0], "width": result.mask.shape[1], "mask": mask.as_posix()}
    if overlays:
        record["overlay"] = picture.as_posix()
    record["labels"] = [{"name": label.name, "score": label.score} for label in result.labels]
    record["scores"] = {name: float(score) for name, score in zip(result.classes, result.scores, strict=True)}
    return record


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def _keep_done(out: Path, names: Names) -> set[str]:
    """The images that an earlier run finished; their names are taken, and their records alone stay in the file.

    Lines that are no record (a last one cut short), and those without a mask, are dropped: their images run again.
    Records are long and may be a million: they pass line by line.
    """
    done: set[str] = set()
    temporary = out / f".{secrets.token_hex(8)}.tmp"
    try:
        with (out / RECORDS).open("rb") as old, temporary.open("wb") as new:
            for line in old:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(record, dict):
                    continue
                image, name, mask = (record.get(key) for key in ("image", "name", "mask"))
                if isinstance(image, str) and isinstance(name, str) and mask and (out / str(mask)).is_file():
                    new.write(line.rstrip() + b"\n")
                    names.add(name)
                    done.add(image)
        temporary.replace(out / RECORDS)
    finally:
        temporary.unlink(missing_ok=True)
    return done
