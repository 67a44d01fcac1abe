"""One call of a crew's tool: decided, recorded, and run once; or answered in its place.

It is the last step before the tool's own code, after hooks and validation. Which functions of a
tool are gated stands in ``tools.py``, what a call binds in ``binding.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.tools import BaseTool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool

from agentguard import (
    AgentguardError,
    ApprovalPending,
    Arguments,
    CallSite,
    ConfigError,
    Decision,
    DelegationError,
    Denied,
    Invocation,
    ToolSpec,
)
from agentguard.canonical import sha256_hex
from agentguard_crewai import runs
from agentguard_crewai.binding import arguments_of, spec_of
from agentguard_crewai.denial import denied, waiting
from agentguard_crewai.identity import Identity, identity_of
from agentguard_crewai.results import ToolResults
from agentguard_crewai.runs import Paused, Run


class Action:
    """One step of a model that writes its calls as text; CrewAI tries a call in it up to six times.

    What the tool raised at first is raised at each further try, in which it does not run.
    """

    __slots__ = ("raised", "tool")

    def __init__(self) -> None:
        self.tool: BaseTool | None = None
        self.raised: Exception | None = None


ACTION: Final[ContextVar[Action | None]] = ContextVar("agentguard_crewai_action", default=None)
"""The step that runs here; None where a model calls tools natively: CrewAI tries once then."""


class _Body:
    """The tool's own code with its arguments; it runs once the call is authorised.

    ``begin`` is what has to go well before it, within the call.
    """

    __slots__ = ("args", "begin", "function", "kwargs", "started", "tool")

    def __init__(
        self,
        tool: BaseTool,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        begin: Callable[[], None],
    ) -> None:
        self.tool = tool
        self.begin = begin
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.started = False

    def run(self) -> Any:
        self.begin()
        self.started = True
        result = self.function(*self.args, **self.kwargs)
        # CrewAI would run it, too, but after the call is over
        return self._finished(asyncio.run(result) if inspect.iscoroutine(result) else result)

    async def arun(self) -> Any:
        self.begin()
        self.started = True
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


class Gate:
    """An agent's instance in front of one tool."""

    __slots__ = ("_configured", "_identity", "_name", "_results", "tool")

    def __init__(self, identity: Identity, tool: BaseTool, name: str) -> None:
        self.tool = tool
        self._name = name
        self._identity = identity
        self._configured: tuple[ToolSpec, ToolSpec] | None = None
        self._results = ToolResults(tool.result_schema)
        self.spec()  # what is wrong with it is found before a call is

    def spec(self) -> ToolSpec:
        """Return the tool's specification, as the configuration has it; raises ``ConfigError``."""
        plain = spec_of(self.tool, self._name)
        if self._configured is None or self._configured[0] is not plain:
            self._configured = plain, self._identity.agent.tool_spec(plain)
        return self._configured[1]

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run ``function`` if the agent may; return its result, or the failure in its place.

        Raises what it raises, and ``Paused``.
        """
        action = ACTION.get()
        if action is not None and action.tool is self.tool and action.raised is not None:
            raise action.raised
        body = _Body(self.tool, function, args, kwargs, partial(self._hand_on, kwargs))
        run = runs.current()
        run.require_going()
        invocation = self._invocation(run, function, args, kwargs)
        until = time.monotonic() + self._identity.terms.timeout
        try:
            while True:
                try:
                    return self._identity.agent.run(invocation, body.run, **self._options(run))
                except ApprovalPending as pending:
                    if body.started:
                        raise
                    if self._identity.terms.on_approval == "pause":
                        run.pause(pending)
                    left = until - time.monotonic()
                    if not self._identity.agent.approvals.wait(pending.request, timeout=left):
                        return waiting(self.spec().name, pending)
        except AgentguardError as error:
            if body.started:
                _remember(action, self.tool, error)
                raise
            return self._refusal(error)
        except Exception as error:
            _remember(action, self.tool, error)
            raise

    async def arun(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run ``function``, which may be a coroutine function; the async twin of ``run``."""
        action = ACTION.get()
        if action is not None and action.tool is self.tool and action.raised is not None:
            raise action.raised
        body = _Body(self.tool, function, args, kwargs, partial(self._hand_on, kwargs))
        run = runs.current()
        run.require_going()
        invocation = self._invocation(run, function, args, kwargs)
        agent, options = self._identity.agent, self._options(run)
        until = time.monotonic() + self._identity.terms.timeout
        try:
            while True:
                try:
                    return await agent.arun(invocation, body.arun, **options)
                except ApprovalPending as pending:
                    if body.started:
                        raise
                    if self._identity.terms.on_approval == "pause":
                        run.pause(pending)
                    left = until - time.monotonic()
                    if not await agent.approvals.await_(pending.request, timeout=left):
                        return waiting(self.spec().name, pending)
        except AgentguardError as error:
            if body.started:
                _remember(action, self.tool, error)
                raise
            return self._refusal(error)
        except Exception as error:
            _remember(action, self.tool, error)
            raise

    def _refusal(self, error: AgentguardError) -> Any:
        decision = (
            error.decision
            if isinstance(error, Denied)
            else Decision.refused(str(error), code=error.code)
        )
        return denied(self.spec().name, decision)

    def _options(self, run: Run) -> dict[str, Any]:
        """Return how the call is kept, so that it is not made again where the run is."""
        return {
            "suspends": (Paused,),
            "codec": self._results if run.name is not None else None,
            "reentrant": isinstance(self.tool, BaseAgentTool),
        }

    def _invocation(
        self,
        run: Run,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Invocation:
        spec, agent = self.spec(), self._identity.agent
        declared = self.tool.args_schema.model_fields
        invocation = Invocation.bind(
            spec,
            lambda: arguments_of(function, args, kwargs, declared),
            CallSite(agent.call_id(spec.name)),
        )
        bound = invocation.arguments
        if run.name is not None and isinstance(bound, Arguments):
            site = run.site(agent.name, spec.name, sha256_hex(bound.encoded))
            invocation = replace(invocation, site=site)
        try:
            for coworker in self._coworkers(kwargs):
                coworker.agent.require_delegator(agent)
        except AgentguardError as error:
            return replace(invocation, refusal=Decision.refused(str(error), code=error.code))
        return invocation

    def _hand_on(self, kwargs: Mapping[str, Any]) -> None:
        """Hand on what this call was lent, before the coworker does anything; raises ``Denied``."""
        for coworker in self._coworkers(kwargs):
            if coworker is not self._identity:
                coworker.agent.take_over(self._identity.agent)

    def _coworkers(self, kwargs: Mapping[str, Any]) -> list[Identity]:
        """Return to whom the call hands work on; raises ``DelegationError`` for no identity."""
        if not isinstance(self.tool, BaseAgentTool):
            return []
        found: list[Identity] = []
        for coworker in _named(self.tool, kwargs):
            identity = identity_of(coworker)
            if identity is None:
                message = f"the coworker {coworker.role!r} is not guarded: guard the whole crew"
                raise DelegationError(message, code="agent.unguarded")
            found.append(identity)
        return found


def _named(tool: BaseAgentTool, kwargs: Mapping[str, Any]) -> list[BaseAgent]:
    """Return the agents that the tool chooses among: those of the role that it is told."""
    told = {name: kwargs.get(name) for name in ("coworker", "co_worker")}
    name = tool._get_coworker(**told)  # noqa: SLF001  as the tool itself
    wanted = tool.sanitize_agent_name(name or "")
    return [one for one in tool.agents if tool.sanitize_agent_name(one.role) == wanted]


def _remember(action: Action | None, tool: BaseTool, error: Exception) -> None:
    if action is not None:
        action.tool, action.raised = tool, error
