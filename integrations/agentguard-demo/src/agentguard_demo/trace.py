"""Sends the demo's trace to an OTLP receiver, and gives the URLs of the trace (``--otlp``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

import orjson

from agentguard import telemetry

SERVICE: Final = "forge"
SEARCHES: Final = (
    {"agentguard.policy.decision": "deny"},
    {"agentguard.approval.status": "approved"},
    {"gen_ai.agent.name": "test-fixer"},
    {"user.id": "user:alice"},
    {"error.type": "scope.exceeded"},
)
"""Tags of spans in the trace; Jaeger's page takes tags as ``name=value``."""

_QUERY_VARIABLE: Final = "AGENTGUARD_JAEGER_QUERY_URL"
_QUERY_PORT: Final = 16686


@dataclass(frozen=True, slots=True)
class SentTrace:
    """A trace that was sent to ``endpoint``; ``is_received`` says whether the receiver took it."""

    endpoint: str
    trace_id: str
    is_received: bool

    @property
    def jaeger(self) -> str:
        """The base URL of Jaeger's page and of its query API."""
        url = os.environ.get(_QUERY_VARIABLE)
        if url:
            return url.rstrip("/")
        parts = urlsplit(self.endpoint)
        host = parts.hostname or "localhost"
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{_QUERY_PORT}"

    @property
    def link(self) -> str:
        """The trace on Jaeger's page."""
        return f"{self.jaeger}/trace/{self.trace_id}"

    @property
    def api(self) -> str:
        """The trace from Jaeger's query API."""
        return f"{self.jaeger}/api/traces/{self.trace_id}"

    def search(self, tags: dict[str, str]) -> str:
        """Return the query API's URL of a search by tags."""
        query = urlencode({"service": SERVICE, "tags": orjson.dumps(tags).decode()})
        return f"{self.jaeger}/api/traces?{query}"


def begin(endpoint: str) -> None:
    """Send the demo's spans to ``endpoint``; raise ``ConfigError`` without ``agentguard[otlp]``."""
    telemetry.configure(endpoint=endpoint, service_name=SERVICE)


def end(endpoint: str, traceparent: str | None) -> SentTrace | None:
    """Send the remaining spans; return None where there is no trace."""
    if traceparent is None:
        return None
    return SentTrace(endpoint, traceparent.split("-")[1], telemetry.flush())
