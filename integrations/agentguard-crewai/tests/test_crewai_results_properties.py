"""The codec of results, held against any value and any bytes (hypothesis)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import rounds
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason
from crewai_results import (
    OF_REPORTS,
    PLAIN,
    Colour,
    Number,
    Raising,
    Report,
    Text,
    Whole,
    Word,
    kept,
    same,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.errors import DecodeError, EncodeError
from agentguard_crewai.results import ToolResults

EXAMPLES = 500 if rounds.FULL else 50


# --- any value -----------------------------------------------------------------------------------


texts = st.text()
numbers = st.integers() | st.floats(allow_nan=True, allow_infinity=True)
atoms = (
    st.none()
    | st.booleans()
    | numbers
    | texts
    | st.sampled_from(["list", "tuple", "failure", "model"])
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.sampled_from([Colour.RED, Number.ONE, Word.A, Text("a"), Whole(1)])
)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values that are made of others."""
    failures = st.builds(
        ToolFailure,
        message=texts,
        reason=st.sampled_from(ToolFailureReason),
        code=st.none() | texts,
        retryable=st.booleans(),
        details=st.dictionaries(texts, inner, max_size=2),
    )
    reports = st.builds(Report, title=texts, pages=st.integers(), more=inner)
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(texts | st.integers(), inner, max_size=4)
        | st.frozensets(texts, max_size=2)
        | failures
        | reports
    )


anything = st.recursive(atoms, grown, max_leaves=12)


@settings(max_examples=EXAMPLES, deadline=None)
@given(anything)
def test_anything_comes_back_as_it_was_or_is_refused(value):
    for codec in (PLAIN, OF_REPORTS):
        try:
            data = codec.dumps(value)
        except EncodeError:
            continue
        assert same(codec.loads(data), value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(texts, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(plain)
def test_plain_values_are_never_refused(value):
    assert same(kept(PLAIN, value), value)
    report = Report(title="t", more=value)
    assert same(kept(OF_REPORTS, report), report)


@settings(max_examples=EXAMPLES, deadline=None)
@given(anything, anything)
def test_different_values_have_different_bytes(one, other):
    try:
        data = OF_REPORTS.dumps(one), OF_REPORTS.dumps(other)
    except EncodeError:
        return
    assert (data[0] == data[1]) == same(one, other)


# --- any bytes -----------------------------------------------------------------------------------


HOSTILE = [
    b"",
    b"\xff",
    b"{",
    b"nan",
    b"NaN",
    b"Infinity",
    b"[1]",
    b"[]",
    b'["other"]',
    b'["list"',
    b'[["list"]]',
    b'["failure"]',
    b'["failure",5]',
    b'["failure",{}]',
    b'["failure",{"message":"m"}]',
    b'["failure",{"message":"m","reason":"no such reason"}]',
    b'["failure",{"message":5,"reason":"exception"}]',
    b'["failure",{"message":"m","reason":["list"]}]',
    b'["failure",{"message":"m","reason":"exception"},5]',
    b'["model"]',
    b'["model",{}]',
    b'["model",5,["list"]]',
    b'["model",{},5]',
    b'["model",{},null]',
    b'["model",{},[{}]]',
    b'["model",{"_fields_set":1},[]]',
    b'["model",{"self":1},[],1]',
    b"[" * 5000 + b"]" * 5000,
    b'["list",' * 1000 + b"1" + b"]" * 1000,
    b'{"a":' * 1000 + b"1" + b"}" * 1000,
    b"1" * 5000,
    b"1e999",
    b'"\\ud800"',
    b'"a"\x00',
    b"\xef\xbb\xbf1",
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:40]))
def test_bytes_that_are_no_result_are_refused(data):
    for codec in (PLAIN, OF_REPORTS, ToolResults(Raising)):
        with pytest.raises(DecodeError) as refused:
            codec.loads(data)
        assert refused.value.code == "decode.malformed"


def test_a_model_without_a_schema_is_no_result():
    data = OF_REPORTS.dumps(Report(title="t"))
    with pytest.raises(DecodeError):
        PLAIN.loads(data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_result_or_refused(data):
    for codec in (PLAIN, OF_REPORTS):
        try:
            codec.loads(data)
        except DecodeError:
            continue


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(["list", "tuple", "failure", "model", "title", "message", "exception"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            texts | st.sampled_from(["title", "message", "reason"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(json_values)
def test_any_json_is_a_result_or_refused(value):
    data = orjson.dumps(value)
    for codec in (PLAIN, OF_REPORTS):
        try:
            codec.loads(data)
        except DecodeError:
            continue


@settings(max_examples=EXAMPLES, deadline=None)
@given(plain, st.data())
def test_a_changed_byte_raises_nothing_else(value, draw):
    data = bytearray(OF_REPORTS.dumps(Report(title="t", more=value)))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    try:
        OF_REPORTS.loads(bytes(data))
    except DecodeError:
        return
