"""What is kept of a session's streams: which messages follow an event, and for how long."""

from __future__ import annotations

import pytest

from agentguard_mcp.gateway.http.replay import (
    GRACE,
    MAX_KEPT,
    MAX_STREAMS,
    GoneError,
    ReplayStore,
)
from agentguard_mcp.gateway.http.stream import MAX_SENT, Item, Stream

KIB = 1 << 10


def stream(*lines: bytes, sent: int = 0) -> Stream:
    made = Stream(is_resumable=True)
    for line in lines:
        made.put(Item(line))
    for number in range(1, sent + 1):
        made.note_sent(number)
    return made


def store(*streams: Stream) -> ReplayStore:
    made = ReplayStore()
    for one in streams:
        made.add(one)
    return made


def lines(found: Stream) -> list[bytes]:
    numbers = range(1, found.newest + 1)
    return [item.line for number in numbers if (item := found.get(number)) is not None]


def test_an_event_leads_to_its_stream_and_its_place():
    first, second = stream(b"a", b"b", sent=2), stream(b"c", sent=1)
    kept = store(first, second)
    assert kept.find(first.event(0)) == (first, 0)
    assert kept.find(first.event(2)) == (first, 2)
    assert kept.find(second.event(1)) == (second, 1)
    for unknown in (first.event(3), second.event(2), stream(b"a", sent=1).event(1), "", "1-1"):
        with pytest.raises(GoneError):
            kept.find(unknown)


def test_an_event_whose_message_was_not_sent_leads_nowhere():
    one = stream(b"a", b"b", sent=1)
    kept = store(one)
    assert kept.find(one.event(1)) == (one, 1)
    with pytest.raises(GoneError):
        kept.find(one.event(2))


def test_messages_that_were_sent_are_dropped_beyond_a_bound_and_others_are_not():
    one = stream(*[b"x" * KIB] * 2_000, sent=1_500)
    assert one.sent_size == MAX_SENT
    kept = store(one)
    assert kept.find(one.event(1_500 - MAX_SENT // KIB)) == (one, 1_500 - MAX_SENT // KIB)
    with pytest.raises(GoneError):
        kept.find(one.event(1_500 - MAX_SENT // KIB - 1))
    assert one.size == MAX_SENT + 500 * KIB
    large = stream(b"x" * 2 * MAX_SENT, sent=1)
    assert lines(large) == [b"x" * 2 * MAX_SENT]


def test_a_message_that_is_sent_once_more_is_not_dropped_before():
    one = stream(*[b"x" * KIB] * 10, sent=10)
    one.rewind(4)
    assert one.sent_size == 4 * KIB
    one.drop_sent(0)
    assert [one.get(number) is not None for number in (3, 4, 5)] == [False, True, True]
    assert one.is_followed(10)


def test_what_was_delivered_is_kept_for_a_while_and_what_nobody_got_longer():
    delivered, unread = stream(b"a", sent=1), stream(b"b")
    kept = store(delivered, unread)
    kept.deliver(delivered, 100.0)
    assert kept.trim(100.0 + GRACE - 1) == []
    assert kept.trim(100.0 + GRACE) == [delivered]
    assert kept.trim(100.0 + 1_000 * GRACE) == []
    assert kept.find(unread.event(0)) == (unread, 0)


def test_what_was_delivered_is_dropped_first_then_the_oldest():
    half = b"x" * (MAX_KEPT // 2)
    unread, delivered, newer = stream(half), stream(half, sent=1), stream(half)
    kept = store(unread, delivered)
    kept.deliver(delivered, 0.0)
    assert kept.trim(0.0) == []
    kept.add(newer)
    assert kept.trim(0.0) == [delivered]
    kept.add(stream(b"x"))
    assert kept.trim(0.0) == [unread]


def test_a_stream_that_a_client_reads_stays_and_loses_what_was_sent():
    read = stream(*[b"x" * KIB] * 3, sent=2)
    read.read(2)
    full = stream(b"x" * (MAX_KEPT - KIB))
    kept = store(read, full)
    assert kept.trim(0.0) == []
    assert lines(read) == [b"x" * KIB] * 2
    assert kept.find(read.event(2)) == (read, 2)
    with pytest.raises(GoneError):
        kept.find(read.event(0))


def test_too_many_streams_without_a_client_are_dropped():
    many = [stream(b"a") for _ in range(MAX_STREAMS + 2)]
    read = stream(b"a")
    read.read()
    kept = store(*many, read)
    assert kept.trim(0.0) == many[:2]
    assert kept.trim(0.0) == []


def test_a_stream_that_a_client_asks_for_again_counts_as_not_delivered():
    again, other = stream(b"a", sent=1), stream(b"b", sent=1)
    kept = store(again, other)
    for one in (again, other):
        kept.deliver(one, 0.0)
    assert kept.find(again.event(0)) == (again, 0)
    assert kept.trim(GRACE) == [other]
    kept.deliver(again, GRACE)
    assert kept.trim(2 * GRACE - 1) == []
    assert kept.trim(2 * GRACE) == [again]


def test_a_stream_that_is_not_kept_is_not_delivered():
    stranger = stream(b"a", sent=1)
    kept = store()
    kept.deliver(stranger, 0.0)
    with pytest.raises(GoneError):
        kept.find(stranger.event(1))
    assert kept.trim(GRACE) == []


def test_many_delivered_streams_cost_a_call_nothing():
    looked: list[str] = []

    class Watched(Stream):
        @property
        def kept_size(self) -> int:
            looked.append(self.name)
            return super().kept_size

    kept = ReplayStore()
    for number in range(MAX_STREAMS):
        one = Watched()
        one.put(Item(b"a"))
        kept.add(one)
        kept.deliver(one, float(number))
    assert kept.trim(0.0) == []
    assert looked == []
