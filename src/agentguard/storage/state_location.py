"""Where the one state of a log lies: its path, device and inode, kept with the log's anchors.

A copy of a state shares the anchor with the original. Whichever of the two is written first moves
the anchor, and the other one is behind it from then on. So a state that lies at another path *and*
is another folder than the recorded one is refused before anything is written (``storage.copied``).
One of the two may differ: the path after a ``mv``, the folder after a restore of a backup.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.errors import StorageError
from agentguard.storage import files, lock
from agentguard.storage.anchor import ADOPT

_RECORD: Final = "state.json"
_LOCK: Final = "state.lock"


class Place(NamedTuple):
    """A folder: its absolute path without symbolic links, and the device and inode it has."""

    path: str
    device: int
    inode: int

    @classmethod
    def of(cls, folder: Path, *, path: Path | None = None) -> Place:
        """Read the place of ``folder``, which will be at ``path``; raises ``OSError``."""
        status = folder.stat()
        return cls(os.fspath((path or folder).resolve()), status.st_dev, status.st_ino)

    def is_same(self, other: Place) -> bool:
        """Whether it is the same path, or the same folder at another path."""
        return self.path == other.path or self[1:] == other[1:]


class _Record(NamedTuple):
    """The place of a log's state, and of the folder of the log's anchors."""

    state: Place
    anchors: Place


def record(folder: Path, state: Path, *, made_in: Path | None = None) -> None:
    """Record in ``folder``, that of a log's anchors, that the log's state is ``state``.

    A state that is being founded still lies in ``made_in``. Raises ``StorageError``.
    """
    here = _here(folder, state, made_in or state)
    with _locked(folder):
        _write(folder, here)


def require(folder: Path, state: Path) -> None:
    """Refuse a state that is a copy of the recorded one; record where this one is by now.

    An anchor that was copied together with its state has moved with it, and says nothing of the
    original. Raises ``StorageError`` (``storage.copied``, ``anchor.damaged``,
    ``anchor.unreadable``, ``anchor.unwritable``).
    """
    here = _here(folder, state, state)
    if _read(folder) == here:
        return
    with _locked(folder):
        kept = _read(folder)
        if kept is not None and _is_copy(kept, here):
            raise _copied(state, kept.state.path)
        _write(folder, here)


def refuse_copy(folder: Path, state: Path) -> None:
    """Refuse a state that is a copy, and record nothing; raises as ``require`` does."""
    recorded = original(folder, state)
    if recorded is not None:
        raise _copied(state, recorded)


def original(folder: Path, state: Path) -> str | None:
    """Return the path of the state of which ``state`` is a copy, None if ``state`` is none.

    Raises ``StorageError`` (``anchor.damaged``, ``anchor.unreadable``).
    """
    kept = _read(folder)
    if kept is not None and _is_copy(kept, _here(folder, state, state)):
        return kept.state.path
    return None


def knows(folder: Path, state: Path) -> bool:
    """Whether the log's state is recorded at this path, or was this folder; raises likewise."""
    kept = _read(folder)
    return kept is not None and kept.state.is_same(_here(folder, state, state).state)


def path_in(folder: Path) -> str | None:
    """Return the recorded path of a log's state; raises as ``original`` does."""
    kept = _read(folder)
    return kept.state.path if kept is not None else None


def _is_copy(kept: _Record, here: _Record) -> bool:
    return kept.anchors.is_same(here.anchors) and not kept.state.is_same(here.state)


def _here(folder: Path, state: Path, made_in: Path) -> _Record:
    try:
        return _Record(Place.of(made_in, path=state), Place.of(folder))
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
                return _Record(Place(*state), Place(*own))
    except (ValueError, RecursionError):
        pass
    message = f"{path} is damaged: find out who changed it; agentguard trust pin writes a new one"
    raise StorageError(message, code="anchor.damaged")


def _write(folder: Path, here: _Record) -> None:
    try:
        # a path that is no UTF-8 keeps its bytes: JSON escapes what stands for them
        files.replace(folder / _RECORD, json.dumps(here._asdict()).encode())
    except StorageError as error:
        raise _unwritable(folder, error) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from changing the record meanwhile."""
    try:
        files.make_folder(folder)
        locked = lock.acquire(folder / _LOCK)
    except (OSError, StorageError) as error:
        if isinstance(error, StorageError) and error.code == "storage.locked":
            raise
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release(locked)


def _copied(state: Path, recorded: str) -> StorageError:
    said = f"the state {state.resolve()} is a copy: its log goes on in {recorded}"
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
    return StorageError(f"{said}. {remedy}. Nothing was written", code="storage.copied")


def _unreadable(path: Path, error: OSError) -> StorageError:
    message = files.unreadable(path, error)
    return StorageError(message, code="anchor.unreadable")


def _unwritable(folder: Path, error: Exception) -> StorageError:
    message = (
        f"the anchor {folder} can't be written ({error}): set anchor in agentguard.toml to a "
        'writable directory, or to "" for none'
    )
    return StorageError(message, code="anchor.unwritable")
