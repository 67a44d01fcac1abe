"""What tools return, kept and read again: the same value of the same types, or nothing at all."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from collections import Counter, OrderedDict, deque
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from ipaddress import IPv4Interface, IPv6Address, ip_network
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.types import Command, Overwrite, Send
from pydantic import BaseModel, ConfigDict, PrivateAttr, field_validator

from agentguard.errors import DecodeError, EncodeError
from agentguard_langchain.codec import ToolResults

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Rights(Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Money:
    cents: int
    of: Colour = Colour.RED


@dataclasses.dataclass
class Tree:
    name: str
    children: list[Tree] = dataclasses.field(default_factory=list)
    hidden: Any = dataclasses.field(default=None, compare=False)


class Bill(BaseModel):
    model_config = ConfigDict(extra="allow")
    lines: list[Money]
    total: Decimal = Decimal(0)
    note: Any = None

    @field_validator("total")
    @classmethod
    def _double(cls, value: Decimal) -> Decimal:
        return 2 * value


class Secretive(BaseModel):
    x: int
    _hidden: int = PrivateAttr(default=1)


CODEC = ToolResults(tuple[Bill, Tree | None, list[Pair], dict[str, Rights], Level, Secretive])
PLAIN = ToolResults()


def shape(value: Any) -> Any:
    """A value with all its types, to compare."""
    kind = type(value).__qualname__
    if isinstance(value, dict):
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(repr, map(shape, value)))
    if isinstance(value, (list, tuple, deque)):
        return kind, [shape(item) for item in value], getattr(value, "maxlen", None)
    parts = parts_of(value)
    return (kind, *map(shape, parts)) if parts else (kind, repr(value))


def parts_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, BaseModel):
        return vars(value), value.__pydantic_extra__, value.__pydantic_fields_set__
    if dataclasses.is_dataclass(value):
        return tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    return (value.node, value.arg, value.timeout) if isinstance(value, Send) else ()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.decimals(),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.datetimes(timezones=st.one_of(st.none(), st.timezones(), st.just(UTC))),
    st.times(),
    st.ip_addresses(),
    st.sampled_from([Colour.RED, Level.LOW, Rights.READ, Path("a/b"), PureWindowsPath("c:\\x")]),
)


def _grown(values: Any) -> Any:
    hashable = SCALARS.filter(
        lambda value: not isinstance(value, (float, Decimal))
    )  # NaN has no place
    return st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=3),
        st.dictionaries(hashable, values, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.lists(values, max_size=3).map(lambda given: deque(given, maxlen=5)),
        st.builds(Pair, values),
        st.builds(Tree, st.text("ab"), hidden=values),
        st.builds(Bill, lines=st.just([Money(1)]), note=values, more=values),
        st.builds(lambda made: ToolMessage("x", tool_call_id="c", artifact=made), values),
        st.builds(lambda made: Command(update={"a": made}, goto=[Send("n", made)]), values),
    )


@settings(max_examples=2000 if FULL else 25, deadline=None)
@given(st.recursive(SCALARS, _grown, max_leaves=12))
def test_what_is_written_is_read_again_as_it_was(value):
    assert shape(CODEC.loads(CODEC.dumps(value))) == shape(value)


@settings(max_examples=2000 if FULL else 25, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
        lambda values: st.lists(values) | st.dictionaries(st.text(), values),
        max_leaves=9,
    ),
    st.binary(),
)
def test_whatever_is_read_is_read_or_refused(tree, data):
    names = ["model", "dataclass", "enum", "namedtuple", "builtins:eval", "int", "dict", "deque"]
    for junk in (data, orjson.dumps(tree), *(orjson.dumps([name, tree]) for name in names)):
        with suppress(DecodeError):
            PLAIN.loads(junk)


RETURNED: list[Any] = [
    "text",
    b"bytes",
    bytearray(b"more"),
    2**80,
    -(2**63),
    (1, (2, [3, (4,)])),
    ("content", {"artifact": (1, 2), b"key": {3}}),
    {1: "a", "1": "c", (True,): "d"},
    ToolMessage([{"type": "text", "text": "a"}], tool_call_id="1", artifact=(1, b"2"), name="n"),
    AIMessage("a", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "2"}], foo={"extra": 1}),
    AIMessageChunk("a"),
    [HumanMessage("a", id="7"), SystemMessage("b"), RemoveMessage(id="7")],
    HumanMessage("a").text,
    Document("a", metadata={"page": 3}),
    Command(goto="next", update={"messages": [ToolMessage("x", tool_call_id="1")]}),
    Command(graph=Command.PARENT, goto=[Send("n", {"x": (1,)}), Send("m", None, timeout=3.5)]),
    [Command(update=[("a", 1)]), ToolMessage("x", tool_call_id="1", status="error")],
    Command(update={"items": Overwrite([1])}),
    Path("/x"),
    PurePosixPath("x"),
    Decimal("1.10"),
    datetime(2026, 1, 2, 3, 4, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2), "here")),
    [date(2026, 1, 2), time(1, 2, tzinfo=UTC), timedelta(days=-1)],
    [UUID(int=7), IPv4Interface("10.0.0.1/8"), IPv6Address("fe80::1%eth0"), ip_network("::/0")],
    [{1, 2}, frozenset({"a"}), deque([1], maxlen=3), deque([1])],
]


@pytest.mark.parametrize("value", RETURNED, ids=lambda value: type(value).__name__)
def test_what_tools_return(value):
    read = PLAIN.loads(PLAIN.dumps(value))
    assert shape(read) == shape(value)
    assert read == value


DECLARED = [
    Bill(lines=[Money(5, Colour.BLUE)], total=Decimal("1.5"), more=(1, 2)),
    Tree("a", [Tree("b", hidden=(1,))]),
    [Pair((1,)), Level.LOW, Rights.READ],
]


@pytest.mark.parametrize("value", DECLARED, ids=lambda value: type(value).__name__)
def test_classes_are_read_where_the_tool_names_them(value):
    read = CODEC.loads(CODEC.dumps(value))
    assert shape(read) == shape(value)
    assert read == value
    with pytest.raises(EncodeError, match="unless the tool's annotation names it"):
        PLAIN.dumps(value)


class Bytes(bytes):
    """Another type of what is known."""


def _endless() -> Any:
    made: list[Any] = []
    made.append(made)
    return made


def _attributed() -> Any:
    made = Tree("a")
    made.more = 1  # type: ignore[attr-defined]
    return made


def _shared() -> Any:
    made: Any = "x" * 1000
    for _ in range(60):
        made = [made, made]
    return made


NOT_KEPT: list[Any] = [
    object(),
    lambda: None,
    (number for number in [1]),
    Exception("no"),
    OrderedDict(a=1),
    Counter("a"),
    Bytes(b"a"),
    "\ud800",
    {"\ud800": 1},
    _endless(),
    _shared(),
    _attributed(),
    Rights.READ | Rights.WRITE,
    Secretive(x=1),
    {"deep": [ToolMessage("x", tool_call_id="1", artifact=object())]},
    b"a" * (9 << 20),
    Money,
]


@pytest.mark.parametrize("number", range(len(NOT_KEPT)))
def test_what_would_not_come_back_is_not_written(number):
    with pytest.raises(EncodeError):
        CODEC.dumps(NOT_KEPT[number])


class Trap(BaseModel):
    """Does something when it is made, and when it is unpickled."""

    x: int

    def __reduce__(self):
        return os.abort, ()


def test_no_class_is_found_by_its_name_in_the_bytes():
    made = ToolResults(Trap)
    data = made.dumps(Trap(x=1))
    assert made.loads(data).x == 1
    with pytest.raises(DecodeError):
        PLAIN.loads(data)
    for name in ("builtins:eval", "os:system", "pathlib:PosixPath", "nowhere:Nothing"):
        for tag in ("model", "dataclass", "enum", "namedtuple"):
            with pytest.raises(DecodeError):
                made.loads(orjson.dumps([tag, name, {"x": 1}, None, []]))
    with pytest.raises(DecodeError):
        made.loads(pickle.dumps(1))


def test_a_class_that_has_changed_since_is_not_read():
    data = CODEC.dumps(Tree("a"))

    @dataclasses.dataclass
    class Other:
        name: str

    Other.__module__, Other.__qualname__ = Tree.__module__, Tree.__qualname__
    with pytest.raises(DecodeError):
        ToolResults(Other).loads(data)
    with pytest.raises(EncodeError):  # of the same name, and not the class that is named
        ToolResults(Other).dumps(Tree("a"))


def test_a_validator_does_not_see_a_result_again():
    bill = Bill(lines=[], total=Decimal(1))
    read = CODEC.loads(CODEC.dumps(bill))
    assert read.total == bill.total == Decimal(2)
    assert copy.deepcopy(read) == bill


def test_a_field_for_type_checkers_alone_leaves_its_class_unknown():
    class Half(BaseModel):
        x: int

    half = Half
    half.__annotations__ = {"x": "Nowhere"}
    assert shape(ToolResults(half).loads(ToolResults(half).dumps(Half(x=1)))) == shape(Half(x=1))
