"""The effects that the line of a guarded call yields, and the values that it runs on.

An effect is what may block or run somebody else's code; the drivers of ``drive.py`` carry it out.
``Actor`` is the agent instance for which the line runs, ``Line`` the parts that it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from agentguard.audit.entry import Record
from agentguard.canonical import Fragment
from agentguard.decision import Decision
from agentguard.keys import Signer
from agentguard.ports import AuditLog, Clock, Engine, Entropy, Revocations
from agentguard.redaction import Redaction
from agentguard.tool import FactsFunction


class LookUp(NamedTuple):
    """Effect: call ``facts`` with ``values`` and send back what it returns."""

    facts: FactsFunction
    values: Mapping[str, Any]


class Obtain(NamedTuple):
    """Effect: have a credential, or an authority, made and recorded for ``at``; send it back."""

    obtain: Callable[[datetime], Authority | None]
    at: datetime


class Consume(NamedTuple):
    """Effect: count one call under each of the limits, or none; send back whether it was left."""

    limits: Sequence[tuple[str, int]]


class Evaluate(NamedTuple):
    """Effect: evaluate the policy on ``document`` and send back the engine's answer."""

    document: bytes


class Append(NamedTuple):
    """Effect: make ``record`` durable and send back its receipt."""

    record: Record


class Run(NamedTuple):
    """Effect: run the tool, as this invocation and under this authority; send back its result."""

    invocation_id: str
    authority: Authority


class Enqueue(NamedTuple):
    """Effect: hand ``record`` to the log, to be durable soon. It does not block."""

    record: Record


Effect = Obtain | LookUp | Evaluate | Consume | Append | Run | Enqueue


class NotRun(Exception):  # noqa: N818  it steers the line, as Denied does
    """Raised in the place of a tool's result: authorised, but not run, for this reason."""

    def __init__(self, refusal: Decision) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Authority:
    """By what authority an agent makes a call: its own, or what a chain of delegation lends it.

    ``principal`` is for whom it acts, ``scope`` what it may do, None meaning everything; ``actors``
    are the chain's delegatees (``Chain.actors``). ``names`` is all by which it can be revoked,
    ``limits`` are the hops that allow a number of calls only. ``since`` is from when on it counts:
    another thread may have had it derived a moment after this call had looked at the clock.
    """

    principal: str
    scope: frozenset[str] | None
    names: frozenset[str]
    actors: Sequence[str] = ()
    chain_sha256: str | None = None
    token_jti: str | None = None
    task_id: str | None = None
    limits: Sequence[tuple[str, int]] = ()
    since: datetime | None = None
    description: Fragment | None = None
    """The canonical ``delegation`` of the policy's input; None on the agent's own authority."""

    lends: object = None
    """What the tool, while it runs, finds in force (``ambient.py``); None for nothing."""

    def lacks(self, requires: Sequence[str]) -> list[str]:
        """Return what is required and not in the scope."""
        return [] if self.scope is None else [one for one in requires if one not in self.scope]


class Lent(Protocol):
    """A delegation in force, as one agent instance may use it."""

    def authority(self, now: datetime) -> Authority | None:
        """What was derived already and is good for a call now; None if there is nothing."""

    def derive(self, now: datetime) -> Authority:
        """Hand the chain on to the instance, verify it and put it on record.

        Raises ``DelegationError``, ``VerificationError``, ``DecodeError`` or ``StorageError``.
        """


@dataclass(frozen=True, slots=True)
class Actor:
    """The agent instance on whose behalf the line runs.

    ``own`` is what it may do on its own authority, None if nothing; ``has_credential`` says whether
    one is in force at a time, ``renew`` has one made.
    """

    name: str
    own: Authority | None
    signer: Signer
    has_credential: Callable[[datetime], bool]
    renew: Callable[[datetime], None]
    description: Fragment
    """The canonical ``{id, name, type, instance}`` of the policy's input."""

    uri: str

    @property
    def alone(self) -> Authority:
        """Itself, without authority: what a refused call is recorded under."""
        return self.own or Authority(f"agent:{self.name}", frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Line:
    """The parts that the line runs on, the same for every call of a guard."""

    engine: Engine
    engine_name: Mapping[str, str]
    log: AuditLog
    revocations: Revocations
    clock: Clock
    entropy: Entropy
    traceparent: Callable[[], str | None]
    config_sha256: str
    redactions: Mapping[str, tuple[Redaction, ...]]
    """What of a call's data is not kept, by the tool's name; ``*`` for every tool."""

    principal_roles: Mapping[str, Sequence[str]]

    def redactions_of(self, tool: str) -> tuple[Redaction, ...]:
        """Return what the configuration redacts of a tool's calls."""
        return self.redactions.get("*", ()) + self.redactions.get(tool, ())
