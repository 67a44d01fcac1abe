"""alice lends a task's scope to her agents: handed on with less, denied, stored, resumed, cut off.

Offline, in a folder that is gone afterwards. Run it with ``python examples/delegation.py``.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from agentguard import Agent, Denied, Guard, Tool, current_delegation

CONFIGURATION = """
[roles.developer]
scope = ["repo:read", "pr:write", "secret:read"]

[principals."user:alice"]
roles = ["developer"]

[agents.orchestrator]
roles = ["developer"]

[agents.coder]
roles = ["developer"]

[agents.tester]
roles = ["developer"]

[tools.read_issue]
[tools.open_pr]
[tools.read_secret]
[tools.assign]
"""
POLICY = """package agent.authz

default allow := false

allow if startswith(input.delegation.subject, "user:")
"""


PASSPHRASE = secrets.token_urlsafe(16)


def agentguard(*arguments: str) -> None:
    """Run the command line, as a person would."""
    # a guard takes the passphrase out of the environment: a program hands it to commands itself
    subprocess.run(  # noqa: S603  its arguments stand in this file
        [sys.executable, "-m", "agentguard.cli", *arguments],
        env={**os.environ, "AGENTGUARD_PASSPHRASE": PASSPHRASE},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def attempt(agent: Agent, tool: Tool[[], str]) -> str:
    """Let an agent use a tool, and say what came of it."""
    try:
        return f"{agent.name}: {tool.spec.name}: {agent.call(tool)}"
    except Denied as denied:
        return f"{agent.name}: {tool.spec.name}: DENIED: {denied.reason} [{denied.code}]"


def reader_of(guard: Guard) -> Tool[[], str]:
    """Return the tool with which agents read the issue."""
    return guard.tool(name="read_issue", requires=["repo:read"])(lambda: "discounts are wrong")


def work(guard: Guard) -> bytes:
    """Let alice's task be done, and return her delegation, as it can be stored."""
    orchestrator = guard.new_agent("orchestrator")
    coder, tester = guard.new_agent("coder"), guard.new_agent("tester")
    read_issue = reader_of(guard)

    @guard.tool(requires=["pr:write"])
    def open_pr() -> str:
        return "opened"

    @guard.tool(requires=["secret:read"])
    def read_secret() -> str:
        return "never seen"

    @guard.tool
    def assign() -> None:
        """Hand the task on: a tool of the orchestrator, in which other agents are called."""
        print(attempt(coder, read_issue))
        print(attempt(coder, open_pr))
        print(attempt(coder, read_secret))  # alice may, and her agents; this task may not
        lent = current_delegation()
        assert lent is not None  # noqa: S101  this tool runs under one
        with lent.narrowed(scope=["repo:read"]):
            print(attempt(tester, read_issue))
            print(attempt(tester, open_pr))

    task = guard.delegate(
        "user:alice",
        scope=["repo:read", "pr:write"],
        via="service:forge",
        task_id="issue-17",
        max_calls=10,
    )
    print(f"{task.principal} lends {' '.join(task.scope)} through {task.via} for {task.task_id}")
    with task:
        orchestrator.call(assign)
    return task.dumps()


def resume(guard: Guard, stored: bytes) -> None:
    """Go on with the task, until alice ends it."""
    coder, read_issue = guard.new_agent("coder"), reader_of(guard)
    with guard.resume(stored) as task:
        print("resumed:", attempt(coder, read_issue))
        agentguard("revoke", task.id, "--note", "alice has changed her mind")
        print("revoked:", attempt(coder, read_issue).replace(task.id, "her delegation"))
    print("the log verifies:", guard.verify().ok)


def main() -> None:
    """Tell the story, in a project of its own."""
    agentguard("init", "--anchor", "anchor")
    with Path("agentguard.toml").open("a") as file:
        file.write(CONFIGURATION)
    Path("policies/authz.rego").write_text(POLICY)
    with Guard.open() as guard:
        Path("task.json").write_bytes(work(guard))
    with Guard.open() as another:  # another day, another process
        resume(another, Path("task.json").read_bytes())


if __name__ == "__main__":
    os.environ["AGENTGUARD_PASSPHRASE"] = PASSPHRASE
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        main()
