"""What a guard adds to a turn of a LangGraph agent, beside the same turn of an unguarded one.

    uv run python benchmarks/langgraph_turns.py [--repetitions N] [--turns N] [--json FILE]

A turn is one run of ``create_agent`` in a new thread: a model's message with one tool call, the
tool, which does nothing, and the model's answer. The model answers at once. Turns are made one
after another, and 60 at once on one event loop, in memory and with a log on disk; each guarded turn
runs under a delegation, which all turns share, or which is new for each turn, as in a web
application. A third arm has no guard, and a middleware whose hooks are those of the guard's and do
nothing: LangGraph makes a node of each hook around the model, which costs time by itself. The arms
run alternately, with the garbage collector off. The
clock is wall time, for a turn that waits for the disk costs its caller that time; the floor has no
disk. Past 1 ms for a bare fdatasync what is durable is void.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import states
from guarded_call import VOID_OVER, fdatasync_p50
from langchain.agents import create_agent
from langchain.agents.middleware.types import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from measuring import Row, command, figures, middle, no_collection, tracked

from agentguard import Guard
from agentguard_langchain import GuardMiddleware

AT_ONCE = 60
Turn = Callable[[int], Awaitable[object]]


class Model(BaseChatModel):
    """A model that calls the tool once, and then answers."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Model:  # noqa: ARG002
        """Take no notice of the tools."""
        return self

    def _generate(self, messages: list[BaseMessage], *_args: Any, **_kwargs: Any) -> ChatResult:
        last, answer = messages[-1], AIMessage("Done.")
        if last.type == "human":
            args = {"repo": "payments-api", "branch": f"agent/{last.text}"}
            call = {"name": "trigger_ci", "args": args, "id": f"call-{last.text}"}
            answer = AIMessage("", tool_calls=[{**call, "type": "tool_call"}])
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages, *args, **kwargs)


async def trigger_ci(repo: str, branch: str) -> str:
    """Trigger the continuous integration of a branch."""
    return f"{repo} {branch}"


class Hooks(AgentMiddleware[Any, Any, Any]):
    """A middleware with the asynchronous hooks of ``GuardMiddleware``, which do nothing."""

    async def abefore_agent(self, state: Any, runtime: Any) -> None:
        """Do nothing."""

    async def aafter_model(self, state: Any, runtime: Any) -> None:
        """Do nothing."""

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        """Call the model."""
        return await handler(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        """Call the tool."""
        return await handler(request)


def unguarded(*middleware: AgentMiddleware[Any, Any, Any]) -> Turn:
    """Return a turn without a guard."""
    graph = create_agent(Model(), [trigger_ci], middleware=middleware, checkpointer=InMemorySaver())
    return lambda number: _turn(graph, number)


def guarded(guard: Guard, *, is_new: bool) -> Turn:
    """Return a guarded turn, under one delegation for all turns, or a new one for each."""
    middleware = [GuardMiddleware(guard.new_agent("code-reviewer"))]
    graph = create_agent(Model(), [trigger_ci], middleware=middleware, checkpointer=InMemorySaver())
    shared = guard.delegate("user:alice", scope=["pr:write"])

    async def turn(number: int) -> object:
        delegation = guard.delegate("user:alice", scope=["pr:write"]) if is_new else shared
        async with delegation:
            return await _turn(graph, number)

    return turn


async def _turn(graph: Any, number: int) -> object:
    thread = {"configurable": {"thread_id": str(number)}}
    state = await graph.ainvoke({"messages": [HumanMessage(str(number))]}, thread)
    return [message.text for message in state["messages"]]


async def _time(turn: Turn, numbers: Iterator[int], turns: int, at_once: int) -> float:
    """Return the seconds that a turn takes, one after another or ``at_once`` together."""
    started = time.perf_counter()
    for _ in range(turns // at_once):
        await asyncio.gather(*(turn(next(numbers)) for _ in range(at_once)))
    return (time.perf_counter() - started) / (turns // at_once * at_once)


async def measured(what: str, bare: Turn, with_guard: Turn, at_once: int, options: Any) -> Row:
    """Return microseconds a turn, unguarded and guarded; the note says what is added."""
    numbers, hooked = itertools.count(), unguarded(Hooks())
    if not await bare(0) == await hooked(0) == await with_guard(0):
        raise SystemExit(f"{what}: the guarded turn gave another result")
    next(numbers)
    turns = max(options.turns, at_once)
    floors: list[float] = []
    hooks: list[float] = []
    times: list[float] = []
    with no_collection():
        for _ in tracked(range(options.repetitions), what):
            floors.append(await _time(bare, numbers, turns, at_once) * 1e6)
            hooks.append(await _time(hooked, numbers, turns, at_once) * 1e6)
            times.append(await _time(with_guard, numbers, turns, at_once) * 1e6)
    added = middle([one - floor for one, floor in zip(times, floors, strict=True)])
    by_hooks = middle([one - floor for one, floor in zip(hooks, floors, strict=True)])
    rate = middle([floor / one for one, floor in zip(times, floors, strict=True)])
    note = f"{added:,.0f} µs added ({by_hooks:,.0f} by idle hooks); {rate:.2f} of the throughput"
    return Row(what, "µs", middle(floors), middle(times), 1 / rate, note)


async def all_arms(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all arms, in memory and durable, and return the figures."""
    rows: list[Row] = []
    with states.both_guards() as (folder, in_memory, on_disk):
        before = os.getloadavg()[0], fdatasync_p50(folder)
        for where, guard in (("in memory", in_memory), ("on disk", on_disk)):
            for at_once in (1, AT_ONCE):
                for is_new in (False, True):
                    kind = "a new delegation each" if is_new else "one delegation"
                    what = f"{where}, {at_once} at once, {kind}"
                    with_guard = guarded(guard, is_new=is_new)
                    rows.append(await measured(what, unguarded(), with_guard, at_once, options))
        after = os.getloadavg()[0], fdatasync_p50(folder)
    return figures("langgraph", before, after, rows, void_over=VOID_OVER)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure on one event loop."""
    return asyncio.run(all_arms(options))


if __name__ == "__main__":
    command(str(__doc__), "a turn of a LangGraph agent", run, repetitions=9, turns=120)
