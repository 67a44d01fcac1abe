"""What a real Jaeger returns of a trace: the tree, the attributes, and what it finds by tags.

A machine that has no Jaeger and can't build it skips this, and CI, where CI=true, fails it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
from docs_pages import WARNINGS_ARE_ERRORS

from agentguard import Ed25519Signer
from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.domain import config, domain
from agentguard.store.reader import StoredLog

ROOT = Path(__file__).parents[2]
DIRECTLY = build_opener(ProxyHandler({}))


@contextmanager
def unless_missing():
    """Pass over the answer that there is no such thing: not yet."""
    try:
        yield
    except HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise


class Jaeger:
    """Its two addresses, and questions to it."""

    def __init__(self, otlp: str, query: str) -> None:
        self.otlp = otlp
        self.query = query

    def ask(self, path):
        with DIRECTLY.open(f"{self.query}{path}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def trace(self, trace_id, spans):
        """Return the spans of a trace once there are so many: it keeps them a moment later.

        No span may have a warning, as Jaeger's page shows one beside a span.
        """
        found = self.spans(trace_id, spans)
        assert [(span.name, span.warnings) for span in found if span.warnings] == []
        return found

    def spans(self, trace_id, spans):
        found: list[Span] = []
        deadline = time.monotonic() + 20
        while len(found) < spans and time.monotonic() < deadline:
            time.sleep(0.1)
            with unless_missing():
                (trace,) = self.ask(f"/api/traces/{trace_id}")
                found = [Span(one) for one in trace["spans"]]
        return sorted(found, key=lambda span: span.start)

    def search(self, service, **tags):
        """Return the ids of the traces in which a span has these tags."""
        asked = urlencode({"service": service, "tags": json.dumps(tags), "limit": 100})
        return {trace["traceID"] for trace in self.ask(f"/api/traces?{asked}")}


class Span:
    """One span as the API has it."""

    def __init__(self, told) -> None:
        self.id = told["spanID"]
        self.name = told["operationName"]
        self.start = told["startTime"]
        self.tags = {tag["key"]: tag["value"] for tag in told["tags"]}
        refs = told["references"]
        self.links = [ref["spanID"] for ref in refs if ref["refType"] == "FOLLOWS_FROM"]
        # a parent that is linked to as well is one reference to Jaeger, of the link's type
        parents = [ref["spanID"] for ref in refs if ref["refType"] == "CHILD_OF"]
        self.parent = next(iter([*parents, *self.links]), None)
        fields = [{f["key"]: f["value"] for f in log["fields"]} for log in told["logs"]]
        self.events = [found["event"] for found in fields]
        self.warnings = told["warnings"] or []


RESUMES = """
import sys, time
from agentguard import Decision, Guard, adapters, telemetry

endpoint, host, paused = sys.argv[1:]
telemetry.configure(endpoint=endpoint, service_name="resumes", host=host == "named")
with Guard.ephemeral(lambda _: Decision.allow()) as guard:
    # the first run lasts longer than its continuation, or Jaeger compares no clocks
    started = None if paused else time.time_ns() - 600 * 10**9
    clerk = guard.new_agent("clerk")
    with adapters.agent_span(clerk, paused=paused or None, started=started) as span:
        pass
    print(span.traceparent)
assert telemetry.flush(20)
"""


@pytest.mark.slow("starts two processes for each machine")
@pytest.mark.parametrize("host", ["named", "nameless"])
def test_a_run_that_resumes_in_another_process_gets_no_warning_of_a_clock_skew(jaeger, host):
    """Jaeger takes two processes for two machines, with two clocks, unless they name the machine.

    Its page asks the first of the two APIs, and that of later versions the second, which tells
    machines apart by other attributes.
    """
    first = run(sys.executable, "-c", RESUMES, jaeger.otlp, host, "").strip()
    again = run(sys.executable, "-c", RESUMES, jaeger.otlp, host, first).strip()
    trace_id = first.split("-")[1]
    assert again.split("-")[1] == trace_id
    spans = jaeger.spans(trace_id, 2)
    assert tree(spans) == ["invoke_agent clerk", "  invoke_agent clerk"]
    warnings = [warning for span in spans for warning in span.warnings]
    with DIRECTLY.open(f"{jaeger.query}/api/v3/traces/{trace_id}", timeout=10) as answer:
        later = answer.read().decode()
    if host == "named":
        assert warnings == []
        assert "clock skew" not in later
    else:
        assert len(warnings) == 1
        assert warnings[0].startswith("clock skew adjustment disabled")
        assert "clock skew" in later


def tree(spans, parent=None):
    """Return the names as lines, each indented under its parent, in order of start."""
    lines = []
    for span in spans:
        if span.parent == parent:
            lines += [span.name, *(f"  {line}" for line in tree(spans, span.id))]
    return lines


@pytest.fixture
def jaeger(jaeger_urls, monkeypatch):
    query, otlp = jaeger_urls
    monkeypatch.setenv("AGENTGUARD_JAEGER_QUERY_URL", query)  # for the examples
    monkeypatch.setenv("AGENTGUARD_OTLP_ENDPOINT", otlp)
    return Jaeger(otlp, query)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow("runs an example with LangGraph, as a reader runs it")
def test_a_graph_with_a_sub_agent_and_an_approval(jaeger):
    example = ROOT / "examples" / "jaeger" / "main.py"
    said = run(sys.executable, *WARNINGS_ARE_ERRORS, example)
    waits, done, link, json_link, denied, needed = said.splitlines()
    assert (waits, done) == ("writer waits for bob: a report is published", "Done.")
    trace_id = link.rpartition("/")[2]
    spans = jaeger.trace(trace_id, 10)
    assert tree(spans) == [
        "invoke_agent lead",
        "  execute_tool read_note",
        "  execute_tool read_note",
        "  execute_tool ask_writer",
        "    invoke_agent writer",
        "      execute_tool publish",
        "  invoke_agent lead",
        "    execute_tool ask_writer",
        "      invoke_agent writer",
        "        execute_tool publish",
    ]
    assert shown(readme(), "shows this tree:") == tree(spans)
    sales, salaries = (span for span in spans if span.name == "execute_tool read_note")
    assert sales.tags["agentguard.outcome.status"] == "ok"
    assert "error" not in sales.tags
    assert (salaries.tags["error"], salaries.tags["error.type"]) == (True, "policy.denied")
    assert salaries.events == ["policy.decision"]

    lead, again = (span for span in spans if span.name == "invoke_agent lead")
    asked, published = (span for span in spans if span.name == "execute_tool publish")
    assert again.links == [lead.id]
    assert published.links == [asked.id]
    assert asked.events == ["policy.decision", "approval.requested"]
    assert published.events == ["policy.decision", "approval.decided", "policy.decision"]
    assert asked.tags["agentguard.approval.status"] == "pending"
    assert published.tags["agentguard.approval.status"] == "approved"
    assert published.tags["agentguard.approval.id"] == asked.tags["agentguard.approval.id"]
    assert [span.name for span in spans if span.tags.get("error")] == ["execute_tool read_note"]
    for span in spans:
        assert span.tags["user.id"] == "user:alice"
        assert span.tags["agentguard.task.id"] == "report-q3"
    assert published.tags["agentguard.delegation.chain"].startswith("user:alice>")
    assert published.tags["agentguard.delegation.chain"].endswith(">agent:lead>agent:writer")
    assert lead.tags["gen_ai.conversation.id"] == "report-q3"

    tags = [line for line in readme().splitlines() if "=" in line and " " not in line]
    assert len(tags) == 5
    for name, value in (tag.split("=") for tag in tags):
        assert trace_id in jaeger.search("report-team", **{name: value})
        assert trace_id not in jaeger.search("report-team", **{name: value + "x"})

    found = jaeger.ask(denied.split()[-1].removeprefix(jaeger.query))
    assert trace_id in {trace["traceID"] for trace in found}
    (found,) = jaeger.ask(json_link.split()[-1].removeprefix(jaeger.query))
    assert found["traceID"] == trace_id
    assert "needs a Jaeger with its UI" in needed


def readme():
    return (ROOT / "examples" / "jaeger" / "README.md").read_text(encoding="utf-8")


def shown(page, before):
    """The names of the tree that a page shows after these words."""
    block = page.split(before)[1].split("```")[1]
    lines = [line for line in block.split("\n") if line]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    words = [" ".join(line.split()[:2]) for line in lines]
    return [f"{' ' * indent}{name}" for indent, name in zip(indents, words, strict=True)]


def checkpoints(reader):
    """The checkpoints of the log at each size that it has had, as a span has them."""
    log, grown = heads.parse(reader.head()).log, merkle.CompactRange()
    for _index, body in reader.entries():
        grown.append(merkle.leaf_hash(body))
        yield Checkpoint(log, grown.size, grown.root()).line()


@pytest.mark.slow("runs the whole demo in a process of its own")
def test_the_demo(jaeger, tmp_path):
    agentguard = Path(sys.executable).with_name("agentguard")
    folder = tmp_path / "demo"
    told = json.loads(run(agentguard, "demo", "--json", "--dir", folder, "--otlp", jaeger.otlp))
    assert told["sent"] is True
    calls = [step for step in told["steps"] if step["invocation_id"] is not None]
    waiting = [step for step in told["steps"] if step["decision"] == "approval"]
    spans = jaeger.trace(told["trace_id"], len(calls) + len(waiting) + 4)
    assert tree(spans)[:3] == [
        "invoke_agent orchestrator",
        "  execute_tool assign_task",
        "    invoke_agent code-agent",
    ]
    assert "      execute_tool fix_tests" in tree(spans)
    assert "        invoke_agent test-fixer" in tree(spans)

    # each call of the log is one span, and each span says where in the log
    by_id = {span.tags.get("agentguard.invocation.id"): span for span in spans}
    with closing(StoredLog.of(Path(told["state"]))) as reader:
        points = {*checkpoints(reader)}
    for step in calls:
        span = by_id[step["invocation_id"]]
        assert span.name == f"execute_tool {step['tool']}"
        assert span.tags["agentguard.policy.decision"] == step["decision"]
        assert ("error" in span.tags) == (step["decision"] == "deny")
        assert span.tags["agentguard.audit.checkpoint"] in points
    assert len([s for s in spans if s.name.startswith("execute_tool")]) == len(calls) + len(waiting)

    # what the page on Jaeger's page says
    page = (ROOT / "docs" / "how-to" / "jaeger-page.md").read_text("utf-8")
    tags = dict(re.findall(r"^\| `([a-z_.]+)=([^`]+)` \|", page, re.MULTILINE))
    assert len(tags) == 8  # one name is there twice
    tags["agentguard.invocation.id"] = calls[-1]["invocation_id"]
    for name, value in tags.items():
        assert told["trace_id"] in jaeger.search("forge", **{name: value})
        assert told["trace_id"] not in jaeger.search("forge", **{name: f"{value}x"})
    assert [span.tags["error"] for span in spans if "error" in span.tags] == [True] * 3
    assert jaeger.search("forge", error="true") == set()  # in the storage in memory
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    decisions = Counter(
        (span.tags["gen_ai.agent.name"], span.tags["agentguard.policy.decision"])
        for span in spans
        if "agentguard.policy.decision" in span.tags
    )
    counted = {
        (agent, decision): int(number)
        for agent, *numbers in rows
        for decision, number in zip(("allow", "approval", "deny"), numbers, strict=True)
        if number != "0"
    }
    assert counted == decisions


@pytest.mark.slow("runs the whole demo in a process of its own")
def test_the_demo_says_where_to_look(jaeger, tmp_path):
    agentguard = Path(sys.executable).with_name("agentguard")
    said = run(agentguard, "demo", "--dir", tmp_path / "demo", "--otlp", jaeger.otlp)
    (link,) = (line.split()[-1] for line in said.splitlines() if "in Jaeger:" in line)
    trace_id = link.rpartition("/")[2]
    assert link == f"{jaeger.query}/trace/{trace_id}"
    searches = [line.strip() for line in said.splitlines() if "/api/traces?" in line]
    assert len(searches) == 5
    jaeger.trace(trace_id, 1)
    for url in searches:
        found = jaeger.ask(url.removeprefix(jaeger.query))
        assert trace_id in {trace["traceID"] for trace in found}
    (json_link,) = (line.split()[-1] for line in said.splitlines() if "as JSON:" in line)
    assert [one["traceID"] for one in jaeger.ask(json_link.removeprefix(jaeger.query))] == [
        trace_id
    ]
    assert "the page needs a Jaeger with its UI" in said
    (show,) = (line for line in said.splitlines() if f"audit show --trace {trace_id}" in line)
    assert "merge_pr" in run("/bin/sh", "-c", show)


WITH_CREWS = pytest.mark.skipif(sys.version_info >= (3, 14), reason="CrewAI is not for this Python")


@pytest.mark.slow("starts CrewAI in a process of its own")
@WITH_CREWS
def test_a_crew(jaeger):
    example = ROOT / "examples" / "crew_identities" / "main.py"
    said = run(sys.executable, example, "--otlp", jaeger.otlp)
    (link,) = (line.split()[-1] for line in said.splitlines() if "trace in Jaeger:" in line)
    trace_id = link.rpartition("/")[2]
    expected = shown(
        (ROOT / "docs" / "how-to" / "crewai-traces.md").read_text("utf-8"), "is one trace:"
    )
    spans = jaeger.trace(trace_id, len(expected))
    assert tree(spans) == expected
    refused, asked, published = (s for s in spans if s.name == "execute_tool publish_report")
    through = "user:alice>crew:newsroom>agent:"
    assert refused.tags["agentguard.delegation.chain"] == f"{through}researcher>agent:writer"
    assert published.tags["agentguard.delegation.chain"] == f"{through}writer"
    assert [span.name for span in spans if span.tags.get("error")] == [refused.name]
    assert refused.tags["error.type"] == "scope.exceeded"
    assert asked.tags["agentguard.approval.status"] == "pending"
    assert published.links == [asked.id]
    assert published.events == ["policy.decision", "approval.decided", "policy.decision"]
    assert spans[0].tags["gen_ai.workflow.name"] == "Newsroom"
    for span in spans:  # the workflow's too
        assert span.tags["user.id"] == "user:alice"
        assert span.tags["agentguard.task.id"] == "report-7"
    for span in spans[1:]:
        assert f"/{span.tags['gen_ai.agent.name']}/" in span.tags["agentguard.agent.id"]
    for name, value in {
        "agentguard.actor": published.tags["agentguard.actor"],
        "agentguard.policy.decision": "deny",
        "agentguard.delegation.chain": f"{through}researcher>agent:writer",
        "agentguard.invocation.id": published.tags["agentguard.invocation.id"],
        "gen_ai.workflow.name": "Newsroom",
    }.items():
        assert trace_id in jaeger.search("newsroom", **{name: value})
        assert trace_id not in jaeger.search("newsroom", **{name: value + "x"})


PAUSES = '''
import json, os, sys

os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["CREWAI_STORAGE_DIR"] = os.getcwd()
from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from agentguard import ApprovalPending, Decision, Ed25519Signer, Guard
from agentguard_crewai import guard_crew, resumable


def decide(document):
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


class Model(BaseLLM):
    steps: list

    def call(self, *args, **kwargs):
        if not self.steps:
            return "done"
        name, arguments = self.steps.pop(0)
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": "c", "type": "function", "function": function}]

    def supports_function_calling(self):
        return True


@tool
def pay(to: str) -> str:
    """Pay somebody."""
    return f"paid {to}"


def agent(role, *steps, **options):
    model = Model(model="scripted", steps=list(steps))
    return Agent(role=role, goal="g", backstory="b", llm=model, **options)


if __name__ == "__main__":
    work = {"task": "pay ann", "context": "c", "coworker": "Clerk"}
    lead = agent("Lead", ("delegate_work_to_coworker", work), allow_delegation=True)
    clerk = agent("Clerk", ("pay", {"to": "ann"}), tools=[pay])
    task = Task(description="a task", expected_output="words", agent=lead)
    crew = Crew(name="bank", agents=[lead, clerk], tasks=[task])
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        for seed in sys.argv[1:]:
            (request,) = guard.approvals.pending()
            guard.approvals.approve(request, Ed25519Signer.from_seed(bytes.fromhex(seed)))
        guard_crew(crew, guard, on_approval="pause")
        with guard.delegate("user:alice", scope=["pay"], via="crew:bank"), resumable("order-1"):
            try:
                print(crew.kickoff().raw)
            except ApprovalPending as pending:
                print(pending.request.traceparent)
'''
SETTINGS = """
trust_domain = "bank.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "pauses:decide"

[agents.lead]
max_scope = ["pay"]

[agents.clerk]
max_scope = ["pay"]

[telemetry]
endpoint = "{endpoint}"
service_name = "{service}"

[approvers.bob]
principal = "user:bob"
keys = ["{key}"]
"""
PAUSED = """
invoke_workflow bank
  invoke_agent lead
    execute_tool delegate_work_to_coworker
      invoke_agent clerk
        execute_tool pay
"""


@pytest.mark.slow("starts CrewAI in processes of its own")
@WITH_CREWS
def test_a_crew_that_pauses_and_goes_on_in_another_process(jaeger, tmp_path, monkeypatch):
    seed = os.urandom(32)
    bob = Ed25519Signer.from_seed(seed)
    service = f"bank-{os.urandom(4).hex()}"
    tables = SETTINGS.format(endpoint=jaeger.otlp, service=service, key=bob.public_key.openssh())
    (tmp_path / "pauses.py").write_text(PAUSES)
    (tmp_path / "agentguard.toml").write_text(tables)
    domain.found(config.load(tmp_path / "agentguard.toml"), b"of this test", now=datetime.now(UTC))
    monkeypatch.chdir(tmp_path)
    traceparent = run(sys.executable, "pauses.py").split()[-1]
    assert run(sys.executable, "pauses.py", seed.hex()).split()[-1] == "done"

    first = PAUSED.strip("\n").splitlines()
    spans = jaeger.trace(traceparent.split("-")[1], 2 * len(first))
    assert tree(spans) == [*first, *(f"  {line}" for line in first)]
    workflow, again = (span for span in spans if span.name == "invoke_workflow bank")
    asked, paid = (span for span in spans if span.name == "execute_tool pay")
    assert (again.links, paid.links) == ([workflow.id], [asked.id])
    assert not [span for span in spans if span.tags.get("error")]
    assert asked.id == traceparent.split("-")[2]
    trace_ids = jaeger.search(service, **{"gen_ai.conversation.id": "order-1"})
    assert trace_ids == {traceparent.split("-")[1]}
