"""Runs that pause: in streams, in checkpoints, in other processes, and with many calls at once."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from typing import Any

import pytest
from graph_runs import CONFIG, SYNC, answers, invoke_thread, resume_with
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from payment_team import BIG, BIGGER, SMALL

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"


# --- streams ------------------------------------------------------------------------------------


@SYNC
@pytest.mark.parametrize("subgraphs", [True, False])
async def test_a_stream_shows_the_pause_and_goes_on(people, sync, subgraphs):
    inbox = people()
    graph = inbox.graph()

    async def stream(value):
        options: Any = {"stream_mode": "updates", "subgraphs": subgraphs}
        if sync:
            parts = list(graph.stream(value, CONFIG, **options))
        else:
            parts = [part async for part in graph.astream(value, CONFIG, **options)]
        return [part[1] if subgraphs else part for part in parts]

    parts = await stream(inbox.asking(BIG))
    pauses = {p.id: p.value for part in parts for p in part.get("__interrupt__", ())}
    (value,) = pauses.values()
    assert value["action_requests"][0]["args"] == BIG[1]
    inbox.approve()
    parts = await stream(None)
    assert [next(iter(part)) for part in parts][:2] == ["GuardMiddleware.after_model", "tools"]
    assert inbox.paid == [("ann", 500)]


# --- checkpoints --------------------------------------------------------------------------------


async def test_sqlite_checkpoints(people, tmp_path):
    inbox = people(delegated=True)
    with SqliteSaver.from_conn_string(str(tmp_path / "a.db")) as saver:
        with inbox.lend():
            inbox.graph(saver=saver).invoke(inbox.asking(BIG, SMALL), CONFIG)
        inbox.approve()
        state = inbox.graph(saver=saver).invoke(None, CONFIG)
    assert [status for status, _text in answers(state)] == ["success", "success"]
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "b.db")) as asaver:
        with inbox.lend():
            await inbox.graph(saver=asaver).ainvoke(inbox.asking(BIGGER), CONFIG)
        inbox.approve()
        state = await inbox.graph(saver=asaver).ainvoke(None, CONFIG)
    assert answers(state) == [("success", "paid 900 to ben")]


def test_a_checkpoint_has_no_key_and_no_delegation(people):
    inbox = people(delegated=True)
    saver = InMemorySaver()
    with inbox.lend() as delegation:
        inbox.graph(saver=saver).invoke(inbox.asking(BIG), CONFIG)
    stored = repr((dict(saver.storage), dict(saver.writes), dict(saver.blobs))).encode()
    assert b"agentguard_run" in stored
    hidden = [delegation.id, inbox.agent.id, delegation.dumps().decode()[20:60]]
    assert [word for word in hidden if word.encode() in stored] == []


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
def service(start_service, tmp_path):
    """Run each step of a durable service in a process of its own; return output and payments."""
    run = start_service(SERVICE, TABLES)

    def step(*arguments: str) -> Any:
        printed = run(*arguments)
        paid = tmp_path / "paid"
        return *json.loads(printed), paid.read_text("utf-8") if paid.exists() else ""

    return step


@pytest.mark.slow("seven processes one after another")
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
        paused = await invoke_thread(graph, inbox.asking(*calls), sync=sync, config=where)
        (pause,) = paused["__interrupt__"]
        payees = [action["args"]["to"] for action in pause.value["action_requests"]]
        assert payees == [f"p{n}" for n in sorted(dear)]
        assert done == {}
        verdicts = {to: chance.choice(["approve", "reject"]) for to in payees}
        by_id = {one.request_id: one for one in inbox.waiting}
        requests = [by_id[one["request_id"]] for one in pause.value["agentguard"]]
        if way == "store":
            order = list(zip(payees, requests, strict=True))
            chance.shuffle(order)
            for to, request in order:
                act = inbox.approve if verdicts[to] == "approve" else inbox.reject
                act(request)
            state = await invoke_thread(graph, None, sync=sync, config=where)
        else:
            decisions = [
                {"type": verdicts[to], "approval": inbox.signed(request, verdicts[to])}
                for to, request in zip(payees, requests, strict=True)
            ]
            state = await invoke_thread(graph, resume_with(*decisions), sync=sync, config=where)
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
