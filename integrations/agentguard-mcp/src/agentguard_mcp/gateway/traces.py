"""Trace context through a gateway: a call's span stands between those of the client and the server.

MCP carries W3C trace context in ``_meta`` (revision 2026-07-28, "Trace context"). The names of the
attributes are those of OpenTelemetry's conventions for MCP. Telemetry fails open.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentguard.adapters import fails_open, is_tracing
from agentguard_mcp.gateway.messages import Message, meta_of

_FIELDS: Final = ("traceparent", "tracestate")
_PROPAGATOR: Final = TraceContextTextMapPropagator()


@fails_open
def context_of(request: Message) -> Context | None:
    """Return the trace context that a client has sent, None for none and without tracing."""
    meta = meta_of(request)
    carrier = {name: meta[name] for name in _FIELDS if isinstance(meta.get(name), str)}
    if not carrier or not is_tracing():
        return None
    return _PROPAGATOR.extract(carrier)


def within_span(request: Message, transport: str) -> Message:
    """Return a request whose server continues the trace of the call that runs here.

    The span of the call gets the attributes of the request. ``transport`` is ``pipe`` or ``tcp``.
    """
    return _within_span(request, transport) or request


@fails_open
def _within_span(request: Message, transport: str) -> Message:
    span = get_current_span()
    carrier: dict[str, str] = {}
    if is_tracing() and span.get_span_context().is_valid:
        span.set_attribute("mcp.method.name", request["method"])
        span.set_attribute("network.transport", transport)
        _PROPAGATOR.inject(carrier)
    if not carrier:
        return request
    params: dict[str, Any] = request["params"]
    kept = {key: value for key, value in meta_of(request).items() if key not in _FIELDS}
    return {**request, "params": {**params, "_meta": {**kept, **carrier}}}
