"""Creates a state directory, whole or not at all.

A new state is filled in a folder beside the state's path, ``<state>.founding``, and then renamed.
A process that dies in between leaves no state at the path. The next process that creates the state
empties the folder and begins again. ``domain.found`` decides what a new state contains.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import files, lock

_LOCK: Final = "founding.lock"


@contextmanager
def filling(state: Path) -> Iterator[Path]:
    """Yield an empty folder of mode 0700; rename the folder to ``state`` at the block's end.

    An exception in the block removes the folder. Raises ``StorageError``: ``storage.exists`` if
    ``state`` is a file or a folder with files, or if another process creates ``state`` at the
    same time; ``storage.readonly`` if the folder can't be made, or ``state`` can't be read.
    """
    state = state.resolve()
    folder = state.with_name(f"{state.name}.founding")
    _refuse_existing(state)
    with _claim(folder):
        try:
            for path in folder.iterdir():  # files of a process that died here
                if path.name != _LOCK:
                    _remove(path)
            yield folder
            try:
                files.move(folder, state)
            except StorageError:
                _refuse_existing(state)  # another program may have made a folder there
                raise
            with suppress(OSError):  # the state is complete, even if the lock's file stays
                (state / _LOCK).unlink()
        except BaseException:
            _remove(folder)
            raise


def _claim(folder: Path) -> FileIO:
    """Make the folder and return its lock's open file.

    Another process may rename or remove the folder between the opening of the lock's file and the
    locking. A lock whose file is no longer at the path protects nothing.
    """
    try:
        files.make_folder(folder)
        folder.chmod(0o700)
        lock_file = lock.try_acquire(folder / _LOCK)
    except OSError as error:
        message = (
            f"{folder} can't be made ({error.strerror}): give this user the right to write in "
            f"{folder.parent}"
        )
        raise StorageError(message, code="storage.readonly") from error
    if lock_file is not None:
        if _is_at(lock_file, folder / _LOCK):
            return lock_file
        lock_file.close()
    message = (
        f"another process creates a state in {folder} now: nothing was overwritten; wait until "
        "that process has ended"
    )
    raise StorageError(message, code="storage.exists")


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _refuse_existing(state: Path) -> None:
    try:
        is_empty = not any(state.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        is_empty = False
    except OSError as error:
        message = files.unreadable(state, error)
        raise StorageError(message, code="storage.readonly") from error
    if not is_empty:
        message = f"{state} is no empty directory: it is not overwritten; choose another state"
        raise StorageError(message, code="storage.exists")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
