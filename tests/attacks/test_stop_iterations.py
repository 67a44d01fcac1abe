"""A StopIteration of foreign code ends a call, also on an event loop, whose futures can't hold one.

A look-up that calls ``next`` on an empty iterator raises one. As in a coroutine (PEP 479), what
comes out is a RuntimeError.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentguard import ApprovalPending, Decision, Denied, Guard, adapters
from agentguard.adapters import Arguments, CallSite, Invocation
from agentguard.audit.kinds import parse_entry
from agentguard.domain.verify import examine
from agentguard.policy.function import FunctionEngine


def entries(guard, kind):
    bodies = (body for _index, body in guard.reader().entries())
    return [entry for entry in map(parse_entry, bodies) if entry.kind == kind]


def codes(guard):
    return [entry.code for entry in entries(guard, "call")]


def outcomes(guard):
    statements = list(entries(guard, "outcome"))
    return [(one.status, one.predicate["error_type"]) for one in statements]


def first(*_arguments: object) -> Any:
    return next(iter(()))


async def first_later(*_arguments: object) -> Any:
    await asyncio.sleep(0)
    return next(iter(()))


def first_soon(*_arguments: object) -> Any:
    return first_later()


def allow(_document: object) -> Decision:
    return Decision.allow()


async def ended(call):
    """Wait for a call; the limit is there for a call that never ends."""
    return await asyncio.wait_for(call, 60)


@pytest.fixture
def ran():
    return []


@pytest.mark.parametrize("facts", [first, first_later, first_soon])
async def test_a_look_up_that_finds_nothing_is_a_denial_on_record(ran, facts):
    with Guard.ephemeral(allow) as guard:
        note = guard.tool(name="note", facts=facts, gives=[])(ran.append)
        with pytest.raises(Denied) as caught:
            await ended(guard.new_agent("a").acall(note, "x"))
        assert caught.value.code == "facts.failed"
        assert codes(guard) == ["facts.failed"]
        assert examine(guard.reader(), guard.trust).ok
    assert ran == []


def test_so_is_it_without_an_event_loop(ran):
    with Guard.ephemeral(allow) as guard:
        note = guard.tool(name="note", facts=first, gives=[])(ran.append)
        with pytest.raises(Denied) as caught:
            guard.new_agent("a").call(note, "x")
        assert caught.value.code == "facts.failed"
    assert ran == []


async def test_a_look_up_that_finds_something_is_an_allowed_call(ran):
    """The twin."""
    with Guard.ephemeral(allow) as guard:
        note = guard.tool(name="note", facts=lambda _call: next(iter([{}])), gives=[])(ran.append)
        await ended(guard.new_agent("a").acall(note, "x"))
        assert codes(guard) == [""]
    assert ran == ["x"]


@pytest.mark.parametrize("tool", [first, first_later])
async def test_a_tool_that_finds_nothing_has_failed(tool):
    with Guard.ephemeral(allow) as guard:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await ended(guard.new_agent("a").acall(guard.tool(name="note")(tool)))
        guard.close()
        assert outcomes(guard) == [("error", "builtins.RuntimeError")]
        assert examine(guard.reader(), guard.trust).in_doubt == ()


@pytest.mark.parametrize("function", [first, first_later])
async def test_so_has_one_of_an_adapter(function):
    with Guard.ephemeral(allow) as guard:
        agent = guard.new_agent("a")
        spec = guard.tool(name="note")(lambda: None).spec
        call = Invocation.bind(spec, lambda: Arguments.of({}), CallSite("1"))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await ended(adapters.arun(agent, call, function))
        guard.close()
        assert outcomes(guard) == [("error", "builtins.RuntimeError")]


class Waits(FunctionEngine):
    """An engine that the async driver calls in a thread, as it calls an OPA server."""

    waits = True  # type: ignore[misc]

    def evaluate(self, document):
        return self._decide(document)


@pytest.mark.parametrize("engine", [FunctionEngine, Waits])
async def test_a_policy_that_finds_nothing_denies(ran, engine):
    with Guard.ephemeral(engine(first)) as guard:
        note = guard.tool(name="note")(ran.append)
        with pytest.raises(Denied) as caught:
            await ended(guard.new_agent("a").acall(note, "x"))
        assert caught.value.code == "policy.error"
        assert codes(guard) == ["policy.error"]
    assert ran == []


async def test_an_on_request_that_finds_nothing_leaves_a_request_that_waits(ran):
    people = {"approvals": {"application": True}}
    with Guard.ephemeral(
        lambda _call: Decision.require_approval(), config=people, on_request=first
    ) as guard:
        note = guard.tool(name="note")(ran.append)
        agent = guard.new_agent("a")
        with pytest.raises(ApprovalPending) as caught:
            await ended(agent.acall(note, "x"))
        request = caught.value.request
        guard.approvals.vouch(request, "approve", principal="user:bob")
        assert await ended(guard.approvals.await_(request, timeout=60))
        await ended(agent.acall(note, "x"))
    assert ran == ["x"]


class Finds:
    """A codec of results that finds nothing."""

    dumps = loads = staticmethod(first)


async def test_a_codec_that_finds_nothing_returns_no_result_again(ran):
    with Guard.ephemeral(allow) as guard:
        agent = guard.new_agent("a")
        spec = guard.tool(name="note")(lambda: None).spec
        options = adapters.CallOptions(codec=Finds())

        def call():
            site = CallSite("1", "thread", None, "turn")
            invocation = Invocation.bind(spec, lambda: Arguments.of({}), site)
            return ended(adapters.arun(agent, invocation, lambda: ran.append(1), options))

        await call()
        with pytest.raises(Denied) as caught:
            await call()
        assert caught.value.code == "journal.unreplayable"
    assert ran == [1]
