"""Crews in several processes on one state: each call is its own crew's."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from crewai_numbers import NAMES, ROUNDS, told

from agentguard import Guard
from agentguard.domain import config, domain

PROGRAM = '''
import asyncio, json, logging, os, threading, traceback

from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool
from pydantic import BaseModel

from agentguard import Decision, Guard, current_delegation
from agentguard_crewai import guard_crew

NAMES = ("lead", "worker", "writer", "reader")


def decide(document):
    return Decision.allow()


class Model(BaseLLM):
    steps: list = []
    native: bool = True

    def call(self, messages, *args, **kwargs):
        step = self.steps.pop(0)
        if isinstance(step, str):
            return step if self.native else f"Thought: I know.\\nFinal Answer: {step}"
        name, arguments = step
        written = json.dumps(arguments)
        if not self.native:
            return f"Thought: go on.\\nAction: {name}\\nAction Input: {written}\\n"
        function = {"name": name, "arguments": written}
        return [{"id": "c", "type": "function", "function": function}]

    def supports_function_calling(self):
        return self.native

    def supports_stop_words(self):
        return False


@tool
def note(text: str) -> str:
    """Note something."""
    lent = current_delegation()
    line = json.dumps([text, lent.principal, lent.members]) + "\\n"
    os.write(SEEN, line.encode())
    return f"noted {text}"


def one(guard, number):
    native = number % 2 == 0
    lead, other = NAMES[number % 4], NAMES[(number + 1) % 4]
    work = {"task": f"read {number}", "context": "now", "coworker": other}
    steps = [
        ("note", {"text": f"{number} first"}),
        ("delegate_work_to_coworker", work),
        f"{number} is done",
    ]
    then = [("note", {"text": f"{number} coworker"}), "noted"]
    agents = [
        Agent(
            role=role,
            goal="a goal",
            backstory="a story",
            llm=Model(model="scripted", native=native, steps=said),
            tools=[note],
            allow_delegation=role == lead,
        )
        for role, said in ((lead, steps), (other, then))
    ]
    task = Task(description="a task", expected_output="words", agent=agents[0])
    crew = guard_crew(Crew(agents=agents, tasks=[task]), guard)
    with guard.delegate(f"user:u{number}", scope=["notes"], via=f"crew:c{number}"):
        output = asyncio.run(crew.akickoff()) if number % 3 == 0 else crew.kickoff()
    assert output.raw == f"{number} is done", output.raw


def complete_models():
    """Complete CrewAI's models that pydantic would complete at their first use, in any thread."""
    models = [BaseModel]
    for model in models:  # the list grows in the loop
        models += model.__subclasses__()
        if model.__module__.startswith("crewai."):
            model.model_rebuild(raise_errors=False)


def main(process, crews):
    global SEEN
    complete_models()
    logging.disable(logging.WARNING)
    SEEN = os.open("seen", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        failed = []

        def work(number):
            try:
                one(guard, number)
            except BaseException:
                failed.append(traceback.format_exc())

        numbers = [process * crews + at for at in range(crews)]
        threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[0]
'''


TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "crowd_program:decide"
""" + "".join(f'\n[agents.{name}]\nmax_scope = ["notes"]\n' for name in NAMES)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that each process runs, and a state that nobody has used yet."""
    folder = tmp_path_factory.mktemp("founded")
    (folder / "crowd_program.py").write_text(PROGRAM, "utf-8")
    (folder / "agentguard.toml").write_text(TABLES, "utf-8")
    settings = config.load(folder / "agentguard.toml")
    domain.found(settings, b"of this test", now=datetime.now(UTC))
    return folder


@pytest.mark.parametrize(
    ("processes", "crews"),
    [
        pytest.param(2, 1, marks=pytest.mark.slow("two crews, each in a process of its own")),
        pytest.param(4, 3, marks=pytest.mark.slow("twelve crews in four processes")),
    ],
)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_processes_on_one_state_keep_their_crews_apart(
    tmp_path, template, preloaded, signed, monkeypatch, round_, processes, crews
):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    main = "import crowd_program, sys; crowd_program.main(*map(int, sys.argv[1:]))"
    begun = [
        preloaded.begin("-c", main, f"{number}", f"{crews}", cwd=tmp_path)
        for number in range(processes)
    ]
    ends = [process.wait() for process in begun]
    assert ends == [0] * processes, (tmp_path / "output").read_text()
    (tmp_path / "crowd_program.py").write_text("def decide(document): ...", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with Guard.open(tmp_path / "agentguard.toml", passphrase=b"of this test") as guard:
        assert guard.verify().ok
        calls = signed(guard)
    assert len(calls) == 3 * processes * crews
    lines = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert len(lines) == 2 * processes * crews
    for text, principal, members in lines:
        number = told(text)
        last = NAMES[(number + ("coworker" in text)) % 4]
        assert (principal, members[1]) == (f"user:u{number}", f"crew:c{number}")
        assert members[-1].split("/")[-2] == last
    keys: dict[tuple[str, str, str], int] = Counter()
    for call in calls:
        number = told(call.arguments.get("text") or call.arguments["task"].removeprefix("read "))
        role, coworker = NAMES[number % 4], NAMES[(number + 1) % 4]
        expected = (role, coworker) if "coworker" in call.arguments.get("text", "") else (role,)
        assert call.chain == (f"user:u{number}", f"crew:c{number}", *expected)
        assert (call.agent, call.decision, call.outcome) == (expected[-1], "allow", "ok")
        keys[call.instance, call.chain[0], call.agent] += 1
    assert len({instance for instance, _principal, _agent in keys}) == len(keys)
    assert len(keys) == 2 * processes * crews
