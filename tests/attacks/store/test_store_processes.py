"""Processes that share a store, fork, die and are interrupted: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from rounds import FULL
from store_place import KIND, Place, add, get, items, record, verified

from agentguard.audit.map import key
from agentguard.errors import StorageError
from agentguard.storage import lock
from agentguard.store.store import Store

OPENINGS = 10_000 if FULL else 60

HERE = Path(__file__).parents[2] / "support"

WRITER = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from store_place import Place, add, key, record, KIND
place = Place(Path(sys.argv[1]), "none")
place.kind = "file"
store = place.open(anchored=True)
one = key(KIND, "counter")
def job(tx):
    number = int(tx.get(one) or b"0") + 1
    tx.put(one, str(number).encode())
    return tx.append(record(f"{{sys.argv[2]}} {{number}}", tx.at)), number
while True:
    index, number = store.run(job)
    print(index, number, flush=True)
"""


def start(place: Place, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(place.path.parent), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_writers_lose_nothing_and_count_nothing_twice(on_disk):
    acknowledged: dict[int, int] = {}
    rounds = 0
    while rounds < (75 if FULL else 3) or len(acknowledged) <= 20:  # a busy machine starts slowly
        rounds += 1
        writers = [start(on_disk, name) for name in "abcd"]
        time.sleep(random.uniform(0.5, 0.9))  # noqa: S311  when it is killed is no secret
        for writer in writers:
            writer.kill()
            out, _err = writer.communicate()
            for line in out.splitlines()[:-1]:  # the last may be half a line
                index, number = map(int, line.split())
                assert index not in acknowledged
                acknowledged[index] = number
    store = on_disk.open(anchored=True)
    size = verified(store).size
    assert all(number == index + 1 for index, number in acknowledged.items())
    assert get(store, key(KIND, "counter")) == [str(size).encode()]
    assert max(acknowledged) < size


@pytest.mark.parametrize("anchored", [True, False])
def test_no_opening_beside_writers_gives_a_false_alarm(on_disk, anchored):
    """Each reads the anchor first and the head then: others write both meanwhile."""
    number = OPENINGS // 2
    writers = [start(on_disk, name) for name in "abcdefgh"]
    sizes = [0]
    try:
        while sizes[-1] == 0:  # until the first has started
            sizes.append(size_of(on_disk, anchored=anchored))
        sizes += [size_of(on_disk, anchored=anchored) for _ in range(number)]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert sizes == sorted(sizes)
    assert len({*sizes}) > 5


def size_of(place: Place, *, anchored: bool) -> int:
    store = place.open(anchored=anchored)
    place.opened.clear()
    try:
        return store.head().size
    finally:
        store.close()


def test_a_writer_that_is_stopped_holds_the_others_up_for_a_time_and_is_named(on_disk, monkeypatch):
    store = on_disk.open()
    add(store, "a")
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    path = on_disk.path.with_name(f"{on_disk.path.name}-lock")
    with lock.acquire(path), pytest.raises(StorageError, match="-lock") as caught:
        add(store, "b")
    assert caught.value.code == "storage.locked"
    assert add(store, "b") == 1


def test_both_sides_of_a_fork_go_on(on_disk):
    store = on_disk.open(anchored=True)
    is_over = threading.Event()
    added: list[str] = []

    def work(name: str) -> None:
        i = 0
        while not is_over.is_set():
            add(store, f"{name} {i}")
            added.append(f"{name} {i}")
            i += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    children = 0
    for i in range(200 if FULL else 8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                add(store, f"child {i}")
                code = 0 if get(store, key(KIND, f"child {i}")) == [b""] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        children += 1
        time.sleep(0.005)
    is_over.set()
    for thread in threads:
        thread.join()
    assert verified(store).size == len(added) + children
    assert len(items(store, KIND)) == len(added) + children


def test_a_store_in_memory_stays_with_the_parent(tmp_path):
    place = Place(tmp_path, "memory")
    store = place.open()
    add(store, "a")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            add(store, "b")
        except StorageError as error:
            code = 0 if error.code == "storage.closed" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert add(store, "b") == 1
    place.close()


def test_a_handler_that_interrupts_a_commit_is_refused_and_the_commit_goes_on(place):
    store = place.open()
    told = []

    def handler(_number: int, _frame: object) -> None:
        for call in (lambda: add(store, "inside"), store.head, store.close):
            with pytest.raises(StorageError) as caught:
                call()
            told.append(caught.value.code)

    def job(tx):
        signal.raise_signal(signal.SIGUSR1)
        return tx.append(record("outside", tx.at))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        assert store.run(job) == 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told == ["storage.busy"] * 3
    assert add(store, "after") == 1


FILES = tuple(f"/{one}.py" for one in ("store/store", "store/sqlite", "storage/lock"))


def interrupted_at(store: Store, moment: int, interrupt: Callable[[], None]) -> bool:
    """Add an entry and read, and interrupt that once, where CPython looks for a signal.

    That is at the start of a function, and at the end of one in C. Return whether the store has
    that many moments.
    """
    left = moment

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(FILES):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                interrupt()

    sys.setprofile(profile)
    try:
        add(store, f"moment {moment}")
        get(store, key(KIND, "none"))
    except KeyboardInterrupt as error:
        KEPT.append(error)
    finally:
        sys.setprofile(None)
    return left <= 0


KEPT: list[BaseException] = []
"""What was raised, with the frames that it came through: a notebook keeps them, too."""


def stop() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_at_any_moment_of_a_commit_leaves_no_call_that_waits(place):
    store = place.open()
    moment, number = 0, 0
    while True:
        moment += 1
        was_interrupted = interrupted_at(store, moment, stop)
        number += 1
        assert add(store, f"after {moment}") < 2 * number  # no call waits for ever
        (value,) = get(store, key(KIND, f"moment {moment}"))
        assert value in (None, b"")
        if not was_interrupted:
            break
    assert moment > 50
    assert verified(store).size == len(items(store, KIND))


def test_a_call_that_interrupts_a_commit_at_any_moment_is_done_or_refused(place):
    store = place.open()
    moment, done = 0, 0
    told: list[str] = []

    def call() -> None:
        nonlocal done
        try:
            add(store, f"inside {moment}")
            done += 1
        except StorageError as error:
            told.append(error.code)

    while True:
        moment += 1
        if not interrupted_at(store, moment, call):
            break
    assert {*told} == {"storage.busy"}
    assert len(told) > 30
    assert verified(store).size == moment + done
