"""The checkpoint that is kept outside: it never goes back, and whoever changed it is noticed."""

from __future__ import annotations

import os

import pytest

from agentguard import StorageError
from agentguard.audit import checkpoint, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.storage.anchor import Anchor, anchor_path

ORIGIN = "acme.example/log/1/0"


def point(size, root=b"\x01" * 32):
    return Checkpoint(ORIGIN, size, root if size else merkle.EMPTY_ROOT)


@pytest.fixture
def note(signer):
    return lambda size, origin=ORIGIN: checkpoint.sign(
        Checkpoint(origin, size, b"\x01" * 32), signer
    )


@pytest.fixture
def anchor(tmp_path, signer):
    made = Anchor(tmp_path / "deep" / "anchor", ORIGIN, [signer.public_key])
    yield made
    made.close()


def test_nothing_was_kept_yet(anchor):
    assert anchor.read() is None
    anchor.check(point(0))


def test_an_emptied_anchor_is_damage(anchor, note, tmp_path):
    anchor.write(note(5))
    anchor_path(tmp_path / "deep" / "anchor", ORIGIN).write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        anchor.read()
    assert caught.value.code == "anchor.damaged"


def test_the_newest_checkpoint_is_kept(anchor, note, signer, tmp_path):
    for size in (1, 9, 10, 100):
        anchor.write(note(size))
        assert anchor.read() == point(size)
    again = Anchor(tmp_path / "deep" / "anchor", ORIGIN, [signer.public_key])
    assert again.read() == point(100)
    again.write(note(101))
    assert anchor.read() == point(101)
    again.close()


def test_the_file_and_its_folder_are_the_owners_alone(anchor, note, tmp_path):
    anchor.write(note(1))
    path = anchor_path(tmp_path / "deep" / "anchor", ORIGIN)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_logs_have_two_anchors(tmp_path):
    assert anchor_path(tmp_path, ORIGIN) != anchor_path(tmp_path, f"{ORIGIN}0")


@pytest.mark.parametrize(
    ("head", "allowed"),
    [
        (point(10), True),
        (point(11), True),
        (point(9), False),
        (point(0), False),
        (point(10, b"\x02" * 32), False),
    ],
)
def test_a_log_with_less_or_else_than_was_seen_was_rolled_back(anchor, note, head, allowed):
    anchor.write(note(10))
    if allowed:
        anchor.check(head)
        return
    with pytest.raises(StorageError, match="agentguard adopt") as caught:
        anchor.check(head)
    assert caught.value.code == "storage.rolled_back"


def test_an_anchor_nowhere_keeps_nothing_and_objects_to_nothing(signer, note, tmp_path):
    nowhere = Anchor(None, ORIGIN, [signer.public_key])
    nowhere.settle()
    nowhere.write(note(5))
    nowhere.check(point(0))
    assert nowhere.read() is None
    nowhere.close()


def test_what_another_key_or_log_has_signed_is_damage(anchor, note, signer, stranger, tmp_path):
    anchor.write(note(5))
    path = anchor_path(tmp_path / "deep" / "anchor", ORIGIN)
    kept = path.read_bytes()
    for forged in (
        note(5, "acme.example/log/2/0"),
        checkpoint.sign(point(5), stranger),
        kept[:-1],
        kept + b"\n",
        kept.replace(b"5", b"6"),
        b"\x00",
    ):
        path.write_bytes(forged)
        with pytest.raises(StorageError, match="find out who changed it") as caught:
            anchor.read()
        assert caught.value.code == "anchor.damaged"
    path.write_bytes(kept)
    assert anchor.read() == point(5)


def test_one_that_is_being_written_is_read_again(anchor, note, tmp_path, monkeypatch):
    """In place: who reads meanwhile may see the beginning of one note and the end of another."""
    anchor.write(note(9))
    path = anchor_path(tmp_path / "deep" / "anchor", ORIGIN)
    whole, half = note(10), note(10)[:-40] + path.read_bytes()[-40:]
    paused = []

    def pause(seconds):
        paused.append(seconds)
        path.write_bytes(whole if len(paused) > 2 else half)

    monkeypatch.setattr("agentguard.storage.anchor.time.sleep", pause)
    path.write_bytes(half)
    assert anchor.read() == point(10)
    assert len(paused) == 3


def test_a_note_of_which_a_part_was_written_is_still_owed(anchor, note, monkeypatch):
    anchor.write(note(5))
    real = os.pwrite
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:20], at))
        anchor.write(note(1000))
        with pytest.raises(StorageError, match="not all of it was written") as caught:
            anchor.settle()
    assert caught.value.code == "anchor.unwritable"
    anchor.settle()
    assert anchor.read() == point(1000)


def test_an_anchor_that_can_not_be_read_is_an_error(anchor, note, tmp_path):
    path = anchor_path(tmp_path / "deep" / "anchor", ORIGIN)
    path.mkdir(parents=True)
    with pytest.raises(StorageError) as caught:
        anchor.read()
    assert caught.value.code == "anchor.unreadable"


def test_a_link_in_its_place_is_not_followed(anchor, note, tmp_path):
    path = anchor_path(tmp_path / "deep" / "anchor", ORIGIN)
    path.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(StorageError) as caught:
        anchor.settle()
    assert caught.value.code == "anchor.unwritable"
    assert victim.read_bytes() == b"precious"


def test_a_checkpoint_that_could_not_be_kept_is_owed_and_settled_before_the_next(
    anchor, note, tmp_path
):
    blocked = tmp_path / "deep"
    blocked.write_bytes(b"a file where a folder should be")
    anchor.write(note(5))  # the commit has happened: no error here
    with pytest.raises(StorageError, match="set anchor") as caught:
        anchor.settle()
    assert caught.value.code == "anchor.unwritable"
    blocked.unlink()
    anchor.settle()
    assert anchor.read() == point(5)
