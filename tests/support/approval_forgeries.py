"""An insider with the log's key, who forges what the log says of approved calls."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leaf_tree import LeafTree
from remade_maps import map_of

from agentguard import ApprovalRequest, Requirement
from agentguard.approvals.answer import seal_answer
from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import LOG, Record, parse_time
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.head import Head
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.requests import RequestEntry
from agentguard.audit.merkle import CompactRange
from agentguard.audit.summary import trace_id
from agentguard.audit.tlog_proof import TlogProof
from agentguard.call import invocation
from agentguard.domain import verify
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_decode, b64_encode, loads_object
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer
from agentguard.store import store
from agentguard.store import tree as trees
from agentguard.store.engine import Writing
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import MemoryEngine

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"

INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

RELEASE = "release-manager"

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
        copy: dict[str, Any] = json.loads(json.dumps(dict(said)))
        return copy

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
        about = self.records[-1].summary._replace(
            invocation_id=predicate["invocation_id"],
            agent=predicate["agent"],
            principal=predicate["principal"],
            tool=predicate["tool"]["name"],
            task_id=predicate["task_id"],
            trace_id=trace_id(predicate["traceparent"]),
            decision=members["decision"],
        )
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

    def reader(self) -> StoredLog:
        return log_of(self.trust.log, self.keys["log"], self.records)

    def problems(self, reader: Any = None) -> list[tuple[int | None, str]]:
        report = verify.examine(reader or self.reader(), self.trust)
        return [(found.index, found.what) for found in report.problems]

    def evidence(self) -> bytes:
        bodies = [record.body for record in self.records]
        needed = {"key", "config", "policy", "identity", "delegation", "roster"}
        kinds = [loads_object(body)["kind"] for body in bodies]
        if self.call["roster_sha256"] is None:
            needed.remove("roster")
        places = [i for i, kind in enumerate(kinds) if kind in needed or i == self.last]
        return self.file(places)

    def file(self, places: Sequence[int], call: int = -1) -> bytes:
        bodies = [record.body for record in self.records]
        tree = LeafTree(map(merkle.leaf_hash, bodies))
        at = str(loads_object(bodies[-1])["at"])
        head = Head(self.trust.log, len(bodies), root_of(self.records), bytes(32), at)
        note = heads.sign(head, self.keys["log"])
        logged = tuple(
            LoggedEntry(bodies[i], TlogProof(i, tuple(tree.inclusion_proof(i)), note))
            for i in places
        )
        members: Any = loads_object(bodies[call])
        said = json.loads(b64_decode(members["invocation"]["payload"]))["predicate"]
        size = said["log"]["size"]
        seen = Checkpoint(head.log, size, b64_decode(said["log"]["root"]))
        extension = Extension(seen, tuple(tree.consistency_proof(size)))
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


def log_of(log: str, signer: Ed25519Signer, records: Sequence[Record]) -> StoredLog:
    """A log with these entries, signed with the log's key."""
    tree, completed = CompactRange(), list[trees.Completed]()
    for record in records:
        tree.append(merkle.leaf_hash(record.body), completed)
    at = max(
        (str(loads_object(one.body)["at"]) for one in records),
        default="1970-01-01T00:00:00.000000Z",
    )
    root, nodes = map_of(one.body for one in records)
    head = Head(log, tree.size, tree.root(), root, at)
    note = heads.sign(head, signer)
    engine = MemoryEngine(note)

    def write(rows: Writing) -> None:
        rows.write(store._PUT_NODE, [(LOG, *node) for node in nodes.items()])
        rows.write(
            store._ADD_ENTRY,
            [
                (LOG, index, *one.summary, merkle.leaf_hash(one.body), one.body)
                for index, one in enumerate(records)
            ],
        )
        beside = [(LOG, i, *kept) for i, one in enumerate(records) for kept in one.attachments]
        rows.write(store._ADD_ATTACHMENT, beside)
        rows.write(store._ADD_TREE, [(LOG, *one) for one in trees.stored(completed)])
        rows.write_head(lambda: (note, tree.encode()))
        rows.commit()

    engine.write(write)
    return StoredLog(engine)


NEEDED = [one.as_json() for one in TWO]


def asking(
    log: Insider, needed: Sequence[Requirement], *answers: tuple[str | None, str]
) -> Insider:
    """The call as if this had been asked, and answered by these."""
    request = replace(log.request, requirements=tuple(needed))
    index, stated = log.index("request"), RequestEntry.new(request, None, at=log.call["at"])
    changed = log.with_body(index, loads_object(stated.body), stated.summary)
    given = [changed.answer(name, approver=who, request=request) for name, who in answers]
    said = [one.as_json() for one in needed]
    return changed.saying(requirements=said, approvals=given).signed_anew()


BOB, CAROL, DORA = ("bob", "user:bob"), ("carol", "user:carol"), ("dora", "user:dora")


def again(log: Insider, **said: Any) -> Record:
    """The same call once more, under another id, signed by the agent."""
    return log.signed_anew(invocation_id="f" * 32, **said).records[-1]
