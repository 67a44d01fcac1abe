"""The scopes that a tool requires, and to whom an agent may hand work on."""

from __future__ import annotations

import pytest
from crewai import Crew, Process, Task
from crewai_coworkers import AGENTS, ALL, ASK, CREW, DELEGATE, READ, codes, hands, hops, task_of

from agentguard import Decision
from agentguard_crewai import guard_agent, guard_crew

# --- what a tool requires -----------------------------------------------------------------------


REQUIRES = {"read_file": {"requires": ["write"]}}


def test_a_tool_is_refused_without_the_scope_that_it_requires(make_delegating_team, native):
    make_delegating_team = make_delegating_team(tools=REQUIRES)
    make_delegating_team.kickoff(make_delegating_team.three(native))
    assert make_delegating_team.story() == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("hand", ASK, "ok"),
        ("third", "read_file", "scope.exceeded"),  # its max_scope has no more than read
        ("lead", "read_file", "ok"),
    ]
    asked = [
        (document["agent"]["name"], document["action"])
        for document in make_delegating_team.made.policy_inputs
    ]
    assert ("third", "read_file") not in asked
    assert ("hand", "read_file") in asked
    assert [path for path, _members in make_delegating_team.ran] == ["plan", "plan"]


def test_a_tool_is_refused_where_the_user_has_not_lent_what_it_requires(
    make_delegating_team, native
):
    make_delegating_team = make_delegating_team(tools=REQUIRES)
    output = make_delegating_team.kickoff(
        make_delegating_team.two(native, READ, hands("Hand"), "led"), scope=["read"]
    )
    assert codes(output)[0] == "scope.exceeded"
    assert make_delegating_team.story() == [
        ("lead", "read_file", "scope.exceeded"),
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "scope.exceeded"),
    ]
    assert make_delegating_team.ran == []
    assert [document["action"] for document in make_delegating_team.made.policy_inputs] == [
        DELEGATE
    ]


@pytest.mark.parametrize("scope", [ALL, ("read",)], ids=["allowed", "denied"])
def test_handing_work_on_can_require_a_scope_as_well(make_delegating_team, native, scope):
    make_delegating_team = make_delegating_team(tools={DELEGATE: {"requires": ["publish"]}})
    output = make_delegating_team.kickoff(
        make_delegating_team.two(native, hands("Hand"), "led"), scope=scope
    )
    if scope == ALL:
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
    else:
        assert codes(output) == ["scope.exceeded"]
        assert make_delegating_team.story() == [("lead", DELEGATE, "scope.exceeded")]
        assert (make_delegating_team.ran, hops(make_delegating_team.guard)) == (
            [],
            [(*CREW, "lead")],
        )


@pytest.mark.parametrize("to", ["Hand", "Third"])
def test_the_policy_decides_to_whom_work_is_handed(make_delegating_team, way, to):
    make_delegating_team = make_delegating_team()
    make_delegating_team.made.decide = lambda document: (
        Decision.deny("not to the third")
        if document["args"].get("coworker") == "Third"
        else Decision.allow()
    )
    lead = way.agent("Lead", hands(to), "led", allow_delegation=True)
    others = [make_delegating_team.agent(way, role, READ, "done") for role in ("Hand", "Third")]
    crew = guard_crew(
        Crew(agents=[lead, *others], tasks=[task_of(lead)]), make_delegating_team.guard
    )
    output = make_delegating_team.kickoff(crew)
    if to == "Hand":
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
    else:
        assert codes(output) == ["policy.denied"]
        assert make_delegating_team.story() == [("lead", DELEGATE, "policy.denied")]
        assert (make_delegating_team.ran, hops(make_delegating_team.guard)) == (
            [],
            [(*CREW, "lead")],
        )


# --- who may hand on to whom --------------------------------------------------------------------


@pytest.mark.parametrize("by", [DELEGATE, ASK])
@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ({"lead": ["hand"]}, True),
        ({"lead": ["third", "hand"]}, True),
        ({"lead": ["third"]}, False),
        ({"hand": ["lead"], "third": ["hand"]}, False),
        ({}, False),
    ],
)
def test_an_agent_hands_on_to_whom_the_configuration_says(
    make_delegating_team, native, by, table, allowed
):
    make_delegating_team = make_delegating_team(delegation=table)
    output = make_delegating_team.kickoff(
        make_delegating_team.two(native, hands("Hand", by), "led")
    )
    first = make_delegating_team.calls()[0]
    assert (first.agent, first.chain) == ("lead", (*CREW, "lead"))
    if allowed:
        assert make_delegating_team.story() == [("lead", by, "ok"), ("hand", "read_file", "ok")]
        assert codes(output) == []
    else:
        assert make_delegating_team.story() == [("lead", by, "delegation.delegatee")]
        assert codes(output) == ["delegation.delegatee"]
        assert (make_delegating_team.ran, hops(make_delegating_team.guard)) == (
            [],
            [(*CREW, "lead")],
        )
        assert make_delegating_team.made.policy_inputs == []


def test_a_coworker_hands_on_no_further_than_it_may(make_delegating_team, native):
    make_delegating_team = make_delegating_team(delegation={"lead": ["hand", "third"]})
    make_delegating_team.kickoff(make_delegating_team.three(native))
    assert make_delegating_team.story() == [
        ("lead", DELEGATE, "ok"),
        ("hand", "read_file", "ok"),
        ("hand", ASK, "delegation.delegatee"),
        ("lead", "read_file", "ok"),
    ]
    assert make_delegating_team.calls()[2].chain == (*CREW, "lead", "hand")


@pytest.mark.parametrize("to", ["Hand", "Third"])
def test_a_manager_hands_on_to_whom_it_may(make_delegating_team, native, to):
    make_delegating_team = make_delegating_team(delegation={"crew-manager": ["hand"]})
    hand, third = (
        make_delegating_team.agent(native, role, READ, "done") for role in ("Hand", "Third")
    )
    crew = Crew(
        agents=[hand, third],
        tasks=[Task(description="a task", expected_output="words")],
        process=Process.hierarchical,
        manager_llm=native.model(hands(to), "led"),
    )
    output = make_delegating_team.kickoff(guard_crew(crew, make_delegating_team.guard))
    if to == "Hand":
        assert make_delegating_team.story() == [
            ("crew-manager", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert make_delegating_team.story() == [("crew-manager", DELEGATE, "delegation.delegatee")]
        assert make_delegating_team.ran == []


SPELLED = ["hand", "HAND", "  Hand ", '"Hand"', 'Ha"nd', "Hand\n", "[Hand, Third]", "\tHAND"]


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("table", [{"lead": ["hand"]}, {"lead": ["third"]}], ids=["", "denied"])
def test_a_role_that_crewai_takes_for_a_coworkers_is_that_coworkers(
    make_delegating_team, native, spelled, table
):
    make_delegating_team = make_delegating_team(delegation=table)
    lead = native.agent("Lead", hands(spelled), "led", allow_delegation=True)
    others = [make_delegating_team.agent(native, role, READ, "done") for role in (" Hand", "Third")]
    crew = guard_crew(
        Crew(agents=[lead, *others], tasks=[task_of(lead)]), make_delegating_team.guard
    )
    output = make_delegating_team.kickoff(crew)
    if table == {"lead": ["hand"]}:
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert make_delegating_team.story() == [("lead", DELEGATE, "delegation.delegatee")]
        assert make_delegating_team.ran == []


@pytest.mark.parametrize("coworker", ["nobody", "", "[]", "[nobody, Hand]", "Han d"])
def test_work_for_a_coworker_that_is_not_there_is_done_by_nobody(
    make_delegating_team, native, coworker
):
    make_delegating_team = make_delegating_team(delegation={"lead": ["hand"]})
    make_delegating_team.kickoff(make_delegating_team.two(native, hands(coworker), "led"))
    assert (make_delegating_team.ran, hops(make_delegating_team.guard)) == ([], [(*CREW, "lead")])
    assert [(c.agent, c.tool) for c in make_delegating_team.calls()] == [("lead", DELEGATE)]


@pytest.mark.parametrize("order", [1, -1], ids=["allowed", "denied"])
def test_of_two_agents_with_one_role_the_first_is_given_the_work(
    make_delegating_team, native, order
):
    make_delegating_team = make_delegating_team(delegation={"lead": ["hand"]})
    lead = native.agent("Lead", hands("Twin"), "led", allow_delegation=True)
    twins = [make_delegating_team.agent(native, "Twin", READ, "done") for _twin in range(2)]
    for twin, name in zip(twins, ("hand", "third"), strict=True):
        guard_agent(twin, make_delegating_team.guard, name=name)
    crew = guard_crew(
        Crew(agents=[lead, *twins[::order]], tasks=[task_of(lead)]), make_delegating_team.guard
    )
    output = make_delegating_team.kickoff(crew)
    if order == 1:
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
        # no hop for whom there was no work
        assert hops(make_delegating_team.guard) == [(*CREW, "lead"), (*CREW, "lead", "hand")]
    else:
        assert codes(output) == ["delegation.delegatee"]
        assert make_delegating_team.ran == []


def test_an_agent_is_who_its_role_was_written_as_whatever_inputs_make_of_it(
    make_delegating_team, native
):
    make_delegating_team = make_delegating_team(delegation={"lead": ["hand"]})
    lead = native.agent("{who}", hands("Third"), "led", allow_delegation=True)
    guard_agent(lead, make_delegating_team.guard, name="lead")
    hand = guard_agent(
        make_delegating_team.agent(native, "The {other}", READ, "done"),
        make_delegating_team.guard,
        name="hand",
    )
    crew = guard_crew(Crew(agents=[lead, hand], tasks=[task_of(lead)]), make_delegating_team.guard)
    lead.llm.steps[0] = hands("the third")
    with make_delegating_team.lend():
        crew.kickoff(inputs={"who": "Third", "other": "Third"})
    assert make_delegating_team.story() == [("lead", DELEGATE, "ok"), ("hand", "read_file", "ok")]
    assert lead.role == "Third"


@pytest.mark.parametrize("who", ["Lead", "Third"])
def test_an_agent_is_not_whom_inputs_have_made_of_its_role(make_delegating_team, native, who):
    make_delegating_team = make_delegating_team(agents={**AGENTS, "who": {"max_scope": ["read"]}})
    lead = make_delegating_team.agent(native, "{who}", "done", READ, "done")
    crew = native.crew(lead)
    crew.kickoff(inputs={"who": who})  # before it is guarded
    assert lead.role == who
    make_delegating_team.kickoff(guard_crew(crew, make_delegating_team.guard))
    assert [call.chain for call in make_delegating_team.calls()] == [(*CREW, "who")]


DIRECT = {
    "by-name": lambda t: t.run(task="t", context="c", coworker="Hand"),
    "_run": lambda t: t._run(task="t", context="c", coworker="Hand"),
    "co_worker": lambda t: t._run(task="t", context="c", co_worker="Hand"),
    "by-position": lambda t: t._run("t", "c", "Hand"),
    "run-by-position": lambda t: t.run("t", "c", "Hand"),
}


@pytest.mark.parametrize("how", DIRECT)
@pytest.mark.parametrize("table", [{"lead": ["hand"]}, {"lead": ["third"]}], ids=["", "denied"])
def test_however_the_tool_is_called_it_hands_on_to_whom_it_may(
    make_delegating_team, native, how, table
):
    make_delegating_team = make_delegating_team(delegation=table)
    crew = make_delegating_team.two(native)
    lead, hand = crew.agents
    lead.create_agent_executor(lead.get_delegation_tools([hand]))
    delegate = lead.agent_executor.original_tools[0]
    with make_delegating_team.lend():
        said = DIRECT[how](delegate)
    if table == {"lead": ["hand"]}:
        assert said == "done"
        assert make_delegating_team.story() == [
            ("lead", DELEGATE, "ok"),
            ("hand", "read_file", "ok"),
        ]
    else:
        assert said.code == "delegation.delegatee"
        assert make_delegating_team.ran == []
        assert "ok" not in [became for *_who, became in make_delegating_team.story()]
