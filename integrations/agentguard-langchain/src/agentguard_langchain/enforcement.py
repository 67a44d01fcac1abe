"""Enforcement around a tool call: the guarded tool is what runs, and its gate is told the site.

It stands innermost of all that wraps tool calls, in the middleware and in ``guard_tool_node``. What
a gate does with a call stands in ``gate.py``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from langchain_core.messages import ToolCall, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from agentguard import ConfigError, Decision
from agentguard_langchain.answers import Answers
from agentguard_langchain.gated_functions import shape_of
from agentguard_langchain.graph_task import Place, Turn, messages_of, turn_of
from agentguard_langchain.guarded_call import SubagentTool
from agentguard_langchain.nested_work import Placed, placing, run_here
from agentguard_langchain.pending_turn import Edit, PendingTurn
from agentguard_langchain.run_record import handle_of
from agentguard_langchain.toolset import Toolset

Result = ToolMessage | Command[Any]


class Enforcement(NamedTuple):
    """Wraps the tool calls of a toolset.

    ``handle_key`` is where the state has the handle of the run's record, None for nowhere;
    ``messages_key`` where it has the messages.
    """

    toolset: Toolset
    handle_key: str | None = None
    messages_key: str = "messages"
    parallel_subagents: bool = True

    def around(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]
    ) -> Result:
        """Have ``handler`` run the guarded tool in the place of the tool of ``request``."""
        errand = self._errand(request)
        with placing(errand.placed):
            result: Result = errand.noted(errand.passed(handler(errand.request)))
        return result

    async def aaround(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """Have ``handler`` run the guarded tool; the async twin of ``around``."""
        errand = self._errand(request)
        with placing(errand.placed):
            result: Result = errand.noted(errand.passed(await handler(errand.request)))
        return result

    def _errand(self, request: ToolCallRequest) -> _Errand:
        """Return what is to be run; LangGraph answers with an error where no tool has this name."""
        call, tool, toolset = request.tool_call, request.tool, self.toolset
        call_id = call["id"]
        runtime = replace(
            request.runtime,
            tools=[toolset.guarded_if_possible(one) for one in request.runtime.tools],
        )
        # a tool may be false, as an empty collection is
        mine = None if tool is None else toolset.guarded(tool)
        guarded = _sealed(replace(request, tool=mine, runtime=runtime), toolset)
        place = Place.of(runtime.config)
        turn = turn_of(messages_of(request.state, self.messages_key), call_id)
        pending_turn = PendingTurn.of_turn(
            toolset.agent, place, turn.id if turn is not None else None
        )
        edit = pending_turn.edits.get(call_id or "")
        if edit is not None:
            call = pending_turn.edited(call)
        if mine is not None:
            call = _without_hidden(call, mine)
        guarded = guarded.override(tool_call=call)
        key = self.handle_key
        handle = None if key is None else handle_of(request.state, key)
        agent = toolset.acting(place, handle, lambda: runtime, recorded=key is not None)
        toolset.span(place, handle, agent)  # begun here, it goes on the one that has paused
        placed = Placed(
            call_id=call_id or "",
            task=place.task,
            site=place.site(
                turn.id if turn is not None else None, pending_turn.site_id(call_id or "")
            ),
            agent=agent,
            answers=Answers(agent, toolset.answered_by, runtime),
            passed=[],
            run=run_here() or handle,
            refusal=self._refusal(call, turn, pending_turn, request),
        )
        return _Errand(guarded, placed, call, edit)

    def _refusal(
        self, call: ToolCall, turn: Turn | None, pending_turn: PendingTurn, request: ToolCallRequest
    ) -> Decision | None:
        call_id = call["id"] or ""
        if turn is not None and turn.is_ambiguous(call["id"]):
            reason = f"two calls of one message have the id {call_id}: none of them is made"
            return Decision.refused(reason, code="call.duplicate")
        rejected = pending_turn.refusal(call_id)
        if rejected is not None:
            return rejected
        if turn is not None and not self.parallel_subagents and self._comes_later(turn, request):
            reason = "sub-agents work one at a time here; call it again when the other is done"
            return Decision.refused(reason, code="subagent.parallel")
        return None

    def _comes_later(self, turn: Turn, request: ToolCallRequest) -> bool:
        """Whether it is a call of a sub-agent, and not the first of its message."""
        tools = {tool.name: tool for tool in request.runtime.tools}
        runs = [c["id"] for c in turn.calls if isinstance(tools.get(c["name"]), SubagentTool)]
        return request.tool_call["id"] in runs[1:]


@dataclass
class _Sealed(ToolCallRequest):
    """A request whose tool is the toolset's: what stands inside of the guard can't replace it."""

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
    """Return the call less the arguments that are not the model's to give, as they are not bound.

    ToolNode takes out those of the tool that it knows by the call's name, which may be another one.
    """
    hidden = shape_of(tool).injected
    args = {name: value for name, value in call["args"].items() if name not in hidden}
    return cast("ToolCall", {**call, "args": args})


def _sealed(request: ToolCallRequest, toolset: Toolset) -> ToolCallRequest:
    return _Sealed(request.tool_call, request.tool, request.state, request.runtime, toolset)


class _Errand(NamedTuple):
    """A call as it is run: the request, what its gate is told, and what a person has changed."""

    request: ToolCallRequest
    placed: Placed
    call: ToolCall
    edit: Edit | None

    def passed(self, result: Any) -> Any:
        """Return the result of a call that has come to its gate, or did not run.

        Raises ``ConfigError`` for any other: what stands inside of the guard went past it.
        """
        failed = isinstance(result, ToolMessage) and result.status == "error"
        if self.placed.passed or failed:
            return result
        message = (
            f"a middleware has answered {self.call['name']} inside of the guard of "
            f"{self.placed.agent.name}, past it: put GuardMiddleware last in the list of middleware"
        )
        raise ConfigError(message, code="middleware.order")

    def noted(self, result: Any) -> Any:
        """Say before the result of an edited call what was run, and that the model's was not."""
        if self.edit is None:
            return result
        executed = f"{self.call['name']}({json.dumps(self.call['args'])})"
        note = (
            f"A person has put another call in the place of this one; executed: {executed}. "
            "Do not re-issue the original call."
        )
        if isinstance(result, ToolMessage):
            return _with_note(result, note)
        if isinstance(result, Command) and isinstance(result.update, dict):
            messages = result.update.get("messages")
            if isinstance(messages, list):
                noted = [self._noted_message(message, note) for message in messages]
                return replace(result, update={**result.update, "messages": noted})
        return result

    def _noted_message(self, message: Any, note: str) -> Any:
        ours = isinstance(message, ToolMessage) and message.tool_call_id == self.call["id"]
        return _with_note(message, note) if ours else message


def _with_note(message: ToolMessage, note: str) -> ToolMessage:
    if isinstance(message.content, str):
        content: Any = f"{note}\n\n{message.content}"
    else:
        content = [{"type": "text", "text": note}, *message.content]
    return message.model_copy(update={"content": content})
