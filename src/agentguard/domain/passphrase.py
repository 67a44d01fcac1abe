"""The passphrase of the long-lived keys: its sources, and how the passphrase stays hidden.

No error and no traceback shows the passphrase. ``keystore.py`` reads the keys that it unlocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from agentguard.domain import keystore
from agentguard.domain.config import Config
from agentguard.domain.keystore import PASSPHRASE_VARIABLE
from agentguard.errors import AgentguardError, KeyMaterialError
from agentguard.signing.keys import Secret
from agentguard.storage import files

_LONGEST: Final = 64 * 1024
"""Bytes of a file that may hold a passphrase."""

Passphrase = Secret | bytes | Callable[[], Secret | bytes]
"""The passphrase, or a function that returns it: called at once, and after each rotation."""


def held(passphrase: Passphrase) -> Passphrase:
    """Return the passphrase as it is held, so that no traceback shows it."""
    return Secret.of(passphrase) if isinstance(passphrase, bytes) else passphrase


def ask(passphrase: Passphrase) -> Secret:
    """Return the passphrase; raises ``KeyMaterialError`` where who is asked for it fails."""
    if isinstance(passphrase, Secret | bytes):
        return Secret.of(passphrase)
    try:
        return Secret.of(passphrase())
    except AgentguardError:
        raise
    except Exception as error:
        # by its type alone: what it says may hold the passphrase
        message = f"the function that is asked for the passphrase raised {type(error).__name__}"
        raise KeyMaterialError(message, code="key.passphrase") from error


def passphrase_of(config: Config) -> Secret:
    """Find the passphrase: ``AGENTGUARD_PASSPHRASE``, else ``[keys] passphrase_file``.

    The variable is taken out of the environment (``keystore.from_environment``). Raises
    ``KeyMaterialError`` (``key.passphrase``); it never asks at a terminal.
    """
    passphrase = keystore.from_environment()
    if passphrase is not None:
        return passphrase
    path = config.keys.passphrase_file
    if path is None:
        message = (
            f"no passphrase: set {PASSPHRASE_VARIABLE}, or [keys] passphrase_file in "
            f"{config.source}"
        )
        raise KeyMaterialError(message, code="key.passphrase")
    require = partial(keystore.require_private, path)
    try:
        passphrase = Secret(files.read(path, limit=_LONGEST, require=require).strip())
    except FileNotFoundError as error:
        message = (
            f"the file of the keys' passphrase, {path}, is not there: restore it, correct [keys] "
            f"passphrase_file in {config.source}, or set {PASSPHRASE_VARIABLE}. Without the "
            f"passphrase nobody can use the keys: if it is lost for good, move {config.state} away "
            "and run agentguard init, which makes new keys and a new log"
        )
        raise KeyMaterialError(message, code="key.passphrase") from error
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): check [keys] passphrase_file"
        raise KeyMaterialError(message, code="key.passphrase") from error
    if not passphrase.reveal():
        raise KeyMaterialError(f"{path} holds no passphrase", code="key.passphrase")
    return passphrase
