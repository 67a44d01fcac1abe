"""The policy is told of the people whose approvals count, and of nobody else.

Whoever asks for a call has a key, and can write in the state: the answer lies beside one that
counts.
"""

from __future__ import annotations

from typing import Any

import pytest
from approval_desk import Desk

from agentguard import Decision, Requirement


@pytest.mark.parametrize(("also", "said"), [("carol", "policy.denied"), ("", "merged main")])
def test_the_role_of_whoever_asks_is_not_among_those_who_approved(place, also, said):
    """Carol, a lead, owns the agent: her own approval counts for nothing."""
    agents = {"reader": {"authority": "own", "owner": "user:carol" if also else "user:erin"}}
    desk = Desk(place, agents=agents)
    told: list[Any] = []

    def policy(call: Any) -> Decision:
        approval = call.get("approval")
        if approval is None:
            return Decision.require_approval(Requirement("a person"))
        told.append(approval)
        is_lead = "lead" in approval["roles"]
        return Decision.allow() if is_lead else Decision.deny("a lead has to be among them")

    with place.open(policy) as guard:
        request = desk.ask(guard)
        desk.answer(request, "bob")
        desk.answer(request, "carol")
        assert desk.call(guard) == said
        assert guard.verify().ok
    people = ["bob"] if also else ["bob", "carol"]
    assert told == [
        {
            "approvers": people,
            "principals": [f"user:{name}" for name in people],
            "roles": [] if also else ["lead"],
        }
    ]
