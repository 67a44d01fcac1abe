"""What is signed of a tool, its resource template, and the names of its facts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypedDict, Union, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentguard import ConfigError, Decision, Denied, Guard
from agentguard.adapters import Arguments, ToolSpec
from agentguard.call.tool import MAX_RESOURCE, escape, function_schema
from agentguard.errors import ArgumentsError
from agentguard.signing import canonical

SPEC = ToolSpec("open_pr", "Open it.", {"type": "object"}, "acme.tools:open_pr")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "open_pr2"},
        {"description": "Open it!"},
        {"schema": {"type": "array"}},
        {"origin": "mcp:server"},
    ],
    ids=str,
)
def test_what_the_model_sees_and_where_it_comes_from_is_in_the_digest(change):
    assert dataclasses.replace(SPEC, **change).digest != SPEC.digest


@pytest.mark.parametrize(
    "change",
    [
        {"requires": ("x",)},
        {"resource": "x"},
        {"attributes": {"a": "b"}},
        {"facts": dict, "gives": ("a",)},
    ],
    ids=str,
)
def test_what_the_application_says_of_it_is_not(change):
    assert dataclasses.replace(SPEC, **change).digest == SPEC.digest


def test_the_digest_is_stable():
    again = ToolSpec("open_pr", "Open it.", {"type": "object"}, "acme.tools:open_pr")
    assert (again.digest, again.schema_sha256) == (SPEC.digest, SPEC.schema_sha256)
    assert len(SPEC.digest) == 64


@pytest.mark.parametrize("schema", [{"x": object()}, {"x": float("nan")}, {"x": "\ud800"}, {1: 2}])
def test_a_schema_that_is_no_json_is_a_mistake(schema):
    with pytest.raises(ConfigError, match="no JSON description"):
        ToolSpec("t", "", schema, "m:t")


def test_a_name_or_template_that_is_no_text_is_a_mistake():
    several: list[dict[str, Any]] = [{"name": "\ud800"}, {"resource": "\ud800"}]
    for fields in several:
        with pytest.raises(ConfigError):
            dataclasses.replace(SPEC, **fields)


@pytest.mark.parametrize("template", ["{", "}", "a{}b", "{a", "a}b", "{a}}", "{{a}}", "{{}}"])
def test_a_template_that_is_none_is_a_mistake(template):
    with pytest.raises(ConfigError, match="not a template"):
        dataclasses.replace(SPEC, resource=template)


@pytest.mark.parametrize(
    ("template", "arguments", "resource"),
    [
        ("repo", {}, "repo"),
        ("repo:{repo}", {"repo": "x"}, "repo:x"),
        ("{a}{b}", {"a": "1", "b": "2"}, "12"),
        ("{a}/{a}", {"a": "x/y"}, "x%2Fy/x%2Fy"),
        ("n:{a}", {"a": 5}, "n:5"),
        ("n:{a}", {"a": -5}, "n:-5"),
        ("n:{a}", {"a": True}, "n:true"),
        ("n:{a}", {"a": ""}, "n:"),
        ("n:{a}", {"a": "é{b}"}, "n:%C3%A9%7Bb%7D"),
        ("n:%{a}", {"a": "2F"}, "n:%2F"),
    ],
)
def test_a_template_is_filled_with_whole_escaped_arguments(template, arguments, resource):
    spec = dataclasses.replace(SPEC, resource=template)
    assert spec.resource_of(Arguments.of(arguments).values) == resource


@pytest.mark.parametrize("value", [None, 1.5, 2**60, [], {}, b"x", ("x",)], ids=repr)
def test_an_argument_of_another_kind_fills_no_template(value):
    spec = dataclasses.replace(SPEC, resource="{a}")
    with pytest.raises(ArgumentsError, match="needs the argument 'a'") as caught:
        spec.resource_of(Arguments.of({"a": value}).values)
    assert caught.value.code == "arguments.resource"
    with pytest.raises(ArgumentsError):
        spec.resource_of({})


def test_a_resource_has_a_limit_and_not_less():
    spec = dataclasses.replace(SPEC, resource="{a}")
    assert spec.resource_of({"a": "x" * MAX_RESOURCE})
    with pytest.raises(ArgumentsError, match="more than 2048"):
        spec.resource_of({"a": "x" * (MAX_RESOURCE + 1)})


@given(one=st.text(), two=st.text())
def test_escaping_keeps_different_texts_apart(one, two):
    assume(one != two)
    assert escape(one) != escape(two)
    assert escape(one).isascii()


def test_an_override_that_is_none_says_nothing():
    spec = dataclasses.replace(SPEC, requires=("x",), resource="r")
    assert spec.overridden(requires=None, resource=None) == spec
    assert spec.overridden(requires=(), resource="s").requires == ()


def test_a_functions_parameters_are_its_schema():
    def tool(a: int, b: str = "x", *, c) -> None: ...

    schema: dict[str, Any] = function_schema(tool)
    assert {name: p["kind"] for name, p in schema["properties"].items()} == {
        "a": "positional_or_keyword",
        "b": "positional_or_keyword",
        "c": "keyword_only",
    }
    assert schema["properties"]["a"]["annotation"] == "int"
    assert schema["properties"]["c"]["annotation"] == ""
    assert schema["required"] == ["a", "c"]


ANNOTATED = """
import enum, re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional, TypeVar

from agentguard.adapters import ToolSpec
from agentguard.call.tool import function_schema

class Colour(enum.Enum):
    RED = 1

@dataclass(frozen=True)
class Limit:
    names: frozenset = frozenset({"a", "b", "c", "d", "e"})
    most: int = 5

class Plain:
    pass

T = TypeVar("T")

def tool(
    a: Annotated[int, lambda: 1, Plain(), Limit()],
    b: Annotated[str, {"a", "b", "c", "d", "e"}, re.compile("x")],
    c: Literal["1", 1, Colour.RED, None] = "1",
    d: Callable[[int, "str"], Optional[list["Plain"]]] = lambda i, s: None,
    e: Plain() = Plain(),
    f: dict[str, Any] | None = None,
    *args: Callable[..., T],
    **kwargs: "T",
) -> None: ...

print(ToolSpec("tool", "", function_schema(tool), "m:tool").digest)
"""
CHANGES = (
    ("", ""),
    ("1, Colour", "2, Colour"),
    ("most: int = 5", "most: int = 6"),
    ("Annotated[int, lambda", "Annotated[float, lambda"),
    ('{"a", "b", "c", "d", "e"}, re', '{"a"}, re'),
    ("Optional[list", "Optional[set"),
    ("e: Plain() =", "e: re.compile('x') ="),
    ("**kwargs", "**others"),
)
RUN_EACH = "import json, sys; [exec(s, {'__name__': '__main__'}) for s in json.load(sys.stdin)]"


def digests(hash_seed: str) -> list[str]:
    """Describe each variant of the annotated tool in one process of its own."""
    command: list[str] = [sys.executable, "-c", RUN_EACH]
    run = subprocess.run(
        command,
        input=json.dumps([ANNOTATED.replace(*change) for change in CHANGES]),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


def test_the_digest_is_the_same_in_every_process_and_another_for_each_change():
    first = digests("1")
    assert digests("2") == first
    assert len(set(first)) == len(CHANGES)


def test_an_annotation_is_written_alike_postponed_or_not():
    def evaluated(a, b, c, d): ...

    evaluated.__annotations__ = {"a": int, "b": list[str], "c": dict[str, list[int]], "d": "str"}

    def postponed(a: int, b: list[str], c: dict[str, list[int]], d: str): ...

    assert function_schema(evaluated) == function_schema(postponed)
    evaluated.__annotations__["b"] = list[int]
    assert function_schema(evaluated) != function_schema(postponed)


def test_a_value_and_a_name_of_the_same_letters_differ():
    schemas = []
    for annotation in (Literal["int"], Literal[1], Literal[True], Annotated[int, "int"], int):

        def tool(a): ...

        tool.__annotations__ = {"a": annotation}
        schemas.append(canonical.digest(function_schema(tool)))
    assert len(set(schemas)) == 5


def test_a_description_is_the_same_on_every_python():
    def tool(a, b, c, d): ...

    union = Union
    tool.__annotations__ = {
        "a": int | None,
        "b": union[int, None],
        "c": list[PurePosixPath],
        "d": union[cast("type", "Later"), None],
    }
    described: Any = function_schema(tool)["properties"]
    assert {name: member["annotation"] for name, member in described.items()} == {
        "a": "typing.Union[int, NoneType]",
        "b": "typing.Union[int, NoneType]",
        "c": "list[pathlib.PurePosixPath]",
        "d": "typing.Union[ForwardRef('Later'), NoneType]",
    }


UNDEFINED = """
def send(to: Address, note: list[Address], copies: int = 1) -> Receipt:
    return f"{copies} to {to}"

def passing_on(*args: Address, **kwargs: Address) -> Receipt:
    return send(*args, **kwargs)

passing_on.__wrapped__ = send
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="an undefined name is Python's own error")
@pytest.mark.parametrize("name", ["send", "passing_on"])
def test_a_tools_annotations_may_have_names_that_are_defined_later(name):
    namespace: dict[str, Any] = {"__name__": "letters"}
    exec(compile(UNDEFINED, "letters.py", "exec", dont_inherit=True), namespace)  # noqa: S102
    with Guard.ephemeral(lambda call: Decision.allow()) as guard:
        tool = guard.tool(resource="mail:{to}" if name == "send" else None)(namespace[name])
        agent = guard.new_agent("clerk")
        assert agent.call(tool, to="ann", note=[]) == "1 to ann"
        with pytest.raises(Denied, match="do not fit"):
            agent.call(tool, to="ann", note=[], cc="bob")
    described = json.dumps(function_schema(namespace[name]))
    assert "\"ForwardRef('Address')\"" in described
    assert "<function" not in described


class Owned(TypedDict):
    owner: str


@dataclasses.dataclass
class OwnedBy:
    owner: str


def typed(_call: object) -> Owned:
    return {"owner": "alice"}


def built(_call: object) -> OwnedBy:
    return OwnedBy("alice")


def loose(_call: object) -> dict[str, str]:
    return {"owner": "alice"}


def silent(_call):
    return {"owner": "alice"}


@pytest.mark.parametrize("facts", [loose, silent])
def test_a_look_up_of_facts_in_code_says_which_names_it_gives(facts):
    seen = []

    def policy(call: Any) -> Decision:
        seen.append(call["owner"])
        return Decision.allow()

    with Guard.ephemeral(policy) as guard:
        with pytest.raises(ConfigError, match=f"{facts.__name__} does not say which names"):
            guard.tool(facts=facts)(len)
        agent = guard.new_agent("clerk")
        ways: list[dict[str, Any]] = [
            {"facts": facts, "gives": ["owner"]},
            {"facts": typed},
            {"facts": built},
        ]
        for way in ways:
            assert agent.call(guard.tool(**way)(len), "abc") == 3
    assert seen == ["alice"] * 3
