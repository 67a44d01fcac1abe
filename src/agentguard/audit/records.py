"""New entries of the audit log: one function builds the entry of each kind.

``Record`` is an entry on its way into the log, with the data that is stored beside the log under a
commitment. ``entry.py`` reads entries. The formats stand in log.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.roster import Roster
from agentguard.approvals.status import RequestEnd
from agentguard.audit import summary
from agentguard.audit.entry import Attachment, CallPlace, LogPlace, Mode, Status
from agentguard.audit.running_call import CallName
from agentguard.audit.summary import Summary
from agentguard.call.client import Client
from agentguard.call.decision import Decision
from agentguard.call.releases import ReleaseSubject
from agentguard.delegation.chain import Chain
from agentguard.errors import EncodeError
from agentguard.identity.credential import Credential
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON, Fragment
from agentguard.signing.dsse import Envelope, JointSignature
from agentguard.signing.keys import PublicKey, Signer

_MAX_OUTCOME: Final = canonical.MAX_BYTES // 2
"""Bytes of the longest statement of an outcome: an entry holds it in base64, and its signature."""


class Record(NamedTuple):
    """A new entry for the log: the canonical bytes, the summary, and the attachments."""

    body: bytes
    summary: Summary
    attachments: tuple[Attachment, ...] = ()


class UnsignedOutcome(NamedTuple):
    """The outcome of a call before the agent instance signs it, with its own signer.

    ``sha256`` (hex) is the digest of the statement's ``payload``, and ``result`` the commitment
    (hex) in the statement.
    """

    payload: bytes
    sha256: str
    signer: Signer
    summary: Summary
    result: str | None
    attachments: tuple[Attachment, ...] = ()

    def signed(self, joint: JointSignature | None = None) -> Record:
        """Return the entry, signed jointly with other statements, or without ``joint`` alone.

        Raises what the signer raises.
        """
        if joint is None:
            envelope = dsse.seal(self.payload, self.signer)
        else:
            envelope = Envelope(dsse.PAYLOAD_TYPE, self.payload, joint=joint)
        members = {
            "kind": "outcome",
            "at": self.summary.at,
            "statement": envelope.as_json(),
            "copies": _copies(self.attachments, self.result),
        }
        return new_record(members, self.summary, self.attachments)


class LoggedRuling(NamedTuple):
    """The content of the entry of a call beside the invocation.

    ``input_commitment`` (hex) and ``engine`` are None where the agent lacked the authority and no
    policy ran. ``policy_sha256`` is None where the engine does not know the policy's digest.
    ``approvals`` are the answers of people on which the decision rests, and ``roster_sha256`` is
    the digest of the roster with these people. ``evaluation`` is what an engine reports about the
    evaluation, None for no report. In the ``mode`` observe, a decision is not ``enforced``: the
    call ran in spite of the decision. ``client`` is who made the call through a guard server.
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
    client: Client | None = None


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
    """Build the entry with which a writer opens a shard, or opens the shard again.

    The issuer states the shard's origin and the key that signs the shard's checkpoints. ``heads``
    are the newest checkpoints of the other shards, as signed notes. From then on the verifier
    detects a truncation of these shards.
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


def key(issuer: Signer, members: Mapping[str, JSON], *, at: str) -> Record:
    """Build the issuer's announcement of a key of the trust document, with its members there."""
    statement = dsse.statement("key", canonical.digest(members), "key", members)
    return _signed("key", at, statement, issuer)


def policy(
    engine: Mapping[str, str], policy_sha256: str | None, files: Mapping[str, str], *, at: str
) -> Record:
    """Build the entry of the policy in force from now on; ``files`` are ``{path: sha256}``."""
    encoded_files = Fragment(canonical.dumps(dict(files)))  # a path may hold any character
    return new_record(
        {
            "kind": "policy",
            "at": at,
            "engine": engine,
            "policy_sha256": policy_sha256,
            "files": encoded_files,
        }
    )


def config(encoded: bytes, *, at: str) -> Record:
    """Build the entry of the configuration (canonical JSON without secrets) from now on."""
    digest = canonical.sha256_hex(encoded)
    return new_record(
        {"kind": "config", "at": at, "config_sha256": digest, "config": Fragment(encoded)}
    )


def roster(issuer: Signer, trust_domain: str, approvers: Roster, *, at: str) -> Record:
    """Build the issuer's statement of who may approve from now on."""
    predicate: dict[str, object] = {"trust_domain": trust_domain, **approvers.as_json()}
    statement = dsse.statement("roster", approvers.sha256, "roster", predicate)
    return _signed("roster", at, statement, issuer)


def request(request: ApprovalRequest, chain_sha256: str | None, *, at: str) -> Record:
    """Build the entry of a request for an approval, without the arguments of the call.

    ``chain_sha256`` names the delegation under which the agent asks, None for its own authority.
    """
    members = {
        "kind": "request",
        "at": at,
        **_about_request(request),
        "call_site": request.call_site,
        "resource": request.resource,
        "requirements": [one.as_json() for one in request.requirements],
        "chain_sha256": chain_sha256,
    }
    return new_record(members, _summary_of("request", request, at))


def request_end(
    request: ApprovalRequest,
    end: RequestEnd,
    answers: Sequence[Envelope],
    roster_sha256: str,
    *,
    at: str,
) -> Record:
    """Build the entry of the end of a request whose call nobody has made again.

    ``answers`` are the valid answers by then, of people in the roster with that digest.
    """
    members = {
        "kind": "request_end",
        "at": at,
        **_about_request(request),
        "end": end,
        "roster_sha256": roster_sha256 if answers else None,
        "approvals": [answer.as_json() for answer in answers],
    }
    return new_record(members, _summary_of("request_end", request, at))


def _about_request(request: ApprovalRequest) -> dict[str, object]:
    return {
        "request_id": request.request_id,
        "call_digest": request.call_digest,
        "agent": request.agent,
        "principal": request.principal,
        "tool": {"name": request.tool, "digest": request.tool_digest},
        "task_id": request.task_id,
        "requirement_sha256": request.requirement_sha256,
        "displayed_sha256": request.displayed_sha256,
        "expires_at": request.expires_at,
        **({} if request.traceparent is None else {"traceparent": request.traceparent}),
    }


def _summary_of(
    kind: Literal["request", "request_end"], request: ApprovalRequest, at: str
) -> Summary:
    return summary.of_request(
        kind,
        at=at,
        agent=request.agent,
        principal=request.principal,
        tool=request.tool,
        task_id=request.task_id,
        traceparent=request.traceparent,
    )


def identity(credential: Credential, *, at: str) -> Record:
    """Build the entry of a credential (a compact JWS) of an agent instance."""
    members = {"kind": "identity", "at": at, "credential": credential.token}
    return new_record(members, summary.of_identity(credential.uri, at=at))


def delegation(chain: Chain, *, at: str) -> Record:
    """Build the entry of a chain of delegation: the signed hops, and their credentials."""
    members = {"kind": "delegation", "at": at, "chain": Fragment(canonical.dumps(chain.as_json()))}
    return new_record(members, summary.of_delegation(chain.leaf, at=at))


def revocation(admin: Signer, name: str, *, note: str, at: str) -> Record:
    """Build the administrator's revocation of a name (see ``Authority.names``)."""
    predicate: dict[str, object] = {"name": name, "note": note}
    subject = canonical.sha256_hex(name.encode())
    statement = dsse.statement("revocation", subject, "name", predicate)
    return _signed("revocation", at, statement, admin)


def freeze(
    admin: Signer, trust_domain: str, *, frozen: bool, sequence: int, note: str, at: str
) -> Record:
    """Build the administrator's freeze of all calls, or the thaw; the highest number counts."""
    predicate: dict[str, object] = {"frozen": frozen, "sequence": sequence, "note": note}
    subject = canonical.sha256_hex(trust_domain.encode())
    statement = dsse.statement("freeze", subject, "trust domain", predicate)
    return _signed("freeze", at, statement, admin)


def adoption(
    admin: Signer,
    trust_domain: str,
    *,
    lost: Sequence[Mapping[str, object]],
    unanchored: Sequence[Mapping[str, object]] = (),
    note: str,
    at: str,
) -> Record:
    """Build the administrator's adoption of a copy, or of a state that is behind its anchor."""
    known: dict[str, object] = {"lost": list(lost), "unanchored": list(unanchored)}
    predicate = {**known, "note": note}
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
    """Build the entry of the decision on one signed invocation, which precedes the tool's run.

    ``predicate`` belongs to the invocation's statement. ``journal`` (32 hex digits) is the name of
    a call that runs once, however often an agent makes the call; the entry of a refused call has no
    such name. ``replay_of`` is the invocation that this call repeats: the agent gets its result
    again, or is refused.
    """
    decision = ruling.decision
    members: dict[str, object] = {
        "kind": "call",
        "at": at,
        "invocation": invocation.as_json(),
        "input": ruling.input_commitment,
        "decision": decision.outcome,
        "code": decision.code,
        "reasons": decision.reasons,
        "requirements": [one.as_json() for one in decision.requirements],
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
    if ruling.client is not None:
        members["client"] = ruling.client.as_json()
    if journal is not None and (decision.allowed or not ruling.enforced):
        members["journal"] = journal
    if replay_of is not None:
        members["replay_of"] = replay_of
    effect = decision.outcome if ruling.enforced else summary.OBSERVED
    call_summary = summary.of_call(predicate, at=at, decision=effect)
    return new_record(members, call_summary, attachments)


def secret(name: str, subject: ReleaseSubject, *, at: str) -> Record:
    """Build the entry of the release of a secret to a running call, which precedes the release.

    The entry has the name of the secret, and neither the value nor a digest of the value.
    """
    call = CallName.of(subject)
    members = {
        "kind": "secret",
        "at": at,
        "name": name,
        **call.members(),
    }
    return new_record(members, call.summary("secret", at))


def outcome_statement(  # noqa: PLR0913  the members of one statement
    invocation_sha256: str,
    *,
    authorization: LogPlace | str,
    status: Status,
    result: str | None,
    result_type: str | None,
    error_type: str | None,
    started_at: str | None,
    ended_at: str,
    replay_of: str | None = None,
    suspended: bool = False,
) -> bytes:
    """Return the payload of the agent's statement of a call's outcome (records.md, "Outcome").

    ``authorization`` is the place of the call's authorization or, while the place is not known,
    the invocation's id. ``result`` is a commitment (hex), or None where the result has no canonical
    form; ``result_type`` is then the name of the result's type. ``replay_of`` is the invocation
    whose result the agent got again. A ``suspended`` call continues when the agent makes the call
    again.
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
    if isinstance(authorization, LogPlace):
        predicate["authorization"] = {"shard": authorization.shard, "index": authorization.index}
    else:
        predicate["invocation_id"] = authorization
    return dsse.statement("outcome", invocation_sha256, "invocation", predicate)


def outcome(
    payload: bytes,
    signer: Signer,
    outcome_summary: Summary,
    result: str | None,
    *,
    attachments: tuple[Attachment, ...] = (),
) -> UnsignedOutcome:
    """Build the agent's statement of a call's outcome, which ``signer`` is yet to sign.

    ``result`` is the commitment (hex) in the statement. Raises ``EncodeError`` where no entry can
    hold the statement.
    """
    if len(payload) > _MAX_OUTCOME:
        message = f"the statement of an outcome has {len(payload)} bytes, {_MAX_OUTCOME} at most"
        raise EncodeError(message, code="entry.too_large")
    digest = canonical.sha256_hex(payload)
    return UnsignedOutcome(payload, digest, signer, outcome_summary, result, attachments)


def resolution(admin: Signer, call: CallPlace, *, ran: bool, note: str, at: str) -> Record:
    """Build the administrator's statement whether the tool of a call in doubt ran."""
    return _admin_record("resolution", admin, call, {"ran": ran, "note": note}, at=at)


def erasure(admin: Signer, call: CallPlace, *, note: str, at: str) -> Record:
    """Build the administrator's statement that a call's arguments, input and result are erased."""
    return _admin_record("erasure", admin, call, {"note": note}, at=at)


def _copies(attachments: Sequence[Attachment], *stated: str | None) -> dict[str, object]:
    """Return by role the commitments of attachments that the signed statement does not state."""
    return {one.role: one.commitment for one in attachments if one.commitment not in stated}


def _admin_record(
    kind: str, admin: Signer, call: CallPlace, content: Mapping[str, object], *, at: str
) -> Record:
    place = {"shard": call.shard, "index": call.index}
    predicate = {"invocation_id": call.invocation_id, "authorization": place, **content}
    statement = dsse.statement(kind, call.invocation_sha256, "invocation", predicate)
    members = {"kind": kind, "at": at, "statement": dsse.seal(statement, admin).as_json()}
    return new_record(members, Summary(kind, at, call.invocation_id))


def _signed(kind: str, at: str, statement: bytes, signer: Signer) -> Record:
    envelope = dsse.seal(statement, signer)
    return new_record({"kind": kind, "at": at, "statement": envelope.as_json()})


def new_record(
    members: Mapping[str, object],
    entry_summary: Summary | None = None,
    attachments: tuple[Attachment, ...] = (),
) -> Record:
    """Build an entry from its members; raises ``EncodeError`` (``entry.too_large``)."""
    body, kind, at = canonical.dumps_record(members), str(members["kind"]), str(members["at"])
    if len(body) > canonical.MAX_BYTES:
        message = f"an entry of the kind {kind} with {len(body)} bytes is too long to be read again"
        raise EncodeError(message, code="entry.too_large")
    return Record(body, entry_summary or Summary(kind, at), attachments)
