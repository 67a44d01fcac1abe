"""A request that was edited where it lies, while a graph is paused for it: nothing runs on it."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from agentguard import ApprovalError, Decision, Ed25519Signer, Guard, Requirement
from agentguard.domain import config, domain
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard_langchain import GuardMiddleware

PASSPHRASE = b"correct horse battery staple"
CONFIG: Any = {"configurable": {"thread_id": "t1"}}


def policy(document: Any) -> Decision:
    """Asks for a lead, until anybody has approved."""
    if document.get("approval") is not None:
        return Decision.allow()
    return Decision.require_approval(Requirement("a lead", roles=("lead",)))


@pytest.fixture
def bob() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


@pytest.fixture
def guard(tmp_path: Path, bob: Ed25519Signer) -> Any:
    """A guard on disk, where others may write."""
    tables = {
        "trust_domain": "acme.example",
        "state": "state",
        "anchor": "anchor",
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"payer": {"authority": "own"}},
        "approvers": {"bob": {"keys": [bob.public_key.openssh()], "roles": ["lead"]}},
    }
    settings = config.parse(tables, source="agentguard.toml", base=tmp_path)
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(policy), home)) as guard:
        yield guard


def test_an_edited_request_is_answered_by_nobody_and_its_call_is_denied(
    guard, bob, tmp_path, obedient
):
    paid: list[int] = []

    def pay(cents: int) -> str:
        """Pay somebody."""
        paid.append(cents)
        return "paid"

    middleware = [GuardMiddleware(guard.new_agent("payer"))]
    graph = create_agent(obedient, [pay], middleware=middleware, checkpointer=InMemorySaver())

    def asked() -> Any:
        messages = [HumanMessage(json.dumps([["pay", {"cents": 500}]]))]
        state = graph.invoke({"messages": messages}, CONFIG)
        (pause,) = state["__interrupt__"]
        return pause.value

    request_id = asked()["agentguard"][0]["request_id"]
    request = guard.approvals.find(request_id)
    with closing(sqlite3.connect(tmp_path / "state" / "log.sqlite")) as raw, raw:
        ((page,),) = raw.execute("SELECT data FROM request").fetchall()
        document = json.loads(page)
        del document["requirements"][0]["roles"]
        edited = json.dumps(document, separators=(",", ":")).encode()
        raw.execute("UPDATE request SET data = ?", (edited,))
    with pytest.raises(ApprovalError) as refused:
        guard.approvals.approve(request, bob)
    assert refused.value.code == "request.altered"
    state = graph.invoke(None, CONFIG)
    told = state["messages"][-2].text
    assert told.startswith("Not now: pay was not run. ")
    assert told.endswith("make the call again to ask anew [approval.altered].")
    assert paid == []
    assert asked()["agentguard"][0]["request_id"] != request_id  # the twin: the call asks anew
    guard.approvals.approve(guard.approvals.pending()[0], bob)
    graph.invoke(None, CONFIG)
    assert paid == [500]
