"""A hand-over is complete once every call within it is: an approved call runs, once, and is told.

What is swallowed between the call that waits and the one that hands the work over must not make
that one complete; nor must a call in doubt.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import Any

import commands
import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from rounds import pairs

from agentguard.domain import config, domain
from agentguard_langchain import GuardMiddleware, guard_subagent, guard_tools

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
ANN = {"to": "ann", "cents": 500}
WORK = json.dumps([["pay", ANN]])


def middleware(inbox, child, model, **options):
    return create_agent(model, inbox.tools, middleware=[GuardMiddleware(child)], **options)


def tools(inbox, child, model, **options):
    return create_agent(model, guard_tools(inbox.tools, child), **options)


def swallowing(inbox, child, model, **options):
    """A graph by hand, whose node tells what went wrong instead of raising."""
    (pay,) = guard_tools([inbox.pay], child)

    async def apay(state):
        ((_name, args),) = json.loads(state["messages"][-1].text)
        try:
            return {"messages": [AIMessage(await pay.ainvoke(args))]}
        except Exception as error:  # noqa: BLE001  as people write it
            return {"messages": [AIMessage(f"not now: {error}")]}

    def node(state):
        return asyncio.run(apay(state))

    return _one_node(node, apay, options)


def gathering(inbox, child, model, **options):
    """Two tools at once, the failures of which are results."""
    (pay,) = guard_tools([inbox.pay], child)

    async def apay(state):
        ((_name, args),) = json.loads(state["messages"][-1].text)
        both = [pay.ainvoke(args), pay.ainvoke({**args, "to": "ben"})]
        said = await asyncio.gather(*both, return_exceptions=True)
        return {"messages": [AIMessage("; ".join(map(str, said)))]}

    def node(state):
        return asyncio.run(apay(state))

    return _one_node(node, apay, options)


def _one_node(node, anode, options):
    builder = StateGraph(MessagesState)
    builder.add_node("pay", RunnableLambda(node, anode))
    builder.add_edge(START, "pay")
    return builder.compile(**options)


CHILDREN = {kind.__name__: kind for kind in (middleware, tools, swallowing, gathering)}
PAID = {"gathering": {("ann", 500), ("ben", 500)}}


def asking(child, *, swallow):
    """A tool that has the child work, and lets failures through or makes words of them."""

    async def aask(work: str) -> str:
        """Ask the clerk."""
        try:
            state = await child.ainvoke({"messages": [HumanMessage(work)]})
        except Exception as error:
            if swallow:
                return f"it went wrong: {error}"
            raise
        return state["messages"][-1].text

    def ask(work: str) -> str:
        """Ask the clerk."""
        try:
            state = child.invoke({"messages": [HumanMessage(work)]})
        except Exception as error:
            if swallow:
                return f"it went wrong: {error}"
            raise
        return state["messages"][-1].text

    made = tool(ask)
    made.coroutine = aask
    return made


async def ran(graph, given, *, sync):
    return graph.invoke(given, CONFIG) if sync else await graph.ainvoke(given, CONFIG)


def answers(state):
    return [m.text for m in state["messages"] if m.type == "tool"]


@pytest.fixture
def team(people, obedient):
    """A desk whose agent hands work over to a clerk."""

    def _team(kind, *, wrapped, swallow, **options):
        inbox = people()
        clerk = inbox.guard.new_agent("clerk")
        ask = asking(CHILDREN[kind](inbox, clerk, obedient, **options), swallow=swallow)
        if wrapped:
            ask = guard_subagent(ask, clerk, scope=["pay"])
        return inbox, inbox.graph(tools=[ask])

    return _team


@pairs(
    swallow={"swallows": True, "raises": False},
    wrapped={"subagent": True, "plain": False},
    options={"kept": {}, "stateless": {"checkpointer": False}},
    kind=CHILDREN.keys(),
    sync=[True, False],
)
async def test_an_approved_call_within_runs_once_and_is_told(
    team, kind, options, wrapped, swallow, sync
):
    inbox, graph = team(kind, wrapped=wrapped, swallow=swallow, **options)
    paused = await ran(graph, inbox.asking(("ask", {"work": WORK})), sync=sync)
    assert paused["__interrupt__"]
    assert (inbox.paid, answers(paused)) == ([], [])
    assert "ok" not in {call.outcome for call in inbox.log.calls() if call.tool == "ask"}
    paused = await ran(graph, None, sync=sync)  # nobody has answered yet
    assert paused["__interrupt__"]
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert set(inbox.paid) == PAID.get(kind, {("ann", 500)})
    assert len(inbox.paid) == len(set(inbox.paid))
    assert "paid 500 to ann" in answers(state)[0]
    assert inbox.waiting == []
    assert [c.outcome for c in inbox.log.calls() if c.tool == "ask"][-1] == "ok"
    await ran(graph, None, sync=sync)
    assert len(inbox.paid) == len(set(inbox.paid))


@SYNC
@pytest.mark.parametrize("kind", CHILDREN)
async def test_what_a_person_rejects_within_ends_the_hand_over(team, kind, sync):
    """The twin: what is decided for good is told, and the run is over."""
    inbox, graph = team(kind, wrapped=True, swallow=True, checkpointer=False)
    await ran(graph, inbox.asking(("ask", {"work": WORK})), sync=sync)
    inbox.reject(note="no")
    state = await ran(graph, None, sync=sync)
    assert inbox.paid == []
    assert "rejected" in answers(state)[0]
    assert "__interrupt__" not in state


@SYNC
async def test_an_answer_of_a_user_interface_reaches_the_call_within(team, sync):
    inbox, graph = team("swallowing", wrapped=True, swallow=False)
    paused = await ran(graph, inbox.asking(("ask", {"work": WORK})), sync=sync)
    (pause,) = paused["__interrupt__"]
    (action,) = pause.value["action_requests"]
    assert (action["name"], action["args"]) == ("pay", ANN)
    approval = inbox.signed(inbox.waiting[0])
    resumed = Command(resume={"decisions": [{"type": "approve", "approval": approval}]})
    state = await ran(graph, resumed, sync=sync)
    assert (inbox.paid, answers(state)) == ([("ann", 500)], ["paid 500 to ann"])


def test_a_tool_that_does_work_of_its_own_is_not_made_again(people, caplog):
    """A plain tool that swallows keeps its page: what it has done itself is not done twice."""
    inbox = people()
    done = []
    (pay,) = guard_tools([inbox.pay], inbox.agent)

    @tool
    def transfer(work: str) -> str:
        """Transfer, and pay."""
        done.append(work)
        try:
            return pay.invoke(ANN)
        except Exception:  # noqa: BLE001
            return "transferred; the rest waits"

    graph = inbox.graph(tools=[transfer])
    state = graph.invoke(inbox.asking(("transfer", {"work": "a"})), CONFIG)
    assert answers(state) == ["transferred; the rest waits"]
    inbox.approve()
    graph.invoke(None, CONFIG)
    assert (done, inbox.paid) == (["a"], [])
    assert "has ended, although a call" in caplog.text


@SYNC
@pytest.mark.parametrize("kind", ["clerk", "general-purpose"])
async def test_the_task_tool_of_a_deep_agent_hands_over(people, obedient, kind, sync):
    inbox = people()
    clerk = inbox.guard.new_agent("clerk")
    declared = {
        "name": "clerk",
        "description": "Pays.",
        "system_prompt": "Pay.",
        "tools": guard_tools(inbox.tools, clerk),
    }
    graph = create_deep_agent(
        obedient,
        tools=guard_tools(inbox.tools, inbox.agent),
        middleware=[GuardMiddleware(inbox.agent)],
        subagents=[declared],
        checkpointer=InMemorySaver(),
    )
    call = ("task", {"subagent_type": kind, "description": WORK})
    paused = await ran(graph, inbox.asking(call), sync=sync)
    assert paused["__interrupt__"]
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert (inbox.paid, answers(state)) == ([("ann", 500)], ["paid 500 to ann"])


# --- a call in doubt, in other processes --------------------------------------------------------

PROGRAM = '''
import json, os, sys
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from obedient import Obedient

from agentguard import Guard
from agentguard_langchain import GuardMiddleware, guard_subagent


@tool
def pay(work: str) -> str:
    """Pay somebody."""
    if sys.argv[1] == "dies":
        os._exit(9)
    with open("effects", "a") as effects:
        effects.write(work)
    return f"paid {work}"


with (
    Guard.open("agentguard.toml", passphrase=b"of this test") as guard,
    SqliteSaver.from_conn_string("graph.db") as saver,
):
    clerk, boss = guard.new_agent("clerk"), guard.new_agent("boss")
    child = create_agent(Obedient(), [pay], middleware=[GuardMiddleware(clerk)])

    @tool
    def ask(work: str) -> str:
        """Ask the clerk."""
        calls = json.dumps([["pay", {"work": work}]])
        return child.invoke({"messages": [HumanMessage(calls)]})["messages"][-1].text

    ask = guard_subagent(ask, clerk, scope=["pay"])
    graph = create_agent(
        Obedient(), [ask], middleware=[GuardMiddleware(boss)], checkpointer=saver
    )
    where = {"configurable": {"thread_id": "1"}}
    asking = {"messages": [HumanMessage('[["ask", {"work": "ann"}]]')]}
    given = asking if sys.argv[1] == "dies" else None
    state = graph.invoke(given, where, durability="sync")
    said = [m.text for m in state["messages"] if m.type == "tool"]
    pauses = [one.value["action_requests"][0] for one in state.get("__interrupt__", ())]
    print(json.dumps([said, pauses]))
'''

TABLES = """
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "function"
path = "policy:decide"

[agents.clerk]
authority = "own"

[agents.boss]
authority = "own"
"""


RAN = pytest.param(True, marks=pytest.mark.slow("three processes one after another"))


@pytest.mark.parametrize("ran", [False, RAN])
def test_a_call_in_doubt_within_is_waited_for_until_somebody_says_what_became_of_it(
    tmp_path, preloaded, ran
):
    def program(step, code=0):
        done = preloaded.run("program.py", step, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "policy.py").write_text(
        "from agentguard import Decision\n\n\ndef decide(document):\n    return Decision.allow()\n"
    )
    (tmp_path / "agentguard.toml").write_text(TABLES)
    settings = config.load(tmp_path / "agentguard.toml")
    domain.found(settings, b"of this test", now=datetime.now(UTC))
    program("dies", code=9)
    said, pauses = program("resumes")
    assert (said, [pause["name"] for pause in pauses]) == ([], ["pay"])
    assert "agentguard resolve" in pauses[0]["description"]
    in_doubt = pauses[0]["description"].partition("(")[2].partition(")")[0]
    became = "--ran" if ran else "--not-ran"
    resolved = commands.run(
        ["resolve", in_doubt, became, "--note", "looked at the bank"],
        cwd=tmp_path,
        env={**os.environ, "AGENTGUARD_PASSPHRASE": "of this test"},
    )
    assert resolved.returncode == 0, resolved.stderr
    said, pauses = program("resumes")
    assert pauses == []
    effects = tmp_path / "effects"
    if ran:
        assert "[journal.unreplayable]" in said[0]
        assert not effects.exists()
    else:
        assert said == ["paid ann"]
        assert effects.read_text() == "ann"


# --- graphs within that keep their state ----------------------------------------------------------


def in_a_thread_of_its_own(child):
    """A tool that has the child go on in a thread of the child's own."""

    async def aask(work: str) -> str:
        """Ask the clerk."""
        state = await child.ainvoke({"messages": [HumanMessage(work)]}, CLERKS)
        return state["messages"][-1].text

    def ask(work: str) -> str:
        """Ask the clerk."""
        return child.invoke({"messages": [HumanMessage(work)]}, CLERKS)["messages"][-1].text

    made = tool(ask)
    made.coroutine = aask
    return made


CLERKS: Any = {"configurable": {"thread_id": "the clerk's"}}


@SYNC
@pytest.mark.parametrize("wrapped", [True, False], ids=["subagent", "plain"])
@pytest.mark.parametrize("kind", ["middleware", "tools"])
async def test_a_graph_within_that_has_a_thread_of_its_own_goes_on_there(
    people, obedient, kind, wrapped, sync, caplog
):
    """Its pause is not the run's: made again, the call would ask for the same work for ever."""
    inbox = people()
    clerk = inbox.guard.new_agent("clerk")
    child = CHILDREN[kind](inbox, clerk, obedient, checkpointer=InMemorySaver())
    ask = in_a_thread_of_its_own(child)
    graph = inbox.graph(tools=[guard_subagent(ask, clerk, scope=["pay"]) if wrapped else ask])
    state = await ran(graph, inbox.asking(("ask", {"work": WORK})), sync=sync)
    assert "__interrupt__" not in state
    assert len(answers(state)) == 1
    assert (len(inbox.waiting), inbox.paid) == (1, [])
    assert "resume that thread" in caplog.text
    inbox.approve()
    await ran(graph, None, sync=sync)
    assert inbox.paid == []  # nobody has resumed the thread that waits
    there = child.invoke(None, CLERKS) if sync else await child.ainvoke(None, CLERKS)
    assert (inbox.paid, answers(there)) == ([("ann", 500)], ["paid 500 to ann"])


@pairs(
    kept={"by the run": True, "saver": InMemorySaver()},
    kind=["middleware", "tools"],
    swallow={"swallows": True, "raises": False},
    sync=[True, False],
)
async def test_a_graph_within_that_keeps_its_state_in_the_run_goes_on_with_it(
    team, kind, kept, swallow, sync, caplog
):
    """The twin: such a graph pauses with the run around it, whoever catches the pause."""
    inbox, graph = team(kind, wrapped=True, swallow=swallow, checkpointer=kept)
    paused = await ran(graph, inbox.asking(("ask", {"work": WORK})), sync=sync)
    assert paused["__interrupt__"]
    assert "a thread of its own" not in caplog.text
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert (inbox.paid, answers(state)) == ([("ann", 500)], ["paid 500 to ann"])


@pytest.mark.parametrize("swallow", [True, False], ids=["swallows", "raises"])
def test_a_graph_that_has_paused_goes_on_after_a_call_that_no_journal_has(people, swallow):
    """A graph that goes on does not run the task again in which that call was made."""
    inbox = people()
    look, pay = guard_tools([inbox.look, inbox.pay], inbox.guard.new_agent("clerk"))
    calling = {"type": "tool_call", "name": "pay", "args": ANN, "id": "p1"}

    @task
    def looking():
        return look.invoke({"what": "x"})

    @task
    def paying():
        return pay.invoke(calling).text

    @entrypoint()
    def child(_given):
        return {"messages": [AIMessage(f"{looking().result()}; {paying().result()}")]}

    graph = inbox.graph(tools=[asking(child, swallow=swallow)])
    paused = graph.invoke(inbox.asking(("ask", {"work": WORK})), CONFIG)
    assert paused["__interrupt__"]
    done = list(inbox.paid)
    inbox.approve()
    state = graph.invoke(None, CONFIG)
    assert answers(state) == ["looked at x; paid 500 to ann"]
    assert inbox.paid == [*done, ("ann", 500)]
