"""Each parameter of ``agentguard_langchain`` that grants, limits or names somebody, left empty."""

from __future__ import annotations

from typing import Any

import pytest
from empty_parameters import parameters, require_nothing
from langchain_core.runnables import RunnableLambda

import agentguard_langchain
from agentguard import Decision, Guard
from agentguard_langchain import (
    GuardMiddleware,
    guard_approval_node,
    guard_subagent,
    guard_tool_node,
    guard_tools,
)

OTHERS = {("guard_edge", "tools"), ("guard_approval_node", "tools")}
"""The name of a node, and tools about which a node asks: neither grants or names."""

FOUND = sorted({*parameters(agentguard_langchain, {"FoundTool"})} - OTHERS)


def read(text: str) -> str:
    """Read a text."""
    return text


def by_a_child(guard: Guard, scope: list[str]) -> str:
    """Have a child call a tool that needs ``read``; return the result."""
    agent = guard.new_agent("assistant")
    (tool,) = guard_tools([read], agent, on_deny="raise")
    child = guard_subagent(RunnableLambda(tool.invoke), agent, scope=scope)
    with guard.delegate("user:alice", scope=["read"]):
        return str(child.invoke({"text": "x"}))


def cases(guard: Guard) -> dict[tuple[str, str], Any]:
    """Return what an empty value does."""
    agent = guard.new_agent("assistant")
    return {
        ("GuardMiddleware", "agent"): (lambda: GuardMiddleware(""), "config.invalid"),
        ("guard_approval_node", "agent"): (
            lambda: guard_approval_node([read], ""),
            "config.invalid",
        ),
        ("guard_subagent", "scope"): (lambda: by_a_child(guard, []), "policy.denied"),
        ("guard_tool_node", "tools"): (
            lambda: dict(guard_tool_node([], agent).tools_by_name),
            {},
        ),
        ("guard_tool_node", "agent"): (lambda: guard_tool_node([read], ""), "config.invalid"),
        ("guard_tools", "tools"): (lambda: guard_tools([], agent), []),
        ("guard_tools", "agent"): (lambda: guard_tools([read], ""), "config.invalid"),
    }


@pytest.fixture
def guard(monkeypatch):
    def decide(call: Any) -> Decision:
        has_read = "read" in call["delegation"]["scope"]
        return Decision.allow() if has_read else Decision.deny("no scope")

    with Guard.ephemeral(decide) as guard:
        monkeypatch.setattr(Guard, "find", lambda: guard)  # whose agents a text names
        yield guard


@pytest.mark.parametrize(("where", "name"), FOUND)
def test_an_empty_value_of_a_parameter_gives_nothing(guard, where, name):
    require_nothing(cases(guard)[where, name])


def test_the_twins_are_taken(guard):
    agent = guard.new_agent("assistant")
    assert by_a_child(guard, ["read"]) == "x"
    assert guard_tools([read], agent)
    assert guard_tool_node([read], agent).tools_by_name.keys() == {"read"}
    assert guard_approval_node([read], agent)
    assert GuardMiddleware(agent)


def test_so_many_parameters_are_asked(guard):
    assert {*FOUND} == cases(guard).keys()
    assert len(FOUND) == 7
