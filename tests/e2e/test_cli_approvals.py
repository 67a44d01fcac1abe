"""``agentguard approvals``, as it is typed: in the state's folder, and on another machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from state_pages import Page, pages, put_back

from agentguard.signing import canonical
from agentguard.signing.keys import Ed25519Signer

POLICY = """package agent.authz
default allow = false
approval := {"reason": "merges need a release manager", "roles": ["release-manager"]} if {
    input.action == "merge"
}
"""
MERGE = r"""
import sys
from agentguard import ApprovalPending, Denied, Guard

with Guard.open("agentguard.toml") as guard:
    @guard.tool
    def merge(branch: str, why: str = "") -> str:
        "Merge a branch."
        open("ran", "a").write(branch + "\n")
        return f"merged {branch}"

    agent = guard.new_agent("assistant")
    def attempt():
        return agent.call(merge, "main", why="\x1b[2J\u202eApproved by bob\n  | it is fine")
    try:
        print(attempt())
    except ApprovalPending as pending:
        print("pending", pending.request.request_id, flush=True)
        if sys.argv[1:] == ["wait"]:
            print(guard.approvals.wait(pending.request, timeout=60))
            print(attempt())
    except Denied as denied:
        print(denied.code, denied.reason)
"""
WITHDRAW = """
from agentguard import Guard

with Guard.open("agentguard.toml") as guard:
    (request,) = guard.approvals.pending()
    print(guard.approvals.withdraw(request))
"""
PASSPHRASE = b"a passphrase of bob's"


class Bob:
    """Somebody with a key on the roster."""

    def __init__(self, project: Any) -> None:
        self.project = project
        self.key = project.home / "bob"
        signer = Ed25519Signer.from_seed(os.urandom(32))
        self.key.write_bytes(signer.to_openssh(PASSPHRASE, rounds=1))
        self.line = signer.public_key.openssh()
        self.key.with_suffix(".pub").write_text(f"{self.line} bob@laptop\n")

    def run(self, *args: str, **variables: str) -> Any:
        variables = {"AGENTGUARD_APPROVER_PASSPHRASE": PASSPHRASE.decode(), **variables}
        return self.project.run(*args, env=variables)


@pytest.fixture
def project(begun):
    return begun.allow_unlisted()


@pytest.fixture
def bob(project):
    bob = Bob(project)
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    with (project.folder / "agentguard.toml").open("a") as settings:
        settings.write(
            '\n[approvers.bob]\nprincipal = "user:bob"\n'
            f'keys = ["{bob.line}"]\nroles = ["release-manager"]\n'
        )
    return bob


def requests(project: Any) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = project.lines("approvals", "list")
    return listed


def test_one_process_asks_a_second_answers_and_a_third_goes_on(project, bob):
    asked = project.python("-c", MERGE).stdout
    assert asked.startswith("pending ")
    ((request),) = requests(project)
    assert request["missing"].startswith("merges need a release manager: 0 of 1")
    said = bob.run(
        "approvals", "approve", request["request_id"][:8], "--key", str(bob.key), "--yes"
    )
    assert "approved by user:bob: merge" in said.stdout, said.stderr
    assert "answered, approved by user:bob" in project.run("approvals", "list").stdout
    assert not (project.folder / "ran").exists()
    assert project.python("-c", MERGE).stdout == "merged main\n"
    assert (project.folder / "ran").read_text() == "main\n"
    assert "nothing waits" in project.run("approvals", "list").stdout
    assert pages(project.state, "") == {}
    assert project.python("-c", MERGE).stdout.startswith("pending ")
    assert project.run("audit", "verify").returncode == 0


def test_a_list_names_a_person_who_has_approved_a_call_twice_once(project, bob):
    project.python("-c", MERGE)
    ((request),) = requests(project)
    for _once in range(2):
        again = ("approve", request["request_id"], "--key", str(bob.key), "--yes")
        assert bob.run("approvals", *again).returncode == 0
    assert project.python("-c", MERGE).stdout == "merged main\n"
    (call,) = [one for one in project.lines("audit", "list") if one["kind"] == "call"]
    assert call["reason"] == "approved by user:bob"
    shown = project.run("audit", "show", call["invocation_id"]).stdout
    assert shown.count("approved by | user:bob") == 2  # each answer is on record


def test_a_request_that_was_edited_is_named_as_edited_and_shown_nowhere(project, bob):
    """Whoever can write in the state makes it look like another agent's, and asks for no role."""
    project.python("-c", MERGE)
    ((request),) = requests(project)
    (path,) = Page(project.state, "requests").iterdir()
    document: Any = canonical.loads(path.read_bytes())
    document["agent"]["id"] = "spiffe://acme.example/agent/auditor/x"
    del document["requirements"][0]["roles"]
    path.write_bytes(canonical.dumps(document))
    request_id = request["request_id"]
    listed = project.run("approvals", "list")
    assert f"the request {request_id} was changed in the state directory" in listed.stderr
    assert "The next attempt of the call is refused" in listed.stderr
    assert "nothing waits" in listed.stdout
    key = ("--key", str(bob.key), "--yes")
    for command in (("show",), ("export",), ("approve", *key), ("reject", *key)):
        name, *options = command
        refused = bob.run("approvals", name, request_id[:8], *options)
        assert refused.returncode != 0
        assert refused.stdout == ""
        assert "[request.altered]" in refused.stderr
        assert "auditor" not in refused.stderr
    checks = json.loads(project.run("doctor", "--json").stdout)["checks"]
    assert [one["status"] for one in checks if one["check"] == "requests"] == ["fail"]
    assert project.python("-c", MERGE).stdout.startswith("approval.altered")
    assert project.python("-c", MERGE).stdout.startswith("pending ")  # the twin: asked anew
    assert len(requests(project)) == 1


def test_a_process_that_waits_learns_of_the_answer(project, bob):
    command = [sys.executable, "-c", MERGE, "wait"]
    pipes = {"cwd": project.folder, "env": project.environment, "text": True}
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, **pipes)
    assert waiting.stdout is not None
    request = waiting.stdout.readline().split()[1]
    said = bob.run("approvals", "approve", request, "--key", str(bob.key), "--yes")
    assert said.returncode == 0, said.stderr
    assert waiting.communicate(timeout=60)[0] == "True\nmerged main\n"


def test_a_rejection_reaches_the_agent(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    said = bob.run(
        "approvals",
        "reject",
        request["request_id"],
        "--key",
        str(bob.key),
        "--yes",
        "--note",
        "not on a Friday",
    )
    assert "rejected by user:bob" in said.stdout, said.stderr
    refused = project.python("-c", MERGE).stdout
    assert refused == "approval.rejected user:bob has rejected this call: not on a Friday\n"
    assert not (project.folder / "ran").exists()


def test_an_approval_after_a_rejection_is_not_said_to_help(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    answer = (request["request_id"], "--key", str(bob.key), "--yes")
    bob.run("approvals", "reject", *answer)
    assert "answered, rejected by user:bob" in project.run("approvals", "list").stdout
    said = bob.run("approvals", "approve", *answer)
    assert "but it was rejected by user:bob, and stays so" in said.stdout, said.stderr
    assert "answered, rejected by user:bob" in project.run("approvals", "list").stdout
    assert project.python("-c", MERGE).stdout.startswith("approval.rejected ")


def test_the_answers_so_far_are_shown(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    answer = (request["request_id"], "--key", str(bob.key), "--yes", "--note", "read \x1b[2J")
    bob.run("approvals", "approve", *answer)
    shown = project.run("approvals", "show", request["request_id"]).stdout
    assert "\nanswers so far\napproved by | user:bob, bob of the roster (release-manager)" in shown
    assert r": read \x1b[2J" in shown


TRACED = """
from opentelemetry import context, trace
around = trace.NonRecordingSpan(trace.SpanContext(0xABC, 7, is_remote=False))
context.attach(trace.set_span_in_context(around))
"""


@pytest.mark.usefixtures("bob")
def test_what_waits_in_a_trace_is_found_by_it(project):
    trace_id = f"{0xABC:032x}"
    assert project.python("-c", MERGE).stdout.startswith("pending ")  # in no trace
    (untraced,) = requests(project)
    assert trace_id not in project.run("approvals", "show", untraced["request_id"]).stdout
    assert project.run("audit", "show", "--trace", trace_id).returncode == 2

    other = MERGE.replace('"main"', '"next"')
    assert project.python("-c", TRACED + other).stdout.startswith("pending ")
    (traced,) = (one for one in requests(project) if one != untraced)
    assert trace_id in project.run("approvals", "show", traced["request_id"]).stdout
    (row,) = project.lines("audit", "list", "--trace", trace_id)
    (shown,) = project.lines("audit", "show", "--trace", trace_id)
    assert (
        (row["kind"], row["index"])
        == (shown["kind"], shown["index"])
        == (
            "request",
            row["index"],
        )
    )
    assert shown["request_id"] == traced["request_id"]
    drawn = project.run("audit", "show", "--trace", trace_id).stdout
    assert traced["request_id"] in drawn
    assert project.run("audit", "list", "--trace", trace_id).stdout.count("request") == 1
    verified = project.run("audit", "verify")
    assert verified.returncode == 0, verified.stderr


def test_what_is_shown_is_whole_and_steers_no_terminal(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    shown = project.run("approvals", "show", request["request_id"]).stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r'  |   "why": "\u001b[2J\u202eApproved by bob\n␣␣| it is fine"' in shown.splitlines()
    assert request["call_digest"] in shown
    for told in ("merge", "Merge a branch.", "agent:assistant", "release-manager"):
        assert told in shown


def test_another_machine_answers_by_files(project, bob, tmp_path):
    project.python("-c", MERGE)
    (request,) = requests(project)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    asked, answered = elsewhere / "request.json", elsewhere / "answer.json"
    exported = project.run("approvals", "export", request["request_id"], "-o", str(asked))
    assert exported.returncode == 0, exported.stderr
    shown = bob.run("approvals", "show", "--request", str(asked))
    assert request["call_digest"] in shown.stdout
    said = bob.run(
        "approvals",
        "approve",
        *("--request", str(asked), "--as", "user:bob", "--key", str(bob.key)),
        *("-o", str(answered), "--yes"),
    )
    assert said.returncode == 0, said.stderr
    assert project.python("-c", MERGE).stdout.startswith("pending ")
    taken = project.run("approvals", "import", str(answered))
    assert "approved by user:bob" in taken.stdout, taken.stderr
    twice = project.run("approvals", "import", str(answered))
    assert twice.stderr.startswith("error [storage.exists]: the answer "), twice.stderr
    assert twice.stderr.endswith(" is there already\n")
    assert project.python("-c", MERGE).stdout == "merged main\n"
    again = project.run("approvals", "import", str(answered))
    assert again.returncode == 2
    assert again.stderr.startswith("error [request.ended]: this answer comes too late: ")
    assert "was approved by user:bob at 20" in again.stderr
    assert again.stderr.endswith("and its call ran\n")


def test_a_request_that_was_changed_on_the_way_is_not_shown(project, bob, tmp_path):
    project.python("-c", MERGE)
    (request,) = requests(project)
    file = tmp_path / "request.json"
    project.run("approvals", "export", request["request_id"], "-o", str(file))
    file.write_bytes(file.read_bytes().replace(b'"main"', b'"test"'))
    for command in (("show",), ("approve", "--as", "user:bob", "--key", str(bob.key), "--yes")):
        refused = bob.run("approvals", *command, "--request", str(file))
        assert refused.returncode == 2
        assert "error [approval.mismatch]" in refused.stderr


def test_an_approved_call_is_proved_to_a_stranger(project, bob, tmp_path):
    project.python("-c", MERGE)
    (request,) = requests(project)
    bob.run("approvals", "approve", request["request_id"], "--key", str(bob.key), "--yes")
    project.python("-c", MERGE)
    listed = project.lines("audit", "list")
    (call,) = [row for row in listed if row["kind"] == "call"]
    evidence, trust = tmp_path / "evidence.json", tmp_path / "trust.json"
    project.run("evidence", "make", call["invocation_id"], "-o", str(evidence))
    project.run("trust", "export", "-o", str(trust))
    proved = project.run("evidence", "verify", str(evidence), "--trust", str(trust))
    assert proved.returncode == 0, proved.stderr
    assert "user:bob, bob of the roster (release-manager), signed with" in proved.stdout
    told = project.run("audit", "show", call["invocation_id"])
    assert "approved by" in told.stdout
    kinds = [row["kind"] for row in listed]
    assert kinds.index("request") < kinds.index("call")


def test_an_old_copy_of_the_requests_brings_no_approval_back(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    bob.run("approvals", "approve", request["request_id"], "--key", str(bob.key), "--yes")
    old = pages(project.state, "")
    assert project.python("-c", MERGE).stdout == "merged main\n"
    put_back(project.state, old)
    assert project.python("-c", MERGE).stdout.startswith("approval.consumed ")
    assert (project.folder / "ran").read_text() == "main\n"


@pytest.mark.skipif(
    not (shutil.which("ssh-agent") and shutil.which("ssh-add")),
    reason="there is no ssh-agent on this machine (Debian: openssh-client)",
)
def test_a_key_that_an_ssh_agent_holds_signs(project, bob, tmp_path):
    public = bob.key.with_suffix(".pub")
    project.python("-c", MERGE)
    (request,) = requests(project)
    answer = ("approvals", "approve", request["request_id"], "--key", str(public), "--yes")
    none = bob.run(*answer, SSH_AUTH_SOCK="")
    assert "error [key.unusable]" in none.stderr
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert agent.poll() is None
        unknown = bob.run(*answer, SSH_AUTH_SOCK=str(socket))
        assert "ssh-add" in unknown.stderr
        ask = tmp_path / "ask"
        ask.write_text(f'#!/bin/sh\necho "{PASSPHRASE.decode()}"\n')
        ask.chmod(0o700)
        bob.key.chmod(0o600)
        asking = {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": "none"}
        environment = {**os.environ, "SSH_AUTH_SOCK": str(socket), **asking}
        subprocess.run(["ssh-add", str(bob.key)], env=environment, check=True, capture_output=True)
        said = bob.run(*answer, SSH_AUTH_SOCK=str(socket))
        assert "approved by user:bob" in said.stdout, said.stderr
    finally:
        agent.terminate()
        agent.wait()
    assert project.python("-c", MERGE).stdout == "merged main\n"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("show", "0000"), "request.unknown"),
        (("show", ""), "request.unknown"),
        (("import", "nothing.json"), "storage.missing"),
        (("show", "--request", "agentguard.toml"), "json.malformed"),
    ],
)
def test_a_mistake_says_what_to_do(project, bob, args, code):
    refused = project.run("approvals", *args)
    assert refused.returncode == 2
    assert f"error [{code}]" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_nobody_answers_for_another(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    key = ("--key", str(bob.key), "--yes", "--as")
    refused = bob.run("approvals", "approve", request["request_id"], *key, "user:carol")
    assert (refused.returncode, "user:bob's" in refused.stderr) == (2, True)
    taken = bob.run("approvals", "approve", request["request_id"], *key, "user:bob")
    assert taken.returncode == 0, taken.stderr


def test_nobody_answers_unasked(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    refused = bob.run("approvals", "approve", request["request_id"], "--key", str(bob.key))
    assert refused.returncode == 2
    assert "nothing was done: run the command in a terminal, or with --yes" in refused.stderr
    assert requests(project)[0]["missing"] is not None


def test_the_key_answers_before_the_question_is_asked(project, bob):
    """Else a person says yes, and then learns that the key is not theirs."""
    project.python("-c", MERGE)
    (request,) = requests(project)
    key = ("--key", str(bob.key))
    question = "Approve exactly this call?"
    wrong = {"AGENTGUARD_APPROVER_PASSPHRASE": "another one"}
    refused = bob.run("approvals", "approve", request["request_id"], *key, **wrong)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error [key.passphrase]: "), refused.stderr
    assert question not in refused.stderr
    bob.key.write_bytes(Ed25519Signer.from_seed(os.urandom(32)).to_openssh(PASSPHRASE, rounds=1))
    refused = bob.run("approvals", "approve", request["request_id"], *key)
    assert "[approval.unknown]" in refused.stderr
    assert question not in refused.stderr


def test_what_ended_each_request_is_listed(project, bob):
    assert project.run("approvals", "list", "--ended").stdout == "no request is over yet\n"
    project.python("-c", MERGE)
    (request,) = requests(project)
    assert project.lines("approvals", "list", "--ended") == []
    bob.run("approvals", "approve", request["request_id"], "--key", str(bob.key), "--yes")
    project.python("-c", MERGE)
    project.python("-c", MERGE)
    (second,) = requests(project)
    note = ("--note", "not today")
    bob.run("approvals", "reject", second["request_id"], "--key", str(bob.key), "--yes", *note)
    project.python("-c", MERGE)
    project.python("-c", MERGE)
    (third,) = requests(project)
    withdrawn = project.python("-c", WITHDRAW)
    assert withdrawn.stdout == "True\n", withdrawn.stderr
    listed = project.lines("approvals", "list", "--ended")
    assert [(one["request_id"], one["end"], one["call"]) for one in listed] == [
        (request["request_id"], "used", "ran"),
        (second["request_id"], "rejected", "refused"),
        (third["request_id"], "withdrawn", "not_made"),
    ]
    assert [one["note"] for one in listed[1]["answers"]] == ["not today"]
    shown = project.run("approvals", "list", "--ended", "--last", "2").stdout
    assert request["request_id"][:8] not in shown
    assert re.search(rf"{second['request_id'][:8]} .* rejected +assistant .* merge\n", shown)
    assert "was withdrawn, and its call was not made again" in shown
    (end,) = [one for one in project.lines("audit", "list") if one["kind"] == "request_end"]
    assert end["reason"] == f"the request {third['request_id']} was withdrawn"
    entry = project.run("audit", "show", str(end["index"]))
    assert "withdrawn, and its call was not made again" in entry.stdout, entry.stderr
    assert project.run("audit", "verify").returncode == 0


def test_nobody_is_asked_for_the_passphrase_of_a_key_that_has_none(project, bob):
    project.python("-c", MERGE)
    (request,) = requests(project)
    bob.key.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
    )
    answer = ("approvals", "approve", request["request_id"], "--key", str(bob.key), "--yes")
    refused = bob.run(*answer, AGENTGUARD_APPROVER_PASSPHRASE="")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error [key.unencrypted]: "), refused.stderr


def test_the_answer_is_canonical_json(project, bob, tmp_path):
    project.python("-c", MERGE)
    (request,) = requests(project)
    file = tmp_path / "answer.json"
    key = ("--key", str(bob.key), "--yes", "-o", str(file))
    said = bob.run("approvals", "approve", request["request_id"], *key)
    assert said.returncode == 0, said.stderr
    canonical.loads_canonical(file.read_bytes().rstrip(b"\n"))
