"""How an adapter passes delegations between agents, and narrows a delegation for a sub-agent.

The delegation in force in a context stands in ``agentguard.delegation.context``.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TypeVar

from agentguard.delegation import generators
from agentguard.delegation.context import Narrowing
from agentguard.errors import DelegationError
from agentguard.guard.agent import Agent, caller_of

Item = TypeVar("Item")


def refusing_agent(agent: Agent, error: DelegationError) -> Agent:
    """Return the same instance, which refuses and records each call, with ``error`` as the reason.

    An adapter uses this agent where the delegation of a call can't be determined, so that the call
    does not run under a wider authority.
    """
    return Agent(caller_of(agent).under(error))


def require_delegator(agent: Agent, delegator: Agent) -> None:
    """Raise ``DelegationError`` unless ``delegator`` may hand work on to ``agent``.

    The code is ``delegation.delegatee``; the configuration's table ``[delegation]`` decides.
    """
    caller_of(agent).runtime.config.require_delegator(delegator.name)


def take_over(agent: Agent, delegator: Agent) -> None:
    """Hand the delegation of ``delegator`` on to ``agent``, within a call of ``delegator``.

    The hop is signed and recorded before ``agent`` begins. Raises ``Denied`` where
    ``delegator`` may not hand work on to ``agent`` (``delegation.delegatee``), or as a call of
    ``agent`` would be refused.
    """
    caller_of(agent).take_over(delegator.name)


def stream_within(narrowing: Narrowing, start: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Yield the items of ``start()``, which runs under ``narrowing`` in a copy of this context.

    ``narrowing`` ends with the iterator, and does not apply to the code that reads the items.
    """
    return generators.items(narrowing, generators.begin_in_copy(narrowing), start)


def astream_within(
    narrowing: Narrowing, start: Callable[[], AsyncIterable[Item]]
) -> AsyncIterator[Item]:
    """Yield the items of an async iterable; the async twin of ``stream_within``."""
    return generators.aitems(narrowing, generators.begin_in_copy(narrowing), start)
