"""An SDK set up where the application has none: batches over OTLP, in the background.

The SDK and the exporter (``agentguard[otlp]``) are imported only here, and only when they are
asked for. Nothing of it holds a call up: spans wait in a queue of bounded size, and whoever flushes
it, or exits, waits for so many seconds at most.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Sequence
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace

from agentguard.errors import ConfigError
from agentguard.telemetry import tracing
from agentguard.telemetry.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_LOGGER = logging.getLogger("agentguard")

FLUSH_SECONDS: Final = 2.0
"""How long ``flush`` waits, and with it the end of a guard and of the process."""

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The variables that say where traces go."""

_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PATHS: Final = ("/v1/traces", "/v1/metrics")
"""What a base URL does not end with: OTLP's own path of each signal."""

_EXTRA: Final = (
    "opentelemetry.sdk.trace.export",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
)


def configure(
    *, endpoint: str | None = None, service_name: str | None = None, metrics: bool = False
) -> bool:
    """Set up OpenTelemetry's SDK for this process, unless the application has done so.

    ``endpoint`` is the base URL of an OTLP receiver that takes http/protobuf, such as
    ``http://localhost:4318``; ``service_name`` is under what a trace store keeps the spans. Without
    them the standard variables count (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``, and
    all others that the SDK knows: samplers, limits, headers, batches). ``metrics`` sends metrics to
    the same place, once a minute: Jaeger takes none.

    Returns whether it was set up here. Raises ``ConfigError`` without ``agentguard[otlp]``
    (``config.extra_missing``), and for a protocol in those variables that it does not have.
    """
    if tracing.is_set_up():
        _LOGGER.info("OpenTelemetry is set up already: agentguard adds no exporter")
        return False
    require_exporter()
    _require_protocol(endpoint)
    resource = _resource(service_name)
    provider, exporter = _sending_traces(endpoint, resource)
    providers = [provider]
    if metrics:
        providers.append(_sending_metrics(endpoint, resource))
    _Flusher.start(providers, exporter)
    return True


def follow(settings: Settings) -> None:
    """Set up what ``[telemetry]`` says; raises as ``configure`` does."""
    if settings.endpoint or (settings.present and any(map(os.environ.get, ENDPOINTS))):
        configure(
            endpoint=settings.endpoint or None,
            service_name=settings.service_name or None,
            metrics=settings.metrics,
        )


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Have what waits sent now, by what ``configure`` has set up.

    Returns whether that was done in time, and every span so far was taken.
    """
    flusher = _Flusher.running
    return flusher is not None and flusher.flush(seconds)


class _Noting:
    """An exporter of spans that notes whether any was refused, or could not be sent."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.failed = False
        self.force_flush, self.shutdown = exporter.force_flush, exporter.shutdown

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        try:
            result = self._exporter.export(spans)
        except BaseException:
            self.failed = True
            raise
        self.failed |= result.name != "SUCCESS"
        return result


class _Flusher:
    """A thread that sends what waits: the SDK's own ``force_flush`` waits as long as it takes.

    It runs from the beginning, since no thread can be started when the interpreter exits.
    """

    running: _Flusher | None = None

    def __init__(self, providers: Sequence[Any], exporter: _Noting) -> None:
        self._providers = providers
        self._exporter = exporter
        self.renew()

    def renew(self) -> None:
        """Begin: in a fork the thread of the parent is not there."""
        self._asked: SimpleQueue[threading.Event] = SimpleQueue()
        threading.Thread(target=self._work, args=(self._asked,), daemon=True).start()

    def _work(self, asked: SimpleQueue[threading.Event]) -> None:
        while True:
            done = asked.get()
            self._flush()
            done.set()

    @tracing.fails_open
    def _flush(self) -> None:
        for provider in self._providers:
            provider.force_flush()

    def flush(self, seconds: float) -> bool:
        done = threading.Event()
        self._asked.put(done)
        return done.wait(seconds) and not self._exporter.failed

    @classmethod
    def start(cls, providers: Sequence[Any], exporter: _Noting) -> None:
        """Run one for these providers, which is asked when the process exits."""
        cls.running = cls(providers, exporter)
        atexit.register(flush)
        os.register_at_fork(after_in_child=tracing.fails_open(cls.running.renew))


def require_exporter() -> None:
    """Raise ``ConfigError`` (``config.extra_missing``) unless SDK and exporter are installed."""
    try:
        for module in _EXTRA:
            import_module(module)
    except ImportError as error:
        brings = "OpenTelemetry's SDK and its exporter"
        raise ConfigError.without_extra("otlp", what="sending telemetry", brings=brings) from error


def _resource(service_name: str | None) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415  an extra

    if service_name is not None:
        return Resource.create({SERVICE_NAME: service_name})
    found = Resource.create()
    # what the SDK says where nobody has named the service: "unknown_service:python"
    nameless = str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return found.merge(Resource({SERVICE_NAME: "agentguard"})) if nameless else found


def _sending_traces(endpoint: str | None, resource: Resource) -> tuple[Any, _Noting]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _Noting(OTLPSpanExporter(endpoint=_of_signal(endpoint, "traces")))
    provider.add_span_processor(BatchSpanProcessor(exporter))  # type: ignore[arg-type]  # it is one
    trace.set_tracer_provider(provider)
    return provider, exporter


def _sending_metrics(endpoint: str | None, resource: Resource) -> Any:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415
        OTLPMetricExporter,
    )
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

    exporter = OTLPMetricExporter(endpoint=_of_signal(endpoint, "metrics"))
    reader = PeriodicExportingMetricReader(exporter)
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider


def _of_signal(endpoint: str | None, signal: str) -> str | None:
    """Return the URL to which a signal is sent; None for that of the variables."""
    if endpoint is None:
        return None
    base = endpoint.rstrip("/")
    for path in _PATHS:
        base = base.removesuffix(path)
    return f"{base.rstrip('/')}/v1/{signal}"


def _require_protocol(endpoint: str | None) -> None:
    named = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "")
    if endpoint is None and named not in ("", "http/protobuf"):
        message = (
            f"the OTEL_* variables ask for OTLP over {named}: agentguard sends http/protobuf; name "
            "that and its port (usually 4318), or set up an SDK in the application"
        )
        raise ConfigError(message)
