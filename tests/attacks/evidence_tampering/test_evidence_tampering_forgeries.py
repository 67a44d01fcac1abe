"""Evidence that the holder of the log's key forges is refused by both verifiers.

The forger signs the log and its checkpoints anew, and holds neither the agents' keys nor the
administrator's.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from evidence_mutants import Log, refusal, root_of, written

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.kinds.running import SecretEntry
from agentguard.call.releases import ReleaseSubject
from agentguard.identity import credential
from agentguard.signing import canonical, dsse, jws
from agentguard.signing.canonical import b64_decode, b64_encode


def test_the_forger_s_tool_makes_what_prove_makes(log, ran, places, call):
    assert log.forged(places, call) == written({**ran, "attachments": []})
    assert refusal(log.forged(places, call), log.trust) is None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("call", {"mode": "observe"}),
        ("call", {"enforced": False}),
        ("call", {"enforced": 1}),
        ("call", {"mode": "observe", "enforced": False}),
        ("call", {"mode": "audit"}),
        ("call", {"approvals": [{}]}),
        ("call", {"decision": "deny"}),
        ("call", {"decision": "maybe"}),
        ("call", {"config_sha256": "0" * 64}),
        ("call", {"policy_sha256": "0" * 64}),
        ("call", {"engine": None}),
        ("call", {"engine": {"name": "rego", "version": "1"}}),
        ("config", {"config": {"x": 1}}),
        ("config", {"config_sha256": "0" * 64}),
        ("policy", {"policy_sha256": "0" * 64}),
        ("identity", {"credential": "e30.e30.e30"}),
        ("call", {"copies": []}),
        ("key", {"at": "yesterday"}),
        ("identity", {"at": "2000-01-01T00:00:00.000000Z"}),
        ("identity", {"at": "2100-01-01T00:00:00.000000Z"}),
        ("call", {"at": "2100-01-01T00:00:00.000000Z"}),
    ],
    ids=str,
)
def test_the_log_s_key_alone_makes_no_evidence(log, places, call, kind, change):
    """Each entry is changed as its log vouches for it; what it must agree with stands elsewhere."""
    forged = log.changed(log.index(kind), lambda members: members.update(change))
    assert refusal(forged.forged(places, call), log.trust) is not None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("call", {"more": 1}),
        ("outcome", {"more": 1}),
        ("call", {"copies": {"result": "0" * 64}}),
        ("outcome", {"copies": {"arguments": "0" * 64}}),
        ("outcome", {"at": "2026-W48-3T10:00:00Z"}),
        ("outcome", {"at": "2026-11-25é10:00:00Z"}),
        ("outcome", {"at": "20261125T100000Z"}),
    ],
    ids=str,
)
def test_an_entry_has_the_members_of_its_kind(log, places, call, kind, change):
    forged = log.changed(log.index(kind), lambda members: members.update(change))
    code = refusal(forged.forged(places, call), log.trust, form=True)
    assert code == "entry.malformed"


@pytest.mark.parametrize("kind", ["invocation", "outcome"])
@pytest.mark.parametrize("by", ["log", "issuer", "stranger"])
def test_nobody_signs_for_the_agent(log, places, call, kind, by, stranger):
    signer = (log.signers | {"stranger": stranger})[by]
    member, entry_kind = (
        ("invocation", "call") if kind == "invocation" else ("statement", "outcome")
    )

    def sign(members):
        payload = dsse.Envelope.parse(members[member], may_be_joint=True).payload
        members[member] = dsse.seal(payload, signer).as_json()

    forged = log.changed(log.index(entry_kind), sign)
    assert refusal(forged.forged(places, call), log.trust) == "signature.missing"

    def name_the_agent(members):
        sign(members)
        members[member]["signatures"][0]["keyid"] = _agent_of(log, call).rpartition("/")[2]

    forged = log.changed(log.index(entry_kind), name_the_agent)
    assert refusal(forged.forged(places, call), log.trust) == "signature.invalid"


OTHERS = ["0" * 64, "1" * 64]
"""The digests of statements that are not in the evidence."""

JOINT: dict[str, tuple[str | None, Any]] = {
    "signed anew": (None, lambda _joint, _digest, _signers: {}),
    "of other statements": (
        "signature.missing",
        lambda _joint, _digest, signers: _joint_of(OTHERS, signers["agent"]),
    ),
    "of other statements, and named as the entry's": (
        "signature.invalid",
        lambda _joint, digest, signers: {
            **_joint_of(OTHERS, signers["agent"]),
            "subjects": [digest, OTHERS[1]],
        },
    ),
    "in another order": (
        "signature.invalid",
        lambda joint, _digest, _signers: {"subjects": joint["subjects"][::-1]},
    ),
    "with a statement more": (
        "signature.invalid",
        lambda joint, _digest, _signers: {"subjects": [*joint["subjects"], OTHERS[1]]},
    ),
    "by the log's key": (
        "signature.missing",
        lambda joint, _digest, signers: _joint_of(joint["subjects"], signers["log"]),
    ),
    "by the log's key in the agent's name": (
        "signature.invalid",
        lambda joint, _digest, signers: {
            "sig": _joint_of(joint["subjects"], signers["log"])["sig"]
        },
    ),
}


def _joint_of(subjects: list[str], signer: Any) -> dict[str, Any]:
    key_id, signature, _subjects = dsse.sign_jointly(subjects, signer)
    return {"keyid": key_id, "sig": b64_encode(signature), "subjects": subjects}


def _joined(log: Log, kind: str, change: Any) -> Log:
    """The log with one statement in an envelope with a joint signature, which ``change`` edits."""
    entry, member = {
        "invocation": ("call", "invocation"),
        "outcome": ("outcome", "statement"),
    }[kind]

    def sign(members):
        payload = dsse.Envelope.parse(members[member], may_be_joint=True).payload
        digest = canonical.sha256_hex(payload)
        joint = _joint_of([digest, OTHERS[0]], log.signers["agent"])
        sealed = {**dsse.unsigned(payload).as_json(), "joint": joint}
        members[member] = change(sealed, digest)

    return log.changed(log.index(entry), sign)


@pytest.mark.parametrize("kind", ["invocation", "outcome"])
@pytest.mark.parametrize("edit", JOINT)
def test_nobody_moves_a_joint_signature(log, places, call, kind, edit):
    """The log vouches for the entry; the agent's key is used for what it has signed anyway."""
    code, change = JOINT[edit]

    def edited(sealed, digest):
        joint = sealed["joint"]
        return {**sealed, "joint": {**joint, **change(joint, digest, log.signers)}}

    assert refusal(_joined(log, kind, edited).forged(places, call), log.trust) == code


@pytest.mark.parametrize("kind", ["invocation", "outcome"])
def test_a_signature_of_one_form_is_none_of_the_other(log, places, call, kind):
    agent = log.signers["agent"]

    def as_plain(sealed, _digest):
        joint = sealed.pop("joint")
        return {**sealed, "signatures": [{"keyid": joint["keyid"], "sig": joint["sig"]}]}

    def as_joint(sealed, _digest):
        ((_key_id, signature),) = dsse.seal(_payload(sealed), agent).signatures
        return {**sealed, "joint": {**sealed["joint"], "sig": b64_encode(signature)}}

    def both(sealed, _digest):
        plain: Any = dsse.seal(_payload(sealed), agent).as_json()
        return {**plain, "joint": sealed["joint"]}

    def of_subjects(*subjects):
        return lambda sealed, digest: {**sealed, "joint": _joint_of([digest, *subjects], agent)}

    def of_an_object(sealed, _digest):
        joint = sealed["joint"]
        return {**sealed, "joint": {**joint, "subjects": dict.fromkeys(joint["subjects"], 1)}}

    most = [f"{number:064x}" for number in range(63)]
    right = _joined(log, kind, of_subjects(*most)).forged(places, call)
    assert refusal(right, log.trust) is None
    for change in (as_plain, as_joint):
        forged = _joined(log, kind, change).forged(places, call)
        assert refusal(forged, log.trust) == "signature.invalid"
    for change in (
        both,
        of_subjects(),
        of_subjects(*most, "f" * 64),
        of_subjects(*OTHERS, OTHERS[0]),
        of_an_object,
    ):
        forged = _joined(log, kind, change).forged(places, call)
        assert refusal(forged, log.trust) == "dsse.malformed"


def test_a_refusal_has_a_joint_signature_that_holds_or_none(log, places, call):
    """One of an agent whose signer failed may be unsigned; none may pretend to be signed."""
    without_outcome = [index for index in places if index != log.index("outcome")]
    denied = {"decision": "deny", "code": "signature.failed"}
    refused = log.changed(call, lambda members: members.update(denied))

    def unsigned(sealed, _digest):
        return {name: sealed[name] for name in ("payload", "payloadType", "signatures")}

    for change, code in (
        (lambda sealed, _digest: sealed, None),
        (unsigned, None),
        (
            lambda sealed, _digest: {**sealed, "joint": _joint_of(OTHERS, log.signers["agent"])},
            "signature.missing",
        ),
        (
            lambda sealed, digest: {
                **sealed,
                "joint": {**_joint_of(OTHERS, log.signers["agent"]), "subjects": [digest, *OTHERS]},
            },
            "signature.invalid",
        ),
    ):
        forged = _joined(refused, "invocation", change)
        assert refusal(forged.forged(without_outcome, call), log.trust) == code


def _payload(sealed: Any) -> bytes:
    return b64_decode(sealed["payload"])


def _agent_of(log: Log, index: int) -> str:
    return parse_entry(log.bodies[index], CallEntry).agent


@pytest.mark.parametrize(
    "change",
    [
        {"principal": "user:alice"},
        {"principal": "user:alice", "chain_sha256": "0" * 64},
        {"resource": "another"},
        {"tool": {"name": "halve", "digest": "0" * 64}},
        {"agent": "spiffe://ephemeral.invalid/agent/writer/elsewhere"},
    ],
    ids=str,
)
def test_an_agent_can_t_lie_about_what_its_call_is(log, places, call, change):
    """Not even with its own key: who acts for whom, and the call digest, are checked."""
    payload = _resigned(log, places, call, change)
    assert refusal(payload, log.trust) is not None
    assert refusal(_resigned(log, places, call, {}), log.trust) is None


def _resigned(log: Log, places: list[int], call: int, change: dict[str, Any]) -> bytes:
    """The call's statement with something else in it, signed by its own agent; no outcome."""

    def sign(members):
        payload: Any = canonical.loads(
            dsse.Envelope.parse(members["invocation"], may_be_joint=True).payload
        )
        payload["predicate"].update(change)
        sealed = dsse.seal(canonical.dumps(payload), log.signers["agent"])
        members["invocation"] = sealed.as_json()

    without_outcome = [i for i in places if i != log.index("outcome")]
    return log.changed(call, sign).forged(without_outcome, call)


@pytest.mark.parametrize("subject", ["reader", "writer"])
@pytest.mark.parametrize("agent", ["reader", "writer"])
def test_a_credential_names_its_key(log, places, call, subject, agent):
    """The issuer's word that a key is another instance's is not taken: its name is its key's."""
    uri = _agent_of(log, call)

    def lie(members):
        claims = {**jws.parse(members["credential"]).claims()}
        claims["sub"] = uri.replace("reader", subject)
        issuer = log.signers["issuer"]
        header = {"kid": issuer.key_id}
        members["credential"] = jws.sign(claims, issuer, typ=credential.TYPE, header=header)

    forged = log.changed(log.index("identity"), lie)
    seen = {
        "origin": log.trust.log,
        "size": call,
        "root": b64_encode(root_of(forged.bodies[:call])),
    }
    said = {"agent": uri.replace("reader", agent), "log": seen}
    code = refusal(_resigned(forged, places, call, said), log.trust)
    if subject == "writer":
        assert code == "credential.subject"
    else:
        assert code == (None if agent == "reader" else "statement.mismatch")


@pytest.mark.parametrize("kind", ["outcome", "invocation"])
def test_a_statement_of_another_kind_is_no_outcome(log, places, call, kind):
    def rename(members):
        payload: Any = canonical.loads(
            dsse.Envelope.parse(members["statement"], may_be_joint=True).payload
        )
        payload["predicateType"] = dsse.predicate_type(kind)
        sealed = dsse.seal(canonical.dumps(payload), log.signers["agent"])
        members["statement"] = sealed.as_json()

    forged = log.changed(log.index("outcome"), rename).forged(places, call)
    assert refusal(forged, log.trust) == (None if kind == "outcome" else "statement.malformed")


def test_where_no_policy_was_asked_none_is_named(log, places, call):
    places = [index for index in places if index != log.index("outcome")]
    named: dict[str, Any] = {"decision": "deny", "engine": None}
    forged = log.changed(call, lambda members: members.update(named))
    assert refusal(forged.forged(places, call), log.trust) == "evidence.mismatch"
    none: dict[str, Any] = {**named, "policy_sha256": None}
    forged = log.changed(call, lambda members: members.update(none))
    assert refusal(forged.forged(places, call), log.trust, form=True) == "evidence.superfluous"
    without = [index for index in places if index != log.index("policy")]
    assert refusal(forged.forged(without, call), log.trust) is None


def test_where_no_policy_was_asked_nothing_is_allowed(log, places, call):
    without = [index for index in places if index != log.index("policy")]
    none: dict[str, Any] = {"engine": None, "policy_sha256": None}
    forged = log.changed(call, lambda members: members.update(none))
    assert refusal(forged.forged(without, call), log.trust) == "entry.malformed"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"enforced": False}, None),
        ({"enforced": False, "decision": "approval"}, None),
        ({}, "entry.malformed"),
        ({"decision": "approval"}, "entry.malformed"),
        ({"enforced": 1}, "entry.malformed"),
        ({"enforced": False, "engine": None}, "entry.malformed"),
        ({"enforced": False, "roster_sha256": "0" * 64}, "entry.malformed"),
    ],
    ids=str,
)
def test_under_an_observed_policy_no_allow_is_enforced(log, places, call, said, code):
    """Whoever has the log's key forges the configuration as well, and all that names it."""
    observing = {"policy": {"mode": "observe"}}
    digest = canonical.digest(observing)
    configured = log.changed(
        log.index("config"),
        lambda members: members.update({"config": observing, "config_sha256": digest}),
    )
    seen = {
        "origin": log.trust.log,
        "size": call,
        "root": b64_encode(root_of(configured.bodies[:call])),
    }

    def answer(members):
        members.update({"mode": "observe", "config_sha256": digest, **said})

    forged = configured.changed(call, answer)
    assert refusal(_resigned(forged, places, call, {"log": seen}), log.trust) == code


def with_outcome(log: Log, authorization: object) -> Log:
    """The log with the first outcome's statement naming another place, signed by its agent."""

    def sign(members):
        payload: Any = canonical.loads(
            dsse.Envelope.parse(members["statement"], may_be_joint=True).payload
        )
        payload["predicate"]["authorization"] = authorization
        sealed = dsse.seal(canonical.dumps(payload), log.signers["agent"])
        members["statement"] = sealed.as_json()

    return log.changed(log.index("outcome"), sign)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ({"log": 0, "index": 0}, "statement.mismatch"),
        ({"log": 1, "index": 0}, "statement.mismatch"),
        ({"log": 1}, "entry.malformed"),
        ({}, "entry.malformed"),
        (7, "entry.malformed"),
    ],
    ids=str,
)
def test_an_outcome_names_no_other_place_than_its_call_s(log, places, call, place, code):
    right = with_outcome(log, {"log": 0, "index": call}).forged(places, call)
    assert refusal(right, log.trust) is None
    wrong = with_outcome(log, place).forged(places, call)
    assert refusal(wrong, log.trust, form=True) == code


@pytest.mark.parametrize("change", [{}, {"replay_of": "0" * 32}], ids=str)
def test_a_call_that_has_run_repeats_no_other(log, places, call, change):
    """By the log's word, no delegation would count the call."""
    forged = log.changed(call, lambda members: members.update(change)).forged(places, call)
    assert refusal(forged, log.trust, form=True) == ("statement.mismatch" if change else None)


def test_an_outcome_stands_after_its_call(log, places, call):
    """Also one that names no place, as of a call that was interrupted before it knew its own."""
    after = with_outcome(log, None)
    assert refusal(after.forged(places, call), log.trust) is None
    bodies = list(after.bodies)
    late = replace(after, bodies=[*bodies, bodies[call]])
    moved = [len(bodies) if index == call else index for index in places]
    forged = late.forged(moved, len(bodies))
    assert refusal(forged, log.trust, form=True) == "evidence.mismatch"


def test_a_log_that_was_rewritten_contradicts_its_calls(log, places, call):
    """The call carries the checkpoint of the log before it: its holder is a witness."""
    index = log.index("policy")
    forged = log.changed(index, lambda members: members["files"].update(x="0" * 64))
    assert refusal(forged.forged(places, call), log.trust) == "proof.invalid"


@pytest.mark.parametrize("kind", ["identity", "config", "policy"])
def test_what_stands_after_the_call_announces_nothing_before(log, places, call, kind):
    bodies = log.bodies
    index = log.index(kind)
    late = replace(log, bodies=[*bodies, bodies[index]])
    moved = [len(bodies) if i == index else i for i in places]
    assert refusal(late.forged(places, call), log.trust) is None
    assert refusal(late.forged(moved, call), log.trust, form=True) == "evidence.mismatch"


def test_one_file_has_one_checkpoint(log, ran, places, call):
    """Two would hide a fork, though a log key has signed both."""
    longer = replace(log, bodies=[*log.bodies, log.bodies[-1]])
    other = json.loads(longer.forged(places, call))
    assert refusal(written(other), log.trust) is None
    for at, item in enumerate(other["entries"]):
        mutant = deepcopy(ran)
        mutant["entries"][at] = item
        assert refusal(written(mutant), log.trust) == "evidence.mismatch"


def test_an_entry_that_nothing_needs_is_refused(log, places, call):
    for index in set(range(len(log.bodies))) - set(places):
        code = refusal(log.forged([*places, index], call), log.trust)
        assert code in {"evidence.superfluous", "evidence.mismatch"}, index


def test_an_entry_of_a_kind_that_no_evidence_has_is_refused(log, places, call):
    at = parse_entry(log.bodies[-1]).at
    subject = ReleaseSubject("0" * 32, "0" * 64, 0, "agent", "tool", None, frozenset())
    body = SecretEntry.new("TOKEN", subject, at=at).body
    more = replace(log, bodies=[*log.bodies, body])
    assert refusal(more.forged(places, call), log.trust) is None
    data = more.forged([*places, len(log.bodies)], call)
    assert refusal(data, log.trust, form=True) == "evidence.superfluous"


def test_what_the_issuer_said_again_is_not_asked_for(log, places, call):
    """A key may be announced again."""
    bodies = log.bodies
    again = replace(log, bodies=[*bodies, bodies[log.index("key")]])
    assert refusal(again.forged(places, call), log.trust) is None
    twice = again.forged([*places, len(bodies)], call)
    assert refusal(twice, log.trust, form=True) == "evidence.superfluous"


def test_an_entry_that_is_needed_can_t_be_left_out(log, places, call):
    for index in set(places) - {log.index("outcome"), call}:
        form = parse_entry(log.bodies[index]).kind == "key"
        cut = log.forged([i for i in places if i != index], call)
        assert refusal(cut, log.trust, form=form) == "evidence.incomplete", index
