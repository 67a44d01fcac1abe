"""What a newcomer's mistakes with LangGraph say; the others are in test_newcomers_mistakes.py."""

from __future__ import annotations

import pytest
from graph_runs import invoke, invoke_thread
from langchain.agents import create_agent
from obedient import Obedient
from payment_team import BIG

from agentguard import ApprovalPending, ConfigError
from agentguard_langchain import guard_tools

CHECKPOINTER = (
    "(the graph has no checkpointer, so it can't pause: pass checkpointer= to create_agent or to "
    'compile, and {"configurable": {"thread_id": ...}} as the config of the run; or answer, and '
    "make the call again)"
)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("guarded_by", ["middleware", "tools"])
async def test_a_graph_without_a_checkpointer(people, guarded_by, sync):
    inbox = people()
    if guarded_by == "middleware":
        graph = inbox.graph(saver=False)
    else:
        graph = create_agent(Obedient(), guard_tools(inbox.tools, inbox.agent))
    with pytest.raises(ApprovalPending) as raised:
        await invoke(graph, inbox.asking(BIG), sync=sync)
    assert CHECKPOINTER in str(raised.value)
    state = await invoke_thread(inbox.graph(), inbox.asking(BIG), sync=sync)
    assert state["__interrupt__"]


@pytest.mark.parametrize("sync", [True, False])
async def test_a_run_without_a_thread_id(people, sync):
    inbox = people()
    with pytest.raises(ValueError, match="thread_id"):  # LangGraph's own words
        await invoke(inbox.graph(), inbox.asking(BIG), sync=sync)
    assert inbox.waiting == []


def test_a_wrong_name_of_an_agent(people):
    guard = people().guard
    with pytest.raises(ConfigError, match=r"there is no \[agents.payr\]; .* did you mean payer\?"):
        guard_tools([], guard.new_agent("payr"))
    assert guard_tools([], guard.new_agent("payer")) == []
