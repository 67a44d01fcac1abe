"""What an agent does for one request, as its span tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


class AgentRun(NamedTuple):
    """What an agent does for one request: for whom, and where in its framework and in a trace.

    ``actors`` are those of the chain, the agent among them; ``paused`` is the run that this one
    goes on, a ``traceparent``; ``parent`` is the context around it, ``started`` in nanoseconds
    since the epoch, and ``inside`` somebody else's span that stands for it already.
    """

    principal: str
    actors: Sequence[str]
    task_id: str | None
    conversation: str | None = None
    paused: str | None = None
    parent: Context | None = None
    started: int | None = None
    inside: Span | None = None
