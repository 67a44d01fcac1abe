"""The fail-closed rule and the policy's input: every answer but a plain allow, and its twin."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest

from agentguard.adapters import Arguments, ToolSpec
from agentguard.call.decision import Requirement
from agentguard.call.vocabulary import RESERVED
from agentguard.errors import EncodeError, FactsError
from agentguard.policy.document import UNDEFINED, decide, document
from agentguard.signing.canonical import Fragment, dumps

ALLOW = {"allow": True}


@pytest.mark.parametrize(
    "answer",
    [
        ALLOW,
        ALLOW | {"deny_reasons": [], "obligations": [], "approval": []},
        ALLOW | {"approval": False, "a_rule_of_its_own": {"x": 1}},
        MappingProxyType(ALLOW),
    ],
)
def test_allow_true_and_nothing_against_it_allows(answer):
    assert decide(answer).allowed


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (UNDEFINED, "policy.undefined"),
        (True, "policy.malformed"),
        ("yes", "policy.malformed"),
        (None, "policy.malformed"),
        ([ALLOW], "policy.malformed"),
        (1, "policy.malformed"),
        (object(), "policy.malformed"),
        ({}, "policy.denied"),
        ({"allow": False}, "policy.denied"),
        ({"Allow": True}, "policy.denied"),
        ({"allow": 1}, "policy.malformed"),
        ({"allow": "true"}, "policy.malformed"),
        ({"allow": None}, "policy.malformed"),
        ({"allow": [True]}, "policy.malformed"),
        ({"allow": {"allow": True}}, "policy.malformed"),
        (ALLOW | {"deny_reason": "no"}, "policy.denied"),
        (ALLOW | {"deny_reason": False}, "policy.denied"),
        (ALLOW | {"deny_reason": None}, "policy.denied"),
        (ALLOW | {"deny_reason": ""}, "policy.denied"),
        (ALLOW | {"deny_reasons": ["no"]}, "policy.denied"),
        (ALLOW | {"deny_reasons": [None]}, "policy.denied"),
        (ALLOW | {"deny_reasons": "no"}, "policy.denied"),
        (ALLOW | {"deny_reasons": None}, "policy.denied"),
        (ALLOW | {"deny_reasons": {}}, "policy.denied"),
        (ALLOW | {"obligations": ["redact"]}, "obligation.unknown"),
        (ALLOW | {"obligations": [None]}, "obligation.unknown"),
        (ALLOW | {"obligations": {}}, "policy.malformed"),
        (ALLOW | {"obligations": None}, "policy.malformed"),
        (ALLOW | {"approval": None}, "policy.malformed"),
        (ALLOW | {"approval": 0}, "policy.malformed"),
        (ALLOW | {"approval": "bob"}, "policy.malformed"),
        (ALLOW | {"approval": [True]}, "policy.malformed"),
        (ALLOW | {"approval": {"quorum": 0}}, "policy.malformed"),
        (ALLOW | {"approval": {"quorum": True}}, "policy.malformed"),
        (ALLOW | {"approval": {"quorum": "2"}}, "policy.malformed"),
        (ALLOW | {"approval": {"quorum": 1.5}}, "policy.malformed"),
        (ALLOW | {"approval": {"ttl": -1}}, "policy.malformed"),
        (ALLOW | {"approval": {"roles": "release-manager"}}, "policy.malformed"),
        (ALLOW | {"approval": {"approvers": [1]}}, "policy.malformed"),
        (ALLOW | {"approval": {"approver": ["bob"]}}, "policy.malformed"),
        (ALLOW | {"approval": {"allow_self": 1}}, "policy.malformed"),
    ],
)
def test_everything_else_denies(answer, code):
    decision = decide(answer)
    assert (decision.outcome, decision.code) == ("deny", code)
    assert decision.reasons


@pytest.mark.parametrize("allow", [{}, {"allow": True}, {"allow": False}], ids=repr)
@pytest.mark.parametrize(
    ("approval", "requirement"),
    [
        (True, Requirement()),
        ({}, Requirement("approval required")),
        (
            {"reason": "merge", "approvers": ["bob"], "roles": ["lead"], "quorum": 2, "ttl": 60},
            Requirement("merge", ("bob",), ("lead",), 2, 60),
        ),
        ([{"reason": "merge", "allow_self": True}], Requirement("merge", allow_self=True)),
    ],
)
def test_an_approval_is_asked_for_whether_or_not_allow_holds(allow, approval, requirement):
    decision = decide(allow | {"approval": approval})
    assert decision.outcome == "approval"
    assert decision.requirements == (requirement,)


def test_precedence_is_deny_then_approval_then_allow():
    everything = ALLOW | {"approval": True, "deny_reason": "b", "deny_reasons": ["a", "b"]}
    assert decide(everything).reasons == ("a", "b")
    del everything["deny_reason"], everything["deny_reasons"]
    assert decide(everything).outcome == "approval"
    del everything["approval"]
    assert decide(everything).allowed


AGENT = Fragment(dumps({"id": "spiffe://x/agent/a/k", "name": "a"}))
TOOL = ToolSpec("open_pr", "Open it.", {}, "m:open_pr", attributes={"branch": "into"})


def built(arguments, facts=MappingProxyType({}), gives=("repo", "x")):
    bound, tool = Arguments.of(arguments), replace(TOOL, gives=gives)
    return json.loads(document(AGENT, tool, bound, resource="repo:x", task_id="t", facts=facts))


def test_the_input_has_the_shape_of_the_design():
    assert built({"into": "main", "n": 1}, {"repo": {"visibility": "internal"}}) == {
        "action": "open_pr",
        "agent": {"id": "spiffe://x/agent/a/k", "name": "a"},
        "args": {"into": "main", "n": 1},
        "branch": "main",
        "delegation": None,
        "repo": {"visibility": "internal"},
        "resource": "repo:x",
        "task_id": "t",
        "tool": {"name": "open_pr", "schema_sha256": TOOL.schema_sha256},
    }


def test_an_attribute_whose_argument_is_absent_is_left_out():
    assert "branch" not in built({"n": 1})


@pytest.mark.parametrize("name", [*sorted(RESERVED), "branch"])
def test_a_fact_never_replaces_what_stands_at_the_top(name):
    with pytest.raises(FactsError) as caught:
        built({"into": "main"}, {name: "mine"})
    assert caught.value.code == "facts.conflict"
    another = f"{name}_"
    assert built({"into": "main"}, {another: "mine"}, (another,))[another] == "mine"
    with pytest.raises(FactsError) as caught:
        built({"into": "main"}, {another: "mine"})
    assert caught.value.code == "facts.undeclared"


class Chameleon(str):
    """Looks like its text, and is equal to nothing."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


@pytest.mark.parametrize(
    "facts",
    [
        {"a-b": 1},
        {"": 1},
        {1: 1},
        {"a\n": 1},
        {"\ud800": 1},
        {"x": object()},
        {"x": {1, 2}},
        {"x": float("nan")},
        {"x": "\ud800"},
        {"x": 2**60},
        {Chameleon("agent"): {"name": "root"}},
    ],
)
def test_facts_that_are_no_json_object_are_refused(facts):
    with pytest.raises((FactsError, EncodeError)):
        built({}, facts)
