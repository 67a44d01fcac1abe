"""Each denial of a call under a delegation is on record for the person who delegated.

Generated: each state of a delegation, with each reason for which a call is refused. The record
proves for whom the call is, or says that nothing proves it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path

import pytest
from evidence_mutants import INDEPENDENT
from recorded_calls import allow_all, verified

import agentguard.flow
from agentguard import AgentguardError, Decision, DelegationError, Denied, Guard, current_delegation
from agentguard.adapters import (
    Arguments,
    CallSite,
    Invocation,
    ToolSpec,
    refusing_agent,
    run,
)
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.find import search_entries
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.kinds.evaluation import EvaluationEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.summary import Search
from agentguard.errors import ArgumentsError

ALICE = "user:alice"
CONFIG = {"agents": {"clerk": {"max_scope": ["read"]}}}
TOOL = ToolSpec("note", "", {}, "tests:note", requires=("read",))


class Scene:
    """A guard in memory, an agent, a delegation of alice's, and a call that is not made yet."""

    def __init__(self):
        self.answer = Decision.allow()
        self.guard = Guard.ephemeral(lambda _document: self.answer, config=CONFIG)
        self.agent = self.guard.new_agent("clerk")
        self.lent = self.guard.delegate(ALICE, scope=["read"], expires_in=60)
        self.invocation = Invocation(TOOL, Arguments.of({"text": "x"}), CallSite("1"))
        self.ran = []

    @property
    def instance(self):
        return self.agent._caller.instance()

    def use(self, **parts):
        self.instance.ports = dataclasses.replace(self.instance.ports, **parts)

    def change(self, **members):
        self.invocation = dataclasses.replace(self.invocation, **members)

    def later(self):
        now = self.instance.ports.clock() + timedelta(hours=2)
        self.use(clock=lambda: now)
        return now


def error_of(function, *arguments):
    with pytest.raises(AgentguardError) as caught:
        function(*arguments)
    return caught.value


# --- the states of a delegation; each returns the agent that makes the call -----------------------


def valid(scene):
    return scene.agent.under(scene.lent)


def expired(scene):
    scene.later()
    return scene.agent.under(scene.lent)


def refuse(scene, refusal):
    """Have the log say who may act no more."""
    scene.instance.ports.log.refusal = refusal


def revoked(scene):
    names, refusal = scene.lent.chain.names, ("delegation.revoked", "it is revoked")
    refuse(scene, lambda all_: refusal if names & all_ else None)
    return scene.agent.under(scene.lent)


def ended(scene):
    errors = []

    def late():
        errors.append(error_of(current_delegation))

    with scene.lent:
        context = copy_context()
    context.run(late)
    return refusing_agent(scene.agent, errors[0])


def too_narrow(scene):
    return refusing_agent(scene.agent, error_of(lambda: scene.lent.narrowed(scope=["write"])))


def resumed(scene, stored):
    error = error_of(scene.guard.resume, stored)
    refused = DelegationError(str(error), code=error.code, delegation=error.delegation)
    return refusing_agent(scene.agent, refused)


def stored_and_expired(scene):
    now = scene.later()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("agentguard.guard.process.clock", lambda: now)
        return resumed(scene, scene.lent.dumps())


def altered(scene):
    """The scope of the stored first hop is wider than was signed."""
    stored = json.loads(scene.lent.dumps())
    head, payload, signature = stored["hops"][0].split(".")
    claims = urlsafe_b64decode(payload + "==").replace(b'"scope":"read"', b'"scope":"more"')
    changed = urlsafe_b64encode(claims).decode().rstrip("=")
    stored["hops"][0] = f"{head}.{changed}.{signature}"
    return resumed(scene, json.dumps(stored).encode())


def of_another_domain(scene):
    with Guard.ephemeral(allow_all, config=CONFIG) as other:
        return scene.agent.under(other.delegate(ALICE, scope=["read"]))


def only_named(scene):
    return refusing_agent(scene.agent, DelegationError("not today", delegation=ALICE))


PROVED = {
    valid: True,
    expired: True,
    revoked: True,
    ended: True,
    too_narrow: True,
    stored_and_expired: True,
    altered: False,
    of_another_domain: False,
    only_named: False,
}
"""Each state, and whether signatures prove for whom the call is."""


# --- the reasons for which a call is refused ------------------------------------------------------


def broken(*_arguments):
    raise RuntimeError("broken")


def answers(answer):
    return lambda scene: setattr(scene, "answer", answer)


def ports(**parts):
    return lambda scene: scene.use(**parts)


def tool(**members):
    return lambda scene: scene.change(tool=dataclasses.replace(TOOL, **members))


def call(**members):
    return lambda scene: scene.change(**members)


def interrupted(_input):
    raise KeyboardInterrupt


REASONS = {
    "": lambda _scene: None,
    "policy.denied": answers(Decision.deny("no")),
    "policy.error": answers("yes"),
    "approval.unavailable": answers(Decision.require_approval()),
    "scope.exceeded": tool(requires=("read", "write")),
    "tool.changed": tool(pinned_origin="tests:other"),
    "tool.unconfigured": tool(unlisted="the tool note has no table: write [tools.note]"),
    "facts.failed": tool(facts=broken, gives=[]),
    "facts.invalid": tool(facts=lambda _input: 5, gives=[]),
    "call.interrupted": tool(facts=interrupted, gives=[]),
    "clock.failed": ports(clock=broken),
    "clock.skew": lambda scene: scene.use(
        clock=lambda: scene.instance.ports.log.last_at - timedelta(hours=1)
    ),
    "entropy.failed": ports(entropy=broken),
    "storage.failed": lambda scene: refuse(scene, broken),
    "credential.failed": lambda scene: setattr(
        scene.instance,
        "actor",
        dataclasses.replace(scene.instance.actor, has_credential=lambda _: False, renew=broken),
    ),
    "arguments.unencodable": call(arguments=ArgumentsError("no")),
    "site.unencodable": call(site=CallSite("\ud800")),
    "approval.rejected": call(refusal=Decision.refusal("no", code="approval.rejected")),
}


@pytest.mark.parametrize("state", PROVED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("reason", REASONS)
def test_a_denial_is_on_record_for_the_person(state, reason):
    scene = Scene()
    with scene.guard as guard:
        agent = state(scene)
        REASONS[reason](scene)
        try:
            run(agent, scene.invocation, lambda: scene.ran.append(1))
        except (Denied, KeyboardInterrupt):
            pass
        else:
            assert (state, reason) == (valid, "")  # the twin
            return
        assert scene.ran == []
        (found,) = search_entries(guard.reader(), CallEntry, Search(principal=ALICE))
        read = found.entry
        assert read.decision == "deny"
        assert read.is_proved is PROVED[state]
        if state is valid:
            assert read.code == reason
        verified(guard)


@pytest.mark.parametrize("state", PROVED, ids=lambda one: one.__name__)
def test_the_evidence_of_a_denial_names_the_person_for_both_verifiers(state):
    scene = Scene()
    with scene.guard as guard:
        agent = state(scene)
        scene.change(tool=dataclasses.replace(TOOL, requires=("read", "write")))
        with pytest.raises(Denied):
            run(agent, scene.invocation, lambda: scene.ran.append(1))
        (found,) = search_entries(guard.reader(), CallEntry, Search(principal=ALICE))
        invocation_id = str(found.entry.invocation_id)
        data = prove_call(guard.reader(), guard.trust, invocation_id)
        call = verify_evidence(data, guard.trust).call
        assert (call.principal, call.is_proved) == (ALICE, PROVED[state])
        INDEPENDENT(data, guard.trust.dumps())


@pytest.mark.parametrize("state", PROVED, ids=lambda one: one.__name__)
def test_an_evaluation_names_the_person_as_well(state):
    scene = Scene()
    with scene.guard as guard:
        agent = state(scene)
        if state is valid:
            scene.answer = Decision.deny("no")
        note = guard.tool(name="note", requires=["read"])(lambda: None)
        assert not agent.authorize(note).decision.allowed
        (found,) = search_entries(guard.reader(), EvaluationEntry, Search(principal=ALICE))
        assert found.entry.kind == "evaluation"
        verified(guard)


# where the codes of the flow are refused that have a cause of their own
ELSEWHERE = {
    "approval.altered": "answers of people: tests/attacks/approvals",
    "approval.consumed": "answers of people",
    "approval.expired": "answers of people",
    "approval.insufficient": "answers of people",
    "approval.mismatch": "answers of people",
    "delegation.failed": "the code of an error without one",
    "delegation.mismatch": "answers of people",
    "delegation.missing": "there is no delegation",
    "journal.in_doubt": "the delegation is in force: tests/attacks/test_journal.py",
    "policy.malformed": "as policy.error",
    "secret.exposed": "the delegation is in force: tests/attacks/released_secrets",
    "signature.failed": "the log gets no entry of an evaluation",
    "storage.unknown": "the log may have no entry",
    "tool.async": "before the flow",
    "tool.generator": "before the flow",
}


def test_each_code_of_the_flow_is_among_the_reasons():
    folder = Path(agentguard.flow.__file__).parent
    text = "".join(path.read_text("utf-8") for path in sorted(folder.glob("*.py")))
    codes = set(re.findall(r'"([a-z]+\.[a-z_]+)"', text))
    assert codes - REASONS.keys() == ELSEWHERE.keys()
