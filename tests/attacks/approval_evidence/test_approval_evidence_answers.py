"""What the log and evidence say of approved calls: every forgery is found, by all who look.

The forger is an insider with the log's key, who signs anew what he has changed; he has the agent's
key as well, and where it is said the issuer's. The people's keys he has not, but for those of the
people who lie. What he makes of one call goes through ``audit verify``, ``evidence.verify`` and the
independent verifier of ``examples/verify_evidence``, beside twins that all of them accept.
"""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agentguard import ApprovalPending, ApprovalRequest, Decision, Denied, Guard, Requirement
from agentguard.approvals.answer import seal_answer
from agentguard.approvals.request import requirements_digest
from agentguard.audit import checkpoint, merkle, records, summary
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Receipt, StoredEntry, parse_entry, parse_time
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.merkle import CompactRange
from agentguard.audit.records import Record
from agentguard.audit.registry import seal_registry
from agentguard.audit.tlog_proof import TlogProof
from agentguard.call import invocation
from agentguard.domain import verify
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_decode, b64_encode, loads_object
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage.backend import BEGINNING, Head
from agentguard.storage.memory import MemoryBackend

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"

INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

RELEASE = "release-manager"
ROLES = {"bob": [RELEASE], "carol": [RELEASE, "security"], "al": [RELEASE], "olga": [RELEASE]}
PRINCIPALS = {
    "bob": "user:bob",
    "bobby": "user:bob",
    "carol": "user:carol",
    "dora": "user:dora",
    "al": "user:alice",
    "olga": "user:olga",
}
TWO = (
    Requirement("merges need two", roles=(RELEASE,), quorum=2),
    Requirement("and security", roles=("security",)),
)


@dataclass(frozen=True)
class Insider:
    """Somebody with the keys of a log, whose last entry is a call that people were asked about."""

    trust: TrustDocument
    keys: Mapping[str, Ed25519Signer]  # by use, by an agent's name, by a name of the roster
    records: tuple[Record, ...]
    request: ApprovalRequest

    # --- what there is ---------------------------------------------------------------------------

    @property
    def last(self) -> int:
        return len(self.records) - 1

    @property
    def call(self) -> dict[str, Any]:
        return dict(loads_object(self.records[-1].body))

    @property
    def at(self) -> int:
        """When the call was logged."""
        return parse_time(self.call["at"])

    @property
    def answers(self) -> list[Any]:
        return list(self.call["approvals"])

    def index(self, kind: str) -> int:
        kinds = [parse_entry(record.body).kind for record in self.records]
        return len(kinds) - 1 - kinds[::-1].index(kind)

    def roster(self) -> dict[str, Any]:
        """What the issuer says of the people."""
        sealed = loads_object(self.records[self.index("roster")].body)["statement"]
        said = dsse.parse_statement(Envelope.parse(sealed).payload, "roster").predicate
        return json.loads(json.dumps(dict(said)))

    # --- what he makes of it ---------------------------------------------------------------------

    def with_body(self, index: int, members: Mapping[str, Any], about: Any = None) -> Insider:
        old = self.records[index]
        new = old._replace(body=canonical.dumps(dict(members)), summary=about or old.summary)
        return replace(self, records=(*self.records[:index], new, *self.records[index + 1 :]))

    def saying(self, **members: Any) -> Insider:
        """Have the call's entry say other things."""
        changed = {**self.call, **members}
        about = self.records[-1].summary._replace(decision=changed["decision"])
        return self.with_body(self.last, changed, about)

    def signed_anew(self, **said: Any) -> Insider:
        """Have the agent sign its call once more, over the log as it is by now."""
        members = self.call
        payload = json.loads(b64_decode(members["invocation"]["payload"]))
        root = b64_encode(root_of(self.records[:-1]))
        before = payload["predicate"]
        seen = {"origin": before["log"]["origin"], "size": self.last, "root": root}
        predicate = {**before, "log": seen, **said}
        statement = invocation.statement("coder", predicate, self.request.actors)
        members["invocation"] = dsse.seal(statement, self.keys["coder"]).as_json()
        about = summary.of_call(predicate, at=members["at"], decision=members["decision"])
        return self.with_body(self.last, members, about)

    def with_roster(self, said: Any, *, signer: str | None = "issuer", **how: Any) -> Insider:
        """Put another roster into the log, under which the call is said to have been approved."""
        members = {name: said[name] for name in said if name != "trust_domain"}
        digest = how.pop("subject", canonical.digest(members))
        payload = dsse.statement("roster", digest, "roster", said)
        made = dsse.seal(payload, self.keys[signer]) if signer else dsse.unsigned(payload)
        index = self.index("roster")
        stated = loads_object(self.records[index].body)
        changed = self.with_body(index, {**stated, "statement": made.as_json()})
        return changed.saying(roster_sha256=how.pop("named", digest)).signed_anew()

    def answer(self, name: str | None, **said: Any) -> Any:
        """An answer to the request by somebody who lends the insider the key."""
        signer = self.keys[name] if name is not None else None
        said = {"approver": PRINCIPALS.get(name or "", "user:dora"), **said}
        verdict, asked = said.pop("verdict", "approve"), said.pop("request", self.request)
        good = seal_answer(
            asked,
            verdict,
            approver=said.pop("approver"),
            approval_id=said.pop("approval_id", os.urandom(16).hex()),
            at=said.pop("at", asked.requested_at),
            signer=signer,
        )
        if not said:
            return good.as_json()
        statement = dsse.parse_statement(good.payload, "approval")
        subject = said.pop("subject", statement.subject_sha256)
        predicate = {**statement.predicate, **said}
        payload = dsse.statement("approval", subject, "call", predicate)
        made = dsse.seal(payload, signer) if signer else dsse.unsigned(payload)
        return made.as_json()

    # --- who finds it ----------------------------------------------------------------------------

    def reader(self) -> MemoryBackend:
        origin = self.trust.origin(0)
        at = str(loads_object(self.records[0].body)["at"])
        listed = seal_registry(self.keys["issuer"], self.trust, [0], at=at)
        return log_of(origin, self.keys["log"], self.records, listed)

    def problems(self, reader: Any = None) -> list[tuple[int | None, str]]:
        report = verify.examine(reader or self.reader(), self.trust)
        return [(found.index, found.what) for found in report.problems]

    def evidence(self) -> bytes:
        bodies = [record.body for record in self.records]
        needed = {"shard", "key", "config", "policy", "identity", "delegation", "roster"}
        kinds = [parse_entry(body).kind for body in bodies]
        if self.call["roster_sha256"] is None:
            needed.remove("roster")
        places = [i for i, kind in enumerate(kinds) if kind in needed or i == self.last]
        return self.file(places)

    def file(self, places: Sequence[int], call: int = -1) -> bytes:
        bodies = [record.body for record in self.records]
        tree = merkle.Tree(map(merkle.leaf_hash, bodies))
        head = Checkpoint(self.trust.origin(0), len(bodies), root_of(self.records))
        note = checkpoint.sign(head, self.keys["log"])
        logged = tuple(
            LoggedEntry(bodies[i], TlogProof(i, tuple(tree.inclusion_proof(i)), note))
            for i in places
        )
        members: Any = loads_object(bodies[call])
        said = json.loads(b64_decode(members["invocation"]["payload"]))["predicate"]
        size = said["log"]["size"]
        seen = Checkpoint(head.origin, size, b64_decode(said["log"]["root"]))
        extension = (Extension(seen, tuple(tree.consistency_proof(size))),)
        return EvidenceFile(said["invocation_id"], logged, extension, ()).dumps()

    def refusals(self, data: bytes | None = None) -> tuple[str | None, bool]:
        """The code with which agentguard refuses the evidence, and whether the other does."""
        data, code, refused = data or self.evidence(), None, False
        try:
            verify_evidence(data, self.trust)
        except (DecodeError, VerificationError) as error:
            code = error.code
        try:
            INDEPENDENT(data, self.trust.dumps())
        except Exception:  # noqa: BLE001  as its last lines do
            refused = True
        return code, refused

    def holds(self) -> bool:
        """Whether all three accept it; they agree."""
        found, (code, refused) = self.problems(), self.refusals()
        agreed = {bool(found), code is not None, refused}
        assert len(agreed) == 1, (found, code, refused)
        return not found


def root_of(records: Sequence[Record]) -> bytes:
    tree = CompactRange()
    for record in records:
        tree.append(merkle.leaf_hash(record.body))
    return tree.root()


def log_of(
    origin: str, signer: Ed25519Signer, records: Sequence[Record], listed: bytes
) -> MemoryBackend:
    tree = CompactRange()
    for record in records:
        tree.append(merkle.leaf_hash(record.body))
    backend = MemoryBackend(origin, signer, registry=listed)
    point = Checkpoint(origin, tree.size, tree.root())
    backend.write(records, Head(tree, point, BEGINNING), lambda: b"")
    return backend


@pytest.fixture(scope="module")
def made() -> Iterator[list[Ed25519Signer]]:
    """Every key that is made in these tests, as it is."""
    signers: list[Ed25519Signer] = []
    from_seed = Ed25519Signer.from_seed
    with pytest.MonkeyPatch.context() as patched:

        def recorded(seed: bytes) -> Ed25519Signer:
            signers.append(from_seed(seed))
            return signers[-1]

        patched.setattr(Ed25519Signer, "from_seed", staticmethod(recorded))
        yield signers


@pytest.fixture(scope="module")
def asked(made):
    """Make a log with one call that people were asked about, and have answered."""

    def make(
        *needed: Requirement,
        by: Sequence[str] = (),
        rejected_by: str | None = None,
        vouched: str | None = None,
        asks_for: str | None = "user:alice",
        owner: str = "user:olga",
    ) -> Insider:
        people = {name: Ed25519Signer.from_seed(os.urandom(32)) for name in PRINCIPALS}
        people["mallory"] = Ed25519Signer.from_seed(os.urandom(32))
        tables: dict[str, Any] = {
            "approvers": {
                name: {
                    "principal": principal,
                    "keys": [people[name].public_key.openssh()],
                    "roles": ROLES.get(name, []),
                }
                for name, principal in PRINCIPALS.items()
            },
            "agents": {"coder": {"owner": owner, "authority": "own"}},
            "approvals": {"application": vouched is not None},
        }
        decision = Decision.require_approval(*(needed or (Requirement("a person"),)))
        with Guard.ephemeral(lambda _: decision, config=tables) as guard:
            agent = guard.new_agent("coder")
            merge = guard.tool(name="merge")(lambda: "merged")
            call = agent.call
            if asks_for is not None:
                call = agent.under(guard.delegate(asks_for, scope=["x"])).call
            with pytest.raises(ApprovalPending) as pending:
                call(merge)
            inbox, request = guard.approvals, pending.value.request
            for name in by:
                inbox.approve(request, people[name])
            if vouched is not None:
                inbox.vouch(request, "approve", principal=vouched)
            if rejected_by is None:
                assert call(merge) == "merged"
            else:
                inbox.reject(request, people[rejected_by], note="no")
                with pytest.raises(Denied):
                    call(merge)
            assert guard.verify().problems == ()
            stored: list[StoredEntry] = list(guard.reader().stored(0))
        by_id = {signer.key_id: signer for signer in made}
        keys: dict[str, Ed25519Signer] = {
            one.use: by_id[one.key.thumbprint] for one in guard.trust.keys
        }
        keys |= {**people, "coder": by_id[agent.id.rpartition("/")[2]]}
        records = [
            Record(one.body, one.summary, tuple(one.attachments))
            for one in stored
            if one.summary is not None
        ]
        if rejected_by is None:
            records.pop()  # the outcome: the call is in doubt, which is no finding
        return Insider(guard.trust, keys, tuple(records), request)

    return make


@pytest.fixture(scope="module")
def two(asked) -> Insider:
    return asked(*TWO, by=("bob", "carol"))


@pytest.fixture(scope="module")
def rejected(asked) -> Insider:
    return asked(*TWO, by=("bob",), rejected_by="carol")


@pytest.fixture(scope="module")
def vouched(asked) -> Insider:
    return asked(vouched="user:dora")


@pytest.fixture(scope="module")
def other(asked) -> Insider:
    """Another call, of another log, approved by people of their own."""
    return asked(*TWO, by=("bob", "carol"))


def test_the_untampered_twins(two, rejected, vouched):
    for log in (two, rejected, vouched):
        assert log.holds()
        assert log.saying().holds()
        assert log.signed_anew().holds()
    named = INDEPENDENT(two.evidence(), two.trust.dumps())["approvals"]
    assert named == ["approve by user:bob", "approve by user:carol"]
    denied = verify_evidence(rejected.evidence(), rejected.trust)
    assert [answer.approval.verdict for answer in denied.approved] == ["reject"]


def test_an_answer_may_be_made_by_anybody_who_is_asked(two):
    """The forger's tool makes what the desk makes; and answers stand in no order."""
    bob, carol = two.answers
    assert two.saying(approvals=[carol, bob]).holds()
    assert two.saying(approvals=[bob, two.answer("carol")]).holds()
    assert two.saying(approvals=[bob, carol, two.answer("dora")]).holds()  # one more helps nobody
    assert two.saying(approvals=[two.answer("bobby"), carol, bob]).holds()


# --- answers --------------------------------------------------------------------------------------

Answers = Callable[[Insider, Any, Any], list[Any]]


def spoilt(answer: Any, old: bytes, new: bytes) -> Any:
    """An answer whose statement was changed under its signature."""
    payload = b64_decode(answer["payload"])
    assert old in payload
    return {**answer, "payload": b64_encode(payload.replace(old, new))}


def resigned(answer: Any, signatures: list[Any]) -> Any:
    return {**answer, "signatures": signatures}


def bit_flipped(answer: Any) -> Any:
    (one,) = answer["signatures"]
    raw = bytearray(b64_decode(one["sig"]))
    raw[5] ^= 1
    return resigned(answer, [{**one, "sig": b64_encode(bytes(raw))}])


ANSWERS: dict[str, Answers] = {
    "none": lambda _log, _bob, _carol: [],
    "the first alone": lambda _log, bob, _carol: [bob],
    "the second alone": lambda _log, _bob, carol: [carol],
    "one given twice": lambda _log, bob, carol: [bob, carol, carol],
    "a rejection": lambda log, bob, _carol: [bob, log.answer("carol", verdict="reject")],
    "a rejection beside them": lambda log, bob, carol: [
        bob,
        carol,
        log.answer("dora", verdict="reject"),
    ],
    "a rejection passed off": lambda log, bob, _carol: [
        bob,
        spoilt(log.answer("carol", verdict="reject"), b'"reject"', b'"approve"'),
    ],
    "for other requirements": lambda log, bob, _carol: [
        bob,
        log.answer("carol", requirement_sha256=requirements_digest(TWO[:1])),
    ],
    "for the requirements in another order": lambda log, bob, _carol: [
        bob,
        log.answer("carol", requirement_sha256=requirements_digest(TWO[::-1])),
    ],
    "to another call": lambda log, bob, _carol: [bob, log.answer("carol", subject="0" * 64)],
    "to another request": lambda log, bob, _carol: [bob, log.answer("carol", request_id="0" * 32)],
    "to what was not shown": lambda log, bob, _carol: [
        bob,
        log.answer("carol", displayed_sha256="0" * 64),
    ],
    "one person twice": lambda log, bob, _carol: [bob, log.answer("bob")],
    "one person under two names": lambda log, bob, _carol: [bob, log.answer("bobby")],
    "the principal": lambda log, bob, _carol: [bob, log.answer("al")],
    "the owner": lambda log, bob, _carol: [bob, log.answer("olga")],
    "somebody without the role": lambda log, bob, _carol: [bob, log.answer("dora")],
    "too late": lambda log, bob, _carol: [bob, log.answer("carol", expires_at=log.at)],
    "too early": lambda log, bob, _carol: [bob, log.answer("carol", not_before=log.at + 61)],
    "a key that is not on the roster": lambda log, bob, _carol: [
        bob,
        log.answer("mallory", approver="user:carol"),
    ],
    "such a key in another's name": lambda log, bob, carol: [
        bob,
        resigned(
            carol,
            [{**log.answer("mallory")["signatures"][0], "keyid": carol["signatures"][0]["keyid"]}],
        ),
    ],
    "as somebody else": lambda log, bob, _carol: [bob, log.answer("dora", approver="user:carol")],
    "an altered signature": lambda _log, bob, carol: [bob, bit_flipped(carol)],
    "another's signature": lambda _log, bob, carol: [bob, resigned(carol, bob["signatures"])],
    "no signature": lambda _log, bob, carol: [bob, resigned(carol, [])],
    "two signatures": lambda _log, bob, carol: [
        bob,
        resigned(carol, carol["signatures"] + bob["signatures"]),
    ],
    "unsigned": lambda log, bob, _carol: [bob, log.answer(None, approver="user:carol")],
    "signed, as the application's word": lambda log, bob, _carol: [
        bob,
        log.answer("carol", method="application"),
    ],
    "unsigned, as a person's word": lambda log, bob, _carol: [
        bob,
        log.answer(None, approver="user:carol", method="ed25519"),
    ],
    "another note": lambda _log, bob, carol: [bob, spoilt(carol, b'"note":""', b'"note":"!"')],
    "another id": lambda log, bob, _carol: [
        bob,
        spoilt(log.answer("carol", approval_id="1" * 32), b"1" * 32, b"2" * 32),
    ],
    "no envelope": lambda _log, bob, carol: [bob, carol, {}],
    "null": lambda _log, bob, carol: [bob, carol, None],
    "another member": lambda log, bob, _carol: [bob, log.answer("carol", more="")],
}


def test_a_call_is_not_passed_off_as_one_of_an_observed_policy(two):
    """The configuration that the call names has the policy enforced."""
    assert two.holds()
    forged = two.saying(
        mode="observe", enforced=False, approvals=[], roster_sha256=None, decision="approval"
    )
    assert [what for _index, what in forged.problems()] == [
        "the policy was asked in another mode than is configured"
    ]
    assert not forged.holds()


@pytest.mark.parametrize("how", [how for how in ANSWERS if how != "another member"])
def test_other_answers_are_found_by_all(two, how):
    bob, carol = two.answers
    forged = two.saying(approvals=ANSWERS[how](two, bob, carol))
    assert not forged.holds()
    assert {index for index, _what in forged.problems()} == {two.last}


def test_an_answer_with_another_member_is_of_another_form(two):
    """The person has signed it: agentguard alone asks for its form."""
    bob, carol = two.answers
    forged = two.saying(approvals=ANSWERS["another member"](two, bob, carol))
    assert [index for index, _what in forged.problems()] == [two.last]
    assert forged.refusals() == ("approval.malformed", False)


def test_another_calls_approvals_are_found_by_all(two, other):
    assert not two.saying(approvals=other.answers).holds()
    mixed = [two.answers[0], two.answer("carol", request=other.request)]
    assert not two.saying(approvals=mixed).holds()


@pytest.mark.parametrize("said", ["call_site", "arguments", "resource", "task_id"])
def test_the_approvals_are_of_no_call_that_was_changed(two, said):
    """The agent signs another call: its digest is another, to which nobody has answered."""
    assert two.signed_anew(traceparent=None).holds()  # which is in no digest
    assert not two.signed_anew(**{said: "0" * 64}).holds()


def test_the_times_of_an_answer_are_taken_to_the_second(two):
    bob, _carol = two.answers
    for times, good in (
        ({"not_before": two.at + 60}, True),
        ({"expires_at": two.at + 1}, True),
        ({"not_before": two.at + 61}, False),
        ({"expires_at": two.at}, False),
        ({"not_before": two.at, "expires_at": two.at}, False),
    ):
        assert two.saying(approvals=[bob, two.answer("carol", **times)]).holds() is good, times


# --- requirements ---------------------------------------------------------------------------------

NEEDED = [one.as_json() for one in TWO]
REQUIREMENTS: dict[str, list[Any]] = {
    "none": [],
    "one left out": NEEDED[:1],
    "the other left out": NEEDED[1:],
    "in another order": NEEDED[::-1],
    "one twice": NEEDED * 2,
    "a smaller quorum": [{**NEEDED[0], "quorum": 1}, NEEDED[1]],
    "no role": [{**NEEDED[0], "roles": []}, NEEDED[1]],
    "whoever asks": [{**NEEDED[0], "allow_self": True}, NEEDED[1]],
    "another reason": [{**NEEDED[0], "reason": "tea"}, NEEDED[1]],
    "a longer time": [{**NEEDED[0], "ttl": 9999}, NEEDED[1]],
}


@pytest.mark.parametrize("how", REQUIREMENTS)
def test_requirements_that_were_changed_since_are_found_by_all(two, how):
    forged = two.saying(requirements=REQUIREMENTS[how])
    assert [index for index, _what in forged.problems()] == [two.last]
    assert not forged.holds()


@pytest.mark.parametrize("quorum", [0, -1])
def test_a_quorum_of_nobody_is_found_by_all(two, quorum):
    """Whoever has bob's key as well: no approval is no approval, whatever was asked for."""
    needed = [{**NEEDED[0], "quorum": quorum}]
    answer = two.answer("bob", requirement_sha256=canonical.digest(needed))
    assert not two.saying(requirements=needed, approvals=[answer]).holds()
    assert not two.saying(requirements=needed, approvals=[]).holds()


def asking(
    log: Insider, needed: Sequence[Requirement], *answers: tuple[str | None, str]
) -> Insider:
    """The call as if this had been asked, and answered by these."""
    request = replace(log.request, requirements=tuple(needed))
    index, stated = log.index("request"), records.request(request, at=log.call["at"])
    changed = log.with_body(index, loads_object(stated.body), stated.summary)
    given = [changed.answer(name, approver=who, request=request) for name, who in answers]
    said = [one.as_json() for one in needed]
    return changed.saying(requirements=said, approvals=given).signed_anew()


BOB, CAROL, DORA = ("bob", "user:bob"), ("carol", "user:carol"), ("dora", "user:dora")
ALICE, OLGA = ("al", "user:alice"), ("olga", "user:olga")


@pytest.mark.parametrize(
    ("needed", "good", "bad"),
    [
        ([Requirement("named", approvers=("bob", "dora"))], [BOB], [CAROL]),
        ([Requirement("by name", approvers=("bob",))], [BOB], [("bobby", "user:bob")]),
        ([Requirement("a role", roles=("security",))], [CAROL], [BOB]),
        ([Requirement("any role", roles=("security", RELEASE))], [BOB], [DORA]),
        (
            [Requirement("both", approvers=("dora", "bob"), roles=(RELEASE,))],
            [BOB],
            [DORA, CAROL],
        ),
        ([Requirement("three", quorum=3)], [BOB, CAROL, DORA], [BOB, CAROL, ALICE, OLGA]),
        ([Requirement("self", allow_self=True)], [ALICE], []),
        ([Requirement("not self")], [DORA], [ALICE]),
        ([Requirement("self", allow_self=True)], [OLGA], []),
        ([Requirement("not the owner")], [DORA], [OLGA, ALICE]),
        (
            [Requirement("self", allow_self=True), Requirement("and another")],
            [ALICE, BOB],
            [ALICE, OLGA],
        ),
    ],
    ids=str,
)
def test_who_may_approve_is_judged_by_all_alike(two, needed, good, bad):
    assert asking(two, needed, *good).holds()
    assert not asking(two, needed, *bad).holds()


def test_an_agent_on_its_own_authority_approves_nothing(asked):
    """The principal is the agent then, and its owner stands for it."""
    log = asked(by=("bob",), asks_for=None)
    assert log.holds()
    assert not log.saying(approvals=[log.answer("olga")]).holds()


# --- rejections -----------------------------------------------------------------------------------


def test_a_rejection_lets_nothing_run(rejected):
    assert not rejected.saying(decision="allow", code="").holds()
    needed = [one.as_json() for one in TWO]
    assert not rejected.saying(decision="allow", code="", requirements=needed).holds()
    both = [rejected.answer("bob"), rejected.answer("carol")]
    lied = rejected.saying(decision="allow", code="", requirements=needed, approvals=both)
    assert lied.holds()  # the twin: they would have approved


def test_nobody_has_rejected_who_has_not(rejected):
    assert not rejected.saying(approvals=[rejected.answer("bob")]).holds()
    assert not rejected.saying(approvals=[*rejected.answers, rejected.answer("bob")]).holds()
    assert not rejected.saying(approvals=[]).holds()
    # an application may refuse in somebody's name, whom nothing names then
    assert rejected.saying(approvals=[], roster_sha256=None).holds()
    again = rejected.answer("dora", verdict="reject")
    assert rejected.saying(approvals=[*rejected.answers, again]).holds()
    assert not rejected.saying(approvals=[bit_flipped(again)]).holds()


# --- the roster -----------------------------------------------------------------------------------


def test_a_roster_that_says_the_same_again_is_the_twin(two):
    assert two.with_roster(two.roster()).holds()
    more = two.roster()
    more["approvers"]["eve"] = {"principal": "user:eve", "keys": [], "roles": []}
    assert two.with_roster(more).holds()


def edited(said: Any, *path: str, value: Any) -> Any:
    """A roster with something else at one place."""
    inner = said
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return said


ROSTERS: dict[str, Callable[[Insider], Insider]] = {
    "another domain's": lambda log: log.with_roster(
        {**log.roster(), "trust_domain": "elsewhere.example"}
    ),
    "signed by the log": lambda log: log.with_roster(log.roster(), signer="log"),
    "signed by the agent": lambda log: log.with_roster(log.roster(), signer="coder"),
    "signed by an approver": lambda log: log.with_roster(log.roster(), signer="bob"),
    "signed by a stranger": lambda log: log.with_roster(log.roster(), signer="mallory"),
    "unsigned": lambda log: log.with_roster(log.roster(), signer=None),
    "of another digest": lambda log: log.with_roster(log.roster(), subject="0" * 64),
    "another than the call names": lambda log: log.with_roster(log.roster(), named="0" * 64),
    "without carol": lambda log: log.with_roster(
        edited(log.roster(), "approvers", "carol", value={"principal": "", "keys": [], "roles": []})
    ),
    "carol without her role": lambda log: log.with_roster(
        edited(log.roster(), "approvers", "carol", "roles", value=[RELEASE])
    ),
    "carol is bob": lambda log: log.with_roster(
        edited(log.roster(), "approvers", "carol", "principal", value="user:bob")
    ),
    "two with one key": lambda log: log.with_roster(
        edited(
            log.roster(),
            "approvers",
            "eve",
            value={**log.roster()["approvers"]["carol"], "principal": "user:eve"},
        )
    ),
    "nobody at all": lambda log: log.with_roster({**log.roster(), "approvers": {}}),
    "null": lambda log: log.saying(roster_sha256=None),
    "null, and no answers": lambda log: log.saying(roster_sha256=None, approvals=[]),
    "null, and nothing asked": lambda log: log.saying(roster_sha256=None, requirements=[]),
}


@pytest.mark.parametrize("how", ROSTERS)
def test_another_roster_is_found_by_all(two, how):
    assert not ROSTERS[how](two).holds()


def test_a_stranger_who_was_put_on_the_roster_after_it_was_signed(two):
    said, index = two.roster(), two.index("roster")
    said["approvers"]["dora"]["keys"] = [two.keys["mallory"].public_key.jwk()]
    stated: Any = loads_object(two.records[index].body)
    members = {name: said[name] for name in said if name != "trust_domain"}
    payload = dsse.statement("roster", canonical.digest(members), "roster", said)
    stated["statement"]["payload"] = b64_encode(payload)  # under the issuer's old signature
    forged = two.with_body(index, stated).saying(roster_sha256=canonical.digest(members))
    assert not forged.signed_anew().holds()


def test_a_roster_that_comes_after_its_call_is_none_of_it(two):
    index = two.index("roster")
    records = [*two.records[:index], *two.records[index + 1 :]]
    call = replace(two, records=tuple(records)).signed_anew().records[-1]
    forged = replace(two, records=(*records[:-1], call, two.records[index]))
    what = "a roster of approvers that no entry before it states"
    assert forged.problems() == [(two.last - 1, what)]
    needed = {"shard", "key", "config", "policy", "identity", "delegation", "roster"}
    kinds = [parse_entry(record.body).kind for record in forged.records]
    places = [i for i, kind in enumerate(kinds) if kind in {*needed, "authorization"}]
    file = forged.file(places, two.last - 1)
    assert two.refusals(file) == ("evidence.mismatch", True)


def test_a_roster_that_is_missing_or_nobody_needs(two, asked):
    places = list(range(len(two.records)))
    places.remove(two.index("request"))
    assert two.refusals(two.file(places)) == (None, False)
    places.remove(two.index("roster"))
    assert two.refusals(two.file(places)) == ("evidence.incomplete", True)
    bare = two.saying(roster_sha256=None, approvals=[], requirements=[])
    places = [*places, two.index("roster")]
    assert bare.refusals(bare.file(sorted(places))) == ("evidence.superfluous", True)
    assert bare.refusals() == (None, False)  # that the policy allowed it is the log's word


# --- the application's word -----------------------------------------------------------------------


def test_the_applications_word_counts_where_the_roster_says_so(vouched):
    for value in (False, 1, "true", None):
        said = {**vouched.roster(), "application": value}
        assert not vouched.with_roster(said).holds(), value
    assert vouched.with_roster({**vouched.roster(), "application": True}).holds()


@pytest.mark.parametrize(
    ("needed", "good"),
    [
        (Requirement("anybody"), True),
        (Requirement("named", approvers=("dora",)), False),
        (Requirement("a role", roles=(RELEASE,)), False),
        (Requirement("two", quorum=2), False),
    ],
    ids=str,
)
def test_the_applications_word_is_not_enough_where_people_are_named(vouched, needed, good):
    word = [(None, "user:dora"), (None, "user:eve")]
    assert asking(vouched, [needed], *word).holds() is good
    assert asking(vouched, [needed], BOB, CAROL, (None, "user:eve")).holds() is (
        needed.approvers == () and RELEASE in (needed.roles or (RELEASE,))
    )


def test_the_application_does_not_vouch_for_who_asks(vouched):
    needed = [Requirement("anybody")]
    assert not asking(vouched, needed, (None, "user:alice")).holds()
    assert not asking(vouched, needed, (None, "user:olga")).holds()
    assert not asking(vouched, needed, (None, "user:dora"), ("bob", "user:alice")).holds()


# --- once -----------------------------------------------------------------------------------------


def again(log: Insider, **said: Any) -> Record:
    """The same call once more, under another id, signed by the agent."""
    return log.signed_anew(invocation_id="f" * 32, **said).records[-1]


def test_one_approval_lets_one_call_run(two):
    twice = [*two.records, again(two)]
    reader = replace(two, records=tuple(twice)).reader()
    what = f"its approval was used before, by entry {two.last} of shard 0"
    assert two.problems(reader) == [(two.last + 1, what)]


def test_other_answers_to_one_request_let_no_second_call_run(two):
    """Each answer is used once, and all of them are to one request: it was one call."""
    more = two.saying(approvals=[two.answer("bob"), two.answer("carol")])
    reader = replace(two, records=(*two.records, again(more))).reader()
    assert [index for index, _what in two.problems(reader)] == [two.last + 1]


class Shards:
    """A log of several shards, each in memory."""

    def __init__(self, *shards: MemoryBackend) -> None:
        self._shards = shards

    def shards(self) -> list[int]:
        return list(range(len(self._shards)))

    def registry(self) -> bytes | None:
        return self._shards[0].registry()

    def __getattr__(self, name: str) -> Any:
        return lambda shard, *args, **options: getattr(self._shards[shard], name)(
            shard, *args, **options
        )


def in_two_shards(log: Insider, batch: Sequence[Record]) -> Shards:
    at = loads_object(log.records[0].body)["at"]
    opening = records.shard(
        log.keys["issuer"],
        log.keys["log"].public_key,
        trust_domain=log.trust.trust_domain,
        origin=log.trust.origin(1),
        number=1,
        heads=[],
        at=str(at),
    )
    listed = seal_registry(log.keys["issuer"], log.trust, [0, 1], at=str(at))
    shards = (log.records, (opening, *batch[1:]))
    origins = [log.trust.origin(number) for number in (0, 1)]
    backends = [
        log_of(origin, log.keys["log"], kept, listed)
        for origin, kept in zip(origins, shards, strict=True)
    ]
    return Shards(*backends)


def test_one_approval_lets_one_call_run_in_all_shards(two):
    request = two.index("request")
    founded = [*two.records[:request], *two.records[request + 1 : -1]]
    assert two.problems(in_two_shards(two, founded)) == []  # the twin
    what = f"its approval was used before, by entry {two.last} of shard 0"
    found = two.problems(in_two_shards(two, [*founded, again(two)]))
    assert found == [(len(founded), what)]


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["agent", "principal", "tool", "decision", "task_id", "at"])
def test_the_columns_of_a_request_are_recomputed(two, column):
    index = two.index("request")
    about = two.records[index].summary._replace(**{column: "x"})
    changed = two.with_body(index, loads_object(two.records[index].body), about)
    assert (index, column in changed.problems()[0][1]) == (changed.problems()[0][0], True)


def test_a_request_under_another_kind_is_found(two):
    index = two.index("request")
    about = two.records[index].summary._replace(kind="config")
    changed = two.with_body(index, loads_object(two.records[index].body), about)
    assert {place for place, _what in changed.problems()} == {index}


@pytest.mark.parametrize(
    "said",
    [
        {"request_id": "0" * 32},
        {"call_digest": "0" * 64},
        {"displayed_sha256": "0" * 64},
        {"requirements": NEEDED[:1]},
        {"requirement_sha256": "0" * 64},
        {
            "requirements": NEEDED[:1],
            "requirement_sha256": requirements_digest(TWO[:1]),
        },
        {"requirements": None},
        {"tool": "merge"},
    ],
    ids=str,
)
def test_a_request_that_says_something_else_than_was_approved_is_found(two, said):
    index = two.index("request")
    members = {**loads_object(two.records[index].body), **said}
    changed = two.with_body(index, members).signed_anew()
    found = [place for place, _what in changed.problems()]
    assert found
    assert set(found) <= {index, two.last}


def test_a_request_that_was_left_out_is_missed(two):
    index = two.index("request")
    gone = replace(two, records=(*two.records[:index], *two.records[index + 1 :])).signed_anew()
    what = "no entry states the request that was approved, as it was approved"
    assert gone.problems() == [(gone.last, what)]
    assert gone.refusals() == (None, False)  # which holds no requests


def test_a_call_that_was_asked_about_and_ran_unapproved_is_found(two):
    """All that says so was taken from its entry: the request still names the call."""
    bare = two.saying(approvals=[], requirements=[], roster_sha256=None)
    assert bare.problems() == []  # nobody knows that it ran

    def ended(status: Any, **how: Any) -> list[tuple[int | None, str]]:
        sealed = Envelope.parse(bare.call["invocation"])
        payload = records.outcome_statement(
            canonical.sha256_hex(sealed.payload),
            authorization=Receipt(0, bare.last),
            status=status,
            result=None,
            result_type=None,
            error_type=None,
            started_at=None,
            ended_at=bare.call["at"],
            **how,
        )
        outcome = dsse.seal(payload, bare.keys["coder"])
        said = bare.records[-1].summary
        about = summary.of_outcome(
            said.invocation_id, str(said.agent), at=bare.call["at"], status=status
        )
        record = records.outcome(outcome, about, None)
        return replace(bare, records=(*bare.records, record)).problems()

    assert ended("not_run", replay_of="0" * 32) == []  # of a call that had run before
    for status in ("ok", "error", "unknown"):
        ((index, what),) = ended(status)
        assert index == bare.last + 1
        assert "rests on no answer" in what


# --- each member ----------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a value that holds no other."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in inner:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*path, name))
        else:
            yield (*path, name)


def other_than(value: Any) -> Any:
    """Something else in the place of a value, of the same kind where that can be."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value[:-1] + ("0" if value[-1:] != "0" else "1")
        case None:
            return "0"
    return [*value, "0"] if isinstance(value, list) else {"0": "0"}


def with_leaf(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy of a value with something else at a path."""
    copy = inner = json.loads(json.dumps(value))
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = other_than(inner[path[-1]])
    return copy


def under_its_signature(sealed: Any, path: tuple[Any, ...]) -> Any:
    """An envelope with something else at a path of its statement."""
    statement = json.loads(b64_decode(sealed["payload"]))
    return {**sealed, "payload": b64_encode(canonical.dumps(with_leaf(statement, path)))}


@pytest.mark.parametrize("number", [0, 1])
def test_each_member_of_a_signed_answer_is_signed(two, number):
    answers = two.answers
    statement = json.loads(b64_decode(answers[number]["payload"]))
    paths = list(leaves(statement))
    assert len(paths) == 14
    for path in paths:
        spoilt_one = under_its_signature(answers[number], path)
        mixed = [spoilt_one if i == number else one for i, one in enumerate(answers)]
        assert not two.saying(approvals=mixed).holds(), path
    for path in leaves(answers[number]):
        changed = with_leaf(answers[number], path)
        if path != ("payload",) and path[-1] != "payloadType":
            mixed = [changed if i == number else one for i, one in enumerate(answers)]
            assert not two.saying(approvals=mixed).holds(), path


def test_each_byte_of_a_signature_counts(two):
    bob, carol = two.answers
    (one,) = bob["signatures"]
    raw = b64_decode(one["sig"])
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        forged = resigned(bob, [{**one, "sig": b64_encode(changed)}])
        assert not two.saying(approvals=[forged, carol]).holds(), place


def test_each_member_of_the_requirements_and_the_roster_counts(two):
    for path in leaves(NEEDED):
        assert not two.saying(requirements=with_leaf(NEEDED, path)).holds(), path
    index = two.index("roster")
    stated: Any = loads_object(two.records[index].body)
    for path in leaves(json.loads(b64_decode(stated["statement"]["payload"]))):
        changed = under_its_signature(stated["statement"], path)
        forged = two.with_body(index, {**stated, "statement": changed}).signed_anew()
        assert not forged.holds(), path
    assert not two.saying(roster_sha256=other_than(two.call["roster_sha256"])).holds()


def test_what_an_unsigned_answer_is_to_counts(vouched):
    """The rest of it is the application's word, which nobody signs."""
    (word,) = vouched.answers
    statement = json.loads(b64_decode(word["payload"]))
    found: dict[str, bool] = {}
    for path in leaves(statement):
        forged = vouched.saying(approvals=[under_its_signature(word, path)])
        if path[-1] in {"sha256", "requirement_sha256", "verdict", "method", "predicateType"}:
            assert not forged.holds(), path
        found[str(path[-1])] = bool(forged.problems())
    assert found["request_id"]  # which is not in the log, or is another
    assert found["displayed_sha256"]
    assert not found["note"]
