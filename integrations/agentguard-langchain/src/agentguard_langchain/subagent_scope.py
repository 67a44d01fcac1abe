"""``SubagentScope``: while a sub-agent runs, no more than its scope is in force.

What ``guard_subagent`` wraps stands in ``subagent.py``. A stream runs in a context of its own,
copied where the stream begins: code that asks for the items neither gets the sub-agent's scope nor
changes the delegation of the sub-agent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from agentguard import Agent, Delegation, DelegationError
from agentguard.adapters import Narrowing, astream_within, stream_within
from agentguard_langchain.run_spans import subagent

Item = TypeVar("Item")


class SubagentScope(Narrowing):
    """One run of the sub-agent ``agent``, within which ``scope`` is all that is in force."""

    __slots__ = ("agent",)

    def __init__(self, agent: Agent, scope: tuple[str, ...]) -> None:
        def lessen(delegation: object) -> object:
            return _narrowed(delegation, agent, scope)

        super().__init__(lessen, agent)
        self.agent = agent

    @property
    def delegation(self) -> object:
        """The narrowed delegation: the agent's own (``under``), or else the one in force around."""
        own = self.agent.delegation
        return super().delegation if own is None else self.narrow(own)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the scope in force within the block."""
        self.begin()
        try:
            with subagent(self.agent):
                yield
        finally:
            self.end()

    def stream(self, start: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """Begin the scope now, in a context of its own, in which ``start`` makes the items."""
        return stream_within(self, start)

    def astream(self, start: Callable[[], AsyncIterator[Item]]) -> AsyncIterator[Item]:
        """Begin the scope now; the async twin of ``stream``."""
        return astream_within(self, start)


def _narrowed(delegation: object, agent: Agent, scope: tuple[str, ...]) -> object:
    if not isinstance(delegation, Delegation):
        return delegation
    try:
        return delegation.narrowed(scope=scope)
    except DelegationError as error:
        message = f"the sub-agent {agent.name} is to have more than there is: {error}"
        raise DelegationError(message, code=error.code, delegation=delegation) from error
