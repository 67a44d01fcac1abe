"""Equal bytes mean equal arguments, over the whole table of types.

The proof is a left inverse: what ``Arguments.of`` writes can be read back, by a reader that shares
nothing with the encoder, to the meaning of the value; so two values with the same bytes have the
same meaning. A second statement looks for collisions directly, among values made to collide.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
import warnings
from collections import deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
from hypothesis import assume, given
from hypothesis import strategies as st

from agentguard.adapters import Arguments
from agentguard.errors import ArgumentsError
from agentguard.signing.canonical import b64url_decode, dumps, loads

SAFE = 2**53 - 1


class Colour(enum.Enum):
    RED = 1
    BLUE = "1"
    NESTED = (1, "1")


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    ONE = "1"
    TAG = "$int"


class Flags(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any


class Other:
    """A namespace: the same class name, another place."""

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: Any
        y: Any = None


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", arbitrary_types_allowed=True)

    x: Any = pydantic.Field(default=None, alias="X")
    hidden: Any = pydantic.Field(default=0, exclude=True)
    _private: Any = pydantic.PrivateAttr(default=None)

    @pydantic.field_serializer("x")
    def _all_alike(self, _value: Any) -> str:
        return "the same for all"


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic.v1 says on new Pythons that it has had its day
    from pydantic import v1


class Old(v1.BaseModel):
    x: Any = None
    _private: Any = v1.PrivateAttr(default=None)

    class Config:
        extra = "allow"


def old_model(x: Any, private: Any, extra: Any) -> Old:
    model = Old(x=x, y=extra)  # type: ignore[call-arg]
    model._private = private
    return model


def model(x: Any, private: Any, extra: dict[str, Any]) -> Model:
    made = Model.model_validate(extra if x is None else {"X": x, **extra})
    made._private = private
    return made


class Named(NamedTuple):
    x: Any
    y: Any = None


def queue(items: list[Any], maxlen: int | None) -> deque[Any]:
    return deque(items, maxlen if maxlen is None else max(maxlen, len(items)))


TRICKY = ["", "$", "$$", "$int", "$$int", "$decimal", "1", "1.0", "x", "X", "fields", "hidden"]
text = st.one_of(st.sampled_from(TRICKY), st.text(max_size=5))
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=9)), timezone(timedelta(seconds=1))])
named = st.sampled_from([ZoneInfo("UTC"), ZoneInfo("Europe/London"), ZoneInfo("Africa/Abidjan")])
folds = st.sampled_from([0, 1])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([SAFE, SAFE + 1, -SAFE, -SAFE - 1, 10**17, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1.0, -0.0, 1e17, float(SAFE), 1e-7]),
    text,
    st.binary(max_size=4),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.sampled_from([Decimal("1.5"), Decimal("1.50"), Decimal("15E-1"), Decimal("-0")]),
    st.datetimes(timezones=zones | named),
    st.builds(lambda when, fold: when.replace(fold=fold), st.datetimes(timezones=zones), folds),
    st.builds(lambda when, fold: when.replace(fold=fold), st.times(timezones=zones), folds),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([*Colour, *Level, *Word, *Flags, Flags.A | Flags.B]),
    st.builds(PurePosixPath, text.filter(lambda name: "\0" not in name)),
    st.builds(PosixPath, text.filter(lambda name: "\0" not in name)),
    st.builds(PureWindowsPath, text),
    st.sampled_from(["http://a/", "https://a/?b"]).map(pydantic.AnyUrl),
    st.just("http://a/").map(pydantic.HttpUrl),
    st.builds(pydantic.NameEmail, text, text),
    st.ip_addresses(),
    st.ip_addresses(v=4).map(lambda mapped: ip_address(f"::ffff:{mapped}")),
    st.ip_addresses(v=6).map(lambda scoped: ip_address(f"{scoped}%{scoped.packed[0] % 2}")),
    st.ip_addresses().map(ip_network),
    st.builds(lambda host, size: ip_interface((host, size)), st.ip_addresses(), st.integers(0, 32)),
    st.integers(-3, 3).map(pydantic.ByteSize),
    st.integers().map(pydantic.ByteSize),
)
hashable = st.one_of(
    st.integers(-3, 3), text, st.booleans(), st.none(), st.tuples(st.integers(0, 2), text)
)


def structures(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(text, inner, max_size=2).filter(lambda names: "X" not in names)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(text, inner, max_size=3),
        st.dictionaries(hashable, inner, max_size=3),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Named, inner, inner),
        st.builds(queue, st.lists(inner, max_size=3), st.sampled_from([None, 0, 4])),
        st.builds(Other.Point, inner, inner),
        st.builds(Slotted, inner),
        st.builds(model, inner, inner, fields),
        st.builds(old_model, inner, inner, inner),
    )


values = st.recursive(scalars, structures, max_leaves=8)
arguments = st.dictionaries(text, values, max_size=3)


# --- the meaning of a value -----------------------------------------------------------------------


def qualified(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def moment(value: Any) -> tuple[Any, ...]:
    zone = getattr(value.tzinfo, "key", None)
    return (value.replace(tzinfo=None, fold=0), value.utcoffset(), value.fold, zone)


def read_moment(value: Any, more: Any) -> tuple[Any, ...]:
    return (value.replace(tzinfo=None), value.utcoffset(), more.get("fold", 0), more.get("zone"))


def pairs(mapping: dict[Any, Any], inside: Any) -> frozenset[Any]:
    return frozenset((key, inside(value)) for key, value in mapping.items())


def meaning(value: Any) -> Any:  # noqa: C901, PLR0911, PLR0912  the table, a row each
    """What a value says, as nested tuples that compare as the values should."""
    match value:
        case enum.Enum():
            return ("enum", qualified(value), value.name, meaning(value.value))
        case None | bool() | str():
            return (type(value).__name__, value)
        case pydantic.ByteSize():
            return ("size", int(value))
        case int():
            return ("number", value) if abs(value) <= SAFE else ("int", value)
        case float():
            return ("number", value)
        case bytes() | UUID():
            return (type(value).__name__, value)
        case Decimal():
            return ("Decimal", value.as_tuple())
        case datetime() | time():
            return (type(value).__name__, moment(value))
        case date() | timedelta():
            return (type(value).__name__, value)
        case PureWindowsPath():
            return ("windows path", str(value))
        case PurePosixPath():
            return ("path", str(value))
        case Named():
            return ("object", qualified(value), parts(fields=value._asdict()))
        case deque():
            return ("deque", value.maxlen, tuple(map(meaning, value)))
        case list() | tuple():
            return (type(value).__name__, tuple(map(meaning, value)))
        case set() | frozenset():
            return ("set", frozenset(map(meaning, value)))
        case dict() if all(isinstance(key, str) for key in value):
            return ("dict", pairs(value, meaning))
        case dict():
            return ("map", frozenset((meaning(k), meaning(v)) for k, v in value.items()))
        case Point() | Other.Point() | Slotted():
            names = [field.name for field in dataclasses.fields(value)]
            return ("object", qualified(value), parts(fields={n: getattr(value, n) for n in names}))
        case Model():
            return (
                "object",
                qualified(value),
                parts(
                    fields={"x": value.x, "hidden": value.hidden},
                    extra=value.model_extra or {},
                    private={"_private": value._private},
                    unset=dict.fromkeys({"x", "hidden"} - value.model_fields_set),
                ),
            )
        case Old():
            fields, private = dict(value.__dict__), {"_private": value._private}
            unset = dict.fromkeys(set(fields) - value.__fields_set__)
            return ("object", qualified(value), parts(fields=fields, private=private, unset=unset))
        case pydantic.NameEmail():
            fields = {"name": value.name, "email": value.email}
            return ("object", qualified(value), parts(fields=fields))
        case pydantic.AnyUrl():
            return ("url", qualified(value), str(value))
        case IPv4Interface() | IPv6Interface():
            return ("interface", value)
        case IPv4Address() | IPv6Address():
            return ("address", value)
        case IPv4Network() | IPv6Network():
            return ("network", value)
    raise AssertionError(type(value))


def parts(**groups: dict[str, Any]) -> frozenset[Any]:
    return frozenset((name, pairs(group, meaning)) for name, group in groups.items() if group)


# --- reading what was written ---------------------------------------------------------------------


GROUPS = {"fields", "extra", "private", "unset"}


def key(name: str) -> str:
    assert name[:1] != "$" or name[:2] == "$$", name
    return name.removeprefix("$")


def understood(json: Any) -> Any:  # noqa: C901, PLR0911, PLR0912  the table, a row each
    """What canonical JSON says, read without the encoder's help."""
    match json:
        case None | bool() | str():
            return (type(json).__name__, json)
        case int() | float():
            return ("number", json)
        case list():
            return ("list", tuple(map(understood, json)))
        case {"$int": digits, **rest} if not rest:
            return ("int", int(digits, 0))
        case {"$bytes": encoded, **rest} if not rest:
            return ("bytes", b64url_decode(encoded))
        case {"$uuid": written, **rest} if not rest:
            return ("UUID", UUID(written))
        case {"$decimal": written, **rest} if not rest:
            return ("Decimal", Decimal(written).as_tuple())
        case {"$datetime": written, **rest} if rest.keys() <= {"fold", "zone"}:
            return ("datetime", read_moment(datetime.fromisoformat(written), rest))
        case {"$time": written, **rest} if rest.keys() <= {"fold", "zone"}:
            return ("time", read_moment(time.fromisoformat(written), rest))
        case {"$date": written, **rest} if not rest:
            return ("date", date.fromisoformat(written))
        case {"$timedelta": [days, seconds, microseconds], **rest} if not rest:
            return ("timedelta", timedelta(days, seconds, microseconds))
        case {"$windows_path": written, **rest} if not rest:
            return ("windows path", written)
        case {"$path": written, **rest} if not rest:
            return ("path", written)
        case {"$tuple": items, **rest} if not rest:
            return ("tuple", tuple(map(understood, items)))
        case {"$set": items, **rest} if not rest:
            return ("set", frozenset(map(understood, items)))
        case {"$dict": items, **rest} if not rest:
            return ("map", frozenset((understood(k), understood(v)) for k, v in items))
        case {"$enum": kind, "name": name, "value": written, **rest} if not rest:
            return ("enum", kind, name, understood(written))
        case {"$ip": written, **rest} if not rest:
            return ("address", ip_address(written))
        case {"$ip_network": written, **rest} if not rest:
            return ("network", ip_network(written))
        case {"$ip_interface": written, **rest} if not rest:
            return ("interface", ip_interface(written))
        case {"$byte_size": {"$int": digits}, **rest} if not rest:
            return ("size", int(digits, 0))
        case {"$byte_size": size, **rest} if not rest:
            return ("size", size)
        case {"$deque": items, **rest} if rest.keys() <= {"maxlen"}:
            return ("deque", rest.get("maxlen"), tuple(map(understood, items)))
        case {"$url": name, "value": written, **rest} if not rest:
            return ("url", name, written)
        case {"$object": name, **groups} if groups.keys() <= GROUPS:
            read = ((group, members(_dict(inside))) for group, inside in groups.items() if inside)
            return ("object", name, frozenset(read))
        case dict():
            return ("dict", members(json))
    raise AssertionError(json)


def _dict(json: Any) -> dict[str, Any]:
    assert isinstance(json, dict)
    return json


def members(json: dict[str, Any]) -> frozenset[Any]:
    return frozenset((key(name), understood(value)) for name, value in json.items())


def encode(given: dict[str, Any]) -> bytes:
    try:
        return Arguments.of(given).encoded
    except ArgumentsError:
        assume(False)
        raise


@given(arguments)
def test_what_is_written_says_what_was_given(given):
    assert understood(loads(encode(given))) == ("dict", pairs(given, meaning))


@given(st.lists(arguments, min_size=2, max_size=12))
def test_equal_bytes_mean_equal_arguments(several):
    by_bytes: dict[bytes, Any] = {}
    for one in several:
        try:
            encoded = Arguments.of(one).encoded
        except ArgumentsError:
            continue
        assert by_bytes.setdefault(encoded, pairs(one, meaning)) == pairs(one, meaning)


@given(arguments, st.randoms(use_true_random=False))
def test_the_order_of_names_and_members_does_not_matter(given, chance):
    names = list(given)
    chance.shuffle(names)
    assert encode({name: shuffled(given[name], chance) for name in names}) == encode(given)


def shuffled(value: Any, chance: Any) -> Any:
    if type(value) is dict:
        names = list(value)
        chance.shuffle(names)
        return {name: shuffled(value[name], chance) for name in names}
    if type(value) in (set, frozenset):
        items = list(value)
        chance.shuffle(items)
        return type(value)(items)
    if type(value) in (list, tuple):
        return type(value)(shuffled(item, chance) for item in value)
    return value


plain = st.none() | st.booleans() | st.integers() | text


@given(st.dictionaries(text, plain | st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_plain_arguments_have_the_bytes_that_they_have_inside_another(given):
    assert encode({"a": given}) == b'{"a":%b}' % encode(given)


@given(arguments)
def test_what_the_policy_reads_is_what_is_committed_to(given):
    try:
        bound = Arguments.of(given)
    except ArgumentsError:
        assume(False)
        raise
    assert understood(loads(bound.encoded)) == understood(dict(bound.values))


@given(arguments, plain)
def test_no_argument_is_what_a_call_brings_beside_its_arguments(given, brought):
    try:
        with_it = Arguments.of(given, beside={"mcp": {"state": brought}})
    except ArgumentsError:
        assume(False)
        raise
    assert dumps(dict(with_it.values)) == with_it.encoded
    without = Arguments.of(given)
    assert "$mcp" not in without.values
    assert {**without.values, "$mcp": with_it.values["$mcp"]} == with_it.values
    assert "$mcp" not in Arguments.of({"$mcp": brought}).values


def test_the_bytes_do_not_depend_on_the_hash_seed():
    program = (
        "from agentguard.adapters import Arguments; import sys;"
        "v = {'s': {'a', 'b', 'c', 1, (2, 'x')}, 'd': {1: 'x', 'y': {'p', 'q'}}};"
        "sys.stdout.buffer.write(Arguments.of(v).encoded)"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(written) == 1
    assert b"$set" in written.pop()


def test_no_two_of_these_share_their_bytes():
    alike = [10**17, 1e17, "1", 1, True, "$int", {"$int": "1"}, {"$$int": "1"}, 2**53, {1: "x"}]
    alike += [[1], (1,), {1}, {"$tuple": [1]}, {"$set": [1]}, {"1": "x"}, {"$dict": [[1, "x"]]}]
    assert len({encode({"v": value}) for value in alike}) == len(alike)


def test_no_two_moments_and_no_two_addresses_share_their_bytes():
    night, new_year = datetime(2026, 10, 25, 1, 30), datetime(2026, 1, 1)  # noqa: DTZ001  naive
    zones = [UTC, ZoneInfo("UTC"), ZoneInfo("Europe/London"), ZoneInfo("Africa/Abidjan")]
    alike: list[Any] = [night, night.replace(fold=1), time(1, 30), time(1, 30, fold=1), new_year]
    alike += [new_year.replace(tzinfo=zone) for zone in zones]
    alike += [time(1, 30, tzinfo=zone) for zone in (UTC, ZoneInfo("UTC"))]
    alike += [pydantic.NameEmail("a", "b> <c"), pydantic.NameEmail("a <b>", "c")]
    assert len({encode({"v": value}) for value in alike}) == len(alike)
