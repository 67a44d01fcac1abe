"""A project with delegations that a token command inspects and revokes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from token_files import claims_of

from agentguard.cli.terminal import times

LENT = """
import sys
from agentguard import Denied, Guard

with Guard.open("agentguard.toml") as guard:
    coder, tester = guard.new_agent("coder"), guard.new_agent("tester")

    @guard.tool(requires=["files:read"])
    def read_file() -> None: ...

    @guard.tool
    def check() -> None:
        tester.call(read_file)
        issued = tester.access_token()
        open("token", "w").write(issued.token + "\\n")
        open("chain.json", "wb").write(issued.chain)

    lent = guard.delegate(
        "user:alice",
        scope=["files:read", "files:write"],
        via="service:chat",
        task_id="issue-17",
        max_calls=9,
        expires_in=3600,
    )
    open("task.json", "wb").write(lent.dumps())
    with lent:
        coder.call(check)
"""

AGENTS = """
[agents.coder]
type = "assistant"
max_scope = ["files:read", "files:write"]
[agents.tester]
type = "assistant"
roles = ["reader"]
[roles.reader]
scope = ["files:read"]
"""


@pytest.fixture(scope="module")
def lent(tmp_path_factory, told):
    """A project in which alice lends to the coder, and the coder to the tester. Not to be changed.

    ``token`` is the tester's access token, ``chain.json`` its chain, ``task.json`` what alice lent.
    """
    made = told.copy(tmp_path_factory.mktemp("lent") / "place")
    with (made.folder / "agentguard.toml").open("a") as file:
        file.write(AGENTS)
    policy = "package agent.authz\nallow if true\n"
    (made.folder / "policies" / "authz.rego").write_text(policy)
    called = made.python("-c", LENT)
    assert called.returncode == 0, called.stderr
    assert made.run("trust", "export", "-o", "trust.json").returncode == 0
    return made


@pytest.fixture(autouse=True)
def _while_the_token_lives(lent, monkeypatch):
    """Set the clock of the commands: the tests may outlast the token, which lives five minutes."""
    issued = datetime.fromtimestamp(claims_of(lent)["iat"], UTC)
    monkeypatch.setattr(times, "now", lambda: issued + timedelta(seconds=1))


@pytest.fixture
def other(lent, tmp_path):
    """A copy for a test that changes it."""
    return lent.copy(tmp_path / "place")
