"""What a running call got: secrets, proofs of its requests, and receipts of the answers.

Such an entry stands between the authorization and the outcome of one call, and names the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from agentguard.audit.entry import LOG, Content, Entry, Here, LogPlace, Record, mismatch
from agentguard.audit.summary import Summary
from agentguard.call.releases import ProofRecord, ReleaseSubject, RequestRecord
from agentguard.errors import DecodeError
from agentguard.signing import jws
from agentguard.signing.canonical import is_integer
from agentguard.signing.declared import Declared, Sha256

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.findings import OpenCall


class OfRunningCall(Entry):
    """Something that a running call got. ``agent`` is the instance's URI."""

    thing: ClassVar[str]
    """What it is, in words."""

    invocation_id: str
    invocation_sha256: Sha256
    authorization: LogPlace
    agent: str
    tool: str

    @staticmethod
    def of(subject: ReleaseSubject) -> dict[str, Any]:
        """Return the members that name the call which asks."""
        return {
            "invocation_id": subject.invocation_id,
            "invocation_sha256": subject.invocation_sha256,
            "authorization": LogPlace(LOG, subject.place),
            "agent": subject.agent,
            "tool": subject.tool,
        }

    @property
    def summary(self) -> Summary:
        """The columns: the call, the instance and the tool."""
        return Summary(self.kind, self.at, self.invocation_id, self.agent, tool=self.tool)

    def running(self, log: ContentsVerifier) -> OpenCall:
        """Return the running call that the entry names; raises ``VerificationError``."""
        found = log.open_calls.get(self.invocation_sha256)
        if found is None:
            raise mismatch(f"{self.thing}: no call that was running then may have it")
        place = LogPlace(LOG, found.place)
        named = (self.invocation_id, self.authorization, self.agent, self.tool)
        if named != (found.invocation_id, place, found.issued.uri, found.tool):
            raise mismatch(
                f"{self.thing}: it names another call, agent or tool than the invocation"
            )
        return found


class SecretEntry(OfRunningCall):
    """A secret is released to a running call: its name, and neither value nor digest of it.

    The entry precedes the release. The configuration under which the call was decided names the
    secret and the tool.
    """

    kind: ClassVar[str] = "secret"
    thing: ClassVar[str] = "a release of a secret"
    name: str

    @classmethod
    def new(cls, name: str, subject: ReleaseSubject, *, at: str) -> Record:
        """Return the entry."""
        return cls(at=at, name=name, **cls.of(subject)).record()

    @property
    def words(self) -> str:
        """Which secret it is."""
        return f"the secret {self.name} was released to the call"

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check that the configuration and the delegation of the call give it this secret."""
        del here
        call = self.running(log)
        table = log.configs[call.config_sha256].secrets.get(self.name, {})
        if self.tool not in _texts(table.get("tools")):
            problem = "the configuration of the call does not release this secret to it"
            raise mismatch(f"{self.thing}: {problem}")
        if call.leaf is not None and not _texts(table.get("scope")) <= {*call.leaf.scope}:
            raise mismatch(f"{self.thing}: the delegation of the call lacks its scope")
        return Content(self.summary)


class ProofName(Declared):
    """The proof of a request: its id, and the digest of the whole proof."""

    jti: str
    sha256: Sha256


class ProofEntry(OfRunningCall):
    """A request of a running call is proved; the entry precedes the request.

    ``audience`` is the name in the delegation to which the URL belongs.
    """

    kind: ClassVar[str] = "proof"
    thing: ClassVar[str] = "the proof of a request"
    request: RequestRecord
    assurance: Literal["request", "call"]
    audience: str
    proof: ProofName

    @classmethod
    def new(cls, proved: ProofRecord, subject: ReleaseSubject, *, at: str) -> Record:
        """Return the entry."""
        return cls(
            at=at,
            request=proved.request,
            assurance="call" if proved.assurance == "call" else "request",
            audience=proved.audience,
            proof=ProofName(jti=proved.jti, sha256=proved.sha256),
            **cls.of(subject),
        ).record()

    @property
    def words(self) -> str:
        """Which request it is."""
        return f"the request {self.request.method} {self.request.url} of the call was proved"

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check that the call ran under a delegation that names the audience."""
        del here
        call = self.running(log)
        if call.leaf is None or self.audience not in call.leaf.audience:
            raise mismatch(f"{self.thing}: the delegation of the call does not name this audience")
        call.proofs.add(self.proof.sha256)
        return Content(self.summary)


class ReceiptEntry(OfRunningCall):
    """What a tool's server has signed about its answer to a request of a call.

    ``receipt`` is a compact JWS (``proof/receipt.py``), whose signature the client has verified
    with the key that has the thumbprint ``key_id``. ``proof_sha256`` is the digest of the request's
    proof. Whoever has the key can verify the signature again.
    """

    kind: ClassVar[str] = "receipt"
    thing: ClassVar[str] = "a receipt"
    proof_sha256: Sha256
    receipt: str
    key_id: str

    @classmethod
    def new(
        cls, proof_sha256: str, token: str, key_id: str, subject: ReleaseSubject, *, at: str
    ) -> Record:
        """Return the entry.

        Raises ``DecodeError`` for a text that is no receipt of the request, and ``EncodeError``.
        """
        entry = cls(
            at=at, proof_sha256=proof_sha256, receipt=token, key_id=key_id, **cls.of(subject)
        )
        entry.read()
        return entry.record()

    @property
    def status(self) -> int:
        """The status of the answer; raises ``DecodeError``."""
        status = jws.parse(self.receipt).claims().get("status")
        if not is_integer(status):
            raise DecodeError("the receipt states no status", code="entry.malformed")
        return status

    @property
    def words(self) -> str:
        """Which answer it is."""
        return f"the server has signed a receipt of its answer {self.status}"

    def read(self) -> None:
        """Require a receipt of the request."""
        if jws.parse(self.receipt).claims().get("prf") != self.proof_sha256:
            raise DecodeError("the receipt is of another request", code="entry.malformed")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check that the call has proved the request."""
        del here
        if self.proof_sha256 not in self.running(log).proofs:
            raise mismatch(f"{self.thing} is of a request that its call has not proved")
        return Content(self.summary)


def _texts(values: object) -> frozenset[str]:
    listed = values if isinstance(values, list) else []
    return frozenset(value for value in listed if isinstance(value, str))
