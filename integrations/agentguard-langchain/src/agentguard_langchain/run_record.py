"""The record of a run: the principal for whom the run was begun, kept for later processes.

The graph's state holds the record's random handle and nothing else. A checkpoint therefore grants
no authority, and an input can't name another run's record. A resumed run acts for the same
principal, or not at all.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from agentguard import Agent, Delegation, DelegationError, StorageError
from agentguard.adapters import run_store
from agentguard_langchain.graph_task import GraphTask


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The ``principal`` of a run, None where the agent acts for nobody but itself.

    ``stored`` is the run's delegation. It is None in the record of a run that a later run follows,
    and for a delegation that can't be stored: one that a guarded call hands on, which the call
    around the run hands on anew. ``traceparent`` is the run's span, None for none.
    """

    principal: str | None
    stored: bytes | None = None
    traceparent: str | None = None

    @classmethod
    def open(
        cls,
        agent: Agent,
        task: GraphTask,
        delegation: Delegation | None,
        traceparent: str | None,
    ) -> str:
        """Write the record of a run that begins in ``task``, durably; return its handle."""
        principal = None if delegation is None else delegation.principal
        record = cls(principal, _stored(delegation), traceparent)
        handle = os.urandom(16).hex()
        run_store(agent).write(_name(agent, task, handle), record._dumps())
        return handle

    @classmethod
    def find(cls, agent: Agent, task: GraphTask, handle: str) -> Self | None:
        """Read the record of the run that continues in ``task``.

        Returns None for a record that is gone, or is another run's.
        """
        data = run_store(agent).read(_name(agent, task, handle))
        if data is None:
            return None
        fields = json.loads(data)
        stored = fields["delegation"]
        delegation = None if stored is None else b64decode(stored)
        return cls(fields["principal"], delegation, fields.get("traceparent"))

    def _dumps(self) -> bytes:
        stored = None if self.stored is None else b64encode(self.stored).decode()
        record = {"principal": self.principal, "delegation": stored}
        return json.dumps({**record, "traceparent": self.traceparent}).encode()

    def require(self, delegation: object) -> None:
        """Raise ``DelegationError`` (``delegation.mismatch``) for one of another principal."""
        principal = getattr(delegation, "principal", None)
        if principal != self.principal:
            expected, other = (
                "nobody but the agent itself" if one is None else one
                for one in (self.principal, principal)
            )
            message = f"this run was begun for {expected}, and goes on for {other}: begin a new one"
            raise DelegationError(message, code="delegation.mismatch", delegation=delegation)


def retire(agent: Agent, task: GraphTask, handle: str) -> None:
    """Remove the delegation from the record of a run that a later run follows.

    The principal stays: a checkpoint of the run continues for that principal, or not at all.
    """
    name = _name(agent, task, handle)
    try:
        record = RunRecord.find(agent, task, handle)
    except StorageError:
        run_store(agent).remove(name)  # the record does not verify: no run could continue by it
        return
    if record is not None and record.stored is not None:
        run_store(agent).write(name, replace(record, stored=None)._dumps())  # noqa: SLF001


def handle_of(state: object, key: str) -> str | None:
    """Return the handle that a graph's state has under ``key``; None for none."""
    handle = state.get(key) if isinstance(state, Mapping) else None
    return handle if isinstance(handle, str) else None


def _name(agent: Agent, task: GraphTask, handle: str) -> str:
    # another agent, thread or namespace has no record of this name
    return "run " + json.dumps([agent.name, task.thread, task.namespace, handle])


def _stored(delegation: Delegation | None) -> bytes | None:
    try:
        return None if delegation is None else delegation.dumps()
    except DelegationError:
        return None
