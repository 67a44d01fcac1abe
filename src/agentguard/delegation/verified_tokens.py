"""What the first hop of a chain says of the tokens with which its principal and a service came.

``SubjectToken`` is of the principal, ``ViaToken`` of the service through which the request came
(``via``). The tokens themselves, of outside issuers such as the company's identity provider, SPIRE
or a cluster, are in no hop and in no entry: whoever reads the log could use them.
``domain/users.py`` and ``domain/workloads.py`` verify tokens.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from agentguard.identity.login import LogIn
from agentguard.identity.trust import LATEST
from agentguard.signing.declared import ABSENT, Absent, Declared, Sha256

ID_JAG: Final = "id-jag"
"""``SubjectToken.kind`` of an identity assertion JWT authorization grant (ADR 0045)."""

SHOWN: Final = "a token that a hop can name (each claim printable ASCII, 1,024 characters at most)"
"""What a token is to be, in the words of an error."""

Text = Annotated[str, Meta(pattern=r"\A[\x20-\x7e]{1,1024}\Z")]
"""A claim that a hop can have: printable ASCII."""


class _VerifiedToken(Declared, frozen=True):
    iss: Text
    sub: Text
    sha256: Sha256
    jti: Text | None


class ViaToken(_VerifiedToken, frozen=True):
    """A verified token of a service, by what identifies the token: the claim ``via_token``.

    ``iss`` is the token's issuer, or ``spiffe://DOMAIN`` of a JWT-SVID. ``sub`` is whom the token
    names, and ``sha256`` (hex) is the digest of its text. ``jti`` is None where the token has none.
    """


class SubjectToken(_VerifiedToken, frozen=True):
    """A verified token of an outside issuer (RFC 8693, 2.1): the claim ``subject_token``.

    The members are the token's own claims, and ``sha256`` (hex) is the digest of its text. ``jti``,
    ``sid``, ``acr`` and ``auth_time`` (when the person logged in, in seconds since the epoch) are
    None where the token does not have them. ``roles`` are the roles of ``[roles]`` that the token
    gives the principal, sorted, each once. An access token or an ID token has no ``kind``.
    """

    sid: Text | None
    auth_time: Annotated[int, Meta(ge=0, le=LATEST)] | None
    acr: Text | None
    roles: tuple[Text, ...]
    kind: Literal["id-jag"] | Absent = ABSENT

    def __post_init__(self) -> None:
        if self.roles != tuple(sorted(set(self.roles))):
            raise ValueError("its roles are not sorted, each once")

    @property
    def is_id_jag(self) -> bool:
        """Whether it is an identity assertion JWT authorization grant (ADR 0045)."""
        return self.kind == ID_JAG

    def login(self, issued_at: int) -> LogIn:
        """Return the log-in of a hop that was issued at a time, in seconds since the epoch.

        Without ``auth_time``, the person logged in before the hop was made.
        """
        if self.auth_time is None:
            return LogIn(self.iss, self.sub, self.sid, issued_at, "here")
        at = min(self.auth_time, issued_at)  # no log-in of the future outlasts its log-out
        return LogIn(self.iss, self.sub, self.sid, at, "provider")
