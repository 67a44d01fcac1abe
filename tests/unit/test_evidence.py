"""The evidence of one call: what can be proved, what it then says, and the form of the file."""

from __future__ import annotations

import json
import runpy
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard
from agentguard.audit import head as heads
from agentguard.audit import merkle, statements, tlog_proof
from agentguard.audit.entry import Attachment, StoredEntry
from agentguard.audit.evidence import EvidenceVerifier, verify_evidence
from agentguard.audit.head import Head
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.prove import prove_call, prove_calls
from agentguard.audit.summary import Summary
from agentguard.audit.tlog_proof import TlogProof
from agentguard.call.invocation import commitment
from agentguard.errors import CallError, DecodeError, VerificationError
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer, PublicKey

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
INDEPENDENT = runpy.run_path(str(EXAMPLE))["verify"]


class Reader:
    """What a guard's log holds, to be changed by a test."""

    def __init__(self, guard):
        reader = guard.reader()
        stored = list(reader.stored())
        self.bodies = [one.body for one in stored]
        self.columns = [one.summary for one in stored]
        self.note = reader.head()
        self.inclusion_proof = reader.inclusion_proof
        self.consistency_proof = reader.consistency_proof
        self.beside = {one.index: list(one.attachments) for one in stored}
        self.scans = 0

    def entries(self, *, after=-1):
        self.scans += after < 0
        return islice(enumerate(self.bodies), after + 1, None)

    def entry(self, index):
        return StoredEntry(index, self.bodies[index], self.columns[index], self.beside[index])

    def search(self, wanted, **_options):
        return (at for at, about in enumerate(self.columns) if about and wanted.matches(about))

    def head(self):
        return self.note

    def ids(self):
        parsed = [parse_entry(body) for body in self.bodies]
        return [str(one.invocation_id) for one in parsed if isinstance(one, CallEntry)]


def policy(call):
    return Decision.deny("not three") if call["args"] == {"x": 3} else Decision.allow()


@pytest.fixture
def guard():
    with Guard.ephemeral(policy) as guard:
        yield guard


@pytest.fixture
def halve(guard):
    @guard.tool(resource="number:{x}")
    def halve(x):
        if x == 7:
            raise KeyboardInterrupt
        return 10 // x

    return halve


@pytest.fixture
def read(guard, halve):
    """Make calls, and read the log with them."""

    def read(*numbers: int) -> Any:
        agent = guard.new_agent("reader")
        for number in numbers:
            try:
                agent.call(halve, x=number)
            except (Denied, ZeroDivisionError, KeyboardInterrupt):
                continue
        return Reader(guard)

    return read


def proved(reader, guard, nth=0, **options):
    data = prove_call(reader, guard.trust, reader.ids()[nth], **options)
    INDEPENDENT(data, guard.trust.dumps())
    return verify_evidence(data, guard.trust)


# --- what it says -------------------------------------------------------------------------------


def test_a_call_that_ran(guard, read):
    reader = read(2)
    said = proved(reader, guard)
    assert said.call.invocation_id == reader.ids()[0]
    assert (said.call.tool, said.call.principal) == ("halve", "agent:reader")
    assert said.call.agent == said.credential.uri
    assert said.credential.profile.name == "reader"
    assert said.call.predicate["resource"] == "number:2"
    assert (said.call.decision, said.call.engine) == (
        "allow",
        {"name": "function", **_version(said)},
    )
    assert said.data["arguments"] == {"x": 2}
    assert said.data["result"] == 5
    assert said.outcome is not None
    assert said.outcome.status == "ok"
    assert said.outcome_place is not None
    assert said.outcome_place.index == said.place.index + 1
    assert said.checkpoint.point.size == len(reader.bodies)
    assert said.checkpoint.point == heads.parse(reader.note).checkpoint
    assert said.call_checkpoint.size == said.place.index
    assert said.call_checkpoint.root == _root(reader.bodies[: said.call_checkpoint.size])


def _version(said):
    return {"version": said.call.engine["version"]}


def _root(bodies):
    tree = merkle.CompactRange()
    for body in bodies:
        tree.append(merkle.leaf_hash(body))
    return tree.root()


def test_each_call_of_a_log_is_proved_alone(guard, read):
    reader = read(1, 0, 3, 7, 2)
    said = [proved(reader, guard, nth) for nth in range(5)]
    assert [s.call.decision for s in said] == ["allow", "allow", "deny", "allow", "allow"]
    statuses = [s.outcome.status if s.outcome is not None else None for s in said]
    assert statuses == ["ok", "error", None, "unknown", "ok"]
    assert [s.call.reasons for s in said][2] == ("not three",)
    assert [s.data.get("result") for s in said] == [10, None, None, None, 5]


def test_a_call_without_an_outcome_is_proved_as_far_as_it_goes(guard):
    meanwhile = []
    guard.new_agent("reader").call(guard.tool(lambda: meanwhile.append(Reader(guard))))
    said = proved(meanwhile[0], guard)
    assert (said.call.allowed, said.outcome) == (True, None)


def test_what_was_refused_before_the_policy_names_none(guard, halve):
    config = {"agents": {"reader": {"authority": "delegated"}}}
    with Guard.ephemeral(policy, config=config) as strict:
        tool = strict.tool(lambda: None)
        with pytest.raises(Denied, match="delegation"):
            strict.new_agent("reader").call(tool)
        said = proved(Reader(strict), strict)
    assert (said.call.code, said.call.engine) == ("delegation.missing", None)
    assert said.call.policy_sha256 is None


def test_a_refusal_for_want_of_a_signer_is_proved_unsigned(guard, halve):
    agent = guard.new_agent("reader")
    instance: Any = agent._caller.instance()
    instance.actor = replace(instance.actor, signer=None)
    with pytest.raises(Denied) as denied:
        agent.call(halve, x=2)
    assert denied.value.code == "signature.failed"
    said = proved(Reader(guard), guard)
    assert (said.call.code, said.call.envelope.signatures) == ("signature.failed", ())


def test_attachments_can_be_left_out_or_be_erased(guard, read):
    reader = read(2)
    whole = proved(reader, guard)
    assert sorted(whole.data) == ["arguments", "input", "result"]
    assert proved(reader, guard, attachments=False).data == {}
    index = whole.place.index
    reader.beside[index] = [kept for kept in reader.beside[index] if kept.role != "arguments"]
    erased = proved(reader, guard)
    assert sorted(erased.data) == ["input", "result"]
    assert erased.call == whole.call


def test_what_is_redacted_is_a_copy_that_the_log_vouches_for(read):
    config = {"redact": {"halve": ["/args/x"]}}
    with Guard.ephemeral(policy, config=config) as guard:

        @guard.tool
        def halve(x: int) -> int:
            return 10 // x

        guard.new_agent("reader").call(halve, x=2)
        said = proved(Reader(guard), guard)
    assert said.copied_roles == {"arguments", "input", "result"}
    assert said.data["arguments"] != {"x": 2}
    assert said.data["result"] == 5
    assert said.call.commitments["arguments"] != said.call.predicate["arguments"]


def test_it_needs_nothing_but_the_bytes_and_the_trust_document(guard, read):
    """The proof holds against a trust document that was written down and read again."""
    reader = read(2)
    data = prove_call(reader, guard.trust, reader.ids()[0])
    written = type(guard.trust).loads(guard.trust.dumps())
    assert verify_evidence(data, written) == verify_evidence(data, guard.trust)


# --- how it is found -----------------------------------------------------------------------------


@pytest.fixture
def several(read):
    """A log with three calls, and the evidence of the one in the middle."""
    reader = read(1, 2, 5)
    return reader, reader.ids()[1]


def test_the_log_is_read_once(guard, several):
    reader, wanted = several
    told: list[int] = []
    prove_call(reader, guard.trust, wanted, progress=told.append)
    assert reader.scans == 1
    assert told == list(range(1, len(reader.bodies) + 1))


@pytest.mark.parametrize(
    ("columns", "scans"),
    [("none", 2), ("others", 2), ("of another call", 2), ("without the outcome", 1)],
)
def test_columns_that_were_changed_hide_nothing(guard, several, columns, scans):
    """They are believed in nothing; it only takes longer."""
    reader, wanted = several
    whole = prove_call(reader, guard.trust, wanted)
    reader.scans, kept = 0, list(reader.columns)
    calls = [at for at, about in enumerate(kept) if about.kind == "call"]
    if columns == "none":
        reader.columns = [None] * len(kept)
    elif columns == "others":
        reader.columns = [Summary("outcome", about.at, wanted) for about in kept]
    elif columns == "of another call":
        reader.columns[calls[0]], reader.columns[calls[1]] = kept[calls[1]], kept[calls[0]]
    else:
        reader.columns = [about if about.kind != "outcome" else None for about in kept]
    assert prove_call(reader, guard.trust, wanted) == whole
    assert reader.scans == scans


# --- what can't be proved -----------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["", "f" * 32, "0", "reader", "\ud800", '"'])
def test_an_unknown_call(guard, read, wanted):
    with pytest.raises(CallError) as error:
        prove_call(read(2), guard.trust, wanted)
    assert error.value.code == "call.unknown"


@pytest.mark.parametrize("payload", ["A", "A===", "=", "====", "AA=A"])
@pytest.mark.parametrize("kind", ["call", "outcome"])
def test_what_is_no_base64_mentions_no_call(guard, read, kind, payload):
    """An entry that somebody has put there is none of the call's, whatever its columns say."""
    reader = read(2)
    wanted, forged = reader.ids()[0], f'{{"kind":"{kind}","payload":"{payload}"}}'.encode()
    reader.bodies.insert(0, forged)  # it stands before the call
    reader.bodies.append(forged)
    reader.columns = [None] * len(reader.bodies)
    with pytest.raises(CallError) as unknown:
        prove_call(reader, guard.trust, "f" * 32)
    assert unknown.value.code == "call.unknown"
    with pytest.raises(VerificationError):  # the call is found, in a log that is not whole
        prove_call(reader, guard.trust, wanted)


def test_a_call_under_no_checkpoint_yet_is_unknown(guard, read):
    before, reader = read(1), read(2)
    wanted = reader.ids()[1]
    assert proved(reader, guard, 1).call.allowed
    reader.note = before.note
    with pytest.raises(CallError, match="no checkpoint of the log covers"):
        prove_call(reader, guard.trust, wanted)
    reader.note = None
    with pytest.raises(VerificationError, match="the log's checkpoint can't be read"):
        prove_call(reader, guard.trust, wanted)


def test_a_changed_entry_proves_nothing(guard, read):
    reader = read(2)
    assert proved(reader, guard).call.allowed
    wanted = reader.ids()[0]
    changed = reader.bodies[-1].replace(b'"at":"20', b'"at":"21')
    assert reader.bodies[-1] != changed
    reader.bodies[-1] = changed
    with pytest.raises(VerificationError, match="agentguard audit verify") as error:
        prove_call(reader, guard.trust, wanted)
    assert error.value.code == "proof.invalid"


def test_a_log_that_loses_an_entry_meanwhile_proves_nothing(guard, read, monkeypatch):
    reader = read(2)
    wanted, found = reader.ids()[0], reader.entry
    monkeypatch.setattr(reader, "entry", lambda at: found(at) if at else None)
    with pytest.raises(VerificationError, match="is gone"):
        prove_call(reader, guard.trust, wanted)


def test_true_is_no_number(guard, read):
    """Python's ``True`` equals 1, and no JSON ``true`` is an index, a log's number, or a size."""
    place: dict[str, JSON] = {"log": 0, "index": 1}
    outcome = parse_entry(read(2).bodies[-1], OutcomeEntry)
    said = dict(outcome.predicate)
    for named, right in ((place, True), (place | {"index": True}, False)):
        payload = dsse.statement(
            "outcome", "0" * 64, "invocation", {**said, "authorization": named}
        )
        body = canonical.dumps(
            {
                "kind": "outcome",
                "at": outcome.at,
                "copies": {},
                "statement": dsse.unsigned(payload).as_json(),
            }
        )
        with nullcontext() if right else pytest.raises(DecodeError, match="Expected `int`"):
            parse_entry(body)


@pytest.mark.parametrize("data", [b'{"x":3}', b"\xff", b""])
def test_changed_arguments_prove_nothing(guard, read, data):
    reader = read(2)
    wanted, index = reader.ids()[0], proved(reader, guard).place.index
    changed = [k._replace(data=data) if k.role == "arguments" else k for k in reader.beside[index]]
    reader.beside[index] = changed
    with pytest.raises(VerificationError, match="agentguard audit verify"):
        prove_call(reader, guard.trust, wanted)
    assert prove_call(reader, guard.trust, wanted, attachments=False)


def test_where_a_salt_ends_is_no_matter_of_taste():
    """A commitment to salt and data says nothing of the border between the two."""
    salt, data = b"s" * 31 + b"1", b"5"
    shifted = Attachment("result", "", salt[:-1], b"15")
    committed = commitment(salt, data)
    assert commitment(shifted.salt, shifted.data) == committed
    statements.check_attachments(
        [Attachment("result", committed, salt, data)], {"result": committed}
    )
    with pytest.raises(VerificationError, match="was changed"):
        statements.check_attachments(
            [shifted._replace(commitment=committed)], {"result": committed}
        )


# --- the form -----------------------------------------------------------------------------------


def test_the_file_is_canonical_json_that_any_tool_reads(guard, read):
    reader = read(2)
    data = prove_call(reader, guard.trust, reader.ids()[0])
    value = json.loads(data)
    written = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert data == written.encode() + b"\n"
    assert sorted(value) == ["attachments", "consistency", "entries", "invocation_id", "type"]
    kinds = [json.loads(item["entry"])["kind"] for item in value["entries"]]
    assert kinds == ["key", "key", *kinds[2:]]
    assert sorted(kinds[2:]) == ["call", "config", "identity", "outcome", "policy"]


@pytest.mark.parametrize(
    "changed",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: json.dumps(json.loads(data), indent=1).encode(),
    ],
    ids=["line ends", "pretty-printed"],
)
def test_a_file_that_was_changed_on_its_way_says_so(guard, read, changed):
    reader = read(1)
    data = prove_call(reader, guard.trust, reader.ids()[0])
    assert verify_evidence(data, guard.trust).call.allowed
    with pytest.raises(DecodeError, match="changed on its way; ask for the bytes") as caught:
        verify_evidence(changed(data), guard.trust)
    assert caught.value.code == "evidence.malformed"


@pytest.fixture
def proof(signer):
    head = Head("acme.example/log/a", 3, b"r" * 32, b"m" * 32, "2026-12-06T09:00:00.000000Z")
    note = heads.sign(head, signer)
    return TlogProof(2, (b"h" * 32,), note)


def test_a_proof_is_written_as_c2sp_says(proof):
    text = proof.dumps()
    lines = text.split("\n")
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 2"]
    assert lines[2] == "aGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGg="
    assert lines[3] == ""
    assert "\n".join(lines[4:]).encode() == proof.note
    assert tlog_proof.parse(text) == proof


def test_a_proof_of_the_only_leaf_has_no_hash(proof):
    alone = replace(proof, index=0, hashes=())
    assert alone.dumps().startswith("c2sp.org/tlog-proof@v1\nindex 0\n\nacme.example/")
    assert tlog_proof.parse(alone.dumps()) == alone


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("@v1", "@v2"),
        ("index 2", "index 02"),
        ("index 2", "index -2"),
        ("index 2", "index +2"),
        ("index 2", "index 2 "),
        ("index 2", "index \u0662"),
        ("index 2", "index 99999999999999999999"),
        ("index 2", "index"),
        ("index 2\n", ""),
        ("index 2\n", "index 2\r\n"),
        ("index 2\n", "extra YWJj\nindex 2\n"),
        ("index 2\n", "index 2\nindex 2\n"),
        ("\naGho", "\n aGho"),
        ("aGg=\n", "aGh=\n"),
        ("aGg=\n", "\n"),
        ("aGg=\n\n", "aGg=\n"),
        ("c2sp", "\nc2sp"),
    ],
)
def test_another_form_of_a_proof_is_refused(proof, before, after):
    text = proof.dumps()
    changed = text.replace(before, after, 1)
    assert changed != text
    with pytest.raises(DecodeError):
        heads.parse(tlog_proof.parse(changed).note)
    assert tlog_proof.parse(text) == proof


def test_a_proof_that_is_too_long_is_refused(proof):
    with pytest.raises(DecodeError, match="longer than"):
        tlog_proof.parse(proof.dumps() + "x" * 300_000)


def test_a_stranger_signs_nothing(guard, read, stranger):
    reader = read(2)
    data = prove_call(reader, guard.trust, reader.ids()[0])
    assert isinstance(stranger, Ed25519Signer)
    keys = tuple(
        replace(key, key=stranger.public_key) if key.use == "log" else key
        for key in guard.trust.keys
    )
    with pytest.raises(VerificationError) as error:
        verify_evidence(data, replace(guard.trust, keys=keys))
    assert error.value.code == "signature.missing"


# --- many calls ---------------------------------------------------------------------------------


def test_the_evidence_of_many_calls_is_that_of_each_and_the_log_is_read_once(guard, read):
    """Two instances, and calls that ran, were denied, failed and were cut short."""
    read(1, 3, 0, 7)
    reader = read(2, 3, 4)
    ids = [*reader.ids(), reader.ids()[0]]
    told: list[int] = []
    files = list(prove_calls(reader, guard.trust, ids, progress=told.append))
    assert files == [prove_call(reader, guard.trust, one) for one in ids]
    assert len(set(files)) == len(ids) - 1
    assert told == list(range(1, len(reader.bodies) + 1))
    bare = list(prove_calls(reader, guard.trust, ids, attachments=False))
    assert bare == [prove_call(reader, guard.trust, one, attachments=False) for one in ids]


def test_no_file_is_made_where_one_call_of_many_is_unknown(guard, read):
    reader = read(1, 2)
    with pytest.raises(CallError, match="f" * 32):
        next(prove_calls(reader, guard.trust, [*reader.ids(), "f" * 32]))


def test_what_files_share_is_verified_once(guard, read, monkeypatch):
    """And a file whose shared part is changed is refused as if it were the first."""
    reader = read(1, 2, 3, 4)
    files = list(prove_calls(reader, guard.trust, reader.ids()))
    checked: list[bytes] = []
    verify = PublicKey.verify

    def counted(key: PublicKey, signature: bytes, message: bytes) -> None:
        checked.append(signature)
        verify(key, signature, message)

    monkeypatch.setattr(PublicKey, "verify", counted)
    verifier = EvidenceVerifier(guard.trust)
    for data in files:
        assert verifier.verify(data) == verify_evidence(data, guard.trust)
    checked.clear()
    for data in files:
        verifier.verify(data)
    assert checked == []
    data = files[0]
    for place in range(0, len(data), len(data) // 50):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises((DecodeError, VerificationError)) as alone:
            verify_evidence(changed, guard.trust)
        with pytest.raises(type(alone.value)) as late:
            verifier.verify(changed)
        assert str(late.value) == str(alone.value)
