"""The access token that is minted from a chain: RFC 8693 semantics in RFC 9068's form.

``typ: at+jwt``, at most five minutes, bound to the agent instance's key (``cnf.jkt``, RFC 7800),
with the agent that acts in ``act`` (RFC 8693, 4.1). The token has the digest of its chain, and the
chain travels beside the token: a receiver verifies each delegation without trust in the issuer's
word, and the token stays small whatever the depth of the chain (ADR 0036).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, get_args

from agentguard.call.client import Isolation
from agentguard.delegation import grant, verification
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.keys import Signer

TYPE: Final = "at+jwt"
"""The ``typ`` of an access token (RFC 9068, 2.1)."""

CHAIN_CLAIM: Final = "urn:agentguard:chain_sha256"
"""The claim that has the digest of the chain (``Chain.sha256``)."""

ISOLATION_CLAIM: Final = "urn:agentguard:isolation"
"""The claim that says whether the agent's process could reach the keys (``ISOLATIONS``)."""

SAME_PROCESS: Final = "same-process"
"""The isolation of an agent whose guard, with all keys, is in the agent's process."""

ISOLATIONS: Final = frozenset({SAME_PROCESS, *get_args(Isolation)})
"""What a token says of isolation: ``SAME_PROCESS``, or what a guard server observed."""

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
        ISOLATION_CLAIM,
    }
)


class IssuedToken(NamedTuple):
    """An access token to show to a service, and the chain that the service needs to verify it.

    ``token`` is a compact JWS (``at+jwt``), which goes into the header ``Authorization``. ``chain``
    is JSON in UTF-8 (docs/reference/delegation-formats.md, "A chain").
    """

    token: str
    chain: bytes


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, minted here or verified; times are seconds since the epoch.

    ``isolation`` is one of ``ISOLATIONS``.
    """

    token: str
    chain: Chain
    isolation: str
    issued_at: int
    expires_at: int
    jti: str


def mint(
    chain: Chain,
    issuer: Signer,
    *,
    now: int,
    jti: str,
    isolation: str = SAME_PROCESS,
    url: str | None = None,
) -> AccessToken:
    """Mint a token for the last delegatee of a verified ``chain``; ``now`` is in seconds.

    ``isolation`` is one of ``ISOLATIONS``. ``url`` is the ``iss`` of the token: the URL of a token
    service (RFC 8414, 2), None for the URI of the trust domain.
    """
    expires_at = min(now + MAX_LIFETIME, chain.leaf.expires_at)
    claims = {
        **_claims(chain, issued_at=now, expires_at=expires_at, jti=jti),
        ISOLATION_CLAIM: isolation,
    }
    if url is not None:
        claims["iss"] = url
    token = jws.sign(claims, issuer, typ=TYPE, header={"kid": issuer.key_id})
    return AccessToken(token, chain, isolation, now, expires_at, jti)


def verify(
    token: str,
    chain: bytes,
    trust: TrustDocument,
    *,
    at: int,
    audience: str | None = None,
    issuer: str | None = None,
) -> AccessToken:
    """Verify a token, and the chain beside it, as of ``at`` (seconds since the epoch).

    ``chain`` is what ``Chain.dumps`` encodes. ``audience`` names the receiver; None is the trust
    domain itself. ``iss`` has to be the URI of the trust domain, or ``issuer``: the URL of the
    trust domain's token service, None where no such URL counts. Raises ``DecodeError``
    (``token.malformed``) and ``VerificationError``: ``token.audience``, ``token.expired``,
    ``token.not_yet_valid``, ``token.lifetime``, ``token.mismatch`` for a claim that differs from
    the chain, also where the chain is another one than the token names. Raises also as
    ``jws.verify`` and ``verification.loads`` do.
    """
    claims = _verified_claims(token, trust, at)
    issued_at, expires_at, jti = claims.get("iat"), claims.get("exp"), claims.get("jti")
    isolation = claims.get(ISOLATION_CLAIM)
    if (
        claims.keys() != _CLAIMS
        or not is_integer(issued_at)
        or not is_integer(expires_at)
        or not jws.is_jti(jti)
        or not isinstance(isolation, str)
        or isolation not in ISOLATIONS
    ):
        raise _malformed("its claims are not those of an access token")
    _check_times(issued_at, expires_at, at)
    verified = verification.loads(chain, trust, at=at)
    if not grant.is_agent(verified.leaf.delegatee):
        raise VerificationError("its chain ends with no agent", code="token.mismatch")
    expected = _claims(verified, issued_at=issued_at, expires_at=expires_at, jti=jti)
    if issuer is not None and _is_same(claims["iss"], issuer):
        expected["iss"] = issuer
    for name, value in expected.items():
        if not _is_same(claims[name], value):
            message = f"its {name} is not what its chain says"
            if name == "iss":
                message = (
                    f"its iss is not {value}: if the token service of the trust domain has issued "
                    "the token, name the URL of the service as the issuer (--issuer)"
                )
            raise VerificationError(message, code="token.mismatch")
    if expires_at > verified.leaf.expires_at:
        raise VerificationError("it outlives its chain", code="token.mismatch")
    _require_audience(verified, f"spiffe://{trust.trust_domain}" if audience is None else audience)
    return AccessToken(token, verified, isolation, issued_at, expires_at, jti)


def _verified_claims(token: str, trust: TrustDocument, at: int) -> dict[str, JSON]:
    # kid and iat only select among trusted keys; the signature is verified before all else
    kid, issued_at = jws.parse(token).header.get("kid"), jws.claimed(token).issued_at
    if not isinstance(kid, str) or issued_at is None:
        raise _malformed("it names no kid, or no iat in whole seconds")
    key = verification.issuer_key(trust, kid, issued_at=issued_at, at=at)
    return jws.verify(token, key, typ=TYPE).claims()


def _require_audience(chain: Chain, receiver: str) -> None:
    if receiver not in chain.leaf.audience:
        message = f"it is for {' '.join(chain.leaf.audience)}, not for {receiver}"
        raise VerificationError(message, code="token.audience")


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
        "act": {"sub": leaf.delegatee},  # the actors before are in the chain
        "txn": leaf.task_id,
        CHAIN_CLAIM: chain.sha256,
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
