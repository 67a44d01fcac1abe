"""The credential of an agent instance: a WIMSE Workload Identity Token (``typ: wit+jwt``).

Issuance and verification stand side by side, so that they can't diverge. ``trust.py`` decides which
issuer keys are valid at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from agentguard.errors import ConfigError, DecodeError, VerificationError
from agentguard.identity.principal import require_principal
from agentguard.identity.trust import LATEST, TrustDocument
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "wit+jwt"
"""The ``typ`` of a credential (draft-ietf-wimse-workload-creds)."""

AGENT_CLAIM: Final = "urn:agentguard:agent"
"""The claim with the agent's name, type, owner and version."""

MAX_LIFETIME: Final = 3600
"""The longest lifetime of a credential, in seconds."""

_LONGEST_KEPT: Final = 2048
"""The longest credential that is kept for the next look, in characters."""

_URI: Final = re.compile(r"spiffe://[^/]+/agent/([^/]+)/([^/]+)")
_ALIAS: Final = 4
"""The characters of a thumbprint in an instance's short name."""

_SHORT: Final = re.compile(rf"(?:agent:)?([^/:]+):([A-Za-z0-9_-]{{{_ALIAS}}})")

NAME: Final = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
"""The form of an agent's name, as a regular expression."""

_NAME: Final = re.compile(rf"{NAME}\Z")
_CLAIMS: Final = frozenset({"iss", "sub", "iat", "exp", "jti", "cnf", AGENT_CLAIM})


@dataclass(frozen=True, slots=True)
class AgentProfile:
    """The issuer's statement about an agent: its name, type, owner and version.

    ``owner`` is the principal who answers for the agent, as in ``user:carol``. Raises
    ``ConfigError`` for a malformed name or owner.
    """

    name: str
    type: str = "agent"
    owner: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            message = (
                f"{self.name!r} is no agent name: use lower-case letters, digits, '.', '_' and "
                "'-' (64 at most), as in 'code-reviewer'"
            )
            raise ConfigError(message)
        if self.owner is not None:
            require_principal(self.owner, "owner", ConfigError)


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential, issued here or verified.

    ``uri`` is ``spiffe://<trust-domain>/agent/<name>/<thumbprint>``. Times are seconds since the
    epoch. ``token`` is the compact JWS.
    """

    uri: str
    profile: AgentProfile
    key: PublicKey
    issued_at: int
    expires_at: int
    jti: str
    token: str


def agent_uri(trust_domain: str, name: str, key: PublicKey) -> str:
    """Return the URI of an agent instance, with the RFC 7638 thumbprint of its public key."""
    return f"spiffe://{trust_domain}/agent/{name}/{key.thumbprint}"


def agent_name(uri: str) -> str | None:
    """Return the name in an instance's URI, for display and search; None for another text.

    Only a credential that the issuer has signed proves the name.
    """
    match = _URI.fullmatch(uri)
    return match[1] if match is not None else None


def agent_alias(uri: str | None) -> str:
    """Return an instance's short name for display, such as ``agent:code-reviewer:7f3a``.

    A text that is no instance's URI is returned unchanged, an empty text for None. A short name is
    no identifier.
    """
    if uri is None:
        return ""
    match = _URI.fullmatch(uri)
    return f"agent:{match[1]}:{match[2][:_ALIAS]}" if match is not None else uri


def parse_alias(text: str) -> tuple[str, str] | None:
    """Return an agent's name and the full short name from a short name; None for another text.

    The text may lack the prefix ``agent:``.
    """
    match = _SHORT.fullmatch(text)
    return (match[1], f"agent:{match[1]}:{match[2]}") if match is not None else None


def issue(
    issuer: Signer,
    trust_domain: str,
    profile: AgentProfile,
    key: PublicKey,
    *,
    now: int,
    jti: str,
) -> Credential:
    """Issue a credential for ``key``, valid from ``now`` for ``MAX_LIFETIME`` seconds."""
    uri, expires_at = agent_uri(trust_domain, profile.name, key), now + MAX_LIFETIME
    agent: dict[str, JSON] = {
        "name": profile.name,
        "type": profile.type,
        "owner": profile.owner,
        "version": profile.version,
    }
    claims: dict[str, JSON] = {
        "iss": f"spiffe://{trust_domain}",
        "sub": uri,
        "iat": now,
        "exp": expires_at,
        "jti": jti,
        "cnf": {"jwk": {**key.jwk(), "alg": "EdDSA"}},
        AGENT_CLAIM: agent,
    }
    token = jws.sign(claims, issuer, typ=TYPE, header={"kid": issuer.key_id})
    return Credential(uri, profile, key, now, expires_at, jti, token)


def verify(token: str, trust: TrustDocument, *, at: int) -> Credential:
    """Verify and return a credential as of ``at`` (seconds since the epoch).

    Raises ``DecodeError`` or ``VerificationError``: ``credential.malformed``,
    ``credential.issuer``, ``credential.subject``, ``credential.expired``,
    ``credential.not_yet_valid``, ``credential.lifetime``, ``key.unknown``, ``signature.invalid``.
    """
    # kid and iat only select among trusted keys; the signature is verified before all else
    kid, issued_at = jws.parse(token).header.get("kid"), jws.claimed(token).issued_at
    if not isinstance(kid, str) or issued_at is None:
        raise _malformed("it names no kid, or no iat in whole seconds")
    verified = jws.verify(token, trust.key("issuer", kid, at=issued_at), typ=TYPE)
    is_short = type(token) is str and len(token) <= _LONGEST_KEPT
    issuer, credential = (_kept_claims if is_short else _claims)(verified.payload, token)
    if issuer != f"spiffe://{trust.trust_domain}":
        raise VerificationError(
            f"the credential's issuer {issuer!r} is not this trust domain's",
            code="credential.issuer",
        )
    if credential.uri != agent_uri(trust.trust_domain, credential.profile.name, credential.key):
        raise VerificationError(
            "the credential's subject does not name its key", code="credential.subject"
        )
    _check_times(credential, at)
    return credential


def verify_shown(token: str, trust: TrustDocument, *, at: int) -> Credential:
    """Verify a credential that somebody shows at the time ``at`` (seconds since the epoch).

    Raises as ``verify`` does, and ``VerificationError`` (``key.compromised``) for a credential that
    a key of the issuer has signed which is compromised by then: a thief writes an older date.
    """
    verified = verify(token, trust, at=at)
    kid = str(jws.parse(token).header["kid"])
    since = trust.trusted_key("issuer", kid).compromised_since
    if since is not None and at >= since:
        message = f"the issuer key {kid} is compromised: get a new credential"
        raise VerificationError(message, code="key.compromised")
    return verified


def read(token: str) -> Credential:
    """Read a credential without verifying it.

    Raises ``DecodeError``, and ``KeyMaterialError`` for a key that no credential may have.
    """
    return _parse(jws.parse(token).claims(), token)


def _claims(payload: bytes, token: str) -> tuple[JSON, Credential]:
    """Decode the payload of a token: the issuer that it names, and the credential."""
    claims = canonical.loads_object(payload)
    return claims.get("iss"), _parse(claims, token)


# A credential is read for each delegation to its agent, and in each verification of a chain.
_kept_claims: Final = lru_cache(maxsize=256)(_claims)


def _parse(claims: Mapping[str, JSON], token: str) -> Credential:
    match claims:
        case {
            "iss": str(),
            "sub": str(uri),
            "iat": issued_at,
            "exp": expires_at,
            "jti": str(jti),
            "cnf": {"jwk": dict(jwk), **further},
            "urn:agentguard:agent": {
                "name": str(name),
                "type": str(kind),
                "owner": str() | None as owner,
                "version": str() | None as version,
            },
        } if (
            claims.keys() == _CLAIMS
            and not further
            and is_integer(issued_at)
            and is_integer(expires_at)
            and jws.is_jti(jti)
        ):
            if "alg" not in jwk:  # from_jwk checks the value
                raise _malformed("its key names no alg")
            try:
                profile = AgentProfile(name, kind, owner, version)
            except ConfigError as error:
                raise _malformed(str(error)) from error
            key = PublicKey.from_jwk(jwk)
            return Credential(uri, profile, key, issued_at, expires_at, jti, token)
    raise _malformed("its claims are not those of a workload identity token")


def _check_times(credential: Credential, at: int) -> None:
    if not 0 <= credential.issued_at <= credential.expires_at <= LATEST:
        raise _malformed("its times are no times")
    if credential.expires_at - credential.issued_at > MAX_LIFETIME:
        message = f"the credential lives longer than {MAX_LIFETIME} s"
        raise VerificationError(message, code="credential.lifetime")
    if at >= credential.expires_at:
        raise VerificationError("the credential has expired", code="credential.expired")
    if at < credential.issued_at:
        message = "the credential is not valid yet"
        raise VerificationError(message, code="credential.not_yet_valid")


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a credential: {problem}", code="credential.malformed")
