"""Small files that must be there after a power cut: written whole, private, in the order asked for.

A file's bytes are durable once the file is synced, its name once its folder is. Each function here
does both before it returns, so that what is called later is never on disk without what came before.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from agentguard.errors import StorageError
from agentguard.identity.trust import SHARD_NUMBER

_NO_SYNC_OF_FOLDERS: Final = frozenset({errno.EINVAL, errno.ENOTSUP})
"""What file systems answer that have no such thing: their names are as durable as they can be."""


MAX_BYTES: Final = 16 * 1024 * 1024
"""More than any small file of a state or an anchor holds, or one that a configuration names."""

Require = Callable[[os.stat_result], object]
"""Refuses a file by its status, by raising."""


def read(path: Path, *, limit: int = MAX_BYTES, require: Require = lambda _status: None) -> bytes:
    """Read a file; raises ``OSError``, also for what is none, or is longer than it can be.

    ``require`` sees the status of the very file that is read, and raises what it does not accept.
    """
    with opened(path) as file:
        status = os.fstat(file.fileno())
        require(status)
        # looked at before it is read: a long file takes no room on a disk, and much in memory
        size = status.st_size
        data = file.read(size + 1) if size <= limit else b""
        if size < len(data) <= limit:  # it grows, or is of those that do not say how long they are
            data += file.read(limit + 1 - len(data))
    if max(len(data), size) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes", str(path))
    return data


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file to read; raises ``OSError``, also for what is none.

    Whoever may write there may have put a pipe in its place, which never ends, or a device.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(path, number)
    except OSError:
        os.close(number)
        raise
    with os.fdopen(number, "rb") as file:
        yield file


def require_regular(path: Path, number: int | None = None) -> None:
    """Raise ``OSError`` where there is no regular file; ``number`` is the file as it was opened."""
    status = path.stat() if number is None else os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_if_present(path: Path, *, limit: int = MAX_BYTES) -> bytes | None:
    """Read a file as ``read`` does, None where there is none.

    Raises ``StorageError`` (``storage.readonly``) where a file is there and can't be read.
    """
    try:
        return read(path, limit=limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(unreadable(path, error), code="storage.readonly") from error


def unreadable(path: str | Path, error: OSError) -> str:
    """Return the message for a file that is there and can't be read: why, and what to do."""
    is_right = error.errno in (errno.EACCES, errno.EPERM)
    todo = "give this user the right" if is_right else "put what belongs there in its place"
    return f"{path} can't be read ({error.strerror}): {todo}"


def write_new(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 that must not exist; its folders are made.

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


def add(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 that must not exist, whole or not at all.

    Whoever dies in it leaves none of that name, but perhaps one beside its folder (``.half-*``).
    Raises ``StorageError``: ``storage.exists``, ``storage.readonly``, ``storage.full``.
    """
    half = path.parent.parent / f".half-{os.urandom(8).hex()}"
    try:
        make_folder(path.parent)
        try:
            _write(half, data)
            os.link(half, path)
        finally:
            half.unlink(missing_ok=True)
        _sync(path.parent)
    except FileExistsError as error:
        raise _in_the_way(path) from error
    except OSError as error:
        raise _unwritten(path, error, "written") from error


def add_if_absent(path: Path, data: bytes) -> bool:
    """Write a file as ``add`` does; return False, and write nothing, where one is there."""
    try:
        add(path, data)
    except StorageError as error:
        if error.code == "storage.exists":
            return False
        raise
    return True


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
    """Write a file of mode 0600 in place of another, whole or not; raises ``StorageError``."""
    new = path.with_name(f"{path.name}.new")
    with _replacing(path):
        new.unlink(missing_ok=True)  # of somebody who died here
        make_folder(path.parent)
        _write(new, data)
        new.replace(path)
        _sync(path.parent)


def half_written(folder: Path) -> list[Path]:
    """Return what ``replace`` leaves in a folder where somebody dies in it, or is at it now."""
    return sorted(folder.glob("*.new"))


def move(source: Path, target: Path) -> None:
    """Put a file in the place of another in the same folder; raises ``StorageError``."""
    with _replacing(target):
        source.replace(target)
        _sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file, if there is one; raises ``StorageError``."""
    with _replacing(path):
        path.unlink(missing_ok=True)
        _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder of mode 0700, with those above it, where there is none; raises ``OSError``."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync(folder.parent)


def remove_folder(root: Path, *parts: str) -> None:
    """Remove the files of the folder that these parts lead to below ``root``, and the folder.

    Whoever may write there may have put a link to another folder in the place of a part. No link is
    followed, and no file outside is removed: such a part is refused. Raises ``StorageError``
    (``storage.readonly``).
    """
    with _replacing(root.joinpath(*parts)), ExitStack() as opened:
        folders = [_open_folder(opened, os.fspath(root), None)]
        try:
            for part in parts:
                folders.append(_open_folder(opened, part, folders[-1]))
        except FileNotFoundError:
            return
        for name in os.listdir(folders[-1]):  # noqa: PTH208  a descriptor has no path
            os.unlink(name, dir_fd=folders[-1])
        os.fsync(folders[-1])
        with suppress(OSError):
            os.rmdir(parts[-1], dir_fd=folders[-2])


def _open_folder(opened: ExitStack, name: str, above: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(name, flags, dir_fd=above)
    opened.callback(os.close, folder)
    return folder


def refuse_links(*folders: Path) -> None:
    """Refuse folders in which there is a symbolic link; one that is not there has none.

    What is written or removed below such a link lies where the link's maker could not reach it.
    Raises ``StorageError`` (``storage.linked``, ``storage.readonly``).
    """
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                link = next((entry.path for entry in entries if entry.is_symlink()), None)
        except FileNotFoundError:
            continue
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


def numbered(folder: Path, suffix: str) -> list[int]:
    """Return the numbers of the files ``<number><suffix>`` in a folder, in order.

    A number has one spelling: ``01`` would be a second shard 1. Raises ``OSError``.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208  Path.glob passes over what it may not read
    except FileNotFoundError:
        return []
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if SHARD_NUMBER.fullmatch(stem))


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            written = os.write(file, rest)
            if written == 0:  # a file of Python's would try again for ever
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[written:]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(opened)


@contextmanager
def _replacing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritten(path, error, "replaced") from error
