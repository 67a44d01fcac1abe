"""Answers that are given on the command line, in another process, to the calls of a crew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import commands
import pytest
from crewai.tools import tool
from crewai_payments import DELEGATE, LENT, PAY, ROLES, failures, task

from agentguard import (
    ApprovalPending,
    Ed25519Signer,
    Guard,
)
from agentguard.domain import config, domain
from agentguard_crewai import guard_crew

PASSPHRASE = b"of this test"
TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "rego"
path = "authz.rego"

[agents.lead]
max_scope = ["pay"]

[agents.worker]
max_scope = ["pay"]
"""
POLICY = """package agent.authz
default allow := false
allow if input.action in {"look", "delegate_work_to_coworker"}
approval := {"reason": "payments need a release manager", "roles": ["release-manager"]} if {
    input.action == "pay"
}
"""


class Desk:
    """A durable guard in a folder, and the command line that answers its requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {}
        people = ""
        for name in ("bob", "alice", "carol"):
            key = Ed25519Signer.from_seed(os.urandom(32))
            (folder / name).write_bytes(key.to_openssh(PASSPHRASE))
            line = key.public_key.openssh()
            roles = json.dumps(ROLES[name])
            people += f'\n[approvers.{name}]\nprincipal = "user:{name}"\n'
            people += f'keys = ["{line}"]\nroles = {roles}\n'
        (folder / "authz.rego").write_text(POLICY)
        (folder / "agentguard.toml").write_text(TABLES + people)
        settings = config.load(folder / "agentguard.toml")
        domain.found(settings, PASSPHRASE, now=datetime.now(UTC))

    def open(self) -> Guard:
        return Guard.open(self.folder / "agentguard.toml", passphrase=PASSPHRASE)

    def run(self, *args: str, by: str | None = None, run: Any = commands.run) -> Any:
        """Run ``agentguard approvals``, as ``by`` where somebody answers."""
        words = ["approvals", *args]
        if by is not None:
            words += ["--key", str(self.folder / by), "--yes"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "COLUMNS": "240",
            "LC_ALL": "C.UTF-8",
            "AGENTGUARD_APPROVER_PASSPHRASE": PASSPHRASE.decode(),
        }
        return run(words, env=environment, cwd=self.folder)

    def listed(self) -> list[Any]:
        return [json.loads(line) for line in self.run("list", "--json").stdout.splitlines()]


def another_process(words: list[str], **options: Any) -> Any:
    """Run ``agentguard`` beside this process, which goes on meanwhile."""
    command = [sys.executable, "-m", "agentguard.cli", *words]
    pipes: Any = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, check=False, **options, **pipes)


@pytest.fixture
def inbox(tmp_path) -> Desk:
    return Desk(tmp_path)


def test_a_paused_crew_is_listed_shown_and_approved_on_the_command_line(inbox, text, signed):
    ran: list[str] = []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        return f"paid {to}"

    with inbox.open() as guard:
        lead = text.agent("Lead", allow_delegation=True)
        worker = text.agent("Worker", tools=[pay])
        crew = text.crew(lead, worker, tasks=[task(lead)])
        guard_crew(crew, guard, on_approval="pause")

        def tried() -> Any:
            lead.llm.steps[:] = [DELEGATE, "done"]
            worker.llm.steps[:] = [("pay", {"to": "ann\x1b[2J\nApproved by bob"}), "done"]
            with guard.delegate("user:alice", scope=["pay"], via="crew:report"):
                return crew.kickoff()

        with pytest.raises(ApprovalPending) as paused:
            tried()
        request = paused.value.request.request_id
        (listed,) = inbox.listed()
        assert listed["request_id"] == request
        assert listed["missing"].startswith("payments need a release manager: 0 of 1")
        shown = inbox.run("show", request[:8]).stdout
        assert "\x1b" not in shown
        for told in ("pay", "Pay somebody.", "agent:worker", "user:alice", "crew:report"):
            assert told in shown, told
        for by, why in (("alice", "user:alice asks for this call"), ("carol", "none of the roles")):
            refused = inbox.run("approve", request[:8], by=by)
            assert refused.returncode == 2
            assert why in refused.stderr, refused.stderr
        with pytest.raises(ApprovalPending):
            tried()
        assert ran == []
        said = inbox.run("approve", request[:8], by="bob")
        assert "approved by user:bob: pay" in said.stdout, said.stderr
        assert tried().raw == "done"
        assert len(ran) == 1
        assert inbox.listed() == []
        (paid,) = [call for call in signed(guard) if call.tool == "pay"]
        assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))
        assert guard.verify().ok


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_a_crew_that_waits_learns_what_was_said_on_the_command_line(inbox, native, verdict):
    ran: list[str] = []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        return f"paid {to}"

    def somebody() -> None:
        while not guard.approvals.pending():
            time.sleep(0.01)
        (request,) = guard.approvals.pending()
        said.append(inbox.run(verdict, request.request_id, by="bob", run=another_process))

    said: list[Any] = []
    with inbox.open() as guard:
        lead = native.agent("Lead", PAY, "done", tools=[pay])
        crew = guard_crew(native.crew(lead), guard, timeout=120)
        answering = threading.Thread(target=somebody)
        answering.start()
        with guard.delegate("user:alice", scope=["pay"], via="crew:report"):
            output = crew.kickoff()
        answering.join()
        assert said[0].returncode == 0, said[0].stderr
        codes = [failure.code for failure in failures(output)]
        assert (ran, codes) == (
            (["ann"], []) if verdict == "approve" else ([], ["approval.rejected"])
        )
        assert guard.verify().ok
