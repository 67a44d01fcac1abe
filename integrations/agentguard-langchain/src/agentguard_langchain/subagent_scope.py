"""The scope of a sub-agent: while the sub-agent runs, no more than this scope is in force.

The core's ``delegation/context.py`` says what is in force where, ``subagent.py`` what is wrapped
so. A stream runs in a context of its own, copied where the stream begins (the core's
``adapters.stream_within``). Whoever asks for its items neither gets the sub-agent's scope nor
lends the sub-agent his own.
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

        super().__init__(lessen)
        self.agent = agent

    @property
    def delegation(self) -> object:
        """What is in force: of what its agent is ``under``, or else of what is around it."""
        own = self.agent.delegation
        return super().delegation if own is None else self.lessened(own)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let it last as long as a block."""
        self.begin()
        try:
            with subagent(self.agent):
                yield
        finally:
            self.end()

    def stream(self, start: Callable[[], Iterator[Item]]) -> Iterator[Item]:
        """Begin it now, in a context of its own; there ``start`` is called, and its items made."""
        return stream_within(self, start)

    def astream(self, start: Callable[[], AsyncIterator[Item]]) -> AsyncIterator[Item]:
        """Begin it now; the async twin of ``stream``."""
        return astream_within(self, start)


def _narrowed(delegation: object, agent: Agent, scope: tuple[str, ...]) -> object:
    if not isinstance(delegation, Delegation):
        return delegation
    try:
        return delegation.narrowed(scope=scope)
    except DelegationError as error:
        message = f"the sub-agent {agent.name} is to have more than there is: {error}"
        raise DelegationError(message, code=error.code) from error
