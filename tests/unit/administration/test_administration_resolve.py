"""A call in doubt is resolved by the admin key, once. Nothing else is resolved, and nobody else
resolves.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime

import pytest
from calls_in_doubt import (
    PASSPHRASE,
    admin_of,
    append,
    calls,
    in_doubt,
    now,
    place_of,
    report,
    resolve,
)

from agentguard import Decision, Denied, Guard
from agentguard.audit.entry import CallPlace, LogPlace, Record
from agentguard.audit.find import find_call
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.audit.kinds.announcements import PolicyEntry
from agentguard.audit.summary import Summary
from agentguard.domain import administration, domain, keystore
from agentguard.domain.domain import StateDomain
from agentguard.errors import CallError, EncodeError
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical
from agentguard.signing.dsse import Envelope
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in


@pytest.mark.parametrize("ran", [True, False])
def test_a_killed_call_is_in_doubt_until_it_is_resolved(settings, ran):
    before = report(settings)
    assert (before.ok, before.anchored, len(before.in_doubt)) == (True, True, 1)
    place = resolve(settings, before.in_doubt[0], ran=ran, note="asked the b\u00e4nk\n\x1b[31m")
    after = report(settings)
    assert (after.ok, after.anchored, after.in_doubt) == (True, True, ())
    with closing(StoredLog.of(settings.state)) as reader:
        stored = reader.entry(place.index)
        assert stored is not None
        trust = keystore.load_trust(settings.state)
        said = parse_entry(stored.body)
        assert isinstance(said, ResolutionEntry)
        said.verify(trust, int(datetime.now(UTC).timestamp()))
        assert (said.ran, said.note) == (ran, "asked the b\u00e4nk\n\x1b[31m")
        assert said.key_id == administration_key(settings).thumbprint
        call = find_call(reader, before.in_doubt[0])
        assert call is not None
        assert said.call == call.place


def administration_key(settings):
    return keystore.load_key(settings.state, "admin", PASSPHRASE).public_key


def test_a_call_that_is_running_reads_the_same(settings):
    """For all that the log says, its process may be dead."""
    home = domain.take_up(settings, PASSPHRASE)
    dead = in_doubt(settings)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
        meanwhile = []
        tool = guard.tool(name="work")(lambda what: meanwhile.append(report(settings).in_doubt))
        guard.new_agent("a").call(tool, "running")
    _index, call = calls(settings)["running"]
    assert meanwhile == [(dead, call.invocation_id)]
    assert report(settings).in_doubt == (dead,)


def test_an_unknown_call_is_refused(settings):
    entries = report(settings).entries
    known = in_doubt(settings)
    for unknown in ("0" * 32, "", known[:8], known.upper(), f"{known} ", "%", "\ud800", "'"):
        with pytest.raises(CallError) as caught:
            resolve(settings, unknown)
        assert caught.value.code == "call.unknown"
    assert report(settings).entries == entries


def test_a_call_with_an_outcome_is_not_in_doubt(settings):
    entries = report(settings).entries
    _index, call = calls(settings)["done"]
    with pytest.raises(CallError, match="not in doubt: its outcome is on record") as caught:
        resolve(settings, call.invocation_id)
    assert caught.value.code == "call.settled"
    assert report(settings).entries == entries


def test_a_denied_call_is_not_in_doubt(settings):
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.deny("no")), home)) as guard:
        tool = guard.tool(name="work")(lambda what: what)
        with pytest.raises(Denied):
            guard.new_agent("a").call(tool, "denied")
    _index, call = calls(settings)["denied"]
    assert call.invocation_id not in report(settings).in_doubt
    with pytest.raises(CallError, match="not in doubt: it was denied") as caught:
        resolve(settings, call.invocation_id)
    assert caught.value.code == "call.settled"


def test_a_call_is_resolved_once(settings):
    invocation_id = in_doubt(settings)
    resolve(settings, invocation_id, ran=True)
    for ran in (True, False):
        with pytest.raises(CallError, match="its resolution is on record"):
            resolve(settings, invocation_id, ran=ran)
    assert report(settings).ok


def test_columns_that_lie_settle_nothing_and_hide_nothing(settings):
    """What was found by a column is read in its entry."""
    doubtful = in_doubt(settings)
    _index, done = calls(settings)["done"]
    with closing(sqlite3.connect(path_in(settings.state))) as connection:
        connection.execute("UPDATE entry SET invocation_id = ? WHERE kind = 'outcome'", [doubtful])
        connection.commit()
    resolve(settings, doubtful)  # the outcome with its id is another call's
    problems = report(settings).problems
    assert len(problems) == 1
    assert "invocation_id" in problems[0].what
    assert done.invocation_id != doubtful


def test_a_call_is_resolved_beside_an_open_guard(settings, opened):
    resolve(settings, in_doubt(settings))
    after = report(settings)
    assert (after.ok, after.anchored, after.in_doubt) == (True, True, ())


def test_its_time_does_not_go_back(settings):
    """Resolved with a clock that stands behind the log's newest entry."""
    resolve(settings, in_doubt(settings), now=datetime(2020, 1, 1, tzinfo=UTC))
    with closing(StoredLog.of(settings.state)) as reader:
        times = [parse_entry(body).at for _index, body in reader.entries()]
    assert times == sorted(times)
    assert report(settings).ok


def test_a_late_outcome_after_a_resolution_is_fine(settings):
    """The process was not dead: it was slow, and what it says is signed by the agent itself."""
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
        resolved: list[LogPlace] = []

        @guard.tool(name="work")
        def work(what: str) -> str:
            (slow,) = [i for i in report(settings).in_doubt if i not in before]
            resolved.append(resolve(settings, slow, ran=False, note="nothing arrived"))
            return what

        before = report(settings).in_doubt
        guard.new_agent("a").call(work, "slow")
    after = report(settings)
    assert (after.ok, after.in_doubt) == (True, before)
    _index, call = calls(settings)["slow"]
    with closing(StoredLog.of(settings.state)) as reader:
        assert reader.entry(resolved[0].index) is not None
    with pytest.raises(CallError, match="its resolution is on record"):
        resolve(settings, call.invocation_id)


def test_a_note_that_can_not_be_written_is_refused(settings):
    invocation_id, entries = in_doubt(settings), report(settings).entries
    for note in ("\ud800", "x" * canonical.MAX_BYTES):
        with pytest.raises(EncodeError):
            resolve(settings, invocation_id, note=note)
    opened_again = report(settings)
    assert opened_again.in_doubt == (invocation_id,)
    assert opened_again.ok
    assert opened_again.entries == entries


# --- one at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("ran", [True, False])
def test_of_two_resolutions_at_once_one_is_refused(settings, monkeypatch, ran):
    """The other one is appended after the first has looked whether there is one."""
    invocation_id, open_log = in_doubt(settings), StateDomain.open_log
    between: list[bool] = []

    def meanwhile(home, moment, **options):
        log = open_log(home, moment, **options)
        if not between:
            between.append(True)
            resolve(settings, invocation_id, ran=not ran)
        return log

    with monkeypatch.context() as patched:
        patched.setattr(StateDomain, "open_log", meanwhile)
        with pytest.raises(CallError, match="its resolution is on record") as caught:
            resolve(settings, invocation_id, ran=ran)
    assert caught.value.code == "call.settled"
    found = report(settings)
    assert (found.ok, found.in_doubt) == (True, ())
    with closing(StoredLog.of(settings.state)) as reader:
        entries = [parse_entry(body) for _index, body in reader.entries()]
    assert [one.ran for one in entries if isinstance(one, ResolutionEntry)] == [not ran]


def test_many_at_once_settle_a_call_once(settings):
    invocation_id = in_doubt(settings)
    outcomes: list[object] = []
    barrier = threading.Barrier(4)

    def settle(ran):
        barrier.wait()
        try:
            outcomes.append(resolve(settings, invocation_id, ran=ran))
        except CallError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=settle, args=(turn % 2 == 0,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    assert outcomes.count("call.settled") == 3
    assert (report(settings).ok, report(settings).in_doubt) == (True, ())


# --- entries that can't be read -------------------------------------------------------------------


def unreadable(settings, kind, invocation_id):
    """Append an entry of that name whose body is none, as somebody with the log's key could."""
    log = domain.take_up(settings, PASSPHRASE).open_log(datetime.now(UTC))
    try:
        place = log.append(Record(b'{"kind":"x"}', Summary(kind, now(), invocation_id)))
        log.append(PolicyEntry.new({"name": "n", "version": "1"}, None, {}, at=now()))
    finally:
        log.close()
    return place


@pytest.mark.parametrize("kind", ["call", "outcome", "resolution"])
def test_an_entry_that_can_not_be_read_settles_nothing_and_stops_nothing(settings, kind):
    doubtful = in_doubt(settings)
    _index, done = calls(settings)["done"]
    place = unreadable(settings, kind, doubtful)
    unreadable(settings, kind, "of no call")
    with pytest.raises(CallError) as caught:
        resolve(settings, "of no call")
    assert caught.value.code == "call.unknown"
    resolve(settings, doubtful)
    administration.erase(settings, PASSPHRASE, done.invocation_id, note="n", now=datetime.now(UTC))
    found = report(settings)
    assert not found.ok  # it is found where one looks for such things
    assert place.index in [p.index for p in found.problems]
    assert found.in_doubt == ()


def test_an_unsigned_resolution_settles_nothing_and_stops_nothing(settings):
    doubtful = in_doubt(settings)
    good = ResolutionEntry.new(admin_of(settings), place_of(settings), ran=True, note="n", at=now())
    body = canonical.loads_object(good.body)
    sealed = Envelope.parse(body["statement"])
    unsigned = Envelope(sealed.payload_type, sealed.payload, ())
    body["statement"] = unsigned.as_json()
    append(settings, Record(canonical.dumps(body), good.summary))
    resolve(settings, doubtful)
    assert report(settings).in_doubt == ()


def edited(record, change):
    """The record with its statement's payload changed, under the old signature."""
    body = canonical.loads_object(record.body)
    sealed = Envelope.parse(body["statement"])
    assert change[0] in sealed.payload
    forged = Envelope(sealed.payload_type, sealed.payload.replace(*change), sealed.signatures)
    return canonical.dumps({**body, "statement": forged.as_json()})


def forgeries(settings, stranger):
    """Records that are appended as if they settled the call, by who could write one."""
    where, home = place_of(settings), domain.take_up(settings, PASSPHRASE)
    good = ResolutionEntry.new(admin_of(settings), where, ran=True, note="n", at=now())
    other = CallPlace(where.index, where.invocation_id, "0" * 64)

    def by(signer, place=where):
        return ResolutionEntry.new(signer, place, ran=True, note="n", at=now())

    return {
        "a stranger's key": by(stranger),
        "the issuer's key": by(home.issuer),
        "the log's key": by(home.log_key),
        "edited: it ran not": Record(edited(good, (b'"ran":true', b'"ran":false')), good.summary),
        "edited: the note": Record(edited(good, (b'"note":"n"', b'"note":"m"')), good.summary),
        "another call's digest": by(admin_of(settings), other),
    }


NAMES = [
    "a stranger's key",
    "the issuer's key",
    "the log's key",
    "edited: it ran not",
    "edited: the note",
    "another call's digest",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_forged_resolution_is_found_and_settles_nothing(settings, stranger, name):
    doubtful = in_doubt(settings)
    place = append(settings, forgeries(settings, stranger)[name])
    found = report(settings)
    assert [problem.index for problem in found.problems] == [place.index]
    assert found.in_doubt == (doubtful,)


def test_the_administrators_own_is_not(settings):
    """The twin of the forgeries, appended in the same way."""
    record = ResolutionEntry.new(
        admin_of(settings), place_of(settings), ran=True, note="n", at=now()
    )
    append(settings, record)
    found = report(settings)
    assert (found.ok, found.in_doubt) == (True, ())
