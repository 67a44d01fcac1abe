"""``OwnedLock``: refuses the thread that holds it, and lets every other thread wait."""

from __future__ import annotations

import threading

import pytest

from agentguard import StorageError
from agentguard.storage.owned_lock import OwnedLock


def test_the_thread_that_holds_it_is_refused():
    lock = OwnedLock("it counted")
    with lock.held():
        for _ in range(2):
            with pytest.raises(StorageError, match="interrupted while it counted") as caught:
                lock.held()
            assert caught.value.code == "storage.busy"
    with lock.held():  # the twin
        pass


def test_another_thread_waits_for_it():
    lock, order = OwnedLock("it counted"), list[str]()

    def second():
        with lock.held():
            order.append("second")

    thread = threading.Thread(target=second)
    with lock.held():
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_an_interrupt_gives_it_back():
    lock = OwnedLock("it counted")
    with pytest.raises(KeyboardInterrupt), lock.held():
        raise KeyboardInterrupt
    with lock.held():
        pass
