"""What is handed to the gate of a tool by the code around it, which knows more of the call.

A tool is given its arguments and its id; a middleware, or the node that runs tools, knows the turn
as well, for whom the run was begun, and what people have said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Final, NamedTuple

from agentguard import Agent, CallSite, Decision
from agentguard.delegation import context
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import Place


class Placed(NamedTuple):
    """A tool call as it is known around its tool: its site, who makes it, why it is refused.

    ``answers`` deals with the answers to it. ``run`` is the handle of the outermost guarded run
    around it, None for none; ``passed`` holds something once the call has come to its gate.
    """

    call_id: str
    task: str | None
    site: CallSite
    agent: Agent
    answers: Answers
    passed: list[bool]
    run: str | None = None
    refusal: Decision | None = None


_PLACED: Final[ContextVar[Placed | None]] = ContextVar("agentguard_langchain_placed", default=None)
_RUN: Final[ContextVar[str | None]] = ContextVar("agentguard_langchain_run", default=None)


class Work:
    """What the work of one call has come to, as far as it shows whether that can be done again.

    ``ran`` once a call of a graph within has run, ``paused`` once such a graph has paused: then it
    goes on from there. A graph within that has ended would be handed out as it was. ``elsewhere``
    once a graph has paused that has a thread of its own: it goes on when that thread is resumed.
    """

    __slots__ = ("_place", "elsewhere", "paused", "ran")

    def __init__(self, place: Place) -> None:
        self._place = place
        self.elsewhere = False
        self.paused = False
        self.ran = False

    def is_nested(self, place: Place) -> bool:
        """Whether a call at ``place`` is made by a graph within."""
        return place.task != self._place.task

    def is_of_its_run(self, place: Place) -> bool:
        """Whether a graph at ``place`` goes on when the run of this call does.

        LangGraph leaves the ids of tasks out of what is around a graph that keeps its state from
        one run to the next (``checkpointer=True``), so that the nodes' names are compared.
        """
        around, within = _nodes(self._place.task), _nodes(place.task)
        inner = len(within) > len(around) and within[: len(around)] == around
        return place.thread == self._place.thread and inner


def _nodes(task: str | None) -> list[str]:
    """Return the names of the nodes in a task's namespace, without ids and counters."""
    parts = (part.partition(":")[0] for part in (task or "").split("|"))
    return [part for part in parts if not part.isdigit()]


_WORK: Final[ContextVar[Work | None]] = ContextVar("agentguard_langchain_work", default=None)


@contextmanager
def working(work: Work) -> Iterator[None]:
    """Let what runs within be known as the work of a call: no other call is announced."""
    token = _WORK.set(work)
    try:
        with placing(None):
            yield
    finally:
        with suppress(ValueError):
            _WORK.reset(token)


def note_nested(place: Place) -> Work | None:
    """Return the work around a call at ``place``, if a graph within makes it; None for any other.

    The call around hands work over, then.
    """
    around, work = context.inside(), _WORK.get()
    if around is None or work is None or not work.is_nested(place):
        return None
    around.hands_over = True
    return work


def note_pause(place: Place) -> None:
    """Note that a graph is about to pause here."""
    work = note_nested(place)
    if work is not None and work.is_of_its_run(place):
        work.paused = True
    elif work is not None:
        work.elsewhere = True


@contextmanager
def placing(placed: Placed | None) -> Iterator[None]:
    """Let the gate of the tool that is called within find ``placed``."""
    token = _PLACED.set(placed)
    run = _RUN.set(_RUN.get() if placed is None else placed.run)
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            _PLACED.reset(token)
            _RUN.reset(run)


def run_here() -> str | None:
    """Return the handle of the outermost guarded run in whose call this is; None for none."""
    return _RUN.get()


def placed_here(call_id: str | None, place: Place) -> Placed | None:
    """Return what is known of this call, which may have no id; of a call inside of it, nothing."""
    found = _PLACED.get()
    if found is not None and (found.call_id, found.task) == (call_id or "", place.task):
        return found
    return None
