"""The anchor of a store keeps the newest head that it was told, and refuses a damaged file."""

from __future__ import annotations

import pytest
from store_place import FIRST, KEYS, LOG, SIGNER, add

from agentguard.audit import checkpoint, head, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.head import Head
from agentguard.errors import AgentguardError, StorageError
from agentguard.store.anchor import Anchor
from agentguard.store.map import EMPTY_ROOT

AT = "2026-12-02T00:00:00.000000Z"


def note(size: int) -> bytes:
    return head.sign(Head(LOG, size, merkle.leaf_hash(b""), EMPTY_ROOT, AT), SIGNER)


@pytest.fixture
def anchor(tmp_path):
    return Anchor(tmp_path / "outside" / "anchor", LOG, lambda: KEYS)


def test_it_never_goes_back(anchor, tmp_path):
    assert anchor.read() is None
    other = Anchor(tmp_path / "outside" / "anchor", LOG, lambda: KEYS)
    for size in (5, 3, 5, 12, 7):
        (anchor if size % 2 else other).write(size, note(size))
        other.settle()
    kept = anchor.read()
    assert kept is not None
    assert kept.size == 12


@pytest.mark.parametrize("cut", [1, 50, -1])
def test_a_damaged_file_stops_whoever_writes(anchor, tmp_path, cut):
    anchor.write(5, note(5))
    path = tmp_path / "outside" / "anchor"
    path.write_bytes(note(5)[:cut])
    for look in (anchor.read, lambda: (anchor.write(6, note(6)), anchor.settle())):
        with pytest.raises(StorageError) as caught:
            look()
        assert caught.value.code == "anchor.damaged"
    path.write_bytes(note(5))
    anchor.settle()
    assert anchor.read().size == 6


def test_an_anchor_that_can_not_be_written_stops_the_commit(on_disk):
    store = on_disk.open(anchored=True)
    on_disk.anchor_path.parent.write_text("a file in the place of the folder")
    with pytest.raises(StorageError) as caught:
        add(store, "a")
    assert caught.value.code == "anchor.unwritable"
    on_disk.anchor_path.parent.unlink()
    assert [add(store, name) for name in "ab"] == [0, 1]
    assert on_disk.open(anchored=True).head().size == 2


def test_no_head_passes_for_a_checkpoint_or_for_another_logs():
    point = Checkpoint(LOG, 0, merkle.EMPTY_ROOT)
    other = Head("test.example/log/other", 0, merkle.EMPTY_ROOT, EMPTY_ROOT, AT)
    assert head.verify(FIRST[0], [SIGNER.public_key], LOG)[0].log == LOG
    for wrong in (
        checkpoint.sign(point, SIGNER),
        checkpoint.sign_note(other.text(), LOG, SIGNER),
        head.sign(other, SIGNER),
        FIRST[0].replace(b"\n0\n", b"\n1\n"),
    ):
        with pytest.raises(AgentguardError):
            head.verify(wrong, [SIGNER.public_key], LOG)
    with pytest.raises(AgentguardError):
        checkpoint.parse(FIRST[0])
