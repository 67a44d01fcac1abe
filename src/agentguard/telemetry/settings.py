"""``[telemetry]`` of agentguard.toml: where spans are sent, and what they may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from agentguard.tables import kinds, setting

ENDPOINT: Final = re.compile(r"https?://[^/]")
"""The beginning of an OTLP receiver's base URL."""

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The environment variables that name the receiver of spans."""

FLUSH_SECONDS: Final = 2.0
"""The seconds that ``flush``, the end of a guard and the end of the process wait at most."""

RECEIVER: Final = "the URL of an OTLP receiver, as http://localhost:4318"


@dataclass(frozen=True, slots=True)
class Settings:
    """With this table, spans are sent (docs/how-to/traces.md).

    ::

        [telemetry]
        endpoint = "http://localhost:4318"
        service_name = "shop"
        metrics = false
        arguments = false
        results = false
        reasons = false
        hash_users = false
        host = true
    """

    present: bool = False
    """Whether the configuration has the table."""

    endpoint: str = setting(
        kinds.text.where(lambda url: ENDPOINT.match(url) is not None, RECEIVER), default=""
    )
    """The base URL of an OTLP receiver (http/protobuf). Without the key, it is that of the
    ``OTEL_*`` variables, or the application's own set-up."""

    service_name: str = setting(kinds.text, default="")
    """The name of the service in the traces."""

    metrics: bool = setting(kinds.boolean, default=False)
    """Whether metrics are sent as well, to the same receiver."""

    arguments: bool = setting(kinds.boolean, default=False)
    """Whether a span has the call's arguments, but for what ``[redact]`` and the policy redact."""

    results: bool = setting(kinds.boolean, default=False)
    """Whether a span has the call's result, but for what is redacted."""

    reasons: bool = setting(kinds.boolean, default=False)
    """Whether a span has the policy's reasons, as they are: a reason may quote an argument."""

    hash_users: bool = setting(kinds.boolean, default=False)
    """Whether digests stand in the place of people's names."""

    host: bool = setting(kinds.boolean, default=True)
    """Whether what is sent names the machine."""
