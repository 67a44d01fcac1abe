"""The application's word for a role: for whom, for which roles and for which call the word counts.

The configuration lists the roles for which the word counts (``application_roles``). The roles of a
principal come from the roster, or from a function of the application.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from approved_calls import Place, answer, asking

from agentguard import AgentguardError, ConfigError, Decision, Denied, Guard, Requirement
from agentguard.approvals.answer import read_answer

MANAGER = Requirement("refunds above 100.00 need a manager", roles=("manager",))
WORD = {"application": True, "application_roles": ["manager"]}
STAFF = {
    "dora": {"principal": "user:dora", "roles": ["manager"]},
    "erin": {"principal": "user:erin", "roles": ["manager", "clerk"]},
    "carl": {"principal": "user:carl", "roles": ["clerk"]},
}


def shop(*needed: Requirement, roles: Any = None, **word: Any) -> Place:
    """A guard whose policy asks for a manager, and whose application gives its word."""
    place = Place(asking(*(needed or (MANAGER,))))
    tables = {"approvers": {**place.people.table(), **STAFF}, "approvals": {**WORD, **word}}
    return place.under(tables, approver_roles=roles)


def refusal(place: Place, request: Any, principal: str, verdict: Any = "approve") -> str:
    with pytest.raises(AgentguardError) as refused:
        place.guard.approvals.vouch(request, verdict, principal=principal)
    assert place.guard.approvals.pending() == [request]  # the request waits on
    place.told = str(refused.value)
    return refused.value.code


def test_a_manager_approves_by_a_click():
    place = shop()
    request = place.ask()
    given = place.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert (given.approver, given.roles) == (None, ("manager",))
    assert place.call() == "merged main"
    assert place.guard.verify().ok


@pytest.mark.parametrize(
    ("principal", "code"),
    [
        ("user:carl", "approval.refused"),  # of another role
        ("user:zoe", "approval.refused"),  # of no role
        ("dora", "principal.malformed"),
        ("user:Dora", "principal.malformed"),
    ],
)
def test_a_click_of_somebody_else_leaves_the_request_open(principal, code):
    place = shop()
    request = place.ask()
    assert refusal(place, request, principal) == code
    assert place.ran == []
    place.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert place.call() == "merged main"


def test_a_manager_does_not_approve_a_call_of_her_own():
    place = shop()
    with place.guard.delegate("user:dora", scope=["x"]):
        request = place.ask()
        assert refusal(place, request, "user:dora") == "approval.refused"
        place.guard.approvals.vouch(request, "approve", principal="user:erin")
        assert place.call() == "merged main"


def test_the_word_counts_for_the_listed_roles_alone():
    clerk = Requirement("a clerk", roles=("clerk", "release-manager"))
    place = shop(clerk)
    request = place.ask()
    assert refusal(place, request, "user:carl") == "approval.refused"
    assert "list the role in [approvals] application_roles" in place.told
    listed = shop(clerk, application_roles=["clerk"])
    listed.guard.approvals.vouch(listed.ask(), "approve", principal="user:carl")
    assert listed.call() == "merged main"


def test_an_answer_has_no_role_for_which_the_word_does_not_count():
    place = shop()
    given = place.guard.approvals.vouch(place.ask(), "approve", principal="user:erin")
    assert read_answer(given.envelope).roles == ("manager",)  # erin is a clerk as well


def test_the_word_does_not_count_where_a_policy_names_people():
    named = Requirement("dora or bob", approvers=("dora", "bob"))
    place = shop(named)
    assert refusal(place, place.ask(), "user:dora") == "approval.refused"
    assert "signed" in place.told


def test_a_quorum_counts_the_principals_who_click():
    two = Requirement("two managers", roles=("manager",), quorum=2)
    place = shop(two)
    request, inbox = place.ask(), place.guard.approvals
    inbox.vouch(request, "approve", principal="user:dora")
    inbox.vouch(request, "approve", principal="user:dora")
    assert inbox.missing(request) == "two managers: 1 of 2 approvals in the role manager"
    assert place.ask() == request
    inbox.vouch(request, "approve", principal="user:erin")
    assert place.call() == "merged main"
    assert place.guard.verify().ok


def test_a_signature_and_a_click_make_a_quorum_of_two_people():
    either = Requirement("two", roles=("manager", "release-manager"), quorum=2)
    place = shop(either)
    request = place.ask()
    place.approve(request, "bob")
    place.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert place.call() == "merged main"


def test_a_click_for_another_call_counts_for_nothing():
    place = shop()
    first, second = place.ask("a"), place.ask("b")
    given = place.guard.approvals.vouch(first, "approve", principal="user:dora")
    with pytest.raises(AgentguardError) as refused:
        place.guard.approvals.accept(second, given.envelope)
    assert refused.value.code == "approval.unsigned"
    assert place.ask("b") == second
    assert place.call("a") == "merged a"


def test_an_unsigned_answer_comes_from_the_application_itself():
    """Whoever sends an envelope could name any principal and any role in it."""
    place = shop(Requirement("a person"))
    request = place.ask()
    with pytest.raises(AgentguardError) as refused:
        place.guard.approvals.accept(request, answer(request, None, "user:dora"))
    assert refused.value.code == "approval.unsigned"
    assert place.ask() == request
    place.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert place.call() == "merged main"


# --- a requirement that nobody can meet -----------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "word", "said"),
    [
        ({"roles": ("cfo",)}, {}, "list the role in [approvals] application_roles"),
        ({"roles": ("clerk",)}, {}, "list the role in [approvals] application_roles"),
        ({"roles": ("cfo",)}, {"application": False, "application_roles": []}, "[approvers]"),
        ({"approvers": ("dora",)}, {}, "[approvers]"),  # who has no key
        ({"roles": ("manager",), "quorum": 3}, {}, "it takes 3 people in the role manager, and 2"),
    ],
)
def test_nobody_is_asked_for_what_nobody_can_give(needed, word, said):
    signers = {} if word else STAFF
    place = Place(asking(Requirement("r", **needed)))
    place.under({"approvers": {**place.people.table(), **signers}, "approvals": {**WORD, **word}})
    with pytest.raises(Denied, match=re.escape(said)) as denied:
        place.call()
    assert denied.value.code == "approval.unavailable"
    assert (place.guard.approvals.pending(), place.ran) == ([], [])


def test_nobody_is_asked_where_the_requester_is_missing_in_the_quorum():
    place = shop(Requirement("two managers", roles=("manager",), quorum=2))
    with place.guard.delegate("user:dora", scope=["x"]):
        with pytest.raises(Denied, match="and 1 could approve, user:dora aside") as denied:
            place.call()
        assert denied.value.code == "approval.unavailable"
    with place.guard.delegate("user:carl", scope=["x"]):  # two others are there
        place.ask()


POLICY = """package agent.authz
allow if input.action == "read"
approval := {"reason": "a cfo", "roles": ["%s"]} if input.action == "merge"
"""


@pytest.mark.parametrize(("role", "starts"), [("cfo", False), ("manager", True)])
def test_a_guard_does_not_begin_with_a_role_that_nobody_has(tmp_path, role, starts):
    (tmp_path / "policy.rego").write_text(POLICY % role)
    tables = {"approvers": STAFF, "approvals": WORD}
    if starts:
        Guard.ephemeral(tmp_path / "policy.rego", config=tables).close()
        return
    with pytest.raises(ConfigError, match="a cfo: it takes 1 person in the role cfo") as refused:
        Guard.ephemeral(tmp_path / "policy.rego", config=tables)
    assert refused.value.code == "approval.unavailable"


# --- a rejection by a click -----------------------------------------------------------------------


@pytest.mark.parametrize("principal", ["user:dora", "user:carl", "user:alice"])
def test_who_is_on_the_roster_or_asks_rejects(principal):
    place = shop()
    with place.guard.delegate("user:alice", scope=["x"]):
        place.guard.approvals.vouch(place.ask(), "reject", principal=principal, note="no")
        assert place.denied() == "approval.rejected"


def test_who_asks_takes_the_call_back_whatever_the_function_of_roles_knows():
    place = shop(roles={"user:dora": ["manager"]}.get)
    with place.guard.delegate("user:alice", scope=["x"]):
        request = place.ask()
        assert refusal(place, request, "user:alice") == "approval.unknown"
        place.guard.approvals.vouch(request, "reject", principal="user:alice")
        assert place.denied() == "approval.rejected"


def test_who_is_on_the_roster_rejects_whatever_the_function_of_roles_knows():
    place = shop(roles={"user:dora": ["manager"]}.get)
    request = place.ask()
    assert refusal(place, request, "user:carl") == "approval.unknown"
    place.guard.approvals.vouch(request, "reject", principal="user:carl")
    assert place.denied() == "approval.rejected"


def test_a_stranger_does_not_reject():
    place = shop()
    request = place.ask()
    assert refusal(place, request, "user:zoe", "reject") == "approval.refused"
    assert "rejection would not count" in place.told
    place.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert place.call() == "merged main"


# --- the roles by a function of the application ---------------------------------------------------


def test_the_application_knows_the_managers():
    staff = {"user:mia": ["manager"], "user:ned": {"clerk"}, "user:oda": ()}
    place = shop(roles=staff.get)
    request = place.ask()
    assert refusal(place, request, "user:ned") == "approval.refused"
    assert refusal(place, request, "user:oda") == "approval.refused"
    assert refusal(place, request, "user:zoe") == "approval.unknown"
    assert refusal(place, request, "user:dora") == "approval.unknown"  # whom the roster alone has
    place.guard.approvals.vouch(request, "approve", principal="user:mia")
    assert place.call() == "merged main"
    assert place.guard.verify().ok


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("manager", "roles.failed"),
        (["manager", 1], "roles.failed"),
        (True, "roles.failed"),
        (LookupError("the database is away"), "roles.failed"),
    ],
    ids=repr,
)
def test_a_function_that_breaks_lets_no_answer_count(result, code):
    results = [result]

    def roles(_principal: str) -> Any:
        current = results[0]
        if isinstance(current, Exception):
            raise current
        return current

    place = shop(roles=roles)
    request = place.ask()
    assert refusal(place, request, "user:dora") == code
    assert refusal(place, request, "user:zoe", "reject") == code
    assert "database" not in place.told
    results[0] = ["manager"]
    place.guard.approvals.vouch(request, "approve", principal="user:dora")
    assert place.call() == "merged main"


def test_the_function_gives_no_role_that_is_not_listed():
    owner = Requirement("an owner", roles=("owner", "release-manager"))
    place = shop(owner, roles=lambda _who: ["owner", "manager"])
    assert refusal(place, place.ask(), "user:dora") == "approval.refused"


def test_a_coroutine_function_is_refused():
    async def roles(_principal: str) -> list[str]:
        return ["manager"]

    with pytest.raises(ConfigError, match="approver_roles: expected a function"):
        shop(roles=roles)


def test_the_configuration_names_the_function():
    tables = {"approvals": {**WORD, "roles": f"{__name__}:everybody_is_a_manager"}}
    decide = lambda _call: Decision.require_approval(MANAGER)  # noqa: E731
    with Guard.ephemeral(decide, config=tables) as guard:
        tool = guard.tool(name="merge")(lambda: "merged")
        agent = guard.new_agent("coder")
        with pytest.raises(AgentguardError) as pending:
            agent.call(tool)
        assert pending.value.code == "approval.pending"
        (request,) = guard.approvals.pending()
        guard.approvals.vouch(request, "approve", principal="user:zoe")
        assert agent.call(tool) == "merged"


def everybody_is_a_manager(_principal: str) -> list[str]:
    return ["manager"]
