"""``Settings``: what one gateway does, as the command line and agentguard.toml have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentguard_mcp.gateway.pins import Pins

BEARER: Final = "Authorization: Bearer"
"""The name for the token of a server over HTTP among the secrets; no variable has this name."""

TIMEOUT: Final = 300.0
"""Seconds that a server has for an answer, unless the configuration says otherwise."""


@dataclass(frozen=True, slots=True)
class Proofs:
    """That each call needs a proof of its caller, which names this gateway.

    ``audience`` is the gateway's name in delegations. ``store`` is the file of the used proofs.
    ``trust`` are the trust documents of the callers' domains, None for the gateway's own domain,
    whose ``revocations`` say who may act no more (``PublishedRevocations``, or the log). With
    ``trust``, or for None, no revocation of a caller's agent or token is seen.
    """

    audience: str
    store: Path
    trust: tuple[bytes, ...] | None = None
    revocations: Any = None


@dataclass(frozen=True, slots=True)
class Settings:
    """One gateway: for which agent it calls, in front of which server.

    ``server`` is the server's name; its tools have the origin ``mcp:SERVER``. ``command`` starts
    the server. ``principal`` is the user for whom the agent acts, None for an agent that acts on
    its own authority; ``delegated`` is the scope that the principal delegates, None for all that
    the principal's roles allow, and ``task_id`` the task of the delegation. ``prefix`` stands
    before the name of each tool in the policy and the log. ``pins`` are the pinned tools, None
    where no tool is pinned. ``tools`` are the patterns (``git_*``) of the tools that the client may
    see and call, None for all. With ``filter_list``, the client sees of these the tools for which
    the policy allows ``mcp:tools/list``. ``rounds`` are the patterns of the tools whose calls may
    bring ``requestState`` and ``inputResponses``; for what calls no tool, a pattern matches the
    method behind ``mcp:``. ``environment`` is the whole environment of the server, but
    for ``secrets``: the variables that hold a secret, each with the name of the secret in
    ``[secrets]``. ``url`` is the address of a server over HTTP in the place of a command, and
    ``bearer`` the name of the secret that is the token for it.

    ``calls_per_minute`` and ``calls_at_once`` limit the calls, None for no limit.
    ``timeout`` is in seconds. ``recheck`` is the age in seconds up to which a list of the server's
    tools counts for a call; 0 asks the server before each call. ``proofs`` asks for a proof of each
    call; None takes the identity of the settings for all calls. ``wait`` is the number of seconds
    for which a call waits for an approval before the client is told that the call is pending. With
    ``elicit``, a client that can show a dialog tells its user of the wait.
    """

    server: str
    command: tuple[str, ...]
    agent: str
    principal: str | None = None
    delegated: tuple[str, ...] | None = None
    task_id: str | None = None
    prefix: str = ""
    pins: Pins | None = None
    tools: tuple[str, ...] | None = None
    filter_list: bool = False
    rounds: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    bearer: str | None = None
    calls_per_minute: int | None = None
    calls_at_once: int | None = None
    timeout: float = TIMEOUT
    recheck: float = 0.0
    proofs: Proofs | None = None
    wait: float = 0.0
    elicit: bool = False

    @property
    def transport(self) -> str:
        """How the server is reached, as OpenTelemetry names transports: ``pipe`` or ``tcp``."""
        return "pipe" if self.url is None else "tcp"

    @property
    def origin(self) -> str:
        """The origin of the server's tools in the policy's input and in the log."""
        return f"mcp:{self.server}"
