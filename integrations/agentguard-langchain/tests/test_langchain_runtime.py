"""The run's runtime as an argument, however its parameter is annotated."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from langchain.agents import create_agent
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolRuntime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from rounds import pairs

from agentguard import Decision, Requirement
from agentguard_langchain import GuardMiddleware, guard_tools

CONFIG: Any = {"configurable": {"thread_id": "t1"}}
ANNOTATIONS: dict[str, Any] = {
    "none": None,
    "object": object,
    "any": Any,
    "exact": ToolRuntime,
    "of types": ToolRuntime[Any, Any],
    "or none": ToolRuntime | None,
    "optional": Optional[ToolRuntime],  # noqa: UP045  as people write it
    "a text": "ToolRuntime",
    "a text or none": "ToolRuntime | None",
}
RUNTIMES = pytest.mark.parametrize("annotation", ANNOTATIONS.values(), ids=list(ANNOTATIONS))


def reading(annotation, seen, default="") -> StructuredTool:
    """A tool with a parameter ``runtime``; its annotation is a text, as in many modules."""
    names = {"ToolRuntime": ToolRuntime, "seen": seen, "annotation": annotation}
    written = annotation if isinstance(annotation, str) else "annotation"
    parameter = "runtime" if annotation is None else f"runtime: {written}"
    exec(  # noqa: S102  the text is this file's own
        f"def read(path: str, {parameter}{default}) -> str:\n"
        "    'Read a file.'\n"
        "    seen.append(runtime)\n"
        "    return f'read {path}'\n",
        names,
    )
    return StructuredTool.from_function(names["read"])


@pairs(
    annotation=ANNOTATIONS,
    way=["middleware", "tools"],
    default={"without a default": "", "with one": " = None"},
)
def test_the_runtime_is_the_frameworks_whatever_its_annotation(
    people, obedient, annotation, way, default
):
    seen: list[Any] = []
    inbox = people()
    tools = [reading(annotation, seen, default)]
    guarded = way == "tools"
    graph = create_agent(
        obedient,
        guard_tools(tools, inbox.agent) if guarded else tools,
        middleware=[] if guarded else [GuardMiddleware(inbox.agent)],
        checkpointer=InMemorySaver(),
    )
    state = graph.invoke(inbox.asking(("read", {"path": "a"})), CONFIG)
    assert [m.text for m in state["messages"] if m.type == "tool"] == ["read a"]
    assert [type(one) for one in seen] == [ToolRuntime]
    (call,) = inbox.log.calls()
    assert (call.decision, call.values) == ("allow", {"path": "a"})
    assert call.predicate["unbound"] == ["runtime"]


@RUNTIMES
def test_what_is_shown_for_an_approval_is_what_runs(people, annotation):
    """The step that asks has no runtime yet: it binds the same bytes as the tool does."""
    seen: list[Any] = []
    inbox = people(policy=lambda _given: Decision.require_approval(Requirement("ask")))
    tools = [reading(annotation, seen)]
    graph = inbox.graph(tools=tools)
    paused = graph.invoke(inbox.asking(("read", {"path": "a", "runtime": "mine"})), CONFIG)
    assert paused["__interrupt__"]
    inbox.approve()
    state = graph.invoke(None, CONFIG)
    assert [m.text for m in state["messages"] if m.type == "tool"] == ["read a"]
    assert [type(one) for one in seen] == [ToolRuntime]


def test_a_runtime_that_a_schema_makes_is_not_the_frameworks(allowing):
    """In a tool loop of one's own: pydantic makes a ToolRuntime of a dictionary."""
    seen: list[Any] = []
    (tool,) = guard_tools([reading(ToolRuntime[Any, Any] | None, seen)], allowing.agent)
    fields = ("state", "context", "config", "stream_writer", "tool_call_id", "store")
    made = dict.fromkeys(fields) | {"config": {}, "stream_writer": print, "context": "admin"}
    args = {"path": "a", "runtime": made}
    answer = tool.invoke({"type": "tool_call", "id": "1", "name": "read", "args": args})
    assert answer.status == "error"
    assert seen == []
    assert [call.code for call in allowing.log.calls()] == ["arguments.unencodable"]


def test_what_a_model_gives_under_that_name_is_bound(allowing):
    """In a tool loop of one's own nobody takes it away from the model: so it is decided on."""
    seen: list[Any] = []
    (tool,) = guard_tools([reading(ANNOTATIONS["object"], seen)], allowing.agent)
    tool.invoke({"path": "a", "runtime": "mine"})
    (call,) = allowing.log.calls()
    assert call.values == {"path": "a", "runtime": "mine"}


def test_a_store_is_the_frameworks_too(allowing):
    store = InMemoryStore()

    def keep(path: str, store: BaseStore | None = None) -> str:
        """Keep it."""
        return f"kept {path}"

    (tool,) = guard_tools([keep], allowing.agent)
    assert tool.invoke({"path": "a", "store": store}) == "kept a"
    (call,) = allowing.log.calls()
    assert (call.values, call.predicate["unbound"]) == ({"path": "a"}, ["store"])
