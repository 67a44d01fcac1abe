"""The protocols ``Parts`` and ``AgentInstance``: what a guard and its agents stand on.

The steps of a guarded call run where the parts are. ``embedded.py`` has them in this process.
``client/parts.py`` has them in a server, which ``Guard.connect`` reaches.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.audit.log import LogReader
from agentguard.call.decision import Decision
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import Invocation
from agentguard.call.journal import RunStore
from agentguard.call.options import CallOptions
from agentguard.call.tool import ToolSpec
from agentguard.delegation.access_token import IssuedToken
from agentguard.delegation.handle import Delegation
from agentguard.delegation.terms import Lender
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.policy_place import PolicyPlace
from agentguard.errors import DelegationError
from agentguard.flow.authority import AgentIdentity
from agentguard.flow.drive import Executors, Flow
from agentguard.flow.listener import CallListener
from agentguard.identity.trust import TrustDocument
from agentguard.telemetry import AgentRun
from agentguard.telemetry.settings import Settings

if TYPE_CHECKING:
    from agentguard.domain.report import Report

CurrentDelegation = Delegation | DelegationError | None
"""The delegation of a call; an error refuses the call; None: the one in force where it is made."""


class AgentInstance(Protocol):
    """An agent instance in this process: an identity with a key of its own."""

    @property
    def actor(self) -> AgentIdentity:
        """The name, the identifier and the type of the instance."""

    def abandon(self) -> None:
        """Leave the key to the parent, in a forked process."""

    def guarded_call(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: CurrentDelegation,
    ) -> Flow[Any]:
        """Return the steps of a guarded call, which run the tool if the instance may call it."""

    def evaluate(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: CurrentDelegation,
    ) -> Flow[Decision]:
        """Return the steps that lead to the decision on a call, and run nothing."""

    def authorize(
        self,
        invocation: Invocation,
        listener: CallListener,
        delegation: CurrentDelegation,
    ) -> Flow[Evaluation]:
        """Return the steps that lead to a signed decision on a call, and run nothing."""

    def describe_run(self, delegation: CurrentDelegation) -> AgentRun:
        """Describe a run of this agent under ``delegation``, for telemetry."""

    def access_token(self, delegation: CurrentDelegation) -> IssuedToken | None:
        """Return the access token of a delegation, None where no delegation is given or in force.

        Raises ``AgentguardError`` where a call under the delegation would be refused.
        """


class ToolsPart(Protocol):
    """Applies the configuration to tools."""

    def configure(self, spec: ToolSpec, *, listed: bool = False) -> ToolSpec:
        """Return a tool's specification with the configuration's values; raises ``ConfigError``.

        ``listed`` says that an adapter's own list has the tool; a guard server goes by its tables.
        """

    def require_names(self) -> None:
        """Raise ``ConfigError`` for a configuration whose names don't fit this program's tools."""

    def check_names(self) -> None:
        """Log each name in the configuration that no tool has so far and that looks misspelt."""


class DelegationsPart(Protocol):
    """Begins delegations, and takes stored ones up again."""

    def begin(
        self,
        lender: Lender,
        *,
        scope: Iterable[str] | None,
        via: str | None,
        task_id: str | None,
        expires_in: timedelta | int,
        max_depth: int,
        max_calls: int | None,
        audience: Iterable[str] | None,
    ) -> Delegation:
        """Have a principal lend ``scope``; raises as ``Guard.delegate`` does."""

    def resume(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote; raises as ``Guard.resume`` does."""

    def take_up(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote, revoked or not (``Agent.take_up``)."""


class Parts(Protocol):
    """What a guard stands on in one process. The methods may be called from any thread."""

    @property
    def tools(self) -> ToolsPart:
        """What the configuration says of tools."""

    @property
    def delegations(self) -> DelegationsPart:
        """What begins delegations."""

    @property
    def trust(self) -> TrustDocument:
        """The trust document, whose public keys verify the log."""

    @property
    def telemetry(self) -> Settings:
        """What ``[telemetry]`` says."""

    @property
    def executors(self) -> Executors:
        """The threads of this process that keep an event loop free."""

    @property
    def runs(self) -> RunStore:
        """The store of the adapters' records of runs."""

    @property
    def policy_place(self) -> PolicyPlace:
        """Where a developer finds the policy."""

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""

    def require_agent(self, name: str) -> None:
        """Raise ``ConfigError`` (``agent.unknown``) for a name without an ``[agents]`` table."""

    def agent(self, name: str) -> AgentConfig:
        """Return an agent's configuration, with the owner that the application names.

        Raises ``ConfigError`` (``agent.unknown``, ``owner.failed``).
        """

    def instance(self, config: AgentConfig) -> AgentInstance:
        """Make an instance of an agent, with a new key, and record the instance's credential.

        Raises ``AgentguardError``.
        """

    def inbox(self) -> ApprovalInbox:
        """Return the inbox in which people answer requests for approvals."""

    def reader(self) -> LogReader:
        """Return a reader of the log, after a flush; raises ``StorageError``."""

    def verify(self) -> Report:
        """Verify the whole log (``Guard.verify``)."""

    def flush(self) -> None:
        """Make the outcomes so far durable; raises ``StorageError`` or ``ServerError``."""

    def forked(self) -> None:
        """Drop what belongs to the parent, in a forked process."""

    def close(self) -> None:
        """Make everything durable; no call begins afterwards."""
