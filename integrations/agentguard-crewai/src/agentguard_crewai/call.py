"""One call of a crew's tool: the tool's own code with its arguments, and each end of the call.

The decision on the call stands in ``gate.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, NamedTuple

from crewai.tools import BaseTool
from crewai.tools.tool_failure import ToolFailure

from agentguard import (
    AgentguardError,
    ApprovalPending,
    ConfigError,
    Decision,
    DelegationError,
    Denied,
    current_delegation,
)
from agentguard.adapters import (
    CallOptions,
    Invocation,
    NestedCalls,
    log_denial,
    nested_calls,
)
from agentguard_crewai import rejection
from agentguard_crewai.binding import require_repeatable
from agentguard_crewai.coworkers import (
    CoworkerFailedError,
    hand_over,
    is_handover,
    run_handover,
)
from agentguard_crewai.denial import REMEDIES, denial_failure, pending_failure
from agentguard_crewai.identity import Identity
from agentguard_crewai.results import RunResults, ToolResults
from agentguard_crewai.runs import Paused, Place, Run, collect_places, nested_places
from agentguard_crewai.sealing import unseal

_LOGGER = logging.getLogger("agentguard")

_THREAD_WARNING: Final = (
    "%s waits for an approval outside of any guarded call, while a call of %s runs for the same "
    "user: if that one's tool has begun this work in a thread, it is kept as done, and what waits "
    "is not made again with it; run the thread's work with contextvars.copy_context().run"
)


class Action:
    """One step of a model that writes its calls as text; CrewAI tries the call up to six times.

    The tool runs at the first try alone; each further try raises the error of the first. All tries
    are one call, also where the schema's factories make other arguments.
    """

    __slots__ = ("_raised", "_tool")

    def __init__(self) -> None:
        self._tool: BaseTool | None = None
        self._raised: Exception | None = None

    def record_error(self, tool: BaseTool, error: Exception) -> None:
        """Record the error that a tool raised."""
        self._tool, self._raised = tool, error

    def raise_again(self, tool: BaseTool) -> None:
        """Raise the error that the same tool raised in this step, if any."""
        if self._raised is not None and self._tool is tool:
            raise self._raised


ACTION: Final[ContextVar[Action | None]] = ContextVar("agentguard_crewai_action", default=None)
"""The step in this context; None for a model that calls tools natively (CrewAI tries once)."""


_ACTIVE_CALLS: Final[set[Call]] = set()
"""The journalled calls of the whole process whose tools run now."""


class Body(NamedTuple):
    """The tool's own code with its arguments."""

    tool: BaseTool
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self) -> Any:
        """Run the tool's code; raises ``ConfigError`` for a generator or an awaitable result."""
        function = partial(self.function, *self.args, **self.kwargs)
        if is_handover(self.tool):
            return run_handover(function)
        result = function()
        # CrewAI would run the coroutine as well, but after the guarded call
        return self._finished(asyncio.run(result) if inspect.iscoroutine(result) else result)

    async def arun(self) -> Any:
        """Run the tool's code; the async twin of ``run``."""
        result = self.function(*self.args, **self.kwargs)
        return self._finished(await result if inspect.isawaitable(result) else result)

    def _finished(self, result: Any) -> Any:
        """Return a finished result; a later effect of a generator would not be guarded."""
        if inspect.isgenerator(result) or inspect.isasyncgen(result) or inspect.isawaitable(result):
            message = (
                f"tool {self.tool.name} returned a {type(result).__name__}, which was not run: "
                "return a finished result instead"
            )
            raise ConfigError(message, code="tool.generator")
        return result


class Call:
    """A call of ``identity``: the policy decides on ``invocation``, then ``run`` runs the tool.

    ``coworker`` is the identity to which the call hands work over, None for a plain tool. ``place``
    is the call's place in a run that has a name, None in another run.
    """

    def __init__(
        self,
        body: Body,
        invocation: Invocation,
        run: Run,
        place: Place | None,
        identity: Identity,
        coworker: Identity | None,
    ) -> None:
        self.invocation: Final = invocation
        self._nested_places: list[Place] = []
        results = RunResults(ToolResults(body.tool.result_schema), run, self._nested_places)
        self.options: Final = CallOptions(
            codec=results if run.name is not None else None,
            reentrant=is_handover(body.tool),  # after a crash the handover resumes
            suspends=(Paused,),
            remedies=REMEDIES,
            conceals=True,
        )
        self._outer_places = nested_places()
        self._body = body
        self._run = run
        self._place = place
        self._identity = identity
        self._coworker = coworker
        self._pauses = identity.options.on_approval == "pause"
        self._deadline = time.monotonic() + identity.options.timeout
        self._has_started = False
        self._nested_calls: NestedCalls | None = None
        self._has_asked_again = False
        self._principal = _principal()

    def run(self) -> Any:
        """Sign the hop to a coworker, then run the tool, both within the guarded call."""
        self._begin()
        with self._active(), collect_places(self._nested_places), unseal(self._body.tool):
            return self._body.run()

    async def arun(self) -> Any:
        """Run the tool; the async twin of ``run``."""
        self._begin()
        with self._active(), collect_places(self._nested_places), unseal(self._body.tool):
            return await self._body.arun()

    def _begin(self) -> None:
        if self._coworker is not None:
            hand_over(self._coworker, self._identity)
        self._has_started, self._nested_calls = True, nested_calls()

    @contextmanager
    def _active(self) -> Iterator[None]:
        if self.options.codec is not None:
            _ACTIVE_CALLS.add(self)
        try:
            yield
        finally:
            _ACTIVE_CALLS.discard(self)

    def asks_again(self, denied: Denied) -> bool:
        """Return whether the call asks once more, since the request of a paused run expired."""
        if self._has_started or not self._pauses or denied.code != "approval.expired":
            return False
        first, self._has_asked_again = not self._has_asked_again, True
        return first

    def seconds_left(self, pending: ApprovalPending) -> float:
        """Return the seconds left to wait; raises ``Paused`` where waiting stops the crew."""
        if self._has_started:
            raise pending  # raised by the tool's own code
        if self._pauses:
            require_repeatable(self._body.tool)
            self._run.pause(pending)
        request = pending.request.request_id
        if request not in self._run.logged_requests:
            self._run.logged_requests.add(request)
            _LOGGER.warning("%s", pending)
        return self._deadline - time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether the call has handed over work in which another call waits."""
        nested = self._nested_calls
        return nested is not None and nested.hands_over and nested.waits

    def complete(self, result: Any) -> Any:
        """End the call with its result; its place and those of its nested calls stay claimed.

        A call in which a nested call waits is incomplete, and gets the same place in the next try.
        """
        if self.waits:
            self._release()
        elif self._outer_places is not None and self._place is not None:
            self._outer_places += [self._place, *self._nested_places]
        return result

    def give_up(self, pending: ApprovalPending) -> ToolFailure:
        """End the call because nobody answered in time."""
        self._release()
        if nested_calls() is None and self._principal is not None:
            names = {
                call.invocation.tool.name
                for call in tuple(_ACTIVE_CALLS)
                if self._has_same_principal(call)
            }
            if names:
                details = self.invocation.tool.name, ", ".join(sorted(names))
                _LOGGER.warning(_THREAD_WARNING, *details)
        return pending_failure(self.invocation.tool.name, pending)

    def fail(self, error: Exception) -> Any:
        """End a failed call: return the failure for the model, or raise the tool's own error.

        The next try of the call gets the same place. A call with an unknown outcome is therefore
        refused again.
        """
        self._release()
        if isinstance(error, CoworkerFailedError):
            return error.result
        if self._has_started or not isinstance(error, AgentguardError):
            action = ACTION.get()
            if action is not None:
                action.record_error(self._body.tool, error)
            raise error
        if isinstance(error, Denied):  # logged by the core
            decision = error.decision
        else:
            decision = Decision.of_error(error)
            log_denial(self._identity.agent, self.invocation, decision, self.options)
        if decision.code == "approval.rejected" and self._place is not None:
            rejection.store(self._identity.agent, self._place, decision)
        return denial_failure(self.invocation.tool.name, decision)

    def _has_same_principal(self, call: Call) -> bool:
        return call._principal == self._principal

    def _release(self) -> None:
        if self._place is not None:
            self._run.release(self._place, self._nested_places)


def _principal() -> str | None:
    """Return the principal of the current delegation; None on the agent's own authority."""
    try:
        delegation = current_delegation()
    except DelegationError:
        return None  # the delegation has ended: the call is refused
    return None if delegation is None else delegation.principal
