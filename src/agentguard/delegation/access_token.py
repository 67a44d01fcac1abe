"""The access token that is minted from a chain: RFC 8693 semantics in RFC 9068's form.

``typ: at+jwt``, five minutes at most, bound to the agent instance's key (``cnf.jkt``, RFC 7800),
with the actors nested in ``act``, the newest outermost (RFC 8693, 4.1). It carries the chain that
it was minted from, so that whoever gets it need not take the issuer's word for who lent what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentguard.delegation import chain as chains
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.keys import Signer

TYPE: Final = "at+jwt"
"""The ``typ`` of an access token (RFC 9068, 2.1)."""

CHAIN_CLAIM: Final = "urn:agentguard:chain"
MAX_LIFETIME: Final = 300
"""An access token lives five minutes at most, in seconds."""

_CLAIMS: Final = frozenset(
    {
        *("iss", "sub", "aud", "client_id", "iat", "exp", "jti", "scope", "cnf", "act", "txn"),
        CHAIN_CLAIM,
    }
)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token that was minted here or has verified; times in seconds since the epoch."""

    token: str
    chain: Chain
    issued_at: int
    expires_at: int
    jti: str


def mint(chain: Chain, issuer: Signer, *, now: int, jti: str) -> AccessToken:
    """Mint a token for the last delegatee of ``chain``, which has verified."""
    expires_at = min(now + MAX_LIFETIME, chain.leaf.expires_at)
    claims = _claims(chain, issued_at=now, expires_at=expires_at, jti=jti)
    token = jws.sign(claims, issuer, typ=TYPE, header={"kid": issuer.key_id})
    return AccessToken(token, chain, now, expires_at, jti)


def verify(
    token: str, trust: TrustDocument, *, at: int, audience: str | None = None
) -> AccessToken:
    """Verify a token and the chain in it as of ``at`` (seconds since the epoch).

    ``audience`` is who asks; None is the trust domain itself. Raises ``DecodeError``
    (``token.malformed``) and ``VerificationError``: ``token.audience``, ``token.expired``,
    ``token.not_yet_valid``, ``token.lifetime``, ``token.mismatch`` where a claim is not what the
    chain says, and as ``jws.verify``, ``chain.issuer_key`` and ``chain.verify`` do.
    """
    # kid and iat only choose among trusted keys; nothing else is read before the signature holds
    unverified = jws.parse(token)
    kid, issued_at = unverified.header.get("kid"), unverified.claims().get("iat")
    if not isinstance(kid, str) or not is_integer(issued_at):
        raise _malformed("it names no kid, or no iat in whole seconds")
    key = chains.issuer_key(trust, kid, issued_at=issued_at, at=at)
    claims = jws.verify(token, key, typ=TYPE).claims()
    expires_at, jti, carried = claims.get("exp"), claims.get("jti"), claims.get(CHAIN_CLAIM)
    if (
        claims.keys() != _CLAIMS
        or not is_integer(expires_at)
        or not isinstance(jti, str)
        or not jws.is_jti(jti)
        or not isinstance(carried, dict)
    ):
        raise _malformed("its claims are not those of an access token")
    _check_times(issued_at, expires_at, at)
    chain = chains.from_json(carried, trust, at=at)
    if not chain.leaf.delegatee.startswith("spiffe://") or len(chain.hops) == 1:
        raise VerificationError("its chain ends with no agent", code="token.mismatch")
    expected = _claims(chain, issued_at=issued_at, expires_at=expires_at, jti=jti)
    for name, value in expected.items():
        if not _is_same(claims[name], value):
            message = f"its {name} is not what its chain says"
            raise VerificationError(message, code="token.mismatch")
    if expires_at > chain.leaf.expires_at:
        raise VerificationError("it outlives its chain", code="token.mismatch")
    wanted = f"spiffe://{trust.trust_domain}" if audience is None else audience
    if wanted not in chain.leaf.audience:
        message = f"it is for {' '.join(chain.leaf.audience)}, not for {wanted}"
        raise VerificationError(message, code="token.audience")
    return AccessToken(token, chain, issued_at, expires_at, jti)


def actors(chain: Chain) -> dict[str, JSON]:
    """Return the ``act`` claim: who acts now, and inside it who handed that on (RFC 8693, 4.1)."""
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


def _is_same(found: JSON, expected: JSON) -> bool:
    """Compare two JSON values: in Python, true is 1."""
    if isinstance(expected, dict):
        members: Mapping[str, Any] = found if isinstance(found, dict) else {}
        return members.keys() == expected.keys() and all(
            _is_same(members[name], value) for name, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(map(_is_same, found, expected))
        )
    return type(found) is type(expected) and found == expected


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
