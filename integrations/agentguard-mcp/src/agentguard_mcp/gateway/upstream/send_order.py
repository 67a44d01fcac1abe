"""``SendOrder``: keeps messages in order that go out over connections of their own.

Over a pipe, a server reads messages in the order in which they were written. Over HTTP each message
has a request of its own, and a later one can overtake an earlier one. Only notices and responses
have an order: a notice (``notifications/cancelled``) speaks of what was sent before, and a request
may need a notice before it (``notifications/initialized``). Requests among themselves have none.
"""

from __future__ import annotations

import asyncio
from typing import Final

LONGEST_TURN: Final = 10.0
"""Seconds for which a message holds up later ones: a server that answers no notice stops none."""


class Turn:
    """The place of one message in the order.

    Wait for ``come`` before the message is sent, and call ``end`` once the message has gone out.
    """

    def __init__(self, before: tuple[Turn, ...], *, is_request: bool) -> None:
        self.is_request = is_request
        self._before = before
        self._ended = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether the message has gone out."""
        return self._ended.is_set()

    async def come(self) -> None:
        """Wait until the messages before this one have gone out, at most ``LONGEST_TURN``."""
        for turn in self._before:
            await turn._ended.wait()  # noqa: SLF001  a turn of the same order
        self._before = ()
        asyncio.get_running_loop().call_later(LONGEST_TURN, self.end)

    def end(self) -> None:
        """Note that the message has gone out, or will never."""
        self._ended.set()


class SendOrder:
    """Gives each message its turn, in the order of the calls of ``turn``."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def turn(self, *, is_request: bool) -> Turn:
        """Return the turn of the next message.

        A request comes after the notices and responses before it. Another message comes after all
        messages before it.
        """
        self._turns = [one for one in self._turns if not one.has_ended]
        before = tuple(one for one in self._turns if not (is_request and one.is_request))
        turn = Turn(before, is_request=is_request)
        self._turns.append(turn)
        return turn
