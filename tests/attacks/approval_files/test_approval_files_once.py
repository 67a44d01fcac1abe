"""Old and removed pages of approvals: no approval lets a call run twice.

Whoever can write in the state hides answers, restores old copies, and takes files away in the midst
of a call.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    ApprovalPending,
    Decision,
    Denied,
    Guard,
    Requirement,
    StorageError,
    adapters,
)
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.domain import administration, adoption, rotation
from agentguard.storage import sqlite
from agentguard.store.approvals import MAX_ANSWERS
from agentguard.store.sqlite import path_in

PASSPHRASE = b"correct horse battery staple"


class Codec:
    """Keeps text."""

    def dumps(self, result: str) -> bytes:
        return result.encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


# --- once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reopened", [True, False])
def test_an_answer_that_was_hidden_lets_no_second_call_run(desk, reopened):
    """Two have approved one request. Whoever can write there keeps one answer back, for later."""
    guard = desk.open()
    request, path = desk.ask(guard), desk.path()
    desk.answer(request, "bob")
    desk.answer(request, "carol")
    answers = desk.folder / "answers" / request.request_id
    kept = path.read_bytes()
    hidden, other = sorted(answers.iterdir())
    late = hidden.read_bytes()
    hidden.unlink()
    assert desk.call(guard) == "merged main"
    if reopened:
        guard.close()
        guard = desk.open()
    path.write_bytes(kept)
    (answers / hidden.name).write_bytes(late)
    assert desk.call(guard) == "approval.consumed"
    assert desk.ran == ["main"]
    assert guard.verify().problems == ()
    guard.close()
    assert other.name != hidden.name


def test_where_all_that_was_used_is_forgotten_the_log_knows_it(desk):
    with desk.open() as guard:
        request, path = desk.ask(guard), desk.path()
        desk.answer(request, "bob")
        kept = path.read_bytes()
        assert desk.call(guard) == "merged main"
    desk.put_back({path.path: kept})
    desk.answer(request, "carol")  # a fresh one, to the old request
    with desk.open() as guard:
        assert desk.call(guard) == "approval.consumed"
    assert desk.ran == ["main"]


def test_an_old_copy_of_all_of_it_brings_nothing_back_to_a_guard_that_is_open(desk):
    with desk.open() as guard, desk.open() as other:
        desk.answer(desk.ask(guard), "bob")
        old = desk.kept()
        assert desk.call(guard) == "merged main"
        for process in (guard, other):
            desk.put_back(old)
            assert desk.call(process) == "approval.consumed"
        assert desk.ran == ["main"]
        assert guard.verify().problems == ()


def test_an_old_state_that_is_adopted_brings_no_approval_back(desk, tmp_path):
    """The use is lost with the log's entries: nobody knows which approvals of then are left."""
    settings, state = desk.place.config, desk.place.config.state
    asked = ["main", "twin", "unanswered"]
    with desk.open() as guard:
        for what in asked:
            request = desk.ask(guard, what)
            if what != "unanswered":
                desk.answer(request, "bob")
    shutil.copytree(state, tmp_path / "old")
    with desk.open() as guard:
        assert desk.call(guard) == "merged main"
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "old", state)
    different = adoption.compare(settings)
    assert different.lost
    now = datetime.now(UTC)
    adoption.adopt(settings, PASSPHRASE, different, note="n", now=now)
    administration.freeze(settings, PASSPHRASE, frozen=False, note="n", now=now)
    with desk.open() as guard:
        assert guard.approvals.pending() == []
        for what in asked:
            assert desk.call(guard, what) == "approval.consumed"
            guard.approvals.approve(desk.ask(guard, what), desk.keys["bob"])
        assert desk.ran == ["main"]
        assert [desk.call(guard, what) for what in asked] == [f"merged {what}" for what in asked]
        assert guard.verify().problems == ()


# --- a call that is refused after it took its approvals -------------------------------------------


@contextmanager
def log_gone(state: Path) -> Iterator[None]:
    """Somebody moves the log away, and puts it back."""
    path_in(state).rename(state / "away")
    yield
    (state / "away").rename(path_in(state))


@contextmanager
def log_held(state: Path) -> Iterator[None]:
    """Another program writes into the log."""
    with closing(sqlite3.connect(path_in(state), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


FAULTS: dict[str, tuple[str, Callable[[Path], AbstractContextManager[None]]]] = {
    "the log is gone": ("storage.failed", log_gone),
    "another program writes": ("storage.locked", log_held),
}


@pytest.mark.parametrize("use", ["sync", "async"])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_call_that_is_refused_has_used_its_approvals_only_where_it_is_in_the_log(
    desk, monkeypatch, fault, use
):
    """The fault begins while the policy is asked with the answers, and ends with the call."""
    code, broken = FAULTS[fault]
    state, ran, during = desk.place.config.state, [], ExitStack()
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 0.1)
    faults = [broken]

    def policy(asked: Any) -> Decision:
        if "approval" in asked and faults:
            during.enter_context(faults.pop()(state))
        return Decision.require_approval(desk.needed)

    with desk.place.open(policy) as guard:
        agent = guard.new_agent("reader")
        spec = guard.tool(name="pay")(lambda: None).spec
        site = CallSite("c", thread="t", turn="m")
        invocation = Invocation.bind(spec, lambda: Arguments.of({}), site)

        def effect() -> str:
            ran.append("paid")
            return "paid"

        async def aeffect() -> str:
            return effect()

        def call() -> str:
            try:
                if use == "sync":
                    return str(adapters.run(agent, invocation, effect, CallOptions(Codec())))
                return str(
                    asyncio.run(adapters.arun(agent, invocation, aeffect, CallOptions(Codec())))
                )
            except (Denied, ApprovalPending) as refused:
                desk.told = str(refused)
                return refused.code

        assert call() == "approval.pending"
        (first,) = guard.approvals.pending()
        desk.answer(first, "bob")
        assert call() == code
        during.close()
        assert ran == []
        assert call() == "paid"
        assert guard.verify().problems == ()


@pytest.mark.parametrize("rotated", [False, True], ids=["", "a key was rotated"])
def test_pages_put_back_after_a_fork_let_the_child_run_no_second_call(desk, rotated):
    """The child has what the log says, and what the parent has kept beside the anchor.

    For some minutes after a rotation the parent still has the old key.
    """
    with desk.open() as guard:
        agent = guard.new_agent("reader")
        desk.answer(desk.ask(guard), "bob")
        desk.answer(desk.ask(guard, "twin"), "bob")
        old = desk.kept()
        used, tell = os.pipe()
        child = os.fork()
        if child == 0:
            said = [9]
            try:
                os.close(tell)
                os.read(used, 1)  # until the pages are put back
                said = [CODES.index(desk.call(guard, what)) for what in ("main", "twin")]
            finally:
                os._exit(sum(code << (4 * place) for place, code in enumerate(said)))
        if rotated:
            rotation.rotate(desk.place.config, PASSPHRASE, "log", now=datetime.now(UTC))
        assert desk.call(guard, "main", agent) == "merged main"
        desk.put_back(old)
        os.close(tell)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert [CODES[code & 15], CODES[code >> 4]] == ["approval.consumed", "merged twin"]


CODES = ("approval.consumed", "merged main", "merged twin")


def test_an_approved_call_after_the_log_s_key_was_compromised_runs_once(desk):
    """The guard goes on with the new key, and keeps what was used with it."""
    with desk.open() as guard:
        agent = guard.new_agent("reader")
        desk.answer(desk.ask(guard), "bob")
        desk.answer(desk.ask(guard, "twin"), "bob")
        assert desk.call(guard, "twin", agent) == "merged twin"
        old = desk.kept()
        now = datetime.now(UTC)
        rotation.rotate(desk.place.config, PASSPHRASE, "log", now=now, compromised_since=now)
        assert desk.call(guard, "main", agent) == "merged main"
    desk.put_back(old)
    with desk.open() as guard:
        assert desk.call(guard) == "approval.consumed"
    assert desk.ran == ["twin", "main"]


COLUMNS = ("tool = 'x'", "decision = 'deny'", "agent = 'x'", "at = '1999'", "kind = 'policy'")


@pytest.mark.parametrize("column", COLUMNS)
def test_an_old_copy_and_an_edited_column_bring_nothing_back(desk, column):
    """No column is looked at: whoever opens the state reads the entries, verified."""
    with desk.open() as guard:
        desk.answer(desk.ask(guard), "bob")
        old = desk.kept()
        assert desk.call(guard) == "merged main"
    desk.put_back(old)
    with closing(sqlite3.connect(path_in(desk.place.config.state))) as connection:
        where = "kind = 'call' AND decision = 'allow'"
        statement = f"UPDATE entry SET {column} WHERE {where}"  # noqa: S608
        assert connection.execute(statement).rowcount == 1
        connection.commit()
    with desk.open() as guard:
        assert desk.call(guard) == "approval.consumed"
    assert desk.ran == ["main"]


def test_a_request_that_is_taken_away_meanwhile_is_looked_for_in_the_log_all_the_same(desk):
    """Whoever can write there puts an old copy back, and takes the request away in mid-call."""
    taken: list[Any] = []

    def policy(document: Any) -> Decision:
        if "approval" in document:
            for path in taken:
                path.unlink()
        return Decision.require_approval(desk.needed)

    with desk.place.open(policy) as guard:
        desk.answer(desk.ask(guard), "bob")
        old = desk.kept()
        assert desk.call(guard) == "merged main"
        desk.put_back(old)
        taken.append(desk.path())
        assert desk.call(guard) == "approval.consumed"
        assert desk.ran == ["main"]
        assert guard.verify().problems == ()


def test_a_request_of_one_guard_lets_a_call_of_another_run_once(desk):
    with desk.open() as guard, desk.open() as other:
        desk.answer(desk.ask(guard), "bob")
        assert desk.call(other) == "merged main"
        assert desk.call(guard) == "approval.pending"
        assert guard.verify().problems == ()
    assert desk.place.examine().problems == ()
    assert desk.ran == ["main"]


def test_what_was_not_enough_is_not_used_up_when_the_guard_is_opened_again(desk):
    with desk.open() as guard:
        guard.approvals.approve(desk.ask(guard), desk.keys["bob"])
        desk.needed = Requirement("a lead", roles=("lead",))
        assert desk.call(guard) == "approval.insufficient"
    desk.needed = Requirement("a person")
    with desk.open() as guard:
        assert desk.call(guard) == "merged main"


def test_a_flood_of_answers_ends(desk):
    with desk.open() as guard:
        desk.needed = Requirement("two", quorum=2)
        request = desk.ask(guard)
        for _ in range(MAX_ANSWERS):
            desk.answer(request, "bob")
        with pytest.raises(StorageError) as full:
            guard.approvals.approve(request, desk.keys["carol"])
        assert full.value.code == "storage.full"
        assert desk.call(guard) == "approval.pending"


# --- what happens at once -------------------------------------------------------------------------


@pytest.fixture(params=["in the state", "in memory"])
def asking(request, desk) -> Iterator[tuple[Guard, Guard, list[Callable[[], object]]]]:
    """A guard, another one of the same state, and what happens while the policy is asked.

    It happens when the answers were read, and before they are used up. In memory both are one.
    """
    meanwhile: list[Callable[[], object]] = []

    def policy(document: Any) -> Decision:
        while "approval" in document and meanwhile:
            meanwhile.pop()()
        return Decision.require_approval(desk.needed)

    if request.param == "in memory":
        with Guard.ephemeral(policy, config={"approvers": desk.approvers}) as guard:
            yield guard, guard, meanwhile
        return
    with desk.place.open(policy) as guard, desk.place.open(policy) as other:
        yield guard, other, meanwhile


def test_of_two_that_have_read_one_approval_one_runs(desk, asking):
    guard, other, meanwhile = asking
    guard.approvals.approve(desk.ask(guard), desk.keys["bob"])
    became: list[str] = []
    meanwhile.append(lambda: became.append(desk.call(other)))
    assert desk.call(guard) == "approval.consumed"
    assert (became, desk.ran) == (["merged main"], ["main"])
    assert guard.verify().problems == ()


def test_a_request_that_is_withdrawn_while_its_call_is_made_lets_no_call_run(desk, asking):
    guard, other, meanwhile = asking
    request = desk.ask(guard)
    guard.approvals.approve(request, desk.keys["bob"])
    withdrawn: list[bool] = []
    meanwhile.append(lambda: withdrawn.append(other.approvals.withdraw(request)))
    assert desk.call(guard) == "approval.consumed"
    assert (withdrawn, desk.ran) == ([True], [])
    assert other.approvals.withdraw(request)  # once more
    again = desk.ask(guard)
    assert again.request_id != request.request_id
    guard.approvals.approve(again, desk.keys["bob"])
    assert desk.call(guard) == "merged main"  # the twin
    assert not other.approvals.withdraw(again)
    assert desk.ran == ["main"]
    assert guard.verify().problems == ()


def test_who_withdraws_what_a_call_has_used_is_told_so(desk, asking):
    guard, other, _meanwhile = asking
    request = desk.ask(guard)
    guard.approvals.approve(request, desk.keys["bob"])
    assert desk.call(guard) == "merged main"
    assert not other.approvals.withdraw(request)
    assert guard.verify().problems == ()


def test_of_a_withdrawal_and_a_call_in_two_threads_one_wins(desk, asking):
    guard, other, _meanwhile = asking
    agent = guard.new_agent("reader")
    for number in range(20):
        request = desk.ask(guard, f"<{number}>")
        guard.approvals.approve(request, desk.keys["bob"])
        start = threading.Barrier(2)
        withdrawn: list[bool] = []

        def withdraw(
            request: Any = request, start: Any = start, withdrawn: list[bool] = withdrawn
        ) -> None:
            start.wait()
            withdrawn.append(other.approvals.withdraw(request))

        thread = threading.Thread(target=withdraw)
        thread.start()
        start.wait()
        said = desk.call(guard, f"<{number}>", agent)
        thread.join()
        assert withdrawn == [said != f"merged <{number}>"]
        assert (f"<{number}>" in desk.ran) is not withdrawn[0]


def test_a_withdrawal_looks_into_the_log_where_the_request_was_put_back(desk):
    with desk.open() as guard, desk.open() as other:
        request, path = desk.ask(guard), desk.path()
        guard.approvals.approve(request, desk.keys["bob"])
        kept = path.read_bytes()
        assert desk.call(guard) == "merged main"
        path.write_bytes(kept)
        assert not other.approvals.withdraw(request)
        unused = desk.ask(guard, "twin")
        assert other.approvals.withdraw(unused)


def test_a_withdrawal_leaves_the_next_request_of_the_call(desk):
    with desk.open() as guard:
        request = desk.ask(guard)
        assert guard.approvals.withdraw(request)
        again = desk.ask(guard)
        assert guard.approvals.withdraw(request)
        assert guard.approvals.pending() == [again]
