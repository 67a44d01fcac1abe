"""``Agent.authorize``: the policy's decision about a call that nobody makes, signed, on record."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from embedded_parts import instance_of

from agentguard import (
    ConfigError,
    Decision,
    Denied,
    Evaluation,
    Guard,
    Requirement,
    VerificationError,
    verify_evaluation,
)
from agentguard.audit.kinds import parse_entry
from agentguard.call.invocation import commitment
from agentguard.errors import DecodeError
from agentguard.signing.canonical import b64_decode, b64_encode, dumps, loads_object

ARGUMENTS = {"to": "alice", "amount": 5}


def policy(document: Any) -> Decision:
    """Deny large transfers, and ask people about middling ones."""
    amount = document["args"].get("amount", 0)
    if amount > 100:
        return Decision.deny(f"{amount} is too much")
    if amount > 10:
        return Decision.require_approval(Requirement("a manager", roles=("manager",)))
    return Decision.allow()


@pytest.fixture
def guard():
    with Guard.ephemeral(policy) as guard:
        yield guard


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def pay(guard: Guard, ran: list[str]) -> Any:
    @guard.tool(resource="account:{to}")
    def pay(to: str, amount: int) -> str:
        """Pay somebody."""
        ran.append(to)
        return f"paid {to}"

    return pay


def entries(guard: Guard) -> list[tuple[int, Any]]:
    """Return the entries of the log, each with its index."""
    reader = guard._parts.reader()
    return [(index, parse_entry(body)) for index, body in reader.entries()]


@pytest.mark.parametrize(
    ("amount", "outcome", "code"),
    [(5, "allow", ""), (50, "approval", "approval.required"), (500, "deny", "policy.denied")],
)
def test_the_policy_s_decision_is_signed_and_on_record_and_no_tool_runs(
    guard, ran, pay, amount, outcome, code
):
    agent = guard.new_agent("clerk")
    got = agent.authorize(pay, "alice", amount=amount)
    assert (got.decision.outcome, got.code, got.allowed) == (outcome, code, outcome == "allow")
    assert ran == []
    index, entry = entries(guard)[-1]
    assert (entry.kind, got.entry) == ("evaluation", str(index))
    assert dumps(entry.members["statement"]) == got.statement
    read = verify_evaluation(got.statement, guard.trust)
    assert (read.evaluated.agent, read.evaluated.principal, read.evaluated.tool.name) == (
        agent.id,
        "agent:clerk",
        "pay",
    )
    assert (read.evaluated.decision, read.evaluated.code, read.evaluated.mode) == (
        outcome,
        code,
        "enforce",
    )
    assert (read.evaluated.resource, read.evaluated.at) == ("account:alice", entry.at)
    assert guard.verify().problems == ()


def test_an_evaluation_commits_to_the_arguments_and_the_log_has_neither_them_nor_the_salt(
    guard, pay
):
    got = guard.new_agent("clerk").authorize(pay, "alice-the-secret", 5)
    read = verify_evaluation(got.statement, guard.trust)
    encoded = dumps({"amount": 5, "to": "alice-the-secret"})
    assert read.stated.predicate["arguments"] == commitment(got.salt, encoded)
    assert read.stated.predicate["arguments"] != commitment(bytes(32), encoded)
    (stored,) = [one for one in guard._parts.reader().stored() if one.summary.kind == "evaluation"]
    assert stored.attachments == []


def test_the_same_call_has_another_commitment_each_time(guard, pay):
    agent = guard.new_agent("clerk")
    seen = [verify_evaluation(agent.authorize(pay, "a", 5).statement, guard.trust) for _ in "ab"]
    assert len({one.call_sha256 for one in seen}) == len({one.sha256 for one in seen}) == 2


def test_the_async_twin_gives_the_same_decision(guard, pay):
    agent = guard.new_agent("clerk")
    got = asyncio.run(agent.aauthorize(pay, "alice", 500))
    assert (got.decision, got.entry is None) == (agent.authorize(pay, "alice", 500).decision, False)


def test_a_delegation_is_named_by_its_chain(guard, pay):
    agent = guard.new_agent("clerk").under(guard.delegate("user:erin", scope=["pay"]))
    read = verify_evaluation(agent.authorize(pay, "alice", 5).statement, guard.trust)
    assert (read.evaluated.principal, len(read.evaluated.chain_sha256 or "")) == ("user:erin", 64)
    assert guard.verify().problems == ()


def test_an_evaluation_is_denied_where_the_authority_lacks_the_scope(guard):
    tool = guard.tool(name="write", requires=["repo:write"])(lambda amount: amount)
    agent = guard.new_agent("clerk")
    lent = agent.under(guard.delegate("user:erin", scope=["repo:read"]))
    refused = lent.authorize(tool, 5)
    assert (refused.decision.outcome, refused.code) == ("deny", "scope.exceeded")
    assert refused.entry is not None
    allowed = agent.under(guard.delegate("user:erin", scope=["repo:write"])).authorize(tool, 5)
    assert allowed.allowed
    assert guard.verify().problems == ()


def test_arguments_that_do_not_bind_are_denied_on_record(guard, pay):
    refused = guard.new_agent("clerk").authorize(pay, "alice")
    assert (refused.decision.outcome, refused.code) == ("deny", "arguments.invalid")
    assert verify_evaluation(refused.statement, guard.trust).stated.predicate["arguments"] is None


def test_what_is_no_guarded_tool_is_refused(guard):
    with pytest.raises(ConfigError) as caught:
        guard.new_agent("clerk").authorize(print, "x")
    assert caught.value.code == "tool.invalid"


def test_a_log_that_can_t_be_written_denies(guard, pay):
    agent = guard.new_agent("clerk")
    ports = instance_of(agent).ports
    assert agent.authorize(pay, "alice", 5).allowed

    def fail(_record, **_given):
        raise OSError("no space")

    instance_of(agent).ports = replace(ports, log=_Failing(ports.log, fail))
    refused = agent.authorize(pay, "alice", 5)
    assert (refused.decision.outcome, refused.code) == ("deny", "storage.failed")
    assert (refused.entry, refused.statement) == (None, None)


def test_an_issuer_that_can_t_sign_denies(guard, pay, monkeypatch):
    agent = guard.new_agent("clerk")
    before = len(entries(guard))

    def fail():
        raise RuntimeError("the service is down")

    monkeypatch.setattr(instance_of(agent), "issuer", fail)
    refused = agent.authorize(pay, "alice", 5)
    assert (refused.decision.outcome, refused.code) == ("deny", "signature.failed")
    assert (refused.entry, len(entries(guard))) == (None, before)
    monkeypatch.undo()
    assert agent.authorize(pay, "alice", 5).allowed


def test_a_policy_that_says_too_much_is_denied_and_the_entry_stays_small():
    def talkative(_document: Any) -> Decision:
        return Decision.require_approval(*[Requirement("x" * 1000)] * 200)

    with Guard.ephemeral(talkative) as guard:
        refused = guard.new_agent("clerk").authorize(guard.tool(name="t")(lambda: None))
        assert (refused.decision.outcome, refused.code) == ("deny", "policy.malformed")
        assert max(len(body) for _index, body in guard._parts.reader().entries()) < 10_000
        assert guard.verify().problems == ()


class _Failing:
    """A log whose ``append`` fails; everything else is the real log's."""

    def __init__(self, log: Any, append: Any) -> None:
        self._log = log
        self.append = append

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


# --- verify_evaluation ----------------------------------------------------------------------------


def changed(got: Evaluation, **members: Any) -> bytes:
    """Return the statement with other members in its predicate, under the old signature."""
    envelope = json.loads(got.statement or b"")
    payload: dict[str, Any] = loads_object(b64_decode(envelope["payload"]))
    payload["predicate"] |= members
    return dumps({**envelope, "payload": b64_encode(dumps(payload))})


@pytest.mark.parametrize(
    ("members", "error", "code"),
    [
        ({"decision": "allow"}, VerificationError, "signature.invalid"),
        ({"tool": {"name": "x", "digest": "0", "origin": "x"}}, VerificationError, None),
        ({"principal": "user:root"}, VerificationError, "signature.invalid"),
        ({"decision": "maybe"}, DecodeError, "entry.malformed"),
        ({"more": 1}, DecodeError, "entry.malformed"),
        ({"arguments": "x"}, DecodeError, "entry.malformed"),
        ({"evaluation_id": "../x"}, DecodeError, "entry.malformed"),
    ],
    ids=str,
)
def test_a_changed_statement_does_not_verify(guard, pay, members, error, code):
    got = guard.new_agent("clerk").authorize(pay, "alice", 500)
    assert (
        verify_evaluation(changed(got), guard.trust).evaluated.decision == "deny"
    )  # the same bytes
    with pytest.raises(error) as caught:
        verify_evaluation(changed(got, **members), guard.trust)
    assert code in (None, caught.value.code)


def test_a_statement_of_another_trust_domain_does_not_verify(guard, pay):
    got = guard.new_agent("clerk").authorize(pay, "alice", 5)
    with Guard.ephemeral(policy) as other, pytest.raises(VerificationError):
        verify_evaluation(got.statement, other.trust)
    assert verify_evaluation(got.statement, guard.trust).evaluated.decision == "allow"


def test_what_is_no_statement_is_refused(guard):
    for data in (b"", b"x", b"[]", b"{}", b"null", b'{"payload":1}', bytes([0xFF])):
        with pytest.raises(DecodeError):
            verify_evaluation(data, guard.trust)


def test_a_denied_call_and_its_evaluation_have_the_same_reason(guard, pay):
    agent = guard.new_agent("clerk")
    with pytest.raises(Denied) as caught:
        agent.call(pay, "alice", 500)
    assert agent.authorize(pay, "alice", 500).reason == caught.value.reason


def test_an_evaluation_inside_a_running_tool_is_made_under_the_delegation_in_force(
    guard: Guard, pay: Any
) -> None:
    reads: list[Any] = []

    @guard.tool
    def plan() -> bool:
        """Ask before paying."""
        got = agent.authorize(pay, "alice", 5)
        reads.append(verify_evaluation(got.statement or b"", guard.trust))
        return got.allowed

    agent = guard.new_agent("clerk")
    with guard.delegate("user:erin", scope=["pay"]):
        assert agent.call(plan) is True
    assert agent.call(plan) is True
    assert [read.evaluated.principal for read in reads] == ["user:erin", "agent:clerk"]
    assert guard.verify().problems == ()
