"""The record of a run: for whom it was begun, kept where a later process finds it.

The graph's state holds the record's random handle and nothing else: a checkpoint lends nothing, and
an input can't name another run's record. Whoever resumes a run goes on for the same principal, or
not at all.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final, Self

from agentguard import Agent, Delegation, DelegationError
from agentguard_langchain.place import Place

_LENT: Final = "lent-"
_OWN: Final = "own-"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """For whom a run was begun: ``principal``, None for nobody but the agent itself.

    ``stored`` is the delegation, None for one that can't be stored (what a guarded call has handed
    on): the call around the run hands it on anew. ``traceparent`` is its span, None for none.
    """

    principal: str | None
    stored: bytes | None = None
    traceparent: str | None = None

    @classmethod
    def open(
        cls, agent: Agent, place: Place, lent: Delegation | None, traceparent: str | None
    ) -> str:
        """Write the record of a run that begins here, durably; return its handle."""
        record = cls(None if lent is None else lent.principal, _stored(lent), traceparent)
        handle = f"{_OWN if lent is None else _LENT}{os.urandom(16).hex()}"
        agent.runs.write(_name(agent, place, handle), record._dumps())
        return handle

    @classmethod
    def find(cls, agent: Agent, place: Place, handle: str) -> Self | None:
        """Read the record of the run that goes on here; None if it is gone, or of another run."""
        data = agent.runs.read(_name(agent, place, handle))
        if data is None:
            return None
        read = json.loads(data)
        stored = read["delegation"]
        told = None if stored is None else b64decode(stored)
        return cls(read["principal"], told, read.get("traceparent"))

    def _dumps(self) -> bytes:
        stored = None if self.stored is None else b64encode(self.stored).decode()
        record = {"principal": self.principal, "delegation": stored}
        return json.dumps({**record, "traceparent": self.traceparent}).encode()

    def require(self, principal: str | None) -> None:
        """Raise ``DelegationError`` (``delegation.mismatch``) where another principal goes on."""
        if principal != self.principal:
            mine = self.principal or "nobody but the agent itself"
            other = principal or "nobody but the agent itself"
            message = f"this run was begun for {mine}, and goes on for {other}: begin a new one"
            raise DelegationError(message, code="delegation.mismatch")


def forget(agent: Agent, place: Place, handle: str) -> None:
    """Remove the record of a run that does not go on."""
    agent.runs.remove(_name(agent, place, handle))


def was_lent(handle: str) -> bool:
    """Whether a run was begun for somebody, whatever has become of its record."""
    return not handle.startswith(_OWN)


def _name(agent: Agent, place: Place, handle: str) -> str:
    # another agent, thread or namespace has no record of this name
    return "run " + json.dumps([agent.name, place.thread, place.namespace, handle])


def _stored(lent: Delegation | None) -> bytes | None:
    try:
        return None if lent is None else lent.dumps()
    except DelegationError:
        return None
