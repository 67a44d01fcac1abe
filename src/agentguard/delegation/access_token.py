"""The access token that is minted from a chain: RFC 8693 semantics in RFC 9068's form.

``typ: at+jwt``, at most five minutes, bound to the agent instance's key (``cnf.jkt``, RFC 7800),
with the actors nested in ``act``, the newest outermost (RFC 8693, 4.1). The token carries its
chain, so that a receiver can verify each delegation without trust in the issuer's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentguard.delegation import grant, verification
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.keys import Signer

TYPE: Final = "at+jwt"
"""The ``typ`` of an access token (RFC 9068, 2.1)."""

CHAIN_CLAIM: Final = "urn:agentguard:chain"
"""The claim that carries the chain, in the form of ``Chain.as_json``."""

MAX_LIFETIME: Final = 300
"""The longest lifetime of an access token, in seconds."""

_CLAIMS: Final = frozenset(
    {
        "iss",
        "sub",
        "aud",
        "client_id",
        "iat",
        "exp",
        "jti",
        "scope",
        "cnf",
        "act",
        "txn",
        CHAIN_CLAIM,
    }
)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, minted here or verified; times are seconds since the epoch."""

    token: str
    chain: Chain
    issued_at: int
    expires_at: int
    jti: str


def mint(chain: Chain, issuer: Signer, *, now: int, jti: str) -> AccessToken:
    """Mint a token for the last delegatee of a verified ``chain``; ``now`` is in seconds."""
    expires_at = min(now + MAX_LIFETIME, chain.leaf.expires_at)
    claims = _claims(chain, issued_at=now, expires_at=expires_at, jti=jti)
    token = jws.sign(claims, issuer, typ=TYPE, header={"kid": issuer.key_id})
    return AccessToken(token, chain, now, expires_at, jti)


def verify(
    token: str, trust: TrustDocument, *, at: int, audience: str | None = None
) -> AccessToken:
    """Verify a token and the chain in it as of ``at`` (seconds since the epoch).

    ``audience`` names the receiver; None is the trust domain itself. Raises ``DecodeError``
    (``token.malformed``) and ``VerificationError``: ``token.audience``, ``token.expired``,
    ``token.not_yet_valid``, ``token.lifetime``, ``token.mismatch`` for a claim that differs from
    the chain. Raises also as ``jws.verify`` and ``verification.verify`` do.
    """
    claims = _verified_claims(token, trust, at)
    issued_at, expires_at, jti = claims.get("iat"), claims.get("exp"), claims.get("jti")
    carried = claims.get(CHAIN_CLAIM)
    if (
        claims.keys() != _CLAIMS
        or not is_integer(issued_at)
        or not is_integer(expires_at)
        or not isinstance(jti, str)
        or not jws.is_jti(jti)
        or not isinstance(carried, dict)
    ):
        raise _malformed("its claims are not those of an access token")
    _check_times(issued_at, expires_at, at)
    chain = verification.from_json(carried, trust, at=at)
    if not grant.is_agent(chain.leaf.delegatee):
        raise VerificationError("its chain ends with no agent", code="token.mismatch")
    expected = _claims(chain, issued_at=issued_at, expires_at=expires_at, jti=jti)
    for name, value in expected.items():
        if not _is_same(claims[name], value):
            message = f"its {name} is not what its chain says"
            raise VerificationError(message, code="token.mismatch")
    if expires_at > chain.leaf.expires_at:
        raise VerificationError("it outlives its chain", code="token.mismatch")
    _require_audience(chain, f"spiffe://{trust.trust_domain}" if audience is None else audience)
    return AccessToken(token, chain, issued_at, expires_at, jti)


def _verified_claims(token: str, trust: TrustDocument, at: int) -> dict[str, JSON]:
    # kid and iat only select among trusted keys; the signature is verified before all else
    kid, issued_at = jws.parse(token).header.get("kid"), jws.claimed_time(token)
    if not isinstance(kid, str) or issued_at is None:
        raise _malformed("it names no kid, or no iat in whole seconds")
    key = verification.issuer_key(trust, kid, issued_at=issued_at, at=at)
    return jws.verify(token, key, typ=TYPE).claims()


def _require_audience(chain: Chain, receiver: str) -> None:
    if receiver not in chain.leaf.audience:
        message = f"it is for {' '.join(chain.leaf.audience)}, not for {receiver}"
        raise VerificationError(message, code="token.audience")


def actors(chain: Chain) -> dict[str, JSON]:
    """Return the ``act`` claim: the acting agent, with its delegator nested inside, and so on.

    RFC 8693, 4.1.
    """
    nested: dict[str, JSON] = {}
    for member in chain.members[1:]:
        nested = {"sub": member, **({"act": nested} if nested else {})}
    return nested


def _claims(chain: Chain, *, issued_at: int, expires_at: int, jti: str) -> dict[str, JSON]:
    leaf = chain.leaf
    return {
        "iss": chain.root.delegator,
        "sub": chain.principal,
        "aud": list(leaf.audience),
        "client_id": leaf.delegatee,
        "iat": issued_at,
        "exp": expires_at,
        "jti": jti,
        "scope": " ".join(leaf.scope),
        "cnf": {"jkt": leaf.key_id},
        "act": actors(chain),
        "txn": leaf.task_id,
        CHAIN_CLAIM: chain.as_json(),
    }


def _is_same(claim: JSON, expected: JSON) -> bool:
    """Compare two JSON values, types included: in Python, ``True == 1``."""
    if isinstance(expected, dict):
        members: Mapping[str, Any] = claim if isinstance(claim, dict) else {}
        return members.keys() == expected.keys() and all(
            _is_same(members[name], value) for name, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(claim, list)
            and len(claim) == len(expected)
            and all(map(_is_same, claim, expected))
        )
    return type(claim) is type(expected) and claim == expected


def _check_times(issued_at: int, expires_at: int, at: int) -> None:
    if not 0 <= issued_at < expires_at:
        raise _malformed("its times are no times")
    if expires_at - issued_at > MAX_LIFETIME:
        message = f"it lives longer than {MAX_LIFETIME} s"
        raise VerificationError(message, code="token.lifetime")
    if at >= expires_at:
        raise VerificationError("it has expired", code="token.expired")
    if at < issued_at:
        raise VerificationError("it is not valid yet", code="token.not_yet_valid")


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not an access token: {problem}", code="token.malformed")
