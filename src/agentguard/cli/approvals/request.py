"""How a request for an approval looks: whole, as it is signed, and as a row of a list.

What came from a model or a tool can't steer the screen, nor look like a line of agentguard's: each
value stands behind its name, on lines that begin with a bar.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.text import Text

from agentguard.approvals.answer import Verdict
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Answer
from agentguard.audit import summary
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import screen
from agentguard.identity.trust import seconds
from agentguard.visible import visible_text

_SHORT = 8

_LEGEND = (
    "Behind | stands what the call says. A character that does not "
    r"show as itself, or passes for another one, is written out, as in \u202e or \n; \\ is one "
    "backslash, \u2423 a space beside another one. A row that ends with one backslash goes on "
    "within a word."
)


def row(
    asked: ApprovalRequest, missing: str | None, answers: Sequence[Answer], now: datetime
) -> screen.Row:
    """Return the row of a list, with what is still missing as its note, or what was answered."""
    cells = (
        asked.request_id[:_SHORT],
        _time(asked.requested_at)[:19],
        _left(asked.expires_at - seconds(now)),
        asked.agent_name,
        asked.principal,
        asked.tool,
    )
    return cells, missing or f"{_answered(answers)}: it waits for its agent to go on"


def rejected_by(answers: Sequence[Answer]) -> str:
    """Return who has rejected a request, which no approval changes; empty where nobody has."""
    return _who(answers, "reject")


def _answered(answers: Sequence[Answer]) -> str:
    if no := rejected_by(answers):
        return f"answered, rejected by {no}"
    return f"answered, approved by {_who(answers, 'approve')}"


def _who(answers: Sequence[Answer], verdict: Verdict) -> str:
    approvals = [answer.approval for answer in answers]
    return ", ".join(sorted({one.approver for one in approvals if one.verdict == verdict}))


def draw(asked: ApprovalRequest, answers: Sequence[Answer], *, whole: str | None = None) -> None:
    """Print a request, and the answers that it has by now.

    ``whole`` is the command that shows it whole; without one it is shown whole here, and else the
    middle of very long arguments is left out, which is said.
    """
    screen.own(screen.styled("approval", "Somebody is asked to approve exactly this call:"))
    # never cut: what is signed is what is seen
    screen.sheet((name, Text(visible_text(value))) for name, value in _said(asked))
    arguments = json.loads(asked.arguments)
    screen.own(
        Text("arguments", style="bold").append(f", {screen.size(arguments)}", style="not bold")
    )
    if not screen.document(arguments, whole=whole is None) and whole is not None:
        screen.own(
            screen.styled("warn", "NOT ALL OF THE ARGUMENTS ARE SHOWN. This shows them all:")
        )
        screen.own(screen.command(whole))
    screen.line(Text("what is signed", style="bold"))
    screen.sheet(
        (
            ("request", asked.request_id),
            ("call digest", asked.call_digest),
            ("requirement", asked.requirement_sha256),
            ("as shown", asked.displayed_sha256),
        )
    )
    if answers:
        screen.line(Text("answers so far", style="bold"))
        # never cut either
        screen.sheet((done, Text(visible_text(who))) for done, who in phrases.answers(answers))
    screen.own(Text(_LEGEND))


def _said(asked: ApprovalRequest) -> Iterator[tuple[str, str]]:
    yield "tool", asked.tool
    yield "description", asked.description or "none"
    yield "agent", f"{asked.agent_name} ({asked.agent})"
    yield "domain", asked.trust_domain
    yield "for", asked.principal
    if asked.actors:
        yield "through", ", ".join(asked.actors)
    trace = summary.trace_id(asked.traceparent)
    for name, value in (("resource", asked.resource), ("task", asked.task_id), ("trace", trace)):
        if value is not None:
            yield name, value
    for needed in asked.requirements:
        yield "asks for", phrases.requirement_text(needed)
    if not all(needed.allow_self for needed in asked.requirements):
        yield "not by", ", ".join(asked.requesters)
    yield "asked at", _time(asked.requested_at)
    yield "until", _time(asked.expires_at)
    if asked.unbound:
        yield "not in it", f"injected by the framework: {', '.join(asked.unbound)}"


def _time(at: int) -> str:
    return phrases.moment(at)


def _left(left: int) -> str:
    minutes, rest = divmod(max(left, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
