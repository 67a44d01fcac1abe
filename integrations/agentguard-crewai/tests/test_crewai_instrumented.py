"""Crews beside what else traces them: instrumentors of other people, and CrewAI's own telemetry.

Each has a process of its own: an instrumentor patches CrewAI's classes, and a process has one SDK.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCENES = Path(__file__).with_name("instrumented.py")
OURS = ("invoke_", "execute_tool ", "agentguard.")

OPENLLMETRY = """
invoke_workflow report
  crewai.workflow
    a task.task
      invoke_agent lead
        Lead.agent
          execute_tool look
            looking at it
          execute_tool look
          execute_tool delegate_work_to_coworker
            invoke_agent hand
              Hand.agent
                execute_tool pay
"""
OPENINFERENCE = """
invoke_workflow report
  report.kickoff
    Lead._execute_core
      invoke_agent lead
        look.run
          agentguard.authorize
          looking at it
        look.run
          agentguard.authorize
        Delegate work to coworker.run
          agentguard.authorize
          invoke_agent hand
            pay.run
              agentguard.authorize
"""
OPENINFERENCE_TEXT = """
invoke_workflow report
  report.kickoff
    Lead._execute_core
      invoke_agent lead
        execute_tool look
          looking at it
        execute_tool look
        execute_tool delegate_work_to_coworker
          invoke_agent hand
            execute_tool pay
"""
ALONE = """
invoke_workflow report
  invoke_agent lead
    execute_tool look
      looking at it
    execute_tool look
    execute_tool delegate_work_to_coworker
      invoke_agent hand
        execute_tool pay
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory, preloaded) -> Callable[[str, str], Any]:
    """Returns the spans of a crew beside an instrumentor, whose model calls tools in some way."""

    @functools.cache
    def run(instrumentor: str, way: str) -> Any:
        folder = tmp_path_factory.mktemp("scene")
        done = preloaded.run(SCENES, instrumentor, way, cwd=folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def tree(spans, parent=None, depth=0):
    """Their names, those of children indented; ``parent`` None: of those whose parent is not there.

    Without the span that is in a tool, which is not there where its result was handed out again.
    """
    known = {span["id"] for span in spans}
    lines: list[str] = []
    for span in spans:
        if (span["parent"] if span["parent"] in known else None) == parent:
            lines += ["  " * depth + span["name"], *tree(spans, span["id"], depth + 1)]
    return lines


def decided(spans):
    """The spans that stand for calls, one for each: with which answer, and in which status."""
    of_calls = (
        span for span in spans if span["attributes"].get("gen_ai.operation.name") == "execute_tool"
    )
    return list(map(answered, of_calls))


def answers(spans, name):
    """The spans of a name: with which answer, and in which status."""
    return [answered(span) for span in spans if span["name"] == name]


def answered(span):
    return span["name"], span["attributes"].get("agentguard.policy.decision"), span["status"]


@pytest.mark.parametrize(
    ("instrumentor", "way", "expected"),
    [
        ("OpenLLMetry", "native", OPENLLMETRY),
        ("OpenLLMetry", "text", OPENLLMETRY),
        ("OpenInference", "native", OPENINFERENCE),
        ("OpenInference", "text", OPENINFERENCE_TEXT),
    ],
)
def test_a_call_has_one_span(told, instrumentor, way, expected):
    told = told(instrumentor, way)
    lines = expected.strip("\n").splitlines()
    assert tree(told["paused"]) == lines
    assert len(decided(told["paused"])) == 4  # of which two are of one tool
    # what has ended is not run again: its result was handed out
    assert tree(told["resumed"]) == [line for line in lines if line.strip() != "looking at it"]
    assert len({span["trace"] for span in told["paused"] + told["resumed"]}) == 1
    paused = {span["id"] for span in told["paused"]}
    linked = [span["name"] for span in told["resumed"] if paused & set(span["links"])]
    assert linked == [
        "invoke_workflow report",
        lines[-1].strip() if way == "text" else PAID[expected],
    ]


PAID = {OPENLLMETRY: "execute_tool pay", OPENINFERENCE: "pay.run"}


def test_openinferences_span_of_a_tool_says_who_acted_and_what_was_decided(told):
    told = told("OpenInference", "native")
    assert decided(told["paused"]) == [
        ("look.run", "allow", "OK"),
        ("look.run", "deny", "OK"),  # that is OpenInference's word, which comes last
        ("Delegate work to coworker.run", "allow", "OK"),
        ("pay.run", "approval", "OK"),
    ]
    assert answers(told["paused"], "agentguard.authorize") == [
        ("agentguard.authorize", "allow", "UNSET"),
        ("agentguard.authorize", "deny", "ERROR"),
        ("agentguard.authorize", "allow", "UNSET"),
        ("agentguard.authorize", "approval", "UNSET"),
    ]
    theirs = [span["attributes"] for span in told["paused"] if span["name"] == "look.run"]
    for attributes in theirs:
        assert attributes["openinference.span.kind"] == "TOOL"
        assert attributes["gen_ai.agent.name"] == "lead"
        assert attributes["agentguard.delegation.chain"] == "agent:lead"
        assert attributes["agentguard.invocation.id"]
        assert "agentguard.audit.index" in attributes
    assert theirs[1]["error.type"] == "policy.denied"


@pytest.mark.parametrize("way", ["native", "text"])
def test_beside_openinferences_listener_ours_are_whole(told, way):
    # it makes its spans of events, in threads of CrewAI's: there is nothing to enrich in time
    told = told("OpenInference-events", way)
    assert {"look.run", "report.kickoff"} <= {span["name"] for span in told["paused"]}
    ours = [s for s in told["paused"] if s["name"].startswith((*OURS, "looking"))]
    assert tree(ours) == ALONE.strip("\n").splitlines()


APART = '''
"""A crew with an SDK of the application's, and CrewAI's own telemetry: who exports what."""

import json
import os

os.environ["CREWAI_DISABLE_TELEMETRY"] = "false"
os.environ["CREWAI_TRACING_ENABLED"] = "false"

from crewai.telemetry import telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

sent = []


def export(self, spans):
    """What would go to CrewAI, and stays here."""
    sent.extend(spans)
    return SpanExportResult.SUCCESS


telemetry.SafeOTLPSpanExporter.export = export
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

import sys

sys.path.insert(0, sys.argv[1])
from instrumented import Model, look
from crewai import Agent, Crew, Task
from crewai.events.event_bus import crewai_event_bus

from agentguard import Decision, Guard
from agentguard_crewai import guard_crew

guard = Guard.ephemeral(
    lambda _input: Decision.allow(), config={"agents": {"lead": {"authority": "own"}}}
)
model = Model(model="scripted", steps=[("look", {"what": "it"})])
lead = Agent(role="Lead", goal="g", backstory="b", llm=model, tools=[look])
task = Task(description="a task", expected_output="words", agent=lead)
guard_crew(Crew(name="report", agents=[lead], tasks=[task], share_crew=True), guard).kickoff()
crewai_event_bus.flush()
telemetry.Telemetry().provider.force_flush()
names = lambda spans: [[span.instrumentation_scope.name, span.name] for span in spans]
ours = exporter.get_finished_spans()
traces = sorted({f"{span.context.trace_id:032x}" for span in (*sent, *ours)})
print(json.dumps({"crewai": names(sent), "ours": names(ours), "traces": traces}))
'''


@pytest.mark.slow("CrewAI sets its telemetry up as it is imported: a process that imports it")
def test_crewais_own_telemetry_is_apart(tmp_path):
    program = tmp_path / "apart.py"
    program.write_text(APART)
    command = [sys.executable, str(program), str(SCENES.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert {name for scope, name in told["crewai"]} >= {"Crew Created", "Crew Completed"}
    assert "agentguard" not in {scope for scope, name in told["crewai"]}
    assert sorted(name for scope, name in told["ours"]) == [
        "execute_tool look",
        "invoke_agent lead",
        "invoke_workflow report",
        "looking at it",
    ]
    assert len(told["traces"]) == 1  # CrewAI's threads have the context that the crew is in
