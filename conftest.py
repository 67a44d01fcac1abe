"""What all tests share: what is collected and left out, and the spans that a test has made.

The CrewAI adapter's tests are collected only on a Python that CrewAI itself has. ``scripts/test``
without arguments leaves out the tests marked ``slow``, and the last lines of pytest say how many.
"""

from __future__ import annotations

import functools
import gc
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cheap_keys  # noqa: F401  for all tests
import late_grammar  # noqa: F401  before jsonschema
import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal as metrics_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard.domain import keystore
from agentguard.signing.keys import PublicKey

# A failed assert of a support module then shows its values, as one of a test does.
pytest.register_assert_rewrite(
    *(path.stem for path in Path(__file__).parent.glob("integrations/*/tests/support/*.py"))
)

CREWAI_ENDS = (3, 14)
"""The first Python that CrewAI is not for (its own requires-python)."""

collect_ignore = ["integrations/agentguard-crewai"] if sys.version_info >= CREWAI_ENDS else []


SEED = os.environ.setdefault("AGENTGUARD_SEED", str(secrets.randbits(32)))
"""What the tests choose by that try another part of all attacks each time; all workers have it."""


def pytest_report_header() -> list[str]:
    """Say what chance is repeated with, and what is left out."""
    said = [f"AGENTGUARD_SEED={SEED} repeats what the attacks choose at random"]
    if collect_ignore:
        said += [f"left out: {collect_ignore[0]}, since CrewAI is not for this Python"]
    return said


@pytest.fixture(autouse=True, scope="session")
def _versions_looked_up_once() -> Iterator[None]:
    """Look the version of a distribution up once: each guard with a function as policy asks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metadata, "version", functools.cache(metadata.version))
        yield


@pytest.fixture(autouse=True, scope="session")
def _signatures_verified_once() -> Iterator[None]:
    """Verify a signature that holds once for each key and text; in full rounds, each time.

    The tests verify the same logs again and again: nine verifications of ten are repeated ones.
    """
    if os.environ.get("AGENTGUARD_ROUNDS") == "full":
        yield
        return
    verified = functools.lru_cache(4096)(PublicKey.verify)

    def verify(key: PublicKey, signature: bytes, data: bytes) -> None:
        verified(key, signature, data)  # an exception is kept nowhere

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PublicKey, "verify", verify)
        yield


@pytest.fixture(autouse=True)
def _no_passphrase_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process keeps the passphrase that it took out of its environment: a test does not."""
    monkeypatch.setattr(keystore, "_environment_passphrase", None)


# --- what is left out ----------------------------------------------------------------------------

SLOW_LEFT_OUT = "not slow"
"""The marker expression of ``scripts/test`` without arguments."""

SERVERS = {
    "opa",
    "opa_program",
    "jaeger_program",
    "jaeger_urls",
    "keycloak",
    "oidc",
    "openbao",
    "openbao_program",
}
"""The fixtures behind which a real server, or its program, stands."""

_left_out = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask a real server, before a marker expression chooses among them.

    A slow test without a reason ends the run.
    """
    for item in items:
        if any(not mark.args for mark in item.iter_markers("slow")):
            message = f"{item.nodeid}: slow needs a reason: why the test is worth its time"
            raise pytest.UsageError(message)
        if SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what was imported: frameworks, and all tests."""
    gc.collect()
    gc.freeze()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the slow tests that are left out."""
    config = items[0].config
    if config.getoption("markexpr") == SLOW_LEFT_OUT:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.stash[_left_out] = config.stash.get(_left_out, 0) + len(slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell pytest-xdist's controller, which collects nothing itself."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(_left_out, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count of a worker; every worker collects the same tests."""
    node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and which command runs all tests."""
    if os.environ.get("AGENTGUARD_ROUNDS") == "full":
        return
    count = config.stash.get(_left_out, 0)
    slow = f"slow tests ({count}), " if count else ""
    terminalreporter.write_line(
        f"left out: {slow}most rounds of random tests and crash tests, and some combinations of "
        "parameters; scripts/test --all runs them"
    )


# --- spans ---------------------------------------------------------------------------------------


class Spans:
    """What has been exported by now. ``provider`` is the one in force."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self) -> list[ReadableSpan]:
        """Return the spans in the order in which they ended."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans of this name."""
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (span,) = self.named(name)
        return span

    def forget(self) -> None:
        """Forget what was exported."""
        self._exporter.clear()

    def tree(self) -> list[str]:
        """Return the names, those of children indented under their parents, in order of start."""
        spans = sorted(self.all(), key=lambda span: span.start_time or 0)
        known = {span.context.span_id for span in spans}
        lines: list[str] = []

        def add(parent: int | None, depth: int) -> None:
            for span in spans:
                above = span.parent.span_id if span.parent is not None else None
                if (above if above in known else None) == parent:
                    lines.append("  " * depth + span.name)
                    add(span.context.span_id, depth + 1)

        add(None, 0)
        return lines


def put_in_force(monkeypatch: pytest.MonkeyPatch, *processors: SpanProcessor) -> Spans:
    """Set an SDK up for one test."""
    provider = TracerProvider(resource=Resource.create({"service.name": "tests"}))
    for processor in processors:
        provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return Spans(provider)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """An SDK that keeps all metrics, in force for this test alone."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics_api, "_METER_PROVIDER", provider)
    yield reader
    provider.shutdown()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """An SDK that keeps all spans, in force for this test alone."""
    made = put_in_force(monkeypatch)
    yield made
    made.provider.shutdown()
