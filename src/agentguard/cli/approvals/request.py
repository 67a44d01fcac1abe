"""Prints an approval request: in full, as it is signed, or as a row of a list.

Text from a model or a tool can neither control the terminal nor pass for a line of agentguard: each
value stands after its name, on lines that begin with a bar.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from rich.text import Text

from agentguard.approvals.answer import Approval, Verdict
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Answer
from agentguard.approvals.status import PastRequest, RequestStatus
from agentguard.audit import summary
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import screen
from agentguard.cli.terminal.shown import note
from agentguard.identity.credential import agent_name
from agentguard.identity.trust import seconds
from agentguard.signing.canonical import JSON
from agentguard.visible import visible_text

_SHORT = 8

_LEGEND = (
    "Behind | stands what the call says. A character that does not "
    r"show as itself, or passes for another one, is written out, as in \u202e or \n; \\ is one "
    "backslash, \u2423 a space beside another one. A row that ends with one backslash goes on "
    "within a word."
)


def row(
    request: ApprovalRequest,
    missing: str | None,
    answers: Sequence[Answer],
    now: datetime,
    shown: Mapping[str, JSON] | None,
) -> screen.Row:
    """Return the row of a list; its note has the arguments ``shown``, and what is missing."""
    cells = (
        request.request_id[:_SHORT],
        _time(request.requested_at)[:19],
        _remaining(request.expires_at - seconds(now)),
        request.agent_name,
        request.principal,
        request.tool,
    )
    state = missing or f"{_answer_summary(answers)}: it waits for its agent to go on"
    return cells, note(shown, state)


_ENDS: Final[Mapping[str, str]] = {
    "approved": "used",
    "given_up": "given up",
}


def _end(status: RequestStatus) -> str:
    """Return in a word how a request ended; an approved one whose call was refused says so."""
    if status.state == "approved" and status.call == "refused":
        return "refused"
    return _ENDS.get(status.state, status.state)


def past_row(past: PastRequest) -> screen.Row:
    """Return the row of a request that is over; its note says what ended it, and why."""
    status = past.status
    cells = (
        status.request_id[:_SHORT],
        past.requested_at.replace("T", " ")[:19],
        _end(status),
        agent_name(past.agent) or "",
        past.principal,
        past.tool,
    )
    why = f": {status.reason}" if status.reason else ""
    answers = [_said(one) for one in status.answers if status.state in ("expired", "withdrawn")]
    said = f"; {', '.join(answers)}" if answers else ""
    return cells, f"{status}{why}{said}"


def _said(approval: Approval) -> str:
    verdict = "approved" if approval.verdict == "approve" else "rejected"
    return f"{approval.approver} had {verdict} it"


def past_as_json(past: PastRequest) -> dict[str, JSON]:
    """Return what ``approvals list --ended --json`` prints of a request that is over."""
    status = past.status
    return {
        "request_id": status.request_id,
        "requested_at": past.requested_at,
        "agent": past.agent,
        "principal": past.principal,
        "tool": past.tool,
        "end": _end(status),
        "state": status.state,
        "call": status.call,
        "code": status.code,
        "reason": status.reason,
        "invocation_id": status.invocation_id,
        "decided_at": status.decided_at,
        "ended_at": status.ended_at,
        "answers": [
            {
                "approver": one.approver,
                "verdict": one.verdict,
                "roles": [*one.roles],
                "method": one.method,
                "not_before": one.not_before,
                "note": one.note,
            }
            for one in status.answers
        ],
    }


def rejected_by(answers: Sequence[Answer]) -> str:
    """Return the people who have rejected a request; an empty text where nobody has.

    One rejection is final, whatever others approve.
    """
    return _who(answers, "reject")


def _answer_summary(answers: Sequence[Answer]) -> str:
    if no := rejected_by(answers):
        return f"answered, rejected by {no}"
    return f"answered, approved by {_who(answers, 'approve')}"


def _who(answers: Sequence[Answer], verdict: Verdict) -> str:
    approvals = [answer.approval for answer in answers]
    return ", ".join(
        sorted({approval.approver for approval in approvals if approval.verdict == verdict})
    )


def draw(request: ApprovalRequest, answers: Sequence[Answer], *, whole: str | None = None) -> None:
    """Print a request and its answers so far.

    Without ``whole``, print all arguments. With ``whole``, the command that prints all of them,
    leave out the middle of very long arguments and name the command.
    """
    screen.own_words(screen.styled("approval", "Somebody is asked to approve exactly this call:"))
    # never cut: what is signed is what is seen
    screen.sheet((name, Text(visible_text(value))) for name, value in _request_rows(request))
    arguments = json.loads(request.arguments)
    screen.own_words(
        Text("arguments", style="bold").append(f", {screen.size(arguments)}", style="not bold")
    )
    if not screen.document(arguments, whole=whole is None) and whole is not None:
        screen.own_words(
            screen.styled("warn", "NOT ALL OF THE ARGUMENTS ARE SHOWN. This shows them all:")
        )
        screen.own_words(screen.command(whole))
    screen.line(Text("what is signed", style="bold"))
    screen.sheet(
        (
            ("request", request.request_id),
            ("call digest", request.call_digest),
            ("requirement", request.requirement_sha256),
            ("as shown", request.displayed_sha256),
        )
    )
    if answers:
        screen.line(Text("answers so far", style="bold"))
        # never cut either
        screen.sheet(
            (verdict, Text(visible_text(who))) for verdict, who in phrases.answers(answers)
        )
    screen.own_words(Text(_LEGEND))


def _request_rows(request: ApprovalRequest) -> Iterator[tuple[str, str]]:
    yield "tool", request.tool
    yield "description", request.description or "none"
    yield "agent", f"{request.agent_name} ({request.agent})"
    yield "domain", request.trust_domain
    yield "for", request.principal
    if request.actors:
        yield "through", ", ".join(request.actors)
    trace = summary.trace_id(request.traceparent)
    for name, value in (
        ("resource", request.resource),
        ("task", request.task_id),
        ("thread", request.thread),
        ("trace", trace),
    ):
        if value is not None:
            yield name, value
    for requirement in request.requirements:
        yield "asks for", phrases.requirement_text(requirement)
    if not all(requirement.allow_self for requirement in request.requirements):
        yield "not by", ", ".join(request.requesters)
    yield "asked at", _time(request.requested_at)
    yield "until", _time(request.expires_at)
    if request.unbound:
        yield "not in it", f"injected by the framework: {', '.join(request.unbound)}"


def _time(at: int) -> str:
    return phrases.moment(at)


def _remaining(seconds_left: int) -> str:
    minutes, rest = divmod(max(seconds_left, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
