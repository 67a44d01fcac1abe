"""How arguments are bound and written: the table, row by row, and what it refuses.

That equal bytes mean equal arguments is a property (``properties/test_arguments.py``); here stand
the exact bytes, which must not change: commitments of old records depend on them.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections import OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.adapters import Arguments
from agentguard.call.arguments import encode_result
from agentguard.call.binding import binder
from agentguard.errors import ArgumentsError


class Colour(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    x: int = pydantic.Field(alias="X")
    _p: int = pydantic.PrivateAttr(default=3)


class Unset(pydantic.BaseModel):
    x: int = 1
    _p: int = pydantic.PrivateAttr()


class Named(NamedTuple):
    x: int
    y: Any = None


Made = namedtuple("Made", "x")  # noqa: PYI024  both kinds are bound


class NamedPlus(Named):
    """A named tuple with state of its own beside the fields."""


class LooksNamed(tuple):  # noqa: SLOT001
    _fields = ("x",)


HERE = __name__


def encoded(value: object) -> str:
    text = Arguments.of({"v": value}).encoded.decode()
    return text.removeprefix('{"v":').removesuffix("}")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (5, "5"),
        (2**53 - 1, "9007199254740991"),
        (2**53, '{"$int":"9007199254740992"}'),
        (-(2**53), '{"$int":"-9007199254740992"}'),
        (1.5, "1.5"),
        (1.0, "1"),
        (1e17, "100000000000000000"),
        ("é", '"é"'),
        ("$int", '"$int"'),
        (b"\x00\xff", '{"$bytes":"AP8"}'),
        (Decimal("1.50"), '{"$decimal":"1.50"}'),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), '{"$datetime":"2026-01-02T03:00:00+00:00"}'),
        (datetime.fromisoformat("2026-01-02T03:00"), '{"$datetime":"2026-01-02T03:00:00"}'),
        (
            pydantic.TypeAdapter(datetime).validate_python("2026-01-02T03:00:00+09:00"),
            '{"$datetime":"2026-01-02T03:00:00+09:00"}',
        ),
        (
            datetime(2026, 10, 25, 1, 30, fold=1, tzinfo=ZoneInfo("Europe/London")),
            '{"$datetime":"2026-10-25T01:30:00+00:00","fold":1,"zone":"Europe/London"}',
        ),
        (time(1, 30, fold=1), '{"$time":"01:30:00","fold":1}'),
        (date(2026, 1, 2), '{"$date":"2026-01-02"}'),
        (time(3, 4, 5, 6), '{"$time":"03:04:05.000006"}'),
        (timedelta(days=-1, microseconds=5), '{"$timedelta":[-1,0,5]}'),
        (UUID(int=5), '{"$uuid":"00000000-0000-0000-0000-000000000005"}'),
        (Path("a/b"), '{"$path":"a/b"}'),
        (PurePosixPath("a\\b"), '{"$path":"a\\\\b"}'),
        (PureWindowsPath("a\\b"), '{"$windows_path":"a\\\\b"}'),
        ([1, [2]], "[1,[2]]"),
        ((1, 2), '{"$tuple":[1,2]}'),
        ({2, 10}, '{"$set":[10,2]}'),
        (frozenset({"b", "a"}), '{"$set":["a","b"]}'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ({"$int": "5"}, '{"$$int":"5"}'),
        ({"$$": 1}, '{"$$$":1}'),
        ({1: "x"}, '{"$dict":[[1,"x"]]}'),
        (Colour.RED, f'{{"$enum":"{HERE}:Colour","name":"RED","value":"r"}}'),
        (Level.HIGH, f'{{"$enum":"{HERE}:Level","name":"HIGH","value":2}}'),
        (Point(1), f'{{"$object":"{HERE}:Point","fields":{{"x":1,"y":null}}}}'),
        (
            Model.model_validate({"X": 1, "x": 2}),
            f'{{"$object":"{HERE}:Model","extra":{{"x":2}},"fields":{{"x":1}},"private":{{"_p":3}}}}',
        ),
        (Unset(x=1), f'{{"$object":"{HERE}:Unset","fields":{{"x":1}}}}'),
        (Unset(), f'{{"$object":"{HERE}:Unset","fields":{{"x":1}},"unset":{{"x":null}}}}'),
        (deque([1, "a"]), '{"$deque":[1,"a"]}'),
        (deque([1], 3), '{"$deque":[1],"maxlen":3}'),
        (ip_address("10.0.0.1"), '{"$ip":"10.0.0.1"}'),
        (ip_address("fe80::1%eth0"), '{"$ip":"fe80::1%eth0"}'),
        # Python 3.13 writes it so, those before as ::ffff:a00:1
        (ip_address("::ffff:10.0.0.1"), '{"$ip":"::ffff:10.0.0.1"}'),
        (ip_address("::ffff:10.0.0.1%e"), '{"$ip":"::ffff:10.0.0.1%e"}'),
        (ip_network("10.0.0.0/8"), '{"$ip_network":"10.0.0.0/8"}'),
        (ip_network("::ffff:10.0.0.0/104"), '{"$ip_network":"::ffff:10.0.0.0/104"}'),
        (ip_interface("10.0.0.1/8"), '{"$ip_interface":"10.0.0.1/8"}'),
        (ip_interface("fe80::1%eth0/64"), '{"$ip_interface":"fe80::1%eth0/64"}'),
        (ip_interface("::ffff:10.0.0.1%e/104"), '{"$ip_interface":"::ffff:10.0.0.1%e/104"}'),
        (Named(1), f'{{"$object":"{HERE}:Named","fields":{{"x":1,"y":null}}}}'),
        (Made(1), f'{{"$object":"{HERE}:Made","fields":{{"x":1}}}}'),
        (pydantic.ByteSize(5), '{"$byte_size":5}'),
        (pydantic.ByteSize(2**53), '{"$byte_size":{"$int":"9007199254740992"}}'),
        (
            pydantic.HttpUrl("http://a/"),
            '{"$url":"pydantic.networks:HttpUrl","value":"http://a/"}',
        ),
        (
            pydantic.NameEmail("A", "a@b"),
            '{"$object":"pydantic.networks:NameEmail","fields":{"email":"a@b","name":"A"}}',
        ),
    ],
)
def test_the_table(value, written):
    assert encoded(value) == written


def test_a_number_past_pythons_own_limit_on_digits_is_written_in_hexadecimal():
    assert encoded(16**5000) == '{"$int":"0x1' + "0" * 5000 + '"}'


class Text(str):
    __slots__ = ()


class Slots:
    __slots__ = ("x",)


@dataclasses.dataclass
class DictPlus(dict):
    x: int = 0


@dataclasses.dataclass(slots=True)
class Base:
    x: int = 0


class Below(Base):
    __slots__ = ("secret",)


class Loose(Point):
    """A dataclass with state of its own beside the fields."""


class BrokenZone(tzinfo):
    """Says nothing."""

    def utcoffset(self, _moment):
        raise RuntimeError("no offset")

    dst = tzname = utcoffset


def stamped() -> pydantic.ByteSize:
    size = pydantic.ByteSize(1)
    vars(size)["secret"] = 1
    return size


class Odd(enum.Enum):
    A = object()


class Raising:
    @property  # type: ignore[misc]
    def __class__(self):
        raise RuntimeError("no class")


def loose():
    point = Loose(1)
    point.z = 5  # type: ignore[attr-defined]
    return point


def deep(levels):
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def cyclic():
    value: list[Any] = []
    value.append(value)
    return value


REFUSED = {
    "object": object(),
    "function": len,
    "class": int,
    "module": dataclasses,
    "generator": (x for x in ""),
    "iterator": iter("x"),
    "complex": 1j,
    "bytearray": bytearray(b"x"),
    "memoryview": memoryview(b"x"),
    "range": range(3),
    "subclass of str": Text("x"),
    "ordered dict": OrderedDict(a=1),
    "default dict": defaultdict(int),
    "subclass of a named tuple": NamedPlus(1),
    "tuple that looks named": LooksNamed((1,)),
    "byte size with more state": stamped(),
    "namespace": SimpleNamespace(x=1),
    "slots": Slots(),
    "secret": pydantic.SecretStr("x"),
    "nan": float("nan"),
    "infinity": float("inf"),
    "decimal nan": Decimal("NaN"),
    "decimal snan": Decimal("sNaN"),
    "decimal infinity": Decimal("-Infinity"),
    "surrogate": "\ud800",
    "surrogate key": {"\ud800": 1},
    "surrogate path": Path("\udcff"),
    "dataclass that is a dict": DictPlus(1),
    "dataclass with more slots": Below(1),
    "dataclass with more state": loose(),
    "time without an offset": time(12, tzinfo=ZoneInfo("Asia/Tokyo")),
    "too deep": deep(65),
    "cyclic": cyclic(),
    "enum of an object": Odd.A,
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside"])
def test_what_has_no_encoding_is_refused(value, inside):
    with pytest.raises(ArgumentsError) as caught:
        encoded({"list": [value]} if inside else value)
    assert caught.value.code == "arguments.unencodable"
    assert len(str(caught.value)) < 400


def test_a_value_whose_code_raises_is_never_bound():
    for value in (datetime(2026, 1, 1, tzinfo=BrokenZone()), Raising()):
        with pytest.raises((ArgumentsError, NotImplementedError, RuntimeError)):
            encoded(value)
        assert encode_result(value) is None


def test_depth_and_size_have_a_limit_and_not_less():
    assert encoded(deep(61))
    with pytest.raises(ArgumentsError, match="nested"):
        encoded(deep(62))
    assert len(Arguments.of({"v": "x" * (256 * 1024 - 8)}).encoded) == 256 * 1024
    with pytest.raises(ArgumentsError, match="pass a reference") as caught:
        Arguments.of({"v": "x" * (256 * 1024 - 7)})
    assert caught.value.code == "arguments.too_large"


def test_names_that_are_no_text_are_refused():
    several: list[Any] = [{1: 1}, {None: 1}, {Text("x"): 1}, {"\ud800": 1}]
    for names in several:
        with pytest.raises(ArgumentsError):
            Arguments.of(names)
    with pytest.raises(ArgumentsError):
        Arguments.of({}, unbound=["\ud800"])


def test_injected_names_are_listed_in_order():
    assert Arguments.of({"x": 1}, unbound=["b", "a"]).unbound == ("a", "b")


def test_the_bound_values_can_not_be_exchanged():
    bound = Arguments.of({"x": 1})
    with pytest.raises(TypeError):
        bound.values["x"] = 2  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.encoded = b"{}"  # type: ignore[misc]


def test_changing_an_argument_after_it_was_bound_changes_nothing_that_is_signed():
    given = {"list": [1]}
    bound = Arguments.of(given)
    given["list"].append(2)
    assert bound.encoded == b'{"list":[1]}'
    assert bound.values["list"] == [1]


def test_a_result_has_bytes_or_none():
    assert encode_result({"a": (1,)}) == b'{"a":{"$tuple":[1]}}'
    for value in (object(), float("nan"), "x" * 300_000, deep(65)):
        assert encode_result(value) is None


# --- binding to a function's parameters -----------------------------------------------------------


def plain(a, b, c=3): ...
def defaults(a=1, b=2): ...
def keyword_only(a, *, b, c=3): ...
def positional_only(a, b=2, /, c=3): ...
def rest(a, *args): ...
def options(a, **kwargs): ...
def everything(a, /, b, *args, c, d=4, **kwargs): ...
def nothing(): ...


FUNCTIONS = [
    plain,
    defaults,
    keyword_only,
    positional_only,
    rest,
    options,
    everything,
    nothing,
]


@given(
    function=st.sampled_from(FUNCTIONS),
    args=st.lists(st.integers(0, 9), max_size=5),
    kwargs=st.dictionaries(st.sampled_from([*"abcde", "args", "kwargs"]), st.just(0)),
)
def test_binding_is_what_python_does(function, args, kwargs):
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(ArgumentsError) as caught:
            binder(function)(tuple(args), kwargs)
        assert caught.value.code == "arguments.invalid"
        return
    bound.apply_defaults()
    expected = dict(bound.arguments)
    extra = expected.pop("kwargs") if function in (options, everything) else {}
    if set(extra) & set(expected):
        with pytest.raises(ArgumentsError, match="given twice"):
            binder(function)(tuple(args), kwargs)
        return
    assert binder(function)(tuple(args), kwargs) == expected | extra


def test_a_default_that_is_a_secret_is_not_in_the_refusal():
    def deploy(where, token="tok-4711"): ...

    with pytest.raises(ArgumentsError) as caught:
        binder(deploy)((), {})
    assert "tok-4711" not in str(caught.value)
    assert "where" in str(caught.value)
