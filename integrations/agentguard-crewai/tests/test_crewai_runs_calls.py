"""Named runs: a call that was completed is not made again, and which calls are the same.

Kills at any moment are in ``test_crewai_crashes.py``, flows in ``test_crewai_flows_*.py``.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from typing import Any

import pytest
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool
from crewai_shop import BEN, DOWN, LENT, LOOK, PAY, calls_of, task
from pydantic import PrivateAttr

from agentguard import ConfigError
from agentguard_crewai import resumable

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
