"""The renewal of connections whose tokens end: when, after failures, and until when."""

from __future__ import annotations

import gc
import logging
import threading
import time

import pytest

from agentguard.client import renewal
from agentguard.client.renewal import Renewal
from agentguard.errors import ServerError


class Link:
    """What has connections to renew; the first renewals fail."""

    def __init__(self, failures=0):
        self.failures, self.renewed = failures, threading.Semaphore(0)
        self.tries = 0

    def renew(self):
        self.tries += 1
        if self.tries <= self.failures:
            raise ServerError("no server", code="server.unreachable")
        self.renewed.release()


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(renewal, "_SOONEST", 0.02)
    monkeypatch.setattr(renewal, "_RETRY", 0.02)


def waits(made):
    """Return whether the thread of a renewal ends."""
    made._thread.join(10)
    return not made._thread.is_alive()


def test_a_connection_is_renewed_after_three_quarters_of_its_time():
    link = Link()
    made = Renewal(link)
    began = time.monotonic()
    made.schedule(0.2)
    assert link.renewed.acquire(timeout=10)
    assert time.monotonic() - began >= 0.15
    made.end()
    assert waits(made)


def test_a_connection_that_does_not_end_is_not_renewed():
    made = Renewal(link := Link())
    made.schedule(None)
    assert made._thread is None
    assert link.tries == 0


def test_the_newest_end_counts():
    link = Link()
    made = Renewal(link)
    made.schedule(0.1)
    made.schedule(3600)
    assert not link.renewed.acquire(timeout=0.2)
    made.end()
    assert waits(made)


def test_a_renewal_that_fails_is_tried_again(caplog):
    link = Link(failures=3)
    made = Renewal(link)
    with caplog.at_level(logging.WARNING):
        made.schedule(0.01)
        assert link.renewed.acquire(timeout=10)
    assert link.tries == 4
    assert caplog.text.count("is not renewed: no server") == 1
    made.end()


def test_a_link_that_nobody_holds_ends_its_renewal():
    link = Link()
    made = Renewal(link)
    made.schedule(3600)
    del link
    gc.collect()
    assert waits(made)


def test_the_end_waits_for_no_lock():
    """As in a forked process, where a thread of the parent had the lock."""
    link = Link()
    made = Renewal(link)
    with made._changed:
        thread = threading.Thread(target=made.end, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    made.schedule(0.01)
    assert made._thread is None
