"""Makes the sources of the secrets that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentguard.domain.config import Config
from agentguard.errors import ConfigError
from agentguard.secrets.rule import SecretRule, SecretSource
from agentguard.secrets.sources import EnvironmentSource, FileSource

if TYPE_CHECKING:
    from agentguard.domain.config.secrets import SecretConfig


def open_secrets(settings: Config) -> Mapping[str, SecretRule]:
    """Return the rule of each secret; no source is asked for a secret yet.

    Raises ``ConfigError``: ``config.extra_missing``, and for a vault's ``ca`` that can't be used.
    """
    return {
        name: SecretRule(
            name, open_source(secret, settings.source), frozenset(secret.tools), secret.scope
        )
        for name, secret in settings.secrets.items()
    }


def open_source(secret: SecretConfig, where: str) -> SecretSource:
    """Return the source of a secret; ``where`` names the configuration. Raises ``ConfigError``."""
    if secret.env is not None:
        return EnvironmentSource(secret.env)
    if secret.keyring is not None:
        return _keyring_source(*secret.keyring)
    # few guards read a file with a secret
    from agentguard.domain.config import rights  # noqa: PLC0415

    if secret.vault is None:
        assert secret.file is not None  # noqa: S101  one source is there
        return FileSource(secret.file, rights.read_private)
    try:
        from agentguard.secrets.vault import VaultSource  # noqa: PLC0415  an optional extra
    except ModuleNotFoundError as error:
        what = "a secret in OpenBao or Vault"
        raise ConfigError.without_extra("vault", what=what, brings="httpcore") from error
    try:
        return VaultSource(secret.name, secret.vault, rights.read_private)
    except ConfigError as error:
        raise ConfigError(f"{where}: secrets.{secret.name}.vault.{error}") from error


def _keyring_source(service: str, user: str) -> SecretSource:
    try:
        from agentguard.secrets.keyring import KeyringSource  # noqa: PLC0415  an optional extra
    except ModuleNotFoundError as error:
        what = "a secret in the keyring"
        raise ConfigError.without_extra("keyring", what=what, brings="keyring") from error
    return KeyringSource(service, user)
