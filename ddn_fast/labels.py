"""Class names that a caller gives with images, as class indices of each image."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .errors import InputError

Labels = str | Iterable[str] | Iterable[Iterable[str] | None] | None


def class_indices(names: str | Iterable[str], classes: Sequence[str]) -> list[int]:
    """Indices of class names, ascending, repeats once; InputError with the closest names on an unknown one."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in classes:
            raise InputError(f"labels: {unknown_class(name, classes)}")
    return sorted({classes.index(name) for name in names})


def unknown_class(name: Any, classes: Sequence[str]) -> str:
    """What to say of a name that is no class's: the closest ones, or all."""
    close = _closest(str(name), classes)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(classes)}"
    return f"unknown class {name!r}; {hint}"


def is_nearly_known(name: str, classes: Sequence[str]) -> bool:
    """Whether :func:`unknown_class` has close ones to offer."""
    return bool(_closest(name, classes))


def _closest(name: str, classes: Sequence[str]) -> list[str]:
    lower = {known.lower(): known for known in classes}
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3)]


def pair_labels(
    images: Iterable[Any], labels: Labels, classes: Sequence[str]
) -> Iterator[tuple[Any, list[int] | None]]:
    """Each image with the class indices named for it, None where none are; what is a list is checked here and now.

    images: anything, one by one. A stream of labels (a generator) is one of lists, one per image. Raises InputError on
    unknown names and lists that do not fit, of streams on the way.
    """
    if labels is None:
        return ((image, None) for image in images)
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, Iterable):
        raise InputError(f"labels: wanted class names, got {type(labels).__name__}")
    if isinstance(labels, str):
        labels = [labels]
    chosen: Iterable[list[int] | None]
    if isinstance(labels, Sequence | set | frozenset):
        if all(isinstance(entry, str) for entry in labels):
            if not labels and not (isinstance(images, Sequence) and not images):
                raise InputError("labels: wanted at least one class name, got an empty list")
            everywhere = class_indices(labels, classes)
            return ((image, everywhere) for image in images)
        if not isinstance(labels, Sequence):
            raise InputError(f"labels: wanted lists in the order of the images, got a {type(labels).__name__} of them")
        chosen = [_indices_of_image(entry, classes) for entry in labels]
        if isinstance(images, Sequence | np.ndarray) and len(images) != len(chosen):
            raise InputError(f"labels: wanted one list for each of {len(images)} images, got {len(chosen)}")
    else:
        chosen = (_indices_of_image(entry, classes) for entry in labels)
    return _zip_labels(images, chosen)


def _indices_of_image(entry: Any, classes: Sequence[str]) -> list[int] | None:
    if entry is None:
        return None
    try:
        names = None if isinstance(entry, str) else list(entry)
    except TypeError:  # not all that look like lists are: a tensor without dimensions
        names = None
    if names is None:
        raise InputError(
            "labels: wanted class names only, or one list of them (or None) per image; "
            f"got {entry!r} among lists or from a stream"
        )
    return class_indices(names, classes)


def _zip_labels(images: Iterable[Any], chosen: Iterable[list[int] | None]) -> Iterator[tuple[Any, list[int] | None]]:
    missing = object()
    for image, names in itertools.zip_longest(images, chosen, fillvalue=missing):
        if image is missing or names is missing:
            raise InputError(f"labels: wanted one list per image, got more {'lists' if image is missing else 'images'}")
        yield image, names  # type: ignore[misc]
