"""The effects that the line of a guarded call yields, and the values that it runs on.

An effect is what may block or run somebody else's code; ``drive.py`` and ``drive_async.py`` carry
it out.
``Actor`` is the agent instance for which the line runs, ``Line`` the parts that it runs on, and a
``Watch`` is told of one call as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from agentguard.approvals.answer import Approval
from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Roster
from agentguard.approvals.store import Approvals
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Mode, Receipt, Record
from agentguard.audit.log import AuditLog
from agentguard.call.decision import Decision
from agentguard.call.journal import Journal, Page, Runs
from agentguard.call.redaction import Redaction
from agentguard.call.tool import FactsFunction, FactsInput
from agentguard.identity.revocation import Revocations
from agentguard.policy.engine import Engine
from agentguard.signing.canonical import Fragment
from agentguard.signing.keys import Signer

Clock = Callable[[], datetime]
"""Returns the wall-clock time, aware and in UTC."""

Entropy = Callable[[int], bytes]
"""Returns that many random bytes, fit for keys."""


class LookUp(NamedTuple):
    """Effect: call ``facts`` with ``values`` and send back what it returns."""

    facts: FactsFunction
    values: FactsInput


class Obtain(NamedTuple):
    """Effect: have a credential, or an authority, made and recorded for ``at``; send it back."""

    obtain: Callable[[datetime], Authority | None]
    at: datetime


class Consume(NamedTuple):
    """Effect: count one call under each of the limits, or none; send back whether it was left."""

    limits: Sequence[tuple[str, int]]


class Recall(NamedTuple):
    """Effect: read the request under ``key``, with its answers; send back None if there is none."""

    key: str


class Ask(NamedTuple):
    """Effect: lay ``request`` under ``key``, durably; send back the one that lies there then."""

    key: str
    request: ApprovalRequest


class Spend(NamedTuple):
    """Effect: use a request up, and its approvals; send back whether none was used before."""

    request: ApprovalRequest
    approval_ids: Sequence[str]


class Confirm(NamedTuple):
    """Effect: send back why the log has a call too many, as a reason code; None where it has none.

    Under the limits that is ``calls.exceeded``, on the request ``approval.consumed``. The effect
    comes once the call is in the log: whoever removes what counted it before gains nothing.
    """

    limits: Sequence[tuple[str, int]]
    request: ApprovalRequest | None


class Withdraw(NamedTuple):
    """Effect: remove the request that lies under ``key``, with its answers."""

    key: str


class Look(NamedTuple):
    """Effect: read the journal's page under ``key``; send back None if there is none."""

    key: str


class Begin(NamedTuple):
    """Effect: say in the journal, durably, that a call begins; send back if it is the first."""

    key: str
    invocation_id: str


class Finish(NamedTuple):
    """Effect: put ``page`` in the place of the one that ``Begin`` has written."""

    key: str
    page: Page


class Forget(NamedTuple):
    """Effect: remove the page under ``key``."""

    key: str


class Evaluate(NamedTuple):
    """Effect: evaluate the policy on ``document`` and send back the engine's answer."""

    document: bytes


class Append(NamedTuple):
    """Effect: make ``record`` durable and send back its receipt."""

    record: Record


class Run(NamedTuple):
    """Effect: run the tool, as this invocation and under this authority; send back its result.

    ``inside`` is told how the calls that the tool makes were left.
    """

    invocation_id: str
    authority: Authority
    inside: NestedCalls


class Enqueue(NamedTuple):
    """Effect: hand ``record`` to the log, to be durable soon. It does not block."""

    record: Record


Effect = (
    Obtain
    | LookUp
    | Recall
    | Look
    | Evaluate
    | Ask
    | Consume
    | Spend
    | Append
    | Confirm
    | Withdraw
    | Begin
    | Run
    | Enqueue
    | Finish
    | Forget
)


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
    """What is in force while the tool runs (``delegation/context.py``); None for nothing."""

    def lacks(self, requires: Sequence[str]) -> list[str]:
        """Return what is required and not in the scope."""
        return [] if self.scope is None else [one for one in requires if one not in self.scope]


class DelegationSource(Protocol):
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
    type: str = ""
    owner: str | None = None
    """The principal whose agent it is, who may not approve what it asks for."""

    @property
    def alone(self) -> Authority:
        """Itself, without authority: what a refused call is recorded under."""
        return self.own or Authority(f"agent:{self.name}", frozenset(), frozenset())


class Watch(Protocol):
    """Sees one call go down the line, for telemetry: it is told what happens, and has no say.

    No method raises but what ends the program or the task (an interrupt, say): whatever fails in it
    is its own affair. As a context manager it puts its span in the context where code runs that is
    not the line's: facts, and the tool.
    """

    def begin(self, authority: Authority, task_id: str | None, paused: str | None) -> str | None:
        """The call is made by this authority; return its span as a W3C ``traceparent``.

        ``paused`` is that of the attempt that has asked for an approval, which this one goes on.
        """

    def decided(self, decision: Decision, policy_sha256: str | None) -> None:
        """The policy has answered, or the call was refused before it was asked."""

    def asks(self) -> str | None:
        """People are about to be asked; return the span that asks, as a ``traceparent``."""

    def requested(self, request: ApprovalRequest, receipt: Receipt, head: Checkpoint) -> None:
        """A request for an approval is on record, at this place of the log."""

    def waits(self, request: ApprovalRequest) -> None:
        """The call waits for people to answer this request."""

    def answered(self, request: ApprovalRequest, answers: Sequence[Approval]) -> None:
        """People have answered the request, one way or the other."""

    def recorded(
        self,
        decision: Decision,
        invocation: Recorded,
        receipt: Receipt,
        head: Checkpoint,
    ) -> None:
        """The answer to the call is on record, at this place of the log."""

    def suspended(self) -> None:
        """The tool has paused, in its framework's way: that is no error."""

    def handed_on(self) -> None:
        """The tool has handed the run on, in its framework's way: that is no error either."""

    def outcome(
        self,
        status: str,
        error_type: str | None = None,
        attachments: Sequence[Attachment] = (),
        replay_of: str | None = None,
    ) -> None:
        """What became of the call, with what is kept of its result."""

    def end(self, error: BaseException | None) -> None:
        """The line ends here, with this exception or with a result."""

    def __enter__(self) -> object:
        """Enter the context of the call's span."""

    def __exit__(self, *raised: object) -> None:
        """Leave it."""


class Recorded(NamedTuple):
    """An invocation as it is on record: its id, its digest (hex), what is kept beside it.

    Where the answer to it is not ``enforced`` the policy is only observed: the call runs.
    """

    id: str | None
    sha256: str
    attachments: Sequence[Attachment]
    enforced: bool


@dataclass(frozen=True, slots=True)
class Line:
    """The parts that the line runs on, the same for every call of a guard."""

    engine: Engine
    engine_name: Mapping[str, str]
    log: AuditLog
    revocations: Revocations
    clock: Clock
    entropy: Entropy
    config_sha256: str
    redactions: Mapping[str, tuple[Redaction, ...]]
    """What of a call's data is not kept, by the tool's name; ``*`` for every tool."""

    principal_roles: Mapping[str, Sequence[str]]
    approvals: Approvals
    journal: Journal
    runs: Runs
    roster: Roster
    trust_domain: str
    on_request: Callable[[ApprovalRequest], object] | None = None
    """Is told of each new request, once it can be answered."""

    mode: Mode = "enforce"
    """Whether the policy's answer counts, or is only on record (``observe``)."""

    def redactions_of(self, tool: str) -> tuple[Redaction, ...]:
        """Return what the configuration redacts of a tool's calls."""
        return self.redactions.get("*", ()) + self.redactions.get(tool, ())
