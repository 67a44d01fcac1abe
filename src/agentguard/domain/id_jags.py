"""``IdJags``: verifies the ID-JAGs of outside issuers, with which users lend at the token service.

An ID-JAG (identity assertion JWT authorization grant) says that a provider lets one client of the
token service act for one user. draft-ietf-oauth-identity-assertion-authz-grant-04. The service
decides what the grant is good for (``service/assertions.py``); nothing here issues one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from msgspec import structs

from agentguard.delegation.verified_tokens import ID_JAG
from agentguard.domain.config import Config
from agentguard.domain.key_sources import KeySources
from agentguard.domain.users import User, UserTokens
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import jwt
from agentguard.identity.jwt import VerifiedJwt
from agentguard.issuers.trusted import Issuers, TrustedIssuer
from agentguard.signing.canonical import JSON

TYPE: Final = "oauth-id-jag+jwt"
"""The ``typ`` of an ID-JAG."""

LONGEST: Final = 3600
"""Seconds from ``iat`` to ``exp`` of an ID-JAG that counts, at the most."""

# Each of these narrows the grant, or says of another party. Who ignores them gives too much.
_NOT_KNOWN: Final = ("act", "aud_tenant", "authorization_details", "may_act", "tenant")


@dataclass(frozen=True, slots=True)
class IdJag:
    """A verified ID-JAG.

    ``user`` is the user, with the scope of the grant as the limit. ``client_id`` is the client that
    may use the grant. ``resource`` are the receivers to which the grant is limited, None for no
    limit. ``issuer`` and ``token_id`` are ``iss`` and ``jti``. ``expires_at`` is the second since
    the epoch from which the grant counts no more, with the leeway.
    """

    user: User
    client_id: str
    resource: tuple[str, ...] | None
    issuer: str
    token_id: str
    expires_at: int


class IdJags:
    """Verifies ID-JAGs of the issuers whose users have ``id_jag = true``.

    ``users`` returns the users of the configuration in force, whose roles a reload may change; None
    where no issuer knows users.
    """

    def __init__(
        self, settings: Config, sources: KeySources, users: Callable[[], UserTokens | None]
    ) -> None:
        service = settings.service
        issuers = [
            issuer
            for issuer in settings.issuers.values()
            if service is not None and issuer.users is not None and issuer.users.id_jag
        ]
        self._audience = "" if service is None else service.issuer
        self._users = users
        self._issuers = Issuers(
            [
                TrustedIssuer(
                    replace(
                        issuer.rule,
                        audience=frozenset({self._audience}),
                        types=frozenset({TYPE}),
                        subject_claim="sub",
                    ),
                    sources.of(issuer.rule.name),
                )
                for issuer in issuers
            ]
        )
        self.are_taken = bool(issuers)

    def verify(self, token: str, *, now: int) -> IdJag:
        """Verify an ID-JAG; ``now`` is in seconds since the epoch.

        Raises as ``UserTokens.verify`` does; also ``DecodeError`` (``jwt.malformed``) for a grant
        without ``jti`` or ``client_id``, or with a claim that is not known here;
        ``VerificationError``: ``jwt.audience`` for a grant of several audiences, and
        ``jwt.lifetime`` for one that counts longer than ``LONGEST``. The draft, 3 and 4.4.1.
        """
        verified = self._issuers.verify(token)
        claims = verified.claims
        if claims["aud"] not in (self._audience, [self._audience]):
            message = "the ID-JAG is for several audiences: one of them could use it at the others"
            raise VerificationError(message, code="jwt.audience")
        strange = [name for name in _NOT_KNOWN if name in claims]
        if strange:
            raise _malformed(f"it has {', '.join(strange)}, which are not known here")
        users = self._users()
        if users is None:
            raise VerificationError("no issuer knows users here", code="jwt.issuer")
        user = users.user_of(token, verified, now=now)
        _require_short(verified)
        return IdJag(
            replace(
                user,
                token=structs.replace(user.token, kind=ID_JAG),
                limit=_scope(claims["scope"]) if "scope" in claims else None,
            ),
            _required(verified, "client_id"),
            _resource(claims["resource"]) if "resource" in claims else None,
            user.token.iss,
            _required(verified, "jti"),
            math.ceil(verified.expires_at),
        )


def _require_short(verified: VerifiedJwt) -> None:
    """Raise for a grant whose time is long; ``exp`` and ``iat`` are there."""
    exp, iat = (jwt.read_time(verified.claims, name) for name in ("exp", "iat"))
    if exp - iat > LONGEST:
        message = f"the ID-JAG counts for more than {LONGEST} seconds: have the issuer shorten it"
        raise VerificationError(message, code="jwt.lifetime")


def _required(verified: VerifiedJwt, name: str) -> str:
    value = verified.claims.get(name)
    if not isinstance(value, str) or not value:
        raise _malformed(f"it has no {name}")
    return value


def _scope(value: JSON) -> frozenset[str]:
    """Return the names of a scope (RFC 6749, 3.3)."""
    names = value.split(" ") if isinstance(value, str) else [""]
    if "" in names:
        raise _malformed("scope: expected names with a space between two of them")
    return frozenset(names)


def _resource(value: JSON) -> tuple[str, ...]:
    """Return the receivers of a grant, one or several (RFC 8707, 2)."""
    given = [value] if isinstance(value, str) else value
    texts = (
        [one for one in given if isinstance(one, str) and one] if isinstance(given, list) else []
    )
    if not texts or given != texts:
        raise _malformed("resource: expected a URI or a list of URIs")
    return tuple(texts)


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"no ID-JAG that counts here: {problem}", code="jwt.malformed")
