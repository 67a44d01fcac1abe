"""What is in force from now on: keys, configuration, policy, approvers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from agentguard.approvals.roster import Roster
from agentguard.audit.entry import Content, Entry, Here, Record, Signed, mismatch, parse_time
from agentguard.audit.map import require_value
from agentguard.errors import DecodeError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing import canonical
from agentguard.signing.canonical import Fragment
from agentguard.signing.keys import Signer

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.state import State


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
        """Check the signature, and note a key of the log."""
        del here
        log.verify_signed(self)
        use, kid = self.name
        if use == "log":
            log.log_keys.add(kid)
        return Content(self.summary)


class ExpiryEntry(Entry):
    """Keys (hex) of the map that have ended are taken away."""

    kind: ClassVar[str] = "expiry"
    ended: list[str]

    @classmethod
    def new(cls, keys: Iterable[bytes], *, at: str) -> Record:
        """Return the entry."""
        return cls(at=at, ended=[one.hex() for one in keys]).record()

    @property
    def words(self) -> str:
        """How many there are."""
        return f"{len(self.ended)} keys of the map have ended"

    @property
    def keys(self) -> list[bytes]:
        """The keys; raises ``DecodeError`` for what is no key."""
        try:
            keys = [bytes.fromhex(one) for one in self.ended]
            for one in keys:
                require_value(one, None)
        except ValueError as error:
            raise DecodeError(f"not a key of the map: {error}", code="entry.malformed") from error
        return keys

    def read(self) -> None:
        """Read the keys."""
        _ = self.keys

    def change(self, state: State) -> None:
        """Take the keys away."""
        state.end(self.keys, parse_time(self.at))


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
