"""The LangGraph task in which code runs: its thread, its namespace, and whether it can pause.

A guarded call is found again by its call site: in the approval step, at its tool, and in a process
that resumes the run later. LangGraph names a task anew in each node. The call site therefore holds
the namespace of the agent's graph, and the model's message in the place of the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.types import Command

from agentguard import Decision
from agentguard.adapters import CallSite, assigned

_CALL: Final = "__pregel_call"
_CHECKPOINTER: Final = "__pregel_checkpointer"
_RESUMING: Final = "__pregel_resuming"
_PUSHED: Final = "__pregel_push"


class GraphTask(NamedTuple):
    """The task of a graph that runs here; its fields are None where no graph runs.

    ``thread`` is the thread's id, ``namespace`` the checkpoint namespace of the graph, ``id`` that
    of the task. ``can_pause`` says that the graph has a checkpointer. ``has_one_call`` says that
    ``Send`` made the task for a single call: LangGraph matches answers to interrupts by position,
    so that calls which share a task could get each other's answers. ``is_stateless`` says that a
    graph here keeps no state: when the graph around it is resumed, it runs from its beginning.
    """

    thread: str | None
    namespace: str | None
    id: str | None
    can_pause: bool
    has_one_call: bool
    is_stateless: bool = False

    @classmethod
    def of(cls, config: RunnableConfig | None) -> GraphTask:
        """Read the task from the config of a run; None stands for the run in this context."""
        full_config = ensure_config(config)
        configurable: Mapping[str, Any] = full_config.get("configurable") or {}
        path = (full_config.get("metadata") or {}).get("langgraph_path")
        thread, task_id = configurable.get("thread_id"), configurable.get("checkpoint_ns")
        has_checkpointer = configurable.get(_CHECKPOINTER) is not None
        is_stateless = has_checkpointer and _runs_stateless_graph(configurable)
        return cls(
            thread=None if thread is None else str(thread),
            namespace=None if task_id is None else str(task_id).rpartition("|")[0],
            id=None if task_id is None else str(task_id),
            can_pause=has_checkpointer and not is_stateless,
            has_one_call=isinstance(path, Sequence) and len(path) > 0 and path[0] == _PUSHED,
            is_stateless=is_stateless,
        )

    def call_site(self, turn: str | None, call_id: str) -> CallSite:
        """Return the site of a call in the model's message ``turn``."""
        return CallSite(call_id, self.resumable_thread, self.namespace, turn)

    @property
    def resumable_thread(self) -> str | None:
        """The thread in which a resumed run makes the same call again; None for none."""
        return None if self.is_stateless else self.thread

    def recurs(self, site: CallSite) -> bool:
        """Whether a call that is made again has ``site`` again, and no other call has this site.

        Requires a checkpointer, a thread, and either the model's message or the exact task.
        """
        is_named = site.turn is not None or site.namespace == self.id
        return self.can_pause and site.is_stable and is_named


_UNKNOWN_LANGGRAPH: Final = (AttributeError, LookupError, TypeError)
"""What a walk over LangGraph's own objects raises in a version that has them elsewhere."""


def _running_tasks(configurable: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each LangGraph task that runs here with the loop of its graph, innermost first.

    Raises ``_UNKNOWN_LANGGRAPH``.
    """
    call = configurable.get(_CALL)
    while call is not None:
        loop = call.keywords["schedule_task"].__self__
        yield call.args[0](), loop
        call = (loop.config.get("configurable") or {}).get(_CALL)


def _runs_stateless_graph(configurable: Mapping[str, Any]) -> bool:
    """Whether a graph that runs here keeps no state between runs."""
    try:
        return any(loop.checkpointer is None for _task, loop in _running_tasks(configurable))
    except _UNKNOWN_LANGGRAPH:
        return False  # ``cache_refusal`` refuses the call for the same reason


def resuming_command(config: RunnableConfig) -> Command[Any] | None:
    """Return the command with which somebody has resumed the run of ``config`` just now.

    LangGraph does not tell a task how its run was resumed. The input of the graph's loop, or of the
    loop of a graph around, is the command. None for a run that was begun, and in a version of
    LangGraph that keeps the command elsewhere.
    """
    try:
        inputs = (loop.input for _task, loop in _running_tasks(config.get("configurable") or {}))
        return next((one for one in inputs if isinstance(one, Command)), None)
    except _UNKNOWN_LANGGRAPH:
        return None


def restarting_subgraphs(restarts: bool) -> AbstractContextManager[None]:  # noqa: FBT001  a switch of a with statement
    """Run graphs within the block from their beginning, if ``restarts`` says so.

    Without this, LangGraph returns the recorded result of a finished subgraph while a run resumes.
    """
    config = var_child_runnable_config.get()
    if not restarts or config is None:
        return nullcontext()
    configurable = {**config.get("configurable", {}), _RESUMING: False}
    restarting: RunnableConfig | None = {**config, "configurable": configurable}
    return assigned(var_child_runnable_config, restarting)


def cache_refusal(
    config: RunnableConfig | None, config_around: RunnableConfig | None
) -> Decision | None:
    """Return the refusal of a call inside a node whose results LangGraph caches; None for none.

    A node with a ``CachePolicy`` is skipped for an input that it has seen before: the call would
    neither be decided nor be logged. ``config`` is the call's own, ``config_around`` that of the
    run around the call.
    """
    try:
        # the call's own config hides the config around the call, which names the task
        configs = (ensure_config(config), config_around or {})
        names = (name for one in configs for name in _cached_nodes(one.get("configurable") or {}))
        node = next(names, None)
    except _UNKNOWN_LANGGRAPH as error:
        reason = (
            f"nobody can tell whether this call's node is cached ({type(error).__name__}): this "
            "version of LangGraph is not known; install one that agentguard-langchain names"
        )
        return Decision.refusal(reason, code="node.cached")
    if node is None:
        return None
    reason = (
        f"the node {node} of the graph is cached, and would hand out this call's result to "
        "whoever comes next, undecided and unlogged: take the cache_policy off that node"
    )
    return Decision.refusal(reason, code="node.cached")


def _cached_nodes(configurable: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the cached nodes that run here, innermost first."""
    for task, loop in _running_tasks(configurable):
        if task.cache_key is not None and loop.cache is not None:
            yield task.name
