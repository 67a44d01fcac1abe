"""Named runs that failed: calls not completed, CrewAI's own retries, and another process."""

from __future__ import annotations

import importlib
import json
import os
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from crewai_shop import BEN, DOWN, LENT, LOOK, PAY, calls_of, task

from agentguard import Decision, Ed25519Signer, Guard
from agentguard.domain import config, domain
from agentguard_crewai import resumable

# --- what was not completed -----------------------------------------------------------------------


def test_a_call_that_failed_is_made_again(shop, way, signed):
    shop.failing = [OSError("no network")]
    first = shop.tried(way, PAY, "done")
    assert first.codes == ["OSError"]
    assert shop.ran == []
    second = shop.tried(way, PAY, "done")
    assert (second.codes, shop.ran) == ([], ["ann"])
    assert [call.outcome for call in calls_of(signed, shop)] == ["error", "ok"]


def test_a_call_that_failed_and_was_made_once_more_is_not_made_a_third_time(shop, way):
    shop.failing = [OSError("no network")]
    shop.tried(way, PAY, LOOK, PAY, DOWN)
    assert shop.ran == ["books", "ann"]
    second = shop.tried(way, PAY, "done")
    assert shop.ran == ["books", "ann"]
    assert "paid ann as number 2" in second.heard


def test_a_call_that_was_denied_and_then_allowed_is_not_made_a_second_time(shop, native):
    shop.answers["pay"] = Decision.deny("not yet")
    shop.then = shop.answers.clear
    shop.tried(native, PAY, LOOK, PAY, DOWN)
    assert shop.ran == ["books", "ann"]
    second = shop.tried(native, PAY, "done")
    assert shop.ran == ["books", "ann"]
    assert "paid ann as number 2" in second.heard


def test_a_call_that_waited_in_vain_finds_its_answer_when_it_is_made_again(shop, native, signed):
    shop.terms = {"on_approval": "wait", "timeout": 0}
    shop.answers["pay"] = Decision.require_approval()
    shop.then = shop.log.approve
    first = shop.tried(native, PAY, LOOK, PAY, DOWN)
    assert shop.ran == ["books", "ann"], first.codes
    second = shop.tried(native, PAY, "done")
    assert (shop.ran, second.codes) == (["books", "ann"], [])
    assert [call.outcome for call in calls_of(signed, shop)] == ["ok", "not_run"]


def test_calls_that_fail_at_once_are_each_made_again_and_none_twice(shop, native):
    shop.failing = [OSError("no network")]
    shop.tried(native, (PAY, PAY), DOWN)
    assert shop.ran == ["ann"]
    shop.tried(native, (PAY, PAY), "done")
    assert shop.ran == ["ann", "ann"]
    shop.tried(native, (PAY, PAY), "done")
    assert shop.ran == ["ann", "ann"]


@pytest.mark.parametrize("error", [TimeoutError("no answer"), KeyboardInterrupt(), SystemExit(1)])
def test_of_a_call_that_was_cut_short_nobody_knows(shop, native, signed, error):
    shop.failing = [error]
    lead = shop.agent(native, PAY, "done")
    with shop.lent(), resumable("order-1"):
        try:
            shop.crew(native.crew(lead)).kickoff()
        except (KeyboardInterrupt, SystemExit) as raised:
            assert raised is error  # noqa: PT017  a tool's TimeoutError is told to the model
    second = shop.tried(native, PAY, LOOK, "done")
    assert second.codes == ["journal.cut_short"]
    assert shop.ran == ["books"]
    (failure,) = second.failures
    assert (failure.retryable, "nobody knows whether it ran" in failure.message) == (False, True)
    assert [call.outcome for call in calls_of(signed, shop)] == ["unknown", None]


@pytest.mark.parametrize("error", [TimeoutError("no answer"), KeyboardInterrupt()])
def test_a_call_in_doubt_is_refused_however_often_the_model_makes_it(shop, way, error):
    shop.failing = [error]
    with shop.lent(), resumable("order-1"), suppress(KeyboardInterrupt):
        shop.crew(way.crew(shop.agent(way, PAY, "done"))).kickoff()
    for _ in range(2):
        told = shop.tried(way, PAY, LOOK, PAY, BEN, PAY, "done")
        assert told.codes == ["journal.cut_short"] * 3
    assert shop.ran == ["books", "ben"]


def test_a_call_that_timed_out_is_in_doubt_at_once(shop, way):
    shop.failing = [TimeoutError("no answer")]
    told = shop.tried(way, PAY, LOOK, PAY, "done")
    assert told.codes == ["TimeoutError", "journal.cut_short"]
    assert shop.ran == ["books"]


def test_a_run_that_goes_on_twice_at_once_does_nothing_twice(shop, native):
    ready = threading.Barrier(3)

    def one(_at: int) -> Any:
        lead = shop.agent(native, PAY, LOOK, "done")
        crew = shop.crew(native.crew(lead))
        ready.wait(120)
        return shop.run(lead, crew)

    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(one, range(3)))
    assert sorted(shop.ran) == ["ann", "books"]
    assert {code for one in told for code in one.codes} <= {"journal.in_doubt"}
    assert shop.tried(native, PAY, LOOK, "done").codes == []
    assert sorted(shop.ran) == ["ann", "books"]


# --- what CrewAI itself tries again ---------------------------------------------------------------


def test_a_task_that_is_tried_again_repeats_no_call(shop, native):
    # CrewAI begins it anew after an error of the model, as another try of the run does
    said = (PAY, DOWN, PAY, "done")
    first = shop.tried(native, *said, max_retry_limit=1)
    assert (first.raw, shop.ran) == ("done", ["ann"])
    second = shop.tried(native, *said, max_retry_limit=1)
    assert (second.raw, shop.ran) == ("done", ["ann"])
    assert "paid ann as number 1" in second.heard


def test_a_task_that_a_guardrail_sends_back_makes_calls_of_its_own(shop, native):
    def run() -> Any:
        refusals = ["too short"]

        def guardrail(output):
            return (False, refusals.pop()) if refusals else (True, output)

        lead = shop.agent(native, PAY, "no", PAY, "done")
        crew = shop.crew(native.crew(lead, tasks=[task(lead, guardrail=guardrail)]))
        return shop.run(lead, crew)

    assert run().raw == "done"
    assert shop.ran == ["ann", "ann"]
    assert run().raw == "done"
    assert shop.ran == ["ann", "ann"]


def test_a_result_that_crewai_has_kept_is_one_call_each_time(shop, way, signed):
    tools = [shop.paying(), shop.looking()]
    for _ in range(2):
        lead = shop.agent(way, PAY, LOOK, PAY, "done", tools=tools)
        crew = shop.crew(way.crew(lead, cache=True))
        tools[0].cache_function = lambda *_args: True
        assert shop.run(lead, crew).raw == "done"
    assert shop.ran.count("books") == 1
    assert len(shop.ran) <= 3
    first = len(shop.ran)
    lead = shop.agent(way, PAY, LOOK, PAY, "done", tools=tools)
    shop.run(lead, shop.crew(way.crew(lead)))
    assert len(shop.ran) == first
    assert {call.chain for call in calls_of(signed, shop)} == {(*LENT, "lead")}


# --- another process ------------------------------------------------------------------------------


PROGRAM = '''
import json

from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from agentguard import ApprovalPending, Decision, Guard
from agentguard_crewai import guard_crew, resumable


def decide(document):
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


class Model(BaseLLM):
    steps: list = []

    def call(self, messages, *args, **kwargs):
        step = self.steps.pop(0)
        if isinstance(step, str):
            print([one["content"] for one in messages if one["role"] == "tool"])
            return step
        name, arguments = step
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": "c", "type": "function", "function": function}]

    def supports_function_calling(self):
        return True


def note(text):
    with open("effects", "a") as effects:
        effects.write(text + "\\n")
    with open("effects") as effects:
        return len(effects.readlines())


@tool
def pay(to: str) -> list:
    """Pay somebody."""
    return ["paid", to, note(to)]


@tool
def look(what: str) -> dict:
    """Look at something."""
    return {"what": what, "number": note(what)}


def main(*steps):
    model = Model(model="scripted", steps=[json.loads(step) for step in steps])
    lead = Agent(role="Lead", goal="g", backstory="b", llm=model, tools=[pay, look])
    task = Task(description="a task", expected_output="words", agent=lead)
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        crew = guard_crew(Crew(agents=[lead], tasks=[task]), guard, on_approval="pause")
        with guard.delegate("user:alice", scope=["pay"], via="crew:report"), resumable("order-1"):
            try:
                print(crew.kickoff().raw)
            except ApprovalPending as pending:
                print("pending", pending.request.request_id)
    assert guard.closed
'''


TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "run_program:decide"

[agents.lead]
max_scope = ["pay"]
"""


def test_another_process_goes_on_and_does_nothing_again(
    tmp_path, signed, preloaded, monkeypatch, capsys
):
    bob = Ed25519Signer.from_seed(os.urandom(32))
    people = f'[approvers.bob]\nprincipal = "user:bob"\nkeys = ["{bob.public_key.openssh()}"]\n'
    (tmp_path / "run_program.py").write_text(PROGRAM)
    (tmp_path / "agentguard.toml").write_text(textwrap.dedent(TABLES) + people)
    settings = config.load(tmp_path / "agentguard.toml")
    domain.found(settings, b"of this test", now=datetime.now(UTC))
    steps = [json.dumps(step) for step in (LOOK, PAY, LOOK, BEN, "done")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("run_program")

    def here() -> list[str]:
        capsys.readouterr()
        program.main(*steps)
        return capsys.readouterr().out.splitlines()

    for verdict in ("approve", "reject"):
        assert here()[-1].startswith("pending ")
        with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
            (request,) = guard.approvals.pending()
            getattr(guard.approvals, verdict)(request, bob, note="it is dear")
    main = "import run_program, sys; run_program.main(*sys.argv[1:])"
    there = preloaded.run("-c", main, *steps, cwd=tmp_path).stdout.splitlines()[-2:]
    again = here()[-2:]
    assert there == again  # the results, as they were, and nobody is asked again
    for told in ("'number': 1", "'ann', 2", "user:bob has rejected this call: it is dear"):
        assert told in there[0]
    assert there[1] == "done"
    assert (tmp_path / "effects").read_text().split() == ["books", "ann", "books"]
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        assert guard.verify().ok
        assert guard.approvals.pending() == []
        calls = signed(guard)
    outcomes = [(call.tool, call.code or call.outcome) for call in calls]
    assert outcomes.count(("look", "ok")) == 2
    assert outcomes.count(("pay", "ok")) == 1
    assert outcomes.count(("pay", "approval.rejected")) == 2
    assert {call.chain for call in calls} == {(*LENT, "lead")}
