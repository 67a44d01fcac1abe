"""What a guard adds to a tool call of a CrewAI crew, beside the same call of an unguarded one.

    uv run python benchmarks/crews.py [--repetitions N] [--calls N] [--json FILE]

A tool call is what CrewAI does between the model's answer and the tool's result: it parses and
validates, runs hooks, emits events, and runs the tool, which does nothing. It is made on both ways:
natively, and from the text of a model (ReAct). The guarded and the unguarded agent make calls
alternately, with the garbage collector off; what is added is the median of the repetitions'
differences, of the calling thread's CPU time in memory and of wall time on disk. After each call,
untimed, CrewAI's event handlers come to their end: they run in other threads, and a guarded call,
which lets the interpreter's lock go for each signature, would wait for those of the call before
it. In a crew the model's next answer takes longer than they do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"

import states
from crewai import Agent, Crew, Task
from crewai.agents.parser import AgentAction
from crewai.events import crewai_event_bus
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool
from crewai.utilities.tool_utils import execute_tool_and_check_finality
from guarded_call import VOID_OVER, fdatasync_p50
from measuring import Row, command, figures, middle, no_collection, tracked

from agentguard import Guard
from agentguard_crewai import guard_agent
from agentguard_crewai.testing import scripted_model


class Silent(BaseLLM):
    """A model that is never asked."""

    def call(self, *_args: Any, **_kwargs: Any) -> str:
        """Say nothing."""
        return ""


def trigger_ci(repo: str, branch: str) -> str:
    """Trigger the continuous integration of a branch."""
    return f"{repo} {branch}"


def member(guard: Guard | None) -> tuple[Any, Any, Task]:
    """Return an agent with its executor and a task; guarded, if there is a guard."""
    tools = [tool(trigger_ci)]  # a tool of its own: what is guarded runs for its agent alone
    agent = Agent(role="Reviewer", goal="g", backstory="b", llm=Silent(model="silent"), tools=tools)
    if guard is not None:
        guard_agent(agent, guard, name="code-reviewer")
    task = Task(description="d", expected_output="e", agent=agent)
    Crew(agents=[agent], tasks=[task], verbose=False)
    agent.create_agent_executor(task=task)
    executor: Any = agent.agent_executor
    executor._setup_native_tools()  # noqa: SLF001  as its first step does
    return agent, executor, task


def natively(guard: Guard | None) -> Callable[[int], object]:
    """Return a call of a model with function calling."""
    _agent, executor, _task = member(guard)

    def call(number: int) -> object:
        arguments = {"repo": "payments-api", "branch": f"agent/fix-{number}"}
        function = {"name": "trigger_ci", "arguments": json.dumps(arguments)}
        given = {"id": f"call_{number}", "type": "function", "function": function}
        return executor._execute_single_native_tool_call(given)["result"]  # noqa: SLF001

    return call


def in_text(guard: Guard | None) -> Callable[[int], object]:
    """Return a call that a model has written as text."""
    agent, executor, task = member(guard)

    def call(number: int) -> object:
        given = json.dumps({"repo": "payments-api", "branch": f"agent/fix-{number}"})
        text = f"Thought: go on.\nAction: trigger_ci\nAction Input: {given}\n"
        action = AgentAction(thought="", tool="trigger_ci", tool_input=given, text=text)
        return execute_tool_and_check_finality(
            agent_action=action,
            tools=executor.tools,
            agent_key=agent.key,
            agent_role=agent.role,
            tools_handler=executor.tools_handler,
            task=task,
            agent=agent,
        ).result

    return call


def in_a_task(guard: Guard | None) -> Callable[[int], object]:
    """Return a run of a crew whose agent calls the tool once, and answers."""

    def call(number: int) -> object:
        model = scripted_model(("trigger_ci", {"repo": "api", "branch": f"agent/{number}"}), "Ok.")
        agent = Agent(role="r", goal="g", backstory="b", llm=model, tools=[tool(trigger_ci)])
        if guard is not None:
            guard_agent(agent, guard, name="code-reviewer")
        task = Task(description="d", expected_output="e", agent=agent)
        return str(Crew(agents=[agent], tasks=[task], verbose=False).kickoff())

    return call


def measured(
    what: str,
    way: Callable[[Guard | None], Callable[[int], object]],
    guard: Guard,
    clock: Callable[[], float],
    options: Any,
) -> Row:
    """Return microseconds a call, unguarded and guarded; the note says what is added."""
    bare, guarded, numbers = way(None), way(guard), itertools.count()
    if bare(0) != guarded(0):
        raise SystemExit(f"{what}: the guarded crew gave another result: {guarded(0)!r}")
    floors: list[float] = []
    times: list[float] = []
    with no_collection():
        for _ in tracked(range(options.repetitions), what):
            floors.append(_time(bare, numbers, clock, options.calls))
            times.append(_time(guarded, numbers, clock, options.calls))
    added = middle([guarded - bare for guarded, bare in zip(times, floors, strict=True)])
    ratios = [guarded / bare for guarded, bare in zip(times, floors, strict=True)]
    return Row(what, "µs", middle(floors), middle(times), middle(ratios), f"{added:.0f} µs added")


def _time(
    call: Callable[[int], object], numbers: Iterator[int], clock: Callable[[], float], calls: int
) -> float:
    taken = 0.0
    for _ in range(calls):
        started = clock()
        call(next(numbers))
        taken += clock() - started
        crewai_event_bus.flush()
    return taken / calls * 1e6


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both ways, in memory and durable, and return the figures."""
    rows: list[Row] = []
    with states.both_guards() as (folder, in_memory, on_disk):
        before = os.getloadavg()[0], fdatasync_p50(folder)
        guards = [
            ("in memory, Rego (CPU time)", in_memory, time.thread_time),
            ("on disk, Rego (wall time)", on_disk, time.perf_counter),
        ]
        for where, guard, clock in guards:
            for what, way in (("native", natively), ("text", in_text)):
                rows.append(measured(f"{what}, {where}", way, guard, clock, options))
        after = os.getloadavg()[0], fdatasync_p50(folder)
    return figures("crewai", before, after, rows, void_over=VOID_OVER)


if __name__ == "__main__":
    command(str(__doc__), "a tool call of a crew", run, repetitions=15, calls=100)
