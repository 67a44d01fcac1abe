"""A call that hands work over is complete once every call within it is, and nothing runs twice.

Adapters say which calls hand over. What their frameworks make of it is tried in their own tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentguard import AgentguardError, ApprovalPending, Decision, Denied, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation, ToolSpec
from agentguard.delegation import context
from agentguard.testing import RecordedGuard

Work = Callable[[], Any]


class Text:
    """Keeps text."""

    def dumps(self, result: Any) -> bytes:
        return str(result).encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


class Thread:
    """Calls in a thread of a framework, which makes them again; ``ran`` is what was done."""

    def __init__(self) -> None:
        self.log = RecordedGuard.make()
        self.asks: set[str] = set()
        self.log.decide = self.decide
        self.agent = self.log.guard.new_agent("reader")
        self.ran: list[str] = []

    def decide(self, call: Any) -> Decision:
        return Decision.require_approval() if call["action"] in self.asks else Decision.allow()

    def call(self, name: str, work: Work | None = None, **how: Any) -> Any:
        """Make a call; what it does is on ``ran``, and then it does ``work``."""
        kept = how.pop("kept", True)
        given = {"codec": Text(), **how} if kept else how
        site = CallSite(name, thread="t" if kept else None)
        spec = ToolSpec(name, "a tool", {"type": "object"}, "tests:tool")
        invocation = Invocation.bind(spec, lambda: Arguments.of({}), site)

        def effect() -> str:
            self.ran.append(name)
            return str(work()) if work is not None else f"{name} is done"

        return adapters.run(self.agent, invocation, effect, CallOptions(**given))

    def told(self, name: str, work: Work | None = None, **how: Any) -> str:
        """Make a call as frameworks do, where a model is told of what did not run."""
        try:
            return str(self.call(name, work, **how))
        except AgentguardError as error:
            return error.code

    def since(self, work: Work) -> list[str]:
        before = len(self.ran)
        work()
        return self.ran[before:]


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = Thread()
    with thread.log.guard:
        yield thread
        thread.log.require_sound()


def handing(thread: Thread, *within: Work) -> Work:
    """A call that hands over work, in which these are done."""
    return lambda: thread.told("hand", lambda: [one() for one in within], reentrant=True)


def test_a_hand_over_goes_on_until_what_waits_in_it_has_run(thread):
    thread.asks = {"pay"}
    work = handing(thread, lambda: thread.told("book"), lambda: thread.told("pay"))
    assert thread.since(work) == ["hand", "book"]
    assert thread.since(work) == ["hand"]
    thread.log.approve()
    assert thread.since(work) == ["hand", "pay"]
    assert thread.since(work) == []


def test_a_hand_over_in_which_all_has_ended_is_handed_out(thread):
    thread.log.decide = lambda call: (
        Decision.deny("no") if call["action"] == "pay" else Decision.allow()
    )

    def failing() -> str:
        try:
            return str(thread.call("send", lambda: 1 // 0))
        except ZeroDivisionError:
            return "it failed"

    work = handing(thread, lambda: thread.told("pay"), failing)
    assert thread.since(work) == ["hand", "send"]
    assert thread.since(work) == []


def test_what_waits_is_found_however_deep_it_lies(thread):
    thread.asks = {"pay"}

    def deep() -> str:
        return thread.told("ask", lambda: thread.told("pay"), reentrant=True)

    work = handing(thread, deep)
    assert thread.since(work) == ["hand", "ask"]
    thread.log.approve()
    assert thread.since(work) == ["hand", "ask", "pay"]
    assert thread.since(work) == []


def test_work_in_work_that_failed_is_not_done(thread):
    down = [True]

    def failing() -> str:
        if down:
            down.clear()
            raise ConnectionError("the model is down")
        return thread.told("pay")

    def handing_on() -> str:
        try:
            return thread.told("ask", failing, reentrant=True)
        except ConnectionError:
            return "it failed"

    work = handing(thread, lambda: thread.told("book"), handing_on)
    assert thread.since(work) == ["hand", "book", "ask"]
    assert thread.since(work) == ["hand", "ask", "pay"]
    assert thread.since(work) == []


@pytest.mark.parametrize("error", [TimeoutError(), KeyboardInterrupt()])
def test_what_may_have_run_has_not_ended(thread, error):
    def cut_short() -> str:
        try:
            return thread.told("pay", lambda: (_ for _ in ()).throw(error))
        except (TimeoutError, KeyboardInterrupt):
            return "cut short"

    work = handing(thread, cut_short)
    assert thread.since(work) == ["hand", "pay"]
    assert thread.since(work) == ["hand"]  # and it is in doubt


def test_a_call_that_is_approved_while_the_work_goes_on_has_ended(thread):
    thread.asks = {"pay"}

    def waiting() -> str:
        assert thread.told("pay") == "approval.pending"
        thread.log.approve()
        return thread.told("pay")

    work = handing(thread, waiting)
    assert thread.since(work) == ["hand", "pay"]
    assert thread.since(work) == []


def test_a_tool_that_does_something_itself_is_not_run_twice(thread):
    # it swallows what it is told of the call that waits; nobody says that it hands work over
    thread.asks = {"pay"}
    work: Work = lambda: thread.told("transfer", lambda: thread.told("pay"))  # noqa: E731
    assert thread.since(work) == ["transfer"]
    thread.log.approve()
    assert thread.since(work) == []


def test_nor_is_a_call_within_that_the_journal_does_not_have(thread, caplog):
    thread.asks = {"pay"}
    book: Work = lambda: thread.told("book", kept=False)  # noqa: E731
    work = handing(thread, book, lambda: thread.told("pay"))
    assert thread.since(work) == ["hand", "book"]
    assert "A resumed run does not make the ended call again" in caplog.text
    thread.log.approve()
    assert thread.since(work) == []


def test_an_adapter_says_while_a_tool_runs_that_it_hands_over_and_sees_who_is_asked(thread):
    thread.asks = {"pay", "send"}
    seen: list[list[str]] = []

    def within() -> str:
        inside = context.nested_calls()
        assert inside is not None
        inside.hands_over = True
        thread.told("ask", lambda: (thread.told("pay"), thread.told("send")), reentrant=True)
        seen.append(sorted(request.tool for request in inside.requests))
        return "done"

    work: Work = lambda: thread.told("order", within)  # noqa: E731
    assert thread.since(work) == ["order", "ask"]
    thread.log.approve()
    assert thread.since(work) == ["order", "ask", "pay", "send"]
    assert thread.since(work) == []
    assert seen == [["pay", "send"], []]
    assert context.nested_calls() is None


def test_a_call_of_which_was_only_asked_waits_as_well(thread):
    thread.asks = {"pay"}
    spec = ToolSpec("pay", "a tool", {"type": "object"}, "tests:tool")
    invocation = Invocation.bind(spec, lambda: Arguments.of({}), CallSite("pay", thread="t"))

    def asking() -> str:
        with pytest.raises(ApprovalPending):
            adapters.evaluate(thread.agent, invocation, CallOptions(Text()))
        return "asked"

    work = handing(thread, asking)
    assert [thread.since(work), thread.since(work)] == [["hand"], ["hand"]]


async def test_calls_at_once_are_each_found(thread):
    thread.asks = {"pay"}

    async def told(name: str) -> str:
        await asyncio.sleep(0)
        spec = ToolSpec(name, "a tool", {"type": "object"}, "tests:tool")
        site = CallSite(name, thread="t")
        invocation = Invocation.bind(spec, lambda: Arguments.of({}), site)

        async def effect() -> str:
            thread.ran.append(name)
            return name

        try:
            return await adapters.arun(thread.agent, invocation, effect, CallOptions(Text()))
        except (Denied, ApprovalPending) as error:
            return error.code

    async def hand() -> None:
        spec = ToolSpec("hand", "a tool", {"type": "object"}, "tests:tool")
        invocation = Invocation.bind(spec, lambda: Arguments.of({}), CallSite("h", thread="t"))

        async def within() -> str:
            return str(await asyncio.gather(told("book"), told("pay"), told("send")))

        await adapters.arun(thread.agent, invocation, within, CallOptions(Text(), reentrant=True))

    await hand()
    assert sorted(thread.ran) == ["book", "send"]
    thread.log.approve()
    await hand()
    await hand()
    assert sorted(thread.ran) == ["book", "pay", "send"]
