"""A crew beside an instrumentor, in a process of its own: prints its spans as JSON.

It is no test module: ``test_crewai_instrumented.py`` runs it, as the instrumentors patch
CrewAI's classes, and classes of guarded tools are made of these once.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from crewai import Agent, Crew, Task
from crewai.events.event_bus import crewai_event_bus
from crewai.llms.base_llm import BaseLLM
from crewai.tools import BaseTool, tool
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard import ApprovalPending, Decision, Guard
from agentguard.signing.keys import Ed25519Signer
from agentguard_crewai import guard_crew, resumable


class Model(BaseLLM):
    """Makes the calls that it is given, natively or as text, and is done."""

    steps: list[Any] = []  # noqa: RUF012  a field of a pydantic model
    native: bool = True

    def call(self, *_args: Any, **_kwargs: Any) -> Any:
        if not self.steps:
            return "done" if self.native else "Thought: I know.\nFinal Answer: done"
        name, arguments = self.steps.pop(0)
        if not self.native:
            return f"Thought: go on.\nAction: {name}\nAction Input: {json.dumps(arguments)}\n"
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": f"c{len(self.steps)}", "type": "function", "function": function}]

    def supports_function_calling(self) -> bool:
        return self.native


@tool
def look(what: str) -> str:
    """Look at something."""
    with trace.get_tracer("the application").start_as_current_span(f"looking at {what}"):
        return f"{what} is fine"


class Pay(BaseTool):
    """A tool that is a class of its own."""

    name: str = "pay"
    description: str = "Pay somebody."

    def _run(self, to: str) -> str:
        return f"paid {to}"


def decide(document: Any) -> Decision:
    """Keep a secret, and ask before anybody pays."""
    if "secret" in str(document["args"]):
        return Decision.deny("it is secret")
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


def main(instrumentor: str, way: str) -> None:
    """Instrument, run the crew until it pauses, and then to its end."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _instrument(instrumentor, provider)
    bob = Ed25519Signer.from_seed(os.urandom(32))
    tables = {
        "agents": {name: {"authority": "own"} for name in ("lead", "hand")},
        "approvers": {"bob": {"principal": "user:bob", "keys": [bob.public_key.openssh()]}},
    }
    guard = Guard.ephemeral(decide, config=tables)

    def agent(role: str, *steps: Any, **options: Any) -> Agent:
        model = Model(model="scripted", native=way == "native", steps=list(steps))
        return Agent(role=role, goal="g", backstory="b", llm=model, **options)

    def order() -> str:
        work = {"task": "pay ann", "context": "c", "coworker": "Hand"}
        steps = [("look", {"what": "it"}), ("look", {"what": "secret"})]
        handing = ("delegate_work_to_coworker", work)
        lead = agent("Lead", *steps, handing, tools=[look], allow_delegation=True)
        hand = agent("Hand", ("pay", {"to": "ann"}), tools=[Pay()])
        task = Task(description="a task", expected_output="words", agent=lead)
        crew = Crew(name="report", agents=[lead, hand], tasks=[task])
        guard_crew(crew, guard, on_approval="pause")
        with resumable("order-1"):
            return str(crew.kickoff().raw)

    try:
        order()
    except ApprovalPending as pending:
        crewai_event_bus.flush()
        paused = len(exporter.get_finished_spans())
        guard.approvals.approve(pending.request, bob)
    order()
    crewai_event_bus.flush()
    spans = exporter.get_finished_spans()
    found = {"paused": told(spans[:paused]), "resumed": told(spans[paused:])}
    sys.stdout.write(json.dumps(found))


def _instrument(name: str, provider: TracerProvider) -> None:
    if name == "OpenLLMetry":
        from opentelemetry.instrumentation.crewai import CrewAIInstrumentor  # noqa: PLC0415

        CrewAIInstrumentor().instrument(tracer_provider=provider)
    else:
        from openinference.instrumentation.crewai import (  # noqa: PLC0415
            CrewAIInstrumentor as OpenInference,
        )

        events = name == "OpenInference-events"
        OpenInference().instrument(tracer_provider=provider, use_event_listener=events)


def told(spans: Any) -> list[Any]:
    """The spans in the order of their beginnings, as JSON has them."""
    return [one(span) for span in sorted(spans, key=lambda span: span.start_time or 0)]


def one(span: ReadableSpan) -> dict[str, Any]:
    """One of them."""
    return {
        "id": f"{span.context.span_id:x}",
        "trace": f"{span.context.trace_id:x}",
        "parent": None if span.parent is None else f"{span.parent.span_id:x}",
        "name": span.name,
        "status": span.status.status_code.name,
        "links": [f"{link.context.span_id:x}" for link in span.links],
        "attributes": dict(span.attributes or {}),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
