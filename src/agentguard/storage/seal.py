"""Small files of a state that only a holder of the log's key can write: each signed with its name.

Whoever writes the state without the key can remove such a file, or put an older one of the same
name back, and can make no other content count. ``Seal`` is the format, ``SignedFolder`` a folder of
such files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.errors import AgentguardError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import Signer
from agentguard.storage import files

_MEMBERS: Final = 3
"""The members of a file: the data, the key's id, and the signature."""

Keys = Callable[[], tuple[Signer, TrustDocument]]
"""Returns the log's key, and the trust document that counts."""


class Seal(NamedTuple):
    """Signs data under a name, and verifies them.

    ``kind`` is the media type, ``member`` the data's name in a file, and ``limit`` the most bytes
    of a file.
    """

    keys: Keys
    kind: str
    member: str
    limit: int

    def seal(self, name: str, data: bytes) -> bytes:
        """Return the content of a file that holds ``data``; each ``name`` has the same length."""
        signer, _trust = self.keys()
        signature = signer.sign(self._to_sign(name, data))
        return canonical.dumps(
            {self.member: b64_encode(data), "keyid": signer.key_id, "sig": b64_encode(signature)}
        )

    def open(self, name: str, file: bytes) -> bytes:
        """Return a file's data, verified; raises ``DecodeError`` or ``VerificationError``."""
        return self.open_under(self.keys()[1], name, file)

    def open_under(self, trust: TrustDocument, name: str, file: bytes) -> bytes:
        """Return a file's data, verified by a trust document; raises as ``open`` does."""
        # a text of this length with many values takes seconds to decode
        is_short = file.count(b",") < _MEMBERS
        members = canonical.loads(file, limit=self.limit) if is_short else None
        if isinstance(members, dict) and members.keys() == {self.member, "keyid", "sig"}:
            match members[self.member], members["keyid"], members["sig"]:
                case str(encoded), str(key_id), str(signature):
                    data, trusted = b64_decode(encoded), trust.trusted_key("log", key_id)
                    if trusted.compromised_since is None:
                        trusted.key.verify(b64_decode(signature), self._to_sign(name, data))
                        return data
        raise VerificationError("it is of no form that is known, or its key is compromised")

    def _to_sign(self, name: str, data: bytes) -> bytes:
        """Return the bytes that are signed, in DSSE's encoding: the name and the data."""
        return dsse.pae(self.kind, name.encode() + data)


class SignedFolder(NamedTuple):
    """A folder of signed files, by name; ``remedy`` tells people what to do about a damaged one.

    Each method raises ``StorageError``.
    """

    folder: Path
    seal: Seal
    remedy: str

    def names(self) -> list[str]:
        """Return the names of the files, in order."""
        is_there = files.is_folder(self.folder)
        return sorted(path.name for path in self.folder.iterdir()) if is_there else []

    def read(self, name: str) -> bytes | None:
        """Return a file's data, verified; None where there is no such file.

        A file that does not verify is refused (``storage.corrupt``).
        """
        path = self.folder / name
        file = files.read_if_present(path, limit=self.seal.limit)
        if file is None:
            return None
        try:
            return self.seal.open(name, file)
        except AgentguardError as error:
            message = f"{path} does not hold ({error}): {self.remedy}"
            raise StorageError(message, code="storage.corrupt") from error

    def write(self, name: str, data: bytes) -> None:
        """Sign ``data``, and put them in the place of the file, durably."""
        files.replace(self.folder / name, self.seal.seal(name, data))

    def add(self, name: str, data: bytes) -> bool:
        """Sign ``data`` and write them, durably; return False where the file is there already."""
        return files.add_if_absent(self.folder / name, self.seal.seal(name, data))

    def remove(self, name: str) -> None:
        """Remove the file, if there is one."""
        if files.exists(self.folder / name):
            files.remove(self.folder / name)
