"""One run of an agent, as the span of the run describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


class AgentRun(NamedTuple):
    """One run of an agent: the principal, and the run's place in its framework and in a trace.

    ``actors`` are the actors of the delegation chain, with the agent. ``paused`` is the
    ``traceparent`` of the run that this run resumes. ``parent`` is the context around the run.
    ``started`` is in nanoseconds since the epoch. ``inside`` is a span that another
    instrumentation has begun for the same run.
    """

    principal: str
    actors: Sequence[str]
    task_id: str | None
    conversation: str | None = None
    paused: str | None = None
    parent: Context | None = None
    started: int | None = None
    inside: Span | None = None
