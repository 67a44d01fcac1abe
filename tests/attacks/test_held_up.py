"""Somebody who can write the state, and has no key, keeps the administrator and the guards waiting.

That works for a bounded time: the brake says what is in its way, and nothing fills the memory.
"""

from __future__ import annotations

import base64
import fcntl
import os
import threading
import tracemalloc
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from agentguard import StorageError
from agentguard.domain import administration, rotation
from agentguard.errors import KeyMaterialError
from agentguard.signing.keys import MAX_ROUNDS
from agentguard.storage import files, lock

PASSPHRASE = b"correct horse battery staple"


def freeze(place):
    administration.freeze(place.config, PASSPHRASE, frozen=True, note="n", now=datetime.now(UTC))


def thaw(place):
    administration.freeze(place.config, PASSPHRASE, frozen=False, note="n", now=datetime.now(UTC))


def revoke(place):
    administration.revoke(place.config, PASSPHRASE, "user:alice", note="n", now=datetime.now(UTC))


def rotate(place):
    rotation.rotate(place.config, PASSPHRASE, "admin", now=datetime.now(UTC))


@contextmanager
def locked(path):
    """Hold a lock of the state's, as another process does: through a file of its own."""
    path.parent.mkdir(exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_RDONLY, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield file
    finally:
        os.close(file)


@pytest.mark.parametrize("command", [freeze, revoke, rotate])
def test_a_lock_that_nobody_lets_go_of_is_named_and_given_up(place, monkeypatch, caplog, command):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    monkeypatch.setattr(lock, "WARN_AFTER", 0.05)
    path = place.config.state / "state.lock"
    with locked(path), pytest.raises(StorageError, match=f"'fuser {path}' names") as caught:
        command(place)
    assert caught.value.code == "storage.locked"
    assert f"waiting for {path}" in caplog.text
    command(place)  # the twin


def test_whoever_waits_goes_on_once_the_lock_is_free(place, caplog):
    with locked(place.config.state / "state.lock") as file:
        threading.Timer(0.2, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        freeze(place)
    assert caplog.text == ""  # not worth a word


def with_rounds(file, rounds):
    """A key file of ours, with another number of rounds of bcrypt at its place."""
    begin, *lines, end = file.splitlines()
    body = base64.b64decode(b"".join(lines))
    assert body[63:67] == (1).to_bytes(4)
    body = body[:63] + rounds.to_bytes(4) + body[67:]
    return b"\n".join((begin, base64.b64encode(body), end, b""))


def test_a_key_file_that_asks_for_years_of_work_is_refused(place):
    path = place.config.state / "keys" / "admin"
    whole = path.read_bytes()
    path.write_bytes(with_rounds(whole, 2**31))
    with pytest.raises(KeyMaterialError, match=f"more than {MAX_ROUNDS}") as caught:
        freeze(place)
    assert caught.value.code == "key.unreadable"
    assert str(path) in str(caught.value)
    path.write_bytes(whole)
    freeze(place)  # the twin


@contextmanager
def peak():
    """The bytes that Python takes at the most meanwhile."""
    tracemalloc.start()
    taken: list[int] = []
    try:
        yield taken
    finally:
        taken.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


def test_a_file_is_longer_than_its_limit_before_it_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert files.read(path, limit=8) == b"12345678"
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with peak() as taken, pytest.raises(OSError, match="longer than 1073741824 bytes"):
        files.read(path, limit=1 << 30)
    assert taken[0] < 1 << 20
