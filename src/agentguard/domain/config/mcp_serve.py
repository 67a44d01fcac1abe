"""``[mcp.NAME.serve]`` and ``[mcp.NAME.oauth]``: a gateway that clients reach over HTTP.

``agentguard mcp serve`` reads these tables (docs/how-to/mcp-serve.md). No guard does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentguard.domain.config.address import Address, parse
from agentguard.errors import ConfigError
from agentguard.proof.target import parse_audience
from agentguard.tables import MistakeError, Table, kinds, resolve, setting
from agentguard.tables.kinds import Kind

LISTEN: Final = Address("127.0.0.1", 8788)
"""The default of ``listen``."""

MAX_SESSIONS: Final = 10_000

_UNIX: Final = "unix:"
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\[\]:-]+")


def parse_listen(text: str) -> Address | Path | None:
    """Return a literal address, the path of ``unix:PATH``, or None for another text."""
    if text.startswith(_UNIX) and text != _UNIX:
        return Path(text.removeprefix(_UNIX))
    address = parse(text)
    return address if address is not None and address.is_literal else None


def _listen(table: Table, key: str) -> Address | Path:
    expected = f"an address and a port, as in '{LISTEN}', or 'unix:PATH'"
    listen = parse_listen(kinds.text.read(table, key))
    if listen is None:
        raise table.mistake(key, expected)
    return resolve(table.base, str(listen)) if isinstance(listen, Path) else listen


def _is_endpoint(url: str) -> bool:
    try:
        return parse_audience(url).uri == url and not url.endswith("/")
    except ConfigError:
        return False


@dataclass(frozen=True, slots=True)
class McpServeConfig:
    """Where ``agentguard mcp serve`` listens for MCP clients over HTTP (docs/how-to/mcp-serve.md).

    ::

        [mcp.git.serve]
        listen = "127.0.0.1:8788"
        url = "https://mcp.acme.example/mcp"
        certificate = "tls/server.pem"
        key = "tls/server.key"
        origins = ["https://app.acme.example"]
        sessions = 200
        idle = 3600
    """

    listen: Address | Path = setting(Kind("string", "an address", _listen), default=LISTEN)
    """The address and the port, or ``unix:PATH``; an address beyond this machine needs a
    ``certificate``."""

    url: str | None = setting(
        kinds.text.where(
            _is_endpoint,
            "the URL of the endpoint in lower case without a query and a slash at the end, as in "
            "'https://mcp.acme.example/mcp'; http is for this machine",
        ),
        default=None,
    )
    """The URL of the endpoint as clients know it, behind a proxy; without the key, the address with
    the path ``/mcp``."""

    certificate: Path | None = setting(kinds.file, default=None)
    """The file with the certificate for TLS, and those of its authorities (PEM)."""

    key: Path | None = setting(kinds.file, default=None)
    """The file with the private key of the certificate (PEM)."""

    origins: tuple[str, ...] = setting(
        kinds.texts.where(
            lambda origins: all(_ORIGIN.fullmatch(one) for one in origins),
            "a list of origins in lower case, as in 'https://app.example'",
        ),
        default=(),
    )
    """The origins of pages in browsers that may ask, beside the endpoint's own."""

    sessions: int = setting(
        kinds.count.where(lambda most: most <= MAX_SESSIONS, f"at most {MAX_SESSIONS}"), default=64
    )
    """The most sessions at once; each has a server process or connection of its own."""

    idle: float = setting(kinds.seconds, default=600.0)
    """After how many seconds a session ends in which nothing happens."""

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise MistakeError("key", "the private key of the certificate, beside the certificate")


@dataclass(frozen=True, slots=True)
class McpOAuthConfig:
    """Each request to ``agentguard mcp serve`` needs an access token of a user.

    See docs/how-to/mcp-serve.md#tokens-of-users.

    ::

        [mcp.git.oauth]
        issuers = ["acme"]
        scopes = ["files:read"]
        scope_claim = "scope"
        # ignore_scope = true
    """

    issuers: tuple[str, ...] = setting(
        kinds.texts.where(bool, "the names of one or more tables [issuers.NAME]")
    )
    """The names of the issuers in ``[issuers]`` whose tokens count."""

    scopes: tuple[str, ...] = setting(kinds.scope.to(sorted).to(tuple), default=())
    """The scopes that a client asks for at first; a call that needs more says so."""

    scope_claim: str | None = setting(kinds.text, default=None)
    """The claim with the scopes of a token, which limit what the user delegates, by default
    ``scope``; a token without the claim has none."""

    ignore_scope: bool = setting(kinds.boolean, default=False)
    """Whether the scopes of tokens do not count, so that roles alone decide."""

    def __post_init__(self) -> None:
        if self.ignore_scope and self.scope_claim is not None:
            raise MistakeError("scope_claim", "no scope_claim beside ignore_scope = true")

    @property
    def counted_claim(self) -> str | None:
        """The claim with the scopes that count, None where they are ignored."""
        if self.ignore_scope:
            return None
        return "scope" if self.scope_claim is None else self.scope_claim
