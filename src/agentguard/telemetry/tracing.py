"""The tracer that is in force, and the contexts of spans.

A span's parent, links and attributes are decided in ``calls.py`` and ``agents.py``.
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
"""The API's own silent providers."""


class _StandIn:
    """What is in force as long as the application has set up no SDK."""

    provider: TracerProvider | None = None


def stand_in(provider: TracerProvider) -> None:
    """Put a provider in force until the application sets up one."""
    _StandIn.provider = provider


def is_applications() -> bool:
    """Whether an SDK is set up for the whole process."""
    return not isinstance(trace.get_tracer_provider(), _NONE)


def is_set_up() -> bool:
    """Whether an SDK is in force, and not the API's own silent providers."""
    return _StandIn.provider is not None or is_applications()


class _Cache:
    """The tracer of the provider that was in force last: making one costs more than a span."""

    provider: object = None
    tracer: Tracer | None = None


def tracer() -> Tracer | None:
    """Return the tracer; None where no SDK is set up, so that nothing would record."""
    provider = trace.get_tracer_provider()
    if _StandIn.provider is not None and isinstance(provider, _NONE):
        provider = _StandIn.provider
    if provider is not _Cache.provider:
        _Cache.tracer = provider.get_tracer(*names.scope()) if is_set_up() else None
        _Cache.provider = provider
    return _Cache.tracer


@fails_open
def traceparent_of(span: Span) -> str | None:
    """Return a span as a W3C ``traceparent``, None for one that is none."""
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 0xFF:02x}"


def current() -> str | None:
    """Return the span around this code, which may come from another process."""
    return traceparent_of(trace.get_current_span())


@fails_open
def parse(traceparent: str | None) -> SpanContext | None:
    """Read a ``traceparent``; None for none, and for what is none (W3C Trace Context, 3.2.2)."""
    read = _TRACEPARENT.fullmatch(traceparent or "")
    if read is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in read.group("trace", "span", "flags"))
    found = SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return found if found.is_valid else None


def resumed(
    paused: SpanContext | None, parent: Context | None
) -> tuple[Context | None, list[Link]]:
    """Return in which context a span goes on that continues ``paused``, and what it links to.

    It stays in that one's trace: under ``parent`` (None: the current context) where that is of the
    same trace, and else under ``paused`` itself, with a link to who has taken it up.
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


def inside(span: Span) -> AbstractContextManager[None]:
    """For adapters: have the next guarded call here enrich ``span``, which stands for it already.

    Then there is one span for it, with ``agentguard.authorize`` in it. What the tool does is inside
    ``span`` as well, and no longer enriches it.
    """
    return attached(context.set_value(_HOST, span, trace.set_span_in_context(span)))


def host() -> Span | None:
    """Return the span that stands for a guarded call that is made here."""
    found = context.get_value(_HOST)
    return found if isinstance(found, Span) else None


def entered(span: Span) -> Context:
    """Return the context of code that runs inside a host ``span``, which no longer enriches it."""
    return context.set_value(_HOST, None, trace.set_span_in_context(span))


@contextmanager
def attached(found: Context | None) -> Any:
    """Make a context the current one; None leaves it as it is."""
    token = attach(found)
    try:
        yield
    finally:
        detach(token)


@fails_open
def attach(found: Context | None) -> Token[Context] | None:
    """Make a context the current one; return what ``detach`` takes."""
    return None if found is None else context.attach(found)


@fails_open
def detach(token: Token[Context] | None) -> None:
    """Put back what was current before, whatever the code in between has left attached."""
    if token is None:
        return
    try:
        token.var.reset(token)
    except ValueError:  # a coroutine that is closed in another context has no say there
        return  # OpenTelemetry's own detach would log that as an error


def text(value: str) -> str:
    """Return text as an exporter can write it: lone surrogates would lose a whole batch."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def person(name: str, trust_domain: str, *, hashed: bool) -> str:
    """Return the name of a principal, or for a person its digest: the same in all of a domain."""
    if not hashed or not name.startswith("user:"):
        return text(name)
    data = f"{trust_domain}\0{name}".encode("utf-8", "surrogatepass")
    return f"user:sha256:{sha256(data).hexdigest()}"
