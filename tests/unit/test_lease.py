"""Which shard a process gets to write, what that adds to the log, and when nobody gets any."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from agentguard import StorageError, VerificationError
from agentguard.audit import checkpoint
from agentguard.audit.entry import Record, parse_time
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import PolicyEntry, ShardEntry
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.audit.summary import Summary
from agentguard.call.invocation import timestamp
from agentguard.domain.verify import examine
from agentguard.errors import DecodeError
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing import canonical
from agentguard.storage import lease, lock, registry_file, sqlite
from agentguard.storage.anchor import Anchor
from agentguard.storage.lease import Lessor
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader
from agentguard.storage.shard_file import ShardFile

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def lessor(tmp_path, signer, stranger):
    """Of an empty state; ``signer`` is the issuer, and ``stranger`` the log's key."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    keys = (TrustedKey("issuer", signer.public_key, 0), TrustedKey("log", stranger.public_key, 0))
    trust = TrustDocument("acme.example", "acme.example/log/4711", keys)
    return Lessor(state, tmp_path / "anchor", trust, signer, stranger)


def listed(lessor):
    data = registry_file.read(lessor.state)
    return verify_registry(data, lessor.trust).shards if data is not None else None


def openings(lessor, shard):
    """The opening entries of a shard: the heads that each embeds, as origin and size."""
    with closing(StateReader(lessor.state)) as reader:
        parsed = [parse_entry(body) for _index, body in reader.entries(shard)]
    said = [one for one in parsed if isinstance(one, ShardEntry)]
    for one in said:
        one.verify(lessor.trust, parse_time(one.at))
        one.require_of(lessor.trust.origin(shard), shard)
    return [[(head.origin[-1], head.size) for head in one.heads] for one in said]


def report(lessor):
    with closing(StateReader(lessor.state)) as reader:
        return examine(reader, lessor.trust, anchor=lessor.anchors)


def policy(at=NOW):
    body = PolicyEntry.new({"name": "n", "version": "1"}, None, {}, at=timestamp(at))
    return Record(body.body, Summary("policy", timestamp(at)))


def test_the_first_lease_makes_shard_0_and_registers_it(lessor):
    log = lessor.lease(NOW)
    assert (log.shard, log.head.size, log.head.origin) == (0, 1, "acme.example/log/4711/0")
    assert listed(lessor) == {0}
    assert openings(lessor, 0) == [[]]
    log.close()
    found = report(lessor)
    assert (found.ok, found.anchored) == (True, True)


def test_a_shard_that_is_given_back_is_leased_again(lessor):
    for turn in range(1, 4):
        log = lessor.lease(NOW)
        assert (log.shard, log.head.size) == (0, turn)
        log.close()
    assert listed(lessor) == {0}
    assert openings(lessor, 0) == [[], [], []]


def test_while_it_is_taken_another_one_is_added(lessor):
    logs = [lessor.lease(NOW) for _ in range(3)]
    assert [log.shard for log in logs] == [0, 1, 2]
    assert listed(lessor) == {0, 1, 2}
    logs[1].append(policy())
    logs[1].close()
    again = lessor.lease(NOW)
    assert (again.shard, again.head.size) == (1, 3)
    assert openings(lessor, 1) == [[("0", 1)], [("0", 1), ("2", 1)]]
    assert openings(lessor, 2) == [[("0", 1), ("1", 1)]]
    for log in (*logs, again):
        log.close()
    found = report(lessor)
    assert (found.ok, found.anchored, len(found.shards)) == (True, True, 3)


def test_many_threads_lease_each_a_shard_of_their_own(lessor):
    lessor.lease(NOW).close()  # whoever founds a log leases its first shard alone
    logs, barrier = [], threading.Barrier(8)

    def take():
        barrier.wait()
        logs.append(lessor.lease(NOW))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(log.shard for log in logs)
    assert numbers == list(range(8))
    assert listed(lessor) == set(numbers)
    for log in logs:
        log.close()
    assert report(lessor).ok


def test_a_process_that_dies_gives_its_shard_back(lessor):
    """The lock ends with it, without its doing anything."""
    lessor.lease(NOW).close()
    path = sqlite.shard_path(lessor.state, 0).with_suffix(".lock")
    holder = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'r+'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE
    ) as died:
        assert died.stdout is not None
        assert died.stdout.readline() == b"held\n"
        other = lessor.lease(NOW)
        died.kill()
        died.wait()
    again = lessor.lease(NOW)
    assert (other.shard, again.shard) == (1, 0)
    other.close()
    again.close()


def test_the_opening_entrys_time_does_not_go_back(lessor):
    lessor.lease(NOW).close()
    log = lessor.lease(NOW - timedelta(days=3))
    assert log.last_at == NOW
    log.close()
    assert report(lessor).ok


# --- what must be there ---------------------------------------------------------------------------


@pytest.fixture
def three(lessor):
    """The lessor, of a log with three shards that nobody writes."""
    logs = [lessor.lease(NOW) for _ in range(3)]
    for log in logs:
        log.close()
    return lessor


def remove(lessor, number):
    for path in (lessor.state / "shards").glob(f"{number}.sqlite*"):
        path.unlink()


def refused(lessor, match):
    before = {path: path.read_bytes() for path in lessor.state.rglob("*") if path.is_file()}
    with pytest.raises(StorageError, match=match) as caught:
        lessor.lease(NOW)
    assert caught.value.code == "storage.rolled_back"
    assert {path: path.read_bytes() for path in lessor.state.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_registered_shard_that_is_missing_stops_every_lease(three, number):
    remove(three, number)
    shutil.rmtree(three.anchors)
    refused(three, f"the shard .*{number}.sqlite is missing: restore the state")


def test_a_shard_that_only_an_anchor_knows_stops_every_lease(three):
    """Somebody has put an older registry in its place, which the issuer has signed as well."""
    remove(three, 2)
    registry_file.write(
        three.state, seal_registry(three.issuer, three.trust, {0, 1}, at=timestamp(NOW))
    )
    refused(three, r"2\.sqlite is missing")


def test_without_the_registry_nothing_is_leased(three):
    (three.state / "registry.json").unlink()
    shutil.rmtree(three.anchors)
    refused(three, "the registry of the shards in .* is missing")


def test_a_registry_that_does_not_verify_stops_every_lease(three):
    good = registry_file.read(three.state) or b"none"
    others = dataclasses.replace(three.trust, log="acme.example/log/other")
    forged = (
        seal_registry(three.log_key, three.trust, {0}, at=timestamp(NOW)),
        seal_registry(three.issuer, others, {0}, at=timestamp(NOW)),
        good.replace(b'"sig":"', b'"sig":"A', 1),
        b"{}",
        b"",
    )
    for data in forged:
        registry_file.write(three.state, data)
        with pytest.raises((VerificationError, DecodeError)):
            three.lease(NOW)
    registry_file.write(three.state, good)
    three.lease(NOW).close()


def test_a_registry_without_shards_is_refused_where_there_are_some(three):
    """The issuer could have signed it; it would hide all of them."""
    registry_file.write(
        three.state, seal_registry(three.issuer, three.trust, (), at=timestamp(NOW))
    )
    refused(three, "the registry of the shards in .* is missing")


def test_a_shard_that_nobody_has_registered_yet_is_taken_up(three):
    """Of somebody who died between opening it and registering it."""
    registry_file.write(
        three.state, seal_registry(three.issuer, three.trust, {0, 1}, at=timestamp(NOW))
    )
    logs = [three.lease(NOW) for _ in range(3)]
    assert [(log.shard, log.head.size) for log in logs] == [(0, 2), (1, 2), (2, 2)]
    assert listed(three) == {0, 1, 2}
    for log in logs:
        log.close()
    assert report(three).ok


def test_several_who_die_before_they_register_a_shard_leave_a_log_in_order(lessor, monkeypatch):
    """The first writes its opening and dies; the next one registers it before it writes another."""

    class Death(BaseException):
        pass

    def dies(*_args):
        raise Death

    lessor.lease(NOW)  # somebody writes shard 0, so that the others come to shard 1
    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(Lessor, "_register", dies)
            with pytest.raises(Death):
                lessor.lease(NOW)
        assert listed(lessor) == {0}
        assert len(openings(lessor, 1)) == 1
        found = report(lessor)
        assert (found.ok, found.anchored) == (True, True), found.problems
    taken = lessor.lease(NOW)
    assert (taken.shard, taken.head.size, listed(lessor)) == (1, 2, {0, 1})
    taken.close()
    assert report(lessor).ok


def test_a_number_is_never_used_twice(three):
    """Of a shard that was added last, and removed with all that knows it but its anchor's file."""
    remove(three, 2)
    registry_file.write(
        three.state, seal_registry(three.issuer, three.trust, {0, 1}, at=timestamp(NOW))
    )
    without = dataclasses.replace(three, anchors=None)
    logs = [without.lease(NOW) for _ in range(3)]
    assert [log.shard for log in logs] == [0, 1, 2]  # nothing in the state tells
    for log in logs:
        log.close()
    assert not report(three).ok  # the anchor does


def test_a_damaged_shard_is_not_passed_over(three):
    path = sqlite.shard_path(three.state, 0)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE shard SET size = 9")
        connection.commit()
    with pytest.raises(StorageError) as caught:
        three.lease(NOW)
    assert caught.value.code == "storage.corrupt"


def test_a_lease_that_fails_gives_the_shard_back(three, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(ShardLog, "append", lambda *_a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            three.lease(NOW)
    log = three.lease(NOW)
    assert log.shard == 0
    log.close()


# --- the heads of the others ----------------------------------------------------------------------


FORGED = {
    "edited": "UPDATE checkpoints SET note = CAST(replace(note, '\n1\n', '\n2\n') AS BLOB)",
    "another log's": "UPDATE checkpoints SET note = CAST(replace(note, '4711', '4712') AS BLOB)",
    "none": "DELETE FROM checkpoints",
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_registered_shard_whose_newest_checkpoint_does_not_verify_stops_every_lease(
    three, change
):
    """It would be left out of the heads, and could be cut unseen from then on."""
    path = sqlite.shard_path(three.state, 2)
    kept = path.read_bytes()
    edit(path, change)
    before = sizes(three)
    with pytest.raises(VerificationError, match=r"2\.sqlite does not verify .* nothing is written"):
        three.lease(NOW)
    assert sizes(three) == before
    path.write_bytes(kept)
    three.lease(NOW).close()
    assert openings(three, 0)[-1] == [("1", 1), ("2", 1)]
    assert report(three).ok


def edit(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def sizes(lessor):
    with closing(StateReader(lessor.state)) as reader:
        return {shard: len(list(reader.entries(shard))) for shard in (0, 1)}


def test_a_registered_shard_that_can_not_be_read_stops_every_lease(three):
    """It has to be repaired: nobody could say how far it was."""
    path = sqlite.shard_path(three.state, 2)
    kept = path.read_bytes()
    path.write_bytes(kept[:100] + b"\xff" * (len(kept) - 100))
    with pytest.raises(StorageError, match=r"2\.sqlite") as caught:
        three.lease(NOW)
    assert caught.value.code == "storage.corrupt"
    path.write_bytes(kept)
    three.lease(NOW).close()


def test_a_shard_that_nobody_has_begun_stops_no_lease(three):
    """Its writer died before its first entry, or has not come to it: there is nothing to embed."""
    begun = three.lease(NOW)
    origin = three.trust.origin(3)
    made = ShardFile.take(
        sqlite.shard_path(three.state, 3), origin, Anchor(None, origin, ()), three.trust
    )
    assert made is not None
    log = three.lease(NOW)
    assert openings(three, log.shard)[-1] == [("0", 2), ("2", 1)]
    for one in (begun, log, made):
        one.close()


def test_a_lease_that_leaves_out_a_head_that_was_embedded_before_is_found(three, monkeypatch):
    """As of an issuer's key in the hands of somebody who hides how far a shard was."""
    three.lease(NOW).close()
    assert report(three).ok
    opening = Lessor.opening
    with monkeypatch.context() as patched:
        patched.setattr(
            Lessor,
            "opening",
            lambda self, number, heads, at: opening(
                self, number, {other: heads[other] for other in (0, 1)}, at=at
            ),
        )
        three.lease(NOW).close()
    found = report(three)
    assert [(problem.shard, problem.index) for problem in found.problems] == [(0, 2)]
    assert "leaves out the head of acme.example/log/4711/2" in found.problems[0].what


# --- a new shard that somebody else is taking -----------------------------------------------------


def test_a_new_shard_that_is_locked_for_a_moment_is_waited_for(lessor):
    (lessor.state / "shards").mkdir(mode=0o700)
    held = lock.try_acquire(lessor.state / "shards" / "0.lock")
    assert held is not None
    timer = threading.Timer(0.15, lock.release, [held])
    timer.start()
    log = lessor.lease(NOW)
    timer.join()
    assert log.shard == 0
    log.close()


def test_a_new_shard_that_stays_locked_is_not(lessor, monkeypatch):
    monkeypatch.setattr(lease, "_PAUSE", 0.001)
    (lessor.state / "shards").mkdir(mode=0o700)
    held = lock.try_acquire(lessor.state / "shards" / "0.lock")
    assert held is not None
    with pytest.raises(StorageError, match="another process locks each new shard") as caught:
        lessor.lease(NOW)
    assert caught.value.code == "storage.locked"
    lock.release(held)


def test_the_heads_are_those_of_the_moment(three):
    logs = [three.lease(NOW) for _ in range(2)]
    for _ in range(3):
        logs[0].append(policy())
    last = three.lease(NOW)
    assert openings(three, 2)[-1] == [("0", 5), ("1", 2)]
    for log in (*logs, last):
        log.close()
    assert report(three).ok


def test_the_opening_entry_is_signed_by_the_issuer_and_names_the_logs_key(lessor):
    record = lessor.opening(3, {}, at=timestamp(NOW))
    said = json.loads(canonical.b64_decode(json.loads(record.body)["statement"]["payload"]))
    assert said["predicate"] == {
        "trust_domain": "acme.example",
        "origin": "acme.example/log/4711/3",
        "shard": 3,
        "log_key": lessor.log_key.public_key.jwk(),
        "heads": [],
    }
    parsed = parse_entry(record.body)
    assert isinstance(parsed, ShardEntry)
    parsed.verify(lessor.trust, parse_time(parsed.at))


def test_the_anchor_follows_each_lease(lessor):
    log = lessor.lease(NOW)
    log.append(policy())
    log.close()
    note = (lessor.anchors / "4711" / "0.checkpoint").read_bytes()
    keys = [lessor.log_key.public_key]
    point, _key = checkpoint.verify_any(note, keys, origin="acme.example/log/4711/0")
    assert point.size == 2
