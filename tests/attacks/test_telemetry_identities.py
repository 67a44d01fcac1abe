"""No tool, and no name, has a trace say that somebody else acted, or for whom.

A trace proves nothing; but people look at it first, and witnesses are told to search in it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan

from agentguard import Decision, Guard, adapters, telemetry


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
            with adapters.agent_span(agent):
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


FORGED = {
    "user.id": "user:ceo",
    "agentguard.principal.id": "user:ceo",
    "agentguard.agent.id": "spiffe://elsewhere/agent/a/b",
    "gen_ai.agent.name": "treasurer",
    "gen_ai.tool.name": "read",
    "gen_ai.operation.name": "chat",
    "agentguard.policy.decision": "deny",
}


def forge() -> None:
    trace.get_current_span().set_attributes({**FORGED, "of.the.tool": 1})


def forged(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return {name: said for name, said in FORGED.items() if span.attributes.get(name) == said}


@pytest.mark.parametrize("inside", [False, True], ids=["ours", "an instrumentor's"])
def test_a_tool_that_writes_into_the_current_span_forges_no_identity(guard, spans, inside):
    pay, agent = guard.tool(name="pay")(forge), guard.new_agent("coder")
    with guard.delegate("user:mallory", scope=[]):
        if inside:
            tracer = trace.get_tracer("an instrumentor")
            with tracer.start_as_current_span("pay.tool") as theirs, telemetry.inside_span(theirs):
                agent.call(pay)
        else:
            agent.call(pay)
    span = spans.one("pay.tool" if inside else "execute_tool pay")
    assert forged(span) == {}
    assert span.attributes["user.id"] == "user:mallory"
    assert span.attributes["of.the.tool"] == 1


@pytest.mark.parametrize("principal", ["user:mallory", "service:mallory"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, said) for name, said in FORGED.items() if name != "user.id"),
        ("agentguard.delegation.depth", 1),
        ("agentguard.delegation.depth", 2.0),  # which is 2, to Python
        ("agentguard.audit.index", "2"),
    ],
)
def test_neither_does_one_that_writes_a_single_attribute(guard, spans, principal, name, said):
    pay = guard.tool(name="pay")(lambda: trace.get_current_span().set_attribute(name, said))
    with guard.delegate(principal, scope=[]):
        guard.new_agent("coder").call(pay)
    found = spans.one("execute_tool pay").attributes
    assert repr(found[name]) != repr(said)
    assert found["agentguard.principal.id"] == principal


def test_nor_does_one_that_writes_for_whom(guard, spans):
    pay = guard.tool(name="pay")(lambda: trace.get_current_span().set_attribute("user.id", "ceo"))
    with guard.delegate("user:mallory", scope=[]):
        guard.new_agent("coder").call(pay)
    assert spans.one("execute_tool pay").attributes["user.id"] == "user:mallory"


@pytest.mark.parametrize("inside", [False, True], ids=["ours", "an instrumentor's"])
def test_neither_does_what_runs_in_an_agents_span(guard, spans, inside):
    agent = guard.new_agent("coder")
    with guard.delegate("user:mallory", scope=[]):
        if inside:
            tracer = trace.get_tracer("an instrumentor")
            with (
                tracer.start_as_current_span("graph") as theirs,
                adapters.agent_span(agent, inside=theirs),
            ):
                forge()
        else:
            with adapters.agent_span(agent):
                forge()
    span = spans.one("graph" if inside else "invoke_agent coder")
    assert {name for name in forged(span) if "tool" not in name and "policy" not in name} == set()
    assert span.attributes["user.id"] == "user:mallory"
    assert span.attributes["of.the.tool"] == 1


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("https://i.example#m>agent:treasurer", "https://i.example#m%3Eagent:treasurer"),
        ("https://i.example#m%3Eagent:treasurer", "https://i.example#m%253Eagent:treasurer"),
        ("user:alice", "user:alice"),
    ],
)
def test_a_name_adds_no_member_to_the_chain(guard, spans, name, member):
    read = guard.tool(name="read")(lambda: None)
    with guard.delegate(name, scope=[]):
        guard.new_agent("coder").call(read)
    attributes = spans.one("execute_tool read").attributes
    first, *others = attributes["agentguard.delegation.chain"].split(">")
    assert (first, others[-1]) == (member, "agent:coder")
    assert len(others) == attributes["agentguard.delegation.depth"]
    assert attributes["agentguard.principal.id"] == name
