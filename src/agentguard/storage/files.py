"""Reads and writes small private files, durably and whole.

A file's bytes are durable after a sync of the file, and the file's name after a sync of the folder.
Each writing function does both before it returns. After a power cut the disk therefore never has
the effect of a later call without the effects of the earlier calls.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from agentguard.errors import StorageError

_NO_SYNC_OF_FOLDERS: Final = frozenset({errno.EINVAL, errno.ENOTSUP})
"""The errors of file systems that can't sync a folder; the sync is left out there."""


_NOTHING_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""The errors of the system for a path at which there is nothing."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""The most bytes that ``read`` accepts by default; no file of a state or an anchor is longer."""

Require = Callable[[os.stat_result], object]
"""Raises for a file whose status is not acceptable."""


def read(path: Path, *, limit: int = MAX_BYTES, require: Require = lambda _status: None) -> bytes:
    """Return the bytes of a regular file.

    ``require`` receives the status of the opened file, and raises for a status that is not
    acceptable. Raises ``OSError``, also for a file that is not regular or is longer than ``limit``.
    """
    number = _open_regular(path)
    try:
        status = os.fstat(number)
        require(status)
        # checked before the reading: a sparse file is small on disk, and large in memory
        size = status.st_size
        data = _read(number, size + 1) if size <= limit else b""
        if size < len(data) <= limit:  # a growing file, or one of /proc, whose size is 0
            data += _read(number, limit + 1 - len(data))
    finally:
        os.close(number)
    if max(len(data), size) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes", str(path))
    return data


def exists(path: Path) -> bool:
    """Return whether there is anything at ``path``, links followed.

    Raises ``OSError`` where the system can't tell, such as for a folder that this user can't search
    or a disk that fails. ``Path.exists`` says no there since Python 3.14, and so would hide a file.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return False
        raise
    return True


def _read(number: int, most: int) -> bytes:
    """Return the next bytes of an open file: ``most`` bytes, fewer at the end of the file only."""
    data = os.read(number, most)
    while 0 < len(data) < most and (more := os.read(number, most - len(data))):
        data += more
    return data


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading; raises ``OSError``, also for a file that is not regular.

    A user who can write the folder could replace the file with a pipe or a device, whose reading
    would never end.
    """
    with os.fdopen(_open_regular(path), "rb") as file:
        yield file


def _open_regular(path: Path) -> int:
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(path, number)
    except OSError:
        os.close(number)
        raise
    return number


def require_regular(path: Path, number: int | None = None) -> None:
    """Raise ``OSError`` unless the file is regular; ``number`` is the open file's descriptor."""
    status = path.stat() if number is None else os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_if_present(path: Path, *, limit: int = MAX_BYTES) -> bytes | None:
    """Return the bytes of a regular file, None if the file does not exist.

    Raises ``StorageError`` (``storage.readonly``) for a file that can't be read.
    """
    try:
        return read(path, limit=limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(unreadable(path, error), code="storage.readonly") from error


def unreadable(path: str | Path, error: OSError) -> str:
    """Return the message for an existing file that can't be read, with the remedy."""
    lacks_right = error.errno in (errno.EACCES, errno.EPERM)
    remedy = "give this user the right" if lacks_right else "put what belongs there in its place"
    return f"{path} can't be read ({error.strerror}): {remedy}"


def write_new(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, and make missing folders.

    Raises ``StorageError``: ``storage.exists``, ``storage.readonly``, ``storage.full``.
    """
    try:
        make_folder(path.parent)
        _write(path, data)
        _sync(path.parent)
    except FileExistsError as error:
        raise _in_the_way(path) from error
    except OSError as error:
        raise _unwritten(path, error, "written") from error


def require_room(folder: Path, size: int) -> None:
    """Raise ``StorageError`` where no file of ``size`` bytes fits into a folder; none stays there.

    The codes are ``storage.readonly`` and ``storage.full``.
    """
    try:
        from tempfile import TemporaryFile  # noqa: PLC0415  only a log that has failed needs it

        with TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
    except OSError as error:
        raise _unwritten(folder, error, "written") from error


def _unwritten(path: Path, error: OSError, what: str) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"{path} can't be {what}: the disk is full: make room, then try again"
        return StorageError(message, code="storage.full")
    message = f"{path} can't be {what} ({error.strerror}): give this user the right"
    return StorageError(message, code="storage.readonly")


def _in_the_way(path: Path) -> StorageError:
    if not path.parent.is_dir():
        message = f"{path.parent} is no folder: find out who made it, and remove it"
        return StorageError(message, code="storage.readonly")
    message = f"{path} exists already: it is not overwritten"
    return StorageError(message, code="storage.exists")


def replace(path: Path, data: bytes) -> None:
    """Write or overwrite a file of mode 0600, whole or not at all; raises ``StorageError``."""
    new = path.with_name(f"{path.name}.new")
    with _replacing(path):
        new.unlink(missing_ok=True)  # left by a process that died here
        make_folder(path.parent)
        _write(new, data)
        new.replace(path)
        _sync(path.parent)


def half_written(folder: Path) -> list[Path]:
    """Return the temporary files of unfinished calls of ``replace`` in a folder.

    A folder that can't be listed has none.
    """
    try:  # pathlib's glob takes six times as long, and each new delegation looks here
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []
    return sorted(folder / name for name in names if name.endswith(".new"))


def move(source: Path, target: Path) -> None:
    """Rename a file within a folder, over an existing file; raises ``StorageError``."""
    with _replacing(target):
        source.replace(target)
        _sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file if the file exists; raises ``StorageError``."""
    with _replacing(path):
        path.unlink(missing_ok=True)
        _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a missing folder, and missing folders above, of mode 0700; raises ``OSError``."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def refuse_links(folder: Path) -> None:
    """Refuse a folder that contains a symbolic link; ignore one that does not exist.

    The maker of a link could otherwise have this process write or remove files that the maker has
    no right to. Raises ``StorageError`` (``storage.linked``, ``storage.readonly``).
    """
    try:
        with os.scandir(folder) as entries:
            link = next((entry.path for entry in entries if entry.is_symlink()), None)
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"{folder} can't be read ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    if link is not None:
        message = (
            f"{link} is a symbolic link, and may lead to files of somebody else: find out who "
            "made it, remove it (rm), and restore what belongs there. To keep a state "
            "elsewhere, set state in agentguard.toml. Nothing was written"
        )
        raise StorageError(message, code="storage.linked")


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            written = os.write(file, rest)
            if written == 0:  # without progress the loop would never end
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[written:]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _replacing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritten(path, error, "replaced") from error
