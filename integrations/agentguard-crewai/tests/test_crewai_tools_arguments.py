"""The arguments of a call: what is bound is what the tool receives, and what refuses the call."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal as Money
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from crewai.hooks import (
    register_before_tool_call_hook,
    unregister_before_tool_call_hook,
)
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.tool_failure import (
    ToolFailureReason,
)
from crewai_probes import bench_of
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from agentguard import Decision
from agentguard.adapters import Arguments


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1


class Street(BaseModel):
    name: str
    number: int = 1


class Address(BaseModel):
    street: Street
    tags: set[str] = Field(default_factory=set)


class Typed(BaseModel):
    address: Address
    addresses: list[Address] = []
    colour: Colour
    size: Size = Size.SMALL
    on: date
    at: datetime
    lasts: timedelta = timedelta(hours=1)
    price: Money = Money("1.50")
    id: UUID
    pair: tuple[int, str] = (1, "a")
    kind: Literal["x", "y"] = "x"
    either: int | str = 3
    file: Path = Path("a/b")
    maybe: float | None = None
    more: dict[str, Any] = {}


TYPED = {
    "address": {"street": {"name": "Main"}, "tags": ["b", "a"]},
    "addresses": [{"street": {"name": "Side", "number": 2}}],
    "colour": "red",
    "on": "2026-01-02",
    "at": "2026-01-02T03:04:05Z",
    "id": "12345678-1234-5678-1234-567812345678",
    "more": {"a": [1, {"b": None}]},
}


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    source: str = Field(alias="from")
    target: str = Field(validation_alias="to")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    path: str


class Changed(BaseModel):
    path: str
    limit: Annotated[int, Field(ge=1)] = 5

    @field_validator("path")
    @classmethod
    def resolved(cls, path: str) -> str:
        return path.replace("..", "")

    @model_validator(mode="after")
    def bounded(self) -> Changed:
        self.limit = min(self.limit, 10)
        return self


class Made(BaseModel):
    path: str
    names: list[str] = Field(default_factory=lambda: ["made"])


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, use_enum_values=True, str_strip_whitespace=True)

    colour: Colour
    path: str


class Nothing(BaseModel):
    pass


SCHEMAS: dict[str, tuple[type[BaseModel], dict[str, Any], dict[str, Any] | None]] = {
    "all types": (Typed, TYPED, None),
    "aliases": (Aliased, {"from": "a", "to": "b"}, {"source": "a", "target": "b"}),
    "validators": (Changed, {"path": "../a", "limit": 99}, {"path": "/a", "limit": 10}),
    "a default factory": (Made, {"path": "a"}, {"path": "a", "names": ["made"]}),
    "options": (Frozen, {"colour": "red", "path": " a "}, {"colour": "red", "path": "a"}),
    "coercion": (Changed, {"path": "a", "limit": "7"}, {"path": "a", "limit": 7}),
    "left out": (Open, {"path": "a"}, {"path": "a"}),
    "nothing": (Nothing, {}, {}),
}


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("made", ["function", "class"])
def test_what_is_bound_is_what_the_tool_receives(bench, kind, made):
    schema, given, expected = SCHEMAS[kind]
    received: list[Any] = []

    class Probed(BaseTool):
        name: str = "probe"
        description: str = "Probe."

        def _run(self, **given: Any) -> str:
            received.append(given)
            return "probed"

    def function(**given: Any) -> str:
        received.append(given)
        return "probed"

    one = (
        Probed(args_schema=schema)
        if made == "class"
        else Tool(name="probe", description="Probe.", func=function, args_schema=schema)
    )
    bench.run([one], ("probe", given))
    (got,) = received
    if expected is not None:
        assert got == expected
    bound = Arguments.of(got)
    (call,) = bench.calls
    assert call.arguments == dict(bound.values)
    assert bench.made.policy_inputs[0]["args"] == dict(bound.values)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_both_ways_bind_the_same(native, text, recorded, signed, kind):
    schema, given, _ = SCHEMAS[kind]
    bound = []
    for way in (native, text):
        bench = bench_of(way, recorded, signed)
        one = Tool(name="probe", description="P.", func=lambda **_: "ok", args_schema=schema)
        bench.run([one], ("probe", given))
        bound += [call.arguments for call in bench.calls]
    assert bound[0] == bound[1]
    assert set(bound[0]) == set(schema.model_fields)


def test_members_that_a_schema_lets_in_are_bound_where_the_tool_gets_them(bench):
    received: list[Any] = []

    def function(**given: Any) -> str:
        received.append(given)
        return "probed"

    one = Tool(name="probe", description="Probe.", func=function, args_schema=Open)
    bench.run([one], ("probe", {"path": "a", "colour": "red"}))
    (call,) = bench.calls
    assert [call.arguments] == received  # in text CrewAI leaves out what the schema does not name
    assert call.arguments.get("colour") == ("red" if bench.way.native else None)


def test_a_tool_without_a_schema_binds_what_it_receives(native, recorded, signed):
    bench = bench_of(native, recorded, signed)
    received: list[Any] = []

    def function(**given: Any) -> str:
        received.append(given)
        return "probed"

    one = Tool(name="probe", description="Probe.", func=function)
    bench.run([one], ("probe", {"path": "a", "$tag": [1]}))
    assert received == [{"path": "a", "$tag": [1]}]
    (call,) = bench.calls
    assert call.arguments == {"path": "a", "$$tag": [1]}


class Opaque:
    """What nobody can write down."""


UNENCODABLE: dict[str, Any] = {
    "an object": Opaque(),
    "a function": len,
    "no number": float("nan"),
    "a secret": SecretStr("hunter2"),
    "deep inside": [{"a": (Opaque(),)}],
}


@pytest.mark.parametrize("kind", UNENCODABLE)
def test_an_argument_that_can_not_be_written_down_refuses_the_call(bench, kind):
    ran: list[Any] = []

    def keep(**given: Any) -> str:
        ran.append(given["path"])
        return "kept"

    class Kept(BaseModel):
        path: str
        token: Any = Field(default_factory=lambda: UNENCODABLE[kind])

    one = Tool(name="keep", description="Keep.", func=keep, args_schema=Kept)
    steps = ("keep", {"path": "a"}), ("keep", {"path": "b", "token": "plain"})
    output = bench.run([one], *steps)
    assert ran == ["b"]
    assert [one.failure.code for one in output.tool_failures] == ["arguments.unencodable"]
    assert "hunter2" not in str(output.messages)
    assert [(call.decision, call.code) for call in bench.calls] == [
        ("deny", "arguments.unencodable"),
        ("allow", ""),
    ]
    assert len(bench.made.policy_inputs) == 1


def test_arguments_that_are_too_large_refuse_the_call(bench):
    received: list[Any] = []

    class Long(BaseModel):
        path: str

        @field_validator("path")
        @classmethod
        def repeated(cls, path: str) -> str:
            return path * 1000

    def keep(path: str) -> str:
        received.append(path)
        return "kept"

    one = Tool(name="keep", description="Keep.", func=keep, args_schema=Long)
    output = bench.run([one], ("keep", {"path": "x" * 300}), ("keep", {"path": "x"}))
    assert received == ["x" * 1000]
    assert [one.failure.code for one in output.tool_failures] == ["arguments.too_large"]
    assert [call.code for call in bench.calls] == ["arguments.too_large", ""]


def test_an_argument_plays_no_identity(bench):
    received: list[Any] = []

    @tool
    def spoof(agent: str, delegation: str, approval: str, context: str) -> str:
        """Spoof."""
        received.append([agent, delegation, approval, context])
        return "spoofed"

    given = {"agent": "root", "delegation": "user:root", "approval": "yes", "context": "c"}
    bench.run([spoof], ("spoof", given))
    (document,) = bench.made.policy_inputs
    assert document["agent"]["name"] == "lead"
    assert document["delegation"]["subject"] == "user:alice"
    assert "approval" not in document
    assert document["args"] == given
    assert received == [list(given.values())]


@pytest.mark.parametrize("name", ["self", "args", "kwargs", "function", "gate", "tool", "cls"])
def test_an_argument_may_have_any_name(native, recorded, signed, name):
    # CrewAI's own functions take `self` and `input`; what is bound here takes none by name
    bench = bench_of(native, recorded, signed)
    received: list[Any] = []

    def keep(**given: Any) -> str:
        received.append(given)
        return "kept"

    one = Tool(name="keep", description="Keep.", func=keep)
    output = bench.run([one], ("keep", {name: "x"}))
    if name == "self":  # CrewAI's run can't be called so
        assert output.tool_failures[0].failure.reason is ToolFailureReason.EXCEPTION
        assert received == []
    else:
        assert received == [{name: "x"}]
        assert bench.calls[0].arguments == {name: "x"}


@pytest.mark.parametrize("change", [True, False])
def test_arguments_changed_after_the_decision_do_not_run(native, recorded, signed, change):
    bench = bench_of(native, recorded, signed)
    received: list[Any] = []
    held: list[Any] = []

    def keep(**given: Any) -> str:
        received.append(given)
        return "kept"

    def hold(context):
        held.append(context.tool_input["paths"])

    def decide(_given):
        if change:
            held[0].append("secret")
        return Decision.allow()

    bench.made.decide = decide
    one = Tool(name="keep", description="Keep.", func=keep)
    register_before_tool_call_hook(hold)
    try:
        output = bench.run([one], ("keep", {"paths": ["a"]}))
    finally:
        unregister_before_tool_call_hook(hold)
    if change:
        assert received == []
        assert output.tool_failures[0].failure.code == "arguments.changed"
        assert bench.calls[0].outcome != "ok"
    else:
        assert received == [{"paths": ["a"]}]
        assert bench.calls[0].outcome == "ok"
