"""Joint signatures: one signature of an agent instance covers waiting outcomes and its next call.

Each test tries to move, cut or forge such a signature, or to lose an outcome that waits for one.
Bits that are changed in a whole log are in tests/properties/test_log_tampering.py.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from agentguard import Denied, StorageError
from agentguard.audit.ahead import read_ahead
from agentguard.audit.entry import StoredEntry
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.evidence_file import EvidenceFile
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.domain import keystore
from agentguard.domain.entry_processes import entry_reader
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_decode, b64_encode, sha256_hex
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import flusher
from agentguard.store.log import MAX_UNSIGNED
from agentguard.store.reader import StoredLog


class Counting:
    """An agent instance's own signer that counts its signatures, and fails when it is told to.

    What stands in ``before`` is called once, before the next signature.
    """

    def __init__(self, inner: Ed25519Signer) -> None:
        self.inner = inner
        self.count = 0
        self.error: Exception | None = None
        self.before: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sign(self, message: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        before, self.before = self.before, None
        if before is not None:
            before()
        self.count += 1
        return self.inner.sign(message)


def counting(agent) -> Counting:
    instance = agent._caller.instance()
    signer = Counting(instance.actor.signer)
    instance.actor = replace(instance.actor, signer=signer)
    return signer


@pytest.fixture
def no_flusher(monkeypatch):
    """No thread writes in the background: the calls of the test alone commit."""
    monkeypatch.setattr(flusher, "start", lambda _log, _wake: None)


def statements_of(place) -> list[tuple[str, Any]]:
    """Return the kind and the envelope (JSON) of each call and outcome in the log, in order."""
    with closing(StoredLog.of(place.config.state)) as reader:
        parsed = [parse_entry(body) for _, body in reader.entries()]
    names = {"call": "invocation", "outcome": "statement"}
    return [(e.kind, e.members[names[e.kind]]) for e in parsed if e.kind in names]


def test_calls_in_a_row_are_signed_once_each(place, no_flusher):
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")
        signer = counting(agent)
        for number in range(10):
            agent.call(tool, number)
        assert signer.count == 10
    assert signer.count == 11  # the last outcome is signed alone when the guard is closed
    kinds = [(kind, "joint" in envelope) for kind, envelope in statements_of(place)]
    first, last = ("call", False), ("outcome", False)
    assert kinds == [first, *[("outcome", True), ("call", True)] * 9, last]
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_an_outcome_that_no_call_follows_is_durable_soon(place):
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda: 1, name="tool")
        agent.call(tool)
        for _ in range(600):
            if [kind for kind, _ in statements_of(place)] == ["call", "outcome"]:
                break
            threading.Event().wait(0.05)
        assert [kind for kind, _ in statements_of(place)] == ["call", "outcome"]


def test_no_error_ends_the_thread_that_flushes(place, caplog):
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda: 1, name="tool")
        log = guard._parts.runtime._ports.log
        check, failed = log._check_key, threading.Event()

        def fail_once(at: str, has_new_keys: bool) -> None:
            if threading.current_thread().name == "agentguard-flush" and not failed.is_set():
                failed.set()
                raise ZeroDivisionError
            check(at, has_new_keys)

        log.check_before_signing(fail_once)
        agent.call(tool)
        for _ in range(600):
            if place.seen().statuses == ["ok"]:
                break
            threading.Event().wait(0.05)
        assert failed.is_set()
        assert place.seen().statuses == ["ok"]
    assert "the log can't be written" in caplog.text


def test_another_agent_signs_no_outcome_of_this_one(place, no_flusher):
    with place.open() as guard:
        one, two = guard.new_agent("reader"), guard.new_agent("reader")
        tool = guard.tool(lambda: 1, name="tool")
        for _ in range(3):
            one.call(tool)
            two.call(tool)
    assert place.examine().problems == ()
    joint = [envelope["joint"] for _, envelope in statements_of(place) if "joint" in envelope]
    assert {signature["keyid"] for signature in joint} == {
        agent._caller.instance().actor.signer.key_id for agent in (one, two)
    }


# --- evidence -----------------------------------------------------------------------------------


@pytest.fixture
def proofs(place, no_flusher) -> list[bytes]:
    """Return the evidence of three calls; the signatures of one and the next are joint."""
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda secret: secret, name="tool")
        for number in range(3):
            agent.call(tool, f"secret {number}")
    with closing(StoredLog.of(place.config.state)) as reader:
        trust = keystore.load_trust(place.config.state)
        parsed = [parse_entry(body) for _, body in reader.entries()]
        calls = [one for one in parsed if isinstance(one, CallEntry)]
        ids = [str(call.invocation_id) for call in calls]
        return [prove_call(reader, trust, one) for one in ids]


def test_the_evidence_of_one_call_shows_nothing_of_the_next(place, proofs):
    trust = keystore.load_trust(place.config.state)
    files = [EvidenceFile.loads(proof) for proof in proofs]
    for nth, (proof, file) in enumerate(zip(proofs, files, strict=True)):
        said = verify_evidence(proof, trust)
        assert said.outcome is not None
        assert said.data["arguments"] == {"secret": f"secret {nth}"}
        shown = b"".join(entry.body + _payload(entry.body) for entry in file.entries)
        ids = [other.invocation_id.encode() in shown for other in files]
        assert ids == [other == nth for other in range(len(files))]


def _payload(body: bytes) -> bytes:
    members = json.loads(body)
    envelope = members.get("invocation") or members.get("statement")
    return b64_decode(envelope["payload"]) if envelope else b""


# --- forgeries ----------------------------------------------------------------------------------


@pytest.fixture
def pair(signer) -> list[dsse.Envelope]:
    """Return two statements with one joint signature."""
    payloads = [
        dsse.statement(kind, "0" * 64, "call", {"n": kind}) for kind in ("outcome", "invocation")
    ]
    joint = dsse.sign_jointly([sha256_hex(payload) for payload in payloads], signer)
    return [dsse.Envelope(dsse.PAYLOAD_TYPE, payload, joint=joint) for payload in payloads]


@pytest.fixture(scope="module")
def signer() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


def refused(envelope: dsse.Envelope, signer: Ed25519Signer) -> str:
    with pytest.raises(VerificationError) as caught:
        envelope.verify(signer.public_key)
    return caught.value.code


def test_a_joint_signature_verifies_for_each_of_its_statements(pair, signer):
    for envelope in pair:
        assert envelope.verify(signer.public_key) == envelope.payload
        read = dsse.Envelope.parse(
            canonical.loads(canonical.dumps(envelope.as_json())), may_be_joint=True
        )
        assert read == envelope


def test_a_joint_signature_holds_for_no_other_statement(pair, signer):
    other = dsse.statement("invocation", "1" * 64, "call", {})
    moved = pair[0]._replace(payload=other)
    assert refused(moved, signer) == "signature.missing"
    joint = pair[0].joint
    assert joint is not None
    # with the other statement among the subjects, the signature is of other bytes
    for subjects in (
        (*joint.subjects, sha256_hex(other)),
        (sha256_hex(other), joint.subjects[1]),
    ):
        claimed = moved._replace(joint=joint._replace(subjects=subjects))
        assert refused(claimed, signer) == "signature.invalid"


def test_subjects_in_another_order_or_fewer_are_not_what_was_signed(pair, signer):
    joint = pair[0].joint
    assert joint is not None
    for subjects in (joint.subjects[::-1], joint.subjects[:1]):
        other = pair[0]._replace(joint=joint._replace(subjects=subjects))
        assert refused(other, signer) == "signature.invalid"


def test_the_signature_of_one_form_is_none_of_the_other(pair, signer):
    """A joint signature is not taken for a DSSE signature of the payload, nor the contrary."""
    joint = pair[0].joint
    assert joint is not None
    plain = dsse.Envelope(dsse.PAYLOAD_TYPE, pair[0].payload, ((joint.key_id, joint.signature),))
    assert refused(plain, signer) == "signature.invalid"
    sealed = dsse.seal(pair[0].payload, signer)
    sig = sealed.signatures[0][1]
    crossed = pair[0]._replace(joint=joint._replace(signature=sig))
    assert refused(crossed, signer) == "signature.invalid"
    # the joint statement itself, signed in its own envelope, is no invocation and no outcome
    statement = dsse.joint_statement(joint.subjects)
    for kind in ("invocation", "outcome"):
        with pytest.raises(DecodeError):
            dsse.parse_statement(statement, kind)


def test_another_key_has_not_signed(pair, signer):
    stranger = Ed25519Signer.from_seed(os.urandom(32))
    assert refused(pair[0], stranger) == "signature.missing"
    joint = pair[0].joint
    assert joint is not None
    named = pair[0]._replace(joint=joint._replace(key_id=stranger.key_id))
    assert refused(named, stranger) == "signature.invalid"


def test_another_payload_type_is_never_signed_jointly(pair, signer):
    assert refused(pair[0]._replace(payload_type="text/plain"), signer) == "dsse.type"


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": []},
        {"subjects": [DIGEST]},
        {"subjects": [DIGEST, DIGEST]},
        {"subjects": [DIGEST, "A" * 64]},
        {"subjects": [DIGEST, "0" * 63]},
        {"subjects": [DIGEST, DIGEST + "\n"]},
        {"subjects": [DIGEST, 1]},
        {"subjects": [DIGEST, None]},
        {"subjects": [f"{n:064x}" for n in range(dsse.MAX_SUBJECTS + 1)]},
        {"subjects": {DIGEST: 1, "1" * 64: 1}},
        {"sig": 1},
        {"sig": "AB=="},
        {"keyid": None},
        {"more": 1},
    ],
    ids=repr,
)
def test_a_joint_signature_is_parsed_strictly(pair, change):
    good: Any = pair[0].as_json()
    dsse.Envelope.parse(good, may_be_joint=True)
    for bad in ({**good, "joint": {**good["joint"], **change}}, {**good, "joint": [change]}):
        with pytest.raises(DecodeError):
            dsse.Envelope.parse(bad, may_be_joint=True)


def test_an_envelope_has_signatures_of_one_form(pair, signer):
    good: Any = pair[0].as_json()
    both = {**good, "signatures": dsse.seal(pair[0].payload, signer).as_json()["signatures"]}
    with pytest.raises(DecodeError):
        dsse.Envelope.parse(both, may_be_joint=True)
    with pytest.raises(DecodeError):  # a roster, say, or a person's answer
        dsse.Envelope.parse(good)


def test_a_changed_outcome_of_an_evidence_file_is_not_what_was_signed(place, proofs):
    """The forger also names the changed statement among the subjects."""
    trust = keystore.load_trust(place.config.state)
    key = verify_evidence(proofs[1], trust).credential.key
    bodies = [json.loads(entry.body) for entry in EvidenceFile.loads(proofs[1]).entries]
    (sealed,) = [body["statement"] for body in bodies if body["kind"] == "outcome"]
    dsse.Envelope.parse(sealed, may_be_joint=True).verify(key)
    payload = json.loads(b64_decode(sealed["payload"]))
    payload["predicate"]["status"] = "error"
    changed = canonical.dumps(payload)
    for subjects, code in (
        (sealed["joint"]["subjects"], "signature.missing"),
        ([sha256_hex(changed), *sealed["joint"]["subjects"][1:]], "signature.invalid"),
    ):
        joint = {**sealed["joint"], "subjects": subjects}
        forged = {**sealed, "payload": b64_encode(changed), "joint": joint}
        with pytest.raises(VerificationError) as caught:
            dsse.Envelope.parse(forged, may_be_joint=True).verify(key)
        assert caught.value.code == code


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("is_claimed", [False, True])
def test_no_statement_of_a_log_holds_because_others_of_its_signature_do(
    place, no_flusher, is_claimed, jobs
):
    """The other statements stand in the same batch, for which one signature is checked once."""
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")
        for number in range(3):
            agent.call(tool, number)
    with closing(StoredLog.of(place.config.state)) as reader:
        stored = list(reader.stored())
    outcomes = [one for one in stored if json.loads(one.body)["kind"] == "outcome"]
    assert signed(stored, jobs) >= {one.index for one in outcomes}
    members = json.loads(outcomes[1].body)
    sealed = members["statement"]
    payload = json.loads(b64_decode(sealed["payload"]))
    payload["predicate"]["ended_at"] = payload["predicate"]["started_at"]
    sealed["payload"] = b64_encode(canonical.dumps(payload))
    if is_claimed:
        sealed["joint"]["subjects"][0] = sha256_hex(canonical.dumps(payload))
    forged = replace(outcomes[1], body=canonical.dumps(members))
    forgery = [forged if one.index == forged.index else one for one in stored]
    assert signed(stored, jobs) - signed(forgery, jobs) == {forged.index}


def signed(stored: list[StoredEntry], jobs: int) -> set[int]:
    """Return the entries of calls whose signatures hold."""
    with entry_reader(jobs, alone=0) as reader:
        return {
            read.stored.index
            for read in read_ahead(stored, reader, since=0)
            if read.reading.signer is not None
        }


# --- nothing is lost ----------------------------------------------------------------------------


def test_a_signer_that_fails_refuses_the_call_and_loses_no_outcome(place, no_flusher):
    ran: list[int] = []
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(ran.append, name="tool")
        signer = counting(agent)
        agent.call(tool, 1)
        signer.error = RuntimeError("the service is away")
        with pytest.raises(Denied) as caught:
            agent.call(tool, 2)
        assert caught.value.code == "signature.failed"
        signer.error = None
        agent.call(tool, 3)
    assert ran == [1, 3]
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_a_signer_that_fails_to_the_end_leaves_one_call_in_doubt(place, no_flusher, caplog):
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda: 1, name="tool")
        signer = counting(agent)
        agent.call(tool)
        signer.error = RuntimeError("the service is away")
    report = place.examine()
    assert report.problems == ()
    assert len(report.in_doubt) == 1
    assert "an outcome could not be signed" in caplog.text


def test_a_write_that_fails_loses_no_outcome(guard, faults, note, ran, examine, seen):
    agent = guard.new_agent("a")
    agent.call(note, text="1")
    faults.before = StorageError("away")
    for _ in range(3):
        with pytest.raises(Denied):
            agent.call(note, text="2")
    faults.before = None
    agent.call(note, text="3")
    assert ran == ["1", "3"]
    report = examine(guard)
    assert (report.problems, report.in_doubt) == ((), ())
    assert seen(guard).statuses == ["ok", "ok"]


def test_a_write_that_fails_after_the_commit_doubles_no_outcome(
    guard, faults, note, ran, examine, seen
):
    agent = guard.new_agent("a")
    agent.call(note, text="1")
    faults.after = OSError("after the commit")
    agent.call(note, text="2")
    faults.after = None
    agent.call(note, text="3")
    assert ran == ["1", "2", "3"]
    assert examine(guard).problems == ()
    assert seen(guard).statuses == ["ok"] * 3


def test_threads_of_one_instance_share_what_waits(place):
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda x: x, name="tool")

        def work() -> None:
            for number in range(40):
                agent.call(tool, number)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    assert [kind for kind, _ in statements_of(place)].count("outcome") == 240


def test_an_outcome_that_is_flushed_while_its_instance_signs_stands_in_the_log_once(
    place, no_flusher
):
    """The flush signs the outcome alone. The joint signature comes later, and names it as well."""
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda: 1, name="tool")
        signer = counting(agent)
        agent.call(tool)
        signer.before = guard._parts.runtime.flush
        agent.call(tool)
        agent.call(tool)  # the twin: nothing is flushed while this one is signed
    kinds = [(kind, "joint" in envelope) for kind, envelope in statements_of(place)]
    first, alone = ("call", False), ("outcome", False)
    joint = [("outcome", True), ("call", True)]
    assert kinds == [first, alone, ("call", True), *joint, alone]
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_more_outcomes_than_one_signature_covers(place, no_flusher):
    number = dsse.MAX_SUBJECTS + 6
    with place.open() as guard:
        together = threading.Barrier(number)
        agent = guard.new_agent("reader")
        tool = guard.tool(lambda: together.wait(60), name="tool")
        signer = counting(agent)
        threads = [threading.Thread(target=agent.call, args=[tool]) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert signer.count == number
        agent.call(guard.tool(lambda: 1, name="last"))
        assert signer.count == number + 1
    subjects = [len(e["joint"]["subjects"]) for _, e in statements_of(place) if "joint" in e]
    assert subjects == [dsse.MAX_SUBJECTS] * dsse.MAX_SUBJECTS
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    assert [kind for kind, _ in statements_of(place)].count("outcome") == number + 1


def test_outcomes_of_many_instances_do_not_pile_up_in_memory(guard, note, examine, seen):
    """In memory no thread signs in the background. Each outcome here is its instance's last."""
    agents = [guard.new_agent("a") for _ in range(MAX_UNSIGNED + 10)]
    for agent in agents:
        agent.call(note)  # makes the instance, and so flushes the log
    for agent in agents:
        agent.call(note)
    with closing(guard._parts.runtime.domain.read()) as reader:  # without a flush
        kinds = [parse_entry(body).kind for _index, body in reader.entries()]
    assert kinds.count("call") == 2 * len(agents)
    assert kinds.count("outcome") == 2 * len(agents) - MAX_UNSIGNED - 1  # one is queued, signed
    assert seen(guard).statuses == ["ok"] * 2 * len(agents)
    report = examine(guard)
    assert (report.problems, report.in_doubt) == ((), ())


def test_a_forked_child_signs_no_outcome_of_its_parent(place, no_flusher):
    with place.open() as guard:
        agent, tool = guard.new_agent("reader"), guard.tool(lambda: 1, name="tool")
        agent.call(tool)
        child = os.fork()
        if child == 0:  # pragma: no cover  in a process that ends at once
            code = 1
            try:
                agent.call(tool)
                guard.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        agent.call(tool)
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())
    kinds = [kind for kind, _ in statements_of(place)]
    assert kinds.count("outcome") == kinds.count("call")
