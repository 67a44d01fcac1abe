"""Which calls count as the same call made again: old checkpoints, users, threads and ids."""

from __future__ import annotations

from typing import Any

import pytest
from graph_crashes import OTHER, WAYS, Dying, crash_after_tools, graph_of, journal_size, model_turn
from graph_runs import CONFIG, SYNC, answers, invoke_thread
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from payment_team import BIG, SMALL

from agentguard import Decision
from agentguard_langchain import evaluate, guard_tool_node, guard_tools

# --- time travel --------------------------------------------------------------------------------


def before(graph, node, *, first=False):
    """The newest checkpoint from which ``node`` is next, or the first."""
    found = [one.config for one in graph.get_state_history(CONFIG) if node in one.next]
    return found[-1 if first else 0]


@SYNC
async def test_the_unchanged_call_of_an_old_checkpoint_gets_the_recorded_result(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(SMALL, BIG), sync=sync)
    inbox.approve()
    await invoke_thread(graph, None, sync=sync)
    paid = list(inbox.paid)
    for node in ("tools", "GuardMiddleware.after_model"):
        config = before(graph, node, first=True)
        state = await invoke_thread(graph, None, sync=sync, config=config)
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
    graph = graph_of(inbox, inbox.tools, way=way)
    await invoke_thread(graph, model_turn(SMALL), sync=sync)
    await invoke_thread(graph, None, sync=sync, config=before(graph, "tools"))
    assert inbox.paid == [("cal", 5)] * (2 if way == "tools" else 1)


@SYNC
async def test_other_arguments_are_another_call(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    await invoke_thread(graph, None, sync=sync)
    old = before(graph, "tools")
    message = graph.get_state(old).values["messages"][-1]
    (call,) = message.tool_calls
    changed = {**call, "args": {"to": "mallory", "cents": 501}}
    fork = graph.update_state(
        old, {"messages": [message.model_copy(update={"tool_calls": [changed]})]}, as_node="model"
    )
    paused = await invoke_thread(graph, None, sync=sync, config=fork)
    assert paused["__interrupt__"]
    assert inbox.paid == [("ann", 500)]


@SYNC
async def test_what_the_model_says_again_is_another_call(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(SMALL), sync=sync)
    await invoke_thread(graph, None, sync=sync, config=before(graph, "model", first=True))
    assert inbox.paid == [("cal", 5)] * 2


@SYNC
async def test_another_thread_is_another_call(people, sync):
    inbox = people()
    graph = graph_of(inbox, inbox.tools, way="node")
    for config in (CONFIG, OTHER):
        await invoke_thread(graph, model_turn(SMALL), sync=sync, config=config)
    assert inbox.paid == [("cal", 5)] * 2


@SYNC
@WAYS
async def test_the_same_ids_in_another_turn_are_another_call(people, sync, way):
    """Some models number their calls anew in each message."""
    inbox = people()
    graph = graph_of(inbox, inbox.tools, way=way)
    for turn in ("turn1", "turn2"):
        await invoke_thread(graph, model_turn(SMALL, turn=turn), sync=sync)
    assert inbox.paid == [("cal", 5)] * 2


# --- whose --------------------------------------------------------------------------------------


@SYNC
@WAYS
async def test_nobody_is_given_what_another_users_call_has_returned(people, sync, way):
    inbox = people(delegated=True)
    graph = graph_of(inbox, inbox.tools, way=way)
    with inbox.guard.delegate("user:alice", scope=["pay"]):
        await crash_after_tools(graph, model_turn(SMALL), sync=sync)
    with inbox.guard.delegate("user:bert", scope=["pay"]):
        await invoke_thread(graph, None, sync=sync)
    assert inbox.paid == [("cal", 5)] * 2  # bert's call is his own, and on record as his
    principals = [call.predicate["principal"] for call in inbox.log.calls()]
    assert principals == ["user:alice", "user:bert"]


@SYNC
@WAYS
async def test_another_agent_is_given_nothing(people, sync, way):
    inbox = people(delegated=False)
    other = inbox.guard.new_agent("other")
    first = graph_of(inbox, inbox.tools, way=way)
    await crash_after_tools(first, model_turn(SMALL), sync=sync)
    inbox.agent = other
    await invoke_thread(
        graph_of(inbox, inbox.tools, way=way, saver=first.checkpointer), None, sync=sync
    )
    assert [call.agent for call in inbox.log.calls()][1] == other.id
    assert inbox.paid == [("cal", 5)] * 2


@SYNC
async def test_the_policy_is_asked_before_a_result_is_handed_out(people, sync):
    closed: list[bool] = []
    inbox = people(policy=lambda _: Decision.deny("closed") if closed else Decision.allow())
    graph = inbox.graph(saver=Dying())
    await crash_after_tools(graph, inbox.asking(SMALL), sync=sync)
    closed.append(True)
    state = await invoke_thread(graph, None, sync=sync)
    assert answers(state)[0][1].startswith("Denied: pay was not run. Reason: closed")


# --- where nothing is kept ----------------------------------------------------------------------


@SYNC
async def test_without_a_checkpointer_nothing_is_kept(people, sync):
    inbox = people()
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(guard_tools(inbox.tools, inbox.agent)))
    graph.add_edge(START, "tools")
    compiled = graph.compile()
    for _ in range(2):
        await invoke_thread(compiled, model_turn(SMALL), sync=sync)
    pay, _look = guard_tools(inbox.tools, inbox.agent)
    for _ in range(2):
        pay.invoke({"name": "pay", "args": SMALL[1], "id": "c", "type": "tool_call"}, CONFIG)
    assert inbox.paid == [("cal", 5)] * 4
    assert journal_size(inbox) == 0


@SYNC
async def test_a_call_without_an_id_is_not_kept(people, sync):
    """In one task it may be made twice on purpose."""
    inbox = people()
    pay, _look = guard_tools(inbox.tools, inbox.agent)
    graph = StateGraph(MessagesState)
    graph.add_node("work", lambda _state: [pay.invoke(SMALL[1]) for _ in range(2)] and None)
    graph.add_edge(START, "work")
    await invoke_thread(graph.compile(checkpointer=InMemorySaver()), model_turn(), sync=sync)
    assert inbox.paid == [("cal", 5)] * 2
    assert journal_size(inbox) == 0


async def test_a_message_without_an_id_names_no_turn(people):
    """Two of them could not be told apart."""
    inbox = people()
    graph = StateGraph(dict)
    graph.add_node("tools", guard_tool_node(inbox.tools, inbox.agent))
    graph.add_edge(START, "tools")
    compiled = graph.compile(checkpointer=InMemorySaver())
    for _ in range(2):
        compiled.invoke(model_turn(SMALL, turn=None), CONFIG)
    assert inbox.paid == [("cal", 5)] * 2
    assert journal_size(inbox) == 0


def test_to_ask_ahead_what_the_answer_would_be_keeps_nothing(people):
    inbox = people()
    pay, _look = guard_tools(inbox.tools, inbox.agent)
    call: Any = {"name": "pay", "args": SMALL[1], "id": "c", "type": "tool_call"}
    assert evaluate(pay, call, CONFIG).allowed
    assert journal_size(inbox) == 0
