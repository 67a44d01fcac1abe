"""The kinds of entries, each declared once: members, rule, effect, words and columns.

``announcements.py`` has what is in force from now on, ``requests.py`` and ``calls.py`` what people
and agents do, ``running.py`` what a running call got, ``administration.py`` and ``identities.py``
what ends an authority, ``receiver.py`` the log of a tool's server, and ``evaluation.py`` what
nobody did. A new kind is a class below ``Entry`` in one of these files.
"""

from __future__ import annotations

from typing import TypeVar, overload

from agentguard.audit.entry import KINDS, Entry
from agentguard.audit.kinds import (
    administration,
    announcements,
    calls,
    evaluation,
    identities,
    receiver,
    requests,
    running,
)
from agentguard.errors import AgentguardError, DecodeError
from agentguard.signing import canonical, declared

__all__ = [
    "KINDS",
    "administration",
    "announcements",
    "calls",
    "evaluation",
    "identities",
    "parse_entry",
    "receiver",
    "requests",
    "running",
]


E = TypeVar("E", bound=Entry)


@overload
def parse_entry(body: bytes) -> Entry: ...


@overload
def parse_entry(body: bytes, wanted: type[E]) -> E: ...


def parse_entry(body: bytes, wanted: type[Entry] = Entry) -> Entry:
    """Read an entry, of any kind or of the one wanted, with the statement that it embeds.

    Nothing is verified. Raises ``DecodeError`` (``json.*``, ``entry.malformed``, and the codes of
    what it embeds), also for an entry of another kind.
    """
    members = canonical.loads_canonical(body)
    if not isinstance(members, dict):
        raise DecodeError("an entry is a JSON object", code="entry.malformed")
    kind = members.pop("kind", None)
    form = KINDS.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise DecodeError(f"{kind!r} is no kind of entry known here", code="entry.malformed")
    entry = declared.read(form, members, f"an entry of the kind {kind}", code="entry.malformed")
    try:
        entry.read()
    except DecodeError:
        raise
    except AgentguardError as error:
        raise DecodeError(str(error), code=error.code) from error
    if isinstance(entry, wanted):
        return entry
    raise DecodeError(f"an entry of the kind {kind}", code="entry.malformed")
