"""Calls that a framework makes again: at most once, nobody else's result, and no forged page.

The runs here are those of an adapter: a call site with a thread, and a codec. What happens when a
process dies in between is tried in test_approved_crashes.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from state_pages import Page, pages

from agentguard import Decision, Denied, Guard, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.call.journal import JournalEntry
from agentguard.errors import DecodeError, EncodeError
from agentguard.signing.keys import Ed25519Signer
from agentguard.store.journal import FOLDER
from agentguard.store.sealed_pages import Keys, data_of, sealed


class Codec:
    """Keeps text alone."""

    def dumps(self, result: Any) -> bytes:
        if not isinstance(result, str):
            raise EncodeError("no text")
        return result.encode()

    def loads(self, data: bytes) -> str:
        if data == b"unreadable":
            raise DecodeError("no text")
        return data.decode()


class Run:
    """An agent's calls in a thread of a framework; ``ran`` is what was done."""

    def __init__(self, guard: Guard, ran: list[Any]) -> None:
        self.guard = guard
        self.ran = ran
        self.agent = guard.new_agent("reader")
        self.pay = guard.tool(name="pay")(lambda amount: amount)

    def __call__(
        self,
        amount: int,
        *,
        thread: str | None = "t",
        call_id: str = "c",
        result: Any = None,
        reentrant: bool = False,
    ) -> Any:
        def effect() -> Any:
            self.ran.append(amount)
            if isinstance(result, BaseException):
                raise result
            return f"paid {amount}" if result is None else result

        site = CallSite(call_id, thread=thread, turn="m1")
        invocation = Invocation.bind(self.pay.spec, lambda: Arguments.of({"amount": amount}), site)
        return adapters.run(
            self.agent,
            invocation,
            effect,
            CallOptions(
                codec=Codec(),
                reentrant=reentrant,
                outcome_unknown=(LeftError,),
                suspends=(PauseError,),
            ),
        )

    def refused(self, amount: int, **how: Any) -> str:
        with pytest.raises(Denied) as denied:
            self(amount, **how)
        return denied.value.code


class PauseError(Exception):
    """A framework's way to pause."""


class LeftError(Exception):
    """Work was left behind that goes on by itself."""


@pytest.fixture
def run(guard, ran):
    return Run(guard, ran)


def test_a_call_that_is_made_again_does_not_run_again(run, examine, guard, seen):
    assert [run(1), run(1), run(1)] == ["paid 1"] * 3
    assert run.ran == [1]
    assert examine(guard).problems == ()
    assert examine(guard).in_doubt == ()


def test_what_was_handed_out_is_on_record_as_such(run, guard, seen):
    run(1)
    run(1)
    guard._parts.runtime._ports.log.flush()
    statuses = [
        (said.predicate["status"], said.predicate.get("replay_of") is not None)
        for said in map(outcome, seen(guard).entries)
        if said is not None
    ]
    assert statuses == [("ok", False), ("not_run", True)]


def outcome(parsed: Any) -> Any:
    from agentguard.signing import dsse  # noqa: PLC0415

    if parsed.kind != "outcome":
        return None
    sealed = dsse.Envelope.parse(parsed.members["statement"], may_be_joint=True)
    return dsse.parse_statement(sealed.payload, "outcome")


@pytest.mark.parametrize(
    "other", [{"amount": 2}, {"call_id": "other"}, {"thread": "other"}, {"thread": None}]
)
def test_another_call_runs(run, other):
    run(1)
    given = {"amount": 1, **other}
    assert run(given.pop("amount"), **given).startswith("paid")
    assert len(run.ran) == 2


def test_without_a_thread_nothing_is_kept(run):
    run(1, thread=None)
    run(1, thread=None)
    assert run.ran == [1, 1]


def test_nobody_is_given_anothers_result(run):
    """Whatever thread he names: a thread's id comes from a request, say."""
    lend = run.guard.delegate
    with lend("user:alice", scope=["x"]):
        run(1, result="alice's balance")
    with lend("user:bob", scope=["x"]):
        assert run(1) == "paid 1"
    with lend("user:alice", scope=["x"]):
        assert run(1) == "alice's balance"
    assert run.ran == [1, 1]


def test_another_agent_is_given_no_result(run, ran):
    run(1)
    other = Run(run.guard, ran)
    other.agent = run.guard.new_agent("other")
    assert other(1) == "paid 1"
    assert ran == [1, 1]
    assert Run(run.guard, ran)(1) == "paid 1"  # another instance of the same agent is
    assert ran == [1, 1]


def test_policy_and_authority_are_asked_before_a_result_is_handed_out(ran):
    closed: list[bool] = []
    guard = Guard.ephemeral(lambda _: Decision.deny("closed") if closed else Decision.allow())
    run = Run(guard, ran)
    run(1)
    closed.append(True)
    assert run.refused(1) == "policy.denied"
    closed.clear()
    assert run(1) == "paid 1"
    assert ran == [1]


def test_a_call_that_has_failed_may_be_made_again(run):
    with pytest.raises(ValueError, match="once"):
        run(1, result=ValueError("once"))
    assert run(1) == "paid 1"
    assert run.ran == [1, 1]


def test_a_call_that_was_paused_goes_on(run):
    with pytest.raises(PauseError):
        run(1, result=PauseError())
    assert run(1) == "paid 1"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError(), SystemExit(), LeftError()])
def test_a_call_that_was_cut_short_is_not_made_again(run, error):
    with pytest.raises(type(error)):
        run(1, result=error)
    assert run.refused(1) == "journal.cut_short"
    assert run.ran == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError(), LeftError(), PauseError()])
def test_a_reentrant_call_goes_on_until_it_is_done(run, error):
    """A sub-agent's: what it does are guarded calls themselves."""
    with pytest.raises(type(error)):
        run(1, result=error, reentrant=True)
    assert [run(1, reentrant=True), run(1, reentrant=True)] == ["paid 1"] * 2
    assert run.ran == [1, 1]
    assert run(1) == "paid 1"


def test_nobody_can_call_what_is_in_doubt_reentrant(run):
    with pytest.raises(KeyboardInterrupt):
        run(1, result=KeyboardInterrupt())
    assert run.refused(1, reentrant=True) == "journal.cut_short"


def test_a_result_that_can_not_be_kept_is_not_made_up(run):
    assert run(1, result=["a", "list"]) == ["a", "list"]
    assert run.refused(1) == "journal.unreplayable"
    assert run(2, result="unreadable") == "unreadable"
    assert run.refused(2) == "journal.unreplayable"
    assert run.ran == [1, 2]


@pytest.mark.parametrize(("pointer", "again"), [("/result", None), ("/args/amount", "paid 1")])
def test_a_result_that_the_log_must_not_keep_is_not_kept_here(ran, pointer, again):
    run = Run(
        Guard.ephemeral(lambda _: Decision.allow(), config={"redact": {"pay": [pointer]}}), ran
    )
    run(1)
    if again is None:
        assert run.refused(1) == "journal.unreplayable"
    else:
        assert run(1) == again
    assert ran == [1]


def test_a_second_attempt_at_the_same_time_does_not_run(run):
    inner: list[str] = []

    def nested() -> str:
        inner.append(run.refused(1))
        return "done"

    site = CallSite("c", thread="t", turn="m1")
    invocation = Invocation.bind(run.pay.spec, lambda: Arguments.of({"amount": 1}), site)
    assert adapters.run(run.agent, invocation, nested, CallOptions(Codec())) == "done"
    assert inner == ["journal.in_doubt"]
    assert run.ran == []


async def test_async_calls_are_kept_as_well(run):
    site = CallSite("c", thread="t", turn="m1")

    async def effect() -> str:
        run.ran.append(1)
        return "paid"

    def invocation() -> Invocation:
        return Invocation.bind(run.pay.spec, lambda: Arguments.of({"amount": 1}), site)

    for _ in range(3):
        assert await adapters.arun(run.agent, invocation(), effect, CallOptions(Codec())) == "paid"
    assert run.ran == [1]


# --- on disk --------------------------------------------------------------------------------------


def test_another_process_goes_on(place, ran):
    with place.open() as guard:
        Run(guard, ran)(1)
    with place.open() as guard:
        assert Run(guard, ran)(1) == "paid 1"
    assert ran == [1]
    assert place.examine().problems == ()


def test_a_page_that_somebody_has_written_without_the_logs_key_refuses(place, ran):
    state = place.config.state
    with place.open() as guard:
        Run(guard, ran)(1)
    ((name, good),) = pages(state, FOLDER).items()
    _start, said = good[: -len(data_of(good))], data_of(good)
    other = JournalEntry.loads(said)._replace(result=b"a million").dumps()
    forged = sealed(said, name, Keys(Ed25519Signer.from_seed(bytes(32)), place.take_up))
    for data in (_start + other, forged, b"", b"{}", good[:-1], b" " + good[:-1]):
        Page(state, name).write_bytes(data)
        with place.open() as guard, pytest.raises(Denied, match="restore the state") as denied:
            Run(guard, ran)(1)
        assert denied.value.code == "storage.corrupt"
    Page(state, name).unlink()  # no remedy: the log knows the call
    with place.open() as guard:
        assert Run(guard, ran).refused(1) == "journal.missing"
    Page(state, name).write_bytes(good)
    with place.open() as guard:
        assert Run(guard, ran)(1) == "paid 1"
    assert ran == [1]


def test_a_page_of_another_call_is_none_of_this_one(place, ran):
    state = place.config.state
    with place.open() as guard:
        Run(guard, ran)(1)
    ((first, page),) = pages(state, FOLDER).items()
    with place.open() as guard:
        Run(guard, ran)(2)
    (second,) = {*pages(state, FOLDER)} - {first}
    Page(state, second).write_bytes(page)
    with place.open() as guard:
        assert Run(guard, ran).refused(2) == "storage.corrupt"
        assert Run(guard, ran)(1) == "paid 1"


def test_a_page_that_is_no_data_refuses_its_call_alone(place, ran):
    with place.open() as guard:
        Run(guard, ran)(1)
    (name,) = pages(place.config.state, FOLDER)
    Page(place.config.state, name).write_text("text")
    with place.open() as guard:
        run = Run(guard, ran)
        assert run.refused(1) == "storage.corrupt"
        assert run(2) == "paid 2"
