"""``--trace`` with the beginning of an id: Jaeger's page shows seven digits of it."""

from __future__ import annotations

import sqlite3

import pytest

# Each call belongs to a trace of its own; the last trace has an id of 64 bits, as Zipkin's have.
CALLS = """
from agentguard import Guard
from opentelemetry import context, trace

with Guard.open("agentguard.toml") as guard:
    @guard.tool(requires=["files:read"])
    def read_file(path: str) -> str:
        return path

    agent = guard.new_agent("assistant")
    for trace_id in {traces}:
        around = trace.NonRecordingSpan(trace.SpanContext(int(trace_id, 16), 7, is_remote=False))
        token = context.attach(trace.set_span_in_context(around))
        agent.call(read_file, "docs/a")
        context.detach(token)
"""
ONE = "abcdef12" + "3" * 24
TWIN = "abcdef17" + "3" * 24
SHORT = "0" * 16 + "feed" * 4


@pytest.fixture
def traced(begun):
    """A project with a call in each of three traces."""
    begun.allow_unlisted()
    made = begun.python("-c", CALLS.format(traces=[ONE, TWIN, SHORT]))
    assert made.returncode == 0, made.stderr
    return begun


def ids(project, *arguments):
    """The trace ids that the reports or rows of a command lead to."""
    calls = [line["invocation_id"] for line in project.lines("audit", *arguments)]
    shown = [project.json("audit", "show", call) for call in calls]
    return [one["traceparent"].split("-")[1] for one in shown]


@pytest.mark.parametrize(
    ("beginning", "trace_id"),
    [
        ("abcdef12", ONE),
        ("ABCDEF17", TWIN),
        (ONE, ONE),
        ("feedfee", SHORT),
        ("feed" * 4, SHORT),
        ("0" * 16 + "feed", SHORT),
    ],
)
def test_the_beginning_of_a_trace_id_is_enough_where_one_trace_begins_so(
    traced, beginning, trace_id
):
    assert ids(traced, "list", "--trace", beginning) == [trace_id]
    assert ids(traced, "show", "--trace", beginning) == [trace_id]
    assert traced.run("audit", "show", "--trace", beginning).returncode == 0


@pytest.mark.parametrize("command", ["list", "show", "export", "tail"])
def test_where_several_traces_begin_so_an_error_lists_them(traced, command):
    options = ["--no-follow"] if command == "tail" else []
    refused = traced.run("audit", command, "--trace", "abcdef1", *options)
    assert refused.returncode == 2
    assert "call.ambiguous" in refused.stderr
    assert f"2 traces begin with abcdef1: give more of the id ({ONE}, {TWIN})" in refused.stderr
    found = traced.run("audit", command, "--trace", "abcdef12", *options)
    assert found.returncode == 0, found.stderr


def test_where_no_trace_begins_so_an_error_says_so(traced):
    for command in ("list", "show"):
        refused = traced.run("audit", command, "--trace", "beef123")
        assert refused.returncode == 2
        assert "call.unknown" in refused.stderr
        assert "no call of a trace whose id begins with beef123" in refused.stderr
    for text in ("abc", "ghij", "a" * 33):
        refused = traced.run("audit", "list", "--trace", text)
        assert refused.returncode == 2
        assert "is not a trace id, which has 32 hex digits" in refused.stderr


def test_a_trace_that_stands_beside_an_entry_alone_is_no_trace(traced):
    """Whoever can write to the file can make up a column, and no call by it."""
    with sqlite3.connect(traced.state / "log.sqlite") as connection:
        made_up = "abcdef12" + "4" * 24
        statement = "UPDATE entry SET trace_id = ? WHERE kind = 'policy'"
        assert connection.execute(statement, (made_up,)).rowcount == 1
    connection.close()
    assert ids(traced, "list", "--trace", "abcdef12") == [ONE]
