"""The demo's trace: where it is sent, and where to look for it (``--otlp``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

import orjson

from agentguard import telemetry

SERVICE: Final = "agentguard-demo"
SEARCHES: Final = (
    {"agentguard.policy.decision": "deny"},
    {"agentguard.approval.status": "approved"},
    {"gen_ai.agent.name": "test-fixer"},
    {"user.id": "user:alice"},
    {"error.type": "scope.exceeded"},
)
"""What there is to be found by the tags of a span; Jaeger's page takes them as ``name=value``."""

_QUERY_VARIABLE: Final = "AGENTGUARD_JAEGER_QUERY_URL"
_QUERY_PORT: Final = 16686


@dataclass(frozen=True, slots=True)
class Sent:
    """A trace that was handed over to ``endpoint``; ``in_time`` says whether it was taken."""

    endpoint: str
    trace_id: str
    in_time: bool

    @property
    def jaeger(self) -> str:
        """The base URL of Jaeger's page and of its query API."""
        named = os.environ.get(_QUERY_VARIABLE)
        if named:
            return named.rstrip("/")
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
        asked = urlencode({"service": SERVICE, "tags": orjson.dumps(tags).decode()})
        return f"{self.jaeger}/api/traces?{asked}"


def begin(endpoint: str) -> None:
    """Have the demo's spans sent there; raises ``ConfigError`` without ``agentguard[otlp]``."""
    telemetry.configure(endpoint=endpoint, service_name=SERVICE)


def end(endpoint: str, traceparent: str | None) -> Sent | None:
    """Send what was not sent yet; return None where there is no trace."""
    if traceparent is None:
        return None
    return Sent(endpoint, traceparent.split("-")[1], telemetry.flush())
