"""The verifier of a log: bytes in, findings out, and trust only from outside.

Given what a reader finds in a log, a trust document and the checkpoints that somebody kept
elsewhere, it recomputes every hash and checks every signature, and says where something does not
hold. It does no I/O. What it can't see from one log alone (a rollback of the whole state), it finds
through a checkpoint kept outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from agentguard import canonical, envelope
from agentguard.audit import checkpoint, entry, merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Attachment, Entry
from agentguard.audit.merkle import CompactRange
from agentguard.canonical import JSON
from agentguard.envelope import Envelope, Statement
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.invocation import call_digest, commitment


@dataclass(frozen=True, slots=True)
class Problem:
    """What does not hold, and where; ``index`` is None for a whole shard."""

    shard: int
    index: int | None
    what: str


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The findings of one shard.

    ``kept``: a checkpoint from outside was at hand; ``anchored``: and the log agrees with it.
    ``in_doubt`` are the invocation ids of the calls without an outcome.
    """

    entries: int
    head: Checkpoint | None
    kept: bool
    anchored: bool
    in_doubt: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class _Call:
    """An authorised call whose outcome has not been seen yet."""

    index: int
    invocation_id: str
    issued: Credential


@dataclass(slots=True)
class ShardVerifier:
    """Walks one shard, entry by entry in the order of the log.

    ``kept`` are checkpoints of this shard from outside, verified. Feed it with ``entry`` and
    ``checkpoint`` through ``walk``; it keeps only what is needed to go on.
    """

    shard: int
    origin: str
    trust: TrustDocument
    kept: Sequence[Checkpoint] = ()
    signatures: bool = True
    _tree: CompactRange = field(default_factory=CompactRange)
    _problems: list[Problem] = field(default_factory=list)
    _credentials: dict[str, list[Credential]] = field(default_factory=dict)
    _open: dict[bytes, _Call] = field(default_factory=dict)
    _announced: set[str] = field(default_factory=lambda: {str(None)})
    _seen: set[bytes] = field(default_factory=set)
    _head: Checkpoint | None = None
    _signer: TrustedKey | None = None  # of the checkpoint that comes next
    _at: int = 0  # the time of the newest entry
    _intact: bool = True

    def walk(
        self,
        entries: Iterable[tuple[int, bytes, Sequence[Attachment]]],
        notes: Iterable[bytes],
    ) -> Iterator[int]:
        """Check everything, yielding the number of entries so far; then see ``report``."""
        roots = {point.size: point for point in self.kept}
        pending = iter(notes)
        point = self._next_checkpoint(pending)
        for index, body, attachments in entries:
            if index != self._tree.size:
                self._found(index, f"entry {self._tree.size} is missing: the next one is {index}")
                self._intact = False
                return
            self._entry(index, body, attachments)
            self._tree.append(merkle.leaf_hash(body))
            size = self._tree.size
            while point is not None and point.size <= size:
                self._compare(point, "the log's own checkpoint")
                point = self._next_checkpoint(pending)
            if size in roots:
                self._compare(roots[size], "a checkpoint kept outside the log")
            yield size
        while point is not None:
            self._beyond(point, "the log's own checkpoint")
            point = self._next_checkpoint(pending)
        self._end()

    def report(self) -> ShardReport:
        """Return the findings after a ``walk`` to its end."""
        anchored = bool(self.kept) and self._intact
        doubtful = tuple(call.invocation_id for call in self._open.values())
        return ShardReport(
            entries=self._tree.size,
            head=self._head,
            kept=bool(self.kept),
            anchored=anchored,
            in_doubt=doubtful,
            problems=tuple(self._problems),
        )

    def _found(self, index: int | None, what: str) -> None:
        self._problems.append(Problem(self.shard, index, what))

    # --- the tree and its checkpoints -----------------------------------------------------------

    def _next_checkpoint(self, notes: Iterator[bytes]) -> Checkpoint | None:
        for note in notes:
            try:
                point = self._verified(note)
            except AgentguardError as error:
                size = self._head.size if self._head is not None else 0
                self._found(size, f"a checkpoint after entry {size - 1} does not verify: {error}")
                self._intact = False
                continue
            if self._head is not None and point.size <= self._head.size:
                self._found(point.size, "a checkpoint is repeated or out of order")
                continue
            return point
        return None

    def _verified(self, note: bytes) -> Checkpoint:
        if not self.signatures:
            return checkpoint.parse(note).checkpoint
        error: AgentguardError = VerificationError("the trust document has no log key")
        for trusted in self.trust.keys_for("log"):
            try:
                point = checkpoint.verify(note, trusted.key, origin=self.origin)
            except AgentguardError as raised:
                error = raised
            else:
                self._signer = trusted
                return point
        raise error

    def _compare(self, point: Checkpoint, whose: str) -> None:
        if point.size != self._tree.size:
            self._found(point.size, f"{whose} of {point.size} entries has no place in the log")
            self._intact = False
        elif point.root != self._tree.root() and self._intact:
            first = self._head.size if self._head is not None else 0
            where = (
                f"entries {first} to {point.size - 1} differ"
                if point.size - first > 1
                else "the entry differs"
            )
            self._found(first, f"{where} from what {whose} of {point.size} entries vouches for")
            self._intact = False
        if self._intact and whose == "the log's own checkpoint":
            self._head = point
            self._check_signer(point)

    def _check_signer(self, point: Checkpoint) -> None:
        """A checkpoint counts only if its key did when its newest entry was written."""
        if self._signer is not None:
            try:
                self._signer.check(self._at)
            except VerificationError as error:
                self._found(point.size - 1, f"the checkpoint of {point.size} entries: {error}")

    def _beyond(self, point: Checkpoint, whose: str) -> None:
        self._found(
            self._tree.size,
            f"the log ends here, but {whose} vouches for {point.size} entries: its tail is cut off",
        )
        self._intact = False

    def _end(self) -> None:
        size = self._tree.size
        if self._head is None or self._head.size != size:
            if self._intact:
                what = "the newest entries are under no checkpoint" if size else "it is empty"
                self._found(size - 1 if size else None, what)
            self._intact = False
        for point in self.kept:
            if point.size > size:
                self._beyond(point, "a checkpoint kept outside the log")

    # --- what the entries say -------------------------------------------------------------------

    def _entry(self, index: int, body: bytes, attachments: Sequence[Attachment]) -> None:
        try:
            parsed = entry.parse(body)
            at = self._at = entry.time_of(parsed.at)
            if index == 0 and parsed.kind != "shard":
                raise VerificationError("a shard begins with its opening entry")
            commitments = self._statements(index, parsed, at)
            _check_attachments(attachments, commitments)
        except AgentguardError as error:
            self._found(index, str(error))

    def _statements(self, index: int, parsed: Entry, at: int) -> dict[str, JSON]:
        """Check what is signed in an entry; return the commitments that it makes, by role."""
        match parsed.kind:
            case "shard":
                self._shard(index, parsed, at)
            case "key":
                self._signed_by_issuer(parsed, at)
            case "identity":
                token = parsed.members["credential"]
                verified = credential.verify(str(token), self.trust, at=at)
                self._credentials.setdefault(verified.uri, []).append(verified)
            case "authorization":
                return self._authorization(index, parsed, at)
            case "outcome":
                return self._outcome(parsed)
            case "config":
                if canonical.digest(parsed.members["config"]) != parsed.members["config_sha256"]:
                    raise VerificationError("the configuration does not have its digest")
                self._announced.add(str(parsed.members["config_sha256"]))
            case "policy":
                self._announced.add(str(parsed.members["policy_sha256"]))
        return {}

    def _signed_by_issuer(self, parsed: Entry, at: int) -> dict[str, JSON]:
        sealed = Envelope.parse(parsed.members["statement"])
        if not sealed.signatures:
            raise VerificationError(f"the {parsed.kind} entry is not signed")
        issuer = self.trust.key("issuer", sealed.signatures[0][0], at=at)
        payload = sealed.verify(issuer) if self.signatures else sealed.payload
        return dict(envelope.parse_statement(payload, parsed.kind).predicate)

    def _shard(self, index: int, parsed: Entry, at: int) -> None:
        opening = self._signed_by_issuer(parsed, at)
        if index != 0:
            raise VerificationError("a second opening entry in the middle of a shard")
        if opening.get("origin") != self.origin or opening.get("shard") != self.shard:
            raise VerificationError("the opening entry belongs to another shard or log")

    def _authorization(self, index: int, parsed: Entry, at: int) -> dict[str, JSON]:
        members = parsed.members
        sealed = Envelope.parse(members["invocation"])
        statement = envelope.parse_statement(sealed.payload, "invocation")
        predicate = statement.predicate
        allowed = members["decision"] == "allow"
        issued = self._instance(str(predicate.get("agent")), at if allowed else None)
        if sealed.signatures or allowed or members["code"] != "signature.failed":
            self._signed_by(issued, sealed)
        _check_invocation(issued, statement)
        if not {str(members["config_sha256"]), str(members["policy_sha256"])} <= self._announced:
            raise VerificationError("a configuration or policy that no entry before it announces")
        subject = bytes.fromhex(canonical.sha256_hex(sealed.payload))
        if subject in self._seen:
            raise VerificationError("the same invocation stands in the log before")
        self._seen.add(subject)
        if allowed:
            self._open[subject] = _Call(index, str(predicate.get("invocation_id")), issued)
        return {"arguments": predicate.get("arguments"), "input": members["input"]}

    def _outcome(self, parsed: Entry) -> dict[str, JSON]:
        sealed = Envelope.parse(parsed.members["statement"])
        statement = envelope.parse_statement(sealed.payload, "outcome")
        place = statement.predicate.get("authorization")
        call = self._open.pop(bytes.fromhex(statement.subject_sha256), None)
        if call is None:
            if place is None and statement.predicate.get("status") == "not_run":
                self._signed_by(self._holder(sealed), sealed)
                return {}  # interrupted before its authorization was durable
            raise VerificationError("an outcome without an authorised call that waits for one")
        if place is not None and place != {"shard": self.shard, "index": call.index}:
            raise VerificationError("an outcome names another place for its authorization")
        # by the instance that made the call, whose credential may have run out while it ran
        self._signed_by(call.issued, sealed)
        return {"result": statement.predicate.get("result")}

    def _instance(self, uri: str, at: int | None) -> Credential:
        """Return a credential of an agent instance that stands earlier in this shard.

        It must cover the time ``at``; a refusal (None) may be signed after the last one ran out,
        for want of a new one.
        """
        known = self._credentials.get(uri)
        if not known:
            raise VerificationError(f"no credential of the agent {uri} stands before")
        for issued in reversed(known):
            if at is None or issued.issued_at <= at < issued.expires_at:
                return issued
        raise VerificationError(f"no credential of {uri} was valid then")

    def _holder(self, sealed: Envelope) -> Credential:
        """Return the credential of the key that a statement names, at whatever time."""
        key_ids = {key_id for key_id, _signature in sealed.signatures}
        for known in self._credentials.values():
            if known[-1].key.thumbprint in key_ids:
                return known[-1]
        raise VerificationError("no credential of a statement's signer stands before")

    def _signed_by(self, issued: Credential, sealed: Envelope) -> None:
        if self.signatures:
            sealed.verify(issued.key)


def _check_invocation(issued: Credential, statement: Statement) -> None:
    predicate = statement.predicate
    name = issued.profile.name
    if predicate.get("chain_sha256") is None and predicate.get("principal") != f"agent:{name}":
        raise VerificationError("an agent acts for a principal that no chain names")
    try:
        digest = call_digest(name, predicate)
    except (KeyError, TypeError) as error:
        raise DecodeError("an invocation lacks what its digest is made of") from error
    if digest != statement.subject_sha256:
        raise VerificationError("an invocation does not have its call digest")


def _check_attachments(attachments: Sequence[Attachment], commitments: dict[str, JSON]) -> None:
    for kept in attachments:
        if kept.role not in commitments or kept.commitment != commitments[kept.role]:
            raise VerificationError(f"the {kept.role} kept beside it are not what it commits to")
        if commitment(kept.salt, kept.data) != kept.commitment:
            raise VerificationError(f"the {kept.role} kept beside it were changed")
