"""A trace goes on through the gateway, from the client to the server."""

from __future__ import annotations

import pytest
from gateway_scene import code_of, gateway, settings, shown
from http_scene import served
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard import Decision
from agentguard.testing import RecordedGuard

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def recorded():
    made = RecordedGuard.make()
    made.decide = lambda call: (
        Decision.deny() if call["args"]["text"] == "bad" else Decision.allow()
    )
    yield made
    made.require_sound()
    made.guard.close()


async def test_the_span_of_a_call_stands_between_the_client_and_the_server(recorded, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    async with gateway(recorded, settings()) as client:
        received = shown(await client.call("echo", "a", _meta={"traceparent": PARENT}))
        assert code_of(await client.call("echo", "bad", _meta={"traceparent": PARENT}))
        broken = shown(await client.call("echo", "b", _meta={"traceparent": "broken"}))
    allowed, denied, alone = exporter.get_finished_spans()
    assert allowed.attributes is not None
    assert allowed.attributes["mcp.method.name"] == "tools/call"
    assert allowed.attributes["network.transport"] == "pipe"
    for span in (allowed, denied):
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}" == TRACE
    span_id = f"{allowed.context.span_id:016x}"
    assert received["params"]["_meta"]["traceparent"] == f"00-{TRACE}-{span_id}-01"
    assert alone.parent is None
    assert f"{alone.context.trace_id:032x}" in broken["params"]["_meta"]["traceparent"]
    assert recorded.calls()[0].predicate["traceparent"] == f"00-{TRACE}-{span_id}-01"


async def test_without_tracing_the_clients_context_goes_on_as_it_is(recorded):
    async with gateway(recorded, settings()) as client:
        received = shown(await client.call("echo", "a", _meta={"traceparent": PARENT}))
        assert received["params"]["_meta"] == {"traceparent": PARENT}
        assert "_meta" not in shown(await client.call("echo", "a"))["params"]


async def test_a_trace_goes_on_through_a_gateway_over_http(recorded, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    async with served(recorded, settings()) as running:
        answer = await running.caller().call_single("echo", "a", meta={"traceparent": PARENT})
        received = shown(answer.json()["result"])
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    span_id = f"{span.context.span_id:016x}"
    assert received["params"]["_meta"]["traceparent"] == f"00-{TRACE}-{span_id}-01"
