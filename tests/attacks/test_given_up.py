"""What an adoption gives up in the log: revocations, and the numbers of freezes."""

from __future__ import annotations

import shutil
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import Denied, Guard
from agentguard.audit.entry import Entry
from agentguard.domain import administration, adoption, config
from agentguard.errors import AgentguardError, VerificationError
from agentguard.signing.canonical import loads_object

PASSPHRASE = b"correct horse battery staple"


class Scene:
    """A domain that an adoption takes back to a backup; ``ran`` is what its tool has done."""

    def __init__(self, place: Any, backup: Path) -> None:
        tables: Any = {
            **loads_object(place.config.encoded),
            "agents": {"reader": {"authority": "own"}, "payer": {"authority": "own"}},
        }
        place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
        self.place, self.settings, self.state = place, place.config, place.config.state
        self.backup = backup
        self.ran: list[str] = []

    def open(self) -> Guard:
        guard: Guard = self.place.open()
        return guard

    def call(self, guard: Guard) -> str:
        try:
            return guard.new_agent("reader").call(guard.tool(name="say")(self.say), "x")
        except Denied as error:
            return error.code

    def call_as(self, agent: str) -> str:
        """Open a guard, and call as another agent."""
        with self.open() as guard:
            return str(guard.new_agent(agent).call(guard.tool(name="say")(self.say), "x"))

    def newest(self, kind: str) -> Entry:
        """Return the newest entry of a kind."""
        return [one for one in self.place.seen().entries if one.kind == kind][-1]

    def say(self, what: str) -> str:
        self.ran.append(what)
        return "ran"

    def calls(self) -> str:
        """Open a guard, and call."""
        try:
            with self.open() as guard:
                return self.call(guard)
        except AgentguardError as error:
            return error.code

    def freeze(self, *, frozen: bool) -> None:
        administration.freeze(
            self.settings, PASSPHRASE, frozen=frozen, note="n", now=datetime.now(UTC)
        )

    def revoke(self, name: str) -> None:
        administration.revoke(self.settings, PASSPHRASE, name, note="n", now=datetime.now(UTC))

    def save(self) -> None:
        shutil.copytree(self.state, self.backup)

    def give_up(self) -> None:
        """Put the backup back, and adopt it."""
        shutil.rmtree(self.state)
        shutil.copytree(self.backup, self.state)
        different = adoption.compare(self.settings)
        assert different.lost
        adoption.adopt(self.settings, PASSPHRASE, different, note="n", now=datetime.now(UTC))


@pytest.fixture
def scene(place, tmp_path) -> Scene:
    return Scene(place, tmp_path / "backup")


def test_every_call_is_frozen_until_an_administrator_has_looked(scene):
    """Among the lost entries a revocation may be: nobody who relies on it acts by himself."""
    assert scene.calls() == "ran"
    scene.save()
    scene.revoke("agent:reader")
    scene.give_up()
    assert scene.calls() == "domain.frozen"
    scene.revoke("agent:reader")  # again, as adopt says
    scene.freeze(frozen=False)
    assert scene.calls() == "delegation.revoked"
    assert scene.call_as("payer") == "ran"  # the twin
    assert scene.ran == ["x", "x"]


@pytest.mark.parametrize("is_old", [True, False], ids=["a lost thaw", "twin"])
def test_a_lost_thaw_thaws_nothing_when_it_is_written_again(scene, is_old):
    """By a thief of the log's key, who has the administrator's signature from the old log."""
    scene.calls()
    scene.save()
    scene.freeze(frozen=True)
    scene.freeze(frozen=False)
    thaw = scene.newest("freeze")
    scene.give_up()
    assert scene.calls() == "domain.frozen"
    if is_old:
        log = scene.place.take_up().open_log(datetime.now(UTC))
        with closing(log), pytest.raises(VerificationError):
            log.append(thaw.record())
        assert scene.calls() == "domain.frozen"
    else:
        scene.freeze(frozen=False)
        assert scene.calls() == "ran"
