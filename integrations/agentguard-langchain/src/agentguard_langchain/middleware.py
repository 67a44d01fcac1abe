"""``GuardMiddleware``: the guard of an agent that LangChain's ``create_agent`` makes.

The middleware guards each tool call (``enforcement.py``), and pauses after the model for the calls
that need people (``approval_step.py``). A record keeps for whom a run was begun
(``run_record.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
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

from agentguard import Agent, AgentguardError, ConfigError
from agentguard_langchain.answers import AnsweredBy
from agentguard_langchain.approval_step import ApprovalStep
from agentguard_langchain.enforcement import Enforcement, Result
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.pending_turn import PendingTurn, forget_turn, withdraw_all
from agentguard_langchain.run_record import RunRecord, handle_of, retire
from agentguard_langchain.tool_state import OnDeny
from agentguard_langchain.toolset import RunDelegationSource, Toolset
from agentguard_langchain.turn import previous_turn_id

_WITHDRAWN: Final = (
    "Withdrawn: {name} was not run, because the conversation went on before it could."
)
_EXPIRED: Final = "Expired: {name} was not run, because nobody has approved it in time."
_UNKNOWN: Final = (
    "Interrupted: the conversation went on before {name} had an answer, and nobody knows here "
    "whether it was run. Do not repeat the call before you have found out."
)
"""For a call that waits for nobody: its process may have ended after the tool had run."""

HANDLE: Final = "agentguard_run"


def _text_of(agent: Agent, request_id: str | None) -> str:
    """Return what the model is told of an open call with this request; None for no such request."""
    if request_id is None:
        return _UNKNOWN
    texts = {"withdrawn": _WITHDRAWN, "expired": _EXPIRED}
    with suppress(AgentguardError):
        return texts.get(agent.approvals.status(request_id).state, _UNKNOWN)
    return _UNKNOWN


class GuardState(AgentState[Any]):
    """The state of a guarded agent, with the handle of the run's record.

    The handle is no part of the agent's input. A caller that updates the state can remove the
    handle: then the run does not continue.
    """

    agentguard_run: NotRequired[Annotated[str | None, PrivateStateAttr]]


class GuardMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Guards all tools of an agent, and asks people where the policy says so.

    Put ``GuardMiddleware`` *last* in the list of middleware. It then is innermost around tools: the
    call that it decides on is the call that runs. It also is the first to see the model's message.
    ``guard_tools`` is not needed beside it; use both for tools that other code calls as well.

    ``agent`` is an ``Agent`` or the name of one, and ``on_deny`` is "return" or "raise", as for
    ``guard_tools``. ``delegation`` returns the ``Delegation`` of a run. Its argument is the graph's
    ``Runtime``; around a tool, the ``ToolRuntime``. Where the function raises or returns None, the
    delegation in force counts. Where none is in force, the delegation counts with which the run was
    begun: the run's record keeps it, for other processes as well. A run that was begun for one
    principal does not continue for another (``delegation.mismatch``).

    ``answered_by`` returns who has given an answer that came unsigned, through the application's
    own interface. Without the function, and where ``[approvals] application`` is not on, an
    unsigned approval does not count (langchain-approvals.md).

    With ``parallel_subagents=False``, the sub-agents that one message calls (``guard_subagent``)
    work one at a time, so that no more than one of them can pause.

    A subclass derives its ``state_schema`` from this one's, and calls this one's ``before_agent``
    from its own: without the handle of the run's record, each call of a run in a thread is refused.

    Raises ``ConfigError`` as ``guard_tools`` does.
    """

    state_schema = GuardState

    def __init__(
        self,
        agent: Agent | str,
        *,
        delegation: RunDelegationSource | None = None,
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
        self._approval_step = ApprovalStep(self._toolset, HANDLE)
        self._enforcement = Enforcement(
            self._toolset, handle_key=HANDLE, parallel_subagents=parallel_subagents
        )

    # --- a run begins ---------------------------------------------------------------------------

    def before_agent(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Open the run's record, and withdraw the requests that an earlier run left open."""
        task = GraphTask.of(None)
        agent, previous_handle = self._toolset.agent, handle_of(state, HANDLE)
        if task.thread is None:
            return None
        withdrawn: dict[str, str] = {}
        if previous_handle is not None:
            retire(agent, task, previous_handle)
            if not task.namespace:  # else the thread is another graph's
                withdrawn = withdraw_all(agent, task, previous_handle)
        delegation = self._toolset.delegation(lambda: runtime).delegation
        acting_agent = agent if delegation is None else agent.under(delegation)
        span = self._toolset.span(task, None, acting_agent)
        traceparent = None if span is None else span.traceparent
        handle = RunRecord.open(agent, task, delegation, traceparent)
        messages = self._all_answered(task, state["messages"], withdrawn)
        forget_turn(agent, task, previous_turn_id(state["messages"]))
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
        self, task: GraphTask, messages: Sequence[AnyMessage], withdrawn: Mapping[str, str]
    ) -> list[AnyMessage] | None:
        """Return the messages with an answer to each tool call; None if no answer is missing.

        ``withdrawn`` are the requests that have just been withdrawn, by the sites of their calls.
        """
        answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
        completed: list[AnyMessage] = []
        for message in messages:
            completed.append(message)
            if isinstance(message, AIMessage):
                completed += self._withdraw_open(task, message, answered, withdrawn)
        return completed if len(completed) > len(messages) else None

    def _withdraw_open(
        self,
        task: GraphTask,
        message: AIMessage,
        answered: set[str],
        withdrawn: Mapping[str, str],
    ) -> list[AnyMessage]:
        """Withdraw the requests of a message's open calls; return the answers for the model."""
        ids = {c["id"]: c["name"] for c in message.tool_calls if c["id"] not in answered}
        if not ids:
            return []
        agent = self._toolset.agent
        pending_turn = PendingTurn.of_turn(agent, task, message.id)
        shown = {one.call_id: one.request_id for one in pending_turn.shown or ()}
        texts: dict[str | None, str] = {}
        for call_id, name in ids.items():
            site = task.call_site(message.id, pending_turn.site_id(call_id or ""))
            digest = site.digest(agent.name)
            request = agent.approvals.request_at(digest)
            request_id = withdrawn.get(digest, shown.get(call_id or ""))
            if request is not None:  # another process may have begun the call with its approval
                request_id = request.request_id if agent.approvals.withdraw(request) else None
            texts[call_id] = _text_of(agent, request_id).format(name=name)
        return [
            ToolMessage(texts[call_id], name=name, tool_call_id=call_id, status="error")
            for call_id, name in ids.items()
        ]

    # --- a turn ---------------------------------------------------------------------------------

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        """Learn the tools that the model is given."""
        self._toolset.learn(GraphTask.of(None), request.tools)
        return handler(request)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Learn the tools that the model is given."""
        self._toolset.learn(GraphTask.of(None), request.tools)
        return await handler(request)

    def after_model(self, state: GuardState, runtime: Runtime[Any]) -> None:
        """Pause, once, for all calls of the model's message that need people."""
        self._approval_step.run(state, runtime)

    async def aafter_model(self, state: GuardState, runtime: Runtime[Any]) -> None:
        """Pause for the calls that need people; the async twin of ``after_model``."""
        await self._approval_step.arun(state, runtime)

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
