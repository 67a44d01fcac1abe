"""A call in doubt is settled by the admin key, once; nothing else is, and by nobody else."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime

import pytest

from agentguard import Decision, Denied, Guard, StorageError
from agentguard.audit import records, statements
from agentguard.audit.calls import read_authorization
from agentguard.audit.entry import CallPlace, Receipt, parse_entry
from agentguard.audit.find import find_call
from agentguard.audit.records import Record
from agentguard.audit.summary import Summary
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, config, domain, keystore
from agentguard.domain.domain import StateDomain
from agentguard.domain.verify import examine
from agentguard.errors import CallError, EncodeError, KeyMaterialError
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical, dsse
from agentguard.signing.dsse import Envelope
from agentguard.storage import sqlite
from agentguard.storage.reader import StateReader

PASSPHRASE = b"correct horse"


def settings_in(folder):
    tables = {
        "trust_domain": "acme.example",
        "state": "state",
        "anchor": "anchor",
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"a": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


# One process that dies in the midst of its call, between the authorization and the outcome.
DYING = """
import os, signal, sys
from pathlib import Path
from agentguard import Decision, Guard
from agentguard.domain import config
from agentguard.domain import domain
from agentguard.domain.domain import StateDomain
from agentguard.policy.function import FunctionEngine

folder = Path(sys.argv[1])
tables = {"trust_domain": "acme.example", "state": "state", "anchor": "anchor",
          "policy": {"engine": "function", "path": "unused:unused"},
          "agents": {"a": {"authority": "own"}}}
settings = config.parse(tables, source="agentguard.toml", base=folder)
home = domain.take_up(settings, b"correct horse")
guard = Guard(settings, FunctionEngine(lambda _d: Decision.allow()), home)
agent = guard.new_agent("a")

@guard.tool
def work(what: str) -> str:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return what

agent.call(work, "done")
agent.call(work, "die")
"""


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A domain with one call that ended, and one whose process was killed in it."""
    folder = tmp_path_factory.mktemp("original")
    domain.found(settings_in(folder), PASSPHRASE, now=datetime.now(UTC))
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(folder)], capture_output=True, check=False, timeout=180
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    return folder


@pytest.fixture
def settings(tmp_path, original):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


@pytest.fixture
def opened(settings):
    """A guard on the domain; it leases the shard that the killed process has left."""
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
        yield guard


def report(settings):
    with closing(StateReader(settings.state)) as reader:
        return examine(reader, keystore.load_trust(settings.state), anchor=settings.anchor)


def calls(settings):
    """The authorizations in shard 0, by what they were given."""
    with closing(StateReader(settings.state)) as reader:
        return {
            canonical.loads_object(stored.attachments[0].data)["what"]: (
                stored.index,
                read_authorization(parse_entry(stored.body)),
            )
            for stored in reader.stored(0)
            if parse_entry(stored.body).kind == "authorization" and stored.attachments
        }


def resolve(settings, invocation_id, *, ran=True, note="asked the bank", now=None):
    return administration.resolve(
        settings, PASSPHRASE, invocation_id, ran=ran, note=note, now=now or datetime.now(UTC)
    )


def in_doubt(settings):
    (invocation_id,) = report(settings).in_doubt
    return invocation_id


def append(settings, record):
    log = domain.take_up(settings, PASSPHRASE).lease(datetime.now(UTC))
    try:
        return log.append(record)
    finally:
        log.close()


@pytest.mark.parametrize("ran", [True, False])
def test_a_killed_call_is_in_doubt_until_it_is_resolved(settings, ran):
    before = report(settings)
    assert (before.ok, before.anchored, len(before.in_doubt)) == (True, True, 1)
    place = resolve(settings, before.in_doubt[0], ran=ran, note="asked the b\u00e4nk\n\x1b[31m")
    after = report(settings)
    assert (after.ok, after.anchored, after.in_doubt) == (True, True, ())
    with closing(StateReader(settings.state)) as reader:
        stored = reader.entry(place.shard, place.index)
        assert stored is not None
        trust = keystore.load_trust(settings.state)
        said = statements.check_admin_statement(
            parse_entry(stored.body), trust, int(datetime.now(UTC).timestamp())
        )
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
    with Guard(settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
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
    with Guard(settings, FunctionEngine(lambda _d: Decision.deny("no")), home) as guard:
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
    with closing(sqlite3.connect(sqlite.shard_path(settings.state, 0))) as connection:
        connection.execute(
            "UPDATE summaries SET invocation_id = ? WHERE kind = 'outcome'", [doubtful]
        )
        connection.commit()
    resolve(settings, doubtful)  # the outcome with its id is another call's
    problems = report(settings).problems
    assert len(problems) == 1
    assert "invocation_id" in problems[0].what
    assert done.invocation_id != doubtful


def test_the_resolution_may_stand_in_another_shard(settings, opened):
    """The guard holds shard 0, in which the call stands."""
    place = resolve(settings, in_doubt(settings))
    assert place.shard == 1
    after = report(settings)
    assert (after.ok, after.anchored, after.in_doubt) == (True, True, ())
    assert len(after.shards) == 2


def test_its_time_does_not_go_back(settings):
    """Resolved with a clock that stands behind the log's newest entry."""
    place = resolve(settings, in_doubt(settings), now=datetime(2020, 1, 1, tzinfo=UTC))
    with closing(StateReader(settings.state)) as reader:
        times = [parse_entry(body).at for _index, body in reader.entries(place.shard)]
    assert times == sorted(times)
    assert report(settings).ok


def test_a_late_outcome_after_a_resolution_is_fine(settings):
    """The process was not dead: it was slow, and what it says is signed by the agent itself."""
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
        resolved: list[Receipt] = []

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
    with closing(StateReader(settings.state)) as reader:
        assert reader.entry(resolved[0].shard, resolved[0].index) is not None
    with pytest.raises(CallError, match="its outcome is on record"):
        resolve(settings, call.invocation_id)


def test_a_note_that_can_not_be_written_is_refused(settings):
    invocation_id, entries = in_doubt(settings), report(settings).entries
    for note in ("\ud800", "x" * canonical.MAX_BYTES):
        with pytest.raises(EncodeError):
            resolve(settings, invocation_id, note=note)
    opened_again = report(settings)
    assert opened_again.in_doubt == (invocation_id,)
    assert opened_again.ok
    assert opened_again.entries <= entries + 2  # the leases' opening entries, and nothing more


# --- one at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("ran", [True, False])
def test_of_two_resolutions_at_once_one_is_refused(settings, monkeypatch, ran):
    """The other one is appended after the first has looked whether there is one."""
    invocation_id, lease = in_doubt(settings), StateDomain.lease
    between: list[bool] = []

    def meanwhile(home, moment):
        log = lease(home, moment)
        if not between:
            between.append(True)
            resolve(settings, invocation_id, ran=not ran)
        return log

    with monkeypatch.context() as patched:
        patched.setattr(StateDomain, "lease", meanwhile)
        with pytest.raises(CallError, match="its resolution is on record") as caught:
            resolve(settings, invocation_id, ran=ran)
    assert caught.value.code == "call.settled"
    found = report(settings)
    assert (found.ok, found.in_doubt) == (True, ())
    said = [said for shard in found.shards for _index, said in shard.admin_statements]
    assert [one.ran for one in said] == [not ran]


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
    log = domain.take_up(settings, PASSPHRASE).lease(datetime.now(UTC))
    try:
        place = log.append(Record(b'{"kind":"x"}', Summary(kind, now(), invocation_id)))
        log.append(records.policy({"name": "n", "version": "1"}, None, {}, at=now()))
    finally:
        log.close()
    return place


@pytest.mark.parametrize("kind", ["authorization", "outcome", "resolution"])
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
    assert (place.shard, place.index) in [(p.shard, p.index) for p in found.problems]
    assert found.in_doubt == ()


def test_an_unsigned_resolution_settles_nothing_and_stops_nothing(settings):
    doubtful = in_doubt(settings)
    good = records.resolution(admin_of(settings), place_of(settings), ran=True, note="n", at=now())
    body = canonical.loads_object(good.body)
    sealed = Envelope.parse(body["statement"])
    unsigned = Envelope(sealed.payload_type, sealed.payload, ())
    body["statement"] = unsigned.as_json()
    append(settings, Record(canonical.dumps(body), good.summary))
    resolve(settings, doubtful)
    assert report(settings).in_doubt == ()


# --- who else might resolve -----------------------------------------------------------------------


def place_of(settings, what="die"):
    index, call = calls(settings)[what]
    return CallPlace(0, index, call.invocation_id, call.invocation_sha256)


def now():
    return timestamp(datetime.now(UTC))


def admin_of(settings):
    return keystore.load_key(settings.state, "admin", PASSPHRASE)


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
    good = records.resolution(admin_of(settings), where, ran=True, note="n", at=now())
    other = CallPlace(where.shard, where.index, where.invocation_id, "0" * 64)

    def by(signer, place=where):
        return records.resolution(signer, place, ran=True, note="n", at=now())

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
    assert [(problem.shard, problem.index) for problem in found.problems] == [
        (place.shard, place.index)
    ]
    assert found.in_doubt == (doubtful,)


def test_the_administrators_own_is_not(settings):
    """The twin of the forgeries, appended in the same way."""
    record = records.resolution(
        admin_of(settings), place_of(settings), ran=True, note="n", at=now()
    )
    append(settings, record)
    found = report(settings)
    assert (found.ok, found.in_doubt) == (True, ())


# --- resolutions that do not fit their calls ------------------------------------------------------


def say(settings, where, *, ran=True, kind="resolution"):
    """Append what the admin key says without asking what stands in the log; return its place."""
    admin = admin_of(settings)
    if kind == "erasure":
        return append(settings, records.erasure(admin, where, note="n", at=now()))
    return append(settings, records.resolution(admin, where, ran=ran, note="n", at=now()))


def found(settings):
    """Each finding: its shard, its index, and what it says."""
    return [(one.shard, one.index, one.what) for one in report(settings).problems]


def test_a_resolution_of_a_denied_call_is_found(settings):
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(settings, FunctionEngine(lambda _d: Decision.deny("no")), home) as guard:
        tool = guard.tool(name="work")(lambda what: what)
        with pytest.raises(Denied):
            guard.new_agent("a").call(tool, "denied")
    place = say(settings, place_of(settings, "denied"))
    assert found(settings) == [(0, place.index, "it resolves a call that was denied")]


def test_a_resolution_of_a_call_that_has_an_outcome_is_found(settings):
    place = say(settings, place_of(settings, "done"))
    what = "it resolves a call whose outcome stands before it"
    assert found(settings) == [(0, place.index, what)]


def test_so_is_one_in_another_shard_that_has_seen_the_outcome(settings, opened):
    """The guard holds shard 0, so that the administrator's lease embeds its head."""
    place = say(settings, place_of(settings, "done"))
    what = "it resolves a call whose outcome stands before it"
    assert place.shard == 1
    assert found(settings) == [(1, place.index, what)]


def test_the_twin_an_erasure_of_any_call_is_none(settings):
    """And the call in doubt may be resolved, in whatever shard."""
    say(settings, place_of(settings, "done"), kind="erasure")
    say(settings, place_of(settings, "die"), kind="erasure")
    assert found(settings) == []
    say(settings, place_of(settings, "die"))
    assert found(settings) == []
    assert report(settings).in_doubt == ()


@pytest.mark.parametrize("first", [True, False])
def test_resolutions_that_contradict_each_other_are_found(settings, first):
    where = place_of(settings, "die")
    say(settings, where, ran=first)
    say(settings, where, ran=first)  # once more the same: true, if it is true
    assert found(settings) == []
    place = say(settings, where, ran=not first)
    what = "it contradicts another resolution of the same call"
    assert found(settings) == [(0, place.index, what)]


def elsewhere(settings, **changes):
    where = place_of(settings)
    fields = {
        "shard": where.shard,
        "index": where.index,
        "invocation_id": where.invocation_id,
        "invocation_sha256": where.invocation_sha256,
    }
    return CallPlace(**{**fields, **changes})


NOWHERE = {
    "no such index": {"index": 9999},
    "a negative index": {"index": -1},
    "another kind of entry": {"index": 0},
    "another shard": {"shard": 7},
    "a negative shard": {"shard": -1},
    "an index past SQLite's": {"index": 2**53 - 1},
    "a shard past any": {"shard": 2**53 - 1},
}


@pytest.mark.parametrize("kind", ["resolution", "erasure"])
@pytest.mark.parametrize("changes", NOWHERE.values(), ids=NOWHERE)
def test_a_statement_of_a_call_that_is_not_there_is_found(settings, kind, changes):
    """Signed by the admin key itself: of a call that was removed, or never was."""
    doubtful, where = in_doubt(settings), elsewhere(settings, **changes)
    admin = admin_of(settings)
    record = (
        records.resolution(admin, where, ran=True, note="n", at=now())
        if kind == "resolution"
        else records.erasure(admin, where, note="n", at=now())
    )
    place = append(settings, record)
    found = report(settings)
    assert [(problem.shard, problem.index) for problem in found.problems] == [
        (place.shard, place.index)
    ]
    assert found.in_doubt == (doubtful,)


def test_a_resolution_from_another_log_is_refused(settings, tmp_path_factory):
    """Another trust domain's admin key, about a call with the same place."""
    folder = tmp_path_factory.mktemp("other")
    theirs = settings_in(folder)
    domain.found(theirs, PASSPHRASE, now=datetime.now(UTC))
    admin = keystore.load_key(theirs.state, "admin", PASSPHRASE)
    doubtful = in_doubt(settings)
    record = records.resolution(admin, place_of(settings), ran=True, note="n", at=now())
    place = append(settings, record)
    found = report(settings)
    assert [problem.index for problem in found.problems] == [place.index]
    assert "no admin key" in found.problems[0].what
    assert found.in_doubt == (doubtful,)


@pytest.mark.parametrize(
    "predicate",
    [
        {"ran": None},
        {"ran": 1},
        {"ran": "true"},
        {"ran": ...},
        {"note": None},
        {"note": ...},
        {"authorization": None},
        {"authorization": {"shard": "0", "index": 1}},
        {"authorization": {"shard": 0}},
        {"authorization": {"shard": True, "index": 1}},
        {"invocation_id": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_resolution_of_another_form_is_malformed(settings, predicate):
    where = place_of(settings)
    said = {
        "invocation_id": where.invocation_id,
        "authorization": {"shard": where.shard, "index": where.index},
        "ran": True,
        "note": "n",
        **predicate,
    }
    said = {name: value for name, value in said.items() if value is not ...}
    statement = dsse.statement("resolution", where.invocation_sha256, "invocation", said)
    at = now()
    sealed = dsse.seal(statement, admin_of(settings)).as_json()
    body = canonical.dumps({"kind": "resolution", "at": at, "statement": sealed})
    place = append(settings, Record(body, Summary("resolution", at, where.invocation_id)))
    found = report(settings)
    assert [problem.index for problem in found.problems] == [place.index]
    assert len(found.in_doubt) == 1


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_another_key_in_the_admins_place_is_refused(settings, use):
    doubtful, entries = in_doubt(settings), report(settings).entries
    keys = settings.state / "keys"
    shutil.copy(keys / use, keys / "admin")
    with pytest.raises(KeyMaterialError) as caught:
        resolve(settings, doubtful)
    assert caught.value.code == "key.mismatch"
    assert report(settings).entries == entries


def test_a_wrong_passphrase_and_a_missing_state_are_refused(settings):
    doubtful = in_doubt(settings)
    with pytest.raises(KeyMaterialError):
        administration.resolve(
            settings, b"wrong", doubtful, ran=True, note="n", now=datetime.now(UTC)
        )
    shutil.rmtree(settings.state)
    with pytest.raises(StorageError) as caught:
        resolve(settings, doubtful)
    assert caught.value.code == "storage.missing"


def test_the_log_is_free_again_afterwards(settings):
    """Also after a refusal: a shard that stays leased would make each later one begin another."""
    doubtful = in_doubt(settings)
    resolve(settings, doubtful)
    with pytest.raises(CallError):
        resolve(settings, doubtful)
    with pytest.raises(EncodeError):
        administration.erase(settings, PASSPHRASE, doubtful, note="\ud800", now=datetime.now(UTC))
    administration.erase(settings, PASSPHRASE, doubtful, note="n", now=datetime.now(UTC))
    assert len(report(settings).shards) == 1
