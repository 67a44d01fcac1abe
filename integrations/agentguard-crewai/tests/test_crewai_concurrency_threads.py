"""Crews, agents and copies at once, in threads and on event loops: each call is its own crew's.

A few rounds run by default, ``AGENTGUARD_ROUNDS=full`` runs many.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.tools import tool
from crewai_numbers import NAMES, ROUNDS, told

from agentguard import ConfigError, Guard, current_delegation
from agentguard_crewai import guard_agent, guard_crew, resumable

CREWS = 20 if rounds.FULL else 8
AGENTS = {name: {"max_scope": ["notes"]} for name in (*NAMES, "crew-manager")}


class World:
    """One guard, two tools that all crews share, and what these have seen."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.seen: list[tuple[str, str | None, tuple[str, ...]]] = []

        @tool
        def note(text: str) -> str:
            """Note something."""
            lent = current_delegation()
            members = () if lent is None else lent.members
            self.seen.append((text, None if lent is None else lent.principal, members))
            return f"noted {text}"

        @tool
        def read(text: str) -> str:
            """Read something."""
            lent = current_delegation()
            members = () if lent is None else lent.members
            self.seen.append((text, None if lent is None else lent.principal, members))
            return f"has read {text}"

        self.tools = [note, read]

    def crew(self, way: Any, number: int, role: str, coworker: str) -> tuple[Crew, list[Any]]:
        """An agent notes, and hands on to a coworker who reads; this one has the next task, too."""
        work = {"task": f"read {number}", "context": "now", "coworker": coworker}
        lead = way.agent(
            role,
            ("note", {"text": f"{number} first"}),
            ("delegate_work_to_coworker", work),
            f"{number} is done",
            tools=self.tools,
            allow_delegation=True,
        )
        other = way.agent(
            coworker,
            ("read", {"text": f"{number} coworker"}),
            f"{number} was read",
            ("note", {"text": f"{number} second"}),
            f"{number} is done",
            tools=self.tools,
        )
        crew = guard_crew(way.crew(lead, other), self.guard)
        return crew, [lead, other]

    def lent(self, number: int) -> Any:
        return self.guard.delegate(f"user:u{number}", scope=["notes"], via=f"crew:c{number}")


def acting(text: str, role: str, coworker: str) -> tuple[str, ...]:
    """Who acts for whom where a tool is told this text."""
    if "second" in text:
        return (coworker,)
    return (role, coworker) if "coworker" in text else (role,)


def require_apart(world: World, calls: list[Any], numbers: Any, names: dict[int, Any]) -> None:
    """Each call's key, chain, scope and arguments are those of the crew that its arguments name."""
    keys: dict[tuple[int, str], set[str]] = {}
    made: Counter[tuple[int, str, str]] = Counter()
    for call in calls:
        text = call.arguments.get("text") or call.arguments["task"].removeprefix("read ")
        number = told(text)
        role, coworker = names[number]
        assert call.chain[:2] == (f"user:u{number}", f"crew:c{number}")
        assert call.chain[2:] == acting(text, role, coworker)
        assert call.agent == call.chain[-1]
        assert (call.scope, call.decision, call.outcome) == (("notes",), "allow", "ok")
        keys.setdefault((number, call.agent), set()).add(call.instance)
        made[number, call.agent, call.tool] += 1
    assert all(len(of_one) == 1 for of_one in keys.values()), "one agent, one key"
    everybody = [key for of_one in keys.values() for key in of_one]
    assert len(set(everybody)) == len(everybody), "and no key of two agents"
    for number in numbers:
        role, coworker = names[number]
        assert made[number, role, "note"] == 1
        assert made[number, role, "delegate_work_to_coworker"] == 1
        assert (made[number, coworker, "read"], made[number, coworker, "note"]) == (1, 1)
    assert sum(made.values()) == 4 * len(list(numbers))
    for text, principal, members in world.seen:  # what was in force while a tool ran
        number = told(text)
        role, coworker = names[number]
        assert (principal, members[1]) == (f"user:u{number}", f"crew:c{number}")
        assert tuple(member.split("/")[-2] for member in members[2:]) == acting(
            text, role, coworker
        )
    assert len(world.seen) == 3 * len(list(numbers))


def require_heard(number: int, agents: list[Any], *, native: bool) -> None:
    """Nobody's model was told of another crew's results."""
    lead, other = (" ".join(map(str, [*one.llm.heard, *one.tools_results])) for one in agents)
    assert f"{number} was read" in lead
    if not native:  # natively what a tool returned is not in the last message
        assert f"noted {number} first" in lead
        assert f"has read {number} coworker" in other
    for heard in (lead, other):
        words = heard.replace("\n", " ").split(" ")
        for at, word in enumerate(words[:-1]):
            if word in ("noted", "read", "has") and words[at + 1].isdigit():
                assert words[at + 1] == str(number)


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_crews_at_once_are_kept_apart(recorded, signed, native, text, round_):
    world = World(recorded(agents=AGENTS).guard)
    numbers = range(CREWS)
    names = {at: (NAMES[at % 4], NAMES[(at + 1 + round_ % 3) % 4]) for at in numbers}
    ready = threading.Barrier(CREWS)

    def one(number: int) -> str:
        way = native if number % 2 else text
        crew, agents = world.crew(way, number, *names[number])
        ready.wait(120)
        with world.lent(number):
            output = asyncio.run(crew.akickoff()) if number % 3 == 0 else crew.kickoff()
        require_heard(number, agents, native=way.native)
        return output.raw

    with ThreadPoolExecutor(CREWS) as threads:
        said = list(threads.map(one, numbers))
    assert said == [f"{number} is done" for number in numbers]
    require_apart(world, signed(world.guard), numbers, names)


async def test_crews_of_one_event_loop_are_kept_apart(recorded, signed, text):
    world = World(recorded(agents=AGENTS).guard)
    numbers = range(CREWS // 2)
    names = {at: (NAMES[at % 4], NAMES[(at + 1) % 4]) for at in numbers}

    async def one(number: int) -> str:
        crew, agents = world.crew(text, number, *names[number])
        with world.lent(number):
            begin = crew.akickoff if number % 2 else crew.kickoff_async
            output = await begin()
        require_heard(number, agents, native=False)
        return output.raw

    said = await asyncio.gather(*map(one, numbers))
    assert said == [f"{number} is done" for number in numbers]
    require_apart(world, signed(world.guard), numbers, names)


def test_named_runs_at_once_are_kept_apart(recorded, signed, text):
    # all make the same calls but for who they are: nobody is handed another's results
    world = World(recorded(agents=AGENTS).guard)
    ran: list[str] = []

    @tool
    def fetch(what: str) -> str:
        """Fetch something."""
        lent = current_delegation()
        assert lent is not None
        ran.append(lent.principal)
        return f"{what} of {lent.principal}"

    def one(number: int) -> Any:
        lead = text.agent("Lead", ("fetch", {"what": "mail"}), "done", tools=[fetch])
        crew = guard_crew(text.crew(lead), world.guard)
        with world.lent(number), resumable("mail"):
            crew.kickoff()
        lead.create_agent_executor()
        return [*lead.llm.heard, *lead.tools_results]

    for _ in range(2):
        with ThreadPoolExecutor(8) as threads:
            heard = list(threads.map(one, range(8)))
        for number, said in enumerate(heard):
            assert f"mail of user:u{number}" in str(said)
            assert str(said).count("mail of user:u") == str(said).count(f"user:u{number}")
    assert sorted(ran) == sorted(f"user:u{number}" for number in range(8))
    calls = signed(world.guard)
    assert Counter(call.outcome for call in calls) == {"ok": 8, "not_run": 8}
    assert {(*call.chain,) for call in calls} == {
        (f"user:u{number}", f"crew:c{number}", "lead") for number in range(8)
    }


def test_an_agent_of_two_tasks_at_once_makes_each_call_once_with_its_own_key(
    recorded, signed, native
):
    # CrewAI refuses to run its executor twice at once: what it does run is the agent's
    world = World(recorded(agents=AGENTS).guard)
    calls = [("note", {"text": f"0 number {at}"}) for at in range(2)]
    lead = native.agent("Lead", *calls, "done", "done", tools=world.tools)
    last = native.agent("Writer", "done")
    tasks = [
        Task(description="a task", expected_output="words", agent=lead, async_execution=True)
        for _ in range(2)
    ]
    tasks.append(Task(description="a task", expected_output="words", agent=last))
    crew = guard_crew(native.crew(lead, last, tasks=tasks), world.guard)
    with world.lent(0):
        try:
            crew.kickoff()
        except RuntimeError as error:
            assert "already running" in str(error)  # noqa: PT017  as of an agent without a guard
        until = time.monotonic() + 120
        while lead.agent_executor._is_executing:  # the other task's thread goes on
            assert time.monotonic() < until
            time.sleep(0.01)
    # a thread that begins only now is refused, as what it was lent has ended
    made = [call for call in signed(world.guard) if call.code != "delegation.ended"]
    assert len({call.instance for call in made}) <= 1
    assert {call.chain for call in made} <= {("user:u0", "crew:c0", "lead")}
    assert len(made) == len(world.seen)
    assert max(Counter(call.arguments["text"] for call in made).values(), default=1) == 1


def test_agents_by_themselves_work_at_once(recorded, signed, native):
    # each kickoff has an executor of its own, and one agent does the work of several people
    world = World(recorded(agents=AGENTS).guard)
    numbers = range(6)
    agents = [
        guard_agent(
            native.agent("Lead", ("note", {"text": f"{at} alone"}), "done", tools=world.tools),
            world.guard,
        )
        for at in numbers
    ]

    def one(number: int) -> Any:
        with world.lent(number):
            return agents[number].kickoff("go").raw  # type: ignore[attr-defined]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(one, numbers)) == ["done"] * 6
    made = signed(world.guard)
    assert {(call.arguments["text"], call.chain) for call in made} == {
        (f"{at} alone", (f"user:u{at}", f"crew:c{at}", "lead")) for at in numbers
    }
    assert len({call.instance for call in made}) == 6


def test_one_agent_that_is_kicked_off_for_several_people_at_once_acts_for_each(
    recorded, signed, native
):
    # its model answers whoever asks, so which call is whose is told by what is in force alone
    world = World(recorded(agents=AGENTS).guard)
    ready = threading.Barrier(4)

    @tool
    def whose() -> str:
        """Tell for whom this is."""
        ready.wait(120)  # all are in the middle of their calls
        lent = current_delegation()
        assert lent is not None
        world.seen.append(("0", lent.principal, lent.members))
        return lent.principal

    said = [("whose", {})] * 4 + ["done"] * 4
    lead = guard_agent(native.agent("Lead", *said, tools=[whose]), world.guard)

    def one(number: int) -> Any:
        with world.lent(number):
            return lead.kickoff("go").raw  # type: ignore[attr-defined]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, range(4))) == ["done"] * 4
    people = sorted(f"user:u{number}" for number in range(4))
    assert sorted(principal for _text, principal, _members in world.seen) == people
    made = signed(world.guard)
    assert sorted(call.chain for call in made) == [
        (f"user:u{number}", f"crew:c{number}", "lead") for number in range(4)
    ]
    assert len({call.instance for call in made}) == 1
    assert {call.outcome for call in made} == {"ok"}


def test_a_crew_is_kicked_off_by_one_at_a_time(recorded, signed, native):
    world = World(recorded(agents=AGENTS).guard)
    going, held = threading.Event(), threading.Event()

    @tool
    def hold(text: str) -> str:
        """Hold on until somebody lets go."""
        held.set()
        assert going.wait(120)
        lent = current_delegation()
        assert lent is not None
        world.seen.append((text, lent.principal, lent.members))
        return "held"

    lead = native.agent("Lead", ("hold", {"text": "0"}), "done", tools=[hold])
    crew = guard_crew(native.crew(lead), world.guard)

    def begin(number: int) -> str:
        with world.lent(number):
            return crew.kickoff().raw

    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(begin, 0)
        assert held.wait(120)
        for number in range(1, 5):
            with pytest.raises(ConfigError) as refused:
                threads.submit(begin, number).result()
            assert refused.value.code == "crew.busy"
        going.set()
        assert first.result() == "done"
    (made,) = signed(world.guard)
    assert (made.chain, made.outcome) == (("user:u0", "crew:c0", "lead"), "ok")
    assert [principal for _text, principal, _members in world.seen] == ["user:u0"]
    lead.llm.steps[:] = [("hold", {"text": "1"}), "done"]
    assert begin(1) == "done"  # and afterwards by anybody
    assert signed(world.guard)[-1].chain == ("user:u1", "crew:c1", "lead")


def test_of_those_that_kick_a_crew_off_at_the_same_moment_one_does(recorded, signed, native):
    world = World(recorded(agents=AGENTS).guard)
    said = [("note", {"text": "0 mine"})] * 4 + ["done"] * 4
    lead = native.agent("Lead", *said, tools=world.tools, max_retry_limit=0)
    crew = guard_crew(native.crew(lead), world.guard)
    ready = threading.Barrier(4)

    def one(number: int) -> bool:
        ready.wait(120)
        with world.lent(number):
            try:
                crew.kickoff()
            except ConfigError as error:
                assert error.code == "crew.busy"  # noqa: PT017
                return False
            return True

    with ThreadPoolExecutor(4) as threads:
        ran = list(threads.map(one, range(4)))
    assert any(ran)
    made = signed(world.guard)
    assert len(made) == len(world.seen) >= 1
    for call in made:
        number = int(call.chain[0].removeprefix("user:u"))
        assert call.chain == (f"user:u{number}", f"crew:c{number}", "lead")
        assert ran[number]
    assert {principal for _text, principal, _members in world.seen} == {
        call.chain[0] for call in made
    }


def test_copies_of_a_crew_work_at_once_each_with_keys_of_its_own(recorded, signed, native):
    world = World(recorded(agents=AGENTS).guard)
    lead = native.agent("Lead", tools=world.tools)
    crew = guard_crew(native.crew(lead), world.guard)

    def one(number: int) -> str:
        copied = crew.copy()
        copied.agents[0].llm = native.model(("note", {"text": f"{number} copied"}), "done")
        with world.lent(number):
            return copied.kickoff().raw

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(one, range(6))) == ["done"] * 6
    made = signed(world.guard)
    assert {(call.arguments["text"], call.chain) for call in made} == {
        (f"{at} copied", (f"user:u{at}", f"crew:c{at}", "lead")) for at in range(6)
    }
    assert len({call.instance for call in made}) == 6


async def test_copies_for_several_inputs_work_at_once_each_with_keys_of_its_own(
    recorded, signed, native
):
    world = World(recorded(agents=AGENTS).guard)
    said = [("note", {"text": f"0 number {at}"}) for at in range(5)]
    lead = native.agent("Lead", *said, *["done"] * 5, tools=world.tools)
    crew = guard_crew(native.crew(lead), world.guard)
    with world.lent(0):
        outputs = await crew.akickoff_for_each([{}] * 5)
    assert len(outputs) == 5
    made = signed(world.guard)
    assert sorted(call.arguments["text"] for call in made) == [f"0 number {at}" for at in range(5)]
    assert {call.chain for call in made} == {("user:u0", "crew:c0", "lead")}
    # a crew's copies share the script of their model: how many calls each makes is a race
    assert 1 <= len({call.instance for call in made}) <= 5


def test_managers_that_crews_make_at_once_are_their_own(recorded, signed, native):
    world = World(recorded(agents=AGENTS).guard)
    numbers = range(6)

    def one(number: int) -> str:
        work = {"task": f"read {number}", "context": "now", "coworker": "Worker"}
        worker = native.agent("Worker", ("note", {"text": f"{number} managed"}), tools=world.tools)
        worker.llm.steps.append("noted")
        manager = native.model(("delegate_work_to_coworker", work), f"{number} is done")
        task = Task(description="a task", expected_output="words")
        crew = Crew(
            agents=[worker], tasks=[task], process=Process.hierarchical, manager_llm=manager
        )
        with world.lent(number):
            return guard_crew(crew, world.guard).kickoff().raw

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(one, numbers)) == [f"{number} is done" for number in numbers]
    made = [call for call in signed(world.guard) if call.tool == "note"]
    assert {(call.arguments["text"], call.chain) for call in made} == {
        (f"{at} managed", (f"user:u{at}", f"crew:c{at}", "crew-manager", "worker"))
        for at in numbers
    }
    handed = [call for call in signed(world.guard) if call.tool != "note"]
    assert {(call.arguments["task"], call.chain) for call in handed} == {
        (f"read {at}", (f"user:u{at}", f"crew:c{at}", "crew-manager")) for at in numbers
    }
    assert len({call.instance for call in handed}) == 6
