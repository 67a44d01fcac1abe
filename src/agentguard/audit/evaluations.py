"""Evaluations in the log: what the policy decided about a call that nobody made.

The issuer signs the statement, of a kind of its own (``urn:agentguard:evaluation:v1``). No reader
takes such a statement for an invocation, which an agent instance signs. ``contents.py`` compares an
evaluation with the entries before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agentguard.audit import statements
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.records import Record
from agentguard.audit.summary import Summary
from agentguard.call.decision import Decision
from agentguard.call.invocation import REFUSED_CHAIN, call_digest, is_proved
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, EncodeError, VerificationError
from agentguard.identity.credential import agent_name
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Signer

KIND: Final = "evaluation"
"""The kind of the entry, and of the statement."""

MAX_STATEMENT: Final = 128 * 1024
"""The most bytes of a statement: whoever asks for evaluations makes the log grow."""

_ID: Final = re.compile(r"[0-9a-f]{32}")
_CALL_MEMBERS: Final = (
    "agent",
    "principal",
    "chain_sha256",
    "token_jti",
    "tool",
    "resource",
    "arguments",
    "task_id",
)
"""The members that an evaluation has in common with an invocation."""


class Basis(NamedTuple):
    """What an evaluation rests on: configuration, policy and mode, and who asked.

    ``policy_sha256`` and ``engine`` are None where the policy was not asked, and the digest also
    where the engine does not know it. ``client`` is the name in ``[clients]`` of the program that
    asked for the agent, None for the agent's own process.
    """

    config_sha256: str
    policy_sha256: str | None
    engine: Mapping[str, str] | None
    mode: str
    client: str | None = None


class LoggedEvaluation(NamedTuple):
    """The content of an evaluation's statement.

    ``predicate`` has all members (records.md, "Evaluation"). ``call_sha256`` is the call digest,
    which no call has, since each evaluation has a salt of its own. ``sha256`` is the digest of the
    payload. Both are in hex.
    """

    predicate: Mapping[str, JSON]
    call_sha256: str
    sha256: str
    evaluation_id: str | None
    agent: str
    principal: str
    chain_sha256: str | None
    tool: str
    resource: str | None
    task_id: str | None
    decision: str
    code: str
    reasons: tuple[str, ...]
    mode: str
    config_sha256: str
    policy_sha256: str | None
    client: str | None
    at: str

    @property
    def is_proved(self) -> bool:
        """Whether signatures prove for whom the call is; else ``principal`` is only claimed."""
        return is_proved(self.predicate)

    @property
    def summary(self) -> Summary:
        """The summary of the entry."""
        return Summary(
            KIND,
            self.at,
            agent=self.agent,
            principal=self.principal,
            tool=self.tool,
            decision=self.decision,
            task_id=self.task_id,
        )


def evaluation(
    issuer: Signer,
    call: Mapping[str, Any],
    decision: Decision,
    basis: Basis,
    *,
    name: str,
    actors: tuple[str, ...],
    at: str,
) -> tuple[Record, bytes]:
    """Build the entry of an evaluation; return it with the signed statement as JSON.

    ``call`` is the predicate of the invocation that nobody signs, ``name`` the agent's name, and
    ``actors`` those of the chain. Raises ``EncodeError`` (``entry.too_large``), and what the
    issuer's signer raises.
    """
    predicate: dict[str, Any] = {
        **{member: call[member] for member in (*_CALL_MEMBERS, REFUSED_CHAIN) if member in call},
        "evaluation_id": call["invocation_id"],
        "at": at,
        "decision": decision.outcome,
        "code": decision.code,
        "reasons": list(decision.reasons),
        "requirements": [one.as_json() for one in decision.requirements],
        **basis._asdict(),
    }
    payload = dsse.statement(KIND, _digest(name, predicate, actors), "call", predicate)
    if len(payload) > MAX_STATEMENT:
        message = f"an evaluation of {len(payload)} bytes is too long: {MAX_STATEMENT} at most"
        raise EncodeError(message, code="entry.too_large")
    sealed = dsse.seal(payload, issuer).as_json()
    body = canonical.dumps_record({"kind": KIND, "at": at, "statement": sealed})
    read = _read(payload)
    return Record(body, read.summary), canonical.dumps(sealed)


def read_evaluation(entry: Entry) -> LoggedEvaluation:
    """Read an evaluation entry, unverified; raises ``DecodeError`` or ``VerificationError``."""
    statements.read_statement(entry)
    read = _read(Envelope.parse(entry.members["statement"]).payload)
    if read.at != entry.at:
        raise DecodeError("an evaluation of another time than its entry", code="entry.malformed")
    return read


def check_evaluation(
    entry: Entry, trust: TrustDocument, at: int, *, signatures: bool = True
) -> LoggedEvaluation:
    """Return an evaluation whose statement the issuer has signed.

    ``at`` is in seconds since the epoch. Raises ``DecodeError`` or ``VerificationError``.
    """
    statements.check_signed_by("issuer", entry, trust, at, signatures=signatures)
    return read_evaluation(entry)


def check_chain(read: LoggedEvaluation, chain: Chain | None, trust: TrustDocument, at: int) -> None:
    """Check an evaluation against the verified chain that it names; None without a chain.

    Raises ``VerificationError``.
    """
    name = agent_name(read.agent)
    if name is None:
        raise _mismatch("it names no agent instance")
    if chain is None:
        may_run = read.decision != "deny"
        statements.check_without_chain(read.predicate, name, trust, at, may_run=may_run)
    elif REFUSED_CHAIN in read.predicate:
        raise _mismatch("it is under a chain, and under a delegation that was refused")
    else:
        chain.check(at)
        problem = chain.mismatch(read.principal, read.agent, read.task_id)
        if problem is not None:
            raise _mismatch(problem)
    actors = tuple(chain.actors) if chain is not None else ()
    if _digest(name, read.predicate, actors) != read.call_sha256:
        raise _mismatch("it does not have its call digest")


def verify_evaluation(statement: bytes, trust: TrustDocument) -> LoggedEvaluation:
    """Return what a signed evaluation says, after the check of the issuer's signature.

    ``statement`` is that of an ``Evaluation``. The check needs no log: the issuer of ``trust``
    vouches for the content, as of the time ``at`` in the statement. Whoever has stolen a key can
    state an older time: the entry in the log shows the real order. An evaluation is no
    authorization of a call. Raises ``DecodeError`` and ``VerificationError``.
    """
    members: dict[str, JSON] = {"statement": canonical.loads(statement)}
    read = _read(Envelope.parse(members["statement"]).payload)
    statements.check_signed_by(
        "issuer", Entry(KIND, read.at, members), trust, parse_time(read.at), signatures=True
    )
    return read


def _read(payload: bytes) -> LoggedEvaluation:
    """Read the payload of a statement; raises ``DecodeError``."""
    statement = dsse.parse_statement(payload, KIND)
    match statement.predicate:
        case {
            "agent": str(agent),
            "principal": str(principal),
            "chain_sha256": str() | None as chain,
            "token_jti": str() | None,
            "tool": {"name": str(tool), "digest": str(), "origin": str()},
            "resource": str() | None as resource,
            "arguments": str() | None as arguments,
            "task_id": str() | None as task_id,
            "evaluation_id": str() | None as evaluation_id,
            "at": str(at),
            "decision": "allow" | "deny" | "approval" as decision,
            "code": str(code),
            "reasons": [*reasons],
            "requirements": [*_requirements],
            "config_sha256": str(config),
            "policy_sha256": str() | None as policy,
            "engine": engine,
            "mode": "enforce" | "observe" as mode,
            "client": str() | None as client,
            **others,
        } if (
            not others.keys() - {REFUSED_CHAIN}
            and (evaluation_id is None or _ID.fullmatch(evaluation_id))
            and all(one is None or canonical.is_sha256(one) for one in (chain, arguments))
            and (isinstance(engine, dict) or (engine is None and decision == "deny"))
        ):
            return LoggedEvaluation(
                statement.predicate,
                statement.subject_sha256,
                canonical.sha256_hex(payload),
                evaluation_id,
                agent,
                principal,
                chain,
                tool,
                resource,
                task_id,
                str(decision),
                code,
                tuple(map(str, reasons)),
                str(mode),
                config,
                policy,
                client,
                at,
            )
    raise DecodeError("not a statement of an evaluation", code="entry.malformed")


def _digest(name: str, predicate: Mapping[str, Any], actors: tuple[str, ...]) -> str:
    """Return the call digest of an evaluation, which has no call site."""
    return call_digest(name, {**predicate, "call_site": None}, actors)


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(f"an evaluation: {problem}", code="statement.mismatch")
