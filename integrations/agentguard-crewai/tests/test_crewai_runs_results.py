"""Results that a named run gives again: which come back, which are not kept, and for whom."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import rounds
from crewai.tools import BaseTool
from crewai.tools.tool_failure import ToolFailure
from crewai_shop import BEN, DOWN, LENT, LOOK, PAY, Shop, calls_of
from pydantic import BaseModel

from agentguard import ApprovalPending, Decision
from agentguard_crewai import guard_agent, resumable

# --- results --------------------------------------------------------------------------------------


class Receipt(BaseModel):
    number: int
    lines: list[str] = []


class Structured(BaseTool):
    """A tool with a schema of its results."""

    name: str = "pay"
    description: str = "Pay somebody."
    result_schema: type[BaseModel] = Receipt
    made: list[Any] = []  # noqa: RUF012  a field of a pydantic model

    def _run(self, to: str) -> Any:
        self.made.append(to)
        return Receipt(number=len(self.made), lines=[to])


def handed_out(shop: Shop, way: Any, one: BaseTool, **arguments: Any) -> Any:
    """Return what a tool returns to CrewAI in a run."""
    lead = shop.agent(way, tools=[one])
    guard_agent(lead, shop.guard, name="lead")
    lead.create_agent_executor()
    with shop.lent(), resumable("order-1"):
        return lead.agent_executor.original_tools[0].run(**arguments)


@pytest.mark.parametrize(
    "result",
    rounds.some(
        [
            "text \u202e\x00 ü",
            "",
            None,
            0,
            -(2**53) - 1,
            1.5,
            -0.0,
            True,
            [],
            [1, [2, (3, {"a": None})]],
            (),
            (1, "2"),
            {"list": ["list", 1], "1": {"tuple": ()}},
            ["model", {}, []],
            ToolFailure(message="no funds", code="bank.refused", details={"left": [1, (2,)]}),
        ],
        each=3,
    ),
    ids=repr,
)
def test_a_result_comes_back_as_it_was(shop, native, result):
    shop.results = lambda _to, _at: result
    first, second = (handed_out(shop, native, shop.paying(), to="ann") for _ in range(2))
    assert shop.ran == ["ann"]
    assert first == second == result
    assert repr(second) == repr(result)  # and so are the types in it


def test_a_result_of_the_tools_schema_comes_back_as_it_was(shop, native):
    one = Structured()
    first, second = (handed_out(shop, native, one, to="ann") for _ in range(2))
    assert one.made == ["ann"]
    assert first == second == Receipt(number=1, lines=["ann"])
    assert (type(second), second.model_fields_set) == (Receipt, first.model_fields_set)


class Odd(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "result",
    rounds.some(
        [
            {1, 2},
            b"bytes",
            object(),
            Receipt(number=1),
            float("nan"),
            float("inf"),
            {1: "a number for a key"},
            Odd("of a class of its own"),
            2**70,
            "\ud800",
            "long " * (8 << 18),
            datetime(2026, 1, 1, tzinfo=UTC),
        ],
        each=3,
    ),
    ids=lambda result: type(result).__name__,
)
def test_a_result_that_can_not_be_kept_is_not_given_again(shop, native, signed, result):
    shop.results = lambda _to, _at: result
    shop.tried(native, PAY, "done")
    assert shop.ran == ["ann"]
    second = shop.tried(native, PAY, LOOK, "done")
    assert (second.codes, second.raw) == (["journal.unreplayable"], "done")
    assert shop.ran == ["ann", "books"]
    (failure,) = second.failures
    assert "was not run again" in failure.message
    assert "has run already" in failure.message
    calls = calls_of(signed, shop)
    assert [(call.code, call.outcome) for call in calls] == [
        ("", "ok"),
        ("journal.unreplayable", None),
    ]
    assert {call.chain for call in calls} == {(*LENT, "lead")}


def test_a_call_that_was_not_kept_is_refused_however_often_the_model_makes_it(shop, way):
    shop.results = lambda _to, _at: {1, 2}
    shop.tried(way, PAY, "done")
    told = shop.tried(way, PAY, LOOK, PAY, BEN, PAY, "done")
    assert told.codes == ["journal.unreplayable"] * 3
    assert shop.ran == ["ann", "books", "ben"]


def test_a_result_of_which_a_part_is_redacted_is_not_kept(shop, native):
    shop.answers["pay"] = Decision.allow().redacted("/result")
    shop.tried(native, PAY, "done")
    assert shop.tried(native, PAY, "done").codes == ["journal.unreplayable"]
    assert shop.ran == ["ann"]


def test_a_result_that_the_schema_has_no_more_is_not_given_again(shop, native):
    class Other(BaseModel):
        number: str

    one, other = Structured(), Structured(result_schema=Other)
    handed_out(shop, native, one, to="ann")
    again = handed_out(shop, native, other, to="ann")
    assert other.made == []
    assert isinstance(again, ToolFailure)
    assert again.code == "journal.unreplayable"


# --- authority comes first ------------------------------------------------------------------------


def test_what_is_denied_by_now_is_not_handed_out(shop, native, signed):
    shop.tried(native, PAY, "done")
    shop.answers["pay"] = Decision.deny("not any more")
    second = shop.tried(native, PAY, "done")
    assert second.codes == ["policy.denied"]
    assert "number 1" not in second.heard
    shop.answers.clear()
    assert "paid ann as number 1" in shop.tried(native, PAY, "done").heard
    assert shop.ran == ["ann"]
    assert [(call.code, call.outcome) for call in calls_of(signed, shop)] == [
        ("", "ok"),
        ("policy.denied", None),
        ("", "not_run"),
    ]


def test_what_nobody_lends_any_more_is_not_handed_out(shop, native):
    shop.tried(native, PAY, "done")
    lead = shop.agent(native, PAY, "done")
    crew = shop.crew(native.crew(lead))
    with resumable("order-1"):
        output = crew.kickoff()
    (failed,) = output.tasks_output[0].tool_failures
    assert (failed.failure.code, shop.ran) == ("delegation.missing", ["ann"])


def test_what_is_to_be_approved_by_now_is_handed_out_since_it_does_not_run(shop, native):
    shop.tried(native, PAY, "done")
    shop.answers["pay"] = Decision.require_approval()
    second = shop.tried(native, PAY, "done")
    assert (second.codes, shop.ran) == ([], ["ann"])
    assert shop.guard.approvals.pending() == []


def test_what_was_approved_once_is_handed_out_without_another_approval(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    shop.log.approve()
    for last in (DOWN, "done"):
        assert "paid ann as number 1" in shop.tried(native, PAY, last).heard
    assert shop.ran == ["ann"]
    assert shop.guard.approvals.pending() == []
    assert [call.outcome for call in calls_of(signed, shop)] == ["ok", "not_run"]
