"""What the adapter's tests share: a scripted model, guards in memory, and logs as an auditor reads.

The fixtures at the end are for several files of one subject each; what they make is in ``support``.
CrewAI's own telemetry is off, and what it stores lies in a folder of the test run.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(
    prefix="agentguard-crewai-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")
)

import crewai_coworkers
import crewai_files
import crewai_firm
import crewai_parity
import crewai_payments
import crewai_probes
import crewai_shop
import crewai_traces
import crewai_vault
import pytest
import rounds
import yaml
from crewai import Agent, Crew, Task
from crewai.agents.agent_executor import AgentExecutor, AgentExecutorState
from crewai.events.event_bus import crewai_event_bus
from crewai.flow import Flow
from crewai.flow.runtime import FlowState
from crewai.tools import tool
from crewai.utilities import file_store
from preloaded import Preloaded
from scripted import Scripted, Step

from agentguard import Decision, Guard
from agentguard.audit.kinds import parse_entry
from agentguard.delegation import verification
from agentguard.domain import config, domain
from agentguard.identity import credential
from agentguard.signing.dsse import Envelope, parse_statement
from agentguard.testing import RecordedGuard
from agentguard_crewai import guard_crew

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
    outcomes: dict[int, str] = {}
    with closing(guard.reader()) as reader:
        for stored in reader.stored():
            read = parse_entry(stored.body)
            members: Any = read.members
            at = int(datetime.fromisoformat(read.at).timestamp())
            if read.kind == "identity":
                issued = credential.verify(members["credential"], guard.trust, at=at)
                keys[issued.uri] = issued.key
            elif read.kind == "delegation":
                chain = verification.from_json(members["chain"], guard.trust, at=at)
                lent[chain.sha256] = chain
            elif read.kind == "call":
                attached = {a.role: a.data for a in stored.attachments}
                found.append((stored.index, members, attached.get("arguments")))
            elif read.kind == "outcome":
                said = json.loads(b64decode(members["statement"]["payload"]))["predicate"]
                place = said["authorization"]
                if place is not None:
                    outcomes[place["index"]] = said["status"]
    return [_one(keys, lent, outcomes, *one) for one in found]


def _one(keys, lent, outcomes, place, members, arguments) -> Signed:
    sealed = Envelope.parse(members["invocation"], may_be_joint=True)
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


@pytest.fixture
def file_team(recorded, signed):
    """A guard whose policy keeps a secret, and a tool that reads it."""
    return crewai_files.FileTeam(recorded(agents=crewai_files.AGENTS), signed)


@pytest.fixture
def office(recorded) -> crewai_payments.Office:
    return crewai_payments.Office(recorded)


@pytest.fixture
def offices(recorded) -> Callable[..., crewai_payments.Office]:
    return lambda **tables: crewai_payments.Office(recorded, **tables)


@pytest.fixture
def bench(way, recorded, signed):
    """A bench in each of both ways."""
    return crewai_probes.bench_of(way, recorded, signed)


@pytest.fixture
def make_bench(way, recorded, signed):
    """Makes a bench with more in its configuration."""
    return lambda **tables: crewai_probes.bench_of(way, recorded, signed, **tables)


@pytest.fixture
def probe():
    """Tools that note when they run."""
    return crewai_probes.Probe()


@pytest.fixture
def shop(recorded) -> crewai_shop.Shop:
    return crewai_shop.Shop(recorded)


@pytest.fixture(params=["kickoff", "akickoff"])
def how(request):
    """The ways to kick off a crew; ``kickoff_async`` is ``kickoff`` in a thread.

    A test of what CrewAI does with its own settings takes one of them.
    """
    return crewai_parity.HOW[request.param]


@pytest.fixture
def same(recorded, signed, monkeypatch):
    """Runs something twice, unguarded and guarded, and compares; ``but`` are meant to differ.

    Under a delegation, each call's chain is the one that led to it, with the key of the last.
    """

    def run(build, run, guarded=guard_crew, but=(), chains=None) -> crewai_parity.Same:
        plain = crewai_parity.watched(build, run, monkeypatch).seen
        made = recorded(agents={name: {"max_scope": ["a"]} for name in crewai_parity.NAMES})
        with made.guard.delegate(
            crewai_parity.LENT[0], scope=["a", "b"], via=crewai_parity.LENT[1]
        ):
            watch = crewai_parity.watched(
                lambda watch: guarded(build(watch), made.guard), run, monkeypatch
            )
        assert set(watch.seen) == set(plain)
        for part in plain.keys() - set(but):
            assert crewai_parity.differing(plain[part], watch.seen[part], part) is None
        calls = signed(made.guard)
        for call in calls:
            assert call.chain[:2] == crewai_parity.LENT
            assert call.chain[-1] == call.agent
            assert (call.decision, call.scope) == ("allow", ("a",))
        assert {call.chain[2:] for call in calls} == (chains or {(c.agent,) for c in calls})
        return crewai_parity.Same(watch.seen, calls)

    return run


@pytest.fixture
def ran():
    """The paths that were read."""
    return []


@pytest.fixture
def read_file(ran):
    """A tool."""

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        ran.append(path)
        return f"the content of {path}"

    return read_file


@pytest.fixture
def strict(tmp_path, monkeypatch):
    """Makes a guard on the disk: it knows these agents and no others."""
    module: Any = ModuleType("crewai_identities_policy")
    module.decide = lambda _document: Decision.allow()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with ExitStack() as opened:

        def make(*names: str) -> Guard:
            folder = tmp_path / "guard"
            folder.mkdir()
            path = folder / "agentguard.toml"
            agents = "".join(f'[agents.{name}]\nauthority = "own"\n' for name in names)
            path.write_text(
                'trust_domain = "acme.example"\nstate = "state"\nanchor = "anchor"\n'
                f'[policy]\nengine = "function"\npath = "{module.__name__}:decide"\n{agents}',
                "utf-8",
            )
            domain.found(config.load(path), b"of this test", now=datetime.now(UTC))
            return opened.enter_context(Guard.open(path, passphrase=b"of this test"))

        yield make


@pytest.fixture
def write_yaml(tmp_path):
    """Write agents.yaml and tasks.yaml, and return their paths."""

    def write(agents: dict[str, Any], text: str | None = None) -> tuple[str, str]:
        tasks = {
            "research": {"description": "find", "expected_output": "facts"},
            "writing": {"description": "write", "expected_output": "words"},
        }
        paths = tmp_path / "agents.yaml", tmp_path / "tasks.yaml"
        paths[0].write_text(text if text is not None else yaml.safe_dump(agents), "utf-8")
        paths[1].write_text(yaml.safe_dump(tasks), "utf-8")
        return str(paths[0]), str(paths[1])

    return write


@pytest.fixture
def make_delegating_team(recorded, signed):
    """Make a team, with further tables of the configuration."""
    return lambda **tables: crewai_coworkers.DelegatingTeam(
        recorded(**{"agents": crewai_coworkers.AGENTS, **tables}), signed
    )


@pytest.fixture
def firm(recorded, native, tmp_path) -> crewai_firm.Firm:
    return crewai_firm.Firm(recorded, native, tmp_path)


@pytest.fixture
def traced_team(recorded):
    return crewai_traces.TracedTeam(recorded(agents=crewai_traces.AGENTS))


@pytest.fixture
def vault():
    """A tool with secrets."""
    return crewai_vault.Vault()


@pytest.fixture
def recorded_guard(recorded):
    """A guard whose agents act for whoever lends them something."""
    return recorded(agents=dict.fromkeys(crewai_vault.NAMES, crewai_vault.LENT))
