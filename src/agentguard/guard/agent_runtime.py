"""``AgentRuntime``: what all handles of one agent share, among it the instance in this process."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from functools import partial

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.call.tool import ToolSpec
from agentguard.delegation.handle import Delegation, Holder
from agentguard.domain.config.agents import AgentConfig
from agentguard.flow.drive import Executors
from agentguard.guard.delegations import Delegations
from agentguard.guard.instance import Instance
from agentguard.guard.process import Runtime
from agentguard.guard.tools import Tools
from agentguard.telemetry import Telemetry


class AgentRuntime:
    """One agent's configuration, what its guard runs on, and its instance in this process.

    A fork gets an instance of its own when it first needs one. Methods may be called from any
    thread.
    """

    def __init__(
        self,
        config: AgentConfig,
        process: Runtime,
        *,
        tools: Tools,
        delegations: Delegations,
        telemetry: Telemetry,
    ) -> None:
        self._config = config
        self._process = process
        self._tools = tools
        self._delegations = delegations
        self.telemetry = telemetry
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))
        self._instance: Instance | None = None
        self._beginning = threading.RLock()  # a signal handler may make a call meanwhile
        self.instance()

    @property
    def name(self) -> str:
        """The agent's name in the configuration."""
        return self._config.profile.name

    @property
    def has_instance(self) -> bool:
        """Whether there is an instance in this process already."""
        return self._instance is not None

    def instance(self) -> Instance:
        """Return the instance in this process; make one, and record its credential, if needed."""
        instance = self._instance
        return instance if instance is not None else self._begun()

    def _begun(self) -> Instance:
        with self._beginning:
            instance = self._instance or Instance(
                self._config,
                self._process.renewed_domain,
                self._process.current_ports(),
                self._holder,
            )
            if self._instance is None:  # else a signal handler has made one meanwhile
                self._instance = instance
            return self._instance

    def _holder(self, now: datetime) -> Holder:
        return self.instance().holder(now)

    def forked(self) -> None:
        """In a fork: drop the key, which is the parent's."""
        self._instance = None
        self._beginning = threading.RLock()

    @property
    def executors(self) -> Executors:
        """The threads of the guard in this process."""
        return self._process.executors

    @property
    def approvals(self) -> ApprovalInbox:
        """The inbox where requests for approvals are answered."""
        return self._process.inbox()

    def require_delegator(self, name: str) -> None:
        """Raise ``DelegationError`` unless the agent ``name`` may hand work on to this one."""
        self._config.require_delegator(name)

    def next_call_id(self, tool: str) -> str:
        """Name the next call of ``tool`` by this agent in this process."""
        return f"{tool}#{next(self._ordinals[tool])}"

    def resume(self, stored: bytes) -> Delegation:
        """Take up a stored delegation; raises as ``Guard.resume`` does."""
        return self._delegations.resume(stored)

    def configure_tool(self, spec: ToolSpec) -> ToolSpec:
        """Return ``spec`` as the configuration has it; raises ``ConfigError``."""
        return self._tools.configure(spec)

    def check_tool_names(self) -> None:
        """Log configured tools that look misspelt."""
        self._tools.check_names()
