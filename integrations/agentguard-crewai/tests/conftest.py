"""What the adapter's tests share: a scripted model, guards in memory, and logs as an auditor reads.

CrewAI's own telemetry is off, and what it stores lies in a folder of the test run.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from base64 import b64decode
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(
    prefix="agentguard-crewai-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")
)

import pytest
import rounds
from crewai import Agent, Crew, Task
from crewai.agents.agent_executor import AgentExecutor, AgentExecutorState
from crewai.events.event_bus import crewai_event_bus
from crewai.flow import Flow
from crewai.flow.runtime import FlowState
from crewai.utilities import file_store
from preloaded import Preloaded
from scripted import Scripted, Step

from agentguard.audit.entry import parse_entry
from agentguard.delegation import verification
from agentguard.identity import credential
from agentguard.signing.dsse import Envelope, parse_statement
from agentguard.testing import RecordedGuard

atexit.register(shutil.rmtree, os.environ["CREWAI_STORAGE_DIR"], ignore_errors=True)


class ExecutorState(FlowState, AgentExecutorState):
    """The class that CrewAI makes anew, as this one, of the state of each executor."""


HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Run the cases of a test in both ways by turns, unless a test is named or all are to run."""
    rounds.leave_out(config, items, HERE, "way", "how")


@pytest.fixture(scope="session", autouse=True)
def _quick_crewai() -> Iterator[None]:
    """Make once what CrewAI makes for each executor, and leave out what no test looks at.

    That are the memory of a flow that has none, the store of files (each look into it is an event
    loop, often in a thread), and CrewAI's listeners, which print and trace (each event is a job of
    a thread). Crews in processes of their own run all of these.
    """
    AgentExecutor.flow_definition()  # which is not made for several threads at once
    with pytest.MonkeyPatch.context() as patched, crewai_event_bus.scoped_handlers():
        patched.setattr(AgentExecutor, "_initial_state_t", ExecutorState)
        patched.setattr(Flow, "_skip_auto_memory", True, raising=False)
        patched.setattr(file_store, "_file_store", None)
        patched.setattr(file_store, "_run_sync", _without_a_loop)
        yield


def _without_a_loop(job: Coroutine[None, None, Any]) -> Any:
    """Return the result of a coroutine that waits for nothing."""
    try:
        job.send(None)
    except StopIteration as ended:
        return ended.value
    message = "CrewAI's store of files is off in the tests"
    raise AssertionError(message)


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Processes that have CrewAI, and in which nothing was guarded yet."""
    made = Preloaded(
        "cheap_keys",
        "late_grammar",
        "agentguard_crewai",
        "agentguard.cli",
        "crewai.flow.persistence",
        "mcp.server.fastmcp",
        "uvicorn",
    )
    yield made
    made.close()


@dataclass(frozen=True)
class Way:
    """How a model calls tools: natively, or in text that CrewAI reads (ReAct)."""

    native: bool

    def model(self, *steps: Step) -> Scripted:
        """Return a model that goes through these steps."""
        return Scripted(model="scripted", native=self.native, steps=list(steps))

    def agent(self, role: str, *steps: Step, **options: Any) -> Agent:
        """Return an agent with a model that goes through these steps."""
        given = {"goal": "a goal", "backstory": "a story", "llm": self.model(*steps), **options}
        return Agent(role=role, **given)

    def crew(self, *agents: Agent, **options: Any) -> Crew:
        """Return a crew with one task for each of its agents; ``options`` may have other tasks."""
        tasks = [Task(description="a task", expected_output="words", agent=one) for one in agents]
        return Crew(**{"agents": list(agents), "tasks": tasks, **options})


@pytest.fixture(params=["native", "text"])
def way(request) -> Way:
    """Both ways, one after the other: for tests of what runs, caches, retries or tells of a call.

    The other parameters of a test take the ways by turns (``rounds.in_turns``). Every
    other test takes ``native``: past the tool, both ways are one in the adapter.
    """
    return Way(request.param == "native")


@pytest.fixture
def native() -> Way:
    """The way of models with function calling."""
    return Way(native=True)


@pytest.fixture
def text() -> Way:
    """The way of models that write their calls as text."""
    return Way(native=False)


@dataclass(frozen=True)
class Signed:
    """An authorization, its signatures verified: by whose key it was made, and for whom.

    ``chain`` are the names of those in the chain of delegation, agents by their short names and by
    nothing else; empty without a delegation. ``instance`` is the URI of the agent whose key signed.
    """

    agent: str
    tool: str
    decision: str
    code: str
    chain: tuple[str, ...]
    scope: tuple[str, ...]
    instance: str
    arguments: Any
    site: Any
    outcome: str | None


def _signed(guard: Any) -> list[Signed]:
    """Read the log of a guard, and verify each invocation with the key of whom it names."""
    found: list[tuple[Any, Any, Any]] = []
    keys: dict[str, Any] = {}
    lent: dict[str, Any] = {}
    outcomes: dict[tuple[int, int], str] = {}
    with closing(guard.reader()) as reader:
        for shard in reader.shards():
            for stored in reader.stored(shard):
                read = parse_entry(stored.body)
                members: Any = read.members
                at = int(datetime.fromisoformat(read.at).timestamp())
                if read.kind == "identity":
                    issued = credential.verify(members["credential"], guard.trust, at=at)
                    keys[issued.uri] = issued.key
                elif read.kind == "delegation":
                    chain = verification.from_json(members["chain"], guard.trust, at=at)
                    lent[chain.sha256] = chain
                elif read.kind == "authorization":
                    attached = {a.role: a.data for a in stored.attachments}
                    found.append(((shard, stored.index), members, attached.get("arguments")))
                elif read.kind == "outcome":
                    said = json.loads(b64decode(members["statement"]["payload"]))["predicate"]
                    place = said["authorization"]
                    if place is not None:
                        outcomes[(place["shard"], place["index"])] = said["status"]
    return [_one(keys, lent, outcomes, *one) for one in found]


def _one(keys, lent, outcomes, place, members, arguments) -> Signed:
    sealed = Envelope.parse(members["invocation"])
    claimed = json.loads(sealed.payload)["predicate"]["agent"]
    said: Any = parse_statement(sealed.verify(keys[claimed]), "invocation").predicate
    chain = lent[said["chain_sha256"]] if said["chain_sha256"] is not None else None
    return Signed(
        agent=credential.agent_name(claimed) or "",
        tool=said["tool"]["name"],
        decision=members["decision"],
        code=members["code"],
        chain=() if chain is None else tuple(credential.agent_name(m) or m for m in chain.members),
        scope=() if chain is None else tuple(chain.leaf.scope),
        instance=claimed,
        arguments=None if arguments is None else json.loads(arguments),
        site=said["call_site"],
        outcome=outcomes.get(place),
    )


@pytest.fixture
def signed() -> Callable[[Any], list[Signed]]:
    """Returns the calls of a guard, in their order, each verified."""
    return _signed


@pytest.fixture
def recorded() -> Iterator[Callable[..., RecordedGuard]]:
    """Make guards in memory whose policy a test sets; their logs verify in the end."""
    made: list[RecordedGuard] = []

    def make(**tables: Any) -> RecordedGuard:
        made.append(RecordedGuard.make(**tables))
        return made[-1]

    yield make
    for one in made:
        one.require_sound()
        one.guard.close()
