"""Each parameter of the public API that grants, limits or names somebody, left empty.

The parameters come from the signatures of what ``agentguard`` exports, by the words of
``tools/empty_is_all.py``, so that a new one is asked as well. ``test_empty_proof_parameters.py``
has ``agentguard.proof``, each adapter its own names, and ``test_token_service_empty.py`` the
clients of a token service.
"""

from __future__ import annotations

from typing import Any

import pytest
from empty_parameters import Case, parameters, require_no_two, require_nothing

import agentguard
from agentguard import Decision, Guard, Requirement

MADE = {"ApprovalRequest", "Decision", "Delegation", "Evidence", "FactsInput"}
"""What agentguard makes itself, and hands to a program: nobody grants with its parameters."""


def lent(**given: Any) -> Any:
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        return guard.delegate(**{"subject": "user:alice", "scope": ["a"], **given})


def tool(**given: Any) -> Any:
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        return guard.tool(**given)(lambda: None).spec


CASES: dict[tuple[str, str], Case] = {
    ("Guard.delegate", "subject"): (lambda: lent(subject=""), "principal.malformed"),
    ("Guard.delegate", "scope"): (lambda: lent(scope=[]).scope, ()),
    ("Guard.delegate", "via"): (lambda: lent(via=""), "principal.malformed"),
    ("Guard.delegate", "audience"): (lambda: lent(audience=[]), "hop.malformed"),
    ("Delegation.narrowed", "scope"): (lambda: lent().narrowed(scope=[]).scope, ()),
    ("Guard.tool", "resource"): (lambda: tool(resource=""), "config.invalid"),
    ("Guard.tool", "requires"): (lambda: tool(requires=[]), "config.invalid"),
    ("Requirement", "approvers"): (lambda: Requirement(approvers=()), "policy.malformed"),
    ("Requirement", "roles"): (lambda: Requirement(roles=()), "policy.malformed"),
    ("Decision.require_approval", "requirements"): (
        lambda: Decision.require_approval(*[]).requirements,
        (Requirement(),),
    ),
}
"""What an empty value does: the code of its refusal, or the value that it becomes."""


@pytest.mark.parametrize(("where", "name"), sorted({*parameters(agentguard, MADE)}))
def test_an_empty_value_of_a_parameter_gives_nothing(where, name):
    require_nothing(CASES[where, name])


def test_the_twins_are_taken():
    assert lent(via="service:chat", audience=["x"]).scope == ("a",)
    assert tool(resource="note", requires=["a"]).requires == ("a",)
    assert tool().requires == ()
    assert Requirement(approvers=("bob",), roles=("lead",)).roles == ("lead",)


SCOPES: dict[tuple[str, str], Any] = {
    ("Guard.delegate", "scope"): lambda name: lent(scope=["a", name]),
    ("Delegation.narrowed", "scope"): lambda name: lent(scope=["a", "b"]).narrowed(scope=[name]),
    ("Guard.tool", "requires"): lambda name: tool(requires=[name]),
}


@pytest.mark.parametrize("where", SCOPES)
def test_one_name_of_a_scope_is_no_two(where):
    require_no_two(SCOPES[where])


def test_so_many_parameters_are_asked():
    assert {*parameters(agentguard, MADE)} == CASES.keys()
    assert len(CASES) == 10
    assert SCOPES.keys() == {one for one in CASES if one[1] in ("scope", "scopes", "requires")}
