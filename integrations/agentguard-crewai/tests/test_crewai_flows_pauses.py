"""Crews in flows that pause: answered, resumed here and in another process, and for whom.

The flows are CrewAI's own, and so is what persists them.
"""

from __future__ import annotations

import importlib
import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest
from crewai import Task
from crewai.flow import Flow, listen, or_, start
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai_firm import BEN, LENT, LOOK, PAY, aordering, ordering, payments
from pydantic import BaseModel

from agentguard import ApprovalPending, Decision, Ed25519Signer, Guard
from agentguard.domain import config, domain
from agentguard_crewai import (
    answered,
    guard_agent,
    guard_crew,
    kickoff_or_pause,
)

DELEGATE = (
    "delegate_work_to_coworker",
    {"task": "pay ann", "context": "now", "coworker": "Worker"},
)


# --- pause, answer, resume ------------------------------------------------------------------------


def test_a_flow_pauses_and_goes_on_once_it_is_answered(firm, signed):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        paused = flow.kickoff()
    assert isinstance(paused, HumanFeedbackPending)
    (request,) = firm.guard.approvals.pending()
    assert paused.context.method_name == "order"
    assert paused.context.metadata == {
        "run": f"order {flow.flow_id}",
        "request_id": request.request_id,
    }
    assert "pay waits for approval" in paused.context.message
    assert firm.ran == ["books"]
    assert payments(signed, firm) == []
    firm.log.approve()
    resumed = firm.pending(kind, flow)
    with firm.lent():
        assert resumed.resume() == "ended done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.agent, paid.chain, paid.outcome) == ("lead", (*LENT, "lead"), "ok")
    assert (resumed.state["begun"], resumed.state["ended"]) == (1, 1)
    with pytest.raises(ValueError, match="No pending feedback"):
        firm.pending(kind, flow)


async def test_an_async_flow_pauses_and_goes_on_once_it_is_answered(firm, signed):
    kind = aordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        paused = await flow.kickoff_async()
    assert isinstance(paused, HumanFeedbackPending)
    assert (paused.context.method_name, firm.ran) == ("order", ["books"])
    firm.log.approve()
    with firm.lent():
        assert await firm.pending(kind, flow).resume_async() == "ended done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.agent, paid.chain, paid.outcome) == ("lead", (*LENT, "lead"), "ok")


def test_a_flow_in_which_nobody_is_asked_does_not_pause(firm, signed):
    firm.log.decide = lambda _call: Decision.allow()
    with firm.lent():
        assert firm.flow(ordering(firm)).kickoff() == "ended done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert paid.chain == (*LENT, "lead")


def test_a_flow_that_is_rejected_goes_on_without_the_call(firm, signed):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
        (request,) = firm.guard.approvals.pending()
        firm.guard.approvals.reject(request, firm.log.approver, note="too dear")
        assert firm.pending(kind, flow).resume() == "ended done"
    assert firm.ran == ["books"]
    (paid,) = payments(signed, firm)
    assert (paid.code, paid.chain) == ("approval.rejected", (*LENT, "lead"))


def test_a_flow_that_is_resumed_too_early_pauses_again(firm):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        first = flow.kickoff()
        second = firm.pending(kind, flow).resume()
        assert isinstance(second, HumanFeedbackPending)
        assert second.context.metadata == first.context.metadata
        assert firm.ran == ["books"]
        assert firm.ended(kind, flow, second) == ("ended done", ["order"])
    assert firm.ran == ["books", "ann"]


def test_a_flow_pauses_for_each_call_that_needs_people(firm, signed):
    kind = ordering(firm, LOOK, PAY, LOOK, BEN, "done")
    flow = firm.flow(kind)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(kind, flow, said) == ("ended done", ["order", "order"])
    assert firm.ran == ["books", "ann", "books", "ben"]
    done = [call.arguments["to"] for call in payments(signed, firm) if call.outcome == "ok"]
    assert done == ["ann", "ben"]


def test_a_coworkers_call_pauses_the_flow(firm, native, signed):
    class Handing(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            lead = native.agent("Lead", DELEGATE, "done", allow_delegation=True)
            worker = native.agent("Worker", LOOK, PAY, "is paid", tools=firm.tools)
            tasks = [Task(description="a task", expected_output="words", agent=lead)]
            crew = guard_crew(
                native.crew(lead, worker, tasks=tasks), firm.guard, on_approval="pause"
            )
            return kickoff_or_pause(self, crew, run="order").raw

    flow = firm.flow(Handing)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Handing, flow, said) == ("done", ["order"])
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.agent, paid.chain) == ("worker", (*LENT, "lead", "worker"))


def test_a_crew_that_is_kicked_off_by_itself_stops_its_flow(firm):
    class Plain(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return firm.crew(PAY, "done").kickoff().raw

    class ByAgent(Flow[dict[str, Any]]):
        @start()
        async def begin(self):
            agent = firm.way.agent("Lead", PAY, "done", tools=firm.tools)
            guard_agent(agent, firm.guard, on_approval="pause")
            return (await agent.kickoff_async("go")).raw

    for kind in (Plain, ByAgent):
        with firm.lent(), pytest.raises(ApprovalPending):
            firm.flow(kind).kickoff()
    assert firm.ran == []


def test_a_flow_keeps_its_state_over_a_pause(firm):
    class Order(BaseModel):
        id: str = ""
        seen: list[str] = []

    class Stateful(Flow[Order]):
        @start()
        def begin(self):
            self.state.seen.append("begin")

        @listen(or_("begin", answered("order")))
        def order(self):
            self.state.seen.append("order")
            return kickoff_or_pause(self, firm.crew(PAY, "{name} is done"), run="order").raw

    flow = firm.flow(Stateful)
    with firm.lent():
        said = flow.kickoff()
        firm.log.approve()
        resumed = firm.pending(Stateful, flow)
        said = resumed.resume()
    assert said == "{name} is done"
    assert resumed.state.seen == ["begin", "order", "order"]
    assert firm.ran == ["ann"]


def test_inputs_reach_the_crew(firm, native):
    class Given(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            lead = native.agent("Lead", PAY, "done", tools=firm.tools)
            task = Task(description="pay {who}", expected_output="words", agent=lead)
            crew = guard_crew(native.crew(lead, tasks=[task]), firm.guard, on_approval="pause")
            kickoff_or_pause(self, crew, {"who": "ann, please"}, run="order")
            return task.description

    flow = firm.flow(Given)
    with firm.lent():
        said = flow.kickoff()
    assert firm.ended(Given, flow, said) == ("pay ann, please", ["order"])


# --- for whom -------------------------------------------------------------------------------------


def test_a_flow_that_goes_on_for_nobody_does_nothing(firm, signed):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
    firm.log.approve()
    assert firm.pending(kind, flow).resume() == "ended done"  # the model is told
    assert firm.ran == ["books"]
    assert [call.code for call in signed(firm.guard)][1:] == ["delegation.missing"] * 2


def test_a_flow_that_goes_on_for_another_does_nothing_that_was_approved(firm, signed):
    kind = ordering(firm, PAY, "done")
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
    firm.log.approve()
    with firm.lent("user:mallory"):
        asked = firm.pending(kind, flow).resume()
    assert isinstance(asked, HumanFeedbackPending)  # for mallory it is another call
    request = firm.guard.approvals.find(asked.context.metadata["request_id"])
    assert (request.principal, firm.ran) == ("user:mallory", [])
    assert payments(signed, firm) == []
    with firm.lent():
        assert firm.pending(kind, flow).resume() == "ended done"
    assert firm.ran == ["ann"]
    (paid,) = payments(signed, firm)
    assert paid.chain == (*LENT, "lead")


def test_a_delegation_that_lies_in_the_state_is_taken_up(firm, signed):
    class Kept(Flow[dict[str, Any]]):
        @start()
        def begin(self):
            return "begun"

        @listen(or_("begin", answered("order")))
        def order(self):
            with firm.guard.resume(self.state["lent"].encode()):
                return kickoff_or_pause(self, firm.crew(LOOK, PAY, "done"), run="order").raw

    flow = firm.flow(Kept)
    said = flow.kickoff(inputs={"lent": firm.lent().dumps().decode()})
    assert isinstance(said, HumanFeedbackPending)
    firm.log.approve()
    assert firm.pending(Kept, flow).resume() == "done"
    assert firm.ran == ["books", "ann"]
    (paid,) = payments(signed, firm)
    assert (paid.chain, paid.scope) == ((*LENT, "lead"), ("pay",))


# --- another process ------------------------------------------------------------------------------


PROGRAM = '''
import json

from crewai import Agent, Crew, Task
from crewai.flow import Flow, listen, or_, start
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from agentguard import Decision, Guard
from agentguard_crewai import answered, guard_crew, kickoff_or_pause


def decide(document):
    return Decision.require_approval() if document["action"] == "pay" else Decision.allow()


class Model(BaseLLM):
    steps: list = []

    def call(self, messages, *args, **kwargs):
        step = self.steps.pop(0)
        if isinstance(step, str):
            return step
        name, arguments = step
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"id": "c", "type": "function", "function": function}]

    def supports_function_calling(self):
        return True


def note(text):
    with open("effects", "a") as effects:
        effects.write(text + "\\n")
    return text


@tool
def pay(to: str) -> str:
    """Pay somebody."""
    return note(to)


@tool
def look(what: str) -> str:
    """Look at something."""
    return note(what)


class Ordering(Flow):
    @start()
    def begin(self):
        return note("begin")

    @listen(or_("begin", answered("order")))
    def order(self):
        steps = [("look", {"what": "books"}), ("pay", {"to": "ann"}), "done"]
        model = Model(model="scripted", steps=steps)
        lead = Agent(role="Lead", goal="g", backstory="b", llm=model, tools=[look, pay])
        task = Task(description="a task", expected_output="words", agent=lead)
        with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
            crew = guard_crew(Crew(agents=[lead], tasks=[task]), guard, on_approval="pause")
            with guard.resume(self.state["lent"].encode()):
                return kickoff_or_pause(self, crew, run=self.state["id"]).raw

    @listen("order")
    def end(self, said):
        return f"{note('end')}ed {said}"


def begin():
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        lent = guard.delegate("user:alice", scope=["pay"], via="crew:report").dumps().decode()
    flow = Ordering(persistence=SQLiteFlowPersistence("flows.db"), suppress_flow_events=True)
    return flow.flow_id, flow.kickoff(inputs={"lent": lent})


def resume(flow_id):
    store = SQLiteFlowPersistence("flows.db")
    return Ordering.from_pending(flow_id, store, suppress_flow_events=True).resume()


def main(flow_id):
    print(resume(flow_id))
'''


TABLES = """
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
engine = "function"
path = "flow_program:decide"

[agents.lead]
max_scope = ["pay"]
"""


@pytest.mark.slow("two processes run a flow, one after the other")
def test_another_process_goes_on_with_a_flow(tmp_path, signed, preloaded, monkeypatch):
    bob = Ed25519Signer.from_seed(os.urandom(32))
    people = f'[approvers.bob]\nprincipal = "user:bob"\nkeys = ["{bob.public_key.openssh()}"]\n'
    (tmp_path / "flow_program.py").write_text(PROGRAM, "utf-8")
    (tmp_path / "agentguard.toml").write_text(TABLES + people, "utf-8")
    domain.found(config.load(tmp_path / "agentguard.toml"), b"of this test", now=datetime.now(UTC))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("flow_program")
    flow_id, paused = program.begin()
    assert isinstance(paused, HumanFeedbackPending)
    early = program.resume(flow_id)
    assert early.context.metadata == paused.context.metadata
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        request = guard.approvals.find(paused.context.metadata["request_id"])
        guard.approvals.approve(request, bob)
    main = "import flow_program, sys; flow_program.main(*sys.argv[1:])"
    done = preloaded.run("-c", main, flow_id, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == ["ended done"], done.stderr
    assert (tmp_path / "effects").read_text().split() == ["begin", "books", "ann", "end"]
    with Guard.open("agentguard.toml", passphrase=b"of this test") as guard:
        assert guard.verify().ok
        paid = [call for call in signed(guard) if call.tool == "pay"]
    assert [(call.chain, call.outcome) for call in paid] == [((*LENT, "lead"), "ok")]


def test_what_a_flow_keeps_of_a_pause_is_plain_and_holds_no_argument(firm):
    kind = ordering(firm)
    flow = firm.flow(kind)
    with firm.lent():
        flow.kickoff()
    _state, context = firm.store.load_pending_feedback(flow.flow_id)
    kept = json.dumps(context.to_dict())
    assert "ann" not in kept
    assert json.loads(kept)["metadata"]["run"] == f"order {flow.flow_id}"
