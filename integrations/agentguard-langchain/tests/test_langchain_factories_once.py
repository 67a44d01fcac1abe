"""Validators and default factories of a guarded tool run once, as they do unguarded."""

from __future__ import annotations

import uuid
from typing import Any

import pydantic
import pytest
from factory_tools import say
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field
from pydantic.v1 import BaseModel as BaseModelV1

from agentguard_langchain import guard_tools


@pytest.fixture
def counting():
    """Schemas with a validator and a factory that count, as ``(schema, args, counts)``."""
    counts = {"validated": 0, "nested": 0, "made": 0}

    def count(name: str, value: Any) -> Any:
        counts[name] += 1
        return value

    def made() -> str:
        return count("made", "made")

    class Inner(BaseModel):
        y: int
        id: str = Field(default_factory=made)

        @pydantic.field_validator("y")
        @classmethod
        def counted(cls, value: int) -> int:
            return count("nested", value)

    class Outer(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        x: int = Field(alias="theX")
        inner: Inner
        serial: str = Field(default_factory=made, alias="theSerial")

        @pydantic.model_validator(mode="after")
        def counted(self) -> Outer:
            assert type(self) is Outer
            return count("validated", self)

    return Outer, {"theX": 1, "inner": {"y": 2}}, counts


class OldCounting(BaseModelV1):
    x: int
    serial: str = pydantic.v1.Field(default_factory=lambda: str(uuid.uuid4()))
    counts: Any = None

    @pydantic.v1.validator("x")
    def counted(cls, value: int) -> int:  # noqa: N805  pydantic v1's form
        OLD_COUNTS.append(value)
        return value


OLD_COUNTS: list[int] = []


async def say_later(**received: Any) -> str:
    return repr(received)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("by_alias", [True, False])
@pytest.mark.parametrize("coroutine", [None, say_later])
async def test_validators_and_factories_run_once_as_they_do_unguarded(
    allowing, counting, asynchronous, by_alias, coroutine
):
    schema, args, counts = counting
    if not by_alias:
        args = {"x": 1, "inner": args["inner"]}
    tool = StructuredTool.from_function(
        say, coroutine, name="say", description="Say.", args_schema=schema
    )
    (guarded,) = guard_tools([tool], allowing.agent)
    assert counts == {"validated": 0, "nested": 0, "made": 0}
    results = []
    for number, one in enumerate((tool, guarded), 1):
        results.append(await one.ainvoke(args) if asynchronous else one.invoke(args))
        assert counts == {"validated": number, "nested": number, "made": 2 * number}
    assert results[0] == results[1]
    (call,) = allowing.log.calls()
    assert call.values["serial"] == "made"  # the model's validator could have put it there
    assert guarded.args_schema is schema


def test_validators_of_pydantic_v1_run_once(allowing):
    tool = StructuredTool.from_function(
        say, name="say", description="Say.", args_schema=OldCounting
    )
    (guarded,) = guard_tools([tool], allowing.agent)
    OLD_COUNTS.clear()
    guarded.invoke({"x": 1})
    guarded.invoke({"x": 2, "serial": "mine"})
    assert OLD_COUNTS == [1, 2]
    first, second = allowing.log.calls()
    assert uuid.UUID(
        first.values["serial"]
    )  # a validator gets the other values, and may change them
    assert second.values["serial"] == "mine"


def test_the_schemas_author_hears_of_no_subclass(allowing):
    heard = []

    class Listening(BaseModel):
        serial: str = Field(default_factory=lambda: str(uuid.uuid4()))

        def __init_subclass__(cls, **options: Any) -> None:
            heard.append(cls)
            super().__init_subclass__(**options)

        @classmethod
        def __pydantic_init_subclass__(cls, **_options: Any) -> None:
            heard.append(cls)

    tool = StructuredTool.from_function(say, name="s", description="S.", args_schema=Listening)
    (guarded,) = guard_tools([tool], allowing.agent)
    guarded.invoke({})
    assert heard == []


def test_input_that_the_schema_rejects_is_rejected_as_ever(allowing):
    class Strict(BaseModel):
        x: int
        serial: str = Field(default_factory=str)

    def make() -> BaseTool:
        return StructuredTool.from_function(
            say,
            name="s",
            description="S.",
            args_schema=Strict,
            handle_validation_error=str,
        )

    (guarded,) = guard_tools([make()], allowing.agent)
    assert guarded.invoke({"x": "one"}) == make().invoke({"x": "one"})
    assert "validation error for Strict" in guarded.invoke({"x": "one"})
    assert allowing.log.calls() == []
