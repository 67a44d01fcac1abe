"""Turns a refused or waiting call into CrewAI's ``ToolFailure``, which the model reads.

The decision itself stands in ``gate.py`` and in the core.
"""

from __future__ import annotations

from typing import Final

from crewai.tools.tool_failure import ToolFailure

from agentguard import ApprovalPending, Decision
from agentguard.adapters import denial_text

_REPEATABLE: Final = frozenset({"approval.altered", "approval.expired"})
"""Codes after which the same call may be made again."""


_CREW_REASONS: Final = {
    "delegation.missing": (
        "the agent acts only for somebody, and nothing is lent to it here: kick off the crew "
        "inside a block of guard.delegate(...), and run a thread's work with "
        "contextvars.copy_context().run, which takes the block along; an agent that acts by itself "
        'has authority = "own" in its table of [agents]'
    ),
    "delegation.ended": (
        "what was lent for this kickoff has ended: let the block of guard.delegate(...) around it "
        "last until the crew is done, and a stream is read"
    ),
}
"""Reasons that say what a user of crews does next; the core's reasons are about single calls."""


def crew_decision(decision: Decision) -> Decision:
    """Return the same refusal, with a reason that says what a user of crews does next."""
    reason = _CREW_REASONS.get(decision.code)
    return decision if reason is None else Decision.refusal(reason, code=decision.code)


def denial_failure(tool: str, decision: Decision) -> ToolFailure:
    """Return the failure that names the tool, the reason, and whether a retry can succeed."""
    may_call_again = decision.code in _REPEATABLE
    message = denial_text(tool, decision, may_call_again=may_call_again, shows_code=False)
    return ToolFailure(
        message=message,
        code=decision.code,
        retryable=may_call_again,
        details={"reason": decision.model_reason},
    )


def pending_failure(tool: str, pending: ApprovalPending) -> ToolFailure:
    """Return the failure of a call that nobody has approved yet; the request stays open."""
    request = pending.request.request_id
    message = (
        f"Not now: {tool} was not run. It waits for an approval, request {request}, which nobody "
        "has given yet. Go on without it, and say that it is missing."
    )
    return ToolFailure(
        message=message,
        code="approval.pending",
        retryable=True,
        details={"request_id": request},
    )
