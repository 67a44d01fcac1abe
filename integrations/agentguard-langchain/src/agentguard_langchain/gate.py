"""One call on its way through the layers of a tool: it is answered for once, then it runs.

``Gate`` holds the agent and asks it; ``Call`` is what is known of the call. Which functions are
gated stands in ``gated_functions.py``, what a call binds in ``binding.py``, under which delegation
it is made in ``delegation.py``, how a refusal looks in ``denial.py``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NoReturn, Self

from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphDrained, GraphInterrupt

from agentguard import (
    Agent,
    ApprovalPending,
    ConfigError,
    Denied,
    Invocation,
)
from agentguard_langchain import caching
from agentguard_langchain.delegation import Lender, acting, runtime_of
from agentguard_langchain.denial import GuardedToolDenied, denial_message
from agentguard_langchain.guarded_call import (
    CURRENT,
    Body,
    Call,
    IncompleteError,
    UnfinishedError,
    call_of,
    is_handover,
)
from agentguard_langchain.nested_work import note_nested
from agentguard_langchain.pause import Waiting
from agentguard_langchain.run_spans import calling

OnDeny = Literal["return", "raise"]


_UNKNOWN: Final = (UnfinishedError,)
"""What leaves the outcome of a call unknown: work left behind."""

_HANDS_ON: Final = (GraphBubbleUp,)
"""LangGraph's ways to go on elsewhere, as in the graph around this one; it is no error."""

_SUSPENDS: Final = (GraphInterrupt, GraphDrained, IncompleteError)
"""LangGraph's ways to pause: the call is made again, and goes on, when the run is resumed."""


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
        body.around = note_nested(call.place)
        agent = self.acting(call, body.given)
        call.waits = agent.approvals.is_waiting
        waiting = self._waiting(agent, call)
        try:
            call.anew = waiting.begin()
            while True:
                try:
                    invocation = waiting.told(describe(call))
                    options = _journal(tool, body, call, invocation)
                    with calling(agent, call.place, call.manager, announced=announced):
                        return agent.run(invocation, body.run, **options)
                except ApprovalPending as pending:
                    if body.started and not body.hands_over:
                        raise
                    body.started = False
                    waiting.settle(pending, **_left(call, pending))
                except Denied as denied:
                    if body.started or not waiting.settles(tool.name, denied):
                        raise
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
        body.around = note_nested(call.place)
        agent = self.acting(call, body.given)
        call.waits = agent.approvals.is_waiting
        waiting = self._waiting(agent, call)
        try:
            call.anew = waiting.begin()
            while True:
                try:
                    invocation = waiting.told(describe(call))
                    options = _journal(tool, body, call, invocation)
                    with calling(agent, call.place, call.manager, announced=announced):
                        return await agent.arun(invocation, body.arun, **options)
                except ApprovalPending as pending:
                    if body.started and not body.hands_over:
                        raise
                    body.started = False
                    left = _left(call, pending)
                    await asyncio.to_thread(waiting.settle, pending, **left)  # it writes
                except Denied as denied:
                    if body.started or not await asyncio.to_thread(
                        waiting.settles, tool.name, denied
                    ):
                        raise
        except Denied as denied:
            if not body.started:
                call.refusal = denied
                _require_uncached(denied)
            raise

    def _waiting(self, agent: Agent, call: Call) -> Waiting:
        refused = caching.refusal(call.config, call.around)
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
        "reentrant": is_handover(tool),
    }


def _left(call: Call, pending: ApprovalPending) -> dict[str, Any]:
    """Return what the calls within ``call`` have left open; nothing where it waits itself."""
    if not isinstance(pending, IncompleteError):
        return {}
    call.anew = pending.anew
    return {"requests": pending.requests, "anew": pending.anew}


def _require_uncached(denied: Denied) -> None:
    """Raise ``ConfigError`` in a cached node: a refusal that it returns would be cached as well."""
    if denied.code == "node.cached":
        raise ConfigError(denied.reason, code="node.cached") from denied


def not_pickled() -> TypeError:
    """Return the error of pickling what is tied to a key in this process."""
    return TypeError("a guarded tool can't be pickled: pickle the tool, and guard it where it runs")
