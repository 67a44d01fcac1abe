"""Telemetry that fails, hangs or lies changes nothing of a call, nor of what is on record of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from agentguard import Decision, Denied, Guard, adapters, telemetry


class BrokenError(Exception):
    """What the parts of a broken SDK raise."""


class Panic(BaseException):
    """What native code raises that has panicked: no ``Exception``."""


class BrokenStart(SpanProcessor):
    def __init__(self, error: type[BaseException] = BrokenError):
        self.error = error

    def on_start(self, span, parent_context=None):
        raise self.error


class BrokenEnd(SpanProcessor):
    def __init__(self, error: type[BaseException] = BrokenError):
        self.error = error

    def on_end(self, span):
        raise self.error


class BrokenExporter(SpanExporter):
    def export(self, spans):
        raise BrokenError


class BrokenSampler(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        raise BrokenError

    def get_description(self):
        return "broken"


class BrokenProvider(trace.TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        raise BrokenError


class BrokenSpan(trace.NonRecordingSpan):
    """Raises whatever is asked of it."""

    def __init__(self):
        super().__init__(trace.INVALID_SPAN_CONTEXT)

    def _raise(self, *_args: Any, **_kwargs: Any) -> Any:
        raise BrokenError

    get_span_context = is_recording = set_attributes = set_attribute = _raise
    add_event = add_link = set_status = record_exception = end = _raise


class BrokenTracer(trace.NoOpTracer):
    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        return BrokenSpan()


class BrokenSpans(trace.TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        return BrokenTracer()


def with_processor(processor):
    provider = TracerProvider()
    provider.add_span_processor(processor)
    return provider


BROKEN = {
    "the start of a span": lambda: with_processor(BrokenStart()),
    "the end of a span": lambda: with_processor(BrokenEnd()),
    "a panic at the start": lambda: with_processor(BrokenStart(Panic)),
    "a panic at the end": lambda: with_processor(BrokenEnd(Panic)),
    "an exporter": lambda: with_processor(SimpleSpanProcessor(BrokenExporter())),
    "a sampler": lambda: TracerProvider(sampler=BrokenSampler()),
    "a provider": BrokenProvider,
    "each method of a span": BrokenSpans,
}


def answer(document):
    if document["args"].get("branch") == "main":
        return Decision.deny("no")
    return Decision.allow()


@pytest.fixture
def guard():
    with Guard.ephemeral(answer) as guard:
        yield guard
        assert guard.verify().ok


@pytest.fixture(params=list(BROKEN))
def broken(request, monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", BROKEN[request.param]())


def tools(guard: Guard):
    @guard.tool
    def push(branch: str) -> str:
        return f"pushed {branch}"

    @guard.tool
    async def apush(branch: str) -> str:
        await asyncio.sleep(0)
        return f"pushed {branch}"

    return push, apush


@pytest.mark.usefixtures("broken")
async def test_calls_are_answered_as_without_it(guard):
    push, apush = tools(guard)
    agent = guard.new_agent("coder")
    assert agent.call(push, "fix") == "pushed fix"
    assert await agent.acall(apush, "fix") == "pushed fix"
    with pytest.raises(Denied, match="no"):
        agent.call(push, "main")
    with pytest.raises(Denied, match="no"):
        await agent.acall(apush, "main")


@pytest.mark.usefixtures("broken")
def test_so_are_those_of_a_run_and_of_an_instrumented_tool(guard):
    push, _ = tools(guard)
    agent = guard.new_agent("coder")
    with adapters.agent_span(agent, conversation="t"), telemetry.inside_span(BrokenSpan()):
        assert agent.call(push, "fix") == "pushed fix"


@pytest.mark.usefixtures("broken")
def test_what_a_tool_raises_is_what_the_caller_gets(guard: Guard):
    @guard.tool
    def fail() -> None:
        raise LookupError("of the tool")

    with pytest.raises(LookupError, match="of the tool"):
        guard.new_agent("coder").call(fail)


@pytest.mark.parametrize(
    "interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_an_interrupt_that_comes_meanwhile_is_not_lost(guard, monkeypatch, interrupt):
    push, _ = tools(guard)
    agent = guard.new_agent("coder")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", with_processor(BrokenStart(interrupt)))
    with pytest.raises(interrupt):
        agent.call(push, "fix")


def test_a_failure_is_logged_once_by_its_type_alone(guard, monkeypatch, caplog):
    class SecretError(Exception):
        pass

    class Start(SpanProcessor):
        def on_start(self, span, parent_context=None):
            raise SecretError("a secret")

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", with_processor(Start()))
    push, _ = tools(guard)
    agent = guard.new_agent("coder")
    for _ in range(3):
        agent.call(push, "fix")
    said = [record.getMessage() for record in caplog.records if record.name == "agentguard"]
    assert said == ["telemetry failed (SecretError): calls go on without it"]


class Held(SpanExporter):
    """Exports nothing until it is let go."""

    def __init__(self):
        self.begun, self.let_go = threading.Event(), threading.Event()

    def export(self, spans):
        self.begun.set()
        self.let_go.wait()
        return SpanExportResult.SUCCESS


def test_calls_do_not_wait_for_an_exporter_that_hangs(guard, monkeypatch):
    exporter = Held()
    processor = BatchSpanProcessor(
        exporter, max_queue_size=4, max_export_batch_size=2, schedule_delay_millis=1
    )
    provider = with_processor(processor)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    push, _ = tools(guard)
    agent = guard.new_agent("coder")
    agent.call(push, "fix")
    exporter.begun.wait()
    for _ in range(20):  # the queue is full by then: spans are dropped, and no call
        assert agent.call(push, "fix") == "pushed fix"
    exporter.let_go.set()
    provider.shutdown()


def test_what_is_sampled_out_is_on_record_all_the_same(guard, monkeypatch, spans):
    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    exported = type(spans)(provider)
    push, _ = tools(guard)
    assert guard.new_agent("coder").call(push, "fix") == "pushed fix"
    assert exported.all() == []


# --- an import of the API that fails -----------------------------------------------------------

PROGRAM = """
import asyncio, sys, types
from agentguard import Decision, Guard, adapters

guard = Guard.ephemeral(lambda _: Decision.allow())
agent, ran = guard.new_agent("reader"), guard.tool(name="say")(lambda: "ran")
assert agent.call(ran) == "ran"
assert "opentelemetry" not in sys.modules
{broken}
with adapters.agent_span(agent):
    said = [agent.call(ran), asyncio.run(agent.acall(ran)), guard.new_agent("other").call(ran)]
with adapters.workflow_span("w", agent) as span:
    span.end()
guard.close()
print(*said, flush=True)
"""

BROKEN_API = {
    "a stub": "sys.modules['opentelemetry'] = types.ModuleType('opentelemetry')",
    "none": "sys.modules['opentelemetry'] = None",
    "a part": "import opentelemetry.semconv; sys.modules['opentelemetry.trace'] = None",
    "twin": "import opentelemetry.trace",
}


@pytest.mark.parametrize("how", list(BROKEN_API))
def test_an_api_that_can_not_be_imported_fails_no_call(how):
    command = [sys.executable, "-c", PROGRAM.format(broken=BROKEN_API[how])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout.strip() == "ran ran ran"
    assert ("telemetry failed" in done.stderr) == (how != "twin")
    assert "Traceback" not in done.stderr
