"""Any JSON in any member of any request: the server answers, and a good client goes on.

The examples also take names that the session has, so that they come past the first checks.
"""

from __future__ import annotations

import random
import time
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds import FULL
from served_intruder import (
    CALL,
    DESK,
    MALLORY,
    VICTIM,
    Intruder,
    acting_as,
    described,
    new_id,
)

from agentguard.approvals.answer import seal_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.server.requests import OPERATIONS

ENDINGS = ("SUSPENDED", "HANDED_ON", "CUT_SHORT", "FAILED", "UNFINISHED", "DONE", "AWAITING")
MEMBERS = (
    *sorted(set(CALL) - {"op"}),
    "agent", "tool", "request_id", "name", "key", "request", "answer", "id", "subject",
    "scope", "via", "expires_in", "max_depth", "max_calls", "audience", "error",
    "types", "type", "failure", "interrupts", "ending", "has_journal", "not_run", "verdict",
    "principal", "note", "only_checks", "now", "after", "add", "may_be_revoked",
    "traceparent", "released", "protocol", "session", "uid", "vouches_for",
)  # fmt: skip

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
odd = st.sampled_from(
    ["", "\0", "x" * 5000, "../..", "__class__", "0" * 32, "f" * 64, 0, -1, 2**63 - 1, -0.0, 1e308]
)
leaves = st.none() | st.booleans() | numbers | texts | odd
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


class Known(str):
    """The name of something that the session has; the test puts the thing in its place."""

    __slots__ = ()


KNOWN = (
    "agent", "tool", "running", "looking", "waiting", "denied", "lent", "named", "pending", "key",
    "answer", "described", "decision", "invocation", "chain", "subject",
)  # fmt: skip

USUAL: dict[str, tuple[Any, ...]] = {
    "agent": (Known("agent"),),
    "tool": (Known("tool"), Known("described")),
    "request_id": tuple(map(Known, ("running", "looking", "waiting", "denied"))),
    "delegation": (Known("named"), None),
    "inside": (Known("invocation"), None),
    "refusal": (Known("decision"), None),
    "not_run": (Known("decision"), None),
    "ending": ENDINGS,
    "type": ("builtins.str", "list"),
    "request": (Known("pending"),),
    "key": (Known("key"), None),
    "answer": (Known("answer"),),
    "id": (Known("lent"),),
    "subject": (Known("subject"),),
    "name": ("mole", "TOKEN", "run"),
    "verdict": ("approve", "reject"),
    "principal": ("user:bob",),
    "types": ({}, {"balance": "Decimal"}),
    "site": (["c", "t", "n", "0"], None),
    "error": (None,),
    "scope": (["read"], None),
}
"""Values that are well formed, by the member."""


requests = st.tuples(
    st.sampled_from(sorted(OPERATIONS)),
    st.integers(0, 2**32),
    st.dictionaries(st.sampled_from(MEMBERS), anything, max_size=3),
    st.lists(
        st.sampled_from([b"{}", b'{"text":"x"}', b'{"balance":200}', b"", b"[]", Known("chain")])
        | st.binary(max_size=50),
        max_size=3,
    ),
)
"""An operation, the choice of the members that are well formed, the others, and the blobs."""


def header_of(choice: int, others: dict[str, Any], things: dict[str, Any]) -> dict[str, Any]:
    chance = random.Random(choice)  # noqa: S311  no secret
    usual = {name: chance.choice(values) for name, values in USUAL.items()}
    given = {**CALL, **usual, **others}
    return {name: filled(value, things) for name, value in given.items() if name != "op"}


@pytest.fixture
def session(place):
    """Make the sessions of hostile clients, each with agents, calls and a delegation at hand."""
    made: list[Intruder] = []

    def session(uid: int) -> tuple[Intruder, dict[str, Any]]:
        client = Intruder(place, uid)
        made.append(client)
        return client, things_of(client, "mole" if uid == MALLORY else "clerk")

    yield session
    for client in made:
        client.close()


@pytest.fixture
def good(victim):
    """The names of an agent and a tool of another client."""
    return victim.agent("clerk"), victim.tool("note")


def things_of(client: Intruder, agent_name: str) -> dict[str, Any]:
    """Return what the session has, by the names of ``KNOWN``."""
    agent, tool = client.agent(agent_name), client.tool("note")
    subject = "user:mallory" if client.uid == MALLORY else "user:alice"
    lent = client.got(
        "delegate", subject=subject, scope=["read"], via=None, task_id=None, expires_in=3600,
        max_depth=4, max_calls=None, audience=None,
    )  # fmt: skip
    ids = {name: new_id() for name in ("running", "looking", "waiting", "denied")}
    running = client.call(agent, tool, request_id=ids["running"]).header
    looks = client.tool("balance", has_facts=True)
    client.call(agent, looks, {"account": "a"}, request_id=ids["looking"])
    asks = client.call(agent, client.tool("pay"), request_id=ids["waiting"])
    assert asks.blobs, asks.header
    client.call(agent, client.tool("drop"), request_id=ids["denied"])
    request = ApprovalRequest.loads(asks.blobs[0])
    answer = seal_answer(
        request, "approve", approver="user:bob", approval_id=new_id(), at=int(time.time())
    )
    return {
        **ids,
        "agent": agent,
        "tool": tool,
        "lent": lent.header["id"],
        "named": {"id": lent.header["id"], "scope": ["read"]},
        "chain": lent.blobs[0],
        "pending": asks.blobs[0].decode(),
        "key": client.got("approvals.pending").header["keys"][0],
        "answer": answer.as_json(),
        "described": described("other"),
        "decision": {"outcome": "deny", "code": "x", "reasons": [], "requirements": [],
                     "redactions": []},
        "invocation": running["invocation_id"],
        "subject": subject,
    }  # fmt: skip


def filled(value: Any, things: dict[str, Any]) -> Any:
    return things[value] if isinstance(value, Known) else value


@settings(
    max_examples=200 if FULL else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(asked=st.lists(requests, min_size=1, max_size=20))
@pytest.mark.parametrize("uid", [MALLORY, VICTIM, DESK], ids=["mallory", "victim", "desk"])
def test_any_request_has_an_answer(place, session, victim, good, uid, asked):
    client, things = session(VICTIM if uid == DESK else uid)
    if uid == DESK:
        client.close()
        client = Intruder(place, DESK)
    for op, choice, others, blobs in asked:
        header = header_of(choice, others, things)
        answer = client.ask(op, *(filled(blob, things) for blob in blobs), **header).header
        assert answer.get("error", {}).get("code") != "server.failed", answer
    client.ask("end")
    client.close()
    request_id = new_id()
    assert victim.call(*good, {}, request_id=request_id).header["step"] == "run"
    victim.got("withdraw", request_id=request_id)


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_a_request_without_members_has_an_answer(mallory, op):
    for blobs in ((), (b"",), (b"{}",), (b"{}", b""), (b"x",) * 16):
        for value in (None, 0, "", [], {}, True, "x", [None], {"": None}):
            members = dict.fromkeys(set(MEMBERS) - {"op"}, value)
            assert (
                mallory.ask(op, *blobs, **members).header.get("error", {}).get("code")
                != "server.failed"
            )
    assert mallory.agent("mole")


@pytest.mark.parametrize("value", [b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900])
def test_deep_values_have_an_answer(mallory, value):
    names = mallory.agent("mole"), mallory.tool("note")
    for op in sorted(OPERATIONS):
        for member in sorted(MEMBERS):
            usual: dict[str, Any] = {**CALL, "agent": names[0], "tool": names[1]}
            usual |= {"request_id": new_id(), "name": "mole", "op": op}
            usual.pop(member, None)
            header = orjson.dumps(usual)[:-1] + b',"%s":%s}' % (member.encode(), value)
            frame = (4 + len(header)).to_bytes(4, "big") + len(header).to_bytes(4, "big") + header
            with acting_as(MALLORY):
                mallory.socket.sendall(frame)
            answer = mallory.stream.read().header
            assert answer.get("error", {}).get("code") != "server.failed", (op, member)
    tool = b'{"op":"tool","tool":%s}' % orjson.dumps(described("deep")).replace(
        b'"schema":{}', b'"schema":{"a":%s}' % value
    )
    with acting_as(MALLORY):
        mallory.socket.sendall(
            (4 + len(tool)).to_bytes(4, "big") + len(tool).to_bytes(4, "big") + tool
        )
    assert mallory.stream.read().header["error"]["code"] != "server.failed"
