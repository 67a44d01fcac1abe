"""What people have rejected in a run that has a name: nobody is asked again when it goes on."""

from __future__ import annotations

import logging

from agentguard import Agent, AgentguardError, Decision
from agentguard.adapters import run_store
from agentguard_crewai.runs import Place

_LOGGER = logging.getLogger("agentguard")


def store(agent: Agent, place: Place, decision: Decision) -> None:
    """Keep that a call was rejected, and why."""
    try:
        run_store(agent).write(_name(agent, place), decision.reason.encode())
    except AgentguardError:
        _LOGGER.exception("a rejection could not be kept: the call is asked again in the next try")


def load(agent: Agent, place: Place) -> Decision | None:
    """Return why a call is refused that was rejected before in its run; None for one that was not.

    What can't be read refuses the call as well.
    """
    try:
        reason = run_store(agent).read(_name(agent, place))
    except AgentguardError as error:
        return Decision.refusal(str(error), code=error.code)
    if reason is None:
        return None
    return Decision.refusal(reason.decode(), code="approval.rejected")


def _name(agent: Agent, place: Place) -> str:
    return f"crewai:rejected:{place.site.digest(agent.name)}"
