"""Reads ``[secrets]``: where each secret is kept, and the tools that may have the secret.

This module opens no source: ``domain/secret_sources.py`` makes the sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError

if TYPE_CHECKING:
    from agentguard.secrets.vault_settings import VaultSettings

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")
_SOURCES: Final = ("file", "env", "keyring", "vault")


@dataclass(frozen=True, slots=True)
class SecretConfig:
    """``[secrets.NAME]``: one source, the ``tools`` that may have the secret, and their ``scope``.

    Exactly one of the sources is not None. ``keyring`` is a service and a user.
    """

    name: str
    tools: tuple[str, ...]
    scope: tuple[str, ...]
    file: Path | None = None
    env: str | None = None
    keyring: tuple[str, str] | None = None
    vault: VaultSettings | None = None


def read_secrets(root: Table, resolve: Callable[[str], Path]) -> Mapping[str, SecretConfig]:
    """Read ``[secrets]``; ``resolve`` makes a path absolute. Raises ``ConfigError``."""
    names = root.table("secrets").names()
    for name in names:
        if not _NAME.match(name):
            expected = "a name of letters, digits, '_', '-' and '.', which begins with a letter"
            raise root.table("secrets").mistake(name, expected)
    return {name: _secret(name, table, resolve) for name, table in root.tables("secrets")}


def _secret(name: str, table: Table, resolve: Callable[[str], Path]) -> SecretConfig:
    tools = table.texts("tools", ())
    if not tools or "*" in tools or "" in tools:
        raise table.mistake("tools", "a list of the names of the tools that may have the secret")
    sources = [source for source in _SOURCES if source in table.names()]
    if len(sources) != 1:
        raise table.mistake(sources[1] if sources else "file", f"one of {', '.join(_SOURCES)}")
    file = table.file("file", resolve)
    variable, user = table.optional("env"), table.optional("keyring")
    if variable is not None and "=" in variable:
        raise table.mistake("env", "the name of an environment variable")
    table.asked("scope", "a scope")
    secret = SecretConfig(
        name,
        tools,
        tuple(sorted(table.scope("scope", ()))),
        file=file,
        env=variable,
        keyring=None if user is None else _keyring(table, user),
        vault=_vault(table, resolve) if sources == ["vault"] else None,
    )
    table.reject_unknown()
    return secret


def _keyring(table: Table, reference: str) -> tuple[str, str]:
    service, _slash, user = reference.rpartition("/")
    if not (service and user):
        raise table.mistake("keyring", "a service and a user, as in 'forge.example/deploy-bot'")
    return service, user


def _vault(outer: Table, resolve: Callable[[str], Path]) -> VaultSettings:
    from agentguard.secrets.vault_settings import TIMEOUT, VaultSettings  # noqa: PLC0415  few configurations name a vault

    table = outer.table("vault")

    url, path, field = table.text("url"), table.text("path"), table.text("field")
    token_file, token_env = table.file("token_file", resolve), table.optional("token_env")
    ca, timeout = table.file("ca", resolve), table.seconds("timeout", TIMEOUT)
    table.reject_unknown()
    try:
        return VaultSettings(url, path, field, token_file, token_env, ca, timeout)
    except ConfigError as error:
        raise ConfigError(f"{table.name('')}.{error}") from error
