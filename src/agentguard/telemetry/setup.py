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
from urllib.parse import urlsplit

from opentelemetry import metrics, trace

from agentguard.errors import ConfigError
from agentguard.telemetry import tracing
from agentguard.telemetry.failing import fails_open
from agentguard.telemetry.settings import (
    ENDPOINT,
    ENDPOINTS,
    FLUSH_SECONDS,
    RECEIVER,
    Settings,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_LOGGER = logging.getLogger("agentguard")

_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CREDENTIALS: Final = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
)
_OTLP: Final = ("otlp", "otlp_proto_http")
"""What ``OTEL_TRACES_EXPORTER`` and ``OTEL_METRICS_EXPORTER`` call what is sent here."""

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
    the same place, once a minute: Jaeger takes none. ``OTEL_TRACES_EXPORTER=none`` sends no traces,
    ``OTEL_METRICS_EXPORTER=none`` no metrics, whatever is said here.

    Returns whether it was set up here. Raises ``ConfigError`` without ``agentguard[otlp]``
    (``config.extra_missing``), for an ``endpoint`` that is no URL, and for a protocol in those
    variables that it does not have.
    """
    if endpoint is not None and not ENDPOINT.match(endpoint):
        raise ConfigError(f"endpoint: expected {RECEIVER}, got {endpoint!r}")
    if tracing.is_applications():
        _LOGGER.info("OpenTelemetry is set up already: agentguard adds no exporter")
        return False
    traces, metrics = is_sent("traces"), metrics and is_sent("metrics")
    if not (traces or metrics):
        return False
    require_exporter(endpoint)
    resource = _resource(service_name)
    providers, exporter = [], None
    if traces:
        provider, exporter = _sending_traces(endpoint, resource)
        trace.set_tracer_provider(provider)
        providers.append(provider)
    if metrics:
        providers.append(_sending_metrics(endpoint, resource))
    _Flusher.start(providers, exporter)
    return True


def follow(settings: Settings) -> None:
    """Set up what ``[telemetry]`` says, and without such a table what the variables say.

    Raises as ``configure`` does, but not for variables alone: they may be another library's.
    """
    named = any(map(os.environ.get, ENDPOINTS))
    if settings.endpoint or (settings.present and named):
        configure(
            endpoint=settings.endpoint or None,
            service_name=settings.service_name or None,
            metrics=settings.metrics,
        )
    elif named and not tracing.is_set_up() and is_sent("traces"):
        _stand_in()


@fails_open
def _stand_in() -> None:
    """Send to where the variables say until the application sets up an SDK, if it does so.

    The process has one place for that, which is taken once: it stays the application's.
    """
    try:
        require_exporter()
    except ConfigError as error:
        _LOGGER.info("no traces are sent: %s", error)
        return
    provider, exporter = _sending_traces(None, _resource(None))
    tracing.stand_in(provider)
    _Flusher.start([provider], exporter)


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Have what waits sent now, by what ``configure`` has set up.

    Returns whether that was done in time, and every span so far was taken.
    """
    flusher = _Flusher.running
    return flusher is not None and flusher.flush(seconds)


class _Noting:
    """An exporter of spans that notes whether any was refused, lost, or could not be sent."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._was_page = False
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

    def look(self, answer: Any, *_arguments: Any, **_options: Any) -> None:
        """Look at an answer, as a hook of the session: a web page has taken no spans.

        Jaeger's page answers everything with status 200, which the exporter takes for success.
        """
        if not answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            return
        if not self._was_page:
            address = urlsplit(answer.url)
            _LOGGER.warning(
                "spans are lost: %s://%s answers with a web page, as no OTLP receiver does; the "
                "port of one is usually 4318, as in http://localhost:4318 (Jaeger's page is 16686)",
                address.scheme,
                address.netloc.rpartition("@")[2],
            )
        self.failed = self._was_page = True


class _Flusher:
    """A thread that sends what waits: the SDK's own ``force_flush`` waits as long as it takes.

    It runs from the beginning, since no thread can be started when the interpreter exits.
    """

    running: _Flusher | None = None

    def __init__(self, providers: Sequence[Any], exporter: _Noting | None) -> None:
        self.providers = providers
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

    @fails_open
    def _flush(self) -> None:
        for provider in self.providers:
            provider.force_flush()

    def flush(self, seconds: float) -> bool:
        done = threading.Event()
        self._asked.put(done)
        in_time = done.wait(seconds)
        return in_time and (self._exporter is None or not self._exporter.failed)

    @classmethod
    def start(cls, providers: Sequence[Any], exporter: _Noting | None) -> None:
        """Run one for these providers, which is asked when the process exits.

        What stood in for them until now may have spans that wait.
        """
        before = cls.running.providers if cls.running is not None else ()
        cls.running = cls([*before, *providers], exporter)
        atexit.register(flush)
        os.register_at_fork(after_in_child=fails_open(cls.running.renew))


def require_exporter(endpoint: str | None = None) -> None:
    """Raise ``ConfigError`` unless something can be sent to ``endpoint`` (see ``configure``)."""
    try:
        for module in _EXTRA:
            import_module(module)
    except ImportError as error:
        brings = "OpenTelemetry's SDK and its exporter"
        raise ConfigError.without_extra("otlp", what="sending telemetry", brings=brings) from error
    _require_protocol(endpoint)


def is_sent(signal: str) -> bool:
    """Whether the variables leave the ``signal``, traces or metrics, to be sent over OTLP."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    named = [name.strip() for name in os.environ.get(variable, "").split(",")]
    if named == [""] or any(name in _OTLP for name in named):
        return True
    if named != ["none"]:
        _LOGGER.warning(
            "%s=%s: agentguard sends %s over OTLP alone, so none are sent; take the variable out, "
            "or set up an SDK in the application",
            variable,
            ",".join(named),
            signal,
        )
    return False


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
    from requests import Session  # noqa: PLC0415  the exporter's own client

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # a session that the variables ask for is the exporter's own affair
    session = None if any(map(os.environ.get, _CREDENTIALS)) else Session()
    url = _of_signal(endpoint, "traces")
    exporter = _Noting(OTLPSpanExporter(endpoint=url, session=session))
    if session is not None:
        session.hooks["response"].append(exporter.look)
    provider.add_span_processor(BatchSpanProcessor(exporter))  # type: ignore[arg-type]  # it is one
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
