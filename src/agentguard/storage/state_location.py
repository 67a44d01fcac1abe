"""The location of a log's state: path, device and inode, recorded with the log's anchors.

A copy of a state shares the anchor with the original. The first of the two that is written moves
the anchor, and the other state is behind the anchor from then on. So a state is refused before
anything is written (``storage.copied``) where both its path and its folder differ from the record.
Either may differ alone: the path after a ``mv``, the folder after a restore of a backup. Where the
recorded path is a link that leads to the state by now, the state was moved and is no copy.
"""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.errors import StorageError
from agentguard.storage import files, lock
from agentguard.storage.anchor import ADOPT

_RECORD: Final = "state.json"
_LOCK: Final = "state.lock"


class Location(NamedTuple):
    """A folder: its absolute path without symbolic links, and the device and inode it has."""

    path: str
    device: int
    inode: int

    @classmethod
    def of(cls, folder: Path, *, path: Path | None = None) -> Location:
        """Return the location of ``folder``, to be moved to ``path``; raises ``OSError``."""
        status = folder.stat()
        return cls(os.path.realpath(path or folder), status.st_dev, status.st_ino)

    def is_same(self, other: Location) -> bool:
        """Return whether this is the same path, or the same folder at another path."""
        return self.path == other.path or self[1:] == other[1:]

    def is_folder(self, folder: Path) -> bool:
        """Return whether ``folder`` is this folder, at whatever path; raises ``OSError``."""
        status = folder.stat()
        return self[1:] == (status.st_dev, status.st_ino)


class _Record(NamedTuple):
    """The locations of a log's state, and of the folder of the log's anchors."""

    state: Location
    anchors: Location


def record(folder: Path, state: Path, *, made_in: Path | None = None) -> None:
    """Record in ``folder``, that of a log's anchors, that the log's state is ``state``.

    A state that is being founded still lies in ``made_in``. Raises ``StorageError``.
    """
    current = _record_of(folder, state, made_in or state)
    with _locked(folder):
        _write(folder, current)


def require(folder: Path, state: Path) -> None:
    """Refuse a state that is a copy of the recorded one; record where this one is by now.

    An anchor that was copied together with its state has moved with it, and says nothing of the
    original. Raises ``StorageError`` (``storage.copied``, ``anchor.damaged``,
    ``anchor.unreadable``, ``anchor.unwritable``).
    """
    current = _record_of(folder, state, state)
    if _read(folder) == current:
        return
    with _locked(folder):
        recorded = _read(folder)
        if recorded is not None and _is_copy(recorded, current):
            raise _copied(state, recorded.state.path)
        _write(folder, current)


def refuse_copy(folder: Path, state: Path) -> None:
    """Refuse a state that is a copy, and record nothing; raises as ``require`` does."""
    recorded = original(folder, state)
    if recorded is not None:
        raise _copied(state, recorded)


def original(folder: Path, state: Path) -> str | None:
    """Return the path of the state of which ``state`` is a copy, None if ``state`` is none.

    Raises ``StorageError`` (``anchor.damaged``, ``anchor.unreadable``).
    """
    recorded = _read(folder)
    if recorded is not None and _is_copy(recorded, _record_of(folder, state, state)):
        return recorded.state.path
    return None


def knows(folder: Path, state: Path) -> bool:
    """Whether the log's state is recorded at this path, or was this folder; raises likewise."""
    recorded = _read(folder)
    if recorded is None:
        return False
    try:
        # first what costs one look: a path without links takes a look at each of its folders
        return recorded.state.is_folder(state) or recorded.state.path == os.fspath(state.resolve())
    except OSError as error:
        raise _unreadable(folder, error) from error


def path_in(folder: Path) -> str | None:
    """Return the recorded path of a log's state; raises as ``original`` does."""
    recorded = _read(folder)
    return recorded.state.path if recorded is not None else None


def _is_copy(recorded: _Record, current: _Record) -> bool:
    if recorded.state.is_same(current.state) or not recorded.anchors.is_same(current.anchors):
        return False
    try:
        return not current.state.is_folder(Path(recorded.state.path))
    except OSError:  # nothing is there any more
        return True


def _record_of(folder: Path, state: Path, made_in: Path) -> _Record:
    try:
        return _Record(Location.of(made_in, path=state), Location.of(folder))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _read(folder: Path) -> _Record | None:
    path = folder / _RECORD
    try:
        data = files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        match json.loads(data):
            case {"state": [str(), int(), int()] as state, "anchors": [str(), int(), int()] as own}:
                return _Record(Location(*state), Location(*own))
    except (ValueError, RecursionError):
        pass
    message = f"{path} is damaged: find out who changed it; agentguard trust pin writes a new one"
    raise StorageError(message, code="anchor.damaged")


def _write(folder: Path, current: _Record) -> None:
    try:
        # a path that is no UTF-8 keeps its bytes: JSON escapes what stands for them
        files.replace(folder / _RECORD, json.dumps(current._asdict()).encode())
    except StorageError as error:
        raise _unwritable(folder, error) from error


def _locked(folder: Path) -> FileIO:
    """Return the lock that keeps other processes from changing the record, for a ``with``."""
    try:
        files.make_folder(folder)
        return lock.acquire(folder / _LOCK)
    except (OSError, StorageError) as error:
        if isinstance(error, StorageError) and error.code == "storage.locked":
            raise
        raise _unwritable(folder, error) from error


def _copied(state: Path, recorded: str) -> StorageError:
    problem = f"the state {state.resolve()} is a copy: its log goes on in {recorded}"
    if Path(recorded).is_dir():
        remedy = (
            "Work there; for another log, run agentguard init in a new folder. If the log shall go "
            f"on here and not there any more, stop what runs there, and run {ADOPT} here"
        )
    else:
        remedy = (
            "There is no state now: bring it back, or, if this is what you moved away from there, "
            f"run {ADOPT} here"
        )
    return StorageError(f"{problem}. {remedy}. Nothing was written", code="storage.copied")


def _unreadable(path: Path, error: OSError) -> StorageError:
    message = files.unreadable(path, error)
    return StorageError(message, code="anchor.unreadable")


def _unwritable(folder: Path, error: Exception) -> StorageError:
    message = (
        f"the anchor {folder} can't be written ({error}): set anchor in agentguard.toml to a "
        'writable directory, or to "" for none'
    )
    return StorageError(message, code="anchor.unwritable")
