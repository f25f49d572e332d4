"""``ddn-fast predict``: files and folders in; masks, overlay pictures and one JSON record per image out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .cli_images import (
    MASKS,
    OVERLAYS,
    RECORDS,
    SETTINGS,
    Part,
    find_images,
    key_of,
    split_images,
    tags_of_images,
    tags_told,
)
from .errors import DDNError, InputError
from .files import alone_in, remove_leftovers, write_atomic
from .images import one_large, save_image
from .segmentation import Segmentation, Segmenter
from .threads import in_order

MAX_NAME_BYTES = 255  # of a file's name, on every common file system
# of one name alone; after any other error of the system nothing else could be written either
_OF_A_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR)


@dataclass
class Summary:
    """What a run of :func:`predict` did."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    records: Path = Path(RECORDS)  # where they are

    def __str__(self) -> str:
        skipped = f", {self.skipped} already there" if self.skipped else ""
        done = f"{self.done} image{'' if self.done == 1 else 's'} segmented"
        return f"{done}, {self.failed} failed{skipped}; see {self.records}"


def predict(
    model: Segmenter,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    split: str | None = None,
    part: Part | None = None,
    labels: Sequence[str] | None = None,
    tags: str | Path | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    overlays: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Summary:
    """Segment every image of `inputs` (see :func:`find_images`) into the folder `out`.

    Writes ``masks/<name>.png``, ``overlays/<name>.jpg`` and ``scores.jsonl``, one record per image, written after its
    pictures, and ``run.json``: what it was told, and what `about` adds, such as the weights. Names are the files'
    stems, with ``-2``, ``-3`` .. where stems meet. A bad image becomes a record with an ``error``, with no pictures
    left of an earlier run. After a kill the last few pictures may have no record. Every file appears whole or not at
    all.

    split      of the one dataset folder that `inputs` is then: its images
    part       of the images; everything then goes into a folder of its own below `out`, ``part-2-of-8``
    labels     class names to segment every image into, in place of those identified
    tags       class names of each image: a CSV file, or ``main`` or ``masks`` of `split`; see :func:`tags_of_images`
    resume     skip images that have a record and a mask, which keep their names
    overwrite  forget the records of an earlier run; its pictures stay where this one writes none of their names

    Raises InputError on wrong arguments, where there are no images, where `out` holds a run that is neither to be
    resumed nor to be overwritten, or one of other settings is to be resumed, and while another run writes there;
    DataError on bad tags; OSError when `out` cannot be written to or is full.
    """
    if labels is not None and tags is not None:
        raise InputError("labels, tags: wanted one of the two")
    if resume and overwrite:
        raise InputError("resume, overwrite: wanted one of the two")
    classes = model.config.classes
    paths = split_images(inputs, split, part) if split else find_images(inputs, Path(out), part)
    named: list[list[str] | None] = [None] * len(paths)
    if tags is not None:
        named = tags_of_images(str(tags), paths, inputs, split, classes, progress)
    out = Path(out) / part.folder if part else Path(out)
    todo: list[tuple[Path, list[str] | None]] = []  # filled below: wrong arguments end here, with nothing written
    sources, chosen = (path for path, _ in todo), (names for _, names in todo)
    results = model.segment_iter(
        sources, labels if tags is None else chosen, threshold=threshold, batch_size=batch_size, on_error="keep"
    )
    told = {
        "threshold": float(threshold),
        "labels": labels and sorted(set(labels)),
        "tags": None if tags is None else tags_told(str(tags)),
    }
    settings = told | dict(about or {})
    names = Names()

    def write(job: tuple[Segmentation, Path, str]) -> dict[str, Any]:
        return _write(*job, out, overlays)

    with contextlib.closing(results), alone_in(out):
        _check_earlier(out, settings, resume, overwrite)
        _begin(out, settings, overlays)
        done: set[str] = set()
        if resume and (out / RECORDS).is_file():
            done = _keep_done(out, names)
        else:
            write_atomic(out / RECORDS, b"")
        todo += [pair for pair in zip(paths, named, strict=True) if key_of(pair[0]) not in done]
        # the network goes on while the pictures of a batch are drawn and written
        jobs = ((result, path, names.take(path.stem)) for (path, _), result in zip(todo, results, strict=True))
        records = in_order(write, jobs, threads=model.runtime.host_threads, ahead=batch_size, early=True)
        with contextlib.closing(records):
            return _record(records, Summary(skipped=len(paths) - len(todo), records=out / RECORDS), len(todo), progress)


def _record(records: Iterable[dict[str, Any]], summary: Summary, count: int, progress: bool) -> Summary:
    """Append what was written, in order, to the records; counts it."""
    with (
        summary.records.open("ab") as file,
        tqdm(records, total=count, desc="predict", unit="image", disable=not progress) as bar,
    ):
        for record in bar:
            file.write(_line(record))
            file.flush()  # by a buffer, as a bare write may be cut short without an error
            if "error" in record:
                summary.failed += 1
                tqdm.write(f"{record['error']['type']}: {record['error']['message']}", file=sys.stderr)
            else:
                summary.done += 1
    return summary


def _check_earlier(out: Path, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """InputError where `out` holds a run that this one would spoil."""
    records, path = out / RECORDS, out / SETTINGS
    if not resume:
        if not overwrite and records.is_file() and records.stat().st_size:
            raise InputError(f"{out}: already holds a run; resume it, overwrite it or name another folder")
        return
    if not path.is_file():
        return
    try:
        earlier = json.loads(path.read_bytes())
        changed = [key for key, value in settings.items() if key in earlier and earlier[key] != value]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: wanted what an earlier run wrote: {error}") from error
    if changed:
        told = ", ".join(f"{key} {earlier[key]!r}, now {settings[key]!r}" for key in changed)
        raise InputError(f"{path}: wanted the earlier run's settings to resume it, which were {told}")


def _begin(out: Path, settings: Mapping[str, Any], overlays: bool) -> None:
    for folder in (MASKS, OVERLAYS) if overlays else (MASKS,):
        (out / folder).mkdir(parents=True, exist_ok=True)
        remove_leftovers(out / folder)
    remove_leftovers(out)
    write_atomic(out / SETTINGS, json.dumps(settings, indent=1, allow_nan=False).encode("ascii") + b"\n")


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


def _write(result: Segmentation, path: Path, name: str, out: Path, overlays: bool) -> dict[str, Any]:
    """Write the pictures of one image and return its record; what is wrong with the image becomes part of it."""
    record: dict[str, Any] = {"image": key_of(path), "name": name}
    mask, picture = Path(MASKS, f"{name}.png"), Path(OVERLAYS, f"{name}.jpg")
    try:
        with one_large(result.mask.size):
            if overlays and result.error is None:
                save_image(result.overlay(), out / picture)
            result.save_png(out / mask)
    except (DDNError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_A_NAME:
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
