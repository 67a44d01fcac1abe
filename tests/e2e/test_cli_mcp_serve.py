"""``agentguard mcp serve``: the command in a process of its own, and what it refuses to serve."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_process import begin_gateway

ROOT = Path(__file__).parents[2]
SCRIPTED = ROOT / "integrations" / "agentguard-mcp" / "tests" / "support" / "scripted_server.py"
POLICY = """
package agent.authz

default allow := false

allow if input.action == "echo"
"""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture
def domain(project):
    """A trust domain with a server behind a gateway."""
    assert project.run("init").returncode == 0
    project.allow_unlisted()
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    return project


def table(
    project, text: str = "", serve: str = 'listen = "127.0.0.1:0"', agent="assistant"
) -> None:
    """Add the table of the scripted server to the configuration."""
    command = json.dumps([sys.executable, "-I", "-S", str(SCRIPTED)])
    file = project.folder / "agentguard.toml"
    before = file.read_text().partition("\n[mcp.files]")[0]
    with file.open("w") as file:
        file.write(before)
        file.write(f'\n[mcp.files]\ncommand = {command}\nagent = "{agent}"\n{text}\n')
        file.write(f'[mcp.files.serve]\n{serve}\n[agents.clerk]\nmax_scope = ["a"]\n')


def call(url: str, tool: str, client: Any = httpx) -> httpx.Response:
    params = {"name": tool, "arguments": {"text": "a"}, "_meta": META}
    headers = {
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tools/call",
        "mcp-name": tool,
        "accept": "application/json, text/event-stream",
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return client.post(url, json=message, headers=headers, timeout=20)


def test_a_gateway_serves_until_a_signal_comes(domain):
    table(domain, 'principal = "user:alice"')
    process = subprocess.Popen(
        [sys.executable, "-m", "agentguard.cli", "mcp", "serve", "--name", "files"],
        cwd=domain.folder,
        env=domain.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("serving at ").strip()
        assert call(url, "echo").json()["result"]["isError"] is False
        assert call(url, "fail").json()["result"]["isError"] is True
    finally:
        process.send_signal(signal.SIGTERM)
        _output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    calls = domain.run("audit", "list").stdout
    assert ("echo" in calls, "user:alice" in calls) == (True, True)
    assert domain.run("audit", "verify").returncode == 0


def test_at_a_unix_socket_the_agent_acts_for_the_user_of_the_gateway(domain, tmp_path):
    table(domain, agent="clerk")
    place = tmp_path / "gateway.sock"
    options = ("--listen", f"unix:{place}")
    process = begin_gateway(
        domain.programs, domain.folder, "files", env=domain.environment, options=options
    )
    try:
        url, _, where = process.stdout.readline().removeprefix("serving at ").partition(" through ")
        assert where == f"{place}\n"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(place))) as client:
            assert call(url, "echo", client).json()["result"]["isError"] is False
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.communicate()
    name = pwd.getpwuid(os.geteuid()).pw_name
    assert f"user:{name}" in domain.run("audit", "list").stdout


SLOW = """
import pathlib, time

unlink = pathlib.Path.unlink

def unlink_late(path, **options):
    if path.suffix == ".sock":
        pathlib.Path.unlink = unlink
        time.sleep(0.5)
    unlink(path, **options)

pathlib.Path.unlink = unlink_late
"""
"""Code for a gateway that takes its time between the look at a stale socket and the removal."""


def test_of_two_gateways_that_start_at_one_stale_socket_one_serves(domain, tmp_path):
    path = tmp_path / "gateway.sock"
    table(domain, 'principal = "user:alice"', f'listen = "unix:{path}"')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.bind(str(path))
    started = [
        begin_gateway(domain.programs, domain.folder, "files", SLOW, domain.environment)
        for _ in range(2)
    ]
    said = {one: one.stdout.readline() for one in started}
    try:
        (serving,) = (one for one in started if "serving at" in said[one])
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            url = said[serving].removeprefix("serving at ").partition(" ")[0]
            assert call(url, "echo", client).json()["result"]["isError"] is False
    finally:
        for one in started:
            os.kill(one.pid, signal.SIGTERM)
        ends = {one: one.communicate()[1] for one in started}
    (other,) = (one for one in started if one is not serving)
    assert (serving.returncode, other.returncode) == (0, 2)
    assert "another server listens at" in " ".join(ends[other].split())
    assert "server.address" in ends[other]
    assert not path.exists()


def test_nothing_is_served_to_callers_whom_nobody_names(domain):
    table(domain, agent="clerk")
    for words, said in (
        ((), "nobody says for whom the agent clerk acts"),
        (("--listen", "0.0.0.0:0"), "no loopback address"),
        (("--listen", "localhost:0"), "expected an address and a port"),
    ):
        refused = domain.run("mcp", "serve", "--name", "files", *words)
        assert (refused.returncode, said in " ".join(refused.stderr.split())) == (2, True), said


def test_a_principal_is_lent_to_this_machine_alone(domain):
    for serve in (
        'listen = "127.0.0.1:0"\nurl = "https://mcp.acme.example/mcp"',
        'listen = "0.0.0.0:0"\ncertificate = "a.pem"\nkey = "a.key"\nurl = "https://a.example/mcp"',
    ):
        table(domain, 'principal = "user:alice"', serve)
        refused = domain.run("mcp", "serve", "--name", "files")
        said = " ".join(refused.stderr.split())
        assert refused.returncode == 2
        assert "everybody who reaches the address could call tools" in said
    beyond = 'listen = "0.0.0.0:0"\ncertificate = "a.pem"\nkey = "a.key"'
    table(domain, 'audience = "mcp:files"\nproofs = "proofs.sqlite"', beyond)
    refused = domain.run("mcp", "serve", "--name", "files")
    assert "name the url of the gateway" in " ".join(refused.stderr.split())


ISSUER = """
[issuers.acme]
issuer = "https://login.example"
jwks_file = "keys.json"
audience = ["AUDIENCE"]
algorithms = ["RS256"]
"""
URL = 'listen = "127.0.0.1:0"\nurl = "https://mcp.example/mcp"'
GOOD = ISSUER.replace("AUDIENCE", "https://mcp.example/mcp")
USERS = '[issuers.acme.users]\nclaim = "sub"\n'


def test_tokens_that_could_never_count_are_a_mistake(domain):
    for serve, issuer, more, said in (
        (URL, "", "", "there is no [issuers.acme]"),
        (URL, ISSUER, "", "[issuers.acme.users] has to say"),
        (URL, ISSUER, USERS + 'token = "ID"\n', "[issuers.acme.users] has to say"),
        (URL, ISSUER, USERS, "add 'https://mcp.example/mcp' to audience"),
        ("", ISSUER, USERS, "name the url of the gateway"),
    ):
        table(domain, "", f'{serve}\n[mcp.files.oauth]\nissuers = ["acme"]\n{issuer}{more}')
        refused = domain.run("mcp", "serve", "--name", "files")
        assert (refused.returncode, said in " ".join(refused.stderr.split())) == (2, True), said
    assert "name the url of the gateway" in domain.run("doctor").stdout
    table(domain, "", f'{URL}\n[mcp.files.oauth]\nissuers = ["acme"]\n{GOOD}{USERS}')
    assert "mcp.files.oauth" not in domain.run("doctor").stdout


def test_a_mistake_in_the_table_is_named(domain):
    for serve in (
        'listen = "127.0.0.1"',
        'listen = "host.example:1"',
        'listen = "127.0.0.1:70000"',
        'url = "http://mcp.acme.example/mcp"',
        'url = "https://mcp.acme.example/mcp/"',
        'url = "https://MCP.acme.example/mcp"',
        'key = "a.pem"',
        'origins = ["app.example"]',
        "sessions = 0",
        "idle = 0",
        "unknown = 1",
    ):
        table(domain, 'principal = "user:alice"', serve)
        refused = domain.run("mcp", "serve", "--name", "files")
        assert refused.returncode == 2
        assert f"mcp.files.serve.{serve.split()[0]}" in "".join(refused.stderr.split()), serve
