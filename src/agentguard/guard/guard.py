"""``Guard``: the beginning of the public API.

A guard holds one trust domain: its policy engine, its issuer, its log. Agents are made from it,
each with a key of its own, and each of their calls runs down the line of ``flow/line.py``. What
that line is made of, and how it begins in a process, stands in ``process.py``.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from agentguard import telemetry
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.request import ApprovalRequest
from agentguard.audit.log import LogReader
from agentguard.call.tool import AsyncTool, FactsFunction, Tool, ToolDecorator, guarded
from agentguard.delegation.handle import Delegation
from agentguard.delegation.issuance import DEFAULT_DEPTH
from agentguard.domain import config, ephemeral
from agentguard.domain.config import Config
from agentguard.domain.config.agents import AgentConfig
from agentguard.domain.config.engine import PolicySource, engine_from, log_warnings, open_engine
from agentguard.domain.ephemeral import Domain
from agentguard.errors import ConfigError
from agentguard.guard import process
from agentguard.guard.agent import Agent
from agentguard.guard.agent_runtime import AgentRuntime
from agentguard.guard.caller import Caller
from agentguard.guard.delegations import Delegations
from agentguard.guard.process import Runtime
from agentguard.guard.tools import Tools, spec_of
from agentguard.identity.credential import AgentProfile
from agentguard.identity.trust import TrustDocument
from agentguard.policy.engine import Engine
from agentguard.signing.keys import Secret
from agentguard.storage import fork

if TYPE_CHECKING:
    from agentguard.domain.report import Report

OnRequest = Callable[[ApprovalRequest], object]
"""Is told of a request for an approval; what it raises is logged, and changes nothing.

It is called by the thread that makes the call, or for ``acall`` by one of the guard's; the call
goes on when it returns.
"""

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """A trust domain in use. Make one with ``open``, ``find`` or ``ephemeral``.

    It is a context manager, sync and async; ``close`` makes everything durable and gives the log
    back. Its methods may be called from any thread. In a fork it goes on with a shard of its own,
    and each of its agents as a new instance with a key of its own; one in memory does not.
    """

    def __init__(
        self, settings: Config, engine: Engine, home: Domain, on_request: OnRequest | None = None
    ) -> None:
        if on_request is None and settings.on_request is not None:
            where = f"{settings.source}: approvals.on_request"
            on_request = config.load_callable(settings.on_request, where)
        _require_callback(on_request)
        self._settings = settings
        self._runtime = Runtime(settings, engine, home, on_request)
        self._telemetry = telemetry.Telemetry(settings.telemetry, settings.trust_domain)
        self._free = settings.policy is None  # ephemeral: any agent name, every scope
        self._agents: weakref.WeakSet[AgentRuntime] = weakref.WeakSet()
        self._tools = Tools(settings)
        self._delegations = Delegations(settings, self._runtime)
        _GUARDS.add(self)
        self._runtime.current_line()
        telemetry.watch_pending(self._waiting)

    def _waiting(self) -> tuple[str, object, int] | None:
        """Count what waits for an approval, for the metrics."""
        requests = self._runtime.requests
        if self.closed or requests is None:
            return None
        inbox = ApprovalInbox(requests, self._settings.roster, process.clock)
        state = id(self) if self._free else self._settings.state
        return self._settings.trust_domain, state, len(inbox.pending())

    def _forked(self) -> None:
        """In a fork: drop the agents' keys and the parent's shard."""
        self._runtime.forked()
        for agent in list(self._agents):
            agent.forked()

    @classmethod
    def open(
        cls,
        path: str | Path = config.FILE,
        *,
        passphrase: bytes | Callable[[], bytes] | None = None,
        on_request: OnRequest | None = None,
    ) -> Self:
        """Open the durable guard that an ``agentguard.toml`` describes.

        ``passphrase`` unlocks the long-lived keys; without it, ``AGENTGUARD_PASSPHRASE`` or
        ``[keys] passphrase_file`` does. A function is asked again when keys were rotated, from
        whatever thread, and its answer is not kept. ``on_request``, no coroutine function, is told
        of each new request for an approval, once it can be answered. Raises ``ConfigError``,
        ``PolicyError``, ``KeyMaterialError``, ``StorageError``, ``DecodeError`` or
        ``VerificationError``.
        """
        given = Secret.of(passphrase) if isinstance(passphrase, bytes) else passphrase
        del passphrase  # a traceback can show what a frame holds
        # a guard in memory needs nothing of what lies on a disk
        from agentguard.domain import domain  # noqa: PLC0415
        from agentguard.domain.passphrase import passphrase_of  # noqa: PLC0415

        settings = config.load(Path(path))
        telemetry.follow(settings.telemetry)
        engine = open_engine(settings)
        home = domain.take_up(settings, given or partial(passphrase_of, settings))
        return cls(settings, engine, home, on_request)

    @classmethod
    def find(cls) -> Guard:
        """Return this process's guard for the nearest ``agentguard.toml``, from here upwards.

        It is opened at the first use, shared by all later ones, and closed at exit.
        """
        path = config.find(Path.cwd())
        with _FOUND_LOCK:
            guard = _FOUND.get(path)
            if guard is None or guard.closed:
                guard = _FOUND[path] = Guard.open(path)
            return guard

    @classmethod
    def ephemeral(
        cls,
        policy: PolicySource,
        *,
        config: Mapping[str, Any] | None = None,
        on_request: OnRequest | None = None,
    ) -> Self:
        """Make a guard in memory: for tests and notebooks.

        ``policy`` is the path of a Rego file or folder, or a function from the policy's input to
        a ``Decision``; ``config`` holds the tables of an ``agentguard.toml``. Without an ``agents``
        table in it any agent name is taken, with its own authority and every scope.
        ``on_request`` is that of ``open``. Raises ``ConfigError`` or ``PolicyError``.
        """
        settings = ephemeral.settings({} if config is None else config)
        telemetry.follow(settings.telemetry)
        engine = log_warnings(engine_from(policy, settings.base))
        home = ephemeral.domain(settings.trust_domain, now=process.clock())
        return cls(settings, engine, home, on_request)

    def require_agent(self, name: str) -> None:
        """Raise ``ConfigError`` (``agent.unknown``) for a name without an ``[agents]`` table."""
        agents = self._settings.agents
        if name not in agents and (agents or not self._free):
            known = ", ".join(sorted(agents)) or "none"
            message = f"{self._settings.source}: there is no [agents.{name}]; known agents: {known}"
            raise ConfigError(message, code="agent.unknown")

    def new_agent(self, name: str) -> Agent:
        """Make an agent instance: a new key, and a credential for it that is on record.

        Raises ``ConfigError`` (``agent.unknown``) for a name without an ``[agents]`` table, and
        ``StorageError`` where the credential can't be recorded.
        """
        self.require_agent(name)
        profile = self._settings.agents.get(name)
        if profile is None:
            delegators = self._settings.delegators(name)
            profile = AgentConfig(AgentProfile(name), "own", max_scope=None, delegators=delegators)
        runtime = AgentRuntime(
            profile,
            self._runtime,
            tools=self._tools,
            delegations=self._delegations,
            telemetry=self._telemetry,
        )
        self._agents.add(runtime)
        self._tools.check_names()
        return Agent(Caller(runtime))

    def delegate(
        self,
        subject: str,
        *,
        scope: Iterable[str] | None = None,
        via: str | None = None,
        task_id: str | None = None,
        expires_in: timedelta | int = timedelta(hours=1),
        max_depth: int = DEFAULT_DEPTH,
        max_calls: int | None = None,
        audience: Iterable[str] = (),
    ) -> Delegation:
        """Have ``subject``, whom this program has authenticated, lend ``scope`` to its agents.

        In a ``with`` (or ``async with``) block the agents' calls are made for that user or service:
        with no more than ``scope``, which an agent's own configuration may narrow further.
        ``scope`` None is all that the roles of ``subject`` allow (``[principals]``). ``via`` names
        the service through which it was asked for, ``expires_in`` is in seconds unless it is a
        ``timedelta``, ``max_depth`` is how many hops the chain may have, ``max_calls`` how many
        calls may be made under it altogether, and ``audience`` who may accept its access tokens.

        Raises ``DelegationError``: ``scope.malformed``, ``scope.exceeded`` for more than the roles
        of ``subject`` allow, ``principal.malformed``, ``principal.unknown`` for a ``subject``
        whom ``[principals]`` does not list, ``hop.malformed``, ``delegation.depth``.
        """
        return self._delegations.begin(
            subject,
            scope=scope,
            via=via,
            task_id=task_id,
            expires_in=expires_in,
            max_depth=max_depth,
            max_calls=max_calls,
            audience=audience,
        )

    def resume(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote, in whatever process of this trust domain.

        Raises ``DecodeError`` or ``VerificationError`` for what does not verify or has expired,
        ``StorageError``, and ``DelegationError`` (``delegation.revoked``, ``domain.frozen``,
        ``delegation.holder``) for what can't be used any more.
        """
        return self._delegations.resume(stored)

    @overload
    def tool(  # type: ignore[overload-overlap]  # a coroutine function never is a Tool
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncTool[P, R]: ...

    @overload
    def tool(self, function: Callable[P, R]) -> Tool[P, R]: ...

    @overload
    def tool(
        self,
        *,
        name: str | None = None,
        resource: str | None = None,
        requires: tuple[str, ...] | list[str] = (),
        attributes: Mapping[str, str] | None = None,
        facts: FactsFunction | None = None,
    ) -> ToolDecorator: ...

    def tool(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        resource: str | None = None,
        requires: tuple[str, ...] | list[str] = (),
        attributes: Mapping[str, str] | None = None,
        facts: FactsFunction | None = None,
    ) -> Any:
        """Put a plain function behind this guard; it then runs with ``agent.call`` only.

        ``requires`` is the scope that a caller needs, ``resource`` a template of whole arguments
        (``repo:{repo}``), ``attributes`` names arguments that the policy reads at the top level,
        ``facts`` looks up what must not come from the model. ``[tools.NAME]`` in the
        configuration overrides each.
        """

        def guard(function: Callable[..., Any]) -> Tool[..., Any] | AsyncTool[..., Any]:
            spec = spec_of(
                function,
                name=name,
                resource=resource,
                requires=requires,
                attributes=attributes,
                facts=facts,
            )
            tool = guarded(self._tools.configure(spec), function)
            if self._agents:  # the tools that come before the first agent are looked at together
                self._tools.check_names()
            return tool

        return guard(function) if function is not None else guard

    @property
    def approvals(self) -> ApprovalInbox:
        """The inbox where requests for approvals are answered."""
        return self._runtime.inbox()

    @property
    def trust(self) -> TrustDocument:
        """The public keys with which this guard's log can be verified."""
        return self._runtime.domain.trust

    def reader(self) -> LogReader:
        """Return a reader of the log, with everything in it that was enqueued until now."""
        self._runtime.flush()
        return self._runtime.domain.read()

    def prove(self, invocation_id: str, *, attachments: bool = True) -> bytes:
        """Return the evidence of one call, for whoever holds the trust document alone.

        It is what ``agentguard evidence make`` writes (docs/evidence.md); without ``attachments``
        arguments, policy input and result are left out. Raises ``CallError`` (``call.unknown``),
        ``StorageError`` or ``VerificationError``.
        """
        from agentguard.audit.prove import prove_call  # noqa: PLC0415  few programs prove a call

        with closing(self.reader()) as reader:
            return prove_call(reader, self.trust, invocation_id, attachments=attachments)

    def verify(self) -> Report:
        """Verify the whole log, with the keys of this guard and the anchors that it keeps.

        Trust it as far as this process: others verify with a trust document of their own
        (``agentguard audit verify``). Raises ``StorageError`` where the log can't be opened.
        """
        from agentguard.domain.verify import examine  # noqa: PLC0415  few programs verify their log

        with closing(self.reader()) as reader:
            return examine(reader, self.trust, anchor=None if self._free else self._settings.anchor)

    @property
    def closed(self) -> bool:
        """True once the guard was closed."""
        return self._runtime.is_closed

    def close(self) -> None:
        """Make everything durable and give the log back; calls are denied from then on.

        Spans that ``telemetry.configure`` has set up are sent, in some seconds or not now.
        """
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from asyncio import to_thread  # noqa: PLC0415  a program without an event loop does without

        await to_thread(self.close)

    def __repr__(self) -> str:
        return f"<Guard of {self.trust.trust_domain}>"


def _require_callback(on_request: object) -> None:
    """Raise ``ConfigError`` for what could tell nobody, as a coroutine that is not awaited."""
    if on_request is None or (callable(on_request) and not inspect.iscoroutinefunction(on_request)):
        return
    raise ConfigError(f"on_request: expected a function, no coroutine function, got {on_request!r}")


def _after_fork() -> None:
    global _FOUND_LOCK  # noqa: PLW0603  a thread of the parent may have held it
    _FOUND_LOCK = threading.RLock()
    for guard in list(_GUARDS):
        guard._forked()  # noqa: SLF001  a guard and this file are one unit


_GUARDS: weakref.WeakSet[Guard] = weakref.WeakSet()
fork.at_fork(fork.Stage.GUARDS, in_child=_after_fork)
_FOUND: dict[Path, Guard] = {}
_FOUND_LOCK = threading.RLock()  # the module of a policy may itself guard tools, as it is imported
