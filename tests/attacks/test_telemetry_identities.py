"""No tool, and no name, has a trace say that somebody else acted, or for whom.

A trace proves nothing; but people look at it first, and witnesses are told to search in it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import context, trace

from agentguard import Decision, Guard


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        yield guard


def leaky(guard: Guard) -> Any:
    @guard.tool
    def leak() -> None:
        context.attach(context.set_value("left", "behind"))

    return leak


def leaky_async(guard: Guard) -> Any:
    @guard.tool
    async def leak() -> None:
        await asyncio.sleep(0)
        context.attach(context.set_value("left", "behind"))

    return leak


async def call_for(guard: Guard, user: str, tool: Any, *, in_span: bool) -> None:
    agent = guard.new_agent("coder")
    with guard.delegate(user, scope=[]):
        if in_span:
            with agent.span():
                context.attach(context.set_value("left", "behind"))
        if tool.is_async:
            await agent.acall(tool)
        else:
            agent.call(tool)


@pytest.mark.parametrize("in_span", [False, True], ids=["call", "span"])
@pytest.mark.parametrize("leak", [leaky, leaky_async])
async def test_what_a_tool_leaves_attached_is_not_around_the_next_users_call(
    guard, spans, leak, in_span
):
    tool = leak(guard)
    await call_for(guard, "user:alice", tool, in_span=in_span)
    await call_for(guard, "user:bob", tool, in_span=in_span)
    calls = [span for span in spans.all() if span.name == "execute_tool leak"]
    assert [span.attributes["user.id"] for span in calls] == ["user:alice", "user:bob"]
    assert [span.parent for span in calls] == [None, None]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_what_was_attached_around_the_calls_stays(guard, spans):
    with trace.get_tracer("an application").start_as_current_span("request") as request:
        await call_for(guard, "user:alice", leaky(guard), in_span=False)
        assert trace.get_current_span() is request
        await call_for(guard, "user:alice", leaky(guard), in_span=False)
    assert spans.tree() == ["request", "  execute_tool leak", "  execute_tool leak"]
