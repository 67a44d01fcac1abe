"""A hierarchical crew: a manager hands work to two coworkers, each with an identity of its own.

Run it with ``python examples/crew_hierarchy/main.py``: offline, with scripted models. With
``--model PROVIDER/NAME`` a real model works. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")

from crewai import LLM, Agent, Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.llms.base_llm import BaseLLM
from crewai.project import CrewBase, agent, crew, task
from crewai.tools import tool

from agentguard import Evidence, Guard, verify_evidence
from agentguard_crewai import guard_crewbase
from agentguard_crewai.testing import Step, scripted_model

HERE = Path(__file__).resolve().parent


@tool
def read_invoice(number: int) -> str:
    """Return what an invoice says."""
    return f"invoice {number}: 120 chairs for the reading room, 9,600.00"


@tool
def note_invoice(number: int, text: str) -> str:
    """Write a note to an invoice."""
    return f"noted at invoice {number}: {text}"


@tool
def pay_invoice(number: int) -> str:
    """Pay an invoice."""
    return f"invoice {number} is paid"


def office(guard: Guard, models: Mapping[str, BaseLLM]) -> Crew:
    """Make the crew of config/agents.yaml and config/tasks.yaml; each agent is guarded."""

    @guard_crewbase(guard)
    @CrewBase
    class Office:
        agents: list[BaseAgent]
        tasks: list[Task]
        agents_config: dict[str, Any]
        tasks_config: dict[str, Any]

        # Not below @agent: CrewAI gives the manager the tools for handing work on, and refuses
        # a manager with tools of its own, or one that is among the crew's agents.
        def manager(self) -> Agent:
            return Agent(config=self.agents_config["manager"], llm=models["manager"])

        @agent
        def reader(self) -> Agent:
            return Agent(
                config=self.agents_config["reader"], llm=models["reader"], tools=[read_invoice]
            )

        @agent
        def bookkeeper(self) -> Agent:
            return Agent(
                config=self.agents_config["bookkeeper"],
                llm=models["bookkeeper"],
                tools=[note_invoice, pay_invoice],
            )

        @task
        def handle(self) -> Task:
            return Task(config=self.tasks_config["handle"])  # type: ignore[call-arg]

        @crew
        def crew(self) -> Crew:
            return Crew(
                agents=self.agents,
                tasks=self.tasks,
                process=Process.hierarchical,
                manager_agent=self.manager(),
            )

    made: Crew = Office().crew()
    return made


def handed_to(coworker: str, work: str) -> Step:
    """Return the call with which a model hands work on."""
    arguments = {"task": work, "context": "Invoice 7, for alice.", "coworker": coworker}
    return ("delegate_work_to_coworker", arguments)


SCRIPTS: dict[str, list[Step]] = {
    "manager": [
        handed_to("Invoice Reader", "Say what invoice 7 is about."),
        handed_to("Bookkeeper", "Note that the chairs have come, and pay invoice 7."),
        "Invoice 7 is about chairs. It is noted that they have come. It is not paid.",
    ],
    "reader": [("read_invoice", {"number": 7}), "It is about 120 chairs."],
    "bookkeeper": [
        ("note_invoice", {"number": 7, "text": "the chairs have come"}),
        ("pay_invoice", {"number": 7}),
        "It is noted. I may not pay it for you.",
    ],
}


def models(name: str | None) -> dict[str, BaseLLM]:
    """Return a model for each agent: real ones of this name, or else scripted ones."""
    if name is None:
        return {role: scripted_model(*steps) for role, steps in SCRIPTS.items()}
    try:
        return {role: LLM(model=name) for role in SCRIPTS}
    except ImportError as error:  # its text says what to install, or how models are named
        sys.exit(f"--model {name}: {error}")


def agentguard(folder: Path, *arguments: str) -> str:
    """Run ``agentguard`` in a folder, in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "agentguard.cli", *arguments]
    ran = subprocess.run(  # noqa: S603  its arguments stand in this file
        command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    )
    return ran.stdout


def verified(guard: Guard, folder: Path) -> Iterator[Evidence]:
    """Prove each call in the log, and verify the proof as somebody else would."""
    listed = agentguard(folder, "audit", "list", "--kind", "call", "--last", "0", "--json")
    for line in listed.splitlines():
        yield verify_evidence(guard.prove(json.loads(line)["invocation_id"]), guard.trust)


def line(proved: Evidence) -> str:
    """Return for whom and through whom a call was made, which one, and what came of it."""
    actors = [] if proved.chain is None else proved.chain.actors
    chain = " > ".join([proved.call.principal, *(one.removeprefix("agent:") for one in actors)])
    outcome = "ok" if proved.call.allowed else f"denied, {proved.call.code}"
    return f"{chain:48} {proved.call.tool:26} {outcome}"


def work(folder: Path, name: str | None) -> None:
    """Found a trust domain in a folder, let the crew work there, and print what was done."""
    shutil.copy(HERE / "authz.rego", folder)
    shutil.copy(HERE / "agentguard.toml", folder)
    agentguard(folder, "init")
    with Guard.open(folder / "agentguard.toml") as guard:
        made = office(guard, models(name))
        with guard.delegate("user:alice", via="crew:office"):
            print(f"The crew says: {made.kickoff(inputs={'number': 7})}\n")
        for proved in verified(guard, folder):
            print(line(proved))


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description="A hierarchical crew with identities.")
    parser.add_argument("--model", metavar="PROVIDER/NAME", help="a real model, as CrewAI names it")
    parser.add_argument("--state", type=Path, metavar="DIR", help="a new folder, which is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.state.absolute() if given.state else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        os.environ["CREWAI_STORAGE_DIR"] = str(folder / "crewai")
        work(folder, given.model)


if __name__ == "__main__":
    main()
