"""The tracer in force, and the contexts of spans.

``calls.py`` and ``agents.py`` decide a span's parent, links and attributes.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, contextmanager
from contextvars import Token
from hashlib import sha256
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Tracer, TracerProvider

from agentguard.telemetry import names
from agentguard.telemetry.failing import fails_open

_HOST: Final = context.create_key("agentguard_host")
_TRACEPARENT: Final = re.compile(
    "(?:00|(?P<later>(?!00|ff)[0-9a-f]{2}))"
    "-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    "(?(later)(?:-.*)?)"  # what later versions add
)


_NONE: Final = trace.ProxyTracerProvider | trace.NoOpTracerProvider
"""The silent providers of the API."""


class _StandIn:
    """The provider in force until the application sets up an SDK."""

    provider: TracerProvider | None = None


def stand_in(provider: TracerProvider) -> None:
    """Put a provider in force until the application sets up an SDK."""
    _StandIn.provider = provider


def is_applications() -> bool:
    """Whether the application has set up an SDK for the whole process."""
    return not isinstance(trace.get_tracer_provider(), _NONE)


def is_tracing() -> bool:
    """Whether an SDK is in force, the application's or the one that stands in."""
    return _StandIn.provider is not None or is_applications()


class _Cache:
    """The tracer of the latest provider: to make a tracer costs more than a span."""

    provider: object = None
    tracer: Tracer | None = None


def tracer() -> Tracer | None:
    """Return the tracer; None where no SDK is set up."""
    provider = trace.get_tracer_provider()
    if _StandIn.provider is not None and isinstance(provider, _NONE):
        provider = _StandIn.provider
    if provider is not _Cache.provider:
        _Cache.tracer = provider.get_tracer(*names.scope()) if is_tracing() else None
        _Cache.provider = provider
    return _Cache.tracer


@fails_open
def traceparent_of(span: Span) -> str | None:
    """Return a span as a W3C ``traceparent``; None for a span without a valid context."""
    ids = span.get_span_context()
    if not ids.is_valid:
        return None
    return f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags & 0xFF:02x}"


def current() -> str | None:
    """Return the current span as a ``traceparent``; another process may have begun it."""
    span = trace.get_current_span()
    return None if span is trace.INVALID_SPAN else traceparent_of(span)


@fails_open
def parse(traceparent: str | None) -> SpanContext | None:
    """Parse a ``traceparent``; return None for None and for bad text (W3C Trace Context, 3.2.2)."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.group("trace", "span", "flags"))
    ids = SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return ids if ids.is_valid else None


def resumed(
    paused: SpanContext | None, parent: Context | None
) -> tuple[Context | None, list[Link]]:
    """Return the context and the links of a span that resumes the work of the span ``paused``.

    The new span stays in the trace of ``paused``. Its parent is ``parent`` (None: the current
    context) where that belongs to the same trace. Elsewhere its parent is ``paused``, and it has a
    link to ``parent``.
    """
    if paused is None:
        return parent, []
    links = [Link(paused, {names.LINK: "paused"})]
    caller = trace.get_current_span(parent).get_span_context()
    if caller.is_valid and caller.trace_id == paused.trace_id:
        return parent, links
    if caller.is_valid:
        links.append(Link(caller, {names.LINK: "caller"}))
    return trace.set_span_in_context(trace.NonRecordingSpan(paused), parent), links


def inside_span(span: Span) -> AbstractContextManager[None]:
    """For adapters: let the next guarded call in the block enrich ``span`` and begin none.

    ``span`` is the tool call's span of another instrumentation. The call then has one span, with a
    child ``agentguard.authorize``. Guarded calls that the tool makes are children of ``span`` too,
    and get spans of their own.
    """
    return attached(context.set_value(_HOST, span, trace.set_span_in_context(span)))


def host() -> Span | None:
    """Return the span that the next guarded call enriches (``inside_span``); None for none."""
    span = context.get_value(_HOST)
    return span if isinstance(span, Span) else None


def entered(span: Span) -> Context:
    """Return the context of the tool inside a host ``span``: the tool's calls do not enrich it."""
    return context.set_value(_HOST, None, trace.set_span_in_context(span))


@contextmanager
def attached(new: Context | None) -> Any:
    """Make a context current in the block; None changes nothing."""
    token = attach(new)
    try:
        yield
    finally:
        detach(token)


@fails_open
def attach(new: Context | None) -> Token[Context] | None:
    """Make a context current; return the token for ``detach``."""
    return None if new is None else context.attach(new)


@fails_open
def detach(token: Token[Context] | None) -> None:
    """Restore the context from before ``attach``, whatever contexts are attached by now."""
    if token is None:
        return
    try:
        token.var.reset(token)
    except ValueError:  # a coroutine was closed in another context
        return  # OpenTelemetry's own detach would log that as an error


def text(value: str) -> str:
    """Return text that an exporter can encode: a lone surrogate would lose a whole batch."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def person(name: str, trust_domain: str, *, hashed: bool) -> str:
    """Return a principal's name; with ``hashed``, a person's digest, the same in a whole domain."""
    if not hashed or not name.startswith("user:"):
        return text(name)
    data = f"{trust_domain}\0{name}".encode("utf-8", "surrogatepass")
    return f"user:sha256:{sha256(data).hexdigest()}"
