"""Who uses a state directory: many guards of one machine beside each other, or one guard server.

A guard holds a shared lock on a file of the state, a server an exclusive one. So no program writes
the state beside the server, and no second server serves the state. The commands of an administrator
take neither: they may work beside a server, as they may beside guards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import lock

FILE: Final = "use.lock"


def take(state: Path, *, alone: bool) -> Callable[[], None]:
    """Claim a state for this process, ``alone`` or beside others; return what gives it back.

    Raises ``StorageError``: ``storage.served`` where a guard server or an adoption has the state
    alone, and ``storage.used`` for a server or an adoption where others use the state.
    """
    held = lock.try_acquire(state / FILE, shared=not alone)
    if held is not None:
        return held.close
    if not alone:
        message = (
            f"a guard server or agentguard adopt has the state {state}: put [server] with the "
            "server's url into the configuration, stop agentguard serve, or wait for the adoption"
        )
        raise StorageError(message, code="storage.served")
    message = (
        f"a guard server or programs with guards of their own use the state {state}: stop them "
        "first ('fuser' names the processes)"
    )
    raise StorageError(message, code="storage.used")
