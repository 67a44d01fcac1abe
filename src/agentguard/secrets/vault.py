"""A secret in OpenBao or Vault: one GET to a key-value store of version 2, with one deadline.

Each look-up opens a connection of its own, and reads the token anew. A redirection is not followed,
and an answer is read to 256 KiB. A function that has the token or the answer as text raises
nothing, because a traceback can show variables: the function returns the problem, and its caller
raises the error.
"""

from __future__ import annotations

import os
import re
from typing import Final

import httpcore

from agentguard.errors import DecodeError, SecretError
from agentguard.policy.exchange import Exchange, Network, context_of, exchanging, is_of_tls
from agentguard.secrets.rule import secret_of
from agentguard.secrets.sources import FileSource, ReadPrivate
from agentguard.secrets.vault_settings import VaultSettings
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Secret

MAX_ANSWER: Final = canonical.MAX_BYTES
"""Bytes of the longest answer."""

_TOKEN: Final = re.compile(rb"[!-~]+")
_ANSWERED: Final = 200
_PROBLEMS: Final = {
    400: "does not understand the request (400): check path",
    403: "does not let this token read the secret (403): renew the token, or give the token a "
    "policy with read on path",
    404: "has no such secret, or its newest version is deleted (404): check path",
    429: "answers too many requests (429): try again later",
    472: "is a standby of disaster recovery (472): name the active server in url",
    473: "is a standby (473): name the active server in url",
    503: "is sealed or down (503): unseal the server",
}


class VaultSource:
    """The field of a secret in OpenBao or Vault.

    ``name`` is the name of the secret in the configuration. ``read`` reads the token's file.
    Raises ``ConfigError`` for a ``ca`` that can't be used.
    """

    def __init__(self, name: str, settings: VaultSettings, read: ReadPrivate) -> None:
        self._name = name
        self._settings = settings
        self._read = read
        address = settings.address
        self._url = httpcore.URL(
            scheme=address.scheme.encode(),
            host=(address.hostname or "").encode(),
            port=address.port,
            target=f"{address.path.rstrip('/')}/v1/{settings.path}".encode(),
        )
        self._headers = [
            (b"Host", address.netloc.encode()),
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"agentguard"),
            (b"X-Vault-Request", b"true"),
        ]
        self._tls = context_of(settings.ca) if address.scheme == "https" else None

    def fetch(self) -> Secret:
        """Return the secret. Raises ``SecretError`` (``secret.failed``)."""
        body = self._ask(self._token())
        if isinstance(body, str):
            raise self._failed(body)
        value = _field(body, self._settings.field)
        if isinstance(value, str):
            raise self._failed(value)
        where = f"the field {self._settings.field} of the secret {self._name} in the vault"
        return secret_of(value.reveal(), where)

    def _failed(self, problem: str) -> SecretError:
        message = f"the vault of the secret {self._name} {problem}"
        return SecretError(message, code="secret.failed")

    def _token(self) -> Secret:
        settings = self._settings
        if settings.token_file is not None:
            where = str(settings.token_file)
            token = FileSource(settings.token_file, self._read).fetch()
        else:
            where = f"the environment variable {settings.token_env}"
            token = Secret(os.environb.get(os.fsencode(settings.token_env or ""), b""))
        if not _TOKEN.fullmatch(token.reveal()):
            message = (
                f"{where} has no token for the vault of the secret {self._name}: expected one line "
                "without spaces"
            )
            raise SecretError(message, code="secret.failed")
        return token

    def _ask(self, token: Secret) -> Secret | str:
        """Return the body of the answer, or the problem."""
        timeout = self._settings.timeout
        with exchanging(timeout) as exchange:
            try:
                with httpcore.ConnectionPool(
                    ssl_context=self._tls, max_connections=1, network_backend=Network()
                ) as pool:
                    return self._exchange(pool, token)
            except Exception as error:  # noqa: BLE001  the problem is raised by the caller
                return _fault(error, exchange)

    def _exchange(self, pool: httpcore.ConnectionPool, token: Secret) -> Secret | str:
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._settings.timeout)
        headers = [*self._headers, (b"X-Vault-Token", token.reveal())]
        extensions = {"timeout": timeouts}
        with pool.stream("GET", self._url, headers=headers, extensions=extensions) as answer:
            problem = _problem(answer)
            if problem is not None:
                return problem
            body = bytearray()
            for part in answer.iter_stream():
                body += part
                if len(body) > MAX_ANSWER:
                    return f"answers with more than {MAX_ANSWER} bytes: keep fewer fields at path"
            return Secret(bytes(body))


def _problem(answer: httpcore.Response) -> str | None:
    """Return what is wrong with the head of an answer; None for a good answer."""
    status = answer.status
    if 300 <= status < 400:  # noqa: PLR2004  the redirections
        return f"redirects to another place ({status}), which is not followed: correct url"
    if status != _ANSWERED:
        return _PROBLEMS.get(status, f"answered with status {status}: read the server's log")
    headers = {name.lower(): value.lower() for name, value in answer.headers}
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip()
    if media_type != b"application/json" or b"content-encoding" in headers:
        return "answers with something else than plain JSON: check url"
    return None


def _field(body: Secret, name: str) -> Secret | str:
    """Return a field of a secret of a key-value store of version 2, or the problem."""
    try:
        answer = canonical.loads_object(body.reveal())
    except DecodeError:
        return "answers with something else than JSON: check url"
    outer: JSON = answer.get("data")
    fields = outer.get("data") if isinstance(outer, dict) else None
    if not isinstance(fields, dict) or not isinstance(outer, dict) or "metadata" not in outer:
        return "does not answer as a key-value store of version 2 does: check path"
    if name not in fields:
        return f"has the secret without a field {name}: correct field"
    value = fields[name]
    if not isinstance(value, str):
        return f"has a field {name} that is no text"
    try:
        return Secret(value.encode())
    except UnicodeEncodeError:
        return f"has a field {name} that is no text"


def _fault(error: Exception, exchange: Exchange) -> str:
    """Return the problem of a failed exchange."""
    if is_of_tls(error):
        return "is not trusted (TLS): let ca name the authority of its certificate"
    if isinstance(error, httpcore.TimeoutException):
        return "did not answer in time: look at its load, or raise timeout"
    if isinstance(error, httpcore.ConnectError):
        return "can't be reached: start the server, or correct url"
    if exchange.has_ended or isinstance(error, httpcore.NetworkError):
        return "hung up while it was asked: read the server's log"
    if isinstance(error, httpcore.RemoteProtocolError):
        return "does not answer in HTTP: correct url"
    return f"can't be asked ({type(error).__name__})"
