"""Whatever is asked for, a child's authority is a subset of its parent's: issued or verified.

Scope, expiry, depth, audience and calls, at every hop; and a chain in JSON is the same chain again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from agentguard import AgentguardError, Decision, Denied, Guard
from agentguard.delegation import grant, verification
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import MAX_CALLS, MAX_DEPTH, Grant
from agentguard.errors import DelegationError

SCOPES = ("a", "b", "c", "repo:read", "repo:write", "*")
AUDIENCES = ("spiffe://acme.example", *(f"https://{name}.example" for name in "abcdef"))
NAMES = ("one", "two", "three")

scopes = st.lists(st.sampled_from(SCOPES), max_size=6)
odd = st.lists(
    st.sampled_from(SCOPES)
    | st.text(max_size=4)
    | st.none()
    | st.integers()
    | st.binary(max_size=3),
    max_size=5,
)
calls = st.none() | st.integers(1, 4) | st.just(MAX_CALLS)
moments = st.integers(0, 120)


def is_within(child: Grant, parent: Grant) -> bool:
    """Whether one hop's authority is a subset of another's, computed anew."""
    return (
        all(one in parent.scope for one in child.scope)
        and child.expires_at <= parent.expires_at
        and child.issued_at >= parent.issued_at
        and parent.depth < child.depth <= child.max_depth <= parent.max_depth
        and all(one in parent.audience for one in child.audience)
        and bool(child.audience)
        and child.principal == parent.principal
        and child.task_id == parent.task_id
    )


def calls_left(chain: Chain, hops: int) -> float:
    """How many calls a chain allows up to one of its hops."""
    limits = (hop.grant.max_calls for hop in chain.hops[:hops])
    return min((most for most in limits if most is not None), default=float("inf"))


def only_narrows(chain: Chain) -> bool:
    pairs = zip(chain.hops, chain.hops[1:], strict=False)
    return all(is_within(child.grant, parent.grant) for parent, child in pairs) and all(
        calls_left(chain, n + 1) <= calls_left(chain, n) for n in range(1, len(chain.hops))
    )


audiences = st.none() | st.lists(st.sampled_from(AUDIENCES), min_size=1, max_size=7).map(tuple)


@st.composite
def begun(draw: Any, world: Any) -> Chain:
    chain: Chain = world.begin(
        *draw(scopes),
        audience=draw(audiences),
        expires_in=draw(st.integers(1, 100)),
        max_depth=draw(st.integers(1, MAX_DEPTH)),
        max_calls=draw(calls),
        task_id=draw(st.none() | st.text(max_size=5)),
        via=draw(st.sampled_from([None, "service:ci"])),
    )
    return chain


class Step:
    """One attempt to hand on: to whom, what, when; perhaps by somebody who does not hold it."""

    def __init__(self, to: str, scope: Sequence[Any], later: int, thief: str | None) -> None:
        self.to = to
        self.scope = scope
        self.later = later
        self.thief = thief

    def __repr__(self) -> str:
        return f"Step({self.to!r}, {self.scope!r}, {self.later}, {self.thief!r})"


steps = st.builds(
    Step,
    st.sampled_from(NAMES),
    scopes | odd,
    st.integers(0, 30),
    st.none() | st.sampled_from(NAMES),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), asked=st.lists(steps, max_size=MAX_DEPTH + 2))
def test_whatever_is_asked_for_what_is_issued_is_less_or_refused(world, data, asked):
    chain = data.draw(begun(world))
    holder, at = None, world.now
    for step in asked:
        at += step.later
        by = holder if step.thief is None else world.member(step.thief)
        try:
            longer = world.extend(chain, world.member(step.to), by=by, scope=step.scope, now=at)
        except DelegationError as error:
            assert error.code  # noqa: PT017  refused is fine, and then nothing has changed
            continue
        assert set(longer.leaf.scope) <= set(step.scope)
        assert is_within(longer.leaf, chain.leaf)
        assert calls_left(longer, len(longer.hops)) <= calls_left(chain, len(chain.hops))
        assert by is holder  # and nobody else
        chain, holder = longer, world.member(step.to)
        assert world.verify(chain, at=at) == chain  # what is issued verifies
    assert only_narrows(chain)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "scope": scopes.map(lambda found: tuple(sorted(set(found)))),
    "audience": st.lists(st.sampled_from(AUDIENCES), max_size=7).map(
        lambda found: tuple(sorted(set(found)))
    ),
    "expires_at": st.integers(-2, 110),
    "issued_at": st.integers(-2, 110),
    "depth": st.integers(0, 18),
    "max_depth": st.integers(0, 18),
    "max_calls": calls | st.integers(-1, 6),
    "principal": st.sampled_from(["user:alice", "user:bob"]),
    "task_id": st.sampled_from([None, "t-1"]),
}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    claims=st.fixed_dictionaries({}, optional=FIELDS),
    at=moments,
)
@example(data=None, claims={}, at=5)
def test_a_verifier_takes_what_is_less_and_nothing_else(world, data, claims, at):
    """The holder signs whatever he likes under what he was given."""
    holder, to = world.member("one"), world.member("two")
    start = world.begin(
        "a",
        "b",
        "repo:read",
        audience=AUDIENCES[:5],
        expires_in=100,
        max_depth=5 if data is None else data.draw(st.integers(3, 6), label="max_depth"),
        max_calls=None if data is None else data.draw(calls, label="max_calls"),
        task_id="t-1",
    )
    parent = world.extend(start, holder)
    good = world.extend(parent, to, by=holder, now=world.now + 1).leaf
    times = {
        name: world.now + claims[name] for name in ("issued_at", "expires_at") if name in claims
    }
    asked = replace(good, **{**claims, **times})
    hop = grant.sign(asked, holder.signer)
    forged = Chain((*parent.hops, hop), (holder.credential, to.credential))
    try:
        verified = world.verify(forged, at=world.now + at)
    except AgentguardError:
        well_formed = (
            asked.depth == parent.leaf.depth + 1
            and asked.issued_at < asked.expires_at
            and asked.issued_at <= world.now + at < asked.expires_at
            and (asked.max_calls is None or asked.max_calls >= 1)
        )
        assert not (well_formed and is_within(asked, parent.leaf))  # less is never refused
        return
    assert verified.leaf == asked
    assert only_narrows(verified)
    assert verified.leaf.depth == len(verified.hops)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), names=st.lists(st.sampled_from(NAMES), max_size=4))
def test_a_chain_in_JSON_is_the_same_chain(world, data, names):  # noqa: N802
    chain = data.draw(begun(world))
    assume(chain.root.max_depth > len(names))
    by = None
    for name in names:
        chain = world.extend(chain, world.member(name), by=by)
        by = world.member(name)
    read = verification.loads(chain.dumps(), world.trust, at=world.now)
    assert read == chain
    assert read.dumps() == chain.dumps()
    assert verification.from_json(read.as_json(), world.trust, at=world.now) == chain
    assert read.sha256 == chain.sha256
    assert [grant.read(hop.token) for hop in chain.hops] == [hop.grant for hop in chain.hops]


# --- through a guard ------------------------------------------------------------------------------

MOST = {"wide": list(SCOPES), "narrow": ["a", "repo:read"], "nothing": []}


@pytest.fixture(scope="module")
def guarded():
    """A guard, its agents, and the policy's inputs."""
    seen: list[Any] = []

    def policy(document):
        seen.append(document)
        return Decision.allow()

    tables = {"agents": {name: {"max_scope": most} for name, most in MOST.items()}}
    with Guard.ephemeral(policy, config=tables) as guard:
        yield guard, {name: guard.new_agent(name) for name in MOST}, seen


def calling(agent: Any, tool: Any) -> Any:
    return lambda: agent.call(tool)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    lent=scopes,
    narrowed=st.none() | scopes,
    through=st.lists(st.sampled_from(sorted(MOST)), min_size=1, max_size=4),
    required=st.none() | st.lists(st.sampled_from(SCOPES), min_size=1, max_size=2),
)
def test_an_agent_never_has_more_than_was_lent_nor_than_its_own(
    guarded, lent, narrowed, through, required
):
    guard, agents, seen = guarded
    ran: list[str] = []
    seen.clear()
    tool = guard.tool(name="tool", requires=required)(lambda: ran.append("tool"))
    for name in reversed(through[1:]):  # each agent's tool calls the next agent
        tool = guard.tool(name="outer")(calling(agents[name], tool))
    delegation = guard.delegate("user:alice", scope=lent)
    allowed = set(lent)
    if narrowed is not None:
        try:
            delegation = delegation.narrowed(scope=narrowed)
            assert set(narrowed) <= allowed
            allowed = set(narrowed)
        except DelegationError:
            assert not set(narrowed) <= allowed
    expected = [allowed := allowed & set(MOST[name]) for name in through]
    try:
        with delegation:
            agents[through[0]].call(tool)
    except Denied as denied:
        assert denied.code == "scope.exceeded"  # noqa: PT017
    found = [set(document["delegation"]["scope"]) for document in seen]
    assert found == expected[: len(found)]
    assert bool(ran) is (set(required or ()) <= allowed)
