"""Calls that a graph makes again, when it goes on or goes back: what has run does not run again.

LangGraph keeps what a task has done once the task is over. Here tasks are made again: those that
pause or fail with half of their calls done, those whose process died before they were kept, and
those of an old checkpoint.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, interrupt

from agentguard import Decision
from agentguard_langchain import (
    GuardMiddleware,
    evaluate,
    guard_approval_node,
    guard_edge,
    guard_subagent,
    guard_tool_node,
    guard_tools,
)

SYNC = pytest.mark.parametrize("sync", [True, False])
CONFIG: Any = {"configurable": {"thread_id": "t1"}}
OTHER: Any = {"configurable": {"thread_id": "t2"}}
BIG = ("pay", {"to": "ann", "cents": 500})
SMALL = ("pay", {"to": "cal", "cents": 5})
LOOK = ("look", {"what": "books"})


async def ran(graph, given, *, sync, config=CONFIG, **options):
    if sync:
        return graph.invoke(given, config, **options)
    return await graph.ainvoke(given, config, **options)


def answers(state):
    return [(m.status, m.content) for m in state["messages"] if m.type == "tool"]


def said(*calls, turn="turn1"):
    made = [
        {"name": name, "args": args, "id": f"call{number}", "type": "tool_call"}
        for number, (name, args) in enumerate(calls)
    ]
    return {"messages": [HumanMessage("go", id="h"), AIMessage("", tool_calls=made, id=turn)]}


def codes(inbox):
    return [call.code or call.decision for call in inbox.log.calls()]


def kept(inbox):
    """How many calls the journal knows."""
    return len(inbox.guard._runtime._line.journal._entries)


class CrashError(Exception):
    """Stands for the death of the process."""


class Dying(InMemorySaver):
    """A checkpointer that dies where it should keep what tools have done."""

    dies = False

    def put(self, config, checkpoint, metadata, new_versions):
        if self.dies and "tool" in kinds(checkpoint["channel_values"].get("messages")):
            raise CrashError
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config, writes, task_id, task_path=""):
        if self.dies and any("tool" in kinds(value) for _channel, value in writes):
            raise CrashError
        super().put_writes(config, writes, task_id, task_path)

    async def aput(self, config, checkpoint, metadata, new_versions):
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config, writes, task_id, task_path=""):
        self.put_writes(config, writes, task_id, task_path)


def kinds(value):
    """The kinds of the messages in what a channel has, or is given."""
    messages = value if isinstance(value, list) else [value]
    return [message.type for message in messages if isinstance(message, BaseMessage)]


async def crashed(graph, given, *, sync, config=CONFIG):
    """Run a graph to the point where its tools have run, and nothing knows of it."""
    graph.checkpointer.dies = True
    with pytest.raises(CrashError):
        await ran(graph, given, sync=sync, config=config, durability="sync")
    graph.checkpointer.dies = False


def raw(inbox, tools, *, way="tools", saver=None, node=None):
    """A graph in which all calls of a message share one task; ``way`` says how it is guarded."""
    graph = StateGraph(MessagesState)
    if node is None and way == "tools":
        node = ToolNode(guard_tools(tools, inbox.agent))
    elif node is None:
        node = guard_tool_node(tools, inbox.agent)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    return graph.compile(checkpointer=Dying() if saver is None else saver)


WAYS = pytest.mark.parametrize("way", ["tools", "node"])


def asks(ran_):
    """A tool that asks a person, after the others of its message have begun."""

    def ask(question: str) -> str:
        """Ask."""
        ran_.append("ask")
        return f"they say {interrupt(question)}"

    return tool(ask)


@SYNC
@WAYS
async def test_what_is_done_does_not_run_again_beside_one_that_pauses(people, sync, way):
    inbox, asked = people(), []
    graph = raw(inbox, [inbox.pay, inbox.look, asks(asked)], way=way)
    calls = [SMALL, ("ask", {"question": "ok?"}), LOOK]
    paused = await ran(graph, said(*calls), sync=sync)
    assert [pause.value for pause in paused["__interrupt__"]] == ["ok?"]
    entries = inbox.guard._runtime._line.journal._entries
    async with asyncio.timeout(120):  # in an event loop, the others are at work still
        # a journal has no events
        while not sync and [entry.state for entry in entries.values()] != ["done"] * 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    state = await ran(graph, Command(resume="yes"), sync=sync)
    texts = ["paid 5 to cal", "they say yes", "looked at books"]
    assert [text for _status, text in answers(state)] == texts
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]
    assert asked == ["ask", "ask"]  # what has paused goes on from its beginning


@SYNC
async def test_an_agent_whose_process_has_died_goes_on(people, sync):
    inbox = people()
    graph = inbox.graph(saver=Dying())
    await crashed(graph, inbox.asking(SMALL, LOOK), sync=sync)
    done = list(inbox.paid)
    assert done
    state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 5 to cal"), ("success", "looked at books")]
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5)]


@SYNC
async def test_an_approved_call_that_has_run_does_not_wait_again(people, sync):
    inbox = people()
    graph = inbox.graph(saver=Dying())
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    await crashed(graph, None, sync=sync)
    state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_an_edited_call_that_has_run_is_said_to_be_one_once(people, sync):
    inbox = people()
    graph = inbox.graph(saver=Dying())
    await ran(graph, inbox.asking(BIG), sync=sync)
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "ann", "cents": 6}}}
    await crashed(graph, Command(resume={"decisions": [edit]}), sync=sync)
    state = await ran(graph, None, sync=sync)
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
    await crashed(compiled, said(SMALL, LOOK), sync=sync)
    state = await ran(compiled, None, sync=sync)
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
    state = await ran(compiled, said(SMALL, LOOK), sync=sync)
    assert [text for _s, text in answers(state)] == ["paid 5 to cal", "looked at books"]
    assert inbox.paid == [("cal", 5), ("books", 0)]
    assert tries == [0, 1]


# --- what results come back -----------------------------------------------------------------------


@SYNC
async def test_an_artifact_comes_back_with_its_content(people, sync):
    inbox = people()

    def fetch(x: int) -> tuple[str, Any]:
        """Fetch."""
        inbox.paid.append(("fetched", x))
        return f"content {x}", {"rows": (x, b"raw")}

    graph = raw(inbox, [tool(response_format="content_and_artifact")(fetch)])
    await crashed(graph, said(("fetch", {"x": 1})), sync=sync)
    state = await ran(graph, None, sync=sync)
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

    graph = raw(inbox, [tool(note)])
    await crashed(graph, said(("note", {"text": "a"})), sync=sync)
    state = await ran(graph, None, sync=sync)
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

    graph = raw(inbox, [tool(connect)])
    await crashed(graph, said(("connect", {"x": 1})), sync=sync)
    state = await ran(graph, None, sync=sync)
    ((status, text),) = answers(state)
    assert status == "error"
    assert "this call has run already" in text
    assert "go on without it [journal.unreplayable]" in text
    assert "connect was not run again" in text
    assert inbox.paid == [("connected", 1)]


# --- what is not over -----------------------------------------------------------------------------


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
    state = await ran(graph, inbox.asking(("flaky", {"x": 1})), sync=sync)
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
    state = await ran(graph, inbox.asking(("slow", {"x": 1})), sync=sync)
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

    graph = raw(
        inbox,
        [tool(begin)],
        node=ToolNode(guard_tools([tool(begin)], inbox.agent), handle_tool_errors=False),
    )
    for text in ("returned an awaitable", ""):
        if text:
            with pytest.raises(Exception, match=text):
                graph.invoke(said(("begin", {"x": 1})), CONFIG)
        else:
            state = graph.invoke(None, CONFIG)
    assert "[journal.cut_short]" in answers(state)[0][1]
    assert inbox.paid == [("begun", 1)]


# --- sub-agents -----------------------------------------------------------------------------------


def child_of(inbox, script, *, marked):
    """A tool that runs a child agent, which looks, and pays."""
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
    paused = await ran(graph, inbox.asking(("work", {"task": "go"})), sync=sync)
    assert paused["__interrupt__"]
    inbox.approve()
    state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "looked at books; paid 500 to ann")]
    assert sorted(inbox.paid) == [("ann", 500), ("books", 0), ("work", 0), ("work", 0)]


@SYNC
@pytest.mark.parametrize("marked", [True, False])
async def test_the_calls_of_a_sub_agent_that_was_cut_short_run_once(people, sync, marked, scripted):
    """Its process died between a call of the child and the child's own checkpoint."""
    inbox = people()
    work = child_of(inbox, scripted([LOOK], [SMALL], "done"), marked=marked)
    graph = inbox.graph(tools=[work], saver=Dying())
    await crashed(graph, inbox.asking(("work", {"task": "go"})), sync=sync)
    state = await ran(graph, None, sync=sync)
    assert answers(state) == [("success", "looked at books; paid 5 to cal")]
    assert sorted(inbox.paid) == [("books", 0), ("cal", 5), ("work", 0), ("work", 0)]


@SYNC
@pytest.mark.parametrize("marked", [True, False])
async def test_only_what_is_said_to_be_a_sub_agent_goes_on_where_it_was_killed(
    people, sync, marked, scripted
):
    inbox = people()
    work = child_of(inbox, scripted([LOOK], [SMALL], "done"), marked=marked)
    graph = inbox.graph(tools=[work], saver=Dying())
    with killed(inbox.guard._runtime._line.journal):
        await crashed(graph, inbox.asking(("work", {"task": "go"})), sync=sync)
    state = await ran(graph, None, sync=sync)
    ((status, text),) = answers(state)
    assert status == ("success" if marked else "error")
    assert ("nobody knows whether it ran" in text) is not marked
    assert inbox.paid.count(("books", 0)) == 1


@contextmanager
def killed(journal):
    """What a killed process does not do: let a call be made anew, for it has failed."""
    forget, journal.forget = journal.forget, lambda _key: None
    try:
        yield
    finally:
        journal.forget = forget


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
    given = said(("hand_off", {"to": "x"}))
    await crashed(compiled, given, sync=sync)
    state = await ran(compiled, None, sync=sync)
    assert "[journal.cut_short]" in answers(state)[0][1]
    assert inbox.paid == [("left", 0)]
    state = await ran(compiled, given, sync=sync, config=OTHER)
    assert [message.text for message in state["messages"][-2:]] == ["handed off", "after"]


# --- time travel ----------------------------------------------------------------------------------


def before(graph, node, *, first=False):
    """The newest checkpoint from which ``node`` is next, or the first."""
    found = [one.config for one in graph.get_state_history(CONFIG) if node in one.next]
    return found[-1 if first else 0]


@SYNC
async def test_the_unchanged_call_of_an_old_checkpoint_gets_the_recorded_result(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(SMALL, BIG), sync=sync)
    inbox.approve()
    await ran(graph, None, sync=sync)
    paid = list(inbox.paid)
    for node in ("tools", "GuardMiddleware.after_model"):
        config = before(graph, node, first=True)
        state = await ran(graph, None, sync=sync, config=config)
        assert "__interrupt__" not in state
        texts = ["paid 5 to cal", "paid 500 to ann"]
        assert [text for _s, text in answers(state)] == texts
    assert inbox.paid == paid
    assert inbox.waiting == []
    assert inbox.guard.verify().ok


@SYNC
@pytest.mark.parametrize("way", ["tools", "node"])
async def test_a_tool_by_itself_does_not_know_that_a_task_was_made_before(people, sync, way):
    """It has no message of the model to go by, and LangGraph makes a new task."""
    inbox = people()
    graph = raw(inbox, inbox.tools, way=way)
    await ran(graph, said(SMALL), sync=sync)
    await ran(graph, None, sync=sync, config=before(graph, "tools"))
    assert inbox.paid == [("cal", 5)] * (2 if way == "tools" else 1)


@SYNC
async def test_other_arguments_are_another_call(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    await ran(graph, None, sync=sync)
    old = before(graph, "tools")
    message = graph.get_state(old).values["messages"][-1]
    (call,) = message.tool_calls
    changed = {**call, "args": {"to": "mallory", "cents": 501}}
    fork = graph.update_state(
        old, {"messages": [message.model_copy(update={"tool_calls": [changed]})]}, as_node="model"
    )
    paused = await ran(graph, None, sync=sync, config=fork)
    assert paused["__interrupt__"]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_what_the_model_says_again_is_another_call(people, sync):
    inbox = people()
    graph = inbox.graph()
    await ran(graph, inbox.asking(SMALL), sync=sync)
    await ran(graph, None, sync=sync, config=before(graph, "model", first=True))
    assert inbox.paid == [("cal", 5)] * 2


@SYNC
async def test_another_thread_is_another_call(people, sync):
    inbox = people()
    graph = raw(inbox, inbox.tools, way="node")
    for config in (CONFIG, OTHER):
        await ran(graph, said(SMALL), sync=sync, config=config)
    assert inbox.paid == [("cal", 5)] * 2


@SYNC
@WAYS
async def test_the_same_ids_in_another_turn_are_another_call(people, sync, way):
    """Some models number their calls anew in each message."""
    inbox = people()
    graph = raw(inbox, inbox.tools, way=way)
    for turn in ("turn1", "turn2"):
        await ran(graph, said(SMALL, turn=turn), sync=sync)
    assert inbox.paid == [("cal", 5)] * 2


# --- whose ----------------------------------------------------------------------------------------


@SYNC
@WAYS
async def test_nobody_is_given_what_another_users_call_has_returned(people, sync, way):
    inbox = people(delegated=True)
    graph = raw(inbox, inbox.tools, way=way)
    with inbox.guard.delegate("user:alice", scope=["pay"]):
        await crashed(graph, said(SMALL), sync=sync)
    with inbox.guard.delegate("user:bert", scope=["pay"]):
        await ran(graph, None, sync=sync)
    assert inbox.paid == [("cal", 5)] * 2  # bert's call is his own, and on record as his
    principals = [call.predicate["principal"] for call in inbox.log.calls()]
    assert principals == ["user:alice", "user:bert"]


@SYNC
@WAYS
async def test_another_agent_is_given_nothing(people, sync, way):
    inbox = people(delegated=False)
    other = inbox.guard.new_agent("other")
    first = raw(inbox, inbox.tools, way=way)
    await crashed(first, said(SMALL), sync=sync)
    inbox.agent = other
    await ran(raw(inbox, inbox.tools, way=way, saver=first.checkpointer), None, sync=sync)
    assert [call.agent for call in inbox.log.calls()][1] == other.id
    assert inbox.paid == [("cal", 5)] * 2


@SYNC
async def test_the_policy_is_asked_before_a_result_is_handed_out(people, sync):
    closed: list[bool] = []
    inbox = people(policy=lambda _: Decision.deny("closed") if closed else Decision.allow())
    graph = inbox.graph(saver=Dying())
    await crashed(graph, inbox.asking(SMALL), sync=sync)
    closed.append(True)
    state = await ran(graph, None, sync=sync)
    assert answers(state)[0][1].startswith("Denied: pay was not run. Reason: closed")


# --- where nothing is kept ------------------------------------------------------------------------


@SYNC
async def test_without_a_checkpointer_nothing_is_kept(people, sync):
    inbox = people()
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(guard_tools(inbox.tools, inbox.agent)))
    graph.add_edge(START, "tools")
    compiled = graph.compile()
    for _ in range(2):
        await ran(compiled, said(SMALL), sync=sync)
    pay, _look = guard_tools(inbox.tools, inbox.agent)
    for _ in range(2):
        pay.invoke({"name": "pay", "args": SMALL[1], "id": "c", "type": "tool_call"}, CONFIG)
    assert inbox.paid == [("cal", 5)] * 4
    assert kept(inbox) == 0


@SYNC
async def test_a_call_without_an_id_is_not_kept(people, sync):
    """In one task it may be made twice on purpose."""
    inbox = people()
    pay, _look = guard_tools(inbox.tools, inbox.agent)
    graph = StateGraph(MessagesState)
    graph.add_node("work", lambda _state: [pay.invoke(SMALL[1]) for _ in range(2)] and None)
    graph.add_edge(START, "work")
    await ran(graph.compile(checkpointer=InMemorySaver()), said(), sync=sync)
    assert inbox.paid == [("cal", 5)] * 2
    assert kept(inbox) == 0


async def test_a_message_without_an_id_names_no_turn(people):
    """Two of them could not be told apart."""
    inbox = people()
    graph = StateGraph(dict)
    graph.add_node("tools", guard_tool_node(inbox.tools, inbox.agent))
    graph.add_edge(START, "tools")
    compiled = graph.compile(checkpointer=InMemorySaver())
    for _ in range(2):
        compiled.invoke(said(SMALL, turn=None), CONFIG)
    assert inbox.paid == [("cal", 5)] * 2
    assert kept(inbox) == 0


def test_to_ask_ahead_what_the_answer_would_be_keeps_nothing(people):
    inbox = people()
    pay, _look = guard_tools(inbox.tools, inbox.agent)
    call: Any = {"name": "pay", "args": SMALL[1], "id": "c", "type": "tool_call"}
    assert evaluate(pay, call, CONFIG).allowed
    assert kept(inbox) == 0
