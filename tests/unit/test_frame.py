"""Frames: what is written reads back, and what is no frame is refused."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.errors import DecodeError, EncodeError
from agentguard.wire import frame
from agentguard.wire.frame import Frame
from agentguard.wire.stream import EndedError, Stream

VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
HEADERS = st.dictionaries(st.text().filter(lambda name: name != "blobs"), VALUES)
BLOBS = st.lists(st.binary(max_size=64), max_size=4)


def read(data: bytes) -> Frame:
    size, header = frame.rest_of(data[: frame.PREFIX])
    assert size == len(data) - frame.PREFIX
    return frame.decode(data[frame.PREFIX :], header)


@given(HEADERS, BLOBS)
def test_a_frame_reads_back(header, blobs):
    assert read(frame.encode(Frame(header, blobs))) == Frame(header, blobs)


@given(st.binary(max_size=200))
def test_garbage_is_a_frame_or_a_decode_error(data):
    with suppress(DecodeError):
        size, header = frame.rest_of(data[:8].ljust(8, b"\0"))
        frame.decode(data[8 : 8 + size], header)


@given(HEADERS, BLOBS, st.data())
def test_a_changed_byte_is_another_frame_or_none(header, blobs, data):
    encoded = bytearray(frame.encode(Frame(header, blobs)))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    with suppress(DecodeError):
        size, length = frame.rest_of(bytes(encoded[:8]))
        is_whole = size == len(encoded) - frame.PREFIX  # else a reader waits, or reads on
        changed = frame.decode(bytes(encoded[8:]), length)
        assert not is_whole or changed != Frame(header, blobs)


@pytest.mark.parametrize(
    ("header", "blobs"),
    [
        ({"x": "a" * (frame.MAX_HEADER + 1)}, ()),
        ({}, [b"x" * frame.MAX_FRAME]),
        ({}, [b""] * (frame.MAX_BLOBS + 1)),
        ({"x": object()}, ()),
        ({"x": "\ud800"}, ()),
    ],
)
def test_what_does_not_fit_is_not_sent(header, blobs):
    with pytest.raises(EncodeError) as caught:
        frame.encode(Frame(header, blobs))
    assert caught.value.code in {"frame.too_large", "frame.malformed"}


def test_a_longer_frame_than_the_limit_is_refused_before_it_is_read():
    with pytest.raises(DecodeError) as caught:
        frame.rest_of((frame.MAX_FRAME + 1).to_bytes(4, "big") + (2).to_bytes(4, "big"))
    assert caught.value.code == "frame.too_large"


@pytest.fixture
def streams():
    ends = socket.socketpair()
    made = [Stream(end) for end in ends]
    yield made
    for stream in made:
        stream.close()


def test_frames_come_one_after_another(streams):
    here, there = streams
    sent = [Frame({"n": number}, [b"x" * number]) for number in range(3)]
    for one in sent:
        here.write(one)
    assert [there.read() for _ in sent] == sent
    here.close()
    with pytest.raises(EndedError):
        there.read()


def test_a_connection_that_ends_inside_a_frame_has_sent_no_frame():
    left, right = socket.socketpair()
    there = Stream(right)
    left.sendall(frame.encode(Frame({"a": 1}))[:-1])
    left.close()
    with pytest.raises(DecodeError):
        there.read()
    there.close()
