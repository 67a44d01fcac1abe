"""Where a call stands in a trace: the one part of agentguard that may fail open."""

from __future__ import annotations

from opentelemetry import trace


def traceparent() -> str | None:
    """Return the current span as a W3C ``traceparent``, or None outside any span."""
    try:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
    except Exception:  # noqa: BLE001  a broken tracer must not stop a call: telemetry fails open
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
