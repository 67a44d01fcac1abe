"""``AgentRuntime``: what all handles of one agent share, among it the instance in this process."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from agentguard.domain.config.agents import AgentConfig
from agentguard.guard.denial_log import DenialLogger
from agentguard.guard.parts import AgentInstance, Parts
from agentguard.storage.owned_lock import OwnedLock
from agentguard.telemetry import Telemetry


class AgentRuntime:
    """One agent's configuration, what its guard runs on, and its instance in this process.

    A forked process gets another instance when a call first needs one. The methods may be called
    from any thread.
    """

    def __init__(self, config: AgentConfig, parts: Parts, telemetry: Telemetry) -> None:
        self.config = config
        self.parts = parts
        self.telemetry = telemetry
        self.denials = DenialLogger(self.name, parts.policy_place)
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))
        self._instance: AgentInstance | None = None
        self._beginning = OwnedLock("it made an instance of the agent")
        self.instance()

    @property
    def name(self) -> str:
        """The agent's name in the configuration."""
        return self.config.name

    @property
    def has_instance(self) -> bool:
        """Whether there is an instance in this process already."""
        return self._instance is not None

    def instance(self) -> AgentInstance:
        """Return the instance in this process; make one, and record its credential, if needed."""
        instance = self._instance
        return instance if instance is not None else self._begun()

    def _begun(self) -> AgentInstance:
        with self._beginning.held():
            if self._instance is None:
                self._instance = self.parts.instance(self.config)
            return self._instance

    def forked(self) -> None:
        """Drop the parent's instance and its key, in a forked process."""
        if self._instance is not None:
            self._instance.abandon()
        self._instance = None
        self._beginning = OwnedLock("it made an instance of the agent")

    def next_call_id(self, tool: str) -> str:
        """Name the next call of ``tool`` by this agent in this process."""
        return f"{tool}#{next(self._ordinals[tool])}"
