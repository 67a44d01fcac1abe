"""The entries of HTTP requests: builds and reads the three kinds, and verifies proofs and receipts.

The agent's log has a ``proof`` before a request with the proof can be sent. The log of the tool's
server has a ``received`` for each request that the server has accepted, and a ``refused`` for some
of those that the server has refused. ``cli/audit/match.py`` compares the logs of both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentguard.audit import records, summary
from agentguard.audit.calls import Authorization
from agentguard.audit.entry import Entry
from agentguard.audit.receipts import read_receipt
from agentguard.audit.records import Record
from agentguard.audit.running_call import CallName
from agentguard.audit.summary import Summary
from agentguard.call.releases import ProofRecord, ReleaseSubject, RequestRecord
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing.canonical import JSON, is_integer, is_sha256

_METHOD: Final = re.compile(r"[ -~]{1,128}")
_ASSURANCES: Final = ("request", "dpop", "call")


class ProofEntry(NamedTuple):
    """The proof of an HTTP request that a running call made, as an entry of the agent's log."""

    record: ProofRecord
    at: str
    call: CallName

    @property
    def summary(self) -> Summary:
        """The summary of the entry."""
        return self.call.summary("proof", self.at)


class ReceivedRequest(NamedTuple):
    """A request that a tool's server has accepted, with its verified caller.

    ``audience`` is the name of the server in delegations, and ``server`` the URL within which the
    server takes requests. ``proof_jti``, ``proof_sha256`` and ``key_id`` are the id of the proof,
    the digest of the whole proof, and the thumbprint of the key (RFC 7638). ``assurance`` is
    ``request``, ``dpop`` or ``call``; with ``dpop`` nobody knows the call, and
    ``invocation_sha256`` is None. ``token_jti`` and ``token_sha256`` are those of the access token.
    Digests are SHA-256 in hex.
    """

    request: RequestRecord
    audience: str
    server: str
    proof_jti: str
    proof_sha256: str
    key_id: str
    assurance: str
    invocation_sha256: str | None
    token_jti: str
    token_sha256: str
    agent: str
    principal: str


class RefusedRequest(NamedTuple):
    """A request that a tool's server has refused, though its token and credential hold.

    ``code`` is the reason code. ``proof_sha256`` is the digest of a proof that may be forged. The
    other fields are those of ``ReceivedRequest``.
    """

    code: str
    request: RequestRecord
    audience: str
    server: str
    proof_sha256: str
    token_jti: str
    token_sha256: str
    agent: str
    principal: str


def proof(proved: ProofRecord, subject: ReleaseSubject, *, at: str) -> Record:
    """Build the entry of a proof of a running call, which precedes the request."""
    call = CallName.of(subject)
    members = {
        "kind": "proof",
        "at": at,
        "request": proved.request._asdict(),
        "assurance": proved.assurance,
        "audience": proved.audience,
        "proof": {"jti": proved.jti, "sha256": proved.sha256},
        **call.members(),
    }
    return records.new_record(members, call.summary("proof", at))


def received(request: ReceivedRequest, *, unrecorded: int, at: str) -> Record:
    """Build the entry of an accepted request.

    ``unrecorded`` is how many refused requests have no entry since the entry before.
    """
    members = {
        "kind": "received",
        "at": at,
        "request": request.request._asdict(),
        "audience": request.audience,
        "server": request.server,
        "proof": {
            "jti": request.proof_jti,
            "sha256": request.proof_sha256,
            "key_id": request.key_id,
        },
        "assurance": request.assurance,
        "invocation_sha256": request.invocation_sha256,
        "token": {"jti": request.token_jti, "sha256": request.token_sha256},
        "agent": request.agent,
        "principal": request.principal,
        "unrecorded": unrecorded,
    }
    about = summary.at_receiver("received", request.agent, request.principal, at=at)
    return records.new_record(members, about)


def refused(request: RefusedRequest, *, unrecorded: int, at: str) -> Record:
    """Build the entry of a refused request; ``unrecorded`` is as in ``received``."""
    members = {
        "kind": "refused",
        "at": at,
        "code": request.code,
        "request": request.request._asdict(),
        "audience": request.audience,
        "server": request.server,
        "proof_sha256": request.proof_sha256,
        "token": {"jti": request.token_jti, "sha256": request.token_sha256},
        "agent": request.agent,
        "principal": request.principal,
        "unrecorded": unrecorded,
    }
    about = summary.at_receiver("refused", request.agent, request.principal, at=at)
    return records.new_record(members, about)


def read_proof(entry: Entry) -> ProofEntry:
    """Read a proof entry, unverified; raises ``DecodeError``."""
    match entry.members:
        case {
            "request": request,
            "assurance": "request" | "call" as assurance,
            "audience": str(audience),
            "proof": {"jti": str(jti), "sha256": sha256, **more},
        } if not more:
            about, call = _read_request(request), CallName.read(entry)
            _digest(call.invocation_sha256)
            record = ProofRecord(about, str(assurance), audience, jti, _digest(sha256))
            return ProofEntry(record, entry.at, call)
    raise _malformed("the proof of a request")


def read_received(entry: Entry) -> ReceivedRequest:
    """Read a received entry, unverified; raises ``DecodeError``."""
    match entry.members:
        case {
            "request": request,
            "audience": str(audience),
            "server": str(server),
            "proof": {"jti": str(jti), "sha256": sha256, "key_id": str(key_id), **more},
            "assurance": str(assurance),
            "invocation_sha256": invocation,
            "token": token,
            "agent": str(agent),
            "principal": str(principal),
            "unrecorded": unrecorded,
        } if not more and _is_count(unrecorded) and assurance in _ASSURANCES:
            token_jti, token_sha256 = _read_token(token)
            return ReceivedRequest(
                _read_request(request),
                audience,
                server,
                jti,
                _digest(sha256),
                key_id,
                assurance,
                _digest_or_none(invocation, is_none=assurance == "dpop"),
                token_jti,
                token_sha256,
                agent,
                principal,
            )
    raise _malformed("an accepted request")


def read_refused(entry: Entry) -> RefusedRequest:
    """Read a refused entry, unverified; raises ``DecodeError``."""
    match entry.members:
        case {
            "code": str(code),
            "request": request,
            "audience": str(audience),
            "server": str(server),
            "proof_sha256": sha256,
            "token": token,
            "agent": str(agent),
            "principal": str(principal),
            "unrecorded": unrecorded,
        } if _is_count(unrecorded):
            about = _read_request(request)
            of_token = _read_token(token)
            return RefusedRequest(
                code, about, audience, server, _digest(sha256), *of_token, agent, principal
            )
    raise _malformed("a refused request")


def parts_of(entry: ProofEntry | ReceivedRequest) -> dict[str, str | None]:
    """Return by name what is compared of one request in the logs of both sides."""
    if isinstance(entry, ProofEntry):
        record = entry.record
        request, assurance, jti = record.request, record.assurance, record.jti
        caller: CallName | ReceivedRequest = entry.call
    else:
        request, assurance, jti = entry.request, entry.assurance, entry.proof_jti
        caller = entry
    return {
        **request._asdict(),
        "assurance": assurance,
        "invocation_sha256": caller.invocation_sha256,
        "agent": caller.agent,
        "proof_jti": jti,
    }


def unrecorded_before(entry: Entry) -> int:
    """Return how many refused requests before an entry of a receiver have no entry."""
    count = entry.members.get("unrecorded")
    return count if isinstance(count, int) else 0


def summary_at_receiver(entry: Entry) -> Summary:
    """Read a received or refused entry and return its summary; raises ``DecodeError``."""
    request = read_received(entry) if entry.kind == "received" else read_refused(entry)
    return summary.at_receiver(entry.kind, request.agent, request.principal, at=entry.at)


def _read_request(value: JSON) -> RequestRecord:
    match value:
        case {
            "method": str(method),
            "url": str(url),
            "query_sha256": query,
            "body_sha256": body,
            **others,
        } if not others and _METHOD.fullmatch(method):
            digest = _digest_or_none(query, is_none=query is None)
            return RequestRecord(method, url, digest, _digest(body))
    raise _malformed("an HTTP request")


def _read_token(value: JSON) -> tuple[str, str]:
    match value:
        case {"jti": str(jti), "sha256": sha256, **others} if not others:
            return jti, _digest(sha256)
    raise _malformed("an access token")


def _digest(value: JSON) -> str:
    if is_sha256(value):
        return value
    raise _malformed("a digest")


def _digest_or_none(value: JSON, *, is_none: bool) -> str | None:
    if not is_none:
        return _digest(value)
    if value is not None:
        raise _malformed("a request of which nobody knows this digest")
    return None


def _is_count(value: JSON) -> bool:
    return is_integer(value) and value >= 0


class _RunningCall(NamedTuple):
    call: CallName
    audience: tuple[str, ...]
    proofs: set[str]


@dataclass(slots=True)
class ProofVerifier:
    """Verifies the proofs of requests in one shard, in the order of the log.

    A proof belongs to a call that runs, under a delegation that names the audience. The methods get
    what the verifier of the contents has checked.
    """

    shard: int
    _calls: dict[str, _RunningCall] = field(default_factory=dict)

    def begin(self, call: Authorization, place: int, chain: Chain | None) -> None:
        """Add a call that may run; ``place`` is the index of the authorization."""
        if chain is not None:
            named = CallName.of_authorization(call, self.shard, place)
            running = _RunningCall(named, tuple(chain.leaf.audience), set())
            self._calls[call.invocation_sha256] = running

    def end(self, invocation_sha256: str) -> None:
        """Note the outcome of a call, after which the call proves nothing."""
        self._calls.pop(invocation_sha256, None)

    def check(self, entry: Entry) -> Summary:
        """Check a proof or a receipt, and return the summary of the entry.

        Raises ``DecodeError`` or ``VerificationError``.
        """
        if entry.kind == "receipt":
            return self._check_receipt(entry)
        proved = read_proof(entry)
        running = self._calls.get(proved.call.invocation_sha256)
        if running is None:
            raise _mismatch("no call that was running then may have requests proved")
        if proved.call != running.call:
            raise _mismatch("it names another call, agent or tool than the invocation")
        if proved.record.audience not in running.audience:
            raise _mismatch("the delegation of the call does not name this audience")
        running.proofs.add(proved.record.sha256)
        return proved.summary

    def _check_receipt(self, entry: Entry) -> Summary:
        noted = read_receipt(entry)
        running = self._calls.get(noted.call.invocation_sha256)
        if running is None or noted.call != running.call:
            raise _mismatch("a receipt is of no call that was running then")
        if noted.proof_sha256 not in running.proofs:
            raise _mismatch("a receipt is of a request that its call has not proved")
        return noted.summary


def _malformed(what: str) -> DecodeError:
    return DecodeError(f"not the entry of {what}", code="entry.malformed")


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(f"the proof of a request: {problem}", code="statement.mismatch")
