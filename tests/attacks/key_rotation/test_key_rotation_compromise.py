"""Rotating away keys that were compromised, and revoking keys that were rotated before.

What a thief signs after the compromise does not verify; what the owner signed before still counts.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
from rotations import (
    FULL,
    HOUR,
    PASSPHRASE,
    USES,
    Crash,
    alien,
    crash_at,
    either,
    free_locks,
    put,
    signing,
)

from agentguard import ConfigError, Decision, StorageError, VerificationError
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.domain import administration, domain, handover, keystore, rotation
from agentguard.domain.domain import StateDomain
from agentguard.errors import CallError
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.identity.trust import seconds
from agentguard.policy.function import FunctionEngine
from agentguard.store.log import StoreLog
from agentguard.store.reader import StoredLog
from agentguard.store.store import Store

# --- compromise -----------------------------------------------------------------------------------


def test_what_a_compromised_log_key_signed_since_does_not_verify(scene):
    scene.call("before")
    first = scene.calls()[0]
    scene.clock.advance(hours=2)
    since = scene.clock.now
    scene.clock.advance(minutes=1)
    scene.call("since")
    assert scene.examine().ok
    scene.clock.advance(minutes=1)
    moment = scene.clock.now.isoformat()[:19]
    scene.rotate("log", compromised_since=since)
    scene.call("after")
    with closing(StoredLog.of(scene.settings.state)) as reader:
        times = [parse_entry(body).at for _index, body in reader.entries()]
    # and nothing that the new key signed
    found = [n for n, at in enumerate(times) if since.isoformat()[:19] <= at < moment]
    (problem,) = scene.examine().problems
    assert problem.index == found[0] > 0
    assert problem.what.startswith(f"{len(found)} entries, up to {found[-1]}, were written while")
    # what the key itself vouched for before the compromise, the new key vouches for as well
    verify_evidence(scene.prove(first), scene.trust)


def test_what_a_compromised_issuer_signed_since_does_not_verify(scene):
    scene.call("before")
    scene.clock.advance(hours=2)
    since = scene.clock.now
    scene.clock.advance(minutes=1)
    scene.call("since")
    scene.clock.advance(minutes=1)
    scene.rotate("issuer", compromised_since=since)
    scene.call("after")
    first, second, third = scene.calls()
    report = scene.examine()
    assert not report.ok
    assert any("compromised by then" in problem.what for problem in report.problems)
    for invocation_id in (first, third):
        verify_evidence(scene.prove(invocation_id), scene.trust)
    with pytest.raises(VerificationError):
        scene.prove(second)


def test_a_guard_that_runs_on_signs_nothing_more_with_a_compromised_key(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.clock.advance(minutes=1)
        scene.rotate("log", compromised_since=scene.clock.now)
        scene.clock.advance(minutes=1)
        agent.call(tool, "not restarted")
        assert signing(guard, "log") == scene.key("log")
    scene.good()


def fails(*_args, **_options):
    raise StorageError("the disk is full", code="storage.full")


@either
def test_a_guard_that_runs_on_before_the_new_key_has_signed_is_found_out(scene, monkeypatch):
    """Why every process must be stopped before: docs/how-to/keys.md."""
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "before")
        scene.clock.advance(minutes=1)
        with monkeypatch.context() as patched:
            patched.setattr(StateDomain, "open_log", fails)
            done = rotation.rotate(
                scene.settings,
                PASSPHRASE,
                "log",
                now=scene.clock.now,
                compromised_since=scene.clock.now,
            )
        assert done.unfinished is not None
        scene.clock.advance(minutes=1)
        agent.call(tool, "not stopped")
        assert signing(guard, "log") != scene.key("log")
    assert not scene.examine().ok
    scene.call("with the new key")
    (problem,) = scene.examine().problems
    assert "were written while no key of the log counted" in problem.what


def test_what_a_compromised_admin_signed_before_still_counts(scene):
    scene.call("x")
    (call,) = scene.calls()
    administration.erase(scene.settings, PASSPHRASE, call, note="n", now=scene.clock.now)
    scene.clock.advance(hours=1)
    scene.rotate("admin", compromised_since=scene.clock.now)
    scene.good()
    scene.clock.advance(hours=1)
    administration.erase(scene.settings, PASSPHRASE, call, note="n", now=scene.clock.now)
    scene.good()
    scene.rotate("admin", compromised_since=scene.clock.now - 90 * timedelta(minutes=1))
    assert not scene.examine().ok  # now the second one's key is said to have been stolen by then


def test_a_stolen_admin_key_makes_no_call_unprovable_and_none_settled(scene):
    """Whatever it has said since of a call counts for nothing, and the new key says it again."""
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        agent.call(guard.tool(name="say")(lambda what: what), "ended")
        child = os.fork()
        if child == 0:
            agent.call(guard.tool(name="die")(os._exit), 0)
        os.waitpid(child, 0)
    ended, doubted = scene.calls()
    since = scene.clock.now
    scene.clock.advance(minutes=1)
    said: dict[str, Any] = {"note": "by the thief", "now": scene.clock.now}
    administration.erase(scene.settings, PASSPHRASE, ended, **said)
    administration.resolve(scene.settings, PASSPHRASE, doubted, ran=False, **said)
    assert scene.examine().in_doubt == ()
    with pytest.raises(CallError, match="its resolution is on record"):
        administration.resolve(scene.settings, PASSPHRASE, doubted, ran=True, **said)
    scene.clock.advance(minutes=1)
    scene.rotate("admin", compromised_since=since)
    for call in (ended, doubted):
        proved = verify_evidence(scene.prove(call), scene.trust)
        assert proved.admin_statements == ()
    assert scene.examine().in_doubt == (doubted,)
    administration.resolve(
        scene.settings, PASSPHRASE, doubted, ran=True, note="by the owner", now=scene.clock.now
    )
    assert scene.examine().in_doubt == ()
    ((resolution, _place),) = verify_evidence(scene.prove(doubted), scene.trust).admin_statements
    assert (resolution.ran, resolution.note) == (True, "by the owner")


def test_an_overlap_and_a_compromise_exclude_each_other(scene):
    before = scene.trust
    with pytest.raises(ConfigError, match="no overlap"):
        scene.rotate("log", overlap=3 * HOUR, compromised_since=scene.clock.now)
    assert scene.trust == before


# --- a key that was rotated already ---------------------------------------------------------------


@either
@pytest.mark.parametrize("use", USES)
def test_a_rotated_key_is_revoked(scene, use):
    scene.call("before")
    old = scene.key(use)
    scene.clock.advance(hours=1)
    since = scene.clock.now
    scene.rotate(use)
    scene.call("after")
    scene.clock.advance(minutes=5)
    done = scene.revoke(old, since)
    assert done.trust == scene.trust == scene.own
    assert (done.key.use, done.key.compromised_since) == (use, seconds(since))
    assert done.trust.current(use) == [scene.key(use)]
    scene.call("at last")
    scene.good()
    assert scene.left_over() == []
    (said,) = [key for key in scene.announced() if key["compromised_since"] is not None]
    assert said == done.key.as_json()
    for invocation_id in scene.calls():
        scene.prove(invocation_id)
    assert len(scene.calls()) == 3


@pytest.fixture
def stolen(scene, monkeypatch) -> tuple[Any, datetime]:
    """The log's key before the rotation, which has signed entries after it, and the time between.

    The thief writes the log, and not the anchor.
    """
    scene.call("before")
    thief = keystore.load_key(scene.settings.state, "log", PASSPHRASE)
    scene.clock.advance(hours=1)
    since = scene.clock.now
    scene.rotate("log")
    scene.clock.advance(minutes=5)
    unanchored = dataclasses.replace(scene.settings, anchor=None)
    home = dataclasses.replace(
        domain.take_up(unanchored, PASSPHRASE), settings=unanchored, log_key=thief
    )
    with monkeypatch.context() as patched:
        patched.setattr(Store, "_is_replaced", lambda *_keys: False)
        patched.setattr(StateDomain, "renewed", lambda _home: None)
        engine = FunctionEngine(lambda _d: Decision.allow())
        with Guard(Embedded(unanchored, engine, home)) as guard:
            agent = guard.new_agent("reader")
            agent.call(guard.tool(name="say")(lambda what: what), "in the overlap")
            assert signing(guard, "log") == thief.public_key
    return thief.public_key, since


@either
def test_what_a_revoked_key_signed_in_its_overlap_does_not_verify(scene, stolen):
    """Nothing is built on it, so the log ends with it."""
    old, since = stolen
    assert scene.examine().ok
    done = rotation.revoke(
        scene.settings,
        PASSPHRASE,
        old.thumbprint,
        compromised_since=since,
        now=scene.clock.now,
    )
    assert done.unfinished is not None
    assert done.unfinished.code == "storage.unvouched"
    assert done.trust == scene.trust == scene.own
    report = scene.examine()
    assert not report.ok
    assert all("compromised by then" in problem.what for problem in report.problems)
    first, second = scene.calls()
    verify_evidence(scene.prove(first), scene.trust)
    with pytest.raises(VerificationError):
        scene.prove(second)
    with pytest.raises(StorageError) as caught:
        scene.call("later")
    assert caught.value.code == "storage.unvouched"


def test_who_has_seen_the_new_key_builds_on_nothing_that_the_old_one_signs(scene, stolen):
    """Nobody has to know that the old key is stolen: in its overlap, too."""
    with pytest.raises(StorageError, match="was replaced before them") as caught:
        scene.call("later")
    assert caught.value.code == "storage.unvouched"
    done = rotation.rotate(scene.settings, PASSPHRASE, "issuer", now=scene.clock.now)
    assert done.unfinished is not None
    assert done.unfinished.code == "storage.unvouched"


def test_the_key_in_force_is_not_revoked(scene):
    before = scene.trust
    with pytest.raises(VerificationError, match="agentguard keys rotate log") as caught:
        scene.revoke(scene.key("log"), scene.clock.now)
    assert caught.value.code == "key.current"
    assert scene.trust == scene.own == before


def test_what_can_not_be_revoked_changes_nothing(scene, stranger):
    old = scene.key("log")
    scene.clock.advance(minutes=1)
    scene.rotate("log")
    scene.revoke(old, scene.clock.now - HOUR)
    before = scene.trust
    for key, since, code in (
        (stranger.public_key, scene.clock.now, "key.unknown"),
        (old, scene.clock.now, "key.compromised"),
        (old, scene.clock.now + HOUR, "config.invalid"),
    ):
        with pytest.raises((VerificationError, ConfigError)) as caught:
            scene.revoke(key, since)
        assert caught.value.code == code
    assert scene.trust == scene.own == before
    scene.revoke(old, scene.clock.now - 2 * HOUR)  # it was earlier than it was thought to be
    assert scene.trust != before
    scene.call()
    assert scene.own == scene.trust


@either
def test_a_revocation_cut_short_anywhere_is_finished_or_has_never_been(
    scene, monkeypatch, tmp_path_factory
):
    old = scene.key("issuer")
    scene.clock.advance(hours=1)
    since = scene.clock.now
    scene.rotate("issuer")
    scene.clock.advance(hours=1)
    untouched = tmp_path_factory.mktemp("untouched") / "copy"
    shutil.copytree(scene.settings.base, untouched)
    place, crashed, revoked = 0, True, set()
    met: list[str] = []
    while crashed:
        place += 1 if FULL else 4
        shutil.rmtree(scene.settings.base)
        shutil.copytree(untouched, scene.settings.base)
        with monkeypatch.context() as patched:
            met = crash_at(patched, place)
            try:
                scene.revoke(old, since)
                crashed = False
            except Crash:
                free_locks()
        scene.call("afterwards")
        scene.good()
        done = any(key.compromised_since is not None for key in scene.own.keys)
        revoked.add(done)
        told = [key for key in scene.announced() if key["compromised_since"] is not None]
        assert len(told) == (1 if done else 0), met
        assert scene.left_over() == [], met
        if not done:
            scene.revoke(old, since)
        else:
            scene.rotate("issuer")
        scene.call("at last")
        scene.good()
    assert revoked == {True, False}
    assert len(met) > 10


@either
def test_a_next_trust_document_that_nobody_has_decided_on_is_forgotten(scene):
    """Whoever writes into the state puts one there, with a key of his own or no old end."""
    before = scene.own
    mallory = dataclasses.replace(before.keys[0], key=alien()[0].public_key)
    for forged in (
        dataclasses.replace(before, keys=(*before.keys, mallory)).dumps(),
        dataclasses.replace(before, keys=(mallory, *before.keys[1:])).dumps(),
        b"garbage",
        b"",
    ):
        put(scene.settings.state / "trust.next", forged)
        scene.call()
        assert scene.own == scene.trust == before
        assert scene.left_over() == []
    scene.good()


# --- it counts, and the rest does not go well -----------------------------------------------------


@either
@pytest.mark.parametrize("what", ["rotate", "revoke"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(StoreLog, "append"), (handover, "announce"), (handover, "finish")],
    ids=["append", "announce", "finish"],
)
def test_what_counts_is_no_failure_because_the_rest_is(scene, monkeypatch, what, owner, step):
    """The next one to open the state does what is left."""
    old = scene.key("log")
    scene.clock.advance(minutes=1)
    since = scene.clock.now
    if what == "revoke":
        scene.rotate("log")
        scene.clock.advance(minutes=1)
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, fails)
        done: rotation.Rotation | rotation.Revocation = (
            rotation.rotate(scene.settings, PASSPHRASE, "log", now=since)
            if what == "rotate"
            else rotation.revoke(
                scene.settings,
                PASSPHRASE,
                old.thumbprint,
                compromised_since=since,
                now=scene.clock.now,
            )
        )
    assert done.unfinished is not None
    assert done.unfinished.code == "storage.full"
    assert scene.trust == done.trust
    scene.call()
    scene.good()
    assert scene.left_over() == []
    assert {key.key.thumbprint for key in scene.trust.keys} == {
        key["kid"] for key in scene.announced()
    }
    assert all(key.as_json() in scene.announced() for key in scene.trust.keys)
