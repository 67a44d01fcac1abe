"""Agents who hand work on to each other, and the scopes that a user delegates to them.

The tests ``test_crewai_delegation_*.py`` share these. The fixture is in ``conftest.py``.
"""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Any

from crewai import Crew, Task
from crewai.tools import tool

from agentguard import Guard, current_delegation
from agentguard.audit.kinds import parse_entry
from agentguard.delegation import verification
from agentguard.identity import credential
from agentguard_crewai import guard_crew

AGENTS = {
    "lead": {"max_scope": ["read", "write", "publish"]},
    "hand": {"max_scope": ["read", "write"]},
    "third": {"max_scope": ["read"]},
    "crew-manager": {"max_scope": ["read", "write", "publish"]},
}
ALL = ("read", "write", "publish", "pay")
CREW = ("user:alice", "crew:report")
DELEGATE, ASK = "delegate_work_to_coworker", "ask_question_to_coworker"
READ: Any = ("read_file", {"path": "plan"})


def hands(coworker, by=DELEGATE):
    """What a model says to hand work on to a coworker, by either of CrewAI's tools."""
    what = "task" if by == DELEGATE else "question"
    return (by, {what: "read it", "context": "none", "coworker": coworker})


def task_of(agent, **options):
    return Task(description="a task", expected_output="words", agent=agent, **options)


def codes(output):
    return [one.failure.code for task in output.tasks_output for one in task.tool_failures]


def hops(guard):
    """The chains that were handed on, each verified, by the names of those in it."""
    found = []
    with closing(guard.reader()) as reader:
        for _index, body in reader.entries():
            read = parse_entry(body)
            if read.kind == "delegation":
                at = int(datetime.fromisoformat(read.at).timestamp())
                members: Any = read.members
                chain = verification.from_json(members["chain"], guard.trust, at=at)
                found.append(tuple(credential.agent_name(m) or m for m in chain.members))
    return found


class DelegatingTeam:
    """A guard and a tool; ``ran`` are the files that were read, and for whom the tool saw it is."""

    def __init__(self, made, signed):
        self.made = made
        self.guard: Guard = made.guard
        self.ran: list[Any] = []
        self._signed = signed

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            lent = current_delegation()
            members = () if lent is None else lent.members
            self.ran.append((path, tuple(credential.agent_name(m) or m for m in members)))
            return f"the content of {path}"

        self.read_file = read_file

    def agent(self, way, role, *steps, **options):
        return way.agent(role, *steps, **{"tools": [self.read_file], **options})

    def three(self, way, by=(DELEGATE, ASK)):
        """A crew whose lead hands work on to a hand, which hands it on to the third."""
        lead = self.agent(way, "Lead", hands("Hand", by[0]), READ, "led", allow_delegation=True)
        hand = self.agent(way, "Hand", READ, hands("Third", by[1]), "handed")
        third = self.agent(way, "Third", READ, "done")
        # CrewAI gives these to who executes a crew's task, and not to its coworkers
        hand.tools = [self.read_file, *hand.get_delegation_tools([third])]
        return guard_crew(Crew(agents=[lead, hand, third], tasks=[task_of(lead)]), self.guard)

    def two(self, way, *steps, hand=(READ, "done")):
        """A crew of two; its task is the lead's, the hand is a coworker."""
        lead = self.agent(way, "Lead", *steps, allow_delegation=True)
        other = self.agent(way, "Hand", *hand)
        return guard_crew(Crew(agents=[lead, other], tasks=[task_of(lead)]), self.guard)

    def lend(self, user="user:alice", scope=ALL, **terms):
        return self.guard.delegate(user, scope=scope, **{"via": "crew:report", **terms})

    def kickoff(self, crew, **terms):
        with self.lend(**terms):
            return crew.kickoff()

    def calls(self):
        return self._signed(self.guard)

    def story(self):
        """Who called what, and what became of it."""
        return [(c.agent, c.tool, c.outcome or c.code) for c in self.calls()]
