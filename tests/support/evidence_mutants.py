"""A log whose holder forges evidence, and the two verifiers that judge each mutant of a bundle."""

from __future__ import annotations

import json
import os
import re
import runpy
from base64 import b64decode
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from leaf_tree import LeafTree

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, StoredEntry
from agentguard.audit.evidence import Evidence, EvidenceVerifier, verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.head import Head
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.summary import Search
from agentguard.audit.tlog_proof import TlogProof
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import b64_decode
from agentguard.signing.keys import Ed25519Signer

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]


@cache
def _experienced(trust: TrustDocument) -> EvidenceVerifier:
    """The verifier that remembers the parts of all evidence so far under a trust document."""
    return EvidenceVerifier(trust)


def _answer(verify: Callable[[bytes], Evidence], data: bytes) -> Evidence | tuple[str, str]:
    """What evidence proves, or the code and the message of its refusal."""
    try:
        return verify(data)
    except (DecodeError, VerificationError) as error:
        return error.code, str(error)


def both(data: bytes, trust: TrustDocument) -> tuple[str | None, str | None]:
    """Why agentguard refuses evidence, and why the independent verifier does; None if not.

    A verifier that has seen the evidence before this one must give the same answer.
    """
    answer = _answer(partial(verify_evidence, trust=trust), data)
    assert _answer(_experienced(trust).verify, data) == answer
    code = answer[0] if isinstance(answer, tuple) else None
    why = None
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
    r"(entries: \d+: |attachments: \d+: |consistency: )?a member more",
    # what the call says of its checkpoint, said once more
    r"consistency: (origin|size|root): .*|consistency: without (origin|size|root)",
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
        if kind not in ("key", "resolution", "erasure"):
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
        return re.sub(r"(?<!\S)[A-Za-z0-9+/]{42,}={0,2}(?!\S)", decoded_text, value)
    return value


def decoded_text(found: re.Match[str]) -> str:
    text = found[0].rstrip("=")
    return b64decode(text + "==").hex() if len(text) % 4 != 1 else text


def written(value: object) -> bytes:
    return canonical.dumps(value) + b"\n"


@dataclass
class Log:
    """A log in lists, with the keys of those who keep it."""

    trust: TrustDocument
    signers: dict[str, Ed25519Signer]
    bodies: list[bytes]
    beside: dict[int, list[Attachment]] = field(default_factory=dict)

    def note(self, size: int | None = None) -> bytes:
        bodies = self.bodies[:size]
        at = (
            str(canonical.loads_object(bodies[-1])["at"])
            if bodies
            else "1970-01-01T00:00:00.000000Z"
        )
        head = Head(self.trust.log, len(bodies), root_of(bodies), bytes(32), at)
        return heads.sign(head, self.signers["log"])

    def entries(self, *, after: int = -1) -> Iterator[tuple[int, bytes]]:
        return islice(enumerate(self.bodies), after + 1, None)

    def head(self) -> bytes:
        return self.note()

    def entry(self, index: int) -> StoredEntry:
        return StoredEntry(index, self.bodies[index], None, self.beside.get(index, []))

    def search(self, wanted: Search, **_options: object) -> Iterator[int]:
        """As if the columns knew nothing but the kind."""
        for index, body in enumerate(self.bodies):
            if parse_entry(body).kind == wanted.kind:
                yield index

    def tree(self, size: int) -> LeafTree:
        return LeafTree(merkle.leaf_hash(body) for body in self.bodies[:size])

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        return self.tree(size).inclusion_proof(index)

    def consistency_proof(self, size1: int, size2: int) -> list[bytes]:
        return self.tree(size2).consistency_proof(size1)

    def ids(self) -> list[str]:
        return [str(call.invocation_id) for _index, call in self.calls()]

    def calls(self) -> Iterator[tuple[int, CallEntry]]:
        for index, body in enumerate(self.bodies):
            parsed = parse_entry(body)
            if isinstance(parsed, CallEntry):
                yield index, parsed

    def proof(self, wanted: str) -> Any:
        reader: Any = self
        return json.loads(prove_call(reader, self.trust, wanted))

    def index(self, kind: str, nth: int = 0) -> int:
        kinds = [canonical.loads_object(body)["kind"] for body in self.bodies]
        return [index for index, found in enumerate(kinds) if found == kind][nth]

    def changed(self, index: int, change: Callable[[dict[str, Any]], object]) -> Log:
        """What the holder of the log's key makes of an entry, and vouches for."""
        value: Any = canonical.loads(self.bodies[index])
        change(value)
        bodies = list(self.bodies)
        bodies[index] = canonical.dumps(value)
        return replace(self, bodies=bodies)

    def forged(self, places: list[int], call: int) -> bytes:
        """A file with these entries about the call at an index, made without ``prove``."""
        bodies = self.bodies
        tree = LeafTree(merkle.leaf_hash(body) for body in bodies)
        logged = tuple(
            LoggedEntry(bodies[i], TlogProof(i, tuple(tree.inclusion_proof(i)), self.note()))
            for i in sorted(places)
        )
        value: Any = canonical.loads(bodies[call])
        said = json.loads(b64_decode(value["invocation"]["payload"]))["predicate"]
        seen = Checkpoint(
            said["log"]["origin"], said["log"]["size"], b64_decode(said["log"]["root"])
        )
        path = tuple(tree.consistency_proof(seen.size))
        extension = Extension(seen, path)
        return EvidenceFile(said["invocation_id"], logged, extension, ()).dumps()


def root_of(bodies: list[bytes]) -> bytes:
    tree = merkle.CompactRange()
    for body in bodies:
        tree.append(merkle.leaf_hash(body))
    return tree.root()


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


def spliced(value: Any, other: Any) -> Iterator[tuple[str, Any]]:
    """Every file that is this one with one part of another; every third by default."""
    return islice(splices(value, other), None, None, 1 if FULL else 3)


def splices(value: Any, other: Any) -> Iterator[tuple[str, Any]]:
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
