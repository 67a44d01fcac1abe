"""One call as the log has it: its authorization and its outcome, read into values.

What stands in the two entries, and whether a guard writes that, is looked at here. Whether what
they say is signed by whom they name, and agrees with what stands elsewhere, is ``statements.py``'s
business; of the answers of people ``approvals.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, get_args

from agentguard.audit import summary
from agentguard.audit.entry import Entry, Status
from agentguard.errors import DecodeError
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope

_INVOCATION_ID: Final = re.compile(r"[0-9a-f]{32}")
_STATUSES: Final = frozenset(get_args(Status))
_COPIES_OF_CALL: Final = frozenset({"arguments", "input"})
_COPIES_OF_OUTCOME: Final = frozenset({"result"})

Commitments = Mapping[str, JSON]
"""What an entry commits to: the SHA-256 (hex) by role, null where there is nothing."""


class Evaluation(NamedTuple):
    """What a policy's server says of one evaluation: each text is its own word.

    ``decision_id`` is under which its own log has it, ``version`` is the server's, ``revisions``
    are those of its bundles by name.
    """

    decision_id: str | None
    version: str | None
    revisions: Mapping[str, str | None]

    @classmethod
    def parse(cls, value: JSON | Mapping[str, JSON]) -> Evaluation:
        """Read the members of an entry's ``evaluation``; raises ``DecodeError``."""
        match value:
            case {
                "decision_id": str() | None as decision_id,
                "version": str() | None as version,
                "revisions": {**revisions},
                **others,
            } if not others:
                named: dict[str, str | None] = {
                    str(bundle): revision
                    for bundle, revision in revisions.items()
                    if revision is None or isinstance(revision, str)
                }
                if len(named) == len(revisions):
                    return cls(decision_id, version, named)
        raise DecodeError("not what a server says of an evaluation", code="entry.malformed")

    def as_json(self) -> dict[str, JSON]:
        """Return the members of an entry's ``evaluation``."""
        return {**self._asdict(), "revisions": dict(self.revisions)}


class Authorization(NamedTuple):
    """An authorization entry that was read: who called what, and the answer.

    ``commitments`` are those of what is kept beside it: those that were stated, or of copies.
    Where the ``decision`` was not ``enforced``, the policy was only observed (``mode``), and the
    call ran whatever it said.
    """

    sealed: Envelope
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
    evaluation: Evaluation | None
    mode: str
    enforced: bool

    @property
    def allowed(self) -> bool:
        """True when the call may run."""
        return self.decision == "allow" or not self.enforced

    @property
    def effect(self) -> str:
        """The decision where it was enforced, else ``summary.OBSERVED``."""
        return self.decision if self.enforced else summary.OBSERVED

    @property
    def signed(self) -> bool:
        """False for a refusal whose signer failed: the log alone says that the agent asked."""
        return bool(self.sealed.signatures)

    @property
    def chain_sha256(self) -> str | None:
        """The digest of the chain of delegation; None on the agent's own authority."""
        named = self.predicate.get("chain_sha256")
        return named if named is None or isinstance(named, str) else str(named)


class Outcome(NamedTuple):
    """An outcome entry that was read: of which invocation, and the agent's statement.

    ``invocation_id`` is what the statement says of its call where its place was not known yet.
    """

    sealed: Envelope
    invocation_sha256: str
    invocation_id: str | None
    predicate: Mapping[str, JSON]
    status: str
    commitments: Commitments

    @property
    def replay_of(self) -> str | None:
        """The call whose result was handed out in the place of this one's, which did not run."""
        named = self.predicate.get("replay_of")
        return named if named is None else str(named)


def read_authorization(parsed: Entry) -> Authorization:
    """Read an authorization entry; raises ``DecodeError``."""
    members = parsed.members
    copies = _read_copies(parsed, _COPIES_OF_CALL)
    sealed = Envelope.parse(members["invocation"])
    statement = dsse.parse_statement(sealed.payload, "invocation")
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
    for name in ("invocation_id", "task_id", "traceparent"):  # what it is searched for by
        _text_or_none(predicate, name)
    return Authorization(
        sealed,
        canonical.sha256_hex(sealed.payload),
        statement.subject_sha256,
        predicate,
        _id_or_none(predicate),
        _text(predicate, "agent"),
        _text(predicate, "principal"),
        _text(tool, "name"),
        decision,
        _text(members, "code"),
        tuple([str(reason) for reason in reasons]),
        {"arguments": predicate.get("arguments"), "input": members["input"], **copies},
        _text(members, "config_sha256"),
        engine,
        _text_or_none(members, "policy_sha256"),
        _read_evaluation(members),
        *_read_mode(members),
    )


def read_outcome(parsed: Entry) -> Outcome:
    """Read an outcome entry; raises ``DecodeError``."""
    sealed = Envelope.parse(parsed.members["statement"])
    statement = dsse.parse_statement(sealed.payload, "outcome")
    status = statement.predicate.get("status")
    if not isinstance(status, str) or status not in _STATUSES:
        raise DecodeError(f"{status!r} is no status of an outcome", code="entry.malformed")
    if _id_or_none(statement.predicate, "replay_of") is not None and status != "not_run":
        message = "an outcome of a call that ran, and of one whose result was handed out again"
        raise DecodeError(message, code="entry.malformed")
    copies = _read_copies(parsed, _COPIES_OF_OUTCOME)
    commitments: Commitments = {"result": statement.predicate.get("result"), **copies}
    invocation_id = _id_or_none(statement.predicate)
    return Outcome(
        sealed,
        statement.subject_sha256,
        invocation_id,
        statement.predicate,
        status,
        commitments,
    )


def _read_evaluation(members: Mapping[str, JSON]) -> Evaluation | None:
    """Return what a server has said of the evaluation, None where none was asked."""
    if "evaluation" not in members:
        return None
    if members["engine"] is None:
        raise _lacking("engine, of whose evaluation it tells")
    return Evaluation.parse(members["evaluation"])


def _read_mode(members: Mapping[str, JSON]) -> tuple[str, bool]:
    """Return in which mode the policy was asked, and whether the decision was enforced.

    What is enforced lets the call run or refuses it; an approval that is needed leaves a request.
    Without a policy that was asked, or in the mode observe, it can only be a refusal, and what is
    not enforced is a policy's answer. Neither rests on what people say.
    """
    asked, decision = members["engine"] is not None, members["decision"]
    alone = members["roster_sha256"] is None and members["approvals"] == []
    match members["mode"], members["enforced"]:
        case ("enforce" | "observe") as mode, True if decision == "deny" and alone:
            return str(mode), True
        case "enforce", True if decision != "approval" and asked:
            return "enforce", True
        case "observe", False if asked and alone:
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
    """Return an invocation's id, which is 16 bytes in hex: it goes into file names and commands."""
    value = predicate.get(name)
    if value is None or (isinstance(value, str) and _INVOCATION_ID.fullmatch(value)):
        return value
    raise DecodeError("an invocation's id is 32 lower-case hex digits", code="entry.malformed")


def _lacking(what: str) -> DecodeError:
    return DecodeError(f"the authorization entry lacks its {what}", code="entry.malformed")


def _read_copies(parsed: Entry, roles: frozenset[str]) -> Mapping[str, str]:
    """Return the commitments of the copies of a call with redactions, by role."""
    members = parsed.members["copies"]
    if isinstance(members, dict) and roles.issuperset(members):
        copies = {role: value for role, value in members.items() if isinstance(value, str)}
        if len(copies) == len(members):
            return copies
    raise DecodeError("copies holds commitments by role", code="entry.malformed")
