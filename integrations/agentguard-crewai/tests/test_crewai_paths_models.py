"""How models call tools: natively, in text, and by the steps of a planner.

Each path runs one call that is allowed and its twin that is denied, and a test asserts who signed
both, and for whom. The kinds of tools are in ``test_crewai_paths_tools.py``.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from crewai.tools import BaseTool, tool
from crewai_files import BOTH, CHAIN, PLAN, SECRET, Knowing, codes, plan_of
from pydantic import BaseModel, Field

from agentguard_crewai import guard_agent, guard_crew

# --- how a model calls --------------------------------------------------------------------------


def test_a_call_in_a_crew(file_team, way):
    lead = file_team.lead(way)
    output = file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    assert (output.raw, codes(output)) == ("done", [["policy.denied"]])
    assert "the content of plan" in str(output.tasks_output[0].messages)
    file_team.require_both()
    assert len({call.instance for call in file_team.calls()}) == 1


def test_several_native_calls_at_once(file_team, native):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()  # the two that may run are under way at the same time
        file_team.ran.append(path)
        return path

    more = ("read_file", {"path": "paper"})
    lead = file_team.lead(native, [PLAN, SECRET, more], "done", tools=[read_file])
    output = file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert codes(output) == [["policy.denied"]]
    assert sorted(file_team.ran) == ["paper", "plan"]
    assert file_team.story() == [
        ("lead", "read_file", "paper", "ok"),
        ("lead", "read_file", "plan", "ok"),
        ("lead", "read_file", "secret", "policy.denied"),
    ]
    assert {call.chain for call in file_team.calls()} == {CHAIN}


def test_several_native_calls_one_after_another(file_team, native):
    lead = file_team.lead(
        native, [PLAN, SECRET], "done", tools=[file_team.tool("read_file", max_usage_count=5)]
    )
    file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    file_team.require_both()


def test_a_model_that_falls_back_from_native_calls_to_text(file_team, native):
    steps = (
        PLAN,
        RuntimeError("this model does not support tools"),
        'Thought: go on.\nAction: read_file\nAction Input: {"path": "secret"}\n',
        "Thought: I know.\nFinal Answer: done",
    )
    output = file_team.kickoff(
        guard_crew(native.crew(file_team.lead(native, *steps)), file_team.guard)
    )
    assert (output.raw, codes(output)) == ("done", [["policy.denied"]])
    file_team.require_both()


@pytest.mark.parametrize("said", ["Read File", "readFile", "read_fille", '"read_file"'])
def test_a_name_that_crewai_takes_for_a_tools_is_that_tools(file_team, text, said):
    lead = file_team.lead(text, (said, {"path": "plan"}), (said, {"path": "secret"}), "done")
    file_team.kickoff(guard_crew(text.crew(lead), file_team.guard))
    file_team.require_both()


@pytest.mark.parametrize(
    "words", ['{"path": "\\u0073ecret"}', "{'path': 'secret'}", '{path: "secret"}']
)
def test_arguments_are_what_crewai_makes_of_a_models_words(file_team, text, words):
    said = f"Thought: go on.\nAction: read_file\nAction Input: {words}\n"
    lead = file_team.lead(text, PLAN, "done")
    calls = iter([said, "Thought: I know.\nFinal Answer: done"])
    object.__setattr__(lead.llm, "call", lambda *_args, **_kwargs: next(calls))
    file_team.kickoff(guard_crew(text.crew(lead), file_team.guard))
    assert (file_team.story(), file_team.ran) == (
        [("lead", "read_file", "secret", "policy.denied")],
        [],
    )


def test_the_policy_sees_values_as_the_tool_receives_them(file_team, way):
    received: list[Any] = []

    class Asked(BaseModel):
        """What the tool is given: a default is filled in, a number is made of words."""

        count: int
        unit: str = Field(default="pages")

    class Count(BaseTool):
        name: str = "count"
        description: str = "Count."
        args_schema: type[BaseModel] = Asked

        def _run(self, count: int, unit: str) -> str:
            received.append((count, unit))
            return "counted"

    lead = file_team.lead(way, ("count", {"count": "7", "agent": "root"}), "done", tools=[Count()])
    file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    (call,) = file_team.calls()
    assert received == [(7, "pages")]
    assert call.arguments == {"count": 7, "unit": "pages"}
    assert [document["args"] for document in file_team.made.policy_inputs] == [
        {"count": 7, "unit": "pages"}
    ]


# --- planners -----------------------------------------------------------------------------------


def test_the_steps_of_a_planner(file_team, way, native):
    planning = plan_of(native, ("first", ()), ("second", (1,)))
    steps = (PLAN, "the first is done", SECRET, "the second is done", "done")
    lead = file_team.lead(way, *steps, planning_config=planning)
    output = file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    assert output.raw.endswith("done")
    assert not lead.llm.steps  # so these were steps of the plan
    assert codes(output) == [["policy.denied"]]
    file_team.require_both()


def test_the_steps_of_a_planner_that_run_at_once(file_team, native):
    together = threading.Barrier(2, timeout=120)

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        together.wait()
        file_team.ran.append(path)
        return path

    scripts = {
        f"read the {path}": [("read_file", {"path": path}), f"it says {path}"]
        for path in ("plan", "paper", "secret")
    }
    llm = Knowing(model="knowing", native=True, scripts={**scripts, "": ["done"]})
    planning = plan_of(native, *[(what, ()) for what in scripts])
    lead = file_team.lead(native, llm=llm, tools=[read_file], planning_config=planning)
    output = file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert codes(output) == [["policy.denied"]]
    assert sorted(file_team.ran) == ["paper", "plan"]
    assert {(call.agent, call.chain) for call in file_team.calls()} == {("lead", CHAIN)}
    assert [told[2:] for told in file_team.story()] == [
        ("paper", "ok"),
        ("plan", "ok"),
        ("secret", "policy.denied"),
    ]


def test_an_agent_that_plans_by_its_own_model(file_team, native):
    plan = json.loads('{"plan": "p", "ready": true, "steps": []}')
    plan["steps"] = [{"step_number": 1, "description": "read", "depends_on": []}]
    lead = file_team.lead(native, json.dumps(plan), PLAN, SECRET, "read", "done", planning=True)
    file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert not lead.llm.steps
    file_team.require_both()


def test_an_agent_that_plans_by_itself(file_team, native):
    planning = plan_of(native, ("first", ()))
    steps = (*BOTH, "the first is done", "done")
    lead: Any = guard_agent(
        file_team.lead(native, *steps, planning_config=planning), file_team.guard
    )
    with file_team.alice():
        lead.kickoff("go on")
    file_team.require_both()


def test_a_planner_that_ran_before_it_was_guarded_is_guarded(file_team, native):
    planning = plan_of(native, ("first", ()), times=2)
    free = (("read_file", {"path": "free"}), "the first is done", "done")
    lead = file_team.lead(
        native, *free, *BOTH, "the first is done", "done", planning_config=planning
    )
    crew = native.crew(lead)
    crew.kickoff()
    assert file_team.ran.pop() == "free"
    file_team.kickoff(guard_crew(crew, file_team.guard))
    file_team.require_both()
