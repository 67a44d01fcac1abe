"""A request of each operation of the guard server that works."""

from __future__ import annotations

import time
from typing import Any

from served_intruder import CALL, CAROL, Intruder, described, new_id

from agentguard.approvals.answer import seal_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.proof.receipt import Answer, mint
from agentguard.signing import canonical
from agentguard.signing.canonical import sha256_hex

URL = "https://payments.example"
BEGINS = ("authorize", "evaluation", "evaluate")

Asked = tuple[dict[str, Any], tuple[bytes, ...]]
"""The members and the blobs of a request."""


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
