"""What names a call: its site, its digest, its commitments, its time."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import Decision
from agentguard.adapters import Arguments, CallSite, Invocation, ToolSpec
from agentguard.call.invocation import call_digest, commitment, timestamp
from agentguard.errors import ArgumentsError, EncodeError

TOOL = ToolSpec("open_pr", "", {}, "m:open_pr")
PREDICATE: dict[str, Any] = {
    "principal": "agent:a",
    "tool": {"name": "open_pr", "digest": "d"},
    "arguments": "c",
    "resource": "r",
    "task_id": "t",
    "call_site": "s",
    "invocation_id": "not part of it",
}


@pytest.mark.parametrize("change", ["principal", "arguments", "resource", "task_id", "call_site"])
def test_the_call_digest_covers_what_makes_a_call_this_call(change):
    digest = call_digest("a", PREDICATE)
    assert call_digest("a", {**PREDICATE, change: "other"}) != digest
    assert call_digest("a", {**PREDICATE, change: None}) != digest
    assert call_digest("a", {**PREDICATE, "tool": {"digest": "other"}}) != digest
    assert call_digest("b", PREDICATE) != digest


def test_the_call_digest_is_the_same_for_another_instance_or_attempt():
    again = {**PREDICATE, "invocation_id": "another", "tool": {"digest": "d"}, "agent": "x"}
    assert call_digest("a", again) == call_digest("a", PREDICATE)


@given(st.lists(st.builds(CallSite, *[st.text(max_size=3)] * 4), min_size=2, max_size=6))
def test_different_sites_have_different_digests(sites):
    assert len({site.digest("a") for site in sites}) == len(set(sites))


def test_a_site_belongs_to_its_agent_and_absent_is_not_empty():
    assert CallSite("1").digest("a") != CallSite("1").digest("b")
    assert CallSite("1").digest("a") != CallSite("1", thread="").digest("a")
    with pytest.raises(EncodeError):
        CallSite("\ud800").digest("a")


def test_a_commitment_hides_behind_its_salt():
    assert commitment(b"1" * 32, b"x") != commitment(b"2" * 32, b"x")
    assert commitment(b"1" * 32, b"x") == commitment(b"1" * 32, b"x")


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 11, 25, 12, tzinfo=UTC),
        datetime(2026, 11, 25, 21, tzinfo=timezone(timedelta(hours=9))),
    ],
)
def test_a_timestamp_is_utc_to_the_microsecond(moment):
    assert timestamp(moment) == "2026-11-25T12:00:00.000000Z"
    assert timestamp(moment + timedelta(microseconds=5)) == "2026-11-25T12:00:00.000005Z"


@given(st.lists(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)), min_size=2))  # noqa: DTZ001  hypothesis adds the zone
def test_timestamps_sort_as_their_moments_do(moments):
    assert sorted(map(timestamp, moments)) == [timestamp(moment) for moment in sorted(moments)]
    for moment in moments:
        assert datetime.fromisoformat(timestamp(moment)) == moment


def test_binding_keeps_the_error_in_the_arguments_place():
    def broken():
        raise ArgumentsError("no", code="arguments.invalid")

    def worse():
        raise KeyError("secret text")

    site = CallSite("1")
    bound = Invocation.bind(TOOL, lambda: Arguments.of({"x": 1}), site)
    assert isinstance(bound.arguments, Arguments)
    assert bound.site is site
    assert bound.is_unchanged()
    for binding in (broken, worse):
        kept = Invocation.bind(TOOL, binding, site).arguments
        assert isinstance(kept, ArgumentsError)
        assert kept.code == "arguments.invalid"
        assert "secret text" not in str(kept)


@pytest.mark.parametrize(
    ("value", "shared", "looks"),
    [
        ("a", False, 1),
        (7, False, 1),
        (None, False, 1),
        ("a", True, 2),
        ([], False, 2),
        ({}, False, 2),
    ],
)
def test_only_what_could_change_is_looked_at_again(value, shared, looks):
    looked = []

    def binding():
        looked.append(value)
        return Arguments.of({"plain": 1, "x": value})

    assert Invocation.bind(TOOL, binding, CallSite("1"), shared=shared).is_unchanged()
    assert len(looked) == looks


@pytest.mark.parametrize("value", [[], {}, set(), deque(), ([],), CallSite([])])  # type: ignore[arg-type]
def test_whatever_may_change_is_not_immutable(value):
    assert Arguments.of({"plain": "a"}).are_immutable
    assert not Arguments.of({"plain": "a", "x": value}).are_immutable


def test_an_interrupt_while_binding_is_not_kept():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Invocation.bind(TOOL, interrupted, CallSite("1"))


def test_only_what_denies_can_refuse_a_call():
    """An adapter that hands over another would have the call run, and no policy asked."""
    bound = Arguments.of({})
    site = CallSite("call-1")
    refusing = Decision.refusal("a person said no", code="approval.rejected")
    assert Invocation(TOOL, bound, site, refusal=refusing).refusal is refusing
    for other in (Decision.allow(), Decision.require_approval()):
        with pytest.raises(ValueError, match=f"outcome '{other.outcome}' is none"):
            Invocation(TOOL, bound, site, refusal=other)
