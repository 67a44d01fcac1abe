"""No result and no error that an adapter hands to a model holds a secret that the call got.

The ways to spell a value are those of the kept results; each is tried in a result and in an error,
in calls and in async calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, ToolException
from langgraph.types import Command
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from secret_calls import NAME, OTHER, VALUE, WAYS

from agentguard import adapters, secret
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.call.concealing import MARK
from agentguard_langchain import guard_tools

CONCEALS = CallOptions(conceals=True)


class Report(BaseModel):
    model_config = ConfigDict(extra="allow")

    token: object
    clear: str = "kept"


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    token: object
    clear: str = "kept"


@dataclasses.dataclass
class Plain:
    token: object
    clear: str = "kept"


@dataclasses.dataclass
class Node:
    """A node of a tree, which knows its parent."""

    token: object
    parent: Node | None = dataclasses.field(default=None, repr=False)
    children: list[Node] = dataclasses.field(default_factory=list)


def tree(value: object) -> Node:
    root = Node("root")
    root.children = [Node(one, root) for one in (value, "a", "b")]
    return root


class Opaque:
    """An object of its own, whose text a framework shows."""

    def __init__(self, token: object) -> None:
        self.token = token

    def __repr__(self) -> str:
        return f"<{self.token}>"


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "model": lambda value: Report(token=value),
    "extra": lambda value: Report.model_validate({"token": 1, "more": value}),
    "dataclass": Plain,
    "tree": tree,
    "slots": Slots,
    "opaque": Opaque,
    "tuple": lambda value: (1, (value, 2)),
    "mapping": lambda value: {"a": {"b": [value]}},
    "document": lambda value: Document(page_content="x", metadata={"token": value}),
    "message": lambda value: HumanMessage(content=[{"type": "text", "text": str(value)}]),
    "command": lambda value: Command(update={"token": value}),
}


class OwnError(Exception):
    """An error with a member and a text of its own."""

    def __init__(self, text: object) -> None:
        super().__init__("failed")
        self.text = text

    def __str__(self) -> str:
        return f"failed: {self.text}"


class StubbornError(Exception):
    """An error whose text nobody can change."""

    __slots__ = ("_text",)

    def __init__(self, text: object) -> None:
        self._text = text

    def __str__(self) -> str:
        return f"stubborn: {self._text}"


def invalid(value: object) -> ValidationError:
    """Return the error of a model, which quotes the value and has no members."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(int).validate_python(str(value))
    return raised.value


ERRORS: dict[str, Any] = {
    "plain": ValueError,
    "file": lambda one: OSError(2, "x", str(one)),
    "own": OwnError,
    "pydantic": invalid,
    "stubborn": StubbornError,
    "group": lambda one: ExceptionGroup("several", [ValueError(one), OSError(2, "x")]),
}


def invocation(guard: Any) -> Invocation:
    spec = guard.tool(name="deploy")(lambda: None).spec
    return Invocation.bind(spec, lambda: Arguments.of({}), CallSite("c"))


def made(guard: Any, function: Callable[[], Any], options: CallOptions, *, is_async: bool) -> Any:
    """Make a call as an adapter does."""
    agent, asked = guard.new_agent("reader"), invocation(guard)
    if not is_async:
        return adapters.run(agent, asked, function, options)

    async def later() -> Any:
        await asyncio.sleep(0)
        return function()

    return asyncio.run(adapters.arun(agent, asked, later, options))


@pytest.mark.parametrize("is_async", [False, True], ids=["call", "acall"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_result_for_a_model_holds_no_secret(scene, way, holder, is_async):
    with scene.open() as guard:
        shown = made(
            guard, lambda: HOLDERS[holder](WAYS[way](secret(NAME))), CONCEALS, is_async=is_async
        )
        spelt = str(WAYS[way](VALUE))
        for text in (str(shown), repr(shown)):
            assert VALUE not in text
            assert spelt not in text
        assert MARK in f"{shown} {shown!r}"
    assert scene.holds(VALUE) == []
    assert scene.verify().ok


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_no_secret_comes_as_it_is(scene, holder):
    kept = HOLDERS[holder]("clear")
    with scene.open() as guard:
        assert made(guard, lambda: secret(NAME) and kept, CONCEALS, is_async=False) is kept


class Counted(list[Any]):
    """A list that is read a few times at most."""

    read = 0

    def __iter__(self) -> Any:
        self.read += 1
        assert self.read < 10
        return super().__iter__()


def test_what_holds_itself_is_looked_at_once_and_left_out_beside_a_secret(scene):
    def several(value: Any) -> Counted:
        kept = Counted([value])
        kept += [kept, kept]
        return kept

    with scene.open() as guard:
        kept = several("clear")
        assert made(guard, lambda: secret(NAME) and kept, CONCEALS, is_async=False) is kept
        shown = made(guard, lambda: several(secret(NAME)), CONCEALS, is_async=False)
        assert shown == [MARK, MARK, MARK]


@pytest.mark.parametrize("is_async", [False, True], ids=["call", "acall"])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("way", WAYS)
def test_an_error_for_a_model_holds_no_secret(scene, way, kind, is_async):
    def fails() -> None:
        spelt = WAYS[way](secret(NAME))
        failure: Exception = ERRORS[kind](spelt)
        raise failure from KeyError(spelt)

    with scene.open() as guard:
        with pytest.raises(Exception) as raised:  # noqa: PT011  whatever kind it is
            made(guard, fails, CONCEALS, is_async=is_async)
        error: BaseException | None = raised.value
        spelt = str(WAYS[way](VALUE))
        while error is not None:
            inner = getattr(error, "exceptions", None)
            members = getattr(error, "__dict__", None)
            for text in (str(error), repr(error), repr(members), repr(inner)):
                assert VALUE not in text
                assert spelt not in text
            error = error.__cause__
    assert scene.holds(VALUE) == []


def test_an_error_without_a_secret_is_the_tool_s_own(scene):
    kept = OwnError("clear")

    def fails() -> None:
        secret(NAME)
        raise kept

    with scene.open() as guard, pytest.raises(OwnError) as raised:
        made(guard, fails, CONCEALS, is_async=False)
    assert raised.value is kept
    assert kept.args == ("failed",)


@pytest.mark.parametrize("is_async", [False, True], ids=["call", "acall"])
def test_the_agent_s_configuration_turns_it_off(scene, is_async):
    agents = {"reader": {"authority": "own", "max_scope": [], "conceals_secrets": False}}
    for more, expected in (({"agents": agents}, VALUE), ({}, MARK)):
        changed = dataclasses.replace(scene, more=more)
        with changed.open() as guard:
            shown = made(guard, lambda: secret(NAME), CONCEALS, is_async=is_async)
        assert shown == expected
    assert scene.holds(VALUE) == []  # in the log, nothing turns it off


def test_the_caller_of_a_plain_function_gets_the_whole_result(scene):
    with scene.open() as guard:
        tool = guard.tool(name="deploy")(lambda: secret(NAME))
        assert guard.new_agent("reader").call(tool) == VALUE


def test_the_secret_of_a_call_around_is_concealed_inside_and_the_other_way(scene):
    with scene.open() as guard:
        inner = made

        def outer() -> Any:
            value = secret(NAME)
            return made(guard, lambda: f"inner {value}", CONCEALS, is_async=False)

        assert inner(guard, outer, CONCEALS, is_async=False) == f"inner {MARK}"


def test_a_short_secret_is_left_and_a_long_one_beside_it_is_not(scene):
    scene.put("abc")
    with scene.open() as guard:
        assert (
            made(guard, lambda: f"{secret(NAME)} abcdef", CONCEALS, is_async=False) == "abc abcdef"
        )
    scene.put(OTHER)
    with scene.open() as guard:
        assert made(guard, lambda: f"<{secret(NAME)}>", CONCEALS, is_async=False) == f"<{MARK}>"


@pytest.mark.parametrize("is_async", [False, True], ids=["invoke", "ainvoke"])
@pytest.mark.parametrize("ends", ["returns", "raises", "artifact"])
def test_a_model_of_langchain_sees_no_secret(scene, ends, is_async):
    def deploy() -> Any:
        """Deploy."""
        value = secret(NAME)
        if ends == "raises":
            raise ToolException(f"refused for {value}")
        return (f"deployed with {value}", {"token": value}) if ends == "artifact" else value

    form: Any = "content_and_artifact" if ends == "artifact" else "content"
    made = StructuredTool.from_function(deploy, handle_tool_error=True, response_format=form)
    call = {"name": "deploy", "args": {}, "id": "1", "type": "tool_call"}
    with scene.open() as guard:
        (tool,) = guard_tools([made], guard.new_agent("reader"))
        answer: ToolMessage = asyncio.run(tool.ainvoke(call)) if is_async else tool.invoke(call)
    assert MARK in answer.text
    assert VALUE not in repr(answer)
    assert ends != "artifact" or answer.artifact == {"token": MARK}
