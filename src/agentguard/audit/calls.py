"""Reads the two entries of a call, its authorization and its outcome, into values.

The readers here refuse entries that no guard writes. ``statements.py`` checks the signatures and
the agreement with other entries, and ``approval_checks.py`` the answers of people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, get_args

from agentguard.audit import summary
from agentguard.audit.entry import Entry, Status
from agentguard.call.client import Client
from agentguard.call.invocation import REFUSED_CHAIN, is_proved
from agentguard.errors import DecodeError
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope

_INVOCATION_ID: Final = re.compile(r"[0-9a-f]{32}")
_STATUSES: Final = frozenset(get_args(Status))
_COPIES_OF_CALL: Final = frozenset({"arguments", "input"})
_COPIES_OF_OUTCOME: Final = frozenset({"result"})

Commitments = Mapping[str, JSON]
"""The commitments of an entry: SHA-256 (hex) by role, null for no data."""


class EvaluationReport(NamedTuple):
    """The report of a policy server on one evaluation; nobody else vouches for these texts.

    ``decision_id`` is the evaluation's id in the server's own log, ``version`` the version of the
    server, and ``revisions`` the revisions of its bundles by name.
    """

    decision_id: str | None
    version: str | None
    revisions: Mapping[str, str | None]

    @classmethod
    def parse(cls, value: JSON | Mapping[str, JSON]) -> EvaluationReport:
        """Read the members of an entry's ``evaluation``; raises ``DecodeError``."""
        match value:
            case {
                "decision_id": str() | None as decision_id,
                "version": str() | None as version,
                "revisions": {**revisions},
                **others,
            } if not others:
                by_bundle: dict[str, str | None] = {
                    str(bundle): revision
                    for bundle, revision in revisions.items()
                    if revision is None or isinstance(revision, str)
                }
                if len(by_bundle) == len(revisions):
                    return cls(decision_id, version, by_bundle)
        raise DecodeError("not what a server says of an evaluation", code="entry.malformed")

    def as_json(self) -> dict[str, JSON]:
        """Return the members of an entry's ``evaluation``."""
        return {**self._asdict(), "revisions": dict(self.revisions)}


class Authorization(NamedTuple):
    """The content of the entry of a call: the call, and the decision on the call.

    ``commitments`` cover the data beside the entry: the data in the signed statement, or redacted
    copies. Where the ``decision`` was not ``enforced``, the ``mode`` was observe, and the call ran
    in spite of the decision. ``client`` is None for a call in the process of its guard.
    """

    envelope: Envelope
    invocation_sha256: str
    call_sha256: str
    predicate: Mapping[str, JSON]
    invocation_id: str | None
    agent: str
    principal: str
    tool: str
    decision: str
    code: str
    reasons: tuple[str, ...]
    commitments: Commitments
    config_sha256: str
    engine: Mapping[str, JSON] | None
    policy_sha256: str | None
    evaluation: EvaluationReport | None
    mode: str
    enforced: bool
    client: Client | None

    @property
    def allowed(self) -> bool:
        """Whether the call may run."""
        return self.decision == "allow" or not self.enforced

    @property
    def effect(self) -> str:
        """The decision if enforced, else ``summary.OBSERVED``."""
        return self.decision if self.enforced else summary.OBSERVED

    @property
    def signed(self) -> bool:
        """Whether the agent signed the call; false for a refusal whose signer failed."""
        return bool(self.envelope.key_ids)

    @property
    def inside(self) -> str | None:
        """The id of the call whose tool made this call, by the agent's word; None without one."""
        return _id_or_none(self.predicate, "inside")

    @property
    def origin(self) -> str | None:
        """Where the tool comes from (``module:qualname``, ``mcp:<server>``); None if not said."""
        tool = self.predicate.get("tool")
        origin = tool.get("origin") if isinstance(tool, dict) else None
        return origin if isinstance(origin, str) else None

    @property
    def chain_sha256(self) -> str | None:
        """The digest of the chain of delegation; None on the agent's own authority."""
        digest = self.predicate.get("chain_sha256")
        return digest if digest is None else str(digest)

    @property
    def refused_chain(self) -> JSON:
        """The chain of a delegation that was refused; None for none, or where nothing proves it."""
        return self.predicate.get(REFUSED_CHAIN)

    @property
    def is_proved(self) -> bool:
        """Whether signatures prove for whom the call is; else ``principal`` is only claimed."""
        return is_proved(self.predicate)


class Outcome(NamedTuple):
    """The content of an outcome entry: the invocation's digest, and the agent's statement.

    ``invocation_id`` is in the statement where the agent did not know the authorization's place.
    """

    envelope: Envelope
    invocation_sha256: str
    invocation_id: str | None
    predicate: Mapping[str, JSON]
    status: str
    commitments: Commitments

    @property
    def replay_of(self) -> str | None:
        """The id of the earlier call whose result the agent got; this call did not run then."""
        invocation_id = self.predicate.get("replay_of")
        return invocation_id if invocation_id is None else str(invocation_id)


def read_authorization(entry: Entry) -> Authorization:
    """Read the entry of a call; raises ``DecodeError``."""
    members = entry.members
    copies = _read_copies(entry, _COPIES_OF_CALL)
    envelope = Envelope.parse(members["invocation"], may_be_joint=True)
    statement = dsse.parse_statement(envelope.payload, "invocation")
    predicate = statement.predicate
    tool, decision = predicate.get("tool"), members["decision"]
    reasons, engine = members["reasons"], members["engine"]
    if (
        not isinstance(tool, dict)
        or decision not in ("allow", "deny", "approval")
        or not isinstance(reasons, list)
        or not (engine is None or isinstance(engine, dict))
    ):
        raise _lacking("tool, decision, reasons or engine")
    for name in ("invocation_id", "task_id", "traceparent"):  # the columns of the search
        _text_or_none(predicate, name)
    _id_or_none(predicate, "inside")
    return Authorization(
        envelope,
        canonical.sha256_hex(envelope.payload),
        statement.subject_sha256,
        predicate,
        _id_or_none(predicate),
        _text(predicate, "agent"),
        _text(predicate, "principal"),
        _text(tool, "name"),
        decision,
        _text(members, "code"),
        tuple(map(str, reasons)),
        {"arguments": predicate.get("arguments"), "input": members["input"], **copies},
        _text(members, "config_sha256"),
        engine,
        _text_or_none(members, "policy_sha256"),
        _read_evaluation(members),
        *_read_mode(members),
        Client.parse(members["client"]) if "client" in members else None,
    )


def read_outcome(entry: Entry) -> Outcome:
    """Read an outcome entry; raises ``DecodeError``."""
    envelope = Envelope.parse(entry.members["statement"], may_be_joint=True)
    statement = dsse.parse_statement(envelope.payload, "outcome")
    status = statement.predicate.get("status")
    if not isinstance(status, str) or status not in _STATUSES:
        raise DecodeError(f"{status!r} is no status of an outcome", code="entry.malformed")
    if _id_or_none(statement.predicate, "replay_of") is not None and status != "not_run":
        message = "an outcome of a call that ran, and of one whose result was handed out again"
        raise DecodeError(message, code="entry.malformed")
    copies = _read_copies(entry, _COPIES_OF_OUTCOME)
    commitments: Commitments = {"result": statement.predicate.get("result"), **copies}
    invocation_id = _id_or_none(statement.predicate)
    return Outcome(
        envelope,
        statement.subject_sha256,
        invocation_id,
        statement.predicate,
        status,
        commitments,
    )


def _read_evaluation(members: Mapping[str, JSON]) -> EvaluationReport | None:
    """Return the server's report on the evaluation, None without a server."""
    if "evaluation" not in members:
        return None
    if members["engine"] is None:
        raise _lacking("engine, of whose evaluation it tells")
    return EvaluationReport.parse(members["evaluation"])


def _read_mode(members: Mapping[str, JSON]) -> tuple[str, bool]:
    """Return the policy's mode, and whether the decision was enforced.

    An enforced decision allows or denies the call; a required approval is a request's entry and no
    authorization. Without a policy's answer, or in the mode observe, an enforced decision is a
    denial. A decision that was not enforced is a policy's answer in the mode observe. Neither of
    these rests on the answers of people.
    """
    has_engine, decision = members["engine"] is not None, members["decision"]
    has_no_answers = members["roster_sha256"] is None and members["approvals"] == []
    match members["mode"], members["enforced"]:
        case ("enforce" | "observe") as mode, True if decision == "deny" and has_no_answers:
            return str(mode), True
        case "enforce", True if decision != "approval" and has_engine:
            return "enforce", True
        case "observe", False if has_engine and has_no_answers:
            return "observe", False
    raise _lacking("mode, or has an answer that nobody gives in it")


def _text(members: Mapping[str, JSON], name: str) -> str:
    value = members.get(name)
    if isinstance(value, str):
        return value
    raise _lacking(name)


def _text_or_none(members: Mapping[str, JSON], name: str) -> str | None:
    value = members.get(name, 0)
    if value is None or isinstance(value, str):
        return value
    raise _lacking(name)


def _id_or_none(predicate: Mapping[str, JSON], name: str = "invocation_id") -> str | None:
    """Return an invocation's id, 32 lower-case hex digits, which is safe in a file's name."""
    value = predicate.get(name)
    if value is None or (isinstance(value, str) and _INVOCATION_ID.fullmatch(value)):
        return value
    raise DecodeError("an invocation's id is 32 lower-case hex digits", code="entry.malformed")


def _lacking(what: str) -> DecodeError:
    return DecodeError(f"the entry of a call lacks its {what}", code="entry.malformed")


def _read_copies(entry: Entry, roles: frozenset[str]) -> Mapping[str, str]:
    """Return by role the commitments of the redacted copies of a call."""
    members = entry.members["copies"]
    if members == {}:  # the usual case
        return {}
    if isinstance(members, dict) and roles.issuperset(members):
        copies = {role: value for role, value in members.items() if isinstance(value, str)}
        if len(copies) == len(members):
            return copies
    raise DecodeError("copies holds commitments by role", code="entry.malformed")
