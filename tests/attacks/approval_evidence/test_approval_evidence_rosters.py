"""Forged rosters and requests, and second uses of an approval, are found.

The forger is an insider with the log's key, who signs anew what he has changed, and holds the
agent's key as well, but no approver's. ``audit verify``, ``evidence.verify`` and the independent
verifier of ``examples/verify_evidence`` judge each forgery, beside twins that all of them accept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from approval_forgeries import BOB, CAROL, NEEDED, RELEASE, TWO, Insider, again, asking

from agentguard import Requirement
from agentguard.approvals.request import requirements_digest
from agentguard.audit.entry import LogPlace
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import UnsignedOutcome, outcome_statement
from agentguard.audit.summary import Summary
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_encode, loads_object
from agentguard.signing.dsse import Envelope

# --- the roster -----------------------------------------------------------------------------------


def test_a_roster_that_says_the_same_again_is_the_twin(two):
    assert two.with_roster(two.roster()).holds()
    more = two.roster()
    more["approvers"]["eve"] = {"principal": "user:eve", "keys": [], "roles": []}
    assert two.with_roster(more).holds()


def edited(said: Any, *path: str, value: Any) -> Any:
    """A roster with something else at one place."""
    inner = said
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return said


ROSTERS: dict[str, Callable[[Insider], Insider]] = {
    "another domain's": lambda log: log.with_roster(
        {**log.roster(), "trust_domain": "elsewhere.example"}
    ),
    "signed by the log": lambda log: log.with_roster(log.roster(), signer="log"),
    "signed by the agent": lambda log: log.with_roster(log.roster(), signer="coder"),
    "signed by an approver": lambda log: log.with_roster(log.roster(), signer="bob"),
    "signed by a stranger": lambda log: log.with_roster(log.roster(), signer="mallory"),
    "unsigned": lambda log: log.with_roster(log.roster(), signer=None),
    "of another digest": lambda log: log.with_roster(log.roster(), subject="0" * 64),
    "another than the call names": lambda log: log.with_roster(log.roster(), named="0" * 64),
    "without carol": lambda log: log.with_roster(
        edited(log.roster(), "approvers", "carol", value={"principal": "", "keys": [], "roles": []})
    ),
    "carol without her role": lambda log: log.with_roster(
        edited(log.roster(), "approvers", "carol", "roles", value=[RELEASE])
    ),
    "carol is bob": lambda log: log.with_roster(
        edited(log.roster(), "approvers", "carol", "principal", value="user:bob")
    ),
    "two with one key": lambda log: log.with_roster(
        edited(
            log.roster(),
            "approvers",
            "eve",
            value={**log.roster()["approvers"]["carol"], "principal": "user:eve"},
        )
    ),
    "nobody at all": lambda log: log.with_roster({**log.roster(), "approvers": {}}),
    "null": lambda log: log.saying(roster_sha256=None),
    "null, and no answers": lambda log: log.saying(roster_sha256=None, approvals=[]),
    "null, and nothing asked": lambda log: log.saying(roster_sha256=None, requirements=[]),
}


@pytest.mark.parametrize("how", ROSTERS)
def test_another_roster_is_found_by_all(two, how):
    assert not ROSTERS[how](two).holds()


def test_a_stranger_who_was_put_on_the_roster_after_it_was_signed(two):
    said, index = two.roster(), two.index("roster")
    said["approvers"]["dora"]["keys"] = [two.keys["mallory"].public_key.jwk()]
    stated: Any = loads_object(two.records[index].body)
    members = {name: said[name] for name in said if name != "trust_domain"}
    payload = dsse.statement("roster", canonical.digest(members), "roster", said)
    stated["statement"]["payload"] = b64_encode(payload)  # under the issuer's old signature
    forged = two.with_body(index, stated).saying(roster_sha256=canonical.digest(members))
    assert not forged.signed_anew().holds()


def test_a_roster_that_comes_after_its_call_is_none_of_it(two):
    index = two.index("roster")
    records = [*two.records[:index], *two.records[index + 1 :]]
    call = replace(two, records=tuple(records)).signed_anew().records[-1]
    forged = replace(two, records=(*records[:-1], call, two.records[index]))
    what = "a roster of approvers that no entry before it states"
    assert forged.problems() == [(two.last - 1, what)]
    needed = {"key", "config", "policy", "identity", "delegation", "roster"}
    kinds = [parse_entry(record.body).kind for record in forged.records]
    places = [i for i, kind in enumerate(kinds) if kind in {*needed, "call"}]
    file = forged.file(places, two.last - 1)
    assert two.refusals(file) == ("evidence.mismatch", True)


def test_a_roster_that_is_missing_or_nobody_needs(two, asked):
    places = list(range(len(two.records)))
    places.remove(two.index("request"))
    assert two.refusals(two.file(places)) == (None, False)
    places.remove(two.index("roster"))
    assert two.refusals(two.file(places)) == ("evidence.incomplete", True)
    bare = two.saying(roster_sha256=None, approvals=[], requirements=[])
    places = [*places, two.index("roster")]
    assert bare.refusals(bare.file(sorted(places))) == ("evidence.superfluous", True)
    assert bare.refusals() == (None, False)  # that the policy allowed it is the log's word


# --- the application's word -----------------------------------------------------------------------


def test_the_applications_word_counts_where_the_roster_says_so(vouched):
    for value in (False, 1, "true", None):
        said = {**vouched.roster(), "application": value}
        assert not vouched.with_roster(said).holds(), value
    assert vouched.with_roster({**vouched.roster(), "application": True}).holds()


@pytest.mark.parametrize(
    ("needed", "good"),
    [
        (Requirement("anybody"), True),
        (Requirement("named", approvers=("dora",)), False),
        (Requirement("a role", roles=(RELEASE,)), False),
        (Requirement("two", quorum=2), False),
    ],
    ids=str,
)
def test_the_applications_word_is_not_enough_where_people_are_named(vouched, needed, good):
    word = [(None, "user:dora"), (None, "user:eve")]
    assert asking(vouched, [needed], *word).holds() is good
    assert asking(vouched, [needed], BOB, CAROL, (None, "user:eve")).holds() is (
        needed.approvers is None and (needed.roles is None or RELEASE in needed.roles)
    )


def test_the_application_does_not_vouch_for_who_asks(vouched):
    needed = [Requirement("anybody")]
    assert not asking(vouched, needed, (None, "user:alice")).holds()
    assert not asking(vouched, needed, (None, "user:olga")).holds()
    assert not asking(vouched, needed, (None, "user:dora"), ("bob", "user:alice")).holds()


def test_one_approval_lets_one_call_run(two):
    twice = [*two.records, again(two)]
    reader = replace(two, records=tuple(twice)).reader()
    ((index, what),) = two.problems(reader)
    assert index == two.last + 1
    assert "is used already" in what


def test_other_answers_to_one_request_let_no_second_call_run(two):
    """Each answer is used once, and all of them are to one request: it was one call."""
    more = two.saying(approvals=[two.answer("bob"), two.answer("carol")])
    reader = replace(two, records=(*two.records, again(more))).reader()
    assert [index for index, _what in two.problems(reader)] == [two.last + 1]


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["agent", "principal", "tool", "decision", "task_id", "at"])
def test_the_columns_of_a_request_are_recomputed(two, column):
    index = two.index("request")
    about = two.records[index].summary._replace(**{column: "x"})
    changed = two.with_body(index, loads_object(two.records[index].body), about)
    assert (index, column in changed.problems()[0][1]) == (changed.problems()[0][0], True)


def test_a_request_under_another_kind_is_found(two):
    index = two.index("request")
    about = two.records[index].summary._replace(kind="config")
    changed = two.with_body(index, loads_object(two.records[index].body), about)
    assert {place for place, _what in changed.problems()} == {index}


@pytest.mark.parametrize(
    "said",
    [
        {"request_id": "0" * 32},
        {"call_digest": "0" * 64},
        {"displayed_sha256": "0" * 64},
        {"requirements": NEEDED[:1]},
        {"requirement_sha256": "0" * 64},
        {
            "requirements": NEEDED[:1],
            "requirement_sha256": requirements_digest(TWO[:1]),
        },
        {"requirements": None},
        {"tool": "merge"},
    ],
    ids=str,
)
def test_a_request_that_says_something_else_than_was_approved_is_found(two, said):
    index = two.index("request")
    members = {**loads_object(two.records[index].body), **said}
    changed = two.with_body(index, members).signed_anew()
    found = [place for place, _what in changed.problems()]
    assert found
    assert set(found) <= {index, two.last}


def test_a_request_that_was_left_out_is_missed(two):
    index = two.index("request")
    gone = replace(two, records=(*two.records[:index], *two.records[index + 1 :])).signed_anew()
    ((last, what),) = gone.problems()
    assert last == gone.last
    assert "is not in the log" in what
    assert gone.refusals() == (None, False)  # which holds no requests


def test_a_call_that_was_asked_about_and_ran_unapproved_is_found(two):
    """All that says so was taken from its entry: the request still names the call."""
    bare = two.saying(approvals=[], requirements=[], roster_sha256=None)
    assert bare.problems() == []  # nobody knows that it ran

    def ended(status: Any, **how: Any) -> list[tuple[int | None, str]]:
        sealed = Envelope.parse(bare.call["invocation"], may_be_joint=True)
        payload = outcome_statement(
            canonical.sha256_hex(sealed.payload),
            authorization=LogPlace(0, bare.last),
            status=status,
            result=None,
            result_type=None,
            error_type=None,
            started_at=None,
            ended_at=bare.call["at"],
            **how,
        )
        said = bare.records[-1].summary
        about = Summary("outcome", bare.call["at"], said.invocation_id, said.agent, status=status)
        record = UnsignedOutcome.of(payload, bare.keys["coder"], about, None).signed()
        return replace(bare, records=(*bare.records, record)).problems()

    assert ended("not_run", replay_of="0" * 32) == []  # of a call that had run before
    for status in ("ok", "error", "unknown"):
        ((index, what),) = ended(status)
        assert index == bare.last + 1
        assert "rests on no answer" in what
