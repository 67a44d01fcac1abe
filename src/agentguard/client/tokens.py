"""The token by which a guard server knows this client: from a file, or from a token endpoint.

A file is read for each connection, because Kubernetes and SPIRE replace a token before its end. A
token is in no message and in no log.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, Protocol

from agentguard.domain.config.server import Host
from agentguard.errors import ConfigError, ServerError
from agentguard.signing.keys import Secret
from agentguard.storage import files

_MAX_TOKEN: Final = 16 * 1024

_PAUSE: Final = 0.1
"""Seconds for which another program may leave the file empty."""


class TokenSource(Protocol):
    """Gets the tokens of this process. Threads may share a source."""

    def token(self) -> Secret:
        """Return a token that counts now; raises ``ServerError`` (``server.token``)."""

    def forget(self) -> bool:
        """Forget a token that the server has refused; return whether there can be a newer one."""


class TokenFile:
    """A file with a token, which another program replaces in time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def token(self) -> Secret:
        """Return the token that the file has now (``TokenSource``)."""
        token = self._read()
        if not token.reveal():  # spiffe-helper empties the file, and then writes the next token
            time.sleep(_PAUSE)
            token = self._read()
        if not token.reveal().isascii() or not token.reveal():
            message = f"[server] token_file: {self._path} has no token"
            raise ServerError(message, code="server.token")
        return token

    def _read(self) -> Secret:
        try:
            return Secret(files.read(self._path, limit=_MAX_TOKEN).strip())
        except OSError as error:
            message = f"[server] token_file: {files.unreadable(self._path, error)}"
            raise ServerError(message, code="server.token") from error

    def forget(self) -> bool:
        """Return False: the file was just read."""
        return False


def tokens_of(host: Host) -> TokenSource | None:
    """Return the source of the client's tokens, None for a client with a certificate.

    Raises ``ConfigError``: ``config.extra_missing``, and for a token endpoint that can't be used.
    """
    if host.token_file is not None:
        return TokenFile(host.token_file)
    if host.oauth is None:
        return None
    from agentguard.domain.config import rights  # noqa: PLC0415  few clients ask a token endpoint

    try:
        from agentguard.issuers.client_credentials import TokenEndpoint  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        what = "[server.oauth]"
        raise ConfigError.without_extra("tokens", what=what, brings="httpcore") from error
    try:
        return TokenEndpoint(host.oauth, rights.read_private)
    except ConfigError as error:
        raise ConfigError(f"[server.oauth] {error}") from error
