"""``agentguard policy replay``: decides the calls of the log again by another policy.

Each call's input for the policy is stored beside the entry of the call. The entry holds a salted
SHA-256 digest of the input, and an input with another digest is not replayed. Calls without a
complete input are counted by the reason. A call that ran in the mode observe counts as allowed.
``cli/audit/filters.py`` has the options that select the calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Unpack

import click

from agentguard.audit import statements
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.log import LogReader
from agentguard.call.decision import Decision, Requirement
from agentguard.cli.audit import filters, history, lookup, phrases
from agentguard.cli.audit.filters import FilterOptions
from agentguard.cli.audit.history import History
from agentguard.cli.audit.log_row import Row
from agentguard.cli.policy import source
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.location import Location
from agentguard.cli.terminal.options import AS_JSON, CONFIG, QUERY, STATE, Argument, Option, command
from agentguard.domain.config import Config
from agentguard.errors import AgentguardError, PolicyError
from agentguard.identity.credential import agent_alias
from agentguard.policy.engine import Engine
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import sqlite

_COLUMNS: Final = ("index", "agent", "tool", "recorded", "replayed")

_NOT_REPLAYED: Final = {
    "refused_before": "refused before any policy was asked",
    "not_the_policy": "refused after the policy, so that its answer is not on record",
    "redacted": "of which a redacted copy of the input is kept",
    "handed_out": "that the journal answered with the result of an earlier one, and no policy",
    "gone": "whose input was erased or not kept",
    "missing": "whose input is gone without an erasure on record: see audit verify",
    "changed": "whose input is not what the entry commits to: see audit verify",
    "damaged": "which can't be read: see audit verify",
}
"""Why calls can't be replayed, by reason; the text follows the number of the calls."""

_NOT_ENFORCED: Final = "it ran: the policy was only observed"

_POLICY_CODES: Final = ("policy.", "engine.", "obligation.")


@dataclass(frozen=True, slots=True)
class Answer:
    """A policy's answer to a call: the decision, and the requirements of an approval.

    ``terms`` is None where the log does not hold the requirements.
    """

    decision: str
    code: str
    reasons: tuple[str, ...]
    terms: tuple[Requirement, ...] | None = ()

    @classmethod
    def of(cls, decision: Decision) -> Answer:
        """Return the answer in a decision, with the reasons shortened as a guard logs them."""
        return cls(
            decision.outcome, decision.code, decision.shortened().reasons, decision.requirements
        )

    @classmethod
    def recorded(cls, call: CallEntry) -> Answer | None:
        """Return the policy's answer to a logged call; None where the log does not hold the answer.

        For a call that people have approved, the policy's answer was ``approval``.
        """
        terms = call.required
        if call.decision == "allow" and terms:
            reasons = tuple(requirement.reason for requirement in terms)
            return cls("approval", "approval.required", reasons, terms)
        if call.code == "approval.unavailable":
            return cls("approval", "approval.required", (), None)
        own = call.decision != "deny" or call.code.startswith(_POLICY_CODES)
        return cls(call.decision, call.code, call.reasons, terms) if own else None

    def change(self, now: Answer) -> str | None:
        """Return what differs in ``now``: ``decision`` or ``reasons``; None if nothing does."""
        if self.decision != now.decision:
            return "decision"
        if self.terms is None:
            return None
        if _terms_without_reasons(self.terms) != _terms_without_reasons(now.terms or ()):
            return "decision"
        return None if (self.code, self.reasons) == (now.code, now.reasons) else "reasons"

    def as_json(self) -> dict[str, JSON]:
        """Return the members by name."""
        terms: JSON = None
        if self.terms is not None:
            terms = [requirement.as_json() for requirement in self.terms]
        return {
            "decision": self.decision,
            "code": self.code,
            "reasons": [*self.reasons],
            "requirements": terms,
        }


@dataclass(frozen=True, slots=True)
class ReplayedCall:
    """A replayed call: its row, and the answers of both policies."""

    row: Row
    call: CallEntry
    before: Answer
    now: Answer

    @property
    def change(self) -> str | None:
        """Return what differs: ``decision`` or ``reasons``; None if nothing does.

        A call ran where its decision was not enforced, and counts as allowed. The recorded answer
        had no effect then, and is compared only where both policies allow the call.
        """
        if self.call.enforced or self.before.decision == self.now.decision == "allow":
            return self.before.change(self.now)
        return None if self.now.decision == "allow" else "decision"

    def as_json(self) -> dict[str, JSON]:
        """Return the object that ``--json`` lists for the call."""
        row, call = self.row, self.call
        return {
            "index": row.index,
            "at": row.at,
            "invocation_id": call.invocation_id,
            "agent": call.agent,
            "principal": call.principal,
            "tool": call.tool,
            "enforced": call.enforced,
            "policy_sha256": call.policy_sha256,
            "change": self.change,
            "recorded": self.before.as_json(),
            "replayed": self.now.as_json(),
        }


class _Log(NamedTuple):
    """The log whose calls are replayed: its location, its entries, and its rows."""

    where: Location
    reader: LogReader
    history: History

    @classmethod
    def open(cls, where: Location) -> _Log:
        reader = where.reader()
        return cls(where, reader, History(reader))


@dataclass(slots=True)
class _Result:
    """The calls by what would change, the calls that were not replayed, and the changed calls."""

    changes: Counter[str | None] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    changed: list[ReplayedCall] = field(default_factory=list)

    @property
    def has_bad_input(self) -> bool:
        """Whether the log lacks an input, or holds one with another digest than the entry's."""
        return bool(self.skipped["changed"] or self.skipped["missing"])

    @property
    def is_unchanged(self) -> bool:
        """Whether calls were replayed, and no decision would change."""
        return self.changes.total() > 0 and not self.changes["decision"]


@command(
    Argument(
        "policy",
        "PATH|URL",
        "A file or folder in Rego or Cedar, or the URL of an OPA; by default the configuration's "
        "policy, as it is by now.",
        required=False,
    ),
    QUERY,
    *filters.OPTIONS,
    Option("-n, --last N", "The newest N; by default all.", type=click.IntRange(min=0), default=0),
    Option(
        "--fail-on-change", "Exit code 1 if a decision would change, or no call can be replayed."
    ),
    CONFIG,
    STATE,
    AS_JSON,
)
def replay(
    *,
    policy: str | None,
    query: str | None,
    last: int,
    fail_on_change: bool,
    config: Path | None,
    state: Path | None,
    json: bool,
    **options: Unpack[FilterOptions],
) -> None:
    """Shows the calls whose decision would change. The log is not verified, except that each policy
    input must have the digest in its entry: exit code 1 if one does not. Calls without a complete
    input in the log are counted. Filters are combined.
    """
    log = _Log.open(location.locate(config, state))
    selection = lookup.with_whole_trace(log.reader, filters.chosen(**options))
    engine = source.load(_settings(policy, query, config))
    try:
        source.require_policy(engine)  # a server that is down would change every call
    except PolicyError as error:
        if _is_url(policy):
            raise _for_command_line(error) from error
        raise
    rows = log.history.rows(filters.calls(selection), newest_first=bool(last), outcomes=False)
    selected = iter(history.newest(rows, last)) if last else rows
    result = _replay_calls(log, engine, selected, quiet=json)
    if json:
        _print_json(engine, result)
    else:
        _draw(result)
    if result.has_bad_input or (fail_on_change and not result.is_unchanged):
        raise SystemExit(1)


def _settings(policy: str | None, query: str | None, config: Path | None) -> Config:
    if policy is not None and _is_url(policy):
        return source.at_server(policy, query)
    return source.chosen(Path(policy) if policy is not None else None, query, config)


def _is_url(policy: str | None) -> bool:
    return policy is not None and policy.startswith(("http://", "https://"))


def _for_command_line(error: PolicyError) -> PolicyError:
    """Return the error with the remedy for a server that the command line names."""
    message = str(error).replace("correct [policy] url", "name the URL of another")
    message = message.replace("correct [policy] query", "name another package with --query")
    return PolicyError(message, code=error.code)


def _replay_calls(log: _Log, engine: Engine, rows: Iterator[Row], *, quiet: bool) -> _Result:
    """Replay calls, with a progress counter unless ``quiet``."""
    result = _Result()
    with screen.counter("replaying call", quiet=quiet) as count:
        calls = _replayable(log, engine, rows, result.skipped)
        for number, replayed in enumerate(calls, start=1):
            count(number)
            result.changes[replayed.change] += 1
            if replayed.change is not None:
                result.changed.append(replayed)
    return result


def _replayable(
    log: _Log, engine: Engine, rows: Iterator[Row], skipped: Counter[str]
) -> Iterator[ReplayedCall]:
    """Yield the calls that can be replayed, and count the others in ``skipped`` by the reason."""
    for row in rows:
        call = row.entry
        if not isinstance(call, CallEntry):
            skipped["damaged"] += 1
            continue
        before = Answer.recorded(call)
        document = _input(log, row, call)
        if isinstance(document, str):
            skipped[document] += 1
        elif before is None:
            skipped["not_the_policy"] += 1
        elif call.allowed and log.history.handed_out(call):
            skipped["handed_out"] += 1
        else:
            yield ReplayedCall(row, call, before, Answer.of(_decide(engine, document)))


def _input(log: _Log, row: Row, call: CallEntry) -> bytes | str:
    """Return the input that the policy decided on, or the reason why there is none."""
    if call.engine is None:
        return "refused_before"
    if "input" in call.copies:
        return "redacted"
    stored = log.reader.entry(row.index)
    for attachment in stored.attachments if stored is not None else ():
        if attachment.role == "input":
            try:
                statements.check_attachments([attachment], call.commitments)
            except AgentguardError:
                return "changed"
            return attachment.data
    trust = location.own_trust(log.where).document
    if call.commitments.get("input") is None or log.history.erased(row, call, trust):
        return "gone"
    return "missing"


def _decide(engine: Engine, document: bytes) -> Decision:
    """Ask the policy as a guard does: without approvals first, then with those of the call."""
    members = canonical.loads(document, limit=sqlite.MAX_LENGTH)
    if not isinstance(members, dict) or "approval" not in members:
        return source.surely(engine, document)
    del members["approval"]
    first = source.surely(engine, canonical.dumps(members))
    if first.outcome != "approval":
        return first
    second = source.surely(engine, document)
    return second if second.outcome == "deny" else first


def _terms_without_reasons(terms: tuple[Requirement, ...]) -> list[bytes]:
    """Return the requirements without their reasons, in an order of their own, to compare them."""
    return sorted(canonical.dumps({**requirement.as_json(), "reason": ""}) for requirement in terms)


def _print_json(engine: Engine, result: _Result) -> None:
    screen.json_line(
        {
            "engine": {"name": engine.name, "version": engine.version},
            "policy_sha256": engine.policy_sha256,
            "replayed": result.changes.total(),
            "changed": result.changes["decision"],
            "other_reasons": result.changes["reasons"],
            "not_replayed": {name: result.skipped[name] for name in _NOT_REPLAYED},
            "calls": [call.as_json() for call in result.changed],
        }
    )


def _draw(result: _Result) -> None:
    changes, changed = result.changes, result.changed
    if changed:
        screen.columns(_COLUMNS, map(_cells, changed))
    calls = screen.count(changes.total(), "call", "calls")
    kind = "warn" if changes["decision"] else "ok"
    summary = screen.styled(kind, f"{changes['decision']} would change")
    more = f", {changes['reasons']} have other reasons" if changes["reasons"] else ""
    screen.line(summary, f" of {calls} replayed{more}")
    for name, why in _NOT_REPLAYED.items():
        if result.skipped[name]:
            number = screen.count(result.skipped[name], "call", "calls")
            screen.line(screen.styled("warn", "not replayed"), f": {number} {why}")


def _cells(replayed: ReplayedCall) -> screen.Row:
    row, before, now, enforced = replayed.row, replayed.before, replayed.now, replayed.call.enforced
    cells = (
        str(row.index),
        agent_alias(row.agent).removeprefix("agent:"),
        row.tool or "",
        phrases.decision(before.decision, enforced=enforced),
        screen.styled(now.decision, now.decision),
    )
    if not enforced:
        return cells, f"{_NOT_ENFORCED} -> {_answer_text(now)}"
    texts = [_answer_text(before), _answer_text(now)]
    if replayed.change == "decision" and before.decision == now.decision:  # the requirements differ
        texts = [
            "; ".join(map(phrases.requirement_text, answer.terms or ())) for answer in (before, now)
        ]
    return cells, " -> ".join(texts)


def _answer_text(answer: Answer) -> str:
    code = f"[{answer.code}] " if answer.code else ""
    return f"{code}{'; '.join(answer.reasons)}".strip() or answer.decision
