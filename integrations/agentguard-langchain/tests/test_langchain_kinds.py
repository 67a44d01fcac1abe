"""Under a policy that allows everything a guarded tool is what the unguarded one is.

Every kind of tool is compared with itself, unguarded: in LangChain's own standard suites, in what
a model sees, and in what its calls give. What each call bound is looked up in the log.
"""

from __future__ import annotations

import functools
import inspect
import uuid
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from agentguard_langchain import bind_ahead, evaluate, guard_tools

CONFIG: Any = {"configurable": {"thread_id": "t1"}}


STANDARD_TESTS = [
    (suite, name)
    for suite in (ToolsUnitTests, ToolsIntegrationTests)
    for name in dir(suite)
    if name.startswith("test_") and name != "test_no_overrides_DO_NOT_OVERRIDE"
]


async def outcome(call):
    """Return what ``call`` gives or raises, in a form that can be compared."""
    try:
        result = call()
        return "returned", await result if inspect.isawaitable(result) else result
    except Exception as error:  # noqa: BLE001  whatever it is, both must raise it
        return "raised", type(error), str(error)


def tool_call(kind, tool, call_id="123"):
    args = kind.given if isinstance(kind.given, dict) else {"__arg1": kind.given}
    return {"type": "tool_call", "id": call_id, "name": tool.name, "args": args}


async def test_the_standard_suites_give_the_same(kind, allowing):
    """The outcome of each of their tests is compared, by its name."""

    async def run(tool):
        members = {"tool_constructor": tool, "tool_invoke_params_example": kind.given}
        outcomes = {}
        for suite, name in STANDARD_TESTS:
            test = getattr(type("Suite", (suite,), members)(), name)
            wanted = {"tool": tool} if "tool" in inspect.signature(test).parameters else {}
            outcomes[name] = await outcome(functools.partial(test, **wanted))
        return outcomes

    expected = await run(kind.make())
    assert await run(guard_tools([kind.make()], allowing.agent)[0]) == expected
    if kind.standard:
        wanted = {n for n in expected if not (kind.is_async and n.startswith("test_invoke"))}
        assert {expected[name] for name in wanted} == {("returned", None)}


async def test_calls_give_the_same(kind, allowing):
    tool = kind.make()
    (guarded,) = guard_tools([tool], allowing.agent)
    ways = [
        lambda t: t.invoke(kind.given, CONFIG),
        lambda t: t.ainvoke(kind.given, CONFIG),
        lambda t: t.invoke(tool_call(kind, t), CONFIG),
        lambda t: t.ainvoke(tool_call(kind, t), CONFIG),
        lambda t: t.batch([kind.given, kind.given], CONFIG),
        lambda t: list(t.stream(kind.given, CONFIG)),
        lambda t: t.run(kind.given, config=CONFIG, tool_call_id="9"),
    ]
    results = [(await outcome(lambda w=w: w(tool)), await outcome(lambda w=w: w(guarded)))
               for w in ways]  # fmt: skip
    for expected, result in results:
        assert result == expected
    assert any(expected[0] == "returned" for expected, _result in results)


def test_a_model_sees_the_same(kind, allowing):
    tool = kind.make()
    (guarded,) = guard_tools([tool], allowing.agent)
    assert type(guarded).__name__ == type(tool).__name__
    assert isinstance(guarded, type(tool))
    assert convert_to_openai_tool(guarded) == convert_to_openai_tool(tool)
    for name in set(type(tool).model_fields) - {"func", "coroutine"}:
        assert getattr(guarded, name) == getattr(tool, name)
    assert dumpd(guarded)["id"] == dumpd(tool)["id"]


async def test_the_same_bytes_ahead_and_at_execution(kind, allowing):
    (guarded,) = guard_tools([kind.make()], allowing.agent)
    ahead = bind_ahead(guarded, kind.args)
    assert bind_ahead(guarded, kind.args).encoded == ahead.encoded
    assert evaluate(guarded, kind.args).allowed
    assert allowing.log.calls() == []
    for _ in range(2):
        await guarded.ainvoke(tool_call(kind, guarded), CONFIG)
    if not kind.is_async:
        guarded.invoke(tool_call(kind, guarded), CONFIG)
    logged = allowing.log.calls()
    # gated once, whatever layers the call has gone through
    assert len(logged) == (2 if kind.is_async else 3)
    assert {call.encoded for call in logged} == {ahead.encoded}
    assert {tuple(call.predicate["unbound"]) for call in logged} == {ahead.unbound}
    assert {call.outcome for call in logged} == {"ok"}


BOUND = {
    "plain": {"x": 4, "y": 3},
    "coercing": {"x": 4, "y": 3},
    "config": {"x": 4},
    "callbacks": {"x": 4},
    "kwargs": {"x": 4, "more": [1], "z": None},
    "extra": {"x": 4, "callbacks": "sneaky"},
    "alias": {"x": 4, "when": "then"},
    "alias-made": {"x": 4, "when": {"$made": True}},
    "validators": {"x": 100, "y": 7},
    "v1": {"x": 100, "y": 2},
    "string": {"query": "what"},
    "class": {"x": 4, "y": 3},
    "class-both": {"x": 100, "y": 7},
    "class-config": {"x": 4, "label": "here"},
    "class-async": {"x": 4, "label": "here"},
    "class-around-stock": {"x": 4, "y": 3},
    "runtime": {"x": 4},
    "state": {"x": 4},
    "state-schema": {"x": 4},
    "user": {"x": 4},
    "call-id": {"x": 4},
    "hidden-default": {"x": 4},
    "factory": {"x": 4, "serial": {"$made": True}},
    "factory-given": {"x": 4, "serial": {"$uuid": "12345678-1234-5678-1234-567812345678"}},
    "addresses": {
        "host": {"$ip": "::1"},
        "net": {"$ip_network": "10.0.0.0/8"},
        "at": {"$ip_interface": "10.0.0.1/8"},
        "size": {"$byte_size": 1000},
    },
    "mcp": {"x": "5", "note": "n"},
    "dict-schema": {"x": "5"},
    "nothing": {},
}


async def test_marks_stand_in_named_tuples_and_queues_too(kinds, allowing):
    (guarded,) = guard_tools([kinds["factory-queue"].make()], allowing.agent)
    await guarded.ainvoke(tool_call(kinds["factory-queue"], guarded), CONFIG)
    (logged,) = allowing.log.calls()
    queued, paired = logged.values["queue"]["$deque"][0], logged.values["pair"]["fields"]
    assert queued["fields"] == {"title": "t", "id": {"$made": True}, "tags": []}
    assert (paired["ticket"]["fields"]["id"], paired["times"]) == ({"$made": True}, 1)


@pytest.mark.parametrize("name", BOUND)
async def test_what_is_bound(kinds, allowing, name):
    (guarded,) = guard_tools([kinds[name].make()], allowing.agent)
    await guarded.ainvoke(tool_call(kinds[name], guarded), CONFIG)
    (logged,) = allowing.log.calls()
    assert logged.values == BOUND[name]


@pytest.mark.parametrize("given", [{"x": 1}, {"x": 1, "serial": str(uuid.uuid4())}])
def test_a_factorys_value_counts_when_somebody_gave_it(allowing, kinds, given):
    (guarded,) = guard_tools([kinds["factory"].make()], allowing.agent)
    guarded.invoke(given)
    guarded.invoke(given)
    first, second = allowing.log.calls()
    assert first.encoded == second.encoded
    assert (first.values["serial"] == {"$made": True}) == ("serial" not in given)


def test_that_holds_in_nested_models_too(allowing, kinds):
    (guarded,) = guard_tools([kinds["factory-nested"].make()], allowing.agent)
    ident = str(uuid.uuid4())
    guarded.invoke({"ticket": {"title": "t"}, "more": []})
    guarded.invoke({"ticket": {"title": "t", "id": ident}, "more": []})
    made, given = [call.values["ticket"]["fields"] for call in allowing.log.calls()]
    assert made == {"title": "t", "id": {"$made": True}, "tags": []}
    assert given == {"title": "t", "id": {"$uuid": ident}, "tags": []}
