"""The work of a guarded call whose tool runs graphs of its own, such as a sub-agent.

A call that hands its work over is complete only once the calls within it are. What is noted here
says whether such a call can be made again: a graph within that has paused continues where it
stopped, while a graph that has ended would do its work twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final

from langchain_core.tools import BaseTool

from agentguard import ApprovalPending, ApprovalRequest, ConfigError
from agentguard.adapters import assigned, nested_calls
from agentguard_langchain.graph_task import GraphTask

_DEEPAGENTS: Final = "deepagents.middleware.subagents"


class SubagentTool:
    """Marks the class of a tool that runs a sub-agent."""

    __slots__ = ()


def hands_over_work(tool: BaseTool) -> bool:
    """Whether all that a tool does is done by another agent or graph.

    True for what ``guard_subagent`` has wrapped, and for the tool ``task`` of deepagents.
    """
    if isinstance(tool, SubagentTool):
        return True
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    return tool.name == "task" and getattr(function, "__module__", None) == _DEEPAGENTS


class IncompleteError(ApprovalPending):
    """A call that hands work over has returned while calls within it wait for people.

    ``requests`` are the requests that those calls wait for. ``restarts`` says that a graph within
    has ended, and so runs from its beginning when the call is made again.
    """

    def __init__(self, requests: Sequence[ApprovalRequest], *, restarts: bool) -> None:
        super().__init__(requests[0], "nobody has answered yet")
        self.requests = requests
        self.restarts = restarts


class UnfinishedError(ConfigError):
    """A tool has left work behind that goes on by itself, with an unknown outcome."""


def require_finished(result: Any, tool: str) -> Any:
    """Return the result of ``tool``; raise ``ConfigError`` for work that is still to come.

    The effects of a generator or an awaitable would come after the call, where nobody checks them.
    """
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        message = f"tool {tool} returned a generator, which was not run: return a list instead"
        raise ConfigError(message, code="tool.generator")
    advice = "pass an async function as the tool's coroutine, or let a class await in _arun"
    if inspect.iscoroutine(result):
        result.close()
        message = f"tool {tool} returned a coroutine, which was not run: {advice}"
        raise ConfigError(message, code="tool.async")
    if inspect.isawaitable(result):
        message = f"tool {tool} returned an awaitable, which nobody awaits: {advice}"
        raise UnfinishedError(message, code="tool.async")
    return result


class NestedWork:
    """What the graphs within one running call have done, as far as a repetition depends on it.

    ``has_run`` once a call of a graph within has run. ``has_paused`` once such a graph has paused:
    the graph continues there. ``paused_elsewhere`` once a graph has paused that has a thread of its
    own: the graph continues when somebody resumes that thread.
    """

    __slots__ = ("_task", "has_paused", "has_run", "paused_elsewhere")

    def __init__(self, task: GraphTask) -> None:
        self._task = task
        self.has_run = False
        self.has_paused = False
        self.paused_elsewhere = False

    def holds(self, task: GraphTask) -> bool:
        """Whether ``task`` is that of a graph within the call."""
        return task.id != self._task.id

    def resumes(self, task: GraphTask) -> bool:
        """Whether the graph of ``task`` resumes when the run of this call does.

        LangGraph leaves the ids of tasks out of the namespace around a graph that keeps its state
        from one run to the next (``checkpointer=True``). The names of nodes are compared therefore.
        """
        outer, inner = _node_names(self._task.id), _node_names(task.id)
        is_inner = len(inner) > len(outer) and inner[: len(outer)] == outer
        return task.thread == self._task.thread and is_inner


def _node_names(task_id: str | None) -> list[str]:
    """Return the names of the nodes in a task's namespace, without ids and counters."""
    names = (part.partition(":")[0] for part in (task_id or "").split("|"))
    return [name for name in names if not name.isdigit()]


_WORK: Final[ContextVar[NestedWork | None]] = ContextVar("agentguard_langchain_work", default=None)


def working(work: NestedWork) -> AbstractContextManager[None]:
    """Let ``work`` be that of the innermost running call within the block."""
    return assigned(_WORK, work)


def note_nested(task: GraphTask) -> NestedWork | None:
    """Return the work of the call around a call in ``task``; None if no graph within makes it.

    The call around is noted as one that hands work over.
    """
    calls, work = nested_calls(), _WORK.get()
    if calls is None or work is None or not work.holds(task):
        return None
    calls.hands_over = True
    return work


def note_pause(task: GraphTask) -> None:
    """Note that the graph of ``task`` is about to pause."""
    work = note_nested(task)
    if work is not None and work.resumes(task):
        work.has_paused = True
    elif work is not None:
        work.paused_elsewhere = True
