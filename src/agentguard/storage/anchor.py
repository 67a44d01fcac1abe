"""An anchor: the newest checkpoint of a shard, kept outside the state.

Whoever cuts or replaces the state does not reach the anchor. So a rolled-back log is recognised
when the log is opened or verified. Each shard has one small file, named after the shard's origin
and overwritten after each commit; the file never goes back to a smaller tree. The anchors of a log
lie in one folder, named after the log, with a copy of the log's trust document.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint
from agentguard.errors import AgentguardError, StorageError
from agentguard.signing.keys import PublicKey
from agentguard.storage import files

_LOGGER = logging.getLogger("agentguard")
_SUFFIX: Final = ".checkpoint"
_PAUSES: Final = (0.01, 0.02, 0.03, 0.04)
"""Seconds after which a seemingly damaged anchor is read again: a writer may be in the midst."""

ADOPT: Final = "agentguard adopt --note TEXT"
"""The command that lets a log go on in a state as the state is."""

ROLLED_BACK: Final = (
    "the state was rolled back or replaced, or a copy of it was opened. Restore the newest state; "
    f"if this one is all there is, {ADOPT} lets the log go on in it, on record. Nothing is written "
    "until then"
)
"""The message for a state that is behind its anchor, with what to do."""

_NO_OTHER: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags that follow no link, and wait for no pipe in the file's place."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9]{1,100}\Z")


class Anchor:
    """The anchor of one shard in a directory, or nowhere (``directory`` None)."""

    def __init__(self, directory: Path | None, origin: str, log_keys: Iterable[PublicKey]) -> None:
        self._path = anchor_path(directory, origin) if directory is not None else None
        self._origin = origin
        self._keys = tuple(log_keys)
        self._file: int | None = None
        self._unwritten = b""
        self._length = -1

    def read(self) -> Checkpoint | None:
        """Return the anchor's checkpoint, verified, or None if there is none.

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

    def _read(self) -> Checkpoint | None:
        if self._path is None:
            return None
        try:
            note = files.read(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"the anchor {self._path} can't be read ({error.strerror})"
            raise StorageError(message, code="anchor.unreadable") from error
        try:
            return checkpoint.verify_any(note, self._keys, origin=self._origin)[0]
        except AgentguardError as error:
            message = f"the anchor {self._path} is damaged ({error}): find out who changed it"
            raise StorageError(message, code="anchor.damaged") from error

    def check(self, head: Checkpoint) -> Checkpoint | None:
        """Return the anchor's checkpoint, after a comparison with a shard's ``head``.

        Raises ``StorageError`` (``storage.rolled_back``) where the checkpoint is of a larger tree
        than ``head``, or of another tree of the same size.
        """
        anchor_head = self.read()
        if anchor_head is None:
            if self._path is not None and head.size > 0:
                _LOGGER.warning(
                    "the anchor %s keeps nothing of a log with %d entries: from here on it "
                    "vouches for what it is shown now. If it was there before, find out who "
                    "removed it",
                    self._path,
                    head.size,
                )
            return None
        if anchor_head.size > head.size or (
            anchor_head.size == head.size and anchor_head.root != head.root
        ):
            message = (
                f"the log has {head.size} entries, but its anchor {self._path} has seen "
                f"{anchor_head.size}: {ROLLED_BACK}"
            )
            raise StorageError(message, code="storage.rolled_back")
        return anchor_head

    def write(self, note: bytes) -> None:
        """Write a newer checkpoint. ``settle`` tries again after a failure: the commit is done."""
        self._unwritten = note
        with suppress(StorageError):
            self.settle()

    def settle(self) -> None:
        """Write the newest checkpoint if that has failed, and see that the file can be written.

        Called before each commit, so that at most one batch is ever without its anchor. Raises
        ``StorageError`` (``anchor.unwritable``).
        """
        if self._path is None or (self._file is not None and not self._unwritten):
            return
        try:
            if self._file is None:
                self._open(self._path)
            if self._unwritten and self._file is not None:
                self._overwrite(self._file)
        except (OSError, StorageError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            message = (
                f"the anchor {self._path} can't be written ({reason}): set anchor in "
                'agentguard.toml to a writable directory, or to "" for none'
            )
            raise StorageError(message, code="anchor.unwritable") from error

    def _overwrite(self, file: int) -> None:
        if os.pwrite(file, self._unwritten, 0) != len(self._unwritten):
            raise OSError(errno.EIO, "not all of it was written")
        if len(self._unwritten) != self._length:
            os.ftruncate(file, len(self._unwritten))
            self._length = len(self._unwritten)
        self._unwritten = b""

    def _open(self, path: Path) -> None:
        """Open the file; a new file is made with its first checkpoint, never empty."""
        files.make_folder(path.parent)
        if not files.exists(path):
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not self._unwritten:
                return
            files.replace(path, self._unwritten)
        self._file = os.open(path, os.O_WRONLY | _NO_OTHER)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def anchor_path(directory: Path, origin: str) -> Path:
    """Return where the anchor of a shard, ``<log>/<number>``, lies in a directory."""
    log, _slash, number = origin.rpartition("/")
    return log_folder(directory, log) / f"{number}{_SUFFIX}"


def trust_path(directory: Path, log: str) -> Path:
    """Return where the copy of a log's trust document lies in a directory."""
    return log_folder(directory, log) / "trust.json"


def log_folder(directory: Path, log: str) -> Path:
    """Return where the anchors of a log lie; raises ``StorageError`` for no name of a log."""
    name = log.rpartition("/")[2]
    if _PLAIN_NAME.match(name) is None:  # the name may come from a state that somebody has changed
        message = f"{log!r} is no name of a log: its last part has letters and digits only"
        raise StorageError(message, code="anchor.unreadable")
    return directory / name


def anchored_shards(directory: Path, log: str) -> list[int]:
    """Return the numbers of the shards that have an anchor, in order."""
    try:
        return files.numbered(log_folder(directory, log), _SUFFIX)
    except OSError as error:
        message = f"the anchors in {directory} can't be read ({error.strerror})"
        raise StorageError(message, code="anchor.unreadable") from error
