"""Crews in a CrewAI Flow: the flow pauses while a call of the crew waits for people.

CrewAI persists a paused flow; any process can resume the flow with ``Flow.from_pending``. The crew
is then kicked off again, and the journal returns the results of the calls that were completed.
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
    """Return the event that ends a pause in ``method``, and to which the method must listen."""
    return f"{method}_answered"


def kickoff_or_pause(
    flow: Flow[Any], crew: Crew, inputs: Mapping[str, Any] | None = None, *, run: str
) -> Any:
    """Kick off a crew in a flow's method; pause the flow where a call waits for people.

    The crew must be guarded with ``on_approval="pause"``, and the method must also listen to
    ``answered(METHOD)``: after ``Flow.from_pending(...).resume()`` the method runs again, and the
    crew continues without repeating completed calls. ``run`` names the run, as for ``resumable``:
    each round of a loop has a name of its own, and a resumed or restarted flow uses the name again.

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
