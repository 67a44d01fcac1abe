"""The file of revocations is edited, removed or forged, or a crash cuts its writing short.

Nobody who was revoked acts again, and nobody else is revoked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from revoked_agents import ALL_OF_ALICE, PASSPHRASE, Scene, attempt

from agentguard import Decision, Guard
from agentguard.audit.entry import Record
from agentguard.audit.kinds.administration import FreezeEntry, RevocationEntry
from agentguard.audit.restrictions import Restrictions
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, config, keystore, rotation
from agentguard.domain.domain import StateDomain
from agentguard.errors import KeyMaterialError
from agentguard.signing.canonical import dumps, loads, loads_object
from agentguard.storage import files, restrictions_file


class Crash(BaseException):
    """The process dies here."""


# --- what becomes of the file ---------------------------------------------------------------------


def edited(scene: Scene, **changes: Any) -> None:
    document: Any = loads(scene.file.read_bytes())
    document["restrictions"] |= changes
    files.replace(scene.file, dumps(document))


SPOILT: dict[str, tuple[Callable[[Scene, bytes], object], str]] = {
    "removed": (lambda s, _old: s.file.unlink(), "storage.missing"),
    "emptied": (lambda s, _old: files.replace(s.file, b""), "storage.corrupt"),
    "damaged": (lambda s, _old: files.replace(s.file, b'{"restrictions":{'), "storage.corrupt"),
    "a folder": (
        lambda s, _old: (s.file.unlink(), s.file.mkdir()),
        "storage.missing",
    ),
    "rolled back": (lambda s, old: files.replace(s.file, old), "delegation.revoked"),
    "without the name": (lambda s, _old: edited(s, revoked=[]), "storage.corrupt"),
    "with another": (lambda s, _old: edited(s, revoked=["x"]), "storage.corrupt"),
    "as if all were read": (
        lambda s, _old: edited(s, revoked=[], read={"0": [10**9, ""]}),
        "storage.corrupt",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_whatever_becomes_of_the_file_nobody_acts_again(scene, how):
    spoil, expected = SPOILT[how]
    before = scene.file.read_bytes()
    scene.revoke("user:alice")
    assert scene.denied() == ALL_OF_ALICE
    spoil(scene, before)
    with scene.alice:
        assert attempt(scene.worker, scene.read) == expected  # a running process does not forget
    if how == "a folder":
        scene.file.rmdir()
    late = Scene(scene.place)  # and one that is opened now learns it from the log
    with late.guard:
        assert late.denied() == ALL_OF_ALICE
    assert scene.denied() == ALL_OF_ALICE


@pytest.mark.parametrize(
    "changes", [{"frozen": False}, {"frozen": False, "sequence": 99}, {"frozen": False, "read": []}]
)
def test_no_edit_of_the_file_is_a_thaw(scene, changes):
    scene.freeze()
    assert set(scene.calls().values()) == {"domain.frozen"}
    edited(scene, **changes)
    assert set(scene.calls().values()) <= {"domain.frozen", "storage.corrupt"}
    with closing(scene.place.open()) as late:
        tool = late.tool(name="t")(lambda: "ok")
        assert attempt(late.new_agent("robot"), tool) == "domain.frozen"
    assert set(scene.calls().values()) == {"domain.frozen"}
    scene.freeze(frozen=False)
    assert set(scene.calls().values()) == {"ok"}


@pytest.mark.parametrize("edited", [False, True])
def test_a_thread_forgets_nothing_that_another_learns_while_it_reads(scene, monkeypatch, edited):
    known, old, load = (
        scene.guard._parts.runtime._ports.revocations,
        scene.file.read_bytes(),
        restrictions_file.load,
    )
    alice, refused = {"user:alice"}, []

    def interrupted(state: Any) -> restrictions_file.SignedRestrictions:
        monkeypatch.setattr(restrictions_file, "load", load)
        with ThreadPoolExecutor(1) as other:
            refused.append(other.submit(known.refusal, alice).result())
        if edited:
            scene.file.write_bytes(old)
        return load(state)

    scene.revoke("user:alice")
    monkeypatch.setattr(restrictions_file, "load", interrupted)
    refused += [known.refusal(alice), known.refusal(alice)]
    assert [code for code, _reason in refused] == ["delegation.revoked"] * 3


@pytest.mark.parametrize("edited", [False, True])
def test_an_edit_before_the_first_call_brings_nobody_back(durable, edited):
    before = Scene(durable)
    old = before.file.read_bytes()  # the log's key has signed it
    before.revoke("user:alice")
    before.guard.close()
    after = Scene(durable)
    with after.guard:
        if edited:
            after.file.write_bytes(old)
        assert after.denied() == ALL_OF_ALICE


def test_an_old_state_that_is_restored_beside_a_newer_log(scene):
    """The file and the counts of an old backup: what the log says counts."""
    old = scene.place.config.base / "old"
    old.mkdir()
    shutil.copy(scene.file, old)
    scene.revoke("user:alice")
    scene.freeze()
    scene.freeze(frozen=False)
    shutil.copy(old / scene.file.name, scene.file)
    late = Scene(scene.place)
    with late.guard:
        assert late.denied() == ALL_OF_ALICE
        assert loads_object(scene.file.read_bytes())["restrictions"] != loads_object(
            (old / scene.file.name).read_bytes()
        )


@pytest.mark.parametrize("restored", [True, False])
def test_an_old_log_that_is_restored_beside_a_newer_file(durable, restored):
    """It says how far it was read, and means another. Without an anchor nobody refuses them."""
    tables = {**loads_object(durable.config.encoded), "anchor": ""}
    durable.config = config.parse(tables, source="agentguard.toml", base=durable.config.base)
    with Scene(durable).guard:
        pass
    state, old = durable.config.state, durable.config.base / "old"
    old.mkdir()
    for path in state.glob("log.sqlite*"):
        shutil.copy(path, old)
    before = Scene(durable)
    with before.guard:
        before.calls()
    before.revoke("user:bob")
    if restored:
        for path in state.glob("log.sqlite*"):
            path.unlink()
        for path in old.iterdir():
            shutil.copy(path, state)
    before.revoke("user:alice")
    late = Scene(durable)
    with late.guard:
        of_bob = {name.replace("alice", "bob") for name in ALL_OF_ALICE}
        assert late.denied() == ALL_OF_ALICE | of_bob
        late.freeze()
        assert set(late.calls().values()) == {"domain.frozen"}


# --- forged entries, and crashes ------------------------------------------------------------------


def written(scene: Scene, *records: Record) -> None:
    """Put entries in the log, as whoever can write it does; and have them read."""
    home = scene.place.take_up()
    with closing(home.open_log(datetime.now(UTC))) as log:
        for record in records:
            log.append(record)
    home.revocations()


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
def test_what_the_administrator_has_not_signed_counts_for_nothing(scene, stranger, how):
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
        spoil(FreezeEntry.new(signer, "acme.example", frozen=True, sequence=7, note="n", at=at)),
    )
    assert scene.denied() == set()
    late = Scene(scene.place)
    with late.guard:
        assert late.denied() == set()
    found = scene.place.examine().problems
    assert len(found) == 2  # and audit verify names both
    scene.revoke("user:alice")
    assert scene.denied() == ALL_OF_ALICE


def test_the_twin_of_the_forged_ones(scene):
    admin = keystore.load_key(scene.place.config.state, "admin", PASSPHRASE)
    at = timestamp(datetime.now(UTC))
    written(scene, RevocationEntry.new(admin, "user:alice", note="n", at=at))
    assert scene.denied() == ALL_OF_ALICE
    written(scene, FreezeEntry.new(admin, "acme.example", frozen=True, sequence=7, note="n", at=at))
    assert set(scene.calls().values()) == {"domain.frozen"}
    assert scene.place.examine().problems == ()


def test_a_crash_between_the_entry_and_the_file(scene, monkeypatch):
    """It is in the log: whoever opens the state next puts it in force everywhere."""

    def die(_home):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(StateDomain, "revocations", die)
        with pytest.raises(Crash):
            scene.revoke("user:alice")
        with pytest.raises(Crash):
            scene.freeze()
    late = scene.place.open()
    with late:
        tool = late.tool(name="t")(lambda: "ok")
        assert attempt(late.new_agent("robot"), tool) == "domain.frozen"
    assert set(scene.calls().values()) == {"domain.frozen"}
    scene.freeze(frozen=False)
    assert scene.denied() == ALL_OF_ALICE
    assert scene.place.examine().problems == ()


def test_a_crash_while_the_file_is_written(scene, monkeypatch):
    def die(*_arguments):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(files, "_sync", die)
        with suppress(Crash):
            home = scene.place.take_up()
            restrictions_file.save(
                scene.place.config.state,
                home.trust.log,
                Restrictions(frozenset({"half"})),
                home.log_key,
            )
    late = Scene(scene.place)
    with late.guard:
        assert late.denied() == set()
        scene.revoke("user:alice")
        assert late.denied() == ALL_OF_ALICE == scene.denied()


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
