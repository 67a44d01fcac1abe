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
from rounds import pairs

from agentguard import ConfigError, DelegationError, StorageError, adapters
from agentguard.domain import config, domain
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


def principals(inbox):
    return [call.predicate["principal"] for call in inbox.log.calls()]


# --- for whom -----------------------------------------------------------------------------------


def lend(inbox, user="alice", **options):
    return inbox.guard.delegate(f"user:{user}", scope=["pay"], **options)


@SYNC
async def test_a_run_goes_on_for_whom_it_was_begun(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    with lend(inbox):
        await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    state = await ran(graph, None, sync=sync)  # nothing is in force here
    assert answers(state) == [("success", "paid 500 to ann")]
    assert principals(inbox) == ["user:alice"]


@SYNC
async def test_a_run_goes_on_under_the_same_principal(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    with lend(inbox):
        await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    with lend(inbox):
        state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
@pytest.mark.parametrize("calls", [[BIG], [BIG, LOOK]])
async def test_a_run_does_not_go_on_under_another_principal(people, sync, calls):
    inbox = people(delegated=True)
    graph = inbox.graph()
    with lend(inbox):
        await ran(graph, inbox.asking(*calls), sync=sync)
    inbox.approve()
    with lend(inbox, "mallory"):
        state = await ran(graph, None, sync=sync)
    assert all("[delegation.mismatch]" in text for _status, text in answers(state))
    assert inbox.paid == []


@SYNC
async def test_a_new_run_in_the_same_thread_may_be_anybodys(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    for user in ("alice", "bert"):
        with lend(inbox, user):
            await ran(graph, inbox.asking(SMALL), sync=sync)
    assert principals(inbox) == ["user:alice", "user:bert"]


@SYNC
async def test_a_run_without_a_delegation_is_refused(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    state = await ran(graph, inbox.asking(SMALL), sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]


@SYNC
async def test_nobody_lends_to_a_run_that_was_begun_for_nobody(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    with lend(inbox):
        state = await ran(graph, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


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

    inbox = people()
    graph = inbox.graph(model=Nameless())
    with lend(inbox):
        await ran(graph, inbox.asking(SMALL, BIG), sync=sync)
    inbox.approve()
    lent = nullcontext() if user is None else lend(inbox, user)
    # LangGraph takes no answer of a call without an id, though it makes it
    with lent, pytest.raises((TypeError, GuardedToolDenied)):
        await ran(graph, None, sync=sync)
    allowed = [call.predicate["principal"] for call in inbox.log.calls() if call.code == ""]
    assert set(allowed) == ({"user:alice"} if user is None else set())
    assert (("cal", 5) in inbox.paid) is (user is None)


@SYNC
async def test_a_lost_record_never_widens(people, sync):
    """An agent that may act by itself does not, in a run that was begun for somebody."""
    inbox = people()
    graph = inbox.graph()
    with lend(inbox):
        await ran(graph, inbox.asking(BIG), sync=sync)
    runs = adapters.run_store(inbox.agent)
    runs._values = {name: data for name, data in runs._values.items() if "run " not in name}
    state = await ran(graph, None, sync=sync)
    assert state["__interrupt__"]
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]
    assert inbox.paid == []


HANDLES = [None, 7, "own-1", "0" * 32]


@pairs(sync=[True, False], user=[None, "mallory"], handle=HANDLES)
async def test_no_command_takes_a_run_from_the_one_for_whom_it_was_begun(
    people, sync, handle, user
):
    """An agent that may act by itself does not, and it acts for nobody else."""
    inbox = people()
    graph = inbox.graph()
    with lend(inbox):
        await ran(graph, inbox.asking(SMALL, BIG), sync=sync)
    inbox.approve()
    update = Command(update={"agentguard_run": handle})
    with nullcontext() if user is None else lend(inbox, user):
        await ran(graph, update, sync=sync)
        state = await ran(graph, None, sync=sync)
    assert len(answers(state)) == 2
    assert all("[delegation.missing]" in text for _status, text in answers(state))
    assert (inbox.paid, [request.principal for request in inbox.waiting]) == ([], ["user:alice"])


@SYNC
async def test_who_goes_back_to_an_earlier_run_goes_on_for_whom_it_was_begun(people, sync):
    inbox = people()
    graph = inbox.graph()
    with lend(inbox):
        await ran(graph, inbox.asking(SMALL, BIG), sync=sync)
        back = graph.get_state(CONFIG).config
        await ran(graph, {"messages": [HumanMessage("hello")]}, sync=sync)  # a later run
    for user, code in (("mallory", "mismatch"), (None, "missing")):
        with nullcontext() if user is None else lend(inbox, user):
            state = await ran(graph, None, sync=sync, config=back)
        assert [code in text for _status, text in answers(state)] == [True, True]
    assert inbox.paid == []
    with lend(inbox):  # the twin
        await ran(graph, None, sync=sync, config=back)
        inbox.approve()
        state = await ran(graph, None, sync=sync, config=back)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    assert set(inbox.paid) == {("cal", 5), ("ann", 500)}


@SYNC
async def test_who_goes_back_to_a_run_of_the_agent_itself_goes_on_for_nobody(
    people, obedient, sync
):
    inbox = people()
    graph = create_agent(
        obedient,
        inbox.tools,
        middleware=[GuardMiddleware(inbox.agent)],
        checkpointer=InMemorySaver(),
        interrupt_before=["tools"],
    )
    await ran(graph, inbox.asking(SMALL), sync=sync)
    back = graph.get_state(CONFIG).config
    await ran(graph, {"messages": [HumanMessage("hello")]}, sync=sync)
    with lend(inbox, "mallory"):
        state = await ran(graph, None, sync=sync, config=back)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    state = await ran(graph, None, sync=sync, config=back)
    assert answers(state) == [("success", "paid 5 to cal")]
    assert principals(inbox)[-1].startswith("agent:payer")


def test_a_later_run_begins_though_the_record_of_the_earlier_one_does_not_verify(
    people, monkeypatch
):
    inbox = people()
    graph = inbox.graph()
    graph.invoke(inbox.asking(SMALL), CONFIG)
    handle, read = (
        graph.get_state(CONFIG).values["agentguard_run"],
        adapters.run_store(inbox.agent).read,
    )

    def reading(name):
        if name.startswith("run ") and handle in name:
            raise StorageError("the record does not hold", code="storage.corrupt")
        return read(name)

    monkeypatch.setattr(adapters.run_store(inbox.agent), "read", reading)
    graph.invoke(inbox.asking(SMALL), CONFIG)
    assert inbox.paid == [("cal", 5), ("cal", 5)]


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
    inbox = people(delegated=True)
    with pytest.raises(ConfigError, match=r"WithState\.state_schema is without agentguard_run"):
        WithState(inbox.agent)
    graph = inbox.graph(middleware=lambda _guard: [WithBoth(inbox.agent)])  # the twin
    with lend(inbox):
        graph.invoke(inbox.asking(SMALL), CONFIG)
    assert inbox.paid == [("cal", 5)]


@SYNC
async def test_a_run_that_nobody_has_begun_makes_no_call(people, obedient, sync):
    """A subclass that does not begin the run; and where there is no thread, there is no record."""
    inbox = people()
    graph = inbox.graph(middleware=lambda _guard: [Bare(inbox.agent)])
    state = await ran(graph, inbox.asking(SMALL), sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]
    threadless = create_agent(obedient, inbox.tools, middleware=[Bare(inbox.agent)])
    state = await ran(threadless, inbox.asking(SMALL), sync=sync, config=None)
    assert answers(state) == [("success", "paid 5 to cal")]


@SYNC
async def test_a_narrowed_delegation_is_not_kept(people, sync):
    inbox = people()
    graph = inbox.graph()
    with lend(inbox).narrowed(scope=[]):
        await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert "neither stored nor in force here" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_a_revoked_delegation_is_not_taken_up(people, sync, monkeypatch):
    inbox = people(delegated=True)
    graph = inbox.graph()
    delegation = lend(inbox)
    with delegation:
        await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()

    def revoked(_stored):
        raise DelegationError("her delegation was revoked", code="delegation.revoked")

    monkeypatch.setattr(inbox.agent._caller.runtime, "resume", revoked)
    state = await ran(graph, None, sync=sync)
    assert "[delegation.revoked]" in answers(state)[0][1]
    assert inbox.paid == []


class User:
    def __init__(self, name):
        self.name = name


@SYNC
async def test_a_function_says_for_whom_and_falls_back_on_the_record(people, sync):
    inbox = people(delegated=True)
    seen = []

    def delegation(runtime):
        seen.append(type(runtime).__name__)
        return lend(inbox, runtime.context.name)

    graph = inbox.graph(delegation=delegation)
    await ran(graph, inbox.asking(BIG), sync=sync, context=User("alice"))
    assert set(seen) == {"Runtime"}
    inbox.approve()
    state = await ran(graph, None, sync=sync)  # the context is not persisted
    assert answers(state) == [("success", "paid 500 to ann")]
    assert "ToolRuntime" in seen
    assert principals(inbox) == ["user:alice"]
    await ran(graph, inbox.asking(BIGGER), sync=sync, context=User("alice"))
    inbox.approve()
    state = await ran(graph, None, sync=sync, context=User("mallory"))
    assert "[delegation.mismatch]" in answers(state)[-1][1]


@SYNC
async def test_an_agent_under_a_delegation_of_its_own(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph(middleware=lambda _g: [GuardMiddleware(inbox.agent.under(lend(inbox)))])
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    other = inbox.graph(
        middleware=lambda _g: [GuardMiddleware(inbox.agent.under(lend(inbox, "mallory")))],
        saver=graph.checkpointer,
    )
    state = await ran(other, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


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


def nested(inbox, inner, *, wrapped="tool", tools=None, name="ask"):
    """A parent's tool that runs a child agent, which has a middleware of its own."""
    agent = inbox.guard.new_agent("payer")
    tools = inbox.tools if tools is None else tools
    child = create_agent(inner, tools, middleware=[GuardMiddleware(agent)], name="child")
    if wrapped == "graph":
        child = guard_subagent(child, agent, scope=["pay"])
    asking = running(child, name)
    return guard_subagent(asking, agent, scope=["pay"]) if wrapped == "tool" else asking


@pairs(sync=[True, False], wrapped=["tool", "graph", "not"], way=["store", "answer"])
async def test_what_a_child_asks_reaches_the_top(people, sync, wrapped, way, scripted):
    inbox = people(delegated=True)
    asking = nested(inbox, scripted([BIG, LOOK], "done"), wrapped=wrapped)
    graph = inbox.graph(tools=[asking])
    with lend(inbox):
        paused = await ran(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    (pause,) = paused["__interrupt__"]
    assert pause.value["action_requests"][0]["args"] == BIG[1]
    assert inbox.paid == []
    (request,) = inbox.waiting
    if way == "store":
        inbox.approve()
        given = None
    else:
        given = decided({**APPROVE, "approval": inbox.signed(request)})
    state = await ran(graph, given, sync=sync)
    assert "paid 500 to ann" in answers(state)[0][1]
    assert sorted(inbox.paid) == [("ann", 500), ("books", 0)]
    # for alice, through the parent
    assert request.principal == "user:alice"
    assert len(request.actors) == 3
    assert set(principals(inbox)) == {"user:alice"}


@SYNC
@pytest.mark.parametrize("way", ["store", "answer"])
async def test_what_a_grandchild_asks_reaches_the_top(people, sync, way, scripted):
    inbox = people(delegated=True)
    inner = nested(inbox, scripted([BIG], [BIGGER], "done"), name="inner")
    outer = nested(inbox, scripted([("inner", {"task": "go"})], "done"), tools=[inner])
    graph = inbox.graph(tools=[outer])
    with lend(inbox):
        paused = await ran(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    for _ in range(2):  # two turns, and a pause in each
        (pause,) = paused["__interrupt__"]
        (request,) = inbox.waiting
        assert pause.value["agentguard"][0]["request_id"] == request.request_id
        assert len(request.actors) == 4
        if way == "store":
            inbox.approve()
            paused = await ran(graph, None, sync=sync)
        else:
            signed = {**APPROVE, "approval": inbox.signed(request)}
            paused = await ran(graph, decided(signed), sync=sync)
    assert "__interrupt__" not in paused
    assert inbox.paid == [("ann", 500), ("ben", 900)]


@SYNC
async def test_new_input_withdraws_what_a_child_waits_for(people, sync, scripted):
    inbox = people()
    asking = nested(inbox, scripted([BIG], "done"), wrapped="not")
    graph = inbox.graph(tools=[asking])
    await ran(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    assert len(inbox.waiting) == 1
    state = await ran(graph, {"messages": [HumanMessage("stop")]}, sync=sync)
    assert inbox.waiting == []
    assert [status for status, _text in answers(state)] == ["error"]
    assert inbox.paid == []


@SYNC
async def test_a_child_does_not_go_on_for_another_principal(people, sync, scripted):
    inbox = people(delegated=True)
    asking = nested(inbox, scripted([BIG], "done"))
    graph = inbox.graph(tools=[asking])
    with lend(inbox):
        await ran(graph, inbox.asking(("ask", {"task": "go"})), sync=sync)
    inbox.approve()
    with lend(inbox, "mallory"):
        state = await ran(graph, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []


@SYNC
async def test_parallel_children_are_decided_in_the_store_or_by_id(people, sync, scripted):
    inbox = people(delegated=True)
    first = nested(inbox, scripted([BIG], "done"))
    second = nested(inbox, scripted([BIGGER], "done"), name="ask2")
    graph = inbox.graph(tools=[first, second])
    calls = [("ask", {"task": "go"}), ("ask2", {"task": "go"})]
    with lend(inbox):
        paused = await ran(graph, inbox.asking(*calls), sync=sync)
    pauses = {p.value["action_requests"][0]["args"]["to"]: p for p in paused["__interrupt__"]}
    assert set(pauses) == {"ann", "ben"}
    ben = next(one for one in inbox.waiting if b"ben" in one.arguments)
    only = {pauses["ben"].id: {"decisions": [{**APPROVE, "approval": inbox.signed(ben)}]}}
    await ran(graph, Command(resume=only), sync=sync)
    assert inbox.paid == [("ben", 900)]
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert [text for _status, text in answers(state)] == ["paid 500 to ann", "paid 900 to ben"]
    assert sorted(inbox.paid) == [("ann", 500), ("ben", 900)]


@SYNC
@pytest.mark.parametrize("parallel", [True, False])
async def test_children_may_be_made_to_work_one_at_a_time(people, sync, parallel, scripted):
    inbox = people()
    first = nested(inbox, scripted([BIG], "done"))
    second = nested(inbox, scripted([BIGGER], "done"), name="ask2")
    graph = inbox.graph(tools=[first, second], parallel_subagents=parallel)
    calls = [("ask", {"task": "go"}), ("ask2", {"task": "go"})]
    paused = await ran(graph, inbox.asking(*calls), sync=sync)
    assert len(paused["__interrupt__"]) == (2 if parallel else 1)
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    texts = [text for _status, text in answers(state)]
    assert texts[0] == "paid 500 to ann"
    assert ("[subagent.parallel]" in texts[1]) is not parallel


@SYNC
async def test_a_child_graph_as_a_node_asks_as_well(people, sync, scripted):
    inbox = people()
    child = create_agent(
        scripted([BIG], "done"), inbox.tools, middleware=[GuardMiddleware(inbox.agent)]
    )
    graph = StateGraph(MessagesState)
    graph.add_node("child", child)
    graph.add_edge(START, "child")
    graph.add_edge("child", END)
    compiled = graph.compile(checkpointer=InMemorySaver())
    paused = await ran(compiled, {"messages": [HumanMessage("go")]}, sync=sync)
    assert len(paused["__interrupt__"]) == 1
    inbox.approve()
    state = await ran(compiled, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


# --- streams ------------------------------------------------------------------------------------


@SYNC
@pytest.mark.parametrize("subgraphs", [True, False])
async def test_a_stream_shows_the_pause_and_goes_on(people, sync, subgraphs):
    inbox = people()
    graph = inbox.graph()

    async def streamed(given):
        options: Any = {"stream_mode": "updates", "subgraphs": subgraphs}
        if sync:
            parts = list(graph.stream(given, CONFIG, **options))
        else:
            parts = [part async for part in graph.astream(given, CONFIG, **options)]
        return [part[1] if subgraphs else part for part in parts]

    parts = await streamed(inbox.asking(BIG))
    pauses = {p.id: p.value for part in parts for p in part.get("__interrupt__", ())}
    (value,) = pauses.values()
    assert value["action_requests"][0]["args"] == BIG[1]
    inbox.approve()
    parts = await streamed(None)
    assert [next(iter(part)) for part in parts][:2] == ["GuardMiddleware.after_model", "tools"]
    assert inbox.paid == [("ann", 500)]


# --- checkpoints --------------------------------------------------------------------------------


async def test_sqlite_checkpoints(people, tmp_path):
    inbox = people(delegated=True)
    with SqliteSaver.from_conn_string(str(tmp_path / "a.db")) as saver:
        with lend(inbox):
            inbox.graph(saver=saver).invoke(inbox.asking(BIG, SMALL), CONFIG)
        inbox.approve()
        state = inbox.graph(saver=saver).invoke(None, CONFIG)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "b.db")) as asaver:
        with lend(inbox):
            await inbox.graph(saver=asaver).ainvoke(inbox.asking(BIGGER), CONFIG)
        inbox.approve()
        state = await inbox.graph(saver=asaver).ainvoke(None, CONFIG)
    assert answers(state) == [("success", "paid 900 to ben")]


def test_a_checkpoint_has_no_key_and_no_delegation(people):
    inbox = people(delegated=True)
    saver = InMemorySaver()
    with lend(inbox) as delegation:
        inbox.graph(saver=saver).invoke(inbox.asking(BIG), CONFIG)
    kept = repr((dict(saver.storage), dict(saver.writes), dict(saver.blobs))).encode()
    assert b"agentguard_run" in kept
    hidden = [delegation.id, inbox.agent.id, delegation.dumps().decode()[20:60]]
    assert [word for word in hidden if word.encode() in kept] == []


# --- another process ----------------------------------------------------------------------------

SERVICE = '''
import json, sys
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
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
        inbox = people()
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

        graph = inbox.graph(tools=[StructuredTool.from_function(plain, name="pay")])
        dear = set(chance.sample(range(20), 5))
        calls = [
            ("pay", {"to": f"p{n}", "cents": 200 + n if n in dear else n + 1}) for n in range(20)
        ]
        where: Any = {"configurable": {"thread_id": f"round{number}"}, "max_concurrency": 20}
        paused = await ran(graph, inbox.asking(*calls), sync=sync, config=where)
        (pause,) = paused["__interrupt__"]
        asked = [action["args"]["to"] for action in pause.value["action_requests"]]
        assert asked == [f"p{n}" for n in sorted(dear)]
        assert done == {}
        verdicts = {to: chance.choice(["approve", "reject"]) for to in asked}
        by_id = {one.request_id: one for one in inbox.waiting}
        requests = [by_id[one["request_id"]] for one in pause.value["agentguard"]]
        if way == "store":
            order = list(zip(asked, requests, strict=True))
            chance.shuffle(order)
            for to, request in order:
                act = inbox.approve if verdicts[to] == "approve" else inbox.reject
                act(request)
            state = await ran(graph, None, sync=sync, config=where)
        else:
            decisions = [
                {"type": verdicts[to], "approval": inbox.signed(request, verdicts[to])}
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
        assert inbox.waiting == []
