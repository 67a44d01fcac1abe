"""The entries of the audit log: how each kind is written, and read again.

An entry is canonical JSON ``{kind, at, ...}``; where somebody other than the log vouches for it,
it embeds that signed statement (records.md, The log). ``Record`` is an entry on its way into
the log, with what stands beside the log under a commitment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Roster
from agentguard.audit import summary
from agentguard.audit.summary import Summary
from agentguard.call.decision import Decision
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, EncodeError
from agentguard.identity.credential import Credential
from agentguard.identity.trust import seconds
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, Fragment
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import PublicKey, Signer

Status = Literal["ok", "error", "unknown", "not_run"]
Role = Literal["arguments", "input", "result"]
Mode = Literal["enforce", "observe"]

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
)

_MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "shard": frozenset({"statement"}),
    "key": frozenset({"statement"}),
    "policy": frozenset({"engine", "policy_sha256", "files"}),
    "roster": frozenset({"statement"}),
    "request": frozenset(
        {
            "request_id",
            "call_digest",
            "call_site",
            "agent",
            "principal",
            "tool",
            "resource",
            "task_id",
            "requirements",
            "requirement_sha256",
            "displayed_sha256",
            "expires_at",
        }
    ),
    "config": frozenset({"config_sha256", "config"}),
    "identity": frozenset({"credential"}),
    "authorization": frozenset(
        {
            "invocation",
            "input",
            "decision",
            "code",
            "reasons",
            "requirements",
            "mode",
            "enforced",
            "engine",
            "policy_sha256",
            "config_sha256",
            "roster_sha256",
            "approvals",
            "copies",
        }
    ),
    "outcome": frozenset({"statement", "copies"}),
    "resolution": frozenset({"statement"}),
    "erasure": frozenset({"statement"}),
    "delegation": frozenset({"chain"}),
    "revocation": frozenset({"statement"}),
    "freeze": frozenset({"statement"}),
    "adoption": frozenset({"statement"}),
}
_OPTIONAL: Final[Mapping[str, frozenset[str]]] = {
    "authorization": frozenset({"evaluation", "journal", "replay_of"}),
    "request": frozenset({"traceparent"}),
}


class Attachment(NamedTuple):
    """Data beside the log; ``commitment`` (hex) is SHA-256 of ``salt || data``.

    It is the one that was stated or, of a call with redactions, one of the entry's ``copies``.
    """

    role: Role
    commitment: str
    salt: bytes
    data: bytes


class Record(NamedTuple):
    """An entry to be appended: its canonical bytes, and what stands beside it."""

    body: bytes
    summary: Summary
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry as it lies in a log, with what stands beside it, none of it verified."""

    index: int
    body: bytes
    summary: Summary | None = None
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """The place of a durable entry: the shard's number and the index in it, from 0."""

    shard: int
    index: int


class Entry(NamedTuple):
    """An entry that was read: its kind, its time (RFC 3339), and the members of its kind."""

    kind: str
    at: str
    members: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class CallPlace:
    """A call in the log: where its authorization stands, and the digest of its invocation (hex)."""

    shard: int
    index: int
    invocation_id: str
    invocation_sha256: str


class LoggedRuling(NamedTuple):
    """What an authorization entry says beside the invocation.

    ``input_commitment`` (hex) and ``engine`` are None where authority refused before any policy
    ran; ``policy_sha256`` is None where the engine can't say. ``approvals`` are the answers
    of people on which it rests, and ``roster_sha256`` names the roster that they are on.
    ``evaluation`` is what an engine says of how its answer came about, None where it says nothing.
    An answer that is not ``enforced``, in the ``mode`` observe, did not count: the call ran.
    """

    decision: Decision
    input_commitment: str | None
    engine: Mapping[str, str] | None
    policy_sha256: str | None
    config_sha256: str
    roster_sha256: str | None = None
    approvals: tuple[Envelope, ...] = ()
    evaluation: Mapping[str, JSON] | None = None
    mode: Mode = "enforce"
    enforced: bool = True


def parse(body: bytes) -> Entry:
    """Read an entry; raises ``DecodeError`` (``json.*``, ``entry.malformed``)."""
    members = canonical.loads_canonical(body)
    if not isinstance(members, dict):
        raise DecodeError("an entry is a JSON object", code="entry.malformed")
    kind, at = members.pop("kind", None), members.pop("at", None)
    if not isinstance(kind, str) or not isinstance(at, str) or kind not in _MEMBERS:
        raise DecodeError(f"{kind!r} is no kind of entry known here", code="entry.malformed")
    if members.keys() - _OPTIONAL.get(kind, frozenset()) != _MEMBERS[kind]:
        raise DecodeError(f"the {kind} entry has other members", code="entry.malformed")
    return Entry(kind, at, members)


def time_of(at: str) -> int:
    """Read an entry's time as seconds since the epoch; raises ``DecodeError``.

    Without an offset it would be another time on another machine.
    """
    if _RFC3339.fullmatch(at) is None:  # Python reads more: weeks, any sign between date and time
        raise DecodeError("its time is not RFC 3339", code="entry.malformed")
    try:
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is not None:
            return seconds(moment)
    except (ValueError, OverflowError) as error:
        raise DecodeError("its time is not RFC 3339", code="entry.malformed") from error
    raise DecodeError("its time has no offset", code="entry.malformed")


def shard(
    issuer: Signer,
    log_key: PublicKey,
    *,
    trust_domain: str,
    origin: str,
    number: int,
    heads: Sequence[bytes],
    at: str,
) -> Record:
    """Open a shard, or take it up again.

    The issuer names its origin and the key that signs its checkpoints. ``heads`` are the newest
    checkpoints of the other shards, as signed notes: none of them can be cut unseen from here on.
    """
    predicate: dict[str, object] = {
        "trust_domain": trust_domain,
        "origin": origin,
        "shard": number,
        "log_key": log_key.jwk(),
        "heads": [note.decode() for note in heads],
    }
    subject = canonical.sha256_hex(origin.encode())
    statement = dsse.statement("shard", subject, "origin", predicate)
    return _signed("shard", at, statement, issuer)


def key(issuer: Signer, trusted: Mapping[str, JSON], *, at: str) -> Record:
    """Announce a key of the trust document (its members there), signed by the issuer."""
    statement = dsse.statement("key", canonical.digest(trusted), "key", trusted)
    return _signed("key", at, statement, issuer)


def policy(
    engine: Mapping[str, str], policy_sha256: str | None, files: Mapping[str, str], *, at: str
) -> Record:
    """State which policy decides from here on: engine, digest, and ``{path: sha256}``."""
    listed = Fragment(canonical.dumps(dict(files)))  # a path may hold any character
    return _record(
        {
            "kind": "policy",
            "at": at,
            "engine": engine,
            "policy_sha256": policy_sha256,
            "files": listed,
        }
    )


def config(encoded: bytes, *, at: str) -> Record:
    """State the configuration (canonical JSON, which holds no secret) in force from here on."""
    digest = canonical.sha256_hex(encoded)
    return _record(
        {"kind": "config", "at": at, "config_sha256": digest, "config": Fragment(encoded)}
    )


def roster(issuer: Signer, trust_domain: str, approvers: Roster, *, at: str) -> Record:
    """State, signed by the issuer, who may approve from here on."""
    predicate: dict[str, object] = {"trust_domain": trust_domain, **approvers.as_json()}
    statement = dsse.statement("roster", approvers.sha256, "roster", predicate)
    return _signed("roster", at, statement, issuer)


def request(asked: ApprovalRequest, *, at: str) -> Record:
    """State that a call waits for an approval; the arguments lie with the request alone."""
    members = {
        "kind": "request",
        "at": at,
        "request_id": asked.request_id,
        "call_digest": asked.call_digest,
        "call_site": asked.call_site,
        "agent": asked.agent,
        "principal": asked.principal,
        "tool": {"name": asked.tool, "digest": asked.tool_digest},
        "resource": asked.resource,
        "task_id": asked.task_id,
        "requirements": [needed.as_json() for needed in asked.requirements],
        "requirement_sha256": asked.requirement_sha256,
        "displayed_sha256": asked.displayed_sha256,
        "expires_at": asked.expires_at,
        **({} if asked.traceparent is None else {"traceparent": asked.traceparent}),
    }
    about = summary.of_request(
        at=at,
        agent=asked.agent,
        principal=asked.principal,
        tool=asked.tool,
        task_id=asked.task_id,
        traceparent=asked.traceparent,
    )
    return _record(members, about)


def identity(credential: Credential, *, at: str) -> Record:
    """Keep the credential (a compact JWS) with which an agent instance acts from here on."""
    members = {"kind": "identity", "at": at, "credential": credential.token}
    return _record(members, summary.of_identity(credential.uri, at=at))


def delegation(chain: Chain, *, at: str) -> Record:
    """Keep a chain, its signed hops and the credentials with them, under which calls are made."""
    members = {"kind": "delegation", "at": at, "chain": Fragment(canonical.dumps(chain.as_json()))}
    return _record(members, summary.of_delegation(chain.leaf, at=at))


def revocation(admin: Signer, name: str, *, note: str, at: str) -> Record:
    """State that nobody acts any more under what has this name: see ``Authority.names``."""
    predicate: dict[str, object] = {"name": name, "note": note}
    subject = canonical.sha256_hex(name.encode())
    statement = dsse.statement("revocation", subject, "name", predicate)
    return _signed("revocation", at, statement, admin)


def freeze(
    admin: Signer, trust_domain: str, *, frozen: bool, sequence: int, note: str, at: str
) -> Record:
    """State that all calls are denied from here on, or not any more; the highest number counts."""
    predicate: dict[str, object] = {"frozen": frozen, "sequence": sequence, "note": note}
    subject = canonical.sha256_hex(trust_domain.encode())
    statement = dsse.statement("freeze", subject, "trust domain", predicate)
    return _signed("freeze", at, statement, admin)


def adoption(
    admin: Signer, trust_domain: str, *, lost: Sequence[Mapping[str, object]], note: str, at: str
) -> Record:
    """State that the log goes on in a copy, or in a state that is behind its anchor."""
    predicate: dict[str, object] = {"lost": list(lost), "note": note}
    subject = canonical.sha256_hex(trust_domain.encode())
    statement = dsse.statement("adoption", subject, "trust domain", predicate)
    return _signed("adoption", at, statement, admin)


def authorization(
    invocation: Envelope,
    predicate: Mapping[str, Any],
    ruling: LoggedRuling,
    *,
    at: str,
    attachments: tuple[Attachment, ...] = (),
    journal: str | None = None,
    replay_of: str | None = None,
) -> Record:
    """State the answer to one signed invocation; it is durable before the tool runs.

    ``predicate`` is the one of the invocation's statement. ``journal`` names a call that is to run
    once, however often it is made (32 hex digits); ``replay_of`` is the invocation whose result is
    handed out again in the place of this one's. Neither is written for a call that is refused.
    """
    decision = ruling.decision
    members: dict[str, object] = {
        "kind": "authorization",
        "at": at,
        "invocation": invocation.as_json(),
        "input": ruling.input_commitment,
        "decision": decision.outcome,
        "code": decision.code,
        "reasons": decision.reasons,
        "requirements": [needed.as_json() for needed in decision.requirements],
        "mode": ruling.mode,
        "enforced": ruling.enforced,
        "engine": ruling.engine,
        "policy_sha256": ruling.policy_sha256,
        "config_sha256": ruling.config_sha256,
        "roster_sha256": ruling.roster_sha256,
        "approvals": [answer.as_json() for answer in ruling.approvals],
        "copies": _copies(attachments, predicate["arguments"], ruling.input_commitment),
    }
    if ruling.evaluation is not None:
        members["evaluation"] = ruling.evaluation
    if decision.allowed or not ruling.enforced:
        members |= {"journal": journal} if journal is not None else {}
        members |= {"replay_of": replay_of} if replay_of is not None else {}
    effect = decision.outcome if ruling.enforced else summary.OBSERVED
    about = summary.of_call(predicate, at=at, decision=effect)
    return _record(members, about, attachments)


def outcome_statement(  # noqa: PLR0913  the members of one statement
    invocation_sha256: str,
    *,
    authorization: Receipt | str,
    status: Status,
    result: str | None,
    result_type: str | None,
    error_type: str | None,
    started_at: str | None,
    ended_at: str,
    replay_of: str | None = None,
    suspended: bool = False,
) -> bytes:
    """Say what became of an authorised call (records.md, Outcome).

    ``authorization`` is where it stands or, while nobody knows that, the invocation's id.
    ``result`` is a commitment (hex), or None where the result has no canonical form; then
    ``result_type`` still names its type. ``replay_of`` is the invocation whose result was handed
    out in the place of this one's. A call that is ``suspended`` goes on when it is made again.
    """
    predicate: dict[str, object] = {
        "authorization": None,
        "status": status,
        "result": result,
        "result_type": result_type,
        "error_type": error_type,
        "started_at": started_at,
        "ended_at": ended_at,
    }
    if replay_of is not None:
        predicate["replay_of"] = replay_of
    if suspended:
        predicate["suspended"] = True
    if isinstance(authorization, Receipt):
        predicate["authorization"] = {"shard": authorization.shard, "index": authorization.index}
    else:
        predicate["invocation_id"] = authorization
    return dsse.statement("outcome", invocation_sha256, "invocation", predicate)


def outcome(
    statement: Envelope,
    about: Summary,
    result: str | None,
    *,
    attachments: tuple[Attachment, ...] = (),
) -> Record:
    """Keep the agent's signed statement of a call's outcome; ``about`` summarises it.

    ``result`` is the commitment (hex) that the statement makes.
    """
    members = {
        "kind": "outcome",
        "at": about.at,
        "statement": statement.as_json(),
        "copies": _copies(attachments, result),
    }
    return _record(members, about, attachments)


def resolution(admin: Signer, call: CallPlace, *, ran: bool, note: str, at: str) -> Record:
    """State, for a call in doubt, whether its tool ran; a person found out, the admin key signs."""
    return _of_call("resolution", admin, call, {"ran": ran, "note": note}, at=at)


def erasure(admin: Signer, call: CallPlace, *, note: str, at: str) -> Record:
    """State that what stood beside a call's entries (arguments, input, result) is erased."""
    return _of_call("erasure", admin, call, {"note": note}, at=at)


def _copies(attachments: Sequence[Attachment], *stated: str | None) -> dict[str, object]:
    """Return the commitments of what is kept under others than the ones that were stated."""
    return {kept.role: kept.commitment for kept in attachments if kept.commitment not in stated}


def _of_call(
    kind: str, admin: Signer, call: CallPlace, said: Mapping[str, object], *, at: str
) -> Record:
    place = {"shard": call.shard, "index": call.index}
    predicate = {"invocation_id": call.invocation_id, "authorization": place, **said}
    statement = dsse.statement(kind, call.invocation_sha256, "invocation", predicate)
    members = {"kind": kind, "at": at, "statement": dsse.seal(statement, admin).as_json()}
    return _record(members, Summary(kind, at, call.invocation_id))


def _signed(kind: str, at: str, statement: bytes, signer: Signer) -> Record:
    sealed = dsse.seal(statement, signer)
    return _record({"kind": kind, "at": at, "statement": sealed.as_json()})


def _record(
    members: Mapping[str, object],
    about: Summary | None = None,
    attachments: tuple[Attachment, ...] = (),
) -> Record:
    body = canonical.dumps_record(members)
    if len(body) > canonical.MAX_BYTES:
        message = f"a {members['kind']} entry of {len(body)} bytes is too long to be read again"
        raise EncodeError(message, code="entry.too_large")
    return Record(body, about or Summary(str(members["kind"]), str(members["at"])), attachments)
