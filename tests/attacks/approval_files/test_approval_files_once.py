"""Who can write in the state lays strange things where requests, answers and pages lie.

None of it hangs a call, shows a person another tool than the one that would run, or has a call run
twice; and what people were shown does not lie there for ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    Agent,
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    Requirement,
    StorageError,
    adapters,
)
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.approvals.answer import read_answer, seal_answer
from agentguard.approvals.request import MAX_REQUEST_BYTES
from agentguard.domain import adoption, config, rotation
from agentguard.errors import DecodeError
from agentguard.signing.canonical import b64_encode, dumps, loads_object
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import lock, sqlite
from agentguard.storage.approvals import MAX_ANSWERS
from agentguard.storage.journal import FOLDER as JOURNAL
from agentguard.storage.journal import FileJournal
from agentguard.storage.runs import FileRuns

PASSPHRASE = b"correct horse battery staple"
TOKEN = "s3cret-t0ken-of-a-person"
PEOPLE = {"bob": "user:bob", "carol": "user:carol"}


class Codec:
    """Keeps text."""

    def dumps(self, result: str) -> bytes:
        return result.encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


class Desk:
    """A durable domain with people, a tool that asks for one of them, and what it has done."""

    def __init__(self, place: Any, **tables: Any) -> None:
        self.keys = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in PEOPLE}
        self.ran: list[str] = []
        self.told = ""
        approvers = {
            name: {
                "principal": PEOPLE[name],
                "keys": [key.public_key.openssh()],
                "roles": ["lead"] if name == "carol" else [],
            }
            for name, key in self.keys.items()
        }
        kept = {**loads_object(place.config.encoded), "approvers": approvers, **tables}
        place.config = config.parse(kept, source="agentguard.toml", base=place.config.base)
        self.place = place
        self.needed = Requirement("a person")
        self.folder: Path = place.config.state / "approvals"

    def open(self) -> Guard:
        def policy(_input: Any) -> Decision:
            return Decision.require_approval(self.needed).redacted("/args/token")

        guard: Guard = self.place.open(policy)
        return guard

    def call(self, guard: Guard, what: str = "main", agent: Agent | None = None) -> str:
        """Call the tool; return what it says, or the code with which that is refused.

        A new agent has the guard look for new keys, and one that is there does not.
        """

        @guard.tool
        def merge(what: str, token: str) -> str:
            """Merge a branch."""
            self.ran.append(what)
            return f"merged {what}"

        try:
            return (agent or guard.new_agent("reader")).call(merge, what, token=TOKEN)
        except (Denied, ApprovalPending) as refused:
            self.told = str(refused)
            return refused.code

    def ask(self, guard: Guard, what: str = "main") -> ApprovalRequest:
        assert self.call(guard, what) == "approval.pending"
        (request,) = [one for one in guard.approvals.pending() if what in str(one.arguments)]
        return request

    def path(self, what: str = "main") -> Path:
        """Where the request lies."""
        (path,) = [
            path
            for path in (self.folder / "requests").iterdir()
            if path.is_file() and f'"{what}"'.encode() in path.read_bytes()
        ]
        return path

    def answer(self, request: ApprovalRequest, name: str) -> None:
        """Lay an answer there, past the desk, which would look at it."""
        sealed = seal_answer(
            request,
            "approve",
            approver=PEOPLE[name],
            approval_id=os.urandom(16).hex(),
            at=request.requested_at,
            signer=self.keys[name],
        )
        path = self.folder / "answers" / request.request_id / read_answer(sealed).approval_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dumps(sealed.as_json()))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock of the state's, as another process does: through a file of its own."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def desk(place):
    return Desk(place)


@pytest.mark.parametrize("part", ["answers/{id}", "answers", ""])
def test_no_file_outside_the_state_is_removed_through_a_link(desk, tmp_path, part):
    mine = tmp_path / "mine"
    with desk.open() as guard:
        request = desk.ask(guard)
        desk.answer(request, "bob")
        link = desk.folder / part.format(id=request.request_id)
        link.rename(mine)
        link.symlink_to(mine)
        before = sorted(mine.rglob("answers/*") if not part else mine.iterdir())
        assert before
        with pytest.raises(StorageError):
            guard.approvals.withdraw(request)
        assert sorted(mine.rglob("answers/*") if not part else mine.iterdir()) == before


def test_what_is_withdrawn_leaves_no_answers(desk):
    with desk.open() as guard:
        request = desk.ask(guard)
        desk.answer(request, "bob")
        guard.approvals.withdraw(request)
        assert list((desk.folder / "answers").iterdir()) == []


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def folder(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


STRANGE: list[Callable[[Path], None]] = [fifo, endless, dangling, huge, folder, empty, deep]


@pytest.mark.parametrize("make", STRANGE)
def test_a_strange_file_among_the_requests_is_in_nobodys_way(desk, make):
    with desk.open() as guard:
        request = desk.ask(guard)
        make(desk.folder / "requests" / "0000")
        assert desk.call(guard) == "approval.pending"
        guard.approvals.approve(request, desk.keys["bob"])
        make(desk.folder / "answers" / request.request_id / "0000")
        assert guard.approvals.missing(request) is None
        assert desk.call(guard) == "merged main"
    with desk.open() as guard:
        assert desk.ask(guard, "release") is not None


@pytest.mark.parametrize("make", STRANGE)
def test_a_strange_file_in_the_place_of_a_request_denies_its_call(desk, make):
    with desk.open() as guard:
        request, path = desk.ask(guard), desk.path()
        guard.approvals.approve(request, desk.keys["bob"])
        path.unlink()
        make(path)
        assert desk.call(guard) not in {"merged main", "approval.pending"}
        assert desk.call(guard, "release") == "approval.pending"
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert desk.call(guard) == "approval.pending"  # anew: nobody has answered that
    assert desk.ran == []


@pytest.mark.parametrize("make", [fifo, endless, huge, folder, empty, deep])
def test_a_strange_file_among_pages_and_runs_hangs_nobody(desk, make, tmp_path):
    home = desk.place.take_up()
    state, keys = tmp_path / "s", lambda: _keys(home)
    runs, journal = FileRuns(state, keys), FileJournal(state, keys)
    runs.write("a", b"1")
    (path,) = (tmp_path / "s" / "runs").iterdir()
    path.unlink()
    make(path)
    with pytest.raises(StorageError):
        runs.read("a")
    assert journal.begin("0" * 64, "1" * 32)
    page = tmp_path / "s" / JOURNAL / ("0" * 64)
    page.unlink()
    make(page)
    with pytest.raises(StorageError):
        journal.read("0" * 64)


def test_what_is_kept_of_a_run_is_nobodys_but_a_holder_of_the_logs_key(desk, tmp_path):
    """An edit that no person has made, and what was lent to another run, count for nothing."""
    home = desk.place.take_up()
    runs = FileRuns(tmp_path, lambda: _keys(home))
    runs.write("mine", b"1")
    (mine,) = (tmp_path / "runs").iterdir()
    assert runs.add("theirs", b"2")
    (theirs,) = [path for path in (tmp_path / "runs").iterdir() if path != mine]
    good = mine.read_bytes()
    document: Any = loads_object(good)
    altered = dumps({**document, "kept": b64_encode(b"3")})
    longer = dumps({**document, "more": 1})
    for data in (theirs.read_bytes(), altered, longer, b"3", b"{}", b"[]", good[:-1]):
        mine.write_bytes(data)
        with pytest.raises(StorageError) as refused:
            runs.read("mine")
        assert refused.value.code == "storage.corrupt"
    mine.write_bytes(good)
    assert (runs.read("mine"), runs.read("theirs")) == (b"1", b"2")


def _keys(home: Any) -> Any:
    return home.log_key, home.trust


# --- what people are shown ------------------------------------------------------------------------


def shown_otherwise(desk: Desk, **tool: str) -> ApprovalRequest:
    """Have the request name the tool otherwise, with the same digest."""
    path = desk.path()
    document = json.loads(path.read_bytes())
    document["tool"] |= tool
    path.write_bytes(dumps(document))
    return ApprovalRequest.loads(path.read_bytes())


@pytest.mark.parametrize("tool", [{"name": "read_docs"}, {"description": "Reads, and no more."}])
def test_a_request_that_names_another_tool_lets_none_run(desk, tool):
    with desk.open() as guard:
        desk.ask(guard)
        desk.answer(shown_otherwise(desk, **tool), "bob")
        assert desk.call(guard) == "approval.altered"
        desk.answer(desk.ask(guard), "bob")  # the twin: the call asks anew
        assert desk.call(guard) == "merged main"


def test_a_request_that_asks_for_less_satisfies_no_policy(desk):
    desk.needed = Requirement("a lead", roles=("lead",))
    with desk.open() as guard:
        request, path = desk.ask(guard), desk.path()
        weaker = replace(request, requirements=(Requirement("anybody", allow_self=True),))
        path.write_bytes(weaker.dumps())
        desk.answer(weaker, "bob")
        desk.answer(weaker, "carol")
        assert desk.call(guard) == "approval.altered"
        desk.answer(desk.ask(guard), "carol")
        assert desk.call(guard) == "merged main"
        assert guard.verify().problems == ()


@pytest.mark.parametrize("name", ["request_id", "approval_id"])
@pytest.mark.parametrize("value", ["../../x", "0" * 31, "0" * 33, "0" * 31 + "G", "", "/" * 32])
def test_an_id_names_no_other_file(desk, name, value):
    with desk.open() as guard:
        request = desk.ask(guard)
        statement = json.loads(
            seal_answer(request, "approve", approver="user:bob", approval_id="0" * 32, at=0).payload
        )
        statement["predicate"][name] = value
        sealed = Envelope("application/vnd.in-toto+json", dumps(statement), ())
        with pytest.raises(DecodeError):
            read_answer(sealed)
        document = json.loads(request.dumps())
        document["request_id"] = value
        with pytest.raises(DecodeError):
            ApprovalRequest.loads(dumps(document))


def test_a_request_that_is_too_long_to_be_shown_is_denied(desk):
    with desk.open() as guard:
        assert desk.call(guard, "x" * MAX_REQUEST_BYTES) == "arguments.too_large"
        desk.needed = Requirement("x" * MAX_REQUEST_BYTES)
        assert desk.call(guard) == "approval.too_large"
        assert guard.approvals.pending() == []


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
    answers.mkdir(exist_ok=True)
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
    shutil.rmtree(desk.folder)
    (desk.folder / "requests").mkdir(parents=True)
    path.write_bytes(kept)
    desk.answer(request, "carol")  # a fresh one, to the old request
    with desk.open() as guard:
        assert desk.call(guard) == "approval.consumed"
    assert desk.ran == ["main"]


def test_an_old_copy_of_all_of_it_brings_nothing_back_to_a_guard_that_is_open(desk, tmp_path):
    with desk.open() as guard, desk.open() as other:
        desk.answer(desk.ask(guard), "bob")
        shutil.copytree(desk.folder, tmp_path / "old")
        assert desk.call(guard) == "merged main"
        for process in (guard, other):
            shutil.rmtree(desk.folder)
            shutil.copytree(tmp_path / "old", desk.folder)
            assert desk.call(process) == "approval.consumed"
        assert desk.ran == ["main"]
        assert guard.verify().problems == ()


@pytest.mark.parametrize("rotated", [False, True], ids=["", "the log's key was compromised"])
def test_an_old_state_that_is_adopted_brings_no_used_approval_back(desk, tmp_path, rotated):
    """The use is lost with the log's entries, and is kept beside the anchor."""
    settings, state = desk.place.config, desk.place.config.state
    with desk.open() as guard:
        for what in ("main", "twin"):
            desk.answer(desk.ask(guard, what), "bob")
    shutil.copytree(state, tmp_path / "old")
    with desk.open() as guard:
        assert desk.call(guard) == "merged main"
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "old", state)
    different = adoption.compare(settings)
    assert different.lost
    adoption.adopt(settings, PASSPHRASE, different, note="n", now=datetime.now(UTC))
    if rotated:
        time.sleep(1.01)  # a compromise counts from its second on
        now = datetime.now(UTC)
        rotation.rotate(settings, PASSPHRASE, "log", now=now, compromised_since=now)
    said = []
    for what in ("main", "main", "twin"):
        with desk.open() as guard:
            said.append(desk.call(guard, what))
    assert said == ["approval.consumed", "approval.pending", "merged twin"]
    assert desk.ran == ["main", "twin"]


# --- a call that is refused after it took its approvals -------------------------------------------


@contextmanager
def registry_gone(state: Path) -> Iterator[None]:
    """Somebody moves a file away that the log is read by, and puts it back."""
    (state / "registry.json").rename(state / "away")
    yield
    (state / "away").rename(state / "registry.json")


@contextmanager
def shard_held(state: Path) -> Iterator[None]:
    """Another program writes into the log."""
    held = [
        sqlite3.connect(path, isolation_level=None) for path in (state / "shards").glob("*.sqlite")
    ]
    for connection in held:
        connection.execute("BEGIN IMMEDIATE")
    yield
    for connection in held:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def file_for(folder: Path) -> Iterator[None]:
    """A file lies in a folder's place."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("")
    yield
    folder.unlink()


FAULTS: dict[str, tuple[str, Callable[[Path], AbstractContextManager[None]]]] = {
    "the registry is gone": ("storage.rolled_back", registry_gone),
    "another program writes": ("storage.locked", shard_held),
    "the journal is a file": ("storage.readonly", lambda state: file_for(state / "journal")),
    "no use can be noted": (
        "storage.readonly",
        lambda state: file_for(state / "approvals" / "used"),
    ),
}


@pytest.mark.parametrize("use", ["sync", "async"])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_call_that_is_refused_after_it_took_its_approvals_asks_anew_at_once(
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
        assert "may be used up: the call, made again, asks anew" in desk.told
        during.close()
        assert ran == []
        assert call() == "approval.pending"
        (second,) = guard.approvals.pending()
        assert second.request_id != first.request_id
        desk.answer(second, "bob")
        assert call() == "paid"  # the twin
        assert ran == ["paid"]
        assert guard.verify().problems == ()


@pytest.mark.parametrize("rotated", [False, True], ids=["", "a key was rotated"])
def test_files_put_back_after_a_fork_let_the_child_run_no_second_call(desk, tmp_path, rotated):
    """The child can't read its parent's shard: it has what the parent has kept beside the anchor.

    For some minutes after a rotation the parent still has the old key.
    """
    with desk.open() as guard:
        agent = guard.new_agent("reader")
        desk.answer(desk.ask(guard), "bob")
        desk.answer(desk.ask(guard, "twin"), "bob")
        shutil.copytree(desk.folder, tmp_path / "old")
        used, tell = os.pipe()
        child = os.fork()
        if child == 0:
            said = [9]
            try:
                os.close(tell)
                os.read(used, 1)  # until the files are put back
                said = [CODES.index(desk.call(guard, what)) for what in ("main", "twin")]
            finally:
                os._exit(sum(code << (4 * place) for place, code in enumerate(said)))
        if rotated:
            rotation.rotate(desk.place.config, PASSPHRASE, "log", now=datetime.now(UTC))
        assert desk.call(guard, "main", agent) == "merged main"
        shutil.rmtree(desk.folder)
        shutil.copytree(tmp_path / "old", desk.folder)
        os.close(tell)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert [CODES[code & 15], CODES[code >> 4]] == ["approval.consumed", "merged twin"]


CODES = ("approval.consumed", "merged main", "merged twin")


def test_an_approved_call_of_a_compromised_key_does_not_run(desk):
    """That it was used could not be kept: nobody believes what such a key signs."""
    with desk.open() as guard:
        agent = guard.new_agent("reader")
        desk.answer(desk.ask(guard), "bob")
        desk.answer(desk.ask(guard, "twin"), "bob")
        assert desk.call(guard, "twin", agent) == "merged twin"
        now = datetime.now(UTC)
        rotation.rotate(desk.place.config, PASSPHRASE, "log", now=now, compromised_since=now)
        assert desk.call(guard, "main", agent) == "storage.unvouched"
        assert "the call, made again, asks anew" in desk.told
        assert desk.ran == ["twin"]


def test_who_is_told_to_try_again_is_told_that_people_are_asked_anew(desk, monkeypatch):
    """The call's use of the approval is durable, and can't be kept beside the anchor."""
    with desk.open() as guard:
        agent = guard.new_agent("reader")
        desk.answer(desk.ask(guard), "bob")
        with monkeypatch.context() as patched, locked(desk.place.config.state / "registry.lock"):
            patched.setattr(lock, "PATIENCE", 0.1)
            assert desk.call(guard, "main", agent) == "storage.locked"
        assert "the call, made again, asks anew" in desk.told
        desk.answer(desk.ask(guard), "bob")
        assert desk.call(guard, "main", agent) == "merged main"  # the twin
        assert desk.ran == ["main"]


COLUMNS = ("tool = 'x'", "decision = 'deny'", "agent = 'x'", "at = '1999'", "kind = 'policy'")


@pytest.mark.parametrize("column", COLUMNS)
def test_an_old_copy_and_an_edited_column_bring_nothing_back(desk, tmp_path, column):
    """No column is looked at: whoever opens the state reads the entries, verified."""
    with desk.open() as guard:
        desk.answer(desk.ask(guard), "bob")
        shutil.copytree(desk.folder, tmp_path / "old")
        assert desk.call(guard) == "merged main"
    shutil.rmtree(desk.folder)
    shutil.copytree(tmp_path / "old", desk.folder)
    shard = sqlite.shard_path(desk.place.config.state, 0)
    with closing(sqlite3.connect(shard)) as connection:
        where = "kind = 'authorization' AND decision = 'allow'"
        statement = f"UPDATE summaries SET {column} WHERE {where}"  # noqa: S608
        assert connection.execute(statement).rowcount == 1
        connection.commit()
    with desk.open() as guard:
        assert desk.call(guard) == "approval.consumed"
    assert desk.ran == ["main"]


def test_files_that_are_removed_between_two_that_use_one_approval_let_one_run(desk, monkeypatch):
    """Each reads the log once more, when its own call is in it."""
    with desk.open() as guard, desk.open() as other:
        desk.answer(desk.ask(guard), "bob")
        approvals, became = guard._runtime.current_line().approvals, []
        spend = approvals.spend

        def meanwhile(*request: Any) -> bool:
            fresh = spend(*request)
            shutil.rmtree(desk.folder / "used")
            became.append(desk.call(other))
            return fresh

        monkeypatch.setattr(approvals, "spend", meanwhile)
        assert desk.call(guard) == "approval.consumed"
        assert became == ["merged main"]
        assert desk.ran == ["main"]
    assert desk.place.examine().in_doubt == ()


def test_a_request_that_is_taken_away_meanwhile_is_looked_for_in_the_log_all_the_same(
    desk, tmp_path
):
    """Whoever can write there puts an old copy back, and takes the request away in mid-call."""
    taken: list[Path] = []

    def policy(document: Any) -> Decision:
        if "approval" in document:
            for path in taken:
                path.unlink()
        return Decision.require_approval(desk.needed)

    with desk.place.open(policy) as guard:
        desk.answer(desk.ask(guard), "bob")
        shutil.copytree(desk.folder, tmp_path / "old")
        assert desk.call(guard) == "merged main"
        shutil.rmtree(desk.folder)
        shutil.copytree(tmp_path / "old", desk.folder)
        taken.append(desk.path())
        assert desk.call(guard) == "approval.consumed"
        assert desk.ran == ["main"]
        assert guard.verify().problems == ()


def test_a_request_of_one_shard_lets_a_call_of_another_run_once(desk):
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


# --- what stays -----------------------------------------------------------------------------------


def holding(state: Path) -> list[Path]:
    return [
        path for path in state.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_what_is_redacted_is_gone_once_the_call_is_decided(desk, verdict):
    state = desk.place.config.state
    with desk.open() as guard:
        request = desk.ask(guard)
        assert holding(state) == [desk.path()]
        getattr(guard.approvals, verdict)(request, desk.keys["bob"])
        assert desk.call(guard) == ("merged main" if verdict == "approve" else "approval.rejected")
        assert holding(state) == []
    assert holding(state) == []
    assert list((desk.folder / "answers").iterdir()) == []


def test_what_has_expired_does_not_lie_there_for_ever(place, clock):
    desk = Desk(place, approvals={"pending_per_agent": 2})
    with desk.open() as guard:
        request = desk.ask(guard, "one")
        desk.ask(guard, "two")
        guard.approvals.approve(request, desk.keys["bob"])
        assert desk.call(guard, "three") == "approval.limit"
        clock.now = datetime.now(UTC) + timedelta(hours=2)
        assert desk.call(guard, "three") == "approval.pending"  # those two wait no more
        assert holding(place.config.state) == [desk.path("three")]
        assert list((desk.folder / "answers").iterdir()) == []
        assert desk.call(guard, "one") == "approval.pending"
    assert desk.ran == []


@pytest.mark.parametrize("verdict", ["approve", "reject", None])
def test_an_approval_that_nobody_takes_up_is_reported(place, clock, caplog, verdict):
    """Its call was not made again before it expired; the other two are the twins."""
    desk = Desk(place)
    with desk.open() as guard:
        request = desk.ask(guard, "one")
        if verdict is not None:
            getattr(guard.approvals, verdict)(request, desk.keys["bob"])
        assert guard.approvals.expired_approved() == []
        clock.now = datetime.now(UTC) + timedelta(hours=2)
        untaken = [one.request_id for one in guard.approvals.expired_approved()]
        assert untaken == ([request.request_id] if verdict == "approve" else [])
        desk.ask(guard, "two")  # what has expired goes, with the arguments in it
        assert guard.approvals.expired_approved() == []
    assert ("nobody took the approval up in time" in caplog.text) is (verdict == "approve")


def test_a_guard_in_memory_forgets_what_has_expired(clock):
    def ask(guard: Guard, call_id: str) -> str:
        tool = guard.tool(name="merge")(lambda: None)
        site = CallSite(call_id, thread="t", turn="m")
        bound = Invocation.bind(tool.spec, lambda: Arguments.of({}), site)
        try:
            adapters.run(guard.new_agent("coder"), bound, lambda: None)
        except (Denied, ApprovalPending) as refused:
            return refused.code
        raise AssertionError("it ran")

    tables = {"approvals": {"application": True, "pending_per_agent": 1}}
    with Guard.ephemeral(lambda _: Decision.require_approval(), config=tables) as guard:
        assert ask(guard, "a") == "approval.pending"
        assert ask(guard, "b") == "approval.limit"
        clock.advance(hours=2)
        assert ask(guard, "b") == "approval.pending"
