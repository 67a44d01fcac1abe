"""CrewAI's cache of results: a guarded agent has one of its own, and each hit is a call.

CrewAI keeps results by tool and arguments, for all agents of a crew, and asks that before it asks
anybody. So what is looked at here is who gets to see what somebody else's call has fetched, in both
ways of calling tools. That the cache is used at all, as unguarded, stands in
``test_crewai_parity.py`` as well.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
import rounds
from crewai import Crew, Process, Task
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from pydantic import BaseModel, ConfigDict

from agentguard import Decision, Guard, current_delegation
from agentguard.domain import administration, config, domain
from agentguard_crewai import guard_agent, guard_crew, resumable

LENT = {"max_scope": ["a", "b"]}
NAMES = ("lead", "writer", "crew-manager")


class Vault:
    """A tool whose results tell for whom it ran; ``ran`` has each run."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        ran = self.ran

        @tool
        def read_secret(name: str) -> str:
            """Read a secret."""
            lent = current_delegation()
            ran.append((lent.principal if lent else "nobody", name))
            return f"secret {len(ran)} of {name}"

        @tool
        def look(at: int) -> str:
            """Look at something else, so that no call is the last one once more."""
            return f"nothing at {at}"

        self.read_secret: Any = read_secret
        self.look: Any = look

    @property
    def tools(self) -> list[Any]:
        return [self.read_secret, self.look]


@pytest.fixture
def vault():
    """A tool with secrets."""
    return Vault()


@pytest.fixture
def lent(recorded):
    """A guard whose agents act for whoever lends them something."""
    return recorded(agents=dict.fromkeys(NAMES, LENT))


def delegated(guard: Guard, principal: str, **options: Any) -> Any:
    """What somebody lends to a crew."""
    return guard.delegate(principal, via="crew:report", **options)


def read(*names: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls for secrets, with a look at something else after each."""
    steps: list[tuple[str, dict[str, Any]]] = []
    for at, name in enumerate(names):
        steps += [("read_secret", {"name": name}), ("look", {"at": at})]
    return steps


def reads(calls: list[Any]) -> list[tuple[str, tuple[str, ...], str, str | None]]:
    """Who asked for a secret, on whose behalf, and what came of it."""
    return [
        (call.agent, call.chain, call.decision, call.outcome)
        for call in calls
        if call.tool == "read_secret"
    ]


def told(output: Any) -> list[str]:
    """What the models of a crew got to read, task by task."""
    return [str(task.messages) for task in output.tasks_output]


ALICE = ("user:alice", "crew:report", "lead")


# --- a hit is a call -----------------------------------------------------------------------------


def test_a_hit_is_recorded_and_the_tool_does_not_run_again(way, lent, signed, vault):
    lead = way.agent("Lead", *read("x", "x", "y"), "done", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert vault.ran == [("user:alice", "x"), ("user:alice", "y")]
    assert messages.count("secret 1 of x") == 2
    calls = signed(lent.guard)
    assert reads(calls) == [("lead", ALICE, "allow", "ok")] * 3
    assert [call.arguments for call in calls if call.tool == "read_secret"] == [
        {"name": "x"},
        {"name": "x"},
        {"name": "y"},
    ]
    # the policy was asked about the hit, too
    assert [document["action"] for document in lent.asked].count("read_secret") == 3


def test_a_hit_in_a_later_task_of_the_same_agent_is_a_call(native, lent, signed, vault):
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    tasks = [Task(description=d, expected_output="words", agent=lead) for d in "xy"]
    crew = guard_crew(Crew(agents=[lead], tasks=tasks, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert vault.ran == [("user:alice", "x")]
    assert reads(signed(lent.guard)) == [("lead", ALICE, "allow", "ok")] * 2


@pytest.mark.parametrize("change", ["denies", "fails", "wants an approval"])
def test_once_the_policy_has_changed_a_hit_is_none(way, lent, signed, vault, change):
    def decide(document):
        asked.append(document["action"])
        if document["action"] == "look" or asked.count("read_secret") == 1:
            return Decision.allow()
        if change == "fails":
            raise RuntimeError
        return Decision.deny("not now") if change == "denies" else Decision.require_approval()

    asked: list[str] = []
    lent.decide = decide
    lead = way.agent("Lead", *read("x", "x"), "done", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), lent.guard, timeout=0.05)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        output = crew.kickoff()
    assert vault.ran == [("user:alice", "x")]
    assert told(output)[0].count("secret 1 of x") == 1
    (failed,) = output.tasks_output[0].tool_failures
    assert (failed.failure.code, failed.tool_name) == (
        {
            "denies": "policy.denied",
            "fails": "policy.error",
            "wants an approval": "approval.pending",
        }[change],
        "read_secret",
    )
    first, *later = reads(signed(lent.guard))
    assert first == ("lead", ALICE, "allow", "ok")
    assert {decision for _, _, decision, _ in later} <= {"deny"}
    assert len(later) == (change != "wants an approval")


def test_a_hit_needs_an_approval_of_its_own(way, lent, signed, vault):
    asked = []

    def decide(document):
        if document["action"] != "read_secret" or "approval" in document:
            return Decision.allow()
        asked.append(document["args"])
        return Decision.require_approval()

    def answer():
        # the run and the first hit are approved, the second hit is not
        approvals, answered = lent.guard.approvals, []
        for verdict in (approvals.approve, approvals.approve, approvals.reject):
            while not (waiting := [one for one in approvals.pending() if one not in answered]):
                if done.wait(0.01):
                    return
            answered += waiting
            verdict(waiting[0], lent.approver)

    lent.decide = decide
    lead = way.agent("Lead", *read("x", "x", "x"), "done", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), lent.guard, timeout=120)
    done = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        answering = threads.submit(answer)
        try:
            with delegated(lent.guard, "user:alice", scope=["a"]):
                output = crew.kickoff()
        finally:
            done.set()
        answering.result()
    assert vault.ran == [("user:alice", "x")]
    assert told(output)[0].count("secret 1 of x") == 2
    codes = [one.failure.code for one in output.tasks_output[0].tool_failures]
    assert codes == ["approval.rejected"]
    assert reads(signed(lent.guard)) == [
        *[("lead", ALICE, "allow", "ok")] * 2,
        ("lead", ALICE, "deny", None),
    ]
    assert asked[0] == {"name": "x"}


def test_a_hit_counts_among_the_calls_that_were_lent(native, lent, signed, vault):
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"], max_calls=2):
        output = crew.kickoff()
    assert told(output)[0].count("secret 1 of x") == 1
    assert [call.code for call in signed(lent.guard)][:2] == ["", ""]
    assert {one.failure.code for one in output.tasks_output[0].tool_failures} == {"calls.exceeded"}


@pytest.fixture
def durable(tmp_path, monkeypatch):
    """A guard on the disk, of which things can be revoked."""
    module: Any = ModuleType("crewai_cache_policy")
    module.decide = lambda _document: Decision.allow()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "agentguard.toml"
    path.write_text(
        'trust_domain = "acme.example"\nstate = "state"\nanchor = "anchor"\n'
        '[policy]\nengine = "function"\npath = "crewai_cache_policy:decide"\n'
        '[agents.lead]\nmax_scope = ["a", "b"]\n',
        "utf-8",
    )
    settings = config.load(path)
    domain.found(settings, b"of this test", now=datetime.now(UTC))
    with Guard.open(path, passphrase=b"of this test") as guard:
        yield guard, settings


@pytest.mark.parametrize("name", ["agent:lead", "user:alice"])
def test_what_was_revoked_meanwhile_gets_no_hit(native, durable, signed, vault, name):
    guard, settings = durable

    @tool
    def revoke() -> str:
        """Let it be revoked meanwhile."""
        administration.revoke(settings, b"of this test", name, note="n", now=datetime.now(UTC))
        return "revoked"

    steps = [*read("x", "x"), ("revoke", {}), *read("x"), "done"]
    lead = native.agent("Lead", *steps, tools=[*vault.tools, revoke])
    crew = guard_crew(native.crew(lead, cache=True), guard)
    with delegated(guard, "user:alice", scope=["a"]):
        output = crew.kickoff()
    assert vault.ran == [("user:alice", "x")]
    assert told(output)[0].count("secret 1 of x") == 2
    codes = [one.failure.code for one in output.tasks_output[0].tool_failures]
    assert codes == ["delegation.revoked"] * 2
    decisions = [(decision, outcome) for _, _, decision, outcome in reads(signed(guard))]
    assert decisions == [("allow", "ok"), ("allow", "ok"), ("deny", None)]


# --- nobody else's results -----------------------------------------------------------------------


def only(*allowed: str):
    """A policy that lets these agents read secrets."""
    return lambda document: (
        Decision.allow()
        if document["action"] != "read_secret" or document["agent"]["name"] in allowed
        else Decision.deny("it is not for you")
    )


def wired(where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of an agent and of a crew, with a cache that is switched on somewhere."""
    if where == "crew":
        return {}, {"cache": True}
    return ({"cache": True} if where == "agents" else {"cache_handler": CacheHandler()}), {}


WHERE = ("crew", "agents", "shared handler")


@pytest.mark.parametrize("where", WHERE)
def test_a_denied_agent_is_served_nothing_that_another_has_read(way, lent, signed, vault, where):
    lent.decide = only("lead")
    options, more = wired(where)
    lead = way.agent("Lead", *read("x"), "done", tools=vault.tools, **options)
    writer = way.agent("Writer", *read("x"), "done", tools=vault.tools, **options)
    crew = guard_crew(way.crew(lead, writer, **more), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        output = crew.kickoff()
    allowed, denied = told(output)
    assert "secret 1 of x" in allowed
    assert "secret 1 of x" not in denied
    assert vault.ran == [("user:alice", "x")]
    assert [one.failure.code for one in output.tasks_output[1].tool_failures] == ["policy.denied"]
    assert reads(signed(lent.guard)) == [
        ("lead", ALICE, "allow", "ok"),
        ("writer", ("user:alice", "crew:report", "writer"), "deny", None),
    ]


@pytest.mark.parametrize("where", WHERE)
def test_an_allowed_agent_reads_for_itself(native, lent, signed, vault, where):
    options, more = wired(where)
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools, **options)
    writer = native.agent("Writer", *read("x", "x"), "done", tools=vault.tools, **options)
    crew = guard_crew(native.crew(lead, writer, **more), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        one, other = told(crew.kickoff())
    assert vault.ran == [("user:alice", "x")] * 2
    assert (one.count("secret 1 of x"), one.count("secret 2 of x")) == (2, 0)
    assert (other.count("secret 1 of x"), other.count("secret 2 of x")) == (0, 2)
    assert [agent for agent, *_ in reads(signed(lent.guard))] == ["lead"] * 2 + ["writer"] * 2


def test_a_coworker_is_served_nothing_that_was_read_for_who_asks(native, lent, signed, vault):
    lent.decide = only("lead")
    handed = {"task": "read it", "context": "c", "coworker": "Writer"}
    steps = [*read("x"), ("delegate_work_to_coworker", handed), "done"]
    lead = native.agent("Lead", *steps, tools=vault.tools, allow_delegation=True)
    writer = native.agent("Writer", *read("x"), "got nothing", tools=vault.tools)
    task = Task(description="a task", expected_output="words", agent=lead)
    crew = guard_crew(Crew(agents=[lead, writer], tasks=[task], cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        output = crew.kickoff()
    assert told(output)[0].count("secret 1 of x") == 1
    assert vault.ran == [("user:alice", "x")]
    assert "secret 1" not in str(writer.last_messages)
    assert reads(signed(lent.guard)) == [
        ("lead", ALICE, "allow", "ok"),
        ("writer", (*ALICE, "writer"), "deny", None),
    ]


def test_a_manager_and_its_coworkers_share_nothing(native, lent, signed, vault):
    lent.decide = only("writer")
    handed = {"task": "read it", "context": "c", "coworker": "Writer"}
    again = {**handed, "context": "d"}
    writer = native.agent("Writer", *read("x"), "it is read", tools=vault.tools)
    steps = [("delegate_work_to_coworker", one) for one in (handed, again, handed)]
    task = Task(description="a task", expected_output="words")
    crew = Crew(
        agents=[writer],
        tasks=[task],
        process=Process.hierarchical,
        manager_llm=native.model(*steps, "done"),
        cache=True,
    )
    guard_crew(crew, lent.guard)
    writer.llm.steps += [*read("x"), "it is read again"]
    with delegated(lent.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    # the third handing on is a hit of the manager's own, the writer's second read one of its own
    assert vault.ran == [("user:alice", "x")]
    calls = signed(lent.guard)
    chain = ("user:alice", "crew:report", "crew-manager")
    handing = [c for c in calls if c.tool == "delegate_work_to_coworker"]
    assert [(c.agent, c.chain, c.outcome) for c in handing] == [("crew-manager", chain, "ok")] * 3
    assert reads(calls) == [("writer", (*chain, "writer"), "allow", "ok")] * 2


def test_results_cross_no_principals(way, lent, signed, vault):
    lead = way.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        assert "secret 1 of x" in told(crew.kickoff())[0]
    with delegated(lent.guard, "user:bob", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert "secret 1 of x" not in messages
    assert "secret 2 of x" in messages
    assert vault.ran == [("user:alice", "x"), ("user:bob", "x")]
    assert [chain[0] for _, chain, _, _ in reads(signed(lent.guard))] == ["user:alice", "user:bob"]


@pytest.mark.parametrize(
    ("scope", "ran"), [(["a"], 1), (["a", "b"], 2), (["b"], 2)], ids=["same", "more", "other"]
)
def test_results_cross_no_scopes(native, lent, vault, scope, ran):
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    for one in (["a"], scope):
        with delegated(lent.guard, "user:alice", scope=one):
            crew.kickoff()
    assert len(vault.ran) == ran


def test_what_was_read_for_a_principal_is_none_of_nobodys(native, recorded, signed, vault):
    made = recorded(agents={"lead": {"authority": "own"}})
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), made.guard)
    with delegated(made.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    crew.kickoff()
    assert vault.ran == [("user:alice", "x"), ("nobody", "x")]
    assert [chain for _, chain, _, _ in reads(signed(made.guard))] == [ALICE, ()]


def test_a_principal_can_not_be_named_in_the_arguments(native, lent, vault):
    # the key of a result is made of the arguments and of the principal: one must not end as both
    tail = json.dumps(["user:alice", "a"])
    spoofed = [("read_secret", {"name": f'x"}} {tail}'}), ("read_secret", {"name": "x"})]
    lead = native.agent("Lead", *read("x"), "one", *spoofed, "two", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    for user in ("user:alice", "user:bob"):
        with delegated(lent.guard, user, scope=["a"]):
            crew.kickoff()
    assert [principal for principal, _ in vault.ran] == ["user:alice", "user:bob", "user:bob"]


# --- handlers that the application shares --------------------------------------------------------


HANDED = {
    "at construction": lambda agent, shared: None,
    "set": lambda agent, shared: agent.set_cache_handler(shared),
    "in the handler of tools": lambda agent, shared: setattr(agent.tools_handler, "cache", shared),
    "in a new handler of tools": lambda agent, shared: setattr(
        agent, "tools_handler", ToolsHandler(cache=shared)
    ),
}


@pytest.mark.parametrize(("handed", "when"), rounds.half(HANDED, ["before", "after"]))
def test_a_handler_of_the_application_is_neither_read_nor_filled(
    native, lent, signed, vault, handed, when
):
    shared = CacheHandler()
    shared.add("read_secret", json.dumps({"name": "x"}), "planted")
    options = {"cache_handler": shared} if handed == "at construction" else {}
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools, **options)
    if when == "before":
        HANDED[handed](lead, shared)
    crew = guard_crew(native.crew(lead), lent.guard)
    if when == "after":
        HANDED[handed](lead, shared)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert "planted" not in messages
    assert vault.ran == [("user:alice", "x")]
    assert messages.count("secret 1 of x") == 2
    assert shared._cache == {f"read_secret-{json.dumps({'name': 'x'})}": "planted"}
    assert reads(signed(lent.guard)) == [("lead", ALICE, "allow", "ok")] * 2


SHARED = {
    "the handler": lambda one, other: other.set_cache_handler(one.cache_handler),
    "the cache": lambda one, other: setattr(other.tools_handler, "cache", one.cache_handler),
    "the handler of tools": lambda one, other: setattr(other, "tools_handler", one.tools_handler),
    "the field": lambda one, other: setattr(other, "cache_handler", one.cache_handler),
}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("allowed", ["lead", "both"])
def test_what_a_guarded_agent_has_is_not_shared_with_another(
    native, lent, signed, vault, shared, allowed
):
    lent.decide = only("lead", *(["writer"] if allowed == "both" else []))
    # not the crew's cache: each executor that is made for an agent sets that anew
    lead = native.agent("Lead", *read("x"), "done", tools=vault.tools, cache=True)
    writer = native.agent("Writer", *read("x"), "done", tools=vault.tools, cache=True)
    crew = guard_crew(native.crew(lead, writer), lent.guard)
    SHARED[shared](lead, writer)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        _, messages = told(crew.kickoff())
    assert "secret 1 of x" not in messages
    assert len(vault.ran) == (2 if allowed == "both" else 1)
    came = ("allow", "ok") if allowed == "both" else ("deny", None)
    assert reads(signed(lent.guard)) == [
        ("lead", ALICE, "allow", "ok"),
        ("writer", ("user:alice", "crew:report", "writer"), *came),
    ]


def test_what_an_unguarded_run_has_read_is_not_served(native, lent, signed, vault):
    lent.decide = only()
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    crew = native.crew(lead, cache=True)
    assert "secret 1 of x" in told(crew.kickoff())[0]
    guard_crew(crew, lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert "secret 1" not in messages
    assert vault.ran == [("nobody", "x")]
    assert reads(signed(lent.guard)) == [("lead", ALICE, "deny", None)]


def test_an_agent_that_wants_no_cache_has_none(native, lent, signed, vault):
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools, cache=False)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert len(vault.ran) == 2
    assert reads(signed(lent.guard)) == [("lead", ALICE, "allow", "ok")] * 2


# --- copies, and agents by themselves ------------------------------------------------------------


def test_copies_share_no_results(native, lent, signed, vault):
    steps = [*read("x"), "one"]
    lead = native.agent("Lead", *steps, *steps, tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    copied = crew.copy()
    copied.agents[0].llm.steps = list(steps)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        (one,), (other,) = told(crew.kickoff()), told(copied.kickoff())
    assert "secret 1 of x" in one
    assert "secret 1 of x" not in other
    assert len(vault.ran) == 2
    calls = [call for call in signed(lent.guard) if call.tool == "read_secret"]
    assert len({call.instance for call in calls}) == 2


def test_an_agent_by_itself_has_its_own(native, lent, signed, vault):
    lent.decide = only("lead")
    shared = CacheHandler()
    lead, writer = (
        native.agent(role, *read("x", "x"), "done", tools=vault.tools, cache_handler=shared)
        for role in ("Lead", "Writer")
    )
    for agent in (lead, writer):
        guard_agent(agent, lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        assert str(lead.kickoff("read").messages).count("secret 1 of x") == 2
        assert "secret 1 of x" not in str(writer.kickoff("read").messages)
    assert vault.ran == [("user:alice", "x")]
    assert [(agent, decision) for agent, _, decision, _ in reads(signed(lent.guard))] == [
        *[("lead", "allow")] * 2,
        *[("writer", "deny")] * 2,
    ]


# --- what a hit binds ----------------------------------------------------------------------------


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = "x"


class Typed(BaseModel):
    name: str
    limit: int = 3


BOUND: dict[str, tuple[type[BaseModel] | None, dict[str, Any]]] = {
    "defaults and coercion": (Typed, {"name": "x", "limit": "5"}),
    "members that the schema lets in": (Open, {"name": "x", "colour": "red"}),
    "members that it does not name": (Typed, {"name": "x", "colour": "red"}),
    "no schema": (None, {"name": "x"}),
    "nothing": (Typed, {"name": ""}),
}


@pytest.mark.parametrize("kind", BOUND)
def test_a_hit_binds_what_the_tool_had_received(way, lent, signed, vault, kind):
    schema, given = BOUND[kind]
    received: list[dict[str, Any]] = []

    def function(**values: Any) -> str:
        received.append(values)
        return "fetched"

    options = {} if schema is None else {"args_schema": schema}
    fetch = Tool(name="fetch", description="Fetch.", func=function, **options)
    steps = ("fetch", given), ("look", {"at": 1}), ("fetch", given), "done"
    lead = way.agent("Lead", *steps, tools=[fetch, vault.look])
    crew = guard_crew(way.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert len(received) == 1
    bound = [call.arguments for call in signed(lent.guard) if call.tool == "fetch"]
    assert bound == received * 2


def test_a_hit_is_one_of_the_tool_that_had_run(native, lent, signed):
    def made(name: str, description: str, limit: int) -> Any:
        class Limited(BaseModel):
            path: str
            by: int = limit

        def function(path: str, by: int) -> str:
            ran.append(by)
            return f"read by {by}"

        return Tool(name=name, description=description, func=function, args_schema=Limited)

    ran: list[int] = []
    tools = [made("read_it", "One.", 1), made("Read It", "Other.", 2)]
    one, other = ("read_it", {"path": "a"}), ("read_it_2", {"path": "a"})
    lead = native.agent("Lead", one, other, one, other, "done", tools=tools)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert ran == [1, 2]
    assert [(call.tool, call.arguments["by"]) for call in signed(lent.guard)] == [
        ("read_it", 1),
        ("read_it_2", 2),
    ] * 2


@pytest.mark.parametrize("kept", ["", 0, False, [], {}, None])
def test_an_empty_result_is_a_hit_as_it_is_unguarded(way, lent, signed, vault, kept):
    def run(guarded: bool) -> tuple[int, str]:
        ran: list[int] = []

        class Empty(BaseTool):
            name: str = "empty"
            description: str = "Returns little."

            def _run(self, at: int) -> Any:
                ran.append(at)
                return kept

        steps = ("empty", {"at": 1}), ("look", {"at": 1}), ("empty", {"at": 1}), "done"
        crew = way.crew(way.agent("Lead", *steps, tools=[Empty(), vault.look]), cache=True)
        if guarded:
            guard_crew(crew, lent.guard)
        with delegated(lent.guard, "user:alice", scope=["a"]):
            return len(ran), told(crew.kickoff())[0]

    assert run(guarded=False) == run(guarded=True)
    assert [call.outcome for call in signed(lent.guard)] == ["ok"] * 3


def test_the_very_object_is_served(native, lent, vault):
    class Page(BaseModel):
        text: str

    page = Page(text="t")
    seen: list[Any] = []

    @tool
    def fetch(url: str) -> Page:
        """Fetch."""
        return page

    lead = native.agent("Lead", ("fetch", {"url": "u"}), "done", tools=[fetch], cache=True)
    crew = guard_crew(native.crew(lead), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        crew.kickoff()
        seen.append(lead.tools_handler.cache.read("fetch", json.dumps({"url": "u"})))
    assert seen == [page]
    assert seen[0] is page


def test_a_hit_in_a_run_that_goes_on_is_a_hit_again(native, lent, signed, vault):
    def begun():
        lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools)
        with delegated(lent.guard, "user:alice", scope=["a"]), resumable("order-1"):
            crew = guard_crew(native.crew(lead, cache=True), lent.guard)
            return told(crew.kickoff())[0]

    assert begun().count("secret 1 of x") == 2
    # the same run once more, as after a crash: each call was made, and its result is handed out
    assert begun().count("secret 1 of x") == 2
    assert vault.ran == [("user:alice", "x")]
    assert {decision for _, _, decision, _ in reads(signed(lent.guard))} == {"allow"}


# --- at the same time ----------------------------------------------------------------------------


def test_crews_at_the_same_time_get_their_own(native, lent, signed):
    ran: list[str] = []

    @tool
    def whoami(at: int) -> str:
        """Say for whom this runs."""
        lent = current_delegation()
        assert lent is not None
        ran.append(lent.principal)
        return f"it is {lent.principal}"

    shared, count = CacheHandler(), 8
    start = threading.Barrier(count)
    steps = [("whoami", {"at": at}) for at in (1, 2, 1)]

    def one(number: int) -> str:
        lead = native.agent("Lead", *steps, "done", tools=[whoami], cache_handler=shared)
        crew = guard_crew(native.crew(lead), lent.guard)
        with delegated(lent.guard, f"user:u{number}", scope=["a"]):
            start.wait()
            return told(crew.kickoff())[0]

    with ThreadPoolExecutor(count) as threads:
        heard = list(threads.map(one, range(count)))
    for number, messages in enumerate(heard):
        assert messages.count(f"it is user:u{number}") == 3
        assert messages.count("it is user:u") == 3
    assert sorted(ran) == sorted([f"user:u{number}" for number in range(count)] * 2)
    calls = signed(lent.guard)
    assert len(calls) == 3 * count
    assert len({call.instance for call in calls}) == count
    for call in calls:
        assert call.chain[1:] == ALICE[1:]


def test_parallel_hits_of_one_step_are_calls(native, lent, signed, vault):
    step = [("read_secret", {"name": "x"})] * 3
    lead = native.agent("Lead", step[0], step, "done", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), lent.guard)
    with delegated(lent.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert vault.ran == [("user:alice", "x")]
    assert messages.count("secret 1 of x") == 4
    assert reads(signed(lent.guard)) == [("lead", ALICE, "allow", "ok")] * 4
