"""``[telemetry]`` of agentguard.toml, as a value: where traces go, and what they may hold."""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """What is to be sent, and where to.

    ``endpoint`` is the base URL of an OTLP receiver (http/protobuf), empty for the application's
    own set-up, or that of the ``OTEL_*`` variables; ``service_name`` is then of no use either.
    ``arguments`` and ``results`` put these of each call, less what ``[redact]`` and the policy
    redact, into its span. ``hash_users`` has digests in the place of the names of people.
    """

    endpoint: str = ""
    service_name: str = ""
    arguments: bool = False
    results: bool = False
    hash_users: bool = False
