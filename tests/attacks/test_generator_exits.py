"""A GeneratorExit of foreign code is raised again, after the refusal or the outcome is on record.

A generator takes a thrown GeneratorExit for its own end, and the steps of a call are generators.
The same holds for a coroutine of a call that somebody closes.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentguard import Decision, Guard
from agentguard.audit.kinds import parse_entry
from agentguard.domain.verify import examine


def entries(guard, kind):
    bodies = (body for _index, body in guard.reader().entries())
    return [entry for entry in map(parse_entry, bodies) if entry.kind == kind]


def decisions(guard):
    """Return the code of each authorization, and its reasons as one text."""
    calls = list(entries(guard, "call"))
    return [(call.code, "; ".join(call.reasons)) for call in calls]


def outcomes(guard):
    statements = list(entries(guard, "outcome"))
    return [(one.status, one.predicate["error_type"]) for one in statements]


def leave(*_arguments: object) -> Any:
    raise GeneratorExit("leave")


def allow(_document: object) -> Decision:
    return Decision.allow()


INTERRUPTED = (
    "call.interrupted",
    "the call was interrupted before it was decided (GeneratorExit)",
)


@pytest.fixture
def ran():
    return []


@pytest.fixture(params=["call", "acall"])
def make_call(request):
    """Make a call with the sync or with the async driver."""

    def call(agent, tool, *arguments):
        if request.param == "call":
            return agent.call(tool, *arguments)
        return asyncio.run(agent.acall(tool, *arguments))

    return call


@pytest.mark.parametrize("where", ["facts", "policy"])
def test_a_look_up_or_a_policy_that_leaves_is_a_refusal_on_record(make_call, ran, where):
    policy, facts = (leave, None) if where == "policy" else (allow, leave)
    with Guard.ephemeral(policy) as guard:
        tool = guard.tool(name="note", facts=facts, gives=[])(ran.append)
        with pytest.raises(GeneratorExit, match="leave"):
            make_call(guard.new_agent("a"), tool, "x")
        assert decisions(guard) == [INTERRUPTED]
        assert examine(guard.reader(), guard.trust).ok
    assert ran == []


def test_one_that_answers_is_an_allowed_call(make_call, ran):
    """The twin."""
    with Guard.ephemeral(allow) as guard:
        tool = guard.tool(name="note", facts=lambda _call: {}, gives=[])(ran.append)
        make_call(guard.new_agent("a"), tool, "x")
        assert decisions(guard) == [("", "")]
    assert ran == ["x"]


def test_a_tool_that_leaves_has_an_unknown_outcome(make_call):
    with Guard.ephemeral(allow) as guard:
        tool = guard.tool(name="note")(leave)
        with pytest.raises(GeneratorExit, match="leave"):
            make_call(guard.new_agent("a"), tool)
        guard.close()
        assert outcomes(guard) == [("unknown", "builtins.GeneratorExit")]


def test_a_call_that_is_closed_during_its_look_up_is_a_refusal_on_record(ran):
    looked, answer = threading.Event(), threading.Event()

    def look_up(_call: object) -> dict[str, object]:
        looked.set()
        answer.wait(60)
        return {}

    async def main():
        call: Any = agent.acall(tool, "x")
        call.send(None)
        await asyncio.to_thread(looked.wait, 60)
        call.close()

    with Guard.ephemeral(allow) as guard:
        tool = guard.tool(name="note", facts=look_up, gives=[])(ran.append)
        agent = guard.new_agent("a")
        try:
            asyncio.run(main())
        finally:
            answer.set()
        assert decisions(guard) == [INTERRUPTED]
    assert ran == []
