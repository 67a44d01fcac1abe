"""The verifier and the time of the keys that it trusts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentguard import Decision, Guard, domain


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        guard.new_agent("a").call(guard.tool(lambda: None))
        yield guard


@pytest.mark.parametrize("use", ["issuer", "log"])
@pytest.mark.parametrize("end", ["not_after", "compromised_since"])
def test_what_a_key_signs_after_its_end_does_not_count(guard, use, end):
    keys = guard.trust.keys
    assert domain.examine(guard.reader(), guard.trust).ok
    for later, ok in ((0, False), (3600, True)):
        ended = tuple(
            replace(key, **{end: key.not_before + later}) if key.use == use else key for key in keys
        )
        report = domain.examine(guard.reader(), replace(guard.trust, keys=ended))
        assert report.ok is ok, report.problems
        assert all(use in problem.what for problem in report.problems[:1])
