"""The command line: ``ddn-fast predict | evaluate | train | convert | import | add-sbd | generate | info``.

Under torchrun ``train`` runs in several processes: the first prints, and of an error whichever met it first.

Modules are imported inside the commands that need them, so that ``--help`` answers at once. Exit status: 0 done,
1 done but for some images, 2 an error (one line on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_data import add_data_commands, classes_of, names_of
from .errors import DDNError, InputError

if TYPE_CHECKING:
    from .segmentation import Segmenter

INTERRUPTED = 130
CACHE_GB = 2.0
ENGINE_DTYPES = {"cpu": "float32", "cuda": "bfloat16"}  # by default; float32: exact, or nearly


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with contextlib.nullcontext() if _is_first() else contextlib.redirect_stderr(io.StringIO()):
        arguments = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        if _tells_failure():
            print("ddn-fast: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output is gone, as in `ddn-fast info | head -1`
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # nothing may fail again at exit
        return 0
    except (DDNError, OSError) as error:
        if arguments.debug:
            traceback.print_exc()
        if _tells_failure():
            where = "" if _is_first() else f" in process {os.environ['RANK']}"
            print(f"ddn-fast: error{where}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if _is_first():
        print(f"ddn-fast: warning: {message}", file=sys.stderr)


def _is_first() -> bool:
    """Whether this process was not started by torchrun, or is the first that was."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _tells_failure() -> bool:
    group = sys.modules.get("ddn_fast.process_group")  # loaded where there may be other processes
    return group is None or bool(group.is_first_failure())


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; every command leaves its function in ``run``."""
    parser = argparse.ArgumentParser(prog="ddn-fast", description="DecoupledNet: train it, run it, look at it.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_predict(commands)
    _add_evaluate(commands)
    _add_train(commands)
    _add_convert(commands)
    add_data_commands(commands)
    _add_info(commands)
    return parser


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="segment images", description="Segment images into masks.")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders of them, .txt lists of files")
    _add_model_options(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="masks/, overlays/, scores.jsonl go here"
    )
    parser.add_argument("--split", help="of the dataset folder INPUT: the images of this split")
    parser.add_argument("--part", metavar="I/N", help="the I-th of N parts of the images, into DIR/part-I-of-N")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--labels", type=names_of, metavar="A,B", help="segment these classes, not the identified ones")
    chosen.add_argument(
        "--tags", metavar="CSV", help="classes of each image: a CSV file (image,tags); or main or masks, of --split"
    )
    parser.add_argument("--no-overlay", action="store_true", help="no overlay pictures")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="skip images that an earlier run finished")
    again.add_argument("--overwrite", action="store_true", help="forget the records of an earlier run")
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from .cli_images import Part
    from .cli_predict import predict
    from .weights import fingerprint

    part = Part.parse(arguments.part) if arguments.part else None
    model, network = _load(arguments)
    summary = predict(
        model,
        arguments.inputs,
        arguments.out,
        split=arguments.split,
        part=part,
        labels=arguments.labels,
        tags=arguments.tags,
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
        overlays=not arguments.no_overlay,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
        about={"network": network, "weights": fingerprint(arguments.weights)},
    )
    print(summary)
    return 1 if summary.failed else 0


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="mean IU on a VOC folder", description="Score a network on masks.")
    parser.add_argument("--data", required=True, type=Path, metavar="VOC", help="dataset folder")
    parser.add_argument("--split", default="val", help="which of its splits (default %(default)s)")
    _add_model_options(parser)
    parser.add_argument(
        "--labels",
        choices=("identified", "truth"),
        default="identified",
        help="segment what the network identifies, or what the masks show (default %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the confusion matrix here")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from .data.voc import VocFolder
    from .evaluate import evaluate
    from .files import check_writable, write_atomic

    if arguments.json:
        check_writable(arguments.json)
    model, _ = _load(arguments)
    result = evaluate(
        model,
        VocFolder(arguments.data),
        arguments.split,
        labels=arguments.labels,
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
        progress=not arguments.quiet,
    )
    print(result.table())
    if arguments.json:
        write_atomic(arguments.json, (json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n").encode())
    return 0


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train one of the two stages", description="Train a network.")
    stages = parser.add_subparsers(title="stages", required=True, metavar="STAGE")
    for stage, text in (
        ("classifier", "stage 1: encoder and head from image-level labels"),
        ("segmenter", "stage 2: bridge and decoder from a few masks"),
    ):
        sub = stages.add_parser(stage, help=text, description=f"Train {text}.")
        sub.add_argument("--data", required=True, type=Path, metavar="VOC", help="dataset folder")
        sub.add_argument("--recipe", required=True, metavar="NAME_OR_TOML", help="a recipe of ours, or a file")
        sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="weights, log and checkpoints go here")
        needed = stage == "segmenter"
        where = "network to start from" + ("" if needed else " (convert VGG-16 first); without it a fresh one")
        sub.add_argument("--init", required=needed, type=Path, metavar="WEIGHTS", help=where)
        sub.add_argument("--resume", action="store_true", help="continue from the last checkpoint in DIR")
        sub.add_argument("--workers", type=int, metavar="N", help="processes that load data, for each one that trains")
        text = "decoded images kept in memory, all workers together (default %(default)s)"
        sub.add_argument("--cache-gb", type=float, default=CACHE_GB, metavar="GB", help=text)
        sub.add_argument("--tensorboard", action="store_true", help="write DIR/tensorboard, too")
        _add_device_options(sub)
        sub.set_defaults(run=_train, stage=stage)
    segmenter, classifier = stages.choices["segmenter"], stages.choices["classifier"]
    segmenter.add_argument("--split", default="train", help="which of its splits (default %(default)s)")
    classifier.add_argument("--split", help="which of its splits (default Main/train, else train)")
    segmenter.add_argument("--val-split", default="val", help="where mean IU is measured (default %(default)s)")
    text = "compute most maps a second time instead of keeping them: less memory, more time, the same weights"
    segmenter.add_argument("--recompute", action="store_true", help=text)
    segmenter.add_argument("--items", type=Path, metavar="FILE", help="a finished list of windows")
    classifier.add_argument(
        "--tags", default="auto", help="image-level labels: auto, main, masks, or a CSV file (default %(default)s)"
    )


def _train(arguments: argparse.Namespace) -> int:
    from .process_group import joined

    with joined(lambda: _device(arguments.device)) as device:
        return _train_on(device, arguments)


def _train_on(device: str, arguments: argparse.Namespace) -> int:
    from .data.datasets import cache_bytes_of_each
    from .data.voc import VocFolder
    from .training.loop import default_workers
    from .training.recipe import load_recipe
    from .weights import load, read_metadata

    workers = default_workers() if arguments.workers is None else arguments.workers
    names = ("tags",) if arguments.stage == "classifier" else ("val_split", "items", "recompute")
    options = {name: getattr(arguments, name) for name in names}
    train = getattr(importlib.import_module(f"ddn_fast.training.{arguments.stage}"), f"train_{arguments.stage}")
    train(
        VocFolder(arguments.data),
        arguments.out,
        load_recipe(arguments.recipe),
        init=load(arguments.init) if arguments.init else None,
        split=arguments.split,
        resume=arguments.resume,
        device=device,
        workers=workers,
        progress=not arguments.quiet,
        cache_bytes=cache_bytes_of_each(arguments.cache_gb, workers),
        tensorboard=arguments.tensorboard,
        **options,
    )
    if _is_first():
        print(f"{arguments.out / 'weights'}: {_summary(read_metadata(arguments.out / 'weights'))}")
    return 0


def _summary(metadata: dict[str, Any]) -> str:
    validation = metadata.get("validation")
    if not validation or validation["mean_iu"] is None:
        return "trained"
    return f"mean IU {100 * validation['mean_iu']:.1f} % of {validation['images']} validation images"


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a .caffemodel or VGG-16 weights into a folder of ours",
        description="Turn a .caffemodel of the release, or a VGG-16 state dict, into a folder of safetensors and JSON.",
    )
    parser.add_argument("source", type=Path, help=".caffemodel, .pth or .safetensors file")
    parser.add_argument("destination", type=Path, help="folder to write")
    parser.add_argument("--side", type=int, help="input side, where not 320")
    text = "class names, or a file of them, one a line; where not those of PASCAL VOC"
    parser.add_argument("--classes", metavar="A,B", help=text)
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from .weights import convert

    classes = None if arguments.classes is None else classes_of(arguments.classes)
    model = convert(arguments.source, arguments.destination, side=arguments.side, classes=classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.destination}: {count:,} parameters, {model.config.num_classes} classes")
    return 0


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, build, CPU and GPU", description="What is installed here.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from . import info

    print(json.dumps(info.collect(), indent=1) if arguments.json else info.text())
    return 0


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, type=Path, help="saved folder or .caffemodel")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="a class is identified above this score (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default %(default)s)")
    parser.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        help="the engine, or the plain network (default: the engine, where there are kernels for the device)",
    )
    defaults = ", ".join(f"{dtype} on {device}" for device, dtype in ENGINE_DTYPES.items())
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help=f"of the engine (default {defaults})"
    )
    _add_device_options(parser)


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1 .. (default: cuda where there is one)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _load(arguments: argparse.Namespace) -> tuple[Segmenter, str]:
    """The network to use, by default the engine where it has kernels, and which it is; prints one line that says so."""
    import torch

    from . import info
    from .weights import load

    device = _device(arguments.device)
    lack = info.engine_lacks(torch.device(device))
    fast = lack is None if arguments.fast is None else arguments.fast
    if arguments.dtype and not fast:
        raise InputError(f"--dtype: wanted only with the engine: {lack or 'it runs without --no-fast'}")
    if fast:
        dtype = arguments.dtype or ENGINE_DTYPES[torch.device(device).type]
        try:
            engine = load(arguments.weights, device=device, fast=True, dtype=getattr(torch, dtype))
        except ImportError as error:
            raise InputError(f"--fast: {error}") from error
        print(f"engine: {dtype} on {engine.runtime.name}")
        return engine, f"engine, {dtype}"
    model = load(arguments.weights, device=device)
    with contextlib.suppress(ImportError):  # without the extension the plain formulas do
        model.ops = importlib.import_module("ddn_fast.ops")
    why = "" if lack is None or arguments.fast is False else f" ({lack})"
    print(f"plain network: float32 on {device}{why}")
    return model, "plain, float32"


def _device(name: str | None) -> str:
    """The device to use; InputError naming what there is if it is not here."""
    import torch

    count = torch.cuda.device_count()
    if name is None:
        return "cuda" if count else "cpu"
    here = ["cpu", "cuda", *(f"cuda:{index}" for index in range(count))] if count else ["cpu"]
    if name not in here:
        raise InputError(f"--device: wanted one of {', '.join(here)}, got {name!r}")
    return name


if __name__ == "__main__":
    sys.exit(main())
