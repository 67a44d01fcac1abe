"""Runs that pause: for whom they go on, in streams, in checkpoints, and in other processes."""

from __future__ import annotations

import json
import os
import random
import textwrap
import threading
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, NotRequired

import pytest
from langchain.agents import AgentState, create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from pairs import pairs

from agentguard import ConfigError, DelegationError, StorageError
from agentguard.domain import domain
from agentguard.domain.config import file as config
from agentguard_langchain import GuardedToolDenied, GuardMiddleware, guard_subagent

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
BIG = ("pay", {"to": "ann", "cents": 500})
BIGGER = ("pay", {"to": "ben", "cents": 900})
SMALL = ("pay", {"to": "cal", "cents": 5})
LOOK = ("look", {"what": "books"})
APPROVE = {"type": "approve"}
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"


async def ran(graph, given, *, sync, config=CONFIG, **options):
    if sync:
        return graph.invoke(given, config, **options)
    return await graph.ainvoke(given, config, **options)


def decided(*decisions):
    return Command(resume={"decisions": list(decisions)})


def answers(state):
    return [(m.status, m.content) for m in state["messages"] if m.type == "tool"]


def principals(desk):
    return [call.predicate["principal"] for call in desk.log.calls()]


# --- for whom -----------------------------------------------------------------------------------


def lend(desk, user="alice", **options):
    return desk.guard.delegate(f"user:{user}", scope=["pay"], **options)


@SYNC
async def test_a_run_goes_on_for_whom_it_was_begun(people, sync):
    desk = people(delegated=True)
    graph = desk.graph()
    with lend(desk):
        await ran(graph, desk.asking(BIG), sync=sync)
    desk.approve()
    state = await ran(graph, None, sync=sync)  # nothing is in force here
    assert answers(state) == [("success", "paid 500 to ann")]
    assert principals(desk) == ["user:alice"]


@SYNC
async def test_a_run_goes_on_under_the_same_principal(people, sync):
    desk = people(delegated=True)
    graph = desk.graph()
    with lend(desk):
        await ran(graph, desk.asking(BIG), sync=sync)
    desk.approve()
    with lend(desk):
        state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
@pytest.mark.parametrize("calls", [[BIG], [BIG, LOOK]])
async def test_a_run_does_not_go_on_under_another_principal(people, sync, calls):
    desk = people(delegated=True)
    graph = desk.graph()
    with lend(desk):
        await ran(graph, desk.asking(*calls), sync=sync)
    desk.approve()
    with lend(desk, "mallory"):
        state = await ran(graph, None, sync=sync)
    assert all("[delegation.mismatch]" in text for _status, text in answers(state))
    assert desk.paid == []


@SYNC
async def test_a_new_run_in_the_same_thread_may_be_anybodys(people, sync):
    desk = people(delegated=True)
    graph = desk.graph()
    for user in ("alice", "bert"):
        with lend(desk, user):
            await ran(graph, desk.asking(SMALL), sync=sync)
    assert principals(desk) == ["user:alice", "user:bert"]


@SYNC
async def test_a_run_without_a_delegation_is_refused(people, sync):
    desk = people(delegated=True)
    graph = desk.graph()
    state = await ran(graph, desk.asking(SMALL), sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]


@SYNC
async def test_nobody_lends_to_a_run_that_was_begun_for_nobody(people, sync):
    desk = people()
    graph = desk.graph()
    await ran(graph, desk.asking(BIG), sync=sync)
    desk.approve()
    with lend(desk):
        state = await ran(graph, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert desk.paid == []


@SYNC
@pytest.mark.parametrize("user", [None, "mallory"])
async def test_a_call_without_an_id_is_made_for_whom_the_run_was_begun(
    people, obedient, sync, user
):
    """Not on the agent's own authority, and for nobody else."""

    class Nameless(type(obedient)):
        def _generate(self, *args, **options):
            result = super()._generate(*args, **options)
            for call in result.generations[0].message.tool_calls[:1]:
                call["id"] = None
            return result

    desk = people()
    graph = desk.graph(model=Nameless())
    with lend(desk):
        await ran(graph, desk.asking(SMALL, BIG), sync=sync)
    desk.approve()
    lent = nullcontext() if user is None else lend(desk, user)
    # LangGraph takes no answer of a call without an id, though it makes it
    with lent, pytest.raises((TypeError, GuardedToolDenied)):
        await ran(graph, None, sync=sync)
    allowed = [call.predicate["principal"] for call in desk.log.calls() if call.code == ""]
    assert set(allowed) == ({"user:alice"} if user is None else set())
    assert (("cal", 5) in desk.paid) is (user is None)


@SYNC
async def test_a_lost_record_never_widens(people, sync):
    """An agent that may act by itself does not, in a run that was begun for somebody."""
    desk = people()
    graph = desk.graph()
    with lend(desk):
        await ran(graph, desk.asking(BIG), sync=sync)
    desk.agent.runs._kept = {n: d for n, d in desk.agent.runs._kept.items() if "run " not in n}
    state = await ran(graph, None, sync=sync)
    assert state["__interrupt__"]
    desk.approve()
    state = await ran(graph, None, sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]
    assert desk.paid == []


HANDLES = [None, 7, "own-1", "0" * 32]


@pairs(sync=[True, False], user=[None, "mallory"], handle=HANDLES)
async def test_no_command_takes_a_run_from_the_one_for_whom_it_was_begun(
    people, sync, handle, user
):
    """An agent that may act by itself does not, and it acts for nobody else."""
    desk = people()
    graph = desk.graph()
    with lend(desk):
        await ran(graph, desk.asking(SMALL, BIG), sync=sync)
    desk.approve()
    update = Command(update={"agentguard_run": handle})
    with nullcontext() if user is None else lend(desk, user):
        await ran(graph, update, sync=sync)
        state = await ran(graph, None, sync=sync)
    assert len(answers(state)) == 2
    assert all("[delegation.missing]" in text for _status, text in answers(state))
    assert (desk.paid, [request.principal for request in desk.waiting]) == ([], ["user:alice"])


@SYNC
async def test_who_goes_back_to_an_earlier_run_goes_on_for_whom_it_was_begun(people, sync):
    desk = people()
    graph = desk.graph()
    with lend(desk):
        await ran(graph, desk.asking(SMALL, BIG), sync=sync)
        back = graph.get_state(CONFIG).config
        await ran(graph, {"messages": [HumanMessage("hello")]}, sync=sync)  # a later run
    for user, code in (("mallory", "mismatch"), (None, "missing")):
        with nullcontext() if user is None else lend(desk, user):
            state = await ran(graph, None, sync=sync, config=back)
        assert [code in text for _status, text in answers(state)] == [True, True]
    assert desk.paid == []
    with lend(desk):  # the twin
        await ran(graph, None, sync=sync, config=back)
        desk.approve()
        state = await ran(graph, None, sync=sync, config=back)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert set(desk.paid) == {("cal", 5), ("ann", 500)}


@SYNC
async def test_who_goes_back_to_a_run_of_the_agent_itself_goes_on_for_nobody(
    people, obedient, sync
):
    desk = people()
    graph = create_agent(
        obedient,
        desk.tools,
        middleware=[GuardMiddleware(desk.agent)],
        checkpointer=InMemorySaver(),
        interrupt_before=["tools"],
    )
    await ran(graph, desk.asking(SMALL), sync=sync)
    back = graph.get_state(CONFIG).config
    await ran(graph, {"messages": [HumanMessage("hello")]}, sync=sync)
    with lend(desk, "mallory"):
        state = await ran(graph, None, sync=sync, config=back)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    state = await ran(graph, None, sync=sync, config=back)
    assert answers(state) == [("success", "paid 5 to cal")]
    assert principals(desk)[-1].startswith("agent:payer")


def test_a_later_run_begins_though_the_record_of_the_earlier_one_does_not_verify(
    people, monkeypatch
):
    desk = people()
    graph = desk.graph()
    graph.invoke(desk.asking(SMALL), CONFIG)
    handle, read = graph.get_state(CONFIG).values["agentguard_run"], desk.agent.runs.read

    def reading(name):
        if name.startswith("run ") and handle in name:
            raise StorageError("the record does not hold", code="storage.corrupt")
        return read(name)

    monkeypatch.setattr(desk.agent.runs, "read", reading)
    graph.invoke(desk.asking(SMALL), CONFIG)
    assert desk.paid == [("cal", 5), ("cal", 5)]


class Mine(AgentState):
    note: NotRequired[str]


class WithState(GuardMiddleware):
    state_schema = Mine


class WithBoth(GuardMiddleware):
    class Both(Mine, GuardMiddleware.state_schema):
        pass

    state_schema = Both


class Bare(GuardMiddleware):
    def before_agent(self, state, runtime):
        return None


def test_a_subclass_whose_state_has_no_place_for_the_handle_is_refused(people):
    desk = people(delegated=True)
    with pytest.raises(ConfigError, match=r"WithState\.state_schema is without agentguard_run"):
        WithState(desk.agent)
    graph = desk.graph(middleware=lambda _guard: [WithBoth(desk.agent)])  # the twin
    with lend(desk):
        graph.invoke(desk.asking(SMALL), CONFIG)
    assert desk.paid == [("cal", 5)]


@SYNC
async def test_a_run_that_nobody_has_begun_makes_no_call(people, obedient, sync):
    """A subclass that does not begin the run; and where there is no thread, there is no record."""
    desk = people()
    graph = desk.graph(middleware=lambda _guard: [Bare(desk.agent)])
    state = await ran(graph, desk.asking(SMALL), sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]
    threadless = create_agent(obedient, desk.tools, middleware=[Bare(desk.agent)])
    state = await ran(threadless, desk.asking(SMALL), sync=sync, config=None)
    assert answers(state) == [("success", "paid 5 to cal")]


@SYNC
async def test_a_narrowed_delegation_is_not_kept(people, sync):
    desk = people()
    graph = desk.graph()
    with lend(desk).narrowed(scope=[]):
        await ran(graph, desk.asking(BIG), sync=sync)
    desk.approve()
    state = await ran(graph, None, sync=sync)
    assert "neither stored nor in force here" in answers(state)[0][1]
    assert desk.paid == []


@SYNC
async def test_a_revoked_delegation_is_not_taken_up(people, sync, monkeypatch):
    desk = people(delegated=True)
    graph = desk.graph()
    delegation = lend(desk)
    with delegation:
        await ran(graph, desk.asking(BIG), sync=sync)
    desk.approve()

    def revoked(_stored):
        raise DelegationError("her delegation was revoked", code="delegation.revoked")

    monkeypatch.setattr(desk.agent._body, "resume", revoked)
    state = await ran(graph, None, sync=sync)
    assert "[delegation.revoked]" in answers(state)[0][1]
    assert desk.paid == []


class User:
    def __init__(self, name):
        self.name = name


@SYNC
async def test_a_function_says_for_whom_and_falls_back_on_the_record(people, sync):
    desk = people(delegated=True)
    seen = []

    def delegation(runtime):
        seen.append(type(runtime).__name__)
        return lend(desk, runtime.context.name)

    graph = desk.graph(delegation=delegation)
    await ran(graph, desk.asking(BIG), sync=sync, context=User("alice"))
    assert set(seen) == {"Runtime"}
    desk.approve()
    state = await ran(graph, None, sync=sync)  # the context is not persisted
    assert answers(state) == [("success", "paid 500 to ann")]
    assert "ToolRuntime" in seen
    assert principals(desk) == ["user:alice"]
    await ran(graph, desk.asking(BIGGER), sync=sync, context=User("alice"))
    desk.approve()
    state = await ran(graph, None, sync=sync, context=User("mallory"))
    assert "[delegation.mismatch]" in answers(state)[-1][1]


@SYNC
async def test_an_agent_under_a_delegation_of_its_own(people, sync):
    desk = people(delegated=True)
    graph = desk.graph(middleware=lambda _g: [GuardMiddleware(desk.agent.under(lend(desk)))])
    await ran(graph, desk.asking(BIG), sync=sync)
    desk.approve()
    other = desk.graph(
        middleware=lambda _g: [GuardMiddleware(desk.agent.under(lend(desk, "mallory")))],
        saver=graph.checkpointer,
    )
    state = await ran(other, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert desk.paid == []


# --- sub-agents ---------------------------------------------------------------------------------


def running(child, name):
    """A tool that runs a child graph."""

    def ask(task: str) -> str:
        """Let the child do it."""
        state = child.invoke({"messages": [HumanMessage(task)]})
        return "; ".join(m.content for m in state["messages"] if m.type == "tool")

    async def aask(task: str) -> str:
        """Let the child do it."""
        state = await child.ainvoke({"messages": [HumanMessage(task)]})
        return "; ".join(m.content for m in state["messages"] if m.type == "tool")

    return StructuredTool.from_function(ask, aask, name=name)


def nested(desk, inner, *, wrapped="tool", tools=None, name="ask"):
    """A parent's tool that runs a child agent, which has a middleware of its own."""
    agent = desk.guard.new_agent("payer")
    tools = desk.tools if tools is None else tools
    child = create_agent(inner, tools, middleware=[GuardMiddleware(agent)], name="child")
    if wrapped == "graph":
        child = guard_subagent(child, agent, scope=["pay"])
    asking = running(child, name)
    return guard_subagent(asking, agent, scope=["pay"]) if wrapped == "tool" else asking


@pairs(sync=[True, False], wrapped=["tool", "graph", "not"], way=["store", "answer"])
async def test_what_a_child_asks_reaches_the_top(people, sync, wrapped, way, scripted):
    desk = people(delegated=True)
    asking = nested(desk, scripted([BIG, LOOK], "done"), wrapped=wrapped)
    graph = desk.graph(tools=[asking])
    with lend(desk):
        paused = await ran(graph, desk.asking(("ask", {"task": "go"})), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert pause.value["action_requests"][0]["args"] == BIG[1]
    assert desk.paid == []
    (request,) = desk.waiting
    if way == "store":
        desk.approve()
        given = None
    else:
        given = decided({**APPROVE, "approval": desk.signed(request)})
    state = await ran(graph, given, sync=sync)
    assert "paid 500 to ann" in answers(state)[0][1]
    assert sorted(desk.paid) == [("ann", 500), ("books", 0)]
    # for alice, through the parent
    assert request.principal == "user:alice"
    assert len(request.actors) == 3
    assert set(principals(desk)) == {"user:alice"}


@SYNC
@pytest.mark.parametrize("way", ["store", "answer"])
async def test_what_a_grandchild_asks_reaches_the_top(people, sync, way, scripted):
    desk = people(delegated=True)
    inner = nested(desk, scripted([BIG], [BIGGER], "done"), name="inner")
    outer = nested(desk, scripted([("inner", {"task": "go"})], "done"), tools=[inner])
    graph = desk.graph(tools=[outer])
    with lend(desk):
        paused = await ran(graph, desk.asking(("ask", {"task": "go"})), sync=sync)
    for _ in range(2):  # two turns, and a pause in each
        (pause,) = paused["__interrupt__"]
        (request,) = desk.waiting
        assert pause.value["agentguard"][0]["request_id"] == request.request_id
        assert len(request.actors) == 4
        if way == "store":
            desk.approve()
            paused = await ran(graph, None, sync=sync)
        else:
            signed = {**APPROVE, "approval": desk.signed(request)}
            paused = await ran(graph, decided(signed), sync=sync)
    assert "__interrupt__" not in paused
    assert desk.paid == [("ann", 500), ("ben", 900)]


@SYNC
async def test_new_input_withdraws_what_a_child_waits_for(people, sync, scripted):
    desk = people()
    asking = nested(desk, scripted([BIG], "done"), wrapped="not")
    graph = desk.graph(tools=[asking])
    await ran(graph, desk.asking(("ask", {"task": "go"})), sync=sync)
    assert len(desk.waiting) == 1
    state = await ran(graph, {"messages": [HumanMessage("stop")]}, sync=sync)
    assert desk.waiting == []
    assert [status for status, _text in answers(state)] == ["error"]
    assert desk.paid == []


@SYNC
async def test_a_child_does_not_go_on_for_another_principal(people, sync, scripted):
    desk = people(delegated=True)
    asking = nested(desk, scripted([BIG], "done"))
    graph = desk.graph(tools=[asking])
    with lend(desk):
        await ran(graph, desk.asking(("ask", {"task": "go"})), sync=sync)
    desk.approve()
    with lend(desk, "mallory"):
        state = await ran(graph, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert desk.paid == []


@SYNC
async def test_parallel_children_are_decided_in_the_store_or_by_id(people, sync, scripted):
    desk = people(delegated=True)
    first = nested(desk, scripted([BIG], "done"))
    second = nested(desk, scripted([BIGGER], "done"), name="ask2")
    graph = desk.graph(tools=[first, second])
    calls = [("ask", {"task": "go"}), ("ask2", {"task": "go"})]
    with lend(desk):
        paused = await ran(graph, desk.asking(*calls), sync=sync)
    pauses = {p.value["action_requests"][0]["args"]["to"]: p for p in paused["__interrupt__"]}
    assert set(pauses) == {"ann", "ben"}
    ben = next(one for one in desk.waiting if b"ben" in one.arguments)
    only = {pauses["ben"].id: {"decisions": [{**APPROVE, "approval": desk.signed(ben)}]}}
    await ran(graph, Command(resume=only), sync=sync)
    assert desk.paid == [("ben", 900)]
    desk.approve()
    state = await ran(graph, None, sync=sync)
    assert [text for _status, text in answers(state)] == ["paid 500 to ann", "paid 900 to ben"]
    assert sorted(desk.paid) == [("ann", 500), ("ben", 900)]


@SYNC
@pytest.mark.parametrize("parallel", [True, False])
async def test_children_may_be_made_to_work_one_at_a_time(people, sync, parallel, scripted):
    desk = people()
    first = nested(desk, scripted([BIG], "done"))
    second = nested(desk, scripted([BIGGER], "done"), name="ask2")
    graph = desk.graph(tools=[first, second], parallel_subagents=parallel)
    calls = [("ask", {"task": "go"}), ("ask2", {"task": "go"})]
    paused = await ran(graph, desk.asking(*calls), sync=sync)
    assert len(paused["__interrupt__"]) == (2 if parallel else 1)
    desk.approve()
    state = await ran(graph, None, sync=sync)
    texts = [text for _status, text in answers(state)]
    assert texts[0] == "paid 500 to ann"
    assert ("[subagent.parallel]" in texts[1]) is not parallel


@SYNC
async def test_a_child_graph_as_a_node_asks_as_well(people, sync, scripted):
    desk = people()
    child = create_agent(
        scripted([BIG], "done"), desk.tools, middleware=[GuardMiddleware(desk.agent)]
    )
    graph = StateGraph(MessagesState)
    graph.add_node("child", child)
    graph.add_edge(START, "child")
    graph.add_edge("child", END)
    compiled = graph.compile(checkpointer=InMemorySaver())
    paused = await ran(compiled, {"messages": [HumanMessage("go")]}, sync=sync)
    assert len(paused["__interrupt__"]) == 1
    desk.approve()
    state = await ran(compiled, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


# --- streams ------------------------------------------------------------------------------------


@SYNC
@pytest.mark.parametrize("subgraphs", [True, False])
async def test_a_stream_shows_the_pause_and_goes_on(people, sync, subgraphs):
    desk = people()
    graph = desk.graph()

    async def streamed(given):
        options: Any = {"stream_mode": "updates", "subgraphs": subgraphs}
        if sync:
            parts = list(graph.stream(given, CONFIG, **options))
        else:
            parts = [part async for part in graph.astream(given, CONFIG, **options)]
        return [part[1] if subgraphs else part for part in parts]

    parts = await streamed(desk.asking(BIG))
    pauses = {p.id: p.value for part in parts for p in part.get("__interrupt__", ())}
    (value,) = pauses.values()
    assert value["action_requests"][0]["args"] == BIG[1]
    desk.approve()
    parts = await streamed(None)
    assert [next(iter(part)) for part in parts][:2] == ["GuardMiddleware.after_model", "tools"]
    assert desk.paid == [("ann", 500)]


# --- checkpoints --------------------------------------------------------------------------------


async def test_sqlite_checkpoints(people, tmp_path):
    desk = people(delegated=True)
    with SqliteSaver.from_conn_string(str(tmp_path / "a.db")) as saver:
        with lend(desk):
            desk.graph(saver=saver).invoke(desk.asking(BIG, SMALL), CONFIG)
        desk.approve()
        state = desk.graph(saver=saver).invoke(None, CONFIG)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "b.db")) as asaver:
        with lend(desk):
            await desk.graph(saver=asaver).ainvoke(desk.asking(BIGGER), CONFIG)
        desk.approve()
        state = await desk.graph(saver=asaver).ainvoke(None, CONFIG)
    assert answers(state) == [("success", "paid 900 to ben")]


def test_a_checkpoint_has_no_key_and_no_delegation(people):
    desk = people(delegated=True)
    saver = InMemorySaver()
    with lend(desk) as delegation:
        desk.graph(saver=saver).invoke(desk.asking(BIG), CONFIG)
    kept = repr((dict(saver.storage), dict(saver.writes), dict(saver.blobs))).encode()
    assert b"agentguard_run" in kept
    hidden = [delegation.id, desk.agent.id, delegation.dumps().decode()[20:60]]
    assert [word for word in hidden if word.encode() in kept] == []


# --- another process ----------------------------------------------------------------------------

SERVICE = '''
import json, sys
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pairs import pairs
from obedient import Obedient

from agentguard import Decision, Guard
from agentguard.signing.keys import Ed25519Signer
from agentguard_langchain import GuardMiddleware


CALLS = [
    ["pay", {"to": "ann", "cents": 500}],
    ["pay", {"to": "ben", "cents": 5}],
    ["pay", {"to": "cal", "cents": 900}],
]


def decide(document):
    if document["args"]["cents"] > 100:
        return Decision.require_approval()
    return Decision.allow()


def pay(to: str, cents: int) -> str:
    """Pay somebody."""
    with open("paid", "a") as file:
        file.write(f"{to} {cents};")
    return f"paid {cents} to {to}"


def main(step, *given):
    with (
        Guard.open("agentguard.toml", passphrase=b"of this test") as guard,
        SqliteSaver.from_conn_string("graph.db") as saver,
    ):
        config = {"configurable": {"thread_id": "t1"}}
        guarding = GuardMiddleware(guard.new_agent("payer"))
        graph = create_agent(Obedient(), [pay], middleware=[guarding], checkpointer=saver)
        state = {"messages": []}
        if step == "begin":
            with guard.delegate("user:alice", scope=["pay"]):
                state = graph.invoke({"messages": [HumanMessage(json.dumps(CALLS))]}, config)
        elif step == "approve":
            for request in guard.approvals.pending():
                if given[0].encode() in request.arguments:
                    guard.approvals.approve(request, Ed25519Signer.from_seed(b"b" * 32))
        elif step == "resume":
            state = graph.invoke(None, config)
        elif step == "answer":
            state = graph.invoke(Command(resume={"decisions": json.loads(given[0])}), config)
        values = [pause.value for pause in state.get("__interrupt__", ())]
        asked = [action["args"]["to"] for value in values for action in value["action_requests"]]
        print(json.dumps([asked, [m.content for m in state["messages"] if m.type == "tool"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

TABLES = """
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "function"
path = "service:decide"

[agents.payer]
max_scope = ["pay"]

[approvers.bob]
principal = "user:bob"
keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC3wQSXwAVr7R86FOu+HcglP+UmMFMsbnhKXPCkn2g+m"]
"""


@pytest.fixture
def service(tmp_path, preloaded):
    """A durable service, each step of which runs in a process of its own."""
    (tmp_path / "service.py").write_text(SERVICE, "utf-8")
    (tmp_path / "agentguard.toml").write_text(textwrap.dedent(TABLES), "utf-8")
    settings = config.load(tmp_path / "agentguard.toml")
    domain.found(settings, b"of this test", now=datetime.now(UTC))

    def step(*arguments: str) -> Any:
        done = preloaded.run("service.py", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        paid = tmp_path / "paid"
        return *json.loads(done.stdout), paid.read_text("utf-8") if paid.exists() else ""

    return step


def test_other_processes_approve_and_go_on(service):
    assert service("begin") == (["ann", "cal"], [], "")
    assert service("resume") == (["ann", "cal"], [], "")
    service("approve", "ann")
    assert service("resume") == (["ann", "cal"], [], "")
    service("approve", "cal")
    pauses, texts, paid = service("resume")
    assert (pauses, texts) == ([], ["paid 500 to ann", "paid 5 to ben", "paid 900 to cal"])
    assert sorted(paid.split(";")) == ["", "ann 500", "ben 5", "cal 900"]
    assert service("resume")[2] == paid


def test_another_process_takes_an_edit_though_it_has_not_seen_the_tools(service):
    service("begin")
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "ann", "cents": 7}}}
    more = {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "cal", "cents": 700}}}
    pauses, _texts, paid = service("answer", json.dumps([edit, more]))
    assert pauses == ["cal"]  # with its new arguments, at its tool
    assert sorted(paid.split(";")) == ["", "ann 7", "ben 5"]
    service("approve", "700")
    _pauses, texts, paid = service("resume")
    assert [text.rpartition("\n")[2] for text in texts] == [
        "paid 7 to ann",
        "paid 5 to ben",
        "paid 700 to cal",
    ]
    assert sorted(paid.split(";")) == ["", "ann 7", "ben 5", "cal 700"]


# --- twenty at once -----------------------------------------------------------------------------


@SYNC
@pytest.mark.parametrize("way", ["store", "answers"])
async def test_twenty_parallel_calls_five_of_which_wait(people, sync, way):
    chance = random.Random(5)  # noqa: S311  jitter
    for number in range(25 if FULL else 3):
        desk = people()
        lock = threading.Lock()
        done: dict[str, int] = {}

        def pay(to: str, cents: int, done=done, lock=lock) -> str:
            """Pay somebody."""
            time.sleep(chance.random() / 500)
            with lock:
                done[f"{to}:{cents}"] = done.get(f"{to}:{cents}", 0) + 1
            time.sleep(chance.random() / 500)
            return f"paid {cents} to {to}"

        def plain(to: str, cents: int) -> str:
            """Pay somebody."""
            return pay(to, cents)

        graph = desk.graph(tools=[StructuredTool.from_function(plain, name="pay")])
        dear = set(chance.sample(range(20), 5))
        calls = [
            ("pay", {"to": f"p{n}", "cents": 200 + n if n in dear else n + 1}) for n in range(20)
        ]
        where: Any = {"configurable": {"thread_id": f"round{number}"}, "max_concurrency": 20}
        paused = await ran(graph, desk.asking(*calls), sync=sync, config=where)
        (pause,) = paused["__interrupt__"]
        asked = [action["args"]["to"] for action in pause.value["action_requests"]]
        assert asked == [f"p{n}" for n in sorted(dear)]
        assert done == {}
        verdicts = {to: chance.choice(["approve", "reject"]) for to in asked}
        by_id = {one.request_id: one for one in desk.waiting}
        requests = [by_id[one["request_id"]] for one in pause.value["agentguard"]]
        if way == "store":
            order = list(zip(asked, requests, strict=True))
            chance.shuffle(order)
            for to, request in order:
                act = desk.approve if verdicts[to] == "approve" else desk.reject
                act(request)
            state = await ran(graph, None, sync=sync, config=where)
        else:
            decisions = [
                {"type": verdicts[to], "approval": desk.signed(request, verdicts[to])}
                for to, request in zip(asked, requests, strict=True)
            ]
            state = await ran(graph, decided(*decisions), sync=sync, config=where)
        expected = {
            f"{args['to']}:{args['cents']}": 1
            for _name, args in calls
            if verdicts.get(args["to"], "approve") == "approve"
        }
        assert done == expected
        refused = {m.tool_call_id for m in state["messages"] if getattr(m, "status", "") == "error"}
        rejected = [n for n in sorted(dear) if verdicts[f"p{n}"] == "reject"]
        assert refused == {f"call0.{n}" for n in rejected}
        assert desk.waiting == []
