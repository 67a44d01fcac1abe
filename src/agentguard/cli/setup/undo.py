"""What a command makes, file by file, and how it is taken away again if a later step fails.

Nothing is overwritten, and a file is there whole or not at all, whenever the process dies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from agentguard.errors import AgentguardError, StorageError

Made = list[Callable[[], object]]
"""How to take away what was made, the oldest first."""


@contextmanager
def all_or_nothing() -> Iterator[Made]:
    """Yield a list of how to take away what is made; if the block raises, it is done."""
    made: Made = []
    try:
        yield made
    except BaseException:
        for undo in reversed(made):
            with suppress(OSError, AgentguardError):  # the first error is the one to report
                undo()
        raise


def refuse_existing(path: Path, advice: str = "choose another folder") -> None:
    """Raise ``StorageError`` (``storage.exists``) where something is."""
    if os.path.lexists(path):
        raise _exists(path, advice)


def folder(made: Made, path: Path, *, mode: int = 0o755) -> None:
    """Make a folder, with those above it, where there is none; raises ``StorageError``."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for one in reversed(missing):
        try:
            one.mkdir(mode=mode)
        except FileExistsError as error:  # made by somebody else since it was looked for
            raise _exists(one) from error
        except OSError as error:
            raise _unwritable(one, error) from error
        made.append(one.rmdir)


def file(made: Made, path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file that must not exist; raises ``StorageError``."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # of somebody who died here
        opened = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        made.append(partial(new.unlink, missing_ok=True))
        with os.fdopen(opened, "w", encoding="utf-8") as stream:
            os.fchmod(opened, mode)  # exactly: no umask lets others write, or keeps readers out
            stream.write(text)
            stream.flush()
            os.fsync(opened)
        _put_in_place(new, path)
        made.append(path.unlink)
        new.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _put_in_place(new: Path, path: Path) -> None:
    try:
        path.hardlink_to(new)  # unlike a rename it replaces nothing that has come meanwhile
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without links
        refuse_existing(path)
        new.replace(path)


def _exists(path: Path, advice: str = "choose another folder") -> StorageError:
    message = f"{path} exists already: nothing is overwritten; {advice}"
    return StorageError(message, code="storage.exists")


def _unwritable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be made ({error.strerror}): give this user the right"
    return StorageError(message, code="storage.readonly")
