"""``deploy/``: what can be tried of it without Docker.

The compose file against what it must hold, the versions against the pinned ones, the configurations
and the policy with the real programs: Jaeger is a collector too, and runs both.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DIRECTLY = build_opener(ProxyHandler({}))


def pinned(module, package):
    text = (ROOT / "tools" / module / "go.mod").read_text()
    (version,) = re.findall(rf"^\t{package} v(\S+)", text, re.MULTILINE)
    return version


def test_the_images_are_the_versions_that_the_tests_build():
    images = {name: service["image"] for name, service in SERVICES.items()}
    major, minor, patch = pinned("jaeger", "github.com/jaegertracing/jaeger").split(".")
    assert major == "1"
    assert images == {
        # the module goes on counting from 1, the product from 2: 1.63 is 2.0
        "jaeger": f"jaegertracing/jaeger:2.{int(minor) - 63}.{patch}",
        "opa": f"openpolicyagent/opa:{pinned('opa', 'github.com/open-policy-agent/opa')}",
        "collector": "otel/opentelemetry-collector:"
        + pinned("jaeger", "go.opentelemetry.io/collector/otelcol"),
    }


def test_the_one_line_of_the_page_on_traces_starts_the_same_jaeger_for_this_machine_alone():
    (line,) = re.findall(
        r"^docker run .*$", (ROOT / "docs/how-to/traces.md").read_text("utf-8"), re.MULTILINE
    )
    assert line.endswith(f" {SERVICES['jaeger']['image']}")
    ports = re.findall(r"-p (\S+)", line)
    assert ports == [f"127.0.0.1:{port}:{port}" for port in (16686, 4317, 4318)]


def test_every_port_is_open_to_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert sorted(ports) == sorted(f"127.0.0.1:{port}:{port}" for port in (4317, 4318, 8181, 16686))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_confined_and_reads_what_is_there(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    for volume in service["volumes"]:
        source, inside, mode = volume.replace(
            "${AGENTGUARD_POLICIES:-./policies}", "./policies"
        ).split(":")
        assert (DEPLOY / source).exists()
        assert mode == "ro"
        named = (DEPLOY / "jaeger.yaml").read_text() if name == "jaeger" else ""
        assert inside in service["command"] or f" {inside} " in named
    assert ("healthcheck" in service) is (name != "collector")


class Running:
    """Programs of one test, in the background."""

    def __init__(self, folder):
        self.folder, self.stack = folder, ExitStack()

    def start(self, *command):
        log = self.stack.enter_context((self.folder / f"{id(command)}.log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def on_free_ports(self, number, command, url, body=None):
        """Start what ``command`` says for so many ports; on others where somebody took one."""
        for _ in range(5):
            ports = free_ports(number)
            process = self.start(*command(*ports))
            if self.answers(process, url(*ports), body):
                return process, ports
        return pytest.fail(f"it ends at once: {self.logs()}")

    def answers(self, process, url, body):
        """Whether it answers, and has not ended."""
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
            with suppress(OSError), DIRECTLY.open(request, timeout=5):
                return process.poll() is None
            time.sleep(0.05)
        return False

    def logs(self):
        return [*map(Path.read_text, self.folder.glob("*.log"))]

    def answer(self, url, body=None, until=lambda _: True):
        """What a server answers, asked until it is up and the answer is as it must become."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
            with suppress(OSError), DIRECTLY.open(request, timeout=5) as answered:
                said = json.loads(answered.read() or b"null")
                if until(said):
                    return said
            time.sleep(0.05)
        return pytest.fail(f"no answer from {url}: {self.logs()}")


@pytest.fixture
def running(tmp_path):
    running = Running(tmp_path)
    with running.stack:
        yield running


def free_ports(number):
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in held]


def settings(endpoints):
    return [f"--set={name}=127.0.0.1:{port}" for name, port in endpoints.items()]


def test_what_is_sent_to_the_collector_is_found_in_jaeger(running, jaeger_program):
    jaeger = jaeger_program
    otlp = "receivers.otlp.protocols"
    asked = SERVICES["jaeger"]["healthcheck"]["test"][-1]

    def store(query, health, between):
        ours = {
            "extensions.jaeger_query.http.endpoint": query,
            "extensions.jaeger_query.grpc.endpoint": 0,
            "extensions.healthcheckv2.http.endpoint": health,
            f"{otlp}.grpc.endpoint": between,
        }
        page = f"--set=extensions.jaeger_query.ui.config_file={DEPLOY / 'jaeger-ui.json'}"
        return jaeger, f"--config={DEPLOY / 'jaeger.yaml'}", page, *settings(ours)

    def healthy(_query, health, _between):
        return asked.replace(":13133/", f":{health}/")

    _, (query, _, between) = running.on_free_ports(3, store, healthy)

    def collector(grpc, http):
        theirs = {
            f"{otlp}.grpc.endpoint": grpc,
            f"{otlp}.http.endpoint": http,
            "exporters.otlp.endpoint": between,
        }
        return jaeger, f"--config={DEPLOY / 'collector.yaml'}", *settings(theirs)

    def receives(_grpc, http):
        return f"http://127.0.0.1:{http}/v1/traces"

    _, (_, http) = running.on_free_ports(2, collector, receives, b"{}")
    now = str(time.time_ns())
    span = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331"}
    span |= {"name": "execute_tool read", "startTimeUnixNano": now, "endTimeUnixNano": now}
    name = {"key": "service.name", "value": {"stringValue": "agents"}}
    resource = {"attributes": [name]}
    body = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
    running.answer(f"http://127.0.0.1:{http}/v1/traces", json.dumps(body).encode())
    found = running.answer(
        f"http://127.0.0.1:{query}/api/traces?service=agents", until=lambda said: said["data"]
    )
    assert [one["operationName"] for one in found["data"][0]["spans"]] == ["execute_tool read"]


@pytest.mark.parametrize("name", ["jaeger.yaml", "collector.yaml"])
def test_a_mistake_in_a_configuration_would_be_found(tmp_path, name, jaeger_program):
    text = (DEPLOY / name).read_text()
    broken = tmp_path / name
    broken.write_text(text.replace("receivers: [otlp]", "receivers: [oltp]"))

    def validated(file):
        command = [jaeger_program, "validate", f"--config={file}"]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert validated(DEPLOY / name) == 0
    assert validated(broken) != 0


def opa_command(opa, policies, *, without=()):
    """What the file has OPA run, with policies of this machine, for a port."""

    def command(port):
        changed = {"--addr=0.0.0.0:8181": f"--addr=127.0.0.1:{port}", "/policies": str(policies)}
        parts = [part for part in SERVICES["opa"]["command"] if part not in without]
        return opa, *(changed.get(part, part) for part in parts)

    return command


def asking(running, port):
    """Ask for the example's document on a call."""

    def decided(agent, action, **args):
        asked = {"input": {"agent": {"type": agent}, "action": action, "args": args}}
        url = f"http://127.0.0.1:{port}/v1/data/agent/authz"
        return running.answer(url, json.dumps(asked).encode())

    return decided


HEALTH = "http://127.0.0.1:{}/health".format


def test_opa_runs_as_the_file_says_and_decides_by_the_example(running, opa_program):
    opa = opa_program
    command = opa_command(opa, DEPLOY / "policies")
    process, (port,) = running.on_free_ports(1, command, HEALTH)
    decided = asking(running, port)

    inside = decided("assistant", "read_file", path="docs/how-to/policies.md")
    assert inside["result"]["allow"] is True
    for path in ("docs/../keys", "docs//x", "keys", None):
        assert decided("assistant", "read_file", path=path)["result"]["allow"] is False
    merged = decided("code-agent", "merge_pr", base="main")["result"]
    assert (merged["allow"], "approval" in merged) == (True, True)
    assert decided("code-agent", "merge_pr", base="dev")["result"]["allow"] is False
    logged = "".join(file.read_text() for file in running.folder.glob("*.log"))
    assert f'"decision_id":"{inside["decision_id"]}"' in logged

    _, inside_image, *check = SERVICES["opa"]["healthcheck"]["test"]
    assert inside_image == "/opa"
    probing = [opa, *(part.replace(":8181/", f":{port}/") for part in check)]
    assert subprocess.run(probing, capture_output=True, check=False).returncode == 0
    process.kill()
    process.wait()
    assert subprocess.run(probing, capture_output=True, check=False).returncode != 0


@pytest.fixture
def tested(tmp_path):
    """A folder of policies with their tests beside them: tables, Rego, and what an editor hid."""
    folder = tmp_path / "policies"
    shutil.copytree(DEPLOY / "policies", folder)
    for name in ("people", "robots"):
        case = {"name": name, "input": {"action": "read_file"}, "expect": "deny"}
        (folder / f"{name}_test.json").write_text(json.dumps({"case": [case]}))
    (folder / "more_test.toml").write_text('[[case]]\nname = "x"\nexpect = "deny"\n')
    (folder / "authz_test.rego").write_text(
        "package agent.authz\n\nallow if input.args.testing\n\ntest_it if not allow\n"
    )
    (folder / ".authz.rego").write_text("package agent.authz\n\nallow if {")
    return folder


def test_tests_beside_the_policies_are_neither_data_nor_rules(running, opa_program, tested):
    _, (port,) = running.on_free_ports(1, opa_command(opa_program, tested), HEALTH)
    decided = asking(running, port)

    def is_as_it_was():
        assert decided("assistant", "read_file", path="docs/x")["result"]["allow"] is True
        assert decided("assistant", "write", testing=True)["result"]["allow"] is False
        data = running.answer(f"http://127.0.0.1:{port}/v1/data")["result"]
        assert (list(data), list(data["agent"])) == (["agent"], ["authz"])

    is_as_it_was()
    (tested / "later_test.json").write_text('{"agent": {"authz": {"allow": true}}}')
    policy = tested / "authz.rego"
    policy.write_text(policy.read_text() + "\nreloaded := true\n")
    url = f"http://127.0.0.1:{port}/v1/data/agent/authz"
    running.answer(url, b"{}", until=lambda said: said["result"].get("reloaded"))
    is_as_it_was()


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (("--bundle",), "conflicting values at data.case"),
        (("--ignore=.*",), "rego_parse_error"),
        (("--ignore=*_test.rego",), None),
    ],
)
def test_each_of_the_options_is_needed_for_that(running, opa_program, tested, without, says):
    command = opa_command(opa_program, tested, without=without)
    if says is None:
        _, (port,) = running.on_free_ports(1, command, HEALTH)
        said = asking(running, port)("assistant", "write", testing=True)
        assert said["result"]["allow"] is True  # as the test has it
        return
    ended = running.start(*command(*free_ports(1)))
    assert ended.wait(timeout=30) != 0
    assert says in "".join(running.logs())


def test_the_example_has_nothing_that_the_two_engines_see_otherwise(project):
    checked = project.run("policy", "check", DEPLOY / "policies" / "authz.rego")
    assert (checked.returncode, checked.stderr) == (0, "")
