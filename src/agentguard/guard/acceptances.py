"""``Acceptances``: the delegations that an agent instance has accepted, as many as it has room for.

Whoever drops an acceptance loses time and no right: the next call accepts the delegation anew.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from agentguard.delegation.access_token import AccessToken
from agentguard.flow.authority import Authority

MAX_ACCEPTANCES: Final = 4096
"""The most accepted delegations that an instance keeps; the oldest is dropped for a newer one."""

_ACCEPTANCE: Final = 2 << 10
_TIMES: Final = 4
"""An acceptance takes so many bytes, and so many times the length of its tokens, about."""

Key = tuple[str, tuple[str, ...]]
"""The key of a delegation (``Delegation.key``)."""


class Room(Protocol):
    """The memory that a guard server has for the instances of a client."""

    def try_take(self, size: int) -> bool:
        """Note so many bytes, if there is room for them; return whether they were noted."""

    def give(self, size: int) -> None:
        """Note that so many bytes are not held any more."""


class Acceptance(NamedTuple):
    """The authority and the access token that an instance has from an accepted delegation.

    ``renew_at`` is the time to mint a new token, in seconds since the epoch.
    """

    authority: Authority
    token: AccessToken
    renew_at: int

    @property
    def size(self) -> int:
        """The length of the token and of the tokens of its chain, in characters."""
        chain = self.token.chain
        parts = (*(hop.token for hop in chain.hops), *(one.token for one in chain.credentials))
        return len(self.token.token) + sum(map(len, parts))


class Acceptances:
    """Acceptances by the keys of their delegations; the caller has a lock for all but ``get``.

    ``room`` is what they take their memory from; None counts no bytes.
    """

    def __init__(self, room: Room | None) -> None:
        self._room = room
        self._kept: dict[Key, tuple[Acceptance, int]] = {}
        self._has_ended = False

    def get(self, key: Key) -> Acceptance | None:
        """Return the acceptance of a delegation, None if there is none."""
        kept = self._kept.get(key)
        return None if kept is None else kept[0]

    def keep(self, key: Key, acceptance: Acceptance) -> None:
        """Keep an acceptance in the place of the oldest where need be, or not at all."""
        self.drop(key)
        size = _ACCEPTANCE + _TIMES * acceptance.size
        while len(self._kept) >= MAX_ACCEPTANCES or not self._has_taken(size):
            if not self._kept:
                return
            self.drop(next(iter(self._kept)))
        self._kept[key] = acceptance, size

    def drop(self, key: Key) -> None:
        """Drop the acceptance of a delegation, if there is one."""
        dropped = self._kept.pop(key, None)
        if dropped is not None and self._room is not None:
            self._room.give(dropped[1])

    def clear(self) -> None:
        """Drop all acceptances."""
        for key in list(self._kept):
            self.drop(key)

    def end(self) -> None:
        """Drop all acceptances, and keep no further one."""
        self._has_ended = True
        self.clear()

    def _has_taken(self, size: int) -> bool:
        if self._has_ended:
            return False
        return self._room is None or self._room.try_take(size)
