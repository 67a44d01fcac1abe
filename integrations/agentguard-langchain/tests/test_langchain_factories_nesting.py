"""Default factories in schemas of any nesting: a call is bound alike ahead and at execution."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pydantic
from factory_tools import MADE, tool_for
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import StructuredTool
from pydantic import BaseModel, Field, create_model

from agentguard import Decision, Guard
from agentguard_langchain import bind_ahead, guard_tools

COUNT = itertools.count()


SUPPLIED = st.integers(2**40, 2**41)


OPTIONAL = {"made": SUPPLIED, "tags": st.lists(SUPPLIED, max_size=1)}


def model(annotation: Any) -> Any:
    made = Field(default_factory=COUNT.__next__)
    tags = Field(default_factory=list)
    return create_model("M", held=(annotation, ...), made=(int, made), tags=(list[int], tags))


def structure(decorate: Any, **options: Any) -> Any:
    def make(annotation: Any) -> Any:
        tags = dataclasses.field(default_factory=list)
        annotations = {"held": annotation, "tags": list[int]}
        members = {"__module__": __name__, "__annotations__": annotations, "tags": tags}
        return decorate(**options)(type("D", (), members))

    return make


def held(values: Any) -> Any:
    return st.fixed_dictionaries({"held": values}, optional={"tags": OPTIONAL["tags"]})


LAYERS: dict[str, tuple[Any, Any]] = {
    "list": (lambda inner: list[inner], lambda values: st.lists(values, max_size=2)),
    "dict": (
        lambda inner: dict[str, inner],
        lambda values: st.dictionaries(st.text("a$\xe9", max_size=2), values, max_size=2),
    ),
    "tuple": (lambda inner: tuple[inner, int], lambda values: st.tuples(values, SUPPLIED)),
    "optional": (lambda inner: inner | None, lambda values: st.none() | values),
    "model": (model, lambda values: st.fixed_dictionaries({"held": values}, optional=OPTIONAL)),
    "dataclass": (structure(dataclasses.dataclass), held),
    "slots": (structure(dataclasses.dataclass, frozen=True, slots=True), held),
    "pydantics": (structure(pydantic.dataclasses.dataclass), held),
}
"""What can be put around a type, and around the raw values of that type."""


@functools.cache
def nested(layers: tuple[str, ...]) -> tuple[StructuredTool, Any]:
    """A tool with an argument that is nested like this, and that argument's raw values."""
    annotation, values = int, SUPPLIED
    for layer in layers:
        around, raw = LAYERS[layer]
        annotation, values = around(annotation), raw(values)
    return tool_for(annotation, serial=(int, Field(default_factory=COUNT.__next__))), values


def numbers(raw: Any) -> set[int]:
    """Return the numbers in raw arguments: all of them were supplied."""
    if isinstance(raw, dict):
        return numbers(list(raw.values()))
    if isinstance(raw, list | tuple):
        return {found for item in raw for found in numbers(item)}
    return {raw} if isinstance(raw, int) else set()


@st.composite
def calls(draw):
    around = st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3)
    tool, values = nested(("model", *draw(around)))
    return tool, {"value": draw(values), **draw(st.sampled_from([{}, {"serial": 2**42}]))}


def agree(value: Any, bound: Any) -> bool:  # noqa: PLR0911  a case of the table, a return
    """Tell whether bound is all that the tool received, with marks where factories made it."""
    if bound == MADE:
        return type(value) is int and value < 2**40
    match value:
        case list():
            return len(value) == len(bound) and all(map(agree, value, bound))
        case tuple():
            return agree(list(value), bound["$tuple"])
        case dict():
            escaped = {f"${key}" if key.startswith("$") else key: v for key, v in value.items()}
            return escaped.keys() == bound.keys() and all(
                agree(escaped[k], bound[k]) for k in bound
            )
        case BaseModel():
            unset = dict.fromkeys({"held", "made", "tags"} - value.model_fields_set)
            return agree(value.__dict__, bound["fields"]) and bound.get("unset", {}) == unset
        case int():
            return value == bound and value >= 2**40
        case None:
            return bound is None
    return agree({name: getattr(value, name) for name in ("held", "tags")}, bound["fields"])


def test_any_nesting_binds_alike_ahead_and_at_execution():
    seen: list[Any] = []
    received: list[Any] = []

    def policy(call: Any) -> Decision:
        seen.append(dict(call["args"]))
        return Decision.allow()

    with Guard.ephemeral(policy) as guard:
        agent = guard.new_agent("reviewer")

        @given(calls())
        def check(call: Any) -> None:
            tool, args = call
            tool = tool.model_copy(update={"func": lambda **given: received.append(given)})
            (guarded,) = guard_tools([tool], agent)
            ahead = bind_ahead(guarded, args)
            guarded.invoke(args)
            assert agree(received[-1], seen[-1])
            assert ahead.encoded == bind_ahead(guarded, args).encoded
            assert dict(ahead.values) == seen[-1]
            assert all(b"%d" % number in ahead.encoded for number in numbers(args))

        check()
