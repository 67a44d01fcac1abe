"""``[telemetry]`` of agentguard.toml, as a value: where traces go, and what they may hold."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

ENDPOINT: Final = re.compile(r"https?://[^/]")
"""How the base URL of an OTLP receiver begins."""

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The variables that say where traces go."""

FLUSH_SECONDS: Final = 2.0
"""How long ``flush`` waits, and with it the end of a guard and of the process."""

RECEIVER: Final = "the URL of an OTLP receiver, as http://localhost:4318"


class Settings(NamedTuple):
    """What is to be sent, and where to.

    ``present`` says whether there is such a table. ``endpoint`` is the base URL of an OTLP receiver
    (http/protobuf), empty for the one of the ``OTEL_*`` variables, or for the application's own
    set-up; ``metrics`` sends metrics there as well. ``arguments`` and ``results`` put these of each
    call, less what ``[redact]`` and the policy redact, into its span. ``hash_users`` has digests in
    the place of the names of people.
    """

    present: bool = False
    endpoint: str = ""
    service_name: str = ""
    metrics: bool = False
    arguments: bool = False
    results: bool = False
    hash_users: bool = False
