"""A guarded tool that is changed afterwards: what is decided on is what runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from langchain_core.tools import tool

from agentguard import Decision
from agentguard_langchain import GuardedToolDenied, guard_tools

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
    with pytest.raises(GuardedToolDenied, match="comes from") as refused:
        await ran(guarded, sync=sync)
    assert refused.value.code == "tool.changed"


@SYNC
async def test_a_tool_that_was_renamed_before_it_was_guarded_is_what_it_is_called(make, sync):
    setup = make(only_look)
    (guarded,) = guard_tools([pay.model_copy(update={"name": "look"})], setup.agent)
    assert await ran(guarded, sync=sync) == "paid a"
