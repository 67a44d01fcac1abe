"""Entries of surrenders: an agent's instance gives a delegation up, and nobody acts under it again.

No administrator signs: the evidence is the instance's own DPoP proof of the request, which the key
of the delegation's last hop has signed. So an instance gives up what it holds, and nothing else.
RFC 7009; RFC 9449.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agentguard.audit.entry import Entry
from agentguard.audit.records import Record
from agentguard.audit.summary import Summary
from agentguard.delegation import grant
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError, DecodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64url_decode
from agentguard.signing.keys import PublicKey

_TYPE: Final = "dpop+jwt"
_PARTS: Final = 3


class Surrender(NamedTuple):
    """A hop that its holder has given up: the ``jti``, and the end in seconds since the epoch."""

    jti: str
    expires_at: int
    summary: Summary


def record(hop: str, proof: str, *, at: str) -> Record:
    """Build the entry of a surrender: the signed last hop of the chain, and the holder's proof."""
    members = {"kind": "surrender", "at": at, "hop": hop, "proof": proof}
    return Record(canonical.dumps(members), _summary(grant.read(hop), at))


def read(entry: Entry) -> Surrender:
    """Return the surrender in an entry; raises ``DecodeError`` (``entry.malformed``).

    The key that the hop names has to have signed the proof. That the hop's delegator has signed the
    hop is not verified here: the log has the chain.
    """
    try:
        hop = grant.read(str(entry.members["hop"]))
        signed_by = _signer(str(entry.members["proof"]))
    except AgentguardError as error:
        raise DecodeError(f"not a surrender: {error}", code="entry.malformed") from error
    if hop.is_asserted or hop.key_id != signed_by:
        message = "not a surrender: the proof is of another key than the hop's"
        raise DecodeError(message, code="entry.malformed")
    return Surrender(hop.jti, hop.expires_at, _summary(hop, entry.at))


def _summary(hop: Grant, at: str) -> Summary:
    agent, principal = hop.delegatee, hop.principal
    return Summary("surrender", at, agent=agent, principal=principal, task_id=hop.task_id)


def _signer(proof: str) -> str:
    """Return the thumbprint of the key that has signed a DPoP proof of a request to give up.

    Raises ``DecodeError``, ``KeyMaterialError`` or ``VerificationError``. RFC 9449, 4.2.
    """
    parts = proof.split(".", _PARTS)
    if len(parts) != _PARTS or not proof.isascii():
        raise DecodeError("a proof is a compact JWS", code="jws.malformed")
    header = canonical.loads_object(b64url_decode(parts[0]))
    claims = canonical.loads_object(b64url_decode(parts[1]))
    if header.get("typ") != _TYPE or not _is_of_surrender(claims):
        raise DecodeError("the proof is of another request", code="jws.malformed")
    jwk = header.get("jwk")
    key = PublicKey.from_jwk(jwk if isinstance(jwk, dict) else {})
    key.verify(b64url_decode(parts[2]), f"{parts[0]}.{parts[1]}".encode("ascii"))
    return key.thumbprint


def _is_of_surrender(claims: dict[str, JSON]) -> bool:
    """Whether the claims are of a request to give up one access token, which ``ath`` names."""
    is_request = claims.get("htm") == "POST" and str(claims.get("htu")).endswith("/revoke")
    return is_request and isinstance(claims.get("ath"), str)
