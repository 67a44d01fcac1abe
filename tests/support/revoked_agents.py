"""A durable domain whose agents act under delegations that a test revokes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agentguard import Denied, Guard
from agentguard.audit.entry import LogPlace
from agentguard.delegation.handle import Delegation
from agentguard.domain import administration

PASSPHRASE = b"correct horse battery staple"
SCOPE = ["read"]


class Scene:
    """A guard in use: a worker, a helper that it calls, and a robot; for alice and for bob."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.guard: Guard = place.open()
        self.worker, self.helper = self.guard.new_agent("worker"), self.guard.new_agent("helper")
        self.robot = self.guard.new_agent("robot")
        self.read = self.guard.tool(name="read", requires=SCOPE)(lambda: "ok")
        self.ask = self.guard.tool(name="ask", requires=SCOPE)(
            lambda: attempt(self.helper, self.read)
        )
        self.alice = self.lend("user:alice", "service:ci")
        self.bob = self.lend("user:bob", "service:other")

    def lend(self, user: str, via: str) -> Delegation:
        return self.guard.delegate(user, scope=SCOPE, via=via)

    def calls(self) -> dict[str, str]:
        """What becomes of the next call of each."""
        found: dict[str, str] = {}
        for name, delegation in (("alice", self.alice), ("bob", self.bob)):
            with delegation:
                found[f"worker for {name}"] = attempt(self.worker, self.read)
                found[f"helper for {name}"] = attempt(self.helper, self.read)
                found[f"helper through worker for {name}"] = attempt(self.worker, self.ask)
        found["robot"] = attempt(self.robot, self.read)
        return found

    def denied(self) -> set[str]:
        """Who is denied now, all for the same reason."""
        found = self.calls()
        assert set(found.values()) <= {"ok", "delegation.revoked"}
        return {name for name, became in found.items() if became != "ok"}

    def revoke(self, name: str) -> LogPlace:
        return administration.revoke(
            self.place.config, PASSPHRASE, name, note="n", now=datetime.now(UTC)
        )

    def freeze(self, *, frozen: bool = True) -> LogPlace:
        return administration.freeze(
            self.place.config, PASSPHRASE, frozen=frozen, note="n", now=datetime.now(UTC)
        )

    def handed_to(self, agent: Any, delegation: Delegation) -> Any:
        """The chain that ends with an agent, and its token."""
        instance = agent._caller.instance()
        return instance._acceptances.get(delegation.key).token


def attempt(agent: Any, tool: Any) -> str:
    try:
        return str(agent.call(tool))
    except Denied as denied:
        return denied.code


ALL_OF_ALICE = {"worker for alice", "helper for alice", "helper through worker for alice"}
