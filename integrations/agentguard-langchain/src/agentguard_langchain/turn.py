"""A model's turn: the message in which a model calls tools, as the graph's state holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, AnyMessage, ToolCall, ToolMessage


@dataclass(frozen=True, slots=True)
class Turn:
    """A message in which a model calls tools.

    ``id`` is the message's id, ``answered`` the ids of the calls that have a ``ToolMessage``.
    """

    id: str | None
    calls: tuple[ToolCall, ...]
    answered: frozenset[str | None] = frozenset()

    @property
    def open(self) -> list[ToolCall]:
        """The calls without an answer. Calls that share an id are left out: they are refused."""
        return [
            call
            for call in self.calls
            if call["id"] not in self.answered and not self.is_ambiguous(call["id"])
        ]

    def is_ambiguous(self, call_id: str | None) -> bool:
        """Whether two calls have this id: an answer to one would be an answer to the other."""
        return sum((call["id"] or "") == (call_id or "") for call in self.calls) > 1


def last_turn(messages: Sequence[AnyMessage]) -> Turn | None:
    """Return the model's last message; None if the message calls no tools."""
    answered: set[str | None] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        if isinstance(message, AIMessage):
            calls = tuple(message.tool_calls)
            return Turn(message.id, calls, frozenset(answered)) if calls else None
    return None


def previous_turn_id(messages: Sequence[AnyMessage], turn: str | None = None) -> str | None:
    """Return the id of the last message that calls tools, other than the message ``turn``."""
    for message in reversed(messages):
        if isinstance(message, AIMessage) and message.tool_calls and message.id != turn:
            return message.id
    return None


def turn_of(messages: Sequence[AnyMessage], call_id: str | None) -> Turn | None:
    """Return the model's last message with a call of this id; None for none."""
    for message in reversed(messages):
        if isinstance(message, AIMessage) and any(c["id"] == call_id for c in message.tool_calls):
            return Turn(message.id, tuple(message.tool_calls))
    return None


def messages_of(state: object, key: str) -> list[AnyMessage]:
    """Return the messages of a graph's state: a mapping, an object with attributes, or a list."""
    if isinstance(state, Mapping):
        messages = state.get(key)
    else:
        messages = state if isinstance(state, list) else getattr(state, key, None)
    return list(messages) if isinstance(messages, Sequence) else []
