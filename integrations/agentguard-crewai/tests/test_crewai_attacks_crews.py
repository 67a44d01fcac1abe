"""Attacks by crews that are copied, shared or nested, each with what goes through beside it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from crewai import Agent, Crew
from crewai.knowledge.knowledge import Knowledge
from crewai.tools import tool
from crewai_attacks import LOOK, MAIL, PAY, Mail, asks_for_pay, lent, only_alice, own, paying, work

from agentguard import ApprovalPending, ConfigError, current_delegation
from agentguard_crewai import agent_of, guard_agent, guard_crew, resumable

NO_ROLE = "the role of the agent who is empty"


def test_a_copy_keeps_its_agents_whatever_inputs_make_of_the_roles(native, recorded, signed):
    made, ran = recorded(agents=own("admin", "who")), []

    @tool
    def wipe(what: str) -> str:
        """Wipe."""
        ran.append(what)
        return "wiped"

    everything = "wipe", {"what": "everything"}
    admin = native.agent("Admin", everything, "wiped", tools=[wipe])
    guest = native.agent("{who}", *["the guest is done"] * 3)
    team = guard_crew(native.crew(admin, guest, tasks=[work(guest)]), made.guard)
    assert team.kickoff(inputs={"who": "Admin"}).raw == "the guest is done"
    (output,) = team.kickoff_for_each([{"who": "Admin"}])
    assert (output.raw, ran, signed(made.guard)) == ("the guest is done", [], [])
    # a task of the admin's is still the admin's, in a copy as well
    other = guard_crew(native.crew(admin, guest, tasks=[work(admin)]), made.guard).copy()
    assert other.kickoff(inputs={"who": "Admin"}).raw == "wiped"
    assert (ran, [call.agent for call in signed(made.guard)]) == (["everything"], ["admin"])


def test_a_copy_tells_agents_of_one_role_apart(native, recorded, signed):
    made, paid = recorded(agents=own("reader", "payer")), []
    one = guard_agent(native.agent("Analyst", "done"), made.guard, name="reader")
    two = guard_agent(
        native.agent("Analyst", PAY, "done", tools=[paying(paid)]), made.guard, name="payer"
    )
    team = guard_crew(native.crew(one, two, tasks=[work(two), work(one)]), made.guard)
    copied = team.copy()
    assert [agent_of(each.agent).name for each in copied.tasks] == ["payer", "reader"]
    copied.kickoff()
    assert (paid, [call.agent for call in signed(made.guard)]) == (["ann"], ["payer"])


@pytest.mark.parametrize("begin", ["kickoff of a copy", "kickoff_for_each"])
@pytest.mark.parametrize("whose", ["payer", "reader"])
def test_a_copy_gives_the_task_of_an_agent_that_is_in_no_crew_to_nobody_else(
    native, recorded, signed, begin, whose
):
    made, paid = recorded(agents=own("reader", "payer")), []
    pays, said = [PAY, "paid"] * 3, ["nothing is to be paid"] * 3
    payer = native.agent("Analyst", *pays, tools=[paying(paid)])
    guard_agent(payer, made.guard, name="payer")
    reader = guard_agent(native.agent("Analyst", *said), made.guard, name="reader")
    member, other = (payer, reader) if whose == "reader" else (reader, payer)
    tasks = [work(other), work(other), work(member)]
    team = guard_crew(Crew(agents=[member], tasks=tasks), made.guard)
    copied = team.copy()
    assert [agent_of(each.agent).name for each in copied.tasks] == [
        whose,
        whose,
        agent_of(member).name,
    ]
    assert copied.tasks[0].agent is copied.tasks[1].agent is not other
    if begin == "kickoff_for_each":
        team.kickoff_for_each([{}])
    else:
        copied.kickoff()
    calls = 2 if whose == "payer" else 1
    assert paid == ["ann"] * calls
    assert [call.agent for call in signed(made.guard)] == ["payer"] * calls


@pytest.mark.parametrize("shared", [True, False])
def test_a_crew_is_kicked_off_once_at_a_time(native, recorded, shared):
    made = recorded(agents=lent("looker", "payer"))
    got: list[Any] = []

    def bobs() -> None:
        with made.guard.delegate("user:bob", scope=["pay"]):
            try:
                got.append((team if shared else copied).kickoff(inputs={"account": "BOB"}).raw)
            except ConfigError as error:
                got.append(error.code)

    @tool
    def look() -> str:
        """Look."""
        if not got:
            other = threading.Thread(target=bobs)
            other.start()
            other.join(120)
        return "looked"

    # a copy of an agent takes its words from the same list: bob's are said first
    words = [LOOK, "looked"] if shared else [LOOK, "bob's look", "looked"]
    looker = native.agent("Looker", *words, tools=[look], max_retry_limit=0)
    payer = native.agent("Payer", "done", "done")
    tasks = [work(looker), work(payer, description="Pay to account {account}.")]
    team = guard_crew(native.crew(looker, payer, tasks=tasks), made.guard)
    copied = team.copy()
    with made.guard.delegate("user:alice", scope=["pay"]):
        assert team.kickoff(inputs={"account": "ALICE"}).raw == "done"
    assert got == (["crew.busy"] if shared else ["done"])
    assert "Pay to account ALICE." in payer.llm.heard[-1]
    with made.guard.delegate("user:bob", scope=["pay"]):
        team.kickoff(inputs={"account": "BOB"})  # it is free again


@pytest.mark.parametrize("shared", [True, False])
def test_a_result_is_the_answer_of_no_other_users_crew(text, recorded, signed, shared):
    """Bob's crew has begun, and is slow to look its knowledge up, when alice's reads her mail."""
    made, got = recorded(agents=lent("clerk")), {}
    made.decide = only_alice
    bob_begins, bob_looks, alice_is_done = (threading.Event() for _ in range(3))

    def slow(*_args: Any, **_kwargs: Any) -> list[Any]:
        if current_delegation().principal == "user:bob":
            bob_looks.set()
            alice_is_done.wait(120)
        return []

    class Waits(type(text.model())):  # type: ignore[misc]  # the scripted model
        def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            if "query" in str(messages[0]).lower():
                return "what to look up"
            if current_delegation().principal == "user:alice" and not bob_begins.is_set():
                bob_begins.set()
                bob_looks.wait(120)
            return super().call(messages, *args, **kwargs)

    def clerk_of() -> Agent:
        said = [MAIL, "there is nothing"]
        model = Waits(model="scripted", native=False, steps=said)
        given = {"goal": "g", "backstory": "b", "tools": [Mail()], "max_retry_limit": 0}
        made_up = Agent(role="Clerk", llm=model, **given)
        known = Knowledge.model_construct(sources=[], storage=None, collection_name="c")
        object.__setattr__(known, "query", slow)
        vars(made_up)["knowledge"] = known
        return made_up

    clerk = clerk_of()

    def kick_off(who: str, agent: Agent) -> None:
        team = guard_crew(Crew(agents=[agent], tasks=[work(agent)]), made.guard)
        with made.guard.delegate(who, scope=["pay"]):
            got[who] = team.kickoff().raw

    def alice() -> None:
        try:
            kick_off("user:alice", clerk)
        finally:
            alice_is_done.set()

    thread = threading.Thread(target=alice)
    thread.start()
    bob_begins.wait(120)
    other = clerk
    if not shared:
        other = clerk_of()
        other.llm.steps[:] = ["there is nothing"]
    kick_off("user:bob", other)
    thread.join(120)
    assert got == {"user:alice": "the inbox of user:alice", "user:bob": "there is nothing"}
    assert [call.chain[0] for call in signed(made.guard)] == ["user:alice"]


@pytest.mark.parametrize("later", [True, False])
def test_a_task_of_a_crew_inside_a_guarded_tool_pauses_and_does_not_hang(native, recorded, later):
    made, paid = recorded(agents=own("lead", "worker", "closer")), []
    made.decide = asks_for_pay

    @tool
    def settle() -> str:
        """Settle it, with a crew."""
        worker = native.agent("Worker", PAY, "paid", tools=[paying(paid)])
        closer = native.agent("Closer", "closed")
        tasks = [work(worker, async_execution=later), work(closer)]
        inner = native.crew(worker, closer, tasks=tasks)
        return guard_crew(inner, made.guard, on_approval="pause").kickoff().raw

    def tried() -> Any:
        got: list[Any] = []

        def go() -> None:
            lead = native.agent("Lead", ("settle", {}), "done", tools=[settle], max_retry_limit=0)
            team = guard_crew(native.crew(lead), made.guard, on_approval="pause")
            try:
                with resumable("order-1"):
                    got.append(team.kickoff().raw)
            except Exception as error:  # noqa: BLE001  it is looked at below
                got.append(error)

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        thread.join(120)
        assert got, "it hangs"
        return got[0]

    assert isinstance(tried(), ApprovalPending)
    assert paid == []
    made.approve()
    assert tried() == "done"
    assert paid == ["ann"]


@pytest.mark.parametrize("who", ["", "someone"])
def test_an_agent_whose_role_inputs_make_empty_is_refused(native, recorded, who):
    made, ran = recorded(agents=own("who")), []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        ran.append(to)
        raise ValueError("the bank's answer can't be read")

    lead = native.agent("{who}", PAY, "done", tools=[pay], max_retry_limit=0)
    team = guard_crew(native.crew(lead), made.guard)
    if who:
        with resumable("order-1"):
            assert team.kickoff(inputs={"who": who}).raw == "done"
        assert (ran, made.outcomes()) == (["ann"], ["error"])
    else:
        with resumable("order-1"), pytest.raises(ConfigError, match=NO_ROLE):
            team.kickoff(inputs={"who": who})
        assert (ran, made.calls()) == ([], [])
