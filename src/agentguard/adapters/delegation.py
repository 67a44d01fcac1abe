"""How an adapter passes delegations between agents, and lessens what is in force for a sub-agent.

What is in force where stands in ``delegation/context.py`` of the core.
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
    """Return the same instance with each call refused, on record, for ``error``.

    An adapter uses it where the delegation of a call can't be found out: nothing wider takes its
    place.
    """
    return Agent(caller_of(agent).under(error))


def require_delegator(agent: Agent, delegator: Agent) -> None:
    """Raise ``DelegationError`` unless ``delegator`` may hand work on to ``agent``.

    The code is ``delegation.delegatee``; the table ``[delegation]`` says who may.
    """
    caller_of(agent).runtime.require_delegator(delegator.name)


def take_over(agent: Agent, delegator: Agent) -> None:
    """Hand on to ``agent`` what was delegated to ``delegator``, within a call of ``delegator``.

    The hop is signed and recorded at once, before ``agent`` does anything. Raises ``Denied`` where
    ``delegator`` may not hand work on to ``agent`` (``delegation.delegatee``), or as a call of
    ``agent`` would be refused.
    """
    caller_of(agent).take_over(delegator.name)


def stream_within(narrowing: Narrowing, start: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Begin ``narrowing`` in a copy of this context, and make the items of ``start()`` there.

    ``narrowing`` ends with the iterator. Whoever asks for the items gets nothing of it.
    """
    return generators.items(narrowing, generators.begin_in_copy(narrowing), start)


def astream_within(
    narrowing: Narrowing, start: Callable[[], AsyncIterable[Item]]
) -> AsyncIterator[Item]:
    """Make the items of an async iterable within ``narrowing``; the twin of ``stream_within``."""
    return generators.aitems(narrowing, generators.begin_in_copy(narrowing), start)
