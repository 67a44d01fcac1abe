"""Sets up an SDK where the application has none: spans and metrics over OTLP, in the background.

Only this module imports the SDK and the exporter (``agentguard[otlp]``). No call waits for them:
spans wait in a queue of bounded size, and a flush or the end of the process waits a bounded time.
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
from agentguard.telemetry import host as host_attributes
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
"""The values of ``OTEL_TRACES_EXPORTER`` and ``OTEL_METRICS_EXPORTER`` that mean OTLP."""

_PATHS: Final = ("/v1/traces", "/v1/metrics")
"""OTLP's path of each signal, which a base URL does not have."""

_EXTRA: Final = (
    "opentelemetry.sdk.trace.export",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
)


def configure(
    *,
    endpoint: str | None = None,
    service_name: str | None = None,
    metrics: bool = False,
    host: bool = True,
) -> bool:
    """Set up OpenTelemetry's SDK for this process, unless the application has done so.

    ``endpoint`` is the base URL of an OTLP receiver that takes http/protobuf, such as
    ``http://localhost:4318``. ``service_name`` is the service under which a trace store lists the
    spans. Without these arguments the standard variables decide: ``OTEL_EXPORTER_OTLP_ENDPOINT``,
    ``OTEL_SERVICE_NAME``, and all others that the SDK reads (samplers, limits, headers, batches).
    ``metrics`` sends metrics to the same receiver once a minute; Jaeger takes no metrics.
    ``host`` adds the machine's name, addresses and a digest of its id to what is sent
    (``host.py``); what ``OTEL_RESOURCE_ATTRIBUTES`` says of the machine counts first.
    ``OTEL_TRACES_EXPORTER=none`` sends no traces and ``OTEL_METRICS_EXPORTER=none`` no metrics,
    whatever the arguments are.

    Returns whether this call has set up the SDK. Raises ``ConfigError`` without
    ``agentguard[otlp]`` (``config.extra_missing``), for an ``endpoint`` that is no URL, and for a
    protocol in the variables other than http/protobuf.
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
    resource = _resource(service_name, host=host)
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
    """Set up the SDK as ``[telemetry]`` says; without that table, as the ``OTEL_*`` variables say.

    Raises what ``configure`` raises. The variables alone raise nothing: another library may be the
    one that they are meant for.
    """
    named = any(map(os.environ.get, ENDPOINTS))
    if settings.endpoint or (settings.present and named):
        configure(
            endpoint=settings.endpoint or None,
            service_name=settings.service_name or None,
            metrics=settings.metrics,
            host=settings.host,
        )
    elif named and not tracing.is_tracing() and is_sent("traces"):
        _stand_in()


@fails_open
def _stand_in() -> None:
    """Send spans to the receiver of the variables until the application sets up an SDK.

    A process sets its tracer provider once, so the provider here is not the process's.
    """
    try:
        require_exporter()
    except ConfigError as error:
        _LOGGER.info("no traces are sent: %s", error)
        return
    provider, exporter = _sending_traces(None, _resource(None, host=True))
    tracing.stand_in(provider)
    _Flusher.start([provider], exporter)


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Send the spans and metrics that wait, through the SDK that ``configure`` has set up.

    Returns true if all of them were sent within ``seconds`` and the receiver took every span.
    """
    flusher = _Flusher.running
    return flusher is not None and flusher.flush(seconds)


class _Noting:
    """An exporter of spans that notes whether a span was refused, lost, or could not be sent."""

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
        """Inspect a response, as a hook of the session: whoever sends a web page took no spans.

        Jaeger's web page answers every request with status 200, which the exporter takes for
        success.
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
    """A thread that flushes the providers, so that a flush can be given up after some seconds.

    The SDK's own ``force_flush`` has no limit of time. The thread runs from the beginning, since no
    thread can be started while the interpreter exits.
    """

    running: _Flusher | None = None

    def __init__(self, providers: Sequence[Any], exporter: _Noting | None) -> None:
        self.providers = providers
        self._exporter = exporter
        self.renew()

    def renew(self) -> None:
        """Start the thread; a fork starts its own, since a fork does not copy threads."""
        self._requests: SimpleQueue[threading.Event] = SimpleQueue()
        threading.Thread(target=self._work, args=(self._requests,), daemon=True).start()

    def _work(self, requests: SimpleQueue[threading.Event]) -> None:
        while True:
            done = requests.get()
            self._flush()
            done.set()

    @fails_open
    def _flush(self) -> None:
        for provider in self.providers:
            provider.force_flush()

    def flush(self, seconds: float) -> bool:
        done = threading.Event()
        self._requests.put(done)
        in_time = done.wait(seconds)
        return in_time and (self._exporter is None or not self._exporter.failed)

    @classmethod
    def start(cls, providers: Sequence[Any], exporter: _Noting | None) -> None:
        """Run a thread for these providers, and flush them when the process exits.

        The providers that stood in until now are flushed too: their spans may wait.
        """
        before = cls.running.providers if cls.running is not None else ()
        cls.running = cls([*before, *providers], exporter)
        atexit.register(flush)
        os.register_at_fork(after_in_child=fails_open(cls.running.renew))


def require_exporter(endpoint: str | None = None) -> None:
    """Raise ``ConfigError`` unless spans can be sent to ``endpoint`` (see ``configure``)."""
    try:
        for module in _EXTRA:
            import_module(module)
    except ImportError as error:
        brings = "OpenTelemetry's SDK and its exporter"
        raise ConfigError.without_extra("otlp", what="sending telemetry", brings=brings) from error
    _require_protocol(endpoint)


def is_sent(signal: str) -> bool:
    """Whether the variables allow that ``signal``, traces or metrics, is sent over OTLP."""
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


def _resource(service_name: str | None, *, host: bool) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415  an extra

    machine = Resource((_host_attributes() or {}) if host else {})
    if service_name is not None:
        return machine.merge(Resource.create({SERVICE_NAME: service_name}))
    found = machine.merge(Resource.create())
    # what the SDK says where nobody has named the service: "unknown_service:python"
    nameless = str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return found.merge(Resource({SERVICE_NAME: "agentguard"})) if nameless else found


_host_attributes: Final = fails_open(host_attributes.attributes)


def _sending_traces(endpoint: str | None, resource: Resource) -> tuple[Any, _Noting]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from requests import Session  # noqa: PLC0415  the exporter's own client

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # the exporter makes the session itself where the variables name credentials
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
    """Return the URL that receives a signal; None means the URL of the variables."""
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
