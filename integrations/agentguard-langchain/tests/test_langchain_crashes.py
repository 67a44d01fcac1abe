"""SIGKILL while a graph's tools run: in another process the graph goes on, and pays nothing twice.

A process runs an agent in one thread after another, with checkpoints in SQLite. It says what it has
come to, and is killed soon after one of these lines, a random one: a thread has begun, a tool has
paid, its checkpoint is about to be written, a thread has ended. A few rounds by default,
``AGENTGUARD_ROUNDS=full`` for many.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from preloaded import Preloaded
from served_folder import SERVER, serving

from agentguard.domain import config, domain, keystore, verify
from agentguard.store.reader import StoredLog

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
ROUNDS = 3 if FULL else 1
KILLS = 5 if FULL else 2
"""Of each round, on one state: with full rounds, 50 in all."""

PROGRAM = '''
import json, os, sys, time
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from obedient import Obedient

from agentguard import Decision, Guard
from agentguard_langchain import GuardMiddleware, guard_tools


def decide(document):
    return Decision.allow()


def say(what):
    """Print one line at once, whatever the thread."""
    os.write(1, f"{json.dumps(what)}\\n".encode())


class Slow(SqliteSaver):
    """Takes its time to keep what tools have done."""

    def put_writes(self, config, writes, task_id, task_path=""):
        if any("ToolMessage" in repr(value) for _channel, value in writes):
            say("keeps what a tool has done")
            time.sleep(0.1)  # it is killed meanwhile, more often than not
        super().put_writes(config, writes, task_id, task_path)


effects = os.open("effects", os.O_CREAT | os.O_APPEND | os.O_WRONLY)


def pay(to: str) -> str:
    """Pay somebody."""
    os.write(effects, f"{to}\\n".encode())  # seen by all, even after a SIGKILL
    say("has paid")
    return f"paid {to}"


def by_hand(agent, saver):
    """Both calls in one task."""
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [Obedient().invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(guard_tools([pay], agent)))
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    graph.add_edge("tools", END)
    return graph.compile(checkpointer=saver)


def answers(state):
    return [m.content for m in state["messages"] if m.type == "tool"]


def main(way, step, *names):
    with (
        Guard.open("agentguard.toml", passphrase=b"of this test") as guard,
        Slow.from_conn_string("graph.db") as saver,
    ):
        agent = guard.new_agent("payer")
        if way == "by_hand":
            graph = by_hand(agent, saver)
        else:
            guarding = GuardMiddleware(agent)
            graph = create_agent(Obedient(), [pay], middleware=[guarding], checkpointer=saver)
        if step == "resume":
            for name in names:
                where = {"configurable": {"thread_id": name}}
                state = graph.get_state(where)
                values = state.values
                if state.next:
                    values = graph.invoke(None, where, durability="sync")
                say([name, answers(values) if values else None])
            return
        for number in range(1_000_000):
            name = f"{names[0]}.{number}"
            say([name, None])
            where = {"configurable": {"thread_id": name}}
            calls = [["pay", {"to": f"{name}-{n}"}] for n in range(2)]
            given = {"messages": [HumanMessage(json.dumps(calls))]}
            state = graph.invoke(given, where, durability="sync")
            say([name, answers(state)])


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

TABLES = """
trust_domain = "acme.example"
anchor = "anchor"

[policy]
engine = "function"
path = "program:decide"

[agents.payer]
authority = "own"
"""


SERVED = pytest.param(True, marks=pytest.mark.slow("a server, and graphs that are killed"))


@pytest.fixture(params=[False, SERVED], ids=["embedded", "served"])
def folder(request: pytest.FixtureRequest, preloaded: Preloaded) -> Iterator[Path]:
    """A trust domain in a folder: each process has a guard of its own, or they share a server."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # a socket has a short path
        folder, tables = Path(name), TABLES + (SERVER if request.param else "")
        (folder / "program.py").write_text(PROGRAM, "utf-8")
        (folder / "agentguard.toml").write_text(textwrap.dedent(tables), "utf-8")
        settings = config.load(folder / "agentguard.toml")
        domain.found(settings, b"of this test", now=datetime.now(UTC))
        server = serving(preloaded, folder, "of this test") if request.param else None
        yield folder
        if server is not None:
            server.kill()
            server.wait()


MOST_LINES = 12
"""What a process says at most before it is killed: that is two threads, each with two payments."""


def told(lines):
    """The threads that were begun, in their order, with their answers as far as there are any."""
    said = [json.loads(line) for line in lines if line.endswith("\n")]
    return dict(one for one in said if isinstance(one, list))


def killed_at_work(preloaded, folder, way, name):
    """Let a process work, and kill it; return the threads that it has begun, with their answers."""
    here, there = os.pipe()
    with Path(os.devnull).open("rb") as nothing, (folder / "errors").open("wb") as errors:
        streams = (nothing, there, errors)
        working = preloaded.start("program.py", way, "work", name, cwd=folder, streams=streams)
    os.close(there)
    with os.fdopen(here, encoding="utf-8") as lines:
        said = [lines.readline() for _ in range(random.randint(1, MOST_LINES))]  # noqa: S311
        time.sleep(random.uniform(0, 0.02))  # noqa: S311  any moment will do
        working.kill()
        said += lines
    assert working.wait() == -signal.SIGKILL, (folder / "errors").read_text()
    return told(said)


def resumed(preloaded, folder, way, names):
    done = preloaded.run("program.py", way, "resume", *names, cwd=folder)
    assert done.returncode == 0, done.stderr
    return told(done.stdout.splitlines(keepends=True))


def effects_of(folder):
    path = folder / "effects"
    return Counter(path.read_text().split()) if path.exists() else Counter()


BY_HAND = pytest.param("by_hand", marks=pytest.mark.slow("graphs in processes that are killed"))


@pytest.mark.parametrize("way", ["agent", BY_HAND])
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_graph_that_goes_on_pays_once_and_says_what_it_does_not_know(
    preloaded, folder, round_, way
):
    last: dict[str, list[str]] = {}
    for kill in range(KILLS):
        begun = killed_at_work(preloaded, folder, way, f"{kill}")
        before = effects_of(folder)
        assert set(before.values()) <= {1}
        answered = resumed(preloaded, folder, way, list(begun)[-3:])
        after = effects_of(folder)
        assert set(after.values()) <= {1}, "a call has run twice"
        for name, texts in answered.items():
            assert begun[name] in (None, texts)
            for number, text in enumerate(texts or ()):
                to = f"{name}-{number}"
                if text == f"paid {to}":
                    assert after[to] == 1
                else:
                    assert "[journal.in_doubt]" in text, text
                    assert after[to] == before[to]
            last[name] = texts
        paid = {to.rpartition("-")[0] for to in after}
        assert all(answered[name] for name in answered if name in paid), "a call was lost"
    assert resumed(preloaded, folder, way, list(last)) == last
    assert set(effects_of(folder).values()) <= {1}
    settings = config.load(folder / "agentguard.toml")
    with closing(StoredLog.of(settings.state)) as reader:
        trust = keystore.load_trust(settings.state)
        report = verify.examine(reader, trust, anchor=folder / "anchor")
    assert report.problems == ()
