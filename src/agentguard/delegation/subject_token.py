"""``SubjectToken``: what the first hop of a chain says of a token with which a principal came.

The token itself, of an outside issuer such as the company's identity provider, is in no hop and in
no entry: whoever reads the log could use the token. ``domain/users.py`` verifies tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from agentguard.identity.login import LogIn
from agentguard.identity.trust import LATEST
from agentguard.signing.canonical import JSON, is_integer, is_sha256

_TEXT: Final = re.compile(r"[\x20-\x7e]{1,1024}\Z")

ID_JAG: Final = "id-jag"
"""``SubjectToken.kind`` of an identity assertion JWT authorization grant (ADR 0045)."""


class SubjectToken(NamedTuple):
    """A verified token of an outside issuer (RFC 8693, 2.1), by what identifies the token.

    ``issuer`` and ``subject`` are the token's ``iss`` and ``sub``, and ``sha256`` (hex) is the
    digest of its text. ``token_id``, ``session`` (``sid``), ``acr`` and ``auth_time`` (when the
    person logged in, in seconds since the epoch) are None where the token does not have them.
    ``roles`` are the roles of ``[roles]`` that the token gives the principal, sorted. ``kind`` is
    ``ID_JAG``, or None for an access token or an ID token.
    """

    issuer: str
    subject: str
    sha256: str
    token_id: str | None = None
    session: str | None = None
    auth_time: int | None = None
    acr: str | None = None
    roles: tuple[str, ...] = ()
    kind: str | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the claim ``subject_token`` of a first hop."""
        return {
            "iss": self.issuer,
            "sub": self.subject,
            "sha256": self.sha256,
            "jti": self.token_id,
            "sid": self.session,
            "auth_time": self.auth_time,
            "acr": self.acr,
            "roles": list(self.roles),
            # the hops of earlier versions have no such member
            **({} if self.kind is None else {"kind": self.kind}),
        }

    def login(self, issued_at: int) -> LogIn:
        """Return the log-in of a hop that was issued at a time, in seconds since the epoch.

        Without ``auth_time``, the person logged in before the hop was made.
        """
        if self.auth_time is None:
            return LogIn(self.issuer, self.subject, self.session, issued_at, "here")
        at = min(self.auth_time, issued_at)  # no log-in of the future outlasts its log-out
        return LogIn(self.issuer, self.subject, self.session, at, "provider")


def parse(value: JSON | Mapping[str, JSON]) -> SubjectToken | None:
    """Return what the claim ``subject_token`` says; None for a value that is no such claim."""
    match value:
        case {
            "iss": str(issuer),
            "sub": str(subject),
            "sha256": str(sha256),
            "jti": str() | None as token_id,
            "sid": str() | None as session,
            "auth_time": auth_time,
            "acr": str() | None as acr,
            "roles": [*roles],
            **others,
        } if others in ({}, {"kind": ID_JAG}) and (auth_time is None or is_integer(auth_time)):
            names = tuple(role for role in roles if isinstance(role, str))
            read = SubjectToken(
                issuer,
                subject,
                sha256,
                token_id,
                session,
                auth_time,
                acr,
                names,
                ID_JAG if others else None,
            )
            return read if len(names) == len(roles) and is_sound(read) else None
    return None


def is_sound(read: SubjectToken) -> bool:
    """Whether a hop can have these values: texts in printable ASCII, a digest, roles in order."""
    texts = (read.issuer, read.subject, read.token_id, read.session, read.acr, *read.roles)
    return (
        all(_TEXT.match(text) for text in texts if text is not None)
        and is_sha256(read.sha256)
        and 0 <= (read.auth_time or 0) <= LATEST
        and read.roles == tuple(sorted(set(read.roles)))
    )
