"""What is in force from now on: shards and their keys, configuration, policy, approvers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from agentguard.approvals.roster import Roster
from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Content, Entry, Here, Record, Signed, mismatch
from agentguard.errors import VerificationError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing import canonical
from agentguard.signing.canonical import Fragment
from agentguard.signing.declared import Declared
from agentguard.signing.keys import PublicKey, Signer

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier


class Opening(Declared):
    """What the issuer states of a shard; ``heads`` are the newest checkpoints of the others."""

    trust_domain: str
    origin: str
    shard: int
    log_key: dict[str, Any]
    heads: list[str]


class ShardEntry(Signed):
    """The issuer states a shard's origin, its number, its checkpoint key and its ``heads``.

    A writer opens a shard, or opens the shard again. ``heads`` are the newest checkpoints of the
    other shards, as signed notes: from then on the verifier detects a truncation of these shards.
    """

    kind: ClassVar[str] = "shard"
    use: ClassVar[Use] = "issuer"
    subject_name: ClassVar[str] = "origin"

    @classmethod
    def new(
        cls,
        issuer: Signer,
        log_key: PublicKey,
        *,
        trust_domain: str,
        origin: str,
        number: int,
        heads: Sequence[bytes],
        at: str,
    ) -> Record:
        """Return the entry; ``heads`` are signed notes."""
        opening = Opening(
            trust_domain=trust_domain,
            origin=origin,
            shard=number,
            log_key={**log_key.jwk()},
            heads=[note.decode() for note in heads],
        )
        subject = canonical.sha256_hex(origin.encode())
        return cls.signed(issuer, subject, opening.as_json(), at)

    @cached_property
    def opening(self) -> Opening:
        """What the issuer states."""
        return self.predicate(Opening)

    @cached_property
    def heads(self) -> list[Checkpoint]:
        """The checkpoints of other shards, unverified."""
        return [checkpoint.parse(note.encode()).checkpoint for note in self.opening.heads]

    def read(self) -> None:
        """Read the statement, and the checkpoints in it."""
        _ = self.heads

    def require_of(self, origin: str, shard: int) -> None:
        """Raise ``VerificationError`` unless the entry opens this shard of this log."""
        if (self.opening.origin, self.opening.shard) != (origin, shard):
            raise mismatch("the opening entry belongs to another shard or log")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check whose opening it is, and that it leaves out no shard that one before it embeds."""
        log.verify_signed(self)
        self.require_of(log.origin, log.shard)
        log.heads += [(here.index, head) for head in self.heads]
        # no shard ends: a shard in an earlier opening is in each later opening
        embedded = {head.origin for head in self.heads}
        absent = sorted(log.embedded_origins - embedded)
        log.embedded_origins |= embedded
        if absent:
            message = f"it leaves out the head of {absent[0]}, which an opening before it embeds"
            raise VerificationError(message, code="statement.mismatch")
        return Content(self.summary)


class KeyEntry(Signed):
    """The issuer announces a key of the trust document, with its members there."""

    kind: ClassVar[str] = "key"
    use: ClassVar[Use] = "issuer"
    subject_name: ClassVar[str] = "key"

    @classmethod
    def new(cls, issuer: Signer, members: Mapping[str, Any], *, at: str) -> Record:
        """Return the entry."""
        return cls.signed(issuer, canonical.digest(members), members, at)

    @property
    def name(self) -> tuple[str, str]:
        """The use and the thumbprint of the key that is announced."""
        said = self.stated.predicate
        return str(said.get("use")), str(said.get("kid"))

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature."""
        del here
        log.verify_signed(self)
        return Content(self.summary)


class PolicyEntry(Entry):
    """The policy in force from now on; ``files`` are ``{path: sha256}``.

    ``policy_sha256`` is None where the engine does not know the policy's digest.
    """

    kind: ClassVar[str] = "policy"
    engine: dict[str, Any]
    policy_sha256: str | None
    files: dict[str, Any]

    @classmethod
    def new(
        cls,
        engine: Mapping[str, str],
        policy_sha256: str | None,
        files: Mapping[str, str],
        *,
        at: str,
    ) -> Record:
        """Return the entry."""
        encoded = cast("Any", Fragment(canonical.dumps(dict(files))))  # a path holds any character
        return cls(at=at, engine={**engine}, policy_sha256=policy_sha256, files=encoded).record()

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Note the policy."""
        del here
        log.policies.add(self.policy_sha256)
        return Content(self.summary)


class ConfigEntry(Entry):
    """The configuration (canonical JSON without secrets) from now on."""

    kind: ClassVar[str] = "config"
    config_sha256: str
    config: Any

    @classmethod
    def new(cls, encoded: bytes, *, at: str) -> Record:
        """Return the entry of a configuration in canonical bytes."""
        digest = canonical.sha256_hex(encoded)
        return cls(at=at, config_sha256=digest, config=Fragment(encoded)).record()

    @property
    def mode(self) -> str:
        """The policy's mode (enforce, observe)."""
        match self.config:
            case {"policy": {"mode": str(mode)}}:
                return mode
        return "enforce"

    @property
    def secrets(self) -> dict[str, dict[str, Any]]:
        """The tables ``[secrets.NAME]`` by name."""
        tables = self.config.get("secrets") if isinstance(self.config, dict) else None
        found = tables if isinstance(tables, dict) else {}
        return {name: table for name, table in found.items() if isinstance(table, dict)}

    def require_digest(self) -> None:
        """Raise ``VerificationError`` for a configuration with another digest."""
        if canonical.digest(self.config) != self.config_sha256:
            raise mismatch("the configuration does not have its digest")

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the digest, and note the configuration."""
        del here
        self.require_digest()
        log.configs[self.config_sha256] = self
        return Content(self.summary)


class RosterEntry(Signed):
    """The issuer states who may approve from now on."""

    kind: ClassVar[str] = "roster"
    use: ClassVar[Use] = "issuer"
    subject_name: ClassVar[str] = "roster"

    @classmethod
    def new(cls, issuer: Signer, trust_domain: str, approvers: Roster, *, at: str) -> Record:
        """Return the entry."""
        predicate: dict[str, object] = {"trust_domain": trust_domain, **approvers.as_json()}
        return cls.signed(issuer, approvers.sha256, predicate, at)

    @property
    def sha256(self) -> str:
        """The digest of the roster, unverified."""
        return self.stated.subject_sha256

    def roster(self, trust: TrustDocument) -> Roster:
        """Return the roster; raises ``DecodeError``, ``VerificationError`` for another domain's."""
        members = dict(self.stated.predicate)
        if members.pop("trust_domain", None) != trust.trust_domain:
            raise mismatch("the roster is another trust domain's")
        roster = Roster.from_json(members)
        if self.sha256 != roster.sha256:
            raise mismatch("the roster does not have its digest")
        return roster

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature and the digest, and note the roster."""
        del here
        log.verify_signed(self)
        log.rosters[self.sha256] = self.roster(log.trust)
        return Content(self.summary)
