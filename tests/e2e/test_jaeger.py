"""What a real Jaeger returns of a trace: the tree, the attributes, and what it finds by tags.

It is the one of ``scripts/services up``, or any that AGENTGUARD_OTLP_ENDPOINT and
AGENTGUARD_JAEGER_QUERY_URL name. Without them these tests are skipped, and in CI, where CI=true,
they fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from agentguard.storage.reader import StateReader

ROOT = Path(__file__).parents[2]
DIRECTLY = build_opener(ProxyHandler({}))


class Jaeger:
    """Its two addresses, and questions to it."""

    def __init__(self, otlp: str, query: str) -> None:
        self.otlp = otlp
        self.query = query

    def ask(self, path):
        with DIRECTLY.open(f"{self.query}{path}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def trace(self, trace_id, spans):
        """Return the spans of a trace once there are so many: it keeps them a moment later."""
        found: list[Span] = []
        deadline = time.monotonic() + 20
        while len(found) < spans and time.monotonic() < deadline:
            time.sleep(0.1)
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


def tree(spans, parent=None):
    """Return the names as lines, each indented under its parent, in order of start."""
    lines = []
    for span in spans:
        if span.parent == parent:
            lines += [span.name, *(f"  {line}" for line in tree(spans, span.id))]
    return lines


@pytest.fixture
def jaeger():
    names = ("AGENTGUARD_OTLP_ENDPOINT", "AGENTGUARD_JAEGER_QUERY_URL")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        why = (
            f'{" and ".join(missing)} not set: scripts/services up, eval "$(scripts/services env)"'
        )
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return Jaeger(*(os.environ[name] for name in names))


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_graph_with_a_sub_agent_and_an_approval(jaeger):
    said = run(sys.executable, "-W", "error", ROOT / "examples" / "jaeger" / "main.py")
    waits, done, link, denied = said.splitlines()
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
    assert tree_of_the_readme() == tree(spans)
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


def readme():
    return (ROOT / "examples" / "jaeger" / "README.md").read_text(encoding="utf-8")


def tree_of_the_readme():
    """The names of the tree that the example's page shows."""
    block = readme().split("shows this tree:")[1].split("```")[1]
    lines = [line for line in block.split("\n") if line]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    words = [" ".join(line.split()[:2]) for line in lines]
    return [f"{' ' * indent}{name}" for indent, name in zip(indents, words, strict=True)]


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
    with closing(StateReader(Path(told["state"]))) as reader:
        notes = {" ".join(note.decode().split("\n")[:3]) for note in reader.checkpoints(0)}
    for step in calls:
        span = by_id[step["invocation_id"]]
        assert span.name == f"execute_tool {step['tool']}"
        assert span.tags["agentguard.policy.decision"] == step["decision"]
        assert ("error" in span.tags) == (step["decision"] == "deny")
        assert span.tags["agentguard.audit.checkpoint"] in notes
    assert len([s for s in spans if s.name.startswith("execute_tool")]) == len(calls) + len(waiting)

    for tags in (
        {"agentguard.policy.decision": "deny"},
        {"agentguard.approval.status": "approved"},
        {"gen_ai.agent.name": "test-fixer"},
        {"user.id": "user:alice"},
        {"error.type": "scope.exceeded"},
        {"agentguard.invocation.id": calls[-1]["invocation_id"]},
    ):
        assert told["trace_id"] in jaeger.search("agentguard-demo", **tags)
    assert jaeger.search("agentguard-demo", **{"user.id": "user:mallory"}) == set()


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
