"""A founding that is killed, at any step: the domain is there, whole, or can be founded anew."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import Decision, StorageError
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.domain import config, domain, keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.policy.function import FunctionEngine
from agentguard.storage import lock
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse"
EACH = 1 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 3


def settings_in(folder: Path, *, anchored: bool = True) -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": "state",
        "anchor": "anchor" if anchored else "",
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


def found(settings: Config) -> None:
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a child that is killed at its ``step``-th sync; False if it was not."""
    child = os.fork()
    if child == 0:
        try:
            sync, steps = os.fsync, iter(range(1, step))

            def counted(fd: Any) -> None:
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(fd)

            os.fsync = counted
            work()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


def use(settings: Config) -> None:
    """Open, call, verify, prove."""
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
        guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), "x")
    trust = keystore.load_trust(settings.state)
    with closing(StoredLog.of(settings.state)) as reader:
        report = examine(reader, trust, anchor=settings.anchor)
        kinds = [parse_entry(body).kind for _index, body in reader.entries()]
        called = [row for row in reader.stored() if row.summary and row.summary.invocation_id]
    assert (report.problems, report.anchored) == ((), settings.anchor is not None)
    assert kinds[:3] == ["key", "key", "key"]
    assert called[0].summary is not None
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
        verify_evidence(guard.prove(str(called[0].summary.invocation_id)), trust)
    if settings.anchor is not None:
        assert trust_pin.require(settings.anchor, settings.state, trust.log) == trust


@pytest.mark.parametrize("anchored", [True, False], ids=["anchored", "no anchor"])
def test_killed_at_any_step_it_is_whole_or_is_founded_anew(tmp_path, anchored):
    step, outcomes = 0, []
    for step in range(1, 100, EACH):
        settings = settings_in(tmp_path / str(step), anchored=anchored)
        settings.base.mkdir()
        killed = killed_at(step, lambda settings=settings: found(settings))  # type: ignore[misc]
        whole = settings.state.exists()
        outcomes.append(whole)
        if not whole:
            with pytest.raises(StorageError, match="agentguard init") as caught:
                domain.take_up(settings, PASSPHRASE)
            assert caught.value.code == "storage.missing"
            found(settings)
        else:
            with pytest.raises(StorageError) as caught:
                found(settings)
            assert caught.value.code == "storage.exists"
        use(settings)
        left = {path.name for path in settings.base.iterdir()} - {"state", "anchor"}
        assert left == set()
        if not killed:
            break
        shutil.rmtree(settings.base)
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert step > 15


def test_what_a_dead_founder_left_is_neither_taken_for_a_state_nor_kept(tmp_path):
    settings = settings_in(tmp_path)
    assert killed_at(12, lambda: found(settings))
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith("state")]
    assert left.name == "state.founding"
    assert left.stat().st_mode & 0o777 == 0o700
    keys = {path.read_bytes() for path in (left / "keys").iterdir()}
    assert keys
    (left / "mine").mkdir()
    found(settings)
    assert keys.isdisjoint(path.read_bytes() for path in (settings.state / "keys").iterdir())
    names = {path.name for path in settings.state.iterdir()}
    assert not names & {"mine", "founding.lock"}
    assert not left.exists()


def test_who_founds_meanwhile_is_left_alone(tmp_path):
    settings = settings_in(tmp_path)
    assert killed_at(12, lambda: found(settings))
    folder = tmp_path / "state.founding"
    before = sorted(folder.rglob("*"))
    held = lock.try_acquire(folder / "founding.lock")  # as if it were alive
    assert held is not None
    with pytest.raises(StorageError, match="another process creates a state") as caught:
        found(settings)
    assert caught.value.code == "storage.exists"
    assert sorted(folder.rglob("*")) == before
    held.close()
    found(settings)
    use(settings)


def test_nothing_is_founded_in_the_place_of_what_came_meanwhile(tmp_path, monkeypatch):
    settings = settings_in(tmp_path)

    def mine(_trust: object) -> None:
        settings.state.mkdir()
        (settings.state / "mine").write_text("mine", encoding="utf-8")

    with pytest.raises(StorageError) as caught:
        domain.found(settings, PASSPHRASE, now=datetime.now(UTC), ready=mine)
    assert caught.value.code == "storage.exists"
    assert [path.name for path in settings.state.iterdir()] == ["mine"]
    assert not (tmp_path / "state.founding").exists()


def test_what_is_raised_before_it_counts_undoes_it(tmp_path):
    settings = settings_in(tmp_path)

    def fails(_trust: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        domain.found(settings, PASSPHRASE, now=datetime.now(UTC), ready=fails)
    assert [path for path in tmp_path.rglob("*") if path.name != "anchor"] == []
    found(settings)
    use(settings)
