"""A client that a reload has removed, on a connection that it keeps open: it may end its calls.

The operations come from the server's own table, so that a new one is asked as well.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from served_intruder import CALL, CAROL, CLIENTS, Intruder, described, new_id, require_root
from served_place import Place, founded_place

from agentguard.approvals.answer import seal_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.proof.receipt import Answer, mint
from agentguard.server.requests import OPERATIONS
from agentguard.signing import canonical
from agentguard.signing.canonical import sha256_hex

EVERYTHING = 64_010
URL = "https://payments.example"
TABLE = f"""
[clients.everything]
uid = {EVERYTHING}
agents = ["clerk", "helper"]
vouches_for = ["user:alice"]
answers = true
"""
NARROWED = TABLE.replace('["clerk", "helper"]', '["helper"]')
STAYS = {"span", "facts", "outcome", "withdraw"}
IN_RUNS = ("secret", "proof", "call_proof", "receipt")
BEGINS = ("authorize", "evaluation", "evaluate")

Asked = tuple[dict[str, Any], tuple[bytes, ...]]
"""The members and the blobs of a request."""


@pytest.fixture
def place(programs):
    require_root()
    with founded_place(programs, CLIENTS + TABLE) as place:
        place.folder.chmod(0o755)
        place.start()
        yield place


@pytest.fixture
def client(place):
    client = Intruder(place, EVERYTHING)
    yield client
    client.close()


def load(place: Place, table: str) -> None:
    """Have the server go by a configuration whose table of the client is ``table``."""
    path = place.folder / "agentguard.toml"
    path.write_text(path.read_text("utf-8").partition("\n[clients.everything]")[0] + table, "utf-8")
    with place.connect() as guard:
        guard._parts._link.request({"op": "reload"})  # type: ignore[attr-defined]


def waiting(client: Intruder, agent: str, cents: int) -> ApprovalRequest:
    """Make a call that waits for an approval; return its request."""
    answer = client.call(agent, client.tool("pay"), {"cents": cents})
    return ApprovalRequest.loads(answer.blobs[0])


def good_requests(client: Intruder) -> dict[str, Asked]:
    """Return a request of each operation that works; what the request names is made here."""
    agent, note = client.agent("clerk"), client.tool("note")
    looks = client.tool("balance", has_facts=True)
    terms = {"subject": "user:alice", "scope": ["read"], "expires_in": 3600, "max_depth": 4}
    terms |= {"audience": [URL], "via": None, "task_id": None, "max_calls": None}
    lent = client.got("delegate", **terms)
    named = {"id": lent.header["id"], "scope": ["read"]}
    kept, ends, withdrawn, looking, traced = (new_id() for _ in range(5))
    for one in (kept, ends, withdrawn):
        assert client.call(agent, note, request_id=one, delegation=named).header["step"] == "run"
    looked = client.call(agent, looks, {"account": "a"}, request_id=looking)
    begun = client.call(agent, note, request_id=traced, is_traced=True)
    assert (looked.header["step"], begun.header["step"]) == ("look_up", "begin")
    about = {"request_id": kept, "method": "POST"}
    http = {**about, "url": f"{URL}/pay", "body_sha256": "0" * 64}
    proof_sha256 = sha256_hex(client.got("proof", **http).header["proof"].encode())
    receipt = {"proof_sha256": proof_sha256, "key_id": CAROL.public_key.thumbprint}
    signed = Answer.of(proof_sha256, 200, [], b"")
    receipt["receipt"] = mint(signed, CAROL, server=URL, at=1)
    answered, vouched, taken_back = (waiting(client, agent, cents) for cents in (1, 2, 3))
    given: dict[str, Any] = {
        "approver": "user:carol",
        "approval_id": new_id(),
        "at": int(time.time()),
    }
    answer = seal_answer(answered, "approve", signer=CAROL, **given).as_json()
    key = client.got("approvals.pending").header["keys"][0]
    word = {"verdict": "approve", "principal": "user:bob", "note": ""}
    vouches, withdraws = ({"request": one.dumps().decode()} for one in (vouched, taken_back))
    client.got("runs.write", b"x", name="run")
    call = {name: value for name, value in CALL.items() if name != "op"}
    call |= {"agent": agent, "tool": note}
    return {
        **{op: ({**call, "request_id": new_id()}, (b"{}",)) for op in BEGINS},
        "span": ({"request_id": traced, "traceparent": None}, ()),
        "facts": ({"request_id": looking, "types": {}}, (b'{"balance":200}',)),
        "outcome": ({"request_id": ends, "ending": "DONE", "type": "builtins.str"}, (b'"x"', b"")),
        "withdraw": ({"request_id": withdrawn}, ()),
        "secret": ({"request_id": kept, "name": "TOKEN"}, ()),
        "proof": (http, ()),
        "call_proof": ({**about, "audience": URL, "params_sha256": "0" * 64}, ()),
        "receipt": ({"request_id": kept, **receipt}, ()),
        "agent": ({"name": "clerk"}, ()),
        "instance": ({"name": "clerk"}, ()),
        "tool": ({"tool": described("other")}, ()),
        "check_names": ({}, ()),
        "accept_tool": ({"agent": "clerk", "tool": "note"}, ()),
        "delegate": (terms, ()),
        "resume": (
            {},
            (canonical.dumps({"type": CHAIN_TYPE, **canonical.loads_object(lent.blobs[0])}),),
        ),
        "chain": ({"id": lent.header["id"]}, ()),
        "access_token": ({"agent": agent, "delegation": named}, ()),
        "approvals.pending": ({}, ()),
        "approvals.read": ({"key": key}, ()),
        "approvals.altered": ({"now": 1}, ()),
        "approvals.refusal": (vouches, ()),
        "approvals.answer": ({"request": answered.dumps().decode(), "answer": answer}, ()),
        "approvals.vouch": ({**vouches, **word}, ()),
        "approvals.withdraw": (withdraws, ()),
        "approvals.history": ({"request_id": vouched.request_id}, ()),
        "approvals.ended": ({"most": 5}, ()),
        "runs.read": ({"name": "run"}, ()),
        "runs.write": ({"name": "run"}, (b"y",)),
        "runs.remove": ({"name": "run"}, ()),
        "flush": ({}, ()),
    }


def codes(client: Intruder, asked: dict[str, Asked]) -> dict[str, str | None]:
    """Send the requests; return the reason code of each, None for one that works."""
    assert asked.keys() == OPERATIONS.keys()
    return {op: client.code(op, *blobs, **members) for op, (members, blobs) in asked.items()}


def test_a_removed_client_ends_its_calls_and_every_other_operation_is_refused(place, client):
    asked = good_requests(client)
    load(place, "")
    said = codes(client, asked)
    assert {op for op, code in said.items() if code is None} == STAYS
    assert {code for op, code in said.items() if op not in STAYS} == {"server.stranger"}
    others: tuple[Any, ...] = ("status", "reload", "launch", "__class__", None, 5, [])
    for op in others:
        assert client.code(op) == "server.stranger"
    assert client.code("end") is None
    assert "failed in the server" not in place.said()


def test_a_client_that_a_reload_leaves_in_place_has_every_operation(place, client):
    load(place, TABLE + "sees_requests = true")
    said = codes(client, good_requests(client))
    assert said.pop("accept_tool") == "server.remote"  # for the server's own user alone
    assert set(said.values()) == {None}, said


def test_a_running_call_has_no_secret_and_no_proof_of_an_agent_that_was_taken_away(place, client):
    asked = good_requests(client)
    load(place, NARROWED)
    said = {op: client.code(op, *asked[op][1], **asked[op][0]) for op in (*IN_RUNS, *STAYS)}
    assert said == dict.fromkeys(IN_RUNS, "agent.refused") | dict.fromkeys(STAYS)
    load(place, TABLE)  # the twin
    assert {client.code(op, *asked[op][1], **asked[op][0]) for op in IN_RUNS} == {None}
