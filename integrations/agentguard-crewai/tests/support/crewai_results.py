"""A schema of reports, and what compares a result with what comes back from the journal.

The tests ``test_crewai_results_*.py`` share these.
"""

from __future__ import annotations

import math
from enum import Enum, IntEnum, StrEnum
from typing import Any

from crewai.tools.tool_failure import ToolFailure
from pydantic import (
    BaseModel,
    Field,
)

from agentguard_crewai.results import ToolResults


class Report(BaseModel):
    """What a tool may return: all that can be in it."""

    title: str
    pages: int = 1
    ratio: float | None = None
    tags: list[str] = Field(default_factory=list)
    more: Any = None
    source: str = Field(default="s", alias="from")
    target: str = Field(default="t", validation_alias="to", serialization_alias="into")


PLAIN = ToolResults(None)
OF_REPORTS = ToolResults(Report)


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, BaseModel):
        fields = one.__pydantic_fields_set__ == other.__pydantic_fields_set__
        return (
            one == other and same(vars(one), vars(other)) and (fields or type(one) is ToolFailure)
        )
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def kept(codec: ToolResults, value: Any) -> Any:
    """Return what comes back; raises ``EncodeError`` for what is not kept."""
    data = codec.dumps(value)
    assert isinstance(data, bytes)
    back = codec.loads(data)
    assert codec.dumps(back) == data
    return back


class Colour(Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    A = "a"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Raising(BaseModel):
    a: int = 1

    def model_post_init(self, context: Any) -> None:
        if self.a > 1:
            raise RuntimeError("hunter2")
