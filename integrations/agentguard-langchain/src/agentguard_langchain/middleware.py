"""``GuardMiddleware``: the guard of an agent that LangChain's ``create_agent`` makes.

It enforces around each tool call, and pauses after the model for the calls that need people. What
it does stands elsewhere: enforcement in ``enforcement.py``, the pause in ``approval_step.py``, for
whom a run goes on in ``toolset.py`` and ``run_record.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, NotRequired

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ModelRequest,
    ModelResponse,
    PrivateStateAttr,
)
from langchain_core.messages import AIMessage, AnyMessage, RemoveMessage, ToolMessage
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime

from agentguard import Agent, ConfigError
from agentguard_langchain.answers import AnsweredBy
from agentguard_langchain.approval_step import Approving
from agentguard_langchain.enforcement import Enforcement, Result
from agentguard_langchain.gate import OnDeny
from agentguard_langchain.graph_task import Place, past_turn
from agentguard_langchain.pending_turn import PendingTurn, forget_turn, withdraw_all
from agentguard_langchain.run_record import RunRecord, handle_of, retire
from agentguard_langchain.toolset import RunLender, Toolset

HANDLE: Final = "agentguard_run"


class GuardState(AgentState[Any]):
    """The state of a guarded agent: the handle of its run's record, which is no part of its input.

    Whoever can update the state can remove the handle: then the run does not go on.
    """

    agentguard_run: NotRequired[Annotated[str | None, PrivateStateAttr]]


class GuardMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Guards all tools of an agent, and asks people where the policy says so.

    Put it *last* in the list: then it is innermost around tools, so that what it decides on is what
    runs, and the first to see what the model says. It needs no ``guard_tools``; with it, tools are
    guarded also where they go past this agent.

    ``agent`` is an ``Agent`` or the name of one, as for ``guard_tools``, and so is ``on_deny``.
    ``delegation`` says for whom a run is made, from the graph's ``Runtime`` (around a tool its
    ``ToolRuntime``). Where it raises or returns None, that counts which is in force, and where
    nothing is, that with which the run was begun: it is kept, and serves in other processes as
    well. A run that was begun for one principal does not go on for another
    (``delegation.mismatch``).

    ``answered_by`` says who has given an answer that came unsigned, through the application's own
    interface; without it, or where ``[approvals] application`` is not on, such an approval does not
    count (docs/langchain.md). ``parallel_subagents=False`` has the sub-agents that one message
    calls (``guard_subagent``) work one at a time, so that no more than one of them can pause.

    A subclass derives its ``state_schema`` from this one's, and calls this one's ``before_agent``
    from its own: without the handle of its run's record, no call of a run in a thread is made.

    Raises ``ConfigError`` as ``guard_tools`` does.
    """

    state_schema = GuardState

    def __init__(
        self,
        agent: Agent | str,
        *,
        delegation: RunLender | None = None,
        on_deny: OnDeny = "return",
        parallel_subagents: bool = True,
        answered_by: AnsweredBy | None = None,
    ) -> None:
        super().__init__()
        if HANDLE not in self.state_schema.__annotations__:
            message = (
                f"{type(self).__name__}.state_schema is without {HANDLE}, by which a run finds for "
                "whom it was begun: derive the schema from GuardMiddleware.state_schema"
            )
            raise ConfigError(message)
        self._toolset = Toolset(agent, delegation, on_deny, answered_by)
        self._approving = Approving(self._toolset, HANDLE)
        self._enforcement = Enforcement(
            self._toolset, handle_key=HANDLE, parallel_subagents=parallel_subagents
        )

    # --- a run begins ---------------------------------------------------------------------------

    def before_agent(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Open the run's record; what an earlier run has left waiting is withdrawn."""
        place = Place.of(None)
        agent, before = self._toolset.agent, handle_of(state, HANDLE)
        if place.thread is None:
            return None
        if before is not None:
            retire(agent, place, before)
            if not place.namespace:  # else the thread is another graph's
                withdraw_all(agent, place, before)
        lent = self._toolset.lent(lambda: runtime).delegation
        acting = agent if lent is None else agent.under(lent)
        span = self._toolset.span(place, None, acting)
        handle = RunRecord.open(agent, place, lent, None if span is None else span.traceparent)
        messages = self._all_answered(place, state["messages"])
        forget_turn(agent, place, past_turn(state["messages"]))
        if messages is None:
            return {HANDLE: handle}
        # in their order: a provider takes the answers right after the message that asks
        return {HANDLE: handle, "messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *messages]}

    async def abefore_agent(
        self, state: GuardState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """Open the run's record; the async twin of ``before_agent``."""
        return await asyncio.to_thread(self.before_agent, state, runtime)

    def _all_answered(
        self, place: Place, messages: Sequence[AnyMessage]
    ) -> list[AnyMessage] | None:
        """Return the messages with an answer to each call; None if each has one."""
        answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
        found: list[AnyMessage] = []
        for message in messages:
            found.append(message)
            if isinstance(message, AIMessage):
                found += self._withdrawn(place, message, answered)
        return found if len(found) > len(messages) else None

    def _withdrawn(self, place: Place, message: AIMessage, answered: set[str]) -> list[AnyMessage]:
        """Withdraw what a message still asks for, and say so to the model."""
        ids = {c["id"]: c["name"] for c in message.tool_calls if c["id"] not in answered}
        if not ids:
            return []
        agent = self._toolset.agent
        pending_turn = PendingTurn.of_turn(agent, place, message.id)
        for call_id in ids:
            site = place.site(message.id, pending_turn.site_id(call_id or ""))
            request = agent.approvals.request_at(site.digest(agent.name))
            if request is not None:
                agent.approvals.withdraw(request)
        return [
            ToolMessage(
                f"Withdrawn: {name} was not run, because the conversation went on before it could.",
                name=name,
                tool_call_id=call_id,
                status="error",
            )
            for call_id, name in ids.items()
        ]

    # --- a turn ---------------------------------------------------------------------------------

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Learn the tools that the model is given."""
        self._toolset.learn(Place.of(None), request.tools)
        return handler(request)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Learn the tools that the model is given."""
        self._toolset.learn(Place.of(None), request.tools)
        return await handler(request)

    def after_model(self, state: GuardState, runtime: Runtime[Any]) -> None:
        """Pause, once, for all calls of the model's message that need people."""
        self._approving.step(state, runtime)

    async def aafter_model(self, state: GuardState, runtime: Runtime[Any]) -> None:
        """Pause for the calls that need people; the async twin of ``after_model``."""
        await self._approving.astep(state, runtime)

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]
    ) -> Result:
        """Have the guarded tool run in the place of the tool."""
        return self._enforcement.around(request, handler)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """Have the guarded tool run in the place of the tool; the async twin."""
        return await self._enforcement.aaround(request, handler)

    def __repr__(self) -> str:
        return f"<GuardMiddleware {self._toolset.agent.name}>"
