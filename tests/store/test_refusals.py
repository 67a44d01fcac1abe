"""Who may act no more, and which calls run once, by the map of the log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_place import KEYS, LOG, START, Place, items, record

from agentguard.audit.kinds.administration import AdoptionEntry
from agentguard.audit.map import EMPTY_ROOT, Cache, Map, Overlay
from agentguard.audit.state import DENYING, EXPIRY_SLACK, LOG_OUTS, RunOnce, State
from agentguard.errors import CallError, DelegationError, StorageError, VerificationError
from agentguard.identity import login
from agentguard.identity.login import LogIn, LogOut
from agentguard.storage import published_revocations
from agentguard.storage.published_revocations import PublishedRevocations
from agentguard.store.log import RefusalCache, StoreLog

FAR = 2**33
ISSUER = "https://login.example"


def fresh() -> State:
    """The state of an empty map."""
    return State(Overlay(Map(EMPTY_ROOT, lambda _addresses: {}, Cache())))


def code(refused: tuple[str, str] | None) -> str | None:
    return None if refused is None else refused[0]


def entry(method: str, *arguments: Any, **named: Any) -> Any:
    change: Any = SimpleNamespace(change=lambda state: getattr(state, method)(*arguments, **named))
    return record(f"{method} {arguments} {named}")._replace(entry=change)


@pytest.mark.parametrize("name", ["user:alic", "user:alice2", "USER:ALICE", "alice", ""])
def test_a_revoked_name_is_compared_whole(name):
    state = fresh()
    state.revoke("user:alice")
    assert state.refusal({name}) is None
    assert code(state.refusal({name, "user:alice"})) == "delegation.revoked"


def test_a_freeze_refuses_everybody_until_a_thaw_with_a_higher_number():
    state = fresh()
    state.freeze(5, 1, frozen=True)
    assert code(state.refusal(set())) == "domain.frozen"
    state.revoke("user:bob")
    assert code(state.refusal({"user:bob"})) == "delegation.revoked"  # it outlasts the freeze
    for number in (0, 4, 5, 2**48, (1 + 86400) * 1000 + 1):
        with pytest.raises(VerificationError):
            state.freeze(number, 1, frozen=False)
    assert state.is_frozen
    state.freeze(state.next_freeze, 1, frozen=False)
    assert state.refusal({"user:alice"}) is None


@pytest.mark.parametrize("lost", [True, False])
def test_an_adoption_that_may_lose_a_revocation_freezes(lost):
    state = fresh()
    state.freeze(5, 1, frozen=False)
    said = SimpleNamespace(lost=object() if lost else None, unanchored=None)
    adoption: Any = SimpleNamespace(adoption=said, at=START)
    AdoptionEntry.change(adoption, state)
    assert state.is_frozen == lost
    # an old thaw, whose entry is lost, has a lower number
    assert (state.next_freeze > datetime.fromisoformat(START).timestamp() * 1000) == lost


def test_a_surrendered_hop_is_refused_and_may_be_revoked_as_well():
    state = fresh()
    state.surrender("jti", FAR)
    assert code(state.refusal({"jti"})) == "delegation.surrendered"
    assert state.refusal({"other"}) is None
    state.revoke("jti")
    state.surrender("jti", FAR)
    assert code(state.refusal({"jti"})) == "delegation.revoked"


LOG_INS = st.builds(
    LogIn,
    st.just(ISSUER),
    st.sampled_from(["alice", "bob"]),
    st.sampled_from([None, "s", "t"]),
    st.integers(1, 6),
    st.sampled_from(["here", "provider"]),
)
WHOSE = st.sampled_from([("alice", None), ("bob", None), (None, "s"), ("alice", "s"), ("bob", "t")])
LOG_OUT = st.builds(lambda one, at: LogOut(ISSUER, one[0], one[1], at), WHOSE, st.integers(1, 6))


@given(LOG_INS, st.lists(st.tuples(LOG_OUT, st.integers(1, 6)), max_size=4))
def test_a_log_out_ends_what_began_before_it(log_in, log_outs):
    state = fresh()
    for log_out, received in log_outs:
        state.log_out(log_out, received)
        assert state.has_ended(log_out)
    ended = any(
        login.key_of(name) in log_out.keys
        # a session that has ended does not begin again
        and (
            len(name.split()) == 2
            or log_in.at <= (received if log_in.clock == "here" else log_out.issued_at)
        )
        for log_out, received in log_outs
        for name in log_in.names
    )
    assert (code(state.refusal(log_in.names)) == "delegation.logged_out") == ended


def test_a_call_in_the_journal_begins_once_and_is_settled():
    state = fresh()
    state.settle("digest", "ran")  # a call that is not in the journal
    state.begin("name", "id", "digest")
    with pytest.raises(CallError) as refused:
        state.begin("name", "id 2", "digest 2")
    assert refused.value.code == "journal.in_doubt"
    state.settle("digest", None)
    state.begin("name", "id 3", "digest 3")
    assert state.run_once("name") == RunOnce("id 3", "begun")
    state.settle("digest 3", "ran")
    state.settle("digest 3", None)  # a resolution after an outcome
    assert state.run_once("name") == RunOnce("id 3", "ran")


def test_a_later_resolution_counts_until_there_is_an_outcome():
    """The key of the first one may turn out to be stolen."""
    state = fresh()
    state.begin("name", "id", "digest")
    for ran in (False, True, False, True):
        state.resolve("digest", ran=ran)
        assert state.run_once("name") == (RunOnce("id", "resolved") if ran else None)
    state.settle("digest", None)  # a slow process says that it failed
    assert state.run_once("name") == RunOnce("id", "resolved")
    state.resolve("digest", ran=False)  # after an outcome there is nothing to resolve
    assert state.run_once("name") == RunOnce("id", "resolved")


def test_a_resolution_changes_nothing_of_another_attempt():
    state = fresh()
    state.begin("name", "id", "digest")
    state.resolve("digest", ran=False)
    state.begin("name", "id 2", "digest 2")
    state.resolve("digest", ran=True)
    assert state.run_once("name") == RunOnce("id 2", "begun")


NAMES = st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=3)
DENIALS = st.lists(
    st.tuples(st.just("revoke"), st.sampled_from("abc"))
    | st.tuples(st.just("surrender"), st.sampled_from("abc"), st.just(FAR))
    | st.tuples(st.just("erase"), st.integers(0, 99).map(str))
    | st.tuples(st.just("log_out"), LOG_OUT, st.just(3))
    | st.tuples(st.just("look"), NAMES | LOG_INS.map(lambda one: one.names)),
    max_size=60,
)


@given(DENIALS)
def test_what_is_remembered_of_the_unrefused_is_what_a_look_finds(denials):
    values = Map(EMPTY_ROOT, lambda _addresses: {}, Cache())
    cache = RefusalCache()
    for method, *arguments in denials:
        changes = Overlay(values)
        if method == "look":
            (names,) = arguments
            assert cache.of(Overlay(values), names) == State(changes).refusal(names)
            continue
        before = {kind: values.version(kind) for kind in DENYING}
        held = {kind: dict(values.items(kind)) for kind in DENYING}
        getattr(State(changes), method)(*arguments)
        for one, value in changes.puts.items():
            values.put(one, value)
        values.seal()
        for kind in DENYING:
            if dict(values.items(kind)) != held[kind]:
                assert values.version(kind) != before[kind]


def test_a_commit_refuses_who_was_revoked_since_the_look(place):
    log = StoreLog(place.open())
    names = frozenset({"user:alice"})
    assert log.refusal(names) is None
    assert log.append(record("before"), names=names).index == 0
    log.append(entry("revoke", "user:alice"))
    with pytest.raises(DelegationError) as refused:
        log.append(record("after"), names=names)
    assert refused.value.code == "delegation.revoked"
    assert log.head.size == 2
    assert log.append(record("another's"), names={"user:bob"}).index == 2


def test_another_process_learns_of_a_revocation_in_its_next_look(on_disk):
    one, other = StoreLog(on_disk.open()), StoreLog(on_disk.open())
    assert other.refusal({"user:alice"}) is None
    one.append(entry("revoke", "user:alice"))
    assert code(other.refusal({"user:alice"})) == "delegation.revoked"
    assert other.refusal({"user:bob"}) is None


def test_a_log_out_that_comes_again_stays_as_long_as_the_later_one(place):
    moment = datetime.fromisoformat(START)
    place.now = lambda: moment
    log = StoreLog(place.open())
    first = int(moment.timestamp())
    again = LogOut(ISSUER, "alice", None, first)
    log.append(entry("log_out", again, first))
    log.append(entry("log_out", again, first + 100))
    for later, left in ((50, 1), (101, 0)):
        moment = datetime.fromtimestamp(first + login.KEPT + later, UTC)
        ends = int(moment.timestamp()) + later
        log.append(entry("surrender", f"jti {later}", ends))
        assert len(items(log._store, LOG_OUTS)) == left
    moment += timedelta(seconds=200 + EXPIRY_SLACK)
    log.append(entry("surrender", "newest", FAR))
    assert not log.look(lambda state: state.is_refused("jti 50"))


@pytest.mark.parametrize("forged", [False, True])
def test_a_key_with_several_ends_is_taken_away_once(on_disk, forged):
    """A log-out that came again has two, and whoever writes the file may add one."""
    moment = datetime.fromisoformat(START)
    on_disk.now = lambda: moment
    log = StoreLog(on_disk.open())
    first = int(moment.timestamp())
    log.append(entry("log_out", LogOut(ISSUER, "alice", None, first), first))
    if forged:
        with closing(sqlite3.connect(on_disk.path)) as editor:
            editor.execute("INSERT INTO ending SELECT log, ends - 1, key FROM ending")
            editor.commit()
    else:
        log.append(entry("log_out", LogOut(ISSUER, "alice", None, first), first + 100))
    moment = datetime.fromtimestamp(first + login.KEPT + 101, UTC)
    log.append(entry("surrender", "jti", FAR))
    assert items(log._store, LOG_OUTS) == {}


# --- what is published for others -----------------------------------------------------------------


class Published:
    """A log on disk, and the file of its revocations that a receiver has."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.log = StoreLog(place.open())
        self.path = folder / "revocations"
        self.trust: Any = SimpleNamespace(log=LOG, keys_for=lambda _use: KEYS)
        self.receiver = self.received()

    def received(self) -> PublishedRevocations:
        return PublishedRevocations(self.path, self.trust)

    def publish(self) -> bytes:
        data = published_revocations.of(self.log)
        self.path.unlink(missing_ok=True)  # a file that is replaced is another one
        self.path.write_bytes(data)
        return data


@pytest.fixture
def published(on_disk, tmp_path) -> Published:
    return Published(on_disk, tmp_path)


def failing(call: Any, *arguments: Any) -> str:
    with pytest.raises(StorageError) as failed:
        call(*arguments)
    return failed.value.code


@pytest.mark.parametrize("others", [0, 40])
def test_the_published_file_proves_who_is_refused_and_who_is_not(published, others):
    assert failing(published.receiver.refusal, {"a"}) == "storage.missing"
    published.publish()
    assert published.receiver.refusal({"a"}) is None
    for number in range(others):
        published.log.append(entry("erase", str(number)))
        published.log.append(entry("revoke", f"other {number}"))
    old = published.publish()
    published.log.append(entry("revoke", "user:alice"))
    new = published.publish()
    assert b"alice" not in new
    assert code(published.receiver.refusal({"user:alice"})) == "delegation.revoked"
    assert published.receiver.refusal({"user:bob"}) is None
    published.log.append(entry("freeze", 1, 1, frozen=True))
    published.publish()
    assert code(published.receiver.refusal({"user:bob"})) == "domain.frozen"
    published.path.write_bytes(old)
    assert failing(published.receiver.refusal, {"user:bob"}) == "storage.rolled_back"
    late = published.received()
    assert late.refusal({"user:alice"}) is None  # an older file says less


def parts(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return the signed note of a file, and its lines."""
    text, signatures, lines = data.split(b"\n\n", 2)
    return text + b"\n\n" + signatures + b"\n\n", lines.splitlines(keepends=True)


@pytest.mark.parametrize("others", [0, 40])
def test_no_edit_of_the_published_file_hides_a_revocation(published, others):
    for number in range(others):
        published.log.append(entry("revoke", f"other {number}"))
    _old, before = parts(published.publish())
    published.log.append(entry("revoke", "user:alice"))
    note, lines = parts(published.publish())
    edits = [
        [note, *before],
        [note],
        [note, *lines, *before],
        *([note, *lines[:gone], *lines[gone + 1 :]] for gone in range(len(lines))),
        *([note, *lines[:at], b"/ AAAA\n", *lines[at:]] for at in range(len(lines) + 1)),
        [note[:-1], *lines],
        [note, *(line.replace(b" ", b" !") for line in lines)],
        [note, *(line.replace(b" ", b"") for line in lines)],
        [note, *(line + b"\xff" for line in lines)],
        [note.replace(b"\n", b"\n ", 1), *lines],
        [b"{}"],
        [b"\n\n\n\n"],
        [],
    ]
    for edit in edits:
        published.path.write_bytes(b"".join(edit))
        try:
            found = code(published.received().refusal({"user:alice"}))
        except StorageError as error:
            found = error.code
        assert found in ("storage.corrupt", "delegation.revoked"), edit


def test_a_compromised_key_publishes_nothing(published):
    published.log.append(entry("revoke", "user:alice"))
    published.publish()
    (own,) = KEYS
    published.trust.keys_for = lambda _use: [replace(own, compromised_since=1)]
    assert failing(published.receiver.refusal, {"user:alice"}) == "storage.corrupt"
    published.trust.keys_for = lambda _use: KEYS
    assert code(published.receiver.refusal({"user:alice"})) == "delegation.revoked"


def test_a_file_that_no_receiver_reads_is_not_written(published, monkeypatch):
    published.log.append(entry("revoke", "user:alice"))
    monkeypatch.setattr(published_revocations, "_MAX_BYTES", len(published.publish()))
    published.publish()  # the twin
    assert code(published.received().refusal({"user:alice"})) == "delegation.revoked"
    published.log.append(entry("revoke", "user:bob"))
    assert failing(published.publish) == "storage.failed"
