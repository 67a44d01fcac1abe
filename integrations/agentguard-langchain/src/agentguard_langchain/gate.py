"""One call on its way through the layers of a tool: it is answered for once, then it runs.

``Gate`` holds the agent and asks it; ``Call`` is what is known of the call. Which functions are
gated stands in ``gated.py``, what a call binds in ``binding.py``, under which delegation it is made
in ``lending.py``, how a refusal looks in ``denial.py``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, Literal, NoReturn, Self

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphDrained, GraphInterrupt

from agentguard import Agent, ApprovalPending, CallSite, ConfigError, Denied, Invocation
from agentguard_langchain import caching
from agentguard_langchain.codec import ToolResults
from agentguard_langchain.denial import GuardedToolDenied, denial_message
from agentguard_langchain.lending import Lender, acting, runtime_of
from agentguard_langchain.place import Place
from agentguard_langchain.placed import placed_here, placing
from agentguard_langchain.traced import calling, manager_of
from agentguard_langchain.waiting import Waiting

OnDeny = Literal["return", "raise"]


class SubagentTool:
    """Marks the class of a tool that runs a sub-agent."""

    __slots__ = ()


class UnfinishedError(ConfigError):
    """A tool left work behind that goes on by itself: nobody knows what becomes of it."""


class Call:
    """One call on its way through a tool's layers.

    ``parsing`` while its input is validated; ``made`` are the arguments that default factories
    made then, ``objects`` the framework's objects in the raw input, None if there was none.
    ``taken`` once a gate has answered for it, ``inside`` while its body runs;
    ``refusal`` is what the gate raised instead.
    """

    __slots__ = (
        *("config", "id", "inside", "made", "manager", "objects", "parsing", "place", "placed"),
        *("refusal", "taken", "tool"),
    )

    def __init__(
        self, tool: BaseTool, call_id: str | None = None, config: RunnableConfig | None = None
    ) -> None:
        self.tool = tool
        self.id = call_id
        self.config = config
        self.parsing = False
        self.made: Mapping[str, Any] = {}
        self.objects: Sequence[object] | None = None
        self.taken = False
        self.inside = False
        self.refusal: Denied | None = None
        self.manager = manager_of(config)
        self.place = Place.of(config)
        self.placed = placed_here(call_id, self.place)

    def site(self, otherwise: Callable[[], str]) -> CallSite:
        """Return where the call stands in a run; a tool by itself does not know the turn.

        ``otherwise`` names a call without an id. Made again it would have another name, so that it
        is looked for by what it is, and not by its place in a thread.
        """
        if self.placed is not None:
            return self.placed.site
        if self.id is None:
            return CallSite(otherwise())
        return CallSite(self.id, self.place.thread, self.place.task)


_UNKNOWN: Final = (UnfinishedError,)
"""What leaves the outcome of a call unknown: work left behind."""

_HANDS_ON: Final = (GraphBubbleUp,)
"""LangGraph's ways to go on elsewhere, as in the graph around this one; it is no error."""

_SUSPENDS: Final = (GraphInterrupt, GraphDrained)
"""LangGraph's ways to pause: the call is made again, and goes on, when the run is resumed."""

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

    __slots__ = ("args", "call", "codec", "function", "kwargs", "layered", "started")

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
        self.started = True
        call = self.call
        if call is None or not self.layered:
            with placing(None):  # what the body calls is another call
                yield
            return
        with placing(None), current(call):
            call.inside = True
            try:
                yield
            finally:
                call.inside = False


class Gate:
    """The agent for which tools run, who lends it what, and what a refused tool call gives back."""

    __slots__ = ("__weakref__", "agent", "lender", "on_deny")

    def __init__(self, agent: Agent, on_deny: OnDeny, lender: Lender | None = None) -> None:
        self.agent = agent
        self.on_deny = on_deny
        self.lender = lender

    def acting(self, call: Call, given: Iterable[object]) -> Agent:
        """Return the agent as it makes ``call``, which was ``given`` these arguments."""
        if call.placed is not None and call.placed.agent.id == self.agent.id:
            return call.placed.agent
        runtime = functools.partial(runtime_of, given, call.config, call.id)
        return acting(self.agent, self.lender, runtime)

    def run(self, tool: BaseTool, body: Body, describe: Callable[[Call], Invocation]) -> Any:
        """Run ``body`` if the agent may, or as a further layer of a call that it may make.

        ``describe`` binds the call. Raises ``Denied``, ``ApprovalPending``, or what the body
        raises; LangGraph's way to pause leaves the outcome unknown.
        """
        call = call_of(tool)
        if call.inside:
            return body.function(*body.args, **body.kwargs)
        announced = call is CURRENT.get()
        if call.placed is not None:
            call.placed.passed.append(True)
        body.begin(call)
        agent = self.acting(call, body.given)
        waiting = self._waiting(agent, call)
        try:
            waiting.begin()
            while True:
                try:
                    invocation = waiting.told(describe(call))
                    options = _journal(tool, body, call, invocation)
                    with calling(agent, call.place, call.manager, announced=announced):
                        return agent.run(invocation, body.run, **options)
                except ApprovalPending as pending:
                    if body.started:
                        raise
                    waiting.settle(pending)
        except Denied as denied:
            if not body.started:
                call.refusal = denied
                _require_uncached(denied)
            raise

    async def arun(self, tool: BaseTool, body: Body, describe: Callable[[Call], Invocation]) -> Any:
        """Run ``body`` on the event loop; the async twin of ``run``."""
        call = call_of(tool)
        if call.inside:
            result = body.function(*body.args, **body.kwargs)
            return await result if inspect.isawaitable(result) else result
        announced = call is CURRENT.get()
        if call.placed is not None:
            call.placed.passed.append(True)
        body.begin(call)
        agent = self.acting(call, body.given)
        waiting = self._waiting(agent, call)
        try:
            waiting.begin()
            while True:
                try:
                    invocation = waiting.told(describe(call))
                    options = _journal(tool, body, call, invocation)
                    with calling(agent, call.place, call.manager, announced=announced):
                        return await agent.arun(invocation, body.arun, **options)
                except ApprovalPending as pending:
                    if body.started:
                        raise
                    await asyncio.to_thread(waiting.settle, pending)  # it writes
        except Denied as denied:
            if not body.started:
                call.refusal = denied
                _require_uncached(denied)
            raise

    def _waiting(self, agent: Agent, call: Call) -> Waiting:
        refused = caching.refusal(call.config)
        return Waiting(agent, call.id, call.place, call.placed, self.on_deny, refused)

    def refuse(self, tool: str, tool_call_id: str | None, denied: Denied) -> object:
        """Return the message that answers a tool call; raises ``GuardedToolDenied`` elsewhere."""
        if self.on_deny == "return" and tool_call_id is not None:
            return denial_message(tool, tool_call_id, denied.decision)
        raise GuardedToolDenied(tool, denied.decision) from denied

    def __repr__(self) -> str:
        return "<Gate>"

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copied tool acts for the same agent instance

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise not_pickled()


def _journal(tool: BaseTool, body: Body, call: Call, invocation: Invocation) -> dict[str, Any]:
    """Return how a call is kept, so that it does not run again where a run is resumed."""
    return {
        "outcome_unknown": _UNKNOWN,
        "suspends": _SUSPENDS,
        "hands_on": _HANDS_ON,
        "codec": body.codec if call.place.recurs(invocation.site) else None,
        "reentrant": isinstance(tool, SubagentTool),
    }


def _require_uncached(denied: Denied) -> None:
    """Raise ``ConfigError`` in a cached node: a refusal that it returns would be cached as well."""
    if denied.code == "node.cached":
        raise ConfigError(denied.reason, code="node.cached") from denied


def not_pickled() -> TypeError:
    """Return the error of pickling what is tied to a key in this process."""
    return TypeError("a guarded tool can't be pickled: pickle the tool, and guard it where it runs")
