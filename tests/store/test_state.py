"""What entries change in the map: counts under limits, requests for approvals, keys that end."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_place import START, Place, items, record, verified

from agentguard.audit.kinds.administration import AdoptionEntry
from agentguard.audit.kinds.announcements import ExpiryEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.map import EMPTY_ROOT, Cache, Map, Overlay, key
from agentguard.audit.state import CALLS, EXPIRY_SLACK, LIMITS, LoggedRequest, Remade, State
from agentguard.errors import (
    AgentguardError,
    ApprovalError,
    DelegationError,
    VerificationError,
)
from agentguard.store.log import StoreLog

FAR = 2**33
"""A time at which all of this is over."""

SHOWN = "0" * 64
"""The digest of what people see of a request."""


def hop(jti: str, max_calls: int | None, expires_at: int = FAR, issued_at: int = 1) -> Any:
    """What counts of a hop; its ``jti`` is the digest of the chain up to it, too."""
    return SimpleNamespace(jti=jti, max_calls=max_calls, issued_at=issued_at, expires_at=expires_at)


def fresh() -> State:
    """The state of an empty map."""
    return State(Overlay(Map(EMPTY_ROOT, lambda _addresses: {}, Cache())))


def limit(state: State, chain: str, hops: Sequence[Any]) -> None:
    """Limit a chain that has one more hop than these, without a limit."""
    ends = max((one.expires_at for one in hops), default=FAR)
    state.limit([*((one.jti, one) for one in hops), (chain, hop("last", None, ends))])


def counted(state: State, chain: str, times: int) -> list[bool]:
    """Count calls under a chain; return which were left."""
    left = []
    for _ in range(times):
        try:
            state.count(chain)
            left.append(True)
        except DelegationError:
            left.append(False)
    return left


def test_so_many_calls_and_no_more():
    state = fresh()
    limit(state, "chain", [hop("a", None), hop("b", 3)])
    assert counted(state, "chain", 5) == [True] * 3 + [False] * 2
    limit(state, "free", [hop("a", None)])
    assert counted(state, "free", 5) == [True] * 5


def test_chains_with_a_hop_in_common_share_its_calls():
    state = fresh()
    for chain in ("one", "two"):
        limit(state, chain, [hop("root", 3), hop(chain, 2)])
    assert counted(state, "one", 3) == [True, True, False]
    assert counted(state, "two", 3) == [True, False, False]


def test_a_chain_that_is_not_in_the_log_lets_no_call_run():
    with pytest.raises(DelegationError) as caught:
        fresh().count("chain")
    assert caught.value.code == "delegation.unknown"


def refused(state: State, request_id: str, end: str = "used") -> str:
    """Try to end a request; return the code of the refusal, "" for none."""
    try:
        state.close(request_id, end)
    except ApprovalError as error:
        return error.code
    return ""


def test_a_request_is_asked_once_and_used_once():
    state = fresh()
    state.ask("r", SHOWN, FAR)
    assert state.request("r") == LoggedRequest(SHOWN, "waiting")
    assert [refused(state, "r") for _ in range(3)] == ["", *["approval.consumed"] * 2]
    assert state.request("r") == LoggedRequest(SHOWN, "used")
    with pytest.raises(ApprovalError) as caught:
        state.ask("r", SHOWN, FAR)
    assert caught.value.code == "request.exists"
    state.ask("other", SHOWN, FAR)  # the twin
    assert refused(state, "other") == ""


@pytest.mark.parametrize("end", ["rejected", "expired", "withdrawn", "void", "unknown"])
def test_a_request_that_does_not_wait_lets_no_call_run_and_has_no_other_end(end):
    state = fresh()
    if end != "unknown":
        state.ask("r", SHOWN, FAR)
    if end == "void":
        state.void(2)
    elif end != "unknown":
        state.close("r", end)
    was = state.request("r")
    assert refused(state, "r") == "approval.consumed"
    assert refused(state, "r", "withdrawn") == "request.unknown"
    assert state.request("r") == was


@pytest.mark.parametrize("end", ["", "used", "withdrawn"])
def test_a_rejected_call_is_on_record_whether_or_not_its_request_waits(end):
    state = fresh()
    state.ask("r", SHOWN, FAR)
    if end:
        state.close("r", end)
    answers = [SimpleNamespace(request_id="r")]
    call: Any = SimpleNamespace(
        allowed=False,
        is_replay=False,
        journal=None,
        approvals=answers,
        answers=answers,
        code="approval.rejected",
    )
    CallEntry.change(call, state)
    assert state.request("r") == LoggedRequest(SHOWN, end or "rejected")


def test_what_waits_and_what_is_left_of_limits_is_void():
    state = fresh()
    for name in ("waits", "used"):
        state.ask(name, SHOWN, FAR)
    state.close("used", "used")
    limit(state, "known", [hop("a", 3, issued_at=5), hop("b", None, issued_at=5)])
    limit(state, "free", [hop("b", None, issued_at=5)])
    state.void(7)
    states = [cast("LoggedRequest", state.request(name)).state for name in ("waits", "used")]
    assert states == ["void", "used"]
    # a chain that is lost, or that another instance extends, is recorded again
    limit(state, "again", [hop("a", 3, issued_at=5), hop("c", 3, issued_at=8)])
    limit(state, "lost", [hop("d", 3, issued_at=7)])
    for chain in ("known", "again", "lost"):
        with pytest.raises(DelegationError) as caught:
            state.count(chain)
        assert caught.value.code == "calls.exceeded"
    state.ask("later", SHOWN, FAR)  # the twins
    assert refused(state, "later") == ""
    limit(state, "later", [hop("e", 2, issued_at=8)])
    assert counted(state, "later", 3) == [True, True, False]
    assert counted(state, "free", 1) == [True]


LOSSES = ("lost", "unanchored")


@pytest.mark.parametrize("what", [*LOSSES, ""])
def test_an_adoption_makes_void_what_it_can_not_know(what):
    state = fresh()
    state.ask("r", SHOWN, FAR)
    limit(state, "chain", [hop("a", 1)])
    said = SimpleNamespace(**{one: object() if one == what else None for one in LOSSES})
    adoption: Any = SimpleNamespace(adoption=said, at=START)
    AdoptionEntry.change(adoption, state)
    assert (refused(state, "r"), counted(state, "chain", 1)) == (
        ("approval.consumed", [False]) if what else ("", [True])
    )


class Change(NamedTuple):
    """An entry, as far as the map is concerned: a method of ``State`` with its arguments."""

    method: str
    arguments: tuple[Any, ...]

    def change(self, state: State) -> None:
        if self.method == "limit":
            limit(state, *self.arguments)
        else:
            getattr(state, self.method)(*self.arguments)


def limited(chain: str, *hops: Any) -> Any:
    return entry("limit", chain, hops)


def entry(method: str, *arguments: Any) -> Any:
    change: Any = Change(method, arguments)
    return record(method)._replace(entry=change)


def changes(method: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(entry, st.just(method), *arguments)


CHAINS, NAMES, TIMES = st.sampled_from("xyz"), st.sampled_from("pqr"), st.integers(1, 4)
HOPS = st.lists(
    st.builds(hop, st.sampled_from("abc"), st.none() | st.integers(1, 3), st.just(FAR), TIMES),
    min_size=1,
    max_size=3,
)
ENDS = st.sampled_from(["used", "rejected", "expired", "withdrawn"])
CHANGES = st.lists(
    changes("limit", CHAINS, HOPS)
    | changes("count", CHAINS)
    | changes("ask", NAMES, st.just(SHOWN), st.just(FAR))
    | changes("close", NAMES, ENDS)
    | changes("void", TIMES)
    | changes("revoke", NAMES)
    | changes("surrender", NAMES, st.just(FAR))
    | changes("begin", NAMES, NAMES, NAMES)
    | changes("settle", NAMES, st.sampled_from(["ran", "unknown", None]))
    | changes("erase", NAMES),
    max_size=30,
)


@given(CHANGES)
def test_the_map_of_a_log_is_the_one_that_its_entries_make(changes):
    place, remade = Place(Path(), "memory"), Remade()
    log = StoreLog(place.open())
    for change in changes:
        try:
            log.append(change)
        except AgentguardError:
            with pytest.raises(AgentguardError):
                remade.apply(change.entry.change)
        else:
            remade.apply(change.entry.change)
    assert log._store.head().map_root == remade.root()


def test_of_many_that_use_one_request_at_once_one_does(on_disk):
    """Each log is another process's, with its own threads."""
    logs = [StoreLog(on_disk.open()) for _ in range(3)]
    logs[0].append(entry("ask", "r", SHOWN, FAR))
    start, said = threading.Barrier(9), list[str]()

    def end(log: StoreLog, how: str) -> None:
        start.wait()
        try:
            log.append(entry("close", "r", how))
            said.append(how)
        except ApprovalError:
            said.append("")

    threads = [
        threading.Thread(target=end, args=(log, how))
        for log in logs
        for how in ("used", "used", "withdrawn")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (done,) = filter(None, said)
    assert len(said) == 9
    for log in logs:
        assert log.look(lambda state: state.request("r")) == LoggedRequest(SHOWN, done)
    assert logs[0]._store.head().size == 2


def test_exactly_so_many_under_many_threads(place):
    log = StoreLog(place.open())
    log.append(limited("chain", hop("a", 50), hop("b", 60)))
    left: list[bool] = []

    def call() -> None:
        for _ in range(20):
            try:
                log.append(entry("count", "chain"))
                left.append(True)
            except DelegationError:
                left.append(False)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left.count(True) == 50
    assert log.head.size == 51


def test_an_entry_takes_away_what_has_ended(place):
    moment = datetime.fromisoformat(START)
    place.now = lambda: moment
    log = StoreLog(place.open())
    ends = int(moment.timestamp()) + 60
    log.append(limited("old", hop("a", 1, ends)))
    log.append(entry("count", "old"))
    assert len(items(log._store, LIMITS)) == len(items(log._store, CALLS)) == 1
    moment = datetime.fromtimestamp(ends + EXPIRY_SLACK, UTC) + timedelta(seconds=1)
    log.append(limited("new", hop("b", 1)))
    assert log.head.size == 4  # an expiry among them
    assert [*items(log._store, LIMITS)] == [key(LIMITS, "new")]
    assert items(log._store, CALLS) == {}


@pytest.mark.parametrize("missing", [False, True])
def test_nothing_is_taken_away_before_its_end(missing):
    state = fresh()
    limit(state, "chain", [hop("a", 1, 100)])
    expiry: Any = ExpiryEntry.new([key(LIMITS, "other" if missing else "chain")], at=START).entry
    if missing:
        with pytest.raises(VerificationError):
            expiry.change(state)
    else:
        expiry.change(state)  # the twin: START is past the end
    limit(state, "chain", [hop("a", 1)])
    with pytest.raises(VerificationError):
        expiry.change(state)


def test_an_entry_that_is_refused_changes_nothing(place):
    log = StoreLog(place.open())
    log.append(limited("chain", hop("a", 1), hop("b", 5)))
    log.append(entry("count", "chain"))
    before = log._store.head()
    for change in (entry("count", "chain"), entry("count", "other"), entry("close", "r", "used")):
        with pytest.raises(AgentguardError):
            log.append(change)
    assert log._store.head() == before


def test_a_hint_that_is_no_key_stops_nobody(on_disk):
    """No head covers where to look for keys that have ended."""
    log = StoreLog(on_disk.open())
    for number in range(20):
        log.append(limited(f"chain {number}", hop(f"hop {number}", 1)))
    with closing(sqlite3.connect(on_disk.path)) as editor:
        editor.executemany("INSERT INTO ending VALUES (0, ?, ?)", [(0, b""), (1, b"short")])
        editor.commit()
    log.append(limited("new", hop("new", 1)))
    log.append(entry("count", "new"))
    assert verified(on_disk.open()).size == 22


def test_hops_with_one_id_are_counted_apart(world):
    """An agent chooses the id of the hop that it signs, and could choose that of another hop."""
    state, chains = fresh(), []
    for principal in ("user:alice", "user:bob"):
        world._jti = itertools.count(10**6)
        chains.append(world.begin("x", max_calls=1, principal=principal))
        DelegationEntry(at=START, chain=chains[-1].as_json()).change(state)
    assert chains[0].root.jti == chains[1].root.jti
    assert [counted(state, one.sha256, 2) for one in chains] == [[True, False]] * 2
