"""Attacks on a log of several shards: each is found and located, and no guard heals the log.

Whoever can write the state edits, cuts, swaps, removes, rolls back or forks its shards; some have
stolen the log's key as well. With the anchor each attack is found and located. Without an anchor
the attack is found all the same, or the log reads as consistent and UNANCHORED. The attacks are in
tests/support/shard_attacks.py; the same attacks on the entries of one log, in great number, are
in tests/properties.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from shard_attacks import TABLE
from sharded_log import PASSPHRASE, History, Log, Where, note, settings_for, work

from agentguard import AgentguardError, StorageError
from agentguard.domain import domain, keystore
from agentguard.domain.report import Report
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage.anchor import Anchor
from agentguard.storage.shard_file import ShardFile


@pytest.fixture(scope="session")
def history(template, tmp_path_factory) -> History:
    folder = tmp_path_factory.mktemp("history")
    now = folder / "now"

    def keep(name: str) -> None:
        shutil.copytree(now, folder / name)

    shutil.copytree(template, now)
    keep("one")
    home = domain.take_up(settings_for(now), PASSPHRASE)
    work(now, home, 3, 2)
    keep("three")
    work(now, home, 3, 2)
    keep("seen")
    work(now, home, 4, 2)
    keep("later")
    keep("fork")
    work(now, home, 5, 2)
    work(folder / "fork", domain.take_up(settings_for(folder / "fork"), PASSPHRASE), 5, 2)
    other = folder / "other"
    domain.found(settings_for(other), PASSPHRASE, now=datetime.now(UTC))
    work(other, domain.take_up(settings_for(other), PASSPHRASE), 2, 2)
    return History(folder, home)


@pytest.fixture
def log(history, tmp_path) -> Log:
    """A copy of the log for one test."""
    for part in ("state", "anchor"):
        shutil.copytree(history.folder / "now" / part, tmp_path / part)
    return Log(
        settings_for(tmp_path),
        history.home.trust,
        history.home.issuer,
        keystore.load_key(tmp_path / "state", "log", PASSPHRASE),
        Ed25519Signer.from_seed(os.urandom(32)),
        history.folder,
        history.folder / "other" / "state",
    )


# --- the table's two columns: with the anchor, and without ----------------------------------------


def located(log: Log, report: Report, where: Where) -> bool:
    """Whether something was found at this place, or in the batch in which it lies."""
    shard, index = where
    for problem in report.problems:
        if problem.shard == shard and (problem.index is None) == (index is None):
            if index is None or problem.index is None or problem.index == index:
                return True
            # a checkpoint vouches for a batch, and no more can be said than which one it is
            begins = max((size for size in log.sizes(shard) if size <= index), default=0)
            if begins <= problem.index <= index:
                return True
    return False


def test_the_untampered_twin_of_all_verifies(log):
    report = log.examine()
    assert report.problems == ()
    assert report.anchored
    assert [shard.shard for shard in report.shards] == [0, 1, 2, 3, 4]
    assert list(report.in_doubt) == []
    without = log.examine(anchored=False)
    assert without.ok
    assert not without.anchored
    log.open().close()
    assert log.examine().ok


@pytest.mark.parametrize("tried", TABLE, ids=lambda tried: tried.name)
def test_it_is_found_and_located_or_unanchored_and_never_healed(log, tried):
    where, without = tried.does(log)
    report = log.examine()
    assert not report.ok
    assert located(log, report, where), (where, report.problems)

    report = log.examine(anchored=False)
    assert not report.anchored
    if without is None:
        assert report.problems == ()
    else:
        assert not report.ok
        assert located(log, report, without), (without, report.problems)

    # a guard that comes next is refused, or goes on in a shard that is in order
    with suppress(AgentguardError), log.open() as guard:
        guard.new_agent("reader").call(guard.tool(note), text="on")
    assert not log.examine().ok


def test_the_log_signed_anew_with_keys_of_the_attackers_own_is_nothing_to_its_trust(log):
    """A whole log, in good order, of somebody who founded one under the same names."""
    for part in ("shards", "registry.json"):
        target = log.state / part
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        source = log.other / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    theirs = keystore.load_trust(log.other)
    assert log.examine(anchored=False, trust=theirs).ok
    report = log.examine(anchored=False)
    assert {(problem.shard, problem.index) for problem in report.problems} >= {(0, 0), (1, 0)}


# --- at open --------------------------------------------------------------------------------------


def gone(*shards: int, registry: str = "") -> Callable[[Log], None]:
    """Remove shards; put the ``registry`` of an older copy in its place, or ``none``."""

    def does(log: Log) -> None:
        for shard in shards:
            log.path(shard).unlink()
        if registry == "none":
            (log.state / "registry.json").unlink()
        elif registry:
            log.bring_back(registry, "registry.json")

    return does


def back(name: str, *parts: str) -> Callable[[Log], None]:
    return lambda log: log.bring_back(name, *parts)


def renamed(log: Log) -> None:
    log.path(2).rename(log.path(7))


REFUSED: dict[str, Callable[[Log], None]] = {
    "the first shard is rolled back": back("seen", "shards/0.sqlite"),
    "the whole state is rolled back": back("seen", "shards", "registry.json"),
    "the first shard is forked": back("fork", "shards/0.sqlite"),
    "a shard's file is gone": gone(2),
    "a shard's file is gone, and the registry is an older one": gone(4, registry="later"),
    "a shard and the registry are gone": gone(4, registry="none"),
    "the registry is gone": gone(registry="none"),
    "a shard's file has another number": renamed,
}


@pytest.mark.parametrize("does", REFUSED.values(), ids=REFUSED)
def test_a_state_that_has_lost_something_is_not_opened(log, does):
    does(log)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"[Rr]estore") as caught:
            log.open()
        assert caught.value.code == "storage.rolled_back"
    assert not log.examine().ok  # and nothing was healed


def test_the_registry_is_gone_and_there_is_no_anchor(log):
    """To go on would be to sign a new one, and to forget the shard that went with it."""
    log = replace(log, config=replace(log.config, anchor=None))
    (log.state / "registry.json").unlink()
    log.path(4).unlink()
    with pytest.raises(StorageError) as caught:
        log.open()
    assert caught.value.code == "storage.rolled_back"
    assert not log.examine().ok


@pytest.mark.parametrize("shard", [1, 2, 3, 4])
def test_a_shard_that_was_rolled_back_is_refused_to_whoever_would_write_it(log, shard):
    before = [log.open() for _ in range(shard)]
    if shard == 4:
        log.cut(4, log.sizes(4)[-2])
    else:
        log.bring_back("later", f"shards/{shard}.sqlite")
    with pytest.raises(StorageError) as caught:
        log.open()
    assert caught.value.code == "storage.rolled_back"
    for guard in before:  # the others go on with theirs
        guard.new_agent("reader").call(guard.tool(note), text="on")
        guard.close()
    assert {problem.shard for problem in log.examine().problems} >= {shard}


def test_an_empty_shard_of_somebody_who_died_making_it_is_no_finding(log):
    """The twin: what nobody knows of and nothing stands in was never part of the log."""
    origin = log.trust.origin(5)
    taken = ShardFile.take(log.path(5), origin, Anchor(None, origin, ()), log.trust)
    assert taken is not None
    taken.close()
    report = log.examine()
    assert report.problems == ()
    assert report.anchored
    guards = [log.open() for _ in range(6)]  # the sixth takes it up
    assert log.ask(5, "SELECT count(*) FROM entries") > [(0,)]
    for guard in guards:
        guard.close()
    assert log.examine().ok
    assert log.examine().anchored
