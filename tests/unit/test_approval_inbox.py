"""The desk: who waits for an answer learns of it, in a thread and on an event loop.

Whose answers count is tried in ``tests/attacks/approvals``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import timedelta

import pytest

from agentguard import ApprovalError, ApprovalPending, Decision, Guard
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.signing.keys import Ed25519Signer

"""Seconds within which who waits has to know."""


@pytest.fixture
def bob():
    return Ed25519Signer.from_seed(os.urandom(32))


@pytest.fixture
def guard(bob):
    people = {"bob": {"principal": "user:bob", "keys": [bob.public_key.openssh()]}}
    asking = lambda _input: Decision.require_approval()  # noqa: E731
    with Guard.ephemeral(asking, config={"approvers": people}) as guard:
        yield guard


@pytest.fixture
def inbox(guard):
    return guard.approvals


@pytest.fixture
def request_(guard):
    tool = guard.tool(name="deploy")(lambda: "done")
    with pytest.raises(ApprovalPending) as pending:
        guard.new_agent("coder").call(tool)
    return pending.value.request


def waited(inbox: ApprovalInbox, request_, *, sync: bool, timeout: timedelta | float):
    """Wait, in a thread or on an event loop of its own."""
    if sync:
        return inbox.wait(request_, timeout=timeout)
    return asyncio.run(inbox.await_(request_, timeout=timeout))


@pytest.mark.parametrize("by_id", ["find", "status"])
def test_a_request_in_the_place_of_its_id_is_told_so(inbox, request_, by_id):
    with pytest.raises(ApprovalError, match="no ApprovalRequest: give request") as told:
        getattr(inbox, by_id)(request_)
    assert told.value.code == "request.unknown"
    assert getattr(inbox, by_id)(request_.request_id).request_id == request_.request_id


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_who_waits_learns_of_an_answer(inbox, request_, bob, verdict, sync):
    timer = threading.Timer(0.2, getattr(inbox, verdict), (request_, bob))
    timer.start()
    assert waited(inbox, request_, sync=sync, timeout=timedelta(minutes=1)) is True
    timer.join()


@pytest.mark.parametrize("sync", [True, False])
def test_who_waits_in_vain_is_told_so(inbox, request_, sync):
    assert waited(inbox, request_, sync=sync, timeout=0.1) is False


@pytest.mark.parametrize("sync", [True, False])
def test_nobody_waits_for_a_request_that_is_gone(inbox, request_, sync):
    inbox.withdraw(request_)
    assert waited(inbox, request_, sync=sync, timeout=60) is True


async def test_waiting_holds_no_event_loop(inbox, request_, bob):
    waiting = asyncio.create_task(inbox.await_(request_, timeout=60))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    inbox.approve(request_, bob)
    assert await asyncio.wait_for(waiting, timeout=60)
