"""What a client may be and whom it may vouch for, and the errors that say what is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentguard.delegation.grant import Grant
from agentguard.domain.config.clients import LAUNCHED, ClientConfig
from agentguard.errors import ConfigError, DelegationError, ServerError
from agentguard.signing import canonical

AT_SERVER: Final = "in the server's agentguard.toml, and then run agentguard server reload"
"""Where an administrator edits what clients may do, for messages."""


def require_agent(client: ClientConfig, name: str) -> None:
    """Raise ``ConfigError`` (``agent.refused``) unless the client may be this agent."""
    if not client.may_be(name):
        message = f"{who(client)} may not be the agent {name}: {_mended(client, 'agents')}"
        raise ConfigError(message, code="agent.refused")


def require_principal(client: ClientConfig, principal: str) -> None:
    """Raise ``DelegationError`` (``principal.refused``) unless the client may vouch for them."""
    if not client.may_vouch_for(principal):
        message = f"{who(client)} may not vouch for {principal}: {_mended(client, 'vouches_for')}"
        raise DelegationError(message, code="principal.refused")


def shows_tokens_of(first: Grant, shown: Mapping[str, object]) -> bool:
    """Whether a client shows the tokens on which a first hop rests, whose hashes the hop has.

    A chain is no secret, and so is no proof. The tokens were verified when the delegation began;
    they may have ended since, and the delegation ends by itself (ADR 0057).
    """
    known = first.subject_token
    if known is None or known.is_id_jag:  # an ID-JAG is for the agent that it names
        return False
    via = first.via_token
    return _is_hash_of(shown.get("subject_token"), known.sha256) and (
        via is None or _is_hash_of(shown.get("via_token"), via.sha256)
    )


def _is_hash_of(token: object, digest: str) -> bool:
    return isinstance(token, str) and canonical.sha256_hex(token.encode()) == digest


def who(client: ClientConfig) -> str:
    """Return how a message names a client."""
    return f"the client {client.name}" if client.name else "the server's own user"


def _mended(client: ClientConfig, key: str) -> str:
    """Return how an administrator lets a client do what the client may not do yet."""
    if client.name.startswith(LAUNCHED):
        option = "--agent" if key == "agents" else "--vouches-for"
        return f"see {option} of agentguard run"
    if client.name:
        return f"add it to {key} of [clients.{client.table}] {AT_SERVER}"
    return f"run the program under a user of its own, with a table [clients.NAME] {AT_SERVER}"


def stranger(uid: int | None) -> ServerError:
    """Return the error (``server.stranger``) for who is no client; None for another machine."""
    message = (
        f"this certificate or token is no client's any more: add a table to [clients] {AT_SERVER}"
        if uid is None
        else f"the user {uid} is no client of this guard server: add the user to [clients] "
        f"{AT_SERVER}"
    )
    return ServerError(message, code="server.stranger")


def ending() -> ServerError:
    """Return the error (``server.draining``) for what a server that ends does not begin."""
    message = "the guard server is about to end: try again once it has been started anew"
    return ServerError(message, code="server.draining")
