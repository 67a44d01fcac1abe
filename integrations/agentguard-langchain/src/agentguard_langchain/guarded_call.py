"""One call of a tool: what is known of it on its way through the tool's layers, and its work.

Who is asked about it stands in ``gate.py``; what a call binds in ``binding.py``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool

from agentguard import ApprovalPending, ApprovalRequest, CallSite, ConfigError, Denied
from agentguard.delegation import context
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.graph_task import Place, anew
from agentguard_langchain.nested_work import Work, placed_here, working
from agentguard_langchain.run_spans import manager_of

_LOGGER: Final = logging.getLogger("agentguard")

_ELSEWHERE: Final = (
    "the call of %s has ended while a graph in it waits for people in a thread of its own: resume "
    "that thread once they have answered, or let the tool invoke the graph without a thread_id, so "
    "that it pauses with the run"
)


class SubagentTool:
    """Marks the class of a tool that runs a sub-agent."""

    __slots__ = ()


def is_handover(tool: BaseTool) -> bool:
    """Whether all that a tool does is the work of another agent, or of one of another graph.

    That is known of what ``guard_subagent`` has wrapped, and of deepagents' ``task``.
    """
    return isinstance(tool, SubagentTool) or _is_deepagents_task(tool)


def _is_deepagents_task(tool: BaseTool) -> bool:
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    return tool.name == "task" and getattr(function, "__module__", None) == _SUBAGENTS


_SUBAGENTS: Final = "deepagents.middleware.subagents"


class IncompleteError(ApprovalPending):
    """A call that hands work over has returned, while a call within it waits for people.

    ``requests`` are what it waits for. ``anew`` says that a graph within has ended: once the call
    is made again, that graph begins anew.
    """

    def __init__(self, requests: Sequence[ApprovalRequest], *, anew: bool) -> None:
        super().__init__(requests[0], "nobody has answered yet")
        self.requests = requests
        self.anew = anew


class UnfinishedError(ConfigError):
    """A tool left work behind that goes on by itself: nobody knows what becomes of it."""


class Call:
    """One call on its way through a tool's layers.

    ``parsing`` while its input is validated; ``made`` are the arguments that default factories
    made then, ``objects`` the framework's objects in the raw input, None if there was none.
    ``around`` is the config of what runs around the call, None for nothing that is known.
    ``taken`` once a gate has answered for it, ``inside`` while its body runs;
    ``refusal`` is what the gate raised instead; ``waits`` tells whether a request waits,
    ``anew`` whether graphs within begin from their beginning.
    """

    __slots__ = (
        *("anew", "around", "config", "id", "inside", "made", "manager", "objects", "parsing"),
        *("place", "placed", "refusal", "taken", "tool", "waits"),
    )

    def __init__(
        self, tool: BaseTool, call_id: str | None = None, config: RunnableConfig | None = None
    ) -> None:
        self.tool = tool
        self.id = call_id
        self.config = config
        self.around = var_child_runnable_config.get()
        self.parsing = False
        self.made: Mapping[str, Any] = {}
        self.objects: Sequence[object] | None = None
        self.taken = False
        self.inside = False
        self.refusal: Denied | None = None
        self.manager = manager_of(config)
        self.place = Place.of(config)
        self.placed = placed_here(call_id, self.place)
        self.anew = False
        self.waits: Callable[[ApprovalRequest], bool] = lambda _request: True

    def site(self, otherwise: Callable[[], str]) -> CallSite:
        """Return where the call stands in a run; a tool by itself does not know the turn.

        ``otherwise`` names a call without an id. Made again it would have another name, so that it
        is looked for by what it is, and not by its place in a thread.
        """
        if self.placed is not None:
            return self.placed.site
        if self.id is None:
            return CallSite(otherwise())
        return CallSite(self.id, self.place.run, self.place.task)


CURRENT: Final[ContextVar[Call | None]] = ContextVar("agentguard_langchain_call", default=None)
"""The call that ``run`` or ``arun`` began last in this context."""


@contextmanager
def current(call: Call) -> Iterator[None]:
    """Make ``call`` the current one."""
    token = CURRENT.set(call)
    try:
        yield
    finally:
        # A coroutine that is closed half-way may be closed from another context, which never
        # had this call: there is nothing to undo in it.
        with suppress(ValueError):
            CURRENT.reset(token)


def call_of(tool: BaseTool) -> Call:
    """Return the call that ``run`` began, if this is it; else one that nobody announced."""
    call = CURRENT.get()
    if call is not None and call.tool is tool and (call.inside or not call.taken):
        return call
    return Call(tool)


class Body:
    """The original with its arguments: it runs once the call is authorised.

    In a tool's own ``_run`` or ``_arun`` (``layered``), the tool's further layers pass unasked as
    long as it runs. What such a body calls by ``run`` or ``invoke`` is a call of its own.
    """

    __slots__ = (
        "args",
        "around",
        "call",
        "codec",
        "function",
        "hands_over",
        "kwargs",
        "layered",
        "started",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        codec: ToolResults,
        *,
        layered: bool,
    ) -> None:
        self.function = function
        self.codec = codec
        self.args = args
        self.kwargs = kwargs
        self.layered = layered
        self.started = False
        self.hands_over = False
        self.around: Work | None = None
        self.call: Call | None = None

    def run(self) -> Any:
        """Run the original; raises ``ConfigError`` where its work is still to come."""
        with self._running():
            return self._finished(self.function(*self.args, **self.kwargs))

    async def arun(self) -> Any:
        """Run the original, which may return an awaitable; raises as ``run`` does."""
        with self._running():
            result = self.function(*self.args, **self.kwargs)
            return self._finished(await result if inspect.isawaitable(result) else result)

    @property
    def given(self) -> Iterable[object]:
        """All that the original is given."""
        return (*self.args, *self.kwargs.values())

    def begin(self, call: Call) -> None:
        """Let ``call`` be the one that this body answers for."""
        call.taken = True
        self.call = call

    def _finished(self, result: Any) -> Any:
        """Refuse a result whose effects are still to come: nobody would watch them."""
        name = self.call.tool.name if self.call is not None else "this"
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            message = f"tool {name} returned a generator, which was not run: return a list instead"
            raise ConfigError(message, code="tool.generator")
        instead = "pass an async function as the tool's coroutine, or let a class await in _arun"
        if inspect.iscoroutine(result):
            result.close()
            message = f"tool {name} returned a coroutine, which was not run: {instead}"
            raise ConfigError(message, code="tool.async")
        if inspect.isawaitable(result):
            message = f"tool {name} returned an awaitable, which nobody awaits: {instead}"
            raise UnfinishedError(message, code="tool.async")
        return result

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run it as the work of its call; raises ``IncompleteError`` where that has not ended."""
        self.started = True
        call, within = self.call, context.inside()
        assert call is not None  # noqa: S101  it has begun
        if within is not None and is_handover(call.tool):
            within.hands_over = True
        if self.around is not None:
            self.around.ran = True
        work = Work(call.place)
        try:
            with working(work), anew(call.anew):
                if not self.layered:
                    yield
                else:
                    with current(call):
                        call.inside = True
                        try:
                            yield
                        finally:
                            call.inside = False
        finally:
            if within is not None and work.elsewhere:
                within.hands_over = False  # made again, it would ask the graph for the same anew
                _LOGGER.warning(_ELSEWHERE, call.tool.name)
            self.hands_over = within is not None and within.hands_over
        if within is not None and within.hands_over and (within.repeatable or work.paused):
            if work.ran and not work.paused:
                return  # made again, a graph within would do twice what it has done
            waiting = [request for request in within.requests if call.waits(request)]
            if waiting:
                raise IncompleteError(waiting, anew=not work.paused)
