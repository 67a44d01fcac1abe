"""Two graphs on one state, with threads of the same name."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from agentguard_langchain import GuardMiddleware

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "1"}}
BIG = ("pay", {"to": "ann", "cents": 500})
BIGGER = ("pay", {"to": "ben", "cents": 900})


async def ran(graph, given, *, sync):
    return graph.invoke(given, CONFIG) if sync else await graph.ainvoke(given, CONFIG)


def answers(state):
    return [m.text for m in state["messages"] if m.type == "tool"]


@SYNC
async def test_new_input_in_one_graph_leaves_what_another_waits_for(people, sync):
    inbox = people()
    one, other = inbox.graph(), inbox.graph()
    await ran(one, inbox.asking(BIG), sync=sync)
    await ran(other, inbox.asking(BIGGER), sync=sync)
    await ran(other, {"messages": [HumanMessage("hello")]}, sync=sync)
    assert [request.tool for request in inbox.waiting] == ["pay"]  # the twin: its own is withdrawn
    inbox.approve()
    assert answers(await ran(one, None, sync=sync)) == ["paid 500 to ann"]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_what_a_sub_agent_of_a_run_waits_for_goes_with_the_run(people, obedient, sync):
    inbox = people()
    clerk = inbox.guard.new_agent("clerk")

    def made():
        child = create_agent(obedient, inbox.tools, middleware=[GuardMiddleware(clerk)])

        @tool
        def ask(work: str) -> str:
            """Ask the clerk."""
            return child.invoke({"messages": [HumanMessage(work)]})["messages"][-1].text

        return create_agent(
            obedient,
            [ask],
            middleware=[GuardMiddleware(inbox.agent)],
            checkpointer=InMemorySaver(),
        )

    one, other = made(), made()
    for graph, work in ((one, '[["pay", {"to": "a", "cents": 500}]]'), (other, "[]")):
        await ran(graph, inbox.asking(("ask", {"work": work})), sync=sync)
    assert len(inbox.waiting) == 1
    await ran(other, {"messages": [HumanMessage("hello")]}, sync=sync)
    assert len(inbox.waiting) == 1
    await ran(one, {"messages": [HumanMessage("hello")]}, sync=sync)
    assert inbox.waiting == []
