"""The anchor of a store keeps the newest head that it was told, and refuses a damaged file."""

from __future__ import annotations

import os

import pytest
from store_place import FIRST, KEYS, LOG, SIGNER, add

from agentguard.audit import checkpoint, head, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.head import Head
from agentguard.audit.map import EMPTY_ROOT
from agentguard.errors import AgentguardError, StorageError
from agentguard.store.anchor import Anchor

NOTE = FIRST
PUBLIC = (SIGNER.public_key,)
AT = "2026-12-02T00:00:00.000000Z"


def note(size: int, log: str = LOG, signer=SIGNER) -> bytes:
    return head.sign(Head(log, size, merkle.leaf_hash(b""), EMPTY_ROOT, AT), signer)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "outside" / "anchor"


@pytest.fixture
def anchor(path):
    return Anchor(path, LOG, lambda: KEYS)


def code_of(call, *given) -> str:
    with pytest.raises(StorageError) as caught:
        call(*given)
    return caught.value.code


def test_it_never_goes_back(anchor, path):
    assert anchor.read() is None
    other = Anchor(path, LOG, lambda: KEYS)
    for size in (5, 3, 5, 12, 7):
        (anchor if size % 2 else other).write(size, note(size))
        other.settle()
    kept = anchor.read()
    assert kept is not None
    assert kept.size == 12


@pytest.mark.parametrize("cut", [1, 50, -1])
def test_a_damaged_file_stops_whoever_writes(anchor, path, cut):
    anchor.write(5, note(5))
    path.write_bytes(note(5)[:cut])
    for look in (anchor.read, lambda: (anchor.write(6, note(6)), anchor.settle())):
        assert code_of(look) == "anchor.damaged"
    path.write_bytes(note(5))
    anchor.settle()
    assert anchor.read().size == 6


def test_what_another_key_or_log_has_signed_is_damage(anchor, path, stranger):
    anchor.write(5, note(5))
    kept = path.read_bytes()
    for forged in (
        note(5, "test.example/log/other"),
        note(5, signer=stranger),
        checkpoint.sign_note(Checkpoint(LOG, 5, merkle.leaf_hash(b"")).body(), LOG, SIGNER),
        kept + b"\n",
        kept.replace(b"\n5\n", b"\n6\n"),
        b"\x00",
    ):
        path.write_bytes(forged)
        assert code_of(anchor.read) == "anchor.damaged"
    path.write_bytes(kept)
    assert anchor.read().size == 5  # the twin


def test_the_file_and_its_folder_are_the_owners_alone(anchor, path):
    anchor.write(1, note(1))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_one_that_is_being_written_is_read_again(anchor, path, monkeypatch):
    """In place: who reads meanwhile may see the beginning of one note and the end of another."""
    anchor.write(9, note(9))
    whole, half = note(10), note(10)[:-40] + path.read_bytes()[-40:]
    paused = []

    def pause(seconds):
        paused.append(seconds)
        path.write_bytes(whole if len(paused) > 2 else half)

    monkeypatch.setattr("agentguard.store.anchor.time.sleep", pause)
    path.write_bytes(half)
    assert anchor.read().size == 10
    assert len(paused) == 3


def test_a_note_of_which_a_part_was_written_is_still_owed(anchor, monkeypatch):
    anchor.write(5, note(5))
    real = os.pwrite
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:20], at))
        anchor.write(1000, note(1000))
        assert code_of(anchor.settle) == "anchor.unwritable"
    anchor.settle()
    assert anchor.read().size == 1000


def test_an_anchor_that_can_not_be_read_is_an_error(anchor, path):
    path.mkdir(parents=True)
    assert code_of(anchor.read) == "anchor.unreadable"


def test_a_link_in_its_place_is_not_followed(anchor, path, tmp_path):
    path.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    assert code_of(anchor.settle) == "anchor.unwritable"
    assert victim.read_bytes() == b"precious"


def test_an_anchor_that_can_not_be_written_stops_the_commit_after(on_disk):
    folder, aside = on_disk.anchor_path.parent, on_disk.anchor_path.parent.with_name("aside")
    store = on_disk.open(anchored=True)
    folder.write_text("a file in the place of the folder")
    assert code_of(add, store, "a") == "anchor.unwritable"  # seen before the first commit
    folder.unlink()
    assert add(store, "a") == 0
    folder.rename(aside)
    folder.write_text("a file in the place of the folder")
    assert add(store, "b") == 1  # it is durable, and not yet anchored
    assert code_of(add, store, "c") == "anchor.unwritable"
    folder.unlink()
    aside.rename(folder)
    assert add(store, "c") == 2
    assert on_disk.open(anchored=True).head().size == 3


def test_no_plain_checkpoint_passes_for_a_head_nor_another_logs_head():
    point = Checkpoint(LOG, 0, merkle.EMPTY_ROOT)
    other = Head("test.example/log/other", 0, merkle.EMPTY_ROOT, EMPTY_ROOT, AT)
    assert head.verify(NOTE, PUBLIC, LOG)[0].log == LOG
    for wrong in (
        checkpoint.sign_note(point.body(), LOG, SIGNER),
        checkpoint.sign_note(other.text(), LOG, SIGNER),
        head.sign(other, SIGNER),
        NOTE.replace(b"\n0\n", b"\n1\n"),
    ):
        with pytest.raises(AgentguardError):
            head.verify(wrong, PUBLIC, LOG)
