"""The settings of an OPA server: address, time limits, and the client's credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult

from agentguard import base_url
from agentguard.errors import ConfigError

TIMEOUT: Final = 2.0
CONNECT_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """The address of an OPA server, and the credentials of its client.

    ``timeout`` is for a whole evaluation and ``connect_timeout`` for a connection to one address,
    both in seconds. ``ca`` is a file with the certificates that are trusted, by default the
    system's; ``certificate`` and ``key`` are the client's. A bearer token is in ``token_file``,
    read for every evaluation, or in the environment's ``token_variable``. Raises ``ConfigError``,
    whose message begins with the name of the member.
    """

    url: str
    timeout: float = TIMEOUT
    connect_timeout: float = CONNECT_TIMEOUT
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    token_variable: str | None = None

    def __post_init__(self) -> None:
        encrypted = self.address.scheme == "https"
        if self.token_file is not None and self.token_variable is not None:
            raise ConfigError("token_variable: token_file names a token already: leave one out")
        if self.key is not None and self.certificate is None:
            raise ConfigError("key: there is no certificate for it: name one, or leave it out")
        if not encrypted and (self.ca or self.certificate):
            name = "ca" if self.ca else "certificate"
            raise ConfigError(f"{name}: it is for https, and url begins with http")
        if not encrypted and self.has_token and not self.is_local:
            message = (
                "url: a bearer token would go unencrypted over a network: begin it with https, or "
                "have OPA on this machine"
            )
            raise ConfigError(message)

    @property
    def address(self) -> SplitResult:
        """The parts of ``url``."""
        parts = base_url.parse(self.url)
        if parts is None:
            # The message does not repeat the URL, which may hold a password.
            message = (
                "url: expected one such as 'https://opa.example:8181', without user, password, "
                "query or fragment"
            )
            raise ConfigError(message)
        if "/v1/data/" in f"{parts.path}/":
            message = (
                "url: leave out /v1/data and what follows, which is asked for by itself: the "
                "package goes into query, as data.agent.authz"
            )
            raise ConfigError(message)
        return parts

    @property
    def has_token(self) -> bool:
        """Whether requests carry a bearer token."""
        return self.token_file is not None or self.token_variable is not None

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, with no network between."""
        return base_url.is_loopback(self.address)
