"""Forged answers, requirements and rejections are found, in the log and in evidence.

The forger is an insider with the log's key, who signs anew what he has changed, and holds the
agent's key as well, but no approver's. ``audit verify``, ``evidence.verify`` and the independent
verifier of ``examples/verify_evidence`` judge each forgery, beside twins that all of them accept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from approval_forgeries import (
    BOB,
    CAROL,
    DORA,
    INDEPENDENT,
    NEEDED,
    RELEASE,
    TWO,
    Insider,
    asking,
)

from agentguard import Requirement
from agentguard.approvals.request import requirements_digest
from agentguard.audit.evidence import verify_evidence
from agentguard.signing import canonical
from agentguard.signing.canonical import b64_decode, b64_encode, loads_object


@pytest.fixture(scope="module")
def rejected(asked) -> Insider:
    return asked(*TWO, by=("bob",), rejected_by="carol")


@pytest.fixture(scope="module")
def other(asked) -> Insider:
    """Another call, of another log, approved by people of their own."""
    return asked(*TWO, by=("bob", "carol"))


def test_the_untampered_twins(two, rejected, vouched):
    for log in (two, rejected, vouched):
        assert log.holds()
        assert log.saying().holds()
        assert log.signed_anew().holds()
    named = INDEPENDENT(two.evidence(), two.trust.dumps())["approvals"]
    assert named == ["approve by user:bob", "approve by user:carol"]
    denied = verify_evidence(rejected.evidence(), rejected.trust)
    assert [answer.approval.verdict for answer in denied.answers] == ["reject"]


def test_an_answer_may_be_made_by_anybody_who_is_asked(two):
    """The forger's tool makes what the desk makes; and answers stand in no order."""
    bob, carol = two.answers
    assert two.saying(approvals=[carol, bob]).holds()
    assert two.saying(approvals=[bob, two.answer("carol")]).holds()
    assert two.saying(approvals=[bob, carol, two.answer("dora")]).holds()  # one more helps nobody
    assert two.saying(approvals=[two.answer("bobby"), carol, bob]).holds()


# --- answers --------------------------------------------------------------------------------------

Answers = Callable[[Insider, Any, Any], list[Any]]


def spoilt(answer: Any, old: bytes, new: bytes) -> Any:
    """An answer whose statement was changed under its signature."""
    payload = b64_decode(answer["payload"])
    assert old in payload
    return {**answer, "payload": b64_encode(payload.replace(old, new))}


def resigned(answer: Any, signatures: list[Any]) -> Any:
    return {**answer, "signatures": signatures}


def bit_flipped(answer: Any) -> Any:
    (one,) = answer["signatures"]
    raw = bytearray(b64_decode(one["sig"]))
    raw[5] ^= 1
    return resigned(answer, [{**one, "sig": b64_encode(bytes(raw))}])


ANSWERS: dict[str, Answers] = {
    "none": lambda _log, _bob, _carol: [],
    "the first alone": lambda _log, bob, _carol: [bob],
    "the second alone": lambda _log, _bob, carol: [carol],
    "one given twice": lambda _log, bob, carol: [bob, carol, carol],
    "a rejection": lambda log, bob, _carol: [bob, log.answer("carol", verdict="reject")],
    "a rejection beside them": lambda log, bob, carol: [
        bob,
        carol,
        log.answer("dora", verdict="reject"),
    ],
    "a rejection passed off": lambda log, bob, _carol: [
        bob,
        spoilt(log.answer("carol", verdict="reject"), b'"reject"', b'"approve"'),
    ],
    "for other requirements": lambda log, bob, _carol: [
        bob,
        log.answer("carol", requirement_sha256=requirements_digest(TWO[:1])),
    ],
    "for the requirements in another order": lambda log, bob, _carol: [
        bob,
        log.answer("carol", requirement_sha256=requirements_digest(TWO[::-1])),
    ],
    "to another call": lambda log, bob, _carol: [bob, log.answer("carol", subject="0" * 64)],
    "to another request": lambda log, bob, _carol: [bob, log.answer("carol", request_id="0" * 32)],
    "to what was not shown": lambda log, bob, _carol: [
        bob,
        log.answer("carol", displayed_sha256="0" * 64),
    ],
    "one person twice": lambda log, bob, _carol: [bob, log.answer("bob")],
    "one person under two names": lambda log, bob, _carol: [bob, log.answer("bobby")],
    "the principal": lambda log, bob, _carol: [bob, log.answer("al")],
    "the owner": lambda log, bob, _carol: [bob, log.answer("olga")],
    "somebody without the role": lambda log, bob, _carol: [bob, log.answer("dora")],
    "too late": lambda log, bob, _carol: [bob, log.answer("carol", expires_at=log.at)],
    "too early": lambda log, bob, _carol: [bob, log.answer("carol", not_before=log.at + 61)],
    "a key that is not on the roster": lambda log, bob, _carol: [
        bob,
        log.answer("mallory", approver="user:carol"),
    ],
    "such a key in another's name": lambda log, bob, carol: [
        bob,
        resigned(
            carol,
            [{**log.answer("mallory")["signatures"][0], "keyid": carol["signatures"][0]["keyid"]}],
        ),
    ],
    "as somebody else": lambda log, bob, _carol: [bob, log.answer("dora", approver="user:carol")],
    "an altered signature": lambda _log, bob, carol: [bob, bit_flipped(carol)],
    "another's signature": lambda _log, bob, carol: [bob, resigned(carol, bob["signatures"])],
    "no signature": lambda _log, bob, carol: [bob, resigned(carol, [])],
    "two signatures": lambda _log, bob, carol: [
        bob,
        resigned(carol, carol["signatures"] + bob["signatures"]),
    ],
    "unsigned": lambda log, bob, _carol: [bob, log.answer(None, approver="user:carol")],
    "signed, as the application's word": lambda log, bob, _carol: [
        bob,
        log.answer("carol", method="application"),
    ],
    "unsigned, as a person's word": lambda log, bob, _carol: [
        bob,
        log.answer(None, approver="user:carol", method="ed25519"),
    ],
    "another note": lambda _log, bob, carol: [bob, spoilt(carol, b'"note":""', b'"note":"!"')],
    "another id": lambda log, bob, _carol: [
        bob,
        spoilt(log.answer("carol", approval_id="1" * 32), b"1" * 32, b"2" * 32),
    ],
    "no envelope": lambda _log, bob, carol: [bob, carol, {}],
    "null": lambda _log, bob, carol: [bob, carol, None],
    "another member": lambda log, bob, _carol: [bob, log.answer("carol", more="")],
}


def test_a_call_is_not_passed_off_as_one_of_an_observed_policy(two):
    """The configuration that the call names has the policy enforced."""
    assert two.holds()
    forged = two.saying(
        mode="observe", enforced=False, approvals=[], roster_sha256=None, decision="approval"
    )
    assert [what for _index, what in forged.problems()] == [
        "the policy was asked in another mode than is configured"
    ]
    assert not forged.holds()


@pytest.mark.parametrize("how", [how for how in ANSWERS if how != "another member"])
def test_other_answers_are_found_by_all(two, how):
    bob, carol = two.answers
    forged = two.saying(approvals=ANSWERS[how](two, bob, carol))
    assert not forged.holds()
    assert {index for index, _what in forged.problems()} == {two.last}


def test_an_answer_with_another_member_is_of_another_form(two):
    """The person has signed it: agentguard alone asks for its form."""
    bob, carol = two.answers
    forged = two.saying(approvals=ANSWERS["another member"](two, bob, carol))
    assert [index for index, _what in forged.problems()] == [two.last]
    assert forged.refusals() == ("approval.malformed", False)


def test_another_calls_approvals_are_found_by_all(two, other):
    assert not two.saying(approvals=other.answers).holds()
    mixed = [two.answers[0], two.answer("carol", request=other.request)]
    assert not two.saying(approvals=mixed).holds()


@pytest.mark.parametrize("said", ["call_site", "arguments", "resource", "task_id"])
def test_the_approvals_are_of_no_call_that_was_changed(two, said):
    """The agent signs another call: its digest is another, to which nobody has answered."""
    assert two.signed_anew(traceparent=None).holds()  # which is in no digest
    assert not two.signed_anew(**{said: "0" * 64}).holds()


def test_the_times_of_an_answer_are_taken_to_the_second(two):
    bob, _carol = two.answers
    for times, good in (
        ({"not_before": two.at + 60}, True),
        ({"expires_at": two.at + 1}, True),
        ({"not_before": two.at + 61}, False),
        ({"expires_at": two.at}, False),
        ({"not_before": two.at, "expires_at": two.at}, False),
    ):
        assert two.saying(approvals=[bob, two.answer("carol", **times)]).holds() is good, times


REQUIREMENTS: dict[str, list[Any]] = {
    "none": [],
    "one left out": NEEDED[:1],
    "the other left out": NEEDED[1:],
    "in another order": NEEDED[::-1],
    "one twice": NEEDED * 2,
    "a smaller quorum": [{**NEEDED[0], "quorum": 1}, NEEDED[1]],
    "no role": [{**NEEDED[0], "roles": []}, NEEDED[1]],
    "whoever asks": [{**NEEDED[0], "allow_self": True}, NEEDED[1]],
    "another reason": [{**NEEDED[0], "reason": "tea"}, NEEDED[1]],
    "a longer time": [{**NEEDED[0], "ttl": 9999}, NEEDED[1]],
}


@pytest.mark.parametrize("how", REQUIREMENTS)
def test_requirements_that_were_changed_since_are_found_by_all(two, how):
    forged = two.saying(requirements=REQUIREMENTS[how])
    assert [index for index, _what in forged.problems()] == [two.last]
    assert not forged.holds()


@pytest.mark.parametrize("quorum", [0, -1])
def test_a_quorum_of_nobody_is_found_by_all(two, quorum):
    """Whoever has bob's key as well: no approval is no approval, whatever was asked for."""
    needed = [{**NEEDED[0], "quorum": quorum}]
    answer = two.answer("bob", requirement_sha256=canonical.digest(needed))
    assert not two.saying(requirements=needed, approvals=[answer]).holds()
    assert not two.saying(requirements=needed, approvals=[]).holds()


ALICE, OLGA = ("al", "user:alice"), ("olga", "user:olga")


@pytest.mark.parametrize(
    ("needed", "good", "bad"),
    [
        ([Requirement("named", approvers=("bob", "dora"))], [BOB], [CAROL]),
        ([Requirement("by name", approvers=("bob",))], [BOB], [("bobby", "user:bob")]),
        ([Requirement("a role", roles=("security",))], [CAROL], [BOB]),
        ([Requirement("any role", roles=("security", RELEASE))], [BOB], [DORA]),
        (
            [Requirement("both", approvers=("dora", "bob"), roles=(RELEASE,))],
            [BOB],
            [DORA, CAROL],
        ),
        ([Requirement("three", quorum=3)], [BOB, CAROL, DORA], [BOB, CAROL, ALICE, OLGA]),
        ([Requirement("self", allow_self=True)], [ALICE], []),
        ([Requirement("not self")], [DORA], [ALICE]),
        ([Requirement("self", allow_self=True)], [OLGA], []),
        ([Requirement("not the owner")], [DORA], [OLGA, ALICE]),
        (
            [Requirement("self", allow_self=True), Requirement("and another")],
            [ALICE, BOB],
            [ALICE, OLGA],
        ),
    ],
    ids=str,
)
def test_who_may_approve_is_judged_by_all_alike(two, needed, good, bad):
    assert asking(two, needed, *good).holds()
    assert not asking(two, needed, *bad).holds()


def test_an_agent_on_its_own_authority_approves_nothing(asked):
    """The principal is the agent then, and its owner stands for it."""
    log = asked(by=("bob",), asks_for=None)
    assert log.holds()
    assert not log.saying(approvals=[log.answer("olga")]).holds()


# --- rejections -----------------------------------------------------------------------------------


def test_a_rejection_lets_nothing_run(rejected):
    assert not rejected.saying(decision="allow", code="").holds()
    needed = [one.as_json() for one in TWO]
    assert not rejected.saying(decision="allow", code="", requirements=needed).holds()
    both = [rejected.answer("bob"), rejected.answer("carol")]
    lied = rejected.saying(decision="allow", code="", requirements=needed, approvals=both)
    assert lied.holds()  # the twin: they would have approved


def test_nobody_has_rejected_who_has_not(rejected):
    assert not rejected.saying(approvals=[rejected.answer("bob")]).holds()
    assert not rejected.saying(approvals=[*rejected.answers, rejected.answer("bob")]).holds()
    assert not rejected.saying(approvals=[]).holds()
    # an application may refuse in somebody's name, whom nothing names then
    assert rejected.saying(approvals=[], roster_sha256=None).holds()
    again = rejected.answer("dora", verdict="reject")
    assert rejected.saying(approvals=[*rejected.answers, again]).holds()
    assert not rejected.saying(approvals=[bit_flipped(again)]).holds()


# --- each member ----------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a value that holds no other."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in inner:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*path, name))
        else:
            yield (*path, name)


def other_than(value: Any) -> Any:
    """Something else in the place of a value, of the same kind where that can be."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value[:-1] + ("0" if value[-1:] != "0" else "1")
        case None:
            return "0"
    return [*value, "0"] if isinstance(value, list) else {"0": "0"}


def with_leaf(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy of a value with something else at a path."""
    copy = inner = json.loads(json.dumps(value))
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = other_than(inner[path[-1]])
    return copy


def under_its_signature(sealed: Any, path: tuple[Any, ...]) -> Any:
    """An envelope with something else at a path of its statement."""
    statement = json.loads(b64_decode(sealed["payload"]))
    return {**sealed, "payload": b64_encode(canonical.dumps(with_leaf(statement, path)))}


@pytest.mark.parametrize("number", [0, 1])
def test_each_member_of_a_signed_answer_is_signed(two, number):
    answers = two.answers
    statement = json.loads(b64_decode(answers[number]["payload"]))
    paths = list(leaves(statement))
    assert len(paths) == 15
    for path in paths:
        spoilt_one = under_its_signature(answers[number], path)
        mixed = [spoilt_one if i == number else one for i, one in enumerate(answers)]
        assert not two.saying(approvals=mixed).holds(), path
    for path in leaves(answers[number]):
        changed = with_leaf(answers[number], path)
        if path != ("payload",) and path[-1] != "payloadType":
            mixed = [changed if i == number else one for i, one in enumerate(answers)]
            assert not two.saying(approvals=mixed).holds(), path


def test_each_byte_of_a_signature_counts(two):
    bob, carol = two.answers
    (one,) = bob["signatures"]
    raw = b64_decode(one["sig"])
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        forged = resigned(bob, [{**one, "sig": b64_encode(changed)}])
        assert not two.saying(approvals=[forged, carol]).holds(), place


def test_each_member_of_the_requirements_and_the_roster_counts(two):
    for path in leaves(NEEDED):
        assert not two.saying(requirements=with_leaf(NEEDED, path)).holds(), path
    index = two.index("roster")
    stated: Any = loads_object(two.records[index].body)
    for path in leaves(json.loads(b64_decode(stated["statement"]["payload"]))):
        changed = under_its_signature(stated["statement"], path)
        forged = two.with_body(index, {**stated, "statement": changed}).signed_anew()
        assert not forged.holds(), path
    assert not two.saying(roster_sha256=other_than(two.call["roster_sha256"])).holds()


def test_what_an_unsigned_answer_is_to_counts(vouched):
    """The rest of it is the application's word, which nobody signs."""
    (word,) = vouched.answers
    statement = json.loads(b64_decode(word["payload"]))
    found: dict[str, bool] = {}
    for path in leaves(statement):
        forged = vouched.saying(approvals=[under_its_signature(word, path)])
        if path[-1] in {"sha256", "requirement_sha256", "verdict", "method", "predicateType"}:
            assert not forged.holds(), path
        found[str(path[-1])] = bool(forged.problems())
    assert found["request_id"]  # which is not in the log, or is another
    assert found["displayed_sha256"]
    assert not found["note"]
