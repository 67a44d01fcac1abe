"""A guarded tool that is changed afterwards: what is decided on is what runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import BaseTool, tool

from agentguard import ConfigError, Decision
from agentguard_langchain import GuardedToolDenied, GuardMiddleware, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])


def only_look(document):
    return Decision.allow() if document["action"] == "look" else Decision.deny("only look")


@tool
def look(what: str) -> str:
    """Look at something."""
    return f"looked at {what}"


@tool
def pay(what: str) -> str:
    """Pay for something."""
    return f"paid {what}"


async def ran(tool, *, sync):
    return tool.invoke({"what": "a"}) if sync else await tool.ainvoke({"what": "a"})


def renamed(tool):
    tool.name = "look"
    return tool


def copied(tool):
    return tool.model_copy(update={"name": "look"})


def deep(tool):
    return renamed(copy.deepcopy(tool))


def shallow(tool):
    return renamed(copy.copy(tool))


@SYNC
@pytest.mark.parametrize("change", [renamed, copied, deep, shallow])
async def test_a_tool_that_gets_an_allowed_name_is_refused(make, change, sync):
    setup = make(only_look)
    (guarded,) = guard_tools([pay], setup.agent)
    with pytest.raises(GuardedToolDenied) as refused:
        await ran(change(guarded), sync=sync)
    assert refused.value.code == "tool.changed"
    assert [call.code for call in setup.log.calls()] == ["tool.changed"]


@pytest.fixture
def unguarded_pay():
    """A tool that nobody else has, to be changed."""
    return pay.model_copy()


def calls_pay(agent, tool, obedient):
    """What becomes of a call of ``pay`` in a graph that the middleware guards."""
    graph = create_agent(obedient, [tool], middleware=[GuardMiddleware(agent)])

    async def call(sync):
        given = {"messages": [HumanMessage('[["pay", {"what": "a"}]]')]}
        state = graph.invoke(given) if sync else await graph.ainvoke(given)
        return state["messages"][-1].text

    return call


@SYNC
async def test_a_tool_that_the_middleware_has_guarded_is_refused_under_another_name(
    make, unguarded_pay, obedient, sync
):
    setup = make(only_look)
    call = calls_pay(setup.agent, unguarded_pay, obedient)
    assert "only look [policy.denied]" in await call(sync)
    unguarded_pay.name = "look"
    assert "[tool.changed]" in await call(sync)
    unguarded_pay.description = "Look at something."  # guarded anew once more
    assert "[tool.changed]" in await call(sync)
    assert {call.outcome for call in setup.log.calls()} == {None}


@SYNC
async def test_a_tool_that_the_middleware_has_guarded_may_be_described_anew(
    allowing, unguarded_pay, obedient, sync
):
    call = calls_pay(allowing.agent, unguarded_pay, obedient)
    await call(sync)
    unguarded_pay.description = "Pay for something else."
    assert await call(sync) == "paid a"
    first, second = (call.predicate["tool"]["digest"] for call in allowing.log.calls())
    assert first != second


@SYNC
async def test_a_renamed_tool_is_refused_where_it_is_guarded_with_another_answer(make, sync):
    setup = make(only_look)
    (once,) = guard_tools([pay], setup.agent, on_deny="raise")
    (twice,) = guard_tools([renamed(once)], setup.agent, on_deny="return")
    with pytest.raises(GuardedToolDenied) as refused:
        await ran(twice, sync=sync)
    assert refused.value.code == "tool.changed"


@SYNC
async def test_a_tool_that_is_made_anew_from_a_guarded_one_does_not_run(allowing, sync):
    (guarded,) = guard_tools([look], allowing.agent)
    field = ConfigurableField(id="told")
    made = guarded.configurable_fields(description=field).with_config(configurable={"told": "x"})
    with pytest.raises(ConfigError, match="guard a tool for each configuration") as refused:
        await ran(made, sync=sync)
    assert refused.value.code == "tool.unguardable"
    assert allowing.log.calls() == []
    assert await ran(guarded, sync=sync) == "looked at a"  # the twin


class Empty(BaseTool):
    """A tool that is false, as an empty collection is."""

    name: str = "pay"
    description: str = "Pay for something."

    def _run(self, what: str) -> str:
        return f"paid {what}"

    def __len__(self) -> int:
        return 0


@SYNC
async def test_a_tool_that_is_false_is_guarded(allowing, denying, obedient, sync):
    assert await calls_pay(allowing.agent, Empty(), obedient)(sync) == "paid a"
    assert "[policy.denied]" in await calls_pay(denying.agent, Empty(), obedient)(sync)


@SYNC
async def test_a_function_that_is_swapped_is_on_record_as_what_it_is(make, sync):
    setup = make(only_look)
    (guarded,) = guard_tools([look], setup.agent)
    await ran(guarded, sync=sync)
    guarded.func = pay.func
    await ran(guarded, sync=sync)
    before, after = (call.predicate["tool"]["digest"] for call in setup.log.calls())
    assert before != after


@SYNC
async def test_a_function_that_is_swapped_is_not_the_one_that_is_pinned(make, sync):
    config: Any = {"tools": {"look": {"origin": f"{__name__}:look"}}}
    setup = make(only_look, **config)
    (guarded,) = guard_tools([look], setup.agent)
    assert await ran(guarded, sync=sync) == "looked at a"  # the twin
    guarded.func = pay.func
    with pytest.raises(GuardedToolDenied, match=r"\[tool.changed\]") as refused:
        await ran(guarded, sync=sync)
    assert "comes from" in refused.value.reason


@SYNC
async def test_a_tool_that_was_renamed_before_it_was_guarded_is_what_it_is_called(make, sync):
    setup = make(only_look)
    (guarded,) = guard_tools([pay.model_copy(update={"name": "look"})], setup.agent)
    assert await ran(guarded, sync=sync) == "paid a"
