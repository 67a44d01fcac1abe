"""One entry of the audit log: the members of each kind, and how an entry is read.

An entry is canonical JSON ``{kind, at, ...}``. Where somebody other than the log vouches for the
content, the entry embeds that signed statement (log.md). ``records.py`` and ``http_requests.py``
build new entries; ``calls.py``, ``approval_checks.py`` and ``statements.py`` read the members of a
kind. A new kind also needs its rule in ``contents.py`` (the verifier), in
``restrictions_builder.py`` where the kind restricts later calls, and a row in
``cli/audit/log_row.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from agentguard.audit.summary import Summary
from agentguard.errors import DecodeError
from agentguard.identity.trust import seconds
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

Status = Literal["ok", "error", "unknown", "not_run"]
Role = Literal["arguments", "input", "result"]
Mode = Literal["enforce", "observe"]

BEGINNING: Final = "1970-01-01T00:00:00.000000Z"
"""The time of a log or a shard without entries."""

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
)

_MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "shard": frozenset({"statement"}),
    "key": frozenset({"statement"}),
    "policy": frozenset({"engine", "policy_sha256", "files"}),
    "roster": frozenset({"statement"}),
    "request": frozenset(
        {
            "request_id",
            "call_digest",
            "call_site",
            "agent",
            "principal",
            "tool",
            "resource",
            "task_id",
            "requirements",
            "requirement_sha256",
            "displayed_sha256",
            "expires_at",
            "chain_sha256",
        }
    ),
    "request_end": frozenset(
        {
            "request_id",
            "end",
            "call_digest",
            "agent",
            "principal",
            "tool",
            "task_id",
            "requirement_sha256",
            "displayed_sha256",
            "expires_at",
            "roster_sha256",
            "approvals",
        }
    ),
    "config": frozenset({"config_sha256", "config"}),
    "identity": frozenset({"credential"}),
    "call": frozenset(
        {
            "invocation",
            "input",
            "decision",
            "code",
            "reasons",
            "requirements",
            "mode",
            "enforced",
            "engine",
            "policy_sha256",
            "config_sha256",
            "roster_sha256",
            "approvals",
            "copies",
        }
    ),
    "secret": frozenset(
        {"name", "invocation_id", "invocation_sha256", "authorization", "agent", "tool"}
    ),
    "proof": frozenset(
        {
            "request",
            "assurance",
            "audience",
            "proof",
            "invocation_id",
            "invocation_sha256",
            "authorization",
            "agent",
            "tool",
        }
    ),
    "receipt": frozenset(
        {
            "proof_sha256",
            "receipt",
            "key_id",
            "invocation_id",
            "invocation_sha256",
            "authorization",
            "agent",
            "tool",
        }
    ),
    "received": frozenset(
        {
            "request",
            "audience",
            "server",
            "proof",
            "assurance",
            "invocation_sha256",
            "token",
            "agent",
            "principal",
            "unrecorded",
        }
    ),
    "refused": frozenset(
        {
            "code",
            "request",
            "audience",
            "server",
            "proof_sha256",
            "token",
            "agent",
            "principal",
            "unrecorded",
        }
    ),
    "outcome": frozenset({"statement", "copies"}),
    "resolution": frozenset({"statement"}),
    "erasure": frozenset({"statement"}),
    "delegation": frozenset({"chain"}),
    "revocation": frozenset({"statement"}),
    "freeze": frozenset({"statement"}),
    "logout": frozenset({"token"}),
    "surrender": frozenset({"hop", "proof"}),
    "adoption": frozenset({"statement"}),
    "evaluation": frozenset({"statement"}),
}
_OPTIONAL: Final[Mapping[str, frozenset[str]]] = {
    "call": frozenset({"client", "evaluation", "journal", "replay_of"}),
    "request": frozenset({"traceparent"}),
    "request_end": frozenset({"traceparent"}),
}


class Attachment(NamedTuple):
    """Data that is stored beside an entry; ``commitment`` (hex) is SHA-256 of ``salt || data``.

    The commitment is the one in the signed statement or, for a call with redactions, one of the
    entry's ``copies``.
    """

    role: Role
    commitment: str
    salt: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry in a log's storage, with its summary and attachments, none of them verified."""

    index: int
    body: bytes
    summary: Summary | None = None
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The place of a durable entry: the number of the shard, and the index in it, from 0."""

    shard: int
    index: int


class Entry(NamedTuple):
    """A decoded entry: the kind, the time (RFC 3339), and the members of the kind."""

    kind: str
    at: str
    members: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class CallPlace:
    """A call in the log: the place of its authorization, and the invocation's digest (hex)."""

    shard: int
    index: int
    invocation_id: str
    invocation_sha256: str


def parse_entry(body: bytes) -> Entry:
    """Read an entry; raises ``DecodeError`` (``json.*``, ``entry.malformed``)."""
    members = canonical.loads_canonical(body)
    if not isinstance(members, dict):
        raise DecodeError("an entry is a JSON object", code="entry.malformed")
    kind, at = members.pop("kind", None), members.pop("at", None)
    if not isinstance(kind, str) or not isinstance(at, str) or kind not in _MEMBERS:
        raise DecodeError(f"{kind!r} is no kind of entry known here", code="entry.malformed")
    expected = _MEMBERS[kind]
    names = members.keys()
    if names != expected and names - _OPTIONAL.get(kind, frozenset()) != expected:
        raise DecodeError(f"the {kind} entry has other members", code="entry.malformed")
    return Entry(kind, at, members)


def parse_time(at: str) -> int:
    """Return an entry's time in seconds since the epoch; raises ``DecodeError``.

    A time without an offset is refused: another machine would read another time.
    """
    if _RFC3339.fullmatch(at) is None:  # fromisoformat reads weeks, and any separator
        raise DecodeError("its time is not RFC 3339", code="entry.malformed")
    try:
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is not None:
            return seconds(moment)
    except (ValueError, OverflowError) as error:
        raise DecodeError("its time is not RFC 3339", code="entry.malformed") from error
    raise DecodeError("its time has no offset", code="entry.malformed")
