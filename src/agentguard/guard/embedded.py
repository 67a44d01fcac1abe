"""``Embedded``: the parts of a guard whose steps run in this process (``parts.py``).

``process.py`` opens the log and the ports; this module adds what the configuration
says of agents, tools and delegations.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Literal

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.roster import Roster
from agentguard.audit.log import LogReader
from agentguard.call.client import Client
from agentguard.call.journal import RunStore
from agentguard.delegation.context import require_separate_threads
from agentguard.domain.config import Config
from agentguard.domain.config.agents import AgentConfig, unknown_agent
from agentguard.domain.config.engine_loader import open_engine
from agentguard.domain.key_sources import KeySources
from agentguard.domain.policy_place import PolicyPlace
from agentguard.domain.protocol import Domain
from agentguard.flow.drive import Executors
from agentguard.guard import process
from agentguard.guard.acceptances import Room
from agentguard.guard.callbacks import Callbacks, Functions
from agentguard.guard.delegations import Delegations
from agentguard.guard.instance import Instance
from agentguard.guard.process import Runtime
from agentguard.guard.tools import Tools
from agentguard.identity.trust import TrustDocument
from agentguard.policy.engine import Engine
from agentguard.spelling import ScopeSpelling
from agentguard.store.approvals import LoggedApprovals
from agentguard.telemetry import watch_pending
from agentguard.telemetry.settings import Settings

if TYPE_CHECKING:
    from agentguard.domain.passphrase import Passphrase
    from agentguard.domain.report import Report
    from agentguard.domain.users import UserTokens
    from agentguard.domain.workloads import WorkloadTokens


class Embedded:
    """The parts of a guard in this process; ``runtime`` has the ports and the threads.

    Raises ``ConfigError``, also as ``require_separate_threads``, and ``StorageError``.
    """

    def __init__(
        self,
        settings: Config,
        engine: Engine,
        domain: Domain,
        functions: Functions = Functions(),  # noqa: B008  a value
        *,
        is_server: bool = False,
    ) -> None:
        require_separate_threads()
        self._settings = settings
        self._is_free = settings.policy is None  # ephemeral: any agent name, every scope
        callbacks = Callbacks.of(settings, functions)
        self.runtime = Runtime(settings, engine, domain, callbacks, is_server=is_server)
        self.key_sources = KeySources(settings)
        self.tools, self.delegations = self._tables(settings, self.key_sources)
        self.runtime.current_ports()
        watch_pending(self.waiting)

    def _tables(self, settings: Config, sources: KeySources) -> tuple[Tools, Delegations]:
        scopes = ScopeSpelling(settings.source, settings.scopes)
        users, workloads = _users(settings, sources), _workloads(settings, sources)
        return Tools(settings, scopes, self.runtime.names), Delegations(
            settings, self.runtime, scopes, users, workloads
        )

    def reload(self, settings: Config) -> None:
        """Go by another configuration of the same state from the next calls on.

        The policy is loaded and checked, and both are put on record, before anything changes.
        Instances and tools that were made before go on as they are: ``Instance.follow`` has an
        instance follow. Raises ``AgentguardError``, and then nothing has changed.
        """
        engine = open_engine(settings)
        try:
            sources = self.key_sources.after(settings)
            tables = self._tables(settings, sources)
            use = self.runtime.prepare(settings, engine, Callbacks.of(settings, Functions()))
        except BaseException:
            engine.close()
            raise
        self._settings, self.key_sources = settings, sources
        self.tools, self.delegations = tables
        use()  # last: whoever has the new ports has the rest

    @property
    def policy_place(self) -> PolicyPlace:
        """Where the policy is."""
        runtime = self.runtime
        log: Literal["here", "memory"] = "here" if runtime.is_durable else "memory"
        return PolicyPlace(runtime.policy_place, runtime.policy_url, log)

    @property
    def trust(self) -> TrustDocument:
        """The trust document in force."""
        return self.runtime.domain.trust

    @property
    def roster(self) -> Roster:
        """Who may approve."""
        return self._settings.roster

    @property
    def telemetry(self) -> Settings:
        """What ``[telemetry]`` says."""
        return self._settings.telemetry

    @property
    def executors(self) -> Executors:
        """The threads of this process."""
        return self.runtime.executors

    @property
    def runs(self) -> RunStore:
        """The store of the adapters' records of runs."""
        return self.runtime.runs

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self.runtime.is_closed

    def require_agent(self, name: str) -> None:
        """Raise ``ConfigError`` (``agent.unknown``) for a name without an ``[agents]`` table."""
        agents = self._settings.agents
        if name not in agents and (self._settings.lists_agents or not self._is_free):
            raise unknown_agent(self._settings.source, name, agents)

    def agent(self, name: str) -> AgentConfig:
        """Return an agent's configuration; raises ``ConfigError``."""
        self.require_agent(name)
        config = self._settings.agents.get(name)
        if config is None:
            delegators = self._settings.delegators(name)
            config = AgentConfig(name, authority="own", max_scope=None, delegators=delegators)
        return self.runtime.directory.with_owner(config)

    def instance(
        self, config: AgentConfig, client: Client | None = None, room: Room | None = None
    ) -> Instance:
        """Make an instance of an agent, and record its credential; raises ``AgentguardError``.

        A guard server makes instances for its ``client``, with the client's ``room``.
        """
        runtime = self.runtime
        domain, ports = runtime.renewed_domain, runtime.current_ports()
        return Instance(config, domain, ports, self.delegations.roles_of, client, room)

    def inbox(self) -> ApprovalInbox:
        """Return the inbox in which people answer requests for approvals."""
        return self.runtime.inbox()

    def requests(self) -> LoggedApprovals:
        """Return the store of the requests for approvals; raises ``StorageError``."""
        return self.runtime.approval_store()

    def waiting(self) -> tuple[str, object, int] | None:
        """Return the trust domain, the state and the number of pending requests, for the metrics.

        Returns None after ``close``.
        """
        settings, requests = self._settings, self.runtime.requests
        if self.is_closed or requests is None:
            return None
        inbox = ApprovalInbox(requests, settings.roster, process.clock)
        state = id(self) if self._is_free else settings.state
        return settings.trust_domain, state, len(inbox.pending())

    def reader(self) -> LogReader:
        """Return a reader of the log, after a flush; raises ``StorageError``."""
        self.runtime.flush()
        return self.runtime.domain.read()

    def verify(self) -> Report:
        """Verify the whole log with these keys and anchors; raises ``StorageError``."""
        from agentguard.domain.verify import examine  # noqa: PLC0415  few programs verify their log

        anchor = None if self._is_free else self._settings.anchor
        with closing(self.reader()) as reader:
            return examine(reader, self.trust, anchor=anchor)

    def flush(self) -> None:
        """Make the outcomes so far durable; raises ``StorageError``."""
        self.runtime.flush()

    def forked(self) -> None:
        """Drop the parent's log, in a forked process."""
        self.runtime.forked()

    def close(self) -> None:
        """Make all entries durable and close the log."""
        self.runtime.close()


def _users(settings: Config, sources: KeySources) -> UserTokens | None:
    if all(issuer.users is None for issuer in settings.issuers.values()):
        return None
    # few configurations name an issuer that knows users
    from agentguard.domain.users import UserTokens  # noqa: PLC0415

    return UserTokens(settings, sources)


def _workloads(settings: Config, sources: KeySources) -> WorkloadTokens | None:
    if not any(issuer.services for issuer in settings.issuers.values()):
        return None
    # few configurations name an issuer that knows services
    from agentguard.domain.workloads import WorkloadTokens  # noqa: PLC0415

    return WorkloadTokens(settings, sources)


def open_embedded(
    settings: Config,
    passphrase: Passphrase | None,
    functions: Functions = Functions(),  # noqa: B008  a value
    *,
    is_server: bool = False,
) -> Embedded:
    """Open the parts of the durable guard that a configuration describes (``Guard.open``).

    A server (``is_server``) has the state for itself.
    """
    # imported here, because a guard in memory reads no files of a state
    from agentguard.domain.domain import take_up  # noqa: PLC0415
    from agentguard.domain.passphrase import passphrase_of  # noqa: PLC0415

    engine = open_engine(settings)
    domain = take_up(settings, passphrase or partial(passphrase_of, settings))
    return Embedded(settings, engine, domain, functions, is_server=is_server)
