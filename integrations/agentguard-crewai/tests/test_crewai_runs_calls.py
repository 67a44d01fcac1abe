"""Runs with a name: what was completed is not done again when they are begun again.

In the same process and in another, after an error, after a pause, and beside other runs. Kills at
any moment stand in test_crewai_crashes.py, Flows in test_crewai_flows.py.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import BaseTool, tool
from crewai.tools.tool_failure import ToolFailure
from pydantic import BaseModel, PrivateAttr

from agentguard import ApprovalPending, ConfigError, Decision, Ed25519Signer, Guard
from agentguard.domain import config, domain
from agentguard_crewai import guard_agent, guard_crew, resumable

PAY = ("pay", {"to": "ann"})
BEN = ("pay", {"to": "ben"})
LOOK = ("look", {"what": "books"})
LENT = ("user:alice", "crew:report")
DOWN = RuntimeError("the model is down")
"""Ends a try: agents here are not asked to try it again by themselves."""

DELEGATE = (
    "delegate_work_to_coworker",
    {"task": "pay ann", "context": "now", "coworker": "Worker"},
)
QUESTION = (
    "ask_question_to_coworker",
    {"question": "is ann paid?", "context": "now", "coworker": "Worker"},
)


class Shop:
    """A guard, the tools of its agents, and what these have done."""

    def __init__(self, make: Callable[..., Any], **tables: Any) -> None:
        agents = {name: {"max_scope": ["pay"]} for name in ("lead", "worker", "crew-manager")}
        self.log = make(**{"agents": agents, **tables})
        self.guard = self.log.guard
        self.answers: dict[str, Decision] = {}
        self.log.decide = self.decide
        self.ran: list[str] = []
        self.terms: dict[str, Any] = {"on_approval": "pause"}
        self.failing: list[BaseException] = []
        self.results: Callable[[str, int], Any] = lambda to, at: f"paid {to} as number {at}"
        self.then: Callable[[], Any] = lambda: None
        self.tools = [self.paying(), self.looking()]

    def decide(self, document: Any) -> Decision:
        return self.answers.get(document["action"], Decision.allow())

    def paying(self, description: str = "Pay somebody.") -> Any:
        def pay(to: str, cents: int = 100) -> Any:
            if self.failing:
                raise self.failing.pop(0)
            self.ran.append(to)
            return self.results(to, len(self.ran))

        pay.__doc__ = description
        return tool(pay)

    def looking(self) -> Any:
        @tool
        def look(what: str) -> str:
            """Look at something."""
            self.ran.append(what)
            self.then()
            return f"looked at {what} as number {len(self.ran)}"

        return look

    def lent(self, principal: str = "user:alice", **terms: Any) -> Any:
        return self.guard.delegate(principal, **{"scope": ["pay"], "via": "crew:report", **terms})

    def crew(self, crew: Crew) -> Crew:
        return guard_crew(crew, self.guard, **self.terms)

    def agent(self, way: Any, *said: Any, role: str = "Lead", **options: Any) -> Any:
        return way.agent(role, *said, **{"tools": self.tools, "max_retry_limit": 0, **options})

    def tried(self, way: Any, *said: Any, name: str = "order-1", **options: Any) -> Any:
        """Try a run with a new crew of one agent; return what is known of it."""
        lead = self.agent(way, *said, **options)
        return self.run(lead, self.crew(way.crew(lead)), name)

    def run(self, lead: Any, crew: Crew, name: str = "order-1", **lent: Any) -> Any:
        output: Any = None
        with self.lent(**lent), resumable(name):
            try:
                output = crew.kickoff()
            except RuntimeError as error:
                assert error is DOWN  # noqa: PT017  it is how a try ends here
        failures = [
            one.failure
            for task in (output.tasks_output if output else [])
            for one in task.tool_failures
        ]
        return SimpleNamespace(
            raw=output.raw if output else None,
            codes=[failure.code for failure in failures],
            failures=failures,
            heard=" ".join(map(str, [*lead.llm.heard, *lead.tools_results])),
        )


@pytest.fixture
def shop(recorded) -> Shop:
    return Shop(recorded)


@pytest.fixture
def shops(recorded) -> Callable[..., Shop]:
    return lambda **tables: Shop(recorded, **tables)


def calls_of(signed: Any, shop: Shop, name: str = "pay") -> list[Any]:
    return [call for call in signed(shop.guard) if call.tool == name]


def task(agent: Any = None, **options: Any) -> Task:
    return Task(description="a task", expected_output="words", agent=agent, **options)


# --- what was completed ---------------------------------------------------------------------------


def test_a_call_that_was_completed_is_not_made_again_and_its_result_comes_back(shop, way, signed):
    first = shop.tried(way, PAY, DOWN)
    assert (first.raw, shop.ran) == (None, ["ann"])
    second = shop.tried(way, PAY, BEN, "done")
    assert (second.raw, second.codes) == ("done", [])
    assert shop.ran == ["ann", "ben"]
    assert "paid ann as number 1" in second.heard
    assert "paid ben as number 2" in second.heard
    done, again, ben = calls_of(signed, shop)
    assert [call.outcome for call in (done, again, ben)] == ["ok", "not_run", "ok"]
    assert {(call.agent, call.chain) for call in (done, again, ben)} == {("lead", (*LENT, "lead"))}
    assert done.instance != again.instance  # each try has signed with a key of its own
    assert done.site == again.site != ben.site


def test_without_a_name_it_is_made_again(shop, native):
    for said in ((PAY, "done"), (PAY, "done")):
        with shop.lent():
            shop.crew(native.crew(shop.agent(native, *said))).kickoff()
    assert shop.ran == ["ann", "ann"]


def test_a_run_of_another_name_shares_nothing(shop, native):
    shop.tried(native, PAY, "done")
    second = shop.tried(native, PAY, "done", name="order-2")
    assert shop.ran == ["ann", "ann"]
    assert "paid ann as number 2" in second.heard


def test_a_run_may_be_begun_again_and_again(shop, native):
    for _ in range(4):
        assert shop.tried(native, PAY, LOOK, "done").raw == "done"
    assert shop.ran == ["ann", "books"]


@pytest.mark.parametrize(
    "begin",
    [
        lambda crew: crew.kickoff(),
        lambda crew: asyncio.run(crew.kickoff_async()),
        lambda crew: asyncio.run(crew.akickoff()),
        lambda crew: crew.kickoff_for_each([{}]),
        lambda crew: crew.agents[0].kickoff("go"),
        lambda crew: asyncio.run(crew.agents[0].kickoff_async("go")),
        lambda crew: crew.agents[0].message("go"),
    ],
    ids=["kickoff", "async", "akickoff", "for_each", "agent", "agent_async", "message"],
)
def test_however_it_is_begun(shop, native, signed, begin):
    for _ in range(2):
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done")))
        with shop.lent(), resumable("order-1"):
            begin(crew)
    assert shop.ran == ["ann"]
    calls = calls_of(signed, shop)
    assert [call.outcome for call in calls] == ["ok", "not_run"]
    assert {(call.agent, call.chain) for call in calls} == {("lead", (*LENT, "lead"))}


def test_a_stream_that_is_read_after_the_block_is_part_of_its_run(shop, native):
    for _ in range(2):
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done"), stream=True))
        with shop.lent():
            with resumable("order-1"):
                stream = crew.kickoff()
            for _chunk in stream:
                pass
        assert stream.result.raw == "done"
    assert shop.ran == ["ann"]


def test_a_stream_that_is_read_in_the_block_is_part_of_its_run(shop, native):
    for _ in range(2):
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done"), stream=True))
        with shop.lent(), resumable("order-1"):
            for _chunk in (stream := crew.kickoff()):
                pass
        assert stream.result.raw == "done"
    assert shop.ran == ["ann"]


@pytest.mark.parametrize("inside", [True, False], ids=["in_the_block", "after_it"])
@pytest.mark.parametrize(
    "begin",
    [
        lambda crew: crew.kickoff_async(),
        lambda crew: crew.akickoff(),
        lambda crew: crew.kickoff_for_each_async([{}]),
        lambda crew: crew.akickoff_for_each([{}]),
    ],
    ids=["async", "akickoff", "for_each_async", "akickoff_for_each"],
)
async def test_an_async_stream_is_part_of_the_run_that_began_it(shop, native, begin, inside):
    async def read(stream: Any) -> None:
        async for _chunk in stream:
            pass

    for _ in range(2):
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done"), stream=True))
        with shop.lent():
            with resumable("order-1"):
                stream = await begin(crew)
                if inside:
                    await read(stream)
            if not inside:
                await read(stream)
    assert shop.ran == ["ann"]


class Chatty(BaseLLM):
    """A model that says a word, and then thinks until it is told to go on."""

    _ended: list[str] = PrivateAttr(default_factory=list)
    _go_on: threading.Event = PrivateAttr(default_factory=threading.Event)

    def call(self, *_args: Any, **_kwargs: Any) -> str:
        self._emit_stream_chunk_event("one")
        self._go_on.wait(60)
        self._ended.append("ended")
        return "done"

    def supports_function_calling(self) -> bool:
        return True


@pytest.mark.parametrize("block", [lambda: resumable("order-1"), nullcontext], ids=["run", "none"])
async def test_an_async_stream_that_is_closed_has_ended(shop, native, block):
    model = Chatty(model="chatty")
    crew = shop.crew(native.crew(shop.agent(native, llm=model), stream=True))
    before = asyncio.all_tasks()
    with shop.lent(), block():
        stream: Any = await crew.akickoff()
        chunks = aiter(stream)
        await anext(chunks)
        assert asyncio.all_tasks() > before
        await stream.aclose()
        assert asyncio.all_tasks() == before
    model._go_on.set()


@pytest.mark.parametrize("block", [lambda: resumable("order-1"), nullcontext], ids=["run", "none"])
def test_a_stream_that_is_closed_has_ended(shop, native, block):
    model = Chatty(model="chatty")
    crew = shop.crew(native.crew(shop.agent(native, llm=model), stream=True))
    with shop.lent(), block():
        stream: Any = crew.kickoff()
        chunks = iter(stream)
        next(chunks)
        assert model._ended == []
        model._go_on.set()
        stream.close()
        assert model._ended == ["ended"]


def test_streams_of_one_crew_are_each_part_of_their_own_run(shop, native):
    for _ in range(2):
        lead = shop.agent(native, PAY, "done", PAY, "done")
        crew = shop.crew(native.crew(lead, stream=True))
        with shop.lent():
            streams = []
            for name in ("order-1", "order-2"):
                with resumable(name):
                    streams.append(crew.kickoff())
            for stream in streams:
                for _chunk in stream:
                    pass
                assert stream.result.raw == "done"
    assert shop.ran == ["ann", "ann"]
    assert shop.tried(native, PAY, "done", name="order-1").raw == "done"
    assert shop.tried(native, PAY, "done", name="order-2").raw == "done"
    assert shop.ran == ["ann", "ann"]


def test_a_stream_that_nobody_reads_leaves_no_run_behind(shop, native):
    shop.tried(native, PAY, "done")
    crew = shop.crew(native.crew(shop.agent(native, PAY, "done"), stream=True))
    with shop.lent():
        with resumable("order-1"):
            crew.kickoff()
        crew.stream = False
        assert crew.kickoff().raw == "done"
    assert shop.ran == ["ann", "ann"]


async def test_blocks_of_tasks_of_one_loop_are_runs_of_their_own(shop, native):
    async def one(name: str) -> str:
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done")))
        with shop.lent(), resumable(name):
            return (await crew.akickoff()).raw

    names = ["order-1", "order-2", "order-3"]
    for _ in range(2):
        assert await asyncio.gather(*map(one, names)) == ["done"] * 3
    assert shop.ran == ["ann"] * 3


def test_tasks_at_once_are_of_one_run(shop, native, signed):
    for _ in range(2):
        lead, worker = (shop.agent(native, PAY, "done", role=role) for role in ("Lead", "Worker"))
        tasks = [task(lead, async_execution=True), task(worker)]
        crew = shop.crew(native.crew(lead, worker, tasks=tasks))
        with shop.lent(), resumable("order-1"):
            crew.kickoff()
    assert shop.ran == ["ann", "ann"]  # of two agents, each once
    calls = calls_of(signed, shop)
    assert sorted((call.agent, call.outcome) for call in calls) == [
        ("lead", "not_run"),
        ("lead", "ok"),
        ("worker", "not_run"),
        ("worker", "ok"),
    ]
    assert {(call.agent, call.chain) for call in calls} == {
        ("lead", (*LENT, "lead")),
        ("worker", (*LENT, "worker")),
    }


def test_two_crews_of_a_block_are_one_run(shop, native):
    for _ in range(2):
        crews = [shop.crew(native.crew(shop.agent(native, PAY, "done"))) for _ in range(2)]
        with shop.lent(), resumable("order-1"):
            for crew in crews:
                crew.kickoff()
    assert shop.ran == ["ann", "ann"]  # it is paid twice by the run, and no more when begun again


# --- which call is the same -----------------------------------------------------------------------


def test_the_same_call_twice_in_a_run_are_two_calls(shop, native):
    said = (PAY, LOOK, PAY, LOOK, "done")
    first = shop.tried(native, *said)
    second = shop.tried(native, *said[:-1], PAY, "done")
    assert shop.ran == ["ann", "books", "ann", "books", "ann"]
    for at, what in enumerate(("paid ann", "looked at books") * 2, 1):
        assert f"{what} as number {at}" in first.heard
        assert f"{what} as number {at}" in second.heard
    assert "paid ann as number 5" in second.heard


def test_the_same_call_twice_in_a_turn_are_two_calls(shop, native):
    for _ in range(2):
        shop.tried(native, (PAY, PAY, LOOK), "done")
    assert sorted(shop.ran) == ["ann", "ann", "books"]


def test_calls_are_known_in_whatever_order_they_are_made(shop, native):
    shop.tried(native, PAY, LOOK, BEN, "done")
    second = shop.tried(native, BEN, PAY, "done")
    assert shop.ran == ["ann", "books", "ben"]
    assert "paid ann as number 1" in second.heard
    assert "paid ben as number 3" in second.heard


def test_how_the_arguments_are_written_makes_no_other_call(shop, native):
    shop.tried(native, ("pay", {"to": "ann", "cents": 100}), "done")
    shop.tried(native, ("pay", {"cents": 100, "to": "ann"}), "done")
    shop.tried(native, PAY, "done")
    assert shop.ran == ["ann"]


def test_other_arguments_make_another_call(shop, native):
    shop.tried(native, PAY, "done")
    shop.tried(native, ("pay", {"to": "ann", "cents": 101}), "done")
    assert shop.ran == ["ann", "ann"]


def test_another_agent_makes_another_call(shop, native, signed):
    shop.tried(native, PAY, "done")
    shop.tried(native, PAY, "done", role="Worker")
    assert shop.ran == ["ann", "ann"]
    assert [call.chain for call in calls_of(signed, shop)] == [(*LENT, "lead"), (*LENT, "worker")]


@pytest.mark.parametrize("order", [("Worker", "Lead"), ("Lead", "Worker")])
def test_agents_that_make_the_same_call_in_another_order_make_no_other(shop, native, order):
    for roles in (("Lead", "Worker"), order):
        agents = [shop.agent(native, PAY, "done", role=role) for role in roles]
        crew = shop.crew(native.crew(*agents))
        with shop.lent(), resumable("order-1"):
            assert crew.kickoff().raw == "done"
    assert shop.ran == ["ann", "ann"]


def test_tools_that_take_the_same_arguments_are_others(shop, native):
    @tool
    def peek(what: str) -> str:
        """Look at something in passing."""
        shop.ran.append(f"peek at {what}")
        return f"peeked at {what}"

    peeking = ("peek", {"what": "books"})
    for said in ((LOOK, peeking), (peeking, LOOK)):
        told = shop.tried(native, *said, "done", tools=[peek, *shop.tools])
    assert shop.ran == ["books", "peek at books"]
    assert "peeked at books" in told.heard
    assert "looked at books as number 1" in told.heard


def test_another_principals_call_is_another(shop, native, signed):
    for principal in ("user:alice", "user:bob", "user:alice"):
        lead = shop.agent(native, PAY, "done")
        told = shop.run(lead, shop.crew(native.crew(lead)), principal=principal)
        assert ("paid ann as number 2" in told.heard) == (principal == "user:bob")
    assert shop.ran == ["ann", "ann"]
    assert [call.chain[0] for call in calls_of(signed, shop)] == [
        "user:alice",
        "user:bob",
        "user:alice",
    ]


def test_a_call_through_another_service_is_another(shop, native):
    for via in ("crew:report", "crew:other"):
        lead = shop.agent(native, PAY, "done")
        shop.run(lead, shop.crew(native.crew(lead)), via=via)
    assert shop.ran == ["ann", "ann"]


def test_a_tool_that_was_changed_is_another(shop, native):
    shop.tried(native, PAY, "done")
    shop.tried(native, PAY, "done", tools=[shop.paying("Pay, or do not.")])
    assert shop.ran == ["ann", "ann"]


def test_a_delegation_that_is_given_anew_is_the_same_principals(shop, native):
    for scope in (["pay"], ["pay", "look"]):
        lead = shop.agent(native, PAY, "done")
        shop.run(lead, shop.crew(native.crew(lead)), scope=scope, expires_in=600)
    assert shop.ran == ["ann"]


# --- what was not completed -----------------------------------------------------------------------


def test_a_call_that_failed_is_made_again(shop, way, signed):
    shop.failing = [OSError("no network")]
    first = shop.tried(way, PAY, "done")
    assert first.codes == ["OSError"]
    assert shop.ran == []
    second = shop.tried(way, PAY, "done")
    assert (second.codes, shop.ran) == ([], ["ann"])
    assert [call.outcome for call in calls_of(signed, shop)] == ["error", "ok"]


def test_a_call_that_failed_and_was_made_once_more_is_not_made_a_third_time(shop, way):
    shop.failing = [OSError("no network")]
    shop.tried(way, PAY, LOOK, PAY, DOWN)
    assert shop.ran == ["books", "ann"]
    second = shop.tried(way, PAY, "done")
    assert shop.ran == ["books", "ann"]
    assert "paid ann as number 2" in second.heard


def test_a_call_that_was_denied_and_then_allowed_is_not_made_a_second_time(shop, native):
    shop.answers["pay"] = Decision.deny("not yet")
    shop.then = shop.answers.clear
    shop.tried(native, PAY, LOOK, PAY, DOWN)
    assert shop.ran == ["books", "ann"]
    second = shop.tried(native, PAY, "done")
    assert shop.ran == ["books", "ann"]
    assert "paid ann as number 2" in second.heard


def test_a_call_that_waited_in_vain_finds_its_answer_when_it_is_made_again(shop, native, signed):
    shop.terms = {"on_approval": "wait", "timeout": 0}
    shop.answers["pay"] = Decision.require_approval()
    shop.then = shop.log.approve
    first = shop.tried(native, PAY, LOOK, PAY, DOWN)
    assert shop.ran == ["books", "ann"], first.codes
    second = shop.tried(native, PAY, "done")
    assert (shop.ran, second.codes) == (["books", "ann"], [])
    assert [call.outcome for call in calls_of(signed, shop)] == ["ok", "not_run"]


def test_calls_that_fail_at_once_are_each_made_again_and_none_twice(shop, native):
    shop.failing = [OSError("no network")]
    shop.tried(native, (PAY, PAY), DOWN)
    assert shop.ran == ["ann"]
    shop.tried(native, (PAY, PAY), "done")
    assert shop.ran == ["ann", "ann"]
    shop.tried(native, (PAY, PAY), "done")
    assert shop.ran == ["ann", "ann"]


@pytest.mark.parametrize("error", [TimeoutError("no answer"), KeyboardInterrupt(), SystemExit(1)])
def test_of_a_call_that_was_cut_short_nobody_knows(shop, native, signed, error):
    shop.failing = [error]
    lead = shop.agent(native, PAY, "done")
    with shop.lent(), resumable("order-1"):
        try:
            shop.crew(native.crew(lead)).kickoff()
        except (KeyboardInterrupt, SystemExit) as raised:
            assert raised is error  # noqa: PT017  a tool's TimeoutError is told to the model
    second = shop.tried(native, PAY, LOOK, "done")
    assert second.codes == ["journal.cut_short"]
    assert shop.ran == ["books"]
    (failure,) = second.failures
    assert (failure.retryable, "nobody knows whether it ran" in failure.message) == (False, True)
    assert [call.outcome for call in calls_of(signed, shop)] == ["unknown", None]


@pytest.mark.parametrize("error", [TimeoutError("no answer"), KeyboardInterrupt()])
def test_a_call_in_doubt_is_refused_however_often_the_model_makes_it(shop, way, error):
    shop.failing = [error]
    with shop.lent(), resumable("order-1"), suppress(KeyboardInterrupt):
        shop.crew(way.crew(shop.agent(way, PAY, "done"))).kickoff()
    for _ in range(2):
        told = shop.tried(way, PAY, LOOK, PAY, BEN, PAY, "done")
        assert told.codes == ["journal.cut_short"] * 3
    assert shop.ran == ["books", "ben"]


def test_a_call_that_timed_out_is_in_doubt_at_once(shop, way):
    shop.failing = [TimeoutError("no answer")]
    told = shop.tried(way, PAY, LOOK, PAY, "done")
    assert told.codes == ["TimeoutError", "journal.cut_short"]
    assert shop.ran == ["books"]


def test_a_run_that_goes_on_twice_at_once_does_nothing_twice(shop, native):
    ready = threading.Barrier(3)

    def one(_at: int) -> Any:
        lead = shop.agent(native, PAY, LOOK, "done")
        crew = shop.crew(native.crew(lead))
        ready.wait(120)
        return shop.run(lead, crew)

    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(one, range(3)))
    assert sorted(shop.ran) == ["ann", "books"]
    assert {code for one in told for code in one.codes} <= {"journal.in_doubt"}
    assert shop.tried(native, PAY, LOOK, "done").codes == []
    assert sorted(shop.ran) == ["ann", "books"]


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


# --- coworkers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [DELEGATE, QUESTION], ids=["work", "question"])
def test_what_a_coworker_has_completed_is_not_asked_of_it_again(shop, native, signed, call):
    heard = []
    for last in (DOWN, "done"):
        lead = shop.agent(native, call, last, allow_delegation=True, tools=[])
        worker = shop.agent(native, PAY, "ann is paid", role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        told = shop.run(lead, crew)
        heard.append((len(worker.llm.heard), "ann is paid" in told.heard))
    assert told.raw == "done"
    assert heard == [(2, True), (0, True)]
    assert shop.ran == ["ann"]
    handed = calls_of(signed, shop, call[0])
    assert [(one.agent, one.outcome) for one in handed] == [("lead", "ok"), ("lead", "not_run")]
    assert {one.chain for one in handed} == {(*LENT, "lead")}
    (paid,) = calls_of(signed, shop)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))


def test_a_coworker_that_failed_goes_on_in_the_next_try(shop, native, signed):
    # CrewAI tells the error of a coworker as the result of the delegation
    for said, then in ((DOWN, DOWN), ("ann is paid", "done")):
        lead = shop.agent(native, DELEGATE, then, allow_delegation=True, tools=[])
        worker = shop.agent(native, PAY, LOOK, said, role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        told = shop.run(lead, crew)
    assert told.raw == "done"
    assert "ann is paid" in told.heard
    assert shop.ran == ["ann", "books"]
    assert [(call.agent, call.outcome) for call in signed(shop.guard)] == [
        ("lead", "error"),
        ("worker", "ok"),
        ("worker", "ok"),
        ("lead", "ok"),
        ("worker", "not_run"),
        ("worker", "not_run"),
    ]


def test_a_coworker_that_is_stopped_goes_on(shop, native):
    # a person's interrupt is no failure of the delegation
    for stop in (KeyboardInterrupt(), None):
        lead = shop.agent(native, DELEGATE, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, LOOK, PAY, "ann is paid", role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        if stop is not None:
            shop.failing = [stop]
            with shop.lent(), resumable("order-1"), pytest.raises(KeyboardInterrupt):
                crew.kickoff()
        else:
            told = shop.run(lead, crew)
    assert told.raw == "done"
    assert shop.ran == ["books"]  # and of the payment nobody knows
    assert "nobody knows whether it ran" in " ".join(
        map(str, [*worker.llm.heard, *worker.tools_results])
    )


def test_what_lies_in_a_delegation_that_is_handed_out_keeps_its_place(shop, native, signed):
    # the coworker pays the same person in two delegations, and the second one is cut short
    other = (DELEGATE[0], {**DELEGATE[1], "task": "pay ann once more"})
    told = None
    for said in ((PAY, "first", DOWN), (PAY, "second")):
        lead = shop.agent(native, DELEGATE, other, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, *said, role="Worker")
        crew = shop.crew(native.crew(lead, worker, tasks=[task(lead)]))
        told = shop.run(lead, crew)
    assert told.raw == "done"
    assert shop.ran == ["ann", "ann"]  # the second one is no repetition of the first
    paid = calls_of(signed, shop)
    assert [call.outcome for call in paid] == ["ok", "ok"]
    assert len({call.site for call in paid}) == 2
    assert {call.chain for call in paid} == {(*LENT, "lead", "worker")}
    for _ in range(2):  # and by then both are complete
        lead = shop.agent(native, DELEGATE, other, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, role="Worker")
        shop.run(lead, shop.crew(native.crew(lead, worker, tasks=[task(lead)])))
        assert len(worker.llm.heard) == 0
    assert shop.ran == ["ann", "ann"]


def test_a_coworker_that_does_it_itself_afterwards_does_it_once_more(shop, native):
    # a delegation in which it has paid is handed out, and then it has a task of its own
    for last in (DOWN, "done"):
        lead = shop.agent(native, DELEGATE, "done", allow_delegation=True, tools=[])
        worker = shop.agent(native, PAY, "is paid", PAY, last, role="Worker")
        if last == "done":
            worker = shop.agent(native, PAY, last, role="Worker")
        crew = shop.crew(native.crew(lead, worker))
        told = shop.run(lead, crew)
    assert told.raw == "done"
    assert shop.ran == ["ann", "ann"]


def test_what_a_manager_has_given_away_is_not_asked_again(shop, native, signed):
    for last in (DOWN, "done"):
        worker = shop.agent(native, PAY, "ann is paid", role="Worker")
        crew = shop.crew(
            Crew(
                agents=[worker],
                tasks=[task()],
                process=Process.hierarchical,
                manager_llm=native.model(DELEGATE, last, last, last),
            )
        )
        with shop.lent(), resumable("order-1"):
            try:
                told = crew.kickoff().raw
            except RuntimeError:
                told = None
    assert (told, shop.ran) == ("done", ["ann"])
    assert len(worker.llm.heard) == 0
    (paid,) = calls_of(signed, shop)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "crew-manager", "worker"))


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


# --- pauses ---------------------------------------------------------------------------------------


def test_what_was_done_before_a_pause_is_not_done_again(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    said = (LOOK, PAY, LOOK, BEN, "done")
    for _ in range(2):
        with pytest.raises(ApprovalPending):
            shop.tried(native, *said)
        shop.log.approve()
    assert shop.tried(native, *said).raw == "done"
    assert shop.ran == ["books", "ann", "books", "ben"]
    calls = calls_of(signed, shop)
    assert [(call.arguments["to"], call.outcome) for call in calls] == [
        ("ann", "ok"),
        ("ann", "not_run"),
        ("ben", "ok"),
    ]
    assert {call.chain for call in calls} == {(*LENT, "lead")}


def test_a_run_that_has_paused_stays_so_in_its_block(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    paused = shop.crew(native.crew(shop.agent(native, PAY, "done")))
    other = shop.agent(native, LOOK, "done")
    another = shop.crew(native.crew(other))
    with shop.lent(), resumable("order-1"):
        with pytest.raises(ApprovalPending) as first:
            paused.kickoff()
        shop.log.approve()  # which comes too late for this try
        for begin in (another.kickoff, lambda: other.kickoff("go"), paused.kickoff):
            with pytest.raises(ApprovalPending) as again:
                begin()
            assert again.value.request.request_id == first.value.request.request_id
    assert shop.ran == []
    assert len(other.llm.heard) == 0
    with shop.lent():  # outside of the block it is nobody's turn to wait
        assert another.kickoff().raw == "done"
    assert shop.tried(native, PAY, "done").raw == "done"
    assert shop.ran == ["books", "ann"]


def test_one_run_that_has_paused_holds_no_other(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    assert shop.tried(native, LOOK, "done", name="order-2").raw == "done"
    assert shop.ran == ["books"]


def test_each_run_needs_an_approval_of_its_own(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    for name in ("order-1", "order-2"):
        with pytest.raises(ApprovalPending):
            shop.tried(native, PAY, "done", name=name)
    first, _second = shop.guard.approvals.pending()
    shop.guard.approvals.approve(first, shop.log.approver)
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done", name="order-2")
    shop.tried(native, PAY, "done", name="order-1")
    assert shop.ran == ["ann"]


def test_what_was_asked_in_a_run_is_for_no_other_tool(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    shop.log.approve()
    lead = shop.agent(native, PAY, "done", tools=[shop.paying("Pay, or do not.")])
    told = shop.run(lead, shop.crew(native.crew(lead)))
    assert (told.codes, shop.ran) == (["approval.mismatch"], [])
    assert shop.tried(native, PAY, "done").raw == "done"
    assert shop.ran == ["ann"]
    assert [call.code for call in calls_of(signed, shop)] == ["approval.mismatch", ""]


def test_what_was_asked_in_a_run_is_for_no_other_user(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, "done")
    shop.log.approve()
    lead = shop.agent(native, PAY, "done", tools=shop.tools)
    with pytest.raises(ApprovalPending):  # a request of its own
        shop.run(lead, shop.crew(native.crew(lead)), principal="user:mallory")
    assert shop.ran == []
    assert shop.tried(native, PAY, "done").raw == "done"
    assert shop.ran == ["ann"]
    assert [(call.chain[0], call.code) for call in calls_of(signed, shop)] == [("user:alice", "")]


def test_what_was_rejected_in_a_run_is_not_asked_again_in_it(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()

    def answer(how: Any) -> None:
        (request,) = shop.guard.approvals.pending()
        how(request, shop.log.approver)

    with pytest.raises(ApprovalPending):
        shop.tried(native, PAY, LOOK, BEN, "done")
    answer(shop.guard.approvals.reject)
    with pytest.raises(ApprovalPending) as paused:
        shop.tried(native, PAY, LOOK, BEN, "done")
    assert paused.value.request.arguments == b'{"cents":100,"to":"ben"}'
    answer(shop.guard.approvals.approve)
    told = shop.tried(native, PAY, LOOK, BEN, "done")
    assert (told.raw, told.codes) == ("done", ["approval.rejected"])
    assert shop.ran == ["books", "ben"]
    assert shop.guard.approvals.pending() == []
    assert [(call.arguments["to"], call.code) for call in calls_of(signed, shop)] == [
        ("ann", "approval.rejected"),
        ("ann", "approval.rejected"),
        ("ben", ""),
    ]


def test_what_was_rejected_in_one_run_is_asked_in_another(shop, native):
    shop.answers["pay"] = Decision.require_approval()
    for name in ("order-1", "order-2"):
        with pytest.raises(ApprovalPending):
            shop.tried(native, PAY, "done", name=name)
        if name == "order-1":
            (request,) = shop.guard.approvals.pending()
            shop.guard.approvals.reject(request, shop.log.approver)
            assert shop.tried(native, PAY, "done").codes == ["approval.rejected"]
    shop.log.approve()
    assert shop.tried(native, PAY, "done", name="order-2").codes == []
    assert shop.tried(native, PAY, "done", name="order-1").codes == ["approval.rejected"]
    assert shop.ran == ["ann"]


def test_what_was_rejected_is_refused_however_often_the_model_makes_it(shop, way):
    shop.answers["pay"] = Decision.require_approval()
    with pytest.raises(ApprovalPending):
        shop.tried(way, PAY, "done")
    (request,) = shop.guard.approvals.pending()
    shop.guard.approvals.reject(request, shop.log.approver)
    told = shop.tried(way, PAY, LOOK, PAY, "done")
    assert told.codes == ["approval.rejected"] * 2
    assert shop.guard.approvals.pending() == []
    shop.answers.clear()  # and whatever the policy says by now
    assert shop.tried(way, PAY, "done").codes == ["approval.rejected"]
    assert shop.ran == ["books"]


def test_a_coworker_that_pauses_goes_on(shop, native, signed):
    shop.answers["pay"] = Decision.require_approval()

    def tried() -> Any:
        lead = shop.agent(native, LOOK, DELEGATE, "done", allow_delegation=True)
        worker = shop.agent(native, LOOK, PAY, "ann is paid", role="Worker")
        return shop.run(lead, shop.crew(native.crew(lead, worker, tasks=[task(lead)])))

    with pytest.raises(ApprovalPending):
        tried()
    assert shop.ran == ["books", "books"]
    shop.log.approve()
    assert tried().raw == "done"
    assert tried().raw == "done"
    assert shop.ran == ["books", "books", "ann"]
    handed = calls_of(signed, shop, DELEGATE[0])
    assert [one.outcome for one in handed] == ["unknown", "ok", "not_run"]
    (paid,) = calls_of(signed, shop)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))


# --- what CrewAI itself tries again ---------------------------------------------------------------


def test_a_task_that_is_tried_again_repeats_no_call(shop, native):
    # CrewAI begins it anew after an error of the model, as another try of the run does
    said = (PAY, DOWN, PAY, "done")
    first = shop.tried(native, *said, max_retry_limit=1)
    assert (first.raw, shop.ran) == ("done", ["ann"])
    second = shop.tried(native, *said, max_retry_limit=1)
    assert (second.raw, shop.ran) == ("done", ["ann"])
    assert "paid ann as number 1" in second.heard


def test_a_task_that_a_guardrail_sends_back_makes_calls_of_its_own(shop, native):
    def run() -> Any:
        refusals = ["too short"]

        def guardrail(output):
            return (False, refusals.pop()) if refusals else (True, output)

        lead = shop.agent(native, PAY, "no", PAY, "done")
        crew = shop.crew(native.crew(lead, tasks=[task(lead, guardrail=guardrail)]))
        return shop.run(lead, crew)

    assert run().raw == "done"
    assert shop.ran == ["ann", "ann"]
    assert run().raw == "done"
    assert shop.ran == ["ann", "ann"]


def test_a_result_that_crewai_has_kept_is_one_call_each_time(shop, way, signed):
    tools = [shop.paying(), shop.looking()]
    for _ in range(2):
        lead = shop.agent(way, PAY, LOOK, PAY, "done", tools=tools)
        crew = shop.crew(way.crew(lead, cache=True))
        tools[0].cache_function = lambda *_args: True
        assert shop.run(lead, crew).raw == "done"
    assert shop.ran.count("books") == 1
    assert len(shop.ran) <= 3
    first = len(shop.ran)
    lead = shop.agent(way, PAY, LOOK, PAY, "done", tools=tools)
    shop.run(lead, shop.crew(way.crew(lead)))
    assert len(shop.ran) == first
    assert {call.chain for call in calls_of(signed, shop)} == {(*LENT, "lead")}


# --- names ----------------------------------------------------------------------------------------


def test_a_run_is_not_begun_inside_of_another(shop, native):
    with shop.lent(), resumable("order-1"):
        with pytest.raises(ConfigError, match="inside of another run"), resumable("order-2"):
            pass
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done")))
        assert crew.kickoff().raw == "done"
    with resumable("order-2"):  # and beside it, it may
        pass


def test_a_run_is_not_begun_by_what_runs_in_one_without_a_name(shop, native):
    shop.then = lambda: resumable("order-1").__enter__()
    crew = shop.crew(native.crew(shop.agent(native, LOOK, "done")))
    with shop.lent():
        output = crew.kickoff()
    (failed,) = output.tasks_output[0].tool_failures
    assert "inside of another run" in failed.failure.message


@pytest.mark.parametrize("name", ["", None, 5, b"order-1", ["order-1"], "order \ud800"])
def test_what_names_no_run_is_refused(name):
    with pytest.raises(ConfigError, match="resumable"), resumable(name):
        pass


@pytest.mark.parametrize("name", ["ü \u202e\x00", "x" * 10_000, " "])
def test_any_other_text_names_a_run(shop, native, name):
    for _ in range(2):
        assert shop.tried(native, PAY, "done", name=name).codes == []
    assert shop.ran == ["ann"]


async def test_a_run_may_be_an_async_block(shop, native):
    for _ in range(2):
        crew = shop.crew(native.crew(shop.agent(native, PAY, "done")))
        with shop.lent():
            async with resumable("order-1"):
                await crew.akickoff()
    assert shop.ran == ["ann"]
    async with resumable("order-1"):
        with pytest.raises(ConfigError, match="is begun inside of another run"):
            async with resumable("order-2"):
                pass
    with resumable("order-1"):  # and it is over
        pass


def test_a_block_that_was_left_by_an_error_is_over(shop, native):
    with pytest.raises(ZeroDivisionError), resumable("order-1"):
        raise ZeroDivisionError
    with shop.lent():
        for _ in range(2):
            shop.crew(native.crew(shop.agent(native, PAY, "done"))).kickoff()
    assert shop.ran == ["ann", "ann"]


# --- another process ------------------------------------------------------------------------------

PROGRAM = '''
import json

from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from agentguard import ApprovalPending, Decision, Guard
from agentguard_crewai import guard_crew, resumable


def decide(document):
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


class Model(BaseLLM):
    steps: list = []

    def call(self, messages, *args, **kwargs):
        step = self.steps.pop(0)
        if isinstance(step, str):
            print([one["content"] for one in messages if one["role"] == "tool"])
            return step
        name, arguments = step
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": "c", "type": "function", "function": function}]

    def supports_function_calling(self):
        return True


def note(text):
    with open("effects", "a") as effects:
        effects.write(text + "\\n")
    with open("effects") as effects:
        return len(effects.readlines())


@tool
def pay(to: str) -> list:
    """Pay somebody."""
    return ["paid", to, note(to)]


@tool
def look(what: str) -> dict:
    """Look at something."""
    return {"what": what, "number": note(what)}


def main(*steps):
    model = Model(model="scripted", steps=[json.loads(step) for step in steps])
    lead = Agent(role="Lead", goal="g", backstory="b", llm=model, tools=[pay, look])
    task = Task(description="a task", expected_output="words", agent=lead)
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        crew = guard_crew(Crew(agents=[lead], tasks=[task]), guard, on_approval="pause")
        with guard.delegate("user:alice", scope=["pay"], via="crew:report"), resumable("order-1"):
            try:
                print(crew.kickoff().raw)
            except ApprovalPending as pending:
                print("pending", pending.request.request_id)
    assert guard.closed
'''

TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "run_program:decide"

[agents.lead]
max_scope = ["pay"]
"""


def test_another_process_goes_on_and_does_nothing_again(
    tmp_path, signed, preloaded, monkeypatch, capsys
):
    bob = Ed25519Signer.from_seed(os.urandom(32))
    people = f'[approvers.bob]\nprincipal = "user:bob"\nkeys = ["{bob.public_key.openssh()}"]\n'
    (tmp_path / "run_program.py").write_text(PROGRAM)
    (tmp_path / "agentguard.toml").write_text(textwrap.dedent(TABLES) + people)
    settings = config.load(tmp_path / "agentguard.toml")
    domain.found(settings, b"of this test", now=datetime.now(UTC))
    steps = [json.dumps(step) for step in (LOOK, PAY, LOOK, BEN, "done")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("run_program")

    def here() -> list[str]:
        capsys.readouterr()
        program.main(*steps)
        return capsys.readouterr().out.splitlines()

    for verdict in ("approve", "reject"):
        assert here()[-1].startswith("pending ")
        with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
            (request,) = guard.approvals.pending()
            getattr(guard.approvals, verdict)(request, bob, note="it is dear")
    main = "import run_program, sys; run_program.main(*sys.argv[1:])"
    there = preloaded.run("-c", main, *steps, cwd=tmp_path).stdout.splitlines()[-2:]
    again = here()[-2:]
    assert there == again  # the results, as they were, and nobody is asked again
    for told in ("'number': 1", "'ann', 2", "user:bob has rejected this call: it is dear"):
        assert told in there[0]
    assert there[1] == "done"
    assert (tmp_path / "effects").read_text().split() == ["books", "ann", "books"]
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        assert guard.verify().ok
        assert guard.approvals.pending() == []
        calls = signed(guard)
    outcomes = [(call.tool, call.code or call.outcome) for call in calls]
    assert outcomes.count(("look", "ok")) == 2
    assert outcomes.count(("pay", "ok")) == 1
    assert outcomes.count(("pay", "approval.rejected")) == 2
    assert {call.chain for call in calls} == {(*LENT, "lead")}
