"""A guard whose spans and metrics an SDK exports to memory."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import ApprovalPending, Decision, Guard
from agentguard.adapters import Arguments, CallSite, Invocation
from agentguard.audit.kinds import parse_entry
from agentguard.domain import config, memory
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.signing.keys import Ed25519Signer

TABLES: dict[str, Any] = {
    "trust_domain": "acme.example",
    "agents": {
        "reviewer": {"type": "code-agent", "authority": "own", "max_scope": ["pr:write"]},
        "tester": {"type": "test-agent"},
    },
}


def answer(document: Any) -> Any:
    """Deny what goes to main; have people asked about a release."""
    branch = document["args"].get("branch")
    if branch == "main":
        return Decision.deny("nobody pushes to main")
    return Decision.require_approval() if branch == "release" else Decision.allow()


def in_memory(answer: Any, tables: dict[str, Any]) -> Guard:
    """A guard with ``[policy]``, which only a durable one may have, and nothing on disk."""
    settings = config.parse({"state": "unused", **tables}, source="agentguard.toml", base=Path())
    home = memory.new_domain(settings.trust_domain, now=datetime.now(UTC))
    return Guard(Embedded(settings, FunctionEngine(answer), home))


class Place:
    """A guard, an agent with a tool, and a person who approves."""

    def __init__(self, answer: Any = answer, **tables: Any) -> None:
        self.bob = Ed25519Signer.from_seed(os.urandom(32))
        people = {"bob": {"keys": [self.bob.public_key.openssh()]}}
        tables = {**TABLES, "approvers": people, **tables}
        self.guard = (
            in_memory(answer, tables)
            if "policy" in tables
            else Guard.ephemeral(answer, config=tables)
        )
        self.agent = self.guard.new_agent("reviewer")
        self.check: Any = None
        self.does: Any = lambda branch: f"pushed {branch}"

        @self.guard.tool(requires=["pr:write"])
        def push(branch: str) -> str:
            """Push a branch."""
            reply: str = self.does(branch)
            return reply

        self.push = push

    def call(self, branch: Any = "fix") -> Any:
        return self.agent.call(self.push, branch=branch)

    def bound(self, branch: Any) -> Any:
        """The same call, as an adapter makes it."""
        bind = lambda: Arguments.of({"branch": branch})  # noqa: E731
        return Invocation.bind(self.push.spec, bind, CallSite("call_1", thread="t"))

    def ask(self, branch: Any = "release") -> Any:
        with pytest.raises(ApprovalPending) as pending:
            self.call(branch)
        return pending.value.request

    def entries(self, kind: Any) -> Any:
        with closing(self.guard.reader()) as reader:
            stored = [(index, parse_entry(body)) for index, body in reader.entries()]
        return [(index, found) for index, found in stored if found.kind == kind]

    def recorded(self) -> Any:
        """The place of the last authorization in the log, and its invocation's predicate."""
        index, found = self.entries("call")[-1]
        call = found
        return index, call


def ids(span: Any) -> Any:
    return span.context.trace_id, span.context.span_id


def traceparent(span: Any) -> Any:
    trace_id, span_id = ids(span)
    return f"00-{trace_id:032x}-{span_id:016x}-{span.context.trace_flags:02x}"
