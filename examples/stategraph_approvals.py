"""A graph that is built by hand: calls that run in parallel, of which some wait for a person.

The approval node asks once for all calls of a turn, the edge gives each call a task of its own, and
the tool node enforces. Runs offline.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from agentguard import Decision, Ed25519Signer, Guard, Requirement
from agentguard_langchain import guard_approval_node, guard_edge, guard_tool_node

TREASURERS_FROM = 5_000
MOST = 100_000


def decide(call: Mapping[str, Any]) -> Decision:
    """Refunds over 50.00 need somebody in the role ``treasurer``, over 1000.00 there are none."""
    cents = call["args"].get("cents")
    if type(cents) is not int or cents <= 0:  # True is an int to isinstance
        return Decision.deny("cents must be a whole number above 0")
    if cents > MOST:
        return Decision.deny("no refund is over 1000.00")
    if cents > TREASURERS_FROM:
        reason = f"a refund of {cents / 100:.2f}"
        return Decision.require_approval(Requirement(reason, roles=("treasurer",)))
    return Decision.allow()


def refund(order: str, cents: int) -> str:
    """Refund an order."""
    return f"{order}: {cents / 100:.2f} refunded"


def think(state: MessagesState) -> dict[str, Any]:
    """Stand in for a model: refund four orders at once, then say so."""
    if state["messages"][-1].type != "human":
        return {"messages": [AIMessage("That is all.")]}
    orders = {"A-1": 1_900, "A-2": 9_900, "A-3": 250_000, "A-4": 12_000}
    calls = [
        {"name": "refund", "args": {"order": order, "cents": cents}, "id": order}
        for order, cents in orders.items()
    ]
    return {"messages": [AIMessage("", tool_calls=calls)]}


CAROL = Ed25519Signer.from_seed(secrets.token_bytes(32))
CONFIG = {
    "approvers": {
        "carol": {
            "principal": "user:carol",
            "keys": [CAROL.public_key.openssh()],
            "roles": ["treasurer"],
        }
    }
}


def main() -> None:
    """Refund four orders, two of which wait for carol."""
    with Guard.ephemeral(policy=decide, config=CONFIG) as guard:
        agent = guard.new_agent("support-bot")
        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("approval", guard_approval_node([refund], agent))
        graph.add_node("tools", guard_tool_node([refund], agent))
        graph.add_edge(START, "think")
        graph.add_edge("think", "approval")
        graph.add_conditional_edges("approval", guard_edge("tools"), ["tools", END])
        graph.add_edge("tools", "think")
        compiled = graph.compile(checkpointer=InMemorySaver())

        thread: Any = {"configurable": {"thread_id": "refunds"}}
        state = compiled.invoke({"messages": [HumanMessage("Refund them.")]}, thread)
        (pause,) = state["__interrupt__"]
        asked = [action["args"]["order"] for action in pause.value["action_requests"]]
        print(f"one pause for {', '.join(asked)}")

        first, second = [
            guard.approvals.find(shown["request_id"]) for shown in pause.value["agentguard"]
        ]
        guard.approvals.reject(second, CAROL, note="it was never paid")
        guard.approvals.approve(first, CAROL)
        state = compiled.invoke(None, thread)
        for message in state["messages"]:
            if isinstance(message, ToolMessage):
                print(f"{message.tool_call_id}: {message.status}: {message.text}")


main()
