"""Reads and writes the files that a user names on the command line.

The package ``storage`` reads and writes the files of a state and its anchors.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from agentguard.errors import StorageError
from agentguard.storage import files

_STREAM: Final = Path("-")


def is_stream(path: Path | None) -> bool:
    """Whether a path means stdin or stdout: ``-``, or None."""
    return path is None or path == _STREAM


LONGEST: Final = 16 * 1024 * 1024
"""The size limit in bytes of a file that is read as a whole."""


def read(path: Path, limit: int = LONGEST) -> bytes:
    """Read a file; raises ``StorageError``: ``storage.missing``, ``storage.failed`` if too long."""
    with _opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        message = f"{path} is longer than the limit of {limit} bytes: name a shorter file"
        raise StorageError(message, code="storage.failed")
    return data


def read_or_stdin(path: Path, limit: int) -> bytes:
    """Read a file, or stdin for ``-``, up to a number of bytes; raises as ``read`` does."""
    if is_stream(path):
        return sys.stdin.buffer.read(limit)
    with _opened(path) as file:
        return file.read(limit)


@contextmanager
def new(path: Path | None, *, force: bool) -> Iterator[IO[bytes]]:
    """Open a new file for this user alone; the file appears when the block ends.

    Without a path, or with ``-``, write to stdout. Raises ``StorageError``: ``storage.exists``
    for an existing path that ``force`` does not allow to replace, ``storage.readonly``.
    """
    if path is None or is_stream(path):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    _refuse_existing(path, force=force)  # an early error; _put_in_place checks again
    try:
        file, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(file, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(file)
        _put_in_place(Path(name), path, force=force)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        Path(name).unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder for this user alone, unless there is one; raises ``StorageError``."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with files.opened(path) as file:
            yield file
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): name a file that this user can read"
        raise StorageError(message, code="storage.missing") from error


def _refuse_existing(path: Path, *, force: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_file():  # a device or a folder is never replaced, not even with --force
        message = f"{path} exists already, and is not a file: name another path"
        raise StorageError(message, code="storage.exists")
    if not force:
        raise _exists(path)


def _put_in_place(stream: Path, path: Path, *, force: bool) -> None:
    if force:
        _refuse_existing(path, force=True)
        stream.replace(path)
        return
    try:
        path.hardlink_to(stream)  # unlike a rename, a link never replaces a file that is new there
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without links
        _refuse_existing(path, force=False)
        stream.replace(path)


def _exists(path: Path) -> StorageError:
    message = f"{path} exists already: name another file, or overwrite it with --force"
    return StorageError(message, code="storage.exists")


def _unwritable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be written ({error.strerror}): name another file"
    return StorageError(message, code="storage.readonly")
