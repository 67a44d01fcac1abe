"""``ViaToken``: what the first hop of a chain says of the token with which a service came.

The service is the one through which the request came (``via``). The token, of an outside issuer
such as SPIRE or a cluster, is in no hop and in no entry: whoever reads the log could use the token.
``domain/workloads.py`` verifies tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from agentguard.signing.canonical import JSON, is_sha256

_TEXT: Final = re.compile(r"[\x20-\x7e]{1,1024}\Z")


class ViaToken(NamedTuple):
    """A verified token of a service, by what identifies the token.

    ``issuer`` is the token's ``iss``, or ``spiffe://DOMAIN`` of a JWT-SVID. ``subject`` is whom the
    token names, and ``sha256`` (hex) is the digest of its text. ``token_id`` (``jti``) is None
    where the token has none.
    """

    issuer: str
    subject: str
    sha256: str
    token_id: str | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the claim ``via_token`` of a first hop."""
        return {
            "iss": self.issuer,
            "sub": self.subject,
            "sha256": self.sha256,
            "jti": self.token_id,
        }


def parse(value: JSON | Mapping[str, JSON]) -> ViaToken | None:
    """Return what the claim ``via_token`` says; None for a value that is no such claim."""
    match value:
        case {
            "iss": str(issuer),
            "sub": str(subject),
            "sha256": str(sha256),
            "jti": str() | None as token_id,
            **others,
        } if not others:
            read = ViaToken(issuer, subject, sha256, token_id)
            return read if is_sound(read) else None
    return None


def is_sound(read: ViaToken) -> bool:
    """Whether a hop can have these values: texts in printable ASCII, and a digest."""
    texts = (read.issuer, read.subject, read.token_id)
    return is_sha256(read.sha256) and all(_TEXT.match(text) for text in texts if text is not None)
