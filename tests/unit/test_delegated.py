"""``Guard.delegate`` and ``Delegation``: put in force, narrowed, bound, stored and resumed.

What happens to it in threads, tasks and generators is in tests/attacks/delegation_contexts.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentguard import (
    AgentguardError,
    ConfigError,
    Decision,
    Denied,
    Guard,
    VerificationError,
    adapters,
)
from agentguard.audit.kinds import parse_entry
from agentguard.delegation import access_token, context
from agentguard.errors import DecodeError, DelegationError
from agentguard.signing import canonical, jws

CONFIG: dict[str, Any] = {
    "roles": {
        "developer": {"scope": ["repo:read", "pr:write"]},
        "reader": {"scope": ["repo:read"]},
    },
    "agents": {
        "orchestrator": {"max_scope": ["repo:read", "pr:write", "secret:read"]},
        "fixer": {"roles": ["reader"], "max_scope": ["lint:run"]},
        "robot": {"authority": "own", "max_scope": ["repo:read", "secret:read"]},
    },
}
SCOPE = ["repo:read", "pr:write"]


@pytest.fixture
def asked():
    """The policy's inputs."""
    return []


@pytest.fixture
def guard(asked):
    def policy(document):
        asked.append(document)
        return Decision.allow()

    with Guard.ephemeral(policy, config=CONFIG) as opened:
        yield opened


@pytest.fixture
def orchestrator(guard):
    return guard.new_agent("orchestrator")


@pytest.fixture
def read(guard):
    @guard.tool(requires=["repo:read"])
    def read(path="README"):
        return path

    return read


def denied(call, *args, **kwargs) -> str:
    with pytest.raises(Denied) as caught:
        call(*args, **kwargs)
    return caught.value.code


def refused(call, *args, kind: type[AgentguardError] = DelegationError, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    return caught.value.code


def calls(guard):
    """What the log says of every call: for whom, under which chain, and the answer."""
    entries = (parse_entry(body) for _index, body in guard.reader().entries())
    return [e for e in entries if e.kind == "call"]


# --- in force -------------------------------------------------------------------------------------


def test_what_it_says(guard):
    before = datetime.now(UTC)
    lent = guard.delegate(
        "user:alice", scope=SCOPE, via="service:ci", task_id="t-1", expires_in=60, max_calls=3
    )
    assert lent.principal == "user:alice"
    assert lent.via == "service:ci"
    assert lent.members == ("user:alice", "service:ci")
    assert lent.scope == ("pr:write", "repo:read")
    assert lent.task_id == "t-1"
    assert lent.id == lent.chain.leaf.jti
    assert abs(lent.expires_at - before - timedelta(seconds=60)) < timedelta(seconds=5)
    assert repr(lent) == "<Delegation of user:alice: pr:write repo:read>"
    assert repr(guard.delegate("user:bob", scope=[])) == "<Delegation of user:bob: nothing>"
    assert guard.delegate("user:bob", scope=[]).via is None


def test_a_call_is_for_the_principal(guard, orchestrator, read, asked):
    with guard.delegate("user:alice", scope=SCOPE, via="service:ci", task_id="t-1") as lent:
        assert orchestrator.call(read, "x") == "x"
    (document,) = asked
    assert document["delegation"] == {
        "subject": "user:alice",
        "actor": "user:alice",
        "via": "service:ci",
        "chain": ["user:alice", "service:ci", orchestrator.id],
        "scope": ["pr:write", "repo:read"],
        "depth": 2,
        "assurance": "application",
        "roles": [],
    }
    (call,) = calls(guard)
    assert (call.principal, call.predicate["task_id"]) == ("user:alice", "t-1")
    assert call.chain_sha256 is not None
    assert lent.chain.leaf.delegatee == "service:ci"  # what was lent is as it was
    assert guard.verify().problems == ()


def test_without_one_an_agent_that_acts_for_others_does_nothing(guard, orchestrator, read, asked):
    assert denied(orchestrator.call, read) == "delegation.missing"
    with guard.delegate("user:alice", scope=SCOPE):
        assert orchestrator.call(read) == "README"
    assert denied(orchestrator.call, read) == "delegation.missing"
    assert len(asked) == 1
    assert [call.principal for call in calls(guard)] == [
        "agent:orchestrator",
        "user:alice",
        "agent:orchestrator",
    ]


def test_an_agent_of_its_own_authority_acts_by_itself_where_nothing_is_in_force(guard, read, asked):
    robot = guard.new_agent("robot")
    secret = guard.tool(name="secret", requires=["secret:read"])(lambda: "s")
    assert robot.call(secret) == "s"
    with guard.delegate("user:alice", scope=["repo:read"]):
        assert denied(robot.call, secret) == "scope.exceeded"  # for alice it may no more than she
        assert robot.call(read) == "README"
    assert robot.call(secret) == "s"
    assert [document.get("delegation") is None for document in asked] == [True, False, True]


async def test_async_with(guard, orchestrator, read):
    async with guard.delegate("user:alice", scope=SCOPE) as lent:
        assert lent.principal == "user:alice"
        assert await orchestrator.acall(read, "x") == "x"
    with pytest.raises(Denied) as caught:
        await orchestrator.acall(read)
    assert caught.value.code == "delegation.missing"


def test_it_may_be_in_force_again_and_inside_itself(guard, orchestrator, read):
    lent = guard.delegate("user:alice", scope=SCOPE)
    for _ in range(3):
        with lent, lent:
            with lent:
                assert orchestrator.call(read) == "README"
            assert orchestrator.call(read) == "README"
        assert denied(orchestrator.call, read) == "delegation.missing"
    assert len({call.chain_sha256 for call in calls(guard) if call.allowed}) == 1  # handed on once


def test_it_ends_with_an_exception_too(guard, orchestrator, read):
    lent = guard.delegate("user:alice", scope=SCOPE)
    for error in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), lent:
            raise error
        assert denied(orchestrator.call, read) == "delegation.missing"


def test_under_names_one_and_nothing_else_counts(guard, orchestrator, read, asked):
    bob = orchestrator.under(guard.delegate("user:bob", scope=SCOPE))
    assert bob.id == orchestrator.id
    with guard.delegate("user:alice", scope=SCOPE):
        bob.call(read)
        orchestrator.call(read)
    bob.call(read)
    found = [document["delegation"]["subject"] for document in asked]
    assert found == ["user:bob", "user:alice", "user:bob"]
    assert denied(orchestrator.call, read) == "delegation.missing"


def test_a_tool_hands_on_what_its_agent_was_lent(guard, orchestrator, read, asked):
    fixer = guard.new_agent("fixer")

    @guard.tool(requires=["pr:write"])
    def fix():
        return fixer.call(read, "inner")

    @guard.tool(requires=["pr:write"])
    async def afix():
        return await fixer.acall(read, "inner")

    with guard.delegate("user:alice", scope=SCOPE, via="service:ci"):
        assert orchestrator.call(fix) == "inner"
        assert asyncio.run(orchestrator.acall(afix)) == "inner"
    inner = asked[1]["delegation"]
    assert inner["chain"] == ["user:alice", "service:ci", orchestrator.id, fixer.id]
    assert inner["scope"] == ["repo:read"]  # of the fixer's own configuration
    assert asked[3]["delegation"] == inner


def test_an_agents_own_configuration_narrows(guard, read):
    fixer = guard.new_agent("fixer")
    lint = guard.tool(name="lint", requires=["lint:run"])(lambda: "ok")
    write = guard.tool(name="write", requires=["pr:write"])(lambda: "ok")
    with guard.delegate("user:alice", scope=[*SCOPE, "lint:run"]):
        assert fixer.call(read) == "README"
        assert fixer.call(lint) == "ok"
        assert denied(fixer.call, write) == "scope.exceeded"
    with guard.delegate("user:alice", scope=SCOPE):
        assert denied(fixer.call, lint) == "scope.exceeded"  # it has it, and she does not lend it


def test_an_empty_scope_grants_nothing(guard, orchestrator, read, asked):
    free = guard.tool(name="free")(lambda: "ok")
    with guard.delegate("user:alice", scope=[]):
        assert denied(orchestrator.call, read) == "scope.exceeded"
        assert orchestrator.call(free) == "ok"  # it asks for no scope: the policy decides
    assert len(asked) == 1


def test_what_lacks_the_scope_is_refused_before_the_policy_runs(guard, orchestrator, asked):
    secret = guard.tool(name="secret", requires=["secret:read"])(lambda: "s")
    says = "acting for user:alice, lacks the scope secret:read"
    with guard.delegate("user:alice", scope=SCOPE), pytest.raises(Denied, match=says):
        orchestrator.call(secret)
    assert asked == []


def test_depth_is_counted_to_the_agent_that_acts(guard, orchestrator, read):
    fixer = guard.new_agent("fixer")
    outer = guard.tool(name="outer")(lambda: fixer.call(read))
    with guard.delegate("user:alice", scope=SCOPE, max_depth=2):
        assert orchestrator.call(read) == "README"
        assert denied(orchestrator.call, outer) == "delegation.depth"
    with guard.delegate("user:alice", scope=SCOPE, max_depth=3):
        assert orchestrator.call(outer) == "README"


def test_calls_are_counted_over_all_that_act_under_it(guard, orchestrator, read):
    fixer = guard.new_agent("fixer")
    secret = guard.tool(name="secret", requires=["secret:read"])(lambda: "s")
    with guard.delegate("user:alice", scope=SCOPE, max_calls=3) as lent:
        assert denied(orchestrator.call, secret) == "scope.exceeded"  # does not count
        for agent in (orchestrator, fixer, orchestrator):
            agent.call(read)
        for agent in (orchestrator, fixer, orchestrator.under(lent)):
            assert denied(agent.call, read) == "calls.exceeded"
    with guard.delegate("user:alice", scope=SCOPE, max_calls=1):
        assert orchestrator.call(read) == "README"  # another delegation, another count


def test_an_evaluation_counts_no_call(guard, orchestrator, read):
    with guard.delegate("user:alice", scope=SCOPE, max_calls=1):
        invocation = orchestrator._invocation(read, (), {})
        for _ in range(3):
            assert adapters.evaluate(orchestrator, invocation).allowed
        assert orchestrator.call(read) == "README"
        assert adapters.evaluate(orchestrator, invocation).allowed
        assert denied(orchestrator.call, read) == "calls.exceeded"


def test_another_guards_delegation_is_refused(guard, orchestrator, read):
    other = Guard.ephemeral(lambda _d: Decision.allow(), config=CONFIG)
    with other, other.delegate("user:alice", scope=SCOPE):
        assert denied(orchestrator.call, read) == "key.unknown"
        theirs = other.tool(name="read", requires=["repo:read"])(lambda: "theirs")
        assert other.new_agent("orchestrator").call(theirs) == "theirs"
    assert (calls(guard)[-1].principal, calls(guard)[-1].is_proved) == ("user:alice", False)


# --- what is lent ---------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"subject": "agent:orchestrator"}, "principal.malformed"),
    ({"subject": ""}, "principal.malformed"),
    ({"subject": "user:\u0430lice"}, "principal.malformed"),
    ({"subject": None}, "principal.malformed"),
    ({"via": "agent:x"}, "principal.malformed"),
    ({"scope": None}, "scope.malformed"),
    ({"scope": "repo:read"}, "scope.malformed"),
    ({"scope": 5}, "scope.malformed"),
    ({"scope": [5]}, "scope.malformed"),
    ({"subject": ["user:alice"]}, "principal.malformed"),
    ({"scope": ["a b"]}, "scope.malformed"),
    ({"expires_in": 0}, "hop.malformed"),
    ({"expires_in": timedelta(0)}, "hop.malformed"),
    ({"expires_in": timedelta(seconds=-1)}, "hop.malformed"),
    ({"expires_in": timedelta.max}, "hop.malformed"),
    ({"expires_in": 10**30}, "hop.malformed"),
    ({"expires_in": 1.5}, "hop.malformed"),
    ({"expires_in": float("inf")}, "hop.malformed"),
    ({"expires_in": "1h"}, "hop.malformed"),
    ({"expires_in": None}, "hop.malformed"),
    ({"max_depth": 0}, "delegation.depth"),
    ({"max_depth": 17}, "delegation.depth"),
    ({"max_depth": "3"}, "delegation.depth"),
    ({"max_calls": 0}, "hop.malformed"),
    ({"max_calls": "5"}, "hop.malformed"),
    ({"max_calls": 2**53}, "hop.malformed"),
    ({"task_id": 5}, "hop.malformed"),
    ({"audience": ["a b"]}, "hop.malformed"),
    ({"audience": ["b", None]}, "hop.malformed"),
    ({"audience": 5}, "hop.malformed"),
    ({"audience": []}, "hop.malformed"),
    ({"audience": [["a"]]}, "hop.malformed"),
    ({"audience": ["a", 5]}, "hop.malformed"),
]


@pytest.mark.parametrize(("change", "code"), BAD, ids=map(str, BAD))
def test_what_can_not_be_lent(guard, change, code):
    good: dict[str, Any] = {"subject": "user:alice", "scope": SCOPE}
    assert guard.delegate(**good).scope
    assert refused(guard.delegate, **(good | change)) == code
    (argument,) = change
    if code in ("hop.malformed", "delegation.depth"):  # the others have the value in their words
        with pytest.raises(DelegationError, match=f"^{argument} "):
            guard.delegate(**(good | change))


def test_times_may_be_seconds_or_a_timedelta(guard):
    for given in (90, timedelta(seconds=90), timedelta(minutes=1.5)):
        root = guard.delegate("user:alice", scope=SCOPE, expires_in=given).chain.root
        assert root.expires_at - root.issued_at == 90


def test_one_audience_is_a_list_of_one(guard):
    for given in ("https://api.example", ["https://api.example"]):
        lent = guard.delegate("user:alice", scope=SCOPE, audience=given)
        assert lent.chain.root.audience == ("https://api.example",)


def test_the_roles_of_a_principal_say_what_it_may_lend():
    tables = {**CONFIG, "principals": {"user:alice": {"roles": ["developer"]}, "user:eve": {}}}
    seen: list[Any] = []

    def policy(document):
        seen.append(document)
        return Decision.allow()

    with Guard.ephemeral(policy, config=tables) as guard:
        assert guard.delegate("user:alice").scope == ("pr:write", "repo:read")
        assert guard.delegate("user:alice", scope=["repo:read"]).scope == ("repo:read",)
        assert refused(guard.delegate, "user:alice", scope=["secret:read"]) == "scope.exceeded"
        for scope in (None, [], ["repo:read"]):
            assert refused(guard.delegate, "user:alicia", scope=scope) == "principal.unknown"
        assert guard.delegate("user:eve", scope=[]).scope == ()  # who is listed, without a role
        for scope in (None, ["repo:read"]):
            assert refused(guard.delegate, "user:eve", scope=scope) == "scope.exceeded"
        with pytest.raises(DelegationError, match=r"did you mean user:alice\?"):
            guard.delegate("user:alicia")
        for malformed in ("agent:orchestrator", "user:alice smith", "user:Alice", None):
            code = refused(guard.delegate, malformed, scope=["repo:read"])
            assert code == "principal.malformed"
        fixer = guard.new_agent("fixer")
        tool = guard.tool(name="t", requires=["repo:read"])(lambda: None)
        with guard.delegate("user:alice"):
            fixer.call(tool)
        (document,) = seen
        assert document["delegation"]["roles"] == ["developer"]
        assert document["agent"]["roles"] == ["reader"]


def test_an_agent_acts_under_a_delegation_or_nothing_else():
    with Guard.ephemeral(lambda _: Decision.allow(), config=CONFIG) as guard:
        robot = guard.new_agent("robot")
        for none in (None, "user:alice", robot):
            with pytest.raises(ConfigError, match="delegation: expected what "):
                robot.under(none)  # type: ignore[arg-type]


# --- narrowed -------------------------------------------------------------------------------------


def test_narrowed(guard, orchestrator, read):
    write = guard.tool(name="write", requires=["pr:write"])(lambda: "ok")
    lent = guard.delegate("user:alice", scope=SCOPE)
    less = lent.narrowed(scope=["repo:read"])
    assert less.scope == ("repo:read",)
    assert less.principal == lent.principal
    with less:
        assert orchestrator.call(read) == "README"
        assert denied(orchestrator.call, write) == "scope.exceeded"
        with lent:
            assert orchestrator.call(write) == "ok"
        with less.narrowed(scope=[]):
            assert denied(orchestrator.call, read) == "scope.exceeded"
    for more in (["repo:read", "pr:write"], ["secret:read"], ["repo"]):
        assert refused(less.narrowed, scope=more) == "invalid_scope"
    assert guard.verify().problems == ()


@pytest.mark.parametrize(
    "scope", ["repo:read", 5, None, [5], [None], [b"repo:read"], ["a b"], [["a"]]]
)
def test_narrowed_to_what_is_no_scope(guard, scope):
    lent = guard.delegate("user:alice", scope=SCOPE)
    assert refused(lent.narrowed, scope=scope) == "scope.malformed"


# --- bound ----------------------------------------------------------------------------------------


def test_a_bound_function_runs_with_it_in_force(guard, orchestrator, read):
    lent = guard.delegate("user:alice", scope=SCOPE)

    @lent.bind
    def work(path, *, twice=False):
        """Work."""
        return orchestrator.call(read, path * 2 if twice else path)

    assert work("x", twice=True) == "xx"
    assert (work.__name__, work.__doc__) == ("work", "Work.")
    with ThreadPoolExecutor(2) as pool:
        assert "".join(pool.map(work, "abcd")) == "abcd"
        unbound = pool.submit(orchestrator.call, read)
        assert denied(unbound.result) == "delegation.missing"
    assert denied(orchestrator.call, read) == "delegation.missing"
    with pytest.raises(ZeroDivisionError):
        lent.bind(lambda: 1 / 0)()


async def test_a_bound_coroutine_function(guard, orchestrator, read):
    lent = guard.delegate("user:alice", scope=SCOPE)

    @lent.bind
    async def work(path):
        await asyncio.sleep(0)
        return await orchestrator.acall(read, path)

    assert inspect.iscoroutinefunction(work)
    assert list(await asyncio.gather(work("a"), work("b"))) == ["a", "b"]
    assert await lent.bind(functools.partial(work, "c"))() == "c"


async def test_a_bound_function_that_returns_a_coroutine(guard, read, asked):
    """It runs only when it is awaited, which is past the call of the function."""
    robot = guard.new_agent("robot")
    lent = guard.delegate("user:alice", scope=SCOPE)
    assert await lent.bind(lambda: robot.acall(read, "x"))() == "x"
    assert asked[0]["delegation"]["subject"] == "user:alice"


def test_a_generator_is_not_bound(guard, orchestrator, read, asked):
    """Its items would be made in the contexts of those who ask for them."""
    lent = guard.delegate("user:alice", scope=SCOPE)

    def numbers(_x=None):
        yield orchestrator.call(read)

    async def anumbers():
        yield await orchestrator.acall(read)

    for generator in (numbers, anumbers, functools.partial(numbers, 1)):
        assert refused(lent.bind, generator, kind=ConfigError) == "delegation.generator"
    with pytest.raises(ConfigError, match=r"delegation\.iterate"):
        lent.bind(numbers)
    for made in (numbers(), anumbers(), (x for x in numbers())):
        bound = lent.bind(lambda made=made: made)
        assert refused(bound, kind=ConfigError) == "delegation.generator"
    assert asked == []


# --- stored and resumed ---------------------------------------------------------------------------


def test_stored_and_resumed(guard, orchestrator, read, asked):
    lent = guard.delegate("user:alice", scope=SCOPE, via="service:ci", task_id="t-1")
    with lent:
        orchestrator.call(read)
    resumed = guard.resume(lent.dumps())
    assert resumed.key == lent.key
    assert (resumed.members, resumed.scope, resumed.id) == (lent.members, lent.scope, lent.id)
    assert (resumed.task_id, resumed.expires_at) == (lent.task_id, lent.expires_at)
    with resumed:
        orchestrator.call(read)
    assert asked[0]["delegation"] == asked[1]["delegation"]
    first, second = calls(guard)
    assert first.chain_sha256 == second.chain_sha256  # what it was handed already


def test_it_holds_no_key(guard):
    data = guard.delegate("user:alice", scope=SCOPE).dumps()
    stored: Any = canonical.loads_object(data)
    assert stored.keys() == {"type", "hops", "credentials"}
    claims = jws.parse(stored["hops"][0]).claims()
    assert claims["cnf"] == {"jkt": guard._parts.runtime.domain.issuer.key_id}  # a thumbprint


def test_what_an_agent_holds_or_that_is_narrowed_is_not_stored(guard, orchestrator):
    found: list[Any] = []
    look = guard.tool(name="look")(lambda: found.append(context.in_force()))
    lent = guard.delegate("user:alice", scope=SCOPE)
    with lent:
        orchestrator.call(look)
    (handed,) = found
    assert handed.members[-1] == orchestrator.id
    assert refused(handed.dumps) == "delegation.unstorable"
    assert refused(lent.narrowed(scope=[]).dumps) == "delegation.unstorable"
    assert lent.narrowed(scope=SCOPE).dumps() == lent.dumps()
    assert refused(guard.resume, handed.chain.dumps()) == "delegation.holder"


def test_what_does_not_verify_is_not_resumed(guard):
    data = guard.delegate("user:alice", scope=SCOPE).dumps()
    assert guard.resume(data).principal == "user:alice"
    with Guard.ephemeral(lambda _d: Decision.allow()) as other:
        assert refused(other.resume, data, kind=VerificationError) == "key.unknown"
    flipped = data.replace(b'"hops":["e', b'"hops":["f')
    for spoilt in (flipped, data[:-1], b"", b"{}", b"null", data + b" {}"):
        with pytest.raises(AgentguardError) as caught:
            guard.resume(spoilt)
        assert caught.value.code.partition(".")[0] in {"json", "chain", "jws", "base64", "key"}


@pytest.mark.parametrize("stored", [None, 5, {"type": "urn:agentguard:chain:v1"}, [], object()])
def test_what_is_no_text_is_not_resumed(guard, stored):
    with pytest.raises(DecodeError, match=r"Delegation\.dumps") as caught:
        guard.resume(stored)
    assert caught.value.code == "chain.malformed"


def test_one_that_has_expired_is_over_in_its_block_too(monkeypatch):
    now = [datetime.now(UTC)]
    monkeypatch.setattr("agentguard.guard.process.clock", lambda: now[0])
    with Guard.ephemeral(lambda _d: Decision.allow(), config=CONFIG) as guard:
        agents = [guard.new_agent("orchestrator"), guard.new_agent("orchestrator")]
        tool = guard.tool(name="tool")(lambda: "ok")
        lent = guard.delegate("user:alice", scope=SCOPE, expires_in=30)
        data = lent.dumps()
        with lent:
            now[0] += timedelta(seconds=29)
            assert agents[0].call(tool) == "ok"
            assert guard.resume(data).scope == lent.scope
            now[0] += timedelta(seconds=1)
            for agent in agents:  # one was handed it before, one never
                assert denied(agent.call, tool) == "delegation.expired"
        assert refused(guard.resume, data, kind=VerificationError) == "hop.expired"


# --- access tokens --------------------------------------------------------------------------------


def test_an_access_token_for_what_is_in_force(guard, orchestrator, read):
    with guard.delegate("user:alice", scope=SCOPE, via="service:ci"):
        issued = orchestrator.access_token()
        orchestrator.call(read)
        assert orchestrator.access_token() == issued  # the same until it is renewed
    verified = access_token.verify(
        issued.token, issued.chain, guard.trust, at=int(datetime.now(UTC).timestamp())
    )
    assert verified.chain.principal == "user:alice"
    assert verified.chain.leaf.delegatee == orchestrator.id
    (call,) = calls(guard)
    assert call.predicate["token_jti"] == verified.jti
    assert call.chain_sha256 == verified.chain.sha256
    assert denied(orchestrator.access_token) == "delegation.missing"
    robot = guard.new_agent("robot")
    assert denied(robot.access_token) == "delegation.missing"


def test_two_sessions_of_one_user_have_tokens_of_their_own(guard, orchestrator):
    alice = [guard.delegate("user:alice", scope=SCOPE) for _ in range(2)]
    made = [orchestrator.under(lent).access_token() for lent in alice]
    assert len(set(made)) == 2


def test_a_closed_guard(guard, orchestrator, read):
    lent = guard.delegate("user:alice", scope=SCOPE)
    with lent:
        assert orchestrator.call(read) == "README"
        guard.close()
        assert denied(orchestrator.call, read) == "storage.closed"
