"""The effects that the line of a guarded call yields, and the values that it runs on.

An effect is what may block or run somebody else's code; the drivers of ``drive.py`` carry it out.
``Actor`` is the agent instance for which the line runs, ``Line`` the parts that it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from agentguard.audit.entry import Record
from agentguard.canonical import Fragment
from agentguard.keys import Signer
from agentguard.ports import AuditLog, Clock, Engine, Entropy
from agentguard.redaction import Redaction
from agentguard.tool import FactsFunction


class LookUp(NamedTuple):
    """Effect: call ``facts`` with ``values`` and send back what it returns."""

    facts: FactsFunction
    values: Mapping[str, Any]


class Renew(NamedTuple):
    """Effect: have a credential for ``at`` made, recorded and put in force."""

    renew: Callable[[datetime], None]
    at: datetime


class Evaluate(NamedTuple):
    """Effect: evaluate the policy on ``document`` and send back the engine's answer."""

    document: bytes


class Append(NamedTuple):
    """Effect: make ``record`` durable and send back its receipt."""

    record: Record


class Run(NamedTuple):
    """Effect: run the tool, as this invocation, and send back its result."""

    invocation_id: str


class Enqueue(NamedTuple):
    """Effect: hand ``record`` to the log, to be durable soon. It does not block."""

    record: Record


Effect = Renew | LookUp | Evaluate | Append | Run | Enqueue


@dataclass(frozen=True, slots=True)
class Actor:
    """The agent instance on whose behalf the line runs.

    ``has_credential`` says whether one is in force at a time, ``renew`` has one made; ``scope`` is
    what the agent may do on its own authority, None meaning everything.
    """

    name: str
    authority: Literal["own", "delegated"]
    scope: frozenset[str] | None
    signer: Signer
    has_credential: Callable[[datetime], bool]
    renew: Callable[[datetime], None]
    description: Fragment
    """The canonical ``{id, name, type, instance}`` of the policy's input."""

    uri: str
    principal: str
    """For whom it acts: ``agent:<name>`` on its own authority."""


@dataclass(frozen=True, slots=True)
class Line:
    """The parts that the line runs on, the same for every call of a guard."""

    engine: Engine
    engine_name: Mapping[str, str]
    log: AuditLog
    clock: Clock
    entropy: Entropy
    traceparent: Callable[[], str | None]
    config_sha256: str
    redactions: Mapping[str, tuple[Redaction, ...]]
    """What of a call's data is not kept, by the tool's name; ``*`` for every tool."""

    def redactions_of(self, tool: str) -> tuple[Redaction, ...]:
        """Return what the configuration redacts of a tool's calls."""
        return self.redactions.get("*", ()) + self.redactions.get(tool, ())
