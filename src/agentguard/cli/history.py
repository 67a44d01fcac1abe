"""The log as rows: each entry, and for each authorised call what became of it.

Rows say what the log says. Nothing here is verified, and an entry that can't be read becomes a row
of the kind ``damaged``; ``audit verify`` finds out what is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    """One entry, as ``audit list --json`` gives it; None where its kind has no such thing."""

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

    def as_json(self) -> dict[str, JSON]:
        """Return the members, by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def rows(reader: LogReader) -> Iterator[Row]:
    """Yield every entry of every shard, in the order of the log; raises ``StorageError``."""
    for shard in reader.shards():
        sizes, statuses = _outcomes(reader, shard)
        calls: dict[str, Authorization] = {}
        for index, body in reader.entries(shard):
            if index > sizes:
                break  # appended since the outcomes were read: for the next time
            try:
                yield _row(shard, index, entry.parse(body), statuses, calls)
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


def subject_of(token: JSON) -> str | None:
    """Return whom a credential names, without verifying it; raises ``DecodeError``."""
    subject = jws.parse(str(token)).claims().get("sub")
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
    calls: dict[str, Authorization],
) -> Row:
    match parsed.kind:
        case "authorization":
            call = read_authorization(parsed)
            calls[call.invocation_sha256] = call
            status = statuses.get(call.invocation_sha256, "in_doubt")
            return _call_row(Row(index, shard, parsed.kind, parsed.at), call, status)
        case "outcome":
            read = read_outcome(parsed)
            return _outcome_row(
                Row(index, shard, parsed.kind, parsed.at), read, calls.get(read.invocation_sha256)
            )
        case "identity":
            agent = subject_of(parsed.members["credential"])
            return Row(index, shard, parsed.kind, parsed.at, agent)
    return Row(index, shard, parsed.kind, parsed.at)


def _call_row(row: Row, call: Authorization, status: str) -> Row:
    reasons = list(call.reasons)
    outcome: str | None = None
    if call.decision == "allow":
        outcome = status
    if outcome == "not_run":
        outcome = None
        reasons.append(NOT_RUN)
    return Row(
        row.index,
        row.shard,
        row.kind,
        row.at,
        call.agent,
        call.principal,
        call.tool,
        call.decision,
        "; ".join(reasons) or None,
        call.invocation_id,
        outcome,
    )


def _outcome_row(row: Row, read: Outcome, call: Authorization | None) -> Row:
    not_run = read.status == "not_run"
    return Row(
        row.index,
        row.shard,
        row.kind,
        row.at,
        call.agent if call is not None else None,
        call.principal if call is not None else None,
        call.tool if call is not None else None,
        None,
        NOT_RUN if not_run else None,
        call.invocation_id if call is not None else None,
        None if not_run else read.status,
    )
