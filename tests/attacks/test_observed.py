"""``[policy] mode = "observe"``: the policy is asked and on record, and calls run whatever it says.

Only the policy's answer gives way. Identity, scope, delegation, revocation and the log still deny,
nothing but the configuration brings the mode about, and nobody can take an observed call for one
that a policy has let run: not in the log, and not in its evidence.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentguard import Decision, Denied, Guard, PolicyError, Requirement, adapters
from agentguard.adapters import Arguments, CallOptions, Invocation
from agentguard.approvals.answer import Verdict
from agentguard.approvals.request import ApprovalPending
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import ConfigEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.call.invocation import CallSite
from agentguard.call.journal import JournalEntry
from agentguard.domain import config
from agentguard.domain.config.policy import PolicyConfig
from agentguard.errors import AgentguardError, DecodeError
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical
from agentguard.store.reader import StoredLog

STABLE = CallSite("c1", thread="t", turn="1")
EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
PEOPLE = {"approvals": {"application": True}}
BOTH = (False, True)
ANSWERED = ("allow", "deny", "approval")


class Down:
    """An engine that fails in its own ways."""

    name = "function"
    version = "0"
    waits = False
    warnings = ()
    policy_sha256 = None
    policy_files: dict[str, str] = {}  # noqa: RUF012  as a port asks for it

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def evaluate(self, _document: bytes) -> object:
        raise self.error

    def close(self) -> None: ...


class Observed:
    """A place whose configuration may have the policy only observed."""

    def __init__(self, place, mode="observe", **tables) -> None:
        self.place = place
        self.settings = config.parse(
            {
                **json.loads(place.config.encoded),
                "policy": {"engine": "function", "path": "unused:unused", "mode": mode},
                **tables,
            },
            source="agentguard.toml",
            base=place.config.base,
        )

    def open(self, policy):
        engine = policy if isinstance(policy, Down) else FunctionEngine(policy)
        return Guard(Embedded(self.settings, engine, self.place.take_up()))


def says(decision: Decision) -> Any:
    return lambda _call: decision


ANSWERS = {
    "allow": says(Decision.allow()),
    "deny": says(Decision.deny("no")),
    "approval": says(Decision.require_approval(Requirement("a lead", roles=("lead",)))),
    "policy.error": Down(PolicyError("it broke")),
    "engine.unreachable": Down(PolicyError("nobody there", code="engine.unreachable")),
    "a bug": Down(RuntimeError("s3cret")),
}
RECORDED = {
    "allow": ("allow", ""),
    "deny": ("deny", "policy.denied"),
    "approval": ("approval", "approval.required"),
    "policy.error": ("deny", "policy.error"),
    "engine.unreachable": ("deny", "engine.unreachable"),
    "a bug": ("deny", "policy.error"),
}


def noted(guard, ran, **spec):
    @guard.tool(**spec)
    def note(text=""):
        ran.append(text)
        return text

    return note


@pytest.mark.parametrize("asynchronous", [False, True], ids=["call", "acall"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_call_runs_and_the_answer_is_on_record(place, ran, answer, asynchronous):
    with Observed(place).open(ANSWERS[answer]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        done = asyncio.run(agent.acall(note, "x")) if asynchronous else agent.call(note, "x")
        assert done == "x"
    assert ran == ["x"]
    (call,) = place.seen().authorizations
    assert (call["decision"], call["code"]) == RECORDED[answer]
    assert (call["mode"], call["enforced"], call["approvals"]) == ("observe", False, [])
    assert "s3cret" not in json.dumps(call)
    assert place.seen().statuses == ["ok"]
    report = place.examine()
    assert report.problems == ()
    assert report.observed_calls == 1


@pytest.mark.parametrize("answer", [name for name in ANSWERS if name != "allow"])
def test_enforced_the_same_answer_denies(place, ran, answer):
    with Observed(place, "enforce").open(ANSWERS[answer]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        with pytest.raises(Denied):
            agent.call(note, "x")
    assert ran == []
    (call,) = place.seen().authorizations
    assert (call["mode"], call["enforced"]) == ("enforce", True)
    assert place.examine().observed_calls == 0


def test_nobody_is_asked_and_what_would_be_asked_is_on_record(place, ran):
    with Observed(place, **PEOPLE).open(ANSWERS["approval"]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        agent.call(note)
        assert guard.approvals.pending() == []
    (call,) = place.seen().authorizations
    assert [needed["roles"] for needed in call["requirements"]] == [["lead"]]
    assert call["roster_sha256"] is None
    assert "request" not in {one.kind for one in place.seen().entries}
    assert place.examine().problems == ()


def test_an_answer_ahead_of_the_call_says_that_it_runs_and_what_the_policy_says(place, ran):
    with Observed(place, **PEOPLE).open(ANSWERS["approval"]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        ahead = adapters.evaluate(agent, agent._invocation(note, ("x",), {}))
        unasked = adapters.evaluate(
            agent, agent._invocation(note, ("x",), {}), CallOptions(asks_people=False)
        )
    assert ahead.allowed
    assert unasked == ahead
    assert ahead.reason == (
        "the policy is only observed; it says approval [approval.required]; a lead"
    )


def test_a_request_from_before_is_withdrawn_once_its_call_has_run(place, ran):
    asking = says(Decision.require_approval(Requirement()))
    with Observed(place, "enforce", **PEOPLE).open(asking) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        invocation = replace(agent._invocation(note, ("x",), {}), site=STABLE)
        with pytest.raises(ApprovalPending):
            adapters.run(agent, invocation, note._bound_to(("x",), {}))
        assert len(guard.approvals.pending()) == 1
    with Observed(place, **PEOPLE).open(asking) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        invocation = replace(agent._invocation(note, ("x",), {}), site=STABLE)
        adapters.run(agent, invocation, note._bound_to(("x",), {}))
        assert guard.approvals.pending() == []
    assert ran == ["x"]
    assert place.examine().problems == ()


# --- what is not the policy's still denies


def denied(place, code: str) -> None:
    """The last call was refused, and that was enforced."""
    call = place.seen().authorizations[-1]
    assert (call["decision"], call["code"]) == ("deny", code)
    assert (call["mode"], call["enforced"]) == ("observe", True)
    assert place.examine().problems == ()


def test_a_scope_that_is_lacking_denies(place, ran):
    with Observed(place).open(ANSWERS["allow"]) as guard:
        tool = noted(guard, ran, requires=["notes:write"])
        with pytest.raises(Denied, match="scope"):
            guard.new_agent("reader").call(tool, "x")
    assert ran == []
    denied(place, "scope.exceeded")


def test_facts_that_fail_deny(place, ran):
    def facts(_values: Any) -> Any:
        return {"action": "another"}

    with Observed(place).open(ANSWERS["allow"]) as guard:
        tool = noted(guard, ran, facts=facts, gives=[])
        with pytest.raises(Denied):
            guard.new_agent("reader").call(tool, "x")
    assert ran == []
    denied(place, "facts.conflict")


def test_the_calls_that_a_delegation_allows_are_counted(place, ran):
    tables = {"agents": {"reader": {"max_scope": ["a"]}}}
    with Observed(place, **tables).open(ANSWERS["deny"]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        with guard.delegate("user:alice", scope=["a"], max_calls=1):
            agent.call(note, "first")
            with pytest.raises(Denied, match="allows 1 calls"):
                agent.call(note, "second")
        with pytest.raises(Denied, match="delegation"):
            agent.call(note, "third")
    assert ran == ["first"]
    codes = [(call["code"], call["enforced"]) for call in place.seen().authorizations]
    assert codes == [
        ("policy.denied", False),
        ("calls.exceeded", True),
        ("delegation.missing", True),
    ]
    assert place.examine().problems == ()


def test_a_signer_that_fails_denies(place, ran):
    with Observed(place).open(ANSWERS["deny"]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        agent.call(note, "before")
        instance = agent._caller.instance()
        instance.actor = replace(instance.actor, signer=None)
        with pytest.raises(Denied) as refused:
            agent.call(note, "after")
    assert refused.value.code == "signature.failed"
    assert ran == ["before"]
    denied(place, "signature.failed")


def test_a_log_that_can_not_be_written_denies(place, ran):
    with Observed(place).open(ANSWERS["deny"]) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        agent.call(note, "before")
        guard.close()
        with pytest.raises((Denied, AgentguardError)):
            agent.call(note, "after")
    assert ran == ["before"]


def test_an_interrupted_evaluation_does_not_run(place, ran):
    with Observed(place).open(Down(KeyboardInterrupt())) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        with pytest.raises(KeyboardInterrupt):
            agent.call(note, "x")
    assert ran == []
    denied(place, "call.interrupted")


def test_what_a_policy_redacts_is_redacted(place, ran):
    policy = says(Decision.deny("no").redacted("/args/text"))
    with Observed(place).open(policy) as guard:
        guard.new_agent("reader").call(noted(guard, ran), "s3cret")
    assert ran == ["s3cret"]
    with closing(StoredLog.of(place.config.state)) as reader:
        kept = [one.data for stored in reader.stored() for one in stored.attachments]
    assert kept
    assert not [data for data in kept if b'"text":"s3cret"' in data]


# --- where the mode comes from


def test_the_mode_comes_from_the_configuration_alone(place, ran, monkeypatch):
    for name in ("AGENTGUARD_MODE", "AGENTGUARD_POLICY_MODE", "AGENTGUARD_OBSERVE"):
        monkeypatch.setenv(name, "observe")
    with pytest.raises(AgentguardError, match="no policy"):
        Guard.ephemeral(ANSWERS["allow"], config={"policy": {"mode": "observe"}})
    with pytest.raises(AgentguardError, match=r"policy\.mode: expected 'enforce' or 'observe'"):
        Observed(place, "audit")
    with Observed(place, "enforce").open(ANSWERS["deny"]) as guard:

        @guard.tool
        def meddle(mode):
            ran.append(mode)

        with pytest.raises(Denied):
            guard.new_agent("reader").call(meddle, mode="observe")
    assert ran == []
    assert PolicyConfig("rego", "p", "data.agent.authz").mode == "enforce"


# --- what is proved of such a call


@pytest.fixture
def proved(place, ran):
    """Evidence of one call, in the mode and with the answer of the policy's that is given."""

    def make(mode, answer):
        with Observed(place, mode).open(ANSWERS[answer]) as guard:
            guard.new_agent("reader").call(noted(guard, ran), "x")
            invocation_id = None
            with closing(guard.reader()) as reader:
                for stored in reader.stored():
                    about = stored.summary
                    if about is not None and about.kind == "call":
                        invocation_id = about.invocation_id
            assert invocation_id is not None
            return guard.prove(invocation_id), guard.trust

    return make


@pytest.mark.parametrize(
    ("mode", "answer", "said"),
    [
        ("observe", "deny", ("deny", "observe", False)),
        ("observe", "approval", ("approval", "observe", False)),
        ("observe", "allow", ("allow", "observe", False)),
        ("enforce", "allow", ("allow", "enforce", True)),
    ],
)
def test_the_evidence_says_that_no_policy_has_authorised_it(proved, tmp_path, mode, answer, said):
    data, trust = proved(mode, answer)
    call = verify_evidence(data, trust).call
    assert (call.decision, call.mode, call.enforced) == said
    assert call.allowed

    (tmp_path / "call.json").write_bytes(data)
    (tmp_path / "trust.json").write_bytes(trust.dumps())
    other = subprocess.run(
        [sys.executable, str(EXAMPLE), "call.json", "trust.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode == 0, other.stderr
    report = json.loads(other.stdout)
    assert (report["decision"], report["mode"], report["enforced"]) == said


def test_a_mode_that_no_guard_writes_is_not_read(place, ran):
    with Observed(place).open(ANSWERS["allow"]) as guard:
        guard.new_agent("reader").call(noted(guard, ran), "x")
    with closing(StoredLog.of(place.config.state)) as reader:
        bodies = [parse_entry(body) for _index, body in reader.entries()]
    (call,) = [one for one in bodies if isinstance(one, CallEntry)]
    assert (call.mode, call.enforced) == ("observe", False)
    (written,) = [one for one in bodies if isinstance(one, ConfigEntry)]
    assert written.mode == call.mode
    changes: list[dict[str, Any]] = [
        {"mode": "enforce"},
        {"mode": "enforce", "enforced": 1},
        {"mode": "watch"},
        {"engine": None},
        {"roster_sha256": "0" * 64},
        {"enforced": "false"},
    ]
    for change in changes:
        with pytest.raises(DecodeError, match=r"mode|enforced"):
            parse_entry(canonical.dumps({"kind": "call", "at": call.at, **call.members, **change}))


class Written(NamedTuple):
    """How an entry says that a call was answered; by whether a policy and people were asked."""

    mode: str
    enforced: bool
    decision: str
    asked: bool
    answered: bool


WRITTEN = {
    Written("observe", False, "allow", asked=True, answered=False),
    Written("observe", False, "deny", asked=True, answered=False),
    Written("observe", False, "approval", asked=True, answered=False),
    Written("observe", True, "deny", asked=True, answered=False),  # a signer that fails
    Written("observe", True, "deny", asked=False, answered=False),  # a scope that is lacking
    Written("enforce", True, "allow", asked=True, answered=False),
    Written("enforce", True, "allow", asked=True, answered=True),
    Written("enforce", True, "deny", asked=True, answered=False),
    Written("enforce", True, "deny", asked=True, answered=True),
    Written("enforce", True, "deny", asked=False, answered=False),
}


def kinds_of_calls(place, ran):
    """Have guards write each kind of entry of a call that there is, with answers of people."""
    for mode in ("observe", "enforce"):
        for answer in ("allow", "deny", "approval"):
            with Observed(place, mode, **PEOPLE).open(ANSWERS[answer]) as guard:
                agent = guard.new_agent("reader")
                with suppress(Denied, ApprovalPending):
                    agent.call(noted(guard, ran), "x")
                with suppress(Denied):
                    agent.call(noted(guard, ran, name="write", requires=["notes:write"]), "x")
                agent._caller.instance().actor = replace(
                    agent._caller.instance().actor, signer=None
                )
                with suppress(Denied, ApprovalPending):
                    agent.call(noted(guard, ran), "unsigned")
    asking = says(Decision.require_approval(Requirement("somebody")))
    with Observed(place, "enforce", **PEOPLE).open(asking) as guard:
        note, agent = noted(guard, ran), guard.new_agent("reader")
        verdicts: tuple[Verdict, ...] = ("approve", "reject")
        for verdict in verdicts:
            with pytest.raises(ApprovalPending) as pending:
                agent.call(note, verdict)
            guard.approvals.vouch(pending.value.request, verdict, principal="user:bob")
            with suppress(Denied):
                agent.call(note, verdict)


def test_each_combination_that_a_guard_writes_is_read_and_no_other(place, ran):
    kinds_of_calls(place, ran)
    calls = [one for one in place.seen().entries if one.kind == "call"]
    found = {
        Written(
            one.mode,
            one.enforced,
            one.decision,
            asked=one.engine is not None,
            answered=one.roster_sha256 is not None,
        )
        for one in calls
    }
    assert found == WRITTEN
    assert place.examine().problems == ()

    (answered, *_) = [one.members for one in calls if one.members["approvals"]]
    lists = {"roster_sha256": answered["roster_sha256"], "approvals": answered["approvals"]}
    for said in map(Written._make, product(*[("observe", "enforce"), BOTH, ANSWERED, BOTH, BOTH])):
        members = {
            "kind": "call",
            "at": calls[0].at,
            **answered,
            "mode": said.mode,
            "enforced": said.enforced,
            "decision": said.decision,
            "engine": answered["engine"] if said.asked else None,
            **(lists if said.answered else {"roster_sha256": None, "approvals": []}),
        }
        changed = canonical.dumps(members)
        if said in WRITTEN:
            read = parse_entry(changed, CallEntry)
            assert (read.mode, read.enforced, read.decision) == said[:3]
        else:
            with pytest.raises(DecodeError, match=r"mode|enforced") as refused:
                parse_entry(changed)
            assert refused.value.code == "entry.malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"decision": "allow"},
        {"decision": "approval"},
        {"enforced": False},
        {"roster_sha256": "0" * 64},
        {"approvals": [{}]},
    ],
    ids=str,
)
def test_a_refusal_is_not_turned_into_a_call_that_could_run(place, ran, change):
    """Whoever has the log's key may write any entry: the mode alone lets no call run."""
    with Observed(place).open(ANSWERS["allow"]) as guard:
        tool = noted(guard, ran, requires=["notes:write"])
        with pytest.raises(Denied):
            guard.new_agent("reader").call(tool, "x")
    (call,) = [one for one in place.seen().entries if one.kind == "call"]
    assert (call.mode, call.enforced, call.allowed) == ("observe", True, False)
    with pytest.raises(DecodeError, match=r"mode|enforced|envelope"):
        parse_entry(canonical.dumps({"kind": "call", "at": call.at, **call.members, **change}))


# --- what ran while the policy was observed, and is made again after the switch to enforce


class Text:
    """Keeps text as a result."""

    def dumps(self, result: str) -> bytes:
        return result.encode()

    def loads(self, data: bytes) -> str:
        return data.decode()


def again(guard, ran):
    """Make the one call of a run, as a framework does that goes on with it."""
    note, agent = noted(guard, ran), guard.new_agent("reader")
    call = Invocation.bind(note.spec, lambda: Arguments.of({"text": "x"}), STABLE)

    def run():
        ran.append("x")
        return "x"

    return adapters.run(agent, call, run, CallOptions(Text()))


def test_no_observed_call_is_handed_out_as_one_that_was_approved(place, ran):
    with Observed(place, **PEOPLE).open(ANSWERS["approval"]) as guard:
        assert [again(guard, ran), again(guard, ran)] == ["x", "x"]
    with Observed(place, "enforce", **PEOPLE).open(ANSWERS["approval"]) as guard:
        with pytest.raises(Denied, match="make it as a new call") as denied:
            again(guard, ran)
        assert guard.approvals.pending() == []
    assert denied.value.code == "journal.observed"
    assert ran == ["x"]
    decisions = [(call["decision"], call["enforced"]) for call in place.seen().authorizations]
    assert decisions == [("approval", False), ("approval", False), ("deny", True)]
    assert place.examine().problems == ()


def test_one_that_was_approved_before_but_ran_observed_is_not_either(place, ran):
    policy = says(Decision.require_approval(Requirement("somebody")))
    with Observed(place, "enforce", **PEOPLE).open(policy) as guard:
        with pytest.raises(ApprovalPending) as pending:
            again(guard, ran)
        guard.approvals.vouch(pending.value.request, "approve", principal="user:bob")
    with Observed(place, **PEOPLE).open(policy) as guard:
        again(guard, ran)
    guard = Observed(place, "enforce", **PEOPLE).open(policy)
    with guard, pytest.raises(Denied) as denied:
        again(guard, ran)
    assert denied.value.code == "journal.observed"
    assert ran == ["x"]


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_one_that_the_policy_allows_by_itself_is_handed_out(place, ran, mode):
    with Observed(place, mode).open(ANSWERS["allow"]) as guard:
        again(guard, ran)
    with Observed(place, "enforce").open(ANSWERS["allow"]) as guard:
        assert again(guard, ran) == "x"
    assert ran == ["x"]


def test_one_that_people_have_approved_is_handed_out(place, ran):
    policy = says(Decision.require_approval(Requirement("somebody")))
    with Observed(place, "enforce", **PEOPLE).open(policy) as guard:
        with pytest.raises(ApprovalPending) as pending:
            again(guard, ran)
        guard.approvals.vouch(pending.value.request, "approve", principal="user:bob")
        assert [again(guard, ran), again(guard, ran)] == ["x", "x"]
    assert ran == ["x"]


def test_a_page_says_whether_its_call_was_enforced():
    observed = JournalEntry("0" * 32, "done", b"x", enforced=False)
    assert JournalEntry.loads(observed.dumps()) == observed
    assert JournalEntry.loads(observed._replace(enforced=True).dumps()).enforced
    before = b'{"invocation_id":"00000000000000000000000000000000","result":null,"state":"done"}'
    assert JournalEntry.loads(before).enforced
    written = json.loads(observed.dumps())
    for other in (True, 0, None, "false"):
        with pytest.raises(DecodeError):
            JournalEntry.loads(json.dumps({**written, "enforced": other}).encode())
