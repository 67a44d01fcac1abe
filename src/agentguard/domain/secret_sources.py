"""Makes the sources of the secrets that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping

from agentguard.domain.config import Config
from agentguard.domain.config.secrets import SecretConfig
from agentguard.secrets.rule import SecretRule, SecretSource
from agentguard.secrets.sources import EnvironmentSource, FileSource


def open_secrets(settings: Config) -> Mapping[str, SecretRule]:
    """Return the rule of each secret; no source is asked for a secret yet."""
    return {
        name: SecretRule(name, _source(secret), frozenset(secret.tools), secret.scope)
        for name, secret in settings.secrets.items()
    }


def _source(secret: SecretConfig) -> SecretSource:
    if secret.file is not None:
        from agentguard.domain.config import rights  # noqa: PLC0415  few guards read a secret file

        return FileSource(secret.file, rights.read_private)
    return EnvironmentSource(secret.env or "")
