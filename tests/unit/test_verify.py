"""The verifier: the time of the keys that it trusts, and what it leaves out when it is told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentguard import Decision, Guard
from agentguard.domain.report import Report
from agentguard.domain.verify import examine


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        guard.new_agent("a").call(guard.tool(lambda: None))
        yield guard


@pytest.mark.parametrize("use", ["issuer", "log"])
@pytest.mark.parametrize("end", ["not_after", "compromised_since"])
def test_what_a_key_signs_after_its_end_does_not_count(guard, use, end):
    keys = guard.trust.keys
    assert examine(guard.reader(), guard.trust).ok
    for later, ok in ((0, False), (3600, True)):
        ended = tuple(
            replace(key, **{end: key.not_before + later}) if key.use == use else key for key in keys
        )
        report = examine(guard.reader(), replace(guard.trust, keys=ended))
        assert report.ok is ok, report.problems
        assert all(use in problem.what for problem in report.problems[:1])


def test_without_contents_only_the_hashes_and_checkpoints_are_looked_at(guard):
    class Bare:
        """The reader of the guard, without what stands beside the entries."""

        def __getattr__(self, name):
            if name in ("stored", "attachments", "search"):
                raise AssertionError(name)
            return getattr(guard.reader(), name)

    whole, bare = (
        examine(reader, guard.trust, contents=contents)
        for reader, contents in ((guard.reader(), True), (Bare(), False))
    )
    assert (bare.ok, bare.entries) == (whole.ok, whole.entries) == (True, whole.entries)
    assert bare.head == whole.head


@pytest.fixture
def waiting(guard):
    """A tool, with what was found while a call of it ran: the call has no outcome yet."""
    found: list[Report] = []

    def look():
        found.extend(
            examine(guard.reader(), guard.trust, contents=contents) for contents in (True, False)
        )

    guard.new_agent("a").call(guard.tool(look))
    return found


def test_without_contents_no_call_is_known_to_be_in_doubt(waiting):
    whole, bare = waiting
    assert (len(whole.in_doubt), bare.in_doubt) == (1, ())
