"""The evidence of one call, verified by a stranger: offline, with nothing but a trust document.

Everything that the statement of the call needs must be in the file, and nothing else: its outcome
if there is one, the credential, configuration and policy that it names, the opening of each shard,
the announcement of each key, and under one checkpoint for each shard the proof that the log holds
them. The file's format is ``evidence_file.py``'s, how it is made from a log ``prove.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from agentguard.approvals.roster import Answer
from agentguard.audit import approvals, evidence_file, inclusion, merkle, statements
from agentguard.audit.calls import Authorization, Outcome, read_authorization, read_outcome
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import CallPlace
from agentguard.audit.evidence_file import EvidenceFile
from agentguard.audit.inclusion import Head, Held, Place, located
from agentguard.audit.statements import Administered, Credentials
from agentguard.call.decision import Requirement
from agentguard.delegation.chain import Chain
from agentguard.errors import VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, b64_encode

KeyName = tuple[str, str]
"""The use of a key and its thumbprint."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is proved about one call.

    ``chain`` is the delegation under which the call was made, None on the agent's own authority;
    ``required`` is what people had to meet, and ``approved`` are the answers of people on which it
    rests, a rejection among them;
    ``administered`` are the resolutions and erasures, with their places. ``seen`` is the checkpoint
    that the call itself carries; ``heads`` are by origin; ``kept`` holds what stands beside the
    entries, by role, as far as the file has it. What is in ``copied`` is kept as a copy, which may
    have redactions: the log vouches for it, and not the agent.
    """

    call: Authorization
    place: Place
    credential: Credential
    chain: Chain | None
    required: tuple[Requirement, ...]
    approved: tuple[Answer, ...]
    outcome: Outcome | None
    outcome_place: Place | None
    administered: tuple[tuple[Administered, Place], ...]
    seen: Checkpoint
    heads: Mapping[str, Head]
    kept: Mapping[str, JSON]
    copied: frozenset[str]


def verify(data: bytes, trust: TrustDocument) -> Evidence:
    """Return what a file proves about its call under the keys of ``trust``.

    Raises ``DecodeError`` (``evidence.malformed`` and those of its parts) for what is no evidence,
    ``VerificationError`` for what does not hold: ``evidence.incomplete``, ``evidence.superfluous``,
    ``evidence.mismatch``, ``proof.invalid``, ``signature.*``, ``credential.*``, ``key.*``.
    """
    file = EvidenceFile.loads(data)
    heads, held = inclusion.verify(file.entries, trust)
    return _Examination(file, trust, heads, held).evidence()


class _Examination:
    """Holds the entries of one file against each other; each is needed, or refused."""

    def __init__(
        self, file: EvidenceFile, trust: TrustDocument, heads: Mapping[str, Head], held: list[Held]
    ) -> None:
        self._file = file
        self._trust = trust
        self._heads = heads
        self._held = held
        self._used: set[KeyName] = {("log", head.key.key.thumbprint) for head in heads.values()}

    def evidence(self) -> Evidence:
        call, place, at = self._call()
        chain = self._chain(call, place, at)
        issued = self._credential(call, place, chain, at)
        self._announced(call, place)
        approved = self._approved(call, place, issued, at)
        outcome, outcome_place = self._outcome(call, place, issued)
        administered = tuple(self._administered(call, place))
        seen = self._seen(call)
        self._openings(seen)
        self._keys()
        commitments = {**call.commitments, **(outcome.commitments if outcome is not None else {})}
        kept = self._kept(commitments)
        return Evidence(
            call=call,
            place=place,
            credential=issued,
            chain=chain,
            required=approvals.requirements_of(self._one("authorization").entry),
            approved=approved,
            outcome=outcome,
            outcome_place=outcome_place,
            administered=administered,
            seen=seen,
            heads=self._heads,
            kept=kept,
            copied=self._copied(),
        )

    def _of_kind(self, *kinds: str) -> list[Held]:
        return [held for held in self._held if held.entry.kind in kinds]

    def _at_most_one(self, kind: str) -> Held | None:
        found = self._of_kind(kind)
        if len(found) > 1:
            raise _superfluous(f"it holds {len(found)} entries of the kind {kind}")
        return found[0] if found else None

    def _one(self, kind: str) -> Held:
        found = self._at_most_one(kind)
        if found is None:
            raise _incomplete(f"it holds no entry of the kind {kind}")
        return found

    def _one_before(self, kind: str, place: Place) -> Held:
        found = self._one(kind)
        if found.place.origin != place.origin or found.place.index >= place.index:
            raise _mismatch(f"the {kind} entry does not stand before the call in its shard")
        return found

    def _call(self) -> tuple[Authorization, Place, int]:
        held = self._one("authorization")
        with _where(held):
            call = read_authorization(held.entry)
            if call.invocation_id != self._file.invocation_id:
                raise _mismatch("it is of another call than the file says")
            return call, held.place, held.at

    def _chain(self, call: Authorization, place: Place, at: int) -> Chain | None:
        if call.chain_sha256 is None:
            if self._of_kind("delegation"):
                raise _superfluous("the call was made on the agent's own authority")
            return None
        held = self._one_before("delegation", place)
        with _where(held):
            chain = statements.check_delegation(held.entry, self._trust, held.at)
            if chain.sha256 != call.chain_sha256:
                raise _mismatch("it keeps another chain than the call names")
            self._used |= {("issuer", kid) for kid in chain.issuer_keys}
            chain.check(at)
        return chain

    def _credential(
        self, call: Authorization, place: Place, chain: Chain | None, at: int
    ) -> Credential:
        held = self._one_before("identity", place)
        with _where(held):
            token = str(held.entry.members["credential"])
            verified = credential.verify(token, self._trust, at=held.at)
            self._used.add(("issuer", str(jws.parse(token).header["kid"])))
        known = Credentials()
        known.add(verified)
        with located("the call"):
            issued = known.of_call(call, at)
            statements.check_call(call, issued, chain, at)
        return issued

    def _announced(self, call: Authorization, place: Place) -> None:
        held = self._one_before("config", place)
        with _where(held):
            if statements.check_config(held.entry) != call.config_sha256:
                raise _mismatch("it is not the configuration that the call was decided under")
            if statements.mode_of(held.entry) != call.mode:
                raise _mismatch("it has the policy asked in another mode than the call says")
        if call.engine is None:
            if call.policy_sha256 is not None:
                raise _mismatch("the call names a policy and no engine")
            if self._of_kind("policy"):
                raise _superfluous("no policy was asked, and it holds a policy entry")
            return
        said = self._one_before("policy", place).entry.members
        if (said["engine"], said["policy_sha256"]) != (call.engine, call.policy_sha256):
            raise _mismatch("the policy entry is not of the policy that has decided")

    def _approved(
        self, call: Authorization, place: Place, issued: Credential, at: int
    ) -> tuple[Answer, ...]:
        """Check the answers on which the call rests against the roster of their day."""
        held = self._one("authorization")
        named = approvals.roster_named(held.entry)
        people = None
        if named is None:
            if self._of_kind("roster"):
                raise _superfluous("the call rests on no answers, and it holds a roster")
        else:
            stated = self._one_before("roster", place)
            with _where(stated):
                found = approvals.check_roster(stated.entry, self._trust, stated.at)
                people = found.people
                if people.sha256 != named:
                    raise _mismatch("it is another roster than the call names")
                self._used.add(("issuer", found.issuer.thumbprint))
        with _where(held):
            return approvals.check_approvals(call, held.entry, people, issued, at)

    def _outcome(
        self, call: Authorization, place: Place, issued: Credential
    ) -> tuple[Outcome | None, Place | None]:
        held = self._at_most_one("outcome")
        if held is None:
            return None, None
        with _where(held):
            outcome = read_outcome(held.entry)
            if outcome.invocation_sha256 != call.invocation_sha256 or not call.allowed:
                raise _mismatch("it is of another call, or of one that was not allowed")
            if held.place.origin != place.origin or held.place.index <= place.index:
                raise _mismatch("it does not stand after its call in the same shard")
            statements.check_place(outcome, place.shard, place.index)
            statements.check_signed(outcome.sealed, issued)
            return outcome, held.place

    def _administered(
        self, call: Authorization, place: Place
    ) -> Iterator[tuple[Administered, Place]]:
        of_this = CallPlace(
            place.shard, place.index, self._file.invocation_id, call.invocation_sha256
        )
        for held in self._of_kind("resolution", "erasure"):
            with _where(held):
                said = statements.check_administered(held.entry, self._trust, held.at)
                if said.call != of_this:
                    raise _mismatch("it is of another call")
                self._used.add(("admin", said.key_id))
            yield said, held.place

    def _seen(self, call: Authorization) -> Checkpoint:
        """Check that the log has only grown since the checkpoint that the call carries."""
        if len(self._file.consistency) != 1:
            raise _incomplete("it proves nothing, or too much, of the checkpoint in the call")
        seen, hashes = self._file.consistency[0]
        said = {"origin": seen.origin, "size": seen.size, "root": b64_encode(seen.root)}
        # as bytes: in Python, true is 1
        if canonical.dumps(call.predicate.get("log")) != canonical.dumps(said):
            raise _mismatch("consistency is proved for another checkpoint than the call carries")
        if seen.origin not in self._heads:
            raise _incomplete(f"it holds no checkpoint of {seen.origin}")
        head = self._heads[seen.origin].checkpoint
        with located(f"consistency of {seen.origin}"):
            merkle.verify_consistency(seen.size, head.size, seen.root, head.root, hashes)
        return seen

    def _openings(self, seen: Checkpoint) -> None:
        """Check that the issuer has opened each shard, and that each shard is needed."""
        opened: set[str] = set()
        for held in self._of_kind("shard"):
            with _where(held):
                if held.place.index != 0:
                    raise _superfluous("only the first opening of a shard is asked for")
                issuer, said = statements.check_issued(held.entry, self._trust, held.at)
                statements.check_opening(said, held.place.origin, held.place.shard)
                self._used.add(("issuer", issuer.thumbprint))
                opened.add(held.place.origin)
        for origin in self._heads.keys() - opened:
            raise _incomplete(f"the opening entry of {origin} is missing")
        others = {held.place.origin for held in self._held if held.entry.kind != "shard"}
        for origin in self._heads.keys() - others - {seen.origin}:
            raise _superfluous(f"nothing needs the shard {origin}")

    def _keys(self) -> None:
        """Check that each key that was used is announced, those of the announcements included."""
        announced: dict[KeyName, KeyName] = {}
        trusted = [(key.use, key.key.thumbprint, key.key.jwk()) for key in self._trust.keys]
        for held in self._of_kind("key"):
            with _where(held):
                issuer, said = statements.check_issued(held.entry, self._trust, held.at)
                name = (str(said.get("use")), str(said.get("kid")))
                if name in announced:
                    raise _superfluous("a key is announced twice")
                if (*name, said.get("jwk")) not in trusted:
                    message = "it announces a key that is not in the trust document"
                    raise VerificationError(message, code="key.unknown")
                announced[name] = ("issuer", issuer.thumbprint)
        needed: set[KeyName] = set()
        pending = self._used
        while pending:
            needed |= pending
            for use, kid in pending - announced.keys():
                raise _incomplete(f"no entry announces the {use} key {kid}")
            pending = {announced[name] for name in pending} - needed
        for use, kid in announced.keys() - needed:
            raise _superfluous(f"nothing needs the {use} key {kid}")

    def _copied(self) -> frozenset[str]:
        entries = self._of_kind("authorization", "outcome")
        copies = [held.entry.members["copies"] for held in entries]
        return frozenset(role for named in copies if isinstance(named, dict) for role in named)

    def _kept(self, commitments: Mapping[str, JSON]) -> dict[str, JSON]:
        attachments = self._file.attachments
        roles = [kept.role for kept in attachments]
        if roles != sorted(set(roles)):
            raise _mismatch("the attachments are not in the order of their roles, each once")
        statements.check_attachments(attachments, commitments)
        return {
            kept.role: canonical.loads(kept.data, limit=evidence_file.MAX_BYTES)
            for kept in attachments
        }


def _where(held: Held) -> AbstractContextManager[None]:
    return located(f"the {held.entry.kind} entry {held.place.index} of {held.place.origin}")


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.mismatch")


def _incomplete(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.incomplete")


def _superfluous(problem: str) -> VerificationError:
    return VerificationError(problem, code="evidence.superfluous")
