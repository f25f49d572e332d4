"""The commands that make datasets: ``ddn-fast import | add-sbd | generate``."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

SHOWN = 10  # images of which an import tells what is wrong


def add_data_commands(commands: Any) -> None:
    """Add them to the parser's commands."""
    _add_import(commands)
    _add_add_sbd(commands)
    _add_generate(commands)


def names_of(text: str) -> list[str]:
    """The names of ``A,B``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def classes_of(text: str) -> Sequence[str]:
    """The class names of ``A,B``, or of a file, one a line; DataError where that cannot be read."""
    from .data.voc import read_classes

    is_file = text.endswith(".txt") or os.path.isfile(text)  # noqa: PTH113  # many names are too long for Path's
    return read_classes(Path(text)) if is_file else names_of(text)


def _add_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import",
        help="make a dataset folder of what a labelling tool exported",
        description="Make a dataset folder, masks and tags, of COCO's JSON or of masks in colours with a labelmap.txt.",
    )
    parser.add_argument("source", type=Path, help="COCO's .json, or a folder with labelmap.txt")
    parser.add_argument("--out", required=True, type=Path, metavar="VOC", help="dataset folder, new or imported before")
    text = "the images' folder (default: the JSON file's, or JPEGImages of the folder)"
    parser.add_argument("--images", type=Path, metavar="DIR", help=text)
    parser.add_argument("--split", default="train", help="which split they become (default %(default)s)")
    text = "categories of COCO that are classes, or a file of them; the rest is background (default: all)"
    parser.add_argument("--classes", metavar="A,B", help=text)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    from .data.coco import import_coco
    from .data.labelmap import import_label_map

    source, out, progress = arguments.source, arguments.out, not arguments.quiet
    classes = None if arguments.classes is None else classes_of(arguments.classes)
    if not source.is_dir():
        images = arguments.images or source.parent
        found = import_coco(source, images, out, split=arguments.split, classes=classes, progress=progress)
        results = {arguments.split: found}
    elif classes is None:
        results = import_label_map(source, out, images=arguments.images, split=arguments.split, progress=progress)
    else:
        raise InputError("--classes: wanted with COCO's JSON only; labelmap.txt names the classes")
    for split, result in results.items():
        for text in result.wrong[:SHOWN]:
            warnings.warn(text, stacklevel=2)
        print(f"{out}: split {split}: {result}")
    return 1 if any(result.wrong for result in results.values()) else 0


def _add_add_sbd(commands: Any) -> None:
    parser = commands.add_parser(
        "add-sbd",
        help="add SBD's masks to a VOC 2012 folder",
        description="Add SBD's masks to a PASCAL VOC 2012 folder as SegmentationClassAug and the split trainaug.",
    )
    parser.add_argument("voc", type=Path, help="VOCdevkit/VOC2012")
    parser.add_argument("sbd", type=Path, help="benchmark_RELEASE/dataset")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_add_sbd)


def _add_sbd(arguments: argparse.Namespace) -> int:
    from .data.sbd import SPLIT, add_sbd

    added = add_sbd(arguments.voc, arguments.sbd, progress=not arguments.quiet)
    print(f"{arguments.voc}: split {SPLIT} of {added.images} images, {added.voc} masks of VOC and {added.sbd} of SBD")
    return 0


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser("generate", help="write a synthetic VOC folder", description="Write a dataset.")
    parser.add_argument("root", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=1200, metavar="N", help="training images (default %(default)s)")
    text = "further training images, without a mask (default %(default)s)"
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help=text)
    text = "further training images, of one object and without a mask (default %(default)s)"
    parser.add_argument("--closeups", type=int, default=2400, metavar="N", help=text)
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from .data.synthetic import generate

    progress = not arguments.quiet
    options = {name: getattr(arguments, name) for name in ("train", "scenes", "closeups", "val", "seed", "workers")}
    print(generate(arguments.root, progress=progress, **options))
    return 0
