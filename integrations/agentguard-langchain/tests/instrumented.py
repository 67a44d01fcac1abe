"""Scenes beside an instrumentor, as a process: prints their spans, and the traceparents of logs.

    python instrumented.py OpenLLMetry|OpenInference

It is no test module: ``test_langchain_traces.py`` runs it. The instrumentors patch LangChain's
classes, and can't be taken out of a process again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import closing
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from obedient import Obedient
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard import Decision, Guard
from agentguard.audit.kinds import parse_entry
from agentguard.signing.keys import Ed25519Signer
from agentguard_langchain import GuardMiddleware, guard_subagent

SCENES: dict[str, Any] = {
    "allowed": ["look", {"what": "it"}],
    "paused": ["ask", {"task": json.dumps([["pay", {"cents": 500}]])}],
    "denied": ["pay", {"cents": 20_000}],
}
"""By their names, the call that an agent makes in each."""


def answer(document):
    """Have people asked about a payment over 100; deny one over 10000."""
    cents = document["args"].get("cents", 0)
    if cents > 10_000:
        return Decision.deny("too much")
    return Decision.require_approval() if cents > 100 else Decision.allow()


def two_ways(function, name):
    """Make a tool of a function, with an async twin."""

    async def twin(**given: Any) -> str:
        return await asyncio.to_thread(function, **given)

    return StructuredTool.from_function(function, twin, name=name, infer_schema=True)


def pay(cents: int) -> str:
    """Pay somebody."""
    return f"paid {cents}"


def look(what: str) -> str:
    """Look at something."""
    return f"saw {what}"


def instrument(name: str) -> None:
    """Switch an instrumentor on."""
    if name == "OpenLLMetry":
        from opentelemetry.instrumentation.langchain import LangchainInstrumentor  # noqa: PLC0415

        LangchainInstrumentor().instrument()
    else:
        from openinference.instrumentation.langchain import LangChainInstrumentor  # noqa: PLC0415

        LangChainInstrumentor().instrument()


def play(guard: Guard, scene: str, *, sync: bool) -> None:
    """Let an agent make the call of a scene."""
    parent, clerk = guard.new_agent("payer"), guard.new_agent("clerk")
    tools = [two_ways(pay, "pay"), two_ways(look, "look")]
    child = create_agent(Obedient(), tools, middleware=[GuardMiddleware(clerk)])

    def ask(task: str) -> str:
        """Ask the clerk."""
        return child.invoke({"messages": [("user", task)]})["messages"][-1].text

    async def aask(task: str) -> str:
        """Ask the clerk."""
        return (await child.ainvoke({"messages": [("user", task)]}))["messages"][-1].text

    asks = StructuredTool.from_function(ask, aask, name="ask")
    graph = create_agent(
        Obedient(),
        [*tools, guard_subagent(asks, clerk, scope=["pay"])],
        middleware=[GuardMiddleware(parent)],
        checkpointer=InMemorySaver(),
    )
    given: Any = {"messages": [("user", json.dumps([SCENES[scene]]))]}
    config: Any = {"configurable": {"thread_id": "t1"}}
    with guard.delegate("user:alice", scope=["pay"]):
        if sync:
            graph.invoke(given, config)
        else:
            asyncio.run(graph.ainvoke(given, config))


def main() -> None:
    """Play each scene, and print what was exported."""
    (instrumentor,) = sys.argv[1:]
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    instrument(instrumentor)
    bob = Ed25519Signer.from_seed(os.urandom(32))
    config: Any = {"approvers": {"bob": {"keys": [bob.public_key.openssh()]}}}

    def told(scene: str, *, sync: bool) -> dict[str, Any]:
        exporter.clear()
        with Guard.ephemeral(answer, config=config) as guard:
            play(guard, scene, sync=sync)
            with closing(guard.reader()) as reader:
                entries = [parse_entry(body) for _, body in reader.entries()]
        calls = [e for e in entries if e.kind == "call"]
        return {
            "spans": [as_json(span) for span in exporter.get_finished_spans()],
            "traceparents": [call.predicate["traceparent"] for call in calls],
        }

    all_told = {
        how: {scene: told(scene, sync=how == "sync") for scene in SCENES}
        for how in ("sync", "async")
    }
    sys.stdout.write(json.dumps(all_told, default=str))


def as_json(span: ReadableSpan) -> dict[str, Any]:
    """Return what the test looks at."""
    assert span.context is not None
    assert span.instrumentation_scope is not None
    return {
        "name": span.name,
        "scope": span.instrumentation_scope.name,
        "trace": f"{span.context.trace_id:032x}",
        "span": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
    }


if __name__ == "__main__":
    main()
