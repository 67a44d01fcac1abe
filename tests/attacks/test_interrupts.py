"""An interrupt at the start of any function of the log's commit leaves a log that goes on.

There, after the call of a C function and at jumps back, is where CPython looks for signals. What a
signal handler does with the log itself is refused where it would wait for the commit that it has
interrupted.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard, StorageError
from agentguard.audit.state import State
from agentguard.domain.verify import examine
from agentguard.storage import flusher, lock, owned_lock, reserve
from agentguard.storage import sqlite as shared
from agentguard.store import anchor, check, log, sqlite, store, transaction
from agentguard.store.reader import StoredLog

FILES = {str(one.__file__) for one in (flusher, log, owned_lock, sqlite, store, transaction)}
WAITING = {"wait", "notify", "notify_all"}


def interrupt_at(event: int):
    """Return a trace function that raises once, at that call inside the log's files."""
    left = event

    def trace(frame, _event, _argument):
        nonlocal left
        code = frame.f_code
        if code.co_filename in FILES or (
            code.co_filename == threading.__file__ and code.co_name in WAITING
        ):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    return trace


@pytest.mark.parametrize("event", range(1, 30))
def test_an_interrupt_at_any_call_of_a_call_leaves_the_log_usable(event):
    guard = Guard.ephemeral(lambda _call: Decision.allow())
    agent = guard.new_agent("a")
    tool = guard.tool(lambda x: x)
    gc.collect()  # what earlier tests have left must not end in the middle of this one
    sys.settrace(interrupt_at(event))
    try:
        agent.call(tool, 1)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    results: list[int] = []
    another = threading.Thread(target=lambda: results.append(agent.call(tool, 2)), daemon=True)
    another.start()
    another.join(timeout=60)
    assert results == [2]
    assert agent.call(tool, 3) == 3
    report = examine(guard.reader(), guard.trust)
    assert report.ok, report.problems


# --- a handler that comes to the log itself -------------------------------------------------------


@pytest.fixture
def handled():
    """Has a function handle the signal USR1; ends a test that waits for itself."""
    numbers = (signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]

    def late(*_args):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 600)
    yield lambda handler: signal.signal(signal.SIGUSR1, lambda *_args: handler())
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def interrupt_writes(guard):
    """Send the signal once, in the midst of the next commit."""
    store = guard._parts.runtime._ports.log._store
    written, left = store._written, [True]

    def interrupted(*batch):
        if left:
            left.pop()
            signal.raise_signal(signal.SIGUSR1)
        return written(*batch)

    store._written = interrupted


def test_a_handler_that_makes_a_call_within_a_commit_is_denied(place, ran, handled):
    codes: list[str] = []

    def call():
        with pytest.raises(Denied) as caught:
            agent.call(tool, "from the handler")
        codes.append(caught.value.code)

    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        handled(call)
        interrupt_writes(guard)
        agent.call(tool, "interrupted")
        agent.call(tool, "afterwards")
    assert codes == ["storage.busy"]
    assert ran == ["interrupted", "afterwards"]
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_outside_of_a_commit_it_is_allowed(place, ran, handled):
    """The twin."""
    with place.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        handled(lambda: agent.call(tool, "from the handler"))
        signal.raise_signal(signal.SIGUSR1)
    assert ran == ["from the handler"]
    assert place.examine().ok


@pytest.mark.parametrize("durable", [True, False])
def test_a_handler_that_makes_a_call_while_one_is_counted_is_denied(
    place, ran, handled, monkeypatch, durable
):
    codes: list[str] = []
    count = State.count

    def call():
        with pytest.raises(Denied) as caught:
            agent.call(tool, "from the handler")
        codes.append(caught.value.code)

    def interrupted(state, chain):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR1)
        count(state, chain)

    guard: Any = place.open() if durable else Guard.ephemeral(lambda _d: Decision.allow())
    with guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(ran.append, name="note")
        with guard.delegate("user:alice", scope=[], max_calls=3):
            agent.call(tool, "before")
            handled(call)
            monkeypatch.setattr(State, "count", interrupted)
            agent.call(tool, "interrupted")
            agent.call(tool, "afterwards")
            with pytest.raises(Denied) as caught:
                agent.call(tool, "too many")
    assert codes == ["storage.busy"]
    assert caught.value.code == "calls.exceeded"
    assert ran == ["before", "interrupted", "afterwards"]


def test_a_handler_closes_no_guard_within_a_commit(place, ran, handled):
    codes: list[str] = []

    def close():
        with pytest.raises(StorageError) as caught:
            guard.close()
        codes.append(caught.value.code)

    guard = place.open()
    agent = guard.new_agent("reader")
    tool = guard.tool(ran.append, name="note")
    handled(close)
    interrupt_writes(guard)
    agent.call(tool, "interrupted")
    assert codes == ["storage.busy"]
    agent.call(tool, "afterwards")
    guard.close()  # the twin
    assert ran == ["interrupted", "afterwards"]
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


# --- outcomes that wait for a signature -----------------------------------------------------------


def handle_at(event: int, handler: Any, files: set[str] = FILES) -> list[str]:
    """Have ``handler`` come once, where CPython looks for a signal; return where, empty if never.

    The places are the start of a function, and the end of a C function, in ``files``.
    """
    left, came = event, list[str]()

    def profile(frame, kind, _argument):
        nonlocal left
        code = frame.f_code
        if kind in ("call", "c_return") and code.co_filename in files:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                came.append(f"{code.co_qualname}, line {frame.f_lineno}, {kind}")
                handler()

    sys.setprofile(profile)
    return came


def interrupt() -> None:
    raise KeyboardInterrupt


def closed(guard: Guard) -> None:
    with suppress(StorageError):  # within a commit
        guard.close()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Let nothing that is left of earlier guards end in the middle of a call."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("handler", ["raises", "closes the guard"])
def test_no_interrupt_of_a_call_loses_the_outcome_of_an_earlier_call(
    place, monkeypatch, caplog, handler
):
    """The last round, which no handler interrupts, is the twin."""
    monkeypatch.setattr(flusher, "start", lambda _log, _wake: None)
    event, came, is_told = 0, [""], False
    earlier, doubtful = set[str](), set[str]()
    while came:
        event += 1
        caplog.clear()
        guard = place.open()
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")
        agent.call(tool, 1)
        agent.call(tool, 2)  # waits for the next call's signature
        earlier = calls_of(place)
        came = handle_at(event, interrupt if handler == "raises" else partial(closed, guard))
        try:
            agent.call(tool, 3)
            is_told = True
        except (KeyboardInterrupt, Denied):
            is_told = False
        finally:
            sys.setprofile(None)
        guard.close()
        report = place.examine()
        assert report.problems == (), came
        new = set(report.in_doubt) - doubtful
        assert not new & earlier, came
        assert not new or not is_told or "could not be recorded" in caplog.text, came
        doubtful |= new
    assert event > 25
    assert is_told
    assert len(calls_of(place) - earlier) == 1


@pytest.mark.usefixtures("uncollected")
def test_no_interrupt_of_a_call_tears_a_log_in_memory(guard, note, ran, examine):
    """The last round, which no handler interrupts, is the twin."""
    agent = guard.new_agent("a")
    event, came = 0, [""]
    while came:
        event += 1
        came = handle_at(event, interrupt)
        with suppress(KeyboardInterrupt):
            agent.call(note, text=str(event))
        sys.setprofile(None)
        agent.call(note, text="afterwards")
    assert examine(guard).problems == ()
    assert event > 25
    assert ran[-2:] == [str(event), "afterwards"]


# A file that was opened, and not locked yet, closes with what was raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("uncollected")
def test_no_interrupt_of_a_call_holds_up_another_one(place, monkeypatch):
    """What was raised is kept with its frames, as a notebook does: they hold no lock.

    The last round, which no handler interrupts, is the twin.
    """
    monkeypatch.setattr(lock, "PATIENCE", 1)
    files = FILES | {str(one.__file__) for one in (anchor, check, lock, reserve, shared)}
    kept, told = list[BaseException](), list[object]()
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")
        agent.call(tool, 0)
        event, came = 0, [""]

        def other() -> None:
            told.append(agent.call(tool, event))

        while came:
            event += 1
            came = handle_at(event, interrupt, files)
            try:
                agent.call(tool, event)
            except KeyboardInterrupt as error:
                kept.append(error)
            finally:
                sys.setprofile(None)
            thread = threading.Thread(target=other, daemon=True)
            thread.start()
            thread.join(30)
            assert told[-1:] == [event], came
    assert len(kept) > 100
    kept.clear()
    gc.collect()
    assert place.examine().problems == ()


def calls_of(place) -> set[str]:
    """Return the ids of the calls in the log."""
    with closing(StoredLog.of(place.config.state)) as reader:
        found = [entry.summary for entry in reader.stored()]
    return {str(one.invocation_id) for one in found if one and one.kind == "call"}


@pytest.fixture
def wakes(monkeypatch) -> list[flusher.Wake]:
    """What would wake the flusher of each log. No flusher runs."""
    wakes: list[flusher.Wake] = []
    monkeypatch.setattr(flusher, "start", lambda _log, wake: wakes.append(wake))
    return wakes


def test_a_handler_may_call_the_log_while_the_flusher_is_woken(place, wakes, handled):
    """No lock of the waking is one for which the handler's thread would wait in vain."""
    handled(lambda: None)

    class Waits(BaseException):
        """What no step of a call takes for an error of its own."""

    def late(*_args: object) -> None:
        raise Waits

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 60, 1)  # and again, where the close waits as well

    def call() -> None:
        with suppress(Denied):  # within a commit
            agent.call(tool, "from the handler")

    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")
        event, came = 0, [""]
        while came:
            event += 1
            if wakes[0].is_set():
                wakes[0].wait()  # as the flusher does
            came = handle_at(event, call, FILES | {threading.__file__})
            assert agent.call(tool, event) == event
            sys.setprofile(None)
            assert wakes[0].is_set(), came
    assert event > 25
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_an_interrupt_leaves_no_outcome_that_no_thread_flushes(place, wakes):
    """An outcome that waits has woken the flusher, wherever the call was interrupted."""
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")
        agent.call(tool, 0)
        event, came, is_new = 0, [""], False
        while came:
            event += 1
            guard._parts.runtime.flush()
            if wakes[0].is_set():
                wakes[0].wait()  # as the flusher does
            before = len(place.seen().outcomes)
            came = handle_at(event, interrupt)
            with suppress(KeyboardInterrupt):
                agent.call(tool, event)
            sys.setprofile(None)
            woken = wakes[0].is_set()
            guard._parts.runtime.flush()
            is_new = len(place.seen().outcomes) > before
            assert woken or not is_new, came
    assert is_new
    assert event > 25
    assert place.examine().problems == ()
