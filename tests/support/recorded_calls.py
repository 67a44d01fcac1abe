"""What a guard in memory has on record of its calls."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import (
    Decision,
    Denied,
)
from agentguard.audit.kinds import parse_entry
from agentguard.domain.verify import examine
from agentguard.signing.canonical import loads_object
from agentguard.signing.dsse import Envelope


def allow_all(_document: Any) -> Any:
    return Decision.allow()


def records(guard: Any, kind: Any) -> Any:
    bodies = [parse_entry(body) for _index, body in guard.reader().entries()]
    return [entry.members for entry in bodies if entry.kind == kind]


def outcomes(guard: Any) -> Any:
    statements = [members["statement"] for members in records(guard, "outcome")]
    return [
        loads_object(Envelope.parse(s, may_be_joint=True).payload)["predicate"] for s in statements
    ]


def verified(guard: Any) -> Any:
    report = examine(guard.reader(), guard.trust)
    assert report.problems == ()
    return report


def refused(guard: Any, agent: Any, tool: Any, *args: Any, **kwargs: Any) -> Any:
    """The code with which a call is refused, and that it is on a record that verifies."""
    with pytest.raises(Denied) as caught:
        agent.call(tool, *args, **kwargs)
    last = records(guard, "call")[-1]
    assert (last["decision"], last["code"]) == ("deny", caught.value.code)
    assert last["reasons"] == list(caught.value.decision.reasons)
    assert verified(guard).in_doubt == ()
    assert outcomes(guard) == []
    return caught.value.code
