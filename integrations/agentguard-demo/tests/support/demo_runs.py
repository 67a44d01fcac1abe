"""How tests run the demo, a model that says one thing, and the entries that a run leaves."""

from __future__ import annotations

import io
import os
from typing import Any

import commands
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from rich.console import Console

import agentguard_demo
from agentguard.audit.kinds import parse_entry
from agentguard.store.reader import StoredLog
from agentguard_demo import people
from agentguard_demo.timeline import Timeline

MERGES = "direct merges to main require human approval"


def at_home(home, **more):
    """Return the environment of a user whose home directory is ``home``."""
    return {**os.environ, "HOME": str(home), "COLUMNS": "120", **more}


def run_agentguard(*arguments, cwd, **environment):
    """Run a command of agentguard in this process, with the home directory ``cwd``."""
    return commands.run(arguments, cwd=cwd, env=at_home(cwd, **environment))


class StateEntries:
    """The entries of a state, as ``audit export`` would write them."""

    def __init__(self, state):
        self._reader = StoredLog.of(state)

    def of(self, *kinds):
        """Return the members of the entries of these kinds, in their order."""
        parsed = [parse_entry(body) for _index, body in self._reader.entries()]
        self._reader.close()
        return [{"kind": entry.kind, **entry.members} for entry in parsed if entry.kind in kinds]


class OneLineModel(BaseChatModel):
    """A model that makes ``calls``, then says ``says``; or raises ``fails``."""

    says: str = ""
    calls: tuple[dict, ...] = ()
    fails: Any = None

    @property
    def _llm_type(self):
        return "silent"

    def bind_tools(self, tools, **kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        if self.fails:
            raise self.fails
        calls = [] if isinstance(messages[-1], ToolMessage) else list(self.calls)
        message = AIMessage(self.says, tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


def play(directory, model, bob=people.approve):
    """Run the demo in this process; return the run and what it printed."""
    printed = io.StringIO()
    console = Console(file=printed, width=120, force_terminal=False)
    timeline = Timeline(console, "agentguard")
    return agentguard_demo.run(directory, model, timeline, bob), printed.getvalue()
