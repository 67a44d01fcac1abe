"""``[mcp]``: the MCP servers behind gateways, and for whom each gateway calls.

``agentguard mcp`` reads these tables (docs/how-to/mcp-gateway.md). No guard does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agentguard import base_url
from agentguard.delegation.grant import is_audience
from agentguard.domain.config.mcp_serve import McpOAuthConfig, McpServeConfig
from agentguard.errors import ConfigError
from agentguard.tables import MistakeError, Table, below, kinds, resolve, setting
from agentguard.tables.kinds import Kind

MOST_CALLS: Final = 100_000
"""The largest limit of calls: a gateway keeps a number for each call of the last minute."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_LIMIT: Final = kinds.number.where(
    lambda number: 1 <= number <= MOST_CALLS, f"a whole number from 1 to {MOST_CALLS}"
)


def require_server_name(name: str) -> str:
    """Return ``name`` if it can name an MCP server; raises ``ConfigError``.

    The name stands in the origin of the server's tools (``mcp:NAME``) and in the name of a file.
    """
    if not _NAME.match(name):
        message = (
            f"{name!r} can't name an MCP server: expected letters, digits, '_', '-' and '.', at "
            "most 64, beginning with a letter or a digit"
        )
        raise ConfigError(message)
    return name


def require_url(url: str) -> str:
    """Return ``url`` if it can be the address of an MCP server; raises ``ConfigError``.

    The address is https, or http on this machine: a token goes there.
    """
    parts = base_url.parse(url)
    if parts is None or (parts.scheme == "http" and not base_url.is_loopback(parts)):
        message = (
            f"{url!r} is no address of an MCP server: expected an https URL without user, query "
            "and fragment, or an http URL on this machine"
        )
        raise ConfigError(message)
    return url


def _trust(table: Table, key: str) -> tuple[Path, ...]:
    expected = "the trust documents of the callers, or no such key"
    given = kinds.texts.where(bool, expected).read(table, key)
    return tuple(map(partial(resolve, table.base), given))


@dataclass(frozen=True, slots=True)
class McpConfig:
    """An MCP server behind a gateway, for ``agentguard mcp``.

    Each key has a default, and the command line names what is missing
    (docs/how-to/mcp-gateway.md).

    ::

        [mcp.git]
        command = ["uvx", "mcp-server-git"]
        # url = "https://tickets.acme.example/mcp"
        bearer = "TICKETS"
        agent = "code-reviewer"
        principal = "user:alice"
        scope = ["pr:read"]
        prefix = "git/"
        tools = ["git_*"]
        filter_list = true
        rounds = ["git_commit"]
        env = ["GITHUB_TOKEN"]
        secrets = { GITLAB_TOKEN = "GITLAB" }
        pins = "pins/git.json"
        audience = "mcp:git"
        proofs = "git-proofs.sqlite"
        trust = ["agents-trust.json"]
        calls_per_minute = 60
        calls_at_once = 4
        timeout = 60
        recheck = 30
        wait = 120
        elicit = true
    """

    name: str = ""
    command: tuple[str, ...] | None = setting(kinds.texts, default=None)
    """The command that starts the server, with its arguments."""

    url: str | None = setting(kinds.text.to(require_url), default=None)
    """The address of a server over HTTP, in the place of a command; http only on this machine."""

    bearer: str | None = setting(kinds.text, default=None)
    """The name of the secret in ``[secrets]`` that is the token for a server over HTTP; the call
    ``mcp:start`` gets it."""

    agent: str | None = setting(kinds.text, default=None)
    """The agent that makes the calls."""

    principal: str | None = setting(kinds.principal, default=None)
    """The user for whom the agent acts; without the key, the agent acts on its own authority."""

    scope: frozenset[str] | None = setting(kinds.scope, default=None)
    """The scope that the principal delegates, nothing for ``[]``; without the key, all that the
    principal's roles allow, or without ``[principals]`` all that the agent may have."""

    prefix: str = setting(
        kinds.any_text.where(
            lambda prefix: not prefix.startswith("mcp:"),
            "a text that does not begin with mcp:, as the names of methods do",
        ),
        default="",
    )
    """What stands before the names of the server's tools in the policy, in ``[tools]`` and in the
    log; ``mcp:start`` and ``mcp:tools/list`` have no prefix."""

    tools: tuple[str, ...] | None = setting(kinds.texts, default=None)
    """The tools that a client sees and may call, where ``*`` is any characters; without the key,
    all."""

    filter_list: bool = setting(kinds.boolean, default=False)
    """Whether a client sees only the tools for which the policy allows ``mcp:tools/list``."""

    rounds: tuple[str, ...] = setting(kinds.texts, default=())
    """The tools whose calls may bring ``requestState`` and ``inputResponses``, on which the policy
    then has to decide, where ``*`` is any characters; without the key, none
    (docs/how-to/mcp-rounds.md)."""

    env: tuple[str, ...] = setting(kinds.texts, default=())
    """The variables of the gateway's environment that the server gets, beside the few that every
    server gets."""

    secrets: Mapping[str, str] = setting(kinds.mapping, default=MappingProxyType[str, str]({}))
    """Variables of the server that hold a secret, each with the name of the secret in
    ``[secrets]``; the call ``mcp:start`` gets them."""

    pins: Path | None = setting(kinds.file, default=None)
    """The file with the pinned tools; without the key ``mcp-pins/NAME.json``, if that file
    exists."""

    audience: str | None = setting(
        kinds.text.where(is_audience, "printable ASCII without spaces, as in 'mcp:git'"),
        default=None,
    )
    """The gateway's name in delegations: each call then needs a proof of its caller, who takes the
    place of ``principal``."""

    proofs: Path | None = setting(kinds.file, default=None)
    """The file of the used proofs; with ``audience``."""

    trust: tuple[Path, ...] | None = setting(
        Kind("list of strings", "a list of files", _trust), default=None
    )
    """The trust documents of the callers' domains; without the key, the domain of this
    configuration."""

    calls_per_minute: int | None = setting(_LIMIT, default=None)
    """How many calls of the server a gateway makes in a minute, at most 100000; without the key,
    there is no limit."""

    calls_at_once: int | None = setting(_LIMIT, default=None)
    """How many calls of the server a gateway makes at the same time, at most 100000; without the
    key, there is no limit."""

    timeout: float = setting(kinds.seconds, default=300.0)
    """How long the server has for an answer."""

    recheck: int = setting(kinds.number, default=0)
    """For how many seconds a list of the server's tools counts; with 0 the gateway asks the server
    before each call."""

    wait: int = setting(kinds.number, default=0)
    """For how many seconds a call waits for an approval, before the client is told that the call is
    pending."""

    elicit: bool = setting(kinds.boolean, default=False)
    """Whether the user of a client hears of a call that waits, by an elicitation; the user's answer
    approves nothing."""

    serve: McpServeConfig = setting(below(lambda: McpServeConfig), default=McpServeConfig())
    oauth: McpOAuthConfig | None = setting(below(lambda: McpOAuthConfig), default=None)

    def __post_init__(self) -> None:
        if self.name:
            require_server_name(self.name)
        if self.url is not None and self.command is not None:
            raise MistakeError("url", "either a command or a url")
        if (self.audience is None) is not (self.proofs is None):
            expected = "an audience and the file of its used proofs, or neither"
            raise MistakeError("audience" if self.proofs is None else "proofs", expected)
        if self.elicit and not self.wait:
            raise MistakeError("elicit", "a wait, about which the user hears: wait = 120")
