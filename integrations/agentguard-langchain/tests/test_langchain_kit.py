"""The kit that every adapter has to pass, with LangChain's tools: by themselves, and in a graph."""

from __future__ import annotations

import asyncio

from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard.testing import AdapterTests
from agentguard_langchain import guard_tools


class TestInvoke(AdapterTests):
    """``tool.invoke``, and ``ainvoke`` of a tool with a coroutine."""

    def call(self, agent, function, arguments):
        (guarded,) = guard_tools([tool(function)], agent)
        return guarded.invoke(dict(arguments))

    async def acall(self, agent, function, arguments):
        (guarded,) = guard_tools([tool(function)], agent)
        return await guarded.ainvoke(dict(arguments))


class TestAinvoke(TestInvoke):
    """``tool.ainvoke``, also of a tool whose function is a plain one."""

    def call(self, agent, function, arguments):
        return asyncio.run(self.acall(agent, function, arguments))


class TestGraph(AdapterTests):
    """A graph without a checkpointer, whose node runs the tools that a message calls."""

    def graph(self, agent, function):
        tools = guard_tools([tool(function)], agent, on_deny="raise")
        graph = StateGraph(MessagesState)
        graph.add_node("tools", ToolNode(tools, handle_tool_errors=False))
        graph.add_edge(START, "tools")
        return graph.compile()

    def given(self, function, arguments):
        call = {"name": function.__name__, "args": dict(arguments), "id": "1", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    def call(self, agent, function, arguments):
        state = self.graph(agent, function).invoke(self.given(function, arguments))
        return state["messages"][-1].content

    async def acall(self, agent, function, arguments):
        state = await self.graph(agent, function).ainvoke(self.given(function, arguments))
        return state["messages"][-1].content
