"""A row of the list: the content of one log entry, and the outcome of its call.

This file turns a parsed entry into a row, unverified. ``history.py`` finds the entries, and
``list_table.py`` prints the rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from agentguard.audit.entry import Entry, present
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.evaluation import EvaluationEntry
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.audit.summary import Summary
from agentguard.cli.audit import phrases
from agentguard.delegation.access_token import SAME_PROCESS
from agentguard.signing.canonical import JSON

DAMAGED: Final = "damaged"
"""The kind of a row for an entry that can't be read."""

_ID: Final = re.compile(r"[0-9a-f]{32}")

_MEMBERS: Final = (
    "index",
    "kind",
    "at",
    "agent",
    "principal",
    "proved",
    "tool",
    "resource",
    "decision",
    "enforced",
    "reason",
    "invocation_id",
    "outcome",
    "client",
    "isolation",
    "shown",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One entry, as ``audit list --json`` gives it; None where its kind has no such thing.

    Of a call that ran while the policy was only observed, ``decision`` is what it would have been,
    and was not ``enforced``. ``proved`` is false where the principal of a refused call is only
    claimed: no signature says that the principal delegated. ``client`` and ``isolation`` say who
    made the call, and how well its process was kept apart from the guard's. ``shown`` are the
    arguments that ``[tools.NAME] show`` names (``cli/terminal/shown.py``).

    The list leaves out the members from ``entry`` on: the entry, and what it is about by its own
    word, None for a damaged one; whether a call in doubt ran, as a person has stated; and, of an
    outcome, the index of its call.
    """

    index: int
    kind: str
    at: str | None = None
    agent: str | None = None
    principal: str | None = None
    proved: bool | None = None
    tool: str | None = None
    resource: str | None = None
    decision: str | None = None
    enforced: bool | None = None
    reason: str | None = None
    invocation_id: str | None = None
    outcome: str | None = None
    client: str | None = None
    isolation: str | None = None
    shown: dict[str, JSON] | None = None
    entry: Entry | None = None
    about: Summary | None = None
    resolved: bool | None = None
    call: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the members that the list gives, by name."""
        return {name: getattr(self, name) for name in _MEMBERS}


def remedy(invocation_id: str | None) -> str:
    """Name the command with which a person settles a call in doubt."""
    # a person will paste the command, and in a log that was tampered with an id may be any text
    name = invocation_id if is_id(invocation_id) else "INDEX"
    return f"agentguard resolve {name} --ran|--not-ran --note TEXT"


def is_id(text: str | None) -> bool:
    """Whether a text is the id of a call, and nothing else."""
    return text is not None and _ID.fullmatch(text) is not None


def damaged(index: int, problem: str) -> Row:
    """Make the row of an entry that can't be read."""
    return Row(index, DAMAGED, reason=f"it can't be read: {problem}")


def of_entry(index: int, entry: Entry) -> Row:
    """Make the row of an entry from what the entry alone says; raises ``DecodeError``."""
    about = entry.summary
    row = Row(
        index,
        entry.kind,
        entry.at,
        agent=about.agent,
        principal=about.principal,
        tool=about.tool,
        decision=about.decision,
        reason=entry.words,
        invocation_id=about.invocation_id,
        entry=entry,
        about=about,
    )
    match entry:
        case CallEntry():
            return replace(_named(row, entry), decision=entry.decision, enforced=entry.enforced)
        case RequestEntry():
            return replace(row, resource=entry.resource)
        case EvaluationEntry():
            return replace(row, proved=entry.is_proved, resource=entry.evaluated.resource)
        case AdministeredEntry():
            return replace(row, resolved=entry.ran)
    return row


def of_outcome(row: Row, outcome: OutcomeEntry, call: CallEntry, index: int) -> Row:
    """Add to the row of an outcome what its call says, which stands at ``index``."""
    about = outcome.summary_of(call.invocation_id, call.agent)
    return ended(replace(_named(row, call), about=about, call=index), outcome)


def of_administered(row: Row, call: CallEntry) -> Row:
    """Add to the row of a resolution or an erasure what its call says."""
    return replace(_named(row, call), invocation_id=row.invocation_id)


def ended(row: Row, outcome: OutcomeEntry) -> Row:
    """Add what became of a call, by its agent's word."""
    if outcome.status == "not_run":
        why = phrases.not_run(outcome.ended.replay_of)
        return replace(row, reason="; ".join(filter(None, (row.reason, why))))
    return replace(row, outcome=outcome.status)


def settled(row: Row, resolution: AdministeredEntry) -> Row:
    """Add what became of a call by a person's word: that it ran, but not with which result."""
    end = "ran" if resolution.ran else "did not run"
    how = f"a person has settled that it {end}: {resolution.note}"
    outcome = "unknown" if resolution.ran else None
    reason = "; ".join(filter(None, (row.reason, how)))
    return replace(row, outcome=outcome, reason=reason, resolved=resolution.ran)


def _named(row: Row, call: CallEntry) -> Row:
    client = present(call.client)
    return replace(
        row,
        agent=call.agent,
        principal=call.principal,
        proved=call.is_proved,
        tool=call.tool,
        resource=call.resource,
        invocation_id=call.invocation_id,
        client=None if client is None else client.name,
        isolation=SAME_PROCESS if client is None else client.isolation,
    )
