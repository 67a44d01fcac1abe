"""Somebody who can write the state, and has no key, makes a guard forget what its log says.

Rows are edited with SQLite itself. Whoever opens the state next refuses, or denies what was denied
before; ``audit verify`` is not needed for it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from edited_logs import change
from embedded_parts import runtime_of

from agentguard import Denied, Guard, StorageError
from agentguard.domain import administration, config
from agentguard.errors import AgentguardError
from agentguard.signing.canonical import loads_object
from agentguard.store.sqlite import path_in

PASSPHRASE = b"correct horse battery staple"


class Scene:
    """A domain in which alice is revoked and all is frozen, or neither; and its attacker."""

    def __init__(self, place: Any, *, anchored: bool = True) -> None:
        tables: Any = {
            **loads_object(place.config.encoded),
            "agents": {"robot": {"authority": "own"}, "worker": {"max_scope": ["read"]}},
            **({} if anchored else {"anchor": ""}),
        }
        place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
        self.place = place
        self.state: Path = place.config.state
        self.ran: list[str] = []

    def open(self) -> Guard:
        guard: Guard = self.place.open()
        return guard

    def opens(self) -> str:
        """What becomes of a guard that is opened and used: what its calls say, or a code."""
        try:
            with self.open() as guard:
                return self.call(guard)
        except AgentguardError as error:
            return error.code

    def call(self, guard: Guard) -> str:
        """Call a tool for alice."""

        @guard.tool(name="read", requires=["read"])
        def read() -> str:
            self.ran.append("read")
            return "ok"

        try:
            with guard.delegate("user:alice", scope=["read"]):
                return guard.new_agent("worker").call(read)
        except Denied as denied:
            return denied.code

    def revoke(self, name: str = "user:alice") -> None:
        administration.revoke(self.place.config, PASSPHRASE, name, note="n", now=datetime.now(UTC))

    def freeze(self) -> None:
        administration.freeze(
            self.place.config, PASSPHRASE, frozen=True, note="n", now=datetime.now(UTC)
        )

    def edit(self, *statements: str | tuple[str, list[Any]]) -> None:
        """Do what somebody with SQLite and the right to write does."""
        change(self.place, *statements)

    def index_of(self, kind: str) -> int:
        """Where the newest entry of a kind stands."""
        with closing(sqlite3.connect(path_in(self.state))) as connection:
            statement = "SELECT max(idx) FROM entry WHERE kind = ?"
            return int(connection.execute(statement, (kind,)).fetchone()[0])


@pytest.fixture
def scene(place) -> Scene:
    return Scene(place)


def other_kind(scene: Scene, kind: str) -> None:
    """Give an entry another kind, in its body and in the column, with a hash to match."""
    index = scene.index_of(kind)
    body = "CAST(replace(CAST(body AS TEXT), ?, ?) AS BLOB)"
    given = [f'"kind":"{kind}"', '"kind":"policy"', index]
    scene.edit(
        (f"UPDATE entry SET body = {body}, kind = 'policy' WHERE idx = ?", given),  # noqa: S608
        "UPDATE entry SET leaf = leaf_hash(body)",
    )


def deleted(scene: Scene, kind: str) -> None:
    scene.edit(("DELETE FROM entry WHERE idx = ?", [scene.index_of(kind)]))


def swapped(scene: Scene, kind: str) -> None:
    """Let an entry and the one before it change their places."""
    index = scene.index_of(kind)
    for before, after in ((index, -1), (index - 1, index), (-1, index - 1)):
        scene.edit(("UPDATE entry SET idx = ? WHERE idx = ?", [after, before]))


EDITS: dict[str, Callable[[Scene, str], None]] = {
    "another kind": other_kind,
    "deleted": deleted,
    "swapped": swapped,
}
BRAKES = {"revocation": "delegation.revoked", "freeze": "domain.frozen"}


def brake(scene: Scene, kind: str) -> None:
    if kind == "revocation":
        scene.revoke()
    else:
        scene.freeze()


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("kind", BRAKES)
def test_no_edit_of_its_entry_lifts_a_brake(scene, kind, how):
    """The map decides, and whoever verifies the log finds the edit."""
    assert scene.opens() == "ok"  # the allowed twin
    brake(scene, kind)
    EDITS[how](scene, kind)
    assert scene.opens() in {BRAKES[kind], "storage.corrupt", "storage.rolled_back"}
    assert scene.ran == ["read"]
    assert scene.place.examine().problems


# --- counted calls --------------------------------------------------------------------------------


def attempts(scene: Any, stored: str, times: int) -> list[str]:
    """Call under a delegation, as often, in a guard of its own; return the results or codes."""
    found, guard = [], scene.open()
    tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
    for _ in range(times):
        try:
            worker = guard.new_agent("worker").under(guard.resume(stored))
            found.append(str(worker.call(tool)))
        except (Denied, StorageError) as denied:
            found.append(denied.code)
    with suppress(StorageError):  # a damaged map stops each commit
        guard.close()
    return found


def test_what_a_delegation_allows_is_counted_over_all_guards_and_after_each_opening(scene):
    with scene.open() as guard:
        stored = guard.delegate("user:alice", scope=["read"], max_calls=5).dumps()
        with ThreadPoolExecutor(4) as threads:
            found = [*threads.map(lambda _: attempts(scene, stored, 2), range(4))]
    assert sorted(code for one in found for code in one) == [*["calls.exceeded"] * 3, *["ok"] * 5]
    assert attempts(scene, stored, 1) == ["calls.exceeded"]
    assert scene.place.examine().problems == ()


@pytest.mark.parametrize(
    "edit", ["DELETE FROM map", "UPDATE map SET node = (SELECT node FROM old)"]
)
def test_no_edit_of_the_counts_gives_more_calls(scene, edit):
    with scene.open() as guard:
        stored = guard.delegate("user:alice", scope=["read"], max_calls=2).dumps()
    assert attempts(scene, stored, 1) == ["ok"]
    with closing(sqlite3.connect(path_in(scene.state))) as editor:
        editor.execute("CREATE TEMP TABLE old AS SELECT node FROM map")
        assert attempts(scene, stored, 1) == ["ok"]
        editor.execute(edit)
        editor.commit()
    assert attempts(scene, stored, 1) == ["storage.corrupt"]
    assert scene.place.examine().problems


# --- a fork ---------------------------------------------------------------------------------------


def test_a_fork_knows_the_calls_that_its_parent_has_counted(scene):
    with scene.open() as guard:
        lent = guard.delegate("user:alice", scope=["read"], max_calls=2)
        tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
        assert [guard.new_agent("worker").under(lent).call(tool) for _ in range(2)] == ["ok", "ok"]
        other = guard.delegate("user:alice", scope=["read"], max_calls=1)
        stored, twin = lent.dumps(), other.dumps()

        def child() -> int:
            worker = guard.new_agent("worker")
            if worker.under(guard.resume(twin)).call(tool) != "ok":
                return 1
            try:
                worker.under(guard.resume(stored)).call(tool)
            except Denied as denied:
                return 0 if denied.code == "calls.exceeded" else 2
            return 3

        assert forked(child) == 0


def forked(work: Callable[[], int]) -> int:
    """Do the work in a fork, and return what it returns, or 99 where it raises."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", ["keys", "names"])
def test_a_state_in_which_a_link_leads_elsewhere_is_not_opened(scene, tmp_path, name):
    """Below it the guard would write and remove files that whoever made the link can't reach."""
    elsewhere, link = tmp_path / "elsewhere", scene.state / name
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(elsewhere)
    else:
        elsewhere.mkdir()
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    link.symlink_to(elsewhere)
    assert scene.opens() == "storage.linked"
    with pytest.raises(StorageError, match="remove it"):
        scene.freeze()
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before
    link.unlink()
    if before:
        elsewhere.rename(link)
    assert scene.opens() == "ok"


# --- time -----------------------------------------------------------------------------------------


def test_a_second_process_with_a_slow_clock_finds_nothing_valid_again(scene, clock):
    with scene.open() as guard:
        lent = guard.delegate("user:alice", scope=["read"], expires_in=timedelta(minutes=30))
        stored = lent.dumps()
        tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
        worker = guard.new_agent("worker")
        assert worker.under(lent).call(tool) == "ok"
        clock.advance(hours=1)
        with pytest.raises(Denied) as caught:
            worker.under(lent).call(tool)
        assert caught.value.code == "delegation.expired"
        runtime_of(guard).flush()
        clock.advance(hours=-1)
        with scene.open() as late, pytest.raises(AgentguardError) as refused:
            late.new_agent("worker").under(late.resume(stored)).call(tool)
        assert refused.value.code in {"clock.skew", "delegation.expired"}
        clock.advance(hours=1)  # the twin: with the right time it works
        with scene.open() as late:
            again = late.tool(name="read", requires=["read"])(lambda: "ok")
            other = late.delegate("user:alice", scope=["read"])
            assert late.new_agent("worker").under(other).call(again) == "ok"
    assert scene.place.examine().problems == ()
