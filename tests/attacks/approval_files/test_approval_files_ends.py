"""The end of a request: on record once, whoever notices it first, and told to the application.

Whoever can write in the state removes marks and puts old files back; a log that can't be written
loses no end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from approval_desk import keyless_approvals

from agentguard import (
    ApprovalError,
    ApprovalPending,
    ConfigError,
    Decision,
    Denied,
    Guard,
    RequestEndedError,
    Requirement,
    StorageError,
    VerificationError,
    adapters,
)
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation

TTL = 100


@pytest.fixture
def brief(desk, clock):
    desk.needed = Requirement("a person", ttl=TTL)
    return desk


def ends(desk: Any) -> list[dict[str, Any]]:
    return [dict(one.members) for one in desk.place.seen().entries if one.kind == "request_end"]


def late(desk: Any, guard: Guard, request: Any) -> None:
    with pytest.raises(VerificationError, match="the approval has expired"):
        guard.approvals.approve(request, desk.keys["bob"])


TOUCHES: dict[str, Callable[[Any, Guard, Any], object]] = {
    "a list": lambda _desk, guard, _request: guard.approvals.pending(),
    "a list of ends": lambda _desk, guard, _request: guard.approvals.ended(),
    "a status": lambda _desk, guard, request: guard.approvals.status(request.request_id),
    "a wait": lambda _desk, guard, request: guard.approvals.wait(request, timeout=0),
    "a late answer": late,
    "the call": lambda desk, guard, _request: desk.call(guard),
    "another call": lambda desk, guard, _request: desk.call(guard, "fix"),
    "a withdrawal": lambda _desk, guard, request: guard.approvals.withdraw(request),
}

REMOVING = ("the call", "another call", "a withdrawal")
"""After these, the state does not have the request any more."""


@pytest.mark.parametrize("touch", TOUCHES)
def test_whoever_notices_first_puts_the_end_on_record_once(brief, clock, touch):
    with brief.open() as guard, brief.open() as other:
        request = brief.ask(guard)
        clock.advance(seconds=TTL - 1)
        assert guard.approvals.pending() == [request]
        assert ends(brief) == []
        clock.advance(seconds=1)
        TOUCHES[touch](brief, guard, request)
        (end,) = ends(brief)
        assert (end["request_id"], end["end"]) == (request.request_id, "expired")
        assert (end["principal"], end["approvals"]) == (request.principal, [])
        for again, look in TOUCHES.items():
            is_over = again == "a late answer" and touch in REMOVING
            if again not in ("the call", "another call") and not is_over:  # which ask anew
                look(brief, other, request)
        assert len(ends(brief)) == 1
        status = other.approvals.status(request.request_id)
        assert (status.state, status.ended_at is not None) == ("expired", True)
        assert other.verify().problems == ()


def test_many_who_look_at_once_put_it_on_record_once(brief, clock):
    with brief.open() as guard, brief.open() as other:
        for number in range(5):
            brief.ask(guard, f"branch-{number}")
        clock.advance(seconds=TTL)
        with ThreadPoolExecutor(6) as threads:
            looks = [threads.submit((guard, other)[n % 2].approvals.pending) for n in range(12)]
            assert all(look.result() == [] for look in looks)
        assert len({end["request_id"] for end in ends(brief)}) == len(ends(brief)) == 5
        assert guard.verify().problems == ()


def test_an_end_says_who_had_answered(brief, clock):
    with brief.open() as guard:
        request = brief.ask(guard)
        guard.approvals.approve(request, brief.keys["bob"])
        brief.answer(request, "bob")
        path = brief.folder / "answers" / request.request_id / ("f" * 32)
        path.write_bytes(b"no answer")
        clock.advance(seconds=TTL)
        (past,) = guard.approvals.ended()
        (end,) = ends(brief)
        assert len(end["approvals"]) == 2
        assert {one.approver for one in past.status.answers} == {"user:bob"}
        assert str(past.status).endswith("has expired, and its call was not made again")
        assert guard.verify().problems == ()


def test_a_rejected_request_whose_call_nobody_made_again_stays_rejected(brief, clock):
    with brief.open() as guard:
        request = brief.ask(guard)
        guard.approvals.reject(request, brief.keys["bob"])
        clock.advance(seconds=TTL)
        (past,) = guard.approvals.ended()
        assert past.status.state == "rejected"


def test_a_call_that_ran_has_no_other_end(brief, clock):
    with brief.open() as guard:
        request = brief.ask(guard)
        kept = brief.path().read_bytes()
        key = brief.path().name
        guard.approvals.approve(request, brief.keys["bob"])
        assert brief.call(guard) == "merged main"
        (brief.folder / "requests" / key).write_bytes(kept)
        clock.advance(seconds=TTL)
        assert guard.approvals.pending() == []
        assert ends(brief) == []
        assert guard.approvals.withdraw(request) is False
        assert [one.status.state for one in guard.approvals.ended()] == ["approved"]


def test_a_withdrawal_is_on_record_once(brief, clock):
    with brief.open() as guard, brief.open() as other:
        request = brief.ask(guard)
        assert guard.approvals.withdraw(request)
        assert other.approvals.withdraw(request)
        (end,) = ends(brief)
        assert end["end"] == "withdrawn"
        clock.advance(seconds=TTL)
        assert other.approvals.withdraw(request)
        assert len(ends(brief)) == 1
        assert other.approvals.status(request.request_id).state == "withdrawn"
        assert guard.verify().problems == ()


@pytest.mark.parametrize(
    ("end", "code"), [("expired", "approval.expired"), ("withdrawn", "approval.consumed")]
)
def test_an_old_copy_of_a_request_that_has_ended_brings_nothing_back(brief, clock, end, code):
    """A slow clock revives no request: it is not before the newest entry of the log."""
    with brief.open() as guard, brief.open() as other:
        request = brief.ask(guard)
        brief.answer(request, "bob")
        old = brief.kept()
        if end == "withdrawn":
            guard.approvals.withdraw(request)
        else:
            clock.advance(seconds=TTL)
            guard.approvals.pending()
            clock.advance(seconds=-TTL / 2)  # a process with a slow clock
        brief.put_back(old)
        assert end == "expired" or other.approvals.pending() == []
        assert brief.call(other) == code
        assert brief.ran == []
        assert len(ends(brief)) == 1


def test_an_end_that_could_not_be_written_is_written_later(brief, clock, put_faults, caplog):
    with brief.open() as guard:
        request = brief.ask(guard)
        faults = put_faults(guard)
        clock.advance(seconds=TTL)
        faults.before = StorageError("the disk is full", code="storage.full")
        for _twice in range(2):
            assert guard.approvals.pending() == []
        assert caplog.text.count("can't be ended yet: StorageError: the disk is full") == 1
        assert brief.path().exists()
        assert ends(brief) == []
        faults.before = None
        assert guard.approvals.pending() == []
        (end,) = ends(brief)
        assert end["request_id"] == request.request_id


def test_a_request_that_ended_while_no_guard_ran_is_on_record_weeks_later(brief, clock):
    with brief.open() as guard:
        request = brief.ask(guard)
    clock.advance(days=20)
    with brief.open() as guard:
        guard.new_agent("reader")  # by whose entry the index of the log knows the day
        guard.flush()
        with brief.open() as other:
            assert other.approvals.pending() == []
        (end,) = ends(brief)
        assert end["request_id"] == request.request_id
        assert guard.verify().problems == ()


def test_a_command_without_the_logs_key_ends_nothing(brief, clock):
    with brief.open() as guard:
        request = brief.ask(guard)
        clock.advance(seconds=TTL)
        keyless_approvals(brief.place).expire(request.expires_at)
        assert brief.path().exists()
        assert ends(brief) == []


def answer_at_the_end(guard: Guard, end: Callable[[], object], answer: Callable[[], object]) -> Any:
    """Have the request end after an answer was checked, and before it is stored."""
    store: Any = guard.approvals._store
    stores = store.answer

    def late(*given: Any) -> bool:
        end()
        return bool(stores(*given))

    store.answer = late
    try:
        with pytest.raises(RequestEndedError) as caught:
            answer()
    finally:
        store.answer = stores
    return caught.value.status


@pytest.mark.parametrize("verdict", ["approve", "reject"])
@pytest.mark.parametrize("end", ["expired", "withdrawn"])
def test_an_answer_that_comes_a_moment_after_the_end_is_told_so(brief, clock, end, verdict):
    with brief.open() as guard, brief.open() as other:
        request = brief.ask(guard)

        def over() -> None:
            if end == "withdrawn":
                other.approvals.withdraw(request)
            else:
                clock.advance(seconds=TTL)
                other.approvals.pending()

        answers = getattr(guard.approvals, verdict)
        status = answer_at_the_end(guard, over, lambda: answers(request, brief.keys["bob"]))
        assert status.state == end
        assert not (brief.folder / "answers" / request.request_id).exists()
        assert other.approvals.status(request.request_id).state == end
        assert len(ends(brief)) == 1


# --- the application is told ----------------------------------------------------------------------


class Told:
    """What the application was told, in order; and it may fail."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.fails = False

    def __getattr__(self, name: str) -> Callable[[Any], None]:
        def told(request: Any) -> None:
            self.heard.append((name, request.request_id))
            if self.fails:
                raise ConnectionError(name)

        return told


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def telling(told, clock):
    asking = lambda _call: Decision.require_approval(Requirement("a person", ttl=TTL))  # noqa: E731
    with Guard.ephemeral(
        asking,
        config={"approvals": {"application": True, "expiring_seconds": 30}},
        on_request=told.request,
        on_expiring=told.expiring,
        on_expired=told.expired,
    ) as guard:
        yield guard


def asked(guard: Guard) -> Any:
    tool = guard.tool(name="deploy")(lambda: "done")
    with pytest.raises(ApprovalPending) as pending:
        guard.new_agent("reader").call(tool)
    return pending.value.request


@pytest.mark.parametrize("fails", [False, True])
def test_the_application_hears_of_the_coming_end_and_of_the_end_once(telling, told, clock, fails):
    told.fails = fails
    name = asked(telling).request_id
    expected = [("request", name)]
    for seconds, more in ((69, []), (1, ["expiring"]), (1, []), (29, ["expired"]), (1, [])):
        clock.advance(seconds=seconds)
        expected += [(one, name) for one in more]
        telling.approvals.pending()
        telling.approvals.pending()
        assert told.heard == expected


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_an_answer_in_memory_a_moment_after_the_end_is_told_so(telling, clock, verdict):
    request = asked(telling)

    def over() -> None:
        clock.advance(seconds=TTL)
        telling.approvals.pending()

    def answer() -> None:
        telling.approvals.vouch(request, verdict, principal="user:bob")

    assert answer_at_the_end(telling, over, answer).state == "expired"
    assert telling.approvals.status(request.request_id).state == "expired"


DONE: dict[str, Callable[[Any, Guard, Any], object]] = {
    "withdrawn": lambda _desk, guard, request: guard.approvals.withdraw(request),
    "used": lambda desk, guard, request: (
        guard.approvals.approve(request, desk.keys["bob"]),
        desk.call(guard),
    ),
}


@pytest.mark.parametrize("done", DONE)
def test_people_hear_of_no_coming_end_that_has_come_since_the_store_was_read(brief, done):
    with brief.open() as guard, brief.open() as other:
        request = brief.ask(guard)
        slow, quick = (one.approvals._store for one in (guard, other))
        ((_key, seen),) = slow.pending()
        assert quick.announce(seen)  # the twin
        assert not slow.announce(seen)
        DONE[done](brief, other, request)
        assert not slow.announce(seen)
        assert (brief.folder / "announced").iterdir() == []


def test_people_hear_of_no_coming_end_in_memory_that_has_come_already(telling):
    request, store = asked(telling), telling.approvals._store
    assert store.announce(request)  # the twin
    assert not store.announce(request)
    telling.approvals.withdraw(request)
    assert not store.announce(request)


def test_an_answer_in_memory_after_a_call_has_used_the_request_is_too_late(telling):
    tool, agent = telling.tool(name="deploy")(lambda: "done"), telling.new_agent("reader")
    with pytest.raises(ApprovalPending) as pending:
        agent.call(tool)
    request = pending.value.request
    telling.approvals.vouch(request, "approve", principal="user:bob")
    assert agent.call(tool) == "done"
    with pytest.raises(ApprovalError) as caught:
        telling.approvals.vouch(request, "reject", principal="user:bob")
    assert caught.value.code == "request.ended"


def test_of_a_brief_request_people_hear_at_half_of_its_time(told, clock):
    asking = lambda _call: Decision.require_approval(Requirement("a person", ttl=TTL))  # noqa: E731
    config = {"approvals": {"application": True}}  # 300 s before the end
    with Guard.ephemeral(asking, config=config, on_expiring=told.expiring) as guard:
        asked(guard)
        clock.advance(seconds=TTL / 2 - 1)
        guard.approvals.pending()
        assert told.heard == []
        clock.advance(seconds=1)
        guard.approvals.pending()
        assert len(told.heard) == 1


def test_a_request_that_was_used_or_withdrawn_expires_for_nobody(telling, told, clock):
    request = asked(telling)
    telling.approvals.withdraw(request)
    clock.advance(seconds=TTL)
    telling.approvals.pending()
    assert told.heard == [("request", request.request_id)]


def test_nobody_has_to_look(clock):
    asking = lambda _call: Decision.require_approval(Requirement("a person", ttl=2))  # noqa: E731
    expiring, expired = threading.Event(), threading.Event()
    with Guard.ephemeral(
        asking,
        config={"approvals": {"application": True}},
        on_expiring=lambda _request: expiring.set(),
        on_expired=lambda _request: expired.set(),
    ) as guard:
        asked(guard)
        clock.advance(seconds=1)
        assert expiring.wait(60)
        assert not expired.is_set()
        clock.advance(seconds=1)
        assert expired.wait(60)


def test_a_guard_that_is_closed_looks_no_more():
    before = set(threading.enumerate())
    guard = Guard.ephemeral(lambda _call: Decision.allow(), on_expired=print)
    (looking,) = (
        one for one in set(threading.enumerate()) - before if one.name == "agentguard-requests"
    )
    guard.close()
    looking.join(60)
    assert not looking.is_alive()


@pytest.mark.parametrize("name", ["on_expiring", "on_expired"])
def test_what_is_no_function_is_refused(name):
    async def told(_request: Any) -> None: ...

    for wrong in (told, "acme:told", 5):
        options: dict[str, Any] = {name: wrong}
        with pytest.raises(ConfigError, match=f"{name}: expected a function"):
            Guard.ephemeral(lambda _call: Decision.allow(), **options)


# --- until when -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl", "lent", "lives"), [(60, 3600, 60), (86_400, 3600, 3600)])
def test_a_request_ends_with_its_delegation(clock, ttl, lent, lives):
    asking = lambda _call: Decision.require_approval(Requirement("a person", ttl=ttl))  # noqa: E731
    with Guard.ephemeral(asking, config={"approvals": {"application": True}}) as guard:
        tool, agent = guard.tool(name="deploy")(lambda: "done"), guard.new_agent("reader")
        delegation = guard.delegate("user:alice", scope=["deploy"], expires_in=lent)
        with delegation, pytest.raises(ApprovalPending) as pending:
            agent.call(tool)
        request = pending.value.request
        assert abs(request.expires_at - request.requested_at - lives) <= 1
        guard.approvals.vouch(request, "approve", principal="user:bob")
        clock.advance(seconds=lives + 1)
        assert guard.approvals.pending() == []
        (past,) = guard.approvals.ended()
        assert (past.principal, past.status.state) == ("user:alice", "expired")
        with delegation, pytest.raises(Denied) as denied:
            agent.call(tool)
        assert denied.value.code == ("approval.expired" if ttl < lent else "delegation.expired")
        assert guard.approvals.status(request.request_id).state == "expired"
        assert guard.verify().problems == ()


# --- under another name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "code", "said"),
    [
        ("pay", "Pay.", "", ""),
        (
            "pay_out",
            "Pay.",
            "approval.mismatch",
            "people were asked about pay, and this call is one of pay_out: the tool was renamed",
        ),
        (
            "pay",
            "Pay more.",
            "approval.mismatch",
            "the tool's description or schema has changed since the approval was asked for",
        ),
    ],
)
def test_a_tool_that_changed_while_its_call_waited_is_refused(desk, name, words, code, said):
    with desk.open() as guard:
        agent = guard.new_agent("reader")
        site = CallSite("c", thread="t", turn="m")

        def call(name: str, words: str) -> str:
            def pay() -> None: ...

            pay.__doc__ = words
            spec = guard.tool(name=name)(pay).spec
            invocation = Invocation.bind(spec, lambda: Arguments.of({}), site)
            try:
                return str(adapters.run(agent, invocation, lambda: "", CallOptions()))
            except Denied as denied:
                assert said in denied.reason  # noqa: PT017  the allowed one raises nothing
                return denied.code

        with pytest.raises(ApprovalPending) as pending:
            call("pay", "Pay.")
        guard.approvals.approve(pending.value.request, desk.keys["bob"])
        assert call(name, words) == code
