"""A guard in memory and one on a state say the same, whatever people and programs do in any order.

An application is tested with ``Guard.ephemeral``, and runs with a state.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from agentguard import AgentguardError, ApprovalRequest, Decision, Guard, Requirement

STEPS = 80
WHATS = ("<x>", "<y>", "<z>")


@pytest.fixture
def guards(desk) -> Iterator[tuple[Guard, Guard]]:
    def policy(_input: Any) -> Decision:
        return Decision.require_approval(desk.needed)

    settings = {"approvers": desk.approvers}
    with desk.open() as in_state, Guard.ephemeral(policy, config=settings) as in_memory:
        yield in_state, in_memory


class Twin:
    """One of the guards, its agent and its requests, in the order in which they were asked."""

    def __init__(self, desk: Any, guard: Guard) -> None:
        self._desk, self._guard, self._agent = desk, guard, guard.new_agent("reader")
        self.requests: list[ApprovalRequest] = []

    def do(self, act: str, what: str, who: str, place: float) -> object:
        try:
            return self._do(act, what, who, place)
        except AgentguardError as error:
            return error.code

    def _do(self, act: str, what: str, who: str, place: float) -> object:
        inbox = self._guard.approvals
        if act == "call":
            said = self._desk.call(self._guard, what, self._agent)
            known = {request.request_id for request in self.requests}
            self.requests += [one for one in inbox.pending() if one.request_id not in known]
            return said
        if not self.requests:
            return None
        request = self.requests[int(place * len(self.requests))]
        status = inbox.status(request.request_id)
        match act:
            case "approve":
                inbox.approve(request, self._desk.keys[who])
            case "reject":
                inbox.reject(request, self._desk.keys[who])
            case "withdraw" if status.state != "rejected":
                return inbox.withdraw(request)
        return status.state, status.call, status.code


@pytest.mark.parametrize("quorum", [1, 2])
def test_a_guard_in_memory_says_what_one_on_a_state_says(desk, guards, quorum):
    seed = f"{os.environ['AGENTGUARD_SEED']} {quorum}"
    chance = random.Random(seed)  # noqa: S311  no secret
    desk.needed = Requirement("a person", quorum=quorum)
    in_state, in_memory = (Twin(desk, guard) for guard in guards)
    acts = ("call", "call", "approve", "approve", "reject", "withdraw", "status")
    done = []
    for _ in range(STEPS):
        step = (chance.choice(acts), chance.choice(WHATS), chance.choice(("bob", "carol")))
        place = chance.random()
        done.append((step, in_state.do(*step, place), in_memory.do(*step, place)))
        assert done[-1][1] == done[-1][2], done
    assert len(in_state.requests) == len(in_memory.requests) > 0
    assert desk.ran[::2] == desk.ran[1::2]  # each call ran in both, or in neither
