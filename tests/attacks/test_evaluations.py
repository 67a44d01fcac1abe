"""An evaluation is no authorization: nothing runs on one, and nothing is used up by one.

The attacker has an evaluation that allows a call, or holds the log's key and writes entries. Each
forged entry stands beside the twin that ``audit verify`` accepts.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from approval_desk import TOKEN, Desk
from embedded_parts import instance_of, runtime_of

from agentguard import ApprovalPending, Decision, Denied, verify_evaluation
from agentguard.audit.entry import CallPlace, LogPlace, Record
from agentguard.audit.kinds import evaluation, parse_entry
from agentguard.audit.kinds.administration import ResolutionEntry
from agentguard.audit.kinds.calls import CallEntry, LoggedRuling, UnsignedOutcome, outcome_statement
from agentguard.audit.kinds.evaluation import Basis, EvaluationEntry
from agentguard.audit.kinds.running import SecretEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.summary import Summary
from agentguard.call.releases import ReleaseSubject
from agentguard.domain import administration, config, keystore
from agentguard.errors import AgentguardError, CallError
from agentguard.signing import dsse
from agentguard.signing.canonical import dumps, dumps_record, loads_object, sha256_hex
from agentguard.signing.dsse import Envelope
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse battery staple"
_COLUMNS = frozenset(Summary._fields) - {"tool"}


class Scene:
    """A guard with one agent, and the evaluation that its policy allows a call of ``note``."""

    def __init__(self, place: Any, guard: Any) -> None:
        self.place, self.guard = place, guard
        self.agent = guard.new_agent("reader")
        self.ran: list[str] = []
        self.tool = guard.tool(self._note, name="note")
        self.got = self.agent.authorize(self.tool, "x")
        assert self.got.allowed
        self.envelope = Envelope.parse(loads_object(self.got.statement or b""))
        self.read = verify_evaluation(self.got.statement, guard.trust)
        self.ports = runtime_of(guard).current_ports()
        self.index = int(str(self.got.entry))

    def _note(self, text: str) -> str:
        self.ran.append(text)
        return text

    def append(self, record: Record) -> list[str]:
        """Have the holder of the log's key write an entry; return what ``audit verify`` finds."""
        self.ports.log.append(record)
        return [problem.what for problem in self.place.examine().problems]

    def evaluation(self, signer: Any = None, at: str | None = None, **changes: Any) -> Record:
        """Return the entry of an evaluation that is signed anew, with other members."""
        issuer = runtime_of(self.guard).domain.issuer
        predicate = {**self.read.stated.predicate, "at": at or self.read.evaluated.at, **changes}
        payload = dsse.statement("evaluation", self.read.call_sha256, "call", predicate)
        sealed = dsse.seal(payload, signer or issuer).as_json()
        body = dumps_record({"kind": "evaluation", "at": predicate["at"], "statement": sealed})
        about = self.read.summary._replace(
            **{name: value for name, value in changes.items() if name in _COLUMNS},
            at=predicate["at"],
        )
        return Record(body, about)


@pytest.fixture
def scene(place):
    with place.open() as guard:
        yield Scene(place, guard)


def test_an_evaluation_by_itself_verifies_and_runs_nothing(scene):
    assert scene.append(scene.evaluation(evaluation_id="1" * 32)) == []
    assert scene.ran == []
    assert scene.agent.call(scene.tool, "x") == "x"
    assert scene.place.examine().problems == ()


def test_an_evaluation_is_no_invocation_of_an_authorization(scene):
    ruling = LoggedRuling(
        Decision.allow(), None, scene.ports.engine_name, None, scene.ports.config_sha256
    )
    predicate = {**scene.read.stated.predicate, "invocation_id": "0" * 32, "traceparent": None}
    forged = CallEntry.new(scene.envelope, predicate, ruling, at=scene.read.at)
    (problem,) = scene.append(forged)
    assert "not an in-toto Statement of the kind urn:agentguard:invocation:v1" in problem


def test_an_invocation_is_no_evaluation(scene):
    scene.agent.call(scene.tool, "x")
    (call,) = [one for one in scene.place.seen().entries if one.kind == "call"]
    body = dumps({"kind": "evaluation", "at": call.at, "statement": call.members["invocation"]})
    (problem,) = scene.append(Record(body, Summary("evaluation", call.at)))
    assert "not an in-toto Statement of the kind urn:agentguard:evaluation:v1" in problem


def test_an_evaluation_has_no_outcome(scene):
    scene.agent.call(scene.tool, "x")  # the twin: the outcome of a call
    scene.guard.flush()
    assert scene.place.examine().problems == ()
    payload = outcome_statement(
        scene.read.sha256,
        authorization=LogPlace(0, scene.index),
        status="ok",
        result=None,
        result_type="builtins.str",
        error_type=None,
        started_at=scene.read.at,
        ended_at=scene.read.at,
    )
    about = Summary("outcome", scene.read.at, None, scene.agent.id, status="ok")
    signer = instance_of(scene.agent).actor.signer
    (problem,) = scene.append(UnsignedOutcome.of(payload, signer, about, None).signed())
    assert problem == "an outcome without an authorised call that waits for one"


def test_an_evaluation_gets_no_secret(scene):
    subject = ReleaseSubject(
        str(scene.read.evaluated.evaluation_id),
        scene.read.sha256,
        scene.index,
        scene.agent.id,
        "note",
        None,
        frozenset(),
    )
    (problem,) = scene.append(SecretEntry.new("TOKEN", subject, at=scene.read.at))
    assert "no call that was running then may have it" in problem


def test_nobody_resolves_erases_or_proves_an_evaluation_as_a_call(scene):
    place = CallPlace(scene.index, "0" * 32, scene.read.sha256)
    settings = scene.place.config
    for act in (administration.erase, administration.resolve):
        given: dict[str, Any] = {"note": "n", "now": scene.ports.clock()}
        if act is administration.resolve:
            given["ran"] = True
        with pytest.raises(CallError):
            act(settings, PASSPHRASE, str(scene.read.evaluated.evaluation_id), **given)
    with closing(StoredLog.of(settings.state)) as reader, pytest.raises(AgentguardError):
        prove_call(
            reader, keystore.load_trust(settings.state), str(scene.read.evaluated.evaluation_id)
        )
    admin = runtime_of(scene.guard).domain.issuer
    assert scene.append(ResolutionEntry.new(admin, place, ran=True, note="n", at=scene.read.at))


# --- entries of who holds the log's key -----------------------------------------------------------


def test_the_agent_can_t_sign_an_evaluation(scene):
    signer = instance_of(scene.agent).actor.signer
    assert scene.append(scene.evaluation(signer, evaluation_id="1" * 32))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"config_sha256": "0" * 64}, "a configuration or policy that no entry before"),
        ({"policy_sha256": "0" * 64}, "a configuration or policy that no entry before"),
        ({"mode": "observe"}, "the policy was asked in another mode"),
        ({"chain_sha256": "0" * 64}, "a chain of delegation that no entry before"),
        ({"principal": "user:root"}, "for a principal that no chain names"),
        ({"agent": "spiffe://acme.example/x"}, "an evaluation names no agent instance"),
        ({"tool": {"name": "note", "digest": "0" * 64, "origin": "x"}}, "its call digest"),
        ({"resource": "other"}, "its call digest"),
        ({"arguments": "0" * 64}, "its call digest"),
        ({"decision": "perhaps"}, "not a statement of the kind evaluation"),
        ({"engine": None}, "an evaluation without an engine denies"),
    ],
    ids=str,
)
def test_an_evaluation_that_does_not_fit_the_log_is_found(scene, changes, problem):
    (found,) = scene.append(scene.evaluation(evaluation_id="1" * 32, **changes))
    assert problem in found


def test_the_same_evaluation_stands_in_the_log_once(scene):
    (problem,) = scene.append(scene.evaluation())
    assert problem == "the same evaluation stands in the log before"


def test_an_entry_of_another_time_than_its_statement_is_found(scene):
    body = loads_object(scene.evaluation(evaluation_id="1" * 32).body)
    later = "2099-01-01T00:00:00.000000Z"
    record = Record(dumps({**body, "at": later}), scene.read.summary._replace(at=later))
    assert "an evaluation of another time than its entry" in scene.append(record)[0]


def test_a_changed_column_is_found(scene):
    record = scene.evaluation(evaluation_id="1" * 32)
    assert record.summary is not None
    changed = record._replace(summary=record.summary._replace(decision="deny"))
    assert "columns" in scene.append(changed)[0]


# --- what is not used up --------------------------------------------------------------------------


def test_evaluations_use_no_counted_call(place):
    with place.open() as guard:
        tool = guard.tool(name="note")(lambda text: text)
        delegation = guard.delegate("user:erin", scope=["a"], max_calls=1)
        agent = guard.new_agent("reader").under(delegation)
        for _ in range(3):
            assert agent.authorize(tool, "x").allowed
        assert agent.call(tool, "x") == "x"
        with pytest.raises(Denied) as caught:
            agent.call(tool, "x")
        assert caught.value.code == "calls.exceeded"
    assert place.examine().problems == ()


def test_evaluations_ask_nobody_and_use_no_approval_up(place):
    desk = Desk(place)
    with desk.open() as guard:

        @guard.tool
        def merge(what: str, token: str) -> str:
            """Merge a branch."""
            desk.ran.append(what)
            return f"merged {what}"

        agent = guard.new_agent("reader")
        asked = agent.authorize(merge, "main", token=TOKEN)
        assert (asked.decision.outcome, asked.code) == ("approval", "approval.required")
        assert list(guard.approvals.pending()) == []
        with pytest.raises(ApprovalPending):
            agent.call(merge, "main", token=TOKEN)
        (request,) = guard.approvals.pending()
        guard.approvals.approve(request, desk.keys["bob"])
        for _ in range(2):  # the answer is there, and an evaluation does not count it
            again = agent.authorize(merge, "main", token=TOKEN)
            assert again.decision.outcome == "approval"
            assert again.salt != request.salt
        assert agent.call(merge, "main", token=TOKEN) == "merged main"
        assert desk.ran == ["main"]
    assert place.examine().problems == ()


def test_an_evaluation_of_a_frozen_domain_denies_and_is_on_record(place):
    with place.open() as guard:
        tool, agent = guard.tool(name="note")(lambda text: text), guard.new_agent("reader")
        assert agent.authorize(tool, "x").allowed
        now = runtime_of(guard).current_ports().clock()
        for frozen in (True, False):
            administration.freeze(place.config, PASSPHRASE, frozen=frozen, note="n", now=now)
            got = agent.authorize(tool, "x")
            assert got.code == ("domain.frozen" if frozen else "")
            assert got.entry is not None
    assert place.examine().problems == ()


def test_an_entry_is_small_whatever_the_arguments_are(place):
    with place.open() as guard:
        tool, agent = guard.tool(name="note")(lambda text: text), guard.new_agent("reader")
        assert agent.authorize(tool, "x" * 100_000).allowed
        denied = agent.authorize(tool, object())
        assert denied.code == "arguments.unencodable"
    with closing(StoredLog.of(place.config.state)) as reader:
        bodies = [body for _index, body in reader.entries()]
    sizes = [len(body) for body in bodies if parse_entry(body).kind == "evaluation"]
    assert len(sizes) == 2
    assert max(sizes) < 4096


def test_where_the_policy_is_only_observed_the_evaluation_has_its_answer(place):
    tables: dict[str, Any] = loads_object(place.config.encoded)
    tables["policy"]["mode"] = "observe"
    place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
    with place.open(lambda _document: Decision.deny("no")) as guard:
        tool, agent = guard.tool(name="note")(lambda text: text), guard.new_agent("reader")
        got = agent.authorize(tool, "x")
        assert got.code == "policy.denied"
        assert verify_evaluation(got.statement, guard.trust).evaluated.mode == "observe"
        assert agent.call(tool, "x") == "x"
    assert place.examine().problems == ()


def test_a_builder_refuses_a_statement_that_is_too_long(scene):
    basis = Basis(scene.ports.config_sha256, None, None, "enforce")
    call = {**scene.read.stated.predicate, "invocation_id": None}
    given: dict[str, Any] = {"name": "reader", "actors": (), "at": scene.read.at}
    issuer = runtime_of(scene.guard).domain.issuer
    long, short = (Decision.deny("x" * size) for size in (evaluation.MAX_STATEMENT, 9))
    with pytest.raises(AgentguardError) as caught:
        EvaluationEntry.new(issuer, call, long, basis, **given)
    assert caught.value.code == "entry.too_large"
    assert EvaluationEntry.new(issuer, call, short, basis, **given)[0].body


def test_the_digest_of_a_statement_is_that_of_its_payload(scene):
    assert scene.read.sha256 == sha256_hex(scene.envelope.payload)
