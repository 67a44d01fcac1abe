"""The audit log of a process, and the keys by which the heads of a store count."""

from __future__ import annotations

import sys
from hashlib import sha256
from types import FrameType
from typing import Any

import pytest
from store_place import KEYS, LOG, SIGNER, Place, record, verified

from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.errors import StorageError
from agentguard.identity.trust import TrustedKey
from agentguard.signing import dsse
from agentguard.signing.keys import Ed25519Signer
from agentguard.store.anchor import Anchor
from agentguard.store.log import StoreLog
from agentguard.store.sqlite import FileEngine
from agentguard.store.store import Store

NEXT = Ed25519Signer.from_seed(sha256(b"next").digest())
ENDED = TrustedKey("log", SIGNER.public_key, 0, not_after=1, compromised_since=1)
BOTH = (*KEYS, TrustedKey("log", NEXT.public_key, 0))
AFTER_COMPROMISE = (ENDED, BOTH[1])


def refused(work, code: str) -> None:
    with pytest.raises(StorageError) as caught:
        work()
    assert caught.value.code == code


def test_what_is_enqueued_comes_before_what_is_appended_after(place):
    log = StoreLog(place.open())
    log.enqueue(record("first"))
    assert log.append(record("second")).index == 1
    assert (log.head.origin, log.head.size) == (LOG, 2)

    def check(_pages) -> None:
        if log.seen.size != 2:
            raise StorageError("another one wrote", code="storage.locked")

    assert log.append(record("third"), within=check).index == 2
    refused(lambda: log.append(record("fourth"), within=check), "storage.locked")
    assert log.head.size == 3
    log.close()
    assert log.closed


def test_a_key_that_is_new_to_a_process_is_looked_up_and_asked_for_before_it_signs(on_disk):
    known: list[tuple[TrustedKey, ...]] = [KEYS]
    first = StoreLog(Store(FileEngine(on_disk.path), LOG, lambda: known[0], SIGNER))
    second = Store(FileEngine(on_disk.path), LOG, lambda: BOTH, NEXT)
    asked: list[bool] = []

    def check(_at: str, has_new_keys: bool) -> None:
        asked.append(has_new_keys)
        if has_new_keys:
            first.sign_with(NEXT)

    first.check_before_signing(check)
    assert first.append(record("a")).index == 0
    second.run(lambda tx: tx.append(record("b")))
    known[0] = AFTER_COMPROMISE
    assert first.append(record("c")).index == 2
    assert asked == [False, False, True]
    assert second.head().size == 3
    first.close()
    second.close()


def test_nothing_is_added_to_what_a_compromised_key_alone_vouches_for(tmp_path):
    place = Place(tmp_path)
    store = place.open(anchored=True)
    store.run(lambda tx: tx.append(record("a")))
    place.close()

    def opened(*, trusts_compromised: bool = False, anchored: bool = False) -> Store:
        anchor = Anchor(place.anchor_path, LOG, lambda: AFTER_COMPROMISE) if anchored else None
        return Store(
            FileEngine(place.path),
            LOG,
            lambda: AFTER_COMPROMISE,
            NEXT,
            anchor=anchor,
            trusts_compromised=trusts_compromised,
        )

    refused(opened, "storage.unvouched")
    opened(anchored=True).close()  # the anchor has seen it
    with_leave = opened(trusts_compromised=True)
    with_leave.run(lambda tx: tx.append(record("b")))  # the newest head has a sound key from now on
    with_leave.close()
    sound = opened()
    assert sound.head().size == 2
    sound.close()


def test_a_process_signs_with_no_key_that_it_knows_to_be_compromised(on_disk):
    store = Store(
        FileEngine(on_disk.path), LOG, lambda: AFTER_COMPROMISE, SIGNER, trusts_compromised=True
    )
    refused(lambda: store.run(lambda tx: tx.append(record("a"))), "storage.unvouched")
    store.sign_with(NEXT)
    assert store.run(lambda tx: tx.append(record("a"))) == 0
    store.close()


def test_a_probe_writes_and_adds_nothing(on_disk):
    log = StoreLog(on_disk.open())
    log.append(record("a"))
    before = log.newest_attempt
    log.probe()
    assert log.newest_attempt.at > before.at
    assert log.newest_attempt.failure is None
    assert verified(on_disk.open()).size == 1


@pytest.mark.parametrize("step", range(1, 9))
def test_an_interrupt_while_a_signature_is_given_leaves_one_entry(place, step):
    log = StoreLog(place.open())
    waiting = UnsignedOutcome.of(b"{}", SIGNER, record("outcome").summary, None)
    log.enqueue(waiting)
    lines = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        if event == "line" and frame.f_code.co_name == "_settle":
            lines += 1
            if lines == step:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        log.give_signature([waiting], dsse.sign_jointly([waiting.sha256], SIGNER))
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    log.flush()
    assert log.head.size == 1
    assert not log.unsigned(SIGNER)
