"""Calls that people were asked about, as the command line tells and proves them.

``audit``, ``evidence verify`` and the independent verifier tell the same of each: one that two have
approved, one that was rejected, one for which the application vouches, one whose result was handed
out again, and one that waits. What is signed, hashed or committed to can be changed nowhere.
"""

from __future__ import annotations

import json
import os
import runpy
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit.evidence import verify_evidence
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.keys import Ed25519Signer

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"

INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

POLICY = """package agent.authz
default allow = false
allow if input.action == "pay"
approval := {
    "reason": "merges need two release managers",
    "roles": ["release-manager"], "quorum": 2,
} if input.action == "merge"
approval := {"reason": "somebody looks at it"} if input.action == "deploy"
"""
CALLS = r"""
import sys
from agentguard import ApprovalPending, Denied, Guard, adapters
from agentguard.adapters import Arguments, CallSite, Invocation, CallOptions
from agentguard.errors import EncodeError
from agentguard.signing.keys import Ed25519Signer

bob, carol = (Ed25519Signer.from_seed(bytes.fromhex(seed)) for seed in sys.argv[1:])

class Codec:
    def dumps(self, result): return result.encode()
    def loads(self, data): return data.decode()

with Guard.open("agentguard.toml") as guard:
    agent, desk = guard.new_agent("coder"), guard.approvals

    @guard.tool
    def merge(branch: str) -> str:
        return "merged " + branch

    @guard.tool
    def deploy(what: str) -> None: ...

    @guard.tool
    def pay(amount: int) -> None: ...

    def asked(tool, argument):
        try:
            agent.call(tool, argument)
        except ApprovalPending as pending:
            return pending.request

    with guard.delegate("user:alice", scope=["x"]):
        request = asked(merge, "main")
        desk.approve(request, bob, note="the tests pass")
        desk.approve(request, carol)
        assert agent.call(merge, "main") == "merged main"
        desk.reject(asked(merge, "release"), bob, note="not on a Friday")
        try:
            agent.call(merge, "release")
        except Denied as denied:
            assert denied.code == "approval.rejected"
        desk.vouch(asked(deploy, "site"), "approve", principal="user:dora")
        agent.call(deploy, "site")
        site = CallSite("c1", thread="t1", turn="m1")
        bound = Invocation.bind(pay.spec, lambda: Arguments.of({"amount": 5}), site)
        for _ in range(2):
            assert adapters.run(agent, bound, lambda: "paid", CallOptions(Codec())) == "paid"
        assert asked(merge, "later") is not None
"""
CALLED = ("merge main", "merge release", "deploy", "pay", "pay again")


@pytest.fixture(scope="module")
def people(tmp_path_factory, told):
    """A project with two release managers, and with calls that they were asked about."""
    made = told.copy(tmp_path_factory.mktemp("people") / "place")
    (made.folder / "policies" / "authz.rego").write_text(POLICY)
    seeds = {name: os.urandom(32) for name in ("bob", "carol")}
    with (made.folder / "agentguard.toml").open("a") as file:
        file.write('\n[agents.coder]\ntype = "assistant"\nowner = "user:olga"\n')
        file.write("[approvals]\napplication = true\n")
        for name, seed in seeds.items():
            line = Ed25519Signer.from_seed(seed).public_key.openssh()
            file.write(f'[approvers.{name}]\nprincipal = "user:{name}"\nkeys = ["{line}"]\n')
            file.write('roles = ["release-manager"]\n')
    called = made.python("-c", CALLS, *(seed.hex() for seed in seeds.values()))
    assert called.returncode == 0, called.stderr
    return made


@pytest.fixture(scope="module")
def calls(people) -> dict[str, str]:
    """The ids of the calls, by name."""
    rows = [row for row in people.lines("audit", "list", "-n", "1000") if mine(row)]
    ids = [row["invocation_id"] for row in rows if row["kind"] == "call"]
    return dict(zip(CALLED, ids, strict=True))


@pytest.fixture(scope="module")
def proofs(people, calls, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("proofs")
    assert people.run("trust", "export", "-o", folder / "trust").returncode == 0
    files = {name: folder / name.replace(" ", "-") for name in calls}
    for name, file in files.items():
        assert people.run("evidence", "make", calls[name], "-o", file).returncode == 0
    return {**files, "trust": folder / "trust"}


def mine(row: dict[str, Any]) -> bool:
    return "/agent/coder/" in str(row["agent"]) and row["principal"] == "user:alice"


# --- what is told ---------------------------------------------------------------------------------


def test_the_log_holds(people):
    verified = people.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout


def test_the_tree_tells_that_a_result_was_handed_out(people, calls):
    tree = people.run("trace", calls["pay"]).stdout.replace("| ", "")
    again = f"it did not run again: the result of the call {calls['pay']} was handed out"
    assert " ".join(tree.split()).count(again) == 1
    assert "this checks the signatures of the run's first call" in tree


def test_the_list_tells_who_was_asked_and_who_has_answered(people, calls):
    rows = [row for row in people.lines("audit", "list", "-n", "1000") if mine(row)]
    told = [
        (row["kind"], row["tool"], row["decision"], row["outcome"], row["reason"])
        for row in rows
        if row["kind"] in ("request", "call")
    ]
    two = "merges need two release managers"
    again = f"it did not run again: the result of the call {calls['pay']} was handed out"
    assert told == [
        ("request", "merge", "approval", None, two),
        ("call", "merge", "allow", "ok", "approved by user:bob, approved by user:carol"),
        ("request", "merge", "approval", None, two),
        (
            "call",
            "merge",
            "deny",
            None,
            "user:bob has rejected this call: not on a Friday",
        ),
        ("request", "deploy", "approval", None, "somebody looks at it"),
        ("call", "deploy", "allow", "ok", "approved by user:dora"),
        ("call", "pay", "allow", "ok", None),
        ("call", "pay", "allow", None, again),
        ("request", "merge", "approval", None, two),
    ]
    tail = people.run("audit", "tail", "-n", "12", "--no-follow")
    for words in (two, "approved by user:bob, approved by user:carol", again):
        assert words in tail.stdout, words


SHOWN = {
    "merge main": [
        "asked for 2 people in a role of release-manager (merges need two release managers)",
        "approved by user:bob, bob of the roster (release-manager), signed with",
        ": the tests pass",
        "approved by user:carol, carol of the roster",
        "for user:alice",
    ],
    "merge release": [
        "decision deny [approval.rejected]",
        "reason user:bob has rejected this call: not on a Friday",
        "rejected by user:bob, bob of the roster",
        "outcome the tool did not run",
    ],
    "deploy": ["approved by user:dora, by the application's word, unsigned"],
    "pay again": ["outcome it did not run again: the result of the call"],
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_call_is_told_in_words(people, calls, proofs, name):
    story = people.run("audit", "show", calls[name])
    command = ["evidence", "verify", proofs[name], "--trust", proofs["trust"]]
    proved = people.run(*command)
    assert (story.returncode, proved.returncode) == (0, 0), proved.stderr
    for shown in (story.stdout, proved.stdout):
        text = " ".join(shown.replace("| ", "").split())
        for words in SHOWN[name]:
            assert words in text, words


@pytest.mark.parametrize("name", ["merge main", "merge release", "deploy"])
def test_a_call_names_the_request_for_its_approval(people, calls, name):
    request = people.json("audit", "show", calls[name])["request"]
    place = str(request["index"])
    text = " ".join(people.run("audit", "show", calls[name]).stdout.replace("| ", "").split())
    assert (
        f"request {request['request_id']} (entry {place}) to see it agentguard audit show" in text
    )
    shown = people.json("audit", "show", place)
    assert (shown["kind"], shown["request_id"]) == ("request", request["request_id"])
    answers = people.json("audit", "show", calls[name])["approvals"]
    assert {answer["request_id"] for answer in answers} == {request["request_id"]}


@pytest.mark.parametrize("name", ["pay", "pay again"])
def test_a_call_without_a_request_names_none(people, calls, name):
    assert people.json("audit", "show", calls[name])["request"] is None
    assert "to see it" not in people.run("audit", "show", calls[name]).stdout


def test_a_request_is_told_in_words(people):
    rows = people.lines("audit", "list", "--kind", "request")
    (row,) = [row for row in rows if mine(row)][-1:]
    for asked in (("--decision", "approval"), ("--kind", "request", "--tool", "merge")):
        found = people.lines("audit", "list", *asked)
        assert {one["kind"] for one in found} == {"request"}
        assert found[-1] == row
    place = str(row["index"])
    text = " ".join(people.run("audit", "show", place).stdout.replace("| ", "").split())
    for words in (
        "kind request",
        "agent agent:coder:",
        "for user:alice",
        "tool merge",
        "asked for 2 people in a role of release-manager (merges need two release managers)",
        "UTC call digest",
        "arguments not in the log: stored with the request while the request waits",
    ):
        assert words in text, words
    (waiting,) = people.lines("approvals", "list")
    assert waiting["request_id"] in text
    assert people.json("audit", "show", place)["request_id"] == waiting["request_id"]


def test_the_export_has_all_of_it(people, calls):
    exported = people.run("audit", "export", "-o", "-")
    lines = [json.loads(line)["entry"] for line in exported.stdout.splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("request") == 4
    assert sum(len(line.get("approvals", ())) for line in lines) == 4
    said = [
        json.loads(b64decode(line["statement"]["payload"]))["predicate"]
        for line in lines
        if line["kind"] == "outcome"
    ]
    replays = [one["replay_of"] for one in said if "replay_of" in one]
    assert replays == [calls["pay"]]
    assert "later" not in exported.stdout  # what waits has its arguments with the request alone


def test_all_who_tell_it_tell_the_same(people, calls, proofs):
    trust = proofs["trust"].read_bytes()
    told = {}
    for name, invocation_id in calls.items():
        command = ["evidence", "verify", proofs[name], "--trust", proofs["trust"]]
        proved = people.json(*command)
        story = people.json("audit", "show", invocation_id)
        independent = INDEPENDENT(proofs[name].read_bytes(), trust)
        answers = [f"{one['verdict']} by {one['approver']}" for one in proved["approvals"]]
        assert independent["approvals"] == answers
        for member in ("approvals", "requirements", "decision", "code", "reasons", "principal"):
            assert story[member] == proved[member], member
        assert story["outcome"] is None or story["outcome"].pop("index") is not None
        assert story["outcome"] == proved["outcome"]
        outcome = independent["outcome"] or {}
        assert outcome.get("status") == (proved["outcome"] or {}).get("status")
        assert outcome.get("replay_of") == (proved["outcome"] or {}).get("replay_of")
        told[name] = (proved["decision"], answers, outcome.get("replay_of"))
    assert told == {
        "merge main": ("allow", ["approve by user:bob", "approve by user:carol"], None),
        "merge release": ("deny", ["reject by user:bob"], None),
        "deploy": ("allow", ["approve by user:dora"], None),
        "pay": ("allow", [], None),
        "pay again": ("allow", [], calls["pay"]),
    }
    approved = people.json("audit", "show", calls["merge main"])
    assert [one["quorum"] for one in approved["requirements"]] == [2]
    assert [one["roles"] for one in approved["approvals"]] == [["release-manager"]] * 2
    vouched = people.json("audit", "show", calls["deploy"])["approvals"]
    assert [(one["method"], one["key"]) for one in vouched] == [("application", None)]


# --- what is changed ------------------------------------------------------------------------------


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, name)
        if isinstance(item, dict | list):
            yield from paths(item, (*path, name))


def changes(value: Any) -> Iterator[Any]:
    """Copies of a value, each with one member changed, or left out."""
    for path in paths(value):
        for how in (changed, left_out):
            copy = inner = json.loads(json.dumps(value))
            for name in path[:-1]:
                inner = inner[name]
            how(inner, path[-1])
            yield copy


def changed(inner: Any, name: Any) -> None:
    match inner[name]:
        case bool() as flag:
            inner[name] = not flag
        case int() as number:
            inner[name] = number + 1
        case str() as text:
            inner[name] = text[:-1] + ("0" if text[-1:] != "0" else "1")
        case None:
            inner[name] = "0"
        case list() as listed:
            listed.append("0")
        case dict() as members:
            members["0"] = "0"


def left_out(inner: Any, name: Any) -> None:
    del inner[name]


def spoilt(file: Any, kind: str) -> Iterator[Any]:
    """The file, with its entry of a kind changed in one member, of what is signed as well."""
    (number,) = [i for i, e in enumerate(file["entries"]) if json.loads(e["entry"])["kind"] == kind]
    entry = json.loads(file["entries"][number]["entry"])
    mutants = list(changes(entry))
    sealed = entry.get("approvals") or [entry.get("statement") or entry["invocation"]]
    for at, one in enumerate(sealed):
        for statement in changes(json.loads(b64decode(one["payload"]))):
            payload = b64encode(canonical.dumps(statement)).decode()
            copy = json.loads(json.dumps(entry))
            if entry.get("approvals"):
                copy["approvals"][at]["payload"] = payload
            else:
                copy["statement" if "statement" in entry else "invocation"]["payload"] = payload
            mutants.append(copy)
    for mutant in mutants:
        copy = json.loads(json.dumps(file))
        copy["entries"][number]["entry"] = canonical.dumps(mutant).decode()
        yield copy


def both(data: bytes, trust: bytes) -> tuple[bool, bool]:
    """Whether agentguard refuses a file, and whether the independent verifier does."""
    refused = [False, False]
    try:
        verify_evidence(data, TrustDocument.loads(trust))
    except (DecodeError, VerificationError):
        refused[0] = True
    try:
        INDEPENDENT(data, trust)
    except Exception:  # noqa: BLE001  as its last lines do
        refused[1] = True
    return refused[0], refused[1]


@pytest.mark.parametrize("name", ["merge main", "merge release", "deploy", "pay again"])
def test_each_member_that_is_changed_refuses_it_in_both(proofs, name):
    data, trust = proofs[name].read_bytes(), proofs["trust"].read_bytes()
    assert both(data, trust) == (False, False)
    file = json.loads(data)
    assert both(canonical.dumps(file) + b"\n", trust) == (False, False)
    kinds = {json.loads(held["entry"])["kind"] for held in file["entries"]}
    count = 0
    for kind in ("call", "roster", "outcome"):
        for mutant in spoilt(file, kind) if kind in kinds else ():
            assert both(canonical.dumps(mutant) + b"\n", trust) == (True, True), mutant
            count += 1
    assert count > 100


MERGES = [
    pytest.param(name, marks=pytest.mark.slow("hundreds of files, each verified four times"))
    for name in ("merge main", "merge release")
]


@pytest.mark.parametrize("name", [*MERGES, "deploy"])
def test_each_byte_of_who_has_answered_counts(proofs, name):
    """Bytes all over the call's entry and of the roster, with one bit of it turned."""
    data, trust = proofs[name].read_bytes(), proofs["trust"].read_bytes()
    file = json.loads(data)
    for number, held in enumerate(file["entries"]):
        text = held["entry"]
        if json.loads(text)["kind"] not in ("call", "roster"):
            continue
        for place in range(number, len(text), 17):
            turned = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
            file["entries"][number] = {**held, "entry": turned}
            assert both(json.dumps(file).encode(), trust)[1], place
            assert both(canonical.dumps(file) + b"\n", trust) == (True, True), place
        file["entries"][number] = held


def test_what_one_call_rests_on_is_nothing_to_another(proofs):
    trust = proofs["trust"].read_bytes()
    files = {name: json.loads(proofs[name].read_bytes()) for name in CALLED}
    for name, file in files.items():
        for other in files.values():
            if other is file:
                continue
            mixed = {**file, "entries": other["entries"]}
            assert both(canonical.dumps(mixed) + b"\n", trust) == (True, True), name
    approved = files["merge main"]
    roster = [e for e in approved["entries"] if json.loads(e["entry"])["kind"] != "roster"]
    assert len(roster) == len(approved["entries"]) - 1
    assert both(canonical.dumps({**approved, "entries": roster}) + b"\n", trust) == (True, True)
