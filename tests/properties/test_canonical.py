"""Properties of strict JSON, RFC 8785 and the compact range, over generated values."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st
from leaf_tree import LeafTree

from agentguard.audit import merkle
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing import canonical

EDGES = [
    0.0, -0.0, 1.0, 0.1, 1e-5, 9.999999999999999e-6, 1e-6, 9.999999999999997e-7, 1e-7, 5e-324,
    2.2250738585072014e-308, 1e15 + 0.5, 2.0**52 + 0.5, 2.0**53, 1e16, 1e17, 1.5e17, 1e20,
    9.999999999999999e20, 1e21, 1e22, 1.7976931348623157e308, 333333333.33333329,
]  # fmt: skip
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EDGES)
integers = st.integers(-canonical.MAX_INTEGER, canonical.MAX_INTEGER)
# Code points at which sorting by UTF-16 unit and by code point part, and those that are escaped.
tricky = st.text(
    st.sampled_from('\x00\x1f"\\/\x7f\x80\u2028\ud7ff\ue000\uffff\U00010000\U0010ffff')
)
strings = st.text() | tricky
scalars = st.none() | st.booleans() | integers | floats | floats.map(lambda x: -x) | strings
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(strings, inner), max_leaves=30
)
simple_values = st.recursive(
    st.none() | st.booleans() | integers | strings,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="ascii")), inner),
    max_leaves=30,
)
json_like = st.text(
    st.sampled_from('{}[],:"\\ u0dD8cCfeE+-.123456789tnralsINy\x00\t\né\ud800\ufeff'), max_size=60
)


def outcome(decode: Callable[[Any], Any], data: bytes | str) -> Any:
    """The decoded value, or our error; any other exception fails the test."""
    try:
        return decode(data)
    except DecodeError as error:
        return error


@given(values)
@example({"\U00010000": 1, "\uffff": 2})  # in another order by code point than by UTF-16 unit
@example({"a\U00010000": 1, "a\uffff": 2})
def test_the_fast_path_writes_what_rfc8785_writes(value: canonical.JSON) -> None:
    assert canonical.dumps(value) == rfc8785.dumps(value)


@given(floats)
def test_every_float_is_written_so_that_it_is_read_back(number: float) -> None:
    assert canonical.dumps([number]) == rfc8785.dumps([number])
    assert float(canonical.dumps(number)) == number
    decoded = canonical.loads(canonical.dumps([-number]))
    assert decoded == [-number]


@given(values)
def test_what_is_written_is_read_back_and_written_alike(value: canonical.JSON) -> None:
    data = canonical.dumps(value)

    assert canonical.loads(data) == value
    assert canonical.loads(data.decode()) == value
    assert canonical.dumps(canonical.loads(data)) == data


def strictly(data: bytes) -> canonical.JSON:
    """What ``loads_canonical`` is to do, the slow way."""
    value = canonical.loads(data)
    if canonical.dumps(value) != data:
        raise DecodeError("", code="json.not_canonical")
    return value


@given(
    values.map(canonical.dumps)
    | values.map(lambda value: json.dumps(value, separators=(",", ":"), sort_keys=True).encode())
    | values.map(lambda value: json.dumps(value, ensure_ascii=False).encode())
    | json_like.map(lambda text: text.encode(errors="surrogatepass"))
)
@example(b"1.0")
@example(b"-0")
@example(b"0.10")
@example(b"1e-7")
@example(b"9007199254740991")
@example(b"9007199254740993")
@example(b"9007199254740994")
@example(b"18446744073709551616")
@example(b"18446744073709552000")
@example(b"1e400")
@example(b"NaN")
@example(b'{"a":[1.0]}')
@example(b'[0.1,{"a":1.5}]')
@example(b'{"a":[9007199254740992]}')
@example(b"[-9007199254740991,-9007199254740992]")
@example(b'["\x7f\\u001f"]')
@example(b'{"a":1,"a":1}')
@example(b'{"b":1,"a":1}')
@example(b'{"a": 1}')
@example(b'{"a":1}\n')
@example(b"\xef\xbb\xbf{}")
@example(b'"\\u0041"')
@example(b'"\\ud800"')
@example(b'"\xed\xa0\x80"')
@example('{"\U00010000":1,"\uffff":1}'.encode())
@example('{"\uffff":1,"\U00010000":1}'.encode())
@example(b"[" * 64 + b"]" * 64)
@example(b"[" * 65 + b"]" * 65)
@example(b"[" + b"[]," * 64 + b"[]]")
@example(b"[" * 5000 + b"]" * 5000)
@example(b'"' + b"a" * (canonical.MAX_BYTES - 2) + b'"')
@example(b'"' + b"a" * (canonical.MAX_BYTES - 1) + b'"')
def test_the_fast_path_reads_what_the_strict_decoder_reads(data: bytes) -> None:
    expected, found = outcome(strictly, data), outcome(canonical.loads_canonical, data)
    if isinstance(expected, DecodeError):
        assert isinstance(found, DecodeError)
        assert found.code == expected.code
    else:
        assert repr(found) == repr(expected)  # an integer is not equal to a float here


@given(simple_values)
def test_a_record_has_the_same_bytes_as_the_canonical_form(value: canonical.JSON) -> None:
    assert canonical.dumps_record(value) == canonical.dumps(value)
    embedded = canonical.dumps_record({"v": canonical.Fragment(canonical.dumps(value))})
    assert embedded == canonical.dumps({"v": value})


@given(values)
def test_members_order_and_layout_do_not_change_the_canonical_form(value: canonical.JSON) -> None:
    def reverse(item: canonical.JSON) -> canonical.JSON:
        if isinstance(item, dict):
            return {key: reverse(member) for key, member in reversed(item.items())}
        return [reverse(member) for member in item] if isinstance(item, list) else item

    spread = json.dumps(reverse(value), indent=2, ensure_ascii=True)
    assert canonical.dumps(canonical.loads(spread)) == canonical.dumps(value)


@given(st.binary() | json_like.map(lambda text: text.encode(errors="surrogatepass")))
@example(b"\xef\xbb\xbf{}")
@example(b"\xed\xa0\x80")
def test_bytes_are_decoded_or_refused_with_our_error(data: bytes) -> None:
    value = outcome(canonical.loads, data)
    if isinstance(value, DecodeError):
        assert value.code.startswith("json.")
    else:
        assert canonical.loads(canonical.dumps(value)) == value


@given(st.text(st.characters(exclude_categories=())) | json_like)
def test_text_is_decoded_or_refused_with_our_error(text: str) -> None:
    value = outcome(canonical.loads, text)
    if isinstance(value, DecodeError):
        assert value.code.startswith("json.")
    else:
        assert value == json.loads(text, parse_int=float)


@given(st.integers())
def test_an_integer_is_read_as_the_double_that_others_read(number: int) -> None:
    decoded = canonical.loads(str(number))
    assert decoded == (number if abs(number) <= canonical.MAX_INTEGER else float(number))
    assert canonical.loads(canonical.dumps(decoded)) == decoded


@given(st.text(st.sampled_from('[]{}"\\a,:'), min_size=1))
def test_the_depth_of_hostile_text_never_overflows(text: str) -> None:
    with pytest.raises(DecodeError) as refused:
        canonical.loads("[" * 100_000 + text)
    assert refused.value.code == "json.depth"


@given(st.binary())
def test_base64_round_trips_and_only_the_canonical_text_is_read(data: bytes) -> None:
    for encode, decode in (
        (canonical.b64url_encode, canonical.b64url_decode),
        (canonical.b64_encode, canonical.b64_decode),
    ):
        text = encode(data)
        assert decode(text) == data
        for other in (text + "=", text + "\n", " " + text, text + "A", text + "é"):
            decoded = outcome(decode, other)
            if isinstance(decoded, DecodeError):
                assert decoded.code == "base64.malformed"
            else:
                assert encode(decoded) == other
    assert canonical.b64url_encode(data) == base64.urlsafe_b64encode(data).decode().rstrip("=")


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 9162's definition of the tree's hash, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 2 ** math.floor(math.log2(len(leaves) - 1))
    left, right = naive_root(leaves[:split]), naive_root(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def hashes(count: int) -> list[bytes]:
    return [merkle.leaf_hash(str(number).encode()) for number in range(count)]


def compact(leaves: list[bytes]) -> merkle.CompactRange:
    tree = merkle.CompactRange()
    for leaf in leaves:
        tree.append(leaf)
    return tree


@given(st.integers(0, 300))
def test_the_compact_range_has_the_naive_trees_root(count: int) -> None:
    leaves = hashes(count)
    tree = compact(leaves)

    assert tree.size == count
    assert tree.root() == naive_root(leaves)
    stored = merkle.CompactRange.decode(count, tree.encode())
    stored.append(leaves[0] if leaves else merkle.leaf_hash(b""))
    tree.append(leaves[0] if leaves else merkle.leaf_hash(b""))
    assert stored.root() == tree.root()


@given(st.data())
def test_inclusion_proofs_hold_for_their_leaf_alone(data: st.DataObject) -> None:
    leaves = hashes(data.draw(st.integers(1, 70)))
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = naive_root(leaves)
    proof = LeafTree(leaves).inclusion_proof(index)

    merkle.verify_inclusion(index, len(leaves), leaves[index], proof, root)
    for other in range(len(leaves)):
        if other != index:
            with pytest.raises(VerificationError):
                merkle.verify_inclusion(other, len(leaves), leaves[index], proof, root)
            with pytest.raises(VerificationError):
                merkle.verify_inclusion(index, len(leaves), leaves[other], proof, root)


@given(st.data())
def test_consistency_proofs_hold_for_their_trees_alone(data: st.DataObject) -> None:
    leaves = hashes(data.draw(st.integers(1, 70)))
    size = data.draw(st.integers(1, len(leaves)))
    old, new = naive_root(leaves[:size]), naive_root(leaves)
    proof = LeafTree(leaves).consistency_proof(size)

    merkle.verify_consistency(size, len(leaves), old, new, proof)
    edited = data.draw(st.integers(0, size - 1))
    rewritten = [*leaves[:edited], merkle.leaf_hash(b"edited"), *leaves[edited + 1 :]]
    with pytest.raises(VerificationError):
        merkle.verify_consistency(
            size,
            len(leaves),
            old,
            naive_root(rewritten),
            LeafTree(rewritten).consistency_proof(size),
        )
