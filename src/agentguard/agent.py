"""``Agent``: an agent instance, and the calls that it makes.

Made by ``Guard.new_agent``, which hands it the parts that it runs on.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple, Never, ParamSpec, TypeVar

from agentguard import ambient, canonical, drive, flow
from agentguard.arguments import Arguments
from agentguard.audit import entry
from agentguard.canonical import JSON, Fragment
from agentguard.config import AgentConfig
from agentguard.decision import Decision, Denied
from agentguard.delegated import Delegation, Holder
from agentguard.delegation import chain as chains
from agentguard.delegation import token as tokens
from agentguard.delegation.chain import Chain
from agentguard.delegation.token import AccessToken
from agentguard.domain import Domain
from agentguard.drive import Executors
from agentguard.effects import Actor, Authority, Line, NotRun
from agentguard.errors import AgentguardError, ConfigError, DelegationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import seconds
from agentguard.invocation import CallSite, Invocation, timestamp
from agentguard.keys import Ed25519Signer
from agentguard.tool import GuardedFunction, Tool, ToolSpec

P = ParamSpec("P")
R = TypeVar("R")

RENEW_BEFORE: Final = 300
"""Seconds before its end at which a credential is renewed."""

TOKEN_RENEW_BEFORE: Final = 30
"""Seconds before its end at which an access token is renewed."""

MAX_BORROWED: Final = 4096
"""How many delegations an instance holds at once; past it the oldest is handed on anew."""


class Agent:
    """An agent instance: a name from the configuration, a key and a credential of its own.

    In a fork it is another instance: with a key of its own from its first call there.
    """

    def __init__(self, body: Body, delegation: Delegation | DelegationError | None = None) -> None:
        self._body = body
        self._delegation = delegation

    def under(self, delegation: Delegation) -> Agent:
        """Return this instance as it acts under ``delegation``, wherever and whenever it is called.

        For what a ``with`` block does not reach: generators, callbacks, threads of others.
        """
        return Agent(self._body, delegation)

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

        Raises ``Denied`` when it may not, and then it did not run.
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

        Raises ``Denied`` when it may not, and then it did not run.
        """
        _require_guarded(tool)
        bound = tool._bound_to(args, kwargs)  # noqa: SLF001  only an agent runs a tool
        invocation = self._invocation(tool, args, kwargs)
        # in the thread, too: it may have to wait for one while its arguments change
        run = bound if tool.is_async else partial(drive.in_thread, _unchanged(invocation, bound))
        result: R = await self.arun(invocation, run)
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
        lent = instance.lent(self._delegation)
        return drive.run(flow.evaluate(instance.actor, line, invocation, lent), line, _no_tool)

    async def aevaluate(self, invocation: Invocation) -> Decision:
        """For adapters: the async twin of ``evaluate``; ``facts`` may be a coroutine function."""
        try:
            instance = await self._aacting()
        except Denied as refused:
            return refused.decision
        line = instance.line
        lent = instance.lent(self._delegation)
        asking = flow.evaluate(instance.actor, line, invocation, lent)
        return await drive.arun(asking, line, _no_tool, self._body.executors())

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
        lent = instance.lent(self._delegation)
        calling = flow.guarded_call(
            instance.actor, instance.line, invocation, lent, outcome_unknown
        )
        return drive.run(calling, instance.line, _unchanged(invocation, function))  # type: ignore[no-any-return]

    async def arun(
        self,
        invocation: Invocation,
        function: Callable[[], Awaitable[R] | R],
        *,
        outcome_unknown: tuple[type[BaseException], ...] = (),
    ) -> R:
        """For adapters: the async twin of ``run``; ``function`` runs on the event loop."""
        instance = await self._aacting()
        lent = instance.lent(self._delegation)
        calling = flow.guarded_call(
            instance.actor, instance.line, invocation, lent, outcome_unknown
        )
        tool = _unchanged(invocation, function)
        return await drive.arun(calling, instance.line, tool, self._body.executors())

    def call_id(self, tool: str) -> str:
        """For adapters: name the next call of ``tool``, where the framework gives no id."""
        return f"{tool}#{next(self._body.ordinals[tool])}"

    def access_token(self) -> str:
        """Return an access token (``at+jwt``, RFC 8693 and 9068) for the delegation in force.

        It lives five minutes at most, is bound to this instance's key and carries the chain
        (docs/delegation.md). Raises ``Denied``: ``delegation.missing``, and as a call would.
        """
        instance = self._acting()
        lent = instance.lent(self._delegation)
        try:
            if lent is None:
                message = f"agent {self.name} has nothing to show: no delegation is in force"
                raise DelegationError(message, code="delegation.missing")
            return instance.access_token(lent)
        except AgentguardError as error:
            raise Denied(Decision.refused(str(error), code=error.code)) from error

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
        return self._body.tool_spec(spec)

    def tools_named(self) -> None:
        """For adapters: log configured tools that look misspelt, now that the tools are known."""
        self._body.tools_named()

    def _acting(self) -> _Instance:
        """Return the instance that makes a call; without one (in a fork) the call is refused."""
        try:
            return self._body.in_force()
        except AgentguardError as error:
            raise Denied(Decision.refused(str(error), code=error.code)) from error

    async def _aacting(self) -> _Instance:
        if not self._body.has_begun:
            await asyncio.to_thread(self._acting)  # it writes
        return self._acting()

    def __repr__(self) -> str:
        return f"<Agent {self.id if self._body.has_begun else self.name}>"


class Body:
    """What an agent's handles share: its instance in this process, and what it is made of."""

    def __init__(
        self,
        profile: AgentConfig,
        home: Callable[[], Domain],
        line: Callable[[], Line],
        executors: Callable[[], Executors],
        tool_spec: Callable[[ToolSpec], ToolSpec],
        tools_named: Callable[[], None],
    ) -> None:
        self.profile = profile
        self.executors = executors
        self.tool_spec = tool_spec
        self.tools_named = tools_named
        self.ordinals: defaultdict[str, Iterator[int]] = defaultdict(partial(itertools.count, 1))
        self._home = home
        self._line = line
        self._instance: _Instance | None = None
        self._beginning = threading.Lock()
        self.in_force()

    @property
    def has_begun(self) -> bool:
        """Whether there is an instance in this process already."""
        return self._instance is not None

    def in_force(self) -> _Instance:
        """Return this process's instance; a fork makes one of its own when it first needs one."""
        if self._instance is not None:
            return self._instance
        with self._beginning:
            if self._instance is None:
                self._instance = _Instance(self.profile, self._home, self._line(), self.holder)
            return self._instance

    def holder(self, now: datetime) -> Holder:
        """Return who hands on what this agent was lent."""
        return self.in_force().holder(now)

    def forked(self) -> None:
        """In a fork: drop the key, which is the parent's."""
        self._instance = None
        self._beginning = threading.Lock()


class _Instance:
    """An agent in one process: its key, its credential, and the line that its calls run down."""

    def __init__(
        self,
        config: AgentConfig,
        home: Callable[[], Domain],
        line: Line,
        holder: Callable[[datetime], Holder],
    ) -> None:
        self.line = line
        self._profile = config.profile
        self._max_scope = config.scope
        self._home = home
        self._holder = holder
        self._renewal = threading.RLock()  # a signal handler may make a call meanwhile
        self._renew_at = 0
        self._current: Credential | None = None
        self._borrowing = threading.RLock()  # likewise
        self._borrowed: dict[tuple[str, tuple[str, ...]], _Borrowed] = {}
        signer = Ed25519Signer.from_seed(line.entropy(32))
        name = self._profile.name
        uri = credential.agent_uri(home().trust.trust_domain, name, signer.public_key)
        self._names = frozenset({uri, f"agent:{name}", signer.key_id})
        own = Authority(f"agent:{name}", config.scope, self._names)
        self.actor = Actor(
            name=name,
            own=own if config.authority == "own" else None,
            signer=signer,
            has_credential=self._has_credential,
            renew=self._renew,
            description=_description(uri, config, signer.key_id),
            uri=uri,
        )
        self._renew(self._now())
        line.log.flush()

    def _now(self) -> datetime:
        return max(self.line.clock(), self.line.log.last_at)

    # --- the credential --------------------------------------------------------------------------

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

    def holder(self, now: datetime) -> Holder:
        """Return this instance's key, with a credential that shows whose it is now."""
        return Holder(self.actor.signer, self._credential(now))

    def _credential(self, now: datetime) -> Credential:
        if not self._has_credential(now):
            self._renew(now)
        current = self._current
        assert current is not None  # noqa: S101  it was just made, or that has raised
        return current

    # --- what is lent to it ----------------------------------------------------------------------

    def lent(self, delegation: Delegation | DelegationError | None) -> _Lent | _Refused | None:
        """Return what is lent to this instance: ``delegation``, or else what is in force here."""
        if isinstance(delegation, DelegationError):
            return _Refused(delegation)
        if delegation is not None:
            return _Lent(self, delegation)
        try:
            found = ambient.in_force()
        except DelegationError as error:
            return _Refused(error)
        return _Lent(self, found) if isinstance(found, Delegation) else None

    def borrowed(self, delegation: Delegation, now: datetime) -> _Borrowed | None:
        """Return what was handed on to this instance already, if it is good for a call now."""
        found = self._borrowed.get(delegation.key)
        return found if found is not None and seconds(now) < found.renew_at else None

    def borrow(self, delegation: Delegation, now: datetime) -> _Borrowed:
        """Hand the chain on to this instance, as others would verify it, and put it on record."""
        at = seconds(now)
        with self._borrowing:
            known = self.borrowed(delegation, now)
            if known is not None:
                return known
            if now >= delegation.expires_at:
                self._borrowed.pop(delegation.key, None)
                message = f"the delegation of {delegation.principal} has expired: get a new one"
                raise DelegationError(message, code="delegation.expired")
            home = self._home()
            before = self._borrowed.get(delegation.key)
            chain = before.token.chain if before else self._handed_on(delegation, home, now)
            token = tokens.mint(chain, home.issuer, now=at, jti=self.line.entropy(16).hex())
            lasts = token.expires_at < chain.leaf.expires_at  # then it is renewed before its end
            borrowed = _Borrowed(
                self._authority(token),
                token,
                token.expires_at - TOKEN_RENEW_BEFORE if lasts else token.expires_at,
            )
            if before is None and len(self._borrowed) >= MAX_BORROWED:
                del self._borrowed[next(iter(self._borrowed))]  # the oldest
            self._borrowed[delegation.key] = borrowed
            return borrowed

    def _handed_on(self, delegation: Delegation, home: Domain, now: datetime) -> Chain:
        at = seconds(now)
        chain = delegation.chain
        if chain.leaf.delegatee != self.actor.uri or chain.leaf.scope != delegation.scope:
            holder = delegation.holder(now)
            most = self._max_scope
            chain = chains.extend(
                chain,
                holder.signer,
                self._credential(now),
                by=holder.credential,
                scope=[one for one in delegation.scope if most is None or one in most],
                now=at,
                jti=self.line.entropy(16).hex(),
            )
        verified = chains.from_json(chain.as_json(), home.trust, at=at)
        # it precedes, in the log, every call that is made under it
        self.line.log.enqueue(entry.delegation(verified, at=timestamp(now)))
        return verified

    def _authority(self, token: AccessToken) -> Authority:
        chain = token.chain
        return Authority(
            principal=chain.principal,
            scope=frozenset(chain.leaf.scope),
            names=self._names | chain.names | {token.jti},
            actors=chain.actors,
            chain_sha256=chain.sha256,
            token_jti=token.jti,
            task_id=chain.root.task_id,
            limits=chain.limits,
            since=datetime.fromtimestamp(chain.leaf.issued_at, UTC),
            description=_delegation(chain, self.line.principal_roles.get(chain.principal, ())),
            lends=Delegation(chain, self._holder, chain.leaf.scope),
        )

    def access_token(self, lent: _Lent | _Refused) -> str:
        """Return the token of what is lent; raises as a call under it would be refused."""
        borrowed = lent.borrowed(self._now())
        refused = self.line.revocations.refusal(borrowed.authority.names)
        if refused is not None:
            code, reason = refused
            raise DelegationError(reason, code=code)
        return borrowed.token.token


class _Borrowed(NamedTuple):
    """A chain that ends with an instance, the token minted from it, and what they allow."""

    authority: Authority
    token: AccessToken
    renew_at: int


class _Lent(NamedTuple):
    """A delegation, as one instance may use it (``effects.Lent``)."""

    instance: _Instance
    delegation: Delegation

    def authority(self, now: datetime) -> Authority | None:
        found = self.instance.borrowed(self.delegation, now)
        return found.authority if found is not None else None

    def derive(self, now: datetime) -> Authority:
        return self.instance.borrow(self.delegation, now).authority

    def borrowed(self, now: datetime) -> _Borrowed:
        found = self.instance.borrowed(self.delegation, now)
        return found if found is not None else self.instance.borrow(self.delegation, now)


class _Refused(NamedTuple):
    """In the place of a delegation that has ended, or can't be had (``effects.Lent``)."""

    error: DelegationError

    def authority(self, now: datetime) -> Authority | None:  # noqa: ARG002  at any time
        raise self.error

    def derive(self, now: datetime) -> Authority:  # noqa: ARG002
        raise self.error

    def borrowed(self, now: datetime) -> _Borrowed:  # noqa: ARG002
        raise self.error


def _description(uri: str, config: AgentConfig, instance: str) -> Fragment:
    """The agent as the policy sees it (policy.md, Input)."""
    described = {
        "id": uri,
        "name": config.profile.name,
        "type": config.profile.type,
        "instance": instance,
        "roles": list(config.roles),
    }
    return Fragment(canonical.dumps(described))


def _delegation(chain: Chain, roles: Sequence[str]) -> Fragment:
    """The chain as the policy sees it (policy.md, Input)."""
    first = chain.root
    described: dict[str, JSON] = {
        "subject": chain.principal,
        "actor": chain.principal,
        "via": None if first.delegatee == first.delegator else first.delegatee,
        "chain": list(chain.members),
        "scope": list(chain.leaf.scope),
        "depth": len(chain.hops),
        "assurance": first.assurance,
        "roles": list(roles),
    }
    return Fragment(canonical.dumps(described))


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
