"""The settings of a secret in OpenBao or Vault: the address, the place there, and the token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult

from agentguard import base_url
from agentguard.errors import ConfigError
from agentguard.tables import kinds, setting

_PATH: Final = re.compile(r"(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*/)+[A-Za-z0-9_~-][A-Za-z0-9._~-]*\Z")


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """A field of a secret in OpenBao or Vault, in a key-value store of version 2.

    It takes the extra ``vault``.

    Raises ``ConfigError``, whose message begins with the name of the key.

    ::

        [secrets.PAY_KEY]
        tools = ["pay"]

        [secrets.PAY_KEY.vault]
        url = "https://vault.example:8200"
        path = "secret/data/pay"
        field = "key"
        token_file = "/run/secrets/vault-token"
        # token_env = "VAULT_TOKEN"
        ca = "/etc/ssl/vault-ca.pem"
        timeout = 5.0
    """

    url: str = setting(kinds.text)
    """The address; ``http`` only on this machine."""

    path: str = setting(kinds.text)
    """The path of the API: the mount, ``data``, the secret."""

    field: str = setting(kinds.text)
    """The field of the secret."""

    token_file: Path | None = setting(kinds.file, default=None)
    """A file with the token, which others can't read, and which is read for every look-up; this or
    ``token_env``."""

    token_env: str | None = setting(kinds.text, default=None)
    """A variable with the token."""

    ca: Path | None = setting(kinds.file, default=None)
    """The certificates that are trusted; by default the system's."""

    timeout: float = setting(kinds.seconds, default=5.0)
    """The time for a whole look-up."""

    def __post_init__(self) -> None:
        address = self.address
        if address.scheme == "http" and not base_url.is_loopback(address):
            message = (
                "url: the token and the secret would go unencrypted over a network: begin the url "
                "with https, or have the server on this machine"
            )
            raise ConfigError(message)
        if address.scheme == "http" and self.ca is not None:
            raise ConfigError("ca: it is for https, and url begins with http")
        if not _PATH.match(self.path) or "data" not in self.path.split("/")[1:-1]:
            message = (
                "path: expected the path of the API, with data behind the mount, as in "
                "'secret/data/github' for the secret github of the mount secret"
            )
            raise ConfigError(message)
        if not self.field:
            raise ConfigError("field: expected the name of a field of the secret")
        if (self.token_file is None) is (self.token_env is None):
            raise ConfigError("token_file: expected one of token_file and token_env")

    @property
    def address(self) -> SplitResult:
        """The parts of ``url``."""
        parts = base_url.parse(self.url)
        if parts is None or parts.path.rstrip("/").endswith("/v1"):
            # The message does not repeat the URL, which may hold a password.
            message = (
                "url: expected one such as 'https://vault.example:8200', without /v1, user, "
                "password, query or fragment"
            )
            raise ConfigError(message)
        return parts
