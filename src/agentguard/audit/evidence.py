"""Verifies the evidence of one call, offline, with a file and a trust document.

The file must hold everything that the call's statement needs, and nothing else: the outcome, if
there is one; the credential, configuration and policy that the call names; the announcement of each
key; and the proof that the log contains these entries, under one checkpoint.
``evidence_parts.py`` verifies the parts that files share, ``evidence_file.py`` has the file's
format, and ``prove.py`` makes the file from a log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, TypeVar

from agentguard.approvals.roster import Answer
from agentguard.audit import evidence_file, merkle, statements
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import CallPlace, Entry
from agentguard.audit.evidence_file import EvidenceFile
from agentguard.audit.evidence_parts import VerifiedParts
from agentguard.audit.inclusion import Place, ProvenEntry, VerifiedCheckpoint, error_location
from agentguard.audit.kinds.administration import AdministeredEntry, ErasureEntry, ResolutionEntry
from agentguard.audit.kinds.announcements import ConfigEntry, KeyEntry, PolicyEntry, RosterEntry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.audit.kinds.identities import DelegationEntry, IdentityEntry
from agentguard.audit.statements import Credentials
from agentguard.call.decision import Requirement
from agentguard.delegation.chain import Chain
from agentguard.errors import VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64_encode

E = TypeVar("E", bound=Entry)
KeyName = tuple[str, str]
"""The use of a key and its thumbprint."""

_KINDS: Final = (
    CallEntry,
    OutcomeEntry,
    ResolutionEntry,
    ErasureEntry,
    KeyEntry,
    IdentityEntry,
    ConfigEntry,
    PolicyEntry,
    RosterEntry,
    DelegationEntry,
)
"""The kinds of the entries that the evidence of a call may need."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The proven facts about one call.

    ``chain`` is the delegation of the call, None for a call on the agent's own authority.
    ``requirements`` says which approvals the policy demanded. ``answers`` are the people's answers
    on which the decision rests, rejections included. ``admin_statements`` are the resolutions and
    erasures, with their places. ``call_checkpoint`` is the checkpoint that the call carries, and
    ``checkpoint`` the one of the file, with its key. ``data`` has the arguments, the policy input
    and the result by role, as far as the file holds them. The roles in ``copied_roles`` are
    redacted copies: the log vouches for a copy, the agent does not.
    """

    call: CallEntry
    place: Place
    credential: Credential
    chain: Chain | None
    requirements: tuple[Requirement, ...]
    answers: tuple[Answer, ...]
    outcome: OutcomeEntry | None
    outcome_place: Place | None
    admin_statements: tuple[tuple[AdministeredEntry, Place], ...]
    call_checkpoint: Checkpoint
    checkpoint: VerifiedCheckpoint
    data: Mapping[str, JSON]
    copied_roles: frozenset[str]


def verify_evidence(data: bytes, trust: TrustDocument) -> Evidence:
    """Return the facts about a call that a file proves under the keys of ``trust``.

    Raises ``DecodeError`` (``evidence.malformed``, and the codes of the file's parts) for a file
    without evidence, and ``VerificationError`` for a failed check: ``evidence.incomplete``,
    ``evidence.superfluous``, ``evidence.mismatch``, ``proof.invalid``, ``signature.*``,
    ``credential.*``, ``key.*``.
    """
    return EvidenceVerifier(trust).verify(data)


class EvidenceVerifier:
    """Verifies many files under one trust document, and what several files share only once."""

    def __init__(self, trust: TrustDocument) -> None:
        self._parts = VerifiedParts(trust)

    def verify(self, data: bytes) -> Evidence:
        """Return the facts that a file proves; raises as ``verify_evidence`` does."""
        file = EvidenceFile.loads(data, self._parts.logged_entry)
        covering, entries = self._parts.entries(file.entries)
        return _FileVerifier(file, self._parts, covering, entries).evidence()


class _FileVerifier:
    """Checks the entries of one file against each other; refuses an entry that nothing needs."""

    def __init__(
        self,
        file: EvidenceFile,
        parts: VerifiedParts,
        covering: VerifiedCheckpoint,
        entries: list[ProvenEntry],
    ) -> None:
        self._file = file
        self._parts = parts
        self._trust = parts.trust
        self._covering = covering
        self._entries = entries
        self._used_keys: set[KeyName] = {("log", covering.key.key.thumbprint)}

    def evidence(self) -> Evidence:
        for proven in self._entries:
            if not isinstance(proven.entry, _KINDS):
                raise _superfluous(f"it holds an entry of the kind {proven.entry.kind}")
        call, place, at = self._call()
        chain = self._chain(call, place, at)
        issued = self._credential(call, place, chain, at)
        self._check_configuration(call, place)
        answers = self._answers(call, place, issued, at)
        outcome, outcome_place = self._outcome(call, place, issued)
        admin_statements = tuple(self._admin_statements(call, place, at))
        call_checkpoint = self._call_checkpoint(call)
        self._check_keys()
        commitments = {**call.commitments, **(outcome.commitments if outcome is not None else {})}
        data = self._data(commitments)
        copied = (*call.copies, *(outcome.copies if outcome is not None else ()))
        return Evidence(
            call=call,
            place=place,
            credential=issued,
            chain=chain,
            requirements=call.required,
            answers=answers,
            outcome=outcome,
            outcome_place=outcome_place,
            admin_statements=admin_statements,
            call_checkpoint=call_checkpoint,
            checkpoint=self._covering,
            data=data,
            copied_roles=frozenset(copied),
        )

    def _of_kind(self, kind: type[E]) -> list[tuple[E, ProvenEntry]]:
        return [(one.entry, one) for one in self._entries if isinstance(one.entry, kind)]

    def _at_most_one(self, kind: type[E]) -> tuple[E, ProvenEntry] | None:
        entries = self._of_kind(kind)
        if len(entries) > 1:
            raise _superfluous(f"it holds {len(entries)} entries of the kind {kind.kind}")
        return entries[0] if entries else None

    def _one(self, kind: type[E]) -> tuple[E, ProvenEntry]:
        found = self._at_most_one(kind)
        if found is None:
            raise _incomplete(f"it holds no entry of the kind {kind.kind}")
        return found

    def _one_before(self, kind: type[E], place: Place) -> tuple[E, ProvenEntry]:
        entry, proven = self._one(kind)
        if proven.place.index >= place.index:
            raise _mismatch(f"the {kind.kind} entry does not stand before the call")
        return entry, proven

    def _call(self) -> tuple[CallEntry, Place, int]:
        call, proven = self._one(CallEntry)
        with _where(proven):
            if call.invocation_id != self._file.invocation_id:
                raise _mismatch("it is of another call than the file says")
            return call, proven.place, proven.at

    def _chain(self, call: CallEntry, place: Place, at: int) -> Chain | None:
        if call.chain_sha256 is None:
            if self._of_kind(DelegationEntry):
                raise _superfluous("the call was made on the agent's own authority")
            return None
        _entry, proven = self._one_before(DelegationEntry, place)
        with _where(proven):
            chain = self._parts.chain(proven)
            if chain.sha256 != call.chain_sha256:
                raise _mismatch("it keeps another chain than the call names")
            self._used_keys |= {("issuer", kid) for kid in chain.issuer_keys}
            chain.check(at)
        return chain

    def _credential(
        self, call: CallEntry, place: Place, chain: Chain | None, at: int
    ) -> Credential:
        identity, proven = self._one_before(IdentityEntry, place)
        with _where(proven):
            newest = credential.verify(identity.credential, self._trust, at=proven.at)
            self._used_keys.add(("issuer", identity.key_id))
        credentials = Credentials()
        credentials.add(newest)
        with error_location("the call"):
            issued = credentials.of_call(call.agent, at, allowed=call.allowed)
            if call.must_be_signed:
                self._parts.check_signature(call.envelope, issued.key)
            refused = call.check_authority(issued, chain, self._trust, at, signatures=False)
            if refused is not None:
                self._used_keys |= {("issuer", kid) for kid in refused.issuer_keys}
        return issued

    def _check_configuration(self, call: CallEntry, place: Place) -> None:
        _entry, proven = self._one_before(ConfigEntry, place)
        with _where(proven):
            digest, mode = self._parts.config(proven)
            if digest != call.config_sha256:
                raise _mismatch("it is not the configuration that the call was decided under")
            if mode != call.mode:
                raise _mismatch("it has the policy asked in another mode than the call says")
        if call.engine is None:
            if call.policy_sha256 is not None:
                raise _mismatch("the call names a policy and no engine")
            if self._of_kind(PolicyEntry):
                raise _superfluous("no policy was asked, and it holds a policy entry")
            return
        policy, _proven = self._one_before(PolicyEntry, place)
        if (policy.engine, policy.policy_sha256) != (call.engine, call.policy_sha256):
            raise _mismatch("the policy entry is not of the policy that has decided")

    def _answers(
        self, call: CallEntry, place: Place, issued: Credential, at: int
    ) -> tuple[Answer, ...]:
        """Check the answers on which the call rests against the roster in force at that time."""
        roster = None
        if call.roster_sha256 is None:
            if self._of_kind(RosterEntry):
                raise _superfluous("the call rests on no answers, and it holds a roster")
        else:
            _entry, proven = self._one_before(RosterEntry, place)
            with _where(proven):
                self._used_keys.add(("issuer", self._parts.issued(proven).thumbprint))
                roster = self._parts.roster(proven)
                if roster.sha256 != call.roster_sha256:
                    raise _mismatch("it is another roster than the call names")
        with _where(self._one(CallEntry)[1]):
            return call.check_answers(roster, issued, at)

    def _outcome(
        self, call: CallEntry, place: Place, issued: Credential
    ) -> tuple[OutcomeEntry | None, Place | None]:
        found = self._at_most_one(OutcomeEntry)
        if found is None:
            return None, None
        outcome, proven = found
        with _where(proven):
            if outcome.invocation_sha256 != call.invocation_sha256 or not call.allowed:
                raise _mismatch("it is of another call, or of one that was not allowed")
            if proven.place.index <= place.index:
                raise _mismatch("it does not stand after its call")
            outcome.require_of(place.index, call.invocation_id, is_replay=call.is_replay)
            self._parts.check_signature(outcome.envelope, issued.key)
            return outcome, proven.place

    def _admin_statements(
        self, call: CallEntry, place: Place, at: int
    ) -> Iterator[tuple[AdministeredEntry, Place]]:
        call_place = CallPlace(place.index, self._file.invocation_id, call.invocation_sha256)
        for statement, proven in self._of_kind(AdministeredEntry):
            with _where(proven):
                # an entry with an older time than its call does not revive a key that has ended
                statement.verify(self._trust, max(proven.at, at))
                if statement.call != call_place:
                    raise _mismatch("it is of another call")
                self._used_keys.add(("admin", statement.key_id))
            yield statement, proven.place

    def _call_checkpoint(self, call: CallEntry) -> Checkpoint:
        """Check that the log extends the checkpoint that the call carries, and return it."""
        seen, hashes = self._file.consistency
        members = {"origin": seen.origin, "size": seen.size, "root": b64_encode(seen.root)}
        # compared as bytes, because True == 1 in Python
        if canonical.dumps(call.predicate.get("log")) != canonical.dumps(members):
            raise _mismatch("consistency is proved for another checkpoint than the call carries")
        point = self._covering.point
        if seen.origin != point.origin:
            raise _mismatch("the call carries the checkpoint of another log")
        with error_location("consistency"):
            merkle.verify_consistency(seen.size, point.size, seen.root, point.root, hashes)
        return seen

    def _check_keys(self) -> None:
        """Check that each used key is announced, the keys of the announcements included."""
        signers: dict[KeyName, KeyName] = {}
        trusted_keys = [(key.use, key.key.thumbprint, key.key.jwk()) for key in self._trust.keys]
        for entry, proven in self._of_kind(KeyEntry):
            with _where(proven):
                issuer, name = self._parts.issued(proven), entry.name
                if name in signers:
                    raise _superfluous("a key is announced twice")
                if (*name, entry.stated.predicate.get("jwk")) not in trusted_keys:
                    message = "it announces a key that is not in the trust document"
                    raise VerificationError(message, code="key.unknown")
                signers[name] = ("issuer", issuer.thumbprint)
        needed: set[KeyName] = set()
        pending = self._used_keys
        while pending:
            needed |= pending
            for use, kid in pending - signers.keys():
                raise _incomplete(f"no entry announces the {use} key {kid}")
            pending = {signers[name] for name in pending} - needed
        for use, kid in signers.keys() - needed:
            raise _superfluous(f"nothing needs the {use} key {kid}")

    def _data(self, commitments: Mapping[str, JSON]) -> dict[str, JSON]:
        attachments = self._file.attachments
        roles = [attachment.role for attachment in attachments]
        if roles != sorted(set(roles)):
            raise _mismatch("the attachments are not in the order of their roles, each once")
        statements.check_attachments(attachments, commitments)
        return {
            attachment.role: canonical.loads(attachment.data, limit=evidence_file.MAX_BYTES)
            for attachment in attachments
        }


def _where(proven: ProvenEntry) -> AbstractContextManager[None]:
    return error_location(f"the {proven.entry.kind} entry {proven.place.index}")


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.mismatch")


def _incomplete(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.incomplete")


def _superfluous(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.superfluous")
