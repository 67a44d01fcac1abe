"""``BoundRequest``: the parts of an HTTP request to which the proof of an agent instance is bound.

The proof is a DPoP proof (``dpop.py``), which names the method and the URI. One claim of agentguard
(``urn:agentguard:request``) adds the query, the body, the caller's credential, and the authorised
call (docs/adr/0058-one-proof-of-an-http-request.md).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from agentguard.call.releases import RequestRecord
from agentguard.errors import ProofError
from agentguard.proof import dpop
from agentguard.proof.target import Target
from agentguard.signing.canonical import JSON, is_sha256, sha256_hex
from agentguard.signing.keys import Signer

CLAIM: Final = "urn:agentguard:request"
"""The claim with the query, and the digests of the body, of the call and of the credential."""

_CLAIMS: Final = frozenset({"jti", "htm", "htu", "iat", "ath", CLAIM})

_METHOD: Final = re.compile(r"[A-Z]{1,32}")


class VerifiedProof(NamedTuple):
    """A verified proof of any form. ``expires_at`` is in seconds since the epoch.

    ``thumbprint`` is that of the key (RFC 7638). ``invocation_sha256`` (hex) is the digest of the
    authorised call, None with a proof that names no call.
    """

    jti: str
    thumbprint: str
    expires_at: int
    invocation_sha256: str | None


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

    def claim(self, invocation_sha256: str, credential: str) -> dict[str, JSON]:
        """Return the value of the claim for the call with this digest (hex).

        ``credential`` is the Workload Identity Token in the request.
        """
        return {
            "query": self.target.query,
            "body_sha256": self.body_sha256,
            "invocation_sha256": invocation_sha256,
            "wth": dpop.token_hash(credential),
        }

    def verify(
        self, token: str, *, credential: str | None, access_token: str, at: int
    ) -> VerifiedProof:
        """Verify a proof of this request as of ``at`` (seconds since the epoch).

        ``credential`` is the verified Workload Identity Token in the request, and the proof is
        bound to the whole request then. It is None for a request without one: the proof names no
        call then, and one that does is refused, so that nobody makes less of it. ``access_token``
        is the token in the request. Raises as ``dpop.verify`` does, and ``ProofError``:
        ``proof.malformed``, ``proof.token`` for a proof of another credential, ``proof.request``
        for one of another request.
        """
        proof = dpop.verify(token, self.method, self.target, access_token=access_token, at=at)
        verified = VerifiedProof(proof.jti, proof.thumbprint, proof.expires_at, None)
        if credential is None:
            if CLAIM in proof.claims:
                raise _malformed("it is bound to a credential, which the request does not have")
            return verified
        bound = proof.claims.get(CLAIM)
        if proof.claims.keys() != _CLAIMS or not isinstance(bound, dict):
            raise _malformed("its claims are not those of a proof that is bound to a request")
        invocation = bound.get("invocation_sha256")
        if not is_sha256(invocation):
            raise _malformed("it names no digest of a call")
        expected = self.claim(invocation, credential)
        if bound.get("wth") != expected["wth"]:
            raise ProofError("the proof is for another credential", code="proof.token")
        if bound != expected:
            raise ProofError("the proof is for another query or body", code="proof.request")
        return verified._replace(invocation_sha256=invocation)


def mint(
    request: BoundRequest,
    signer: Signer,
    *,
    credential: str,
    access_token: str,
    invocation_sha256: str,
    now: int,
    jti: str,
) -> str:
    """Sign a proof that ``request`` belongs to the call with ``invocation_sha256`` (hex).

    ``credential`` is the Workload Identity Token of the signer's key. ``now`` is in seconds since
    the epoch; the proof ends ``dpop.WINDOW`` seconds later. Raises ``ProofError``
    (``proof.malformed``) for a URL that is too long for a proof.
    """
    token = dpop.sign(
        signer,
        request.method,
        request.target.uri,
        access_token=access_token,
        at=now,
        jti=jti,
        more={CLAIM: request.claim(invocation_sha256, credential)},
    )
    if len(token) > dpop.MAX_PROOF:
        message = f"the URL is too long: its proof has more than {dpop.MAX_PROOF} characters"
        raise ProofError(message, code="proof.malformed")
    return token


def _malformed(problem: str) -> ProofError:
    return ProofError(f"not a proof of a request: {problem}", code="proof.malformed")
