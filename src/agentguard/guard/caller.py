"""``Caller``: an agent instance together with the delegation that its calls are made under.

``Agent`` offers an application what it does with one, ``agentguard.adapters`` an adapter. The steps
of a call stand in ``flow/guarded_call.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, NamedTuple, Never, TypeVar

from agentguard.call.concealing import Concealer
from agentguard.call.decision import Decision, Denied
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import Invocation
from agentguard.call.options import CallOptions
from agentguard.delegation import context
from agentguard.delegation.access_token import IssuedToken
from agentguard.delegation.handle import Delegation
from agentguard.errors import AgentguardError, DelegationError
from agentguard.flow import drive
from agentguard.flow.effects import NotRun
from agentguard.flow.listener import CallListener
from agentguard.guard.agent_runtime import AgentRuntime
from agentguard.guard.denial_log import DenialListener
from agentguard.guard.parts import AgentInstance, CurrentDelegation
from agentguard.telemetry import AgentRun

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from agentguard.telemetry import AgentSpan

R = TypeVar("R")


class Caller(NamedTuple):
    """Makes the calls of an agent.

    ``delegation`` is the delegation of all its calls. Without one, each call is made under what is
    in force around it; a ``DelegationError`` refuses each call, on record.
    """

    runtime: AgentRuntime
    delegation: CurrentDelegation = None

    def under(self, delegation: Delegation | DelegationError) -> Caller:
        """Return a caller for the same instance, under ``delegation``."""
        return Caller(self.runtime, delegation)

    def run(self, invocation: Invocation, function: Callable[[], R], options: CallOptions) -> R:
        """Run ``function`` as ``invocation`` if the agent may (``agentguard.adapters.run``)."""
        try:
            instance = self.instance()
        except Denied as refused:
            self.log_denial(invocation, refused.decision, options)
            raise
        listener = self._listener(instance, invocation, options)
        steps = instance.guarded_call(invocation, listener, options, self.delegation)
        tool = unless_changed(invocation, function)
        if self._conceals(options):
            tool = _concealing(tool, options)
        return drive.run(steps, tool, listener)  # type: ignore[no-any-return]

    async def arun(
        self,
        invocation: Invocation,
        function: Callable[[], Awaitable[R] | R],
        options: CallOptions,
    ) -> R:
        """Run ``function`` on the event loop; the async twin of ``run``."""
        from agentguard.flow import drive_async  # noqa: PLC0415  it imports asyncio

        try:
            instance = await self._ainstance()
        except Denied as refused:
            self.log_denial(invocation, refused.decision, options)
            raise
        listener = self._listener(instance, invocation, options)
        steps = instance.guarded_call(invocation, listener, options, self.delegation)
        tool = unless_changed(invocation, function)
        if self._conceals(options):
            tool = _aconcealing(tool, options)
        return await drive_async.arun(steps, tool, listener, self.runtime.parts.executors)

    def _conceals(self, options: CallOptions) -> bool:
        return options.conceals and self.runtime.config.conceals_secrets

    def evaluate(self, invocation: Invocation, options: CallOptions) -> Decision:
        """Return what the answer to a call would be (``agentguard.adapters.evaluate``)."""
        try:
            instance = self.instance()
        except Denied as refused:
            return refused.decision
        listener = self.runtime.telemetry.evaluation(instance.actor, invocation)
        steps = instance.evaluate(invocation, listener, options, self.delegation)
        return drive.run(steps, _no_tool, listener)

    async def aevaluate(self, invocation: Invocation, options: CallOptions) -> Decision:
        """Return what the answer to a call would be; the async twin of ``evaluate``."""
        from agentguard.flow import drive_async  # noqa: PLC0415  it imports asyncio

        try:
            instance = await self._ainstance()
        except Denied as refused:
            return refused.decision
        listener = self.runtime.telemetry.evaluation(instance.actor, invocation)
        steps = instance.evaluate(invocation, listener, options, self.delegation)
        return await drive_async.arun(steps, _no_tool, listener, self.runtime.parts.executors)

    def authorize(self, invocation: Invocation) -> Evaluation:
        """Return the policy's signed decision about a call (``Agent.authorize``)."""
        try:
            instance = self.instance()
        except Denied as refused:
            return Evaluation(refused.decision)
        listener = self.runtime.telemetry.evaluation(instance.actor, invocation)
        steps = instance.authorize(invocation, listener, self.delegation)
        return drive.run(steps, _no_tool, listener)

    async def aauthorize(self, invocation: Invocation) -> Evaluation:
        """Return the policy's signed decision about a call; the async twin of ``authorize``."""
        from agentguard.flow import drive_async  # noqa: PLC0415  it imports asyncio

        try:
            instance = await self._ainstance()
        except Denied as refused:
            return Evaluation(refused.decision)
        listener = self.runtime.telemetry.evaluation(instance.actor, invocation)
        steps = instance.authorize(invocation, listener, self.delegation)
        return await drive_async.arun(steps, _no_tool, listener, self.runtime.parts.executors)

    def log_denial(self, invocation: Invocation, decision: Decision, options: CallOptions) -> None:
        """Log a refusal that no step of the call made; such a refusal is not in the audit log."""
        self.runtime.denials.log(invocation.tool.name, decision, options.remedies)

    def _listener(
        self, instance: AgentInstance, invocation: Invocation, options: CallOptions
    ) -> CallListener:
        inner = self.runtime.telemetry.call(instance.actor, invocation)
        tool, denials = invocation.tool.name, self.runtime.denials
        return DenialListener(inner, denials, tool, options.remedies)

    def span(
        self,
        *,
        conversation: str | None,
        delegation: Delegation | None,
        paused: str | None,
        parent: Context | None,
        started: int | None,
        inside: Span | None,
    ) -> AgentSpan:
        """Begin the span ``invoke_agent`` (``agentguard.adapters.agent_span``)."""
        instance = self.runtime.instance()
        run = instance.describe_run(delegation or self.delegation)
        run = run._replace(conversation=conversation, paused=paused, parent=parent, started=started)
        return self.runtime.telemetry.agent(instance.actor, run._replace(inside=inside))

    def workflow_span(
        self,
        name: str,
        *,
        conversation: str | None,
        delegation: Delegation | None,
        paused: str | None,
    ) -> AgentSpan:
        """Begin the span ``invoke_workflow`` (``agentguard.adapters.workflow_span``)."""
        current: object = delegation or self.delegation
        with suppress(DelegationError):  # an ended delegation, with which each call is denied
            current = current or context.in_force()
        lent = current.chain if isinstance(current, Delegation) else None
        run = None if lent is None else AgentRun(lent.principal, (), lent.root.task_id)
        return self.runtime.telemetry.workflow(name, run, conversation, paused)

    def access_token(self) -> IssuedToken:
        """Return the access token of the delegation in force; raises ``Denied``."""
        instance = self.instance()
        try:
            token = instance.access_token(self.delegation)
        except AgentguardError as error:
            raise _denied(error) from error
        if token is None:
            name = self.runtime.name
            message = f"agent {name} has nothing to show: no delegation is in force"
            raise _denied(DelegationError(message, code="delegation.missing"))
        return token

    def take_over(self, delegator: str) -> None:
        """Accept what is in force from the agent of this name (``agentguard.adapters.take_over``).

        Raises ``Denied``.
        """
        instance = self.instance()
        try:
            self.runtime.config.require_delegator(delegator)
            instance.access_token(self.delegation)
        except AgentguardError as error:
            raise _denied(error) from error

    def instance(self) -> AgentInstance:
        """Return the instance that makes a call; raises ``Denied`` where a fork can't have one."""
        try:
            return self.runtime.instance()
        except AgentguardError as error:
            raise _denied(error) from error

    async def _ainstance(self) -> AgentInstance:
        if not self.runtime.has_instance:
            from asyncio import to_thread  # noqa: PLC0415  it is loaded: this runs on its event loop

            await to_thread(self.instance)  # it writes
        return self.instance()


def unless_changed(invocation: Invocation, function: Callable[[], R]) -> Callable[[], R]:
    """Return ``function`` such that it does not run on other arguments than were decided on."""
    if invocation.binding is None:  # no argument can change
        return function

    def run() -> R:
        if not invocation.is_unchanged():
            reason = "the arguments were changed while the call was being decided"
            raise NotRun(Decision.refusal(reason, code="arguments.changed"))
        return function()

    return run


def _concealing(function: Callable[[], R], options: CallOptions) -> Callable[[], R]:
    """Return ``function`` such that neither its result nor its error holds a released secret."""

    def run() -> R:
        try:
            result = function()
        except Exception as error:
            _raise_concealed(error, options)
            raise
        concealer = _concealer()
        return result if concealer is None else concealer.shown(result)

    return run


def _aconcealing(
    function: Callable[[], Awaitable[R] | R], options: CallOptions
) -> Callable[[], Awaitable[R]]:
    """Return the async twin of what ``_concealing`` returns."""

    async def run() -> R:
        try:
            begun = function()
            result = await begun if isawaitable(begun) else begun
        except Exception as error:
            _raise_concealed(error, options)
            raise
        concealer = _concealer()
        return result if concealer is None else concealer.shown(result)

    return run


def _raise_concealed(error: Exception, options: CallOptions) -> None:
    """Take the secrets out of an error, or raise another one that holds none.

    What pauses a framework, or hands its work on, is no text for a model.
    """
    concealer = _concealer()
    if concealer is None or isinstance(error, (*options.suspends, *options.hands_on)):
        return
    concealed = concealer.error(error)
    if concealed is not error:
        raise concealed from None


def _concealer() -> Concealer | None:
    """Return what takes the secrets of the running call out; None for a call that got none."""
    running = context.running_call()
    held = () if running is None else running.releases.held
    return Concealer(held) if held else None


def _denied(error: AgentguardError) -> Denied:
    return Denied(Decision.of_error(error))


def _no_tool() -> Never:
    raise AssertionError("an evaluation runs no tool")
