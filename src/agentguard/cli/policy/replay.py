"""``agentguard policy replay``: recorded calls, put to another policy: what would change.

The policy's input lies beside each call's entry, which commits to it by a salted SHA-256; only what
has that digest is replayed. A call whose input is not there any more, or only a redacted copy of
it, is counted and named as such. A call that ran while the policy was only observed is held against
that: it ran. Which calls are meant stands in ``cli/audit/filters.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from agentguard.audit import approvals, statements
from agentguard.audit.calls import Authorization, read_authorization
from agentguard.audit.entry import Entry
from agentguard.audit.log import LogReader
from agentguard.call.decision import Decision, Requirement
from agentguard.cli.audit import filters, history, phrases
from agentguard.cli.audit.filters import Filter
from agentguard.cli.audit.history import History
from agentguard.cli.audit.row import Row
from agentguard.cli.policy import source
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.location import Location
from agentguard.cli.terminal.options import ConfigOption, JsonOption, QueryOption, StateOption
from agentguard.domain.config import Config
from agentguard.errors import AgentguardError, PolicyError
from agentguard.identity.credential import agent_alias
from agentguard.policy.engine import Engine
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import sqlite

_COLUMNS: Final = ("index", "agent", "tool", "recorded", "replayed")

_LEFT: Final = {
    "refused_before": "refused before any policy was asked",
    "not_the_policy": "refused after the policy, so that its answer is not on record",
    "redacted": "of which a redacted copy of the input is kept",
    "handed_out": "that the journal answered with the result of an earlier one, and no policy",
    "gone": "whose input was erased or not kept",
    "missing": "whose input is gone without an erasure on record: see audit verify",
    "changed": "whose input is not what the entry commits to: see audit verify",
    "damaged": "which can't be read: see audit verify",
}
"""Why a call can't be replayed, in the words that follow its number."""

_RAN: Final = "it ran: the policy was only observed"

_OF_POLICIES: Final = ("policy.", "engine.", "obligation.")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy said of a call, or says: an approval stands with what has to be met.

    ``terms`` is None where it is not on record what would have had to be met.
    """

    decision: str
    code: str
    reasons: tuple[str, ...]
    terms: tuple[Requirement, ...] | None = ()

    @classmethod
    def of(cls, decision: Decision) -> Answer:
        """Make it of a decision, its reasons cut as a guard writes them."""
        return cls(
            decision.outcome, decision.code, decision.shortened().reasons, decision.requirements
        )

    @classmethod
    def recorded(cls, call: Authorization, parsed: Entry) -> Answer | None:
        """Read the policy's answer from a call's entry; None where that holds another's.

        One that people have approved was an approval.
        """
        terms = approvals.read_requirements(parsed)
        if call.decision == "allow" and terms:
            reasons = tuple(needed.reason for needed in terms)
            return cls("approval", "approval.required", reasons, terms)
        if call.code == "approval.unavailable":
            return cls("approval", "approval.required", (), None)
        own = call.decision != "deny" or call.code.startswith(_OF_POLICIES)
        return cls(call.decision, call.code, call.reasons, terms) if own else None

    def change(self, now: Answer) -> str | None:
        """Say what differs in another answer: the ``decision``, or the ``reasons`` alone."""
        if self.decision != now.decision:
            return "decision"
        if self.terms is None:
            return None
        if _unworded(self.terms) != _unworded(now.terms or ()):
            return "decision"
        return None if (self.code, self.reasons) == (now.code, now.reasons) else "reasons"

    def as_json(self) -> dict[str, JSON]:
        """Return the members by name."""
        terms: JSON = None
        if self.terms is not None:
            terms = [needed.as_json() for needed in self.terms]
        return {
            "decision": self.decision,
            "code": self.code,
            "reasons": [*self.reasons],
            "requirements": terms,
        }


@dataclass(frozen=True, slots=True)
class Replayed:
    """A call that was replayed: its row, and both answers."""

    row: Row
    call: Authorization
    before: Answer
    now: Answer

    @property
    def change(self) -> str | None:
        """What differs, None if nothing does.

        A call whose answer was not enforced has run, as one that was allowed; what the policy would
        have said of it then did nothing, and is compared with nothing.
        """
        if self.call.enforced or self.before.decision == self.now.decision == "allow":
            return self.before.change(self.now)
        return None if self.now.decision == "allow" else "decision"

    def as_json(self) -> dict[str, JSON]:
        """Return what ``--json`` lists of it."""
        row, call = self.row, self.call
        return {
            "shard": row.shard,
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
    """The log whose calls are replayed, and how its entries belong together."""

    where: Location
    reader: LogReader
    history: History


@filters.with_options
def replay(
    policy: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH|URL",
            help="A file or folder in Rego or Cedar, or the URL of an OPA; by default the "
            "configuration's policy, as it is by now.",
        ),
    ] = None,
    *,
    query: QueryOption = None,
    wanted: Filter,
    last: Annotated[
        int, typer.Option("-n", "--last", min=0, metavar="N", help="The newest N; by default all.")
    ] = 0,
    fail_on_change: Annotated[
        bool,
        typer.Option(
            "--fail-on-change",
            help="Exit code 1 if a decision would change, or no call can be replayed.",
        ),
    ] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Decide the calls of the log again by another policy.

    Shows the calls whose decision would change. The log is not verified, except that each policy
    input must have the digest in its entry: exit code 1 if one does not. Calls without a complete
    input in the log are counted. Filters are combined.
    """
    where = location.locate(config, state)
    reader = where.reader()
    log = _Log(where, reader, History(reader))
    engine = source.load(_chosen(policy, query, config))
    try:
        source.require_policy(engine)  # a server that is down would change every call
    except PolicyError as error:
        if _is_url(policy):
            raise _of_command_line(error) from error
        raise
    rows = log.history.rows(filters.calls(wanted), newest_first=bool(last), outcomes=False)
    coming = iter(history.newest(rows, last)) if last else rows
    left: Counter[str] = Counter()
    counted: Counter[str | None] = Counter()
    changed: list[Replayed] = []
    with screen.counter("replaying call", quiet=json) as count:
        for number, one in enumerate(_replayed(log, engine, coming, left), start=1):
            count(number)
            counted[one.change] += 1
            if one.change is not None:
                changed.append(one)
    if json:
        _print_json(engine, counted, left, changed)
    else:
        _draw(reader, counted, left, changed)
    nothing = counted.total() == 0
    if left["changed"] or left["missing"] or (fail_on_change and (nothing or counted["decision"])):
        raise typer.Exit(1)


def _chosen(policy: str | None, query: str | None, config: Path | None) -> Config:
    if policy is not None and _is_url(policy):
        return source.at_server(policy, query)
    return source.chosen(Path(policy) if policy is not None else None, query, config)


def _is_url(policy: str | None) -> bool:
    return policy is not None and policy.startswith(("http://", "https://"))


def _of_command_line(error: PolicyError) -> PolicyError:
    """Return the error of a server that no configuration names."""
    message = str(error).replace("correct [policy] url", "name the URL of another")
    message = message.replace("correct [policy] query", "name another package with --query")
    return PolicyError(message, code=error.code)


def _replayed(
    log: _Log, engine: Engine, rows: Iterator[Row], left: Counter[str]
) -> Iterator[Replayed]:
    """Yield the calls that can be replayed, and count the others by why not."""
    for row in rows:
        if row.entry is None:
            left["damaged"] += 1
            continue
        call = read_authorization(row.entry)
        before = Answer.recorded(call, row.entry)
        found = _input(log, row, call)
        if isinstance(found, str):
            left[found] += 1
        elif before is None:
            left["not_the_policy"] += 1
        elif call.allowed and log.history.handed_out(row.shard, call):
            left["handed_out"] += 1
        else:
            yield Replayed(row, call, before, Answer.of(_asked(engine, found)))


def _input(log: _Log, row: Row, call: Authorization) -> bytes | str:
    """Return the input that the policy was asked about, or why it can't be had."""
    if call.engine is None:
        return "refused_before"
    copies = row.entry.members["copies"] if row.entry is not None else None
    if isinstance(copies, dict) and "input" in copies:
        return "redacted"
    stored = log.reader.entry(row.shard, row.index)
    for beside in stored.attachments if stored is not None else ():
        if beside.role == "input":
            try:
                statements.check_attachments([beside], call.commitments)
            except AgentguardError:
                return "changed"
            return beside.data
    trust = location.own_trust(log.where).document
    if call.commitments.get("input") is None or log.history.erased(row, call, trust):
        return "gone"
    return "missing"


def _asked(engine: Engine, document: bytes) -> Decision:
    """Ask as a guard does: before anybody approves, and then with who had approved."""
    members = canonical.loads(document, limit=sqlite.MAX_LENGTH)
    if not isinstance(members, dict) or "approval" not in members:
        return source.surely(engine, document)
    del members["approval"]
    first = source.surely(engine, canonical.dumps(members))
    if first.outcome != "approval":
        return first
    second = source.surely(engine, document)
    return second if second.outcome == "deny" else first


def _unworded(terms: tuple[Requirement, ...]) -> list[bytes]:
    """Return what has to be met, in whatever order and words."""
    return sorted(canonical.dumps({**needed.as_json(), "reason": ""}) for needed in terms)


def _print_json(
    engine: Engine,
    counted: Counter[str | None],
    left: Counter[str],
    changed: list[Replayed],
) -> None:
    screen.json_line(
        {
            "engine": {"name": engine.name, "version": engine.version},
            "policy_sha256": engine.policy_sha256,
            "replayed": counted.total(),
            "changed": counted["decision"],
            "other_reasons": counted["reasons"],
            "not_replayed": {name: left[name] for name in _LEFT},
            "calls": [one.as_json() for one in changed],
        }
    )


def _draw(
    reader: LogReader,
    counted: Counter[str | None],
    left: Counter[str],
    changed: list[Replayed],
) -> None:
    several = len(reader.shards()) > 1
    if changed:
        screen.columns(_COLUMNS, (_cells(one, several=several) for one in changed))
    calls = screen.count(counted.total(), "call", "calls")
    kind = "warn" if counted["decision"] else "ok"
    said = screen.styled(kind, f"{counted['decision']} would change")
    more = f", {counted['reasons']} have other reasons" if counted["reasons"] else ""
    screen.line(said, f" of {calls} replayed{more}")
    for name, why in _LEFT.items():
        if left[name]:
            number = screen.count(left[name], "call", "calls")
            screen.line(screen.styled("warn", "not replayed"), f": {number} {why}")


def _cells(one: Replayed, *, several: bool) -> screen.Row:
    row, before, now, enforced = one.row, one.before, one.now, one.call.enforced
    place = f"{row.shard}/{row.index}" if several or row.shard else str(row.index)
    cells = (
        place,
        agent_alias(row.agent or "").removeprefix("agent:"),
        row.tool or "",
        screen.styled(before.decision, before.decision)
        if enforced
        else screen.styled("warn", f"would {phrases.WOULD[before.decision]}"),
        screen.styled(now.decision, now.decision),
    )
    if not enforced:
        return cells, f"{_RAN} -> {_worded(now)}"
    said = [_worded(before), _worded(now)]
    if one.change == "decision" and before.decision == now.decision:  # then what has to be met is
        said = ["; ".join(map(phrases.asked_for, answer.terms or ())) for answer in (before, now)]
    return cells, " -> ".join(said)


def _worded(answer: Answer) -> str:
    code = f"[{answer.code}] " if answer.code else ""
    return f"{code}{'; '.join(answer.reasons)}".strip() or answer.decision
