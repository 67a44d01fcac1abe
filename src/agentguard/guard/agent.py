"""``Agent``: an agent instance, and the calls that it makes.

Made by ``Guard.new_agent``, which hands it the parts that it runs on.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Never, ParamSpec, TypeVar

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.nested import NestedCalls
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision, Denied
from agentguard.call.invocation import CallSite, Invocation
from agentguard.call.journal import ResultCodec, Runs
from agentguard.call.tool import GuardedFunction, Tool, ToolSpec
from agentguard.delegation import context
from agentguard.delegation.handle import Delegation, Holder
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.ephemeral import Domain
from agentguard.errors import AgentguardError, ConfigError, DelegationError
from agentguard.flow import drive
from agentguard.flow import line as flow
from agentguard.flow.drive import Executors
from agentguard.flow.effects import Line, NotRun
from agentguard.flow.endings import ExceptionClasses
from agentguard.guard.instance import Instance
from agentguard.identity import credential
from agentguard.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from agentguard.telemetry import AgentSpan

P = ParamSpec("P")
R = TypeVar("R")


class Agent:
    """An agent instance: a name from the configuration, a key and a credential of its own.

    In a fork it is another instance: with a key of its own from its first call there.
    """

    def __init__(self, body: Body, delegation: Delegation | DelegationError | None = None) -> None:
        self._body = body
        self._delegation = delegation

    def under(self, delegation: Delegation) -> Agent:
        """Return this instance as it acts under ``delegation``, wherever and whenever it is called.

        For what a ``with`` block does not reach: callbacks, threads of others, generators (which
        ``Delegation.iterate`` goes through, too). Raises ``ConfigError`` for what is none: where a
        delegation got lost (None), an agent with an authority of its own would use that unnoticed.
        """
        given: object = delegation
        if not isinstance(given, Delegation):
            raise ConfigError(f"delegation: expected what guard.delegate returns, got {given!r}")
        return Agent(self._body, given)

    def refusing(self, error: DelegationError) -> Agent:
        """For adapters: return this instance with each call refused, on record, for ``error``."""
        return Agent(self._body, error)

    @property
    def delegation(self) -> Delegation | None:
        """What it acts under wherever it is called (``under``); None for what is in force there."""
        return self._delegation if isinstance(self._delegation, Delegation) else None

    @property
    def name(self) -> str:
        """The name in the configuration, which all instances share."""
        return self._body.profile.profile.name

    @property
    def id(self) -> str:
        """The instance's identifier, a ``spiffe://`` URI that ends in its key's thumbprint."""
        return self._body.in_force().actor.uri

    @property
    def alias(self) -> str:
        """A short name for display, such as ``agent:code-reviewer:7f3a``; it identifies nothing."""
        return credential.agent_alias(self.id)

    def call(self, tool: Tool[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a guarded function if this agent may; return its result or raise its exception.

        Raises ``Denied`` when it may not, or ``ApprovalPending`` while it waits for people; then it
        did not run.
        """
        _require_guarded(tool)
        if tool.is_async:
            message = f"{tool.spec.name} is a coroutine function: await agent.acall(...) instead"
            raise ConfigError(message, code="tool.async")
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        result: R = self.run(self._invocation(tool, args, kwargs), bound)
        return result

    async def acall(self, tool: GuardedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a guarded function, async or sync (in a worker thread), if this agent may.

        Raises ``Denied`` or ``ApprovalPending`` as ``call`` does, and then it did not run.
        """
        from agentguard.flow.drive_async import in_thread  # noqa: PLC0415  it imports asyncio

        _require_guarded(tool)
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        invocation = self._invocation(tool, args, kwargs)
        # in the thread, too: it may have to wait for one while its arguments change
        run = bound if tool.is_async else partial(in_thread, _unchanged(invocation, bound))
        result: R = await self.arun(invocation, run)
        return result

    def evaluate(self, invocation: Invocation, *, codec: ResultCodec | None = None) -> Decision:
        """For adapters: what the answer to a call would be; the call is not signed nor recorded.

        A credential that is due is renewed, as by a call, and that is on record; so is the request
        of a call that waits for a person, for which it raises ``ApprovalPending``. ``codec`` is
        the one with which the call would be made.
        """
        try:
            instance = self._acting()
        except Denied as refused:
            return refused.decision
        listener = self._body.telemetry.evaluation(instance.actor, invocation)
        evaluation = flow.evaluate(
            instance.actor,
            instance.line,
            invocation,
            listener,
            instance.delegation_source(self._delegation),
            codec=codec,
            nested_calls=NestedCalls(context.inside()),
        )
        return drive.run(evaluation, _no_tool, listener)

    async def aevaluate(
        self, invocation: Invocation, *, codec: ResultCodec | None = None
    ) -> Decision:
        """For adapters: the async twin of ``evaluate``; ``facts`` may be a coroutine function."""
        from agentguard.flow import drive_async  # noqa: PLC0415  it imports asyncio

        try:
            instance = await self._aacting()
        except Denied as refused:
            return refused.decision
        listener = self._body.telemetry.evaluation(instance.actor, invocation)
        evaluation = flow.evaluate(
            instance.actor,
            instance.line,
            invocation,
            listener,
            instance.delegation_source(self._delegation),
            codec=codec,
            nested_calls=NestedCalls(context.inside()),
        )
        executors = self._body.executors()
        return await drive_async.arun(evaluation, _no_tool, listener, executors)

    def run(
        self,
        invocation: Invocation,
        function: Callable[[], R],
        *,
        outcome_unknown: tuple[type[BaseException], ...] = (),
        suspends: tuple[type[BaseException], ...] = (),
        hands_on: tuple[type[BaseException], ...] = (),
        codec: ResultCodec | None = None,
        reentrant: bool = False,
    ) -> R:
        """For adapters: run ``function`` as ``invocation`` if this agent may.

        Exceptions of the classes in ``outcome_unknown`` are recorded as an unknown outcome, and so
        are those in ``suspends``, a framework's way to pause, and in ``hands_on``, its way to go on
        elsewhere: neither is an error. With a ``codec``, a call that a framework makes again when
        it resumes a run does not run again, unless it was suspended; a ``reentrant`` one, a
        sub-agent's, also goes on where it was cut short, and while a call in it waits. Raises
        ``Denied``, ``ApprovalPending``, or what ``function`` raises.
        """
        instance = self._acting()
        listener = self._body.telemetry.call(instance.actor, invocation)
        guarded_call = flow.guarded_call(
            instance.actor,
            instance.line,
            invocation,
            listener,
            instance.delegation_source(self._delegation),
            codec=codec,
            nested_calls=NestedCalls(context.inside()),
            classes=ExceptionClasses(outcome_unknown, suspends, hands_on),
            is_reentrant=reentrant,
        )
        tool = _unchanged(invocation, function)
        return drive.run(guarded_call, tool, listener)  # type: ignore[no-any-return]

    async def arun(
        self,
        invocation: Invocation,
        function: Callable[[], Awaitable[R] | R],
        *,
        outcome_unknown: tuple[type[BaseException], ...] = (),
        suspends: tuple[type[BaseException], ...] = (),
        hands_on: tuple[type[BaseException], ...] = (),
        codec: ResultCodec | None = None,
        reentrant: bool = False,
    ) -> R:
        """For adapters: the async twin of ``run``; ``function`` runs on the event loop."""
        from agentguard.flow import drive_async  # noqa: PLC0415  it imports asyncio

        instance = await self._aacting()
        listener = self._body.telemetry.call(instance.actor, invocation)
        guarded_call = flow.guarded_call(
            instance.actor,
            instance.line,
            invocation,
            listener,
            instance.delegation_source(self._delegation),
            codec=codec,
            nested_calls=NestedCalls(context.inside()),
            classes=ExceptionClasses(outcome_unknown, suspends, hands_on),
            is_reentrant=reentrant,
        )
        tool = _unchanged(invocation, function)
        executors = self._body.executors()
        return await drive_async.arun(guarded_call, tool, listener, executors)

    def span(
        self,
        *,
        conversation: str | None = None,
        delegation: Delegation | None = None,
        paused: str | None = None,
        parent: Context | None = None,
        started: int | None = None,
        inside: Span | None = None,
    ) -> AgentSpan:
        """For adapters: begin the span ``invoke_agent`` of a run of this agent.

        ``conversation`` is the framework's thread; ``delegation`` is for whom, where that is
        neither ``under`` nor in force here. ``paused``, a ``traceparent``, is the run that this one
        goes on. ``parent`` is the context around it (None: the current one), ``started`` the time
        at which it began (nanoseconds since the epoch; None: now). ``inside`` is a span that stands
        for the run already: that is enriched, and none is begun. What it does is inside it where it
        is entered, as a context manager or with ``telemetry.attached``.
        """
        instance = self._body.in_force()
        run = instance.describe_run(delegation or self._delegation)
        run = run._replace(conversation=conversation, paused=paused, parent=parent, started=started)
        return self._body.telemetry.agent(instance.actor, run._replace(inside=inside))

    def call_id(self, tool: str) -> str:
        """For adapters: name the next call of ``tool``, where the framework gives no id."""
        return f"{tool}#{next(self._body.ordinals[tool])}"

    def access_token(self) -> str:
        """Return an access token (``at+jwt``, RFC 8693 and 9068) for the delegation in force.

        It lives five minutes at most, is bound to this instance's key and carries the chain
        (docs/delegation.md). Raises ``Denied``: ``delegation.missing``, and as a call would.
        """
        instance = self._acting()
        source = instance.delegation_source(self._delegation)
        try:
            if source is None:
                message = f"agent {self.name} has nothing to show: no delegation is in force"
                raise DelegationError(message, code="delegation.missing")
            return instance.access_token(source)
        except AgentguardError as error:
            raise Denied(Decision.refused(str(error), code=error.code)) from error

    def require_delegator(self, by: Agent) -> None:
        """For adapters: raise ``DelegationError`` unless ``by`` may hand work on to this agent.

        The code is ``delegation.delegatee``: ``[delegation]`` says who may.
        """
        self._body.profile.require_delegator(by.name)

    def take_over(self, by: Agent) -> None:
        """For adapters: take over work from ``by``, within its call and before any of it is done.

        What is in force, which is what ``by`` was lent, is handed on at once, signed and on record.
        Raises ``Denied`` where ``by`` may not hand on to this agent (``delegation.delegatee``), or
        as a call under it would be refused.
        """
        instance = self._acting()
        source = instance.delegation_source(self._delegation)
        try:
            self.require_delegator(by)
            if source is not None:
                instance.access_token(source)
        except AgentguardError as error:
            raise Denied(Decision.refused(str(error), code=error.code)) from error

    def _invocation(
        self, tool: GuardedFunction[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Invocation:
        site = CallSite(self.call_id(tool.spec.name))
        bind = tool.bind
        return Invocation.bind(
            tool.spec,
            lambda: Arguments.of(bind(args, kwargs), declared=bind.declared),
            site,
            shared=False,  # the tuple and the dictionary were made for this call
        )

    @property
    def approvals(self) -> ApprovalInbox:
        """The inbox where requests for approvals are answered, as ``Guard.approvals``."""
        return self._body.inbox()

    @property
    def runs(self) -> Runs:
        """For adapters: what is kept of runs that go on later, perhaps in another process."""
        return self._acting().line.runs

    def resume(self, stored: bytes) -> Delegation:
        """For adapters: take up a stored delegation; raises as ``Guard.resume`` does."""
        return self._body.resume(stored)

    def tool_spec(self, spec: ToolSpec) -> ToolSpec:
        """For adapters: return ``spec`` with what ``[tools.NAME]`` of the configuration says."""
        return self._body.tool_spec(spec)

    def tools_named(self) -> None:
        """For adapters: log configured tools that look misspelt, now that the tools are known."""
        self._body.tools_named()

    def _acting(self) -> Instance:
        """Return the instance that makes a call; without one (in a fork) the call is refused."""
        try:
            return self._body.in_force()
        except AgentguardError as error:
            raise Denied(Decision.refused(str(error), code=error.code)) from error

    async def _aacting(self) -> Instance:
        if not self._body.has_begun:
            from asyncio import to_thread  # noqa: PLC0415  it is loaded: this runs on its event loop

            await to_thread(self._acting)  # it writes
        return self._acting()

    def __repr__(self) -> str:
        return f"<Agent {self.id if self._body.has_begun else self.name}>"


@dataclass(eq=False)
class Body:
    """What an agent's handles share: its instance in this process, and what it is made of."""

    profile: AgentConfig
    _home: Callable[[], Domain]
    _line: Callable[[], Line]
    executors: Callable[[], Executors]
    tool_spec: Callable[[ToolSpec], ToolSpec]
    tools_named: Callable[[], None]
    resume: Callable[[bytes], Delegation]
    inbox: Callable[[], ApprovalInbox]
    telemetry: Telemetry

    def __post_init__(self) -> None:
        self.ordinals: defaultdict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))
        self._instance: Instance | None = None
        self._beginning = threading.RLock()  # a signal handler may make a call meanwhile
        self.in_force()

    @property
    def has_begun(self) -> bool:
        """Whether there is an instance in this process already."""
        return self._instance is not None

    def in_force(self) -> Instance:
        """Return this process's instance; a fork makes one of its own when it first needs one."""
        found = self._instance
        return found if found is not None else self._begun()

    def _begun(self) -> Instance:
        with self._beginning:
            made = self._instance or Instance(self.profile, self._home, self._line(), self.holder)
            if self._instance is None:  # else a signal handler has made one meanwhile
                self._instance = made
            return self._instance

    def holder(self, now: datetime) -> Holder:
        """Return who hands on what this agent was lent."""
        return self.in_force().holder(now)

    def forked(self) -> None:
        """In a fork: drop the key, which is the parent's."""
        self._instance = None
        self._beginning = threading.RLock()


def _unchanged(invocation: Invocation, function: Callable[[], R]) -> Callable[[], R]:
    """Return ``function`` such that it does not run on other arguments than were decided on."""

    def run() -> R:
        if not invocation.is_unchanged():
            reason = "the arguments were changed while the call was being decided"
            raise NotRun(Decision.refused(reason, code="arguments.changed"))
        return function()

    return run


def _require_guarded(tool: object) -> None:
    if not isinstance(tool, GuardedFunction):
        name = getattr(tool, "__name__", repr(tool))
        message = (
            f"{name} is no guarded tool, and did not run: put @guard.tool above its definition"
        )
        raise ConfigError(message, code="tool.invalid")


def _no_tool() -> Never:
    raise AssertionError("an evaluation runs no tool")
