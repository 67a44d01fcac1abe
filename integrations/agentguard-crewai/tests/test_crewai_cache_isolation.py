"""CrewAI's cache of results: nobody is served what another agent, user, crew or copy has read.

CrewAI keeps results by tool and arguments for all agents of a crew, and looks there before anything
is decided, so each guarded agent has a cache of its own.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
from crewai.tools import tool
from crewai_vault import ALICE, delegated, read, reads, told

from agentguard import Decision, current_delegation
from agentguard_crewai import guard_agent, guard_crew

# --- nobody else's results -----------------------------------------------------------------------


def only(*allowed: str):
    """A policy that lets these agents read secrets."""
    return lambda document: (
        Decision.allow()
        if document["action"] != "read_secret" or document["agent"]["name"] in allowed
        else Decision.deny("it is not for you")
    )


def wired(where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of an agent and of a crew, with a cache that is switched on somewhere."""
    if where == "crew":
        return {}, {"cache": True}
    return ({"cache": True} if where == "agents" else {"cache_handler": CacheHandler()}), {}


WHERE = ("crew", "agents", "shared handler")


@pytest.mark.parametrize("where", WHERE)
def test_a_denied_agent_is_served_nothing_that_another_has_read(
    way, recorded_guard, signed, vault, where
):
    recorded_guard.decide = only("lead")
    options, more = wired(where)
    lead = way.agent("Lead", *read("x"), "done", tools=vault.tools, **options)
    writer = way.agent("Writer", *read("x"), "done", tools=vault.tools, **options)
    crew = guard_crew(way.crew(lead, writer, **more), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        output = crew.kickoff()
    allowed, denied = told(output)
    assert "secret 1 of x" in allowed
    assert "secret 1 of x" not in denied
    assert vault.ran == [("user:alice", "x")]
    assert [one.failure.code for one in output.tasks_output[1].tool_failures] == ["policy.denied"]
    assert reads(signed(recorded_guard.guard)) == [
        ("lead", ALICE, "allow", "ok"),
        ("writer", ("user:alice", "crew:report", "writer"), "deny", None),
    ]


@pytest.mark.parametrize("where", WHERE)
def test_an_allowed_agent_reads_for_itself(native, recorded_guard, signed, vault, where):
    options, more = wired(where)
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools, **options)
    writer = native.agent("Writer", *read("x", "x"), "done", tools=vault.tools, **options)
    crew = guard_crew(native.crew(lead, writer, **more), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        one, other = told(crew.kickoff())
    assert vault.ran == [("user:alice", "x")] * 2
    assert (one.count("secret 1 of x"), one.count("secret 2 of x")) == (2, 0)
    assert (other.count("secret 1 of x"), other.count("secret 2 of x")) == (0, 2)
    assert [agent for agent, *_ in reads(signed(recorded_guard.guard))] == ["lead"] * 2 + [
        "writer"
    ] * 2


def test_a_coworker_is_served_nothing_that_was_read_for_who_asks(
    native, recorded_guard, signed, vault
):
    recorded_guard.decide = only("lead")
    handed = {"task": "read it", "context": "c", "coworker": "Writer"}
    steps = [*read("x"), ("delegate_work_to_coworker", handed), "done"]
    lead = native.agent("Lead", *steps, tools=vault.tools, allow_delegation=True)
    writer = native.agent("Writer", *read("x"), "got nothing", tools=vault.tools)
    task = Task(description="a task", expected_output="words", agent=lead)
    crew = guard_crew(Crew(agents=[lead, writer], tasks=[task], cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        output = crew.kickoff()
    assert told(output)[0].count("secret 1 of x") == 1
    assert vault.ran == [("user:alice", "x")]
    assert "secret 1" not in str(writer.last_messages)
    assert reads(signed(recorded_guard.guard)) == [
        ("lead", ALICE, "allow", "ok"),
        ("writer", (*ALICE, "writer"), "deny", None),
    ]


def test_a_manager_and_its_coworkers_share_nothing(native, recorded_guard, signed, vault):
    recorded_guard.decide = only("writer")
    handed = {"task": "read it", "context": "c", "coworker": "Writer"}
    again = {**handed, "context": "d"}
    writer = native.agent("Writer", *read("x"), "it is read", tools=vault.tools)
    steps = [("delegate_work_to_coworker", one) for one in (handed, again, handed)]
    task = Task(description="a task", expected_output="words")
    crew = Crew(
        agents=[writer],
        tasks=[task],
        process=Process.hierarchical,
        manager_llm=native.model(*steps, "done"),
        cache=True,
    )
    guard_crew(crew, recorded_guard.guard)
    writer.llm.steps += [*read("x"), "it is read again"]
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    # the third handing on is a hit of the manager's own, the writer's second read one of its own
    assert vault.ran == [("user:alice", "x")]
    calls = signed(recorded_guard.guard)
    chain = ("user:alice", "crew:report", "crew-manager")
    handing = [c for c in calls if c.tool == "delegate_work_to_coworker"]
    assert [(c.agent, c.chain, c.outcome) for c in handing] == [("crew-manager", chain, "ok")] * 3
    assert reads(calls) == [("writer", (*chain, "writer"), "allow", "ok")] * 2


def test_results_cross_no_principals(way, recorded_guard, signed, vault):
    lead = way.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        assert "secret 1 of x" in told(crew.kickoff())[0]
    with delegated(recorded_guard.guard, "user:bob", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert "secret 1 of x" not in messages
    assert "secret 2 of x" in messages
    assert vault.ran == [("user:alice", "x"), ("user:bob", "x")]
    assert [chain[0] for _, chain, _, _ in reads(signed(recorded_guard.guard))] == [
        "user:alice",
        "user:bob",
    ]


@pytest.mark.parametrize(
    ("scope", "ran"), [(["a"], 1), (["a", "b"], 2), (["b"], 2)], ids=["same", "more", "other"]
)
def test_results_cross_no_scopes(native, recorded_guard, vault, scope, ran):
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    for one in (["a"], scope):
        with delegated(recorded_guard.guard, "user:alice", scope=one):
            crew.kickoff()
    assert len(vault.ran) == ran


def test_what_was_read_for_a_principal_is_none_of_nobodys(native, recorded, signed, vault):
    made = recorded(agents={"lead": {"authority": "own"}})
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), made.guard)
    with delegated(made.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    crew.kickoff()
    assert vault.ran == [("user:alice", "x"), ("nobody", "x")]
    assert [chain for _, chain, _, _ in reads(signed(made.guard))] == [ALICE, ()]


def test_a_principal_can_not_be_named_in_the_arguments(native, recorded_guard, vault):
    # the key of a result is made of the arguments and of the principal: one must not end as both
    tail = json.dumps(["user:alice", "a"])
    spoofed = [("read_secret", {"name": f'x"}} {tail}'}), ("read_secret", {"name": "x"})]
    lead = native.agent("Lead", *read("x"), "one", *spoofed, "two", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    for user in ("user:alice", "user:bob"):
        with delegated(recorded_guard.guard, user, scope=["a"]):
            crew.kickoff()
    assert [principal for principal, _ in vault.ran] == ["user:alice", "user:bob", "user:bob"]


# --- handlers that the application shares --------------------------------------------------------


HANDED = {
    "at construction": lambda agent, shared: None,
    "set": lambda agent, shared: agent.set_cache_handler(shared),
    "in the handler of tools": lambda agent, shared: setattr(agent.tools_handler, "cache", shared),
    "in a new handler of tools": lambda agent, shared: setattr(
        agent, "tools_handler", ToolsHandler(cache=shared)
    ),
}


@pytest.mark.parametrize(("handed", "when"), rounds.half(HANDED, ["before", "after"]))
def test_a_handler_of_the_application_is_neither_read_nor_filled(
    native, recorded_guard, signed, vault, handed, when
):
    shared = CacheHandler()
    shared.add("read_secret", json.dumps({"name": "x"}), "planted")
    options = {"cache_handler": shared} if handed == "at construction" else {}
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools, **options)
    if when == "before":
        HANDED[handed](lead, shared)
    crew = guard_crew(native.crew(lead), recorded_guard.guard)
    if when == "after":
        HANDED[handed](lead, shared)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert "planted" not in messages
    assert vault.ran == [("user:alice", "x")]
    assert messages.count("secret 1 of x") == 2
    assert shared._cache == {f"read_secret-{json.dumps({'name': 'x'})}": "planted"}
    assert reads(signed(recorded_guard.guard)) == [("lead", ALICE, "allow", "ok")] * 2


SHARED = {
    "the handler": lambda one, other: other.set_cache_handler(one.cache_handler),
    "the cache": lambda one, other: setattr(other.tools_handler, "cache", one.cache_handler),
    "the handler of tools": lambda one, other: setattr(other, "tools_handler", one.tools_handler),
    "the field": lambda one, other: setattr(other, "cache_handler", one.cache_handler),
}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("allowed", ["lead", "both"])
def test_what_a_guarded_agent_has_is_not_shared_with_another(
    native, recorded_guard, signed, vault, shared, allowed
):
    recorded_guard.decide = only("lead", *(["writer"] if allowed == "both" else []))
    # not the crew's cache: each executor that is made for an agent sets that anew
    lead = native.agent("Lead", *read("x"), "done", tools=vault.tools, cache=True)
    writer = native.agent("Writer", *read("x"), "done", tools=vault.tools, cache=True)
    crew = guard_crew(native.crew(lead, writer), recorded_guard.guard)
    SHARED[shared](lead, writer)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        _, messages = told(crew.kickoff())
    assert "secret 1 of x" not in messages
    assert len(vault.ran) == (2 if allowed == "both" else 1)
    came = ("allow", "ok") if allowed == "both" else ("deny", None)
    assert reads(signed(recorded_guard.guard)) == [
        ("lead", ALICE, "allow", "ok"),
        ("writer", ("user:alice", "crew:report", "writer"), *came),
    ]


def test_what_an_unguarded_run_has_read_is_not_served(native, recorded_guard, signed, vault):
    recorded_guard.decide = only()
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = native.crew(lead, cache=True)
    assert "secret 1 of x" in told(crew.kickoff())[0]
    guard_crew(crew, recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert "secret 1" not in messages
    assert vault.ran == [("nobody", "x")]
    assert reads(signed(recorded_guard.guard)) == [("lead", ALICE, "deny", None)]


def test_an_agent_that_wants_no_cache_has_none(native, recorded_guard, signed, vault):
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools, cache=False)
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert len(vault.ran) == 2
    assert reads(signed(recorded_guard.guard)) == [("lead", ALICE, "allow", "ok")] * 2


# --- copies, and agents by themselves ------------------------------------------------------------


def test_copies_share_no_results(native, recorded_guard, signed, vault):
    steps = [*read("x"), "one"]
    lead = native.agent("Lead", *steps, *steps, tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    copied = crew.copy()
    copied.agents[0].llm.steps = list(steps)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        (one,), (other,) = told(crew.kickoff()), told(copied.kickoff())
    assert "secret 1 of x" in one
    assert "secret 1 of x" not in other
    assert len(vault.ran) == 2
    calls = [call for call in signed(recorded_guard.guard) if call.tool == "read_secret"]
    assert len({call.instance for call in calls}) == 2


def test_an_agent_by_itself_has_its_own(native, recorded_guard, signed, vault):
    recorded_guard.decide = only("lead")
    shared = CacheHandler()
    lead, writer = (
        native.agent(role, *read("x", "x"), "done", tools=vault.tools, cache_handler=shared)
        for role in ("Lead", "Writer")
    )
    for agent in (lead, writer):
        guard_agent(agent, recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        assert str(lead.kickoff("read").messages).count("secret 1 of x") == 2
        assert "secret 1 of x" not in str(writer.kickoff("read").messages)
    assert vault.ran == [("user:alice", "x")]
    assert [(agent, decision) for agent, _, decision, _ in reads(signed(recorded_guard.guard))] == [
        *[("lead", "allow")] * 2,
        *[("writer", "deny")] * 2,
    ]


# --- at the same time ----------------------------------------------------------------------------


def test_crews_at_the_same_time_get_their_own(native, recorded_guard, signed):
    ran: list[str] = []

    @tool
    def whoami(at: int) -> str:
        """Say for whom this runs."""
        lent = current_delegation()
        assert lent is not None
        ran.append(lent.principal)
        return f"it is {lent.principal}"

    shared, count = CacheHandler(), 8
    start = threading.Barrier(count)
    steps = [("whoami", {"at": at}) for at in (1, 2, 1)]

    def one(number: int) -> str:
        lead = native.agent("Lead", *steps, "done", tools=[whoami], cache_handler=shared)
        crew = guard_crew(native.crew(lead), recorded_guard.guard)
        with delegated(recorded_guard.guard, f"user:u{number}", scope=["a"]):
            start.wait()
            return told(crew.kickoff())[0]

    with ThreadPoolExecutor(count) as threads:
        heard = list(threads.map(one, range(count)))
    for number, messages in enumerate(heard):
        assert messages.count(f"it is user:u{number}") == 3
        assert messages.count("it is user:u") == 3
    assert sorted(ran) == sorted([f"user:u{number}" for number in range(count)] * 2)
    calls = signed(recorded_guard.guard)
    assert len(calls) == 3 * count
    assert len({call.instance for call in calls}) == count
    for call in calls:
        assert call.chain[1:] == ALICE[1:]


def test_parallel_hits_of_one_step_are_calls(native, recorded_guard, signed, vault):
    step = [("read_secret", {"name": "x"})] * 3
    lead = native.agent("Lead", step[0], step, "done", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert vault.ran == [("user:alice", "x")]
    assert messages.count("secret 1 of x") == 4
    assert reads(signed(recorded_guard.guard)) == [("lead", ALICE, "allow", "ok")] * 4
