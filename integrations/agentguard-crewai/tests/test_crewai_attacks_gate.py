"""Attacks on guarded crews that have worked once, each with what goes through beside it.

Places of calls in runs, results that outlive their task, copies of crews, crews that are shared or
nested, streams, and tools that lead around the gate.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import yaml
from crewai import Agent, Crew, Task
from crewai.knowledge.knowledge import Knowledge
from crewai.project import CrewBase, agent, crew, task
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure
from pydantic import BaseModel, Field

from agentguard import ApprovalPending, ConfigError, Decision, current_delegation
from agentguard_crewai import agent_of, guard_agent, guard_crew, guard_crewbase, resumable

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {})
MAIL = ("read_mail", {"box": "inbox"})
DOWN = RuntimeError("the model is down")
"""Ends a try: agents here are not asked to try it again by themselves."""

NO_ROLE = "the role of the agent who is empty"
OWN_CLASS = "to_structured_tool returns a Own"
ALIVE: list[Any] = []
"""CrewAI keeps what a method of a ``@CrewBase`` made by the address of its object."""


class Killed(BaseException):
    """Ends a try as Ctrl-C does: nothing in between takes it for an error."""


def own(*names: str) -> dict[str, Any]:
    """Agents that act on their own authority."""
    return {name: {"authority": "own"} for name in names}


def lent(*names: str) -> dict[str, Any]:
    """Agents that are lent what they may do."""
    return {name: {"max_scope": ["pay"]} for name in names}


def work(member: Any, **options: Any) -> Task:
    """A task of this agent."""
    return Task(**{"description": "a task", "expected_output": "words", "agent": member, **options})


def hand_on(what: str) -> tuple[str, dict[str, str]]:
    """Handing this on to the worker, as a model says it."""
    given = {"task": what, "context": "now", "coworker": "Worker"}
    return "delegate_work_to_coworker", given


def paying(paid: list[str]) -> Any:
    """A tool that pays, and keeps whom."""

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        paid.append(to)
        return f"paid {to}, receipt {len(paid)}"

    return pay


def failures(output: Any) -> list[str | None]:
    """The codes of what was refused in a crew's tasks."""
    return [
        failed.failure.code for one in output.tasks_output for failed in one.tool_failures or []
    ]


def only_alice(document: Mapping[str, Any]) -> Decision:
    """A policy: nobody else may."""
    alice = document["delegation"]["subject"] == "user:alice"
    return Decision.allow() if alice else Decision.deny("it is not yours")


def asks_for_pay(document: Mapping[str, Any]) -> Decision:
    """A policy: each payment needs an approval."""
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


def read(stream: Any) -> str:
    """Read a stream to its end."""
    for _chunk in stream:
        pass
    return stream.result.raw


# places of calls in a run


def test_an_equal_call_after_a_replayed_delegation_is_really_made(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []
    made.decide = lambda document: (
        Decision.require_approval() if document["action"] == "pay" and paid else Decision.allow()
    )

    def tried(*steps: Any) -> str:
        said = hand_on("invoice 1"), hand_on("invoice 2"), "both are settled"
        lead = native.agent("Lead", *said, allow_delegation=True, max_retry_limit=0)
        worker = native.agent("Worker", *steps, tools=[paying(paid)], max_retry_limit=0)
        made_up = native.crew(lead, worker, tasks=[work(lead)])
        team = guard_crew(made_up, made.guard, on_approval="pause")
        with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
            return team.kickoff().raw

    with pytest.raises(ApprovalPending):
        tried(PAY, "invoice 1 is paid", PAY, "invoice 2 is paid")
    made.approve()
    # the first delegation is replayed: the worker is only asked for the second
    assert tried(PAY, "invoice 2 is paid") == "both are settled"
    assert paid == ["ann", "ann"]
    assert made.guard.approvals.pending() == []


def test_an_equal_call_after_a_replayed_tool_that_kicks_a_crew_off_is_really_made(native, recorded):
    made, paid = recorded(agents=own("lead", "worker")), []

    @tool
    def settle(invoice: int) -> str:
        """Settle an invoice, with a crew."""
        worker = native.agent("Worker", PAY, f"invoice {invoice} is paid", tools=[paying(paid)])
        return guard_crew(native.crew(worker), made.guard).kickoff().raw

    def tried(*steps: Any) -> str:
        lead = native.agent("Lead", *steps, tools=[settle], max_retry_limit=0)
        with resumable("order-1"):
            return guard_crew(native.crew(lead), made.guard).kickoff().raw

    first, second = ("settle", {"invoice": 1}), ("settle", {"invoice": 2})
    with pytest.raises(RuntimeError, match="the model is down"):
        tried(first, DOWN)
    assert paid == ["ann"]
    assert tried(first, second, "both") == "both"
    assert paid == ["ann", "ann"]
    assert tried(first, second, "both") == "both"
    assert paid == ["ann", "ann"]


def test_places_are_those_of_the_whole_call_whatever_was_called_before(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []

    def tried(said: list[Any], done: list[Any]) -> str:
        lead = native.agent("Lead", *said, allow_delegation=True, max_retry_limit=0)
        worker = native.agent("Worker", *done, tools=[paying(paid)], max_retry_limit=0)
        team = guard_crew(native.crew(lead, worker, tasks=[work(lead), work(worker)]), made.guard)
        with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
            return team.kickoff().raw

    with pytest.raises(RuntimeError, match="the model is down"):
        tried([hand_on("settle it"), "done"], [PAY, "paid", PAY, DOWN])
    assert paid == ["ann", "ann"]
    # the lead does not hand on any more; the worker makes what it has completed, and once more
    assert tried(["I leave it to the worker"], [PAY, "done"]) == "done"
    assert paid == ["ann", "ann"]
    assert tried(["I leave it to the worker"], [PAY, BEN, PAY, "done"]) == "done"
    assert paid == ["ann", "ann", "ben", "ann"]


def test_places_of_two_users_in_one_run_are_their_own_in_any_order(native, recorded):
    made, paid = recorded(agents=lent("worker")), []

    def batch(*people: str) -> None:
        with resumable("nightly"):
            for one in people:
                worker = native.agent(
                    "Worker", PAY, "done", tools=[paying(paid)], max_retry_limit=0
                )
                with made.guard.delegate(one, scope=["pay"]):
                    guard_crew(native.crew(worker), made.guard).kickoff()

    batch("user:alice", "user:bob")
    assert paid == ["ann", "ann"]
    batch("user:bob", "user:alice")
    assert paid == ["ann", "ann"]
    batch("user:carol", "user:bob", "user:alice")
    assert paid == ["ann", "ann", "ann"]


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
@pytest.mark.parametrize("named", [True, False])
def test_what_crewai_tries_again_by_itself_repeats_no_call_of_a_run(way, recorded, named, begin):
    made, paid = recorded(agents=own("lead")), []
    said = PAY, BEN, DOWN, PAY, DOWN, PAY, PAY, "done"
    lead = way.agent("Lead", *said, tools=[paying(paid)])
    # in text CrewAI answers an identical call right after the first: another one lies between
    if not way.native:
        lead.llm.steps[6:6] = [BEN]
    team = guard_crew(way.crew(lead), made.guard)
    with resumable("order-1") if named else nullcontext():
        output = team.kickoff() if begin == "kickoff" else asyncio.run(team.akickoff())
    assert output.raw == "done"
    # what the last attempt asks for twice is paid twice; without a run CrewAI does as it does
    every = ["ann", "ben", "ann", "ann", *([] if way.native else ["ben"]), "ann"]
    assert paid == (["ann", "ben", "ann"] if named else every)


def test_a_coworker_that_crewai_lets_try_again_repeats_no_call(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []
    made.decide = asks_for_pay

    def tried(*steps: Any) -> str:
        lead = native.agent("Lead", hand_on("settle it"), "settled", allow_delegation=True)
        worker = native.agent("Worker", *steps, tools=[paying(paid)])
        made_up = native.crew(lead, worker, tasks=[work(lead)])
        team = guard_crew(made_up, made.guard, on_approval="pause")
        with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
            return team.kickoff().raw

    with pytest.raises(ApprovalPending):
        tried(PAY, "paid")
    made.approve()
    assert tried(PAY, DOWN, PAY, "paid") == "settled"
    assert (paid, made.guard.approvals.pending()) == (["ann"], [])


def test_a_lead_that_crewai_lets_try_again_hands_nothing_on_again(native, recorded):
    made, paid = recorded(agents=lent("lead", "worker")), []
    said = hand_on("one"), DOWN, hand_on("one"), hand_on("two"), "settled"
    lead = native.agent("Lead", *said, allow_delegation=True)
    worker = native.agent("Worker", *[PAY, "paid"] * 3, tools=[paying(paid)])
    team = guard_crew(native.crew(lead, worker, tasks=[work(lead)]), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-1"):
        assert team.kickoff().raw == "settled"
    assert paid == ["ann", "ann"]  # one for each of the two


def test_a_request_of_another_user_in_a_run_of_one_name_does_not_block_mine(native, recorded):
    made, paid = recorded(agents=lent("lead")), []
    made.decide = asks_for_pay

    def order(who: str) -> Any:
        lead = native.agent("Lead", PAY, "done", tools=[paying(paid)])
        team = guard_crew(native.crew(lead), made.guard, on_approval="pause")
        with made.guard.delegate(who, scope=["pay"]), resumable("order-7"):
            return team.kickoff()

    for who in ("user:bob", "user:alice"):
        with pytest.raises(ApprovalPending) as waits:
            order(who)
        assert waits.value.request.principal == who
    made.approve()
    for count, who in enumerate(["user:alice", "user:bob"], 1):
        assert failures(order(who)) == []
        assert paid == ["ann"] * count


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (TimeoutError("the bank did not answer in time"), "journal.cut_short"),
        (Killed(), "journal.cut_short"),
        (None, "journal.unreplayable"),
    ],
)
def test_a_call_that_may_have_run_is_refused_however_often_it_is_made(way, recorded, ends, code):
    made, paid = recorded(agents=own("lead")), []

    @tool
    def pay(to: str) -> object:
        """Pay somebody."""
        paid.append(to)
        if to == "ann" and ends is not None:
            raise ends
        return dt.date(2026, 1, 1)

    @tool
    def look() -> str:
        """Look."""
        return "looked"

    def tried(*steps: Any) -> Any:
        lead = way.agent("Lead", *steps, tools=[pay, look], max_retry_limit=0)
        with resumable("order-1"):
            return guard_crew(way.crew(lead), made.guard).kickoff()

    with pytest.raises((RuntimeError, Killed)):
        tried(PAY, DOWN)
    assert failures(tried(PAY, LOOK, PAY, LOOK, PAY, "done")) == [code] * 3
    assert paid == ["ann"]
    # another payment is no repetition
    assert failures(tried(PAY, BEN, "done")) == [code]
    assert paid == ["ann", "ben"]


def test_a_model_that_repeats_what_has_timed_out_in_the_same_try_is_refused(way, recorded):
    made, paid = recorded(agents=own("lead")), []

    @tool
    def pay(to: str) -> str:
        """Pay somebody."""
        paid.append(to)
        raise TimeoutError("the bank did not answer in time")

    lead = way.agent("Lead", PAY, PAY, "done", tools=[pay])
    with resumable("order-1"):
        output = guard_crew(way.crew(lead), made.guard).kickoff()
    assert (paid, made.outcomes()) == (["ann"], ["unknown"])
    assert "journal.cut_short" in failures(output)


# what is kept of earlier results


class Mail(BaseTool):
    """Whose mail it is, which is the answer of a task as it stands."""

    name: str = "Read Mail"
    description: str = "Read the mailbox."
    result_as_answer: bool = True

    def _run(self, box: str) -> str:
        lent_here = current_delegation()
        assert lent_here is not None
        return f"the {box} of {lent_here.principal}"


def test_the_answer_of_an_earlier_user_is_not_that_of_one_who_is_denied(text, recorded):
    made = recorded(agents=lent("clerk"))
    made.decide = only_alice
    clerk = text.agent("Clerk", MAIL, MAIL, "I was not allowed to", tools=[Mail()])
    team = guard_crew(text.crew(clerk), made.guard)
    answers = []
    for who in ("user:alice", "user:bob"):
        with made.guard.delegate(who, scope=["pay"]):
            answers.append(team.kickoff())
    assert [one.raw for one in answers] == ["the inbox of user:alice", "I was not allowed to"]
    assert [failures(one) for one in answers] == [[], ["policy.denied"]]


def test_the_answer_of_an_earlier_task_is_not_that_of_one_that_is_denied(text, recorded):
    made, sent = recorded(agents=own("clerk")), []
    made.decide = lambda document: (
        Decision.deny("too much") if document["args"]["cents"] > 100 else Decision.allow()
    )

    @tool(result_as_answer=True)
    def pay(cents: int) -> str:
        """Pay somebody."""
        sent.append(cents)
        return f"sent {cents}"

    few, much = ("pay", {"cents": 50}), ("pay", {"cents": 5000})
    clerk = text.agent("Clerk", few, much, "it was refused", few, tools=[pay])
    tasks = [work(clerk), work(clerk), work(clerk)]
    output = guard_crew(text.crew(clerk, tasks=tasks, cache=False), made.guard).kickoff()
    assert [one.raw for one in output.tasks_output] == ["sent 50", "it was refused", "sent 50"]
    assert sent == [50, 50]


def test_a_cached_result_is_that_of_no_other_run(way, recorded):
    made, paid = recorded(agents=lent("worker")), []
    made.decide = asks_for_pay
    worker = way.agent("Worker", *[PAY, PAY, "done"] * 2, tools=[paying(paid)])
    team = guard_crew(way.crew(worker, cache=True), made.guard, on_approval="pause")
    for count, order in enumerate(["order-7", "order-8"], 1):
        with made.guard.delegate("user:alice", scope=["pay"]):
            with resumable(order), pytest.raises(ApprovalPending):
                team.kickoff()
            made.approve()
            with resumable(order):
                assert team.kickoff().raw == "done"
        assert paid == ["ann"] * count


def test_a_cached_result_is_handed_out_within_its_run(way, recorded):
    made, paid = recorded(agents=lent("worker")), []
    said = PAY, BEN, PAY, "done"
    worker = way.agent("Worker", *said, tools=[paying(paid)])
    team = guard_crew(way.crew(worker, cache=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]), resumable("order-7"):
        team.kickoff()
    assert paid == ["ann", "ben"]
    assert made.outcomes() == ["ok", "ok", "ok"]


@pytest.mark.parametrize("run", [None, "order-1"])
def test_a_tool_whose_cache_function_raises_runs_once(way, recorded, run):
    made, paid = recorded(agents=own("lead")), []
    pay = paying(paid)
    pay.cache_function = lambda _arguments, result: result["ok"]
    lead = way.agent("Lead", PAY, "done", tools=[pay])
    team = guard_crew(way.crew(lead, cache=True), made.guard)
    if run is None:
        assert team.kickoff().raw == "done"
    else:
        with resumable(run):
            assert team.kickoff().raw == "done"
    assert (paid, made.outcomes()) == (["ann"], ["ok"])


def test_a_cache_function_is_asked_of_results_and_of_no_denial(way, recorded):
    made, ran, asked = recorded(agents=own("lead")), [], []
    made.decide = lambda document: (
        Decision.deny("ask the office") if document["args"]["a"] > 5 else Decision.allow()
    )

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply."""
        ran.append((a, b))
        return a * b

    def even(_arguments: Any, result: Any) -> bool:
        asked.append(result)
        return result % 2 == 0

    multiply.cache_function = even
    said = ("multiply", {"a": 7, "b": 1}), ("multiply", {"a": 2, "b": 3}), "done"
    lead = way.agent("Lead", *said, tools=[multiply])
    output = guard_crew(way.crew(lead, cache=True), made.guard).kickoff()
    ((failed,),) = (one.tool_failures for one in output.tasks_output)
    assert failed.failure.code == "policy.denied"
    assert "Reason: ask the office." in failed.failure.message
    assert (ran, [*map(int, asked)]) == ([(2, 3)], [6])
    assert not any(isinstance(one, ToolFailure) for one in asked)
    assert len(made.calls()) == 2


class Noted(BaseModel):
    """A schema that makes what a model leaves out anew each time."""

    to: str
    key: str = Field(default_factory=lambda: uuid.uuid4().hex)


class Open(BaseModel):
    """A schema that lets in what it does not name."""

    model_config = {"extra": "allow"}
    to: str


@pytest.mark.parametrize("schema", [Noted, Open])
@pytest.mark.parametrize("fails", [True, False])
def test_one_step_of_a_model_that_writes_text_runs_a_tool_once(way, recorded, schema, fails):
    made, ran = recorded(agents=own("lead")), []

    def paid(to: str, **more: Any) -> str:
        ran.append((to, more))
        if fails and len(ran) == 1:
            raise ValueError("the bank's answer can't be read")
        return "paid"

    pay = Tool(name="pay", description="Pay.", func=paid, args_schema=schema)
    said = ("pay", {"to": "ann", "memo": "x"}), ("pay", {"to": "ben"}), "done"
    lead = way.agent("Lead", *said, tools=[pay], max_retry_limit=0)
    assert guard_crew(way.crew(lead), made.guard).kickoff().raw == "done"
    assert [to for to, _ in ran] == ["ann", "ben"]
    assert made.outcomes() == ["error" if fails else "ok", "ok"]


def test_a_tool_that_changes_its_argument_and_raises_runs_once_in_a_step(way, recorded):
    made, ran = recorded(agents=own("lead")), []

    @tool
    def pay(to: list[str]) -> str:
        """Pay them."""
        ran.append(list(to))
        to.clear()
        if len(ran) == 1:
            raise ValueError("the bank's answer can't be read")
        return "paid"

    said = ("pay", {"to": ["ann"]}), ("pay", {"to": ["ben"]}), "done"
    lead = way.agent("Lead", *said, tools=[pay], max_retry_limit=0)
    guard_crew(way.crew(lead), made.guard).kickoff()
    assert (ran, made.outcomes()) == ([["ann"], ["ben"]], ["error", "ok"])


# crews that are copied, shared and nested


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


# streams


def test_two_streams_of_one_crew_are_each_of_their_own_run(native, recorded, signed):
    made, paid = recorded(agents=lent("worker")), []
    pay = paying(paid)
    worker = native.agent("Worker", *[PAY, "done"] * 2, tools=[pay])
    team = guard_crew(native.crew(worker, stream=True, cache=False), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]):
        streams = []
        for order in ("order-7", "order-8"):
            with resumable(order):
                streams.append(team.kickoff())
        assert [read(one) for one in streams] == ["done", "done"]
        assert paid == ["ann", "ann"]
        assert len({call.site for call in signed(made.guard)}) == 2
        for order in ("order-7", "order-8"):
            again = native.crew(native.agent("Worker", PAY, "done", tools=[pay]))
            with resumable(order):
                assert guard_crew(again, made.guard).kickoff().raw == "done"
    assert paid == ["ann", "ann"]


def test_a_stream_that_is_never_read_leaves_nothing_behind(native, recorded):
    made, paid = recorded(agents=lent("worker")), []
    made.decide = asks_for_pay

    def team_of() -> Any:
        worker = native.agent("Worker", *[PAY, "done"] * 3, tools=[paying(paid)])
        return guard_crew(native.crew(worker, cache=False), made.guard, on_approval="pause")

    team = team_of()
    with made.guard.delegate("user:alice", scope=["pay"]):
        with resumable("order-7"), pytest.raises(ApprovalPending):
            team_of().kickoff()
        made.approve()
        team.stream = True
        with resumable("order-7"):
            team.kickoff()
        team.stream = False
        # part of no run: what was approved for the order is not its
        with pytest.raises(ApprovalPending):
            team.kickoff()
        assert paid == []
        with resumable("order-7"):
            assert team_of().kickoff().raw == "done"
        assert paid == ["ann"]


async def _aread(stream: Any) -> str:
    async for _chunk in stream:
        pass
    return stream.result.raw


@pytest.mark.parametrize("whose", ["user:alice", None])
def test_a_stream_is_never_read_for_another_user(native, recorded, signed, whose):
    made, paid = recorded(agents=lent("worker")), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate(whose, scope=["pay"]) if whose else nullcontext():
        stream = team.kickoff()
    with made.guard.delegate("user:bob", scope=["pay"]):
        with pytest.raises(ConfigError, match="another delegation in force") as refused:
            read(stream)
        assert refused.value.code == "crew.elsewhere"
        assert (paid, signed(made.guard)) == ([], [])
        assert read(team.kickoff()) == "done"  # his own is
    assert (paid, [call.chain[0] for call in signed(made.guard)]) == (["ann"], ["user:bob"])


@pytest.mark.parametrize("begin", ["akickoff", "kickoff_async"])
async def test_an_async_stream_is_never_read_for_another_user(native, recorded, signed, begin):
    made, paid = recorded(agents=lent("worker")), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]):
        stream = await getattr(team, begin)()
    with made.guard.delegate("user:bob", scope=["pay"]):
        with pytest.raises(ConfigError, match="another delegation in force"):
            await _aread(stream)
        assert (paid, signed(made.guard)) == ([], [])
        assert await _aread(await getattr(team, begin)()) == "done"
    assert (paid, [call.chain[0] for call in signed(made.guard)]) == (["ann"], ["user:bob"])


def test_a_stream_is_read_where_its_delegation_is_in_force_again(native, recorded, signed):
    made, paid = recorded(agents=lent("worker")), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]) as lent_here:
        stored = lent_here.dumps()
        stream = team.kickoff()
    with made.guard.resume(stored):
        assert read(stream) == "done"
    assert (paid, [call.chain[0] for call in signed(made.guard)]) == (["ann"], ["user:alice"])


def _in_a_bare_thread(stream: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(read, stream).result()


@pytest.mark.parametrize("reading", [read, _in_a_bare_thread])
def test_a_stream_that_is_read_outside_its_block_does_not_act_by_itself(
    native, recorded, signed, reading
):
    """An agent that may act by itself, and was kicked off with less than it may do."""
    made, paid = recorded(agents={"worker": {"authority": "own", "max_scope": ["look", "pay"]}}), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["look"]):
        stream = team.kickoff()
    with pytest.raises(ConfigError, match="another delegation in force") as refused:
        reading(stream)
    assert refused.value.code == "crew.elsewhere"
    assert (paid, signed(made.guard)) == ([], [])


def test_a_stream_that_was_kicked_off_for_nobody_is_read_anywhere_for_nobody(
    native, recorded, signed
):
    made, paid = recorded(agents={"worker": {"authority": "own", "max_scope": ["pay"]}}), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    _in_a_bare_thread(guard_crew(native.crew(worker, stream=True), made.guard).kickoff())
    assert (paid, [call.code for call in signed(made.guard)]) == (["ann"], [""])


def test_a_stream_that_is_read_where_its_delegation_has_ended_is_refused_on_record(
    native, recorded, signed
):
    made, paid = recorded(agents={"worker": {"authority": "own", "max_scope": ["pay"]}}), []
    worker = native.agent("Worker", PAY, "done", tools=[paying(paid)])
    team = guard_crew(native.crew(worker, stream=True), made.guard)
    with made.guard.delegate("user:alice", scope=["pay"]):
        stream, context = team.kickoff(), contextvars.copy_context()
    context.run(read, stream)
    assert (paid, [call.code for call in signed(made.guard)]) == ([], ["delegation.ended"])


# ways around the gate, and other names


class Written(BaseTool):
    """A tool like one of an MCP server, which CrewAI lists anew with each kickoff."""

    name: str = "files_write"
    description: str = "Write a file."
    written: Any  # pydantic would copy a list

    def _run(self, path: str) -> str:
        self.written.append(path)
        return f"wrote {path}"


@pytest.mark.parametrize("name", ["files_write", "files_write_2"])
def test_a_tool_that_is_listed_twice_is_one_tool(native, recorded, signed, name):
    made, written = (
        recorded(
            agents={"lead": {"max_scope": ["read", "write"]}},
            aliases={"files_write": "write_file"},
            tools={"write_file": {"requires": ["write"]}},
        ),
        [],
    )
    made.decide = lambda document: (
        Decision.deny("no secrets are written")
        if (document["action"], document["args"]["path"]) == ("write_file", "secret")
        else Decision.allow()
    )
    said = [(name, {"path": "secret"}), (name, {"path": "notes"}), "done"]
    tools = [Written(written=written), Written(written=written)]
    lead = guard_agent(native.agent("Lead", *said * 2, tools=tools), made.guard)
    codes = []
    for scope in (["read"], ["read", "write"]):
        with made.guard.delegate("user:alice", scope=scope):
            output: Any = lead.kickoff("write it")
        codes.append([failed.failure.code for failed in output.tool_failures])
    assert codes == [["scope.exceeded", "scope.exceeded"], ["policy.denied"]]
    assert written == ["notes"]
    assert {call.tool for call in signed(made.guard)} == {"write_file"}


def test_two_tools_of_one_name_that_differ_are_two(native, recorded, signed):
    made, written = recorded(agents=own("lead"), aliases={"files_write": "write_file"}), []
    tools = [Written(written=written), Written(written=written, description="Append to a file.")]
    said = ("files_write", {"path": "one"}), ("files_write_2", {"path": "two"}), "done"
    guard_agent(native.agent("Lead", *said, tools=tools), made.guard).kickoff("write both")
    assert [call.tool for call in signed(made.guard)] == ["write_file", "files_write_2"]
    assert written == ["one", "two"]


@pytest.mark.parametrize("native_too", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_a_structured_tool_of_a_class_of_its_own_is_refused(request, recorded, native_too, plain):
    way = request.getfixturevalue("native" if native_too else "text")
    made, ran = recorded(agents=own("lead")), []

    class Own(CrewStructuredTool):
        def invoke(self, input, config=None, **kwargs):  # noqa: A002  CrewAI's name
            ran.append(input)
            return "past the gate"

    class Wipe(BaseTool):
        name: str = "Wipe"
        description: str = "Wipe."

        def _run(self, what: str) -> str:
            ran.append(what)
            return f"wiped {what}"

        def to_structured_tool(self) -> CrewStructuredTool:
            given = {"name": self.name, "description": self.description, "func": self._run}
            kind = CrewStructuredTool if plain else Own
            structured = kind(**given, args_schema=self.args_schema)
            structured._original_tool = self
            return structured

    made.decide = lambda document: (
        Decision.deny("not all") if document["args"]["what"] == "all" else Decision.allow()
    )
    said = ("wipe", {"what": "all"}), ("wipe", {"what": "dust"}), "done"
    lead = way.agent("Lead", *said, tools=[Wipe()], max_retry_limit=0)
    team = guard_crew(way.crew(lead), made.guard)
    if plain:
        assert failures(team.kickoff()) == ["policy.denied"]
        assert ran == ["dust"]
        return
    with pytest.raises(ConfigError, match=OWN_CLASS) as refused:
        team.kickoff()
    assert (refused.value.code, ran) == ("tool.unguardable", [])


def wiping(ran: list[str]) -> Any:
    """A tool that wipes, and keeps what."""

    @tool
    def wipe(what: str) -> str:
        """Wipe."""
        ran.append(what)
        return "wiped"

    return wipe


def looking(then: Callable[[], None]) -> Any:
    """A tool whose code, or whoever is told of it, does something else as well."""

    @tool
    def look() -> str:
        """Look."""
        then()
        return "looked"

    return look


def slipped_in(executor: Any, added: Any) -> None:
    """Into the lists of an executor that is at work."""
    executor.original_tools.append(added)
    executor.tools.append(added.to_structured_tool())


def put_in_place(executor: Any, added: Any) -> None:
    """In the place of those lists."""
    executor.original_tools = [*executor.original_tools, added]
    executor.tools = [*executor.tools, added.to_structured_tool()]


def disguised(executor: Any, added: Any) -> None:
    """As what a text model runs of a tool that it may use."""
    executor.tools[0].func = added.func
    executor.tools[0].name = "wipe"
    executor.tools[0].args_schema = added.args_schema


@pytest.mark.parametrize("how", [slipped_in, put_in_place, disguised])
def test_a_tool_that_comes_to_an_executor_at_work_does_not_run(way, recorded, signed, how):
    made, ran = recorded(agents=own("lead")), []
    look = looking(lambda: how(lead.agent_executor, wiping(ran)))
    said = LOOK, ("wipe", {"what": "all"}), "done"
    lead = way.agent("Lead", *said, tools=[look], max_retry_limit=0)
    with suppress(ConfigError):
        guard_crew(way.crew(lead), made.guard).kickoff()
    assert ran == []
    assert {call.tool for call in signed(made.guard)} == {"look"}


def test_a_tool_of_another_agent_does_not_run_in_an_executor_at_work(text, recorded, signed):
    made, ran = recorded(agents=own("lead", "cleaner")), []

    def lend() -> None:
        theirs = next(iter(cleaner.agent_executor.original_tools))
        slipped_in(lead.agent_executor, theirs)

    wipe = ("wipe", {"what": "all"})
    cleaner = text.agent("Cleaner", ("wipe", {"what": "dust"}), "done", tools=[wiping(ran)])
    lead = text.agent("Lead", LOOK, wipe, "done", tools=[looking(lend)], max_retry_limit=0)
    with suppress(ConfigError):
        guard_crew(text.crew(cleaner, lead), made.guard).kickoff()
    assert ran == ["dust"]
    assert [(call.agent, call.tool) for call in signed(made.guard)] == [
        ("cleaner", "wipe"),
        ("lead", "look"),
    ]


ANALYST = {"role": "Senior Analyst", "goal": "g", "backstory": "b"}


@pytest.fixture
def files(tmp_path) -> Iterator[Any]:
    """Writes agents.yaml and tasks.yaml; returns their paths."""

    def write(**members: str) -> tuple[str, str]:
        written = {
            "agents.yaml": {"analyst": {**ANALYST, **members}},
            "tasks.yaml": {"work": {"description": "d", "expected_output": "e"}},
        }
        for name, content in written.items():
            (tmp_path / name).write_text(yaml.safe_dump(content), "utf-8")
        return str(tmp_path / "agents.yaml"), str(tmp_path / "tasks.yaml")

    yield write
    ALIVE.clear()


@pytest.mark.parametrize("members", [{"identity": "reader"}, {}])
@pytest.mark.parametrize("how", ["as documented", "copied", "made anew"])
def test_an_identity_in_the_yaml_is_that_of_agents_made_anew_or_copied_in_crew(
    native, recorded, signed, files, how, members
):
    made, paid = recorded(agents=own("reader", "senior-analyst")), []
    pay, paths = paying(paid), files(**members)

    @guard_crewbase(made.guard)
    @CrewBase
    class Team:
        agents_config, tasks_config = paths

        def made_anew(self) -> Agent:
            given = self.agents_config["analyst"]
            return Agent(config=given, llm=native.model(PAY, "done"), tools=[pay])

        @agent
        def analyst(self) -> Agent:
            return self.made_anew()

        @task
        def work(self) -> Task:
            return Task(config=self.tasks_config["work"], agent=self.analyst())

        @crew
        def crew(self) -> Crew:
            if how == "as documented":
                return Crew(agents=self.agents, tasks=self.tasks)
            one = self.analyst().copy() if how == "copied" else self.made_anew()
            return Crew(agents=[one], tasks=[work(one)])

    team: Any = Team()
    ALIVE.append(team)
    team.crew().kickoff()
    assert paid == ["ann"]
    assert [call.agent for call in signed(made.guard)] == [
        "reader" if members else "senior-analyst"
    ]


def entries(made: Any, paths: tuple[str, str], way: Any, second: Any) -> Any:
    """A crew of the agent of a method and ``second``, which makes one of it; each pays."""

    @guard_crewbase(made.guard)
    @CrewBase
    class Team:
        agents_config, tasks_config = paths

        def made_anew(self) -> Agent:
            said = [PAY, "done"] * 4
            given = self.agents_config["analyst"]
            return Agent(config=given, llm=way.model(*said), tools=[paying([])])

        @agent
        def analyst(self) -> Agent:
            return self.made_anew()

        @task
        def work(self) -> Task:
            return Task(config=self.tasks_config["work"], agent=self.analyst())

        @crew
        def crew(self) -> Crew:
            one = second(self)
            return Crew(agents=[*self.agents, one], tasks=[*self.tasks, work(one)])

    team: Any = Team()
    ALIVE.append(team)
    return team


@pytest.mark.parametrize("members", [{"identity": "reader"}, {}])
@pytest.mark.parametrize("second", ["copied", "made anew"])
def test_an_identity_in_the_yaml_is_that_of_all_agents_of_the_entry(
    native, recorded, signed, files, second, members
):
    made = recorded(agents=own("reader", "senior-analyst"))
    seconds = {
        "copied": lambda team: team.analyst().copy(),
        "made anew": lambda team: team.made_anew(),
    }
    entries(made, files(**members), native, seconds[second]).crew().kickoff()
    expected = "reader" if members else "senior-analyst"
    assert [call.agent for call in signed(made.guard)] == [expected] * 2


def test_an_identity_in_the_yaml_is_that_of_copies_that_are_made_after_a_kickoff(
    native, recorded, signed, files
):
    made = recorded(agents=own("reader", "topic-analyst"))
    paths = files(identity="reader", role="{topic} Analyst")
    team = entries(made, paths, native, lambda team: team.analyst().copy())
    for topic in ("Tax", "Law"):
        team.crew().kickoff(inputs={"topic": topic})
    assert {call.agent for call in signed(made.guard)} == {"reader"}
    assert len(signed(made.guard)) == 4


def test_an_agent_of_another_role_has_its_own_name_beside_one_of_the_yaml(
    native, recorded, signed, files
):
    made = recorded(agents=own("reader", "payer"))
    payer = native.agent("Payer", PAY, "done", tools=[paying([])])
    entries(made, files(identity="reader"), native, lambda _team: payer).crew().kickoff()
    assert [call.agent for call in signed(made.guard)] == ["reader", "payer"]
