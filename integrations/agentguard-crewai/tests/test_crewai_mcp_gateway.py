"""A crew proves its calls to a gateway on stdio, in front of a server that nobody changes.

The crew is the one of crewai-mcp.md.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import commands
import docs_pages
import gateway_scene
import pytest
from call_scene import CallScene

TABLE = """
agent = "mcp-gateway"
audience = "mcp:payments"
proofs = "proofs.sqlite"
trust = ["trust.json"]
"""
POLICY = """
package agent.authz

default allow := false

allow if {
    input.caller.principal == "user:alice"
    input.args.text == "plan"
}
"""


@pytest.fixture
def scene(tmp_path):
    made = CallScene(tmp_path)
    with made.guard:
        yield made


@pytest.mark.slow("a gateway and a server begin anew for each of the three connections")
def test_a_crew_proves_its_calls_to_a_gateway(scene, native, tmp_path):
    ran = tmp_path / "ran"
    command = gateway(tmp_path, scene.guard.trust.dumps(), gateway_scene.command(ran=str(ran)))
    page: dict[str, Any] = {}
    exec(docs_pages.blocks(docs_pages.text("how-to/crewai-mcp"), "python")[0], page)  # noqa: S102
    steps = [("payments_echo", {"text": text}) for text in ("plan", "secret")]
    crew = page["payments_crew"](command, native.model(*steps, "done"), scene.guard)
    output = page["run"](crew, scene.guard)
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.reason.value == "mcp_error"
    assert "[policy.denied]" in failed.failure.message
    assert [one for one in ran.read_text().splitlines() if "echo" in one] == ["echo plan"]


def gateway(folder, trust, command):
    """Found the trust domain of a gateway, and return the command that starts the gateway."""
    home = folder / "domain"
    environment = {**os.environ, "HOME": str(folder)}
    founded = commands.run(["init", str(home)], env=environment, cwd=folder)
    assert founded.returncode == 0, founded.stderr
    (home / "policies" / "authz.rego").write_text(POLICY)
    (home / "trust.json").write_bytes(trust)
    table = f"command = {json.dumps(command)}\n{TABLE}"
    with (home / "agentguard.toml").open("a") as file:
        file.write("[tools.pay]\n[tools.echo]\n[tools.balance]\n")
        file.write(f"\n[agents.mcp-gateway]\n\n[mcp.payments]\n{table}")
    words = ["mcp", "run", "--name", "payments", "--config", str(home / "agentguard.toml")]
    return ["env", f"HOME={folder}", sys.executable, "-m", "agentguard.cli", *words]
