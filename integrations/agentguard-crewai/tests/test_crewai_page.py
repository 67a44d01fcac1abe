"""The pages about CrewAI (docs/how-to/crewai*.md) as a reader follows them.

The code of each page runs, in its order, and prints what stands below the code. What other files of
these tests prove is not proved again: of the table of ways this file only asks that each way has a
test. Further tests hold what the pages say of CrewAI itself, and of what the adapter leaves out.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
import types
from pathlib import Path

import commands
import pytest
from crewai import Agent, Crew, Process, Task
from crewai.flow import Flow, listen, or_, start
from crewai.flow.human_feedback import HumanFeedbackCollapseError
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.mcp.tool_resolver import MCPToolResolver
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tools import BaseTool, tool
from crewai.utilities.string_utils import sanitize_tool_name
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import agentguard_crewai
from agentguard import ApprovalPending, ConfigError, Decision, Guard
from agentguard.domain import config
from agentguard_crewai import answered, guard_agent, guard_crew, kickoff_or_pause

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
PAGES = {page.stem: page for page in (ROOT / "docs" / "how-to").glob("crewai*.md")}
TEXTS = {name: page.read_text("utf-8") for name, page in PAGES.items()}
TEXT = "\n".join(TEXTS.values())


def blocks(name, language):
    """The blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[name], re.DOTALL | re.MULTILINE)


def table(header):
    """The rows of the table that begins with this header."""
    _, _, rest = TEXT.partition(f"| {header} |\n")
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines]


def printed_below(text, end):
    """The output that stands below the code that ends at ``end``; empty if there is none."""
    below = text[end:].partition("\n```python\n")[0]
    found = re.search(r"^```text\n(.*?)^```$", below, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def without_panels(output):
    """What the code printed, without the panels that CrewAI draws."""
    return re.sub(r"^╭.*?^╰[^\n]*\n+", "", output, flags=re.DOTALL | re.MULTILINE)


def test_no_page_is_without_its_place_and_none_is_long():
    assert set(PAGES) == {
        "crewai",
        *(
            f"crewai-{one}"
            for one in ("approvals", "calls", "durable", "limits", "mcp", "members", "traces")
        ),
    }
    assert {
        name: words for name, text in TEXTS.items() if (words := len(text.split())) > 2000
    } == {}
    for name in set(PAGES) - {"crewai"}:
        assert f"]({name}.md)" in TEXTS["crewai"]


@pytest.mark.parametrize(
    ("name", "number", "member"),
    [("crewai", 3, ""), ("crewai-members", 2, "analyst"), ("crewai-approvals", 3, "")],
)
def test_the_code_runs_and_prints_what_stands_below_it(
    name, number, member, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for agents in blocks(name, "yaml"):
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "agents.yaml").write_text(agents)
    # CrewAI looks for the module of a Flow's class, and beside its file for agents.yaml
    module = types.ModuleType("page")
    module.__file__ = str(tmp_path / "page.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document = Sybil([PythonCodeBlockParser()]).parse(PAGES[name])
    document.namespace = vars(module)
    examples = list(document.examples())
    assert len(examples) == number
    for example in examples:
        example.evaluate()
        output = without_panels(capsys.readouterr().out)
        assert output == printed_below(TEXTS[name], example.region.end)
        assert output
    if member:
        assert [one._agentguard.agent.name for one in module.__dict__["notes"].agents] == [member]
    guards = [one for one in vars(module).values() if isinstance(one, Guard)]
    assert guards
    for guard in guards:
        assert guard.verify().ok
        guard.close()


def test_the_way_from_an_empty_folder(tmp_path, monkeypatch, capsys, signed):
    home = tmp_path / "home"
    for name in [name for name in os.environ if name.startswith(("XDG_", "AGENTGUARD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert commands.run(["init"], env=os.environ, cwd=".").returncode == 0
    (members,) = blocks("crewai", "toml")
    with Path("agentguard.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n{members}")
    Path("notes.txt").write_text("All is well.")
    (program,) = blocks("crewai", "py")
    names = {"__name__": "crew"}
    exec(program, names)  # noqa: S102
    (_, end) = re.search(r"^```py\n.*?^```$", TEXTS["crewai"], re.DOTALL | re.MULTILINE).span()
    assert capsys.readouterr().out == printed_below(TEXTS["crewai"], end)
    assert "All is well." in names["model"].heard[1]
    with Guard.find() as guard:
        made = [(call.agent, call.tool, call.decision, call.code) for call in signed(guard)]
    assert made == [
        ("analyst", "read_file", "allow", ""),
        ("analyst", "read_file", "deny", "policy.denied"),
    ]


WAYS = {
    "a model with function calling; several calls at once": [
        ("paths_models", "test_a_call_in_a_crew"),
        ("paths_models", "test_several_native_calls_at_once"),
    ],
    "a model that writes its calls as text (ReAct)": [("paths_models", "test_a_call_in_a_crew")],
    "a function below `@tool`, sync or async": [("paths_tools", "test_each_kind_of_tool")],
    "a planner's steps, one after another or in parallel": [
        ("paths_models", "test_the_steps_of_a_planner"),
        ("paths_models", "test_the_steps_of_a_planner_that_run_at_once"),
    ],
    "`Task(tools=[...])`": [("paths_tools", "test_the_tools_of_a_task")],
    "MCP tools, those of memory and skills": [
        ("mcp", "test_a_tool_of_a_server_with_streamable_http"),
        ("paths_tools", "test_the_tools_of_a_memory"),
        ("paths_tools", "test_the_loader_of_skills"),
    ],
    "a long result, which CrewAI puts in a file": [
        ("paths_tools", "test_reading_a_deferred_result_is_a_call_as_well")
    ],
    "a result from the cache": [
        ("cache_isolation", "test_a_denied_agent_is_served_nothing_that_another_has_read")
    ],
    "handing on: *Delegate work*, *Ask question*": [
        ("delegation_hops", "test_work_goes_from_hand_to_hand")
    ],
    "the manager that a hierarchical crew makes": [
        ("delegation_hops", "test_a_manager_hands_work_on"),
        ("paths_unguarded", "test_a_manager_that_the_crew_makes_is_guarded_each_time"),
    ],
    "`Agent.kickoff`, `kickoff_async`, `akickoff`": [
        ("paths_kickoffs", "test_an_agent_without_a_guarded_crew")
    ],
    "`Crew.kickoff`, `kickoff_async`, `akickoff`, `kickoff_for_each` and its async twins": [
        ("paths_kickoffs", "test_the_ways_to_begin_a_crew")
    ],
    "`async_execution=True`, `max_execution_time`": [
        ("paths_kickoffs", "test_tasks_that_are_executed_at_once"),
        ("paths_kickoffs", "test_an_agent_with_a_limit_of_its_time"),
    ],
    "`crew.replay`, `crew.train`, `crew.test`": [
        ("paths_kickoffs", "test_a_run_that_is_replayed"),
        ("paths_kickoffs", "test_a_crew_that_is_trained"),
        ("paths_kickoffs", "test_a_crew_that_is_tested"),
    ],
    "a Flow": [("paths_kickoffs", "test_inside_of_a_flow")],
    "an agent that is not guarded": [
        ("paths_unguarded", "test_an_unguarded_agent_that_slips_in_aborts_the_crew")
    ],
}
"""The tests of each way that the page's table has."""


def test_each_way_of_the_table_has_its_test():
    assert [row[0] for row in table("way | what CrewAI runs | guarded by")] == list(WAYS)
    for file, name in (test for tests in WAYS.values() for test in tests):
        assert f"def {name}(" in (HERE / f"test_crewai_{file}.py").read_text("utf-8"), name


def test_the_reason_codes_are_in_the_list():
    listed = (ROOT / "docs" / "reference" / "reason-codes.md").read_text("utf-8")
    groups = "agent|approval|arguments|delegation|journal|policy|tool"
    found = set(re.findall(rf"`((?:{groups})\.[a-z_]+)`", TEXT))
    no_codes = (".toml", ".yaml", ".copy", ".kickoff", ".kickoff_async")
    named = {one for one in found if not one.endswith(no_codes)}
    assert {"agent.unguarded", "delegation.delegatee", "journal.in_doubt"} <= named
    assert [code for code in sorted(named) if f"| `{code}` |" not in listed] == []


def test_every_public_name_is_on_the_page_and_in_the_readme():
    readme = (HERE.parent / "README.md").read_text("utf-8")
    for name in agentguard_crewai.__all__:
        assert f"`{name}" in TEXT.replace("@", "") or f"{name}(" in TEXT, name
        assert re.search(rf"`@?{name}\b", readme), name


def test_the_tables_are_those_of_a_configuration():
    (members,) = blocks("crewai-members", "toml")
    (toml,) = blocks("crewai-calls", "toml")
    who = config.parse(tomllib.loads(members), source="page", base=Path.cwd())
    assert who.delegators("writer") == {"analyst"}
    read = config.parse(tomllib.loads(toml), source="page", base=Path.cwd())
    assert read.tools.tables["search_docs"].requires == ("web:read",)
    server = MCPToolResolver._extract_server_name("https://docs.example.com/mcp")
    assert read.aliases == {sanitize_tool_name(f"{server}_search"): "search_docs"}


# What they say of CrewAI.


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_a_manager_has_the_tools_of_the_agent_that_a_task_names(native, recorded, ran, named):
    @tool
    def pay(cents: int) -> str:
        """Pay a sum."""
        ran.append(cents)
        return "paid"

    made = recorded(agents={"manager": {"authority": "own"}, "hand": {"authority": "own"}})
    manager = native.agent("Manager", ("pay", {"cents": 5}), "done")
    hand = native.agent("Hand", "done", tools=[pay])
    task = Task(description="a task", expected_output="words", agent=hand if named else None)
    crew = Crew(agents=[hand], tasks=[task], process=Process.hierarchical, manager_agent=manager)
    guard_crew(crew, made.guard).kickoff()
    assert ran == ([5] if named else [])
    assert made.guard.verify().ok


def test_crewai_refuses_a_manager_with_a_tool_of_its_own(native, recorded, read_note):
    manager = native.agent("Manager", "done", tools=[read_note])
    task = Task(description="a task", expected_output="words")
    crew = Crew(
        agents=[native.agent("Hand", "done")],
        tasks=[task],
        process=Process.hierarchical,
        manager_agent=manager,
    )
    with pytest.raises(Exception, match="Manager agent should not have tools"):
        guard_crew(crew, recorded().guard).kickoff()


@pytest.fixture
def ran():
    return []


@pytest.fixture
def read_note(ran):
    @tool
    def read_note(name: str) -> str:
        """Read a note."""
        ran.append(name)
        return f"what stands in {name}"

    return read_note


def test_crewai_drops_an_identity_that_no_yaml_has(native, recorded):
    parts = {"role": "Reader", "goal": "a goal", "backstory": "a story", "identity": "boss"}
    member = Agent(config=parts, llm=native.model("done"))
    assert not hasattr(member, "identity")
    guard_agent(member, recorded().guard)
    assert member._agentguard.agent.name == "reader"


def test_a_coworkers_denial_stands_in_the_output_of_the_task(native, recorded, read_note, ran):
    made = recorded()
    made.decide = lambda call: (
        Decision.deny("no") if call["action"] == "read_note" else Decision.allow()
    )
    work = {"task": "Read.", "context": "It is short.", "coworker": "Hand"}
    lead = native.agent("Lead", ("delegate_work_to_coworker", work), "done", allow_delegation=True)
    hand = native.agent("Hand", ("read_note", {"name": "a"}), "it was denied", tools=[read_note])
    task = Task(description="a task", expected_output="words", agent=lead)
    output = guard_crew(Crew(agents=[lead, hand], tasks=[task]), made.guard).kickoff()
    (failed,) = output.tasks_output[0].tool_failures
    assert (failed.tool_name, failed.agent_role) == ("read_note", "Hand")
    assert failed.failure.code == "policy.denied"
    assert ran == []


def test_a_text_model_that_repeats_its_call_does_not_reach_the_tool(
    native, text, recorded, read_note, ran
):
    for way, asked in ((native, 2), (text, 1)):
        made = recorded()
        made.decide = lambda _call: Decision.require_approval()
        call = ("read_note", {"name": "a"})
        member = way.agent("Reader", call, call, "done", tools=[read_note])
        crew = guard_crew(way.crew(member), made.guard, timeout=0)
        output = crew.kickoff()
        assert len(output.tasks_output[0].tool_failures) == asked
    assert ran == []


def test_a_person_is_asked_about_a_tasks_answer_when_its_tools_have_run(
    native, recorded, read_note, ran, monkeypatch
):
    asked = []

    def answer(*_prompt):
        asked.append(list(ran))
        return ""

    monkeypatch.setattr("builtins.input", answer)
    member = native.agent("Reader", ("read_note", {"name": "a"}), "done", tools=[read_note])
    task = Task(description="a task", expected_output="words", agent=member, human_input=True)
    guard_crew(native.crew(member, tasks=[task]), recorded().guard).kickoff()
    assert asked == [["a"]]


def test_the_planner_of_a_crew_has_no_tools_and_no_identity(native, recorded, signed, read_note):
    made = recorded()
    heard = []

    class Planner(type(native.model())):
        def call(self, messages, tools=None, *args, **kwargs):
            heard.append(tools)
            return super().call(messages, tools, *args, **kwargs)

    plan = {"list_of_plans_per_task": [{"task_number": 1, "task": "a task", "plan": "Read."}]}
    planner = Planner(model="scripted", steps=[json.dumps(plan)] * 2)
    member = native.agent("Reader", ("read_note", {"name": "a"}), "done", tools=[read_note])
    crew = guard_crew(native.crew(member, planning=True, planning_llm=planner), made.guard)
    assert crew.kickoff().raw == "done"
    assert heard
    assert not any(heard)
    assert [one.agent for one in signed(made.guard)] == ["reader"]


class Reader(BaseTool):
    """A tool that a checkpoint can hold: CrewAI writes no functions there."""

    name: str = "read_note"
    description: str = "Read a note."

    def _run(self, name: str) -> str:
        return f"what stands in {name}"


def test_a_checkpoint_holds_the_models_key_and_no_identity(native, recorded, signed, tmp_path):
    made = recorded()
    member = native.agent("Reader", ("read_note", {"name": "a"}), "done", tools=[Reader()])
    member.llm.api_key = "the key of the model"
    crew = native.crew(member, checkpoint=CheckpointConfig(location=str(tmp_path)))
    guard_crew(crew, made.guard).kickoff()
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    (call,) = signed(made.guard)
    assert "the key of the model" in written.read_text()
    assert call.instance.rpartition("/")[2] not in written.read_text()
    restored = Crew.from_checkpoint(CheckpointConfig(restore_from=str(written)))
    assert type(restored.agents[0]) is Agent
    with pytest.raises(ConfigError, match="restore the crew first"):
        crew.kickoff(from_checkpoint=CheckpointConfig(restore_from=str(written)))
    guard_crew(restored, made.guard)
    assert restored.agents[0]._agentguard.agent.id != call.instance


@pytest.fixture
def flow(native, recorded, read_note, tmp_path, capsys):
    """The class of a flow that has a note read, which waits; where it is kept, and its guard."""
    made = recorded()
    made.decide = lambda _call: Decision.require_approval()
    kept = SQLiteFlowPersistence(str(tmp_path / "flows.db"))

    class Reading(Flow):
        @start()
        def begin(self):
            return "begun"

        @listen(or_(begin, answered("read")))
        def read(self):
            member = native.agent("Reader", ("read_note", {"name": "a"}), "done", tools=[read_note])
            crew = guard_crew(native.crew(member), made.guard, on_approval="pause")
            return kickoff_or_pause(self, crew, run="note-7").raw

    return Reading, kept, made


def test_a_flow_that_is_resumed_too_early_pauses_again(flow, ran):
    kind, kept, made = flow
    begun = kind(persistence=kept)
    first = begun.kickoff()
    again = kind.from_pending(begun.flow_id, kept).resume()
    assert again.context.metadata["request_id"] == first.context.metadata["request_id"]
    assert ran == []
    made.approve()
    assert kind.from_pending(begun.flow_id, kept).resume() == "done"
    assert ran == ["a"]


def test_words_for_a_flow_are_for_a_model_to_classify(flow, monkeypatch, ran):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    kind, kept, made = flow
    begun = kind(persistence=kept)
    begun.kickoff()
    made.approve()
    with pytest.raises(HumanFeedbackCollapseError, match="OPENAI_API_KEY"):
        kind.from_pending(begun.flow_id, kept).resume("go on")
    assert ran == []
    assert kind.from_pending(begun.flow_id, kept).resume() == "done"


def test_a_flow_that_fails_while_it_goes_on_is_kicked_off_anew(flow, monkeypatch, ran):
    kind, kept, made = flow
    begun = kind(persistence=kept)
    begun.kickoff()
    made.approve()
    resumed = kind.from_pending(begun.flow_id, kept)
    with monkeypatch.context() as patched:
        patched.setattr(agentguard_crewai.flows, "resumable", fails)
        with pytest.raises(ConnectionError):
            resumed.resume()
    with pytest.raises(ValueError, match="No pending feedback"):
        kind.from_pending(begun.flow_id, kept)
    for _ in range(2):
        assert kind(persistence=kept).kickoff() == "done"
    assert ran == ["a"]


def fails(*_args):
    raise ConnectionError


def test_of_two_methods_that_pause_at_once_crewai_keeps_one(
    native, recorded, read_note, ran, tmp_path
):
    made, kept = recorded(), SQLiteFlowPersistence(str(tmp_path / "flows.db"))
    made.decide = lambda _call: Decision.require_approval()

    def read(flow, name):
        member = native.agent("Reader", ("read_note", {"name": name}), "done", tools=[read_note])
        crew = guard_crew(native.crew(member), made.guard, on_approval="pause")
        return kickoff_or_pause(flow, crew, run=name).raw

    class Both(Flow):
        @start()
        def begin(self):
            return "begun"

        @listen(or_(begin, answered("one")))
        def one(self):
            return read(self, "a")

        @listen(or_(begin, answered("other")))
        def other(self):
            return read(self, "b")

    begun = Both(persistence=kept)
    (outcome,) = begun.kickoff().context.emit
    assert outcome in {"one_answered", "other_answered"}
    made.approve()
    Both.from_pending(begun.flow_id, kept).resume()
    assert ran == ["a" if outcome == "one_answered" else "b"]
    with pytest.raises(ValueError, match="No pending feedback"):
        Both.from_pending(begun.flow_id, kept)
    Both(persistence=kept).kickoff()
    assert sorted(ran) == ["a", "b"]


def test_without_a_name_a_run_makes_each_call_again(native, recorded, read_note, ran):
    made = recorded()
    made.decide = lambda call: (
        Decision.require_approval() if call["args"]["name"] == "b" else Decision.allow()
    )

    def begun():
        calls = ("read_note", {"name": "a"}), ("read_note", {"name": "b"})
        member = native.agent("Reader", *calls, "done", tools=[read_note])
        return guard_crew(native.crew(member), made.guard, on_approval="pause").kickoff()

    with pytest.raises(ApprovalPending):
        begun()
    made.approve()
    begun()
    assert ran == ["a", "a", "b"]
