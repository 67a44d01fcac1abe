"""The spans of agents' runs, which calls and other people's spans belong to or link to."""

from __future__ import annotations

import pytest
from exported import ids, traceparent
from opentelemetry import context, trace

from agentguard import adapters


def test_the_span_of_an_agents_run_has_its_calls_in_it(place, spans):
    lent = place.guard.delegate("user:alice", scope=["pr:write"])
    with lent, adapters.agent_span(place.agent, conversation="thread-1") as run:
        place.call()
    assert spans.tree() == ["invoke_agent reviewer", "  execute_tool push"]
    attributes = spans.one("invoke_agent reviewer").attributes
    assert attributes["gen_ai.operation.name"] == "invoke_agent"
    assert attributes["gen_ai.conversation.id"] == "thread-1"
    assert attributes["agentguard.agent.id"] == place.agent.id
    assert attributes["agentguard.delegation.chain"] == (
        "user:alice>spiffe://acme.example>agent:reviewer"
    )

    first = spans.one("invoke_agent reviewer")
    assert run.traceparent == traceparent(first)
    with pytest.raises(LookupError), adapters.agent_span(place.agent, paused=run.traceparent):
        raise LookupError("a text")
    _, again = spans.named("invoke_agent reviewer")
    assert again.context.trace_id == first.context.trace_id
    assert [link.context.span_id for link in again.links] == [ids(first)[1]]
    assert again.attributes["error.type"] == "LookupError"
    assert "a text" not in again.to_json()


@pytest.mark.parametrize(
    ("traceparent", "goes_on"),
    [
        (f"00-{1:032x}-{2:016x}-01", True),
        (f"42-{1:032x}-{2:016x}-01-of-later", True),
        (f"00-{1:032x}-{2:016x}-01-of-later", False),
        (f"ff-{1:032x}-{2:016x}-01", False),
        (f"0-{1:032x}-{2:016x}-01", False),
        ("00-0x1-+2-01", False),
        (f"00-{0xA:032X}-{2:016x}-01", False),
        (f"00-{0:032x}-{2:016x}-01", False),
    ],
)
def test_a_run_goes_on_from_what_is_a_traceparent_alone(place, spans, traceparent, goes_on):
    with adapters.agent_span(place.agent, paused=traceparent):
        pass
    (span,) = spans.all()
    assert (span.context.trace_id == 1) is goes_on
    assert [link.context.span_id for link in span.links] == ([2] if goes_on else [])


@pytest.mark.parametrize("around", ["itself", "its parent", "another trace"])
def test_a_span_of_theirs_that_goes_on_links_to_the_run_that_has_paused_alone(place, spans, around):
    """Its parent and its trace are its instrumentor's to say, and it does not lead to itself."""
    with adapters.agent_span(place.agent) as first:
        pass
    tracer = trace.get_tracer("theirs")
    parent, other = tracer.start_span("parent"), tracer.start_span("other", context.Context())
    theirs = tracer.start_span("graph", trace.set_span_in_context(parent))
    here = {"itself": theirs, "its parent": parent, "another trace": other}[around]
    again = adapters.agent_span(
        place.agent, paused=first.traceparent, parent=trace.set_span_in_context(here), inside=theirs
    )
    again.end()
    theirs.end()
    graph = spans.one("graph")
    paused = ids(spans.one("invoke_agent reviewer"))
    assert [link.context.span_id for link in graph.links] == [paused[1]]
    assert [dict(link.attributes) for link in graph.links] == [{"agentguard.link": "paused"}]
