"""The set of the names of journalled calls that have run or may have run.

The names are sorted and cut to ``NAME_SIZE`` bytes each, so that the set of a long log stays small.
"""

from __future__ import annotations

from typing import Final, NamedTuple

NAME_SIZE: Final = 12
"""The number of bytes of a journalled call's name that the set holds."""


class JournalNames(NamedTuple):
    """An immutable set of names; ``sorted`` holds them in order, ``NAME_SIZE`` bytes each.

    ``added`` are further names, which ``encode`` merges with ``sorted``.
    """

    sorted: bytes = b""
    added: frozenset[bytes] = frozenset()

    def __contains__(self, name: object) -> bool:
        """Return whether the set has this name, or another name with the same first bytes."""
        if not isinstance(name, bytes):
            return False
        prefix = name[:NAME_SIZE]
        at = self._position(prefix, 0)
        return prefix in self.added or self.sorted[at : at + NAME_SIZE] == prefix

    def encode(self) -> bytes:
        """Return all names in order, ``NAME_SIZE`` bytes each."""
        parts: list[bytes] = []
        end = 0
        for name in sorted(self.added):
            at = self._position(name, end)
            parts.append(self.sorted[end:at])
            if self.sorted[at : at + NAME_SIZE] != name:
                parts.append(name)
            end = at
        return b"".join((*parts, self.sorted[end:]))

    def _position(self, name: bytes, low: int) -> int:
        """Return the offset of a name in ``sorted``, or the offset at which to insert the name."""
        first, last = low // NAME_SIZE, len(self.sorted) // NAME_SIZE
        while first < last:
            middle = (first + last) // 2
            if self.sorted[middle * NAME_SIZE : (middle + 1) * NAME_SIZE] < name:
                first = middle + 1
            else:
                last = middle
        return first * NAME_SIZE
