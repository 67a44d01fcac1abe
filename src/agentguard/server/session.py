"""``Session``: what one client process has in the server: agents, tools, delegations, calls.

A client process has one session and any number of connections. The session's handle, which the
server draws at random, joins further connections to the session, and lets a client that has lost
its connections come back to report outcomes. Whatever a client names (an agent, a tool, a
delegation, a call), it names within its session: the things of another session have no name here.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from agentguard.call.client import Isolation
from agentguard.delegation.chain import Chain
from agentguard.delegation.handle import Delegation
from agentguard.domain.config.clients import LAUNCHED, ClientConfig
from agentguard.domain.config.server import ServerConfig
from agentguard.errors import (
    AgentguardError,
    DecodeError,
    DelegationError,
    ServerError,
)
from agentguard.flow.ports import Ports
from agentguard.guard.embedded import Embedded
from agentguard.guard.instance import Instance
from agentguard.server.pins import ToolPins
from agentguard.server.rights import shows_tokens_of
from agentguard.server.served_call import ServedCall
from agentguard.server.share import MOST_BYTES, MOST_SPARE, Share
from agentguard.server.tools import RegisteredTool, register
from agentguard.signing import canonical
from agentguard.wire import values
from agentguard.wire.frame import Frame

T = TypeVar("T")

MAX_TOOLS: Final = 10_000
MAX_AGENTS: Final = 1_000
MAX_DELEGATIONS: Final = 4_096
MAX_OVER: Final = 4_096
"""The most calls that are over and whose reply is kept for a request that comes again."""

_AGENT: Final = 64 << 10
_TOOL: Final = 2 << 10
_CALL: Final = 8 << 10
"""The bytes that are noted for an agent, a tool and a call, beside what the client has sent."""

_GROWS: Final = 32
"""How many times its length JSON may take as Python's values, about: each ``[]`` is an object."""


class OutdatedError(Exception):
    """A thing was made under a configuration that the session does not go by: make it anew."""


@dataclass(slots=True, eq=False)
class Session:
    """A client process in the server. ``handle`` is 64 hex digits, which the client alone knows.

    ``lock`` is held while the members are changed. ``connections`` is the number of open
    connections, ``lost_at`` the time since which there is none (seconds of the monotonic clock).
    ``share`` is what all processes of the client hold, ``has_ended`` whether the client has gone.
    ``is_removed`` says that the configuration in force has no such client: ``client`` has no rights
    then, and only calls under way are ended. ``ports`` are those of the configuration that agents
    and tools are of, None for a moment while the session follows another configuration.
    """

    client: ClientConfig
    isolation: Isolation
    limits: ServerConfig
    pins: ToolPins
    share: Share
    ports: Ports | None
    handle: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connections: int = 0
    lost_at: float = 0.0
    has_ended: bool = False
    is_removed: bool = False
    _held: int = 0
    _agents: dict[str, Instance] = field(default_factory=dict)
    _tools: dict[str, RegisteredTool] = field(default_factory=dict)
    _tool_names: dict[bytes, str] = field(default_factory=dict)
    _delegations: dict[str, tuple[Delegation, int]] = field(default_factory=dict)
    _calls: dict[str, ServedCall] = field(default_factory=dict)
    _over: dict[str, ServedCall] = field(default_factory=dict)
    _invocations: dict[str, ServedCall] = field(default_factory=dict)

    @property
    def looks_after_server(self) -> bool:
        """Whether the client is the server's own user, and no program of ``agentguard run``."""
        return self.isolation == "same-user" and not self.client.name.startswith(LAUNCHED)

    def require_own_user(self, may: str) -> None:
        """Raise ``ServerError`` (``server.remote``) unless the client looks after the server.

        ``may`` says what only the server's own user may do, for the message.
        """
        if not self.looks_after_server:
            message = f"only the guard server's own user {may}: run the command there, as that user"
            raise ServerError(message, code="server.remote")

    def follow(self, found: ClientConfig | None, parts: Embedded) -> None:
        """Go by a configuration that was loaded anew, and by what the configuration lets do.

        ``found`` is what the configuration says of the client, None for no client any more.
        The client keeps its tools, as they are configured now, and the instances of which the
        configuration says the same. Calls under way end under what they began with.
        """
        client = _without_rights(self.client) if found is None else found
        with self.lock:
            self.ports, self.is_removed = None, found is None
            has_name, self.client = client.name == self.client.name, client
            agents, tools = dict(self._agents), dict(self._tools)
        for name, instance in agents.items():  # without the lock, as in release
            if has_name and _stays(instance, client, parts):
                instance.follow(parts.runtime.current_ports(), parts.delegations.roles_of)
            else:
                self.release([name])
        kept: dict[str, RegisteredTool] = {}
        for name, tool in tools.items():
            # a tool that can't be configured has no name any more: the client learns why from its
            # next attempt to name the tool
            with suppress(AgentguardError):
                kept[name] = register(tool.declared, parts)
        with self.lock:  # last: nothing new has a name before
            self._tools = kept
            self._tool_names = {tool.pin: name for name, tool in kept.items()}
            self.ports = parts.runtime.current_ports()

    # --- agents and tools -----------------------------------------------------------------------

    def add_agent(self, instance: Instance, ports: Ports) -> str:
        """Keep an instance; return its name in this session.

        Raises ``ServerError``, and ``OutdatedError`` for other ``ports`` than the session's.
        """
        if instance.ports is not ports:
            raise OutdatedError
        return self._name(self._agents, instance, MAX_AGENTS, "agents", _AGENT, ports)

    def agent(self, name: Any) -> Instance:
        """Return an instance of this session; raises ``ServerError`` (``server.unknown``)."""
        return _named(self._agents, name, "agent")

    def release(self, names: Any) -> None:
        """Forget instances that the client holds no more; calls under way keep theirs."""
        gone: list[Instance] = []
        for name in values.texts(names):
            with self.lock:
                instance = self._agents.pop(name, None)
                if instance is not None:
                    self._give(_AGENT)
                    gone.append(instance)
        for instance in gone:  # without the lock: an instance that accepts asks for it
            instance.release()

    def try_take(self, size: int) -> bool:
        """Note the bytes of an accepted delegation, unless there is no room for what can go."""
        with self.lock:
            has_room = not self.has_ended and self.share.try_take(size, at_most=MOST_SPARE)
            self._held += size if has_room else 0
            return has_room

    def give(self, size: int) -> None:
        """Note that so many bytes of accepted delegations are not held any more."""
        with self.lock:
            self._give(size)

    def add_tool(self, tool: RegisteredTool, *, size: int) -> str:
        """Keep a tool, which takes ``size`` bytes; return its name here.

        A tool that the program describes in the same way has the same name. Raises ``ServerError``
        (``server.busy``), and ``OutdatedError`` for a tool of another configuration.
        """
        name = self._tool_names.get(tool.pin)
        if name not in self._tools or tool.ports is not self.ports:
            taken = _TOOL + _GROWS * size
            name = self._name(self._tools, tool, MAX_TOOLS, "tools", taken, tool.ports)
            self._tool_names[tool.pin] = name
        return name

    def tool(self, name: Any) -> RegisteredTool:
        """Return a tool of this session; raises ``ServerError`` (``server.unknown``)."""
        return _named(self._tools, name, "tool")

    def _name(
        self, things: dict[str, T], thing: T, most: int, what: str, size: int, ports: Ports
    ) -> str:
        """Keep a thing under a random name, which no other session has for anything."""
        name = secrets.token_hex(8)
        with self.lock:
            if ports is not self.ports:
                raise OutdatedError
            if len(things) >= most:
                message = f"this client has {most} {what} already, which is the limit"
                raise ServerError(message, code="server.busy")
            self._hold(size)
            things[name] = thing
        return name

    def require_no_end(self) -> None:
        """Raise ``ServerError`` (``server.restarted``) where the session has ended."""
        if self.has_ended:
            raise ServerError("this client has ended its session", code="server.restarted")

    def _hold(self, size: int) -> None:
        """Note so many bytes until the session ends; the caller has the lock."""
        self.require_no_end()
        self.share.take(size)
        self._held += size

    def _give(self, size: int) -> None:
        """Note that so many bytes are not held any more; the caller has the lock."""
        if not self.has_ended:
            self.share.give(size)
            self._held -= size

    # --- delegations ----------------------------------------------------------------------------

    def lend(self, delegation: Delegation) -> tuple[dict[str, Any], list[bytes]]:
        """Keep a delegation that the client may name from now on; return it for the client.

        The oldest one is forgotten where there are too many.
        """
        digest = delegation.key[0]
        described = {
            "id": digest,
            "scope": delegation.scope,
            "issued_at": delegation.chain.leaf.issued_at,
        }
        with self.lock:
            if digest in self._delegations:
                return described, []
            encoded = canonical.dumps(delegation.chain.as_json())
            size = _TOOL + 4 * len(encoded)
            if self.has_ended:
                return described, [encoded]
            while len(self._delegations) >= MAX_DELEGATIONS or not self._has_taken(size):
                if not self._delegations:
                    return described, [encoded]
                self._give(self._delegations.pop(next(iter(self._delegations)))[1])
            self._held += size
            self._delegations[digest] = delegation, size
        return described, [encoded]

    def _has_taken(self, size: int) -> bool:
        """Note the bytes of a delegation, if there is room: an only one may take a call's room."""
        at_most = MOST_SPARE if self._delegations else MOST_BYTES
        return self.share.try_take(size, at_most=at_most)

    def lent(self, digest: Any) -> Delegation:
        """Return a delegation that ``lend`` has kept; raises ``ServerError``."""
        return _named(self._delegations, digest, "delegation")[0]

    def delegation(self, value: Any) -> Delegation | DelegationError | None:
        """Return the delegation of a call, as the client names it; None for none.

        Raises ``ServerError`` (``server.unknown``) for one that this session does not have, or has
        forgotten; ``DelegationError`` for more than the delegation's scope.
        """
        match value:
            case None:
                return None
            case {"code": str(code), "message": str(message), "delegation": str() | None as whose}:
                return DelegationError(message, code=code, delegation=whose)
            case {"id": str(digest), "scope": [*scope]}:
                with self.lock:  # the newest use is the last that is forgotten
                    named = self.lent(digest)
                    self._delegations[digest] = self._delegations.pop(digest)
                return named.narrowed(scope=[str(name) for name in scope])
        raise DecodeError("not a delegation of a call", code="frame.malformed")

    def may_show(self, chain: Chain, named: Any) -> bool:
        """Return whether a chain that a client shows with a refused call proves for whom it is.

        Others have the chain, too, such as each receiver of a proof. It proves the principal only
        where this session has been lent the chain, or where the client could take the delegation
        up: it vouches for the principal, or ``named`` has the tokens with which the delegation
        began.
        """
        return (
            chain.hops[-1].digest in self._delegations
            or self.client.may_vouch_for(chain.principal)
            or shows_tokens_of(chain.root, named)
        )

    # --- calls ----------------------------------------------------------------------------------

    def add_call(self, request_id: str, call: ServedCall) -> ServedCall | None:
        """Keep a new call; return None. Return the call that has this id already, if any.

        Raises ``ServerError`` (``server.busy``), and ``DecodeError`` (``frame.malformed``) where
        another request has had this id.
        """
        with self.lock:
            known = self._calls.get(request_id) or self._over.get(request_id)
            if known is None:
                if len(self._calls) >= self.limits.max_calls:
                    message = f"{len(self._calls)} calls of this client are under way: wait"
                    raise ServerError(message, code="server.busy")
                self._hold(_CALL + _GROWS * call.size)
                self._calls[request_id] = call
            elif known.request.sha256 != call.request.sha256:
                message = "another request of this client has had this id"
                raise DecodeError(message, code="frame.malformed")
            return known

    def hold_facts(self, call: ServedCall, size: int) -> None:
        """Note the bytes of the facts of a call that waits for them; raises ``ServerError``."""
        with self.lock:
            self._hold(_GROWS * size)
            call.size += size

    def call(self, request_id: Any) -> ServedCall:
        """Return a call of this session; raises ``ServerError`` (``server.unknown``)."""
        call = self._calls.get(str(request_id)) or self._over.get(str(request_id))
        if call is None:
            message = "the server has no such call: the call stays in doubt"
            raise ServerError(message, code="server.unknown")
        return call

    def settle(self, request_id: str, call: ServedCall) -> None:
        """Note where the steps of a call stand; the last replies are kept."""
        with self.lock:
            if call.is_under_way:
                if call.invocation_id is not None:
                    self._invocations[call.invocation_id] = call
            elif self._calls.pop(request_id, None) is not None:
                self._give(_CALL + _GROWS * call.size)
                self._keep_reply(request_id, call)

    def _keep_reply(self, request_id: str, call: ServedCall) -> None:
        """Keep the reply of a call that is over, in the place of the oldest where need be."""
        size = _TOOL + 4 * call.reply_size
        while len(self._over) >= MAX_OVER or not self.share.try_take(size, at_most=MOST_SPARE):
            if not self._over:
                self._invocations.pop(call.invocation_id or "", None)
                return
            oldest = self._over.pop(next(iter(self._over)))
            self._invocations.pop(oldest.invocation_id or "", None)
            self._give(_TOOL + 4 * oldest.reply_size)
        self._held += size
        self._over[request_id] = call

    def made(self, invocation_id: str) -> ServedCall | None:
        """Return the call of this session with this invocation's id, None for no known call."""
        return self._invocations.get(invocation_id)

    @contextmanager
    def answering(self, request_id: Any, reply: Frame) -> Iterator[None]:
        """Write a reply inside the context: a client that does not get it runs no tool."""
        call = self._calls.get(str(request_id)) if reply.header.get("step") == "run" else None
        if call is None:
            yield
            return
        with self.lock:
            call.hears(has_failed=False)
        try:
            yield
        except OSError:
            with self.lock:
                call.hears(has_failed=True)
            raise

    def running(self) -> int:
        """Return how many calls of this session are under way."""
        return len(self._calls)

    def abandon(self) -> int:
        """End the session, and the steps of all calls; return how many calls stay in doubt.

        A call whose client can't have got the reply has not run, and is withdrawn.
        """
        with self.lock:
            calls, self._calls = self._calls, {}
            self._give(self._held)
            self.has_ended = True
        in_doubt = 0
        for call in calls.values():
            with call.lock:
                if call.is_unheard:
                    call.withdraw()
                in_doubt += call.runs
                call.abandon()
        return in_doubt


def _without_rights(client: ClientConfig) -> ClientConfig:
    """Return a client that the configuration has no more."""
    return replace(client, agents=(), vouches_for=(), answers=False, sees_requests=False)


def _stays(instance: Instance, client: ClientConfig, parts: Embedded) -> bool:
    """Whether a client keeps an instance: the configuration says of the agent what it said."""
    name = instance.actor.name
    try:
        return client.may_be(name) and parts.agent(name) == instance.config
    except AgentguardError:
        return False


def _named(things: dict[str, T], name: Any, what: str) -> T:
    if isinstance(name, str) and name in things:
        return things[name]
    message = f"the server has no such {what} of this client"
    raise ServerError(message, code="server.unknown")
