"""The end of a request in the log: an insider with the log's key states ends that never were.

``audit verify`` finds each; the end as it was holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from approval_forgeries import Insider

from agentguard import Requirement
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import RosterEntry
from agentguard.audit.kinds.requests import RequestEndEntry, RequestEntry
from agentguard.call.invocation import timestamp
from agentguard.signing import canonical
from agentguard.signing.canonical import loads_object
from agentguard.signing.dsse import Envelope

PERSON = Requirement("a person")


@pytest.fixture(scope="module")
def waiting(asked) -> Insider:
    """The log up to the request: its call was not made again."""
    log: Insider = asked(PERSON, by=["bob"])
    return replace(log, records=log.records[:-1])


def moment(at: int) -> str:
    return timestamp(datetime.fromtimestamp(at, UTC))


def ended(
    log: Insider, end: Any = "expired", *answers: Any, at: int | None = None, **said: Any
) -> Insider:
    """The log with an entry that says that the request has ended."""
    at = log.request.expires_at if at is None else at
    given = [Envelope.parse(one) for one in answers]
    roster = parse_entry(log.records[log.index("roster")].body, RosterEntry).sha256
    record = RequestEndEntry.new(log.request, end, given, roster, at=moment(at))
    changed = replace(log, records=(*log.records, record))
    return changed.with_body(changed.last, {**loads_object(record.body), **said})


def test_the_ends_that_were_hold(waiting):
    soon = waiting.request.requested_at + 1
    assert ended(waiting).problems() == []
    assert ended(waiting, "expired", waiting.answer("bob")).problems() == []
    assert ended(waiting, "expired", waiting.answer("bob", verdict="reject")).problems() == []
    assert ended(waiting, "withdrawn", at=soon).problems() == []


OTHERS: Mapping[str, Any] = {
    "request_id": "e" * 32,
    "call_digest": "0" * 64,
    "requirement_sha256": "0" * 64,
    "displayed_sha256": "0" * 64,
    "expires_at": 1,
}


@pytest.mark.parametrize("member", OTHERS)
def test_an_end_of_another_request_than_any_that_was_made(waiting, member):
    found = ended(waiting, **{member: OTHERS[member]}).problems()
    what = (
        "is not in the log" if member == "request_id" else "no entry states the request that ended"
    )
    assert [what in said for _index, said in found] == [True]


@pytest.mark.parametrize("member", ["agent", "principal", "tool", "task_id", "traceparent"])
def test_an_end_whose_columns_say_something_else(waiting, member):
    other: Any = {"name": "other", "digest": "0" * 64} if member == "tool" else "other-00-00"
    found = [what for _index, what in ended(waiting, **{member: other}).problems()]
    assert found[0] == "no entry states the request that ended, as it ended"
    assert "the columns by which it is searched for were changed" in found[1]
    assert len(found) == 2


OF_SOMEBODY_ELSE: Mapping[str, Any] = {
    "agent": "spiffe://acme.example/agent/mole/" + "0" * 64,
    "principal": "user:eve",
    "tool": {"name": "other", "digest": "0" * 64},
    "task_id": "other",
    "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
}


@pytest.mark.parametrize("member", OF_SOMEBODY_ELSE)
def test_an_end_for_somebody_else_whose_columns_say_the_same(waiting, member):
    told: Any = {**said_at_the_end(waiting), member: OF_SOMEBODY_ELSE[member]}
    log = ended(waiting)
    forged = log.with_body(log.last, told, parse_entry(canonical.dumps(told)).summary)
    found = [what for _index, what in forged.problems()]
    assert found == ["no entry states the request that ended, as it ended"]


def test_an_end_that_names_another_tool_of_the_same_name(waiting):
    told: Any = said_at_the_end(waiting)
    log = ended(waiting, tool={**told["tool"], "digest": "0" * 64})
    found = [what for _index, what in log.problems()]
    assert found == ["no entry states the request that ended, as it ended"]


def said_at_the_end(log: Insider) -> dict[str, Any]:
    whole = ended(log)
    return dict(loads_object(whole.records[whole.last].body))


def test_an_expiry_before_the_end_and_a_withdrawal_after_it(waiting):
    end = waiting.request.expires_at
    for how, at, what in (
        ("expired", end - 1, "a request has expired before its end"),
        ("withdrawn", end, "a request was withdrawn after its end"),
    ):
        assert [found for _index, found in ended(waiting, how, at=at).problems()] == [what]


def test_an_end_of_no_kind(waiting):
    (found,) = ended(waiting, end="forgotten").problems()
    assert "Invalid enum value 'forgotten' - at `$.end`" in found[1]


def test_a_second_end(waiting):
    twice = ended(ended(waiting), at=waiting.request.expires_at + 1)
    (found,) = twice.problems()
    assert "is expired already" in found[1]


def test_an_end_of_a_request_that_let_a_call_run(asked):
    log = asked(PERSON, by=["bob"])
    assert log.problems() == []
    (found,) = ended(log).problems()
    assert "is used already" in found[1]


def test_answers_that_nobody_has_given_to_this_request(waiting):
    end, good = waiting.request.expires_at, waiting.answer("bob")
    other = replace(waiting.request, request_id="e" * 32)
    forged = waiting.answer("mallory", approver="user:bob")
    for answers, said, what in (
        ([forged], {}, "a key that is not on the roster"),
        ([waiting.answer("bob", request=other)], {}, "an answer is to another request"),
        ([good, good], {}, "an answer stands twice"),
        ([waiting.answer("bob", not_before=end + 61)], {}, "newer than the end"),
        ([good], {"roster_sha256": None}, "names a roster for its answers"),
        ([good], {"roster_sha256": "0" * 64}, "a roster of approvers that no entry"),
        ([], {"approvals": [good]}, "names a roster for its answers"),
    ):
        (found,) = ended(waiting, "expired", *answers, **said).problems()
        assert what in found[1], found


# --- the request itself ---------------------------------------------------------------------------


def test_a_request_names_a_delegation_that_is_on_record(waiting):
    index = waiting.index("request")
    stated = loads_object(waiting.records[index].body)
    assert stated["chain_sha256"] is not None
    other = waiting.with_body(index, {**stated, "chain_sha256": "0" * 64})
    (found,) = other.problems()
    assert found[1] == "a chain of delegation that no entry before it keeps"


def test_a_request_that_outlives_its_delegation_or_is_for_somebody_else(waiting):
    index = waiting.index("request")
    for request, what in (
        (replace(waiting.request, expires_at=2**40), "a request ends after its chain"),
        (replace(waiting.request, principal="user:eve"), "for another principal than its chain"),
    ):
        stated: Any = loads_object(waiting.records[index].body)
        said = RequestEntry.new(request, stated["chain_sha256"], at=stated["at"])
        other = waiting.with_body(index, loads_object(said.body), said.summary)
        found = other.problems()
        assert len(found) == 1
        assert what in found[0][1]
