"""The agent of the application: its tools, its model and its graph.

``ScriptedModel`` stands in for a model, so that the application runs offline: it makes the call
that a message names, as in ``refund 4711 5000``. Put ``init_chat_model("...")`` in its place.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolCall
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from agentguard import Guard, idempotency_key
from agentguard_langchain import GuardMiddleware

REFUNDS = Path(__file__).with_name("refunds.txt")


def order_status(order: int) -> str:
    """Say where an order is."""
    return f"order {order} was delivered on Monday"


def refund(order: int, cents: int) -> str:
    """Pay money back for an order."""
    with REFUNDS.open("a") as file:  # in an application: the payment provider, with the same key
        file.write(f"{idempotency_key()} order {order}: {cents} cents\n")
    return f"refunded {cents / 100:.2f} for order {order}"


class ScriptedModel(BaseChatModel):
    """A model that makes the call that a message names, and repeats what the tool returned."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:  # noqa: ARG002
        """Take no notice of the tools: the script knows them."""
        return self

    def _generate(self, messages: list[BaseMessage], *_args: Any, **_kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=_answer(messages))])

    def _stream(
        self, messages: list[BaseMessage], *_args: Any, **_kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        answer = _answer(messages)
        if answer.tool_calls:
            yield ChatGenerationChunk(
                message=AIMessageChunk(content="", tool_calls=answer.tool_calls)  # as one piece
            )
        for word in answer.text.split():
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))


def _answer(messages: list[BaseMessage]) -> AIMessage:
    last = messages[-1]
    if last.type == "tool":
        return AIMessage(f"Here is what came of it: {last.text}")
    name, *numbers = last.text.split() or [""]
    if not all(map(str.isdecimal, numbers)):
        numbers = []
    if name == "status" and len(numbers) == 1:
        calls = [("order_status", {"order": int(numbers[0])})]
    elif name == "refund" and numbers and len(numbers) % 2 == 0:
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        calls = [("refund", {"order": int(order), "cents": int(cents)}) for order, cents in pairs]
    else:
        return AIMessage("Write: status ORDER, or refund ORDER CENTS.")
    return AIMessage("", tool_calls=[called(*call) for call in calls])


def called(name: str, args: dict[str, int]) -> ToolCall:
    """Return a call of a tool, as a model makes it."""
    return ToolCall(name=name, args=args, id=secrets.token_hex(8), type="tool_call")


def build(guard: Guard, saver: Any) -> Any:
    """Return the graph of the agent; ``saver`` keeps the runs, so that another process goes on."""
    guarding = GuardMiddleware(guard.new_agent("helpdesk"))  # last in the list
    return create_agent(
        ScriptedModel(), [order_status, refund], middleware=[guarding], checkpointer=saver
    )
