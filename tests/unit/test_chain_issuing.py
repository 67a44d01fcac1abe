"""Issuing a chain of delegation: who may hand on what to whom.

Each refusal has its code, and beside it what is allowed. What a stranger verifies of a finished
chain is in test_chain.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from refused_chains import code_of, refused

from agentguard.delegation import chain_issuance
from agentguard.delegation.chain_issuance import DEFAULT_DEPTH
from agentguard.delegation.grant import MAX_DEPTH
from agentguard.errors import DelegationError

# --- issuing: attenuation -------------------------------------------------------------------------


def test_scope_can_be_narrowed_and_never_widened(world):
    chain = world.begin("a", "b", "c")
    one = world.extend(chain, world.member("a"), scope=["b", "a"])
    assert one.leaf.scope == ("a", "b")
    two = world.extend(one, world.member("b"), by=world.member("a"), scope=["a"])
    assert world.verify(two).leaf.scope == ("a",)
    refusal = code_of(
        DelegationError,
        world.extend,
        two,
        world.member("c"),
        by=world.member("b"),
        scope=["a", "b"],
    )
    assert refusal == "invalid_scope"


def test_an_empty_scope_goes_on_and_grants_nothing(world):
    chain = world.chain("a", "b", scope=())
    assert world.verify(chain).leaf.scope == ()
    asked: Any = {"by": world.member("b"), "scope": ["a"]}
    assert code_of(DelegationError, world.extend, chain, world.member("c"), **asked) == (
        "invalid_scope"
    )


def test_a_scope_is_compared_whole(world):
    chain = world.begin("repo:read")
    for asked in ("repo:rea", "repo:read:all", "repo", "repo:*", "*", "REPO:READ"):
        assert (
            code_of(DelegationError, world.extend, chain, world.member("a"), scope=[asked])
            == "invalid_scope"
        )


@pytest.mark.parametrize("asked", ["a", [5], [""], ["a b"], [None]])
def test_scopes_of_the_wrong_type_are_not_handed_on(world, asked):
    chain = world.begin("a")
    assert code_of(DelegationError, world.extend, chain, world.member("a"), scope=asked) == (
        "scope.malformed"
    )


def test_depth(world):
    chain = world.chain("a", max_depth=2)
    assert world.verify(chain).leaf.depth == 2
    asked: Any = {"by": world.member("a")}
    assert code_of(DelegationError, world.extend, chain, world.member("b"), **asked) == (
        "delegation.depth"
    )
    nobody = world.begin("a", max_depth=1)
    assert code_of(DelegationError, world.extend, nobody, world.member("a")) == "delegation.depth"


def test_the_deepest_chain_and_the_usual_one(world):
    deepest = world.chain(*(f"agent-{n}" for n in range(MAX_DEPTH - 1)), max_depth=MAX_DEPTH)
    assert len(world.verify(deepest).hops) == MAX_DEPTH
    assert code_of(DelegationError, world.begin, "a", max_depth=MAX_DEPTH + 1) == "delegation.depth"
    assert world.begin("a").root.max_depth == DEFAULT_DEPTH


def test_a_hop_ends_with_the_one_before_and_is_made_while_that_counts(world):
    chain = world.chain("a", expires_in=60)
    later = world.extend(chain, world.member("b"), by=world.member("a"), now=world.now + 59)
    assert later.leaf.expires_at == chain.root.expires_at == world.now + 60
    assert world.verify(later, at=world.now + 59) == later
    asked: Any = {"by": world.member("a"), "now": world.now + 60}
    assert code_of(DelegationError, world.extend, chain, world.member("b"), **asked) == (
        "delegation.expired"
    )


def test_audience_and_calls_are_those_of_the_hops_before(world):
    chain = world.chain("a", audience=("b.example", "a.example"), max_calls=3)
    assert world.verify(chain).leaf.audience == ("a.example", "b.example")
    assert chain.leaf.max_calls is None  # the first hop's number counts every call
    assert chain.limits == [(chain.root.jti, 3)]


REFUSED_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"principal": "agent:root"}, "principal.malformed"),
    ({"principal": "user:\u0430lice"}, "principal.malformed"),
    ({"principal": 5}, "principal.malformed"),
    ({"via": "spiffe://acme.example/agent/a/b"}, "principal.malformed"),
    ({"via": ""}, "principal.malformed"),
    ({"expires_in": 0}, "hop.malformed"),
    ({"expires_in": -1}, "hop.malformed"),
    ({"expires_in": 2**50}, "hop.malformed"),
    ({"expires_in": 2**60}, "hop.malformed"),
    ({"expires_in": float("nan")}, "hop.malformed"),
    ({"expires_in": 0.5}, "hop.malformed"),
    ({"max_calls": 0}, "hop.malformed"),
    ({"max_calls": True}, "hop.malformed"),
    ({"max_calls": 1.5}, "hop.malformed"),
    ({"max_depth": 0}, "delegation.depth"),
    ({"max_depth": True}, "delegation.depth"),
    ({"task_id": 5}, "hop.malformed"),
    ({"task_id": "\ud800"}, "json.unencodable"),
    ({"task_id": "x" * 1025}, "hop.malformed"),
    ({"scope": tuple(f"{number:0256}" for number in range(1_200))}, "jws.size"),
    ({"audience": ("a b",)}, "hop.malformed"),
    ({"audience": ("",)}, "hop.malformed"),
    ({"audience": (5,)}, "hop.malformed"),
    ({"scope": "repo:read"}, "scope.malformed"),
    ({"scope": (5,)}, "scope.malformed"),
]


@pytest.mark.parametrize(("terms", "code"), REFUSED_TERMS, ids=map(str, REFUSED_TERMS))
def test_what_can_not_be_lent(world, terms, code):
    good: Any = {"principal": "user:alice", "scope": ("a",)}
    chain_issuance.begin(
        world.issuer, world.domain, chain_issuance.Terms(**good), now=world.now, jti=world.jti()
    )
    asked = chain_issuance.Terms(**(good | terms))
    assert (
        code_of(
            DelegationError,
            chain_issuance.begin,
            world.issuer,
            world.domain,
            asked,
            now=world.now,
            jti=world.jti(),
        )
        == code
    )


# --- issuing: who holds it ------------------------------------------------------------------------


def test_only_who_was_given_it_hands_it_on(world):
    chain, a, b = world.chain("a"), world.member("a"), world.member("b")
    assert world.verify(world.extend(chain, b, by=a)).leaf.delegatee == b.uri
    for by in (None, b, world.instance("a")):  # the issuer, another agent, another instance
        assert code_of(DelegationError, world.extend, chain, b, by=by) == "delegation.holder"


def test_nobody_else_hands_on_what_the_issuer_asserts(world, stranger):
    """By another key it can be made, and does not verify: a verifier knows the issuer's keys."""
    begun = world.begin("a")
    refusal = code_of(DelegationError, world.extend, begun, world.member("b"), by=world.member("a"))
    assert refusal == "delegation.holder"
    made = chain_issuance.extend(
        world.begin("a"),
        stranger,
        world.member("a").credential,
        by=None,
        scope=["a"],
        now=world.now,
        jti=world.jti(),
    )
    assert refused(world, made) == "key.unknown"


def test_an_agent_may_hand_on_to_itself_and_back(world):
    chain = world.chain("a", "a", "b", "a")
    assert world.verify(chain).actors == ["service:ci", "agent:a", "agent:a", "agent:b", "agent:a"]
    assert len(chain.credentials) == 2
