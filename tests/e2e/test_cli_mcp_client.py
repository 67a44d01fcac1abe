"""What ``[mcp.NAME]`` shows a client of a gateway that runs by itself: lists, limits, secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentguard.cli.mcp import gateway

ROOT = Path(__file__).parents[2]
SCRIPTED = ROOT / "integrations" / "agentguard-mcp" / "tests" / "support" / "scripted_server.py"
SECRET = "glpat-0123456789"
POLICY = """
package agent.authz

default allow := false

allow if {
    input.action == "mcp:tools/list"
    input.args.server == "files"
    input.args.tool in {"echo", "ask"}
}

allow if input.action in {"echo", "mcp:start"}
"""


@pytest.fixture
def domain(project):
    """A trust domain with a server that gets a secret, and a policy that filters its list."""
    assert project.run("init").returncode == 0
    project.allow_unlisted()
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    token = project.folder / "token"
    token.write_text(SECRET)
    token.chmod(0o600)
    tool = {"name": "leaky", "description": f"Uses {SECRET}.", "inputSchema": {"type": "object"}}
    listed = {"jsonrpc": "2.0", "id": 2, "result": {"tools": [tool]}}
    # the second request of a probe is its list; a client's second request is another one
    leak = {"before": {"tools/list": [json.dumps(listed)]}}
    with (project.folder / "agentguard.toml").open("a") as file:
        file.write(f"""
[secrets.TOKEN]
file = "token"
tools = ["mcp:start"]

[mcp.files]
command = {json.dumps([sys.executable, "-I", "-S", str(SCRIPTED)])}
agent = "assistant"
secrets = {{ TOKEN = "TOKEN" }}
filter_list = true
calls_per_minute = 2

[mcp.leaky]
command = {json.dumps([sys.executable, "-I", "-S", str(SCRIPTED), json.dumps(leak)])}
agent = "assistant"
secrets = {{ TOKEN = "TOKEN" }}
""")
    return project


@contextmanager
def client_of(project, name: str):
    """Run a gateway, and yield a function that sends a request and returns the result."""
    words = [sys.executable, "-m", "agentguard.cli", "mcp", "run", "--name", name]
    with subprocess.Popen(
        words,
        env=project.environment,
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, lines = process.stdin, process.stdout

        def ask(method: str, **params: object) -> dict:
            message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
            requests.write(json.dumps(message).encode() + b"\n")
            requests.flush()
            return json.loads(lines.readline())["result"]

        yield ask
        requests.close()
        assert process.wait(60) == 0


def require_filtered(project) -> None:
    with client_of(project, "files") as ask:
        assert [tool["name"] for tool in ask("tools/list")["tools"]] == ["echo", "ask"]
        texts = [SECRET, "plain", "too many"]
        results = [ask("tools/call", name="echo", arguments={"text": text}) for text in texts]
    shown = [json.loads(one["content"][0]["text"])["text"] for one in results[:2]]
    assert shown == ["[a secret was here]", "plain"]
    assert results[2]["_meta"] == {"dev.agentguard/code": "calls.rate"}
    calls = [told for told in project.lines("audit", "list") if told["kind"] == "call"]
    assert [told["tool"] for told in calls] == ["mcp:start", "echo", "echo", "echo"]
    assert project.run("audit", "verify").returncode == 0


@pytest.mark.slow("it starts a gateway and a server")
def test_a_gateway_shows_and_limits_what_the_configuration_says(domain):
    require_filtered(domain)


@pytest.mark.slow("it starts an OPA, a gateway and a server")
def test_a_policy_on_an_opa_filters_a_list_too(domain, opa):
    server = opa(domain.folder / "policies" / "authz.rego")
    toml = domain.folder / "agentguard.toml"
    toml.write_text(
        toml.read_text()
        .replace('engine = "rego"', 'engine = "opa"')
        .replace('path = "policies/authz.rego"', f'url = "{server.url}"')
    )
    require_filtered(domain)


def test_a_file_of_pins_has_no_secret_that_the_server_shows(domain):
    pinned = domain.run("mcp", "pin", "--name", "leaky")
    assert pinned.returncode == 0, pinned.stderr
    text = (domain.folder / gateway.FOLDER / "leaky.json").read_text()
    assert "Uses [a secret was here]." in text
    assert SECRET not in text + pinned.stdout
    assert domain.run("mcp", "diff", "--name", "leaky").returncode == 0
