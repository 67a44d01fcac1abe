"""A run in the log: the calls and the requests under one delegation, and no others."""

from __future__ import annotations

from contextlib import closing

import pytest

from agentguard import ApprovalPending, Decision, Guard
from agentguard.cli.audit import run_tree


@pytest.fixture
def guard():
    def policy(call):
        return Decision.require_approval() if call["action"] == "pay" else Decision.allow()

    with Guard.ephemeral(policy, config={"approvals": {"application": True}}) as guard:
        yield guard


def test_a_request_is_in_the_run_of_its_delegation_alone(guard):
    agent = guard.new_agent("clerk")
    look, pay = guard.tool(name="look")(lambda at: at), guard.tool(name="pay")(lambda to: to)
    asked: dict[str, str] = {}
    for name in ("one", "two", "own"):  # of one user, by one instance
        delegation = guard.delegate("user:alice", scope=["look", "pay"])
        agent_under = agent if name == "own" else agent.under(delegation)
        agent_under.call(look, name)
        with pytest.raises(ApprovalPending) as pending:
            agent_under.call(pay, name)
        asked[pending.value.request.request_id] = name
    found: dict[str, list[str]] = {}
    with closing(guard.reader()) as reader:
        calls = [
            index
            for index, body in reader.entries()
            if b'"kind":"call"' in body or b'"kind":"request"' in body
        ]
        for index in calls:
            run = run_tree.read(reader, str(index))
            requests = [asked[node.request_id] for node in run.all_nodes() if node.request_id]
            found.setdefault(f"{run.kind} {run.name}", requests)
            assert found[f"{run.kind} {run.name}"] == requests  # from the call and the request
            assert len([*run.all_nodes()]) == 2
    assert sorted(found.values()) == [["one"], ["own"], ["two"]]
