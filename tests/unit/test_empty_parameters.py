"""Each parameter of the public API that grants, limits or names somebody, left empty.

The parameters come from the signatures of what ``agentguard`` exports, by the words of
``tools/empty_is_all.py``, so that a new one is asked as well. ``test_token_service_empty.py`` has
the clients of a token service.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from empty_is_all import WORDS

import agentguard
from agentguard import AgentguardError, Decision, Guard, Requirement

MADE = {"ApprovalRequest", "Decision", "Delegation", "Evidence", "FactsInput"}
"""What agentguard makes itself, and hands to a program: nobody grants with its parameters."""

FUNCTIONS = ("RolesFunction", "TrustDocument")
"""Types of parameters that can't be empty."""


def parameters() -> Iterator[tuple[str, str]]:
    """Yield the function and the name of each parameter."""
    for exported in agentguard.__all__:
        thing: Any = getattr(agentguard, exported)
        functions = [(exported, thing)]
        if inspect.isclass(thing):
            if issubclass(thing, Exception):
                continue
            functions = [] if exported in MADE else functions
            functions += [
                (f"{exported}.{name}", member)
                for name, member in inspect.getmembers(thing, _is_written)
                if not name.startswith("_")
            ]
        for where, function in functions:
            if not inspect.isclass(function) or function.__init__ is not object.__init__:
                for one in inspect.signature(function).parameters.values():
                    is_word = any(one.name in (word, f"_{word}") for word in WORDS)
                    if is_word and not any(kind in str(one.annotation) for kind in FUNCTIONS):
                        yield where, one.name


def _is_written(member: object) -> bool:
    return inspect.isfunction(member) or inspect.ismethod(member)


def lent(**given: Any) -> Any:
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        return guard.delegate(**{"subject": "user:alice", "scope": ["a"], **given})


def tool(**given: Any) -> Any:
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        return guard.tool(**given)(lambda: None).spec


CASES: dict[tuple[str, str], tuple[Callable[[], Any], Any]] = {
    ("Guard.delegate", "subject"): (lambda: lent(subject=""), "principal.malformed"),
    ("Guard.delegate", "scope"): (lambda: lent(scope=[]).scope, ()),
    ("Guard.delegate", "via"): (lambda: lent(via=""), "principal.malformed"),
    ("Guard.delegate", "audience"): (lambda: lent(audience=[]), "hop.malformed"),
    ("Delegation.narrowed", "scope"): (lambda: lent().narrowed(scope=[]).scope, ()),
    ("Guard.tool", "resource"): (lambda: tool(resource=""), "config.invalid"),
    ("Guard.tool", "requires"): (lambda: tool(requires=[]).requires, ()),
    ("Requirement", "approvers"): (lambda: Requirement(approvers=()), "policy.malformed"),
    ("Requirement", "roles"): (lambda: Requirement(roles=()), "policy.malformed"),
    ("Decision.require_approval", "requirements"): (
        lambda: Decision.require_approval(*[]).requirements,
        (Requirement(),),
    ),
}
"""What an empty value does: the code of its refusal, or the value that it becomes."""


@pytest.mark.parametrize(("where", "name"), sorted({*parameters()}))
def test_an_empty_value_of_a_parameter_gives_nothing(where, name):
    call, expected = CASES[where, name]
    if not isinstance(expected, str):
        assert call() == expected
        return
    with pytest.raises(AgentguardError) as caught:
        call()
    assert caught.value.code == expected


def test_the_twins_are_taken():
    assert lent(via="service:chat", audience=["x"]).scope == ("a",)
    assert tool(resource="note", requires=["a"]).requires == ("a",)
    assert Requirement(approvers=("bob",), roles=("lead",)).roles == ("lead",)


def test_so_many_parameters_are_asked():
    assert {*parameters()} == CASES.keys()
    assert len(CASES) == 10
