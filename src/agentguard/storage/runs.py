"""What adapters keep of a run that goes on later, perhaps in another process: small values by name.

A name is any text; a file's is its digest. Each is signed with the log's key for its own name: who
can write in the state alone edits no call in a person's name, and lends a run nothing of another's.
One that does not verify is not read.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from agentguard.errors import AgentguardError, StorageError
from agentguard.signing.canonical import sha256_hex
from agentguard.storage import files
from agentguard.storage.seal import Keys, Seal

FOLDER: Final = "runs"
MAX_BYTES: Final = 16 << 20
_TYPE: Final = "application/vnd.agentguard.run+json"


class FileRuns:
    """The ``Runs`` of a state directory; ``keys`` returns the log's key and the trust document."""

    def __init__(self, state: Path, keys: Keys) -> None:
        self._folder = state / FOLDER
        self._seal = Seal(keys, _TYPE, "kept", MAX_BYTES)

    def read(self, name: str) -> bytes | None:
        """Return what was written under ``name``; None for nothing."""
        path = self._path(name)
        try:
            data = files.read(path, limit=MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            message = files.unreadable(path, error)
            raise StorageError(message, code="storage.readonly") from error
        try:
            return self._seal.opened(path.name, data)
        except AgentguardError as error:
            message = f"{path} does not hold ({error}): remove it, and begin the run anew"
            raise StorageError(message, code="storage.corrupt") from error

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` there, durably, in place of what was there."""
        path = self._path(name)
        files.replace(path, self._seal.sealed(path.name, data))

    def add(self, name: str, data: bytes) -> bool:
        """Put ``data`` there, durably, if nothing is there; return whether it is."""
        try:
            path = self._path(name)
            files.add(path, self._seal.sealed(path.name, data))
        except StorageError as error:
            if error.code == "storage.exists":
                return False
            raise
        return True

    def remove(self, name: str) -> None:
        """Remove what is there, if anything is."""
        if self._path(name).exists():
            files.remove(self._path(name))

    def _path(self, name: str) -> Path:
        digest = sha256_hex(name.encode("utf-8", "surrogatepass"))
        return self._folder / digest


class MemoryRuns:
    """The ``Runs`` of a guard in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """Return what was written under ``name``; None for nothing."""
        return self._kept.get(name)

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` there."""
        self._kept[name] = data

    def add(self, name: str, data: bytes) -> bool:
        """Put ``data`` there if nothing is there; return whether it is."""
        with self._lock:
            if name in self._kept:
                return False
            self._kept[name] = data
            return True

    def remove(self, name: str) -> None:
        """Remove what is there, if anything is."""
        self._kept.pop(name, None)
