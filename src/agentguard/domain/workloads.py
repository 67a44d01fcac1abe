"""``WorkloadTokens``: which service a token of an outside issuer is of.

``[issuers.NAME] services`` says which subject of the issuer is which service. ``issuers/`` verifies
the token itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from agentguard.delegation import verified_tokens
from agentguard.delegation.verified_tokens import ViaToken
from agentguard.domain.config import Config
from agentguard.domain.key_sources import KeySources
from agentguard.errors import VerificationError
from agentguard.identity import jwt
from agentguard.identity.jwt import VerifiedJwt
from agentguard.issuers.trusted import Issuers, TrustedIssuer
from agentguard.signing import declared

_OF_A_LOGIN: Final = ("amr", "at_hash", "auth_time", "c_hash", "nonce", "session_state", "sid")
"""Claims that tell of a person's log-in (OpenID Connect Core, 2; Front-Channel Logout, 3)."""

_OF_OTHERS: Final = ("act", "events")
"""Claims of a token with which another party acts (RFC 8693, 4.1), and of one that tells of an
event (RFC 8417, 2.2), such as a log-out."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A service that came with a verified token; ``name`` is the principal, as in service:ci."""

    name: str
    token: ViaToken


class WorkloadTokens:
    """Verifies tokens of the issuers that know services."""

    def __init__(self, settings: Config, sources: KeySources) -> None:
        known = [issuer for issuer in settings.issuers.values() if issuer.services]
        self._services = {issuer.rule.name: issuer.services for issuer in known}
        self._issuers = Issuers(
            [TrustedIssuer(one.rule, sources.of(one.rule.name)) for one in known]
        )

    def verify(self, token: str) -> Workload:
        """Verify a token.

        Raises as ``Issuers.verify`` does; also ``VerificationError``: ``jwt.type`` for a token that
        is not the service's own (``foreign_marks``), and ``jwt.subject`` for a subject that is no
        service; ``DecodeError`` (``jwt.malformed``) for a claim that no hop can have.
        """
        verified = self._issuers.verify(token)
        marks = foreign_marks(verified)
        if marks:
            message = (
                f"the token tells of a person or of another party ({', '.join(marks)}): pass the "
                "token of the service itself"
            )
            raise VerificationError(message, code="jwt.type")
        name = self._services[verified.issuer].get(verified.subject)
        if name is None:
            message = (
                f"the subject {verified.subject!a} of the issuer {verified.issuer} is no service: "
                "see services in [issuers]"
            )
            raise VerificationError(message, code="jwt.subject")
        return Workload(name, _known(token, verified))


def foreign_marks(verified: VerifiedJwt) -> list[str]:
    """Return the claims by which a token is not the program's own.

    Those of a person's log-in count where the subject is not ``sub``: a claim such as ``azp`` names
    the program through which a user has come, too.
    """
    is_sub = verified.subject == verified.claims.get("sub")
    names = _OF_OTHERS if is_sub else (*_OF_OTHERS, *_OF_A_LOGIN)
    return [name for name in names if name in verified.claims]


def _known(token: str, verified: VerifiedJwt) -> ViaToken:
    """Return what the first hop says of the token."""
    claims, subject = verified.claims, verified.subject
    issuer = jwt.read_string(claims, "iss")
    members = {
        "iss": "/".join(subject.split("/")[:3]) if issuer is None else issuer,
        "sub": subject,
        "sha256": sha256(token.encode("ascii")).hexdigest(),
        "jti": jwt.read_string(claims, "jti"),
    }
    return declared.read(ViaToken, members, verified_tokens.SHOWN, code="jwt.malformed")
