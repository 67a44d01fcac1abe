"""From a trace in a real Jaeger to the proof: exported, held against the log, told, drawn.

A machine that has no Jaeger and can't build it skips this, and CI, where CI=true, fails it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
DIRECTLY = build_opener(ProxyHandler({}))
EXPORTS = pytest.mark.slow("a real Jaeger, and a process for each export")
OF_THE_DEMO = pytest.mark.slow("runs the whole demo, with its trace sent to a real Jaeger")


@dataclass(frozen=True)
class Jaeger:
    """Where it is asked, and where spans are sent."""

    query: str
    otlp: str

    def send(self, service, *spans):
        """Send spans, as (trace id, span id, caller's, name, start and end in ns, attributes)."""
        listed = []
        for trace_id, span_id, caller, name, start, end, attributes in spans:
            listed.append(
                {
                    "traceId": trace_id,
                    "spanId": span_id,
                    "parentSpanId": caller,
                    "name": name,
                    "kind": 1,
                    "startTimeUnixNano": str(start),
                    "endTimeUnixNano": str(end),
                    "attributes": [
                        {"key": key, "value": {"stringValue": value}}
                        for key, value in attributes.items()
                    ],
                }
            )
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
        body = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": listed}]}]}
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = Request(f"{self.otlp}/v1/traces", data, kind)  # noqa: S310  our own URL
        DIRECTLY.open(request, timeout=10).read()

    def export(self, *arguments, code=0):
        """Run the script; its JSON, or what it says where it refuses."""
        ran = subprocess.run(
            [ROOT / "scripts" / "jaeger-export", "--url", self.query, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stderr
        return ran.stderr if code else json.loads(ran.stdout or "null")


@pytest.fixture(scope="module")
def jaeger(jaeger_urls):
    return Jaeger(*jaeger_urls)


@pytest.fixture
def service():
    """The name of a service that no other test has."""
    return f"agents-{uuid.uuid4()}"


def sent(jaeger, service, number, *, apart=777_000):
    """Send so many traces of one span, apart by so many nanoseconds; their ids, oldest first."""
    began = time.time_ns() - 60_000_000_000
    ids = [uuid.uuid4().hex for _ in range(number)]
    times = [began + apart * at for at in range(number)]
    jaeger.send(
        service,
        *(
            (trace_id, trace_id[:16], "", "execute_tool read", at, at + 5, {})
            for trace_id, at in zip(ids, times, strict=True)
        ),
    )
    return ids


def ids(answer):
    return [trace["traceID"] for trace in answer["data"]]


@EXPORTS
def test_every_trace_comes_once_however_few_an_answer_has(jaeger, service):
    """Some begin within a microsecond of where the time is cut: none falls between two answers."""
    wanted = sent(jaeger, service, 60, apart=777)
    for limit in ("4", "1000"):
        answer = jaeger.export(service, "--limit", limit)
        assert sorted(ids(answer)) == sorted(wanted)
        assert (answer["total"], answer["errors"]) == (60, None)
    # more than two a microsecond: no time is short enough to be sure that none was left out
    assert "raise it" in jaeger.export(service, "--limit", "2", code=1)


@EXPORTS
def test_only_the_time_that_was_asked_for_is_exported(jaeger, service):
    wanted = sent(jaeger, service, 3)
    assert ids(jaeger.export(service, "--since", "2m", "--until", "30s")) == wanted
    assert ids(jaeger.export(service, "--since", "30s")) == []
    assert ids(jaeger.export(service, "--since", "3m", "--until", "2m")) == []
    assert "not before" in jaeger.export(service, "--since", "2m", "--until", "3m", code=2)


def test_one_trace_is_exported_by_its_id(jaeger, service):
    wanted = sent(jaeger, service, 2)
    assert ids(jaeger.export("--trace", wanted[1])) == [wanted[1]]
    assert "404" in jaeger.export("--trace", uuid.uuid4().hex, code=1)


@EXPORTS
def test_a_service_or_a_trace_is_named(jaeger):
    assert "not a trace id" in jaeger.export("--trace", "7", code=2)
    assert "name a service" in jaeger.export(code=2)


def test_what_is_no_jaeger_is_said(jaeger):
    assert "does not answer" in jaeger.export("x", "--url", "http://127.0.0.1:1", code=1)
    assert "and no traces" in jaeger.export("x", "--url", jaeger.otlp, code=1)


def test_a_service_that_there_is_not_is_said_and_which_there_are(jaeger, service):
    sent(jaeger, service, 1)
    refused = jaeger.export("nosuch", code=1)
    assert "knows no service nosuch; it knows: " in refused
    assert service in refused


@EXPORTS
def test_a_file_is_written_whole_or_not_at_all(jaeger, service, tmp_path):
    sent(jaeger, service, 1)
    file = tmp_path / "traces.json"
    jaeger.export("x", "--url", "http://127.0.0.1:1", "-o", file, code=1)
    assert [*tmp_path.iterdir()] == []
    jaeger.export(service, "-o", file)
    assert len(json.loads(file.read_text())["data"]) == 1
    assert "exists already" in jaeger.export(service, "-o", file, code=1)


def tags(span):
    return {tag["key"]: tag["value"] for tag in span["tags"]}


@pytest.fixture(scope="module")
def demo(jaeger, tmp_path_factory):
    """The demo's folder, the file with its trace, and its spans, by the entries of the log."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "agentguard.cli", "demo", "--json", "--dir", folder]
    played = subprocess.run(
        [*command, "--otlp", jaeger.otlp],
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert played.returncode == 0, played.stderr
    file = folder / "traces.json"
    jaeger.export("--trace", json.loads(played.stdout)["trace_id"], "-o", file)
    (trace,) = json.loads(file.read_text())["data"]
    placed = [span for span in trace["spans"] if "agentguard.audit.index" in tags(span)]
    return folder, file, {tags(span)["agentguard.audit.index"]: span for span in placed}


@pytest.fixture
def audit(demo):
    """``audit(*ARGS)`` is what ``agentguard audit ARGS --json`` prints in the demo's folder."""

    def run(*arguments, code=0):
        ran = subprocess.run(
            [sys.executable, "-m", "agentguard.cli", "audit", *arguments, "--json"],
            cwd=demo[0],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stderr
        return [json.loads(line) for line in ran.stdout.splitlines()]

    return run


@OF_THE_DEMO
def test_a_trace_leads_to_the_stories_of_its_calls_and_each_span_to_its_own(demo, audit):
    _, _, placed = demo
    (trace_id,) = {span["traceID"] for span in placed.values()}
    shown = {one["index"]: one for one in audit("show", "--trace", trace_id)}
    assert {one["index"] for one in audit("list", "--trace", trace_id)} == shown.keys()
    told = {index: story for index, story in shown.items() if "kind" not in story}
    waiting = [
        index for index in placed if tags(placed[index])["agentguard.policy.decision"] == "approval"
    ]
    assert told.keys() == placed.keys() - {*waiting}
    assert {story["decision"] for story in told.values()} == {"allow", "deny"}
    for index, story in told.items():
        said = tags(placed[index])
        assert story["traceparent"].startswith(f"00-{trace_id}-{placed[index]['spanID']}-")
        assert said["agentguard.invocation.id"] == story["invocation_id"]
        assert said["agentguard.agent.id"] == story["agent"]
        assert said["agentguard.principal.id"] == story["principal"] == "user:alice"
        assert said["agentguard.policy.decision"] == story["decision"]
        assert story["problems"] == []
    (request,) = waiting
    (asked,) = audit("show", str(request))
    assert asked["kind"] == "request"
    assert asked["traceparent"].startswith(f"00-{trace_id}-{placed[request]['spanID']}-")
    assert shown.keys() - told.keys() == {request}  # as long as it waits, it is all there is


def filled(template, found):
    """What Jaeger's page makes of a pattern's text; None where a value is not on the span."""
    names = re.findall(r"#\{([^}]*)\}", template)
    if not found.keys() >= {*names}:
        return None
    return re.sub(r"#\{([^}]*)\}", lambda match: str(found[match[1]]), template)


@OF_THE_DEMO
def test_each_link_of_the_page_shows_a_command_that_runs(demo):
    """The patterns of deploy/jaeger-ui.json, on a span of each decision: allow, deny, approval."""
    folder, file, _ = demo
    (trace,) = json.loads(file.read_text())["data"]
    patterns = json.loads((ROOT / "deploy" / "jaeger-ui.json").read_text())["linkPatterns"]
    commands: dict[str, dict[str | None, str]] = {pattern["text"]: {} for pattern in patterns}
    for pattern in patterns:
        whole = {"traceID": trace["traceID"]}
        known = (
            [whole]
            if pattern["type"] == "traces"
            else [tags(span) | {"trace.traceID": trace["traceID"]} for span in trace["spans"]]
        )
        for found in known:
            if pattern["type"] == "traces" or pattern["key"] in found:
                command, url = filled(pattern["text"], found), filled(pattern["url"], found)
                assert command is not None
                assert url is not None
                assert url.startswith(f"/trace/{trace['traceID']}")
                decision = found.get("agentguard.policy.decision")
                commands[pattern["text"]].setdefault(decision, command)
    assert all(commands.values())
    distinct = itertools.chain.from_iterable(one.values() for one in commands.values())
    for number, command in enumerate(distinct):
        name, *arguments = command.replace("call.json", f"call-{number}.json").split()
        assert name == "agentguard"
        ran = subprocess.run(
            [sys.executable, "-m", "agentguard.cli", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, ""), command


@OF_THE_DEMO
def test_the_trace_store_is_a_witness_of_the_log(demo, audit):
    folder, file, placed = demo
    (report,) = audit("verify", "--anchor", "", "--against", file)
    assert (report["ok"], report["witness"]) == (True, "outside")
    assert f"who wrote the {len(placed)} checkpoints" in report["unchecked"][0]
    tampered = folder / "tampered"
    (report,) = audit("verify", "--state", tampered, "--anchor", "", "--against", file, code=1)
    assert (report["ok"], report["anchored"]) == (False, False)


@OF_THE_DEMO
def test_the_trace_is_drawn_with_the_identity_beside_each_bar(demo, audit):
    folder, file, placed = demo
    picture = folder / "trace.svg"
    drawn = subprocess.run([ROOT / "scripts" / "waterfall", file, "-o", picture], check=False)
    assert drawn.returncode == 0
    said = "\n".join(node.text or "" for node in ET.fromstring(picture.read_text()).iter())  # noqa: S314
    for index, span in placed.items():
        assert span["operationName"] in said
        assert f"log entry {index}" in said
    assert "allow · approved by user:bob" in said
    assert "deny · scope.exceeded" in said
    assert "user:alice > service:forge > orchestrator > code-agent > test-fixer" in said
