"""A result that holds a released secret reaches the tool's caller whole, and the log masked.

The journal does not keep such a result, and no span and no line of a log has the value.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import hashlib
import json
import logging
import sqlite3
import threading
from contextlib import closing, suppress

import pytest
from langchain_core.tools import StructuredTool
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from secret_calls import NAME, VALUE, WAYS

from agentguard import Denied, adapters, secret
from agentguard.adapters import CallOptions, CallSite, Invocation
from agentguard.audit.evidence import verify_evidence
from agentguard.store.sqlite import path_in
from agentguard_langchain import guard_tools

LONG = "ghp_" + "0aB9" * 9


def results(scene):
    """The kept results, in the order of the log."""
    with closing(sqlite3.connect(path_in(scene.base / "state"))) as connection:
        rows = connection.execute(
            "SELECT data FROM attachment WHERE role = 'result' ORDER BY idx"
        ).fetchall()
    return [json.loads(data) for (data,) in rows]


@pytest.mark.parametrize("value", [VALUE, LONG])
@pytest.mark.parametrize("way", WAYS)
def test_the_kept_result_is_masked(scene, way, value):
    scene.put(value)
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        expected = WAYS[way](value)
        assert agent.call(guard.tool(name="deploy")(lambda: WAYS[way](secret(NAME)))) == expected
        evidence = guard.prove(str(scene.newest()[1].invocation_id))
        verify_evidence(evidence, guard.trust)
    assert scene.holds(value) == []
    assert "$redacted" in json.dumps(results(scene))
    assert value.encode() not in evidence
    assert scene.verify().ok


def test_only_what_holds_the_secret_is_masked(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        deploy = guard.tool(name="deploy")(
            lambda: {"token": secret(NAME), "clear": ["kept", 7, True, None]}
        )
        agent.call(deploy)
        agent.call(guard.tool(name="read")(lambda: {"token": "hunter", "clear": "kept"}))
    mark = {"$redacted": True}
    assert results(scene) == [
        {"clear": ["kept", 7, True, None], "token": mark},
        {"clear": "kept", "token": "hunter"},  # the twin: no secret was released to that call
    ]


def test_a_number_that_is_the_secret_is_masked(scene):
    scene.put("4711")
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        agent.call(guard.tool(name="deploy")(lambda: {"pin": int(secret(NAME)), "other": 12}))
    assert results(scene) == [{"other": 12, "pin": {"$redacted": True}}]


def test_the_pin_can_not_be_guessed_from_what_the_agent_signs(scene):
    """The log has the salt of the call: the outcome commits to the result without the secret."""
    scene.put("4711")
    with scene.open() as guard:
        guard.new_agent("reader").call(guard.tool(name="deploy")(lambda: secret(NAME)))
    with closing(sqlite3.connect(path_in(scene.base / "state"))) as connection:
        salts = {salt for (salt,) in connection.execute("SELECT salt FROM attachment")}
    guesses = [json.dumps(f"{pin:04}").encode() for pin in range(10_000)]
    digests = {hashlib.sha256(salt + guess).hexdigest() for salt in salts for guess in guesses}
    (outcome,) = scene.entries("outcome")
    statement = outcome.members["statement"]
    assert isinstance(statement, dict)
    payload = base64.b64decode(str(statement["payload"]))
    committed = json.loads(payload)["predicate"]["result"]
    assert committed not in digests
    mark = {hashlib.sha256(salt + b'{"$redacted":true}').hexdigest() for salt in salts}
    assert committed in mark


def test_the_result_of_a_call_around_is_masked_too(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        deploy = guard.tool(name="deploy")(lambda: secret(NAME))
        outer = guard.tool(name="outer")(lambda: {"inner": agent.call(deploy), "clear": 1})
        assert agent.call(outer) == {"inner": VALUE, "clear": 1}
    assert scene.holds(VALUE) == []
    assert results(scene)[-1] == {"clear": 1, "inner": {"$redacted": True}}


def test_a_secret_of_several_lines_is_found_line_by_line(scene):
    key = "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJxyz0123\n-----END KEY-----"
    scene.put(key)
    with scene.open() as guard:
        deploy = guard.tool(name="deploy")(lambda: secret(NAME).splitlines()[1])
        guard.new_agent("reader").call(deploy)
    assert scene.holds(key.splitlines()[1]) == []


def test_a_result_that_was_released_in_a_thread_is_masked(scene):
    def tool():
        got = list[str]()
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(lambda: got.append(secret(NAME)),))
        thread.start()
        thread.join()
        return got

    with scene.open() as guard:
        assert guard.new_agent("reader").call(guard.tool(name="deploy")(tool)) == [VALUE]
    assert scene.holds(VALUE) == []


# --- the journal ----------------------------------------------------------------------------------


class Codec:
    """The codec of an adapter: JSON, with escapes."""

    def dumps(self, result):
        if isinstance(result, Exception):
            raise result
        return json.dumps(result).encode()

    def loads(self, data):
        return json.loads(data)


def journalled(agent, function):
    """Make a call that the journal keeps, in the way of an adapter."""
    spec = adapters.ToolSpec("deploy", "Deploy.", {"type": "object", "properties": {}}, "a:b")
    site = CallSite("c", thread="t", turn="1")
    invocation = Invocation.bind(spec, lambda: adapters.Arguments.of({}), site)
    return adapters.run(agent, invocation, function, CallOptions(codec=Codec()))


def test_the_journal_keeps_no_result_with_a_secret(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        assert journalled(agent, lambda: {"token": secret(NAME)}) == {"token": VALUE}
        with pytest.raises(Denied) as caught:
            journalled(agent, lambda: "runs twice")
        assert caught.value.code == "journal.unreplayable"
    assert scene.holds(VALUE) == []


def test_the_journal_keeps_a_result_without_the_secret(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        assert journalled(agent, lambda: secret(NAME) and "pushed") == "pushed"
        assert journalled(agent, lambda: "runs twice") == "pushed"


def test_the_error_of_a_codec_is_not_quoted(scene, caplog):
    with scene.open() as guard:
        journalled(guard.new_agent("reader"), lambda: ValueError(f"no JSON: {secret(NAME)}"))
    assert "ValueError" in caplog.text
    assert VALUE not in caplog.text


# --- exceptions, spans, logs ----------------------------------------------------------------------


def test_an_exception_with_the_secret_reaches_neither_log_nor_span(scene, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    scene.more = {"telemetry": {"arguments": True, "results": True, "reasons": True}}

    def fails():
        message = f"401 for {secret(NAME)}"
        raise RuntimeError(message)

    async def fails_later():
        await asyncio.sleep(0)
        fails()

    with scene.open() as guard:
        agent = guard.new_agent("reader")
        with pytest.raises(RuntimeError, match=VALUE):  # the caller gets the tool's own exception
            agent.call(guard.tool(name="deploy")(fails))
        with pytest.raises(RuntimeError, match=VALUE):
            asyncio.run(agent.acall(guard.tool(name="deploy")(fails_later)))
        agent.call(guard.tool(name="deploy")(lambda: secret(NAME)))
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) == 3
    assert "RuntimeError" in spans[0]
    assert "$redacted" in spans[2]
    assert not any(form in text for text in spans for form in (VALUE, json.dumps(VALUE)[1:-1]))
    assert VALUE not in caplog.text
    assert scene.holds(VALUE) == []


def test_a_tool_of_langchain_that_returns_the_secret_is_masked(scene):
    def deploy() -> str:
        """Deploy."""
        return secret(NAME)

    with scene.open() as guard:
        (tool,) = guard_tools([StructuredTool.from_function(deploy)], guard.new_agent("reader"))
        with suppress(Denied):
            tool.invoke({"type": "tool_call", "name": "deploy", "args": {}, "id": "1"})
    assert len(scene.entries()) == 1
    assert scene.holds(VALUE) == []
    assert scene.verify().ok
