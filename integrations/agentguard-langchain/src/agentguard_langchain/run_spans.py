"""Where guarded calls stand in a trace: inside the span of their agent's run, or in a tool's own.

A run of a graph has a span ``invoke_agent`` once a guarded call is made in it, from when the run
began: LangChain tells a handler when runs begin and end, and what is part of what. Where an
instrumentor (OpenLLMetry's, OpenInference's) has spans of graphs and tools already, those are
enriched, and none is added but ``agentguard.authorize``. All of it fails open.
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

from agentguard import Agent, telemetry
from agentguard.telemetry import AgentSpan, fails_open, is_set_up
from agentguard_langchain.graph_task import Place


class _Run:
    """A run of a chain or graph: what it is part of, and its span once it turns out an agent's."""

    __slots__ = ("around", "namespace", "parent", "span", "started")

    def __init__(self, parent: UUID | None, namespace: str) -> None:
        self.parent = parent
        self.namespace = namespace
        self.started = time.time_ns()
        self.around: Context = context.get_current()
        self.span: AgentSpan | None = None


class _Runs(BaseCallbackHandler):
    """Knows the runs that go on in this process."""

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
        """Remember a run that begins."""
        namespace = (metadata or {}).get("langgraph_checkpoint_ns") or ""
        self._runs[run_id] = _Run(parent_run_id, str(namespace))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_others: Any) -> None:  # noqa: ARG002
        """End the span of a run that has ended; so has one that pauses."""
        self._end(run_id, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_others: Any) -> None:
        """End the span of a run that has failed; LangGraph's way to pause is no failure."""
        self._end(run_id, None if isinstance(error, GraphBubbleUp | GeneratorExit) else error)

    def _end(self, run_id: UUID, error: BaseException | None) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None and run.span is not None:
            run.span.end(error)

    def of_agent(self, run_id: UUID | None, place: Place) -> tuple[UUID, _Run] | None:
        """Return the run of the graph of ``place``, of which the run ``run_id`` is a part.

        What is no graph's is part of the outermost run there is.
        """
        found: tuple[UUID, _Run] | None = None
        while run_id is not None and (run := self._runs.get(run_id)) is not None:
            found = (run_id, run)
            if place.namespace is not None and run.namespace == place.namespace:
                return found
            run_id = run.parent
        return found if place.namespace is None else None

    def begun(self, run: _Run, begin: Callable[[], AgentSpan]) -> AgentSpan:
        """Return the span of a run; the first call begins it."""
        with self._lock:
            if run.span is None:
                run.span = begin()
            return run.span


_RUNS: Final = _Runs()
_SUBAGENT: Final = context.create_key("agentguard_subagent")


class _WhereAnSdkIs:
    """Is a context variable to LangChain: of our handler, as long as there is an SDK."""

    def get(self) -> BaseCallbackHandler | None:
        return _RUNS if is_set_up() else None


register_configure_hook(cast("ContextVar[Any]", _WhereAnSdkIs()), inheritable=True)


def manager_of(config: RunnableConfig | None) -> BaseCallbackManager | None:
    """Return who is told of runs, and of what run this is part; None where there is no SDK."""
    found = ensure_config(config).get("callbacks") if is_set_up() else None
    return found if isinstance(found, BaseCallbackManager) else None


@fails_open
def run_span(
    agent: Agent,
    place: Place,
    manager: BaseCallbackManager | None,
    paused: Callable[[], str | None] = lambda: None,
) -> AgentSpan | None:
    """Return the span of the agent's run that goes on here, None for none.

    ``paused`` says which run it continues, if this one has no span yet.
    """
    found = None if manager is None else _RUNS.of_agent(manager.parent_run_id, place)
    if manager is None or found is None:
        return None
    run_id, run = found
    theirs = _span_of(manager, run_id) or _of_subagent(agent, run.around)

    def begin() -> AgentSpan:
        return agent.span(
            conversation=place.thread,
            paused=paused(),
            parent=run.around,
            started=run.started,
            inside=theirs,
        )

    return _RUNS.begun(run, begin)


@contextmanager
def subagent(agent: Agent) -> Iterator[None]:
    """Let what is done here be a run of a sub-agent; a graph's run in it is the same one."""
    span = _subagent_span(agent)
    if span is None or span.context is None:
        yield
        return
    here = trace.get_current_span(span.context)
    with telemetry.attached(context.set_value(_SUBAGENT, (agent.id, here), span.context)):
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
def _subagent_span(agent: Agent) -> AgentSpan | None:
    manager = manager_of(None)
    run_id = None if manager is None else manager.parent_run_id
    if manager is not None and run_id is not None and _span_of(manager, run_id) is not None:
        return None  # an instrumentor has one
    return agent.span() if is_set_up() else None


def _of_subagent(agent: Agent, around: Context) -> Span | None:
    """Return the span of the sub-agent whose whole work is what was begun in this context."""
    found = context.get_value(_SUBAGENT, around)
    if not isinstance(found, tuple):
        return None
    whose, span = found
    return span if whose == agent.id and trace.get_current_span(around) is span else None


@contextmanager
def within(span: AgentSpan | None) -> Iterator[None]:
    """Let what is done here be inside the span of a run, unless it is inside something in it."""
    around = None if span is None else span.context
    if around is not None:
        here = trace.get_current_span().get_span_context()
        own = trace.get_current_span(around).get_span_context()
        if here.trace_id == own.trace_id and not _is_outside(here.span_id, span):
            around = None
    with telemetry.attached(around):
        yield


def _is_outside(span_id: int, span: AgentSpan | None) -> bool:
    """Whether it is the span in which the run was begun: any other in its trace is inside."""
    return span is not None and span.parent_id == span_id


def calling(
    agent: Agent, place: Place, manager: BaseCallbackManager | None, *, announced: bool
) -> AbstractContextManager[None]:
    """Let the guarded call that is made here stand in its agent's run.

    Where the tool has a span of its own it stands in that; ``announced`` says that it has a run,
    and ``manager`` is that of what is around it.
    """
    if manager is None:
        return nullcontext()
    run = run_span(agent, place, manager)
    theirs = _tool_span(manager) if announced else None
    return within(run) if theirs is None else telemetry.inside(theirs)


@fails_open
def _tool_span(around: BaseCallbackManager) -> Span | None:
    """Return the span that an instrumentor has made of the tool that runs here."""
    manager = manager_of(None)
    run_id = None if manager is None else manager.parent_run_id
    if manager is None or run_id is None or run_id == around.parent_run_id:
        return None
    return _span_of(manager, run_id)


def _span_of(manager: BaseCallbackManager, run_id: UUID) -> Span | None:
    """Return the span that some other handler has of a run, as long as it records."""
    for handler in manager.handlers:
        if handler is _RUNS:
            continue
        found: object = None
        kept = getattr(handler, "spans", None)  # OpenLLMetry's, of holders by the run's id
        get = getattr(handler, "get_span", None)  # OpenInference's
        if isinstance(kept, Mapping):
            found = getattr(kept.get(run_id), "span", None)
        elif callable(get):
            found = get(run_id)
        if isinstance(found, Span) and found.is_recording():
            return found
    return None
