"""The budget of bytes that a call's arguments may take, counted while they are encoded.

Values that share parts (``x = [x, x]``, the aliases of YAML) are small in memory and large when
encoded. So each value counts, while it is encoded, at no more than the bytes that it takes at
least, and the encoding stops as soon as the arguments must become too large.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

from agentguard.errors import ArgumentsError
from agentguard.signing.canonical import MAX_BYTES

T = TypeVar("T")

REMAINING: Final[ContextVar[list[int]]] = ContextVar("agentguard_budget")
"""The remaining bytes within ``bounded``, in a list of one item."""


def bounded(work: Callable[[], T]) -> T:
    """Run ``work``, which may ``spend`` 256 KiB, and return its result.

    A context variable has the budget, so that an encoder can't forget to pass the budget on.
    """
    token = REMAINING.set([MAX_BYTES])
    try:
        return work()
    finally:
        REMAINING.reset(token)


def spend(size: int) -> None:
    """Take ``size`` bytes of the budget; raises ``ArgumentsError`` (``arguments.too_large``)."""
    remaining = REMAINING.get()
    remaining[0] -= size
    if remaining[0] < 0:
        raise too_large()


def counted(text: str) -> str:
    """Return the text of a value, and take its length of the budget."""
    spend(len(text))
    return text


def too_large() -> ArgumentsError:
    """Return the error for arguments that exceed the budget."""
    message = (
        f"the arguments take more than {MAX_BYTES} bytes; "
        "pass a reference (a path, an id) instead of the content"
    )
    return ArgumentsError(message, code="arguments.too_large")
