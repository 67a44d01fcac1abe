"""One call of a crew's tool: the tool's own code with its arguments, and how the call may end.

Who decides about it stands in ``gate.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from crewai.tools import BaseTool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool
from crewai.tools.tool_failure import ToolFailure
from pydantic import BaseModel

from agentguard import AgentguardError, ApprovalPending, ConfigError, Decision, Denied, Invocation
from agentguard_crewai.denial import denied, waiting
from agentguard_crewai.identity import Terms
from agentguard_crewai.results import RunResults, ToolResults
from agentguard_crewai.runs import Place, Run, collected, inside


class Action:
    """One step of a model that writes its calls as text; CrewAI tries a call in it up to six times.

    What it ended with at first it ends with at each further try, in which the tool does not run.
    """

    __slots__ = ("_raised", "_result", "_tool")

    def __init__(self) -> None:
        self._tool: BaseTool | None = None
        self._raised: Exception | None = None
        self._result: Any = None

    def ended(self, tool: BaseTool, result: object, raised: Exception | None = None) -> None:
        """Keep what a call of ``tool`` has ended with."""
        self._tool, self._result, self._raised = tool, result, raised

    def has_ended(self, tool: BaseTool) -> bool:
        """Whether a call of ``tool`` has ended in this step."""
        return self._tool is tool

    def again(self) -> Any:
        """Return, or raise, what it ended with."""
        if self._raised is not None:
            raise self._raised
        return self._result


ACTION: Final[ContextVar[Action | None]] = ContextVar("agentguard_crewai_action", default=None)
"""The step that runs here; None where a model calls tools natively: CrewAI tries once then."""


class CoworkerFailedError(Exception):
    """A coworker did not do what was handed on; ``told`` is what CrewAI tells the model of it."""

    def __init__(self, told: object) -> None:
        super().__init__("the coworker has failed")
        self.told = told


COWORKER_FAILED: Final[ContextVar[list[Exception] | None]] = ContextVar(
    "agentguard_crewai_coworker_failed", default=None
)
"""What came out of the work that is handed on here: CrewAI takes it for a result."""


class Body(NamedTuple):
    """The tool's own code with its arguments."""

    tool: BaseTool
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self) -> Any:
        """Run it; raises ``ConfigError`` where its work is still to come."""
        if isinstance(self.tool, BaseAgentTool):
            return self._handed_on()
        result = self.function(*self.args, **self.kwargs)
        # CrewAI would run it, too, but after the call is over
        return self._finished(asyncio.run(result) if inspect.iscoroutine(result) else result)

    def _handed_on(self) -> Any:
        """Have a coworker work; raises ``CoworkerFailedError``."""
        failed: list[Exception] = []
        token = COWORKER_FAILED.set(failed)
        try:
            told = self.function(*self.args, **self.kwargs)
        finally:
            COWORKER_FAILED.reset(token)
        if failed:
            raise CoworkerFailedError(told) from failed[0]
        return told

    async def arun(self) -> Any:
        """Run it; the async twin of ``run``."""
        result = self.function(*self.args, **self.kwargs)
        return self._finished(await result if inspect.isawaitable(result) else result)

    def _finished(self, result: Any) -> Any:
        """Refuse a result whose effects are still to come: nobody would watch them."""
        if inspect.isgenerator(result) or inspect.isasyncgen(result) or inspect.isawaitable(result):
            message = (
                f"tool {self.tool.name} returned a {type(result).__name__}, which was not run: "
                "return a finished result instead"
            )
            raise ConfigError(message, code="tool.generator")
        return result


class Call:
    """A call on its way: ``invocation`` is decided on, and then ``run`` runs within it.

    ``hand_on`` is what has to go well before the tool's own code, within the call; ``place`` is
    where it stands in a run that has a name.
    """

    def __init__(
        self,
        body: Body,
        invocation: Invocation,
        run: Run,
        place: Place | None,
        hand_on: Callable[[], None],
        terms: Terms,
        schema: type[BaseModel] | None,
    ) -> None:
        self.invocation: Final = invocation
        results = ToolResults(schema)
        self.codec: Final = RunResults(results, run) if run.name is not None else None
        self._outer = inside()
        self._body = body
        self._run = run
        self._place = place
        self._hand_on = hand_on
        self._pauses = terms.on_approval == "pause"
        self._until = time.monotonic() + terms.timeout
        self._started = False

    def run(self) -> Any:
        """Run the tool."""
        self._hand_on()
        self._started = True
        with collected() as places:
            if self.codec is not None:
                self.codec.places = places
            return self._body.run()

    async def arun(self) -> Any:
        """Run the tool; the async twin of ``run``."""
        self._hand_on()
        self._started = True
        with collected() as places:
            if self.codec is not None:
                self.codec.places = places
            return await self._body.arun()

    def left(self, pending: ApprovalPending) -> float:
        """Return for how many seconds the call waits; raises ``Paused`` where it stops the crew."""
        if self._started:
            raise pending  # the tool's own
        if self._pauses:
            self._run.pause(pending)
        return self._until - time.monotonic()

    def completed(self, result: Any) -> Any:
        """End the call with its result; its place, and those within it, stay taken."""
        if self._outer is not None and self._place is not None and self.codec is not None:
            self._outer += [self._place, *self.codec.places]
        return self._told(result)

    def given_up(self, pending: ApprovalPending) -> ToolFailure:
        """End the call: nobody has answered in time."""
        self._give_back()
        failure = waiting(self.invocation.tool.name, pending)
        self._told(failure)
        return failure

    def _told(self, result: Any) -> Any:
        action = ACTION.get()
        if action is not None:
            action.ended(self._body.tool, result)
        return result

    def ended(self, error: Exception) -> Any:
        """End the call: return what takes the place of its result; raises the tool's own error.

        Made again, the call has its place again: one that is in doubt is refused there once more.
        """
        self._give_back()
        if isinstance(error, CoworkerFailedError):
            return self._told(error.told)
        if self._started or not isinstance(error, AgentguardError):
            action = ACTION.get()
            if action is not None:
                action.ended(self._body.tool, None, error)
            raise error
        decision = (
            error.decision
            if isinstance(error, Denied)
            else Decision.refused(str(error), code=error.code)
        )
        return self._told(denied(self.invocation.tool.name, decision))

    def _give_back(self) -> None:
        if self._place is not None:
            self._run.give_back(self._place)
