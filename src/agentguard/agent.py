"""``Agent``: an agent instance, and the calls that it makes.

Made by ``Guard.new_agent``, which hands it the parts that it runs on.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from datetime import datetime
from functools import partial
from typing import Any, Final, Never, ParamSpec, TypeVar, overload

from agentguard import canonical, drive, flow
from agentguard.arguments import Arguments
from agentguard.audit import entry
from agentguard.canonical import Fragment
from agentguard.config import AgentConfig
from agentguard.decision import Decision
from agentguard.domain import Domain
from agentguard.effects import Actor, Line
from agentguard.errors import ConfigError
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile, Credential
from agentguard.identity.trust import seconds
from agentguard.invocation import CallSite, Invocation, timestamp
from agentguard.keys import Ed25519Signer
from agentguard.tool import Tool, ToolSpec

P = ParamSpec("P")
R = TypeVar("R")

RENEW_BEFORE: Final = 300
"""Seconds before its end at which a credential is renewed."""


class Agent:
    """An agent instance: a name from the configuration, a key and a credential of its own."""

    def __init__(
        self,
        profile: AgentConfig,
        home: Domain,
        line: Line,
        executor: Callable[[], Executor],
        tool_spec: Callable[[ToolSpec], ToolSpec],
    ) -> None:
        self._profile = profile.profile
        self._home = home
        self._line = line
        self._executor = executor
        self._tool_spec = tool_spec
        self._renewal = threading.Lock()
        self._ordinals: defaultdict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))
        signer = Ed25519Signer.from_seed(line.entropy(32))
        uri = credential.agent_uri(home.trust.trust_domain, self.name, signer.public_key)
        self._actor = Actor(
            name=self.name,
            authority=profile.authority,
            scope=profile.max_scope,
            signer=signer,
            credential=self._credential,
            description=_description(uri, self._profile, signer.key_id),
            uri=uri,
            principal=f"agent:{self.name}",
        )
        self._renew_at = 0
        self._current: Credential | None = None
        self._credential(max(line.clock(), line.log.last_at))
        line.log.flush()

    @property
    def name(self) -> str:
        """The name in the configuration, which all instances share."""
        return self._profile.name

    @property
    def id(self) -> str:
        """The instance's identifier, a ``spiffe://`` URI that ends in its key's thumbprint."""
        return self._actor.uri

    @property
    def alias(self) -> str:
        """A short name for display, such as ``agent:code-reviewer:7f3a``; it identifies nothing."""
        return f"agent:{self.name}:{self._actor.signer.key_id[:4]}"

    @overload
    def call(
        self, tool: Tool[P, Coroutine[Any, Any, Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Never: ...

    @overload
    def call(self, tool: Tool[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def call(self, tool: Tool[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a guarded function if this agent may; return its result or raise its exception.

        Raises ``Denied`` when it may not, and then it did not run.
        """
        if tool.is_async:
            message = f"{tool.spec.name} is a coroutine function: await agent.acall(...) instead"
            raise ConfigError(message, code="tool.async")
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        return self.run(self._invocation(tool, args, kwargs), bound)

    @overload
    async def acall(
        self, tool: Tool[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    async def acall(self, tool: Tool[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    async def acall(self, tool: Tool[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a guarded function, async or sync (in a worker thread), if this agent may.

        Raises ``Denied`` when it may not, and then it did not run.
        """
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        run = bound if tool.is_async else partial(drive.in_thread, bound)
        return await self.arun(self._invocation(tool, args, kwargs), run)

    def evaluate(self, invocation: Invocation) -> Decision:
        """For adapters: what the answer to a call would be. It signs and records nothing."""
        return drive.run(flow.evaluate(self._actor, self._line, invocation), self._line, _no_tool)

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
        line = flow.guarded_call(self._actor, self._line, invocation, outcome_unknown)
        return drive.run(line, self._line, function)  # type: ignore[no-any-return]

    async def arun(
        self,
        invocation: Invocation,
        function: Callable[[], Awaitable[R] | R],
        *,
        outcome_unknown: tuple[type[BaseException], ...] = (),
    ) -> R:
        """For adapters: the async twin of ``run``; ``function`` runs on the event loop."""
        line = flow.guarded_call(self._actor, self._line, invocation, outcome_unknown)
        return await drive.arun(line, self._line, function, self._executor())

    def call_id(self, tool: str) -> str:
        """For adapters: name the next call of ``tool``, where the framework gives no id."""
        return f"{tool}#{next(self._ordinals[tool])}"

    def _invocation(
        self, tool: Tool[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Invocation:
        site = CallSite(self.call_id(tool.spec.name))
        return Invocation.bind(tool.spec, lambda: Arguments.of(tool.bind(args, kwargs)), site)

    def tool_spec(self, spec: ToolSpec) -> ToolSpec:
        """For adapters: return ``spec`` with what ``[tools.NAME]`` of the configuration says."""
        return self._tool_spec(spec)

    def _credential(self, now: datetime) -> Credential:
        """Return the credential in force at ``now``, renewed, verified and recorded if need be."""
        at = seconds(now)
        if self._current is not None and at < self._renew_at:
            return self._current
        with self._renewal:
            if self._current is None or at >= self._renew_at:
                home = self._home
                issued = credential.issue(
                    home.issuer,
                    home.trust.trust_domain,
                    self._profile,
                    self._actor.signer.public_key,
                    now=at,
                    jti=self._line.entropy(16).hex(),
                )
                verified = credential.verify(issued.token, home.trust, at=at)
                # it precedes, in the log, every call that is made with it
                home.log.enqueue(entry.identity(verified.token, at=timestamp(now)))
                self._current = verified
                self._renew_at = verified.expires_at - RENEW_BEFORE
            return self._current

    def __repr__(self) -> str:
        return f"<Agent {self._actor.uri}>"


def _description(uri: str, profile: AgentProfile, instance: str) -> Fragment:
    """The agent as the policy sees it (policy.md, Input)."""
    described = {"id": uri, "name": profile.name, "type": profile.type, "instance": instance}
    return Fragment(canonical.dumps(described))


def _no_tool() -> Never:
    raise AssertionError("an evaluation runs no tool")
