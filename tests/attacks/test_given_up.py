"""What an adoption gives up in the log counts on, as the copy beside the anchor has it.

Nothing on record says so any more. So no process that dies while it writes the copy, and nobody who
removes files of the state meanwhile, may have the copy dropped; and the number of a later freeze is
above the ones that were given up.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rotations import next_second

from agentguard import ApprovalPending, Decision, Denied, Guard, Requirement, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.domain import administration, adoption, config, rotation
from agentguard.errors import AgentguardError
from agentguard.signing.canonical import loads_object
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import anchor, files, restrictions_file

PASSPHRASE = b"correct horse battery staple"
BOB = Ed25519Signer.from_seed(b"b" * 32)


class Codec:
    """Keeps text."""

    def dumps(self, result: str) -> bytes:
        return result.encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


class Scene:
    """A domain that an adoption takes back to a backup; ``ran`` is what its tool has done."""

    def __init__(self, place: Any, backup: Path) -> None:
        bob = {"principal": "user:bob", "keys": [BOB.public_key.openssh()]}
        tables: Any = {
            **loads_object(place.config.encoded),
            "agents": {"reader": {"authority": "own"}, "payer": {"authority": "own"}},
            "approvers": {"bob": bob},
        }
        place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
        self.place, self.settings, self.state = place, place.config, place.config.state
        self.backup = backup
        self.ran: list[str] = []
        self.asks = False

    def open(self) -> Guard:
        needed = Requirement("a person")
        guard: Guard = self.place.open(
            lambda _: Decision.require_approval(needed) if self.asks else Decision.allow()
        )
        return guard

    def call(self, guard: Guard) -> str:
        try:
            return guard.new_agent("reader").call(guard.tool(name="say")(self.say), "x")
        except (Denied, ApprovalPending) as error:
            return error.code

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

    def pay(self) -> None:
        """Make a journalled call, whose name the copy is to have."""
        with self.open() as guard:
            spec = guard.tool(name="pay")(lambda: None).spec
            site = CallSite("c", thread="t", turn="m")
            invocation = Invocation.bind(spec, lambda: Arguments.of({}), site)
            adapters.run(guard.new_agent("payer"), invocation, lambda: "paid", CallOptions(Codec()))

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

    @property
    def outside(self) -> Path:
        return anchor.log_folder(self.settings.anchor, self.place.take_up().trust.log)


@pytest.fixture
def scene(place, tmp_path) -> Scene:
    return Scene(place, tmp_path / "backup")


# --- freezes --------------------------------------------------------------------------------------


def compromised(scene: Scene) -> None:
    """Have the log's key declared compromised: no thaw counts of what it has signed."""
    next_second()
    now = datetime.now(UTC)
    rotation.rotate(scene.settings, PASSPHRASE, "log", now=now, compromised_since=now)


def unreadable(scene: Scene) -> None:
    """Have the copies lost, so that a new one is made from the log."""
    for folder in (scene.state, scene.outside):
        (folder / restrictions_file.FILE).unlink()


@pytest.mark.parametrize("frozen", [True, False], ids=["freeze", "thaw"])
@pytest.mark.parametrize("lose", [None, compromised, unreadable], ids=["twin", "key", "copies"])
def test_a_running_guard_obeys_what_comes_after_an_adoption(scene, lose, frozen):
    scene.calls()
    scene.save()
    scene.freeze(frozen=True)
    if frozen:
        scene.freeze(frozen=False)
    scene.give_up()
    before, after = ("ran", "domain.frozen") if frozen else ("domain.frozen", "ran")
    with scene.open() as guard:
        assert scene.call(guard) == before
        if lose is not None:
            lose(scene)
        scene.freeze(frozen=frozen)
        assert scene.calls() == after
        assert scene.call(guard) == after
        guard._parts.runtime._ledger.keep()  # the copy says so still, once the guard has kept
        assert scene.calls() == after
    assert scene.calls() == after


# --- the copy and the names beside it -------------------------------------------------------------


def keep_in_a_fork(scene: Scene, between: Callable[[], object]) -> int:
    """Pay and revoke in a process of its own; ``between`` comes once new names lie there alone."""
    child = os.fork()
    if child:
        return child
    real, outside = files.replace, scene.outside
    scene.asks = False

    def replace(path: Path, data: bytes) -> None:
        real(path, data)
        if path.parent == outside and path.name.startswith("restrictions.names"):
            between()

    files.replace = replace
    try:
        scene.pay()
        scene.revoke("user:mallory")
    finally:
        os._exit(0)


def revoked(scene: Scene) -> str:
    scene.save()
    scene.revoke("agent:reader")
    return "delegation.revoked"


def used(scene: Scene) -> str:
    scene.asks = True
    with scene.open() as guard:
        assert scene.call(guard) == "approval.pending"
        (request,) = guard.approvals.pending()
        guard.approvals.approve(request, BOB)
    scene.save()
    assert scene.calls() == "ran"
    return "approval.consumed"


@pytest.mark.parametrize("given_up", [revoked, used])
@pytest.mark.parametrize("dies", [True, False], ids=["dies", "twin"])
def test_a_process_that_dies_between_the_two_files_lets_nothing_run(scene, given_up, dies):
    expected = given_up(scene)
    scene.give_up()
    child = keep_in_a_fork(scene, lambda: os._exit(9) if dies else None)
    _pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (9 if dies else 0)
    (scene.state / restrictions_file.FILE).unlink(missing_ok=True)  # who writes the state may
    ran = list(scene.ran)
    assert scene.calls() == expected
    assert scene.ran == ran


def test_who_opens_while_another_process_writes_sees_the_older_two(scene):
    """Who writes the state has removed the lock on which the opener would wait."""
    revoked(scene)
    scene.give_up()
    told, tell = os.pipe()
    goes_on, go_on = os.pipe()
    child = keep_in_a_fork(scene, lambda: (os.write(tell, b"."), os.read(goes_on, 1)))
    os.close(tell)
    assert os.read(told, 1)
    (scene.state / restrictions_file.FILE).unlink()
    (scene.state / "state.lock").unlink()
    meanwhile = scene.calls()
    os.write(go_on, b".")
    os.waitpid(child, 0)
    assert meanwhile == "delegation.revoked"
    assert scene.calls() == "delegation.revoked"
    for end in (told, goes_on, go_on):
        os.close(end)


def test_a_copy_beside_the_anchor_whose_names_are_lost_lets_nobody_open(scene, tmp_path):
    revoked(scene)
    scene.give_up()
    scene.pay()
    scene.revoke("user:mallory")
    outside = scene.outside
    (names,) = outside.glob("restrictions.names*")
    shutil.copytree(outside, tmp_path / "kept")
    names.unlink()
    (scene.state / restrictions_file.FILE).unlink()
    with pytest.raises(AgentguardError) as refused:
        scene.open()
    assert refused.value.code == "storage.corrupt"
    assert str(names) in str(refused.value)
    assert str(outside / restrictions_file.FILE) in str(refused.value)
    shutil.copy(tmp_path / "kept" / names.name, names)  # the twin: the names are back
    assert scene.calls() == "delegation.revoked"
    names.unlink()
    (outside / restrictions_file.FILE).unlink()
    assert scene.calls() == "delegation.revoked"  # what the file in the state refuses


def test_names_that_a_process_has_left_half_way_are_removed_later(scene):
    child = keep_in_a_fork(scene, lambda: os._exit(9))
    os.waitpid(child, 0)
    for name in ("user:eve", "user:trudy"):
        scene.revoke(name)
        scene.pay()
    for folder in (scene.state, scene.outside):
        assert len(list(folder.glob("restrictions.names*"))) == 1
