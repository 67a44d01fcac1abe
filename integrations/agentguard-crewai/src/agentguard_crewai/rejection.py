"""Stores the rejected calls of a named run, so that a resumed run does not ask people again."""

from __future__ import annotations

import logging

from agentguard import Agent, AgentguardError, Decision
from agentguard.adapters import run_store
from agentguard_crewai.runs import Place

_LOGGER = logging.getLogger("agentguard")


def store(agent: Agent, place: Place, decision: Decision) -> None:
    """Store the reason of a rejected call; log an error where the store fails."""
    try:
        run_store(agent).write(_name(agent, place), decision.reason.encode())
    except AgentguardError:
        _LOGGER.exception("a rejection could not be kept: the call is asked again in the next try")


def load(agent: Agent, place: Place) -> Decision | None:
    """Return the refusal of a call that people rejected in this run before; None for no rejection.

    A store that can't be read refuses the call as well.
    """
    try:
        reason = run_store(agent).read(_name(agent, place))
    except AgentguardError as error:
        return Decision.of_error(error)
    if reason is None:
        return None
    return Decision.refusal(reason.decode(), code="approval.rejected")


def _name(agent: Agent, place: Place) -> str:
    return f"crewai:rejected:{place.site.digest(agent.name)}"
