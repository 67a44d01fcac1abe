"""The picture of a trace: ``tools/waterfall.py``, on answers in the form of Jaeger's query API."""

from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import waterfall

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
TRACE = "0af7651916cd43dd8448eb211c80319c"
THUMBPRINT = "7f3a" + "A" * 39
AGENT = f"spiffe://acme.example/agent/code-reviewer/{THUMBPRINT}"
BEGAN = 1_795_642_648_000_000
IDENTITY = {
    "agentguard.agent.id": AGENT,
    "agentguard.principal.id": "user:alice",
    "agentguard.delegation.chain": "user:alice>service:forge>agent:code-reviewer",
    "agentguard.policy.decision": "allow",
    "agentguard.approval.id": "ap-1",
    "agentguard.approval.status": "approved",
    "agentguard.audit.index": 17,
}


def span(number, caller=None, *, start=0, duration=1000, name=None, tags=None, logs=()):
    reference = {"refType": "CHILD_OF", "traceID": TRACE, "spanID": f"{caller or 0:016x}"}
    return {
        "traceID": TRACE,
        "spanID": f"{number:016x}",
        "operationName": name or f"span {number}",
        "references": [reference] if caller is not None else [],
        "startTime": BEGAN + start,
        "duration": duration,
        "tags": [
            {"key": key, "type": "string", "value": value} for key, value in (tags or {}).items()
        ],
        "logs": [*logs],
        "processID": "p1",
        "warnings": None,
    }


def answer(*spans, trace=TRACE):
    processes = {"p1": {"serviceName": "agents", "tags": []}}
    return {"data": [{"traceID": trace, "spans": [*spans], "processes": processes}]}


def drawn(*spans):
    """The picture, parsed: it is well-formed."""
    return ET.fromstring(waterfall.draw(answer(*spans)["data"][0]))  # noqa: S314  our own


def texts(picture):
    return ["".join(node.itertext()) for node in picture.iter(f"{SVG}text")]


def names(picture):
    """The names of the spans from top to bottom, with how far they are indented."""
    named = [node for node in picture.iter(f"{SVG}text") if node.get("class") == "name"]
    left = min(float(node.get("x")) for node in named)
    return [
        ((float(node.get("x")) - left) / 14, node.text)
        for node in named
        if float(node.get("x")) < 344
    ]


def bars(picture):
    return [rect for rect in picture.iter(f"{SVG}rect") if rect.get("class") != "paper"]


def test_who_acted_for_whom_and_what_proves_it_stands_beside_each_bar():
    answer = [{"key": "agentguard.approval.approver", "value": "user:bob"}]
    decided = {"timestamp": BEGAN, "fields": answer}
    picture = drawn(span(1, name="execute_tool merge", tags=IDENTITY, logs=[decided]))
    shown = texts(picture)
    assert "agent:code-reviewer:7f3a, for user:alice" in shown
    assert "user:alice > service:forge > code-reviewer" in shown
    assert "allow · approved by user:bob · log entry 17" in shown
    (bar,) = bars(picture)
    assert "agentguard.audit.index = 17" in "".join(bar.itertext())


@pytest.mark.parametrize(
    ("tags", "style"),
    [
        ({}, "plain"),
        ({"agentguard.policy.decision": "allow"}, "allow"),
        ({"agentguard.policy.decision": "deny", "error.type": "scope.missing"}, "deny"),
        ({"agentguard.policy.decision": "approval"}, "wait"),
        ({"agentguard.policy.decision": "allow", "agentguard.approval.status": "pending"}, "wait"),
        ({"agentguard.policy.decision": "allow", "otel.status_code": "ERROR"}, "deny"),
    ],
)
def test_a_bar_has_the_colour_of_what_was_decided(tags, style):
    (bar,) = bars(drawn(span(1, tags=tags)))
    assert bar.get("class") == style


def test_spans_stand_below_their_callers_in_the_order_of_their_times():
    picture = drawn(
        span(5, 1, start=500), span(4, 3, start=30), span(3, 1, start=20), span(1, duration=2000)
    )
    assert names(picture) == [(0, "span 1"), (1, "span 3"), (2, "span 4"), (1, "span 5")]
    left = [float(bar.get("x")) for bar in bars(picture)]
    assert left == sorted(left)
    assert all(344 <= x <= 744 for x in left)


def test_spans_whose_callers_are_not_there_or_call_themselves_are_drawn_once():
    picture = drawn(span(1), span(2, 99, start=1), span(3, 4, start=2), span(4, 3, start=3))
    assert names(picture) == [(0, "span 1"), (0, "span 2"), (0, "span 3"), (1, "span 4")]
    assert names(drawn(span(7, 7))) == [(0, "span 7")]


def test_a_caller_that_is_linked_to_is_a_caller_and_a_link_elsewhere_is_not():
    """A run that goes on is below the one that has paused, which it has a link to."""

    def link(number, trace=TRACE):
        return {"refType": "FOLLOWS_FROM", "traceID": trace, "spanID": f"{number:016x}"}

    goes_on, resumed, elsewhere = span(2, start=1), span(3, 1, start=2), span(4, start=3)
    goes_on["references"] = [link(1)]
    resumed["references"].insert(0, link(2))
    elsewhere["references"] = [link(1, "ff" * 16)]
    picture = drawn(span(1), goes_on, resumed, elsewhere)
    assert names(picture) == [(0, "span 1"), (1, "span 2"), (1, "span 3"), (0, "span 4")]


def test_a_deep_trace_is_drawn():
    assert len(bars(drawn(*(span(n, n - 1 or None, start=n) for n in range(1, 1500))))) == 1499


def test_it_is_the_same_picture_however_the_answer_is_ordered():
    spans = [span(number, 1 if number > 1 else None, start=number % 3) for number in range(1, 9)]
    spans[2]["tags"] = [{"key": key, "value": value} for key, value in IDENTITY.items()]
    other = copy.deepcopy(spans[::-1])
    for one in other:
        one["tags"].reverse()
    first, second = (waterfall.draw(answer(*these)["data"][0]) for these in (spans, other))
    assert first == second


def test_nothing_in_a_trace_becomes_markup_or_steers_a_reader():
    hostile = '</text><script>alert(1)</script>&"\x1b[2J\u202e\x00\ud800'
    event = {
        "timestamp": BEGAN + 1,
        "fields": [{"key": "event", "value": hostile}, {"key": hostile, "value": hostile}],
    }
    tags = dict.fromkeys(IDENTITY, hostile) | {hostile: hostile, "error.type": hostile}
    trace = answer(span(1, name=hostile, tags=tags, logs=[event]), trace=hostile)["data"][0]
    trace["processes"]["p1"]["serviceName"] = hostile
    picture = waterfall.draw(trace)
    picture.encode()
    kinds = {node.tag.removeprefix(SVG) for node in ET.fromstring(picture).iter()}  # noqa: S314
    assert kinds == {"svg", "title", "style", "rect", "text", "path", "circle"}
    assert not set(picture) & set("\x1b\u202e\x00\ud800")
    assert re.findall("[a-z]+:", "".join(re.findall(r"(?:href|src|url)[^>]*", picture))) == []


def test_what_is_too_long_is_cut_and_whole_on_pointing_at_it():
    long = "execute_tool " + "x" * 100
    picture = drawn(span(1, name=long))
    (node,) = [one for one in picture.iter(f"{SVG}text") if one.get("class") == "name"]
    assert node.find(f"{SVG}title").text == long
    assert "".join(node.itertext()).endswith("…")


def test_events_stand_on_the_bar():
    asked = {"timestamp": BEGAN + 500, "fields": [{"key": "event", "value": "approval.requested"}]}
    picture = drawn(span(1, logs=[asked]))
    (event,) = picture.iter(f"{SVG}circle")
    assert float(event.get("cx")) == 344 + 200
    assert event.find(f"{SVG}title").text == "event = approval.requested"


def test_a_call_that_waits_says_for_which_approval():
    waiting = IDENTITY | {"agentguard.policy.decision": "approval"}
    waiting |= {
        "agentguard.approval.status": "pending",
        "agentguard.approval.id": "48cb2d9638725f4c",
    }
    assert "approval · approval 48cb2d96 pending · log entry 17" in texts(
        drawn(span(1, tags=waiting))
    )


def test_whatever_is_coloured_has_a_light_and_a_dark_colour():
    spans = [
        span(number, tags={"agentguard.policy.decision": decision})
        for number, decision in enumerate(["", "allow", "deny", "approval"], 1)
    ]
    style = drawn(*spans).find(f"{SVG}style").text
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    rules = [dict(re.findall(r"(\S+) \{ \w+: (#\w{6}); \}", part)) for part in (light, dark)]
    assert rules[0].keys() == rules[1].keys() > {"text", ".paper", ".plain", ".allow", ".deny"}
    assert all(rules[0][name] != rules[1][name] for name in rules[0])


@pytest.fixture
def run(tmp_path, programs):
    """Run the command, in a process of its own."""
    return partial(programs.run, ROOT / "tools" / "waterfall.py", cwd=tmp_path)


def test_the_command_draws_the_trace_that_is_named(tmp_path, run):
    file, picture = tmp_path / "traces.json", tmp_path / "trace.svg"
    several = {"data": [*answer(span(1))["data"], *answer(span(2), trace="ff")["data"]]}
    file.write_text(json.dumps(several))
    refused = run(file, "-o", picture)
    assert refused.returncode == 1
    assert f"name one with --trace, of these (spans): {TRACE} (1), ff (1)" in refused.stderr
    assert not picture.exists()
    assert run(file, "--trace", "ff", "-o", picture).returncode == 0
    assert picture.read_text() == waterfall.draw(several["data"][1])


def test_a_file_without_traces_is_said(tmp_path, run):
    file = tmp_path / "traces.json"
    file.write_text('{"data": []}')
    for more in ((), ("--trace", "ff")):
        refused = run(file, *more)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "there is no trace in it" in refused.stderr


@pytest.mark.parametrize("written", ["{", "[]", '{"data": null}', '{"data": [1]}', "[" * 10000])
def test_what_is_no_trace_is_said_in_one_line(tmp_path, run, written):
    file = tmp_path / "traces.json"
    file.write_text(written)
    refused = run(file)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("scripts/waterfall: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("gone", ["spanID", "references", "startTime", "tags", "processID"])
def test_a_span_that_lacks_a_member_is_an_error(gone):
    lacking = span(1)
    del lacking[gone]
    with pytest.raises(waterfall.DrawingError, match=gone):
        waterfall.draw(answer(lacking)["data"][0])
    with pytest.raises(waterfall.DrawingError, match="no spans"):
        waterfall.draw(answer()["data"][0])
