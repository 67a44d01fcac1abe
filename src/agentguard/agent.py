"""``Agent``: an agent instance, and the calls that it makes.

Made by ``Guard.new_agent``, which hands it the parts that it runs on.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from datetime import datetime
from functools import partial
from typing import Any, Final, Never, ParamSpec, TypeVar

from agentguard import canonical, drive, flow
from agentguard.arguments import Arguments
from agentguard.audit import entry
from agentguard.canonical import Fragment
from agentguard.config import AgentConfig
from agentguard.decision import Decision, Denied
from agentguard.domain import Domain
from agentguard.effects import Actor, Line
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile, Credential
from agentguard.identity.trust import seconds
from agentguard.invocation import CallSite, Invocation, timestamp
from agentguard.keys import Ed25519Signer
from agentguard.tool import GuardedFunction, Tool, ToolSpec

P = ParamSpec("P")
R = TypeVar("R")

RENEW_BEFORE: Final = 300
"""Seconds before its end at which a credential is renewed."""


class Agent:
    """An agent instance: a name from the configuration, a key and a credential of its own.

    In a fork it is another instance: with a key of its own from its first call there.
    """

    def __init__(
        self,
        profile: AgentConfig,
        home: Callable[[], Domain],
        line: Callable[[], Line],
        executor: Callable[[], Executor],
        tool_spec: Callable[[ToolSpec], ToolSpec],
        tools_named: Callable[[], None],
    ) -> None:
        self._profile = profile
        self._home = home
        self._line = line
        self._executor = executor
        self._tool_spec = tool_spec
        self._tools_named = tools_named
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))
        self._instance: _Instance | None = None
        self._beginning = threading.Lock()
        self._in_force()

    def _in_force(self) -> _Instance:
        if self._instance is not None:
            return self._instance
        with self._beginning:
            if self._instance is None:
                self._instance = _Instance(self._profile, self._home, self._line())
            return self._instance

    def _forked(self) -> None:
        """In a fork: drop the key, which is the parent's."""
        self._instance = None
        self._beginning = threading.Lock()

    @property
    def name(self) -> str:
        """The name in the configuration, which all instances share."""
        return self._profile.profile.name

    @property
    def id(self) -> str:
        """The instance's identifier, a ``spiffe://`` URI that ends in its key's thumbprint."""
        return self._in_force().actor.uri

    @property
    def alias(self) -> str:
        """A short name for display, such as ``agent:code-reviewer:7f3a``; it identifies nothing."""
        return credential.agent_alias(self.id)

    def call(self, tool: Tool[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a guarded function if this agent may; return its result or raise its exception.

        Raises ``Denied`` when it may not, and then it did not run.
        """
        if tool.is_async:
            message = f"{tool.spec.name} is a coroutine function: await agent.acall(...) instead"
            raise ConfigError(message, code="tool.async")
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        result: R = self.run(self._invocation(tool, args, kwargs), bound)
        return result

    async def acall(self, tool: GuardedFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a guarded function, async or sync (in a worker thread), if this agent may.

        Raises ``Denied`` when it may not, and then it did not run.
        """
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        run = bound if tool.is_async else partial(drive.in_thread, bound)
        result: R = await self.arun(self._invocation(tool, args, kwargs), run)
        return result

    def evaluate(self, invocation: Invocation) -> Decision:
        """For adapters: what the answer to a call would be; the call is not signed nor recorded.

        A credential that is due is renewed, as by a call, and that is on record.
        """
        try:
            instance = self._acting()
        except Denied as refused:
            return refused.decision
        line = instance.line
        return drive.run(flow.evaluate(instance.actor, line, invocation), line, _no_tool)

    async def aevaluate(self, invocation: Invocation) -> Decision:
        """For adapters: the async twin of ``evaluate``; ``facts`` may be a coroutine function."""
        try:
            instance = await self._aacting()
        except Denied as refused:
            return refused.decision
        line = instance.line
        asking = flow.evaluate(instance.actor, line, invocation)
        return await drive.arun(asking, line, _no_tool, self._executor())

    def run(
        self,
        invocation: Invocation,
        function: Callable[[], R],
        *,
        outcome_unknown: tuple[type[BaseException], ...] = (),
    ) -> R:
        """For adapters: run ``function`` as ``invocation`` if this agent may.

        Exceptions of the classes in ``outcome_unknown`` (a framework's way to pause) are recorded
        as an unknown outcome. Raises ``Denied``, or what ``function`` raises.
        """
        instance = self._acting()
        calling = flow.guarded_call(instance.actor, instance.line, invocation, outcome_unknown)
        return drive.run(calling, instance.line, function)  # type: ignore[no-any-return]

    async def arun(
        self,
        invocation: Invocation,
        function: Callable[[], Awaitable[R] | R],
        *,
        outcome_unknown: tuple[type[BaseException], ...] = (),
    ) -> R:
        """For adapters: the async twin of ``run``; ``function`` runs on the event loop."""
        instance = await self._aacting()
        calling = flow.guarded_call(instance.actor, instance.line, invocation, outcome_unknown)
        return await drive.arun(calling, instance.line, function, self._executor())

    def call_id(self, tool: str) -> str:
        """For adapters: name the next call of ``tool``, where the framework gives no id."""
        return f"{tool}#{next(self._ordinals[tool])}"

    def _invocation(
        self, tool: GuardedFunction[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Invocation:
        site = CallSite(self.call_id(tool.spec.name))
        bind = tool.bind
        return Invocation.bind(
            tool.spec, lambda: Arguments.of(bind(args, kwargs), declared=bind.declared), site
        )

    def tool_spec(self, spec: ToolSpec) -> ToolSpec:
        """For adapters: return ``spec`` with what ``[tools.NAME]`` of the configuration says."""
        return self._tool_spec(spec)

    def tools_named(self) -> None:
        """For adapters: log configured tools that look misspelt, now that the tools are known."""
        self._tools_named()

    def _acting(self) -> _Instance:
        """Return the instance that makes a call; without one (in a fork) the call is refused."""
        if self._instance is not None:
            return self._instance
        try:
            return self._in_force()
        except AgentguardError as error:
            raise Denied(Decision.refused(str(error), code=error.code)) from error

    async def _aacting(self) -> _Instance:
        if self._instance is None:
            await asyncio.to_thread(self._acting)  # it writes
        return self._acting()

    def __repr__(self) -> str:
        instance = self._instance
        return f"<Agent {instance.actor.uri if instance is not None else self.name}>"


class _Instance:
    """An agent in one process: its key, its credential, and the line that its calls run down."""

    def __init__(self, profile: AgentConfig, home: Callable[[], Domain], line: Line) -> None:
        self.line = line
        self._profile = profile.profile
        self._home = home
        self._renewal = threading.Lock()
        self._renew_at = 0
        self._current: Credential | None = None
        signer = Ed25519Signer.from_seed(line.entropy(32))
        name = self._profile.name
        uri = credential.agent_uri(home().trust.trust_domain, name, signer.public_key)
        self.actor = Actor(
            name=name,
            authority=profile.authority,
            scope=profile.max_scope,
            signer=signer,
            has_credential=self._has_credential,
            renew=self._renew,
            description=_description(uri, self._profile, signer.key_id),
            uri=uri,
            principal=f"agent:{name}",
        )
        self._renew(max(line.clock(), line.log.last_at))
        line.log.flush()

    def _has_credential(self, now: datetime) -> bool:
        return self._current is not None and seconds(now) < self._renew_at

    def _renew(self, now: datetime) -> None:
        """Have a credential made, verified and recorded, unless another thread just did."""
        at = seconds(now)
        with self._renewal:
            if self._has_credential(now):
                return
            home = self._home()
            issued = credential.issue(
                home.issuer,
                home.trust.trust_domain,
                self._profile,
                self.actor.signer.public_key,
                now=at,
                jti=self.line.entropy(16).hex(),
            )
            verified = credential.verify(issued.token, home.trust, at=at)
            # it precedes, in the log, every call that is made with it
            self.line.log.enqueue(entry.identity(verified, at=timestamp(now)))
            self._current = verified
            self._renew_at = verified.expires_at - RENEW_BEFORE


def _description(uri: str, profile: AgentProfile, instance: str) -> Fragment:
    """The agent as the policy sees it (policy.md, Input)."""
    described = {"id": uri, "name": profile.name, "type": profile.type, "instance": instance}
    return Fragment(canonical.dumps(described))


def _no_tool() -> Never:
    raise AssertionError("an evaluation runs no tool")
