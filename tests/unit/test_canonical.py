"""Strict decoding, case by case, and the canonical encoder's refusals (RFC 8259, 7493, 8785)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import hashlib
import inspect
import struct
import sys
import tracemalloc
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from agentguard.errors import DecodeError, EncodeError
from agentguard.signing import canonical


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "json.malformed"),
        (" ", "json.malformed"),
        ("{", "json.malformed"),
        ("[1,]", "json.malformed"),
        ('{"a":1,}', "json.malformed"),
        ("{a:1}", "json.malformed"),
        ("{'a':1}", "json.malformed"),
        ("{} {}", "json.malformed"),
        ("{}\x00", "json.malformed"),
        ("[1]//", "json.malformed"),
        ("01", "json.malformed"),
        ("+1", "json.malformed"),
        ("1.", "json.malformed"),
        (".5", "json.malformed"),
        ("0x10", "json.malformed"),
        ("\u0661", "json.malformed"),
        ("1\u0661", "json.malformed"),
        ("\xa01", "json.malformed"),
        ("\x0c1", "json.malformed"),
        ('"\t"', "json.malformed"),
        ('"\\x41"', "json.malformed"),
        ('"\\u00g0"', "json.malformed"),
        ("True", "json.malformed"),
        ('{"a":1,"a":1}', "json.duplicate_key"),
        ('{"a":1,"\\u0061":2}', "json.duplicate_key"),
        ('[{"x":{"a":1,"b":2,"a":3}}]', "json.duplicate_key"),
        ("NaN", "json.number"),
        ("[Infinity]", "json.number"),
        ("-Infinity", "json.number"),
        ("1e400", "json.number"),
        ("-1e400", "json.number"),
        ("1" * 400, "json.number"),
        ("-" + "9" * 5000, "json.number"),
        ('"\\ud800"', "json.surrogate"),
        ('"\\uDFFF"', "json.surrogate"),
        ('"\\ud83dx\\ude00"', "json.surrogate"),
        ('"\\ude00\\ud83d"', "json.surrogate"),
        ('{"\\ud800":1}', "json.surrogate"),
        ('"\ud800"', "json.surrogate"),
        ("[" * 65 + "]" * 65, "json.depth"),
        ('{"a":' * 65 + "1" + "}" * 65, "json.depth"),
        ("[" * 100_000, "json.depth"),
        ("\ufeff{}", "json.utf8"),
        (b"\xef\xbb\xbf{}", "json.utf8"),
        (b'"\xff"', "json.utf8"),
        (b'"\xed\xa0\x80"', "json.utf8"),
        (b'"\xc0\xaf"', "json.utf8"),
        ('{"a":1}'.encode("utf-16"), "json.utf8"),
        (b'{\x00"\x00a\x00"\x00', "json.malformed"),
        (b'"' + b"a" * canonical.MAX_BYTES + b'"', "json.size"),
        ('"' + "a" * canonical.MAX_BYTES + '"', "json.size"),
        ('"' + "é" * (canonical.MAX_BYTES // 2) + '"', "json.size"),
    ],
)
def test_what_two_decoders_could_read_differently_is_refused(text: str | bytes, code: str) -> None:
    with pytest.raises(DecodeError) as refused:
        canonical.loads(text)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", {}),
        (" \t\r\n[1 , 2]\n", [1, 2]),
        ("[1]", [1]),
        ('{"a":1,"A":1}', {"a": 1, "A": 1}),
        ('[{"a":1},{"a":1}]', [{"a": 1}, {"a": 1}]),
        ("1e308", 1e308),
        ("1e-400", 0.0),
        ("-0", 0),
        ("9007199254740991", 9007199254740991),
        ("9007199254740993", 9007199254740992.0),
        ("100000000000000000", 1e17),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\\\ud800"', "\\ud800"),
        ('"😀"', "😀"),
        ("[" * 64 + "]" * 64, None),
        ('["' + "[" * 500 + '","\\"{{{{"]', ["[" * 500, '"{{{{']),
        (b'"' + b"a" * (canonical.MAX_BYTES - 2) + b'"', "a" * (canonical.MAX_BYTES - 2)),
    ],
)
def test_the_twins_of_what_is_refused_are_read(text: str | bytes, value: object) -> None:
    decoded = canonical.loads(text)
    if value is not None:
        assert decoded == value
        assert type(decoded) is type(value)


def test_many_shallow_brackets_are_not_depth() -> None:
    text = "[" + ",".join(["[]"] * 1000) + "]"
    assert canonical.loads(text) == [[]] * 1000


def near_the_end_of_the_stack(action: Callable[[], object]) -> object:
    """Call ``action`` where some twenty more frames fit."""
    used, frame = 0, inspect.currentframe()
    while frame is not None:
        used, frame = used + 1, frame.f_back

    def descend(levels: int) -> object:
        return descend(levels - 1) if levels else action()

    return descend(sys.getrecursionlimit() - used - 20)


def test_a_stack_that_is_nearly_full_gives_our_errors_too() -> None:
    value = nested(60)
    with pytest.raises(EncodeError) as refused:
        near_the_end_of_the_stack(lambda: canonical.dumps(value))
    assert refused.value.code == "json.unencodable"

    text = canonical.dumps(value)

    def read() -> object:
        try:
            return canonical.loads(text)
        except DecodeError as error:
            return error.code

    # Whether the decoder's own recursion counts depends on Python's version.
    assert near_the_end_of_the_stack(read) in (value, "json.depth")
    assert read() == value


@pytest.mark.parametrize("text", ["[]", "1", "null", '"{}"'])
def test_an_object_is_asked_for_and_nothing_else_given(text: str) -> None:
    assert canonical.loads_object('{"a":[]}') == {"a": []}
    with pytest.raises(DecodeError) as refused:
        canonical.loads_object(text)
    assert refused.value.code == "json.not_object"


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        2**53,
        -(2**53),
        10**400,
        "\ud800",
        {"\udfff": 1},
        {"é\udfff": 1},
        {"é": "\udfff"},
        {1: 2},
        {None: 2},
        {"é": 1, 2: 3},
        {Text("a"): 1},
        Text("a"),
        Number(1),
        Colour.RED,
        Level.LOW,
        (1, 2),
        {1, 2},
        b"bytes",
        Decimal(1),
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        uuid.UUID(int=0),
        object(),
        Point(1),
        canonical.Fragment(b"1"),
        cycle(),
        nested(65),
        nested(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_form_is_refused_wherever_it_stands(value: object) -> None:
    for whole in (value, [value], {"a": [{"b": value}]}, [1.0, "é", value], {"é": 1, "b": value}):
        with pytest.raises(EncodeError) as refused:
            canonical.dumps(whole)
        assert refused.value.code == "json.unencodable"


def test_the_deepest_value_is_written_and_read() -> None:
    assert canonical.loads(canonical.dumps(nested(64))) == nested(64)


@pytest.mark.parametrize(
    ("bits", "text"),
    [  # RFC 8785, Appendix B
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_ecmascript_writes_them(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical.dumps(number) == text.encode()
    assert canonical.dumps({"a": [number, "é"]}) == f'{{"a":[{text},"é"]}}'.encode()


def test_keys_are_sorted_by_utf_16_unit() -> None:
    # U+10000 is written with the unit D800, which comes before E000; its code point comes after.
    assert canonical.dumps({"\ue000": 1, "\U00010000": 2}) == '{"\U00010000":2,"\ue000":1}'.encode()


def test_a_digest_is_that_of_the_canonical_bytes() -> None:
    expected = hashlib.sha256(b'{"a":1,"b":[2.5]}').hexdigest()
    assert canonical.digest({"b": [2.5], "a": 1}) == expected
    assert canonical.sha256_hex(b'{"a":1,"b":[2.5]}') == expected


@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        "\ud800",
        2**53,
        Text("a"),
        Point(1),
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        {1, 2},
        object(),
        nested(2000),
        cycle(),
    ],
)
def test_a_record_that_can_not_be_written_is_refused(value: object) -> None:
    assert canonical.dumps_record({"b": ("x",), "a": None}) == b'{"a":null,"b":["x"]}'
    with pytest.raises(EncodeError) as refused:
        canonical.dumps_record({"value": value})
    assert refused.value.code == "json.unencodable"


@pytest.mark.parametrize(
    "text",
    ["A", "AA==", "AB", "AAB", "AA\n", "A A", " AA", "+_", "-/", "A=A", "éé", "\ud800", "AA\x00"],
)
def test_base64url_has_one_text_for_each_value(text: str) -> None:
    assert canonical.b64url_decode("AA") == b"\0"
    assert canonical.b64url_decode("-_8") == b"\xfb\xff"
    assert canonical.b64url_decode("") == b""
    with pytest.raises(DecodeError) as refused:
        canonical.b64url_decode(text)
    assert refused.value.code == "base64.malformed"


@pytest.mark.parametrize(
    "text",
    ["AA", "AA=", "AB==", "AAB=", "AA==\n", "AA== ", "-_8=", "AA===", "=AA=", "éé==", "\ud800"],
)
def test_base64_has_one_text_for_each_value(text: str) -> None:
    assert canonical.b64_decode("AA==") == b"\0"
    assert canonical.b64_decode("+/8=") == b"\xfb\xff"
    assert canonical.b64_decode("") == b""
    with pytest.raises(DecodeError) as refused:
        canonical.b64_decode(text)
    assert refused.value.code == "base64.malformed"


@pytest.mark.parametrize("encode", [canonical.dumps, canonical.dumps_record])
def test_what_is_kept_takes_no_more_memory_than_its_length(encode):
    tracemalloc.start()
    try:
        before, _peak = tracemalloc.get_traced_memory()
        kept = [encode({"a": "x" * 100}) for _ in range(100)]
        after, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * sum(map(len, kept))
