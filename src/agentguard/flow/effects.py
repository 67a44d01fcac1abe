"""The effects that a guarded call yields: whatever may block, or run somebody else's code.

``drive.py`` and ``drive_async.py`` carry the effects out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVarTuple, final

from agentguard.approvals.nested import NestedCalls
from agentguard.audit.kinds.calls import UnsignedOutcome
from agentguard.audit.log import AuditLog
from agentguard.call.decision import Decision
from agentguard.call.releases import Releases
from agentguard.call.tool import FactsFunction, FactsInput
from agentguard.flow.authority import Authority
from agentguard.flow.listener import CallListener
from agentguard.policy.engine import Engine

Ts = TypeVarTuple("Ts")


@final
class LookUp(NamedTuple):
    """Effect: call the application's look-up of facts and send back what the function returns."""

    function: FactsFunction
    facts_input: FactsInput


@final
class Begin(NamedTuple):
    """Effect: tell ``listener`` under which authority the call is made; send back the span.

    The span is a W3C ``traceparent``; None for none (``CallListener.begin``).
    """

    listener: CallListener
    authority: Authority
    task_id: str | None
    paused: str | None


@final
class Ask(NamedTuple):
    """Effect: tell ``listener`` that a request for an approval is made; send back the span."""

    listener: CallListener


class Do:
    """Effect: call ``function`` with ``arguments`` and send back what it returns.

    The function may wait for a disk: the async driver then calls it in a thread, and waits for its
    end even where the call is cancelled meanwhile.
    """

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        self._function: Callable[..., object] = function
        self._arguments = arguments

    def __call__(self) -> object:
        """Call the function: for the drivers alone."""
        return self._function(*self._arguments)


@final
class Tell(Do):
    """Effect: as ``Do``, with a function that also calls the application, which may take long."""

    __slots__ = ()


@final
class Evaluate(NamedTuple):
    """Effect: evaluate the policy on ``document`` and send back the engine's answer."""

    engine: Engine
    document: bytes


@final
class Run(NamedTuple):
    """Effect: run the tool, as this invocation and under this authority; send back its result.

    ``nested_calls`` keeps account of the guarded calls that the tool makes. ``releases`` gives the
    tool secrets while the tool runs.
    """

    invocation_id: str
    authority: Authority
    nested_calls: NestedCalls
    releases: Releases


@final
class Enqueue(NamedTuple):
    """Effect: hand ``outcome`` to the log, which makes it durable within 50 ms; does not block."""

    log: AuditLog
    outcome: UnsignedOutcome


Effect = Begin | Ask | Do | LookUp | Evaluate | Run | Enqueue


class NotRun(Exception):  # noqa: N818  it steers the flow, as Denied does
    """Raised in place of a tool's result: the call was authorised, and the tool did not run."""

    def __init__(self, refusal: Decision) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
