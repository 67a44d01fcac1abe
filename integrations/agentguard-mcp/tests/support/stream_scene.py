"""Streams of a gateway over HTTP, whose connections a test breaks and resumes by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from gateway_scene import LIMIT
from http_scene import TYPES, Caller, call_of


@dataclass
class Event:
    """One event of a stream: its id and its message, each None where the event has none."""

    identifier: str | None = None
    message: dict[str, Any] | None = None
    retry: str | None = None


@dataclass
class Events:
    """The events of one answer, as they come."""

    answer: httpx.Response
    lines: AsyncIterator[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.answer.aiter_lines()

    async def next(self) -> Event | None:
        """Return the next event, None at the end of the answer."""
        event = Event()
        async with asyncio.timeout(LIMIT):
            async for line in self.lines:
                name, _, value = line.partition(": ")
                if name == "id":
                    event.identifier = value
                elif name == "retry":
                    event.retry = value
                elif name == "data" and value:
                    event.message = json.loads(value)
                elif not line and event != Event():
                    return event
        return None

    async def rest(self) -> list[dict[str, Any]]:
        """Return the messages up to the end of the answer."""
        found = []
        while (event := await self.next()) is not None:
            if event.message is not None:
                found.append(event.message)
        return found


@asynccontextmanager
async def asked(client: Caller, message: dict[str, Any]) -> AsyncIterator[Events]:
    """Send a request and read its answer; the connection breaks at the end of the block."""
    headers = {**TYPES, **client.headers}
    async with client.http.stream("POST", client.url, json=message, headers=headers) as answer:
        yield Events(answer)


@asynccontextmanager
async def listening(client: Caller, after: str | None = None) -> AsyncIterator[Events]:
    """Read what follows an event, or the stream of messages that belong to no request."""
    headers = {**client.headers, "accept": "text/event-stream"}
    if after is not None:
        headers["last-event-id"] = after
    async with client.http.stream("GET", client.url, headers=headers) as answer:
        yield Events(answer)


async def fetched(client: Caller, after: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the status of a stream that is resumed, and all messages up to its end."""
    async with listening(client, after) as events:
        if events.answer.status_code != httpx.codes.OK:
            return events.answer.status_code, []
        return events.answer.status_code, await events.rest()


async def broken(client: Caller, message: dict[str, Any], messages: int = 0) -> str:
    """Send a request, break the connection after so many messages, and return the last id."""
    async with asked(client, message) as events:
        while True:
            event = await events.next()
            assert event is not None
            assert event.identifier is not None
            messages -= event.message is not None
            if messages <= 0:
                return event.identifier


async def question_of(client: Caller) -> Event:
    """Call the server's tool ``ask``, break the connection at its question, and return this."""
    async with asked(client, call_of("ask", "who?")) as events:
        await events.next()
        question = await events.next()
        assert question is not None
        return question


def reply_to(question: dict[str, Any], text: str = "me") -> dict[str, Any]:
    """Return the client's answer to a question of the server's tool ``ask``."""
    return {"jsonrpc": "2.0", "id": question["id"], "result": {"said": text}}
