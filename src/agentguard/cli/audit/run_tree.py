"""One run read from the log, unverified: its calls, each inside the call whose tool made it.

A run is what one trace of OpenTelemetry holds. Where no call names a trace, a run is what was done
under one delegation, or, on an agent's own authority, by one agent instance and inside its calls.
``trace.py`` prints a run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple

from agentguard.approvals.answer import Approval
from agentguard.audit.entry import Entry, present
from agentguard.audit.find import LocatedEntry, find_chain
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.audit.kinds.running import SecretEntry
from agentguard.audit.log import LogReader
from agentguard.audit.summary import Search
from agentguard.cli.audit import lookup, phrases
from agentguard.cli.audit.filters import EVERYTHING, Filter
from agentguard.cli.audit.history import History
from agentguard.cli.audit.log_row import Row
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError, CallError
from agentguard.signing.canonical import JSON

_KINDS: Final = ("call", "request")
_DEEPEST: Final = 64
"""How many calls stand around a call at the most; an edited log could say any number."""

_BEGINNING: Final = re.compile(r"[0-9a-f]{7,32}")
"""A trace id or its beginning: a page of traces shows seven digits."""


@dataclass(slots=True, eq=False)
class Node:
    """A call of a run with the calls inside it, or a request for an approval.

    ``call`` is None for a request. ``hops`` is the delegation of the call or the request, the first
    hop first, and empty on the agent's own authority. ``secrets`` are the names of the secrets that
    the tool got.
    """

    row: Row
    call: CallEntry | None = None
    outcome: OutcomeEntry | None = None
    hops: tuple[Grant, ...] = ()
    approvals: tuple[Approval, ...] = ()
    secrets: tuple[str, ...] = ()
    inside: list[Node] = field(default_factory=list)

    @property
    def request_id(self) -> str | None:
        """The id of the request itself; None for a call."""
        return self.row.entry.request_id if isinstance(self.row.entry, RequestEntry) else None

    @property
    def seconds(self) -> float | None:
        """How long the tool ran, by the agent's word; None if it did not run, or nobody knows."""
        members = self.outcome.predicate if self.outcome is not None else {}
        began, ended = members.get("started_at"), members.get("ended_at")
        with suppress(ValueError, TypeError):
            if isinstance(began, str) and isinstance(ended, str):
                ran_for = datetime.fromisoformat(ended) - datetime.fromisoformat(began)
                return ran_for.total_seconds()
        return None


class Run(NamedTuple):
    """A run: its outermost calls and requests, and what holds them together.

    ``kind`` says what ``name`` is: the id of a trace, the id (``jti``) of the first hop of a
    delegation, or the URI of an agent instance.
    """

    kind: Literal["trace", "delegation", "instance"]
    name: str
    nodes: Sequence[Node]

    def all_nodes(self) -> Iterator[Node]:
        """Yield every call and request, each before the calls inside it."""
        waiting = [*reversed(self.nodes)]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.inside)


def read(reader: LogReader, name: str | None) -> Run:
    """Read the run that a trace id or a call names; the newest run without a name.

    Raises ``CallError`` for a name that the log does not know, ``DecodeError`` for an entry that
    can't be read, and ``StorageError``.
    """
    return _RunReader(reader).run(name)


class _RunReader:
    """Reads the entries of one run, and puts each inside the call whose tool made it."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._history = History(reader)
        self._chains: dict[str, tuple[Grant, ...]] = {}

    def run(self, name: str | None) -> Run:
        start = self._newest() if name is None else self._call_named(name)
        if start is None:
            return self._trace_named(str(name))
        if start.about is not None and start.about.trace_id is not None:
            return self._of_trace(start.about.trace_id)
        call = self._node(start)
        if call.hops:
            return Run("delegation", call.hops[0].jti, _nested(self._under(call)))
        return Run("instance", str(call.row.agent), _nested(self._of_instance(call)))

    # --- where it begins ------------------------------------------------------------------------

    def _newest(self) -> Row:
        for row in self._history.rows(EVERYTHING, newest_first=True, outcomes=False):
            if row.kind in _KINDS:
                return row
        raise CallError("the log has no call yet", code="call.unknown")

    def _call_named(self, name: str) -> Row | None:
        """Return the call or the request that a name means, None where the log has none."""
        try:
            located = lookup.find(self._reader, name)
        except CallError as error:
            if error.code != "call.unknown":
                raise
            return None
        return self._row(located)

    def _trace_named(self, name: str) -> Run:
        """Return the run of the trace whose id begins so."""
        beginning = name.lower()
        if _BEGINNING.fullmatch(beginning):
            try:
                run = self._of_trace(lookup.whole_trace(self._reader, beginning))
            except CallError as error:
                if error.code != "call.unknown":
                    raise
            else:
                if run.nodes:
                    return run
        message = (
            f"the log has no call and no trace {name}: agentguard audit list shows the calls, and "
            "audit show names the trace of a call (traceparent)"
        )
        raise CallError(message, code="call.unknown")

    def _row(self, located: LocatedEntry[Entry]) -> Row:
        row = next(self._history.rows(after=located.index - 1, outcomes=False))
        if row.kind in _KINDS:
            return row
        message = f"the entry {located.index} is no call and no request"
        raise CallError(message, code="call.unknown")

    # --- what belongs to it ---------------------------------------------------------------------

    def _of_trace(self, trace_id: str) -> Run:
        return Run("trace", trace_id, _nested(self._nodes(Filter(Search(trace_id=trace_id)))))

    def _under(self, call: Node) -> Iterator[Node]:
        """Yield the calls and the requests under the same first hop."""
        root = call.hops[0].jti
        for kind in _KINDS:
            for node in self._nodes(Filter(Search(kind, principal=call.row.principal))):
                if node.hops and node.hops[0].jti == root:
                    yield node

    def _of_instance(self, call: Node) -> Iterator[Node]:
        """Yield the calls of one instance on its own authority, and the calls inside them."""
        ids, agent = set[str | None](), call.row.agent
        for node in self._nodes(Filter(Search("call"))):
            about = node.row.about
            is_own = node.row.agent == agent and not node.hops
            if node.call is None or (about is not None and about.trace_id is not None):
                continue
            if is_own or node.call.inside in ids - {None}:
                ids.add(node.call.invocation_id)
                yield node
        requests = self._nodes(Filter(Search("request", agent=agent)))
        yield from (node for node in requests if not node.hops)

    def _nodes(self, selection: Filter) -> Iterator[Node]:
        for row in self._history.rows(selection):
            if row.entry is not None and row.kind in _KINDS:
                yield self._node(row)

    def _node(self, row: Row) -> Node:
        match row.entry:
            case CallEntry() as call:
                outcomes = self._history.about_call(OutcomeEntry, call)
                hops, secrets = self._hops(row, call.chain_sha256), self._secrets(call)
                return Node(row, call, next(outcomes, None), hops, call.answers, secrets)
            case RequestEntry() as request:
                return Node(row, hops=self._hops(row, request.chain_sha256))
        return Node(row)

    def _secrets(self, call: CallEntry) -> tuple[str, ...]:
        if not call.allowed:
            return ()
        releases = self._history.about_call(SecretEntry, call)
        return tuple(dict.fromkeys(release.name for release in releases))

    def _hops(self, row: Row, digest: str | None) -> tuple[Grant, ...]:
        """Return the delegation of a call or a request; none where it can't be read."""
        if digest is None:
            return ()
        if digest not in self._chains:
            self._chains[digest] = ()
            with suppress(AgentguardError):
                entry = find_chain(self._reader, digest, str(row.agent))
                if entry is not None:
                    self._chains[digest] = entry.hops
        return self._chains[digest]


def _nested(nodes: Iterator[Node]) -> list[Node]:
    """Put each call inside the one whose tool made it, and each request before its call."""
    listed = sorted(nodes, key=lambda node: node.row.index)
    by_id = {n.call.invocation_id: n for n in listed if n.call is not None and n.call.invocation_id}
    around = {id(n): by_id.get(n.call.inside or "") for n in listed if n.call is not None}
    answered = {a.request_id: around[id(n)] for n in listed for a in n.approvals}
    depths: dict[int, int] = {}
    outermost: list[Node] = []
    for node in listed:
        outer = around.get(id(node)) or answered.get(node.request_id or "")
        depth = depths.get(id(outer), _DEEPEST)  # what stands behind a call can't be around it
        depths[id(node)] = depth + 1 if depth < _DEEPEST else 0
        (outer.inside if outer is not None and depth < _DEEPEST else outermost).append(node)
    return outermost


def as_json(node: Node) -> dict[str, JSON]:
    """Return what ``agentguard trace --json`` prints of a call or a request."""
    row, call = node.row, node.call
    members = node.outcome.predicate if node.outcome is not None else {}
    return {
        "kind": "request" if call is None else "call",
        "index": row.index,
        "at": row.at,
        "invocation_id": row.invocation_id,
        "request_id": node.request_id,
        "span_id": _span_id(node),
        "agent": row.agent,
        "principal": row.principal,
        "delegation": [phrases.delegatee(hop) for hop in node.hops],
        "tool": row.tool,
        "resource": row.resource,
        "decision": row.decision,
        "enforced": row.enforced,
        "code": call.code if call is not None else None,
        "reasons": [*call.reasons] if call is not None else [],
        "approvals": [
            {"request_id": a.request_id, "verdict": a.verdict, "approver": a.approver}
            for a in node.approvals
        ],
        "secrets": [*node.secrets],
        "outcome": row.outcome,
        "error_type": members.get("error_type"),
        "started_at": members.get("started_at"),
        "ended_at": members.get("ended_at"),
        "seconds": node.seconds,
        "inside": [as_json(inner) for inner in node.inside],
    }


def _span_id(node: Node) -> str | None:
    """Return the id of the span of a call or a request, None where no tracer was set up."""
    match node.row.entry:
        case CallEntry() as call:
            traceparent = call.called.traceparent
        case RequestEntry() as request:
            traceparent = present(request.traceparent)
        case _:
            return None
    parts = traceparent.split("-") if traceparent is not None else []
    return parts[2] if len(parts) > 2 else None  # noqa: PLR2004  version, trace, span, flags
