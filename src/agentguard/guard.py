"""``Guard``: the beginning of the public API, and the only place where the parts are wired.

A guard holds one trust domain: its policy engine, its issuer, its log. Agents are made from it,
each with a key of its own, and each of their calls runs down the line of ``flow.py``.
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from agentguard import canonical, config, domain, telemetry
from agentguard.agent import Agent
from agentguard.audit import entry
from agentguard.config import AgentConfig, Config
from agentguard.decision import Decision
from agentguard.effects import Line
from agentguard.engines.function import FunctionEngine
from agentguard.errors import ConfigError
from agentguard.identity.credential import AgentProfile
from agentguard.identity.trust import TrustDocument
from agentguard.invocation import timestamp
from agentguard.ports import Engine, LogReader
from agentguard.tool import FactsFunction, Tool, ToolSpec, function_schema

P = ParamSpec("P")
R = TypeVar("R")

PolicySource = str | Path | Callable[[Mapping[str, Any]], Decision]


class Guard:
    """A trust domain in use. Make one with ``open``, ``find`` or ``ephemeral``.

    It is a context manager, sync and async; ``close`` makes everything durable and gives the log
    back. Its methods may be called from any thread.
    """

    def __init__(self, settings: Config, engine: Engine, home: domain.Domain) -> None:
        self._settings = settings
        self._home = home
        self._closed = False
        self._free = settings.policy is None  # ephemeral: any agent name, every scope
        self._renew_executor()
        _GUARDS.add(self)
        self._line = Line(
            engine=engine,
            engine_name={"name": engine.name, "version": engine.version},
            log=home.log,
            clock=_clock,
            entropy=os.urandom,
            traceparent=telemetry.traceparent,
            config_sha256=canonical.sha256_hex(settings.encoded),
        )
        at = timestamp(max(_clock(), home.log.last_at))
        home.log.enqueue(entry.config(settings.encoded, at=at))
        home.log.append(
            entry.policy(self._line.engine_name, engine.policy_sha256, engine.policy_files, at=at)
        )

    @classmethod
    def open(
        cls,
        path: str | Path = config.FILE,
        *,
        passphrase: bytes | Callable[[], bytes] | None = None,
    ) -> Self:
        """Open the durable guard that an ``agentguard.toml`` describes.

        ``passphrase`` unlocks the long-lived keys; without it, ``AGENTGUARD_PASSPHRASE`` or
        ``[keys] passphrase_file`` does. Raises ``ConfigError``, ``PolicyError``,
        ``KeyMaterialError`` or ``StorageError``.
        """
        settings = config.load(Path(path))
        engine = load_engine(settings)
        secret = passphrase() if callable(passphrase) else passphrase
        home = domain.take_up(settings, secret or domain.passphrase_of(settings))
        try:
            return cls(settings, engine, home)
        except BaseException:
            home.log.close()
            raise

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
    def ephemeral(cls, policy: PolicySource, *, config: Mapping[str, Any] | None = None) -> Self:
        """Make a guard in memory: for tests and notebooks.

        ``policy`` is the path of a Rego file or folder, or a function from the policy's input to
        a ``Decision``; ``config`` holds the tables of an ``agentguard.toml``. Any agent name is
        taken, with its own authority and every scope, unless ``config`` says otherwise.
        """
        settings = _ephemeral_settings(config or {})
        engine = _engine(policy, settings)
        return cls(settings, engine, domain.ephemeral(settings.trust_domain, now=_clock()))

    def new_agent(self, name: str) -> Agent:
        """Make an agent instance: a new key, and a credential for it that is on record.

        Raises ``ConfigError`` (``agent.unknown``) for a name without an ``[agents]`` table, and
        ``StorageError`` where the credential can't be recorded.
        """
        profile = self._settings.agents.get(name)
        if profile is None:
            if not self._free:
                known = ", ".join(sorted(self._settings.agents)) or "none"
                message = (
                    f"{self._settings.source}: there is no [agents.{name}]; known agents: {known}"
                )
                raise ConfigError(message, code="agent.unknown")
            profile = AgentConfig(AgentProfile(name), "own", None)
        return Agent(profile, self._home, self._line, lambda: self._executor, self.tool_spec)

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
    ) -> Callable[[Callable[P, R]], Tool[P, R]]: ...

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

        def guarded(function: Callable[..., Any]) -> Tool[..., Any]:
            _require_function(function)
            spec = ToolSpec(
                name=name or function.__name__,
                description=(function.__doc__ or "").strip(),
                schema=function_schema(function),
                origin=f"{function.__module__}:{function.__qualname__}",
                requires=_scopes(requires),
                resource=resource,
                attributes=dict(attributes or {}),
                facts=facts,
            )
            return Tool(self.tool_spec(spec), function)

        return guarded(function) if function is not None else guarded

    def tool_spec(self, spec: ToolSpec) -> ToolSpec:
        """Return ``spec`` with what ``[tools.NAME]`` of the configuration says in its place."""
        override = self._settings.tools.get(spec.name)
        return override.over(spec) if override is not None else spec

    def _renew_executor(self) -> None:
        """Make the executor of the appends and look-ups; a fork does not inherit its threads."""
        self._executor = ThreadPoolExecutor(32, thread_name_prefix="agentguard")

    @property
    def trust(self) -> TrustDocument:
        """The public keys with which this guard's log can be verified."""
        return self._home.trust

    def reader(self) -> LogReader:
        """Return a reader of the log, with everything in it that was enqueued until now."""
        self._home.log.flush()
        return self._home.read()

    @property
    def closed(self) -> bool:
        """True once the guard was closed."""
        return self._closed

    def close(self) -> None:
        """Make everything durable and give the log back; calls are denied from then on."""
        self._closed = True
        try:
            self._home.log.close()
        finally:
            self._executor.shutdown(wait=False)

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
        self.close()

    def __repr__(self) -> str:
        return f"<Guard of {self.trust.trust_domain}>"


def _scopes(requires: object) -> tuple[str, ...]:
    if not isinstance(requires, list | tuple) or not all(isinstance(s, str) for s in requires):
        raise ConfigError(f"requires is a list of scopes, as in ['pr:write'], not {requires!r}")
    return tuple(requires)


def _require_function(function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        message = (
            f"{function.__name__} is a generator: its effects would come after the call is over; "
            "return a list instead"
        )
        raise ConfigError(message, code="tool.generator")
    if not inspect.isroutine(function):
        message = f"{function!r} is no function: write one that calls it, and guard that"
        raise ConfigError(message, code="tool.invalid")


def load_engine(settings: Config) -> Engine:
    """Load the policy that a configuration names. Raises ``ConfigError`` or ``PolicyError``."""
    policy = settings.policy
    if policy is None:
        raise ConfigError(f"{settings.source}: policy: expected a table with a path, found none")
    if policy.engine == "function":
        return FunctionEngine(config.load_callable(policy.path, f"{settings.source}: policy.path"))
    path = config.resolve(settings.base, policy.path)
    if not path.exists():
        raise ConfigError(f"{settings.source}: policy.path: there is no {path}")
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        config.refuse_if_writable_by_others(file)
    return _rego(path, policy.query)


def _engine(policy: PolicySource, settings: Config) -> Engine:
    if callable(policy):
        return FunctionEngine(policy)
    path = config.resolve(settings.base, str(policy))
    if not path.exists():
        raise ConfigError(f"there is no policy at {path}")
    return _rego(path, config.DEFAULT_QUERY)


def _rego(path: Path, query: str) -> Engine:
    from agentguard.engines.rego import RegoEngine  # noqa: PLC0415  regorus is an optional extra

    return RegoEngine.load(path, query=query)


def _ephemeral_settings(tables: Mapping[str, Any]) -> Config:
    for durable in ("state", "anchor", "keys", "policy"):
        if durable in tables:
            message = f"an ephemeral guard has no {durable}: pass the policy itself, or Guard.open"
            raise ConfigError(message)
    return config.parse(tables, source="config", base=Path.cwd())


def _clock() -> datetime:
    return datetime.now(UTC)


def _after_fork() -> None:
    global _FOUND_LOCK  # noqa: PLW0603  a thread of the parent may have held it
    _FOUND_LOCK = threading.Lock()
    _FOUND.clear()  # the child opens a guard of its own
    for guard in list(_GUARDS):
        guard._renew_executor()  # noqa: SLF001  a guard and this file are one unit


_GUARDS: weakref.WeakSet[Guard] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
_FOUND: dict[Path, Guard] = {}
_FOUND_LOCK = threading.Lock()
