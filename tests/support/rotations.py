"""A durable domain whose keys a test rotates, and the crash points of a rotation."""

from __future__ import annotations

import gc
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from embedded_parts import runtime_of

from agentguard.guard.guard import Guard
from agentguard.identity.trust import Use
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import files
from agentguard.storage.flusher import _UNCLOSED
from agentguard.store.log import StoreLog

PASSPHRASE = b"correct horse battery staple"
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
USES: tuple[Use, ...] = ("issuer", "log", "admin")
HOUR = timedelta(hours=1)


def next_second() -> None:
    """Wait until a second begins: a key that is compromised since then has signed nothing in it."""
    time.sleep(1.001 - time.time() % 1)


class Crash(BaseException):
    """The process dies here."""


either = pytest.mark.parametrize(
    "scene", [True, False], ids=["anchored", "no anchor"], indirect=True
)


def signing(guard: Guard, use: str) -> Any:
    """The public key with which a guard signs for this use now."""
    runtime = runtime_of(guard)
    assert runtime._log is not None
    signer = {"issuer": runtime.domain.issuer, "log": runtime._log._store._signer}[use]
    return signer.public_key


STEPS: tuple[tuple[Any, str], ...] = (
    (files, "_write"),
    (files, "_sync"),
    (StoreLog, "append"),
    (StoreLog, "close"),
)
"""All that makes something durable: between two of them, a crash leaves what it left before."""


def crash_at(patched: pytest.MonkeyPatch, wanted: int) -> list[str]:
    """Die at the ``wanted``-th border of a step, of all of them; return those that were crossed."""
    crossed: list[str] = []

    def border(name: str) -> None:
        crossed.append(name)
        if len(crossed) == wanted:
            raise Crash

    def bordered(real: Any, name: str) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            border(f"before {name}")
            result = real(*args, **kwargs)
            border(f"after {name}")
            return result

        return step

    for owner, name in STEPS:
        patched.setattr(owner, name, bordered(getattr(owner, name), name))
    return crossed


def free_locks() -> None:
    """Let go of what a process that died would not hold: a crash that is only raised leaves it."""
    gc.collect()
    for log in list(_UNCLOSED):
        log.close()


def alien(passphrase: bytes = PASSPHRASE) -> tuple[Ed25519Signer, bytes]:
    signer = Ed25519Signer.from_seed(os.urandom(32))
    return signer, signer.to_openssh(passphrase)


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)
