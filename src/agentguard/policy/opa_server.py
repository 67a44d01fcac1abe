"""The settings of an OPA server: address, time limits, and the client's credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult

from agentguard import base_url
from agentguard.errors import ConfigError
from agentguard.tables import kinds, setting


@dataclass(frozen=True, slots=True)
class Server:
    """An OPA server decides; ``query`` and ``mode`` are as for a policy in a file.

    Raises ``ConfigError``, whose message begins with the name of the key.

    ::

        [policy]
        engine = "opa"
        url = "https://opa.acme.example"
        timeout = 2.0
        connect_timeout = 1.0
        ca = "ca.pem"
        certificate = "client.pem"
        key = "client.key"
        token_file = "opa.token"
        # token_variable = "OPA_TOKEN"
    """

    url: str = setting(kinds.text)
    """The server's address; it is in the place of ``path``."""

    timeout: float = setting(kinds.seconds, default=2.0)
    """How long an answer may take; then the call is denied."""

    connect_timeout: float = setting(kinds.seconds, default=1.0)
    """How long a connection to one address may take; then the call is denied."""

    ca: Path | None = setting(kinds.file, default=None)
    """The authorities that vouch for the server, in the place of the machine's."""

    certificate: Path | None = setting(kinds.file, default=None)
    """The certificate that is shown to the server."""

    key: Path | None = setting(kinds.file, default=None)
    """The certificate's private key."""

    token_file: Path | None = setting(kinds.file, default=None)
    """A file with the bearer token for the server, which is read for every evaluation."""

    token_variable: str | None = setting(kinds.text, default=None)
    """The environment variable with the bearer token, in the place of ``token_file``."""

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
