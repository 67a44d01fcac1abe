"""The limit on the size of a result while a ``ResultCodec`` encodes the result."""

from __future__ import annotations

from agentguard.call.journal import MAX_RESULT
from agentguard.errors import EncodeError


class ResultBudget:
    """Counts the bytes that a ``ResultCodec`` encodes, up to the journal's limit (8 MiB).

    A value that holds the same part many times grows at each level when it is encoded. So a codec
    counts during the encoding, and stops before the memory is used up.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_RESULT

    def spend(self, size: int) -> None:
        """Count ``size`` bytes; raises ``EncodeError`` past the limit."""
        self._left -= size
        if self._left < 0:
            raise EncodeError(f"a result takes more than {MAX_RESULT} bytes")
