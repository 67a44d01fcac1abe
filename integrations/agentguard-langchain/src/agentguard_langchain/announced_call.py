"""What the code around a tool knows of a call: its site, who makes it, and why it is refused.

A tool is given its arguments and its id. The middleware, or the node that runs tools, also knows
the model's turn, for whom the run was begun, and what people have answered. A context variable
carries this to the guarded tool, past LangChain's own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from langchain_core.messages import ToolCall

from agentguard import Agent, Decision
from agentguard.adapters import CallSite, assigned
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.pending_turn import Edit


@dataclass(slots=True)
class AnnouncedCall:
    """A model's tool call that a middleware, or the node of tools, announces to its tool.

    ``tool_call`` has the arguments that a person has put in (``edit``), if one did. ``run`` is the
    handle of the outermost guarded run around the call, None for none. ``has_reached_gate`` once
    the guarded tool has taken the call up.
    """

    tool_call: ToolCall
    task: GraphTask
    site: CallSite
    agent: Agent
    answers: Answers
    run: str | None = None
    refusal: Decision | None = None
    edit: Edit | None = None
    has_reached_gate: bool = False


_ANNOUNCED: Final[ContextVar[AnnouncedCall | None]] = ContextVar(
    "agentguard_langchain_announced", default=None
)
_RUN: Final[ContextVar[str | None]] = ContextVar("agentguard_langchain_run", default=None)


@contextmanager
def announcing(call: AnnouncedCall | None) -> Iterator[None]:
    """Announce ``call`` to the tool that is called within the block; None announces no call."""
    run = _RUN.get() if call is None else call.run
    with assigned(_ANNOUNCED, call), assigned(_RUN, run):
        yield


def announced_call(call_id: str | None, task: GraphTask) -> AnnouncedCall | None:
    """Return the announcement of the call with this id in this task; None for none."""
    call = _ANNOUNCED.get()
    if call is None or call.task.id != task.id:
        return None
    return call if (call.tool_call["id"] or "") == (call_id or "") else None


def run_around() -> str | None:
    """Return the handle of the outermost guarded run around this code; None for none."""
    return _RUN.get()
