"""The reserve on the disk: who may give it up, and when it is filled again."""

from __future__ import annotations

import errno
import os

import pytest

from agentguard import StorageError
from agentguard.storage import lock, reserve


@pytest.fixture
def full(monkeypatch):
    """A disk that has room for so many bytes of the reserve."""

    def have(room):
        def allocate(file, offset, size):
            if size > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.pwrite(file, bytes(size), offset)

        monkeypatch.setattr(os, "posix_fallocate", allocate)

    return have


def size(state):
    return (state / reserve.FILE).stat().st_size


def refused(state):
    with pytest.raises(StorageError) as caught:
        reserve.require(state)
    return caught.value.code


def test_it_is_filled_at_the_first_need_and_has_its_blocks(tmp_path):
    reserve.require(tmp_path)
    status = (tmp_path / reserve.FILE).stat()
    assert status.st_size == reserve.SIZE
    assert status.st_blocks * 512 >= reserve.SIZE
    assert status.st_mode & 0o777 == 0o600


def test_a_copy_without_blocks_is_filled_at_an_opening(tmp_path):
    (tmp_path / reserve.FILE).touch()
    os.truncate(tmp_path / reserve.FILE, reserve.SIZE)
    reserve.fill(tmp_path)
    assert (tmp_path / reserve.FILE).stat().st_blocks * 512 >= reserve.SIZE


def test_without_room_an_entry_is_refused_until_there_is_room_again(tmp_path, full):
    full(reserve.SIZE - 1)
    reserve.fill(tmp_path)  # an opening reads, too
    assert refused(tmp_path) == "storage.full"
    full(reserve.SIZE)
    reserve.require(tmp_path)
    assert size(tmp_path) == reserve.SIZE


def test_what_is_left_of_it_is_kept_and_no_entry_takes_it(tmp_path, full):
    reserve.require(tmp_path)

    def act():
        assert size(tmp_path) == 0
        reserve.require(tmp_path)  # this thread has given it up
        full(reserve.SIZE // 3)

    reserve.give_up_for(act, tmp_path)
    assert size(tmp_path) == reserve.SIZE // 4
    assert refused(tmp_path) == "storage.full"
    assert size(tmp_path) == reserve.SIZE // 4


def test_a_pipe_in_its_place_stops_entries_and_no_freeze_or_revocation(tmp_path):
    os.mkfifo(tmp_path / reserve.FILE)
    assert refused(tmp_path) == "storage.full"
    reserve.give_up_for(lambda: reserve.require(tmp_path), tmp_path)
    assert refused(tmp_path) == "storage.full"


def test_nobody_fills_it_while_it_is_given_up(tmp_path):
    reserve.require(tmp_path)
    with lock.acquire(tmp_path / reserve.FILE) as held:
        os.ftruncate(held.fileno(), 0)
        assert refused(tmp_path) == "storage.full"
        assert size(tmp_path) == 0
    reserve.require(tmp_path)  # the twin


def test_a_copy_without_blocks_counts_as_none_where_there_is_no_room(tmp_path, full):
    (tmp_path / reserve.FILE).touch()
    os.truncate(tmp_path / reserve.FILE, reserve.SIZE)
    full(0)
    reserve.fill(tmp_path)
    assert refused(tmp_path) == "storage.full"
    full(reserve.SIZE)
    reserve.require(tmp_path)
    assert (tmp_path / reserve.FILE).stat().st_blocks * 512 >= reserve.SIZE


@pytest.mark.parametrize("length", [4, 2 * reserve.SIZE])
def test_it_follows_no_link(tmp_path, length):
    other = tmp_path / "other"
    other.write_bytes(b"kept" * (length // 4))
    (tmp_path / reserve.FILE).symlink_to(other)
    reserve.fill(tmp_path)
    assert refused(tmp_path) == "storage.readonly"
    assert other.read_bytes() == b"kept" * (length // 4)
