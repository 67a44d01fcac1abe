"""The effects that a guarded call yields, and the values that the steps of the call use.

An effect is what may block or run somebody else's code. ``drive.py`` and ``drive_async.py`` carry
the effects out. ``Actor`` is the agent instance that makes the call, ``Authority`` and
``DelegationSource`` are what the agent may do and on whose behalf. ``Ports`` holds the parts that
every call of a guard runs on; a ``CallListener`` is told of one call, for telemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVarTuple

from agentguard.approvals.answer import Approval
from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Roster
from agentguard.approvals.store import Approvals
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Mode, Receipt
from agentguard.audit.log import AuditLog
from agentguard.audit.records import Record
from agentguard.call.decision import Decision
from agentguard.call.journal import Journal, RunStore
from agentguard.call.redaction import Redaction
from agentguard.call.tool import FactsFunction, FactsInput
from agentguard.identity.revocation import Revocations
from agentguard.policy.engine import Engine
from agentguard.signing.canonical import Fragment
from agentguard.signing.keys import Signer

Ts = TypeVarTuple("Ts")

Clock = Callable[[], datetime]
"""Returns the wall-clock time, aware and in UTC."""

Entropy = Callable[[int], bytes]
"""Returns that many random bytes, fit for keys."""


class LookUp(NamedTuple):
    """Effect: call the application's look-up of facts and send back what the function returns."""

    function: FactsFunction
    facts_input: FactsInput


class Do:
    """Effect: call ``function`` with ``arguments`` and send back what it returns.

    The function may wait for a disk or for a service: the async driver calls it in a thread, and
    waits for its end even where the call is cancelled meanwhile.
    """

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        self._function: Callable[..., object] = function
        self._arguments = arguments

    def __call__(self) -> object:
        """Call the function: for the drivers alone."""
        return self._function(*self._arguments)


class Evaluate(NamedTuple):
    """Effect: evaluate the policy on ``document`` and send back the engine's answer."""

    engine: Engine
    document: bytes


class Run(NamedTuple):
    """Effect: run the tool, as this invocation and under this authority; send back its result.

    ``nested_calls`` keeps account of the guarded calls that the tool makes.
    """

    invocation_id: str
    authority: Authority
    nested_calls: NestedCalls


class Enqueue(NamedTuple):
    """Effect: hand ``record`` to the log, which makes it durable within 50 ms; does not block."""

    log: AuditLog
    record: Record


Effect = Do | LookUp | Evaluate | Run | Enqueue


class NotRun(Exception):  # noqa: N818  it steers the flow, as Denied does
    """Raised in place of a tool's result: the call was authorised, and the tool did not run."""

    def __init__(self, refusal: Decision) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Authority:
    """What an agent may do, and on whose behalf: its own authority, or a chain of delegation.

    ``principal`` is on whose behalf the agent acts; ``scope`` is what the agent may do, None for
    everything. ``actors`` are the chain's delegatees (``Chain.actors``). ``names`` are all names
    by which the authority can be revoked. ``limits`` are the hops that allow a number of calls
    only, each with that number. ``since`` is the time from which the authority counts, which may
    be a moment after the call has looked at the clock: another thread may have derived it.
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
    """The delegation in force while the tool runs (``delegation/context.py``); None for none."""

    def lacks(self, requires: Sequence[str]) -> list[str]:
        """Return the required scopes that are not in the authority's scope."""
        return [] if self.scope is None else [name for name in requires if name not in self.scope]


class DelegationSource(Protocol):
    """A delegation in force, as one agent instance may use it."""

    def authority(self, now: datetime) -> Authority | None:
        """Return the authority that was derived before and is still valid, None for none."""

    def derive(self, now: datetime) -> Authority:
        """Hand the chain on to the instance, verify it and put it on record.

        Raises ``DelegationError``, ``VerificationError``, ``DecodeError`` or ``StorageError``.
        """


@dataclass(frozen=True, slots=True)
class Actor:
    """The agent instance that makes the call.

    ``own`` is the agent's own authority, None where it has none. ``has_credential`` says whether
    the instance has a credential at a time that needs no renewal yet; ``renew`` gets one.
    """

    name: str
    own: Authority | None
    signer: Signer
    has_credential: Callable[[datetime], bool]
    renew: Callable[[datetime], None]
    description: Fragment
    """The canonical ``{id, name, type, instance}`` of the policy's input."""

    uri: str
    type: str = ""
    owner: str | None = None
    """The principal who owns the agent, and may not approve the agent's calls."""

    @property
    def alone(self) -> Authority:
        """The agent without any authority but its own: a refused call is recorded under this."""
        return self.own or Authority(f"agent:{self.name}", frozenset(), frozenset())


class CallListener(Protocol):
    """Is told what happens to one call, for telemetry, and has no say.

    A listener raises nothing. The call starts a span with ``begin``; the drivers enter the span's
    context (``__enter__``) for what runs somebody else's code: facts, the engine and the tool.
    """

    def begin(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        """The call is made under ``authority``; return the call's span as a W3C ``traceparent``.

        ``paused`` is the span of the earlier attempt that asked for an approval, None for none.
        """

    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """The policy has answered; or the call was refused without the policy (no digest)."""

    def asks(self) -> str | None:
        """A request for an approval is about to be made; return its span as a ``traceparent``."""

    def requested(self, request: ApprovalRequest, receipt: Receipt, head: Checkpoint) -> None:
        """The request for an approval is in the log, at ``receipt``."""

    def waits(self, request: ApprovalRequest) -> None:
        """The call waits for answers to ``request``."""

    def answered(self, request: ApprovalRequest, answers: Sequence[Approval]) -> None:
        """The request has ``answers``, each an approval or a rejection."""

    def recorded(
        self,
        decision: Decision,
        invocation: LoggedInvocation,
        receipt: Receipt,
        head: Checkpoint,
    ) -> None:
        """The authorization entry with ``decision`` is in the log, at ``receipt``."""

    def suspended(self) -> None:
        """The framework has paused the tool, by an exception that is no error."""

    def handed_on(self) -> None:
        """The framework goes on elsewhere, by an exception of the tool that is no error."""

    def outcome(
        self,
        status: str,
        error_type: str | None = None,
        attachments: Sequence[Attachment] = (),
        replay_of: str | None = None,
    ) -> None:
        """The outcome is in the log or about to be, with ``attachments`` (the result) beside it."""

    def end(self, error: BaseException | None) -> None:
        """The call ends with ``error``, or with a result (None)."""

    def __enter__(self) -> object:
        """Enter the context of the call's span."""

    def __exit__(self, *raised: object) -> None:
        """Leave the context."""


class LoggedInvocation(NamedTuple):
    """An invocation in the log: its id, its digest (hex), and what is kept beside the entry.

    Where the decision is not ``enforced`` (mode ``observe``), the call runs whatever it is.
    """

    id: str | None
    sha256: str
    attachments: Sequence[Attachment]
    enforced: bool


@dataclass(frozen=True, slots=True)
class Ports:
    """The parts that every call of a guard runs on, in one process."""

    engine: Engine
    engine_name: Mapping[str, str]
    log: AuditLog
    revocations: Revocations
    clock: Clock
    entropy: Entropy
    config_sha256: str
    redactions: Mapping[str, tuple[Redaction, ...]]
    """The parts of a call's data that are not kept, by the tool's name; ``*`` for every tool."""

    roles_of: Callable[[str], Sequence[str]]
    """Returns the roles of a principal, for the policy's input; may raise ``AgentguardError``."""

    approvals: Approvals
    journal: Journal
    runs: RunStore
    roster: Roster
    trust_domain: str
    on_request: Callable[[ApprovalRequest], object] | None = None
    """Called with each new request, once the request can be answered."""

    mode: Mode = "enforce"
    """``enforce``, or ``observe``: then the policy's answer is logged, and refuses nothing."""

    def redactions_of(self, tool: str) -> tuple[Redaction, ...]:
        """Return what the configuration redacts of a tool's calls."""
        return self.redactions.get("*", ()) + self.redactions.get(tool, ())
