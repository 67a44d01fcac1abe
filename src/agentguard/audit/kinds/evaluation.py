"""What the policy decided about a call that nobody made, for whoever asked.

The issuer signs the statement, of a kind of its own (``urn:agentguard:evaluation:v1``). No reader
takes such a statement for an invocation, which an agent instance signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

from agentguard.audit import statements
from agentguard.audit.entry import Content, Here, Mode, Record, Signed, mismatch, parse_time
from agentguard.audit.summary import Summary
from agentguard.call.decision import Decision
from agentguard.call.invocation import REFUSED_CHAIN, call_digest, is_proved
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, EncodeError
from agentguard.identity.credential import agent_name
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing import canonical, declared, dsse
from agentguard.signing.declared import ABSENT, Absent, Declared, Id, Sha256
from agentguard.signing.keys import Signer

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier

MAX_STATEMENT: Final = 128 * 1024
"""The most bytes of a statement: whoever asks for evaluations makes the log grow."""

_CALL_MEMBERS: Final = (
    "agent",
    "principal",
    "chain_sha256",
    "token_jti",
    "tool",
    "resource",
    "arguments",
    "task_id",
    REFUSED_CHAIN,
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


class EvaluatedTool(Declared):
    """The tool of an evaluation, as in an invocation."""

    name: str
    digest: str
    origin: str


class Evaluated(Declared):
    """The predicate of an evaluation (records.md, "Evaluation")."""

    agent: str
    principal: str
    chain_sha256: Sha256 | None
    token_jti: str | None
    tool: EvaluatedTool
    resource: str | None
    arguments: Sha256 | None
    task_id: str | None
    evaluation_id: Id | None
    at: str
    decision: Literal["allow", "deny", "approval"]
    code: str
    reasons: tuple[str, ...]
    requirements: list[Any]
    config_sha256: str
    policy_sha256: str | None
    engine: dict[str, Any] | None
    mode: Mode
    client: str | None
    refused_chain: Any | Absent = ABSENT


class EvaluationEntry(Signed):
    """The policy's decision about a call that nobody made."""

    kind: ClassVar[str] = "evaluation"
    use: ClassVar[Use] = "issuer"
    subject_name: ClassVar[str] = "call"

    @classmethod
    def new(
        cls,
        issuer: Signer,
        call: Mapping[str, Any],
        decision: Decision,
        basis: Basis,
        *,
        name: str,
        actors: tuple[str, ...],
        at: str,
    ) -> tuple[Record, bytes]:
        """Return the entry, and the signed statement as JSON.

        ``call`` is the predicate of the invocation that nobody signs, ``name`` the agent's name,
        and ``actors`` those of the chain. Raises ``EncodeError`` (``entry.too_large``), and what
        the issuer's signer raises.
        """
        predicate: dict[str, Any] = {
            **{member: call[member] for member in _CALL_MEMBERS if member in call},
            "evaluation_id": call["invocation_id"],
            "at": at,
            "decision": decision.outcome,
            "code": decision.code,
            "reasons": list(decision.reasons),
            "requirements": [one.as_json() for one in decision.requirements],
            **basis._asdict(),
        }
        payload = dsse.statement(
            cls.kind, _digest(name, predicate, actors), cls.subject_name, predicate
        )
        if len(payload) > MAX_STATEMENT:
            message = f"an evaluation of {len(payload)} bytes is too long: {MAX_STATEMENT} at most"
            raise EncodeError(message, code="entry.too_large")
        entry = cls(at=at, statement=dsse.seal(payload, issuer).as_json())
        return entry.record(), canonical.dumps(entry.statement)

    @cached_property
    def evaluated(self) -> Evaluated:
        """What the statement says; raises ``DecodeError``."""
        return self.predicate(Evaluated)

    @property
    def call_sha256(self) -> str:
        """The call digest (hex), which no call has, since each evaluation has its own salt."""
        return self.stated.subject_sha256

    @property
    def sha256(self) -> str:
        """The digest of the statement's payload, in hex."""
        return canonical.sha256_hex(self.envelope.payload)

    @property
    def is_proved(self) -> bool:
        """Whether signatures prove for whom the call is; else ``principal`` is only claimed."""
        return is_proved(self.stated.predicate)

    @property
    def summary(self) -> Summary:
        """The columns of a decision."""
        said = self.evaluated
        return Summary(
            self.kind,
            self.at,
            agent=said.agent,
            principal=said.principal,
            tool=said.tool.name,
            decision=said.decision,
            task_id=said.task_id,
        )

    @property
    def words(self) -> str | None:
        """Why it was decided so."""
        return "; ".join(self.evaluated.reasons) or None

    def read(self) -> None:
        """Read the statement, of the entry's time and with an engine unless it denies."""
        if self.evaluated.engine is None and self.evaluated.decision != "deny":
            raise DecodeError("an evaluation without an engine denies", code="entry.malformed")
        if self.evaluated.at != self.at:
            message = "an evaluation of another time than its entry"
            raise DecodeError(message, code="entry.malformed")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature, and the evaluation against the entries before it."""
        log.verify_signed(self)
        said = self.evaluated
        log.require_announced(said.config_sha256, said.policy_sha256, said.mode)
        log.require_first(self.sha256, "the same evaluation stands in the log before")
        chain = None if said.chain_sha256 is None else log.chain(said.chain_sha256)
        self._check_authority(chain, log.trust, here.at)
        return Content(self.summary)

    def _check_authority(self, chain: Chain | None, trust: TrustDocument, at: int) -> None:
        """Check an evaluation against the verified chain that it names; None without a chain."""
        name = agent_name(self.evaluated.agent)
        if name is None:
            raise mismatch("an evaluation names no agent instance")
        predicate = {**self.stated.predicate, "call_site": None}
        may_run = self.evaluated.decision != "deny"
        statements.check_authority(
            predicate, self.call_sha256, name, chain, trust, at, may_run=may_run
        )


def verify_evaluation(statement: bytes, trust: TrustDocument) -> EvaluationEntry:
    """Return what a signed evaluation says, after the check of the issuer's signature.

    ``statement`` is that of an ``Evaluation``. The check needs no log: the issuer of ``trust``
    vouches for the content, as of the time ``at`` in the statement. Whoever has stolen a key can
    state an older time: the entry in the log shows the real order. An evaluation is no
    authorization of a call. Raises ``DecodeError`` and ``VerificationError``.
    """
    value = declared.read(
        dict[str, Any], canonical.loads(statement), "an envelope", code="dsse.malformed"
    )
    entry = EvaluationEntry(at="", statement=value)
    entry = EvaluationEntry(at=entry.evaluated.at, statement=value)
    entry.read()
    entry.verify(trust, parse_time(entry.at))
    return entry


def _digest(name: str, predicate: Mapping[str, Any], actors: tuple[str, ...]) -> str:
    """Return the call digest of an evaluation, which has no call site."""
    return call_digest(name, {**predicate, "call_site": None}, actors)
