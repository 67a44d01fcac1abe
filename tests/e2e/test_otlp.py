"""An SDK that is set up in one call, by agentguard.toml or by variables; and a receiver of OTLP.

Each program is a process of its own, for a process has one SDK. The receiver is a small one of
this test, which can also refuse, or never answer; the real Jaeger is in ``test_jaeger.py``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import commands
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

CALL = """
from agentguard import Decision, Guard, telemetry

{setup}
with Guard.ephemeral(lambda _input: Decision.allow(), config={config}) as guard:
    @guard.tool
    def push(branch: str) -> str:
        return branch

    agent = guard.new_agent("coder")
    print(agent.call(push, "fix"))
    {middle}
"""


class Receiver:
    """Keeps what is sent, by its path. ``holds`` has it answer nothing."""

    def __init__(self, *, holds=False, status=200, page=False):
        self.bodies: defaultdict[str, list[bytes]] = defaultdict(list)
        self.let_go = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies[self.path].append(body)
                if holds:
                    receiver.let_go.wait()
                    return
                self.send_response(status)
                media_type = "text/html; charset=utf-8" if page else "application/x-protobuf"
                self.send_header("Content-Type", media_type)
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        serving = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serving.start()

    def spans(self):
        """The names of services and spans."""
        found = []
        for body in self.bodies["/v1/traces"]:
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {a.key: a.value.string_value for a in sent.resource.attributes}
                spans = [span for scope in sent.scope_spans for span in scope.spans]
                found += [(named["service.name"], span.name) for span in spans]
        return found

    def resources(self):
        """The resources of all spans, as dictionaries; an array is a tuple."""
        found = []
        for body in self.bodies["/v1/traces"]:
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                attributes = {}
                for one in sent.resource.attributes:
                    items = tuple(item.string_value for item in one.value.array_value.values)
                    attributes[one.key] = items or one.value.string_value
                found.append(attributes)
        return found

    def metrics(self):
        found = set()
        for body in self.bodies["/v1/metrics"]:
            for sent in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                found |= {m.name for scope in sent.scope_metrics for m in scope.metrics}
        return found

    def close(self):
        self.let_go.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def hanging():
    receiver = Receiver(holds=True)
    yield receiver
    receiver.close()


@pytest.fixture
def run(programs, tmp_path):
    """Run a program that makes one call."""

    def run(setup="", config=None, middle="", **variables):
        program = program_of(setup, config, middle)
        return programs.run("-c", program, cwd=tmp_path, env=environment(variables))

    return run


def program_of(setup="", config=None, middle=""):
    return CALL.format(setup=textwrap.dedent(setup), config=config or {}, middle=middle)


def environment(variables):
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**bare, **variables}


HIDE = "import sys; sys.modules['opentelemetry.sdk'] = None"


def run_without_the_extra(setup=HIDE, **variables):
    """Run it in an interpreter that has not imported OpenTelemetry's SDK before."""
    return subprocess.run(
        [sys.executable, "-c", program_of(setup)],
        env=environment(variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_in_one_call(run, receiver):
    done = run(f"telemetry.configure(endpoint={receiver.url!r}, service_name='mine')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\n", "")
    assert receiver.spans() == [("mine", "execute_tool push")]
    assert receiver.metrics() == set()


HOST = ("host.name", "host.id", "host.ip", "ip")


def test_the_resource_names_the_machine_and_not_by_its_own_id(run, receiver):
    set_up = f"telemetry.configure(endpoint={receiver.url!r}, service_name='mine')"
    for _ in range(2):  # two processes of one machine say the same
        assert run(set_up).returncode == 0
    first, second = receiver.resources()
    assert [first.get(name) for name in HOST] == [second.get(name) for name in HOST]
    assert first["host.name"] == socket.gethostname()
    ipaddress.ip_address(first["ip"])  # or it raises
    assert first["ip"] == first.get("host.ip", ("127.0.0.1",))[0]
    machine = Path("/etc/machine-id")
    if machine.exists():
        secret = machine.read_text().strip()
        assert len(first["host.id"]) == 32
        assert secret not in str(first)


@pytest.mark.parametrize("way", ["call", "table"])
def test_the_machine_is_not_named_where_that_is_switched_off(run, receiver, way):
    table = {"telemetry": {"endpoint": receiver.url, "host": False}}
    set_up = f"telemetry.configure(endpoint={receiver.url!r}, host=False)"
    done = run(set_up) if way == "call" else run(config=table)
    assert done.returncode == 0
    (resource,) = receiver.resources()
    assert not {*HOST} & resource.keys()
    assert resource["service.name"] == "agentguard"


def test_what_the_variables_say_of_the_machine_counts_first(run, receiver):
    named = {"OTEL_RESOURCE_ATTRIBUTES": "host.name=worker-7,host.id=i-07"}
    done = run(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **named)
    assert done.returncode == 0
    (resource,) = receiver.resources()
    assert (resource["host.name"], resource["host.id"]) == ("worker-7", "i-07")
    assert resource["ip"]


def test_by_the_configuration_with_metrics(run, receiver):
    table = {"endpoint": receiver.url + "/", "service_name": "theirs", "metrics": True}
    done = run(config={"telemetry": table})
    assert (done.returncode, done.stderr) == (0, "")
    assert receiver.spans() == [("theirs", "execute_tool push")]
    assert {"agentguard.calls", "agentguard.decision.duration"} <= receiver.metrics()


@pytest.mark.parametrize("how", ["a table", "a call"])
def test_by_the_standard_variables(run, receiver, how):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "environment"}
    if how == "a table":
        done = run(config={"telemetry": {}}, **variables)
    else:
        done = run("telemetry.configure()", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert receiver.spans() == [("environment", "execute_tool push")]


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", ""),
        ("/", ""),
        ("/v1/traces", ""),
        ("/v1/metrics/", ""),
        ("/api/v1/tenant-7/otlp", "/api/v1/tenant-7/otlp"),
        ("/v1/traces/of/us/", "/v1/traces/of/us"),
    ],
)
def test_the_signals_have_their_paths_below_the_base_url(run, receiver, base, path):
    done = run(f"telemetry.configure(endpoint={receiver.url + base!r}, metrics=True)")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(receiver.bodies) == {f"{path}/v1/traces", f"{path}/v1/metrics"}


def test_a_service_may_have_any_name(run, receiver):
    setup = f"telemetry.configure(endpoint={receiver.url!r})"
    assert run(setup, OTEL_SERVICE_NAME="known-unknowns").returncode == 0
    assert receiver.spans() == [("known-unknowns", "execute_tool push")]


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP", "OTEL_EXPORTER_OTLP_TRACES"])
def test_the_variables_suffice(run, receiver, variable):
    url = receiver.url + ("/v1/traces" if variable.endswith("TRACES") else "")
    done = run(**{f"{variable}_ENDPOINT": url, "OTEL_SERVICE_NAME": "environment"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\n", "")
    assert receiver.spans() == [("environment", "execute_tool push")]


OWN = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    own = TracerProvider()
    trace.set_tracer_provider(own)
    assert trace.get_tracer_provider() is own"""


def test_an_application_that_sets_up_an_sdk_has_it_in_force_before_and_after_the_variables(
    run, receiver
):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    done = run(textwrap.dedent(OWN), **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\n", "")
    assert receiver.spans() == []

    done = run(middle=f"{OWN}\n    print(agent.call(push, 'late'))", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\nlate\n", "")
    assert receiver.spans() == [("agentguard", "execute_tool push")]  # of the first call alone


def test_what_a_call_sets_up_follows_the_variables(run, receiver):
    call = "telemetry.configure(service_name='late')\n    print(agent.call(push, 'late'))"
    done = run(middle=call, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\nlate\n", "")
    sent = [("agentguard", "execute_tool push"), ("late", "execute_tool push")]
    assert sorted(receiver.spans()) == sent


@pytest.mark.parametrize(
    "more",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"},
        {"OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": "nobody's"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_variables_alone_deny_no_call(run, receiver, more):
    done = run(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **more)
    assert (done.returncode, done.stdout) == (0, "fix\n")
    assert receiver.spans() == []


def test_variables_alone_without_the_extra(receiver):
    done = run_without_the_extra(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\n", "")


@pytest.mark.parametrize("how", ["a table", "a call"])
def test_none_sends_none(run, receiver, how):
    table = {"endpoint": receiver.url, "metrics": True}
    call = f"assert telemetry.configure(**{table!r}) is SET"
    for variables, sent in (
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {"/v1/traces", "/v1/metrics"}),
        ({"OTEL_TRACES_EXPORTER": "none"}, {"/v1/metrics"}),
        ({"OTEL_METRICS_EXPORTER": "none"}, {"/v1/traces"}),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, set()),
    ):
        receiver.bodies.clear()
        setup = call.replace("SET", str(bool(sent)))
        done = (
            run(config={"telemetry": table}, **variables)
            if how == "a table"
            else run(setup, **variables)
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "fix\n", "")
        assert set(receiver.bodies) == sent


def test_another_exporter_is_not_replaced_in_silence(run, receiver):
    done = run(f"telemetry.configure(endpoint={receiver.url!r})", OTEL_TRACES_EXPORTER="console")
    assert (done.returncode, done.stdout) == (0, "fix\n")
    assert "OTEL_TRACES_EXPORTER=console: agentguard sends traces over OTLP alone" in done.stderr
    assert receiver.spans() == []


@pytest.mark.parametrize("endpoint", ["localhost:4318", "4318", "", "ftp://localhost"])
def test_an_endpoint_is_a_url(run, endpoint):
    done = run(f"telemetry.configure(endpoint={endpoint!r})")
    assert done.returncode == 1
    expected = "endpoint: expected the URL of an OTLP receiver, as http://localhost:4318"
    assert f"{expected}, got {endpoint!r}" in done.stderr


def test_a_web_page_takes_no_spans(run, receiver):
    """As Jaeger's page, which answers all that is sent to it with status 200."""
    page = Receiver(page=True)
    flushed = "print(telemetry.flush())"
    done = run(f"telemetry.configure(endpoint={page.url!r})", middle=flushed)
    page.close()
    assert (done.returncode, done.stdout) == (0, "fix\nFalse\n")
    assert f"spans are lost: {page.url} answers with a web page" in done.stderr
    assert "http://localhost:4318" in done.stderr
    assert done.stderr.count("spans are lost") == 1

    done = run(f"telemetry.configure(endpoint={receiver.url!r})", middle=flushed)
    assert (done.stdout, done.stderr) == ("fix\nTrue\n", "")


def test_a_sampler_of_the_variables_counts(run, receiver):
    setup = f"telemetry.configure(endpoint={receiver.url!r})"
    done = run(setup, OTEL_TRACES_SAMPLER="always_off")
    assert (done.returncode, done.stdout) == (0, "fix\n")
    assert receiver.spans() == []
    assert run(setup, OTEL_TRACES_SAMPLER="always_on").returncode == 0
    assert receiver.spans() == [("agentguard", "execute_tool push")]


def test_the_applications_own_sdk_stays_in_force(run, receiver):
    setup = f"""
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        own = TracerProvider()
        trace.set_tracer_provider(own)
        assert telemetry.configure(endpoint={receiver.url!r}) is False
        assert trace.get_tracer_provider() is own
    """
    done = run(setup)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fix\n", "")
    assert receiver.spans() == []


def test_what_a_fork_does_is_sent_as_well(run, receiver):
    fork = """telemetry.flush()
    import os
    from opentelemetry import trace
    if os.fork():
        os.wait()
    else:
        trace.get_tracer("of the child").start_span("in the child").end()"""
    done = run(f"telemetry.configure(endpoint={receiver.url!r})", middle=fork)
    assert done.returncode == 0
    sent = [("agentguard", "execute_tool push"), ("agentguard", "in the child")]
    assert receiver.spans() == sent


WAITS = pytest.mark.slow("a guard and a process each wait for the exporter as long as they may")


@pytest.mark.parametrize("seconds", ["0.1", pytest.param("10", marks=WAITS)])
def test_nobody_there_is_no_error_of_a_call(run, seconds):
    set_up = "telemetry.configure(endpoint='http://127.0.0.1:1')"
    done = run(set_up, OTEL_EXPORTER_OTLP_TIMEOUT=seconds)
    assert (done.returncode, done.stdout) == (0, "fix\n")


@WAITS
def test_a_receiver_that_never_answers_does_not_hold_the_end_up(run, hanging):
    done = run(f"telemetry.configure(endpoint={hanging.url!r})")  # it ends while that still waits
    assert (done.returncode, done.stdout) == (0, "fix\n")
    assert not hanging.let_go.is_set()
    assert hanging.spans() == [("agentguard", "execute_tool push")]


def demo(folder, url):
    """Run the demo, with its trace sent to ``url``; return what it prints as JSON."""
    command = [Path(sys.executable).with_name("agentguard"), "demo", "--json", "--dir", folder]
    done = subprocess.run(
        [*command, "--otlp", url], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow("runs the whole demo twice, each time in a process of its own")
def test_the_demo_sends_its_trace_and_says_whether_it_was_taken(receiver, tmp_path):
    told = demo(tmp_path / "taken", receiver.url)
    assert (told["verified"], told["sent"]) == (True, True)
    assert ("forge", "invoke_agent orchestrator") in receiver.spans()

    page = Receiver(page=True)
    told = demo(tmp_path / "page", page.url)
    page.close()
    assert (told["verified"], told["sent"]) == (True, False)
    assert len(told["trace_id"]) == 32


def test_the_demo_takes_a_url(tmp_path):
    done = commands.run(["demo", "--otlp", "localhost:4318"], env={**os.environ}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected the URL of an OTLP receiver" in " ".join(done.stderr.replace("| ", "").split())


def test_another_protocol_is_refused(run, receiver):
    refused = run("telemetry.configure()", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert refused.returncode == 1
    assert "OTLP over grpc: agentguard sends http/protobuf" in refused.stderr


def test_without_the_extra_it_says_what_to_install():
    configured = f"{HIDE}\ntelemetry.configure(endpoint='http://127.0.0.1:1')"
    refused = run_without_the_extra(configured)
    assert refused.returncode == 1
    assert "from your clone: pip install '.[otlp]'" in refused.stderr
    assert run_without_the_extra().stdout == "fix\n"


@pytest.mark.slow("runs an example with LangGraph twice, as a reader runs it")
def test_the_example_prints_no_link_to_a_trace_that_was_not_taken(receiver):
    example = Path(__file__).parents[2] / "examples" / "jaeger" / "main.py"
    page = Receiver(page=True)
    for url, taken in ((page.url, False), (receiver.url, True)):
        done = subprocess.run(
            [sys.executable, example],
            env={**os.environ, "AGENTGUARD_OTLP_ENDPOINT": url},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode == 0, "/trace/" in done.stdout) == (taken, taken)
        assert ("the trace was not taken" in done.stderr) is not taken
    page.close()
