"""Attributes of a call's span that come from records: the log entry, the answers, the failure.

``calls.py`` decides when a span gets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from agentguard.approvals.answer import Approval, Verdict
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import LogPlace
from agentguard.call.decision import Decision, Denied
from agentguard.signing.canonical import b64_encode
from agentguard.telemetry import names, tracing

RAN: Final = frozenset({"ok", "error", "unknown", "in_doubt"})
"""Outcomes of a tool that has begun: its exceptions are its own, and no refusal of the call."""

STATUS: Final = {
    "": "approved",
    "approval.rejected": "rejected",
    "approval.expired": "expired",
    "approval.consumed": "consumed",
}
"""What became of an approval, by the reason code of its call's decision."""

_VERDICTS: Final[dict[str, Verdict]] = {"approved": "approve", "rejected": "reject"}

_MEANINGS: Final = {"denied": "denied", "rejected": "rejected", "tool_error": "tool error"}
"""The values of ``agentguard.failure``, as the status describes each."""


class Failure(NamedTuple):
    """Why a call ended with an error.

    ``code`` is a reason code or the type of an exception, never the exception's text. ``kind`` is
    the value of ``agentguard.failure``, None where neither a refusal nor the tool was the cause.
    """

    code: str
    kind: str | None

    @property
    def description(self) -> str:
        """The description of the span's status, such as ``denied: policy.denied``."""
        return self.code if self.kind is None else f"{_MEANINGS[self.kind]}: {self.code}"

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the span."""
        kind = {} if self.kind is None else {names.FAILURE: self.kind}
        return {names.ERROR_TYPE: self.code, **kind}


def refused(code: str) -> Failure:
    """Return the failure of a call that was refused with this reason code."""
    return Failure(code, "rejected" if code == "approval.rejected" else "denied")


def failure(error: BaseException, outcome: str | None, outcome_error: str | None) -> Failure:
    """Return the failure of a call that ``error`` ended.

    ``outcome`` is the recorded status of the call, ``outcome_error`` the recorded type of the
    tool's exception.
    """
    ran = outcome in RAN
    if isinstance(error, Denied) and not ran:
        return refused(error.code)
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    code = outcome_error if outcome_error and not builtin else kind.__qualname__
    return Failure(code, "tool_error" if ran else None)


def place(logged: LogPlace, head: Checkpoint) -> dict[str, Any]:
    """Return an entry's index and the log's head: whoever keeps the span is a witness."""
    return {
        names.INDEX: logged.index,
        names.CHECKPOINT: f"{head.origin} {head.size} {b64_encode(head.root)}",
    }


def answer(approval: Approval, named: Callable[[str], str]) -> dict[str, Any]:
    """Return the attributes of the event of one answer; ``named`` returns a person's name."""
    return {
        names.APPROVAL: approval.request_id,
        names.APPROVAL_STATUS: "approved" if approval.verdict == "approve" else "rejected",
        names.APPROVER: named(approval.approver),
        names.APPROVAL_METHOD: approval.method,
        names.APPROVAL_ANSWER: approval.approval_id,
        names.DECIDED_AT: time_text(approval.not_before),
    }


def settled(
    status: str, answers: Sequence[Approval], named: Callable[[str], str]
) -> dict[str, Any]:
    """Return who settled an approval with this status, and when; nothing where no person did.

    ``answers`` are in the order of their times. The approval is settled by the last of several
    people who approve, and by the first who rejects.
    """
    verdict = _VERDICTS.get(status)
    ours = [one for one in answers if one.verdict == verdict]
    if not ours:
        return {}
    people = dict.fromkeys(_member(named(one.approver)) for one in ours)
    times = [one.not_before for one in ours]
    at = max(times) if status == "approved" else min(times)
    return {names.APPROVER: ",".join(people), names.DECIDED_AT: time_text(at)}


def reason(decision: Decision) -> str:
    """Return the reasons of a policy for its decision, as one text; empty without any."""
    asked = (requirement.reason for requirement in decision.requirements)
    return tracing.text("; ".join(dict.fromkeys([*decision.reasons, *asked])))


def time_text(seconds: int) -> str:
    """Return a time (seconds since the epoch) as RFC 3339 in UTC, for people who read a span.

    A time after the year 9999 stays a number: a policy may let a request wait so long.
    """
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _member(name: str) -> str:
    """Percent-encode a name's comma, which separates the names of several people."""
    return name.replace("%", "%25").replace(",", "%2C")
