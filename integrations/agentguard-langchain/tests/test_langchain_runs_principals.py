"""For whom a run goes on that has paused: for the principal for whom it was begun.

Runs of sub-agents stand in ``test_langchain_runs_subagents.py``; streams, checkpoints and other
processes in ``test_langchain_runs_checkpoints.py``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NotRequired

import pytest
from graph_runs import CONFIG, SYNC, answers, invoke_thread
from langchain.agents import AgentState, create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from payment_team import BIG, BIGGER, LOOK, SMALL
from rounds import pairs

from agentguard import ConfigError, DelegationError, StorageError
from agentguard.store.sealed_pages import SealedPages
from agentguard_langchain import GuardedToolDenied, GuardMiddleware


@SYNC
async def test_a_run_goes_on_for_whom_it_was_begun(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)  # nothing is in force here
    assert answers(state) == [("success", "paid 500 to ann")]
    assert inbox.principals() == ["user:alice"]


@SYNC
async def test_a_run_goes_on_under_the_same_principal(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    with inbox.lend():
        state = await invoke_thread(graph, None, sync=sync)
    assert answers(state) == [("success", "paid 500 to ann")]


@SYNC
@pytest.mark.parametrize("calls", [[BIG], [BIG, LOOK]])
async def test_a_run_does_not_go_on_under_another_principal(people, sync, calls):
    inbox = people(delegated=True)
    graph = inbox.graph()
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(*calls), sync=sync)
    inbox.approve()
    with inbox.lend("mallory"):
        state = await invoke_thread(graph, None, sync=sync)
    assert all("[delegation.mismatch]" in text for _status, text in answers(state))
    assert inbox.paid == []


@SYNC
async def test_a_new_run_in_the_same_thread_may_be_anybodys(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    for user in ("alice", "bert"):
        with inbox.lend(user):
            await invoke_thread(graph, inbox.asking(SMALL), sync=sync)
    assert inbox.principals() == ["user:alice", "user:bert"]


@SYNC
async def test_a_run_without_a_delegation_is_refused(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph()
    state = await invoke_thread(graph, inbox.asking(SMALL), sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]


@SYNC
async def test_nobody_lends_to_a_run_that_was_begun_for_nobody(people, sync):
    inbox = people()
    graph = inbox.graph()
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    with inbox.lend():
        state = await invoke_thread(graph, None, sync=sync)
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
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(SMALL, BIG), sync=sync)
    inbox.approve()
    delegation = nullcontext() if user is None else inbox.lend(user)
    # LangGraph takes no answer of a call without an id, though it makes it
    with delegation, pytest.raises((TypeError, GuardedToolDenied)):
        await invoke_thread(graph, None, sync=sync)
    allowed = [call.predicate["principal"] for call in inbox.log.calls() if call.code == ""]
    assert set(allowed) == ({"user:alice"} if user is None else set())
    assert (("cal", 5) in inbox.paid) is (user is None)


@SYNC
async def test_a_lost_record_never_widens(people, sync, monkeypatch):
    """An agent that may act by itself does not, in a run that was begun for somebody."""
    inbox, read = people(), SealedPages.read
    graph = inbox.graph()
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    monkeypatch.setattr(
        SealedPages,
        "read",
        lambda runs, name: None if name.startswith("run ") else read(runs, name),
    )
    state = await invoke_thread(graph, None, sync=sync)
    assert state["__interrupt__"]
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
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
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(SMALL, BIG), sync=sync)
    inbox.approve()
    update = Command(update={"agentguard_run": handle})
    with nullcontext() if user is None else inbox.lend(user):
        await invoke_thread(graph, update, sync=sync)
        state = await invoke_thread(graph, None, sync=sync)
    assert len(answers(state)) == 2
    assert all("[delegation.missing]" in text for _status, text in answers(state))
    assert (inbox.paid, [request.principal for request in inbox.waiting]) == ([], ["user:alice"])


@SYNC
async def test_who_goes_back_to_an_earlier_run_goes_on_for_whom_it_was_begun(people, sync):
    inbox = people()
    graph = inbox.graph()
    with inbox.lend():
        await invoke_thread(graph, inbox.asking(SMALL, BIG), sync=sync)
        back = graph.get_state(CONFIG).config
        await invoke_thread(graph, {"messages": [HumanMessage("hello")]}, sync=sync)  # a later run
    for user, code in (("mallory", "mismatch"), (None, "missing")):
        with nullcontext() if user is None else inbox.lend(user):
            state = await invoke_thread(graph, None, sync=sync, config=back)
        assert [code in text for _status, text in answers(state)] == [True, True]
    assert inbox.paid == []
    with inbox.lend():  # the twin
        await invoke_thread(graph, None, sync=sync, config=back)
        inbox.approve()
        state = await invoke_thread(graph, None, sync=sync, config=back)
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
    await invoke_thread(graph, inbox.asking(SMALL), sync=sync)
    back = graph.get_state(CONFIG).config
    await invoke_thread(graph, {"messages": [HumanMessage("hello")]}, sync=sync)
    with inbox.lend("mallory"):
        state = await invoke_thread(graph, None, sync=sync, config=back)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    state = await invoke_thread(graph, None, sync=sync, config=back)
    assert answers(state) == [("success", "paid 5 to cal")]
    assert inbox.principals()[-1].startswith("agent:payer")


def test_a_later_run_begins_though_the_record_of_the_earlier_one_does_not_verify(
    people, monkeypatch
):
    inbox = people()
    graph = inbox.graph()
    graph.invoke(inbox.asking(SMALL), CONFIG)
    handle, read = graph.get_state(CONFIG).values["agentguard_run"], SealedPages.read

    def reading(runs, name):
        if name.startswith("run ") and handle in name:
            raise StorageError("the record does not hold", code="storage.corrupt")
        return read(runs, name)

    monkeypatch.setattr(SealedPages, "read", reading)
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
    with inbox.lend():
        graph.invoke(inbox.asking(SMALL), CONFIG)
    assert inbox.paid == [("cal", 5)]


@SYNC
async def test_a_run_that_nobody_has_begun_makes_no_call(people, obedient, sync):
    """A subclass that does not begin the run; and where there is no thread, there is no record."""
    inbox = people()
    graph = inbox.graph(middleware=lambda _guard: [Bare(inbox.agent)])
    state = await invoke_thread(graph, inbox.asking(SMALL), sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]
    threadless = create_agent(obedient, inbox.tools, middleware=[Bare(inbox.agent)])
    state = await invoke_thread(threadless, inbox.asking(SMALL), sync=sync, config=None)
    assert answers(state) == [("success", "paid 5 to cal")]


@SYNC
async def test_a_narrowed_delegation_is_not_kept(people, sync, caplog):
    inbox = people()
    graph = inbox.graph()
    with inbox.lend().narrowed(scope=[]):
        await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)
    assert "[delegation.missing]" in answers(state)[0][1]
    assert "neither stored nor in force here" in caplog.text
    assert inbox.paid == []


@SYNC
async def test_a_revoked_delegation_is_not_taken_up(people, sync, monkeypatch):
    inbox = people(delegated=True)
    graph = inbox.graph()
    delegation = inbox.lend()
    with delegation:
        await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()

    def revoked(_stored):
        raise DelegationError("her delegation was revoked", code="delegation.revoked")

    monkeypatch.setattr(inbox.agent._caller.runtime.parts.delegations, "take_up", revoked)
    state = await invoke_thread(graph, None, sync=sync)
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
        return inbox.lend(runtime.context.name)

    graph = inbox.graph(delegation=delegation)
    await invoke_thread(graph, inbox.asking(BIG), sync=sync, context=User("alice"))
    assert set(seen) == {"Runtime"}
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync)  # the context is not persisted
    assert answers(state) == [("success", "paid 500 to ann")]
    assert "ToolRuntime" in seen
    assert inbox.principals() == ["user:alice"]
    await invoke_thread(graph, inbox.asking(BIGGER), sync=sync, context=User("alice"))
    inbox.approve()
    state = await invoke_thread(graph, None, sync=sync, context=User("mallory"))
    assert "[delegation.mismatch]" in answers(state)[-1][1]


@SYNC
async def test_an_agent_under_a_delegation_of_its_own(people, sync):
    inbox = people(delegated=True)
    graph = inbox.graph(middleware=lambda _g: [GuardMiddleware(inbox.agent.under(inbox.lend()))])
    await invoke_thread(graph, inbox.asking(BIG), sync=sync)
    inbox.approve()
    other = inbox.graph(
        middleware=lambda _g: [GuardMiddleware(inbox.agent.under(inbox.lend("mallory")))],
        saver=graph.checkpointer,
    )
    state = await invoke_thread(other, None, sync=sync)
    assert "[delegation.mismatch]" in answers(state)[0][1]
    assert inbox.paid == []
