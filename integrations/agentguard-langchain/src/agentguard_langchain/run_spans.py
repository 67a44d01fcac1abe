"""The spans of agents' runs, in which the spans of guarded calls stand.

The first guarded call of a graph's run begins a span ``invoke_agent``, which starts when the run
did: LangChain tells a callback handler when runs begin and end, and which run is part of which.
Where an instrumentor (OpenLLMetry's, OpenInference's) has spans of graphs and tools already, those
are enriched, and no span but ``agentguard.authorize`` is added. All of this fails open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.tracers.context import register_configure_hook
from langgraph.errors import GraphBubbleUp
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from agentguard import Agent
from agentguard.adapters import AgentSpan, agent_span, attached, fails_open, inside_span, is_tracing
from agentguard_langchain.graph_task import GraphTask


class _Run:
    """A run of a chain or graph: the run around it, and its span once a guarded call is made."""

    __slots__ = ("around", "namespace", "parent", "span", "started")

    def __init__(self, parent: UUID | None, namespace: str) -> None:
        self.parent = parent
        self.namespace = namespace
        self.started = time.time_ns()
        self.around: Context = context.get_current()
        self.span: AgentSpan | None = None


class _Runs(BaseCallbackHandler):
    """A callback handler that keeps the runs which go on in this process."""

    run_inline = True  # in the context of whoever runs it
    ignore_agent = ignore_llm = ignore_chat_model = ignore_retriever = True
    ignore_retry = ignore_custom_event = True

    def __init__(self) -> None:
        self._runs: dict[UUID, _Run] = {}
        self._lock = threading.Lock()

    def on_chain_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002
        inputs: dict[str, Any],  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **_others: Any,
    ) -> None:
        """Keep a run that begins."""
        namespace = (metadata or {}).get("langgraph_checkpoint_ns") or ""
        self._runs[run_id] = _Run(parent_run_id, str(namespace))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_others: Any) -> None:  # noqa: ARG002
        """End the span of a run that has ended or paused."""
        self._end(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_others: Any) -> None:
        """End the span of a run that has failed; LangGraph's way to pause is no failure."""
        self._end(run_id, None if isinstance(error, GraphBubbleUp | GeneratorExit) else error)

    def _end(self, run_id: UUID, error: BaseException | None) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None and run.span is not None:
            run.span.end(error)

    def graph_run(self, run_id: UUID | None, task: GraphTask) -> tuple[UUID, _Run] | None:
        """Return the run of the graph of ``task``, around or equal to the run ``run_id``.

        Outside a graph, the outermost run is returned; None for none.
        """
        nearest: tuple[UUID, _Run] | None = None
        while run_id is not None and (run := self._runs.get(run_id)) is not None:
            nearest = (run_id, run)
            if task.namespace is not None and run.namespace == task.namespace:
                return nearest
            run_id = run.parent
        return nearest if task.namespace is None else None

    def span_of(self, run: _Run, begin: Callable[[], AgentSpan]) -> AgentSpan:
        """Return the span of a run; ``begin`` begins the span where there is none yet."""
        with self._lock:
            if run.span is None:
                run.span = begin()
            return run.span


_RUNS: Final = _Runs()
_SUBAGENT: Final = context.create_key("agentguard_subagent")


class _HandlerVariable:
    """Stands for a context variable that holds our handler as long as an SDK is set up."""

    def get(self) -> BaseCallbackHandler | None:
        return _RUNS if is_tracing() else None


register_configure_hook(cast("ContextVar[Any]", _HandlerVariable()), inheritable=True)


def callback_manager(config: RunnableConfig | None) -> BaseCallbackManager | None:
    """Return LangChain's callback manager of the run around; None without one, or without an SDK.

    Its ``parent_run_id`` is the id of that run.
    """
    manager = ensure_config(config).get("callbacks") if is_tracing() else None
    return manager if isinstance(manager, BaseCallbackManager) else None


@fails_open
def run_span(
    agent: Agent,
    task: GraphTask,
    manager: BaseCallbackManager | None,
    paused: Callable[[], str | None] = lambda: None,
) -> AgentSpan | None:
    """Return the span of the agent's run in ``task``, None for none.

    ``paused`` returns the ``traceparent`` of the paused run that this run continues, None for none;
    the function is called if the run has no span yet.
    """
    graph_run = None if manager is None else _RUNS.graph_run(manager.parent_run_id, task)
    if manager is None or graph_run is None:
        return None
    run_id, run = graph_run
    existing = _instrumentor_span(manager, run_id) or _subagent_run_span(agent, run.around)

    def begin() -> AgentSpan:
        return agent_span(
            agent,
            conversation=task.thread,
            paused=paused(),
            parent=run.around,
            started=run.started,
            inside=existing,
        )

    return _RUNS.span_of(run, begin)


@contextmanager
def subagent(agent: Agent) -> Iterator[None]:
    """Make the block a run of a sub-agent; the run of a graph in the block shares its span."""
    span = _begin_subagent_span(agent)
    if span is None or span.context is None:
        yield
        return
    here = trace.get_current_span(span.context)
    with attached(context.set_value(_SUBAGENT, (agent.id, here), span.context)):
        try:
            yield
        except GraphBubbleUp:
            span.end()
            raise
        except BaseException as error:
            span.end(error)
            raise
        span.end()


@fails_open
def _begin_subagent_span(agent: Agent) -> AgentSpan | None:
    manager = callback_manager(None)
    run_id = None if manager is None else manager.parent_run_id
    if manager is not None and run_id is not None and _instrumentor_span(manager, run_id):
        return None  # an instrumentor has a span of the run
    return agent_span(agent) if is_tracing() else None


def _subagent_run_span(agent: Agent, around: Context) -> Span | None:
    """Return the span of the sub-agent whose whole work is the run in this context."""
    value = context.get_value(_SUBAGENT, around)
    if not isinstance(value, tuple):
        return None
    agent_id, span = value
    return span if agent_id == agent.id and trace.get_current_span(around) is span else None


@contextmanager
def within(span: AgentSpan | None) -> Iterator[None]:
    """Put the block inside the span of a run, unless a span within that one is current."""
    around = None if span is None else span.context
    if around is not None:
        here = trace.get_current_span().get_span_context()
        own = trace.get_current_span(around).get_span_context()
        if here.trace_id == own.trace_id and not _is_outside(here.span_id, span):
            around = None
    with attached(around):
        yield


def _is_outside(span_id: int, span: AgentSpan | None) -> bool:
    """Whether the run was begun in this span: any other span of the trace is within the run."""
    return span is not None and span.parent_id == span_id


def calling(
    agent: Agent, task: GraphTask, manager: BaseCallbackManager | None, *, has_run: bool
) -> AbstractContextManager[None]:
    """Put a guarded call's span inside the span of the tool, or else of the agent's run.

    ``has_run`` says that LangChain runs the tool, which then may have a span of its own.
    ``manager`` is the callback manager of the run around the tool.
    """
    if manager is None:
        return nullcontext()
    run = run_span(agent, task, manager)
    tool_span = _tool_span(manager) if has_run else None
    return within(run) if tool_span is None else inside_span(tool_span)


@fails_open
def _tool_span(around: BaseCallbackManager) -> Span | None:
    """Return the span of the tool that runs here, which an instrumentor has made."""
    manager = callback_manager(None)
    run_id = None if manager is None else manager.parent_run_id
    if manager is None or run_id is None or run_id == around.parent_run_id:
        return None
    return _instrumentor_span(manager, run_id)


def _instrumentor_span(manager: BaseCallbackManager, run_id: UUID) -> Span | None:
    """Return the recording span of a run that another callback handler has; None for none."""
    for handler in manager.handlers:
        if handler is _RUNS:
            continue
        span: object = None
        holders = getattr(handler, "spans", None)  # OpenLLMetry's, by the run's id
        get_span = getattr(handler, "get_span", None)  # OpenInference's
        if isinstance(holders, Mapping):
            span = getattr(holders.get(run_id), "span", None)
        elif callable(get_span):
            span = get_span(run_id)
        if isinstance(span, Span) and span.is_recording():
            return span
    return None
