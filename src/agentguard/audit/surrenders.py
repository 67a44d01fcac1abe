"""Entries of surrenders: an agent's instance gives a delegation up, and nobody acts under it again.

No administrator signs: the evidence is the delegation's last hop, which the issuer has signed, and
the instance's own DPoP proof of the request, which the key in that hop has signed. So nobody but
the instance gives up what it holds. The proof names the access token by a hash alone: who has
stolen the log's key can put a proof of the instance beside another hop of the same instance, unless
that hop is younger than the proof. RFC 7009; RFC 9449.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from agentguard.audit.entry import Entry
from agentguard.audit.records import Record
from agentguard.audit.summary import Summary
from agentguard.delegation import grant, verification
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError, DecodeError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, b64url_decode, is_integer
from agentguard.signing.keys import PublicKey

_TYPE: Final = "dpop+jwt"
_PARTS: Final = 3

WINDOW: Final = 60
"""How many seconds a proof may be older than the service's time (RFC 9449, 4.3)."""


class Surrender(NamedTuple):
    """A hop that its holder has given up; times are in seconds since the epoch.

    ``jti`` and ``expires_at`` are those of the hop. ``latest`` is the latest time at which the
    holder's proof counted: whoever moves the entry to a later place moves no proof.
    """

    jti: str
    expires_at: int
    latest: int
    summary: Summary


def record(hop: str, proof: str, *, at: str) -> Record:
    """Build the entry of a surrender: the signed last hop of the chain, and the holder's proof."""
    members = {"kind": "surrender", "at": at, "hop": hop, "proof": proof}
    return Record(canonical.dumps(members), _summary(grant.read(hop), at))


def read(entry: Entry) -> Surrender:
    """Return the surrender in an entry; raises ``DecodeError`` (``entry.malformed``).

    The key that the hop names has to have signed the proof, at most ``WINDOW`` seconds before the
    hop was issued. ``check`` verifies the hop as well.
    """
    try:
        hop = grant.read(str(entry.members["hop"]))
        signed_by, signed_at = _signer(str(entry.members["proof"]))
    except AgentguardError as error:
        raise DecodeError(f"not a surrender: {error}", code="entry.malformed") from error
    if hop.is_asserted or hop.key_id != signed_by:
        message = "not a surrender: the proof is of another key than the hop's"
        raise DecodeError(message, code="entry.malformed")
    if hop.issued_at > signed_at + WINDOW:
        message = "not a surrender: the proof is older than the hop"
        raise DecodeError(message, code="entry.malformed")
    return Surrender(hop.jti, hop.expires_at, signed_at + WINDOW, _summary(hop, entry.at))


def check(entry: Entry, trust: TrustDocument, at: int) -> Surrender:
    """Return the surrender in an entry whose hop the issuer has signed, as of the time ``at``.

    ``at`` is in seconds since the epoch. Raises as ``read`` and ``require_issued`` do.
    """
    surrender = read(entry)
    require_issued(str(entry.members["hop"]), trust, at)
    return surrender


def require_issued(hop: str, trust: TrustDocument, at: int) -> None:
    """Raise unless a key of the issuer that counts at the time ``at`` has signed a hop.

    The token service gives an instance such a hop. An agent could choose the id of a hop that the
    agent itself signs, and so the id of somebody else's hop. Raises ``DecodeError``, and
    ``VerificationError`` (``key.*``, ``signature.invalid``, ...).
    """
    kid, issued_at = grant.key_id(hop), jws.claimed(hop).issued_at
    if issued_at is None:
        raise DecodeError("the hop names no iat in whole seconds", code="hop.malformed")
    grant.verify(hop, verification.issuer_key(trust, kid, issued_at=issued_at, at=at))


def _summary(hop: Grant, at: str) -> Summary:
    agent, principal = hop.delegatee, hop.principal
    return Summary("surrender", at, agent=agent, principal=principal, task_id=hop.task_id)


def _signer(proof: str) -> tuple[str, int]:
    """Return the thumbprint of the key that has signed a DPoP proof of a request to give up.

    Returns also the time of the proof, in seconds since the epoch. Raises ``DecodeError``,
    ``KeyMaterialError`` or ``VerificationError``. RFC 9449, 4.2.
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
    issued_at = claims.get("iat")
    if not is_integer(issued_at):
        raise DecodeError("the proof has no time", code="jws.malformed")
    return key.thumbprint, issued_at


def _is_of_surrender(claims: dict[str, JSON]) -> bool:
    """Whether the claims are of a request to give up one access token, which ``ath`` names."""
    is_request = claims.get("htm") == "POST" and str(claims.get("htu")).endswith("/revoke")
    return is_request and isinstance(claims.get("ath"), str)
