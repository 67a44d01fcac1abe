"""The names of principals: one form, and one spelling for each (principals.md).

A principal is ``kind:name`` in lower case, or ``issuer#subject`` for a subject of an OpenID Connect
issuer. Names are compared character by character, so every entrance refuses a name that a reader
could take for another spelling of a principal's name (docs/adr/0018).
"""

from __future__ import annotations

import re
import unicodedata
from difflib import get_close_matches
from typing import Final

from agentguard.errors import AgentguardError

KINDS: Final = ("user", "service", "crew")
"""The kinds of principals. An agent is no principal: only a credential shows an agent's name."""

MALFORMED: Final = "principal.malformed"
"""The reason code of every error of this module."""

_NAME: Final = r"[a-z0-9](?:[a-z0-9._+@/'-]{0,253}[a-z0-9])?"
_PLAIN: Final = re.compile(rf"(?:{'|'.join(KINDS)}):{_NAME}\Z")
# OpenID Connect Core 1.0, 2: an https URL without query and fragment; at most 255 ASCII characters
_ISSUER: Final = (
    r"https://[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[1-9][0-9]{0,4})?(?:/[\w.~/-]{0,255})?"
)
_OPENID: Final = re.compile(rf"{_ISSUER}#[\x21\x22\x24-\x7e]{{1,255}}\Z", re.ASCII)
_AMBIGUOUS: Final = re.compile(
    r"https://[^/#]*(?:\.\.|:443[/#])"  # an empty label of the host, or the usual port
    r"|https://[^#]*/(?:/|\.\.?[/#])"  # an empty segment of the path, or one of dots
)
"""Issuers that a reader could take for another spelling of an issuer."""

_SHOWN: Final = 100
"""Characters of a refused name that an error shows."""


def is_principal(name: object) -> bool:
    """Whether a name has the form of a principal's."""
    if not isinstance(name, str):
        return False
    return bool(_PLAIN.match(name) or (_OPENID.match(name) and not _AMBIGUOUS.match(name)))


def is_agent_name(name: str) -> bool:
    """Whether a name looks like an agent's name, which no principal may have."""
    return name.lower().startswith(("agent:", "spiffe:"))


def require_principal(name: object, role: str, error: type[AgentguardError]) -> str:
    """Return the name of a principal; raise ``error`` (``principal.malformed``) for another value.

    ``role`` is what the principal is here, for the message: ``principal``, ``service``, ``owner``.
    """
    if isinstance(name, str) and is_principal(name):
        return name
    raise error(f"{shown(name)} is no name of a {role}: {_advice(name, role)}", code=MALFORMED)


def _advice(name: object, role: str) -> str:
    if isinstance(name, str) and is_agent_name(name):
        return "it names an agent, and a principal is a user or a service, as in 'user:alice'"
    suggestion = _suggestion(name, "service" if role == "service" else "user")
    if suggestion is not None:
        return f"write {suggestion!r}; a name has one spelling, in lower case and with its kind"
    return (
        f"write kind:name, as in 'user:alice' or 'service:chat', of a kind among {', '.join(KINDS)}"
        ", in lower-case letters (a to z), digits and . _ + @ / ' -, a letter or digit first and "
        "last; or issuer#subject, as in 'https://idp.example#42'"
    )


def _suggestion(name: object, default_kind: str) -> str | None:
    """Return the principal that a malformed name probably means; None if none is probable."""
    if not isinstance(name, str) or len(name) > _SHOWN:
        return None
    text = unicodedata.normalize("NFKC", name).strip().lower()
    prefix, colon, rest = text.partition(":")
    kinds = get_close_matches(prefix, KINDS, 1) if colon else [default_kind]
    suggestion = f"{kinds[0]}:{rest if colon else text}" if kinds else ""
    return suggestion if is_principal(suggestion) else None


def shown(name: object) -> str:
    """Show a refused name in ASCII, so that no letter can look like another, and cut it short."""
    text = ascii(name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
