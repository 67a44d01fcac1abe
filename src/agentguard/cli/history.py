"""The log as rows: each entry, and for each authorised call what became of it.

Rows say what the log says. Nothing here is verified, and an entry that can't be read becomes a row
of the kind ``damaged``; ``audit verify`` finds out what is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agentguard import canonical, envelope, jws
from agentguard.audit import entry
from agentguard.audit.entry import Entry
from agentguard.canonical import JSON
from agentguard.envelope import Envelope
from agentguard.errors import AgentguardError, DecodeError
from agentguard.ports import LogReader

NOT_RUN: Final = "interrupted before it ran"
_STATUSES: Final = frozenset({"ok", "error", "unknown", "not_run"})
_DECISIONS: Final = frozenset({"allow", "deny", "approval"})


@dataclass(frozen=True, slots=True)
class Authorization:
    """An authorization entry that was read: who called what, and the answer."""

    sealed: Envelope
    invocation_sha256: str
    predicate: Mapping[str, JSON]
    invocation_id: str | None
    agent: str
    principal: str
    tool: str
    decision: str
    code: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An outcome entry that was read: of which invocation, and the agent's statement."""

    sealed: Envelope
    invocation_sha256: str
    predicate: Mapping[str, JSON]
    status: str


@dataclass(frozen=True, slots=True)
class Row:
    """One entry, as ``audit list --json`` gives it; None where its kind has no such thing.

    ``credential`` is the compact JWS of an identity entry, which the list leaves out.
    """

    index: int
    shard: int
    kind: str
    at: str | None = None
    agent: str | None = None
    principal: str | None = None
    tool: str | None = None
    decision: str | None = None
    reason: str | None = None
    invocation_id: str | None = None
    outcome: str | None = None
    credential: str | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members by name, but for the credential."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "credential"}


def rows(reader: LogReader) -> Iterator[Row]:
    """Yield every entry of every shard, in the order of the log; raises ``StorageError``."""
    for shard in reader.shards():
        last, statuses = _outcomes(reader, shard)
        running: dict[str, Authorization] = {}
        for index, body in reader.entries(shard):
            if index > last:
                break  # appended since the outcomes were read: for the next time
            try:
                yield _row(shard, index, entry.parse(body), statuses, running)
            except AgentguardError as error:
                reason = f"it can't be read: {error}"
                yield Row(index, shard, "damaged", reason=reason)


def read_authorization(parsed: Entry) -> Authorization:
    """Read an authorization entry; raises ``DecodeError``."""
    members = parsed.members
    sealed = Envelope.parse(members["invocation"])
    predicate = envelope.parse_statement(sealed.payload, "invocation").predicate
    reasons = members["reasons"]
    match (predicate, members):
        case (
            {
                "invocation_id": str() | None as invocation_id,
                "agent": str(agent),
                "principal": str(principal),
                "tool": {"name": str(tool)},
            },
            {"decision": str(decision), "code": str(code)},
        ) if decision in _DECISIONS and isinstance(reasons, list):
            return Authorization(
                sealed,
                canonical.sha256_hex(sealed.payload),
                predicate,
                invocation_id,
                agent,
                principal,
                tool,
                decision,
                code,
                tuple(str(reason) for reason in reasons),
            )
    raise DecodeError("the authorization entry lacks what it is made of", code="entry.malformed")


def read_outcome(parsed: Entry) -> Outcome:
    """Read an outcome entry; raises ``DecodeError``."""
    sealed = Envelope.parse(parsed.members["statement"])
    statement = envelope.parse_statement(sealed.payload, "outcome")
    status = statement.predicate.get("status")
    if not isinstance(status, str) or status not in _STATUSES:
        raise DecodeError(f"{status!r} is no status of an outcome", code="entry.malformed")
    return Outcome(sealed, statement.subject_sha256, statement.predicate, status)


def subject_of(token: str) -> str | None:
    """Return whom a credential names, without verifying it; raises ``DecodeError``."""
    subject = jws.parse(token).claims().get("sub")
    return subject if isinstance(subject, str) else None


def _outcomes(reader: LogReader, shard: int) -> tuple[int, dict[str, str]]:
    """Return the last index of a shard, and each call's status by its invocation's digest."""
    last = -1
    statuses: dict[str, str] = {}
    for index, body in reader.entries(shard):
        last = index
        try:
            parsed = entry.parse(body)
            if parsed.kind == "outcome":
                read = read_outcome(parsed)
                statuses[read.invocation_sha256] = read.status
        except AgentguardError:
            continue  # it becomes a row of the kind damaged
    return last, statuses


def _row(
    shard: int,
    index: int,
    parsed: Entry,
    statuses: Mapping[str, str],
    running: dict[str, Authorization],
) -> Row:
    """Make the row of one entry; ``running`` holds the authorised calls without an outcome yet."""
    row = Row(index, shard, parsed.kind, parsed.at)
    match parsed.kind:
        case "authorization":
            call = read_authorization(parsed)
            if call.decision != "allow":
                return _of_call(row, call, call.reasons, None)
            running[call.invocation_sha256] = call
            return _of_call(
                row, call, call.reasons, statuses.get(call.invocation_sha256, "in_doubt")
            )
        case "outcome":
            read = read_outcome(parsed)
            began = running.pop(read.invocation_sha256, None)
            if began is None:
                return replace(row, outcome=None if read.status == "not_run" else read.status)
            return replace(_of_call(row, began, (), read.status), decision=None)
        case "identity":
            token = str(parsed.members["credential"])
            return replace(row, agent=subject_of(token), credential=token)
    return row


def _of_call(row: Row, call: Authorization, reasons: tuple[str, ...], status: str | None) -> Row:
    if status == "not_run":
        status, reasons = None, (*reasons, NOT_RUN)
    return replace(
        row,
        agent=call.agent,
        principal=call.principal,
        tool=call.tool,
        decision=call.decision,
        reason="; ".join(reasons) or None,
        invocation_id=call.invocation_id,
        outcome=status,
    )
