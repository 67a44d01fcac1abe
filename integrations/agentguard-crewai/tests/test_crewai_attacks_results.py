"""Attacks by results that outlive their task or user, each with what goes through beside it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from crewai.tools import tool
from crewai.tools.base_tool import Tool
from crewai.tools.tool_failure import ToolFailure
from crewai_attacks import (
    BEN,
    MAIL,
    PAY,
    Mail,
    asks_for_pay,
    failures,
    lent,
    only_alice,
    own,
    paying,
    work,
)
from pydantic import BaseModel, Field

from agentguard import ApprovalPending, Decision
from agentguard_crewai import guard_crew, resumable


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
