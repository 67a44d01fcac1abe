"""Tokens for this process from an OAuth token endpoint: the client credentials grant.

The process shows its client identifier and secret to the organisation's provider, and gets a token
in its own name (RFC 6749, 4.4). The token is kept in memory until shortly before its end.
"""

from __future__ import annotations

import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_plus, urlencode

from agentguard.errors import AgentguardError, DecodeError, ServerError
from agentguard.issuers.credentials import ClientCredentials
from agentguard.issuers.http import endpoint_of
from agentguard.signing import canonical
from agentguard.signing.keys import Secret
from agentguard.storage import files

_MARGIN: Final = 60.0
"""Seconds before its end from which a token is not used for a new connection."""

_MAX_SECRET: Final = 4096


class _Kept(NamedTuple):
    token: Secret
    fresh_until: float
    ends_at: float


class TokenEndpoint:
    """Gets tokens, and keeps the newest. Threads may share an endpoint, also after a fork.

    ``read`` reads the file with the secret, of at most so many bytes. Raises ``ConfigError`` for a
    URL or a ``ca`` that can't be used.
    """

    def __init__(
        self,
        credentials: ClientCredentials,
        read: Callable[[Path, int], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._read = read
        self._clock = clock
        self._endpoint = endpoint_of(credentials.token_url, "token_url", credentials.ca)
        self._process = os.getpid()
        self._lock = threading.RLock()  # no call that interrupts this thread waits for it
        self._kept: _Kept | None = None
        self._is_reused = False

    def token(self) -> Secret:
        """Return a token; raises ``ServerError`` (``server.token``).

        While the endpoint gives none, the token that is kept counts until its end.
        """
        with self._own_lock():
            kept = self._kept
            if kept is not None and self._clock() < kept.fresh_until:
                self._is_reused = True
                return kept.token
            body = self._endpoint.ask("POST", self._headers(), self._form())
            answer = body if isinstance(body, str) else _read_answer(body)
            if isinstance(answer, str):
                if kept is not None and self._clock() < kept.ends_at:
                    return kept.token
                message = f"the token endpoint of [server.oauth] {answer}"
                raise ServerError(message, code="server.token")
            token, seconds = answer
            now = self._clock()
            self._kept, self._is_reused = None, False
            if seconds is not None:
                margin = min(_MARGIN, seconds / 2)
                self._kept = _Kept(token, now + seconds - margin, now + seconds)
            return token

    def forget(self) -> bool:
        """Forget the token that is kept, which was refused; return whether it was used before.

        A token that is refused at its first use leaves no hope for the next one.
        """
        with self._own_lock():
            was_reused, self._kept, self._is_reused = self._is_reused, None, False
            return was_reused

    def _own_lock(self) -> threading.RLock:
        if self._process != os.getpid():  # a thread of the parent may have had the lock
            self._lock = threading.RLock()
            self._process = os.getpid()  # last: another thread must not take the parent's lock
        return self._lock

    def _form(self) -> Secret:
        form = {"grant_type": "client_credentials"}
        if self._credentials.scope is not None:
            form["scope"] = self._credentials.scope
        return Secret(urlencode(form).encode())

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers, with the client's secret (RFC 6749, 2.3.1)."""
        try:
            secret = self._read(self._credentials.client_secret_file, _MAX_SECRET).strip()
            pair = f"{quote_plus(self._credentials.client_id)}:{quote_plus(secret)}"
        except (OSError, AgentguardError) as error:
            path = self._credentials.client_secret_file
            problem = files.unreadable(path, error) if isinstance(error, OSError) else error
            message = f"[server.oauth] client_secret_file: {problem}"
            raise ServerError(message, code="server.token") from None
        return [
            (b"Authorization", b"Basic " + b64encode(pair.encode("ascii"))),
            (b"Content-Type", b"application/x-www-form-urlencoded"),
        ]


def _read_answer(body: Secret) -> tuple[Secret, float | None] | str:
    """Return a token and the seconds that it counts, or the problem (RFC 6749, 5.1)."""
    try:
        answer = canonical.loads_object(body.reveal())
    except DecodeError:
        return "answers with something else than JSON: correct token_url"
    token, kind = answer.get("access_token"), answer.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        return "gives no token of the type Bearer: configure the client at the provider"
    if not isinstance(token, str) or not token.isascii() or not token:
        return "gives no token: configure the client at the provider"
    seconds = answer.get("expires_in")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        seconds = None
    return Secret(token.encode("ascii")), seconds
