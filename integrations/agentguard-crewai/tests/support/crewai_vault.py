"""Tools that read what is secret for each user, and what a log says of their calls.

The tests ``test_crewai_cache_*.py`` share these. The fixtures are in ``conftest.py``.
"""

from __future__ import annotations

from typing import Any

from crewai.tools import tool

from agentguard import Guard, current_delegation

LENT = {"max_scope": ["a", "b"]}
NAMES = ("lead", "writer", "crew-manager")


class Vault:
    """A tool whose results tell for whom it ran; ``ran`` has each run."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        ran = self.ran

        @tool
        def read_secret(name: str) -> str:
            """Read a secret."""
            lent = current_delegation()
            ran.append((lent.principal if lent else "nobody", name))
            return f"secret {len(ran)} of {name}"

        @tool
        def look(at: int) -> str:
            """Look at something else, so that no call is the last one once more."""
            return f"nothing at {at}"

        self.read_secret: Any = read_secret
        self.look: Any = look

    @property
    def tools(self) -> list[Any]:
        return [self.read_secret, self.look]


def delegated(guard: Guard, principal: str, **options: Any) -> Any:
    """What somebody lends to a crew."""
    return guard.delegate(principal, via="crew:report", **options)


def read(*names: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls for secrets, with a look at something else after each."""
    steps: list[tuple[str, dict[str, Any]]] = []
    for at, name in enumerate(names):
        steps += [("read_secret", {"name": name}), ("look", {"at": at})]
    return steps


def reads(calls: list[Any]) -> list[tuple[str, tuple[str, ...], str, str | None]]:
    """Who asked for a secret, on whose behalf, and what came of it."""
    return [
        (call.agent, call.chain, call.decision, call.outcome)
        for call in calls
        if call.tool == "read_secret"
    ]


def told(output: Any) -> list[str]:
    """What the models of a crew got to read, task by task."""
    return [str(task.messages) for task in output.tasks_output]


ALICE = ("user:alice", "crew:report", "lead")
