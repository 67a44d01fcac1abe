"""The checks of ``agentguard doctor`` on secrets: whether each source has a value that can be used.

A check drops the value at once, and shows nothing of it. The variables of a service are in its own
environment, so a variable that is unset here is only a warning.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal.location import from_home
from agentguard.domain.config import Config
from agentguard.domain.config.secrets import SecretConfig
from agentguard.domain.secret_sources import open_source
from agentguard.errors import AgentguardError


def findings(settings: Config) -> Iterator[Finding]:
    """Look each secret up, as a guard in this process would."""
    for name, secret in settings.secrets.items():
        check = f"secret {name}"
        try:
            open_source(secret, settings.source).fetch()
        except AgentguardError as error:
            what = str(error)
            if secret.env is not None:
                what = f"{what}; where a service has the variable, run doctor in its environment"
            yield Finding("fail" if secret.env is None else "warn", check, what)
            continue
        scope = f", under the scope {' '.join(secret.scope)}" if secret.scope else ""
        tools = ", ".join(secret.tools)
        yield Finding("ok", check, f"{_place(secret)} has a value, for {tools}{scope}")


def _place(secret: SecretConfig) -> str:
    if secret.file is not None:
        return from_home(secret.file)
    if secret.keyring is not None:
        service, user = secret.keyring
        return f"the keyring, for {user} of {service},"
    if secret.vault is not None:
        return f"{secret.vault.path} of {secret.vault.url}"
    return f"the environment variable {secret.env}"
