"""How files are written: whole or not at all, and by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import InputError


def write_atomic(path: str | Path, data: bytes, durable: bool = False) -> None:
    """Write `data` to `path` so that no reader ever sees half of it: beside it first, then renamed over it.

    `durable` files are there after a power cut, too: what cost hours is worth the milliseconds. Raises OSError that
    names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # of the same subclass, by its number
        raise


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """:func:`write_atomic` of each of `lines` and a line's end."""
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def check_writable(path: str | Path) -> None:
    """Raise now the OSError that :func:`write_atomic` would raise of `path`, before hours go into what it will hold."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Return when the file's content, or the folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds it, so that no other process writes there; InputError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however it ends
        except BlockingIOError as error:
            raise InputError(f"{folder}: another run is writing there") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(held)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed inside :func:`write_atomic` left: each is as large as a whole file."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name):
            path.unlink(missing_ok=True)
