"""One configured secret: where the value comes from, and which calls may have the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agentguard.errors import SecretError
from agentguard.signing.keys import Secret

MAX_SECRET = 64 * 1024
"""Bytes of the longest secret."""


class SecretSource(Protocol):
    """Where the value of one secret is kept."""

    def fetch(self) -> Secret:
        """Look the value up, anew each time. Raises ``SecretError`` (``secret.failed``)."""


@dataclass(frozen=True, slots=True)
class SecretRule:
    """``[secrets.NAME]``: the source of a secret, and the calls to which a guard releases it.

    ``tools`` are names of tools. ``scope`` are the scopes that the authority of a call needs.
    """

    name: str
    source: SecretSource
    tools: frozenset[str]
    scope: tuple[str, ...] = ()

    def refusal(self, tool: str, scope: frozenset[str] | None) -> str | None:
        """Return why a call of ``tool`` under ``scope`` can't have the secret; None if it can.

        ``scope`` None stands for every scope.
        """
        if tool not in self.tools:
            return (
                f"the secret {self.name} is not for the tool {tool}: if the tool needs the secret, "
                f"add the tool to tools in [secrets.{self.name}]"
            )
        missing = [one for one in self.scope if scope is not None and one not in scope]
        if missing:
            return (
                f"the secret {self.name} needs the scope {' '.join(missing)}, which the authority "
                "of the call lacks: make the call under a delegation with this scope"
            )
        return None


def secret_of(data: bytes, where: str) -> Secret:
    """Return the secret in ``data``, text in UTF-8; ``where`` names the source, for messages.

    Raises ``SecretError`` (``secret.failed``) for no text, and for more than ``MAX_SECRET`` bytes.
    """
    value = Secret(data)
    size = len(data)
    del data  # a traceback can show the variables of a frame
    if size == 0:
        problem = "is empty: put the secret there"
    elif size > MAX_SECRET:
        problem = f"has more than {MAX_SECRET} bytes: keep only the secret there"
    elif not _is_text(value):
        problem = "is no text in UTF-8: encode a binary secret as text, in base64 for example"
    else:
        return value
    raise SecretError(f"{where} {problem}", code="secret.failed")


def _is_text(value: Secret) -> bool:
    # the error of a decoder holds the bytes, so no exception may have the error as its context
    try:
        value.reveal().decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in value.reveal()
