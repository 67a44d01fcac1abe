"""``[telemetry]`` of agentguard.toml as a value: where spans are sent, and what they may hold."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

ENDPOINT: Final = re.compile(r"https?://[^/]")
"""The beginning of an OTLP receiver's base URL."""

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The environment variables that name the receiver of spans."""

FLUSH_SECONDS: Final = 2.0
"""The seconds that ``flush``, the end of a guard and the end of the process wait at most."""

RECEIVER: Final = "the URL of an OTLP receiver, as http://localhost:4318"


class Settings(NamedTuple):
    """What telemetry sends, and where to.

    ``present`` says whether the configuration has the table. ``endpoint`` is the base URL of an
    OTLP receiver (http/protobuf); empty means the receiver of the ``OTEL_*`` variables, or the
    application's own set-up. ``metrics`` sends metrics to the same receiver. ``arguments`` and
    ``results`` put a call's arguments and result into its span, without what ``[redact]`` and the
    policy redact. ``reasons`` puts the policy's reasons into the span as they are: a reason may
    quote an argument. ``hash_users`` replaces the names of people by digests. ``host`` names the
    machine in all that is sent.
    """

    present: bool = False
    endpoint: str = ""
    service_name: str = ""
    metrics: bool = False
    arguments: bool = False
    results: bool = False
    reasons: bool = False
    hash_users: bool = False
    host: bool = True
