"""Values that share their parts: a few bytes of YAML that are gigabytes when they are written down.

What must become too large is given up while it is encoded. That shows in how often the shared part
is read, and in the memory that is taken.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from agentguard import Denied
from agentguard.adapters import Arguments
from agentguard.errors import ArgumentsError

LIMIT = 256 * 1024


@dataclass
class Pair:
    left: Any
    right: Any


@dataclass
class Shared:
    """Counts how often it is written down; with far more than there is room for, it is over."""

    x: int = 1
    reads: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            Shared.reads += 1
            assert Shared.reads < LIMIT
        return super().__getattribute__(name)


def nested(make: Callable[[Any], Any], levels: int = 40) -> Any:
    """A value whose every level holds the next one twice."""
    value: Any = Shared()
    for _ in range(levels):
        value = make(value)
    return value


LARGE = {
    "lists": nested(lambda x: [x, x]),
    "tuples": nested(lambda x: (x, x), 25),
    "dictionaries": nested(lambda x: {"a": x, "b": x}),
    "dataclasses": nested(lambda x: Pair(x, x), 25),
}
LONG = {
    "text": [["x" * 200_000] * 1_000],
    "key": [{"x" * 200_000: 1}] * 1_000,
    "bytes": [b"x" * 150_000] * 1_000,
    "number": [1 << 1_000_000] * 1_000,
    "nothing": [[None] * 100_000] * 200,
}


@pytest.fixture(autouse=True)
def _unread():
    Shared.reads = 0


@pytest.fixture
def peak():
    """Tells how many bytes were taken at once since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def refused(guard, value) -> None:
    ran: list[Any] = []
    with pytest.raises(Denied) as denied:
        guard.new_agent("a").call(guard.tool(ran.append), value)
    assert denied.value.code == "arguments.too_large"
    assert ran == []


def recorded_without_bytes(guard, seen, value) -> None:
    assert guard.new_agent("a").call(guard.tool(name="load")(lambda: value)) is value
    (outcome,) = seen(guard).outcomes
    assert (outcome["status"], outcome["result"]) == ("ok", None)
    assert Shared.reads < LIMIT


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_arguments_that_share_parts_are_refused_before_they_are_written_out(guard, value):
    refused(guard, value)


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_a_result_that_shares_parts_is_on_record_without_its_bytes(guard, seen, value):
    recorded_without_bytes(guard, seen, value)


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_what_is_long_and_shared_takes_no_memory(guard, seen, peak, value):
    refused(guard, value)
    recorded_without_bytes(guard, seen, value)
    assert peak() < 64 * 1024**2


def test_what_is_shared_and_small_is_bound_as_if_it_were_not(guard, ran):
    shared = nested(lambda x: [x, x], 8)
    guard.new_agent("a").call(guard.tool(ran.append), shared)
    assert ran == [shared]
    same = nested(lambda x: [x, x if x == Shared() else list(x)], 8)
    assert Arguments.of({"x": shared}).encoded == Arguments.of({"x": same}).encoded


@pytest.mark.parametrize(
    ("full", "one"),
    [
        (["x"] * 65_534, "x"),
        ([None] * 52_427, None),
        ([1] * 131_068, 1),
        ({"k": "x" * 262_127}, "x"),
        ({f"{n:059}": 1 for n in range(4_095)}, 1),
        ([b"x" * 196_590], b""),
    ],
    ids=["texts", "nulls", "numbers", "a text", "keys", "bytes"],
)
def test_the_limit_is_that_of_the_bytes_and_not_less(full, one):
    size = len(Arguments.of({"x": full}).encoded)
    assert LIMIT - 128 < size <= LIMIT
    more = [*full, *[one] * 64] if isinstance(full, list) else {**full, "y" * 128: one}
    with pytest.raises(ArgumentsError) as caught:
        Arguments.of({"x": more})
    assert caught.value.code == "arguments.too_large"
