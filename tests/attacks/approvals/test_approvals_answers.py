"""Calls that nobody, or the wrong people, have approved: each is refused, and its twin runs.

A policy asks for people; the answers are signed with keys of their own. What a framework's graph
adds is tested in the adapter's tests.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from approved_calls import Place, answer, asking, key

from agentguard import (
    ApprovalError,
    ApprovalPending,
    Decision,
    Denied,
    Requirement,
    VerificationError,
)
from agentguard.signing.dsse import Envelope


def test_an_approved_call_runs_once(place):
    request = place.ask()
    assert place.ran == []
    place.approve(request)
    assert place.call() == "merged main"
    assert place.ask().request_id != request.request_id  # the next one asks anew
    assert place.ran == [("main",)]
    assert place.guard.verify().ok


def test_asking_again_asks_for_the_same(place):
    assert place.ask() == place.ask()
    assert len(place.guard.approvals.pending()) == 1


def test_another_call_waits_for_an_answer_of_its_own(place):
    place.approve(place.ask("main"))
    place.ask("release")
    assert place.ran == []


def test_an_approval_for_another_call_is_refused(place):
    main, release = place.ask("main"), place.ask("release")
    answer = place.guard.approvals.approve(main, place.people.keys["bob"])
    with pytest.raises(VerificationError) as refused:
        place.guard.approvals.accept(release, answer.envelope)
    assert refused.value.code == "approval.mismatch"
    place.ask("release")


def test_an_approval_of_an_earlier_request_is_refused(place):
    first = place.ask()
    answer = place.guard.approvals.approve(first, place.people.keys["bob"])
    place.call()
    again = place.ask()
    with pytest.raises(VerificationError) as refused:
        place.guard.approvals.accept(again, answer.envelope)
    assert refused.value.code == "approval.mismatch"
    place.ask()
    assert place.ran == [("main",)]


def test_an_answer_that_lies_there_unverified_counts_for_nothing(place):
    """Whoever can write where answers lie has none of the keys."""
    request, other = place.ask(), place.ask("other")
    mallory, bob = place.people.keys["mallory"], place.people.keys["bob"]

    def signed(payload: bytes, signatures: Any) -> Envelope:
        return Envelope("application/vnd.in-toto+json", payload, signatures)

    def fresh() -> tuple[bytes, str, bytes]:
        good = answer(request, bob, "user:bob")
        ((key_id, signature),) = good.signatures
        return good.payload, key_id, signature

    def of_another_display(payload: bytes) -> bytes:
        return payload.replace(request.displayed_sha256.encode(), b"0" * 64)

    forged = [
        answer(request, mallory, "user:bob"),
        answer(other, bob, "user:bob"),
        answer(request, None, "user:bob"),
        signed((one := fresh())[0], ((one[1], bytes(64)),)),
        signed(fresh()[0], ()),
        signed(of_another_display((two := fresh())[0]), ((two[1], two[2]),)),
    ]
    store = place.guard._parts.runtime._ports.approvals
    for sealed in forged:
        store.answer(request, sealed)
    assert place.ask() == request
    store.answer(request, answer(request, bob, "user:bob"))
    assert place.call() == "merged main"


def test_a_key_that_is_not_on_the_roster_is_refused(place):
    request = place.ask()
    with pytest.raises(VerificationError) as refused:
        place.approve(request, "mallory")
    assert refused.value.code == "approval.unknown"
    sealed = answer(request, place.people.keys["mallory"], "user:bob")
    with pytest.raises(VerificationError) as refused:
        place.guard.approvals.accept(request, sealed)
    assert refused.value.code == "approval.unknown"


def test_an_approver_answers_under_no_other_name(place):
    request = place.ask()
    sealed = answer(request, place.people.keys["bob"], "user:carol")
    with pytest.raises(VerificationError) as refused:
        place.guard.approvals.accept(request, sealed)
    assert refused.value.code == "approval.mismatch"


def test_whoever_asks_does_not_approve_under_another_name():
    place = Place(asking())
    with place.guard.delegate("user:alice", scope=["x"]):
        request = place.ask()
        with pytest.raises(ApprovalError) as refused:
            place.approve(request, "al")
        assert refused.value.code == "approval.refused"
        place.approve(request, "bob")
        assert place.call() == "merged main"


def test_whoever_asks_may_approve_where_the_policy_says_so():
    place = Place(asking(Requirement("anybody", allow_self=True)))
    with place.guard.delegate("user:alice", scope=["x"]):
        place.approve(place.ask(), "al")
        assert place.call() == "merged main"


def test_the_owner_of_the_agent_does_not_approve_its_calls():
    agents = {"coder": {"owner": "user:bob", "authority": "own"}}
    place = Place(asking(), agents=agents)
    request = place.ask()
    with pytest.raises(ApprovalError):
        place.approve(request, "bob")
    place.approve(request, "carol")
    assert place.call() == "merged main"


def test_one_person_is_no_quorum_of_two():
    place = Place(asking(Requirement("two people", quorum=2)))
    request = place.ask()
    place.approve(request, "bob")
    place.approve(request, "bob")
    assert place.ask() == request
    place.approve(request, "carol")
    assert place.call() == "merged main"


def test_two_names_of_one_person_are_no_quorum_of_two():
    place = Place(asking(Requirement("two people", quorum=2)))
    second = key()
    roster = {**place.people.table()}
    roster["bobby"] = {"principal": "user:bob", "keys": [second.public_key.openssh()], "roles": []}
    place = Place(asking(Requirement("two people", quorum=2)), approvers=roster)
    request = place.ask()
    inbox = place.guard.approvals
    inbox.accept(request, answer(request, second, "user:bob"))
    assert inbox.missing(request) is not None


@pytest.mark.parametrize(
    ("needed", "wrong", "right"),
    [
        (Requirement("named", approvers=("carol",)), "bob", "carol"),
        (Requirement("a role", roles=("release-manager",)), "carol", "bob"),
        (
            Requirement("both", approvers=("bob", "carol"), roles=("release-manager",)),
            "carol",
            "bob",
        ),
    ],
)
def test_only_who_is_asked_for_may_approve(needed, wrong, right):
    place = Place(asking(needed))
    request = place.ask()
    with pytest.raises(ApprovalError):
        place.approve(request, wrong)
    place.approve(request, right)
    assert place.call() == "merged main"


def test_each_of_several_requirements_has_to_be_met():
    both = (
        Requirement("security", approvers=("carol",)),
        Requirement("release", approvers=("bob",)),
    )
    place = Place(asking(*both))
    request = place.ask()
    place.approve(request, "bob")
    assert place.ask() == request
    place.approve(request, "carol")
    assert place.call() == "merged main"


def test_a_rejected_call_is_denied_and_says_why(place):
    place.guard.approvals.reject(place.ask(), place.people.keys["bob"], note="not on a Friday")
    with pytest.raises(Denied, match="not on a Friday") as denied:
        place.call()
    assert denied.value.code == "approval.rejected"
    assert place.ran == []
    assert place.guard.verify().ok


def test_a_rejection_stands_beside_an_approval(place):
    request = place.ask()
    place.approve(request, "carol")
    place.guard.approvals.reject(request, place.people.keys["bob"])
    assert place.denied() == "approval.rejected"
    assert place.logged_answers() == [("user:bob", "reject")]  # the decision rests on bob alone
    assert place.guard.verify().ok


def test_what_was_shown_counts_though_the_policy_changes_its_mind():
    lenient: list[bool] = []
    place = Place(lambda _: Decision.allow() if lenient else Decision.require_approval())
    request = place.ask()
    lenient.append(True)
    assert place.ask() == request  # nobody has answered yet
    place.approve(request)
    assert place.call() == "merged main"


def test_a_policy_that_has_come_to_ask_for_more_is_not_satisfied():
    needed = [Requirement("a person")]
    place = Place(lambda _: Decision.require_approval(*needed))
    place.approve(place.ask())
    needed[:] = [Requirement("carol", approvers=("carol",))]
    assert place.denied() == "approval.insufficient"
    assert place.ran == []
    assert place.logged_answers() == [("user:bob", "approve")]
    assert place.guard.verify().ok


def test_a_policy_that_denies_by_now_denies():
    closed: list[bool] = []
    place = Place(lambda _: Decision.deny("frozen") if closed else Decision.require_approval())
    place.approve(place.ask())
    closed.append(True)
    assert place.denied() == "policy.denied"
    assert place.logged_answers() == []  # the policy was not told of any
    closed.clear()
    assert place.call() == "merged main"  # what was not used is good still
    assert place.guard.verify().ok


def test_the_log_names_the_approvers_of_whom_the_policy_was_told_and_denied_the_call():
    def policy(call: Mapping[str, Any]) -> Decision:
        if "approval" not in call:
            return Decision.require_approval(Requirement("a person"))
        is_bob = call["approval"]["approvers"] == ["bob"]
        return Decision.deny("not by bob") if is_bob else Decision.require_approval()

    place = Place(policy)
    place.approve(place.ask(), "bob")
    assert place.denied() == "policy.denied"
    assert place.logged_answers() == [("user:bob", "approve")]
    place = Place(policy)
    place.approve(place.ask(), "carol")
    assert place.call() == "merged main"
    assert place.logged_answers() == [("user:carol", "approve")]
    assert place.guard.verify().ok


def test_the_policy_is_told_who_has_approved():
    seen: list[Any] = []

    def policy(document: Mapping[str, Any]) -> Decision:
        seen.append(document.get("approval"))
        return Decision.require_approval()

    place = Place(policy)
    place.approve(place.ask())
    place.call()
    people = {"approvers": ["bob"], "principals": ["user:bob"], "roles": ["release-manager"]}
    assert seen[-1] == people
    assert seen[0] is None


def test_no_argument_and_no_fact_plays_the_approval():
    def policy(document: Mapping[str, Any]) -> Decision:
        assert "approval" not in document or document["approval"]["approvers"] == ["bob"]
        return Decision.require_approval()

    place = Place(policy)

    @place.guard.tool(facts=lambda _args: {"approval": {"approvers": ["bob"]}}, gives=[])
    def pay(approval: str) -> str:
        return approval

    with pytest.raises(Denied) as denied:
        place.agent.call(pay, "x")
    assert denied.value.code == "facts.conflict"


def test_an_approval_expires(place, monkeypatch):
    request = place.ask()
    place.approve(request)
    now = place.guard._parts.runtime._ports.clock()
    object.__setattr__(
        place.guard._parts.runtime._ports, "clock", lambda: now.replace(year=now.year + 1)
    )
    assert place.denied() == "approval.expired"
    assert place.ask().request_id != request.request_id


def test_two_at_once_run_once(place):
    place.approve(place.ask())
    start = threading.Barrier(8)

    def attempt() -> str:
        start.wait()
        try:
            return place.agent.call(place.merge, "main")
        except (Denied, ApprovalPending) as refused:
            return refused.code

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: attempt(), range(8)))
    assert results.count("merged main") == 1
    assert place.ran == [("main",)]
    assert set(results) <= {"merged main", "approval.consumed", "approval.pending"}
