"""How a state comes into being: filled under another name, beside its own, and then renamed.

So a state is whole or not there, whenever the process that founds it dies, and what such a process
has left is no state that somebody might hold for one: whoever founds next begins anew in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import files, lock

_LOCK: Final = "founding.lock"


@contextmanager
def filling(state: Path) -> Iterator[Path]:
    """Yield an empty folder of mode 0700 that becomes ``state`` at the end, or else is gone.

    Raises ``StorageError``: ``storage.exists`` unless there is nothing at ``state``, or an empty
    folder, and nobody else founds there; ``storage.readonly``.
    """
    state = state.resolve()
    folder = state.with_name(f"{state.name}.founding")
    _refuse_existing(state)
    held = _claim(folder)
    try:
        for left in folder.iterdir():  # of somebody who died here
            if left.name != _LOCK:
                _remove(left)
        yield folder
        try:
            files.move(folder, state)
        except StorageError:
            _refuse_existing(state)  # somebody else has made it in some other way
            raise
        with suppress(OSError):  # it is founded, whatever becomes of this
            (state / _LOCK).unlink()
    except BaseException:
        _remove(folder)
        raise
    finally:
        lock.release(held)


def _claim(folder: Path) -> int:
    """Make the folder and lock it: a lock that is not in its place was somebody's who is done."""
    try:
        files.make_folder(folder)
        folder.chmod(0o700)  # nobody else's, and nobody else's to read
        held = lock.try_acquire(folder / _LOCK)
    except OSError as error:
        message = f"{folder} can't be made ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    if held is not None and _is_at(held, folder / _LOCK):
        return held
    if held is not None:
        lock.release(held)
    message = f"{folder} is being founded by somebody else: it is not overwritten"
    raise StorageError(message, code="storage.exists")


def _is_at(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False


def _refuse_existing(state: Path) -> None:
    try:
        empty = not any(state.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        empty = False
    except OSError as error:
        message = files.unreadable(state, error)
        raise StorageError(message, code="storage.readonly") from error
    if not empty:
        message = f"{state} is no empty directory: it is not overwritten; choose another state"
        raise StorageError(message, code="storage.exists")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
