"""What adapters keep of a run that goes on later, perhaps in another process: small values by name.

A name is any text; a file's name is the digest of that text. Each file is signed with the log's
key. So whoever writes the state without the key edits no pending call, and gives a run no value of
another run. A file that does not verify is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentguard.signing.canonical import sha256_hex
from agentguard.storage.seal import Keys, Seal, SignedFolder

FOLDER: Final = "runs"
MAX_BYTES: Final = 16 << 20
_TYPE: Final = "application/vnd.agentguard.run+json"
_REMEDY: Final = "remove it, and begin the run anew"


class FileRuns:
    """The ``RunStore`` of a state directory; ``keys`` returns the log's key and the trust document.

    Each method raises ``StorageError``.
    """

    def __init__(self, state: Path, keys: Keys) -> None:
        seal = Seal(keys, _TYPE, "kept", MAX_BYTES)
        self._folder = SignedFolder(state / FOLDER, seal, _REMEDY)

    def read(self, name: str) -> bytes | None:
        """Return the value of ``name``; None where there is none."""
        return self._folder.read(_file_name(name))

    def write(self, name: str, data: bytes) -> None:
        """Write the value of ``name``, durably, in the place of an earlier one."""
        self._folder.write(_file_name(name), data)

    def add(self, name: str, data: bytes) -> bool:
        """Write the value of ``name``, durably; return False where there is one already."""
        return self._folder.add(_file_name(name), data)

    def remove(self, name: str) -> None:
        """Remove the value of ``name``, if there is one."""
        self._folder.remove(_file_name(name))


def _file_name(name: str) -> str:
    return sha256_hex(name.encode("utf-8", "surrogatepass"))
