"""``BoundRequest``: the parts of a request to which a Workload Proof Token is bound.

The ``aud`` of a WPT names neither the method nor the query nor the body. One claim of agentguard
(``urn:agentguard:request``) adds these parts, and the digest of the authorised call.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from agentguard.call.releases import RequestRecord
from agentguard.errors import ProofError
from agentguard.proof.target import Target
from agentguard.signing.canonical import JSON, is_sha256, sha256_hex

CLAIM: Final = "urn:agentguard:request"
"""The claim with the method, the path, the query, the body's digest and the call's digest."""

_METHOD: Final = re.compile(r"[A-Z]{1,32}")


class BoundRequest(NamedTuple):
    """A request: the method (RFC 9110, in capitals), the URL, and the SHA-256 (hex) of the body."""

    method: str
    target: Target
    body_sha256: str

    @classmethod
    def of(cls, method: object, url: object, body: bytes) -> BoundRequest:
        """Return the bound parts of a request; raises ``ProofError`` (``proof.malformed``)."""
        return cls.of_digest(method, url, sha256_hex(body))

    @classmethod
    def of_digest(cls, method: object, url: object, body_sha256: object) -> BoundRequest:
        """Return the bound parts of a request whose body has this digest; raises as ``of``."""
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            message = "the method of a request is 1 to 32 capital letters"
            raise ProofError(message, code="proof.malformed")
        if not is_sha256(body_sha256):
            message = "the digest of a body is 64 hex digits"
            raise ProofError(message, code="proof.malformed")
        return cls(method, Target.parse(url), body_sha256)

    @property
    def record(self) -> RequestRecord:
        """What a log says of the request: the query is there as a digest alone."""
        query = self.target.query
        digest = sha256_hex(query.encode()) if query else None
        return RequestRecord(self.method, self.target.uri, digest, self.body_sha256)

    def claim(self, invocation_sha256: str) -> dict[str, JSON]:
        """Return the value of the claim for the call with this digest (hex)."""
        return {
            "method": self.method,
            "path": self.target.path,
            "query": self.target.query,
            "body_sha256": self.body_sha256,
            "invocation_sha256": invocation_sha256,
        }
