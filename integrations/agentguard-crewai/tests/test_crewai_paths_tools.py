"""The kinds of tools that a guarded agent can have: each is gated.

Each kind runs one call that is allowed and its twin that is denied. The tools of servers are in
``test_crewai_mcp.py``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from crewai import Crew
from crewai.memory.unified_memory import Memory
from crewai.tools import tool
from crewai_files import CHAIN, KINDS, PLAN, REPLACED, Reads, codes, task_of
from pydantic import BaseModel, Field

from agentguard import Decision
from agentguard_crewai import guard_agent, guard_crew


class ReadsThroughRun(Reads):
    """Its work is in ``run`` alone, and ``_run`` goes there."""

    def run(self, path: str) -> str:
        self.ran.append(path)
        return f"the content of {path}"

    def _run(self, path: str) -> str:
        return self.run(path)


class ReadsByStructure(Reads):
    """What a model that writes text calls is another method, as the class has it."""

    def work(self, path: str) -> str:
        self.ran.append(path)
        return f"the content of {path}"

    def to_structured_tool(self) -> Any:
        made = super().to_structured_tool()
        made.func = self.work
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_tool(file_team, way, kind):
    lead = file_team.lead(way, tools=[KINDS[kind](file_team)])
    # a pydantic model copies the list that it is given
    file_team.ran = getattr(lead.tools[0], "ran", file_team.ran)
    output = file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    assert codes(output) == [["policy.denied"]]
    file_team.require_both()


@pytest.mark.parametrize("kind", [ReadsThroughRun, ReadsByStructure])
def test_a_tool_that_makes_its_own_way_is_gated(file_team, way, kind):
    made = kind()
    file_team.ran = made.ran
    lead = file_team.lead(way, tools=[made])
    file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    file_team.require_both()


@pytest.mark.parametrize(("kind", "name"), REPLACED)
def test_what_replaced_a_way_into_the_tool_is_gated(file_team, way, kind, name):
    made: Any = KINDS[kind](file_team)
    file_team.ran = getattr(made, "ran", file_team.ran)
    original = getattr(made, name)
    traces: list[Any] = []

    def traced(*args: Any, **kwargs: Any) -> Any:
        traces.append(kwargs)
        return original(*args, **kwargs)  # as what measures or traces tools does

    object.__setattr__(made, name, traced)
    way.crew(file_team.lead(way, PLAN, "done", tools=[made])).kickoff()
    unguarded = len(traces)
    file_team.ran.clear()
    lead = file_team.lead(way, tools=[made])
    file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    file_team.require_both()
    assert len(traces) == 2 * unguarded  # it is still traced, where CrewAI goes that way


def test_a_tools_method_is_its_own_within_its_work(file_team, way):
    class Twice(Reads):
        """It calls itself, which is no further call of the agent's."""

        def _run(self, path: str) -> str:
            return path if path.endswith("!") else super()._run(path) + self._run(f"{path}!")

    made = Twice()
    file_team.ran = made.ran
    file_team.kickoff(guard_crew(way.crew(file_team.lead(way, tools=[made])), file_team.guard))
    file_team.require_both()


class Content(BaseModel):
    """What a tool with a schema of its results returns."""

    text: str
    lines: int


def test_a_structured_result(file_team, way):
    @tool
    def read_file(path: str) -> Content:
        """Read a file."""
        file_team.ran.append(path)
        return Content(text=f"the content of {path}", lines=1)

    assert read_file.result_schema is Content
    lead = file_team.lead(way, tools=[read_file])
    output = file_team.kickoff(guard_crew(way.crew(lead), file_team.guard))
    said = str(output.tasks_output[0].messages) + " ".join(lead.llm.heard)
    assert '"lines":1' in said.replace("\\", "")
    assert codes(output) == [["policy.denied"]]
    file_team.require_both()


@pytest.mark.parametrize(("path", "raw"), [("plan", "the content of plan"), ("secret", "done")])
def test_a_result_that_is_the_answer_is_none_where_it_was_denied(file_team, way, path, raw):
    made = file_team.tool("read_file", result_as_answer=True)
    lead = file_team.lead(way, ("read_file", {"path": path}), "done", tools=[made])
    assert file_team.kickoff(guard_crew(way.crew(lead), file_team.guard)).raw == raw
    assert file_team.ran == [path] * (path == "plan")
    assert [call.chain for call in file_team.calls()] == [CHAIN]


def test_the_tools_of_a_task(file_team, native):
    lead = file_team.lead(native, tools=[file_team.tool("never_called")])
    crew = Crew(agents=[lead], tasks=[task_of(lead, tools=[file_team.read_file])])
    file_team.kickoff(guard_crew(crew, file_team.guard))
    file_team.require_both()


def test_two_tasks_with_tools_of_their_own(file_team, native):
    lead = file_team.lead(
        native, PLAN, "first", ("write_file", {"path": "secret"}), "second", tools=[]
    )
    tasks = [task_of(lead, tools=[file_team.tool(name)]) for name in ("read_file", "write_file")]
    file_team.kickoff(guard_crew(Crew(agents=[lead], tasks=tasks), file_team.guard))
    assert file_team.ran == ["plan"]
    assert file_team.story() == [
        ("lead", "read_file", "plan", "ok"),
        ("lead", "write_file", "secret", "policy.denied"),
    ]


def two_of_one_name(file_team, way, *steps):
    """A crew with two tools of one name, of which the second is from elsewhere."""

    @tool("Read File")
    def other(path: str) -> str:
        """Read another file."""
        file_team.ran.append(f"the other {path}")
        return path

    lead = file_team.lead(way, *steps, "done", tools=[file_team.read_file, other])
    return guard_crew(way.crew(lead), file_team.guard)


def test_two_tools_of_one_name_are_two_to_the_policy(file_team, native):
    file_team.made.decide = lambda document: (
        Decision.allow() if document["action"] == "read_file" else Decision.deny("not this one")
    )
    other = ("read_file_2", {"path": "plan"})  # as CrewAI has told the model
    file_team.kickoff(two_of_one_name(file_team, native, PLAN, other))
    assert file_team.ran == ["plan"]
    assert file_team.story() == [
        ("lead", "read_file", "plan", "ok"),
        ("lead", "read_file_2", "plan", "policy.denied"),
    ]


@pytest.mark.parametrize("name", ["read_file", "read_file_2", "Read File"])
def test_of_two_tools_of_one_name_a_text_means_the_first(file_team, text, name):
    file_team.kickoff(two_of_one_name(file_team, text, (name, {"path": "plan"})))
    assert (file_team.ran, file_team.story()) == (["plan"], [("lead", "read_file", "plan", "ok")])


class Kept(Memory):
    """A memory without a model; what is in it is what was said."""

    said: list[str] = Field(default_factory=list)

    def recall(self, query: str, *_args: Any, **_options: Any) -> Any:
        self.said.append(f"asked for {query}")
        return []

    def remember(self, content: str, *_args: Any, **_options: Any) -> Any:
        self.said.append(f"keeps {content}")
        return SimpleNamespace(scope="/", importance=0.5)

    def extract_memories(self, content: str) -> list[str]:
        return [content][:0]


MEMORIES = (
    ("search_memory", {"queries": ["plan"]}),
    ("search_memory", {"queries": ["secret"]}),
    ("save_to_memory", {"contents": ["plan"]}),
    ("save_to_memory", {"contents": ["secret"]}),
)


@pytest.mark.parametrize("where", ["agent-of-a-crew", "crew", "agent"])
def test_the_tools_of_a_memory(file_team, native, where):
    memory = Kept(llm=native.model(), storage=object(), embedder=len)  # type: ignore[arg-type]
    own = {} if where == "crew" else {"memory": memory}
    lead = file_team.lead(native, *MEMORIES, "done", tools=[], **own)
    if where == "agent":
        guard_agent(lead, file_team.guard)
        with file_team.alice():
            lead.kickoff("go on")
    else:
        crew = native.crew(lead, memory=memory if where == "crew" else False)
        file_team.kickoff(guard_crew(crew, file_team.guard))
    kept = [said for said in memory.said if "plan" in said or "secret" in said]
    assert kept == ["asked for plan", "keeps plan"]
    assert file_team.story() == [
        ("lead", "save_to_memory", "['plan']", "ok"),
        ("lead", "save_to_memory", "['secret']", "policy.denied"),
        ("lead", "search_memory", "['plan']", "ok"),
        ("lead", "search_memory", "['secret']", "policy.denied"),
    ]
    assert {call.chain for call in file_team.calls()} == {CHAIN}


@pytest.fixture
def skills(tmp_path):
    """A folder of skills; a model is told their names, and loads what it needs."""
    for name in ("plan", "secret"):
        (tmp_path / name).mkdir()
        text = f"---\nname: {name}\ndescription: what is {name}\n---\nall about the {name}\n"
        (tmp_path / name / "SKILL.md").write_text(text)
    return tmp_path


@pytest.mark.parametrize("where", ["crew", "agent"])
def test_the_loader_of_skills(file_team, native, skills, where):
    loads = [("load_skill", {"skill_name": name}) for name in ("plan", "secret")]
    lead = file_team.lead(native, *loads, "done", tools=[], skills=[skills])
    if where == "crew":
        heard = (
            file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
            .tasks_output[0]
            .messages
        )
    else:
        guard_agent(lead, file_team.guard)
        with file_team.alice():
            heard = lead.kickoff("go on").messages
    assert "all about the plan" in str(heard)
    assert "all about the secret" not in str(heard)
    file_team.ran.append("plan")
    file_team.require_both(tool="load_skill")


def test_the_tool_that_adds_images(file_team, native):
    adds = [("add_image_to_content", {"image_url": name}) for name in ("plan", "secret")]
    lead = file_team.lead(native, *adds, "done", tools=[], multimodal=True)
    file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    file_team.ran.append("plan")
    file_team.require_both(tool="add_image_to_content")


def test_reading_a_deferred_result_is_a_call_as_well(file_team, native):
    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        return f"a line of {path}\n" * 50_000  # more than fits in a model's context

    lead = file_team.lead(native, PLAN, "done", tools=[read_file])
    model = lead.llm

    class Reader(type(model)):  # type: ignore[misc]
        """It reads what it was told of."""

        def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            for word in str(messages[-1]["content"]).split("`"):
                if word.endswith("/result.md"):
                    asked = {"file_path": word, "line_count": 1}
                    self.steps.insert(0, ("read_a_deferred_tool_result", asked))
                    break
            return super().call(messages, *args, **kwargs)

    lead.llm = Reader(model="scripted", native=True, steps=model.steps)
    output = file_team.kickoff(guard_crew(native.crew(lead), file_team.guard))
    assert "a line of plan" in lead.llm.heard[-1]
    assert output.raw == "done"
    assert [call.tool for call in file_team.calls()] == ["read_file", "read_a_deferred_tool_result"]
    assert {call.chain for call in file_team.calls()} == {CHAIN}
