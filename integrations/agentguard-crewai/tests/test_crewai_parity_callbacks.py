"""Callbacks, hooks and guardrails are told the same in a guarded crew, and have the same say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from crewai import Crew, Task
from crewai.hooks import (
    register_after_tool_call_hook,
    register_before_tool_call_hook,
    unregister_after_tool_call_hook,
    unregister_before_tool_call_hook,
)
from crewai.hooks.dispatch import HookAborted
from crewai_parity import HOW, reader

from agentguard_crewai import guard_agent, guard_crew


@pytest.mark.filterwarnings("ignore:function callbacks cannot be serialized")
def test_callbacks_are_told_the_same(same, native):
    def build(watch):
        def inputs_of(inputs):
            watch.note("before_kickoff", inputs)
            return {**(inputs or {}), "about": "bees"}

        def after(output):
            watch.note("after_kickoff", output)
            output.raw += "!"
            return output

        steps = ("read_file", {"path": "a"}), "done"
        lead = watch.agent(native, "Lead on {about}", *steps, tools=[reader(watch)])
        guard_as_lead(lead)
        lead.step_callback = lambda step: watch.note("step of the agent", step)
        writer = watch.agent(native, "Writer", ("read_file", {"path": "b"}), "written")
        tasks = [
            Task(description="about {about}", expected_output="words", agent=lead),
            Task(
                description="write",
                expected_output="words",
                agent=writer,
                tools=[reader(watch)],
                callback=lambda output: watch.note("task", output),
            ),
        ]
        return Crew(
            agents=[lead, writer],
            tasks=tasks,
            step_callback=lambda step: watch.note("step of the crew", step),
            task_callback=lambda output: watch.note("task of the crew", output),
            before_kickoff_callbacks=[inputs_of],
            after_kickoff_callbacks=[after],
        )

    def guard_as_lead(agent):
        agent._original_role = None

    run = same(build, HOW["kickoff"], guarded=named({"Lead on {about}": "lead"}))
    assert run.made == [("lead", "read_file", "ok"), ("writer", "read_file", "ok")]
    assert "written!" in str(run.seen["result"])
    told = {"before_kickoff", "after_kickoff", "step of the agent", "step of the crew"}
    assert told | {"task", "task of the crew"} <= set(run.seen)
    assert run.said("about bees")


def named(names: Mapping[str, str]) -> Callable[[Crew, Any], Crew]:
    """Guard a crew, some agents of which have another name than their role's."""

    def guarded(crew, guard):
        for agent in crew.agents:
            if agent.role in names:
                guard_agent(agent, guard, name=names[agent.role])
        return guard_crew(crew, guard)

    return guarded


@pytest.fixture
def hooks():
    """Registers hooks of tool calls, in the place of those of the run before."""
    made: list[Any] = []

    def register(before=None, after=None):
        clear()
        made.append((before, after))
        if before is not None:
            register_before_tool_call_hook(before)
        register_after_tool_call_hook(after)

    def clear():
        while made:
            before, after = made.pop()
            unregister_before_tool_call_hook(before)
            unregister_after_tool_call_hook(after)

    yield register
    clear()


def context(context: Any) -> list[Any]:
    """What a hook is told."""
    names = ("tool_name", "tool_input", "tool", "agent", "task", "crew", "tool_result")
    return [*(getattr(context, name) for name in names), context.raw_tool_result]


@pytest.mark.parametrize("answer", [None, True, False, "abort", "raise"])
def test_a_hook_before_a_call_has_the_same_say(same, way, how, hooks, answer):
    def build(watch):
        def before(given):
            watch.note("before", context(given))
            if answer == "abort":
                raise HookAborted(reason="not today")
            if answer == "raise":
                raise RuntimeError("a hook that fails")
            return answer

        hooks(before, lambda given: watch.note("after", context(given)))
        steps = ("read_file", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    first = same(build, how)
    blocked = answer in (False, "abort")
    assert first.made == [("lead", "read_file", "ok")] * (not blocked)
    assert first.said("blocked by hook") == blocked


def test_hooks_change_what_goes_in_and_what_comes_out_alike(same, way, how, hooks):
    def build(watch):
        def before(given):
            given.tool_input["path"] = given.tool_input["path"].upper()

        hooks(before, lambda given: f"<{given.tool_result}>")
        steps = ("read_file", {"path": "a"}), "done"
        return way.crew(watch.agent(way, "Lead", *steps, tools=[reader(watch)]))

    run = same(build, how)
    assert run.seen["ran"] == [["list", "A", 3]]
    assert run.calls[0].arguments == {"path": "A", "limit": 3}
    assert run.said("the content of A>")


def test_a_guardrail_has_the_same_say(same, native):
    def build(watch):
        def checked(output):
            watch.note("guardrail", output)
            good = "better" in output.raw
            return good, output.raw if good else "make it better"

        call = "read_file", {"path": "a"}
        lead = watch.agent(native, "Lead", call, "bad", call, "better", tools=[reader(watch)])
        task = Task(
            description="a task",
            expected_output="words",
            agent=lead,
            guardrail=checked,
            guardrail_max_retries=2,
        )
        return Crew(agents=[lead], tasks=[task])

    run = same(build, HOW["akickoff"])
    assert run.made == [("lead", "read_file", "ok")] * 2
    assert run.said("make it better")
    assert len(run.seen["guardrail"]) == 2
