"""Makes the evidence of calls from a log: the entries that a call needs, and their proofs.

``find.py`` finds the call, and ``evidence_scan.py`` reads the log once for all calls. Nothing in
the log is trusted here: ``evidence.py`` verifies the finished file before the caller gets the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import CallPlace, Entry, Signed, StoredEntry, parse_time
from agentguard.audit.evidence import EvidenceVerifier, KeyName
from agentguard.audit.evidence_file import EvidenceFile, Extension, LoggedEntry
from agentguard.audit.evidence_scan import LogScan, engine_name
from agentguard.audit.find import LoggedCall, Progress, call_at, find_call
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import AdministeredEntry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.kinds.identities import DelegationEntry, IdentityEntry, tokens_of_chain
from agentguard.audit.log import LogReader
from agentguard.audit.statements import Credentials
from agentguard.audit.tlog_proof import TlogProof
from agentguard.delegation import grant
from agentguard.errors import CallError, DecodeError, EncodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing.canonical import JSON, b64_decode, is_integer


def prove_call(
    reader: LogReader,
    trust: TrustDocument,
    call: str | CallPlace,
    *,
    attachments: bool = True,
    progress: Progress = lambda _entries: None,
) -> bytes:
    """Return the evidence file of one call, verified under ``trust``.

    ``call`` is an invocation's id, or a place: an agent may have logged two calls with one id, of
    which the id names the first. Without ``attachments``, the file has the commitments to
    arguments, policy input and result, and not the data. Raises ``CallError`` (``call.unknown``),
    ``StorageError``, and ``VerificationError`` where the log does not prove the call.
    """
    calls = prove_calls(reader, trust, [call], attachments=attachments, progress=progress)
    return next(calls)


def prove_calls(
    reader: LogReader,
    trust: TrustDocument,
    wanted: Sequence[str | CallPlace],
    *,
    attachments: bool = True,
    progress: Progress = lambda _entries: None,
) -> Iterator[bytes]:
    """Yield the evidence files of calls in order; the log is read once for all of them.

    ``wanted`` has ids and places as for ``prove_call``. Raises as ``prove_call`` does, before the
    first file for a call that is unknown.
    """
    places = [
        one if isinstance(one, CallPlace) else _place(reader, one, progress) for one in wanted
    ]
    subjects = [place.invocation_sha256 for place in places]
    try:
        scan = LogScan(reader, trust, subjects, progress)
    except DecodeError as error:
        message = f"the log's checkpoint can't be read: {error}"
        raise VerificationError(message, code=error.code) from error
    verifier = EvidenceVerifier(trust)
    for place in places:
        call = call_at(reader, place)
        if call is None:
            raise _unknown(place.invocation_id)
        try:
            data = _EvidenceBuilder(scan, trust, call).file(attachments=attachments).dumps()
            verifier.verify(data)
        except (DecodeError, EncodeError, VerificationError) as error:
            message = (
                f"the log does not prove the call {place.invocation_id} ({error}): agentguard "
                "audit verify says more"
            )
            raise VerificationError(message, code=error.code) from error
        yield data


def _place(reader: LogReader, invocation_id: str, progress: Progress) -> CallPlace:
    call = find_call(reader, invocation_id, progress)
    if call is None:
        raise _unknown(invocation_id)
    return call.place


class _EvidenceBuilder:
    """Collects the entries that the statement of a call needs, and their proofs."""

    def __init__(self, scan: LogScan, trust: TrustDocument, call: LoggedCall) -> None:
        self._scan = scan
        self._trust = trust
        self._call = call
        self._at = parse_time(call.entry.at)
        self._chosen: dict[int, StoredEntry] = {}
        self._pending: list[KeyName] = [("log", scan.covering.key.key.thumbprint)]

    def file(self, *, attachments: bool) -> EvidenceFile:
        """Return the file; the verification afterwards reports entries that are missing."""
        place, scan = self._call.place, self._scan
        if place.index >= scan.covering.point.size:
            raise _unknown(place.invocation_id)
        outcomes = scan.about("outcome", place.invocation_sha256)
        own = [place.index, *[index for index in outcomes if index > place.index][:1]]
        for index in own:
            self._choose(index, is_shared=False)
        for kind, name in self._foundations():
            for index in scan.before(place.index, kind, name)[-1:]:
                self._choose(index)
        self._choose_identity()
        self._choose_admin_statements()
        self._choose_keys()
        point = self._call_checkpoint()
        data = [one for index in own for one in self._chosen[index].attachments]
        return EvidenceFile(
            place.invocation_id,
            tuple(self._logged()),
            Extension(point, scan.extension(point.size)),
            tuple(sorted(data, key=lambda one: one.role)) if attachments else (),
        )

    def _foundations(self) -> Iterator[tuple[str, str]]:
        """Yield the kinds and the names of the entries on which the call rests."""
        call = self._call.entry
        yield "config", call.config_sha256
        yield "policy", engine_name(call.engine, call.policy_sha256)
        yield "roster", str(call.roster_sha256)
        if call.chain_sha256 is not None:
            yield "delegation", call.chain_sha256

    # --- choosing --------------------------------------------------------------------------------

    def _choose(self, index: int, *, is_shared: bool = True) -> None:
        """Choose an entry, and note the keys that the proof needs."""
        if index not in self._chosen:
            stored = self._scan.entry(index, is_shared=is_shared)
            self._chosen[index] = stored
            self._pending += _signers(parse_entry(stored.body))

    def _choose_identity(self) -> None:
        """Choose the newest credential that is valid for the call, else the newest credential.

        The verification then reports why the newest credential is not valid.
        """
        call = self._call
        newest_first = self._scan.before(call.place.index, "identity", call.entry.agent)[::-1]
        for index in newest_first:
            stored = self._scan.entry(index, is_shared=True)
            if self._is_valid_for_call(parse_entry(stored.body)):
                self._choose(index)
                return
        for index in newest_first[:1]:
            self._choose(index)

    def _is_valid_for_call(self, entry: Entry) -> bool:
        if not isinstance(entry, IdentityEntry):
            return False
        credentials = Credentials()
        try:
            at = parse_time(entry.at)
            credentials.add(credential.verify(entry.credential, self._trust, at=at))
            call = self._call.entry
            credentials.of_call(call.agent, self._at, allowed=call.allowed)
        except (DecodeError, VerificationError):
            return False
        return True

    def _choose_admin_statements(self) -> None:
        """Choose the resolutions and erasures of the call."""
        for kind in ("resolution", "erasure"):
            for index in self._scan.about(kind, self._call.place.invocation_sha256):
                entry = parse_entry(self._scan.entry(index, is_shared=False).body)
                # a statement with a compromised key must not make the call unprovable
                if isinstance(entry, AdministeredEntry) and entry.is_valid(self._trust, self._at):
                    self._choose(index, is_shared=False)

    def _choose_keys(self) -> None:
        """Choose the announcement of each key."""
        while self._pending:
            index = self._scan.keys.get(self._pending.pop())
            if index is not None:
                self._choose(index)

    def _call_checkpoint(self) -> Checkpoint:
        """Return the checkpoint that the call carries."""
        match self._call.entry.predicate.get("log"):
            case {"origin": str(origin), "size": size, "root": str(root)} if is_integer(size):
                if 0 < size <= self._scan.covering.point.size:
                    return Checkpoint(origin, size, b64_decode(root))
        message = "the call carries no checkpoint that this log could have grown from"
        raise VerificationError(message, code="proof.invalid")

    # --- writing ---------------------------------------------------------------------------------

    def _logged(self) -> Iterator[LoggedEntry]:
        for index, stored in sorted(self._chosen.items()):
            proof = TlogProof(index, self._scan.proof(index), self._scan.note)
            yield LoggedEntry(stored.body, proof)


def _signers(entry: Entry) -> list[KeyName]:
    """Return the keys of the trust document that have signed the content of an entry."""
    match entry:
        case IdentityEntry():
            return [("issuer", entry.key_id)]
        case DelegationEntry():
            return _signers_of_chain(entry.chain)
        case CallEntry():
            return _signers_of_chain(entry.refused_chain)
        case Signed():
            return [(entry.use, entry.key_id)]
    return []


def _signers_of_chain(chain: JSON) -> list[KeyName]:
    hops, credentials = tokens_of_chain(chain)
    # the issuer signs the first two hops, the second for the first delegatee
    return [("issuer", grant.key_id(token)) for token in (*hops[:2], *credentials)]


def _unknown(invocation_id: str) -> CallError:
    message = (
        f"no checkpoint of the log covers a call {invocation_id}: agentguard audit list "
        "--json has the ids of the calls that there are"
    )
    return CallError(message, code="call.unknown")
