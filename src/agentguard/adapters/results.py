"""How large a result may become while a codec writes it down."""

from __future__ import annotations

from agentguard.call.journal import MAX_RESULT
from agentguard.errors import EncodeError


class ResultBudget:
    """Counts what a ``ResultCodec`` writes, up to the size that the journal keeps (8 MiB).

    Values that share parts grow with each level as they are written, so that a codec counts them on
    the way.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_RESULT

    def spend(self, size: int) -> None:
        """Count ``size`` bytes; raises ``EncodeError`` past the limit."""
        self._left -= size
        if self._left < 0:
            raise EncodeError(f"a result takes more than {MAX_RESULT} bytes")
