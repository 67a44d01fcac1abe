"""On which stream a message of the server goes, where clients come and go."""

from __future__ import annotations

from agentguard_mcp.gateway.http.streams import Streams

NOTICE = {"method": "notifications/message", "params": {"data": "a"}}


def request(identifier, method="tools/call"):
    return {"id": identifier, "method": method, "params": {}}


def reading(streams, identifier):
    """Register a request whose client gets ids of events; return the reader."""
    _, reader = streams.register(request(identifier))
    streams.keep(reader.stream)
    return reader


def lines(reader):
    """Return the messages that are there."""
    found = []
    while (event := reader.take()) is not None:
        if event.line:
            found.append(event.line)
    return found


async def test_a_message_of_no_request_goes_where_a_client_reads():
    streams = Streams(is_shared=False)
    first, second = reading(streams, 1), reading(streams, 2)
    streams.release(second, is_gone=True)
    streams.send(NOTICE)
    assert len(lines(first)) == 1
    assert lines(streams.resume(second.stream.event(0))) == []


async def test_a_message_of_no_request_waits_for_a_client_that_may_come_again():
    streams = Streams(is_shared=False)
    reader = reading(streams, 1)
    streams.release(reader, is_gone=True)
    streams.send(NOTICE)
    assert len(lines(streams.resume(reader.stream.event(0)))) == 1
    listening = streams.listen()
    assert lines(listening) == []


async def test_what_a_client_reads_once_more_is_not_dropped_before():
    streams = Streams(is_shared=False)
    reader = reading(streams, 1)
    for _ in range(5):
        streams.send(NOTICE)
    assert len(lines(reader)) == 5
    again = streams.resume(reader.stream.event(2))
    again.stream.drop_sent(0)  # as where a session keeps too much
    assert len(lines(again)) == 3


async def test_nothing_is_kept_of_a_request_whose_client_knows_no_event():
    streams = Streams(is_shared=False)
    _, reader = streams.register(request(1))
    streams.send(NOTICE)
    streams.release(reader, is_gone=True)
    assert reader.stream.size == 0
    assert (streams.pending, streams.is_busy) == (1, True)
    streams.send({"id": 1, "result": {}})
    assert reader.stream.size == 0
    assert (streams.pending, streams.is_busy) == (0, False)


async def test_a_request_of_revision_2026_07_28_ends_with_its_connection():
    streams = Streams(is_shared=True)
    sent, reader = streams.register(request(1))
    streams.keep(reader.stream)
    assert streams.release(reader, is_gone=True) == sent["id"]
    assert streams.pending == 0
