"""Crews in a CrewAI Flow: a flow pauses while a call of a crew waits for people.

A flow that has paused is persisted by CrewAI, and goes on in whatever process takes it up with
``Flow.from_pending``. Its crew is then kicked off again, and completes the calls that were made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from crewai import Crew
from crewai.flow import Flow
from crewai.flow.async_feedback.types import HumanFeedbackPending, PendingFeedbackContext

from agentguard import ApprovalPending
from agentguard_crewai import runs
from agentguard_crewai.runs import resumable

ANSWERED: Final = "approval_answered"
"""The outcome of the pause: a flow's method that listens to it kicks the crew off again."""

_RUN: Final = "agentguard_run"


def kickoff_or_pause(flow: Flow[Any], crew: Crew, inputs: Mapping[str, Any] | None = None) -> Any:
    """Kick off a crew in a flow's method, which pauses the flow where a call waits for people.

    The crew is one that was guarded with ``on_approval="pause"``. Let the method also listen to
    ``ANSWERED``: once ``Flow.from_pending(...).resume()`` is called it runs again, and the crew
    goes on, without making again the calls that were completed. In a ``resumable`` block the crew
    is part of that run, which a process can take up that finds no pause of the flow. Raises
    CrewAI's ``HumanFeedbackPending``, whose context names the request in its ``metadata``.
    """
    with _run_of(flow):
        return crew.kickoff(inputs=dict(inputs) if inputs is not None else None)


async def akickoff_or_pause(
    flow: Flow[Any], crew: Crew, inputs: Mapping[str, Any] | None = None
) -> Any:
    """Kick off a crew in a flow's async method; the async twin of ``kickoff_or_pause``."""
    with _run_of(flow):
        return await crew.akickoff(inputs=dict(inputs) if inputs is not None else None)


@contextmanager
def _run_of(flow: Flow[Any]) -> Iterator[None]:
    present, resumed = runs.current().name, _resumed(flow)
    name = present or resumed or os.urandom(16).hex()
    try:
        with resumable(name) if present is None else nullcontext():
            yield
    except ApprovalPending as pending:
        raise HumanFeedbackPending(_context(flow, name, pending)) from None


def _resumed(flow: Flow[Any]) -> str | None:
    """Return the run that a flow goes on with; once, since a loop begins another one."""
    feedback = flow.last_human_feedback
    found = feedback.metadata.pop(_RUN, None) if feedback is not None else None
    return found if isinstance(found, str) else None


def _context(flow: Flow[Any], name: str, pending: ApprovalPending) -> PendingFeedbackContext:
    request = pending.request
    return PendingFeedbackContext(
        flow_id=flow.flow_id,
        flow_class=f"{type(flow).__module__}.{type(flow).__qualname__}",
        method_name="",  # CrewAI fills in where it was raised
        method_output=None,
        message=str(pending),
        emit=[ANSWERED],
        default_outcome=ANSWERED,
        metadata={_RUN: name, "request_id": request.request_id},
    )
