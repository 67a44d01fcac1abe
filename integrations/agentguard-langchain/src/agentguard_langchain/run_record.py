"""The record of a run: for whom it was begun, kept where a later process finds it.

The graph's state holds the record's random handle and nothing else: a checkpoint lends nothing, and
an input can't name another run's record. Whoever resumes a run goes on for the same principal, or
not at all.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from agentguard import Agent, Delegation, DelegationError, StorageError
from agentguard_langchain.graph_task import Place


@dataclass(frozen=True, slots=True)
class RunRecord:
    """For whom a run was begun: ``principal``, None for nobody but the agent itself.

    ``stored`` is the delegation. It is None for one that can't be stored (what a guarded call has
    handed on), which the call around the run hands on anew, and in the record of a run that a later
    one follows. ``traceparent`` is its span, None for none.
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
        handle = os.urandom(16).hex()
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


def retire(agent: Agent, place: Place, handle: str) -> None:
    """Take the delegation out of the record of a run that a later one follows.

    The principal stays: a checkpoint of the run goes on for that principal, or not at all.
    """
    name = _name(agent, place, handle)
    try:
        record = RunRecord.find(agent, place, handle)
    except StorageError:
        agent.runs.remove(name)  # it does not verify, so that nobody goes on by it anyway
        return
    if record is not None and record.stored is not None:
        agent.runs.write(name, replace(record, stored=None)._dumps())  # noqa: SLF001


def handle_of(state: object, key: str) -> str | None:
    """Return the handle that a graph's state has under ``key``; None for none."""
    handle = state.get(key) if isinstance(state, Mapping) else None
    return handle if isinstance(handle, str) else None


def _name(agent: Agent, place: Place, handle: str) -> str:
    # another agent, thread or namespace has no record of this name
    return "run " + json.dumps([agent.name, place.thread, place.namespace, handle])


def _stored(lent: Delegation | None) -> bytes | None:
    try:
        return None if lent is None else lent.dumps()
    except DelegationError:
        return None
