"""A hit in CrewAI's cache of results is a call: it is decided, recorded and bound like one.

That the cache is used as unguarded is in ``test_crewai_parity_results.py``.
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
from crewai import Crew, Task
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai_vault import ALICE, delegated, read, reads, told
from pydantic import BaseModel, ConfigDict

from agentguard import Decision, Guard
from agentguard.domain import administration, config, domain
from agentguard_crewai import guard_crew, resumable

# --- a hit is a call -----------------------------------------------------------------------------


def test_a_hit_is_recorded_and_the_tool_does_not_run_again(way, recorded_guard, signed, vault):
    lead = way.agent("Lead", *read("x", "x", "y"), "done", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        (messages,) = told(crew.kickoff())
    assert vault.ran == [("user:alice", "x"), ("user:alice", "y")]
    assert messages.count("secret 1 of x") == 2
    calls = signed(recorded_guard.guard)
    assert reads(calls) == [("lead", ALICE, "allow", "ok")] * 3
    assert [call.arguments for call in calls if call.tool == "read_secret"] == [
        {"name": "x"},
        {"name": "x"},
        {"name": "y"},
    ]
    # the policy was asked about the hit, too
    assert [document["action"] for document in recorded_guard.policy_inputs].count(
        "read_secret"
    ) == 3


def test_a_hit_in_a_later_task_of_the_same_agent_is_a_call(native, recorded_guard, signed, vault):
    lead = native.agent("Lead", *read("x"), "one", *read("x"), "two", tools=vault.tools)
    tasks = [Task(description=d, expected_output="words", agent=lead) for d in "xy"]
    crew = guard_crew(Crew(agents=[lead], tasks=tasks, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert vault.ran == [("user:alice", "x")]
    assert reads(signed(recorded_guard.guard)) == [("lead", ALICE, "allow", "ok")] * 2


@pytest.mark.parametrize("change", ["denies", "fails", "wants an approval"])
def test_once_the_policy_has_changed_a_hit_is_none(way, recorded_guard, signed, vault, change):
    def decide(document):
        asked.append(document["action"])
        if document["action"] == "look" or asked.count("read_secret") == 1:
            return Decision.allow()
        if change == "fails":
            raise RuntimeError
        return Decision.deny("not now") if change == "denies" else Decision.require_approval()

    asked: list[str] = []
    recorded_guard.decide = decide
    lead = way.agent("Lead", *read("x", "x"), "done", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), recorded_guard.guard, timeout=0.05)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
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
    first, *later = reads(signed(recorded_guard.guard))
    assert first == ("lead", ALICE, "allow", "ok")
    assert {decision for _, _, decision, _ in later} <= {"deny"}
    assert len(later) == (change != "wants an approval")


def test_a_hit_needs_an_approval_of_its_own(way, recorded_guard, signed, vault):
    asked = []

    def decide(document):
        if document["action"] != "read_secret" or "approval" in document:
            return Decision.allow()
        asked.append(document["args"])
        return Decision.require_approval()

    def answer():
        # the run and the first hit are approved, the second hit is not
        approvals, answered = recorded_guard.guard.approvals, []
        for verdict in (approvals.approve, approvals.approve, approvals.reject):
            while not (waiting := [one for one in approvals.pending() if one not in answered]):
                if done.wait(0.01):
                    return
            answered += waiting
            verdict(waiting[0], recorded_guard.approver)

    recorded_guard.decide = decide
    lead = way.agent("Lead", *read("x", "x", "x"), "done", tools=vault.tools)
    crew = guard_crew(way.crew(lead, cache=True), recorded_guard.guard, timeout=120)
    done = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        answering = threads.submit(answer)
        try:
            with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
                output = crew.kickoff()
        finally:
            done.set()
        answering.result()
    assert vault.ran == [("user:alice", "x")]
    assert told(output)[0].count("secret 1 of x") == 2
    codes = [one.failure.code for one in output.tasks_output[0].tool_failures]
    assert codes == ["approval.rejected"]
    assert reads(signed(recorded_guard.guard)) == [
        *[("lead", ALICE, "allow", "ok")] * 2,
        ("lead", ALICE, "deny", None),
    ]
    assert asked[0] == {"name": "x"}


def test_a_hit_counts_among_the_calls_that_were_lent(native, recorded_guard, signed, vault):
    lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools)
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"], max_calls=2):
        output = crew.kickoff()
    assert told(output)[0].count("secret 1 of x") == 1
    assert [call.code for call in signed(recorded_guard.guard)][:2] == ["", ""]
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
def test_a_hit_binds_what_the_tool_had_received(way, recorded_guard, signed, vault, kind):
    schema, given = BOUND[kind]
    received: list[dict[str, Any]] = []

    def function(**values: Any) -> str:
        received.append(values)
        return "fetched"

    options = {} if schema is None else {"args_schema": schema}
    fetch = Tool(name="fetch", description="Fetch.", func=function, **options)
    steps = ("fetch", given), ("look", {"at": 1}), ("fetch", given), "done"
    lead = way.agent("Lead", *steps, tools=[fetch, vault.look])
    crew = guard_crew(way.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert len(received) == 1
    bound = [call.arguments for call in signed(recorded_guard.guard) if call.tool == "fetch"]
    assert bound == received * 2


def test_a_hit_is_one_of_the_tool_that_had_run(native, recorded_guard, signed):
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
    crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        crew.kickoff()
    assert ran == [1, 2]
    assert [(call.tool, call.arguments["by"]) for call in signed(recorded_guard.guard)] == [
        ("read_it", 1),
        ("read_it_2", 2),
    ] * 2


@pytest.mark.parametrize("kept", ["", 0, False, [], {}, None])
def test_an_empty_result_is_a_hit_as_it_is_unguarded(way, recorded_guard, signed, vault, kept):
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
            guard_crew(crew, recorded_guard.guard)
        with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
            return len(ran), told(crew.kickoff())[0]

    assert run(guarded=False) == run(guarded=True)
    assert [call.outcome for call in signed(recorded_guard.guard)] == ["ok"] * 3


def test_the_very_object_is_served(native, recorded_guard, vault):
    class Page(BaseModel):
        text: str

    page = Page(text="t")
    seen: list[Any] = []

    @tool
    def fetch(url: str) -> Page:
        """Fetch."""
        return page

    lead = native.agent("Lead", ("fetch", {"url": "u"}), "done", tools=[fetch], cache=True)
    crew = guard_crew(native.crew(lead), recorded_guard.guard)
    with delegated(recorded_guard.guard, "user:alice", scope=["a"]):
        crew.kickoff()
        seen.append(lead.tools_handler.cache.read("fetch", json.dumps({"url": "u"})))
    assert seen == [page]
    assert seen[0] is page


def test_a_hit_in_a_run_that_goes_on_is_a_hit_again(native, recorded_guard, signed, vault):
    def begun():
        lead = native.agent("Lead", *read("x", "x"), "done", tools=vault.tools)
        with delegated(recorded_guard.guard, "user:alice", scope=["a"]), resumable("order-1"):
            crew = guard_crew(native.crew(lead, cache=True), recorded_guard.guard)
            return told(crew.kickoff())[0]

    assert begun().count("secret 1 of x") == 2
    # the same run once more, as after a crash: each call was made, and its result is handed out
    assert begun().count("secret 1 of x") == 2
    assert vault.ran == [("user:alice", "x")]
    assert {decision for _, _, decision, _ in reads(signed(recorded_guard.guard))} == {"allow"}
