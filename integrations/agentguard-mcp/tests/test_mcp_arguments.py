"""What a policy decides on is what the tool gets: no other type, no missing default."""

from __future__ import annotations

import time

import pytest

from agentguard.adapters import ArgumentsError
from agentguard_mcp.arguments import bound

SCHEMA = {
    "type": "object",
    "properties": {
        "cents": {"type": "integer"},
        "force": {"type": "boolean", "default": False},
        "to": {"type": "string"},
        "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "data": {"anyOf": [{"type": "string"}, {"type": "object"}]},
        "free": {},
        "at": {"$ref": "#/$defs/Place"},
    },
    "required": ["cents"],
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"open": {"type": "boolean"}},
            "required": ["open"],
        }
    },
}


def refused(arguments, schema=SCHEMA, code="arguments.invalid"):
    with pytest.raises(ArgumentsError) as caught:
        bound(schema, arguments)
    assert caught.value.code == code
    return str(caught.value)


def test_the_defaults_are_filled_in():
    assert bound(SCHEMA, {"cents": 3}) == {"cents": 3, "force": False, "note": None}
    assert bound(SCHEMA, {"cents": 3, "force": True, "note": "a"})["force"] is True
    assert bound({}, {"any": [1]}) == {"any": [1]}


@pytest.mark.parametrize(
    "value", ["3", 3.5, True, None, [3], {"a": 3}, "three"], ids=lambda value: type(value).__name__
)
def test_a_value_of_another_type_is_refused(value):
    assert "'cents'" in refused({"cents": value})


@pytest.mark.parametrize("value", ["true", "yes", 1, 0, None, "on"])
def test_what_an_sdk_takes_for_true_or_false_is_refused(value):
    assert "'force'" in refused({"cents": 3, "force": value})
    assert bound(SCHEMA, {"cents": 3, "force": True})["force"] is True


def test_a_value_inside_an_object_is_looked_at_as_well():
    assert "'at'" in refused({"cents": 3, "at": {"open": "true"}})
    assert "'at'" in refused({"cents": 3, "at": {}})
    assert bound(SCHEMA, {"cents": 3, "at": {"open": True}})["at"] == {"open": True}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("null", ["note", "free"]),
        (" null ", ["note", "free"]),
        ("[1]", ["data", "free"]),
        ('{"a": 1}', ["data", "free"]),
        # Python's reader gives these up, and others do not
        (f"[{'1' * 5_000}]", ["data", "free"]),
        (f"{'[' * 100_000}{']' * 100_000}", ["data", "free"]),
    ],
    ids=["null", "spaces", "list", "object", "many digits", "deep"],
)
def test_a_text_that_could_be_read_as_a_value_of_the_parameter_is_refused(text, names):
    for name in ("to", "note", "data", "free"):
        if name in names:
            assert "could be read as JSON" in refused({"cents": 3, name: text})
        else:
            assert bound(SCHEMA, {"cents": 3, name: text})[name] == text
    assert bound(SCHEMA, {"cents": 3, "note": "3"})["note"] == "3"


def test_a_list_in_json_is_no_list():
    assert "'tags'" in refused({"cents": 3, "tags": '["a"]'})
    assert bound(SCHEMA, {"cents": 3, "tags": ["a"]})["tags"] == ["a"]


def test_a_missing_argument_is_refused_and_no_value_is_quoted():
    assert refused({"secret-name": "secret-value"}) == (
        "the arguments do not match the schema of the tool (required)"
    )
    assert "secret" not in refused({"cents": "secret-value"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"properties": {"a": {"$ref": "https://evil.example/schema"}}},
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
        {"properties": {"a": {"type": {1, 2}}}},
        {"$schema": 7, "type": []},
    ],
    ids=range(5),
)
def test_a_schema_that_can_not_be_used_refuses(schema):
    refused({"a": 1}, schema, "tool.uncheckable")


UNIQUE = {"type": "object", "properties": {"items": {"type": "array", "uniqueItems": True}}}


@pytest.mark.parametrize(
    "items",
    [
        [1, 1],
        [1, "a", 1.0],
        [{"a": [1, {}]}, 1, {"a": [1.0, {}]}],
        [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
        [[], 0, []],
        [None, {}, None],
    ],
)
def test_a_list_that_has_an_item_twice_is_refused(items):
    with pytest.raises(ArgumentsError) as refused:
        bound(UNIQUE, {"items": items})
    assert str(refused.value).endswith("(uniqueItems)")
    bound({"type": "object", "properties": {"items": {"uniqueItems": False}}}, {"items": items})


def test_a_list_of_different_items_passes_at_once():
    few = [1, True, "1", [], {}, [1], [True], {"a": 1}, {"a": True}, {"a": "1"}, None, 0, False]
    assert bound(UNIQUE, {"items": few}) == {"items": few}
    many, begun = [{"a": number} for number in range(4_000)], time.process_time()
    bound(UNIQUE, {"items": many})
    assert time.process_time() - begun < 2  # a look at each pair takes 15
