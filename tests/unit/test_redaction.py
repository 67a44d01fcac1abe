"""Redactions as values: what a pointer is, what it covers, and what is left where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from decimal import Decimal
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentguard.adapters import Arguments
from agentguard.call import redaction
from agentguard.call.arguments import encode_result
from agentguard.call.vocabulary import STATED
from agentguard.errors import DecodeError
from agentguard.signing import canonical

MARK = {"$redacted": True}


def after(value, *pointers, member="args"):
    """Redact a member's value, encoded as a tool's arguments or results are."""
    encoded = (
        Arguments.of(value).encoded if member == "args" else encode_result(value) or b"unencodable"
    )
    return json.loads(redaction.redact(member, encoded, map(redaction.parse, pointers)))


# --- pointers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "tokens"),
    [
        ("/args", ("args",)),
        ("/args/password", ("args", "password")),
        ("/args/a~1b", ("args", "a/b")),
        ("/args/a~0b", ("args", "a~b")),
        ("/args/~01", ("args", "~1")),  # RFC 6901, section 4
        ("/args/", ("args", "")),
        ("/args/*/ssn", ("args", "*", "ssn")),
        ("/result/0/token", ("result", "0", "token")),
        ("/balance", ("balance",)),
        ("/args/schl\u00fcssel\u0000", ("args", "schl\u00fcssel\u0000")),
    ],
)
def test_a_pointer_is_read_and_written_again(pointer, tokens):
    assert redaction.parse(pointer) == tokens
    assert redaction.dumps(tokens) == pointer


@pytest.mark.parametrize(
    "pointer",
    [
        "",
        "/",
        "//args",
        "args",
        "args/password",
        "#/args/password",
        " /args",
        "/args/~",
        "/args/~2",
        "/args/a~",
        "/args/~~01",  # a tilde that is no escape, whatever is left when the escapes are taken out
        "/args/~~10",
        "/*",
        "/*/password",
        "/$redacted",
        "/a-b/c",
        "/\u00e4rgs",
        "/args\n",
    ],
)
def test_what_is_no_pointer_into_a_record_is_refused(pointer):
    with pytest.raises(DecodeError) as caught:
        redaction.parse(pointer)
    assert caught.value.code == "redaction.malformed"


@pytest.mark.parametrize("root", sorted(STATED - {"args"}))
def test_what_an_entry_states_itself_can_not_be_redacted(root):
    """A pointer there would let its author believe that the log does not tell it."""
    with pytest.raises(DecodeError, match="signed and logged as it is") as caught:
        redaction.parse(f"/{root}/name")
    assert caught.value.code == "redaction.malformed"
    assert redaction.parse(f"/{root}_of_the_order") == (f"{root}_of_the_order",)


tokens = st.lists(st.text(st.characters(codec="utf-8")), max_size=4)


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), tokens)
def test_every_redaction_comes_back_from_its_pointer(root, below):
    if root in STATED - {"args"}:
        return
    assert redaction.parse(redaction.dumps((root, *below))) == (root, *below)


# --- what a pointer covers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("/args/pin", {"pin": MARK, "to": {"pin": "2", "x/y": "3", "a~b": "4"}, "l": [1, [2]]}),
        ("/args/to/pin", {"pin": "1", "to": {"pin": MARK, "x/y": "3", "a~b": "4"}, "l": [1, [2]]}),
        ("/args/to/x~1y", {"pin": "1", "to": {"pin": "2", "x/y": MARK, "a~b": "4"}, "l": [1, [2]]}),
        ("/args/to/a~0b", {"pin": "1", "to": {"pin": "2", "x/y": "3", "a~b": MARK}, "l": [1, [2]]}),
        ("/args/to/*", {"pin": "1", "to": {"pin": MARK, "x/y": MARK, "a~b": MARK}, "l": [1, [2]]}),
        ("/args/*/pin", {"pin": "1", "to": {"pin": MARK, "x/y": "3", "a~b": "4"}, "l": [1, [2]]}),
        ("/args/l/0", {"pin": "1", "to": {"pin": "2", "x/y": "3", "a~b": "4"}, "l": [MARK, [2]]}),
        ("/args/l/*", {"pin": "1", "to": {"pin": "2", "x/y": "3", "a~b": "4"}, "l": [MARK, MARK]}),
        ("/args/l/1/0", {"pin": "1", "to": {"pin": "2", "x/y": "3", "a~b": "4"}, "l": [1, [MARK]]}),
        ("/args/*", {"pin": MARK, "to": MARK, "l": MARK}),
        ("/args", MARK),
    ],
)
def test_a_pointer_covers_what_it_names_and_nothing_else(pointer, expected):
    value = {"pin": "1", "to": {"pin": "2", "x/y": "3", "a~b": "4"}, "l": [1, [2]]}
    assert after(value, pointer) == expected


@pytest.mark.parametrize(
    "pointer",
    [
        "/args/nobody",
        "/args/pin/deeper",
        "/args/l/1",
        "/args/l/-",
        "/args/l/00",
        "/result",
        "/fact",
    ],
)
def test_a_pointer_that_names_nothing_changes_nothing(pointer):
    value = {"pin": "1234", "l": [1]}
    assert after(value, pointer) == value


def test_of_two_pointers_the_wider_one_counts():
    assert after({"a": {"b": 1, "c": 2}}, "/args/a/b", "/args/a") == {"a": MARK}
    assert after({"a": {"b": 1, "c": 2}}, "/args/a/b", "/args/*/c") == {"a": {"b": MARK, "c": MARK}}


class Colour(Enum):
    RED = "secret-red"


class Card(BaseModel, extra="allow"):
    number: str
    cvc: str = "000"


@dataclasses.dataclass
class Customer:
    name: str
    card: Card


@pytest.mark.parametrize(
    "pointer",
    [
        "/args/who/card/number",
        "/args/who/*/number",
        "/args/who/fields/card/fields/number",  # as the policy's input has it
        "/args/who/card",
        "/args/*/card/number",
    ],
)
def test_a_pointer_reads_through_dataclasses_and_models(pointer):
    value = {"who": Customer("ada", Card(number="4711"))}
    assert "4711" in json.dumps(after(value))
    redacted = after(value, pointer)
    assert "4711" not in json.dumps(redacted)
    assert redacted["who"]["fields"]["name"] == "ada" or "*" in pointer


def test_an_extra_of_a_model_is_found_too():
    value = {"card": Card.model_validate({"number": "4711", "pin": "1234"})}
    assert "1234" in json.dumps(after(value))
    redacted = after(value, "/args/card/pin")
    assert "1234" not in json.dumps(redacted)
    assert "4711" in json.dumps(redacted)


@pytest.mark.parametrize(
    ("value", "pointer", "expected"),
    [
        (("a", "b"), "/args/x/1", {"$tuple": ["a", MARK]}),
        (("a", ("b", "c")), "/args/x/*/0", {"$tuple": ["a", {"$tuple": [MARK, "c"]}]}),
        (({"pin": 1},), "/args/x/0/pin", {"$tuple": [{"pin": MARK}]}),
        (({"pin": 1},), "/args/x/$tuple/0/pin", {"$tuple": [{"pin": MARK}]}),
        ({1: "a", 2: "b"}, "/args/x/1", {"$dict": [[1, MARK], [2, "b"]]}),
        ({1: "a", "k": "b"}, "/args/x/k", {"$dict": [["k", MARK], [1, "a"]]}),
        ({1: {"pin": 1}}, "/args/x/*/pin", {"$dict": [[1, {"pin": MARK}]]}),
        ({"$ref": "a", "b": 1}, "/args/x/$ref", {"$$ref": MARK, "b": 1}),
        ({"$ref": "a", "b": 1}, "/args/x/$$ref", {"$$ref": MARK, "b": 1}),
        (Decimal("1.5"), "/args/x", MARK),
        (Colour.RED, "/args/x", MARK),
    ],
)
def test_a_pointer_reads_through_every_tag(value, pointer, expected):
    assert after({"x": value}, pointer) == {"x": expected}


def test_a_set_is_redacted_whole_or_by_its_members():
    assert after({"x": {"a", "b"}}, "/args/x/*") == {"x": {"$set": [MARK, MARK]}}


def test_results_are_redacted_as_arguments_are():
    result = {"token": "t0p", "who": Customer("ada", Card(number="4711"))}
    text = json.dumps(after(result, "/result/token", "/result/who/card/number", member="result"))
    assert "t0p" not in text
    assert "4711" not in text
    assert "ada" in text
    assert after(result, "/args/token", member="result")["token"] == "t0p"
    assert after("a plain secret", "/result", member="result") == MARK


def test_no_argument_can_pretend_to_be_redacted():
    """The mark is a tag: a real key that begins with a $ has two of them."""
    assert after({"x": {"$redacted": True}}) == {"x": {"$$redacted": True}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab*/~$", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab*/~$", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Yield the path of every value inside ``value`` that can be named, with the value."""
    yield path, value
    members = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, member in members:
        yield from places(member, (*path, str(name)))


@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=2), json_values, min_size=1, max_size=3),
    st.data(),
)
def test_whatever_is_named_is_gone(value, data):
    encoded = Arguments.of(value).encoded
    every = [path for path, _member in places(json.loads(encoded)) if path]
    path = data.draw(st.sampled_from(every))
    redacted = json.loads(redaction.redact("args", encoded, [("args", *path)]))
    found = dict(places(redacted))
    assert found[path] == MARK or any(found.get(path[:end]) == MARK for end in range(len(path)))
    assert not any(
        len(other) > len(path) and other[: len(path)] == path and other[-1] != "$redacted"
        for other in found
    )


@given(st.dictionaries(st.text("ab", max_size=2), json_values, max_size=3))
def test_without_redactions_nothing_is_touched(value):
    encoded = Arguments.of(value).encoded
    assert redaction.redact("args", encoded, []) is encoded
    assert redaction.redact("args", encoded, [("result",)]) is encoded


def test_a_copy_is_canonical():
    encoded = Arguments.of({"b": 1e17, "a": 2**53 - 1, "pin": 1, "z": "\u20ac"}).encoded
    copy = redaction.redact("args", encoded, [("args", "pin")])
    assert canonical.dumps(canonical.loads(copy)) == copy
    assert copy == encoded.replace(b'"pin":1', b'"pin":{"$redacted":true}')


# --- the policy's input ---------------------------------------------------------------------------


def redacted_input(document, *pointers):
    encoded = canonical.dumps(document)
    return json.loads(redaction.redact_input(encoded, list(map(redaction.parse, pointers))))


def test_the_input_loses_arguments_attributes_and_facts():
    document = {"args": {"pin": "1", "to": "x"}, "code": "1", "owner": {"mail": "m"}, "action": "t"}
    assert redacted_input(document, "/args/pin", "/code", "/owner/mail", "/result") == {
        "args": {"pin": MARK, "to": "x"},
        "code": MARK,
        "owner": {"mail": MARK},
        "action": "t",
    }


def test_of_an_input_that_is_too_deep_to_be_read_nothing_is_kept():
    """Facts of the greatest depth, one level down in the policy's input."""
    deep = b'{"args":{"pin":"1234"},"fact":' + b"[" * 64 + b"]" * 64 + b"}"
    assert json.loads(redaction.redact_input(deep, [("args", "pin")])) == MARK
    less = b'{"args":{"pin":"1234"},"fact":' + b"[" * 63 + b"]" * 63 + b"}"
    assert json.loads(redaction.redact_input(less, [("args", "pin")]))["args"] == {"pin": MARK}


def test_a_long_input_is_redacted_all_the_same():
    """Arguments of 256 KiB make an input of more."""
    document = {"args": {"pin": "1234", "text": "x" * canonical.MAX_BYTES}}
    assert redacted_input(document, "/args/pin")["args"]["pin"] == MARK


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("/args/customer", {"/args/customer", "/who", "/whom"}),
        ("/args/customer/ssn", {"/args/customer/ssn", "/who/ssn", "/whom/ssn"}),
        ("/args/*", {"/args/*", "/who", "/whom", "/amount"}),
        ("/args/*/ssn", {"/args/*/ssn", "/who/ssn", "/whom/ssn", "/amount/ssn"}),
        ("/args", {"/args", "/who", "/whom", "/amount"}),
        ("/args/other", {"/args/other"}),
        ("/who", {"/who", "/args/customer", "/whom"}),  # the argument itself holds the same
        ("/who/ssn", {"/who/ssn", "/args/customer/ssn", "/whom/ssn"}),
        ("/result/customer", {"/result/customer"}),
    ],
)
def test_an_attribute_and_its_argument_are_redacted_together(pointer, expected):
    attributes = {"who": "customer", "whom": "customer", "amount": "cents"}
    found = redaction.with_attributes([redaction.parse(pointer)], attributes)
    assert set(map(redaction.dumps, found)) == expected


@pytest.mark.parametrize(
    ("pointer", "covered"),
    [
        ("/args", True),
        ("/args/*", True),
        ("/args/a", True),
        ("/args/a/b", False),
        ("/args/b", False),
        ("/result/a", False),
        ("/a", False),
    ],
)
def test_which_argument_a_redaction_covers(pointer, covered):
    assert redaction.cover([redaction.parse(pointer)], "a") is covered


# --- salts ----------------------------------------------------------------------------------------


def test_the_salt_of_copies_does_not_give_the_calls_own_away():
    salt = bytes(range(32))
    derived = redaction.salt_of(salt)
    assert len(derived) == 32
    assert derived != salt
    assert derived == redaction.salt_of(salt)
    assert derived != hashlib.sha256(salt).digest()
