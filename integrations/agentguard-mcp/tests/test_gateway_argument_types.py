"""Arguments of other types than a tool's schema says, which servers read in their own way."""

from __future__ import annotations

import time

import pytest
from gateway_scene import code_of, gateway, settings

from agentguard import Decision
from agentguard.adapters import ArgumentsError
from agentguard_mcp.gateway.argument_types import require_types

SCHEMA = {
    "type": "object",
    "properties": {
        "force": {"type": "boolean"},
        "n": {"type": "integer"},
        "x": {"type": ["number", "string"]},
        "names": {"type": "array", "items": {"type": "string"}},
        "pair": {"prefixItems": [{"type": "integer"}], "items": {"type": "boolean"}},
        "options": {"$ref": "#/$defs/a~1b"},
        "maybe": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "one": {"oneOf": [{"type": "integer"}, {"type": "object"}]},
        "all": {"allOf": [{"type": "object"}, {"properties": {"a": {"type": "string"}}}]},
        "free": {},
        "odd": {"type": "text"},
        "elsewhere": {"$ref": "https://example.com/schema"},
        "patterns": {"patternProperties": {"a": {}}, "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": {"type": "string"},
    "$defs": {
        "a/b": {
            "type": "object",
            "properties": {"force": {"type": "boolean"}, "inner": {"$ref": "#/$defs/a~1b"}},
        }
    },
}
WRONG = [
    {"force": "true"},
    {"force": 1},
    {"n": "3"},
    {"n": True},
    {"n": 1.5},
    {"x": False},
    {"names": '["a"]'},
    {"names": [1]},
    {"pair": ["1"]},
    {"pair": [1, "true"]},
    {"options": '{"force": true}'},
    {"options": {"inner": {"inner": {"force": "true"}}}},
    {"maybe": "yes"},
    {"one": "1"},
    {"all": {"a": 1}},
    {"all": "{}"},
    {"other": 1},
]
RIGHT = [
    {},
    {"force": False, "n": 3, "x": 0.5, "names": ["a"], "pair": [1, True, False]},
    {"force": None, "n": 3.0, "x": "a", "names": [], "pair": []},
    {"options": {"inner": {"inner": {"force": True}}, "more": 1}},
    {"maybe": True, "one": {"a": 1}, "all": {"a": "b"}, "other": "a"},
    {"maybe": None, "one": 1, "all": {}, "free": "true", "odd": 1, "elsewhere": 1},
    {"patterns": {"a": 1}},
]


@pytest.mark.parametrize("arguments", WRONG)
def test_a_value_of_another_type_is_refused(arguments):
    with pytest.raises(ArgumentsError) as refused:
        require_types(SCHEMA, arguments)
    assert refused.value.code == "arguments.invalid"
    (name,) = arguments
    assert (repr(name) in str(refused.value)) is (name in SCHEMA["properties"])


@pytest.mark.parametrize("arguments", RIGHT)
def test_a_value_of_the_type_passes(arguments):
    require_types(SCHEMA, arguments)


def test_a_schema_without_an_end_refuses_at_once():
    loop = {"$ref": "#/$defs/a"}
    both = {"anyOf": [loop, loop], "allOf": [loop, loop]}
    begun = time.process_time()
    for schema in ({"$defs": {"a": loop}, **loop}, {"$defs": {"a": both}, **loop}, {"$ref": "#"}):
        with pytest.raises(ArgumentsError):
            require_types(schema, {"a": 1})
    assert time.process_time() - begun < 5


def test_a_schema_of_many_costly_parts_refuses_at_once():
    parts = {f"p{n + 1}": {"anyOf": [{"$ref": f"#/$defs/p{n}"}] * 2} for n in range(12)}
    names = [f"a{number}" for number in range(200)]
    costly = {"anyOf": [{"$ref": "#/$defs/p12"}, {}]}
    schema = {
        "$defs": {"p0": {"type": "string"}, **parts},
        "properties": dict.fromkeys(names, costly),
    }
    begun = time.process_time()
    require_types(schema, {"a1": 1})
    with pytest.raises(ArgumentsError, match="too many"):
        require_types(schema, dict.fromkeys(names, 1))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("value", ["true", 1, '"1"'])
async def test_a_policy_decides_on_no_other_value_than_the_tool_gets(recorded, value):
    recorded.decide = lambda call: (
        Decision.deny() if call["args"].get("force") is True else Decision.allow()
    )
    schema = {"type": "object", "properties": {"force": {"type": "boolean"}}}
    async with gateway(recorded, settings(options={"schema": schema})) as client:
        params = {"name": "echo", "arguments": {"force": value}}
        assert code_of((await client.ask("tools/call", params))["result"]) == "arguments.invalid"
        for force, code in ((True, "policy.denied"), (False, None)):
            given = {"name": "echo", "arguments": {"force": force}}
            result = (await client.ask("tools/call", given))["result"]
            assert (code_of(result) if result["isError"] else None) == code
    assert recorded.outcomes() == ["ok"]
