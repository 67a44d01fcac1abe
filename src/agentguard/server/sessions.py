"""``Sessions``: the client processes of a guard server, and who may be one.

A connection begins a session or joins one (``connection.py``). A session that has lost all of its
connections is forgotten after a while, and its calls under way stay in doubt.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentguard.call.client import Isolation
from agentguard.domain import config
from agentguard.domain.config import Config
from agentguard.domain.config.clients import EVERYTHING, LAUNCHED, ClientConfig
from agentguard.domain.config.server import ServerConfig
from agentguard.domain.issuer_keys import open_issuers
from agentguard.domain.key_sources import KeySources
from agentguard.errors import AgentguardError, ServerError
from agentguard.guard.embedded import Embedded
from agentguard.server import tls
from agentguard.server.doubts import EarlierDoubts
from agentguard.server.figures import Figures
from agentguard.server.peer import Peer
from agentguard.server.pins import ToolPins
from agentguard.server.reload import changes
from agentguard.server.rights import ending, stranger
from agentguard.server.session import Session
from agentguard.server.share import REMOTE, Owner, Shares, owner_of
from agentguard.server.tokens import TokenClients, with_cause
from agentguard.wire.peer import ROOT

_LOGGER = logging.getLogger("agentguard")


class Sessions:
    """The sessions of a server, and what each owner of connections holds.

    ``lock`` is held while ``shares``, ``clients`` or the sessions change. ``clients`` are those of
    the configuration in force. ``handshakes`` are the connections of
    other machines whose clients are not known yet, and ``takes_tokens`` says whether a token can
    name such a client. ``in_doubt`` counts the calls that lost clients have left in doubt. Raises
    ``ConfigError`` where the issuers of tokens can't be used.
    """

    def __init__(self, settings: Config, limits: ServerConfig, parts: Embedded) -> None:
        self.lock = threading.Lock()
        self.is_draining = False
        self.in_doubt = 0
        self._earlier = EarlierDoubts(parts.runtime.domain.read)
        self.figures = Figures()
        self._settings = settings
        self._parts = parts
        self._limits = limits
        self._reloading = threading.Lock()
        self.clients: Mapping[str, ClientConfig] = settings.client_tables
        self._pins = ToolPins(parts.runs)
        self._uid = os.getuid()
        self._own = _own_user(settings, self._uid)
        self._sessions: dict[str, Session] = {}
        self.shares = Shares(limits.max_clients, len(self.clients))
        self.handshakes = tls.Handshakes(self.shares.of(REMOTE).most_connections // 2)
        self._tokens = _token_clients(settings, parts.key_sources)
        self.takes_tokens = self._tokens is not None

    def reload(self) -> tuple[str, ...]:
        """Load the configuration and the policy anew; return the names of what has changed.

        All is checked first, and is put on record. Calls under way end under what they began with,
        and the next calls go by what was loaded. Raises ``AgentguardError``: then the earlier
        configuration stays in force. The server's log has both.
        """
        with self._reloading:
            try:
                changed = self._reload()
            except AgentguardError as error:
                _LOGGER.warning("the configuration in force stays: %s [%s]", error, error.code)
                raise
        # a server without settings for its logs shows no less than a warning
        _LOGGER.warning("loaded anew: %s", ", ".join(changed) or "no change")
        return changed

    def _reload(self) -> tuple[str, ...]:
        settings, parts = config.load(Path(self._settings.source)), self._parts
        changed = changes(self._settings, settings)
        if settings.clients != self._settings.clients:  # the members of a group, say
            changed = tuple(sorted({*changed, "clients"}))
        tokens = _token_clients(settings, parts.key_sources.after(settings))
        before = parts.runtime.current_ports().engine.policy_sha256
        parts.reload(settings)
        with self.lock:
            self._settings, self._tokens = settings, tokens
            self.clients, self._own = settings.client_tables, _own_user(settings, self._uid)
            self.shares.divide(len(self.clients))
            sessions = list(self._sessions.values())
        for session in sessions:
            self._have_follow(session)
        is_same = parts.runtime.current_ports().engine.policy_sha256 == before
        return changed if is_same else tuple(sorted({*changed, "policy"}))

    def _have_follow(self, session: Session) -> None:
        """Have a session go by the configuration in force; a session that can't is forgotten."""
        try:
            session.follow(self._now(session.client), self._parts)
        except Exception:
            _LOGGER.exception("a client can't go on under what was loaded anew, and begins anew")
            self.forget(session)

    def _now(self, client: ClientConfig) -> ClientConfig | None:
        """Return what the configuration in force says of a client, None for no client any more."""
        if client.name.startswith(LAUNCHED):
            return client
        for one in self.clients.values():
            if (one.mark, one.claims) == (client.mark, client.claims):
                return one
        return self._own if client.uid == self._uid else None

    def running(self) -> int:
        """Return how many calls are under way."""
        with self.lock:
            sessions = list(self._sessions.values())
        return sum(one.running() for one in sessions)

    def status(self, asking: Session | None = None) -> dict[str, Any]:
        """Return the figures, and the clients, connections and calls but those of ``asking``.

        Waits for the log's disk, where nothing was written for a while.
        """
        failure = self._parts.runtime.log_failure()
        with self.lock:
            sessions = [one for one in self._sessions.values() if one is not asking]
        ports = self._parts.runtime.current_ports()
        return {
            **self.figures.as_json(),
            "clients": len(sessions),
            "connections": sum(one.connections for one in sessions),
            "calls": sum(one.running() for one in sessions),
            "in_doubt": self.in_doubt,
            "in_doubt_before": self._earlier.count(),
            "draining": self.is_draining,
            "log_failure": failure and {"code": failure.code, "message": str(failure)},
            "isolation": dict(Counter(one.isolation for one in sessions)),
            "config_sha256": ports.config_sha256,
            "policy_sha256": ports.engine.policy_sha256,
        }

    def join(self, handle: str | None, peer: Peer, token: object) -> Session:
        """Return the session with this handle, or a new one; raises ``ServerError``.

        ``token`` is that of a client on another machine without a certificate, and None for others.
        """
        client, uid = self._client(peer, token), peer.uid
        if handle is None:  # who comes back has a place
            self._make_room(owner_of(uid, client))
        with self.lock:
            now = self._now(client)  # a reload may come between
            if now is None:
                raise stranger(uid)
            session = self._session(handle, now, uid)
            if session.connections >= self._limits.max_connections:
                message = f"this client has {session.connections} connections already"
                raise ServerError(message, code="server.busy")
            session.connections += 1
            return session

    def _client(self, peer: Peer, token: object) -> ClientConfig:
        """Return the client of a connection that greets; raises ``ServerError``."""
        if peer.needs_token and self._tokens is not None:
            try:
                client, ends_at = self._tokens.client_of(token)
            except ServerError as error:
                if peer.share.may_warn():
                    _LOGGER.warning("a client is refused: %s", with_cause(error))
                raise
            self.count_for(peer, client)
            self.handshakes.end(peer.accepted)
            peer.limit(ends_at)
            peer.client = client
        elif token is not None:
            message = "the server knows this client without a token: leave the token out"
            raise ServerError(message, code="server.token")
        return self.client_of(peer.uid) if peer.client is None else peer.client

    def _make_room(self, owner: Owner) -> None:
        """Forget the client that was lost first, where an owner has as many as it may have."""
        with self.lock:
            share = self.shares.of(owner)
            is_full = share.clients >= share.most_clients
            mine = [one for one in self._sessions.values() if is_full and one.share is share]
            lost = [one for one in mine if one.connections == 0]
        if lost:
            self.forget(min(lost, key=lambda one: one.lost_at), only_lost=True)

    def count_for(self, peer: Peer, client: ClientConfig) -> None:
        """Count a connection for its client, once the client on another machine is known."""
        with self.lock:
            own = self.shares.of(owner_of(None, client))
            own.open()
            peer.share.connections -= 1
            peer.share = own

    def require_time(self) -> None:
        """Raise ``ServerError`` (``server.draining``) where the server is about to end."""
        if self.is_draining:
            raise ending()

    def _session(self, handle: str | None, client: ClientConfig, uid: int | None) -> Session:
        if handle is not None:
            known = self._sessions.get(handle)
            # a session that does not follow a reload yet has the client's earlier table
            if known is None or self._now(known.client) is not client:
                message = "the server has no such session: it was started anew, or forgot it"
                raise ServerError(message, code="server.restarted")
            return known
        self.require_time()
        share = self.shares.of(owner_of(uid, client))
        share.begin()
        ports = self._parts.runtime.current_ports()
        session = Session(client, self._isolation(uid), self._limits, self._pins, share, ports)
        self._sessions[session.handle] = session
        return session

    def _isolation(self, uid: int | None) -> Isolation:
        if uid is None:
            return "remote"
        return "same-user" if uid in (self._uid, ROOT) else "separate-user"

    def client_of(self, uid: int | None) -> ClientConfig:
        """Return the client that a user is; raises ``ServerError`` (``server.stranger``).

        With ``[clients]`` the server's own user looks after the server, and is no agent.
        """
        for client in self.clients.values():
            if client.uid is not None and client.uid == uid:
                return client
        if uid == self._uid:
            return self._own
        raise stranger(uid)

    def leave(self, session: Session) -> None:
        """Note that a connection of the session has ended."""
        with self.lock:
            session.connections -= 1
            session.lost_at = time.monotonic()

    def forget(self, session: Session, *, only_lost: bool = False) -> None:
        """Forget a session; its calls under way stay in doubt.

        With ``only_lost``, a session whose client has come back meanwhile stays.
        """
        with self.lock:
            if only_lost and session.connections > 0:
                return
            if self._sessions.pop(session.handle, None) is not None:
                session.share.clients -= 1
        in_doubt = session.abandon()
        with self.lock:
            self.in_doubt += in_doubt

    def forget_lost(self) -> None:
        """Forget the clients that were lost for too long; their calls stay in doubt."""
        before = time.monotonic() - self._limits.reconnect
        with self.lock:
            lost = [
                one
                for one in self._sessions.values()
                if one.connections == 0 and one.lost_at < before
            ]
        for session in lost:
            self.forget(session, only_lost=True)

    def end(self) -> None:
        """Forget all clients, whose connections are closed."""
        with self.lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            self.forget(session)


def _own_user(settings: Config, uid: int) -> ClientConfig:
    """Return the server's own user as a client, who is any agent without ``[clients]``."""
    own = ClientConfig("", uid)
    if settings.clients is not None:
        return own
    return replace(own, agents=(EVERYTHING,), vouches_for=(EVERYTHING,), answers=True)


def _token_clients(settings: Config, sources: KeySources) -> TokenClients | None:
    """Return the clients with tokens, None without one; raises ``ConfigError``."""
    clients = [one for one in settings.client_tables.values() if one.issuer is not None]
    if not clients:
        return None
    return TokenClients(open_issuers(settings, sources), clients)
