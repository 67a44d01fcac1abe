"""The tests that run both ways have guards of both kinds (``tests/support/served_guards.py``)."""

from __future__ import annotations

from served_guards import ServedParts

from agentguard import Decision, Guard
from agentguard.guard.embedded import Embedded


def test_a_guard_is_what_the_case_says(guards_are):
    kind = {"embedded": Embedded, "served": ServedParts}[guards_are]
    with Guard.ephemeral(lambda _input: Decision.allow()) as guard:
        assert type(guard._parts) is kind
        assert guard.new_agent("a").call(guard.tool(name="run")(lambda: "ran")) == "ran"
