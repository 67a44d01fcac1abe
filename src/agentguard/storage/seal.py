"""Small files that nobody but a holder of the log's key can write: each signed under its own name.

Who can write in the state alone can remove one, or put an older one of the same name back; what is
written in it is nobody's but a process's that had the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from agentguard.errors import VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import Signer

_MEMBERS: Final = 3
"""The members of a file: what is kept, and by whose key."""

Keys = Callable[[], tuple[Signer, TrustDocument]]
"""Returns the log's key, and the trust document that counts."""


class Seal(NamedTuple):
    """Seals what is kept under a name; ``kind`` is the media type, ``member`` its name in a file.

    ``limit`` is how many bytes of a file are read.
    """

    keys: Keys
    kind: str
    member: str
    limit: int

    def sealed(self, name: str, data: bytes) -> bytes:
        """Return the file that holds ``data`` under ``name``; ``name`` is of a fixed length."""
        signer, _trust = self.keys()
        signature = signer.sign(self._to_sign(name, data))
        return canonical.dumps(
            {self.member: b64_encode(data), "keyid": signer.key_id, "sig": b64_encode(signature)}
        )

    def opened(self, name: str, file: bytes) -> bytes:
        """Return what a file holds; raises ``DecodeError`` or ``VerificationError``."""
        return self.opened_under(self.keys()[1], name, file)

    def opened_under(self, trust: TrustDocument, name: str, file: bytes) -> bytes:
        """Return what a file holds, by a trust document; raises as ``opened`` does."""
        # a text of this length with many values takes seconds to decode
        is_short = file.count(b",") < _MEMBERS
        found = canonical.loads(file, limit=self.limit) if is_short else None
        if isinstance(found, dict) and found.keys() == {self.member, "keyid", "sig"}:
            match found[self.member], found["keyid"], found["sig"]:
                case str(written), str(key_id), str(signature):
                    data, trusted = b64_decode(written), trust.trusted("log", key_id)
                    if trusted.compromised_since is None:
                        trusted.key.verify(b64_decode(signature), self._to_sign(name, data))
                        return data
        raise VerificationError("it is of no form that is known, or its key is compromised")

    def _to_sign(self, name: str, data: bytes) -> bytes:
        """Return what is signed (DSSE's encoding): the data, under this name alone."""
        return dsse.pae(self.kind, name.encode() + data)
