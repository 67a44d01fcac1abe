"""The flow of one guarded call up to the tool: policy, ports, authority and facts. Each failure
denies, and is on record.

Each case runs through ``Agent.call`` on a guard in memory. What fails in storage is in
attacks/test_storage_faults.py, what the clock does in attacks/test_clock.py.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import pytest
from recorded_calls import allow_all, outcomes, records, refused, verified

from agentguard import (
    Decision,
    Denied,
    Guard,
    PolicyError,
)
from agentguard.policy.document import UNDEFINED


class Answers:
    """An engine that answers what it is told to, or raises it."""

    name = "answers"
    version = "1"
    warnings = ()
    policy_sha256 = None
    policy_files: MappingProxyType[str, str] = MappingProxyType({})

    def __init__(self, answer):
        self.answer = answer

    def evaluate(self, document):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def with_line(guard, **parts):
    """The guard on a line with other parts; agents that are made later run on it."""
    guard._parts.runtime._ports = dataclasses.replace(guard._parts.runtime._ports, **parts)
    return guard


def test_an_allowed_call_runs_once_and_is_on_record(guard, note, ran):
    agent = guard.new_agent("a")
    assert agent.call(note, text="hello") == "hello"
    assert ran == ["hello"]
    (authorization,) = records(guard, "call")
    assert authorization["decision"] == "allow"
    (outcome,) = outcomes(guard)
    assert outcome["status"] == "ok"
    assert outcome["authorization"]["log"] == 0
    assert verified(guard).in_doubt == ()


def test_a_denied_call_does_not_run_and_its_reasons_are_on_record(ran):
    guard = Guard.ephemeral(lambda _: Decision.deny("not today"))

    @guard.tool
    def note():
        ran.append(1)

    agent = guard.new_agent("a")
    with pytest.raises(Denied, match=r"not today \[policy.denied\]") as caught:
        agent.call(note)
    assert caught.value.reason == "not today"
    assert refused(guard, agent, note) == "policy.denied"
    assert ran == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"allow": True}, None),
        (True, "policy.malformed"),
        ("yes", "policy.malformed"),
        (None, "policy.malformed"),
        ({}, "policy.denied"),
        ({"allow": 1}, "policy.malformed"),
        ({"allow": "true"}, "policy.malformed"),
        ({"allow": True, "approval": {"n": 1}}, "policy.malformed"),
        ({"allow": True, "approval": True}, "approval.unavailable"),
        (UNDEFINED, "policy.undefined"),
        (PolicyError("it broke"), "policy.error"),
        (PolicyError("it broke", code="policy.panic"), "policy.panic"),
        (RuntimeError("secret text"), "policy.error"),
        (RecursionError(), "policy.error"),
        (MemoryError(), "policy.error"),
    ],
)
def test_only_a_plain_allow_of_the_engine_runs_the_tool(guard, note, ran, answer, code):
    agent = with_line(guard, engine=Answers(answer)).new_agent("a")
    if code is None:
        assert agent.call(note, text="x") == "x"
    else:
        assert refused(guard, agent, note, text="x") == code
        assert "secret text" not in str(records(guard, "call"))
    assert ran == (["x"] if code is None else [])


class Panic(BaseException):  # as pyo3's PanicException is one
    """What native code raises, past every ``except Exception``."""


@pytest.mark.parametrize(
    "interrupt", [Panic(), KeyboardInterrupt(), SystemExit(1), GeneratorExit()]
)
def test_what_tears_the_engine_away_never_runs_the_tool(guard, note, ran, interrupt):
    agent = with_line(guard, engine=Answers(interrupt)).new_agent("a")
    with pytest.raises((Denied, type(interrupt))):
        agent.call(note)
    assert ran == []
    verified(guard)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Decision.allow(), None),
        (True, "policy.error"),
        ({"allow": True}, "policy.error"),
        (None, "policy.error"),
        (Decision.require_approval(), "approval.unavailable"),
        (Decision.deny("\ud800 and so on"), "policy.denied"),
        (Decision.deny("x" * 500_000), "policy.denied"),
        (Decision.deny(*("x" * i for i in range(300))), "policy.denied"),
        (Decision.deny(), "policy.denied"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_policy_function_answers_with_a_decision_or_denies(ran, answer, code):
    guard = Guard.ephemeral(lambda _: answer)
    tool = guard.tool(ran.append)
    agent = guard.new_agent("a")
    if code is None:
        agent.call(tool, 1)
        verified(guard)
    else:
        assert refused(guard, agent, tool, 1) == code
    assert ran == ([1] if code is None else [])


# --- the ports: entropy, signer ------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [b"", b"short", b"x" * 31, None, "text" * 99, 5], ids=repr)
def test_without_random_bytes_nothing_runs(guard, note, ran, drawn):
    agent = guard.new_agent("a")
    good = agent._caller.instance().ports
    agent._caller.instance().ports = dataclasses.replace(good, entropy=lambda _size: drawn)
    assert refused(guard, agent, note) == "entropy.failed"
    agent._caller.instance().ports = good
    agent.call(note, text="twin")
    assert ran == ["twin"]


def test_entropy_that_raises_denies_without_its_text(guard, note, ran):
    def broken(_size):
        raise OSError("a secret path")

    agent = guard.new_agent("a")
    instance = agent._caller.instance()
    instance.ports = dataclasses.replace(instance.ports, entropy=broken)
    assert refused(guard, agent, note) == "entropy.failed"
    assert "secret path" not in str(records(guard, "call"))
    assert ran == []


class BrokenSigner:
    """A signer whose service is away."""

    def __init__(self, inner):
        self.key_id = inner.key_id
        self.public_key = inner.public_key

    def sign(self, data):
        raise ConnectionError("kms.internal:443")


def test_a_signer_that_fails_denies_and_the_refusal_is_recorded_unsigned(guard, note, ran):
    agent = guard.new_agent("a")
    instance = agent._caller.instance()
    good = instance.actor
    instance.actor = dataclasses.replace(good, signer=BrokenSigner(good.signer))
    assert refused(guard, agent, note) == "signature.failed"
    (record,) = records(guard, "call")
    assert record["invocation"]["signatures"] == []
    assert "kms.internal" not in str(record)
    instance.actor = good
    agent.call(note, text="twin")
    assert ran == ["twin"]
    assert records(guard, "call")[1]["invocation"]["signatures"] != []


def test_a_signer_that_fails_after_the_tool_leaves_the_call_in_doubt(guard, ran, caplog):
    agent = guard.new_agent("a")
    instance = agent._caller.instance()
    good = instance.actor.signer

    class FailsLater(BrokenSigner):
        def sign(self, data):
            return good.sign(data) if not ran else super().sign(data)

    tool = guard.tool(ran.append)
    instance.actor = dataclasses.replace(instance.actor, signer=FailsLater(good))
    agent.call(tool, 1)
    assert ran == [1]
    report = verified(guard)
    assert len(report.in_doubt) == 1
    assert "stays in doubt" in caplog.text


def test_an_issuer_that_fails_denies(guard, note, ran):
    agent = guard.new_agent("a")
    home, agent._caller.instance()._renew_at = guard._parts.runtime.domain, 0
    guard._parts.runtime.domain = dataclasses.replace(home, issuer=BrokenSigner(home.issuer))
    assert refused(guard, agent, note) == "credential.failed"
    guard._parts.runtime.domain = home
    agent.call(note, text="twin")
    assert ran == ["twin"]


# --- authority -----------------------------------------------------------------------------------


def test_an_agent_that_acts_under_a_delegation_is_denied_without_one(ran):
    agents = {"delegated": {"max_scope": ["x"]}, "own": {"authority": "own", "max_scope": ["x"]}}
    guard = Guard.ephemeral(allow_all, config={"agents": agents})
    tool = guard.tool(requires=["x"])(ran.append)
    assert refused(guard, guard.new_agent("delegated"), tool, 1) == "delegation.missing"
    guard.new_agent("own").call(tool, 2)
    assert ran == [2]


@pytest.mark.parametrize(
    ("scope", "requires", "allowed"),
    [
        (["pr:write"], ["pr:write"], True),
        (["pr:write", "ci"], ["ci", "pr:write"], True),
        ([], None, True),
        (["pr:write"], None, True),
        ([], ["pr:write"], False),
        (["pr:read"], ["pr:write"], False),
        (["pr:write"], ["pr:write", "ci"], False),
        (["pr"], ["pr:write"], False),
        (["*"], ["pr:write"], False),
        (["PR:WRITE"], ["pr:write"], False),
    ],
)
def test_a_tools_scope_must_be_wholly_in_the_agents(ran, scope, requires, allowed):
    agents = {"a": {"authority": "own", "max_scope": scope}}
    guard = Guard.ephemeral(allow_all, config={"agents": agents})
    tool = guard.tool(requires=requires)(ran.append)
    agent = guard.new_agent("a")
    if allowed:
        agent.call(tool, 1)
        assert ran == [1]
    else:
        assert refused(guard, agent, tool, 1) == "scope.exceeded"
        assert ran == []


def test_a_refusal_by_authority_asks_no_policy(ran):
    asked = []

    def policy(document):
        asked.append(document)
        return Decision.allow()

    guard = Guard.ephemeral(policy, config={"agents": {"a": {}}})
    refused(guard, guard.new_agent("a"), guard.tool(ran.append), 1)
    (record,) = records(guard, "call")
    assert (record["input"], record["engine"], asked) == (None, None, [])


# --- facts ---------------------------------------------------------------------------------------


class Unreadable(dict):
    """A mapping that lies about how it can be read."""

    def __iter__(self):
        raise RuntimeError("a secret")

    items = keys = __iter__


async def later(_arguments):
    return {"x": 1}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({"visibility": "internal"}, None),
        ({}, None),
        (RuntimeError("a secret"), "facts.failed"),
        (None, "facts.invalid"),
        ([("x", 1)], "facts.invalid"),
        ("x", "facts.invalid"),
        ({"agent": {"name": "root"}}, "facts.conflict"),
        ({"approval": {"approvers": ["bob"]}}, "facts.conflict"),
        ({"branch": "main"}, "facts.conflict"),
        ({"x": object()}, "facts.invalid"),
        ({"x": float("inf")}, "facts.invalid"),
        ({"x": "\ud800"}, "facts.invalid"),
        ({1: 1}, "facts.invalid"),
        ({"x": 1, "y": 1}, "facts.undeclared"),
        ({"paths": {"into": "main"}}, "facts.conflict"),
        (Unreadable(a=1), "facts.failed"),
        (later, "facts.failed"),
    ],
)
def test_facts_are_a_json_object_that_collides_with_nothing_or_deny(
    guard, ran, caplog, found, code
):
    def look_up(arguments):
        if isinstance(found, Exception):
            raise found
        return found

    facts = found if found is later else look_up

    @guard.tool(facts=facts, gives=["visibility", "x"], attributes={"branch": "into"})
    def merge(into):
        ran.append(into)

    agent = guard.new_agent("a")
    if code is None:
        agent.call(merge, into="dev")
        assert ran == ["dev"]
        verified(guard)
    else:
        assert refused(guard, agent, merge, into="dev") == code
        assert "a secret" not in str(records(guard, "call"))
        if code == "facts.failed":  # whoever wrote the look-up finds the traceback there
            traceback, line, remedy = caplog.records
            assert traceback.exc_info is not None
            assert line.name == "agentguard.decisions"
            assert remedy.getMessage().endswith("the log has the exception's traceback")
            assert "Traceback" in caplog.text
        assert ran == []


def test_a_look_up_that_was_interrupted_never_runs_the_tool(guard, ran):
    def interrupted(_arguments):
        raise KeyboardInterrupt

    tool = guard.tool(facts=interrupted, gives=[])(ran.append)
    with pytest.raises(KeyboardInterrupt):
        guard.new_agent("a").call(tool, 1)
    assert ran == []
    verified(guard)


def test_facts_see_the_bound_arguments_and_reach_the_policy(ran):
    documents = []

    def policy(document):
        documents.append(document)
        return Decision.allow()

    guard = Guard.ephemeral(policy)

    @guard.tool(facts=lambda arguments: {"asked": arguments["repo"]}, gives=["asked"])
    def read(repo, depth=3):
        ran.append((repo, depth))

    guard.new_agent("a").call(read, "x")
    assert documents[0]["args"] == {"repo": "x", "depth": 3}
    assert documents[0]["asked"] == "x"
