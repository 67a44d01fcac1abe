"""Log-out tokens: what the claims of a provider's token have to be to end log-ins.

``jwt.py`` verifies the token itself, and ``domain/logouts.py`` knows which provider's tokens count.
OpenID Connect Back-Channel Logout 1.0, 2.4 and 2.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import jwt
from agentguard.identity.jwt import ABSENT
from agentguard.identity.login import LogOut
from agentguard.signing.canonical import JSON

EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
"""The member of the claim ``events`` by which a token tells of a log-out."""

TYPES: Final = frozenset({"logout+jwt", "JWT", ABSENT})
"""The accepted values of ``typ``: the first is recommended, and not every provider has it (2.4)."""

_TEXT: Final = re.compile(r"[\x20-\x7e]{1,1024}\Z")
_OTHERS: Final = frozenset({"bearer", "id", "refresh", "offline"})


def subject_claim(token: str) -> str:
    """Return the claim that names whose log-ins end: ``sub``, or ``sid`` where there is no ``sub``.

    Raises as ``jwt.parse`` does.
    """
    return "sub" if "sub" in jwt.parse(token).claims else "sid"


def read(claims: Mapping[str, JSON]) -> LogOut:
    """Return the log-out that claims tell of.

    Raises ``VerificationError`` (``jwt.type``) for the claims of another kind of token, and
    ``DecodeError`` (``jwt.malformed``) for claims of another form.
    """
    events = claims.get("events")
    event = events.get(EVENT) if isinstance(events, dict) else None
    # Keycloak says the kind of a token in the claim typ
    if not isinstance(event, dict) or str(claims.get("typ", "")).lower() in _OTHERS:
        message = "the token tells of no log-out: it is another kind of token"
        raise VerificationError(message, code="jwt.type")
    if "nonce" in claims:  # so that no log-out token passes for an ID token (2.4)
        raise VerificationError("a log-out token has no nonce", code="jwt.type")
    issuer, token_id = _text(claims, "iss"), _text(claims, "jti")
    subject, session = _text(claims, "sub"), _text(claims, "sid")
    if issuer is None or token_id is None or (subject is None and session is None):
        raise _malformed("iss, jti and one of sub and sid have to be there")
    if "iat" not in claims:
        raise _malformed("iat has to be there")
    return LogOut(issuer, subject, session, int(jwt.read_time(claims, "iat")))


def _text(claims: Mapping[str, JSON], name: str) -> str | None:
    value = jwt.read_string(claims, name)
    if value is not None and not _TEXT.match(value):
        raise _malformed(f"{name} is no text of 1 to 1,024 characters of printable ASCII")
    return value


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a log-out token: {problem}", code="jwt.malformed")
