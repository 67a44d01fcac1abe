"""A journalled call runs once, whatever becomes of its page: also after the log's key was rotated.

Somebody who can write the state removes pages, or puts old ones back. The log names each such call
by a secret that outlives the log's keys, and says whose data were erased.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from state_pages import Page, pages, put_back

from agentguard import Denied, Guard, StorageError, adapters
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.domain import administration, adoption, rotation
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import journal_secret
from agentguard.store import journal

PASSPHRASE = b"correct horse battery staple"


class Codec:
    """Keeps text."""

    def dumps(self, result: str) -> bytes:
        return result.encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


class Payer:
    """A domain whose payments are journalled; ``paid`` is what was paid, by the calls' ids."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.state: Path = place.config.state
        self.paid: list[str] = []
        self.ids: list[str] = []

    def pay(self, guard: Guard, call_id: str = "c") -> str:
        spec = guard.tool(name="pay")(lambda: None).spec
        invocation = Invocation.bind(
            spec, lambda: Arguments.of({}), CallSite(call_id, thread="t", turn="m")
        )

        def effect() -> str:
            self.paid.append(call_id)
            return f"paid {call_id}"

        try:
            return adapters.run(guard.new_agent("reader"), invocation, effect, CallOptions(Codec()))
        except Denied as denied:
            return denied.code

    def pays(self, call_id: str = "c") -> str:
        """Open a guard, and pay."""
        with self.place.open() as guard:
            return self.pay(guard, call_id)

    def rotate(self) -> None:
        rotation.rotate(self.place.config, PASSPHRASE, "log", now=datetime.now(UTC))

    def lose_pages(self) -> None:
        for page in Page(self.state, journal.FOLDER).iterdir():
            page.unlink()

    def invocation_id(self) -> str:
        with self.place.open() as guard:
            for stored in guard.reader().stored():
                if stored.summary is not None and stored.summary.kind == "call":
                    return str(stored.summary.invocation_id)
        raise AssertionError("no call was made")


@pytest.fixture
def payer(place) -> Payer:
    return Payer(place)


@pytest.mark.parametrize("rotations", [0, 1, 2])
def test_a_call_whose_page_is_gone_does_not_run_again(payer, rotations):
    assert payer.pays() == "paid c"
    for _ in range(rotations):
        payer.rotate()
    assert payer.pays() == "paid c"  # the twin: its page is there
    payer.lose_pages()
    assert payer.pays() == "journal.missing"
    assert payer.paid == ["c"]
    assert payer.pays("another") == "paid another"


def test_a_call_whose_outcome_is_lost_does_not_run_again(payer, monkeypatch):
    """Its page is lost with it: the call is in doubt."""
    with payer.place.open() as guard:
        log = guard._parts.runtime.current_ports().log
        append = log.append

        def appended(record: Any, **given: Any) -> Any:
            if record.summary.kind == "outcome":
                raise OSError("the disk is gone")
            return append(record, **given)

        monkeypatch.setattr(log, "append", appended)
        assert payer.pay(guard) == "paid c"
    assert payer.pays() == "journal.in_doubt"
    assert payer.paid == ["c"]


@pytest.mark.parametrize("interrupted", [True, False], ids=["interrupted", "twin"])
def test_an_interrupt_amid_the_page_loses_no_outcome(payer, monkeypatch, interrupted):
    with payer.place.open() as guard:
        if interrupted:
            journal_ = guard._parts.runtime.current_ports().journal
            monkeypatch.setattr(journal_, "keeping", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                payer.pay(guard)
        else:
            assert payer.pay(guard) == "paid c"
    assert payer.place.seen().statuses == ["ok"]
    assert payer.pays() == ("journal.missing" if interrupted else "paid c")
    assert payer.paid == ["c"]


def test_a_call_that_an_adoption_gives_up_may_run_again(payer, tmp_path):
    """Its entry and its page are lost; the administrator agrees to that (SECURITY.md, L3)."""
    settings, old = payer.place.config, tmp_path / "old"
    shutil.copytree(payer.state, old)
    with payer.place.open() as guard:
        assert payer.pay(guard) == "paid c"
    shutil.rmtree(payer.state)
    shutil.copytree(old, payer.state)
    different = adoption.compare(settings)
    assert different.lost
    adoption.adopt(settings, PASSPHRASE, different, note="n", now=datetime.now(UTC))
    thaw = partial(administration.freeze, settings, PASSPHRASE, frozen=False)
    thaw(note="n", now=datetime.now(UTC))
    assert [payer.pays() for _ in range(2)] == ["paid c"] * 2
    assert payer.paid == ["c", "c"]


def test_a_fork_knows_the_calls_that_its_parent_has_made(payer):
    with payer.place.open() as guard:
        assert payer.pay(guard) == "paid c"
        payer.lose_pages()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                twin = payer.pay(guard, "another") == "paid another"
                code = 0 if twin and payer.pay(guard) == "journal.missing" else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_guard_with_the_old_key_and_one_with_the_new_name_a_call_alike(payer):
    with payer.place.open() as old:
        payer.rotate()
        assert payer.pay(old) == "paid c"
        assert payer.pays("other") == "paid other"
        payer.lose_pages()
        with payer.place.open() as new:
            assert payer.pay(new) == "journal.missing"
            assert payer.pay(new, "other") == "journal.missing"
    assert payer.paid == ["c", "other"]


def damaged(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (Path.unlink, "storage.missing"),
        (damaged, "storage.corrupt"),
        (lambda path: path.write_bytes(b"short"), "storage.corrupt"),
    ],
)
def test_without_the_secret_no_journalled_call_runs(payer, harm: Callable[[Path], Any], code):
    assert payer.pays() == "paid c"
    payer.rotate()
    (path,) = (payer.state / journal_secret.FOLDER).iterdir()
    kept = path.read_bytes()
    harm(path)
    assert payer.pays("another") == code
    with payer.place.open() as guard:  # what is not journalled needs no name
        assert guard.new_agent("reader").call(guard.tool(name="say")(lambda: "ok")) == "ok"
    path.write_bytes(kept)
    assert payer.pays("another") == "paid another"


def test_the_secret_is_sealed_for_one_key_of_one_log(payer, world):
    home = payer.place.take_up()
    new, stranger = (Ed25519Signer.from_seed(bytes([number]) * 32) for number in (1, 2))
    journal_secret.hand_on(payer.state, home.trust, home.log_key, new)
    handed = journal_secret.secret(payer.state, home.trust, new)
    assert handed == journal_secret.secret(payer.state, home.trust, home.log_key)
    folder = payer.state / journal_secret.FOLDER
    assert handed not in (folder / new.key_id).read_bytes()
    shutil.copy(folder / new.key_id, folder / stranger.key_id)
    with pytest.raises(StorageError) as refused:
        journal_secret.secret(payer.state, home.trust, stranger)
    assert refused.value.code == "storage.corrupt"


@pytest.mark.parametrize("reopened", [True, False])
def test_an_old_page_brings_no_erased_result_back(payer, reopened):
    assert payer.pays() == "paid c"
    old = pages(payer.state, "")
    invocation_id, now = payer.invocation_id(), datetime.now(UTC)
    guard = payer.place.open()
    assert payer.pay(guard) == "paid c"  # the twin
    administration.erase(payer.place.config, PASSPHRASE, invocation_id, note="n", now=now)
    assert pages(payer.state, "") == {}
    put_back(payer.state, old)
    if reopened:
        guard.close()
        guard = payer.place.open()
    assert payer.pay(guard) == "journal.unreplayable"
    guard.close()
    assert payer.paid == ["c"]
