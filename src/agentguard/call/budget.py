"""How many bytes a call's arguments may take, counted while they are written down.

Values that share parts (``x = [x, x]``, the aliases of YAML) are small in memory, and written down
they grow with each level. So each value counts while it is encoded, for no more than it will take
at least, and what must become too large is given up on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

from agentguard.errors import ArgumentsError
from agentguard.signing.canonical import MAX_BYTES

T = TypeVar("T")

LEFT: Final[ContextVar[list[int]]] = ContextVar("agentguard_budget_left")
"""The bytes that are left within ``bounded``, in a list of one."""


def bounded(work: Callable[[], T]) -> T:
    """Do a piece of work that may ``spend`` 256 KiB.

    A context variable and no argument: an encoder that forgets to pass it on can't undo it.
    """
    token = LEFT.set([MAX_BYTES])
    try:
        return work()
    finally:
        LEFT.reset(token)


def spend(size: int) -> None:
    """Count ``size`` bytes; raises ``ArgumentsError`` (``arguments.too_large``)."""
    left = LEFT.get()
    left[0] -= size
    if left[0] < 0:
        raise too_large()


def spent(text: str) -> str:
    """Return what a value is written as, counted: it may be long where the value is not."""
    spend(len(text))
    return text


def too_large() -> ArgumentsError:
    """The error for arguments that take more."""
    message = (
        f"the arguments take more than {MAX_BYTES} bytes; "
        "pass a reference (a path, an id) instead of the content"
    )
    return ArgumentsError(message, code="arguments.too_large")
