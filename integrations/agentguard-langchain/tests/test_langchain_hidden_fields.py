"""A field that LangChain does not show to a model, but takes from it, is seen by the policy."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel, ConfigDict, Field

from agentguard import Decision, Guard
from agentguard_langchain import bind_ahead, guard_tools


class Aliased(BaseModel):
    path: str = Field(default="readme", validation_alias="p")


class Named(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    path: str = Field(validation_alias="p")


class Reader(BaseTool):
    name: str = "read"
    description: str = "Read a file."
    args_schema: type[BaseModel] = Aliased

    def _run(self, path: str = "readme") -> str:
        return path


def decide(call: Any) -> Decision:
    path = call["args"].get("path")
    return Decision.allow() if path in ("readme", "notes") else Decision.deny(f"not {path}")


def read(path: str = "readme") -> str:
    return path


def tools() -> list[BaseTool]:
    return [
        StructuredTool.from_function(read, description="Read a file.", args_schema=Aliased),
        StructuredTool.from_function(read, description="Read a file.", args_schema=Named),
        Reader(),
    ]


@pytest.mark.parametrize("index", range(3))
def test_an_aliased_value_reaches_the_policy_as_it_reaches_the_tool(index):
    with Guard.ephemeral(decide) as guard:
        (guarded,) = guard_tools(tools()[index : index + 1], guard.new_agent("reader"))
        call = {"type": "tool_call", "name": "read", "id": "c1"}
        denied = guarded.invoke({**call, "args": {"p": "/etc/shadow"}})
        assert (denied.status, "/etc/shadow" in denied.content) == ("error", True)
        assert guarded.invoke({**call, "args": {"p": "notes"}}).content == "notes"
        assert bind_ahead(guarded, {"p": "notes"}).values == {"path": "notes"}


def test_in_a_graph_as_well():
    with Guard.ephemeral(decide) as guard:
        (guarded,) = guard_tools(tools()[1:2], guard.new_agent("reader"))
        graph = StateGraph(MessagesState)
        graph.add_node("tools", ToolNode([guarded]))
        graph.add_edge(START, "tools")
        run = graph.compile()
        for path, status in (("/etc/shadow", "error"), ("notes", "success")):
            asked = {"name": "read", "args": {"path": path}, "id": "c1", "type": "tool_call"}
            messages = run.invoke({"messages": [AIMessage("", tool_calls=[asked])]})["messages"]
            assert messages[-1].status == status


def test_a_field_that_is_marked_as_injected_stays_out():
    def as_user(path: str, user: Annotated[str, InjectedToolArg] = "nobody") -> str:
        """Read a file."""
        return f"{user} {path}"

    with Guard.ephemeral(decide) as guard:
        (guarded,) = guard_tools([as_user], guard.new_agent("reader"))
        assert guarded.invoke({"path": "notes", "user": "carol"}) == "carol notes"
        bound = bind_ahead(guarded, {"path": "notes"})
        assert (dict(bound.values), bound.unbound) == ({"path": "notes"}, ("user",))
