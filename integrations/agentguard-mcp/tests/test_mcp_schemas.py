"""Each keyword of each draft of JSON Schema counts, and no schema or value takes long."""

from __future__ import annotations

import json
import time

import pytest

from agentguard.adapters import ArgumentsError
from agentguard_mcp import schemas
from agentguard_mcp.arguments import bound, require_checkable
from agentguard_mcp.schemas import MAX_SIZE, SECONDS, Schema, UncheckableError

DRAFTS = {
    "4": "http://json-schema.org/draft-04/schema#",
    "6": "http://json-schema.org/draft-06/schema#",
    "7": "http://json-schema.org/draft-07/schema#",
    "2019-09": "https://json-schema.org/draft/2019-09/schema",
    "2020-12": "https://json-schema.org/draft/2020-12/schema",
    "none": None,
}
ALL = tuple(DRAFTS)
NEW = ("2019-09", "2020-12", "none")
FLAG = {"type": "boolean"}
DEFINED = {"definitions": {"flag": FLAG}}
CORE = "https://json-schema.org/draft/2020-12/meta/core"


def props(schema):
    return {"type": "object", "properties": {"force": schema}}


# the name of a form, its schema, where "force" stands in the arguments, and the drafts that have it
PLACES = {
    "itself": lambda value: {"force": value},
    "member": lambda value: {"force": {"on": value}},
    "item": lambda value: {"force": [value]},
    "second": lambda value: {"force": [1, value]},
    "beside": lambda value: {"mode": "x", "force": value},
    "pattern": lambda value: {"force-a": value},
    "else": lambda value: {"mode": "y", "force": value},
}
FORMS = [
    ("type", props(FLAG), "itself", ALL),
    ("type list", props({"type": ["boolean", "null"]}), "itself", ALL),
    ("type list of numbers", props({"type": ["integer", "boolean"]}), "itself", ALL),
    ("enum", props({"enum": [True, False]}), "itself", ALL),
    ("const", props({"const": True}), "itself", ALL[1:]),
    ("anyOf", props({"anyOf": [FLAG, {"type": "null"}]}), "itself", ALL),
    ("oneOf", props({"oneOf": [FLAG, {"type": "integer"}]}), "itself", ALL),
    ("allOf", props({"allOf": [{}, FLAG]}), "itself", ALL),
    ("not", props({"not": {"type": ["string", "number"]}}), "itself", ALL),
    ("$ref to definitions", {**DEFINED, **props({"$ref": "#/definitions/flag"})}, "itself", ALL),
    ("$ref to $defs", {"$defs": {"f": FLAG}, **props({"$ref": "#/$defs/f"})}, "itself", ALL),
    ("$ref escaped", {"$defs": {"a/b": FLAG}, **props({"$ref": "#/$defs/a~1b"})}, "itself", ALL),
    (
        "$ref to an anchor",
        {"$defs": {"f": {"$anchor": "flag", **FLAG}}, **props({"$ref": "#flag"})},
        "itself",
        NEW,
    ),
    (
        "$ref to an $id",
        {"definitions": {"f": {"$id": "urn:x:flag", **FLAG}}, **props({"$ref": "urn:x:flag"})},
        "itself",
        ALL[1:],
    ),
    (
        "$ref to an $id that a draft has too",
        {
            "definitions": {"f": {"$id": CORE, "$defs": {"uriString": FLAG}}},
            **props({"$ref": f"{CORE}#/$defs/uriString"}),
        },
        "itself",
        ALL[1:],
    ),
    (
        "$ref to an anchor beside another one of the name",
        {
            "$defs": {
                "f": {"$anchor": "flag", **FLAG},
                "g": {"$id": "urn:x:g", "$defs": {"f": {"$anchor": "flag"}}},
            },
            **props({"$ref": "#flag"}),
        },
        "itself",
        NEW,
    ),
    (
        "$ref beside others",
        {"$defs": {"f": {}}, **props({"$ref": "#/$defs/f", **FLAG})},
        "itself",
        NEW,
    ),
    (
        "$ref in a circle",
        {
            "definitions": {
                "node": {"properties": {"on": FLAG, "next": {"$ref": "#/definitions/node"}}}
            },
            **props({"$ref": "#/definitions/node"}),
        },
        "member",
        ALL,
    ),
    ("$ref to the whole", {"properties": {"on": FLAG, "force": {"$ref": "#"}}}, "member", ALL),
    (
        "$dynamicRef",
        {
            "$defs": {"f": {"$dynamicAnchor": "flag", **FLAG}},
            **props({"$dynamicRef": "#flag"}),
        },
        "itself",
        ("2020-12", "none"),
    ),
    (
        "$recursiveRef",
        {"$recursiveAnchor": True, "properties": {"on": FLAG, "force": {"$recursiveRef": "#"}}},
        "member",
        ("2019-09",),
    ),
    ("properties", props({"properties": {"on": FLAG}}), "member", ALL),
    ("additionalProperties", {"additionalProperties": FLAG}, "itself", ALL),
    ("patternProperties", {"patternProperties": {"^force(?!x)": FLAG}}, "pattern", ALL),
    (
        "patternProperties and additionalProperties",
        {"patternProperties": {"^f": FLAG}, "additionalProperties": False},
        "pattern",
        ALL,
    ),
    (
        "additionalProperties beside patternProperties",
        {"patternProperties": {"^x$": {}}, "additionalProperties": FLAG},
        "itself",
        ALL,
    ),
    (
        "propertyNames",
        {"propertyNames": {"maxLength": 5}, "additionalProperties": FLAG},
        "itself",
        ALL,
    ),
    ("items", props({"items": FLAG}), "item", ALL),
    ("contains", props({"contains": FLAG}), "item", ALL[1:]),
    ("minContains", props({"contains": FLAG, "minContains": 1}), "item", NEW),
    (
        "items by position",
        props({"items": [{"type": "integer"}, FLAG]}),
        "second",
        ("4", "6", "7", "2019-09"),
    ),
    (
        "additionalItems",
        props({"items": [{"type": "integer"}], "additionalItems": FLAG}),
        "second",
        ("4", "6", "7", "2019-09"),
    ),
    (
        "prefixItems",
        props({"prefixItems": [{"type": "integer"}, FLAG]}),
        "second",
        ("2020-12", "none"),
    ),
    (
        "items behind prefixItems",
        props({"prefixItems": [{"type": "integer"}], "items": FLAG}),
        "second",
        ("2020-12", "none"),
    ),
    (
        "unevaluatedItems",
        props({"prefixItems": [{"type": "integer"}], "unevaluatedItems": FLAG}),
        "second",
        ("2020-12", "none"),
    ),
    (
        "unevaluatedItems 2019",
        props({"items": [{"type": "integer"}], "unevaluatedItems": FLAG}),
        "second",
        ("2019-09",),
    ),
    (
        "unevaluatedProperties",
        {"properties": {"mode": {}}, "unevaluatedProperties": FLAG},
        "beside",
        NEW,
    ),
    (
        "unevaluatedProperties over allOf",
        {"allOf": [{"properties": {"mode": {}}}], "unevaluatedProperties": FLAG},
        "beside",
        NEW,
    ),
    (
        "unevaluatedProperties and patternProperties",
        {
            "allOf": [{"patternProperties": {"^mo": {}}}],
            "unevaluatedProperties": FLAG,
        },
        "beside",
        NEW,
    ),
    (
        "if then",
        {"if": {"properties": {"mode": {"const": "x"}}}, "then": props(FLAG)},
        "beside",
        ("7", *NEW),
    ),
    (
        "if else",
        {"if": {"properties": {"mode": {"pattern": "^x"}}}, "else": props(FLAG)},
        "else",
        ("7", *NEW),
    ),
    ("dependentSchemas", {"dependentSchemas": {"mode": props(FLAG)}}, "beside", NEW),
    ("dependencies", {"dependencies": {"mode": props(FLAG)}}, "beside", ("4", "6", "7")),
    ("extends to a false schema", props({"anyOf": [False, FLAG]}), "itself", ALL[1:]),
]


def drafted(schema, draft):
    return {**schema, **({} if DRAFTS[draft] is None else {"$schema": DRAFTS[draft]})}


CASES = [
    pytest.param(drafted(schema, draft), PLACES[place], id=f"{name} in {draft}")
    for name, schema, place, drafts in FORMS
    for draft in drafts
]

WRAPPERS = {
    "allOf": lambda schema: {"allOf": [{}, schema]},
    "anyOf": lambda schema: {"anyOf": [{"not": {}}, schema]},
    "oneOf": lambda schema: {"oneOf": [schema, {"not": {}}]},
    "not not": lambda schema: {"not": {"not": schema}},
    "$ref": lambda schema: {
        "definitions": {"whole": schema},
        "allOf": [{"$ref": "#/definitions/whole"}],
    },
    "then": lambda schema: {"if": {}, "then": schema},
    "else": lambda schema: {"if": {"not": {}}, "else": schema},
    "dependentSchemas": lambda schema: {"dependentSchemas": {"force": schema}},
}
CONDITIONS = ("then", "else")


def wrapped(schema, wrapper):
    """Return a schema in another one, which has its definitions."""
    inner = {key: one for key, one in schema.items() if key not in ("definitions", "$defs")}
    outer = WRAPPERS[wrapper](inner)
    for key in ("definitions", "$defs"):
        if key in schema:
            outer[key] = {**schema[key], **outer.get(key, {})}
    return outer


def pairs(wrapper):
    """Yield each form in a wrapper, with its place, in each draft that has both."""
    for name, schema, place, drafts in FORMS:
        if name in ("$recursiveRef", "$ref to the whole"):  # the whole would be the wrapper
            continue
        if wrapper == "dependentSchemas" and place == "pattern":
            continue
        for draft in drafts:
            if wrapper in CONDITIONS and draft in ("4", "6"):
                continue
            if wrapper == "dependentSchemas" and draft not in NEW:
                continue
            yield drafted(wrapped(schema, wrapper), draft), PLACES[place], f"{name} in {draft}"


@pytest.mark.parametrize(("schema", "place"), CASES)
def test_a_text_for_a_boolean_is_refused_by_each_form_of_a_schema(schema, place):
    require_checkable(schema)
    for wrong in ("true", "yes", "1", ""):
        with pytest.raises(ArgumentsError) as refused:
            bound(schema, place(wrong))
        assert refused.value.code == "arguments.invalid"
        assert "yes" not in str(refused.value)
    assert bound(schema, place(True)) == place(True)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_text_for_a_boolean_is_refused_by_each_form_within_another(wrapper):
    for schema, place, name in pairs(wrapper):
        with pytest.raises(ArgumentsError) as refused:
            bound(schema, place("true"))
        assert refused.value.code == "arguments.invalid", name
        assert bound(schema, place(True)) == place(True), name


# --- schemas that can't be used -------------------------------------------------------------------

LOOP = {"$ref": "#/$defs/a"}
BAD = {
    "a draft of long ago": {"$schema": "http://json-schema.org/draft-03/schema#"},
    "an unknown draft": {"$schema": "https://example.com/draft"},
    "a draft that is no text": {"$schema": 7},
    "a part of another draft": props({"$schema": DRAFTS["7"], "items": FLAG}),
    "no type": props({"type": "text"}),
    "no schema": props({"type": 7}),
    "a pattern that is none": props({"pattern": "["}),
    "a pattern of names that is none": {"patternProperties": {"[": {}}},
    "a pattern that is too large": props({"pattern": "((?:a{1000}){1000}){1000}"}),
    "another document": props({"$ref": "https://evil.example/schema"}),
    "a file": props({"$ref": "file:///etc/passwd"}),
    "a part that is not there": props({"$ref": "#/$defs/none"}),
    "an anchor that is not there": props({"$dynamicRef": "#none"}),
    "a part deep inside": props({"anyOf": [{"items": {"not": {"$ref": "other.json"}}}]}),
    "a circle": {"$defs": {"a": LOOP}, **LOOP},
    "itself": {"$ref": "#"},
    "a circle of many": {"$defs": {"a": {"anyOf": [LOOP, LOOP]}}, **LOOP},
    "names beside unevaluatedProperties": {
        "patternProperties": {"^(a+)+$": {}},
        "unevaluatedProperties": False,
    },
    "a pattern of names that a line feed may follow": {
        "patternProperties": {"^a$": {}},
        "unevaluatedProperties": False,
    },
    "two parts of one $id": {"$defs": {"a": {"$id": "urn:x"}, "b": {"$id": "urn:x", **FLAG}}},
    "a part with the $id of the whole": {"$id": "urn:x", "$defs": {"a": {"$id": "urn:x#"}}},
    "two parts of one $anchor": {
        "$defs": {"a": {"$anchor": "x"}, "b": {"not": {"$dynamicAnchor": "x"}}}
    },
    "too many types": props({"type": [{"a": n} for n in range(20_000)]}),
    "a $recursiveRef to elsewhere": {
        "$schema": DRAFTS["2019-09"],
        "$defs": {"f": FLAG},
        **props({"$recursiveRef": "#/$defs/f"}),
    },
    "another document for one of several dependencies": {
        "$schema": DRAFTS["7"],
        "dependencies": {"a": ["b"], "c": {"$ref": "https://evil.example/schema"}},
    },
    "the schema of its own draft": props({"$ref": DRAFTS["2020-12"]}),
    "a part of the place that it names": {
        "$id": "https://evil.example/",
        **props({"$ref": "schema"}),
    },
    "another document with an anchor": props({"$dynamicRef": "https://evil.example/schema#a"}),
    "no JSON": {"const": {1, 2}},
    "no number of JSON": {"const": float("nan")},
}


@pytest.mark.parametrize("schema", BAD.values(), ids=BAD)
def test_a_schema_that_can_not_be_used_says_why(schema):
    begun = time.process_time()
    with pytest.raises(ArgumentsError) as refused:
        require_checkable(schema)
    assert refused.value.code == "tool.uncheckable"
    assert "the schema of the tool can't be used to check arguments: " in str(refused.value)
    assert "evil" not in str(refused.value)
    assert time.process_time() - begun < 4 * SECONDS


BELOW = {
    "a type that is none": {"type": "text"},
    "names that are none": {"required": "ab"},
    "a limit that is none": {"minimum": "3"},
    "a list": ["x"],
    "a text": "boolean",
    "a pattern that is none": {"pattern": "["},
    "another document": {"$ref": "https://evil.example/schema"},
    "another document, deeper": {"items": {"$ref": "#/x-defs/b"}},
    "an unknown draft": {"$schema": "https://example.com/draft"},
    "an $id": {"$id": "urn:x", "$defs": {"f": FLAG}, "allOf": [{"$ref": "#/$defs/f"}]},
    "an $id, deeper": {"not": {"$id": "urn:x"}},
}


@pytest.mark.parametrize("part", BELOW.values(), ids=BELOW)
@pytest.mark.parametrize("draft", ALL)
def test_a_part_below_an_unknown_keyword_is_checked_where_a_reference_leads_there(draft, part):
    if draft == "4":  # whose word it is
        part = json.loads(json.dumps(part).replace('"$id"', '"id"'))
    others = {"b": {"$ref": "https://evil.example/schema"}}
    schema = drafted({"x-defs": {"a": part, **others}, **props({"$ref": "#/x-defs/a"})}, draft)
    with pytest.raises(UncheckableError):
        Schema.of(schema)
    Schema.of({**schema, "properties": {}})
    sound = Schema.of({**schema, "x-defs": {"a": FLAG, **others}})
    assert sound.error({"force": "true"})
    assert sound.error({"force": True}) is None


def test_a_schema_has_so_many_characters_and_no_more():
    def of(size: int) -> dict[str, str]:
        return {"title": "a" * (size - len('{"title": ""}'))}

    Schema.of(of(MAX_SIZE))
    begun = time.process_time()
    for size in (MAX_SIZE + 1, 20 * MAX_SIZE):
        with pytest.raises(UncheckableError, match=f"it has more than {MAX_SIZE} characters"):
            Schema.of(of(size))
    types = {"type": [{"a": n} for n in range(200_000)]}
    with pytest.raises(UncheckableError, match="it has more"):
        Schema.of(types)
    assert time.process_time() - begun < 2 * SECONDS


def test_a_check_that_took_too_long_is_made_again_in_a_while(monkeypatch):
    schema = props({"title": "of a busy moment", **FLAG})
    now = time.monotonic()
    with monkeypatch.context() as busy:
        busy.setattr(schemas, "SECONDS", -1.0)
        with pytest.raises(UncheckableError, match="the check takes more than"):
            Schema.of(schema)
    monkeypatch.setattr(schemas, "_known", lambda _text: pytest.fail("it was checked at once"))
    with monkeypatch.context() as soon:
        soon.setattr(schemas.time, "monotonic", lambda: now)
        with pytest.raises(UncheckableError, match="the check takes more than"):
            Schema.of(schema)
    monkeypatch.undo()
    monkeypatch.setattr(schemas.time, "monotonic", lambda: now + schemas.RETRY)
    assert bound(schema, {"force": True}) == {"force": True}


def test_a_deep_schema_can_not_be_used():
    deep = FLAG
    for _ in range(5_000):
        deep = {"items": deep}
    with pytest.raises(UncheckableError):
        Schema.of(deep)
    shallow = FLAG
    for _ in range(20):
        shallow = {"items": shallow}
    Schema.of(shallow)


# --- values that would take long ------------------------------------------------------------------

MANY = list(range(50_000))
CHAIN = {f"p{n + 1}": {"anyOf": [{"$ref": f"#/$defs/p{n}"}] * 2} for n in range(40)}
FORKS = {
    f"p{n + 1}": {"dependentSchemas": {k: {"$ref": f"#/$defs/p{n}"} for k in "ab"}}
    for n in range(40)
}
LONG = "a" * 200_000 + "b"
COSTLY = {
    "a chain of choices": (
        {"$defs": {"p0": {"type": "string"}, **CHAIN}, **props({"$ref": "#/$defs/p40"})},
        {"force": 1},
    ),
    "forks": (
        {"$defs": {"p0": {}, **FORKS}, "unevaluatedProperties": {}, "$ref": "#/$defs/p40"},
        {"a": 1, "b": 2},
    ),
    "items": (props({"allOf": [{"items": {"not": FLAG}}] * 50}), {"force": MANY}),
    "unevaluated items": (
        props({"allOf": [{"items": True}], "unevaluatedItems": False}),
        {"force": MANY},
    ),
    "unevaluated members": (
        {"allOf": [{"additionalProperties": {"type": "integer"}}], "unevaluatedProperties": False},
        {f"a{n}": n for n in MANY[:40_000]},
    ),
    "a pattern": (props({"pattern": "^(?=(a+)+$)(a|a)*$"}), {"force": LONG}),
    "a pattern of few characters": (
        props({"pattern": r"^(?:(a|a)*|b)\1$"}),
        {"force": "a" * 4_000 + "c"},
    ),
    "a pattern of names": ({"patternProperties": {"(?=(a+)+$)b": FLAG}}, {LONG: True}),
}


@pytest.mark.parametrize(("schema", "arguments"), COSTLY.values(), ids=COSTLY)
def test_what_takes_too_long_is_refused_in_time(schema, arguments):
    require_checkable(schema)
    begun = time.process_time()
    with pytest.raises(ArgumentsError) as refused:
        bound(schema, arguments)
    assert refused.value.code == "arguments.invalid"
    assert "can't be checked against the schema" in str(refused.value)
    assert time.process_time() - begun < 4 * SECONDS


LARGE = props({"properties": {f"p{n}": {"properties": {"a": FLAG, "b": FLAG}} for n in range(800)}})
QUICK = {
    "a large schema": (LARGE, {"force": {"p7": {"a": True}}}),
    "a pattern": (props({"pattern": "^(a|a)*b$"}), {"force": LONG}),
    "a look-around": (
        props({"pattern": r"^(?!\.)(?!.*\.\.)[a-z.]+@[a-z.]+$"}),
        {"force": "a.b@c.d"},
    ),
    "a class of Unicode": (props({"pattern": r"^\p{L}+$"}), {"force": "\u00fc"}),
    "unique items": (props({"uniqueItems": True}), {"force": [{"a": n} for n in range(4_000)]}),
    "many items": (props({"items": {"type": "integer"}}), {"force": MANY[:20_000]}),
    "a draft named twice": (
        {**props({"$schema": DRAFTS["7"], **FLAG}), "$schema": DRAFTS["7"]},
        {"force": True},
    ),
    "a draft in an example": ({**props(FLAG), "examples": [{"$schema": "x"}]}, {"force": True}),
    "a property named so": (
        props({"properties": {"$schema": {"type": "string"}}}),
        {"force": {"$schema": "x"}},
    ),
}


@pytest.mark.parametrize(("schema", "arguments"), QUICK.values(), ids=QUICK)
def test_what_takes_no_long_time_passes(schema, arguments):
    begun = time.process_time()
    assert bound(schema, arguments) == arguments
    assert time.process_time() - begun < 2 * SECONDS


def test_a_draft_within_a_schema_lifts_no_limit():
    items = {"allOf": [{"not": FLAG}] * 20}
    within = {"$schema": DRAFTS["2020-12"], "uniqueItems": True, "items": items}
    schema = drafted(props({"allOf": [within]}), "2020-12")
    begun = time.process_time()
    with pytest.raises(ArgumentsError):
        bound(schema, {"force": [[n] for n in MANY]})
    assert time.process_time() - begun < 4 * SECONDS
    assert bound(schema, {"force": [[1]]}) == {"force": [[1]]}
