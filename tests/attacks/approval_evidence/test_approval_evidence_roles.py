"""A call that a role approved by the application's word: each forgery is found.

The forger is an insider with the keys of the log and the agent, as in the other files here. The
roles in an unsigned answer count as far as the issuer's roster lists them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from approval_forgeries import RELEASE, Insider, asking

from agentguard import Requirement
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.signing.canonical import loads_object

IN_THE_ROLE = Requirement("a release manager", roles=(RELEASE,))


@pytest.fixture(scope="module")
def clicked(asked) -> Insider:
    return asked(IN_THE_ROLE, vouched="user:bob", by_word=[RELEASE])


def answered(log: Insider, needed: Requirement, *answers: dict[str, Any]) -> Insider:
    """The call as if this had been asked, and answered by the application's word."""
    request = replace(log.request, requirements=(needed,))
    index, stated = log.index("request"), RequestEntry.new(request, None, at=log.call["at"])
    changed = log.with_body(index, loads_object(stated.body), stated.summary)
    given = [changed.answer(None, request=request, **said) for said in answers]
    return changed.saying(requirements=[needed.as_json()], approvals=given).signed_anew()


def word(*roles: str, approver: str = "user:bob") -> dict[str, Any]:
    return {"approver": approver, "roles": [*roles]}


def test_the_call_that_a_role_approved_holds(clicked):
    assert clicked.holds()
    assert answered(clicked, IN_THE_ROLE, word(RELEASE)).holds()


@pytest.mark.parametrize(
    "roles", [(), ("security",), (RELEASE.upper(),), (f"{RELEASE} ",)], ids=str
)
def test_another_role_is_not_enough(clicked, roles):
    assert not answered(clicked, IN_THE_ROLE, word(*roles)).holds()


def test_a_role_that_the_roster_does_not_list_counts_for_nothing(clicked):
    needed = Requirement("security", roles=("security",))
    claimed = answered(clicked, needed, word("security"))
    assert not claimed.holds()
    listed = {**clicked.roster(), "application_roles": ["security"]}
    assert answered(clicked, needed, word("security")).with_roster(listed).holds()
    assert not clicked.with_roster(listed).holds()
    assert not clicked.with_roster({**clicked.roster(), "application_roles": []}).holds()
    assert clicked.with_roster(clicked.roster()).holds()


@pytest.mark.parametrize("listed", [None, RELEASE, {RELEASE: True}, [1], True], ids=repr)
def test_a_roster_that_lists_no_roles_is_none(clicked, listed):
    """The second verifier leaves out the form of a roster."""
    forged = clicked.with_roster({**clicked.roster(), "application_roles": listed})
    assert forged.problems()
    assert forged.refusals()[0] == "roster.malformed"


@pytest.mark.parametrize("signer", ["log", "coder", "bob", None])
def test_nobody_but_the_issuer_lists_roles(clicked, signer):
    said = clicked.roster()
    assert not clicked.with_roster(said, signer=signer).holds()
    assert clicked.with_roster(said).holds()


def test_who_asks_does_not_approve_in_a_role(clicked):
    for requester in ("user:alice", "user:olga"):
        assert not answered(clicked, IN_THE_ROLE, word(RELEASE, approver=requester)).holds()
    own = Requirement("a release manager", roles=(RELEASE,), allow_self=True)
    assert answered(clicked, own, word(RELEASE, approver="user:alice")).holds()


def test_a_quorum_counts_principals(clicked):
    two = Requirement("two", roles=(RELEASE,), quorum=2)
    assert not answered(clicked, two, word(RELEASE), word(RELEASE)).holds()
    assert not answered(clicked, two, word(RELEASE), word(approver="user:eve")).holds()
    assert answered(clicked, two, word(RELEASE), word(RELEASE, approver="user:eve")).holds()


def test_a_click_does_not_count_where_people_are_named(clicked):
    named = Requirement("bob", approvers=("bob",), roles=(RELEASE,))
    assert not answered(clicked, named, word(RELEASE)).holds()
    assert asking(clicked, [named], ("bob", "user:bob")).holds()


@pytest.mark.parametrize(
    "roles",
    [[RELEASE, RELEASE], [RELEASE, "a"], RELEASE, None, [RELEASE, 1], {RELEASE: 1}],
    ids=repr,
)
def test_roles_have_one_form(clicked, roles):
    """The second verifier leaves out the form of an answer."""
    forged = answered(clicked, IN_THE_ROLE, {"approver": "user:bob", "roles": roles})
    assert forged.problems()
    assert forged.refusals()[0] is not None


def test_nobody_signs_for_a_role_of_his_own(clicked):
    """Of a signed answer the roster alone says the roles."""
    needed = Requirement("security", roles=("security",))
    request = replace(clicked.request, requirements=(needed,))
    base = answered(clicked, needed, word("security"))
    claimed = base.answer("bob", request=request, approver="user:bob", roles=["security"])
    forged = base.saying(approvals=[claimed]).signed_anew()
    assert forged.problems()
    assert forged.refusals()[0] is not None
    assert asking(clicked, [needed], ("carol", "user:carol")).holds()
