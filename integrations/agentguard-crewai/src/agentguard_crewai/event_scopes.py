"""Closes CrewAI's event scopes when a pause leaves them.

CrewAI pairs the event that begins a scope with the event that ends the scope, and warns of a
missing end. CrewAI's code does not catch a pause, so that this module ends the open scopes.
"""

from __future__ import annotations

from typing import Any

from crewai.events.event_bus import crewai_event_bus
from crewai.events.event_context import _event_id_stack, restore_event_scope
from crewai.events.types.agent_events import AgentExecutionErrorEvent

Scopes = tuple[tuple[str, str], ...]
"""The open scopes, outermost first: the id of the event that began each, and its type."""


def open_scopes() -> Scopes:
    """Return the scopes that are open here."""
    return _event_id_stack.get()


def close_scopes(before: Scopes, agent: Any, task: Any, reason: str) -> None:
    """Close the scopes that an agent's work on a task opened after ``before``."""
    scope = open_scopes()[len(before) : len(before) + 1]
    restore_event_scope(before + scope)
    if task is not None and scope and scope[0][1] == "agent_execution_started":
        crewai_event_bus.emit(
            agent, event=AgentExecutionErrorEvent(agent=agent, task=task, error=reason)
        )
    restore_event_scope(before)
