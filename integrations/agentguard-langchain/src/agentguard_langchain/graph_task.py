"""Where a call stands in a graph: thread, namespace, turn and id, and whether it can pause there.

A call is looked for again by its site: in the approval step, where it is executed, and in whatever
process goes on later. LangGraph names a task anew in each node, so that the site has the namespace
of the agent's graph around it, and the model's message in the task's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from langchain_core.messages import AIMessage, AnyMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import var_child_runnable_config

from agentguard import CallSite

_CALL: Final = "__pregel_call"
_CHECKPOINTER: Final = "__pregel_checkpointer"
_RESUMING: Final = "__pregel_resuming"
_PUSHED: Final = "__pregel_push"


def tasks(configurable: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the LangGraph tasks that run here, each with the loop of its graph, from the inside.

    Raises ``LookupError``, ``AttributeError`` or ``TypeError`` for a LangGraph that is unknown.
    """
    call = configurable.get(_CALL)
    while call is not None:
        loop = call.keywords["schedule_task"].__self__
        yield call.args[0](), loop
        call = (loop.config.get("configurable") or {}).get(_CALL)


def _begins_anew(configurable: Mapping[str, Any]) -> bool:
    """Whether a graph that runs here keeps nothing of its state for when it goes on."""
    try:
        return any(loop.checkpointer is None for _task, loop in tasks(configurable))
    except (AttributeError, LookupError, TypeError):
        return False  # the call is refused: see ``caching.py``


class Place(NamedTuple):
    """The task that runs: its ``thread``, its graph's ``namespace``, and its own, ``task``.

    ``pauses`` says whether its graph can pause (it has a checkpointer), ``alone`` whether the task
    was made for one call, by ``Send``: answers to interrupts in a task that several calls share
    are matched to whichever call asks first. A ``stateless`` graph, or one in it, begins from its
    beginning when the graph around it goes on: it can't pause by itself.
    """

    thread: str | None
    namespace: str | None
    task: str | None
    pauses: bool
    alone: bool
    stateless: bool = False

    @classmethod
    def of(cls, config: RunnableConfig | None) -> Place:
        """Read the config of a run; without one, that of the task that runs here."""
        given = ensure_config(config)
        configurable: Mapping[str, Any] = given.get("configurable") or {}
        path = (given.get("metadata") or {}).get("langgraph_path")
        thread, task = configurable.get("thread_id"), configurable.get("checkpoint_ns")
        keeps = configurable.get(_CHECKPOINTER) is not None
        stateless = keeps and _begins_anew(configurable)
        return cls(
            thread=None if thread is None else str(thread),
            namespace=None if task is None else str(task).rpartition("|")[0],
            task=None if task is None else str(task),
            pauses=keeps and not stateless,
            alone=isinstance(path, Sequence) and len(path) > 0 and path[0] == _PUSHED,
            stateless=stateless,
        )

    def site(self, turn: str | None, call_id: str) -> CallSite:
        """Return the site of a call of the model's message ``turn``."""
        return CallSite(call_id, self.run, self.namespace, turn)

    @property
    def run(self) -> str | None:
        """The thread in which a call is made again as the same call; None for none."""
        return None if self.stateless else self.thread

    def recurs(self, site: CallSite) -> bool:
        """Whether a call that is made again has this site again, and no other call has it.

        That takes a checkpointer, a thread, and the model's message, or else the very task.
        """
        named = site.turn is not None or site.namespace == self.task
        return self.pauses and site.is_stable and named


@contextmanager
def anew(wanted: bool) -> Iterator[None]:  # noqa: FBT001  a switch of a with statement
    """Let graphs that run within begin from their beginning, where that is ``wanted``.

    While a run goes on, LangGraph hands out the end of a graph that has ended.
    """
    config = var_child_runnable_config.get()
    if not wanted or config is None:
        yield
        return
    configurable = {**config.get("configurable", {}), _RESUMING: False}
    token = var_child_runnable_config.set({**config, "configurable": configurable})
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine may be closed in another context than its own
            var_child_runnable_config.reset(token)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message in which a model calls tools. ``answered`` are the ids that have their answer."""

    id: str | None
    calls: tuple[ToolCall, ...]
    answered: frozenset[str | None] = frozenset()

    @property
    def open(self) -> list[ToolCall]:
        """The calls that wait to be made, less those that share an id: they are refused."""
        return [
            call
            for call in self.calls
            if call["id"] not in self.answered and not self.is_ambiguous(call["id"])
        ]

    def is_ambiguous(self, call_id: str | None) -> bool:
        """Whether two calls have this id: an answer to one would be an answer to the other."""
        return sum((call["id"] or "") == (call_id or "") for call in self.calls) > 1


def last_turn(messages: Sequence[AnyMessage]) -> Turn | None:
    """Return the model's last message, if it calls tools."""
    answered: set[str | None] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        if isinstance(message, AIMessage):
            calls = tuple(message.tool_calls)
            return Turn(message.id, calls, frozenset(answered)) if calls else None
    return None


def past_turn(messages: Sequence[AnyMessage], turn: str | None = None) -> str | None:
    """Return the id of the last message that calls tools, other than ``turn``."""
    for message in reversed(messages):
        if isinstance(message, AIMessage) and message.tool_calls and message.id != turn:
            return message.id
    return None


def turn_of(messages: Sequence[AnyMessage], call_id: str | None) -> Turn | None:
    """Return the last message of the model in which a call has this id."""
    for message in reversed(messages):
        if isinstance(message, AIMessage) and any(c["id"] == call_id for c in message.tool_calls):
            return Turn(message.id, tuple(message.tool_calls))
    return None


def messages_of(state: object, key: str = "messages") -> list[AnyMessage]:
    """Return the messages of a graph's state, however it is written."""
    if isinstance(state, Mapping):
        found = state.get(key)
    else:
        found = state if isinstance(state, list) else getattr(state, key, None)
    return list(found) if isinstance(found, Sequence) else []
