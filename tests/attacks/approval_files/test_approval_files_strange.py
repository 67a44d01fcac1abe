"""Strange pages among requests and answers: none hangs a call or misleads a person.

Whoever can write in the state lays them there. What people were shown does not stay there for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from approval_desk import TOKEN, Desk
from state_pages import Page

from agentguard import (
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Guard,
    Requirement,
    adapters,
)
from agentguard.adapters import Arguments, CallSite, Invocation
from agentguard.approvals.answer import read_answer, seal_answer
from agentguard.approvals.request import MAX_REQUEST_BYTES
from agentguard.audit.find import scan_entries
from agentguard.audit.kinds.calls import CallEntry
from agentguard.cli.audit import call_report
from agentguard.domain import keystore
from agentguard.errors import DecodeError
from agentguard.signing.canonical import dumps
from agentguard.signing.dsse import Envelope
from agentguard.store.reader import StoredLog


def test_what_is_withdrawn_leaves_no_answers(desk):
    with desk.open() as guard:
        request = desk.ask(guard)
        desk.answer(request, "bob")
        guard.approvals.withdraw(request)
        assert (desk.folder / "answers").iterdir() == []


def empty(page: Page) -> None:
    page.write_bytes(b"")


def deep(page: Page) -> None:
    page.write_bytes(b"[" * 100_000)


def huge(page: Page) -> None:
    page.write_bytes(b" " * (15 << 20))


def text(page: Page) -> None:
    page.write_bytes(b"")
    page.write_text("text")


STRANGE: list[Callable[[Page], None]] = [empty, deep, huge]


@pytest.mark.parametrize("make", STRANGE)
def test_a_strange_page_among_the_requests_is_in_nobodys_way(desk, make):
    with desk.open() as guard:
        request = desk.ask(guard)
        make(desk.folder / "requests" / "0000")
        assert desk.call(guard) == "approval.pending"
        guard.approvals.approve(request, desk.keys["bob"])
        make(desk.folder / "answers" / request.request_id / "0000")
        assert guard.approvals.missing(request) is None
        assert desk.call(guard) == "merged main"
    with desk.open() as guard:
        assert desk.ask(guard, "release") is not None


@pytest.mark.parametrize("make", [*STRANGE, text])
def test_a_strange_page_in_the_place_of_a_request_denies_its_call(desk, make):
    with desk.open() as guard:
        request, path = desk.ask(guard), desk.path()
        guard.approvals.approve(request, desk.keys["bob"])
        make(path)
        assert desk.call(guard) not in {"merged main", "approval.pending"}
        path.unlink()
        assert desk.call(guard, "release") == "approval.pending"
        assert desk.call(guard) == "approval.pending"  # anew: nobody has answered that
    assert desk.ran == []


def test_a_request_under_the_key_of_another_takes_no_answer_of_it_away(desk):
    """Whoever can write there would have people's answers removed with the call of another."""
    with desk.open() as guard:
        first, second = desk.ask(guard, "first"), desk.ask(guard, "second")
        desk.answer(first, "bob")
        place, other = desk.path("second"), desk.path("first")
        place.write_bytes(other.read_bytes())
        assert desk.call(guard, "second") == "approval.altered"
        assert [one.request_id for one in guard.approvals.pending()] == [first.request_id]
        assert desk.call(guard, "first") == "merged first"
        assert guard.approvals.status(second.request_id).state != "approved"


# --- what people are shown ------------------------------------------------------------------------


def shown_otherwise(desk: Desk, **tool: str) -> ApprovalRequest:
    """Have the request name the tool otherwise, with the same digest."""
    path = desk.path()
    document = json.loads(path.read_bytes())
    document["tool"] |= tool
    path.write_bytes(dumps(document))
    return ApprovalRequest.loads(path.read_bytes())


@pytest.mark.parametrize("tool", [{"name": "read_docs"}, {"description": "Reads, and no more."}])
def test_a_request_that_names_another_tool_lets_none_run(desk, tool):
    with desk.open() as guard:
        desk.ask(guard)
        desk.answer(shown_otherwise(desk, **tool), "bob")
        assert desk.call(guard) == "approval.altered"
        desk.answer(desk.ask(guard), "bob")  # the twin: the call asks anew
        assert desk.call(guard) == "merged main"


def test_a_call_that_was_refused_without_an_answer_leads_to_its_request(desk, clock):
    """One ran, and one has expired. What was changed names no request, and the last had none."""
    state, requests = desk.place.config.state, []
    with desk.open() as guard:
        requests += [desk.ask(guard, what) for what in ("ran", "altered", "expired")]
        desk.answer(requests[0], "bob")
        assert desk.call(guard, "ran") == "merged ran"
        path = desk.path("altered")
        path.write_bytes(path.read_bytes().replace(b"Merge a", b"Read a"))
        assert desk.call(guard, "altered") == "approval.altered"
        clock.now = datetime.now(UTC) + timedelta(hours=2)
        assert desk.call(guard, "expired") == "approval.expired"
        assert desk.call(guard, "x" * MAX_REQUEST_BYTES) == "arguments.too_large"
    with closing(StoredLog.of(state)) as reader:
        calls = scan_entries(reader, (CallEntry,))
        reports = [call_report.read(reader, one, keystore.load_trust(state)) for one in calls]
    found = [one.request and one.request.entry.members["request_id"] for one in reports]
    ran, _altered, expired = (request.request_id for request in requests)
    assert found == [ran, None, expired, None]


def test_a_request_that_asks_for_less_satisfies_no_policy(desk):
    desk.needed = Requirement("a lead", roles=("lead",))
    with desk.open() as guard:
        request, path = desk.ask(guard), desk.path()
        weaker = replace(request, requirements=(Requirement("anybody", allow_self=True),))
        path.write_bytes(weaker.dumps())
        desk.answer(weaker, "bob")
        desk.answer(weaker, "carol")
        assert desk.call(guard) == "approval.altered"
        desk.answer(desk.ask(guard), "carol")
        assert desk.call(guard) == "merged main"
        assert guard.verify().problems == ()


@pytest.mark.parametrize("name", ["request_id", "approval_id"])
@pytest.mark.parametrize("value", ["../../x", "0" * 31, "0" * 33, "0" * 31 + "G", "", "/" * 32])
def test_an_id_names_no_other_file(desk, name, value):
    with desk.open() as guard:
        request = desk.ask(guard)
        statement = json.loads(
            seal_answer(request, "approve", approver="user:bob", approval_id="0" * 32, at=0).payload
        )
        statement["predicate"][name] = value
        sealed = Envelope("application/vnd.in-toto+json", dumps(statement), ())
        with pytest.raises(DecodeError):
            read_answer(sealed)
        document = json.loads(request.dumps())
        document["request_id"] = value
        with pytest.raises(DecodeError):
            ApprovalRequest.loads(dumps(document))


def test_a_request_that_is_too_long_to_be_shown_is_denied(desk):
    with desk.open() as guard:
        assert desk.call(guard, "x" * MAX_REQUEST_BYTES) == "arguments.too_large"
        desk.needed = Requirement("x" * MAX_REQUEST_BYTES)
        assert desk.call(guard) == "approval.too_large"
        assert guard.approvals.pending() == []


# --- what stays -----------------------------------------------------------------------------------


def holding(state: Path) -> list[str]:
    """The files with the token, but for the place where SQLite keeps what others read."""
    return sorted(
        path.name
        for path in state.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    )


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_what_is_redacted_is_gone_once_the_call_is_decided(desk, verdict):
    state = desk.place.config.state
    with desk.open() as guard:
        request = desk.ask(guard)
        assert holding(state) == ["log.sqlite-wal"]
        getattr(guard.approvals, verdict)(request, desk.keys["bob"])
        assert desk.call(guard) == ("merged main" if verdict == "approve" else "approval.rejected")
        assert holding(state) == []
    assert holding(state) == []
    assert (desk.folder / "answers").iterdir() == []


def test_what_has_expired_does_not_lie_there_for_ever(place, clock):
    desk = Desk(place, approvals={"pending_per_agent": 2})
    with desk.open() as guard:
        request = desk.ask(guard, "one")
        desk.ask(guard, "two")
        guard.approvals.approve(request, desk.keys["bob"])
        assert desk.call(guard, "three") == "approval.limit"
        clock.now = datetime.now(UTC) + timedelta(hours=2)
        assert desk.call(guard, "three") == "approval.pending"  # those two wait no more
        assert [
            one.read_bytes().count(TOKEN.encode()) for one in (desk.folder / "requests").iterdir()
        ] == [1]
        assert (desk.folder / "answers").iterdir() == []
        assert desk.call(guard, "one") == "approval.pending"
    assert desk.ran == []


@pytest.mark.parametrize("verdict", ["approve", "reject", None])
def test_an_approval_that_nobody_takes_up_is_reported(place, clock, caplog, verdict):
    """Its call was not made again before it expired; the other two are the twins."""
    desk = Desk(place)
    with desk.open() as guard:
        request = desk.ask(guard, "one")
        if verdict is not None:
            getattr(guard.approvals, verdict)(request, desk.keys["bob"])
        assert guard.approvals.expired_approved() == []
        clock.now = datetime.now(UTC) + timedelta(hours=2)
        untaken = [one.request_id for one in guard.approvals.expired_approved()]
        assert untaken == ([request.request_id] if verdict == "approve" else [])
        desk.ask(guard, "two")  # what has expired goes, with the arguments in it
        assert guard.approvals.expired_approved() == []
    assert ("nobody took the approval up in time" in caplog.text) is (verdict == "approve")


def test_a_guard_in_memory_forgets_what_has_expired(clock):
    def ask(guard: Guard, call_id: str) -> str:
        tool = guard.tool(name="merge")(lambda: None)
        site = CallSite(call_id, thread="t", turn="m")
        bound = Invocation.bind(tool.spec, lambda: Arguments.of({}), site)
        try:
            adapters.run(guard.new_agent("coder"), bound, lambda: None)
        except (Denied, ApprovalPending) as refused:
            return refused.code
        raise AssertionError("it ran")

    tables = {"approvals": {"application": True, "pending_per_agent": 1}}
    with Guard.ephemeral(lambda _: Decision.require_approval(), config=tables) as guard:
        assert ask(guard, "a") == "approval.pending"
        assert ask(guard, "b") == "approval.limit"
        clock.advance(hours=2)
        assert ask(guard, "b") == "approval.pending"
