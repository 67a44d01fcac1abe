"""Evidence that was edited, cut, spliced or forged is refused; by the independent verifier as well.

Every mutant goes through agentguard and through ``examples/verify_evidence``, which shares no code
with it. What agentguard accepts the other accepts, and a mutant in what is signed, hashed or
committed to is refused by both. The other leaves to agentguard what touches the form alone: these
mutants are listed here (``form``), and must be accepted
by it, or the list is wrong.
"""

from __future__ import annotations

import json
import os
import re
import runpy
from base64 import b64decode
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from agentguard import Decision, Denied, Guard
from agentguard.audit import checkpoint, merkle, records
from agentguard.audit.calls import Authorization, read_authorization
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, CallPlace, StoredEntry, parse_entry
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.summary import Search
from agentguard.audit.tlog_proof import TlogProof
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.signing import canonical, dsse, jws
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import Ed25519Signer

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]


def both(data: bytes, trust: TrustDocument) -> tuple[str | None, str | None]:
    """Why agentguard refuses evidence, and why the independent verifier does; None if not."""
    code = why = None
    try:
        verify_evidence(data, trust)
    except (DecodeError, VerificationError) as error:
        code = error.code
    try:
        INDEPENDENT(data, trust.dumps())
    except Exception as refused:  # noqa: BLE001  as its last lines do
        why = repr(refused)
    return code, why


def refusal(data: bytes, trust: TrustDocument, *, form: bool = False) -> str | None:
    """The code with which agentguard refuses evidence, None if it accepts it.

    The independent verifier must agree, but for what concerns the ``form`` alone, which it accepts.
    """
    code, why = both(data, trust)
    assert (why is None) is (code is None or form), f"agentguard: {code}, the other: {why}"
    return code


FORM = (
    # the type, and members that nobody asked for
    r"type: .*|without type",
    r"(entries: \d+: |attachments: \d+: |consistency: 0: )?a member more",
    # what the call says of its checkpoint, said once more
    r"consistency: 0: (origin|size|root): .*|consistency: 0: without (origin|size|root)",
    # an attachment twice, or in another order
    r"attachments: (\d+ twice|\d+ and \d+ swapped)",
    # the first line of a proof, the last line feed, a signature twice
    r"entries: \d+: proof: (character 0|line 0 changed|cut|with a line)",
    r"entries: \d+: proof: (without line -1|line -1 twice|line -2 twice)",
)
"""The edits that the independent verifier does not mind, but for those of two kinds below."""

LIST = r"entries: (without \d+|\d+ twice|\d+ and \d+ swapped)|entries \d+ (at|for) \d+"


def is_form(what: str, mutant: Any, value: Any) -> bool:
    """Whether an edit is one of form alone."""
    if any(re.fullmatch(pattern, what) for pattern in FORM):
        return True
    if re.fullmatch(LIST, what):
        return bool(looked_for(mutant) == looked_for(value))
    return ": entry: " not in what and decoded(mutant) == decoded(value)


def looked_for(file: Any) -> Any:
    """The entries that the independent verifier asks for, in no order; a policy may be twice."""
    read: dict[str, list[str]] = {}
    for item in file["entries"]:
        kind = json.loads(item["entry"])["kind"]
        if kind not in ("shard", "key", "resolution", "erasure"):
            read.setdefault(kind, []).append(json.dumps(item))
    if "policy" in read:
        read["policy"] = [*set(read["policy"])]
    return {kind: sorted(items) for kind, items in read.items()}


def decoded(value: Any) -> Any:
    """A file with its base64 decoded, whatever the padding and the unused bits are."""
    if isinstance(value, dict):
        return {name: decoded(member) for name, member in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(?<!\S)[A-Za-z0-9+/]{42,}={0,2}(?!\S)", _decoded, value)
    return value


def _decoded(found: re.Match[str]) -> str:
    text = found[0].rstrip("=")
    return b64decode(text + "==").hex() if len(text) % 4 != 1 else text


def written(value: object) -> bytes:
    return canonical.dumps(value) + b"\n"


@dataclass
class Log:
    """A log in lists, with the keys of those who keep it; a shard is a list of entries."""

    trust: TrustDocument
    signers: dict[str, Ed25519Signer]
    shards_: list[list[bytes]]
    beside: dict[int, list[Attachment]] = field(default_factory=dict)

    def origin(self, shard: int) -> str:
        return f"{self.trust.log}/{shard}"

    def note(self, shard: int, size: int | None = None) -> bytes:
        bodies = self.shards_[shard][:size]
        point = Checkpoint(self.origin(shard), len(bodies), root_of(bodies))
        return checkpoint.sign(point, self.signers["log"])

    def shards(self) -> list[int]:
        return list(range(len(self.shards_)))

    def entries(self, shard: int, *, after: int = -1) -> Iterator[tuple[int, bytes]]:
        return islice(enumerate(self.shards_[shard]), after + 1, None)

    def checkpoint(self, shard: int) -> bytes:
        return self.note(shard)

    def entry(self, shard: int, index: int) -> StoredEntry:
        beside = self.beside.get(index, []) if shard == 0 else []
        return StoredEntry(index, self.shards_[shard][index], None, beside)

    def search(self, shard: int, wanted: Search) -> Iterator[int]:
        """As if the columns knew nothing but the kind."""
        for index, body in enumerate(self.shards_[shard]):
            if parse_entry(body).kind == wanted.kind:
                yield index

    def ids(self) -> list[str]:
        return [str(call.invocation_id) for _index, call in self.calls()]

    def calls(self) -> Iterator[tuple[int, Authorization]]:
        for index, body in enumerate(self.shards_[0]):
            parsed = parse_entry(body)
            if parsed.kind == "authorization":
                yield index, read_authorization(parsed)

    def proof(self, wanted: str) -> Any:
        reader: Any = self
        return json.loads(prove_call(reader, self.trust, wanted))

    def index(self, kind: str, nth: int = 0) -> int:
        kinds = [parse_entry(body).kind for body in self.shards_[0]]
        return [index for index, found in enumerate(kinds) if found == kind][nth]

    def changed(self, index: int, change: Callable[[dict[str, Any]], object]) -> Log:
        """What the holder of the log's key makes of an entry, and vouches for."""
        value: Any = canonical.loads(self.shards_[0][index])
        change(value)
        bodies = list(self.shards_[0])
        bodies[index] = canonical.dumps(value)
        return replace(self, shards_=[bodies, *self.shards_[1:]])

    def forged(self, places: list[int], call: int) -> bytes:
        """A file with these entries about the call at an index, made without ``prove``."""
        bodies = self.shards_[0]
        tree = merkle.Tree(merkle.leaf_hash(body) for body in bodies)
        logged = tuple(
            LoggedEntry(bodies[i], TlogProof(i, tuple(tree.inclusion_proof(i)), self.note(0)))
            for i in sorted(places)
        )
        value: Any = canonical.loads(bodies[call])
        said = json.loads(b64_decode(value["invocation"]["payload"]))["predicate"]
        seen = Checkpoint(
            said["log"]["origin"], said["log"]["size"], b64_decode(said["log"]["root"])
        )
        path = tuple(tree.consistency_proof(seen.size))
        extension = (Extension(seen, path),)
        return EvidenceFile(said["invocation_id"], logged, extension, ()).dumps()


def root_of(bodies: list[bytes]) -> bytes:
    tree = merkle.CompactRange()
    for body in bodies:
        tree.append(merkle.leaf_hash(body))
    return tree.root()


def history(name: str = "reader") -> Log:
    """A log with calls of two agents: allowed, failed, denied."""

    def policy(call):
        return Decision.deny("not three") if call["args"]["x"] == 3 else Decision.allow()

    made: list[Ed25519Signer] = []
    from_seed = Ed25519Signer.from_seed
    with pytest.MonkeyPatch.context() as patched:

        def recorded(seed):
            made.append(from_seed(seed))
            return made[-1]

        patched.setattr(Ed25519Signer, "from_seed", staticmethod(recorded))
        with Guard.ephemeral(policy) as guard:

            @guard.tool
            def halve(x):
                return 10 / x

            for agent in (guard.new_agent(name), guard.new_agent("writer")):
                for number in (1, 0, 3):
                    try:
                        agent.call(halve, x=number)
                    except (Denied, ZeroDivisionError):
                        continue
            reader = guard.reader()
            stored = list(reader.stored(0))
    bodies = [one.body for one in stored]
    beside = {one.index: list(one.attachments) for one in stored}
    by_key = {signer.public_key: signer for signer in made}
    signers: dict[str, Ed25519Signer] = {k.use: by_key[k.key] for k in guard.trust.keys}
    ours = [signer.public_key for signer in signers.values()]
    (signers["agent"], *_others) = [signer for signer in made if signer.public_key not in ours]
    return Log(guard.trust, signers, [bodies], beside)


@pytest.fixture(scope="module")
def log() -> Log:
    return history()


@pytest.fixture(scope="module")
def other() -> Log:
    return history("other")


@pytest.fixture(scope="module")
def ran(log) -> Any:
    """The evidence of a call that ran."""
    return log.proof(log.ids()[0])


@pytest.fixture(scope="module")
def denied(log) -> Any:
    """The evidence of a call that was denied."""
    return log.proof(log.ids()[2])


def test_the_untampered_twins_are_accepted(log, ran, denied):
    assert refusal(written(ran), log.trust) is None
    assert refusal(written(denied), log.trust) is None
    for wanted in log.ids():
        assert refusal(written(log.proof(wanted)), log.trust) is None


NAMES = ("\U0001f600", "\uff5e")
"""They stand in one order by their code points, and in the other by UTF-16's code units."""


@pytest.mark.parametrize(
    "tables",
    [
        {"tools": {name: {"requires": []} for name in NAMES}},
        {"redact": {name: ["/args/q"] for name in NAMES}},
    ],
)
def test_names_of_the_configuration_are_sorted_as_rfc_8785_says(tables):
    with Guard.ephemeral(lambda _call: Decision.allow(), config=tables) as guard:
        guard.new_agent("reader").call(guard.tool(lambda: 1))
        (index,) = guard.reader().search(0, Search("authorization"))
        stored = guard.reader().entry(0, index)
        assert stored is not None
        assert stored.summary is not None
        data = guard.prove(str(stored.summary.invocation_id))
        assert refusal(data, guard.trust) is None


def test_whoever_else_signs_a_checkpoint_is_in_nobodys_way(log, ran):
    """A witness under another name, with the four bytes that the log's key has under its own."""
    origin = log.trust.origin(0)
    key_id = checkpoint.key_id(origin, log.signers["log"].public_key)
    for name, data in (("witness.example", key_id + bytes(64)), ("w", b"abcde")):
        line = f"\u2014 {name} {canonical.b64_encode(data)}\n"
        witnessed = deepcopy(ran)
        for item in witnessed["entries"]:
            item["proof"] += line
        assert refusal(written(witnessed), log.trust) is None


def test_under_the_logs_own_name_it_would_be(log, ran):
    """The twin."""
    origin = log.trust.origin(0)
    key_id = checkpoint.key_id(origin, log.signers["log"].public_key)
    line = f"\u2014 {origin} {canonical.b64_encode(key_id + bytes(64))}\n"
    witnessed = deepcopy(ran)
    for item in witnessed["entries"]:
        item["proof"] += line
    assert refusal(written(witnessed), log.trust) is not None


# --- one edit -----------------------------------------------------------------------------------


def edits(value: Any) -> Iterator[tuple[str, Any]]:
    """Every value that is one edit away from this one, and what was done."""
    match value:
        case dict():
            yield "a member more", {**value, "x": 1}
            for name, member in value.items():
                yield f"without {name}", {n: m for n, m in value.items() if n != name}
                for what, changed in edits(member):
                    yield f"{name}: {what}", {**value, name: changed}
        case list():
            yield from listed(value)
        case str():
            yield from ((what, new) for what, new in edited(value) if new != value)
        case bool():
            yield from (("otherwise", not value), ("a number", int(value)), ("null", None))
        case int():
            yield from counted(value)


def listed(items: list[Any]) -> Iterator[tuple[str, Any]]:
    for at, item in enumerate(items):
        yield f"without {at}", items[:at] + items[at + 1 :]
        yield f"{at} twice", [*items[: at + 1], *items[at:]]
        if at and items[at - 1] != item:
            swapped = [*items[: at - 1], item, items[at - 1], *items[at + 1 :]]
            yield f"{at - 1} and {at} swapped", swapped
        for what, changed in edits(item):
            yield f"{at}: {what}", [*items[:at], changed, *items[at + 1 :]]
    yield "an item more", [*items, {}]
    yield "no list", None


def counted(number: int) -> Iterator[tuple[str, Any]]:
    yield from (("more", number + 1), ("less", number - 1), ("no integer", f"{number}"))
    yield from (("a half", number + 0.5), ("true", True), ("null", None))


def edited(text: str) -> Iterator[tuple[str, Any]]:
    yield "null", None
    yield "a number", 7
    yield "empty", ""
    yield "with a space", f"{text} "
    yield "with a line", f"{text}\n"
    yield "cut", text[:-1]
    for at in sorted({0, len(text) // 3, len(text) // 2, len(text) - 2, len(text) - 1}):
        if 0 <= at < len(text):
            yield f"character {at}", f"{text[:at]}{'b' if text[at] != 'b' else 'c'}{text[at + 1 :]}"
    lines = text.split("\n")
    for at in range(len(lines) if len(lines) > 1 else 0):
        name = at if at < 2 else at - len(lines)  # a proof is two lines, a path, and a note
        yield f"without line {name}", "\n".join(lines[:at] + lines[at + 1 :])
        yield f"line {name} twice", "\n".join([*lines[: at + 1], *lines[at:]])
        yield f"line {name} changed", "\n".join([*lines[:at], f"{lines[at]}A", *lines[at + 1 :]])


def accepted(value: Any, trust: TrustDocument) -> list[str]:
    """The edits that agentguard accepts."""
    return [
        what
        for what, mutant in edits(value)
        if refusal(written(mutant), trust, form=is_form(what, mutant, value)) is None
    ]


@pytest.mark.parametrize("which", ["ran", "denied"])
def test_every_edit_is_refused_but_for_leaving_out_what_is_beside(log, which, request):
    value = request.getfixturevalue(which)
    beside = [f"attachments: without {at}" for at in range(len(value["attachments"]))]
    assert sum(1 for _ in edits(value)) > 700
    assert accepted(value, log.trust) == beside


def test_what_was_left_out_is_not_told(log, ran):
    for at, role in enumerate(("arguments", "input", "result")):
        left = deepcopy(ran)
        assert left["attachments"].pop(at)["role"] == role
        said = verify_evidence(written(left), log.trust)
        assert sorted({*said.kept, role}) == ["arguments", "input", "result"]
        assert role not in said.kept


def test_every_edit_inside_an_entry_is_refused(log, ran):
    """Also in what is signed there; the entry is written in its canonical form again."""
    for at, item in enumerate(ran["entries"]):
        for what, changed in edits(json.loads(item["entry"])):
            mutant = deepcopy(ran)
            mutant["entries"][at]["entry"] = canonical.dumps(changed).decode()
            assert refusal(written(mutant), log.trust) is not None, f"{at}: {what}"


def test_an_outcome_can_be_kept_back_and_nothing_says_so(log, ran):
    """What no file can tell; it is said with every proof of a call without an outcome."""
    cut = deepcopy(ran)
    kinds = [json.loads(item["entry"])["kind"] for item in cut["entries"]]
    del cut["entries"][kinds.index("outcome")]
    assert refusal(written(cut), log.trust) == "statement.mismatch"  # of the result
    cut["attachments"] = [kept for kept in cut["attachments"] if kept["role"] != "result"]
    assert refusal(written(cut), log.trust) is None
    assert verify_evidence(written(cut), log.trust).outcome is None


# --- splices ------------------------------------------------------------------------------------


def spliced(value: Any, other: Any) -> Iterator[tuple[str, Any]]:
    """Every file that is this one with one part of another; every third by default."""
    return islice(_spliced(value, other), None, None, 1 if FULL else 3)


def _spliced(value: Any, other: Any) -> Iterator[tuple[str, Any]]:
    for name in ("invocation_id", "entries", "consistency", "attachments"):
        yield name, {**value, name: other[name]}
    for name in ("entries", "attachments"):
        for at, item in enumerate(other[name]):
            for place in range(len(value[name]) + 1):
                more = [*value[name][:place], item, *value[name][place:]]
                yield f"{name} {at} at {place}", {**value, name: more}
            for place in range(len(value[name])):
                changed = [*value[name][:place], item, *value[name][place + 1 :]]
                yield f"{name} {at} for {place}", {**value, name: changed}
    for at, item in enumerate(value["entries"]):
        for place, strange in enumerate(other["entries"]):
            for part in ("entry", "proof"):
                mutant = deepcopy(value)
                mutant["entries"][at] = {**item, part: strange[part]}
                yield f"the {part} of {place} in {at}", mutant


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_nothing_of_another_call_gets_in(log, ran, nth):
    """Of the same agent, which failed; of the same, which was denied; of another agent."""
    another = log.proof(log.ids()[nth])
    tried = 0
    for what, mutant in spliced(ran, another):
        if mutant != ran:
            tried += 1
            form = is_form(what, mutant, ran)
            assert refusal(written(mutant), log.trust, form=form) is not None, what
    assert tried > 60


def test_nothing_of_another_log_gets_in(log, other, ran):
    another = other.proof(other.ids()[0])
    assert refusal(written(another), other.trust) is None
    assert refusal(written(another), log.trust) == "checkpoint.origin"
    assert refusal(written(ran), other.trust) == "checkpoint.origin"
    elsewhere = replace(log.trust, log=other.trust.log)  # of the same keys
    assert refusal(written(ran), elsewhere) == "checkpoint.origin"
    for what, mutant in spliced(ran, another):
        assert refusal(written(mutant), log.trust) is not None, what


# --- keys ---------------------------------------------------------------------------------------


def with_keys(log: Log, of_use: str, **changes: Any) -> TrustDocument:
    keys = [replace(k, **changes) if k.use == of_use else k for k in log.trust.keys]
    return replace(log.trust, keys=tuple(keys))


@pytest.mark.parametrize("use", ["issuer", "log"])
@pytest.mark.parametrize(
    ("end", "code"), [("not_after", "key.expired"), ("compromised_since", "key.compromised")]
)
def test_what_a_key_signed_after_its_end_does_not_count(log, ran, use, end, code):
    since = log.trust.keys[0].not_before
    assert refusal(written(ran), with_keys(log, use, **{end: since + 3600})) is None
    assert refusal(written(ran), with_keys(log, use, **{end: since})) == code


def test_a_key_that_came_later_issued_nothing_and_may_have_signed_the_newest_checkpoint(log, ran):
    later = {"not_before": log.trust.keys[0].not_before + 3600}
    assert refusal(written(ran), with_keys(log, "issuer", **later), form=True) == "key.expired"
    assert refusal(written(ran), with_keys(log, "log", **later)) is None


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_a_key_for_another_use_does_not_count(log, ran, use):
    assert refusal(written(ran), with_keys(log, use, use="admin")) in {
        "key.unknown",
        "signature.missing",
    }


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_a_trust_document_without_the_key_believes_nothing(log, ran, stranger, use):
    strange = with_keys(log, use, key=stranger.public_key)
    assert refusal(written(ran), strange) in {"key.unknown", "signature.missing"}
    none = replace(log.trust, keys=())
    assert refusal(written(ran), none) is not None


# --- what the holder of the log's key makes ---------------------------------------------------


@pytest.fixture(scope="module")
def places(log, ran) -> list[int]:
    """The indices of the entries that the evidence of the first call holds."""
    return [int(item["proof"].split("\n")[1].removeprefix("index ")) for item in ran["entries"]]


@pytest.fixture(scope="module")
def call(log) -> int:
    return log.index("authorization")


def test_the_forger_s_tool_makes_what_prove_makes(log, ran, places, call):
    assert log.forged(places, call) == written({**ran, "attachments": []})
    assert refusal(log.forged(places, call), log.trust) is None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("authorization", {"mode": "observe"}),
        ("authorization", {"enforced": False}),
        ("authorization", {"enforced": 1}),
        ("authorization", {"mode": "observe", "enforced": False}),
        ("authorization", {"mode": "audit"}),
        ("authorization", {"approvals": [{}]}),
        ("authorization", {"decision": "deny"}),
        ("authorization", {"decision": "maybe"}),
        ("authorization", {"config_sha256": "0" * 64}),
        ("authorization", {"policy_sha256": "0" * 64}),
        ("authorization", {"engine": None}),
        ("authorization", {"engine": {"name": "rego", "version": "1"}}),
        ("config", {"config": {"x": 1}}),
        ("config", {"config_sha256": "0" * 64}),
        ("policy", {"policy_sha256": "0" * 64}),
        ("identity", {"credential": "e30.e30.e30"}),
        ("authorization", {"copies": []}),
        ("shard", {"at": "yesterday"}),
        ("identity", {"at": "2000-01-01T00:00:00.000000Z"}),
        ("identity", {"at": "2100-01-01T00:00:00.000000Z"}),
        ("authorization", {"at": "2100-01-01T00:00:00.000000Z"}),
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
        ("authorization", {"more": 1}),
        ("outcome", {"more": 1}),
        ("authorization", {"copies": {"result": "0" * 64}}),
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
        ("invocation", "authorization") if kind == "invocation" else ("statement", "outcome")
    )

    def sign(members):
        payload = dsse.Envelope.parse(members[member]).payload
        members[member] = dsse.seal(payload, signer).as_json()

    forged = log.changed(log.index(entry_kind), sign)
    assert refusal(forged.forged(places, call), log.trust) == "signature.missing"

    def name_the_agent(members):
        sign(members)
        members[member]["signatures"][0]["keyid"] = _agent_of(log, call).rpartition("/")[2]

    forged = log.changed(log.index(entry_kind), name_the_agent)
    assert refusal(forged.forged(places, call), log.trust) == "signature.invalid"


def _agent_of(log: Log, index: int) -> str:
    return read_authorization(parse_entry(log.shards_[0][index])).agent


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
        payload: Any = canonical.loads(dsse.Envelope.parse(members["invocation"]).payload)
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
        "origin": log.origin(0),
        "size": call,
        "root": b64_encode(root_of(forged.shards_[0][:call])),
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
        payload: Any = canonical.loads(dsse.Envelope.parse(members["statement"]).payload)
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
        "origin": log.origin(0),
        "size": call,
        "root": b64_encode(root_of(configured.shards_[0][:call])),
    }

    def answer(members):
        members.update({"mode": "observe", "config_sha256": digest, **said})

    forged = configured.changed(call, answer)
    assert refusal(_resigned(forged, places, call, {"log": seen}), log.trust) == code


def with_outcome(log: Log, authorization: object) -> Log:
    """The log with the first outcome's statement naming another place, signed by its agent."""

    def sign(members):
        payload: Any = canonical.loads(dsse.Envelope.parse(members["statement"]).payload)
        payload["predicate"]["authorization"] = authorization
        sealed = dsse.seal(canonical.dumps(payload), log.signers["agent"])
        members["statement"] = sealed.as_json()

    return log.changed(log.index("outcome"), sign)


@pytest.mark.parametrize("place", [{"shard": 0, "index": 0}, {"shard": 1}, {}, 7], ids=str)
def test_an_outcome_names_no_other_place_than_its_call_s(log, places, call, place):
    right = with_outcome(log, {"shard": 0, "index": call}).forged(places, call)
    assert refusal(right, log.trust) is None
    wrong = with_outcome(log, place).forged(places, call)
    assert refusal(wrong, log.trust, form=True) == "statement.mismatch"


def test_an_outcome_stands_after_its_call(log, places, call):
    """Also one that names no place, as of a call that was interrupted before it knew its own."""
    after = with_outcome(log, None)
    assert refusal(after.forged(places, call), log.trust) is None
    bodies = list(after.shards_[0])
    late = replace(after, shards_=[[*bodies, bodies[call]]])
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
    bodies = log.shards_[0]
    index = log.index(kind)
    late = replace(log, shards_=[[*bodies, bodies[index]]])
    moved = [len(bodies) if i == index else i for i in places]
    assert refusal(late.forged(places, call), log.trust) is None
    assert refusal(late.forged(moved, call), log.trust, form=True) == "evidence.mismatch"


def test_one_shard_has_one_checkpoint(log, ran, places, call):
    """Two would hide a fork, though a log key has signed both."""
    longer = replace(log, shards_=[[*log.shards_[0], log.shards_[0][-1]]])
    other = json.loads(longer.forged(places, call))
    assert refusal(written(other), log.trust) is None
    for at, item in enumerate(other["entries"]):
        mutant = deepcopy(ran)
        mutant["entries"][at] = item
        assert refusal(written(mutant), log.trust) == "evidence.mismatch"


def test_an_entry_that_nothing_needs_is_refused(log, places, call):
    for index in set(range(len(log.shards_[0]))) - set(places):
        code = refusal(log.forged([*places, index], call), log.trust)
        assert code in {"evidence.superfluous", "evidence.mismatch"}, index


@pytest.mark.parametrize("kind", ["shard", "key"])
def test_what_the_issuer_said_again_is_not_asked_for(log, places, call, kind):
    """A shard that was taken up again has another opening entry; a key may be announced again."""
    bodies = log.shards_[0]
    again = replace(log, shards_=[[*bodies, bodies[log.index(kind)]]])
    assert refusal(again.forged(places, call), log.trust) is None
    twice = again.forged([*places, len(bodies)], call)
    assert refusal(twice, log.trust, form=True) == "evidence.superfluous"


def test_an_entry_that_is_needed_can_t_be_left_out(log, places, call):
    for index in set(places) - {log.index("outcome"), call}:
        form = parse_entry(log.shards_[0][index]).kind in ("shard", "key")
        cut = log.forged([i for i in places if i != index], call)
        assert refusal(cut, log.trust, form=form) == "evidence.incomplete", index


# --- what the administrator says ------------------------------------------------------------------


def settled(log: Log, call: CallPlace, *, by: str = "admin", announced: bool = True) -> Log:
    """The log with an admin key, and with a resolution and an erasure of a call."""
    admin = Ed25519Signer.from_seed(b"a" * 32)
    since = log.trust.keys[0].not_before
    trusted = TrustedKey("admin", admin.public_key, since)
    at = parse_entry(log.shards_[0][-1]).at
    signer = admin if by == "admin" else log.signers[by]
    more = [records.key(log.signers["issuer"], trusted.as_json(), at=at)] if announced else []
    more.append(records.resolution(signer, call, ran=True, note="it was seen", at=at))
    more.append(records.erasure(signer, call, note="asked for", at=at))
    trust = replace(log.trust, keys=(*log.trust.keys, trusted))
    bodies = [*log.shards_[0], *(record.body for record in more)]
    return replace(log, trust=trust, shards_=[bodies])


def place_of(log: Log, nth: int) -> CallPlace:
    index, read = list(log.calls())[nth]
    return CallPlace(0, index, str(read.invocation_id), read.invocation_sha256)


@pytest.mark.slow("all edits of the largest proof; those of two smaller ones are always tried")
def test_what_the_administrator_said_of_a_call_belongs_to_its_proof(log):
    whole = settled(log, place_of(log, 0))
    value = whole.proof(log.ids()[0])
    assert refusal(written(value), whole.trust) is None
    said = verify_evidence(written(value), whole.trust).administered
    assert [(s.ran, s.note) for s, _place in said] == [(True, "it was seen"), (None, "asked for")]
    assert refusal(written(value), log.trust, form=True) == "key.unknown"
    beside = [f"attachments: without {at}" for at in range(len(value["attachments"]))]
    kinds = [json.loads(item["entry"])["kind"] for item in value["entries"]]
    kept_back = [f"entries: without {kinds.index(kind)}" for kind in ("resolution", "erasure")]
    assert sorted(accepted(value, whole.trust)) == sorted(beside + kept_back)


def test_another_call_has_none_of_it(log):
    whole = settled(log, place_of(log, 0))
    first, second = (whole.proof(log.ids()[nth]) for nth in (0, 3))
    assert verify_evidence(written(second), whole.trust).administered == ()
    for what, mutant in spliced(second, first):
        if mutant != second:
            form = is_form(what, mutant, second)
            assert refusal(written(mutant), whole.trust, form=form) is not None, what


@pytest.mark.parametrize("by", ["issuer", "log"])
def test_only_the_admin_key_settles(log, by):
    """What another key has signed is left out: it settles nothing, and spoils no proof."""
    other = settled(log, place_of(log, 0), by=by)
    assert verify_evidence(written(other.proof(log.ids()[0])), other.trust).administered == ()
    own = settled(log, place_of(log, 0))
    proved = verify_evidence(written(own.proof(log.ids()[0])), own.trust)
    assert len(proved.administered) == 2


def test_the_admin_key_is_announced_too(log):
    with pytest.raises(VerificationError) as error:
        settled(log, place_of(log, 0), announced=False).proof(log.ids()[0])
    assert error.value.code == "evidence.incomplete"


@pytest.mark.parametrize(
    "change", [{"shard": 1}, {"index": 0}, {"invocation_id": "f" * 32}], ids=str
)
def test_a_resolution_names_its_call_in_full(log, change):
    place = replace(place_of(log, 0), **change)
    with pytest.raises(VerificationError) as error:
        settled(log, place).proof(log.ids()[0])
    assert error.value.code == "evidence.mismatch"


# --- several shards -----------------------------------------------------------------------------


def second_shard(log: Log, *, keys: bool = False, **changes: Any) -> Log:
    """The log with another shard, in which the first call stands; the keys stand in the first."""
    said: dict[str, object] = {
        "trust_domain": log.trust.trust_domain,
        "origin": log.origin(1),
        "shard": 1,
        "log_key": log.signers["log"].public_key.jwk(),
        "heads": [],
    } | changes
    subject = canonical.sha256_hex(log.origin(1).encode())
    sealed = dsse.seal(dsse.statement("shard", subject, "origin", said), log.signers["issuer"])
    first = log.shards_[0]
    at = parse_entry(first[0]).at
    opening = canonical.dumps({"kind": "shard", "at": at, "statement": sealed.as_json()})
    kinds = ("config", "policy", "identity", "authorization")
    moved = [log.index(kind) for kind in kinds]
    moved += [log.index("key", nth) for nth in range(2 if keys else 0)]
    rest = [body for index, body in enumerate(first) if index != log.index("authorization")]
    return replace(log, shards_=[rest, [opening, *(first[index] for index in moved)]], beside={})


def test_a_proof_may_need_two_shards(log):
    """The call is in one; the keys, and the checkpoint that it had seen, in the other."""
    two = second_shard(log)
    value = two.proof(log.ids()[0])
    origins = {item["proof"].split("\n\n")[1].split("\n")[0] for item in value["entries"]}
    assert origins == {log.origin(0), log.origin(1)}
    assert refusal(written(value), log.trust) is None
    kinds = {"evidence.incomplete", "evidence.mismatch", "evidence.superfluous", "proof.invalid"}
    for at in range(len(value["entries"])):
        cut = {**value, "entries": value["entries"][:at] + value["entries"][at + 1 :]}
        form = is_form(f"entries: without {at}", cut, value)
        assert refusal(written(cut), log.trust, form=form) in kinds


def test_what_the_administrator_said_may_stand_in_another_shard(log):
    opening = second_shard(log).shards_[1][0]
    whole = settled(log, place_of(log, 0))
    said = whole.shards_[0][-3:]
    two = replace(whole, shards_=[log.shards_[0], [opening, *said]])
    value = two.proof(log.ids()[0])
    assert refusal(written(value), two.trust) is None
    told = verify_evidence(written(value), two.trust).administered
    assert [(one.ran, place.shard) for one, place in told] == [(True, 1), (None, 1)]


def test_without_columns_the_keys_are_found_all_the_same(log, monkeypatch):
    two = second_shard(log)
    whole = two.proof(log.ids()[0])
    monkeypatch.setattr(Log, "search", lambda _self, _shard, _wanted: iter(()))
    assert two.proof(log.ids()[0]) == whole


@pytest.mark.parametrize(("nth", "shards"), [(0, [0, 1]), (1, [0])])
def test_a_shard_with_nothing_of_the_call_is_not_read(log, monkeypatch, nth, shards):
    """And each of the others once: the first call's, and the one with the keys."""
    two, read = second_shard(log), []
    if nth:  # a call of the first shard, as it was
        two = replace(two, shards_=[log.shards_[0], two.shards_[1]])

    entries = Log.entries

    def noted(self, shard, *, after=-1):
        if after < 0:  # not for one entry alone
            read.append(shard)
        return entries(self, shard, after=after)

    monkeypatch.setattr(Log, "entries", noted)
    assert refusal(written(two.proof(log.ids()[nth])), log.trust) is None
    assert sorted(read) == shards


def test_the_shard_whose_checkpoint_the_call_carries_is_needed(log):
    value = second_shard(log, keys=True).proof(log.ids()[0])
    assert refusal(written(value), log.trust) is None
    kinds = [json.loads(item["entry"])["kind"] for item in value["entries"]]
    assert kinds[:2] == ["shard", "shard"]
    cut = {**value, "entries": value["entries"][1:]}
    assert refusal(written(cut), log.trust) == "evidence.incomplete"


def test_another_shard_that_nothing_needs_is_refused(log, ran):
    two = second_shard(log)
    value = two.proof(log.ids()[0])
    opening = value["entries"][-5]
    assert json.loads(opening["entry"])["kind"] == "shard"
    more = {**ran, "entries": [*ran["entries"], opening]}
    assert refusal(written(more), log.trust, form=True) == "evidence.superfluous"


def announcing(log: Log, signer: Ed25519Signer) -> Log:
    """The log in which the issuer announces one more key for checkpoints, at its end."""
    trusted = TrustedKey("log", signer.public_key, log.trust.keys[0].not_before)
    at = parse_entry(log.shards_[0][-1]).at
    record = records.key(log.signers["issuer"], trusted.as_json(), at=at)
    return replace(log, shards_=[[*log.shards_[0], record.body]])


def test_a_key_is_announced_that_nobody_trusts(log, places, call, stranger):
    """The issuer's word in the log puts no key into a trust document."""
    more = announcing(log, stranger)
    data = more.forged([*places, len(log.shards_[0])], call)
    assert refusal(data, log.trust, form=True) == "key.unknown"
    known = TrustedKey("log", stranger.public_key, log.trust.keys[0].not_before)
    trust = replace(log.trust, keys=(*log.trust.keys, known))
    assert refusal(data, trust, form=True) == "evidence.superfluous"


def test_a_key_is_announced_as_it_is_trusted(log, places, call, stranger):
    """Its name alone is not it: the announcement has the key of the trust document."""

    def rename(members):
        payload: Any = canonical.loads(dsse.Envelope.parse(members["statement"]).payload)
        payload["predicate"]["jwk"] = stranger.public_key.jwk()
        sealed = dsse.seal(canonical.dumps(payload), log.signers["issuer"])
        members["statement"] = sealed.as_json()

    bodies = log.shards_[0]
    index = log.index("key")
    moved = [len(bodies) if at == index else at for at in places]
    again = replace(log, shards_=[[*bodies, bodies[index]]])
    assert refusal(again.forged(moved, call), log.trust) is None
    other = again.changed(len(bodies), rename)
    assert refusal(other.forged(moved, call), log.trust, form=True) == "key.unknown"


@pytest.mark.parametrize("change", [{"shard": 0}, {"origin": "elsewhere/log/a/1"}])
def test_an_opening_entry_of_another_shard_opens_none(log, change):
    with pytest.raises(VerificationError, match="another shard or log"):
        second_shard(log, **change).proof(log.ids()[0])


# --- hostile files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b"7",
        b'"urn:agentguard:evidence:v1"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}\n",
        b"NaN\n",
        b'{"type":"urn:agentguard:evidence:v1","type":"urn:agentguard:evidence:v1"}\n',
        b'{"entries":"\\ud800"}\n',
        b'{"entries":1e400}\n',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + b" " * 20_000_000 + b"}",
    ],
    ids=lambda data: repr(data[:16]),
)
def test_a_hostile_file_is_refused(log, data):
    assert refusal(data, log.trust) is not None


def test_only_the_one_canonical_form_is_read(log, ran):
    data = written(ran)
    assert refusal(data, log.trust) is None
    forms = [
        data[:-1],
        data + b"\n",
        b" " + data,
        json.dumps(ran).encode(),
        json.dumps(ran, indent=2, sort_keys=True).encode(),
        data.replace("\u2014".encode(), b"\\u2014"),
        data.replace(b"{", b'{"type":"urn:agentguard:evidence:v1",', 1),
    ]
    for other in forms:
        assert refusal(other, log.trust, form=True) is not None, other[:40]
    assert refusal(data.replace(b'"size":', b'"size":0'), log.trust) == "json.malformed"


def test_base64_has_one_form(log, ran):
    for what, path in (("root", ("consistency", 0, "root")), ("salt", ("attachments", 0, "salt"))):
        mutant = deepcopy(ran)
        holder = mutant[path[0]][path[1]]
        data = b64_decode(holder[path[2]])
        *head, last, _pad = holder[path[2]]
        assert b64_encode(data) == holder[path[2]]
        twin = "".join(head) + chr(ord(last) + 1) + "="
        holder[path[2]] = twin
        assert refusal(written(mutant), log.trust, form=True) is not None, what
