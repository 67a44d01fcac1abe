"""Makes the files and folders of a command, and removes them if a later step fails.

Nothing is overwritten. A file appears complete or not at all, even if the process dies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from agentguard.errors import AgentguardError, StorageError

Undos = list[Callable[[], object]]
"""The functions that undo the steps so far, the oldest first."""


@contextmanager
def all_or_nothing() -> Iterator[Undos]:
    """Yield a list of undo functions, which run, the newest first, if the block raises."""
    undos: Undos = []
    try:
        yield undos
    except BaseException:
        for undo in reversed(undos):
            with suppress(OSError, AgentguardError):  # the first error is the one to report
                undo()
        raise


def refuse_existing(path: Path, advice: str = "choose another folder") -> None:
    """Raise ``StorageError`` (``storage.exists``) where the path exists."""
    if os.path.lexists(path):
        raise _exists(path, advice)


def folder(undos: Undos, path: Path, *, mode: int = 0o755) -> None:
    """Make a folder and its missing parents; raises ``StorageError``."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for parent in reversed(missing):
        try:
            parent.mkdir(mode=mode)
        except FileExistsError as error:  # another process made the folder after the check
            raise _exists(parent) from error
        except OSError as error:
            raise _unwritable(parent, error) from error
        undos.append(parent.rmdir)


def file(undos: Undos, path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file that must not exist; raises ``StorageError``."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # a process that died here left the file behind
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        undos.append(partial(new.unlink, missing_ok=True))
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, mode)  # the exact mode, whatever the umask is
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        _put_in_place(new, path)
        undos.append(path.unlink)
        new.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _put_in_place(new: Path, path: Path) -> None:
    try:
        path.hardlink_to(new)  # unlike a rename, a link never replaces a file that is new there
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without links
        refuse_existing(path)
        new.replace(path)


def _exists(path: Path, advice: str = "choose another folder") -> StorageError:
    message = f"{path} exists already, and nothing is overwritten: {advice}"
    return StorageError(message, code="storage.exists")


def _unwritable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be made ({error.strerror}): give this user the right to write there"
    return StorageError(message, code="storage.readonly")
