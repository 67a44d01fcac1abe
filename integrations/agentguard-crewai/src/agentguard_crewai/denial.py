"""Turns a refused or waiting call into CrewAI's ``ToolFailure``, which the model reads.

The decision itself stands in ``gate.py`` and in the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crewai.tools.tool_failure import ToolFailure

from agentguard import ApprovalPending, Decision
from agentguard.adapters import denial_text, may_call_again

REMEDIES: Final[Mapping[str, str]] = {
    "delegation.missing": (
        "kick off the crew inside a block of guard.delegate(...), and run a thread's work with "
        "contextvars.copy_context().run, which takes the block along; an agent that acts by itself "
        'has authority = "own" in its table of [agents]'
    ),
    "delegation.ended": (
        "let the block of guard.delegate(...) around the kickoff last until the crew is done and a "
        "stream is read"
    ),
}
"""What a developer of crews does about a refusal; the general remedies are about single calls."""


def denial_failure(tool: str, decision: Decision) -> ToolFailure:
    """Return the failure that names the tool, and says whether a retry can succeed.

    The model reads the message. ``details`` have the whole reason, for the application.
    """
    return ToolFailure(
        message=denial_text(tool, decision, shows_code=False),
        code=decision.code,
        retryable=may_call_again(decision),
        details={"reason": decision.reason or decision.model_reason},
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
