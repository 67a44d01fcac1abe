"""``ReceiptedAnswer``: adds a receipt to the answer of an ASGI application.

A header goes before the body, so the answer is held back until the body is whole. An answer that is
longer than ``receipt.MAX_ANSWER``, a stream of events, and a file that the server sends by itself
go on at once and get no receipt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from agentguard.proof import receipt

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Sign = Callable[[int, list[tuple[str, str]], bytes], str]

_LOGGER: Final = logging.getLogger("agentguard")
_NAME: Final = receipt.HEADER.lower().encode()


class ReceiptedAnswer:
    """Sends the messages of one answer, with a receipt that ``sign`` makes.

    ``sign`` takes the status, the headers and the body, and returns the receipt. Where ``sign``
    fails, the answer goes without a receipt, and the reason is in the server's log.
    """

    def __init__(self, send: Send, sign: Sign) -> None:
        self._send = send
        self._sign = sign
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Send a message of the answer, or hold the message back."""
        if message["type"] == "http.response.start" and not _is_stream(message):
            self._start = message
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._hold(message)
        else:
            await self._let_go()  # a server may send a file by itself, of which nobody has a digest
            await self._send(message)

    async def _let_go(self) -> None:
        """Send what is held back, without a receipt."""
        start, self._start = self._start, None
        if start is not None:
            await self._send(start)

    async def _hold(self, message: Message) -> None:
        self._body += message.get("body", b"")
        has_more, start = message.get("more_body", False), self._start
        if start is None or (has_more and len(self._body) <= receipt.MAX_ANSWER):
            return
        self._start = None
        if not has_more and len(self._body) <= receipt.MAX_ANSWER:
            start = await self._signed(start, bytes(self._body))
        await self._send(start)
        body = bytes(self._body)
        await self._send({"type": "http.response.body", "body": body, "more_body": has_more})

    async def _signed(self, start: Message, body: bytes) -> Message:
        others = [header for header in start.get("headers", ()) if header[0].lower() != _NAME]
        try:
            listed = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in others]
            token = await asyncio.to_thread(self._sign, start["status"], listed, body)
        except Exception:
            _LOGGER.exception("an answer has no receipt, because the signer failed")
            return {**start, "headers": others}
        return {**start, "headers": [*others, (_NAME, token.encode())]}


def _is_stream(start: Message) -> bool:
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/event-stream") for kind in kinds)
