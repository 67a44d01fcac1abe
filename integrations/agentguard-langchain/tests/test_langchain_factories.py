"""Default factories: a mark stands for what they make, and what was supplied is always bound.

Where that can't be, the tool or the call is refused; code of a schema's author that could pass a
supplied value off as a made one stands in ``test_langchain_validators.py``, random nestings in
``test_langchain_factories_nesting.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from typing import Annotated, Any, ClassVar, NotRequired

import pydantic
import pytest
from factory_tools import MADE, say, tool_for
from langchain_core.tools import StructuredTool, Tool
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import PrivateAttr as PrivateAttrV1
from typing_extensions import TypedDict

from agentguard import ConfigError, Denied
from agentguard.errors import ArgumentsError
from agentguard_langchain import bind_ahead, guard_tools

GIVEN = "12345678-1234-5678-1234-567812345678"


class Ticket(BaseModel):
    title: str
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    note: str | None = None


class FrozenTicket(Ticket):
    model_config = ConfigDict(frozen=True)


class OpenTicket(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Ticket]


class Drawer(BaseModel):
    ticket: Ticket
    _tags: list[str] = PrivateAttr(default_factory=list)


@dataclasses.dataclass
class Envelope:
    ticket: Ticket
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    ticket: Ticket
    tags: list[str] = dataclasses.field(default_factory=list)


@pydantic.dataclasses.dataclass
class Checked:
    ticket: Ticket
    envelope: Envelope | None = None


@dataclasses.dataclass
class Options:
    level: int = 3


@dataclasses.dataclass
class Configured:
    ticket: Ticket
    options: Options = dataclasses.field(default_factory=Options)


NESTED = {
    "model": (Ticket, lambda ticket: ticket),
    "dataclass": (Envelope, lambda ticket: {"ticket": ticket}),
    "slots": (Sealed, lambda ticket: {"ticket": ticket}),
    "pydantics-dataclass": (Checked, lambda ticket: {"ticket": ticket}),
    "dataclass-in-that": (Checked, lambda t: {"ticket": t, "envelope": {"ticket": t}}),
    "class-as-factory": (Configured, lambda ticket: {"ticket": ticket}),
    "private": (Drawer, lambda ticket: {"ticket": ticket}),
    "extra": (OpenTicket, lambda ticket: {"more": ticket}),
    "list": (list[Envelope], lambda ticket: [{"ticket": ticket}, {"ticket": ticket}]),
    "dict": (dict[str, Sealed], lambda ticket: {"monday": {"ticket": ticket}}),
    "tuple": (tuple[Envelope, Drawer], lambda t: [{"ticket": t}, {"ticket": t}]),
    "deep": (dict[str, list[tuple[Checked, ...]]], lambda t: {"a": [[{"ticket": t}]]}),
}


@pytest.mark.parametrize("name", NESTED)
async def test_nested_schemas_bind_alike_ahead_and_at_execution(allowing, name):
    annotation, wrap = NESTED[name]
    (guarded,) = guard_tools([tool_for(annotation)], allowing.agent)
    made = {"value": wrap({"title": "t"})}
    supplied = {"value": wrap({"title": "t", "id": GIVEN})}
    for args in (made, supplied):
        assert GIVEN in guarded.invoke(args) or args is made
        await guarded.ainvoke(args)
    calls = [call.encoded for call in allowing.log.calls()]
    ahead = [bind_ahead(guarded, args).encoded for args in (made, made, supplied, supplied)]
    assert calls == ahead
    assert [GIVEN.encode() in one for one in ahead] == [False, False, True, True]
    assert [b'"id":{"$made":true}' in one for one in ahead] == [True, True, False, False]


def test_a_nested_null_is_not_the_same_as_nothing(allowing):
    (guarded,) = guard_tools([tool_for(Ticket)], allowing.agent)
    bound = [
        bind_ahead(guarded, {"value": {"title": "t", **more}}).encoded
        for more in ({}, {"note": None}, {"note": None})
    ]
    assert bound[0] != bound[1] == bound[2]


def test_a_dataclass_is_made_once_and_never_copied_by_its_own_code(allowing):
    made = []

    @dataclasses.dataclass
    class Counted:
        ticket: Ticket

        def __post_init__(self):
            made.append(self)

        def __copy__(self):
            raise AssertionError("copied")

        __deepcopy__ = __reduce_ex__ = __copy__

    (guarded,) = guard_tools([tool_for(Counted)], allowing.agent)
    assert "Counted" in guarded.invoke({"value": {"ticket": {"title": "t"}}})
    assert len(made) == 1


# --- what can't be told -------------------------------------------------------------------------


@dataclasses.dataclass
class Numbered:
    id: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)


@dataclasses.dataclass
class NumberedByAnnotation:
    id: Annotated[uuid.UUID, Field(default_factory=uuid.uuid4)]


@dataclasses.dataclass
class NumberedByField:
    id: uuid.UUID = Field(default_factory=uuid.uuid4)  # noqa: RUF009  pydantic reads it


@pydantic.dataclasses.dataclass
class NumberedByPydantic:
    id: uuid.UUID = Field(default_factory=uuid.uuid4)


class NumberedDict(TypedDict):
    id: NotRequired[Annotated[uuid.UUID, Field(default_factory=uuid.uuid4)]]


class NumberedPrivately(BaseModel):
    _id: uuid.UUID = PrivateAttr(default_factory=uuid.uuid4)


class Tree(BaseModel):
    leaf: Numbered | None = None
    branches: list[Tree] = []


UNTOLD = {
    "dataclass": (Numbered, "Numbered.id"),
    "annotation": (NumberedByAnnotation, "NumberedByAnnotation.id"),
    "pydantics-field": (NumberedByField, "NumberedByField.id"),
    "pydantics-dataclass": (NumberedByPydantic, "NumberedByPydantic.id"),
    "typed-dict": (NumberedDict, "NumberedDict.id"),
    "tuple": (
        tuple[int, Annotated[int, Field(default_factory=itertools.count().__next__)]],
        "Args.value",
    ),
    "private": (NumberedPrivately, "NumberedPrivately._id"),
    "deep": (dict[str, list[Numbered | None]], "Numbered.id"),
    "recursive": (Tree, "Numbered.id"),
}


# pydantic says that it has no effect in a tuple, and calls it all the same
@pytest.mark.filterwarnings("ignore:The 'default_factory' attribute")
@pytest.mark.parametrize("name", UNTOLD)
def test_a_factory_that_leaves_no_trace_is_refused_at_registration(allowing, name):
    annotation, place = UNTOLD[name]
    with pytest.raises(ConfigError, match=f"tool tell: {place} has a default factory") as refused:
        guard_tools([tool_for(annotation)], allowing.agent)
    assert refused.value.code == "tool.unguardable"


def test_the_same_in_fields_of_models_is_fine(allowing):
    class Told(BaseModel):
        id: Annotated[uuid.UUID, Field(default_factory=uuid.uuid4)]

    class Tagged(TypedDict):
        tags: NotRequired[Annotated[list[str], Field(default_factory=list)]]

    class Defaulted(pydantic.RootModel[uuid.UUID]):
        root: uuid.UUID = Field(default_factory=uuid.uuid4)

    tools = [tool_for(Told), tool_for(Tagged), tool_for(dict[str, Defaulted])]
    told, tagged, _defaulted = guard_tools(tools, allowing.agent)
    assert bind_ahead(told, {"value": {}}).encoded == bind_ahead(told, {"value": {}}).encoded
    assert bind_ahead(tagged, {"value": {}}).values == {"value": {"tags": []}}


def test_the_arguments_own_private_attributes_never_reach_the_tool(allowing):
    class Args(BaseModel):
        x: int
        _id: uuid.UUID = PrivateAttr(default_factory=uuid.uuid4)

    tool = StructuredTool.from_function(lambda x: x, name="t", description="T.", args_schema=Args)
    (guarded,) = guard_tools([tool], allowing.agent)
    assert guarded.invoke({"x": 1}) == 1
    assert bind_ahead(guarded, {"x": 1}).values == {"x": 1}


class PrivateV1(BaseModelV1):
    x: int = 0
    _id: uuid.UUID = PrivateAttrV1(default_factory=uuid.uuid4)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (Numbered, "arguments.unencodable"),
        (NumberedByField, "arguments.unencodable"),
        (NumberedPrivately, "arguments.unencodable"),
        (PrivateV1, "arguments.unencodable"),
        (Options, None),
    ],
)
def test_a_value_that_no_schema_announced_is_refused_at_the_call(allowing, kind, code):
    (guarded,) = guard_tools(
        [tool_for(Annotated[Any, BeforeValidator(lambda _raw: [kind()])])], allowing.agent
    )
    if code is None:
        guarded.invoke({"value": 1})
        (call,) = allowing.log.calls()
        assert call.encoded == bind_ahead(guarded, {"value": 1}).encoded
        return
    with pytest.raises(ArgumentsError, match="has a default factory"):
        bind_ahead(guarded, {"value": 1})
    with pytest.raises(Denied) as denied:
        guarded.invoke({"value": 1})
    assert denied.value.code == code
    (call,) = allowing.log.calls()
    assert (call.decision, call.encoded) == ("deny", None)


@dataclasses.dataclass
class Shared:
    """It is over when this is looked at more often than it could be written down."""

    x: int = 0
    looks: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            Shared.looks += 1
            assert Shared.looks < 256 * 1024
        return super().__getattribute__(name)


def test_arguments_that_share_their_parts_are_refused_in_time(allowing):
    schema = {"title": "run", "type": "object", "properties": {"x": {"type": "array"}}}
    tool = StructuredTool(name="run", description="d", args_schema=schema, func=lambda x: [len(x)])
    (guarded,) = guard_tools([tool], allowing.agent)
    shared: Any = Shared()
    for _ in range(8):
        shared = [shared, {"again": shared}]
    assert guarded.invoke({"x": shared}) == [2]
    for _ in range(20):
        shared = [shared, {"again": shared}]
    with pytest.raises(ArgumentsError) as caught:
        bind_ahead(guarded, {"x": shared})
    assert caught.value.code == "arguments.too_large"


def test_members_of_a_set_keep_apart(allowing):
    tool = StructuredTool(name="t", description="T.", func=say, args_schema={"properties": {}})
    (guarded,) = guard_tools([tool], allowing.agent)
    made, supplied = FrozenTicket(title="t"), FrozenTicket(title="t", id=GIVEN)
    for value in ({made}, frozenset({made, supplied}), {made: 1}, [{"a": {made}}]):
        with pytest.raises(ArgumentsError, match="FrozenTicket in a set, or as a key"):
            bind_ahead(guarded, {"value": value})
    for value in ({supplied}, {supplied: 1}):
        assert GIVEN.encode() in bind_ahead(guarded, {"value": value}).encoded


# --- what was supplied is never hidden ----------------------------------------------------------


class WithSerial(BaseModel):
    x: int = 0
    serial: str | None = Field(default_factory=lambda: None)
    target: str | None = "nobody"


class Rewriting(StructuredTool):
    """Puts a value of its own in the place of one that a factory made."""

    def _parse_input(self, tool_input: Any, tool_call_id: Any) -> Any:
        parsed = super()._parse_input(tool_input, tool_call_id)
        return {**parsed, "serial": tool_input.get("hidden", parsed["serial"])}


def test_what_a_tool_puts_in_a_factorys_place_is_bound(allowing):
    tool = Rewriting.from_function(
        lambda **received: str(received), name="t", description="T.", args_schema=WithSerial
    )
    (guarded,) = guard_tools([tool], allowing.agent)
    assert bind_ahead(guarded, {"hidden": "evil"}).values["serial"] == "evil"
    assert bind_ahead(guarded, {}).values["serial"] == MADE


def test_a_supplied_value_that_is_the_factorys_very_object_is_bound(allowing):
    tool = StructuredTool.from_function(
        lambda **received: str(received), name="t", description="T.", args_schema=WithSerial
    )
    (guarded,) = guard_tools([tool], allowing.agent)
    left_out = bind_ahead(guarded, {"target": None}).values
    assert left_out == {"x": 0, "target": None, "serial": MADE}
    both = bind_ahead(guarded, {"target": None, "serial": None}).values
    assert both == {"x": 0, "target": None, "serial": None}


def test_what_a_validator_fills_in_is_bound(allowing):
    class Filled(Ticket):
        @pydantic.model_validator(mode="after")
        def fill(self) -> Filled:
            self.id = uuid.UUID(GIVEN)
            return self

    (guarded,) = guard_tools([tool_for(Filled)], allowing.agent)
    assert GIVEN.encode() in bind_ahead(guarded, {"value": {"title": "t"}}).encoded


def test_what_a_validator_puts_into_a_made_list_is_bound(allowing):
    class Noted(BaseModel):
        title: str
        notes: list[str] = Field(default_factory=list)

        @pydantic.model_validator(mode="wrap")
        @classmethod
        def note(cls, raw: Any, validate: Any) -> Noted:
            made = validate({"title": raw["title"]})
            made.notes.extend(raw.get("hidden", []))
            return made

    nested, own = guard_tools(
        [
            tool_for(Noted),
            StructuredTool.from_function(say, name="s", description="S.", args_schema=Noted),
        ],
        allowing.agent,
    )
    for hidden in (["evil"], []):
        args = {"title": "t", "hidden": hidden}
        assert bind_ahead(own, args).values == {"title": "t", "notes": hidden}
        value = bind_ahead(nested, {"value": args}).values["value"]
        assert value["fields"] == {"title": "t", "notes": hidden}


def test_a_single_argument_that_a_factory_made_is_refused(allowing):
    class Query(BaseModel):
        query: str = Field(default_factory=lambda: str(uuid.uuid4()))

    (guarded,) = guard_tools(
        [Tool("t", lambda query: query, "T.", args_schema=Query)], allowing.agent
    )
    with pytest.raises(Denied, match="default factory"):
        guarded.invoke({})
    assert guarded.invoke({"query": "what"}) == "what"
    assert guarded.invoke("why") == "why"
