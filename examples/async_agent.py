"""An async LangChain agent that makes three calls at once; each is decided and signed by itself.

Runs offline: ``ScriptedModel`` stands in for a model. Put ``init_chat_model("...")`` in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agentguard import Decision, Guard
from agentguard_langchain import aevaluate, guard_tools


class ScriptedModel(BaseChatModel):
    """A model that says what it is told to say."""

    script: Iterator[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:  # noqa: ARG002
        """Take no notice of the tools: the script knows them."""
        return self

    def _generate(self, *_args: Any, **_kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=next(self.script))])


LIMIT = 100


def decide(call: Mapping[str, Any]) -> Decision:
    """Allow transfers up to the limit."""
    amount = call["args"].get("amount")
    if type(amount) is int and 0 < amount <= LIMIT:  # True is an int to isinstance
        return Decision.allow()
    return Decision.deny(f"a transfer may be {LIMIT} at most")


async def transfer(to: str, amount: int) -> str:
    """Transfer money."""
    await asyncio.sleep(0.01)
    return f"{amount} to {to}"


async def main() -> None:
    """Let the agent pay three people at once."""
    async with Guard.ephemeral(policy=decide) as guard:
        cashier = guard.new_agent("cashier")
        tools = guard_tools([transfer], cashier)

        # What would the answer be? This runs no tool and records no call.
        answer = await aevaluate(tools[0], {"to": "bob", "amount": 5000})
        print("ahead:", answer.reason)

        payments = [("alice", 20), ("bob", 5000), ("carol", 100)]
        calls = [
            {
                "name": "transfer",
                "args": {"to": to, "amount": amount},
                "id": f"call-{to}",
                "type": "tool_call",
            }
            for to, amount in payments
        ]
        model = ScriptedModel(script=iter([AIMessage("", tool_calls=calls), AIMessage("Done.")]))
        state = await create_agent(model, tools).ainvoke({"messages": [HumanMessage("Pay them.")]})
        for message in state["messages"]:
            if isinstance(message, ToolMessage):
                print(f"{message.tool_call_id}: {message.status}: {message.content}")


asyncio.run(main())
