"""Requests for approvals, records of runs and secrets of other clients."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import pytest
from served_intruder import APPROVER, CAROL, DESK, new_id
from state_pages import Page, pages

from agentguard.approvals.answer import seal_answer
from agentguard.approvals.request import ApprovalRequest
from agentguard.signing import canonical
from agentguard.signing.keys import Ed25519Signer


@pytest.fixture
def desk(intrude):
    """A client whose word counts for approvals."""
    return intrude(DESK)


class Waiting:
    """A call of the victim that waits for an approval."""

    def __init__(self, victim):
        self.client, self.cents = victim, int.from_bytes(os.urandom(4))
        self.names = victim.agent("clerk"), victim.tool("pay")
        answer = self.again()
        assert answer.header["step"] == "pending"
        self.request = ApprovalRequest.loads(answer.blobs[0])

    @property
    def asked(self):
        return {"request": self.request.dumps().decode()}

    def again(self):
        arguments = {"cents": self.cents}
        return self.client.call(*self.names, arguments, request_id=new_id())

    def is_pending(self):
        answer = self.again()
        return (
            answer.header["step"] == "pending"
            and ApprovalRequest.loads(answer.blobs[0]) == self.request
        )


@pytest.fixture
def waiting(victim):
    return Waiting(victim)


def seen(client):
    """Return the ids of the requests that a client sees, with the keys."""
    answer = client.got("approvals.pending")
    ids = [ApprovalRequest.loads(blob).request_id for blob in answer.blobs]
    return dict(zip(ids, answer.header["keys"], strict=True))


def answer_of(request, signer, verdict="approve", **members):
    given = {"approver": "user:carol", "approval_id": new_id(), "at": int(time.time()), **members}
    return seal_answer(request, verdict, signer=signer, **given).as_json()


def forgeries(request):
    """Return the request as another agent's, so that the server shows it to that agent."""
    own = replace(request, agent_name="mole")
    return [
        own,
        replace(own, arguments=b"{}"),
        replace(own, principal="agent:mole", salt=b"1" * 16),
    ]


# --- reading --------------------------------------------------------------------------------------


def test_requests_of_another_clients_agents_are_unseen(mallory, victim, desk, waiting):
    request_id = waiting.request.request_id
    assert request_id not in seen(mallory)
    assert request_id in seen(victim)
    key = seen(desk)[request_id]
    assert mallory.got("approvals.read", key=key).header["request"] is None
    assert victim.got("approvals.read", key=key).header["request"] is not None
    for op in ("refusal", "withdraw"):
        assert mallory.code(f"approvals.{op}", **waiting.asked) == "request.unknown"
    assert victim.got("approvals.refusal", **waiting.asked).header["refusal"] is None
    assert waiting.is_pending()


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../../keys", "../../../passphrase", "..", ".", "a" * 63, "A" * 64,
     "a" * 64 + "\n", "\0" * 64, "a" * 64 + "/..", 5, None, ["a" * 64]],
)  # fmt: skip
def test_a_key_is_no_path(mallory, desk, key):
    for client in (mallory, desk):
        assert client.code("approvals.read", key=key) == "frame.malformed"
        assert client.got("approvals.read", key="a" * 64).header["request"] is None


@pytest.fixture
def rejected(desk, waiting):
    """A request of the victim that was rejected, and whose call was made again."""
    desk.got("approvals.vouch", **waiting.asked, verdict="reject", principal="user:bob", note="")
    assert waiting.again().header["decision"]["code"] == "approval.rejected"
    return waiting


def test_history_is_for_the_clients_of_the_agent_and_for_those_who_answer(
    mallory, victim, desk, rejected
):
    whole = rejected.request.request_id
    for part in (whole[:1], whole[:8], whole[:31], whole, "%", "*", "_" * 31):
        assert mallory.got("approvals.history", request_id=part).header["status"] is None
    for client in (victim, desk):
        for part in (whole, whole[:8]):
            status = client.got("approvals.history", request_id=part).header["status"]
            assert status["state"] == "rejected"


def test_no_error_tells_another_client_what_became_of_a_request(mallory, victim, rejected):
    """A client could show the server a request with another's id as its own agent's."""
    for own in forgeries(rejected.request):
        forged = {"request": own.dumps().decode()}
        signed = answer_of(own, CAROL)
        assert mallory.code("approvals.answer", **forged, answer=signed) == "request.unknown"
        for op in ("refusal", "withdraw"):
            assert mallory.code(f"approvals.{op}", **forged) == "request.unknown"
    signed = answer_of(rejected.request, CAROL)
    assert victim.code("approvals.answer", **rejected.asked, answer=signed) == "request.ended"
    assert victim.code("approvals.withdraw", **rejected.asked) is None


def test_ids_of_altered_requests_are_for_those_who_see_all(place, mallory, desk, approver, waiting):
    (path,) = [
        path
        for path in Page(place.folder / "state", "requests").iterdir()
        if waiting.request.request_id.encode() in path.read_bytes()
    ]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"pay"', b'"pax"'))
    try:
        assert mallory.got("approvals.altered", now=0).header["altered"] == []
        for client in (desk, approver):
            assert client.got("approvals.altered", now=0).header["altered"] == [
                waiting.request.request_id
            ]
    finally:
        path.write_bytes(whole)
    now: Any
    for now in (None, "x", 1.5, True, []):
        assert desk.code("approvals.altered", now=now) == "frame.malformed"
    for now in (-(2**63), 2**63 - 1):
        assert desk.code("approvals.altered", now=now) is None


# --- a client that only sees requests ------------------------------------------------------------


@pytest.fixture
def approver(intrude):
    """A client that sees all requests, and is no agent: a person who signs answers."""
    return intrude(APPROVER)


def test_a_client_that_sees_requests_brings_signed_answers_alone(approver, mallory, waiting):
    request_id = waiting.request.request_id
    assert request_id in seen(approver)
    assert request_id not in seen(mallory)  # the twin: a client without the right
    given = {"verdict": "approve", "principal": "user:bob", "note": ""}
    for only_checks in (True, False):
        asked = {**waiting.asked, **given, "only_checks": only_checks}
        assert approver.code("approvals.vouch", **asked) == "approval.refused"
    of_nobody = answer_of(waiting.request, Ed25519Signer.from_seed(os.urandom(32)))
    assert approver.code("approvals.answer", **waiting.asked, answer=of_nobody) is not None
    assert approver.code("approvals.withdraw", **waiting.asked) == "request.unknown"
    assert waiting.is_pending()
    signed = answer_of(waiting.request, CAROL)
    assert approver.code("approvals.answer", **waiting.asked, answer=signed) is None
    assert waiting.again().header["step"] == "run"


def test_a_client_that_sees_requests_is_no_agent(approver, victim):
    assert approver.code("agent", name="clerk") == "agent.refused"
    assert approver.code("instance", name="clerk") == "agent.refused"
    assert approver.code("delegate", subject="user:alice") == "principal.refused"
    assert approver.code("status") == "server.remote"
    assert victim.code("agent", name="clerk") is None  # the twin


# --- answering ------------------------------------------------------------------------------------


def test_only_the_word_of_a_client_that_answers_counts(mallory, victim, desk, waiting):
    given = {"verdict": "approve", "principal": "user:bob", "note": ""}
    for client in (mallory, victim):
        for only_checks in (True, False):
            asked = {**waiting.asked, **given, "only_checks": only_checks}
            assert client.code("approvals.vouch", **asked) == "approval.refused"
    assert waiting.is_pending()
    assert desk.code("approvals.vouch", **waiting.asked, **given) is None
    assert waiting.again().header["step"] == "run"


def test_an_answer_counts_by_its_signature(mallory, victim, waiting):
    request = waiting.request
    unsigned = seal_answer(request, "approve", approver="user:bob", approval_id=new_id(),
                           at=int(time.time()), roles=("manager",)).as_json()  # fmt: skip
    of_nobody = answer_of(request, Ed25519Signer.from_seed(os.urandom(32)))
    elsewhere = answer_of(replace(request, arguments=b'{"cents":1}'), CAROL)
    of_another = answer_of(request, CAROL, approver="user:bob")
    forged: Any
    for forged in (unsigned, of_nobody, elsewhere, of_another, None, {}, [], "x"):
        assert victim.code("approvals.answer", **waiting.asked, answer=forged) is not None
    signed = answer_of(request, CAROL)
    assert mallory.code("approvals.answer", **waiting.asked, answer=signed) == "request.unknown"
    for own in forgeries(request):
        asked = {"request": own.dumps().decode()}
        assert mallory.code("approvals.answer", **asked, answer=signed) is not None
        assert mallory.code("approvals.answer", **asked, answer=answer_of(own, CAROL)) is not None
    assert waiting.is_pending()
    assert victim.code("approvals.answer", **waiting.asked, answer=signed) is None
    assert waiting.again().header["step"] == "run"
    assert waiting.again().header["step"] == "pending"  # one approval, one call


def test_a_forged_request_withdraws_no_other(mallory, victim, waiting):
    """A client could show the server another's request as its own agent's."""
    for own in forgeries(waiting.request):
        for key in (None, "a" * 64, waiting.request.call_site):
            asked = {"request": own.dumps().decode(), "key": key}
            assert mallory.code("approvals.withdraw", **asked) == "request.unknown"
    assert waiting.is_pending()
    answer = victim.got("approvals.withdraw", **waiting.asked, key=None)
    assert answer.header["withdrawn"] is True


def test_a_request_that_nobody_has_made_leaves_no_page(mallory, waiting, place):
    before = pages(place.folder / "state", "")
    for _ in range(5):
        made = replace(waiting.request, agent_name="mole", request_id=new_id())
        asked = {"request": made.dumps().decode(), "key": None}
        assert mallory.code("approvals.withdraw", **asked) == "request.unknown"
    assert pages(place.folder / "state", "") == before


@pytest.mark.parametrize("request_", [None, "", "{}", "x", "[]", 5, {}, "\0"])
def test_a_request_that_is_none_is_refused(mallory, desk, request_):
    for client in (mallory, desk):
        for op in ("refusal", "answer", "vouch", "withdraw"):
            members = {"verdict": "approve", "principal": "user:bob", "note": "", "answer": {}}
            assert client.code(f"approvals.{op}", request=request_, **members) is not None


def test_large_requests_of_one_client_hide_no_request_of_another(mallory, desk, waiting):
    names = mallory.agent("mole"), mallory.tool("pay")
    for number in range(18):
        arguments = {"cents": number, "text": '"' * 100_000}
        assert mallory.call(*names, arguments).header["step"] in {"pending", None}
    found: dict[str, str] = {}
    after = None
    while True:
        answer = desk.got("approvals.pending", after=after)
        requests = [ApprovalRequest.loads(blob) for blob in answer.blobs]
        found.update((one.request_id, one.agent_name) for one in requests)
        if answer.header["are_all"]:
            break
        after = [requests[-1].requested_at, requests[-1].request_id]
    assert list(found.values()).count("mole") >= 18
    assert found[waiting.request.request_id] == "clerk"
    bad: Any
    for bad in (5, "x", [], [1], ["x", "y"], {}, [1, 2]):
        assert desk.code("approvals.pending", after=bad) == "frame.malformed"


def test_requests_of_one_agent_have_a_limit(mallory, victim):
    names = mallory.agent("mole"), mallory.tool("pay")
    codes = set()
    for number in range(30):
        answer = mallory.call(*names, {"cents": 1000 + number}).header
        codes.add(answer["step"] if answer["step"] == "pending" else answer["decision"]["code"])
    assert codes == {"pending", "approval.limit"}
    assert Waiting(victim).is_pending()  # the twin


# --- records of runs ------------------------------------------------------------------------------


def test_records_of_runs_are_each_clients_own(mallory, victim):
    victim.got("runs.write", b"of the victim", name="run")
    for name in (
        "run",
        "victim\0run",
        "\0victim\0run",
        "/run",
        "../victim/run",
        "\0pin\0clerk\0note",
    ):
        assert mallory.got("runs.read", name=name).header["is_there"] is False
        mallory.got("runs.write", b"forged", name=name)
        assert mallory.got("runs.read", name=name).blobs == [b"forged"]
        mallory.got("runs.remove", name=name)
    mallory.got("runs.write", b"forged", name="run")
    assert mallory.got("runs.write", b"again", name="run", add=True).header["added"] is False
    assert victim.got("runs.read", name="run").blobs == [b"of the victim"]


def test_a_record_is_no_pin(mallory, victim):
    """What a client keeps of runs stands beside the pins of tools, under other names."""
    agent, tool = victim.agent("clerk"), victim.tool("slow", description="as it was")
    assert victim.call(agent, tool).header["step"] == "run"
    for name in ("\0pin\0clerk\0slow", "pin\0clerk\0slow"):
        for client in (mallory, victim):
            client.got("runs.remove", name=name)
            client.got("runs.write", b"0" * 64, name=name)
    assert victim.call(agent, tool).header["step"] == "run"
    changed = victim.tool("slow", description="as it is now")
    assert victim.call(agent, changed).header["decision"]["code"] == "tool.changed"


@pytest.mark.parametrize("name", [None, 5, [], {}])
def test_a_name_that_is_none_is_refused(mallory, name):
    for op, blobs in (("read", ()), ("write", (b"x",)), ("remove", ())):
        assert mallory.code(f"runs.{op}", *blobs, name=name) == "frame.malformed"
    assert mallory.code("runs.write", name="x") == "frame.malformed"
    assert mallory.code("runs.write", b"x", b"y", name="x") == "frame.malformed"


# --- secrets --------------------------------------------------------------------------------------


def test_a_secret_is_released_to_a_running_call_of_its_tool_alone(mallory, victim):
    names, request_id = (victim.agent("clerk"), victim.tool("note")), new_id()
    assert victim.code("secret", request_id=request_id, name="TOKEN") == "server.unknown"
    victim.call(*names, {"text": "x"}, request_id=request_id)
    assert mallory.code("secret", request_id=request_id, name="TOKEN") == "server.unknown"
    for name in ("token", "TOKEN ", "../passphrase", "", "\0", None, 5):
        assert victim.code("secret", request_id=request_id, name=name) is not None
    assert victim.got("secret", request_id=request_id, name="TOKEN").blobs == [
        b"of no use to anybody else"
    ]
    ended = {"ending": "DONE", "type": "builtins.str", "has_journal": False}
    victim.got("outcome", b"", b"", request_id=request_id, **ended)
    assert victim.code("secret", request_id=request_id, name="TOKEN") == "secret.refused"
    other = new_id()
    victim.call(names[0], victim.tool("add"), canonical.dumps({}), request_id=other)
    assert victim.code("secret", request_id=other, name="TOKEN") == "secret.refused"


def test_a_decision_releases_no_secret(victim):
    request_id = new_id()
    answer = victim.call(victim.agent("clerk"), victim.tool("note"), {}, op="evaluate",
                         request_id=request_id)  # fmt: skip
    assert answer.header["step"] == "decision"
    assert victim.code("secret", request_id=request_id, name="TOKEN") == "secret.refused"


def test_the_status_and_a_reload_are_for_the_servers_user(mallory, place):
    for op in ("status", "reload"):
        assert mallory.code(op) == "server.remote"
    assert place.status()["clients"] >= 1
