"""Crews in a CrewAI Flow: a flow pauses while a call of a crew waits for people.

A flow that has paused is persisted by CrewAI, and goes on in whatever process takes it up with
``Flow.from_pending``. Its crew is then kicked off again, and completes the calls that were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from crewai import Crew
from crewai.flow import Flow
from crewai.flow.async_feedback.types import HumanFeedbackPending, PendingFeedbackContext
from crewai.flow.flow_context import current_flow_method_name
from crewai.flow.runtime import _iter_condition_events
from crewai.flow.types import FlowMethodName

from agentguard import ApprovalPending, ConfigError
from agentguard_crewai.crews import options_of
from agentguard_crewai.runs import resumable


def answered(method: str) -> str:
    """Return the outcome of a pause in a flow's method, for that method to listen to."""
    return f"{method}_answered"


def kickoff_or_pause(
    flow: Flow[Any], crew: Crew, inputs: Mapping[str, Any] | None = None, *, run: str
) -> Any:
    """Kick off a crew in a flow's method, which pauses the flow where a call waits for people.

    The crew is one that was guarded with ``on_approval="pause"``. Let the method also listen to
    ``answered(METHOD)``: after ``Flow.from_pending(...).resume()`` it runs again, and the crew goes
    on, without making again the calls that were completed. ``run`` names the run, as for
    ``resumable``: another one each time that a loop comes by, and the same one when it goes on,
    also where a flow that was killed is kicked off anew.

    Raises CrewAI's ``HumanFeedbackPending``, whose context names the request in its ``metadata``,
    and ``ConfigError``.
    """
    with _pause_flow(flow, crew, run):
        return crew.kickoff(inputs=dict(inputs) if inputs is not None else None)


async def akickoff_or_pause(
    flow: Flow[Any], crew: Crew, inputs: Mapping[str, Any] | None = None, *, run: str
) -> Any:
    """Kick off a crew in a flow's async method; the async twin of ``kickoff_or_pause``."""
    with _pause_flow(flow, crew, run):
        return await crew.akickoff(inputs=dict(inputs) if inputs is not None else None)


@contextmanager
def _pause_flow(flow: Flow[Any], crew: Crew, run: str) -> Iterator[None]:
    if options_of(crew).on_approval != "pause":
        message = f"the crew {crew.name!r} waits for approvals: guard it with on_approval='pause'"
        raise ConfigError(message)
    method = current_flow_method_name.get()
    if not hasattr(type(flow), method):
        message = (
            "a crew is kicked off outside of the flow's methods (in a thread of its own?), where "
            "it can't pause the flow: kick it off in the method itself"
        )
        raise ConfigError(message)
    condition = flow._listen_condition(FlowMethodName(method))  # noqa: SLF001  CrewAI has no other
    if condition is None or answered(method) not in _iter_condition_events(condition):
        message = (
            f"the flow's method {method} would not run again once people have answered: let it "
            f"listen to that as well, as in @listen(or_(..., answered({method!r})))"
        )
        raise ConfigError(message)
    try:
        with resumable(run):
            yield
    except ApprovalPending as pending:
        raise HumanFeedbackPending(_context(flow, method, run, pending)) from None


def _context(
    flow: Flow[Any], method: str, run: str, pending: ApprovalPending
) -> PendingFeedbackContext:
    return PendingFeedbackContext(
        flow_id=flow.flow_id,
        flow_class=f"{type(flow).__module__}.{type(flow).__qualname__}",
        method_name=method,
        method_output=None,
        message=str(pending),
        emit=[answered(method)],
        default_outcome=answered(method),
        metadata={"run": run, "request_id": pending.request.request_id},
    )
