"""The anchor of a store: its newest head, in a file outside of it.

Whoever puts an older database in the place of the store does not reach the anchor. The file never
goes back to a smaller log. Read the anchor before the head: the other way round, a commit between
the two looks like a rollback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agentguard.errors import AgentguardError, StorageError
from agentguard.signing.keys import PublicKey
from agentguard.storage import files, lock
from agentguard.store import head
from agentguard.store.head import Head

_MOST: Final = 64 * 1024


class Anchor:
    """The anchor at a path; ``log`` is the name of the log, and ``keys`` sign its heads."""

    def __init__(self, path: Path, log: str, keys: Sequence[PublicKey]) -> None:
        self._path = path
        self._log = log
        self._keys = keys
        self._unwritten: tuple[int, bytes] | None = None

    def read(self) -> Head | None:
        """Return the anchor's head, verified, None for an anchor that keeps nothing yet.

        Raises ``StorageError`` (``anchor.damaged``, ``anchor.unreadable``).
        """
        if not files.exists(self._path):
            return None
        with self._locked("anchor.unreadable") as file:
            return self._read(file)

    def write(self, size: int, note: bytes) -> None:
        """Write the note of a newer head; ``settle`` tries again after a failure."""
        self._unwritten = size, note
        with suppress(StorageError):
            self.settle()

    def settle(self) -> None:
        """Write the newest head if that has failed, so that one commit at most is not anchored.

        Raises ``StorageError`` (``anchor.unwritable``, ``anchor.damaged``).
        """
        if self._unwritten is None:
            return
        size, note = self._unwritten
        with self._locked("anchor.unwritable") as file:
            kept = self._read(file)
            if kept is None or kept.size < size:
                if os.pwrite(file, note, 0) != len(note):
                    raise OSError(errno.EIO, "not all of it was written")
                os.ftruncate(file, len(note))
        self._unwritten = None

    def _read(self, file: int) -> Head | None:
        note = os.pread(file, _MOST, 0)
        if not note:  # made, and its maker has ended before the first write
            return None
        try:
            return head.verify(note, self._keys, self._log)[0]
        except AgentguardError as error:
            message = (
                f"the anchor {self._path} is damaged ({error}): a computer that stopped while it "
                "was written leaves that, and so does whoever changes it. Find out which"
            )
            raise StorageError(message, code="anchor.damaged") from error

    @contextmanager
    def _locked(self, code: str) -> Iterator[int]:
        try:
            files.make_folder(self._path.parent)
            file = lock.acquire(self._path)
            try:
                yield file
            finally:
                lock.release(file)
        except (OSError, StorageError) as error:
            if isinstance(error, StorageError) and error.code == "anchor.damaged":
                raise
            message = (
                f"the anchor {self._path} can't be used ({error}): set anchor in "
                'agentguard.toml to a writable directory, or to "" for none'
            )
            raise StorageError(message, code=code) from error
