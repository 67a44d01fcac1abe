"""A proof counts once: for all threads, all worker processes, and after a restart."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from proof_scene import check, refused

from agentguard.errors import ProofError
from agentguard.proof import ProofStore
from agentguard.storage import sqlite
from agentguard.store.proof_store import KeptChain

NOW = 1_800_000_000
JKT = "k" * 43


def use(store, jti, *, expires_at=NOW + 30, at=NOW):
    """Use a proof up; return the reason code, or None."""
    try:
        store.use(JKT, jti, expires_at=expires_at, at=at)
    except ProofError as error:
        return error.code
    return None


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "proofs.sqlite"


def test_a_proof_counts_once(scene):
    sent = scene.request()
    check(scene.receiver, sent)
    assert refused(scene.receiver, sent) == "proof.used"
    assert refused(scene.new_receiver(), sent) == "proof.used"  # after a restart
    check(scene.receiver, scene.request())


def test_a_stolen_and_quicker_proof_is_refused_the_second_time(scene):
    sent = scene.request()
    with ThreadPoolExecutor(8) as threads:
        receivers = [scene.new_receiver() for _ in range(4)] * 2
        codes = list(threads.map(lambda receiver: _code(receiver, sent), receivers))
    assert sorted(map(str, codes)) == ["None", *["proof.used"] * 7]


def _code(receiver, sent):
    try:
        check(receiver, sent)
    except ProofError as error:
        return error.code
    return None


def _worker(path, start, jtis, answers):
    start.wait()
    store = ProofStore(path)
    answers.put([use(store, jti) for jti in jtis])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_each_of_many_workers_finds_a_proof_used_that_another_has_used(path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    jtis = [f"proof-{number:04}" for number in range(40)]
    workers = [context.Process(target=_worker, args=(path, start, jtis, answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()  # so that all of them make the file at once
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    for together in zip(*found, strict=True):
        assert sorted(map(str, together)) == ["None", "proof.used", "proof.used"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_proof_counts_once_on_both_sides_of_a_fork(path):
    """SQLite would think that the worker holds the locks of its parent."""
    store = ProofStore(path)
    assert use(store, "the-first") is None
    found = in_a_fork(lambda: [use(one, "the-second") for one in (store, ProofStore(path))])
    assert found == [None, "proof.used"]
    assert [use(store, "the-first"), use(store, "the-second")] == ["proof.used"] * 2
    assert use(store, "the-third") is None


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_fork_accepts_no_other_file_than_its_parent(path):
    store = ProofStore(path)
    assert in_a_fork(lambda: use(store, "the-first")) is None  # the twin
    path.rename(path.with_name("away"))
    ProofStore(path)
    assert in_a_fork(lambda: use(store, "the-first")) == "proof.unavailable"
    assert use(store, "the-first") == "proof.unavailable"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_proof_is_used_though_the_worker_was_killed_at_once(path):
    context = multiprocessing.get_context("fork")

    def die():
        ProofStore(path).use(JKT, "the-first", expires_at=NOW + 30, at=NOW)
        os.kill(os.getpid(), signal.SIGKILL)

    worker = context.Process(target=die)
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    store = ProofStore(path)
    assert [use(store, "the-first"), use(store, "the-second")] == ["proof.used", None]


def in_a_fork(function):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    worker = context.Process(target=lambda: answers.put(function()))
    worker.start()
    found = answers.get(timeout=60)
    worker.join()
    return found


def test_one_jti_of_two_keys_is_two_proofs(path):
    store = ProofStore(path)
    store.use("a" * 43, "the-same", expires_at=NOW + 30, at=NOW)
    store.use("b" * 43, "the-same", expires_at=NOW + 30, at=NOW)
    with pytest.raises(ProofError):
        store.use("a" * 43, "the-same", expires_at=NOW + 30, at=NOW)


def test_rows_go_after_their_end_and_a_clock_set_back_revives_none(path):
    store = ProofStore(path)
    for number in range(50):
        assert use(store, f"proof-{number:04}") is None
    assert use(store, "much-later", expires_at=NOW + 3600, at=NOW + 3570) is None
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM proofs").fetchone() == (1,)
    connection.close()
    assert use(store, "proof-0001") == "proof.expired"  # the clock was set back
    assert use(store, "much-later", expires_at=NOW + 3600, at=NOW) == "proof.used"
    assert use(store, "another-one", expires_at=NOW + 3600, at=NOW + 3570) is None


def test_a_full_store_refuses_until_proofs_have_ended(path):
    store = ProofStore(path, max_proofs=3)
    assert [use(store, f"proof-{number:04}") for number in range(4)] == [None] * 3 + [
        "proof.unavailable"
    ]
    assert use(store, "proof-0000") == "proof.used"
    assert use(store, "much-later", expires_at=NOW + 60, at=NOW + 31) is None


def test_a_damaged_store_refuses(path):
    store = ProofStore(path)
    assert use(store, "proof-0001") is None
    store.close()
    path.write_bytes(b"\xff" * 8192)
    assert use(store, "proof-0002") == "proof.unavailable"
    path.unlink()
    for beside in path.parent.glob("proofs.sqlite-*"):
        beside.unlink()
    assert use(store, "proof-0003") is None


def test_a_store_that_can_not_be_written_refuses(path, monkeypatch):
    store = ProofStore(path)
    held = sqlite3.connect(path, isolation_level=None)
    held.execute("BEGIN EXCLUSIVE")
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 0.05)
    store.close()
    assert use(store, "proof-0001") == "proof.unavailable"
    held.execute("ROLLBACK")
    held.close()
    assert use(store, "proof-0001") is None


def test_no_other_file_is_taken_for_a_store(tmp_path):
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (other, pipe, tmp_path, tmp_path / "missing" / "proofs.sqlite"):
        with pytest.raises(ProofError) as caught:
            ProofStore(place)
        assert caught.value.code == "proof.unavailable"
    made = ProofStore(tmp_path / "mine.sqlite")
    assert use(made, "proof-0001") is None
    assert (tmp_path / "mine.sqlite").stat().st_mode & 0o777 == 0o600


def test_the_store_is_safe_for_many_threads(path):
    store = ProofStore(path)
    codes: list[str | None] = []

    def run():
        codes.extend(use(store, f"proof-{number:04}") for number in range(25))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (codes.count(None), codes.count("proof.used")) == (25, 75)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_proof_does_not_count_again_in_a_new_file(path, is_replaced):
    """A program that tidies up may remove the file; a worker that starts then makes a new one."""
    old = ProofStore(path)
    assert use(old, "proof-0001") is None
    for file in path.parent.glob("proofs.sqlite*"):
        file.unlink()
    if is_replaced:
        assert use(ProofStore(path), "proof-0002") is None
    for _ in range(2):
        assert use(old, "proof-0002") == "proof.unavailable"
    old.close()  # as a restart does
    assert use(old, "proof-0002") == ("proof.used" if is_replaced else None)


def test_a_server_that_changes_its_folder_keeps_its_store(path, tmp_path, monkeypatch):
    """With a file in each folder, a proof would count once in each."""
    monkeypatch.chdir(path.parent)
    store = ProofStore(path.name)
    assert use(store, "proof-0001") is None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert use(store, "proof-0001") == "proof.used"
    store.close()
    assert use(store, "proof-0001") == "proof.used"
    assert use(store, "proof-0002") is None
    assert list(Path.cwd().iterdir()) == []


def test_chains_are_kept_until_they_end_and_the_last_ones_in_a_number(path):
    store = ProofStore(path, max_chains=2)
    for number in "01":
        store.keep_chain(number * 64, b"chain", expires_at=NOW + 60, at=NOW)
    assert kept(store, "01") == [b"chain", b"chain"]
    store.keep_chain("2" * 64, b"later", expires_at=NOW + 160, at=NOW)
    assert kept(store, "012") == [None, b"chain", b"later"]
    store.keep_chain("3" * 64, b"later", expires_at=NOW + 160, at=NOW + 60)
    assert kept(store, "123") == [None, b"later", b"later"]


def test_one_chain_sent_without_end_takes_no_place_of_another(path):
    store = ProofStore(path, max_chains=2)
    store.keep_chain("0" * 64, b"chain", expires_at=NOW + 60, at=NOW)
    for number in range(5):
        store.keep_chain("1" * 64, b"%d" % number, expires_at=NOW + 60, at=NOW)
    assert kept(store, "01") == [b"chain", b"4"]
    store.keep_chain("2" * 64, b"chain", expires_at=NOW + 60, at=NOW)
    assert kept(store, "012") == [None, b"4", b"chain"]


def test_a_chain_is_kept_with_the_proof_or_not_at_all(path):
    store = ProofStore(path)
    for number, jti in ((0, "the-first"), (1, "the-first"), (2, "the-second")):
        chain = KeptChain(f"{number}" * 64, b"chain", NOW + 60)
        used = partial(store.use, JKT, jti, expires_at=NOW + 30, at=NOW, keeps=chain)
        if number == 1:
            with pytest.raises(ProofError):
                used()
        else:
            used()
    assert kept(store, "012") == [b"chain", None, b"chain"]


def kept(store, numbers):
    """Return the chains with the digests that these digits make, None for each that is gone."""
    return [store.chain(number * 64) for number in numbers]


def test_a_chain_costs_the_same_work_beside_many_chains(path):
    """A thousand agents, each with a chain, must not make the next request slow."""
    store = ProofStore(path)
    steps: list[int] = []
    for chains in (1, 1000):
        for number in range(chains):
            _keep(store, f"{number:064}")
        steps.append(steps_of(store, partial(_keep, store, f"{chains:064}")))
    assert steps[1] < 2 * steps[0]


def _keep(store, sha256):
    store.keep_chain(sha256, b"chain", expires_at=NOW + 60, at=NOW)


def steps_of(store, function):
    """Return how many instructions SQLite carries out."""
    counted = []
    store._engine._writer.raw.set_progress_handler(lambda: counted.append(1), 1)
    function()
    store._engine._writer.raw.set_progress_handler(None, 1)
    return len(counted)


def test_a_used_proof_stays_used_until_its_end(scene):
    sent = scene.request()
    start = time.time()
    check(scene.receiver, sent)
    for shift, code in ((10, "proof.used"), (25, "proof.used"), (31, "proof.expired")):
        scene.clock = lambda shift=shift: start + shift
        assert refused(scene.receiver, sent) == code
