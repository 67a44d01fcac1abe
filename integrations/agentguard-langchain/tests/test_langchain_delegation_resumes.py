"""Under which delegation a run goes on after an interrupt, in this process or in another."""

from __future__ import annotations

import pytest
from delegation_team import decision_codes
from graph_runs import CONFIG, SYNC, invoke, last_text
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from agentguard_langchain import guard_tools


@SYNC
async def test_a_stored_delegation_is_in_force_again_on_resume(team, sync):
    orchestrator, fixer = team.agents("orchestrator", "fixer")
    (reading,) = guard_tools([team.read], fixer)

    @tool
    def ask(path: str) -> str:
        """Ask a person, and then the fixer."""
        return f"{interrupt('go on?')}: {reading.invoke({'path': path})}"

    tools = guard_tools([ask], orchestrator)
    graph = team.graph(tools, checkpointer=InMemorySaver())
    with team.lend(task_id="task_1") as alice:
        paused = await invoke(graph, team.asking(("ask", {"path": "a"})), CONFIG, sync=sync)
        stored = alice.dumps()
    assert "__interrupt__" in paused
    with team.guard.resume(stored):
        state = await invoke(graph, Command(resume="yes"), CONFIG, sync=sync)
    assert last_text(state) == "yes: content of a"
    story = team.rows()
    assert [(one.tool, one.path) for one in story] == [
        ("ask", "alice>orchestrator"),
        ("ask", "alice>orchestrator"),
        ("read", "alice>orchestrator>fixer"),
    ]
    outcomes = [call.outcome for call in team.log.calls()]
    assert outcomes == ["unknown", "ok", "ok"]
    assert {call.predicate["task_id"] for call in team.log.calls()} == {"task_1"}


def test_without_it_the_resumed_run_is_refused(team):
    (orchestrator,) = team.agents("orchestrator")

    @tool
    def ask(path: str) -> str:
        """Ask a person."""
        return interrupt("go on?")

    graph = team.graph(guard_tools([ask], orchestrator), checkpointer=InMemorySaver())
    with team.lend():
        graph.invoke(team.asking(("ask", {"path": "a"})), CONFIG)
    state = graph.invoke(Command(resume="yes"), CONFIG)
    assert "[delegation.missing]" in last_text(state)
    assert decision_codes(team) == ["allow", "delegation.missing"]


SERVICE = '''
import json, sys
from pathlib import Path
from agentguard import Decision, Guard
from agentguard_langchain import guard_subagent, guard_tools
from langchain.agents import create_agent
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command, interrupt
from obedient import Obedient


def decide(document):
    return Decision.allow()


def read(x: str) -> str:
    """Read, once a person has agreed."""
    return f"{interrupt('go on?')}: read {x}"


def main(step, thread):
    with Guard.open(passphrase=b"of this test") as guard, \\
            SqliteSaver.from_conn_string("threads.db") as saver:
        orchestrator, fixer = guard.new_agent("orchestrator"), guard.new_agent("fixer")
        child = create_agent(Obedient(), guard_tools([read], fixer))
        child = guard_subagent(child, fixer, scope=["repo:read"])

        def ask(x: str) -> str:
            """Ask the fixer."""
            return child.invoke({"messages": [("user", x)]})["messages"][-1].text

        tools = guard_tools([ask], orchestrator)
        graph = create_agent(Obedient(), tools, checkpointer=saver)
        config = {"configurable": {"thread_id": thread}}
        work = json.dumps([["ask", {"x": json.dumps([["read", {"x": "a"}]])}]])
        if step == "begin":
            scope = ["repo:read", "pr:write"]
            with guard.delegate("user:alice", scope=scope, task_id="task_1") as alice:
                graph.invoke({"messages": [("user", work)]}, config)
                graph.invoke({"messages": [("user", work)]}, {"configurable": {"thread_id": "t2"}})
            Path("stored").write_bytes(alice.dumps())
        elif step == "with":
            with guard.resume(Path("stored").read_bytes()):
                print(graph.invoke(Command(resume="yes"), config)["messages"][-1].text)
        else:
            print(graph.invoke(Command(resume="yes"), config)["messages"][-1].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
'''


TABLES = """
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "function"
path = "service:decide"

[agents.orchestrator]
max_scope = ["repo:read", "pr:write"]

[agents.fixer]
max_scope = ["repo:read", "pr:write"]

[tools.read]
requires = ["repo:read"]
"""


@pytest.fixture
def service(start_service):
    """Run each step of a durable service in a process of its own."""
    step = start_service(SERVICE, TABLES)
    return lambda *arguments: step(*arguments).strip()


def test_another_process_goes_on_with_what_was_stored_and_not_without(service):
    assert service("begin", "t1") == ""
    assert "[delegation.missing]" in service("without", "t2")
    assert service("with", "t1") == "yes: read a"
