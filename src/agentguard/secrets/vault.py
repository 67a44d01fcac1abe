"""A secret in OpenBao or Vault: one GET to a key-value store of version 2 (``http/endpoint.py``).

Each look-up opens a connection of its own, and reads the token anew. A function that has the answer
as text raises nothing, because a traceback can show variables: the function returns the problem,
and its caller raises the error.
"""

from __future__ import annotations

import os
import re
from typing import Final

from agentguard.errors import DecodeError, SecretError
from agentguard.http.endpoint import Endpoint, Wanted
from agentguard.secrets.rule import secret_of
from agentguard.secrets.sources import FileSource, ReadPrivate
from agentguard.secrets.vault_settings import VaultSettings
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Secret

_TOKEN: Final = re.compile(rb"[!-~]+")
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
        target = f"{address.path.rstrip('/')}/v1/{settings.path}"
        wanted = Wanted("url", problems=_PROBLEMS)
        self._endpoint = Endpoint(address, target, wanted, settings.ca, settings.timeout)

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
        own = [(b"X-Vault-Request", b"true"), (b"X-Vault-Token", token.reveal())]
        return self._endpoint.ask("GET", own)


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
