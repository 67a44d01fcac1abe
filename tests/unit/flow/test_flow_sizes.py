"""What a call brings that has no end: a limit at its entrance, or a denial on record.

An entry of the log takes 256 KiB at most, so the flow must never be left with more than that.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from recorded_calls import records, verified

from agentguard import (
    ApprovalPending,
    Decision,
    Denied,
    Ed25519Signer,
    Guard,
    Requirement,
    adapters,
)
from agentguard.adapters import Arguments, CallSite, Invocation, ToolSpec
from agentguard.errors import ConfigError, DelegationError

NAME = 2048
"""The most characters of a tool's name, and of its origin."""

UNBOUND = 16 * 1024
"""The most bytes of the names of injected arguments, as JSON."""

LONG = "\x01" * 100_000
"""A text of which the log's JSON would take six times as many bytes."""


def spec(name: str = "note", origin: str = "notes:note", **more: Any) -> ToolSpec:
    return ToolSpec(name, "Write a note.", {}, origin, **more)


def call_of(tool: ToolSpec, *unbound: str, site: str = "1", **more: Any) -> Invocation:
    bound = Invocation.bind(
        tool,
        lambda: Arguments.of({"x": 1}, unbound=unbound),
        CallSite(site, site, site, site),
    )
    return Invocation(tool, bound.arguments, bound.site, **more)


def run(guard: Guard, call: Invocation, ran: list[Any], *, is_async: bool) -> str:
    """Return the code with which a call is denied, "" for one that has run."""
    agent = guard.new_agent("a")

    async def work() -> None:
        ran.append(1)

    try:
        if is_async:
            asyncio.run(adapters.arun(agent, call, work))
        else:
            adapters.run(agent, call, lambda: ran.append(1))
    except Denied as denied:
        return denied.code
    return ""


def logged(guard: Guard) -> Any:
    """The newest authorization of a log that verifies, with no call in doubt."""
    assert verified(guard).in_doubt == ()
    return records(guard, "call")[-1]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("unbound", "code"),
    [
        ([f"name_{number}" for number in range(1_000)], ""),
        (["x" * (UNBOUND - 4)], ""),  # the brackets and the quotation marks
        (["x" * (UNBOUND - 3)], "arguments.too_large"),
        ([f"name_{number}" for number in range(100_000)], "arguments.too_large"),
        ([LONG, "x"], "arguments.too_large"),
    ],
    ids=["many", "the longest", "one more byte", "too many", "too long"],
)
def test_names_of_injected_arguments_without_end_deny(guard, ran, unbound, code, is_async):
    assert run(guard, call_of(spec(), *unbound), ran, is_async=is_async) == code
    entry = logged(guard)
    assert (entry["decision"], entry["code"]) == ("deny" if code else "allow", code)
    assert ran == ([] if code else [1])
    assert LONG not in str(entry["reasons"])


def test_names_that_can_not_be_logged_are_no_arguments():
    for unbound in (("\ud800",), ("x" * UNBOUND,)):
        with pytest.raises(adapters.ArgumentsError):
            Arguments({}, b"{}", unbound)
    assert Arguments({}, b"{}", ("runtime",)).unbound == ("runtime",)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("member", ["name", "origin"])
def test_a_tool_has_names_of_a_limited_length(guard, ran, member, is_async):
    with pytest.raises(ConfigError, match=f"its {member} takes more than 2048 characters"):
        spec(**{member: "x" * (NAME + 1)})
    call = call_of(spec(**{member: "x" * NAME}))
    assert run(guard, call, ran, is_async=is_async) == ""
    assert logged(guard)["decision"] == "allow"
    assert ran == [1]


def test_a_function_has_a_name_of_a_limited_length(guard):
    with pytest.raises(ConfigError, match="its name takes more than 2048 characters"):
        guard.tool(name="x" * 300_000)(lambda: None)
    assert guard.new_agent("a").call(guard.tool(name="x" * 300)(lambda: 1)) == 1


@pytest.mark.parametrize("inside", [LONG, "\ud800", "x", "A" * 32])
def test_the_call_around_has_an_id(guard, ran, inside):
    """An entry with another text does not verify."""
    with pytest.raises(ValueError, match="32 hex digits"):
        call_of(spec(), inside=inside)
    assert run(guard, call_of(spec(), inside="a" * 32), ran, is_async=False) == ""
    assert logged(guard)["decision"] == "allow"


def test_a_delegation_has_a_task_of_a_limited_length(guard):
    for task_id in ("x" * 1025, "\xe9" * 513):
        with pytest.raises(DelegationError, match="task_id takes more than 1024 bytes") as caught:
            guard.delegate("user:alice", scope=["x"], task_id=task_id)
        assert caught.value.code == "hop.malformed"
    lent = guard.delegate("user:alice", scope=["x"], task_id="\x01" * 1024)
    assert guard.new_agent("a").under(lent).call(guard.tool(name="t")(lambda: 1)) == 1
    assert logged(guard)["decision"] == "allow"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("size", "code"), [(2 << 20, ""), (4 << 20, "facts.too_large")])
def test_facts_without_end_deny(guard, ran, size, code, is_async):
    call = call_of(spec(facts=lambda _input: {"fact": "x" * size}, gives=("fact",)))
    assert run(guard, call, ran, is_async=is_async) == code
    assert logged(guard)["code"] == code
    assert ran == ([] if code else [1])


@pytest.mark.parametrize("is_async", [False, True])
def test_a_denial_of_all_that_is_longest_is_on_record(guard, ran, is_async):
    """Each part takes as much as its limit allows, in the JSON of the log six bytes a character."""
    tool = spec("\x01" * NAME, "\x01" * NAME, resource="\x01" * NAME)
    names = ["\x01" * (UNBOUND // 6 - 2)]
    refusal = Decision("deny", "x.y", (LONG,) * 100)
    call = call_of(tool, *names, site=LONG, task_id="\x01" * 1024, refusal=refusal)
    assert run(guard, call, ran, is_async=is_async) == "x.y"
    assert len(logged(guard)["reasons"]) == 16
    call = call_of(tool, *names, site=LONG, task_id="\x01" * 1024)  # the twin
    assert run(guard, call, ran, is_async=is_async) == ""
    assert ran == [1]


@pytest.mark.parametrize(("people", "code"), [(20, ""), (64, "policy.malformed")])
def test_more_answers_than_an_entry_can_hold_deny(ran, people, code):
    keys = [Ed25519Signer.from_seed(number.to_bytes(32)) for number in range(people)]
    roster = {
        f"u{number}": {"principal": f"user:u{number}", "keys": [key.public_key.openssh()]}
        for number, key in enumerate(keys)
    }
    needed = Decision.require_approval(Requirement("all of them", quorum=people))
    guard = Guard.ephemeral(lambda _: needed, config={"approvers": roster})
    agent, tool = guard.new_agent("a"), guard.tool(name="t")(lambda: ran.append(1))
    with pytest.raises(ApprovalPending) as pending:
        agent.call(tool)
    for key in keys:
        guard.approvals.approve(pending.value.request, key, note="\U0001f600" * 1024)
    if code:
        with pytest.raises(Denied, match="is too long to be read again") as caught:
            agent.call(tool)
        assert caught.value.code == code
    else:
        agent.call(tool)
    entry = logged(guard)
    assert (entry["code"], len(entry["approvals"])) == (code, 0 if code else people)
    assert ran == ([] if code else [1])
