"""The reserve: room on the disk that is kept for freezes and revocations.

A file in the state takes the room. An entry of any other kind needs the reserve to be whole, so
that calls are denied while there is room left for who has to stop them. A freeze or revocation for
which the disk has no room gives the reserve up, holds its lock meanwhile, and fills it again where
that can be done. Else the next entry for which there is room fills it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar

from agentguard.errors import StorageError
from agentguard.storage import lock

FILE: Final = "reserve"

SIZE: Final = 1 << 20
"""The bytes of the reserve."""

_PARTS: Final = (1, 2, 4, 8, 16)
"""The parts of the reserve that are filled again where there is no room for all of it."""

T = TypeVar("T")

_IS_GIVEN_UP: ContextVar[bool] = ContextVar("agentguard_reserve_given_up", default=False)


def fill(state: Path) -> None:
    """Fill the reserve as an opening does, if there is room; a copied file may have no blocks."""
    with suppress(StorageError, OSError):
        try:
            kept = _kept((state / FILE).lstat())
        except FileNotFoundError:
            kept = 0
        if kept < SIZE:
            _fill_unlocked(state)


def require(state: Path) -> None:
    """Raise ``StorageError`` (``storage.full``) unless the reserve is whole, or can be filled."""
    if _IS_GIVEN_UP.get():
        return
    try:
        # this runs in every commit, and a Path takes longer to make than to look at
        if os.lstat(f"{state}/{FILE}").st_size >= SIZE:
            return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _full(state, error.strerror) from error
    try:
        _fill_unlocked(state)
    except OSError as error:
        raise _full(state, error.strerror) from error


def give_up_for(act: Callable[[], T], state: Path) -> T:
    """Return what ``act`` returns while the reserve is given up; raises ``StorageError``."""
    with lock.acquire(state / FILE) as file:
        with suppress(OSError):  # a pipe in its place keeps no room, and stops no freeze
            os.ftruncate(file.fileno(), 0)
        token = _IS_GIVEN_UP.set(True)
        try:
            done = act()
        finally:
            _IS_GIVEN_UP.reset(token)
        for part in _PARTS:  # what is left of the room is for the next freeze or revocation
            with suppress(OSError):
                _allocate(file, SIZE // part)
                break
        return done


def _fill_unlocked(state: Path) -> None:
    """Fill the reserve, unless another process has given it up just now."""
    file = lock.try_acquire(state / FILE)
    if file is None:
        raise _full(state, "a freeze or revocation uses the room")
    with file:
        _allocate(file, SIZE)


def _allocate(file: FileIO, size: int) -> None:
    """Have the file system keep so many bytes for a file, or as many as before.

    The length of the file says how many are kept, also of a copy without blocks. Raises
    ``OSError``.
    """
    before = _kept(os.fstat(file.fileno()))
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        os.ftruncate(file.fileno(), before)
        raise


def _kept(status: os.stat_result) -> int:
    """Return how many bytes the file system keeps for a file."""
    return min(status.st_size, status.st_blocks * 512)


def _full(state: Path, why: str | None) -> StorageError:
    message = (
        f"there is no room for {state / FILE}, which keeps some for freezes and revocations "
        f"({why}): make room on the disk, then call again"
    )
    return StorageError(message, code="storage.full")
