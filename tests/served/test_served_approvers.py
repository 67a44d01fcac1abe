"""``agentguard approvals`` in the configuration of a guard server's client: people answer there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from served_intruder import require_root

from agentguard import ApprovalPending, Denied
from agentguard.signing.keys import Ed25519Signer

BOB = 64_010
"""A user without an account, who runs no agent."""

PHRASE = b"a passphrase of bob's"

AS_BOB = f"""
import os, runpy, sys
import agentguard.cli.approvals.commands, agentguard.cli.commands

os.setgroups([])
os.setresgid({BOB}, {BOB}, {BOB})
os.setresuid({BOB}, {BOB}, {BOB})
sys.argv = ["agentguard", *sys.argv[1:]]
runpy.run_module("agentguard.cli", run_name="__main__", alter_sys=True)
"""
"""Code that runs a command under bob's user."""


@pytest.fixture
def bob(founded):
    """A folder with bob's encrypted key, and a configuration that names the server alone."""
    folder: Path = founded.folder / "bob"
    folder.mkdir()
    signer = Ed25519Signer.from_seed(os.urandom(32))
    (folder / "key").write_bytes(signer.to_openssh(PHRASE, rounds=1))
    (folder / "agentguard.toml").write_text(f'[server]\nurl = "unix:{founded.folder}/s"\n')
    path = founded.folder / "agentguard.toml"
    line = f'keys = ["{signer.public_key.openssh()}"]'
    path.write_text(path.read_text("utf-8").replace("keys = []", line), "utf-8")
    return folder


def serve(founded, clients: str) -> None:
    path = founded.folder / "agentguard.toml"
    path.write_text(path.read_text("utf-8") + clients, "utf-8")
    founded.start()


def ask(founded):
    """Make a call that waits for an approval; return a function that makes the call again."""
    guard = founded.connect()
    pay = guard.tool(name="pay")(lambda cents: f"paid {cents}")
    agent = guard.new_agent("clerk")
    with pytest.raises(ApprovalPending) as pending:
        agent.call(pay, 5)
    return pending.value.request, lambda: agent.call(pay, 5)


def approvals(founded, folder, *words: str, code: str | None = None):
    program = ("-m", "agentguard.cli") if code is None else ("-c", code)
    env = {**os.environ, "AGENTGUARD_APPROVER_PASSPHRASE": PHRASE.decode()}
    return founded.programs.run(*program, "approvals", *words, cwd=folder, env=env)


OWN = f"\n[clients.own]\nuid = {os.getuid()}\nagents = ['clerk']\nsees_requests = true\n"
SIGN = ("--key", "key", "--yes", "--note", "seen")


def test_an_approver_answers_through_the_server(founded, bob):
    serve(founded, OWN)
    request, again = ask(founded)
    listed = approvals(founded, bob, "list", "--json")
    assert [json.loads(line)["request_id"] for line in listed.stdout.splitlines()] == [
        request.request_id
    ]
    shown = approvals(founded, bob, "show", request.request_id[:8])
    assert (shown.returncode, "pay" in shown.stdout) == (0, True)
    with pytest.raises(ApprovalPending):
        again()
    approved = approvals(founded, bob, "approve", request.request_id[:8], *SIGN)
    assert (approved.returncode, approved.stderr) == (0, "")
    assert "approved by user:bob" in approved.stdout
    assert again() == "paid 5"
    late = approvals(founded, bob, "approve", request.request_id, *SIGN)
    assert (late.returncode, "request.ended" in late.stderr) == (2, True)
    assert founded.status()["clients"] == 1  # the commands have ended their sessions
    assert founded.verify().ok


def test_an_approver_rejects_through_the_server_and_a_strangers_key_does_not(founded, bob):
    serve(founded, OWN)
    request, again = ask(founded)
    key, other = (bob / "key").read_bytes(), Ed25519Signer.from_seed(os.urandom(32))
    (bob / "key").write_bytes(other.to_openssh(PHRASE, rounds=1))
    refused = approvals(founded, bob, "reject", request.request_id, *SIGN)
    assert (refused.returncode, "approval.unknown" in refused.stderr) == (2, True)
    with pytest.raises(ApprovalPending):
        again()
    (bob / "key").write_bytes(key)
    rejected = approvals(founded, bob, "reject", request.request_id, *SIGN)
    assert (rejected.returncode, "rejected by user:bob" in rejected.stdout) == (0, True)
    with pytest.raises(Denied, match="seen"):
        again()


def test_an_exported_request_is_answered_and_brought_back_through_the_server(founded, bob):
    serve(founded, OWN)
    request, again = ask(founded)
    exported = approvals(founded, bob, "export", request.request_id, "-o", "request.json")
    assert exported.returncode == 0, exported.stderr
    signed = ("--request", "request.json", "--as", "user:bob", "-o", "answer.json", *SIGN)
    assert approvals(founded, bob, "approve", *signed).returncode == 0
    imported = approvals(founded, bob, "import", "answer.json")
    assert (imported.returncode, "approved by user:bob" in imported.stdout) == (0, True)
    assert again() == "paid 5"


def test_without_a_server_the_command_says_so(founded, bob):
    refused = approvals(founded, bob, "list")
    assert (refused.returncode, "server.unreachable" in refused.stderr) == (2, True)


@pytest.mark.parametrize("sees", [True, False])
def test_a_user_who_runs_no_agent_sees_requests_with_the_right_alone(founded, bob, sees):
    require_root()
    for path in (founded.folder, bob, bob / "key", bob / "agentguard.toml"):
        path.chmod(0o755)
        os.chown(path, BOB if path.parent == bob else os.getuid(), -1)
    (bob / "key").chmod(0o600)
    own = f"\n[clients.own]\nuid = {os.getuid()}\nagents = ['clerk']\n"
    right = f"sees_requests = {str(sees).lower()}\n"
    serve(founded, f"{own}\n[clients.bob]\nuid = {BOB}\n{right}")
    request, again = ask(founded)
    listed = approvals(founded, bob, "list", code=AS_BOB)
    answered = approvals(founded, bob, "approve", request.request_id, *SIGN, code=AS_BOB)
    if sees:
        assert request.request_id[:8] in listed.stdout
        assert answered.returncode == 0, answered.stderr
        assert again() == "paid 5"
    else:
        assert "nothing waits for an approval that this user sees" in " ".join(
            listed.stdout.split()
        )
        assert (answered.returncode, "request.unknown" in answered.stderr) == (2, True)
        with pytest.raises(ApprovalPending):
            again()


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_call_whose_arguments_are_long_and_quoted_is_approved(founded, monkeypatch, is_traced):
    """In a frame, each quote of a request takes four bytes."""
    monkeypatch.setattr("agentguard.client.instance.is_silent", lambda: not is_traced)
    founded.start()
    guard = founded.connect()
    agent, pay = guard.new_agent("clerk"), guard.tool(name="pay")(len)
    text = '"' * 131_000
    with pytest.raises(ApprovalPending) as pending:
        agent.call(pay, text)
    with pytest.raises(ApprovalPending):
        agent.call(pay, text)
    (request,) = guard.approvals.pending()
    assert request == pending.value.request
    guard.approvals.vouch(request, "approve", principal="user:bob")
    assert agent.call(pay, text) == len(text)
