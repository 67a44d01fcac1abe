"""The anchor of a store: its newest head, in a file outside of it.

Whoever puts an older database in the place of the store does not reach the anchor. The file never
goes back to a smaller log. Read the anchor before the head: the other way round, a commit between
the two looks like a rollback.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentguard.audit import head
from agentguard.audit.head import Head
from agentguard.errors import AgentguardError, StorageError
from agentguard.identity.trust import TrustedKey
from agentguard.signing.keys import PublicKey
from agentguard.storage import files, lock

_MOST: Final = 64 * 1024
_PAUSES: Final = (0.01, 0.02, 0.03, 0.04)
"""Seconds after which a seemingly damaged anchor is read again."""


class Anchor:
    """The anchor at a path; ``log`` is the name of the log, and ``keys`` reads who signs heads."""

    def __init__(self, path: Path, log: str, keys: Callable[[], Iterable[TrustedKey]]) -> None:
        self.path = path
        self._log = log
        self._keys = keys
        self._unwritten: tuple[int, bytes] | None = None
        self._kept: tuple[int, bytes] | None = None  # what this process has written last
        self._is_tried = False
        self.key: PublicKey | None = None
        """The key that signed the head that was read last."""

    def read(self) -> Head | None:
        """Return the anchor's head, verified, None for an anchor that keeps nothing yet.

        A damaged file is read again some times, for a process may be writing it. Raises
        ``StorageError`` (``anchor.damaged``, ``anchor.unreadable``).
        """
        for pause in _PAUSES:
            try:
                return self._read()
            except StorageError as error:
                if error.code != "anchor.damaged":
                    raise
            time.sleep(pause)
        return self._read()

    def _read(self) -> Head | None:
        try:
            note = files.read(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"the anchor {self.path} can't be read ({error.strerror})"
            raise StorageError(message, code="anchor.unreadable") from error
        return self._verified(note)

    def write(self, size: int, note: bytes) -> None:
        """Write the note of a newer head; ``settle`` tries again after a failure."""
        self._unwritten = size, note
        with suppress(StorageError):
            self.settle()

    def settle(self) -> None:
        """Write the newest head if that has failed, and see first that the file can be written.

        So one commit at most is not anchored. Raises ``StorageError`` (``anchor.unwritable``,
        ``anchor.damaged``).
        """
        if self._unwritten is None and self._is_tried:
            return
        try:
            if not self._is_tried:
                files.make_folder(self.path.parent)
            with lock.acquire(self.path) as file:
                self._is_tried = True
                if self._unwritten is not None:
                    self._write_newer(file.fileno(), *self._unwritten)
        except (OSError, StorageError) as error:
            if isinstance(error, StorageError) and error.code == "anchor.damaged":
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            message = (
                f"the anchor {self.path} can't be written ({reason}): set anchor in "
                'agentguard.toml to a writable directory, or to "" for none'
            )
            raise StorageError(message, code="anchor.unwritable") from error
        self._unwritten = None

    def _write_newer(self, file: int, size: int, note: bytes) -> None:
        kept = os.pread(file, _MOST, 0)
        if self._size(kept) >= size:
            return
        if os.pwrite(file, note, 0) != len(note):
            raise OSError(errno.EIO, "not all of it was written")
        if len(note) != len(kept):
            os.ftruncate(file, len(note))
        self._kept = size, note

    def _size(self, kept: bytes) -> int:
        """Return how many entries the head in the file has, which ``read`` verifies."""
        if self._kept is not None and self._kept[1] == kept:
            return self._kept[0]
        try:
            return head.parse(kept).size if kept else -1
        except AgentguardError as error:
            raise self._damaged(error) from error

    def _verified(self, note: bytes) -> Head | None:
        if not note:  # made, and its maker has ended before the first write
            return None
        try:
            keys = [trusted.key for trusted in self._keys()]
            found, self.key = head.verify(note, keys, self._log)
        except AgentguardError as error:
            raise self._damaged(error) from error
        return found

    def _damaged(self, error: AgentguardError) -> StorageError:
        message = (
            f"the anchor {self.path} is damaged ({error}): a computer that stopped while it was "
            "written leaves that, and so does whoever changes it. Find out which"
        )
        return StorageError(message, code="anchor.damaged")
