"""``[secrets]``: where each secret is kept, and the tools that may have the secret.

This module opens no source: ``domain/secret_sources.py`` makes the sources.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentguard.tables import MistakeError, below, kinds, setting

if TYPE_CHECKING:
    from agentguard.secrets.vault_settings import VaultSettings

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")


def _vault() -> type[VaultSettings]:
    from agentguard.secrets.vault_settings import VaultSettings  # noqa: PLC0415  few name a vault

    return VaultSettings


def _service_and_user(reference: str) -> tuple[str, str] | None:
    service, _slash, user = reference.rpartition("/")
    return (service, user) if service and user else None


@dataclass(frozen=True, slots=True)
class SecretConfig:
    """A secret that the tools named here get while they run.

    Each secret has one source: ``file``, ``env``, ``keyring`` or a table ``vault``
    (docs/how-to/secrets.md).

    ::

        [secrets.DEPLOY_TOKEN]
        tools = ["deploy"]
        scope = ["deploy:write"]
        file = "secrets/deploy-token"
        # env = "DEPLOY_TOKEN"
        # keyring = "forge.example/deploy-bot"
    """

    name: str
    tools: tuple[str, ...] = setting(
        kinds.names("a list of the names of the tools that may have the secret").where(
            lambda tools: "*" not in tools,
            "a list of the names of the tools that may have the secret",
        )
    )
    """The tools that may have the secret."""

    scope: tuple[str, ...] = setting(
        kinds.scope.where(bool, "a list that names a scope, or no such key").to(sorted).to(tuple),
        default=(),
    )
    """The scopes that the authority of the call needs."""

    file: Path | None = setting(kinds.file, default=None)
    """A file with the secret, which others can't read."""

    env: str | None = setting(
        kinds.text.where(lambda name: "=" not in name, "the name of an environment variable"),
        default=None,
    )
    """A variable in the environment of the process that holds the guard."""

    keyring: tuple[str, str] | None = setting(
        kinds.text.to(_service_and_user, "a service and a user, as in 'forge.example/deploy-bot'"),
        default=None,
    )
    """A service and a user in the keyring; the extra ``keyring``."""

    vault: VaultSettings | None = setting(below(_vault), default=None)

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            expected = "a name of letters, digits, '_', '-' and '.', which begins with a letter"
            raise MistakeError("", expected)
        sources = {"file": self.file, "env": self.env, "keyring": self.keyring, "vault": self.vault}
        named = [name for name, source in sources.items() if source is not None]
        if len(named) != 1:
            raise MistakeError(named[1] if named else "file", f"one of {', '.join(sources)}")
