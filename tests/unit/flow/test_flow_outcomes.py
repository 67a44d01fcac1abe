"""The flow of one guarded call: its arguments and names, its outcome, and ``evaluate``.

Each case runs through ``Agent.call`` on a guard in memory.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

import pytest
from recorded_calls import outcomes, records, refused, verified

from agentguard import (
    ApprovalPending,
    Decision,
    Denied,
    Guard,
    UnguardedCallError,
    adapters,
)
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.errors import ArgumentsError
from agentguard.signing.canonical import loads_object
from agentguard.signing.dsse import Envelope

# --- arguments and the call's names ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "code"),
    [
        (("x",), {}, None),
        ((), {"text": "x"}, None),
        ((), {}, None),
        (("x", "y"), {}, "arguments.invalid"),
        (("x",), {"text": "y"}, "arguments.invalid"),
        ((), {"test": "x"}, "arguments.invalid"),
        ((), {"\ud800": "x"}, "arguments.invalid"),
        (("\ud800",), {}, "arguments.unencodable"),
        ((object(),), {}, "arguments.unencodable"),
        ((float("nan"),), {}, "arguments.unencodable"),
        (("x" * 300_000,), {}, "arguments.too_large"),
    ],
    ids=lambda value: repr(value)[:16],
)
def test_arguments_that_can_not_be_bound_or_written_deny(guard, note, ran, args, kwargs, code):
    agent = guard.new_agent("a")
    if code is None:
        agent.call(note, *args, **kwargs)
        assert len(ran) == 1
    else:
        assert refused(guard, agent, note, *args, **kwargs) == code
        assert ran == []


def test_a_refusal_of_arguments_does_not_print_defaults(guard, ran):
    def deploy(where, token="tok-4711"):
        ran.append(where)

    tool = guard.tool(deploy)
    agent = guard.new_agent("a")
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert "where" in caught.value.reason
    assert "tok-4711" not in caught.value.reason
    assert "tok-4711" not in str(records(guard, "call"))


def invocation(tool, *, site=None, task_id=None, arguments=None):
    return Invocation(tool.spec, arguments or Arguments.of({}), site or CallSite("1"), task_id)


@pytest.mark.parametrize(
    ("site", "task_id", "code"),
    [
        (CallSite("1", "t", "n", "u"), "task_1", None),
        (CallSite("\ud800"), None, "site.unencodable"),
        (CallSite("1", thread="\udfff"), None, "site.unencodable"),
        (CallSite("1", turn="\udfff"), None, "site.unencodable"),
        (CallSite("1"), "\ud800", "site.unencodable"),
        (CallSite("1"), "x" * 400_000, "site.unencodable"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_names_that_can_not_be_written_down_deny(guard, note, ran, site, task_id, code):
    agent = guard.new_agent("a")
    call = invocation(note, site=site, task_id=task_id)
    if code is None:
        assert adapters.run(agent, call, lambda: ran.append("x")) is None
        assert ran == ["x"]
    else:
        with pytest.raises(Denied) as caught:
            adapters.run(agent, call, lambda: ran.append("x"))
        assert caught.value.code == code
        assert ran == []
    verified(guard)


@pytest.mark.parametrize(("size", "allowed"), [(100, True), (100_000, False)])
def test_a_long_resource_can_not_spoil_the_log(guard, ran, size, allowed):
    @guard.tool(resource="path:{path}")
    def read(path):
        ran.append(1)

    agent = guard.new_agent("a")
    if allowed:
        agent.call(read, path="/" * size)
    else:
        assert refused(guard, agent, read, path="/" * size) == "arguments.resource"
    assert ran == ([1] if allowed else [])
    verified(guard)


def test_an_error_in_the_arguments_place_is_recorded_with_null_arguments(guard, note, ran):
    agent = guard.new_agent("a")
    call = Invocation(note.spec, ArgumentsError("no", code="arguments.invalid"), CallSite("1"))
    with pytest.raises(Denied):
        adapters.run(agent, call, lambda: ran.append(1))
    (record,) = records(guard, "call")
    signed: Any = loads_object(Envelope.parse(record["invocation"], may_be_joint=True).payload)[
        "predicate"
    ]
    assert signed["arguments"] is None
    assert ran == []
    verified(guard)


# --- the outcome ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "error"),
        (Denied(Decision.deny("of a nested call")), "error"),
        (UnguardedCallError("x"), "error"),
        (StopIteration(), "error"),
        (TimeoutError(), "unknown"),
        (KeyboardInterrupt(), "unknown"),
        (SystemExit(3), "unknown"),
        (GeneratorExit(), "unknown"),
    ],
    ids=repr,
)
def test_what_a_tool_raises_is_recorded_and_raised_as_it_is(guard, error, status):
    @guard.tool
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        guard.new_agent("a").call(fail)
    assert caught.value is error
    (outcome,) = outcomes(guard)
    assert outcome["status"] == status
    assert outcome["error_type"] == f"{type(error).__module__}.{type(error).__qualname__}"
    assert outcome["result"] is None
    assert verified(guard).in_doubt == ()


def test_a_pause_of_a_framework_is_an_unknown_outcome(guard, note):
    class Pause(Exception):  # noqa: N818  frameworks name theirs so
        pass

    def pause():
        raise Pause

    agent = guard.new_agent("a")
    for named, status in (("suspends", "unknown"), ("outcome_unknown", "unknown"), (None, "error")):
        kinds: Any = {} if named is None else {named: (Pause,)}
        options = CallOptions(**kinds)
        with pytest.raises(Pause):
            adapters.run(agent, invocation(note), pause, options)
        assert outcomes(guard)[-1]["status"] == status


class LiveDict(dict):
    """Changes while it is read."""

    def items(self):
        raise RuntimeError("dictionary changed size during iteration")


@pytest.mark.parametrize(
    "result",
    [
        object(),
        float("nan"),
        datetime(2020, 1, 1, tzinfo=tzinfo()),  # type: ignore[abstract]
        LiveDict(a=1),
        "\ud800",
        "x" * 300_000,
        type("Odd", (), {"__module__": "\ud800"})(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_without_canonical_bytes_still_reaches_its_caller(guard, result):
    @guard.tool
    def give():
        return result

    assert guard.new_agent("a").call(give) is result
    report = verified(guard)
    if report.in_doubt == ():
        (outcome,) = outcomes(guard)
        assert (outcome["status"], outcome["result"]) == ("ok", None)


def test_a_result_is_committed_to(guard, note):
    guard.new_agent("a").call(note, text="hello")
    (outcome,) = outcomes(guard)
    assert outcome["result"] is not None
    assert outcome["result_type"] == "builtins.str"
    *_others, last = guard.reader().stored()
    (kept,) = last.attachments
    assert (kept.role, kept.data, kept.commitment) == ("result", b'"hello"', outcome["result"])


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate_answers_as_the_call_would_and_records_nothing(note):
    asked = []

    def policy(document):
        asked.append(document)
        return Decision.deny("no") if document["args"] else Decision.allow()

    guard = Guard.ephemeral(policy)
    agent = guard.new_agent("a")
    before = list(guard.reader().entries())
    assert adapters.evaluate(agent, invocation(note)).allowed
    denied = adapters.evaluate(agent, invocation(note, arguments=Arguments.of({"x": 1})))
    assert denied.code == "policy.denied"
    assert len(asked) == 2
    assert list(guard.reader().entries()) == before


def test_evaluate_renews_a_credential_that_is_due_and_that_is_on_record(guard, note):
    agent = guard.new_agent("a")
    agent._caller.instance()._renew_at = 0
    assert adapters.evaluate(agent, invocation(note)).allowed
    assert adapters.evaluate(agent, invocation(note)).allowed
    assert len(records(guard, "identity")) == 2
    assert records(guard, "call") == []
    verified(guard)


def test_evaluate_tells_that_an_approval_is_needed(note):
    people = {"approvals": {"application": True}}
    guard = Guard.ephemeral(lambda _: Decision.require_approval(), config=people)
    agent = guard.new_agent("a")
    with pytest.raises(ApprovalPending) as pending:
        adapters.evaluate(agent, invocation(note))
    assert records(guard, "call") == []
    assert len(records(guard, "request")) == 1
    guard.approvals.vouch(pending.value.request, "approve", principal="user:bob")
    assert adapters.evaluate(agent, invocation(note)).allowed
    verified(guard)


def test_evaluate_that_asks_nobody_leaves_no_request(note):
    people = {"approvals": {"application": True}}
    guard = Guard.ephemeral(lambda _: Decision.require_approval(), config=people)
    agent = guard.new_agent("a")
    decision = adapters.evaluate(agent, invocation(note), CallOptions(asks_people=False))
    assert (decision.outcome, decision.code) == ("approval", "approval.required")
    assert records(guard, "request") == []
    assert guard.approvals.pending() == []
    verified(guard)


def test_evaluate_denies_what_nobody_can_approve(note):
    guard = Guard.ephemeral(lambda _: Decision.require_approval())
    assert adapters.evaluate(guard.new_agent("a"), invocation(note)).code == "approval.unavailable"
