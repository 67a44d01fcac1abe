"""Pins: the tools that each agent has called, as the program described them at the first call.

A program describes its tools itself. Code that an agent is talked into running could describe
another tool under the same name, with a harmless description and without the scopes that it needs.
So the server keeps how a program described a tool at the agent's first call of the name, and
refuses another description until the server's user accepts it (``agentguard server accept``). What
the server's own configuration adds (``[tools.NAME]``) is in no pin: the administrator may edit it.
"""

from __future__ import annotations

import threading
from typing import Final

from agentguard.call.decision import Decision
from agentguard.call.journal import RunStore
from agentguard.call.tool import ToolSpec
from agentguard.errors import StorageError
from agentguard.signing.canonical import sha256_hex
from agentguard.wire import values

_PREFIX: Final = "\0pin"
"""No client's name begins so: what a client keeps of runs stands under its name."""

_MOST: Final = 10_000
"""The most pins that are kept in memory; the others are read from the store."""


class ToolPins:
    """The pins of a state, in the store ``runs``. The methods may be called from any thread."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._known: dict[str, bytes] = {}

    def refusal(self, agent: str, tool: str, found: bytes) -> Decision | None:
        """Return the refusal of a tool that differs from the pin; the first tool is pinned.

        ``tool`` is the tool's name in the policy, and ``found`` is what ``pin_of`` returns for the
        program's description of the tool.
        """
        name = _name(agent, tool)
        try:
            pinned = self._known.get(name) or self._pin(name, found)
        except StorageError as error:
            return Decision.of_error(error)
        if pinned == found:
            return None
        reason = (
            f"the tool {tool} is not the one that agent {agent} called before: the program has "
            "changed its description (docstring), schema, origin, resource, requires, attributes "
            "or facts. If the change is meant, run this as the server's user: "
            f"agentguard server accept {agent} {tool}"
        )
        return Decision.refusal(reason, code="tool.changed")

    def _pin(self, name: str, found: bytes) -> bytes:
        """Return the pin under ``name``, which is ``found`` where there was none."""
        with self._lock:
            pinned = self._runs.read(name)
            if pinned is None:
                self._runs.write(name, found)
                pinned = found
            if len(self._known) >= _MOST:  # a client names as many tools as it likes
                self._known.clear()
            self._known[name] = pinned
            return pinned

    def accept(self, agent: str, tool: str) -> bool:
        """Forget the pin of a tool: the next call pins anew. Return whether there was one.

        Raises ``StorageError``.
        """
        name = _name(agent, tool)
        with self._lock:
            self._known.pop(name, None)
            is_there = self._runs.read(name) is not None
            self._runs.remove(name)
            return is_there


def pin_of(spec: ToolSpec) -> bytes:
    """Return what a pin compares, for a tool as the program describes it: a SHA-256, in hex."""
    return sha256_hex(values.encoded(values.tool(spec))).encode()


def _name(agent: str, tool: str) -> str:
    return f"{_PREFIX}\0{agent}\0{tool}"
