"""Two sources of secrets that need no other program: a file, and this process's environment.

Each look-up reads the source anew, so that a secret can be changed while the guard is open.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentguard.errors import ConfigError, SecretError
from agentguard.secrets.rule import MAX_SECRET, secret_of
from agentguard.signing.keys import Secret
from agentguard.storage import files

ReadPrivate = Callable[[Path, int], bytes]
"""Reads a file of at most so many bytes, which no other user may read or replace.

Raises ``ConfigError`` (``config.exposed``) or ``OSError``.
"""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file with one secret; a line break at the end of the file is no part of the secret."""

    path: Path
    read: ReadPrivate

    def fetch(self) -> Secret:
        """Return the secret. Raises ``SecretError`` (``secret.failed``)."""
        try:
            return secret_of(
                _without_line_break(self.read(self.path, MAX_SECRET + 2)), str(self.path)
            )
        except ConfigError as error:
            raise SecretError(str(error), code="secret.failed") from error
        except FileNotFoundError as error:
            message = f"there is no file {self.path}: put the secret there, or name the right file"
            raise SecretError(message, code="secret.failed") from error
        except OSError as error:
            raise SecretError(files.unreadable(self.path, error), code="secret.failed") from error


@dataclass(frozen=True, slots=True)
class EnvironmentSource:
    """A variable in the environment of the process that holds the guard."""

    variable: str

    def fetch(self) -> Secret:
        """Return the secret. Raises ``SecretError`` (``secret.failed``)."""
        if self.variable not in os.environ:
            message = (
                f"the environment variable {self.variable} is unset: set the variable for the "
                "process that holds the guard"
            )
            raise SecretError(message, code="secret.failed")
        where = f"the environment variable {self.variable}"
        return secret_of(os.environb.get(os.fsencode(self.variable), b""), where)


def _without_line_break(data: bytes) -> bytes:
    return data.removesuffix(b"\n").removesuffix(b"\r")
