"""A crew that reads files: one that everybody may read, and a secret that nobody may.

The tests ``test_crewai_paths_*.py`` share the agents, the calls and the models. The fixtures are in
``conftest.py``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from types import SimpleNamespace
from typing import Any

from crewai import Task
from crewai.agent.planning_config import PlanningConfig
from crewai.llms.base_llm import BaseLLM
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from pydantic import Field

from agentguard import Decision

AGENTS = {
    "lead": {"max_scope": ["read"]},
    "hand": {"max_scope": ["read"]},
    "crew-manager": {"max_scope": ["read"]},
}
CHAIN = ("user:alice", "crew:report", "lead")
PLAN: Any = ("read_file", {"path": "plan"})
SECRET: Any = ("read_file", {"path": "secret"})
BOTH = (PLAN, SECRET)
OBSERVED = re.compile("^Observation: ", re.MULTILINE)


def is_result(role, text):
    """Whether a message tells a model what a tool has returned, natively or in text."""
    return role == "tool" or (role != "system" and bool(re.search(OBSERVED, text)))


class Knowing(BaseLLM):
    """A model that keeps nothing: what it says depends on how many results it was given so far.

    So it can be in several conversations at once. ``scripts`` has what it says, by a word that
    stands in the conversation.
    """

    scripts: dict[str, Any] = {}  # noqa: RUF012  a field of a pydantic model
    native: bool = True

    def call(self, messages: Any, *_args: Any, **_kwargs: Any) -> Any:
        said = [str(message["content"]) for message in messages]
        roles = [message["role"] for message in messages]
        given = sum(map(is_result, roles, said))
        script = next(s for word, s in self.scripts.items() if any(word in text for text in said))
        step = script[given]
        if isinstance(step, str):
            return step if self.native else f"Thought: I know.\nFinal Answer: {step}"
        name, arguments = step
        if not self.native:
            return f"Thought: go on.\nAction: {name}\nAction Input: {json.dumps(arguments)}\n"
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": f"call_{given}", "type": "function", "function": function}]

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(messages, *args, **kwargs)

    def supports_function_calling(self) -> bool:
        return self.native

    def supports_stop_words(self) -> bool:
        return False


class FileTeam:
    """A guard whose policy keeps a secret, and a tool that reads it; ``ran`` is what was read."""

    def __init__(self, made, signed):
        self.made = made
        self.guard = made.guard
        self.ran: list[str] = []
        self._signed = signed
        made.decide = lambda document: (
            Decision.deny("it is secret") if "secret" in str(document["args"]) else Decision.allow()
        )
        self.read_file = self.tool("read_file")

    def tool(self, name, **options):
        def reads(path: str) -> str:
            """Read a file."""
            self.ran.append(path)
            return f"the content of {path}"

        made: Any = tool(name, **options)
        return made(reads)

    def lead(self, way, *steps, **options):
        """An agent whose model reads both files, unless ``steps`` says otherwise."""
        given = {"tools": [self.read_file], **options}
        return way.agent("Lead", *(steps or (*BOTH, "done")), **given)

    def alice(self):
        """What lets the agents act, for as long as it is in force."""
        return self.guard.delegate("user:alice", scope=["read", "write"], via="crew:report")

    def kickoff(self, crew, **inputs):
        with self.alice():
            return crew.kickoff(**inputs)

    def calls(self):
        return self._signed(self.guard)

    def story(self):
        """Who called what with what argument, and what became of it, without an order."""
        return sorted(
            (c.agent, c.tool, str(next(filter(None, c.arguments.values()))), c.outcome or c.code)
            for c in self.calls()
        )

    def require_both(self, *, times=1, tool="read_file", agent="lead", chain=CHAIN):
        """Fail unless one file was read, the other was not, and both calls are the agent's."""
        told = [(agent, tool, "plan", "ok"), (agent, tool, "secret", "policy.denied")]
        assert self.story() == sorted(told * times)
        assert {(c.chain, c.scope) for c in self.calls()} == {(chain, ("read",))}
        assert self.ran == ["plan"] * times


def codes(output):
    """The codes of what CrewAI says has failed in each task."""
    return [[one.failure.code for one in task.tool_failures] for task in output.tasks_output]


def task_of(agent, **options):
    return Task(description="a task", expected_output="words", agent=agent, **options)


def plan_of(native, *steps, times=1):
    """A model for the planning alone: each step has a description, and those before it."""
    told = [
        {"step_number": at, "description": what, "tool_to_use": None, "depends_on": list(after)}
        for at, (what, after) in enumerate(steps, 1)
    ]
    said = json.dumps({"plan": "a plan", "ready": True, "steps": told})
    llm = native.model(*[said] * times)
    return PlanningConfig(reasoning_effort="low", max_attempts=1, llm=llm)


class Reads(BaseTool):
    """A tool class; ``ran`` is what was read, and how."""

    name: str = "read_file"
    description: str = "Read a file."
    ran: list[str] = Field(default_factory=list, exclude=True)

    def _run(self, path: str) -> str:
        self.ran.append(path)
        return f"the content of {path}"


class ReadsAsync(Reads):
    """Its work is a coroutine function."""

    async def _run(self, path: str) -> str:  # type: ignore[override]
        await asyncio.sleep(0)
        self.ran.append(path)
        return f"the content of {path}"


class ReadsInBoth(Reads):
    """It has an async way, too, which CrewAI does not take."""

    async def _arun(self, path: str) -> str:
        return self._run(path)


class ReadsByRun(Reads):
    """It overrides CrewAI's own method around its work."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return super().run(*args, **kwargs)


class OwnTool(Tool):
    """A subclass of CrewAI's class for functions, with a method of its own around the function."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)


def of_function(file_team):
    return file_team.tool("read_file")


def of_coroutine_function(file_team):
    @tool
    async def read_file(path: str) -> str:
        """Read a file."""
        await asyncio.sleep(0)
        file_team.ran.append(path)
        return path

    return read_file


def of_partial(file_team):
    made = file_team.tool("read_file")
    made.func = functools.partial(made.func)
    return made


def of_callable(file_team):
    class Reader:
        """Something that can be called."""

        def __call__(self, path: str) -> str:
            file_team.ran.append(path)
            return path

    made = file_team.tool("read_file")
    made.func = Reader()
    return made


def of_own_class(file_team):
    plain = file_team.tool("read_file")
    return OwnTool(
        name="read_file", description="Read.", func=plain.func, args_schema=plain.args_schema
    )


def of_another_framework(file_team):
    def read_file(path: str) -> str:
        file_team.ran.append(path)
        return path

    return Tool.from_langchain(
        SimpleNamespace(name="read_file", func=read_file, description="Read.")
    )


def of_class(kind):
    return lambda file_team: kind(ran=file_team.ran)


KINDS = {
    "function": of_function,
    "coroutine-function": of_coroutine_function,
    "partial": of_partial,
    "callable": of_callable,
    "class-for-functions": of_own_class,
    "another-framework": of_another_framework,
    "class": of_class(Reads),
    "async-class": of_class(ReadsAsync),
    "class-with-both": of_class(ReadsInBoth),
    "class-with-run": of_class(ReadsByRun),
}


REPLACED = [
    (kind, name)
    for kind in ("function", "class", "class-for-functions")
    for name in ("run", "_run", "func")
    if (kind, name) != ("class", "func")
]


CREW_WAYS = {
    "kickoff": lambda crew: [crew.kickoff()],
    "kickoff_async": lambda crew: [asyncio.run(crew.kickoff_async())],
    "akickoff": lambda crew: [asyncio.run(crew.akickoff())],
    "kickoff_for_each": lambda crew: crew.kickoff_for_each([{}, {}]),
    "kickoff_for_each_async": lambda crew: asyncio.run(crew.kickoff_for_each_async([{}, {}])),
    "akickoff_for_each": lambda crew: asyncio.run(crew.akickoff_for_each([{}, {}])),
    "copy": lambda crew: [crew.copy().kickoff(), crew.copy().kickoff()],
}
