"""What a client names: agents, tools, delegations, calls; and what it says of its own calls."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from served_intruder import CALL, VICTIM, described, new_id

from agentguard.call import vocabulary
from agentguard.call.vocabulary import RESERVED
from agentguard.delegation import verification
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical

NOTE = canonical.dumps({"text": "x"})
REQUEST = {"method": "POST", "url": "https://x.example/", "body_sha256": "0" * 64}
ENDED = {"ending": "DONE", "type": "builtins.str", "has_journal": False}


def ready(client, agent):
    """Return the names of an instance and of a tool in the client's session."""
    return client.agent(agent), client.tool("note")


def run(client, names, **members):
    """Return the request's id and the answer of an authorized call."""
    request_id = new_id()
    answer = client.call(*names, NOTE, request_id=request_id, **members).header
    assert answer["step"] == "run", answer
    return request_id, answer


def refused(answer):
    """Return the reason code of a call that was denied, or of an error."""
    header = answer.header
    if header.get("step") == "denied":
        return header["decision"]["code"]
    return header["error"]["code"] if "error" in header else None


def agent_of(call):
    """Return the name of the agent of a call in the log."""
    return call.agent.split("/")[-2]


# --- agents ---------------------------------------------------------------------------------------


def test_a_client_is_no_agent_of_another_client(mallory, victim):
    for op in ("instance", "agent"):
        for name in ("clerk", "helper", "MOLE", "mole ", "mo*", "*", "", "mole\0"):
            assert mallory.code(op, name=name) in {"agent.refused", "agent.unknown"}
        assert mallory.code(op, name="mole") is None
        assert victim.code(op, name="clerk") is None


def test_names_of_another_session_name_nothing(mallory, victim, place):
    agent, tool = ready(victim, "clerk")
    own_agent, own_tool = ready(mallory, "mole")
    assert refused(mallory.call(agent, own_tool, NOTE)) == "server.unknown"
    assert refused(mallory.call(own_agent, tool, NOTE)) == "server.unknown"
    bad: Any
    for bad in (None, 0, [], {}, "", "0" * 16, agent.upper()):
        assert refused(mallory.call(bad, own_tool, NOTE)) == "server.unknown"
    assert refused(mallory.call(own_agent, own_tool, NOTE)) is None
    assert [agent_of(call) for call in place.calls()] == ["mole"]


def test_another_session_of_the_same_user_names_nothing_either(intrude, victim):
    other = intrude(VICTIM)
    agent, tool = ready(victim, "clerk")
    assert refused(other.call(agent, tool, NOTE)) == "server.unknown"
    assert refused(victim.call(agent, tool, NOTE)) is None


def test_an_instance_of_another_session_is_not_released(mallory, victim):
    names = ready(victim, "clerk")
    mallory.code("flush", released=[names[0]])
    assert refused(victim.call(*names, NOTE)) is None
    victim.code("flush", released=[names[0]])  # the twin
    assert refused(victim.call(*names, NOTE)) == "server.unknown"


# --- calls ----------------------------------------------------------------------------------------


def test_an_outcome_of_another_sessions_call_is_refused(mallory, victim, place):
    request_id, _answer = run(victim, ready(victim, "clerk"))
    for op, members in (
        ("outcome", ENDED),
        ("withdraw", {}),
        ("facts", {"types": {}}),
    ):
        blobs = (b'"ok"', b"") if op == "outcome" else ()
        assert mallory.code(op, *blobs, request_id=request_id, **members) == "server.unknown"
    assert mallory.code("secret", request_id=request_id, name="TOKEN") == "server.unknown"
    assert mallory.code("proof", request_id=request_id, **REQUEST) == "server.unknown"
    assert victim.code("flush") is None
    assert place.outcomes() == []
    assert victim.code("outcome", b'"ok"', b"", request_id=request_id, **ENDED) is None
    assert victim.code("flush") is None
    assert [one.status for one in place.outcomes()] == ["ok"]


def test_an_outcome_counts_once(victim, place):
    request_id, _answer = run(victim, ready(victim, "clerk"))
    failed = {"ending": "FAILED", "type": "builtins.ValueError"}
    answers = [
        victim.ask("outcome", b'"ok"', b"", request_id=request_id, **ENDED),
        victim.ask("outcome", request_id=request_id, **failed),
        victim.ask("outcome", b'"no"', b"", request_id=request_id, **ENDED),
        victim.ask("withdraw", request_id=request_id),
    ]
    assert {answer.header.get("step") for answer in answers} <= {"ended"}
    victim.code("flush")
    assert [one.status for one in place.outcomes()] == ["ok"]
    assert place.verify().ok


@pytest.mark.parametrize(
    "members",
    [
        {"ending": "REPLAYED"},
        {"ending": "ABANDONED"},
        {"ending": "NOT_RUN"},
        {"ending": "OVERTAKEN"},
        {"ending": "REFUSED"},
        {"ending": "done"},
        {"ending": "__class__"},
        {"ending": None},
        {"type": ""},
        {"type": "x\n2026-01-01 forged line of a log"},
        {"type": "x" * 513},
        {"type": None},
        {"not_run": {"outcome": "allow"}},
        {"not_run": "x"},
    ],
)
def test_an_end_that_no_client_may_report_is_refused(victim, place, members):
    request_id, _answer = run(victim, ready(victim, "clerk"))
    forged = {**ENDED, **members}
    assert victim.code("outcome", b'"ok"', b"", request_id=request_id, **forged) == (
        "frame.malformed"
    )
    assert victim.code("outcome", b'"ok"', b"", request_id=request_id, **ENDED) is None
    victim.code("flush")
    assert [one.status for one in place.outcomes()] == ["ok"]


@pytest.mark.parametrize("result", [b"{", b'"\xff"', b'{"a":1,"a":2}', b"[1, 2]", b"1" * 400_000])
def test_a_result_that_is_not_canonical_is_refused(victim, place, result):
    request_id, _answer = run(victim, ready(victim, "clerk"))
    assert victim.code("outcome", result, b"", request_id=request_id, **ENDED) is not None
    assert victim.code("outcome", b"", b"", request_id=request_id, **ENDED) is None
    assert place.verify().ok


def test_a_denied_call_has_no_outcome(victim, place):
    agent, tool = victim.agent("clerk"), victim.tool("drop")
    request_id = new_id()
    assert refused(victim.call(agent, tool, NOTE, request_id=request_id)) == "policy.denied"
    answer = victim.ask("outcome", b'"ok"', b"", request_id=request_id, **ENDED)
    assert answer.header["step"] == "denied"
    assert victim.code("secret", request_id=request_id, name="TOKEN") == "secret.refused"
    assert victim.code("proof", request_id=request_id, **REQUEST) == "proof.refused"
    victim.code("flush")
    assert place.outcomes() == []


def test_a_call_that_does_not_run_yet_has_no_outcome(victim, place):
    agent, tool = victim.agent("clerk"), victim.tool("balance", has_facts=True)
    request_id = new_id()
    answer = victim.call(agent, tool, {"account": "a"}, request_id=request_id)
    assert answer.header["step"] == "look_up"
    early = victim.ask("outcome", b'"ok"', b"", request_id=request_id, **ENDED)
    assert early.header["step"] == "look_up"
    assert victim.code("span", request_id=request_id, traceparent=None) == "frame.malformed"
    found = victim.ask("facts", b'{"balance":200}', request_id=request_id, types={})
    assert found.header["step"] == "run"  # the twin
    assert victim.code("facts", b"{}", request_id=request_id, types={}) == "frame.malformed"
    unread = victim.code("facts", b"no JSON", request_id=request_id, types={})
    assert unread == "frame.malformed"  # and not json.malformed
    assert len(place.calls()) == 1


def test_facts_hide_no_member_of_the_policys_input(victim):
    agent, tool = victim.agent("clerk"), victim.tool("balance", has_facts=True)

    def looked_up(facts):
        request_id = new_id()
        victim.call(agent, tool, {"account": "a"}, request_id=request_id)
        return victim.ask("facts", canonical.dumps(facts), request_id=request_id, types={})

    for name in sorted(RESERVED):
        assert refused(looked_up({name: {"name": "root"}})) == "facts.conflict"
        assert refused(looked_up({f"{name}_": 1})) == "facts.undeclared"
    assert looked_up({"balance": 200}).header["step"] == "run"


@pytest.mark.parametrize("how", ["attribute", "fact"])
def test_a_tool_of_a_client_takes_no_owned_name(victim, how):
    def tool(name):
        if how == "attribute":
            return described("x", attributes={name: "y"})
        return described("x", has_facts=True, gives=[name])

    for name in sorted(RESERVED):
        assert victim.code("tool", tool=tool(name)) == "frame.malformed"
        assert victim.code("tool", tool=tool(f"{name}_")) is None


def test_a_caller_that_a_client_names_is_marked_as_its_word(victim):
    (own,) = (one.members for one in vocabulary.INPUT if one.name == "caller")
    texts = {one.name: [] if one.kind == "texts" else "user:alice" for one in own}
    agent, tool = victim.agent("clerk"), victim.tool("trusted")
    assert victim.call(agent, tool, NOTE).header["step"] == "run"
    answer = victim.call(agent, tool, NOTE, caller=texts)
    assert answer.header["decision"]["reasons"] == ["the client says so itself"]
    for wrong in ("x", {}, {**texts, "more": "x"}, {**texts, "actors": "x"}, {**texts, "agent": 1}):
        assert refused(victim.call(agent, tool, NOTE, caller=wrong)) == "frame.malformed"


# --- one request, one authorization ---------------------------------------------------------------


def test_a_request_that_comes_again_gets_the_same_answer(victim, place):
    names, request_id = ready(victim, "clerk"), new_id()
    first = victim.call(*names, NOTE, request_id=request_id)
    for _ in range(20):
        assert victim.call(*names, NOTE, request_id=request_id) == first
    assert len(place.calls()) == 1


def test_the_same_request_on_many_connections_at_once_is_one_call(intrude, victim, place):
    names = ready(victim, "clerk")
    others = [intrude(VICTIM, session=victim.greeting["session"]) for _ in range(8)]
    for _ in range(30):
        request_id = new_id()
        asked = {**CALL, "request_id": request_id, "agent": names[0], "tool": names[1]}
        op = asked.pop("op")
        for other in others:  # all of them are read before any is answered
            other.tell(op, NOTE, **asked)
        with ThreadPoolExecutor(len(others)) as pool:
            answers = list(pool.map(lambda other: other.stream.read(), others))
        assert answers == [answers[0]] * len(others)
        assert answers[0].header["step"] == "run"
    assert len(place.calls()) == 30
    assert place.outcomes() == []  # no second start has ended a call


@pytest.mark.parametrize(
    "other",
    [
        {"arguments": b'{"text":"y"}'},
        {"task_id": "t"},
        {"site": ["d", None, None, None]},
        {"op": "evaluate"},
        {"reentrant": True},
        {"inside": "0" * 32},
    ],
)
def test_another_request_under_the_same_id_is_refused(victim, place, other):
    names, request_id = ready(victim, "clerk"), new_id()
    victim.call(*names, NOTE, request_id=request_id)
    again = {"arguments": NOTE, "request_id": request_id, **other}
    assert refused(victim.call(*names, **again)) == "frame.malformed"
    assert refused(victim.call(*names, **{**again, "request_id": new_id()})) is None
    assert len(place.calls()) == (1 if other.get("op") == "evaluate" else 2)


@pytest.mark.parametrize(
    "request_id", ["", "x", "0" * 31, "0" * 33, "A" * 32, "é" * 32, None, 5, []]
)
def test_an_id_of_another_form_is_refused(victim, request_id):
    names = ready(victim, "clerk")
    assert refused(victim.call(*names, NOTE, request_id=request_id)) == "frame.malformed"


def test_ids_of_two_clients_do_not_meet(mallory, victim, place):
    request_id = new_id()
    for client, agent in ((victim, "clerk"), (mallory, "mole")):
        answer = client.call(*ready(client, agent), NOTE, request_id=request_id)
        assert answer.header["step"] == "run"
    assert [agent_of(call) for call in place.calls()] == ["clerk", "mole"]


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1.0}',
        b'{"a":1e400}',
        b'{"a":NaN}',
        b'{"a":12345678901234567890}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\x00"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":1}\n',
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"a":"' + b"x" * 300_000 + b'"}',
        b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
        b"\x00" * 1000,
        bytes(range(256)),
    ],
    ids=range(23),
)
def test_arguments_that_are_not_canonical_are_refused(victim, place, arguments):
    names = ready(victim, "clerk")
    assert refused(victim.call(*names, arguments)) == "frame.malformed"
    assert place.calls() == []
    assert refused(victim.call(*names, NOTE)) is None


def test_what_a_policy_reads_is_what_is_signed(victim, place):
    names = ready(victim, "clerk")
    arguments: Any
    for arguments in (
        {"text": "\x00"},
        {"text": "é\U0001f600"},
        {"$int": "5"},
        {"": {"$tuple": []}},
    ):
        assert refused(victim.call(*names, arguments)) is None
    assert place.verify().ok


@pytest.mark.parametrize("blobs", [(), (NOTE, NOTE), (NOTE,) * 16], ids=["none", "two", "sixteen"])
def test_another_number_of_blobs_is_refused(victim, place, blobs):
    agent, tool = ready(victim, "clerk")
    asked = {**CALL, "request_id": new_id(), "agent": agent, "tool": tool}
    assert victim.code(asked.pop("op"), *blobs, **asked) == "frame.malformed"
    assert place.calls() == []


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"error": {"type": "ArgumentsError", "code": "arguments.unbound", "message": "no"}}, None),
        ({"error": {"type": "Decision", "code": "", "message": ""}}, None),
        ({"error": {"type": "x", "code": "y" * 9000, "message": "z" * 9000}}, None),
        ({"error": "x"}, "frame.malformed"),
        ({"refusal": {"outcome": "allow", "code": "", "reasons": [], "requirements": [],
                      "redactions": []}}, "frame.malformed"),
        ({"refusal": {"outcome": "deny", "code": "x", "reasons": [], "requirements": [],
                      "redactions": []}}, None),
        ({"site": None}, None),
        ({"site": "x"}, "frame.malformed"),
        ({"site": [1, 2, 3, 4]}, "frame.malformed"),
        ({"task_id": 5}, "frame.malformed"),
        ({"unbound": "x"}, "frame.malformed"),
        ({"inside": 5}, "frame.malformed"),
        ({"delegation": {"code": "policy.allowed", "message": "x", "delegation": None}}, None),
        ({"delegation": 5}, "frame.malformed"),
    ],
)  # fmt: skip
def test_what_a_client_says_of_a_call_only_denies(victim, place, members, code):
    names = ready(victim, "clerk")
    answer = victim.call(*names, NOTE, **members)
    assert answer.header.get("step") in {None, "denied"}
    if code is not None:
        assert refused(answer) == code
    assert [call.decision for call in place.calls()] in ([], ["deny"])
    assert refused(victim.call(*names, NOTE)) is None
    assert place.verify().ok


# --- tools ----------------------------------------------------------------------------------------


def test_digests_and_scopes_that_lie_change_nothing(victim, place):
    """A tool whose description, schema or scope changes is another tool, and the pin says so."""
    agent = victim.agent("clerk")
    honest = victim.tool("add", requires=["read"], description="Take a note.")
    assert refused(victim.call(agent, honest, NOTE)) is None
    lie: Any
    for lie in (
        {"requires": []},
        {"requires": ["read"], "description": "Delete all."},
        {"requires": ["read"], "description": "Take a note.", "schema": {"type": "object"}},
        {"requires": ["read"], "description": "Take a note.", "origin": "mcp:other"},
        {"requires": ["read"], "description": "Take a note.", "resource": "x:{text}"},
        {"requires": ["read"], "description": "Take a note.", "has_facts": True},
        {"requires": ["read"], "description": "Take a note.", "pinned_schema": "0" * 64},
        {"requires": ["read"], "description": "Take a note.", "attributes": {"who": "text"}},
    ):
        lying = victim.got("tool", tool=described("add", **lie)).header["name"]
        assert refused(victim.call(agent, lying, NOTE)) == "tool.changed"
    signed = [call for call in place.calls() if call.decision == "allow"]
    assert len({call.predicate["tool"]["digest"] for call in signed}) == 1


def test_a_digest_that_a_client_sends_is_not_read(victim, place):
    agent = victim.agent("clerk")
    for members in ({"digest": "0" * 64}, {"sha256": "0" * 64}):
        tool = victim.got("tool", tool=described("note", **members)).header["name"]
        answer = victim.call(agent, tool, NOTE, arguments_sha256="0" * 64, **members)
        assert answer.header["step"] == "run"
    digests = {call.predicate["tool"]["digest"] for call in place.calls()}
    assert len(digests) == 1
    assert "0" * 64 not in digests


@pytest.mark.parametrize(
    "tool",
    [
        None, 5, [], {}, {**described("x"), "name": 5}, described("x", schema=[]),
        described("x", requires="read"),
        described("x", attributes={"agent": "y"}), described("x", attributes={"a b": "y"}),
        described("x", attributes={"a": 5}), described("x", resource="{"),
        described("x", origin=None),
        described("x", pinned_schema=5),
    ],
)  # fmt: skip
def test_a_tool_that_is_none_is_refused(victim, tool):
    assert victim.code("tool", tool=tool) is not None
    assert victim.code("tool", tool=described("x")) is None


def test_another_agents_tools_are_pinned_apart(mallory, victim):
    agent, tool = ready(mallory, "mole")
    assert refused(mallory.call(agent, tool, NOTE)) is None
    other = mallory.tool("slow")
    assert refused(mallory.call(agent, other, NOTE)) is None
    other = victim.tool("slow", description="another")
    assert refused(victim.call(victim.agent("clerk"), other, NOTE)) is None
    assert mallory.code("accept_tool", agent="clerk", tool="note") == "server.remote"
    assert mallory.code("accept_tool", agent="mole", tool="note") == "server.remote"


# --- calls inside calls ---------------------------------------------------------------------------


def test_a_call_is_not_inside_a_call_of_another_session(mallory, victim, place):
    _request_id, outer = run(victim, ready(victim, "clerk"))
    names = ready(mallory, "mole")
    run(mallory, names, inside=outer["invocation_id"])
    own = run(mallory, names)[1]
    run(mallory, names, inside=own["invocation_id"])
    assert [call.inside for call in place.calls()] == [None, None, None, own["invocation_id"]]
    assert place.verify().ok


# --- delegations ----------------------------------------------------------------------------------

TERMS = {"scope": ["read"], "via": None, "task_id": None, "expires_in": 60, "max_depth": 4,
         "max_calls": None, "audience": None}  # fmt: skip


def kept(client, encoded):
    """Return a chain as an application stores it."""
    trust = TrustDocument.loads(client.greeting["trust"].encode())
    loaded = canonical.loads_object(encoded)
    return verification.from_json(loaded, trust, at=int(time.time()) + 1).dumps()


def test_a_client_vouches_for_its_own_principals_alone(mallory, victim):
    for subject in (
        "user:alice",
        "user:mallory ",
        "USER:mallory",
        "agent:clerk",
        "user:*",
        "*",
        "",
    ):
        assert mallory.code("delegate", subject=subject, **TERMS) in {
            "principal.refused",
            "principal.malformed",
        }
    assert mallory.code("delegate", subject="user:mallory", **TERMS) is None
    assert victim.code("delegate", subject="user:alice", **TERMS) is None


def test_a_stored_delegation_of_another_client_is_not_taken_up(mallory, victim):
    stored = kept(victim, victim.got("delegate", subject="user:alice", **TERMS).blobs[0])
    own = kept(mallory, mallory.got("delegate", subject="user:mallory", **TERMS).blobs[0])
    for may_be_revoked in (True, False):
        given = {"may_be_revoked": may_be_revoked}
        assert mallory.code("resume", stored, **given) == "principal.refused"
        assert mallory.code("resume", stored.replace(b"user:alice", b"user:mallory"), **given)
        assert mallory.code("resume", own, **given) is None
        assert victim.code("resume", stored, **given) is None


def test_a_delegation_of_another_session_has_no_name(mallory, victim):
    lent = victim.got("delegate", subject="user:alice", **TERMS).header
    named = {"id": lent["id"], "scope": ["read"]}
    names = ready(mallory, "mole")
    assert refused(mallory.call(*names, NOTE, delegation=named)) == "server.unknown"
    assert mallory.code("chain", id=lent["id"]) == "server.unknown"
    assert mallory.code("access_token", agent=names[0], delegation=named) == "server.unknown"
    assert refused(victim.call(*ready(victim, "helper"), NOTE, delegation=named)) is None
    assert victim.code("chain", id=lent["id"]) is None


def test_a_delegation_is_not_widened(mallory):
    assert mallory.code("delegate", subject="user:mallory", **{**TERMS, "scope": ["admin"]}) == (
        "scope.exceeded"
    )
    lent = mallory.got("delegate", subject="user:mallory", **TERMS).header
    agent, pays = mallory.agent("mole"), mallory.tool("add", requires=["pay"])
    for scope in (["read", "pay"], ["pay"], ["*"], [5], [None]):
        named = {"id": lent["id"], "scope": scope}
        assert refused(mallory.call(agent, pays, NOTE, delegation=named)) is not None
    for scope in (["read"], []):
        named = {"id": lent["id"], "scope": scope}
        assert refused(mallory.call(agent, pays, NOTE, delegation=named)) == "scope.exceeded"
    wide = mallory.got("delegate", subject="user:mallory", **{**TERMS, "scope": ["pay"]}).header
    named = {"id": wide["id"], "scope": ["pay"]}
    assert refused(mallory.call(agent, pays, NOTE, delegation=named)) is None


def test_a_hop_of_an_agent_is_not_taken_up(mallory, victim):
    lent = victim.got("delegate", subject="user:alice", **TERMS).header
    named = {"id": lent["id"], "scope": ["read"]}
    answer = victim.call(*ready(victim, "helper"), NOTE, delegation=named)
    hop = kept(victim, answer.blobs[0])
    assert answer.header["lends"]["id"] != lent["id"]
    for client in (mallory, victim):
        assert client.code("resume", hop, may_be_revoked=True) == "delegation.holder"
    assert mallory.code("chain", id=answer.header["lends"]["id"]) == "server.unknown"
    inner = {"id": answer.header["lends"]["id"], "scope": ["read"]}  # the twin: the session's own
    assert refused(victim.call(*ready(victim, "clerk"), NOTE, delegation=inner)) is None


@pytest.mark.parametrize(
    "terms",
    [
        {"expires_in": -1}, {"expires_in": None}, {"expires_in": "x"},
        {"max_depth": 1000}, {"max_depth": -1}, {"max_depth": None}, {"max_calls": 0},
        {"max_calls": "x"}, {"audience": [5]}, {"scope": "read"}, {"scope": [5]},
        {"via": 5}, {"via": "no principal"}, {"task_id": 5},
    ],
)  # fmt: skip
def test_terms_that_are_none_are_refused(mallory, terms):
    assert mallory.code("delegate", subject="user:mallory", **{**TERMS, **terms}) is not None
    assert mallory.code("delegate", subject="user:mallory", **TERMS) is None
