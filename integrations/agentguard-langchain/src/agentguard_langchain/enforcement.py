"""Enforcement around a tool call: the guarded tool runs in the place of the tool.

Enforcement is the innermost wrapper of tool calls, in the middleware and in ``guard_tool_node``. It
announces to the tool what the model's turn says of the call (``announced_call.py``). The decision
itself stands in ``guarded_call.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, cast

from langchain_core.messages import ToolCall, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from agentguard import ConfigError, Decision
from agentguard_langchain.announced_call import AnnouncedCall, announcing, run_around
from agentguard_langchain.answers import Answers
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.nested_work import SubagentTool
from agentguard_langchain.pending_turn import PendingTurn
from agentguard_langchain.run_record import handle_of
from agentguard_langchain.tool_state import shape_of
from agentguard_langchain.toolset import Toolset
from agentguard_langchain.turn import Turn, messages_of, turn_of

Result = ToolMessage | Command[Any]

_GONE: Final = (
    "{name} was not run: people were asked about this call, and no tool has this name any more. "
    "The tool was renamed or removed while the call waited. Call a tool that is there instead."
)


class Enforcement(NamedTuple):
    """Wraps the tool calls of a toolset.

    ``handle_key`` is the key of the run record's handle in the graph's state, None for no records.
    ``messages_key`` is the key of the messages.
    """

    toolset: Toolset
    handle_key: str | None = None
    messages_key: str = "messages"
    parallel_subagents: bool = True

    def around(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]
    ) -> Result:
        """Have ``handler`` run the guarded tool in the place of the tool of ``request``."""
        guarded_request, call = self._announce(request)
        with announcing(call):
            result = _checked(call, handler(guarded_request))
        return result if request.tool is not None else self._without_tool(call, result)

    async def aaround(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """Have ``handler`` run the guarded tool; the async twin of ``around``."""
        guarded_request, call = self._announce(request)
        with announcing(call):
            result = _checked(call, await handler(guarded_request))
        if request.tool is not None:
            return result
        return await asyncio.to_thread(self._without_tool, call, result)

    def _without_tool(self, call: AnnouncedCall, result: Result) -> Result:
        """Withdraw the request of a call that waited and whose tool is gone, and say so."""
        inbox = self.toolset.agent.approvals
        asked = inbox.request_at(call.site.digest(call.agent.name))
        if asked is None or not isinstance(result, ToolMessage) or not inbox.withdraw(asked):
            return result
        return result.model_copy(update={"content": _GONE.format(name=asked.tool)})

    def _announce(self, request: ToolCallRequest) -> tuple[ToolCallRequest, AnnouncedCall]:
        """Return the request with the guarded tool, and what is announced to that tool.

        Where no tool has the name, LangGraph answers the call with an error.
        """
        toolset, tool_call = self.toolset, request.tool_call
        call_id = tool_call["id"] or ""
        tools = [toolset.guarded_if_possible(tool) for tool in request.runtime.tools]
        runtime = replace(request.runtime, tools=tools)
        # a tool may be false, as an empty collection is
        tool = None if request.tool is None else toolset.guarded(request.tool)
        sealed = _SealedRequest(tool_call, tool, request.state, runtime, toolset)
        task = GraphTask.of(runtime.config)
        turn = turn_of(messages_of(request.state, self.messages_key), tool_call["id"])
        turn_id = None if turn is None else turn.id
        pending_turn = PendingTurn.of_turn(toolset.agent, task, turn_id)
        tool_call = pending_turn.edited(tool_call)
        if tool is not None:
            tool_call = _without_hidden(tool_call, tool)
        key = self.handle_key
        handle = None if key is None else handle_of(request.state, key)
        agent = toolset.acting_agent(task, handle, lambda: runtime, has_record=key is not None)
        toolset.span(task, handle, agent)  # begun here, the span continues that of a paused run
        call = AnnouncedCall(
            tool_call=tool_call,
            task=task,
            site=task.call_site(turn_id, pending_turn.site_id(call_id)),
            agent=agent,
            answers=Answers(agent, toolset.answered_by, runtime),
            run=run_around() or handle,
            refusal=self._refusal(tool_call, turn, pending_turn, request),
            edit=pending_turn.edits.get(call_id),
        )
        return sealed.override(tool_call=tool_call), call

    def _refusal(
        self, call: ToolCall, turn: Turn | None, pending_turn: PendingTurn, request: ToolCallRequest
    ) -> Decision | None:
        call_id = call["id"] or ""
        if turn is not None and turn.is_ambiguous(call["id"]):
            reason = f"two calls of one message have the id {call_id}: none of them is made"
            return Decision.refusal(reason, code="call.duplicate")
        rejection = pending_turn.refusal(call_id)
        if rejection is not None:
            return rejection
        if turn is not None and not self.parallel_subagents and _follows_subagent(turn, request):
            reason = "sub-agents work one at a time here; call it again when the other is done"
            return Decision.refusal(reason, code="subagent.parallel")
        return None


def _follows_subagent(turn: Turn, request: ToolCallRequest) -> bool:
    """Whether a sub-agent is called, and an earlier call of the message calls one as well."""
    tools = {tool.name: tool for tool in request.runtime.tools}
    ids = [c["id"] for c in turn.calls if isinstance(tools.get(c["name"]), SubagentTool)]
    return request.tool_call["id"] in ids[1:]


@dataclass
class _SealedRequest(ToolCallRequest):
    """A request whose tool is the toolset's: a middleware inside the guard can't replace it."""

    toolset: Toolset

    def __post_init__(self) -> None:
        self._require_guarded(self.tool)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tool" and "toolset" in self.__dict__:
            self._require_guarded(value)
        super().__setattr__(name, value)

    def _require_guarded(self, tool: BaseTool | None) -> None:
        if tool is not None and not self.toolset.has_guarded(tool):
            message = (
                f"a middleware puts a tool of its own ({tool.name}) in the place of the guarded "
                f"one, inside of the guard of {self.toolset.agent.name}: put GuardMiddleware last "
                "in the list of middleware"
            )
            raise ConfigError(message, code="middleware.order")


def _without_hidden(call: ToolCall, tool: Any) -> ToolCall:
    """Return the call without the arguments that a model can't give; they are not bound either.

    ToolNode removes those of the tool that it knows by the call's name, which may be another tool.
    """
    hidden = shape_of(tool).injected
    args = {name: value for name, value in call["args"].items() if name not in hidden}
    return cast("ToolCall", {**call, "args": args})


# --- the result ---------------------------------------------------------------------------------


def _checked(call: AnnouncedCall, result: Result) -> Result:
    """Return the result of a call that has reached its gate, or did not run.

    Raises ``ConfigError`` for any other result: a middleware inside the guard has gone past the
    guard. The result of an edited call begins with a note.
    """
    has_failed = isinstance(result, ToolMessage) and result.status == "error"
    if not call.has_reached_gate and not has_failed:
        message = (
            f"a middleware has answered {call.tool_call['name']} inside of the guard of "
            f"{call.agent.name}, past it: put GuardMiddleware last in the list of middleware"
        )
        raise ConfigError(message, code="middleware.order")
    return result if call.edit is None else _with_edit_note(call, result)


def _with_edit_note(call: AnnouncedCall, result: Result) -> Result:
    """Say before the result which call was run, and that the model's own call was not."""
    executed = f"{call.tool_call['name']}({json.dumps(call.tool_call['args'])})"
    note = (
        f"A person has put another call in the place of this one; executed: {executed}. "
        "Do not re-issue the original call."
    )
    if isinstance(result, ToolMessage):
        return _with_note(result, note)
    if isinstance(result.update, dict):
        messages = result.update.get("messages")
        if isinstance(messages, list):
            call_id = call.tool_call["id"]
            noted = [
                _with_note(message, note)
                if isinstance(message, ToolMessage) and message.tool_call_id == call_id
                else message
                for message in messages
            ]
            return replace(result, update={**result.update, "messages": noted})
    return result


def _with_note(message: ToolMessage, note: str) -> ToolMessage:
    if isinstance(message.content, str):
        content: Any = f"{note}\n\n{message.content}"
    else:
        content = [{"type": "text", "text": note}, *message.content]
    return message.model_copy(update={"content": content})
