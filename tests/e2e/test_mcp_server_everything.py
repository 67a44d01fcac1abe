"""MCP's own reference server does the same behind ``agentguard mcp run`` as it does alone.

``scripts/mcp-server-everything`` installs the server. Where that fails, the test is skipped; with
CI=true it fails then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mcp_conversation import Conversation

SCRIPT = Path(__file__).parents[2] / "scripts" / "mcp-server-everything"
POLICY = """
package agent.authz

default allow := false

allow if input.action != "get-env"
"""


@pytest.fixture
def server() -> list[str]:
    """The command that starts the server."""
    made = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        reason = f"scripts/mcp-server-everything fails: {made.stderr.strip()[:300]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return ["node", made.stdout.strip(), "stdio"]


@pytest.fixture
def gateway(project, server) -> list[str]:
    """The command that starts a gateway in front of the server, whose tools are pinned."""
    assert project.run("init").returncode == 0
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    with (project.folder / "agentguard.toml").open("a") as file:
        file.write(f'[mcp.everything]\nagent = "assistant"\ncommand = {json.dumps(server)}\n')
    pinned = project.run("mcp", "pin", "--name", "everything")
    assert pinned.returncode == 0, pinned.stderr
    return [sys.executable, "-m", "agentguard.cli", "mcp", "run", "--name", "everything"]


@pytest.mark.slow("it starts a server that Node runs: for its pins, alone, and behind a gateway")
def test_the_reference_server_does_the_same_behind_a_gateway(project, server, gateway):
    alone = Conversation(server, project.environment, project.folder)
    guarded = Conversation(gateway, project.environment, project.folder)

    said = alone.handshake()
    assert said["capabilities"].pop("tasks")  # the gateway runs none
    assert guarded.handshake() == said
    tools, *results = alone.tools()
    assert len(tools["tools"]) == 17
    assert [result.get("isError") for result in results] == [*(None, None, True), *([None] * 4)]
    behind = guarded.tools()
    refused = behind.pop(3)  # the arguments that the server itself refuses
    assert refused["_meta"]["dev.agentguard/code"] == "arguments.invalid"
    assert behind == [tools, *results[:2], *results[3:]]
    answers = alone.progress()
    assert [notice["progress"] for notice in answers[1:]] == [1, 2, 3]
    assert guarded.progress() == answers
    assert [alone.cancellation(), guarded.cancellation()] == [False, False]
    answers = alone.requests_of_the_server()
    assert [one["method"] for one in answers[4:]] == [
        "sampling/createMessage",
        "elicitation/create",
        "elicitation/create",
    ]
    assert guarded.requests_of_the_server() == answers
    assert alone.url_elicitation_by_error() == guarded.url_elicitation_by_error() == -32042
    answers = alone.resources()
    assert answers[2]["contents"]
    assert answers[3]["code"] == -32602
    assert guarded.resources() == answers
    answers = alone.subscriptions()
    assert answers[-1] == {"uri": "demo://resource/static/document/features.md"}
    assert guarded.subscriptions() == answers
    answers = alone.prompts()
    assert answers[4]["completion"]["values"] == ["Alice"]
    assert guarded.prompts() == answers

    assert "PATH" in alone.call("get-env")["content"][0]["text"]
    assert guarded.call("get-env")["_meta"] == {"dev.agentguard/code": "policy.denied"}
    assert (alone.end(), guarded.end()) == (0, 0)
    assert project.run("audit", "verify").returncode == 0
    calls = [one for one in project.lines("audit", "list") if one["kind"] == "call"]
    assert len(calls) == 22  # 17 tools, 2 resources and 3 prompts
    assert [one["tool"] for one in calls if one["decision"] == "deny"] == [
        "get-sum",
        "get-env",
    ]
    ends = [one["outcome"] for one in calls if one["tool"] == "trigger-sampling-request"]
    assert sorted(ends) == ["ok", "unknown"]  # one call was cancelled
