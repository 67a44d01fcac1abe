"""The names of principals: one form, and one spelling for each (docs/delegation.md, Principals).

A principal is ``kind:name`` in lower case, or ``issuer#subject`` of an issuer elsewhere (OpenID
Connect). Names are compared character by character, so a name that could be read as another
spelling of somebody's is refused wherever it comes in (docs/adr/0018).
"""

from __future__ import annotations

import re
import unicodedata
from difflib import get_close_matches
from typing import Final

from agentguard.errors import AgentguardError

KINDS: Final = ("user", "service", "crew")
"""The kinds of principals. An agent is none: its name is believed from its credential alone."""

MALFORMED: Final = "principal.malformed"
"""The reason code of every error here."""

_NAME: Final = r"[a-z0-9](?:[a-z0-9._+@/'-]{0,253}[a-z0-9])?"
_PLAIN: Final = re.compile(rf"(?:{'|'.join(KINDS)}):{_NAME}\Z")
# OpenID Connect Core 1.0, 2: an https URL without query and fragment; at most 255 ASCII characters
_ISSUER: Final = (
    r"https://[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::[1-9][0-9]{0,4})?(?:/[\w.~/-]{0,255})?"
)
_ELSEWHERE: Final = re.compile(rf"{_ISSUER}#[\x21\x22\x24-\x7e]{{1,255}}\Z", re.ASCII)
_OTHERWISE: Final = re.compile(
    r"https://[^/#]*(?:\.\.|:443[/#])"  # an empty label of the host, or the usual port
    r"|https://[^#]*/(?:/|\.\.?[/#])"  # an empty segment of the path, or one of dots
)
"""Issuers that could be read as another spelling of an issuer."""
_SHOWN: Final = 100
"""Characters of a refused name that an error shows."""


def is_principal(name: object) -> bool:
    """Whether a name has the form of a principal's."""
    if not isinstance(name, str):
        return False
    return bool(_PLAIN.match(name) or (_ELSEWHERE.match(name) and not _OTHERWISE.match(name)))


def is_agent(name: str) -> bool:
    """Whether a name looks like an agent's: no principal may have such a one."""
    return name.lower().startswith(("agent:", "spiffe:"))


def require(name: object, what: str, raises: type[AgentguardError]) -> str:
    """Return the name of a principal; raises ``raises`` (``principal.malformed``) for any other.

    ``what`` says what the name is for, as in ``principal`` or ``service``.
    """
    if isinstance(name, str) and is_principal(name):
        return name
    raise raises(f"{_shown(name)} is no name of a {what}: {_advice(name, what)}", code=MALFORMED)


def _advice(name: object, what: str) -> str:
    if isinstance(name, str) and is_agent(name):
        return "it names an agent, and a principal is a user or a service, as in 'user:alice'"
    meant = _meant(name, "service" if what == "service" else "user")
    if meant is not None:
        return f"write {meant!r}; a name has one spelling, in lower case and with its kind"
    return (
        f"write kind:name, as in 'user:alice' or 'service:chat', of a kind among {', '.join(KINDS)}"
        ", in lower-case letters (a to z), digits and . _ + @ / ' -, a letter or digit first and "
        "last; or issuer#subject, as in 'https://idp.example#42'"
    )


def _meant(name: object, kind: str) -> str | None:
    """Return the principal that a name may have been meant to be."""
    if not isinstance(name, str) or len(name) > _SHOWN:
        return None
    text = unicodedata.normalize("NFKC", name).strip().lower()
    written, colon, rest = text.partition(":")
    near = get_close_matches(written, KINDS, 1) if colon else [kind]
    meant = f"{near[0]}:{rest if colon else text}" if near else ""
    return meant if is_principal(meant) else None


def _shown(name: object) -> str:
    """Show a name such that no letter of it looks like another one."""
    shown = ascii(name)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
