"""Somebody edits what the state says of revocations, or puts an old state back.

Nobody who was revoked acts again, and nobody else is revoked.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from revoked_agents import ALL_OF_ALICE, PASSPHRASE, Scene, attempt

from agentguard import Decision, Guard, StorageError
from agentguard.audit.entry import Record
from agentguard.audit.kinds.administration import FreezeEntry, RevocationEntry
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, keystore, rotation
from agentguard.errors import KeyMaterialError
from agentguard.signing.canonical import dumps, loads_object
from agentguard.store.sqlite import path_in


def edited(scene: Scene, *statements: str) -> None:
    """Do what somebody with SQLite and the right to write does; ``old`` is the state before."""
    with closing(sqlite3.connect(path_in(scene.place.config.state))) as editor:
        editor.execute("ATTACH ? AS old", (str(old_log(scene)),))
        for statement in statements:
            editor.execute(statement)
        editor.commit()


def old_log(scene: Scene) -> Path:
    return Path(scene.place.config.base) / "old.sqlite"


def keep_old(scene: Scene) -> None:
    with closing(sqlite3.connect(path_in(scene.place.config.state))) as reader:
        reader.execute("VACUUM INTO ?", (str(old_log(scene)),))


def put_back(scene: Scene) -> None:
    """Put the old log back in its place."""
    path = path_in(scene.place.config.state)
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()
    shutil.copy(old_log(scene), path)


OLD_MAP = ("DELETE FROM map", "INSERT INTO map SELECT * FROM old.map")
OLD_HEAD = ("DELETE FROM head", "INSERT INTO head SELECT * FROM old.head")
EDITS: dict[str, Callable[[Scene], object]] = {
    "no map": lambda s: edited(s, "DELETE FROM map"),
    "the old map": lambda s: edited(s, *OLD_MAP),
    "another map": lambda s: edited(s, "UPDATE map SET node = CAST(node || x'00' AS BLOB)"),
    "the old head": lambda s: edited(s, *OLD_HEAD),
    "the old head and map": lambda s: edited(s, *OLD_MAP, *OLD_HEAD),
    "the old log": put_back,
}
REFUSED = {"storage.corrupt", "storage.rolled_back"}


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("brake", ["delegation.revoked", "domain.frozen"])
def test_whatever_becomes_of_the_state_nobody_acts_again(durable, how, brake):
    keep = Scene(durable)  # a running process, which does not forget
    keep_old(keep)
    if brake == "domain.frozen":
        keep.freeze()
    else:
        keep.revoke("user:alice")
    with keep.alice:
        assert attempt(keep.worker, keep.read) == brake
    EDITS[how](keep)
    with keep.alice:
        assert attempt(keep.worker, keep.read) in {brake, *REFUSED}
        assert attempt(keep.helper, keep.read) in {brake, *REFUSED}
    found: set[str] = set()
    try:  # and a new one, which has the anchor
        late = Scene(durable).calls()
        found |= {late[name] for name in ALL_OF_ALICE}
    except StorageError as refused:
        found.add(refused.code)
    assert found <= {brake, *REFUSED}
    with suppress(StorageError):
        keep.guard.close()


def test_the_twin_that_is_put_back_as_it_was_goes_on(scene):
    keep_old(scene)
    edited(scene, *OLD_MAP)  # as it is
    assert set(scene.calls().values()) == {"ok"}


@pytest.mark.parametrize("name", ["user:alice", "user:mallory"])
def test_who_is_revoked_while_the_policy_decides_runs_nothing(durable, name):
    """The commit of the authorization looks once more."""
    scene = Scene(durable)
    ran: list[str] = []

    def decide(_document: Any) -> Decision:
        scene.revoke(name)
        return Decision.allow()

    with scene.guard, durable.open(decide) as guard:
        tool = guard.tool(name="read", requires=["read"])(lambda: ran.append("read"))
        worker = guard.new_agent("worker").under(guard.resume(scene.alice.dumps()))
        became = attempt(worker, tool)
    is_hers = name == "user:alice"
    assert became == ("delegation.revoked" if is_hers else "None")
    assert ran == ([] if is_hers else ["read"])
    assert durable.examine().problems == ()


# --- forged entries -------------------------------------------------------------------------------


def written(scene: Scene, *records: Record) -> None:
    """Put entries in the log, as whoever has its key does."""
    home = scene.place.take_up()
    with closing(home.open_log(datetime.now(UTC))) as log:
        for record in records:
            log.append(record)


def unsigned(record: Record) -> Record:
    members = loads_object(record.body)
    statement: Any = members["statement"]
    statement["signatures"] = []
    return record._replace(body=dumps(members))


def altered(record: Record) -> Record:
    members: Any = loads_object(record.body)
    sig = members["statement"]["signatures"][0]["sig"]
    members["statement"]["signatures"][0]["sig"] = ("B" if sig[0] == "A" else "A") + sig[1:]
    return record._replace(body=dumps(members))


FORGED = ["by a stranger", "by the issuer", "by the log", "unsigned", "altered"]


@pytest.mark.parametrize("how", FORGED)
def test_what_the_administrator_has_not_signed_is_found(scene, stranger, how):
    """Whoever has the log's key vouches for what denies calls, until somebody verifies the log."""
    home: Any = scene.place.take_up()
    admin = keystore.load_key(scene.place.config.state, "admin", PASSPHRASE)
    signer = {
        "by a stranger": stranger,
        "by the issuer": home.issuer,
        "by the log": home.log_key,
    }.get(how, admin)
    spoil = {"unsigned": unsigned, "altered": altered}.get(how, lambda record: record)
    at = timestamp(datetime.now(UTC))
    written(
        scene,
        spoil(RevocationEntry.new(signer, "user:alice", note="n", at=at)),
        spoil(FreezeEntry.new(signer, "acme.example", frozen=False, sequence=7, note="n", at=at)),
    )
    assert len(scene.place.examine().problems) == 2


def test_the_twin_of_the_forged_ones(scene):
    admin = keystore.load_key(scene.place.config.state, "admin", PASSPHRASE)
    at = timestamp(datetime.now(UTC))
    written(scene, RevocationEntry.new(admin, "user:alice", note="n", at=at))
    assert scene.denied() == ALL_OF_ALICE
    written(scene, FreezeEntry.new(admin, "acme.example", frozen=True, sequence=7, note="n", at=at))
    found = scene.calls()
    assert {found.pop(name) for name in ALL_OF_ALICE} == {"delegation.revoked"}
    assert set(found.values()) == {"domain.frozen"}
    assert scene.place.examine().problems == ()


def test_a_revocation_after_the_admin_key_was_rotated(scene):
    """A guard that runs since before knows the new key's word when it hears it."""
    scene.freeze()
    assert set(scene.calls().values()) == {"domain.frozen"}
    for use in ("admin", "log"):
        rotation.rotate(scene.place.config, PASSPHRASE, use, now=datetime.now(UTC))
    scene.freeze(frozen=False)
    assert set(scene.calls().values()) == {"ok"}
    scene.revoke("user:alice")
    assert scene.denied() == ALL_OF_ALICE
    assert scene.place.examine().problems == ()


def test_without_the_passphrase_nothing_is_revoked(scene):
    with pytest.raises(KeyMaterialError):
        administration.revoke(
            scene.place.config, b"wrong", "user:alice", note="n", now=datetime.now(UTC)
        )
    assert scene.denied() == set()


def test_a_guard_in_memory_counts_and_has_nothing_to_revoke():
    with Guard.ephemeral(lambda _d: Decision.allow()) as guard:
        tool = guard.tool(name="t")(lambda: "ok")
        agent = guard.new_agent("any")
        assert attempt(agent, tool) == "ok"
        with guard.delegate("user:alice", scope=["a"], max_calls=2):
            assert [attempt(agent, tool) for _ in range(3)] == ["ok", "ok", "calls.exceeded"]
        assert attempt(agent, tool) == "ok"
        assert guard.verify().ok
