"""``Guard``: the first class of the public API.

A guard holds one trust domain: the policy engine, the issuer's key and the log. A guard makes
agents, each with a key of its own. ``flow/guarded_call.py`` has the steps of an agent's call, and
``process.py`` puts together the parts that those steps need in one process.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from agentguard import telemetry
from agentguard.approvals.application import RolesFunction
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.audit.log import LogReader
from agentguard.call.tool import AsyncTool, FactsFunction, Tool, ToolDecorator, guarded
from agentguard.delegation.chain_issuance import DEFAULT_DEPTH
from agentguard.delegation.handle import Delegation
from agentguard.delegation.terms import Lender
from agentguard.domain import config
from agentguard.domain.config.engine_loader import (
    PolicySource,
    engine_from,
    log_warnings,
)
from agentguard.errors import ConfigError
from agentguard.flow.ports import OnRequest
from agentguard.guard import process
from agentguard.guard.agent import Agent
from agentguard.guard.agent_runtime import AgentRuntime
from agentguard.guard.callbacks import Functions
from agentguard.guard.caller import Caller
from agentguard.guard.embedded import Embedded, open_embedded
from agentguard.guard.parts import Parts
from agentguard.guard.tools import spec_of
from agentguard.identity.trust import TrustDocument
from agentguard.signing.keys import Secret
from agentguard.storage import fork

if TYPE_CHECKING:
    from agentguard.domain.report import Report

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """A trust domain in use. Make one with ``open``, ``find`` or ``ephemeral``.

    A guard is a context manager, sync and async. ``close`` makes everything durable and releases
    the log. The methods may be called from any thread. In a forked process each agent becomes a new
    instance with a new key; a guard in memory can't be used in a forked process.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._telemetry = telemetry.Telemetry(parts.telemetry, parts.trust.trust_domain)
        self._agents: weakref.WeakSet[AgentRuntime] = weakref.WeakSet()
        self._has_begun = False
        _GUARDS.add(self)

    def _forked(self) -> None:
        """Drop the agents' keys and what belongs to the parent, in a forked process."""
        self._parts.forked()
        for agent in list(self._agents):
            agent.forked()

    @classmethod
    def open(
        cls,
        path: str | Path = config.FILE,
        *,
        passphrase: bytes | Callable[[], bytes] | None = None,
        on_request: OnRequest | None = None,
        on_expiring: OnRequest | None = None,
        on_expired: OnRequest | None = None,
        approver_roles: RolesFunction | None = None,
    ) -> Self:
        """Open the durable guard that an ``agentguard.toml`` describes.

        ``passphrase`` unlocks the long-lived keys. Without ``passphrase`` the guard reads
        ``AGENTGUARD_PASSPHRASE`` or ``[keys] passphrase_file``. A function is called again, from
        any thread, after a rotation of keys, and the guard does not keep the function's answer.
        ``on_request`` receives each new request for an approval, once the request can be answered;
        ``on_expiring`` a request whose end is near (``[approvals] expiring_seconds``), and
        ``on_expired`` one that has expired. ``approver_roles`` returns the roles of a principal who
        answers through the application (``guard.approvals.vouch``). None of them is a coroutine
        function, and each takes the place of the configuration's. Where the configuration has a
        ``[server]``, the guard is a client of that server (``connect``), over what ``agentguard
        run`` has handed on where this program was started so; the server itself calls the last
        three functions. Raises ``ConfigError``, ``PolicyError``, ``KeyMaterialError``,
        ``StorageError``, ``DecodeError``, ``VerificationError`` or ``ServerError``.
        """
        source = Secret.of(passphrase) if isinstance(passphrase, bytes) else passphrase
        del passphrase  # a traceback can show the variables of a frame
        settings = config.load(Path(path))
        telemetry.follow(settings.telemetry)
        functions = Functions(on_request, on_expiring, on_expired, approver_roles)
        if settings.server is None:
            return cls(open_embedded(settings, source, functions))
        _require_on_request_alone(functions)
        from agentguard.guard import served  # noqa: PLC0415  most guards have no server

        return cls(served.configured(settings.server, settings.telemetry, on_request))

    @classmethod
    def connect(cls, url: str | None = None, *, on_request: OnRequest | None = None) -> Self:
        """Connect to the guard server at ``url``, such as ``unix:///run/agentguard/guard.sock``.

        Without ``url``, connect to the server for which ``agentguard run`` has started this
        program. The server has the keys, the policy, the log and the approvals, out of this
        process's reach (docs/how-to/server.md). ``on_request`` receives each new request for an
        approval that a call of this process makes. Raises ``ConfigError`` for a malformed address,
        and where this program has inherited no connection (``server.inherited``); ``ServerError``
        where the server can't be reached, or refuses this process.
        """
        from agentguard.guard import served  # noqa: PLC0415  most guards have no server

        return cls(served.connected(url, on_request))

    @classmethod
    def find(cls) -> Guard:
        """Return this process's guard for the nearest ``agentguard.toml``.

        The search begins in the working directory and goes upwards. A program of ``agentguard run``
        needs no such file. The first call opens the guard, later calls share the guard, and the end
        of the process closes the guard. Raises as ``open`` does.
        """
        path = _nearest()
        with _SHARED_GUARDS_LOCK:
            guard = _SHARED_GUARDS.get(path)
            if guard is None or guard.closed:
                guard = Guard.connect() if path is None else Guard.open(path)
                _SHARED_GUARDS[path] = guard
            return guard

    @classmethod
    def ephemeral(
        cls,
        policy: PolicySource,
        *,
        config: Mapping[str, Any] | None = None,
        on_request: OnRequest | None = None,
        on_expiring: OnRequest | None = None,
        on_expired: OnRequest | None = None,
        approver_roles: RolesFunction | None = None,
    ) -> Self:
        """Make a guard in memory, for tests and notebooks.

        ``policy`` is the path of a Rego file or folder, or a function from the policy's input to
        a ``Decision``. ``config`` holds the tables of an ``agentguard.toml``. If ``config`` has no
        ``agents`` table, the guard accepts any agent name, and each agent acts on its own
        authority with every scope. ``open`` describes the functions.
        Raises ``ConfigError`` or ``PolicyError``.
        """
        from agentguard.domain import memory  # noqa: PLC0415  it imports SQLite

        settings = memory.read_settings({} if config is None else config)
        telemetry.follow(settings.telemetry)
        engine = log_warnings(engine_from(policy, settings.base))
        domain = memory.new_domain(settings.trust_domain, now=process.clock())
        functions = Functions(on_request, on_expiring, on_expired, approver_roles)
        return cls(Embedded(settings, engine, domain, functions))

    def require_agent(self, name: str) -> None:
        """Raise ``ConfigError`` (``agent.unknown``) for a name without an ``[agents]`` table."""
        self._parts.require_agent(name)

    def new_agent(self, name: str) -> Agent:
        """Make an agent instance with a new key, and record the instance's credential in the log.

        Raises ``ConfigError`` for a name without an ``[agents]`` table (``agent.unknown``), and
        where the application's look-up of the owner fails (``owner.failed``), and, with the first
        agent, for a table ``[tools.NAME]`` that none of the tools made so far has while one of them
        has no table; ``StorageError`` if the log can't record the credential.
        """
        if not self._has_begun:
            self._parts.tools.require_names()
            self._has_begun = True
        runtime = AgentRuntime(self._parts.agent(name), self._parts, self._telemetry)
        self._agents.add(runtime)
        self._parts.tools.check_names()
        return Agent(Caller(runtime))

    def delegate(  # noqa: PLR0913  what a delegation says
        self,
        subject: str | None = None,
        *,
        subject_token: str | None = None,
        scope: Iterable[str] | None = None,
        via: str | None = None,
        via_token: str | None = None,
        task_id: str | None = None,
        expires_in: timedelta | int = timedelta(hours=1),
        max_depth: int = DEFAULT_DEPTH,
        max_calls: int | None = None,
        audience: Iterable[str] | None = None,
    ) -> Delegation:
        """Return a delegation of ``scope`` from ``subject`` to this guard's agents.

        ``subject`` is a user or a service that the program has authenticated. In its place,
        ``subject_token`` is a token of the principal's own, of an issuer that ``[issuers]`` names
        (docs/how-to/users.md): agentguard verifies the token, and the chain says so. With both, the
        token has to be ``subject``'s. A first token of an issuer may wait for its keys: call this
        method in a thread, if the program has an event loop. In a ``with`` (or ``async with``)
        block over the delegation the agents make their calls for ``subject``, with no more than
        ``scope``; an agent's own configuration may narrow the scope. ``scope`` None stands for all
        that the roles of ``subject`` allow (``[principals]``). ``via`` names the service through
        which the request came, and ``via_token`` is a token of this service (workload-tokens.md).
        ``expires_in`` is a ``timedelta`` or a number of seconds; a ``subject_token`` may end the
        delegation sooner. ``max_depth`` limits the hops of the chain, and ``max_calls`` the calls
        of all agents. ``audience`` names who may accept the access tokens, None the trust domain.

        Raises ``DelegationError``: ``scope.malformed``, ``scope.exceeded`` for more than the roles
        of ``subject`` allow, ``principal.malformed``, ``principal.unknown`` for one that
        ``[principals]`` does not list, ``principal.failed`` where the look-up fails,
        ``principal.assurance`` where a token is wanted or is another's, ``hop.malformed``,
        ``delegation.depth``; for a user's token ``delegation.logged_out``, ``domain.frozen``. For a
        token that does not verify, raises ``VerificationError`` or ``DecodeError`` (``jwt.*``);
        ``ServerError`` (``issuer.*``) without its keys; ``StorageError`` without the log-outs.
        """
        return self._parts.delegations.begin(
            Lender(subject, subject_token, via_token),
            scope=scope,
            via=via,
            task_id=task_id,
            expires_in=expires_in,
            max_depth=max_depth,
            max_calls=max_calls,
            audience=audience,
        )

    def resume(self, stored: bytes) -> Delegation:
        """Return the delegation that ``Delegation.dumps`` wrote in a process of this trust domain.

        Raises ``DecodeError`` or ``VerificationError`` for a delegation that does not verify or has
        expired, ``StorageError``, and ``DelegationError`` (``delegation.revoked``, ``.logged_out``,
        ``.holder``, ``domain.frozen``) for a delegation that nobody may use any more.
        """
        return self._parts.delegations.resume(stored)

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
        requires: tuple[str, ...] | list[str] | None = None,
        attributes: Mapping[str, str] | None = None,
        facts: FactsFunction | None = None,
        gives: tuple[str, ...] | list[str] | None = None,
    ) -> ToolDecorator: ...

    def tool(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        resource: str | None = None,
        requires: tuple[str, ...] | list[str] | None = None,
        attributes: Mapping[str, str] | None = None,
        facts: FactsFunction | None = None,
        gives: tuple[str, ...] | list[str] | None = None,
    ) -> Any:
        """Make a plain function a guarded tool, which only ``agent.call`` runs.

        ``requires`` is the scope that a caller needs; None is no scope, and an empty list is a
        ``ConfigError``. ``resource`` is a template of whole arguments (``repo:{repo}``).
        ``attributes`` names arguments that the policy reads at the top level.
        ``facts`` looks up values that must not come from the model. Their names are ``gives``, or
        those of the TypedDict or dataclass that the function returns. ``[tools.NAME]`` in the
        configuration overrides each of these.
        """

        def guard(function: Callable[..., Any]) -> Tool[..., Any] | AsyncTool[..., Any]:
            spec = spec_of(
                function,
                name=name,
                resource=resource,
                requires=requires,
                attributes=attributes,
                facts=facts,
                gives=gives,
            )
            tool = guarded(self._parts.tools.configure(spec), function)
            if self._agents:  # the first agent checks all earlier tools together
                self._parts.tools.check_names()
            return tool

        return guard(function) if function is not None else guard

    @property
    def approvals(self) -> ApprovalInbox:
        """The inbox in which people answer requests for approvals."""
        return self._parts.inbox()

    @property
    def trust(self) -> TrustDocument:
        """The trust document, whose public keys verify this guard's log."""
        return self._parts.trust

    def reader(self) -> LogReader:
        """Return a reader of the log, after a flush of all entries that are still in memory."""
        return self._parts.reader()

    def prove(self, invocation_id: str, *, attachments: bool = True) -> bytes:
        """Return the evidence file of one call, which a trust document alone can verify.

        ``agentguard evidence make`` writes the same file (evidence.md). With ``attachments``
        False the file has no arguments, no policy input and no result. Raises ``CallError``
        (``call.unknown``), ``StorageError`` or ``VerificationError``.
        """
        from agentguard.audit.prove import prove_call  # noqa: PLC0415  few programs prove a call

        with closing(self.reader()) as reader:
            return prove_call(reader, self.trust, invocation_id, attachments=attachments)

    def verify(self) -> Report:
        """Verify the whole log, with this guard's keys and anchors, and return the report.

        The report is as trustworthy as this process. Other people verify the log with a trust
        document of their own (``agentguard audit verify``). Raises ``StorageError`` if the log
        can't be opened.
        """
        return self._parts.verify()

    def flush(self) -> None:
        """Wait until the outcomes of all calls that have ended are durable in the log.

        Without it an outcome is written within 50 ms, and before the guard closes. Raises
        ``StorageError`` or ``ServerError``.
        """
        self._parts.flush()

    @property
    def closed(self) -> bool:
        """Whether the guard is closed."""
        return self._parts.is_closed

    def close(self) -> None:
        """Make everything durable and release the log; every later call is denied.

        Also send the pending spans of an exporter that ``telemetry.configure`` has set up; a slow
        exporter is given up after some seconds.
        """
        self._parts.close()

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
        from asyncio import to_thread  # noqa: PLC0415  many programs have no event loop

        await to_thread(self.close)

    def __repr__(self) -> str:
        return f"<Guard of {self.trust.trust_domain}>"


def _nearest() -> Path | None:
    """Return the nearest configuration; None for a program of ``agentguard run`` without one."""
    try:
        return config.find(Path.cwd())
    except ConfigError:
        from agentguard.client.dial import is_inherited  # noqa: PLC0415  most guards have no server

        if not is_inherited():
            raise
        return None


def _require_on_request_alone(functions: Functions) -> None:
    """Raise ``ConfigError`` for a function that a guard server calls, and no client of it."""
    for name, key in (
        ("approver_roles", "roles"),
        ("on_expiring", "on_expiring"),
        ("on_expired", "on_expired"),
    ):
        if getattr(functions, name) is not None:
            message = (
                f"{name}: the guard server calls this function: name it there, as [approvals] {key}"
            )
            raise ConfigError(message)


def _after_fork() -> None:
    global _SHARED_GUARDS_LOCK  # noqa: PLW0603  a thread of the parent may hold the lock
    _SHARED_GUARDS_LOCK = threading.RLock()
    for guard in list(_GUARDS):
        guard._forked()  # noqa: SLF001  a guard and this file are one unit


_GUARDS: weakref.WeakSet[Guard] = weakref.WeakSet()
fork.at_fork(fork.Stage.GUARDS, in_child=_after_fork)
_SHARED_GUARDS: dict[Path | None, Guard] = {}
_SHARED_GUARDS_LOCK = threading.RLock()  # reentrant: importing a policy's module may call find()
