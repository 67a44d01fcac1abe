"""Calls that a graph makes again when a run goes on: a call that has run does not run again.

LangGraph keeps the results of a task once the task is over. Here tasks are made again: those that
pause or fail with half of their calls done, and those whose process died before a checkpoint.
Which call is the same call stands in ``test_langchain_journal_identity.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from graph_crashes import (
    OTHER,
    WAYS,
    Dying,
    crash_after_tools,
    graph_of,
    model_turn,
    pages_kept,
)
from graph_runs import CONFIG, SYNC, answers, invoke_thread
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, interrupt
from payment_team import BIG, LOOK, SMALL

from agentguard_langchain import (
    GuardMiddleware,
    guard_approval_node,
    guard_edge,
    guard_subagent,
    guard_tool_node,
    guard_tools,
)


def codes(inbox):
    return [call.code or call.decision for call in inbox.log.calls()]


def tool_asking(questions):
    """Return a tool that asks a person, after the other calls of its message have begun."""

    def ask(question: str) -> str:
        """Ask."""
        questions.append("ask")
        return f"they say {interrupt(question)}"

    return tool(ask)


@SYNC
@WAYS
async def test_what_is_done_does_not_run_again_beside_one_that_pauses(people, sync, way):
    inbox, asked = people(), []
    graph = graph_of(inbox, [inbox.pay, inbox.look, tool_asking(asked)], way=way)
    calls = [SMALL, ("ask", {"question": "ok?"}), LOOK]
    paused = await invoke_thread(graph, model_turn(*calls), sync=sync)
    assert [pause.value for pause in paused["__interrupt__"]] == ["ok?"]
    async with asyncio.timeout(120):  # in an event loop, the others are at work still
        # a journal has no events
        while not sync and pages_kept(inbox) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    state = await invoke_thread(graph, Command(resume="yes"), sync=sync)
    texts = ["paid 5 to cal", "they say yes", "looked at books"]
    assert [text for _status, text in answers(state)] == texts
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]
    assert asked == ["ask", "ask"]  # what has paused goes on from its beginning


@SYNC
async def test_an_agent_whose_process_has_died_goes_on(people, sync):
    inbox = people()
    graph = inbox.graph(saver=Dying())
    await crash_after_tools(graph, inbox.asking(SMALL, LOOK), sync=sync)
    done = list(inbox.paid)
    assert done
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 5 to cal"), ("success", "looked at books")]
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]


@SYNC
async def test_an_approved_call_that_has_run_does_not_wait_again(people, sync):
    inbox = people()
    graph = inbox.graph(saver=Dying())
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    await crash_after_tools(graph, None, sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_an_edited_call_that_has_run_is_said_to_be_one_once(people, sync):
    inbox = people()
    graph = inbox.graph(saver=Dying())
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "ann", "cents": 6}}}
    await crash_after_tools(graph, Command(resume={"decisions": [edit]}), sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    ((status, text),) = answers(state)
    assert (status, inbox.paid) == ("success", [("ann", 6)])
    assert text.count("A person has put another call") == 1
    assert text.endswith("\n\npaid 6 to ann")


@SYNC
async def test_a_graph_by_hand_goes_on(people, sync):
    inbox = people()
    graph = StateGraph(MessagesState)
    graph.add_node("approval", guard_approval_node(inbox.tools, inbox.agent))
    graph.add_node("tools", guard_tool_node(inbox.tools, inbox.agent))
    graph.add_edge(START, "approval")
    graph.add_conditional_edges("approval", guard_edge("tools"), ["tools", END])
    compiled = graph.compile(checkpointer=Dying())
    await crash_after_tools(compiled, model_turn(SMALL, LOOK), sync=sync)
    state = await invoke_thread(compiled, None, sync=sync)
    assert sorted(text for _s, text in answers(state)) == ["looked at books", "paid 5 to cal"]
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]


@SYNC
async def test_a_node_that_is_tried_again_does_not_repeat_what_is_done(people, sync):
    inbox, tries = people(), []
    pay, look = guard_tools(inbox.tools, inbox.agent)

    def node(state):
        calls = state["messages"][-1].tool_calls
        paid = pay.invoke(calls[0])
        tries.append(len(tries))
        if len(tries) == 1:
            raise ConnectionError
        return {"messages": [paid, look.invoke(calls[1])]}

    graph = StateGraph(MessagesState)
    graph.add_node("work", node, retry_policy=RetryPolicy(initial_interval=0.01))
    graph.add_edge(START, "work")
    compiled = graph.compile(checkpointer=InMemorySaver())
    state = await invoke_thread(compiled, model_turn(SMALL, LOOK), sync=sync)
    assert [text for _s, text in answers(state)] == ["paid 5 to cal", "looked at books"]
    assert inbox.paid == [("cal", 5), ("books", 0)]
    assert tries == [0, 1]


# --- what results come back ---------------------------------------------------------------------


@SYNC
async def test_an_artifact_comes_back_with_its_content(people, sync):
    inbox = people()

    def fetch(x: int) -> tuple[str, Any]:
        """Fetch."""
        inbox.paid.append(("fetched", x))
        return f"content {x}", {"rows": (x, b"raw")}

    graph = graph_of(inbox, [tool(response_format="content_and_artifact")(fetch)])
    await crash_after_tools(graph, model_turn(("fetch", {"x": 1})), sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    message = state["messages"][-1]
    assert (message.content, message.artifact) == ("content 1", {"rows": (1, b"raw")})
    assert inbox.paid == [("fetched", 1)]


@SYNC
async def test_a_command_comes_back_and_does_its_update(people, sync):
    inbox = people()

    def note(text: str) -> Command[Any]:
        """Note."""
        inbox.paid.append((text, 1))
        answer = ToolMessage(f"noted {text}", tool_call_id="call0")
        return Command(update={"messages": [answer, HumanMessage("a note", id="n")]})

    graph = graph_of(inbox, [tool(note)])
    await crash_after_tools(graph, model_turn(("note", {"text": "a"})), sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    assert [m.text for m in state["messages"][-2:]] == ["noted a", "a note"]
    assert inbox.paid == [("a", 1)]


@SYNC
async def test_a_result_that_can_not_be_kept_is_refused_and_not_made_again(people, sync):
    inbox = people()

    class Handle:
        def __str__(self):
            return "a handle"

    def connect(x: int) -> Any:
        """Open a connection."""
        inbox.paid.append(("connected", x))
        return Handle()

    graph = graph_of(inbox, [tool(connect)])
    await crash_after_tools(graph, model_turn(("connect", {"x": 1})), sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    ((status, text),) = answers(state)
    assert status == "error"
    assert "this call has run already" in text
    assert "go on without it [journal.unreplayable]" in text
    assert "connect was not run again" in text
    assert inbox.paid == [("connected", 1)]


# --- what is not over ---------------------------------------------------------------------------


@SYNC
async def test_a_call_that_has_failed_is_a_new_authorization(people, sync):
    inbox = people()
    tries: list[str] = []

    def flaky(x: int) -> str:
        """Fail twice."""
        tries.append("try")
        if len(tries) < 3:
            raise ConnectionError
        return "at last"

    retrying = ToolRetryMiddleware(max_retries=5, initial_delay=0.01, jitter=False)
    graph = inbox.graph(tools=[tool(flaky)], middleware=lambda guard: [retrying, guard])
    state = await invoke_thread(graph, inbox.asking(("flaky", {"x": 1})), sync=sync)
    assert answers(state) == [("success", "at last")]
    assert [call.outcome for call in inbox.log.calls()] == ["error", "error", "ok"]
    assert len({call.predicate["invocation_id"] for call in inbox.log.calls()}) == 3


@SYNC
async def test_a_call_that_ran_out_of_time_is_in_doubt(people, sync):
    inbox = people()

    def slow(x: int) -> str:
        """Take too long."""
        inbox.paid.append(("slow", x))
        raise TimeoutError

    retrying = ToolRetryMiddleware(max_retries=2, initial_delay=0.01, jitter=False)
    graph = inbox.graph(tools=[tool(slow)], middleware=lambda guard: [retrying, guard])
    state = await invoke_thread(graph, inbox.asking(("slow", {"x": 1})), sync=sync)
    ((status, text),) = answers(state)
    assert (status, inbox.paid) == ("error", [("slow", 1)])
    assert "nobody knows whether it ran" in text
    assert "[journal.cut_short]" in text


async def test_work_that_was_left_behind_is_in_doubt(people):
    inbox = people()

    class Later:
        def __await__(self):
            yield

    def begin(x: int) -> Any:
        """Begin something."""
        inbox.paid.append(("begun", x))
        return Later()

    graph = graph_of(
        inbox,
        [tool(begin)],
        node=ToolNode(guard_tools([tool(begin)], inbox.agent), handle_tool_errors=False),
    )
    for text in ("returned an awaitable", ""):
        if text:
            with pytest.raises(Exception, match=text):
                graph.invoke(model_turn(("begin", {"x": 1})), CONFIG)
        else:
            state = graph.invoke(None, CONFIG)
    assert "[journal.cut_short]" in answers(state)[0][1]
    assert inbox.paid == [("begun", 1)]


# --- sub-agents ---------------------------------------------------------------------------------


def child_of(inbox, script, *, marked):
    """Return a tool that runs a child agent, which looks, and pays."""
    agent = inbox.guard.new_agent("payer")
    child = create_agent(script, inbox.tools, middleware=[GuardMiddleware(agent)], name="child")

    def work(task: str) -> str:
        """Let the child do it."""
        inbox.paid.append(("work", 0))
        state = child.invoke({"messages": [HumanMessage(task)]})
        return "; ".join(m.content for m in state["messages"] if m.type == "tool")

    async def awork(task: str) -> str:
        """Let the child do it."""
        inbox.paid.append(("work", 0))
        state = await child.ainvoke({"messages": [HumanMessage(task)]})
        return "; ".join(m.content for m in state["messages"] if m.type == "tool")

    made = StructuredTool.from_function(work, awork, name="work")
    return guard_subagent(made, agent, scope=["pay"]) if marked else made


@SYNC
@pytest.mark.parametrize("marked", [True, False])
async def test_a_sub_agent_that_has_paused_goes_on_and_its_calls_run_once(
    people, sync, marked, scripted
):
    inbox = people()
    work = child_of(inbox, scripted([LOOK], [BIG], "done"), marked=marked)
    graph = inbox.graph(tools=[work])
    paused = await invoke_thread(graph, inbox.asking(("work", {"task": "go"})), sync=sync)
    assert paused["__interrupt__"]
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "looked at books; paid 500 to ann")]
    assert sorted(inbox.paid) == [("ann", 500), ("books", 0), ("work", 0), ("work", 0)]


@SYNC
@pytest.mark.parametrize("marked", [True, False])
async def test_the_calls_of_a_sub_agent_that_was_cut_short_run_once(people, sync, marked, scripted):
    """Its process died between a call of the child and the child's own checkpoint."""
    inbox = people()
    work = child_of(inbox, scripted([LOOK], [SMALL], "done"), marked=marked)
    graph = inbox.graph(tools=[work], saver=Dying())
    await crash_after_tools(graph, inbox.asking(("work", {"task": "go"})), sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "looked at books; paid 5 to cal")]
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5), ("work", 0), ("work", 0)]


@SYNC
@pytest.mark.parametrize("marked", [True, False])
async def test_only_what_is_said_to_be_a_sub_agent_goes_on_where_it_was_killed(
    people, sync, marked, scripted, monkeypatch
):
    inbox, around = people(), []
    work = child_of(inbox, scripted([LOOK], [SMALL], "done"), marked=marked)
    graph = inbox.graph(tools=[work], saver=Dying())
    log = inbox.guard._parts.runtime._ports.log
    append = log.append

    def lossy(record, **how):
        """Lose the outcome of the call around, as a killed process does."""
        about = record.summary
        if about.kind == "call" and about.tool == "work":
            around.append(about.invocation_id)
        if about.kind == "outcome" and about.invocation_id in around:
            raise OSError("killed")
        return append(record, **how)

    monkeypatch.setattr(log, "append", lossy)
    await crash_after_tools(graph, inbox.asking(("work", {"task": "go"})), sync=sync)
    state = await invoke_thread(graph, None, sync=sync)
    ((status, text),) = answers(state)
    assert status == ("success" if marked else "error")
    assert ("nobody knows whether it ran" in text) is not marked
    assert inbox.paid.count(("books", 0)) == 1


@SYNC
async def test_a_hand_off_to_the_graph_around_is_no_pause(people, sync):
    """LangGraph raises it through the tool: what it has done is done."""
    inbox = people()

    def leave(_state):
        inbox.paid.append(("left", 0))
        answer = ToolMessage("handed off", tool_call_id="call0")
        return Command(graph=Command.PARENT, update={"messages": [answer]}, goto="after")

    inner = StateGraph(MessagesState)
    inner.add_node("leave", leave)
    inner.add_edge(START, "leave")
    child = inner.compile()

    def hand_off(to: str) -> str:
        """Hand off."""
        return str(child.invoke({"messages": []}))

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(guard_tools([tool(hand_off)], inbox.agent)))
    graph.add_node("after", lambda _state: {"messages": [AIMessage("after")]})
    graph.add_edge(START, "tools")
    compiled = graph.compile(checkpointer=Dying())
    given = model_turn(("hand_off", {"to": "x"}))
    await crash_after_tools(compiled, given, sync=sync)
    state = await invoke_thread(compiled, None, sync=sync)
    assert "[journal.cut_short]" in answers(state)[0][1]
    assert inbox.paid == [("left", 0)]
    state = await invoke_thread(compiled, given, sync=sync, config=OTHER)
    assert [message.text for message in state["messages"][-2:]] == ["handed off", "after"]
