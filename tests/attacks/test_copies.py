"""A copy of a state shares the anchor with the original, and must not stop the original.

The copies are made as an operator makes them: a recursive copy of the project's folder, a move, a
backup that is put back. The anchor lies outside the project's folder, unless a test says otherwise.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from embedded_parts import runtime_of

from agentguard import Decision, Denied, StorageError
from agentguard.audit.kinds.administration import AdoptionEntry
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, adoption, config, domain, keystore, rotation
from agentguard.domain.adoption import Difference
from agentguard.domain.config import Config
from agentguard.domain.verify import examine
from agentguard.errors import KeyMaterialError
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.identity.trust import TrustDocument
from agentguard.policy.function import FunctionEngine
from agentguard.storage import anchor, claim, files
from agentguard.store.reader import StoredLog
from agentguard.store.state_log import open_log

PASSPHRASE = b"correct horse"


def settings_in(project: Path, *, anchored: str = "../anchor") -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": ".agentguard",
        "anchor": anchored,
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source=str(project / "agentguard.toml"), base=project)


def opened(settings: Config) -> Guard:
    home = domain.take_up(settings, PASSPHRASE)
    return Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home))


def call(settings: Config) -> None:
    with opened(settings) as guard:
        guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), "x")


def refused(settings: Config, code: str) -> str:
    with pytest.raises(StorageError) as caught:
        call(settings)
    assert caught.value.code == code
    return str(caught.value)


def founded(project: Path, *, anchored: str = "../anchor") -> Config:
    project.mkdir()
    settings = settings_in(project, anchored=anchored)
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    call(settings)
    return settings


@pytest.fixture
def original(tmp_path) -> Config:
    """A project whose log has a call."""
    return founded(tmp_path / "project")


@pytest.fixture
def copied(original, tmp_path) -> Config:
    """``cp -r project copy``"""
    shutil.copytree(original.base, tmp_path / "copy")
    return settings_in(tmp_path / "copy")


def files_of(*folders: Path | None) -> dict[Path, bytes]:
    found = (path for folder in folders if folder is not None for path in folder.rglob("*"))
    return {path: path.read_bytes() for path in found if path.is_file() and path.stat().st_size}


def report(settings: Config):
    trust = keystore.load_trust(settings.state)
    return examine(StoredLog.of(settings.state), trust, anchor=settings.anchor)


def sound(settings: Config) -> None:
    found = report(settings)
    assert (found.problems, found.anchored) == ((), True)


# --- a copy ---------------------------------------------------------------------------------------


def test_a_copy_is_refused_before_it_writes_and_the_original_goes_on(original, copied):
    before = files_of(copied.state, original.anchor)
    for attempt in (
        lambda: call(copied),
        lambda: rotation.rotate(copied, PASSPHRASE, "log", now=datetime.now(UTC)),
    ):
        with pytest.raises(StorageError, match="agentguard adopt") as caught:
            attempt()
        assert caught.value.code == "storage.copied"
        assert str(original.state) in str(caught.value)
    assert files_of(copied.state, original.anchor) == before
    call(original)
    sound(original)


def test_a_copy_is_refused_while_the_original_is_open_and_in_threads(original, copied):
    with opened(original) as guard, ThreadPoolExecutor(4) as pool:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        for failure in [pool.submit(call, copied) for _ in range(4)]:
            error = failure.exception()
            assert isinstance(error, StorageError)
            assert error.code == "storage.copied"
        agent.call(tool, "x")
    sound(original)


def test_a_moved_project_opens_and_a_copy_of_it_does_not(original, tmp_path):
    original.base.rename(tmp_path / "moved")
    moved = settings_in(tmp_path / "moved")
    call(moved)
    sound(moved)
    shutil.copytree(moved.base, original.base)  # at the place that the state had before
    assert str(moved.state) in refused(original, "storage.copied")
    call(moved)
    sound(moved)


def test_a_state_that_was_copied_back_is_told_of_a_place_where_no_state_is(original, tmp_path):
    original.base.rename(tmp_path / "moved")
    call(settings_in(tmp_path / "moved"))
    shutil.copytree(tmp_path / "moved", original.base)  # mv to another file system, and back
    shutil.rmtree(tmp_path / "moved")
    said = refused(original, "storage.copied")
    assert "There is no state now" in said
    assert "Work there" not in said
    adopt(original)
    call(original)
    sound(original)


def test_a_stolen_backup_signs_nothing_without_the_passphrase(original, tmp_path):
    backup = tmp_path / "stolen"
    shutil.copytree(original.base, backup)
    kept = b"".join(one.read_bytes() for one in backup.rglob("*") if one.is_file())
    uses = [one.name for one in (original.state / keystore.KEYS).iterdir()]
    assert "log" in uses
    for use in uses:
        data = (backup / ".agentguard" / keystore.KEYS / use).read_bytes()
        key = load_ssh_private_key(data, PASSPHRASE)
        assert isinstance(key, Ed25519PrivateKey)
        assert key.private_bytes_raw() not in kept
        with pytest.raises(KeyMaterialError) as caught:
            keystore.load_key(backup / ".agentguard", use, b"a guess")
        assert caught.value.code == "key.passphrase"
        keystore.load_key(backup / ".agentguard", use, PASSPHRASE)


def test_a_backup_that_is_put_back_at_its_path_opens(original, tmp_path):
    shutil.copytree(original.state, tmp_path / "backup")
    shutil.rmtree(original.state)
    shutil.copytree(tmp_path / "backup", original.state)
    with ThreadPoolExecutor(4) as pool:  # processes of a service that starts again
        list(pool.map(call, [original] * 4))
    sound(original)


def test_of_a_state_moved_aside_and_its_restored_backup_the_first_to_open_goes_on(
    original, tmp_path
):
    original.base.rename(tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", original.base)
    call(original)
    assert str(original.state) in refused(settings_in(tmp_path / "aside"), "storage.copied")


def test_an_anchor_that_is_copied_with_the_state_is_not_shared(tmp_path):
    settings = founded(tmp_path / "project", anchored="anchor")
    shutil.copytree(settings.base, tmp_path / "copy")
    both = settings, settings_in(tmp_path / "copy", anchored="anchor")
    for each in both * 2:
        call(each)
        sound(each)
    shutil.copytree(both[1].state, tmp_path / "third" / ".agentguard")
    third = settings_in(tmp_path / "third", anchored="../copy/anchor")
    assert str(both[1].state) in refused(third, "storage.copied")


def test_an_anchor_without_a_record_takes_the_first_state_that_opens(original, copied):
    """One that was kept before there were records, or whose record somebody has removed."""
    (record,) = original.anchor.glob("*/state.json")
    record.unlink()
    call(original)
    refused(copied, "storage.copied")


def test_a_state_under_a_symbolic_link_is_the_state(original, tmp_path):
    (tmp_path / "link").symlink_to(original.base)
    call(settings_in(tmp_path / "link"))
    call(original)
    sound(original)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"state": 1, "anchors": 2}', b"\xff"])
def test_a_damaged_record_is_refused_with_what_to_do(original, content):
    (record,) = original.anchor.glob("*/state.json")
    kept = record.read_bytes()
    record.write_bytes(content)
    assert "agentguard trust pin" in refused(original, "anchor.damaged")
    record.write_bytes(kept)
    call(original)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_an_anchor_that_can_not_be_written_does_not_record_a_move(original, tmp_path):
    (folder,) = original.anchor.iterdir()
    folder.chmod(0o500)
    try:
        call(original)  # nothing is to be recorded
        original.base.rename(tmp_path / "moved")
        refused(settings_in(tmp_path / "moved"), "anchor.unwritable")
    finally:
        folder.chmod(0o700)


def test_a_path_that_is_no_utf_8_is_recorded(tmp_path):
    project = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    settings = founded(project)
    shutil.copytree(project, tmp_path / "copy")
    refused(settings_in(tmp_path / "copy"), "storage.copied")
    call(settings)


# --- adopted --------------------------------------------------------------------------------------


def adopt(settings: Config) -> Difference:
    different = adoption.compare(settings)
    adopt_as(settings, different)
    return different


def is_frozen(settings: Config, trust: TrustDocument) -> bool:
    keys = partial(trust.keys_for, "log")
    with closing(open_log(settings.state, settings.anchor, trust.log, keys)) as log:
        return log.look(lambda state: state.is_frozen)


def adopt_as(settings: Config, shown: Difference) -> None:
    now = datetime.now(UTC)
    adoption.adopt(settings, PASSPHRASE, shown, note="disk lost", now=now)
    if shown.lost or shown.unanchored:  # then all calls are frozen
        administration.freeze(settings, PASSPHRASE, frozen=False, note="looked", now=now)


@pytest.fixture
def behind(original, tmp_path) -> Config:
    """A backup was put back, and the log had a call more."""
    shutil.copytree(original.state, tmp_path / "backup")
    call(original)
    shutil.rmtree(original.state)
    (tmp_path / "backup").rename(original.state)
    return original


def test_a_copy_is_adopted_and_the_original_refused_from_then_on(original, copied):
    different = adopt(copied)
    assert (different.original, different.lost) == (str(original.state), None)
    call(copied)
    sound(copied)
    assert report(copied).adoptions == ()  # nothing was lost
    assert str(copied.state) in refused(original, "storage.copied")
    trust = keystore.load_trust(original.state)
    with pytest.raises(StorageError, match="--note TEXT here") as caught:
        is_frozen(original, trust)  # who only reads is told so, too
    assert caught.value.code == "storage.copied"
    assert not is_frozen(copied, trust)
    # and back: what the copy has written since is given up
    assert adopt(original).lost
    call(original)
    sound(original)
    refused(copied, "storage.copied")


def test_the_original_of_a_copy_that_was_opened_is_adopted(original, copied):
    """The copy was opened before there were records, and has moved the anchor."""
    (record,) = original.anchor.glob("*/state.json")
    record.unlink()
    call(copied)
    assert "agentguard adopt" in refused(original, "storage.copied")
    lost = adopt(original).lost
    assert lost is not None
    call(original)
    sound(original)
    ((_index, said),) = report(original).adoptions
    assert (said.adoption.note, said.adoption.lost) == ("disk lost", lost)


def test_a_state_behind_its_anchor_is_adopted_on_record_for_ever(behind):
    seen = anchor.head_path(behind.anchor, keystore.load_trust(behind.state).log)
    before = seen.read_bytes()
    assert "agentguard adopt" in refused(behind, "storage.rolled_back")
    assert seen.read_bytes() == before
    assert adopt(behind).lost
    for _ in range(2):
        call(behind)
        sound(behind)
        ((_index, said),) = report(behind).adoptions
        lost = said.adoption.lost
        assert lost is not None
        assert lost.entries < lost.anchored_size
    shutil.copytree(behind.state, behind.base / "later")
    call(behind)
    shutil.rmtree(behind.state)
    (behind.base / "later").rename(behind.state)
    refused(behind, "storage.rolled_back")  # the anchor goes on as before


def test_a_sound_state_at_its_place_is_not_different(original):
    assert not adoption.compare(original)


def test_what_was_revoked_before_the_backup_stays_revoked(original, tmp_path):
    now = datetime.now(UTC)
    administration.revoke(original, PASSPHRASE, "agent:reader", note="stolen", now=now)
    shutil.copytree(original.state, tmp_path / "backup")
    administration.revoke(original, PASSPHRASE, "user:eve", note="lost", now=now)
    shutil.rmtree(original.state)
    (tmp_path / "backup").rename(original.state)
    assert adopt(original).lost
    with pytest.raises(Denied) as caught:
        call(original)
    assert caught.value.code == "delegation.revoked"


def test_an_adoption_cut_short_is_made_anew(behind, monkeypatch):
    anchors = files_of(behind.anchor)
    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adopt(behind)
    assert files_of(behind.anchor) == anchors
    refused(behind, "storage.rolled_back")
    assert adopt(behind).lost
    call(behind)
    sound(behind)
    assert len(report(behind).adoptions) == 2


def edited(settings: Config) -> None:
    with closing(sqlite3.connect(settings.state / "log.sqlite")) as database, database:
        text = "replace(CAST(body AS TEXT), 'reader', 'writer')"
        database.execute(f"UPDATE entry SET body = CAST({text} AS BLOB)")  # noqa: S608


def removed(settings: Config) -> None:
    (settings.state / "log.sqlite").unlink()


@pytest.mark.parametrize(
    ("spoil", "code"), [(edited, "storage.corrupt"), (removed, "storage.missing")]
)
def test_a_state_that_is_not_whole_is_not_adopted(behind, spoil, code):
    spoil(behind)
    anchors = files_of(behind.anchor)
    with pytest.raises(StorageError) as caught:
        adopt(behind)
    assert caught.value.code == code
    assert files_of(behind.anchor) == anchors


def test_a_state_is_not_adopted_without_the_passphrase(behind):
    anchors = files_of(behind.anchor)
    different = adoption.compare(behind)
    with pytest.raises(KeyMaterialError):
        adoption.adopt(behind, b"wrong", different, note="", now=datetime.now(UTC))
    assert files_of(behind.anchor) == anchors


def test_a_copy_is_not_adopted_while_the_original_is_written(original, copied):
    with opened(original) as guard:
        agent = guard.new_agent("reader")
        size = report(copied).entries
        with pytest.raises(StorageError, match="stop them") as caught:
            adopt(copied)
        assert caught.value.code == "storage.used"
        assert report(copied).entries == size
        agent.call(guard.tool(name="say")(lambda what: what), "x")
    adopt(copied)
    call(copied)


def test_a_state_in_which_a_process_writes_is_not_adopted(behind):
    anchors = files_of(behind.anchor)
    give_back = claim.take(behind.state, alone=False)  # as a guard does
    with pytest.raises(StorageError, match="stop them") as caught:
        adopt(behind)
    give_back()
    assert caught.value.code == "storage.used"
    assert files_of(behind.anchor) == anchors
    again = adopt(behind)
    assert (again.lost is not None, again.unanchored) == (True, None)


def test_the_originals_last_call_before_an_adoption_is_lost_on_record(original, copied):
    call(original)
    adopt(copied)
    ((_index, said),) = report(copied).adoptions
    assert said.adoption.lost is not None


def test_a_call_of_the_original_after_the_loss_was_shown_is_not_lost_unseen(original, copied):
    shown = adoption.compare(copied)
    call(original)
    anchors = files_of(original.anchor)
    with pytest.raises(StorageError, match="has changed since the comparison") as caught:
        adopt_as(copied, shown)
    assert caught.value.code == "storage.locked"
    assert files_of(original.anchor) == anchors
    assert adopt(copied).lost  # shown anew
    call(copied)
    sound(copied)


def test_the_original_is_not_written_between_the_comparison_and_the_adoption(
    original, copied, monkeypatch
):
    real, late = adoption._require_unchanged, []

    def required(*values):
        real(*values)
        late.append(pool.submit(call, original))
        with suppress(TimeoutError, StorageError):
            late[0].result(0.3)

    monkeypatch.setattr(adoption, "_require_unchanged", required)
    with ThreadPoolExecutor(1) as pool:
        adopt(copied)
        error = late[0].exception()
    assert isinstance(error, StorageError)  # its call has not run: nothing was lost unseen
    call(copied)
    sound(copied)


def put_back(older: Path, settings: Config) -> None:
    shutil.rmtree(settings.state)
    shutil.copytree(older, settings.state)


@pytest.mark.parametrize("moment", ["shown", "compared", "signed"])
def test_an_older_state_that_is_put_in_while_it_is_adopted_is_not_adopted(
    original, tmp_path, monkeypatch, moment
):
    """Who can write the state has the time in which the administrator reads and confirms."""
    oldest = tmp_path / "oldest"
    shutil.copytree(original.state, oldest)
    call(original)
    shutil.copytree(original.state, tmp_path / "backup")
    call(original)
    put_back(tmp_path / "backup", original)
    anchors = files_of(original.anchor)
    shown = adoption.compare(original)
    with monkeypatch.context() as patched:
        if moment == "shown":
            put_back(oldest, original)
        else:
            name = {"compared": "_require_unchanged", "signed": "timestamp"}[moment]
            real = getattr(adoption, name)

            def then(*values):
                done = real(*values)
                put_back(oldest, original)
                return done

            patched.setattr(adoption, name, then)
        with pytest.raises(StorageError) as caught:
            adopt_as(original, shown)
    # SQLite may miss its file first, and a commit another file in its place
    expected = {"storage.locked", "storage.missing", "storage.corrupt"}
    assert caught.value.code in expected
    assert files_of(original.anchor) == anchors
    assert report(original).adoptions == ()  # nothing was signed in the older state
    put_back(tmp_path / "backup", original)
    adopt_as(original, shown)  # what was shown
    call(original)
    sound(original)


def test_a_guard_that_runs_in_the_original_stops_once_the_copy_is_adopted(
    original, copied, clock, monkeypatch
):
    monkeypatch.setattr(adoption, "_alone", lambda *_, **__: nullcontext())  # as on another machine
    with opened(original) as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "x")
        runtime_of(guard).flush()
        adopt(copied)
        clock.advance(minutes=6)
        with pytest.raises(Denied) as caught:
            agent.call(tool, "x")
        assert caught.value.code == "storage.copied"
    call(copied)
    sound(copied)


@pytest.mark.parametrize("by", ["log", "issuer"])
def test_an_adoption_that_the_admin_key_has_not_signed_is_a_finding(original, by):
    home = domain.take_up(original, PASSPHRASE)
    signer = home.log_key if by == "log" else home.issuer
    log = home.open_log(datetime.now(UTC))
    at = timestamp(log.last_at)
    written = log.append(
        AdoptionEntry.new(signer, "acme.example", lost=None, unanchored=None, note="", at=at)
    )
    log.close()
    assert [problem.index for problem in report(original).problems] == [written.index]
