"""What an administrator states: revocations, suspensions, resolutions, erasures, adoptions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Final

from agentguard.audit import head
from agentguard.audit.entry import (
    LOG,
    CallPlace,
    Content,
    Here,
    LogPlace,
    Record,
    Signed,
    mismatch,
    parse_time,
)
from agentguard.audit.summary import Summary
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing import canonical
from agentguard.signing.declared import Declared
from agentguard.signing.keys import Signer

NOTHING: Final = "nothing is lost"
"""What an adoption of a copy says that lacks no entry."""

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.state import State


class ByAdministrator(Signed):
    """A statement that an administrator has signed."""

    use: ClassVar[Use] = "admin"

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature, and what the statement says."""
        del here
        log.verify_signed(self)
        self.require_about(log.trust)
        return Content(self.summary)

    def require_about(self, trust: TrustDocument) -> None:
        """Raise ``DecodeError`` or ``VerificationError`` for a statement about something else."""


class Revocation(Declared):
    """What a revocation states: the name that nobody may rely on any more."""

    name: str
    note: str


class RevocationEntry(ByAdministrator):
    """The administrator revokes a name: every call that relies on the name is denied."""

    kind: ClassVar[str] = "revocation"
    subject_name: ClassVar[str] = "name"

    @classmethod
    def new(cls, admin: Signer, name: str, *, note: str, at: str) -> Record:
        """Return the entry."""
        subject = canonical.sha256_hex(name.encode())
        return cls.signed(admin, subject, Revocation(name=name, note=note).as_json(), at)

    @cached_property
    def revocation(self) -> Revocation:
        """What the statement says."""
        return self.predicate(Revocation)

    @property
    def words(self) -> str:
        """Who is revoked, and why."""
        return f"{self.revocation.name} is revoked: {self.revocation.note}"

    def read(self) -> None:
        """Read the statement."""
        _ = self.revocation

    def require_about(self, trust: TrustDocument) -> None:
        """Raise ``DecodeError`` unless the statement's subject is the name."""
        del trust
        self.check_subject(self.revocation.name)

    def change(self, state: State) -> None:
        """Whoever relies on the name is denied."""
        state.revoke(self.revocation.name)


class Freeze(Declared):
    """What a freeze or a thaw of all calls states; each has a higher ``sequence`` than before."""

    frozen: bool
    sequence: int
    note: str


class FreezeEntry(ByAdministrator):
    """The administrator freezes all calls, or thaws them."""

    kind: ClassVar[str] = "freeze"
    subject_name: ClassVar[str] = "trust domain"

    @classmethod
    def new(
        cls, admin: Signer, trust_domain: str, *, frozen: bool, sequence: int, note: str, at: str
    ) -> Record:
        """Return the entry."""
        said = Freeze(frozen=frozen, sequence=sequence, note=note)
        subject = canonical.sha256_hex(trust_domain.encode())
        return cls.signed(admin, subject, said.as_json(), at)

    @cached_property
    def freeze(self) -> Freeze:
        """What the statement says."""
        return self.predicate(Freeze)

    @property
    def words(self) -> str:
        """Whether all calls are frozen, and why."""
        return f"{'frozen' if self.freeze.frozen else 'thawed'}: {self.freeze.note}"

    def read(self) -> None:
        """Read the statement."""
        _ = self.freeze

    def require_about(self, trust: TrustDocument) -> None:
        """Raise ``DecodeError`` for the statement of another trust domain."""
        self.check_subject(trust.trust_domain)

    def change(self, state: State) -> None:
        """All calls are denied, or are not any more."""
        state.freeze(self.freeze.sequence, parse_time(self.at), frozen=self.freeze.frozen)


class Administered(Declared):
    """What a resolution or an erasure states of a call."""

    invocation_id: str
    authorization: LogPlace
    note: str


class Resolved(Administered):
    """What a resolution states of a call in doubt: whether its tool ran."""

    ran: bool


class AdministeredEntry(ByAdministrator):
    """The administrator states something about one call; ``ran`` is None in an erasure."""

    subject_name: ClassVar[str] = "invocation"
    form: ClassVar[type[Administered]] = Administered

    @classmethod
    def about(
        cls, admin: Signer, call: CallPlace, content: Mapping[str, object], *, at: str
    ) -> Record:
        """Return the entry about a call."""
        place = LogPlace(LOG, call.index).as_json()
        said = {"invocation_id": call.invocation_id, "authorization": place, **content}
        return cls.signed(admin, call.invocation_sha256, said, at)

    @cached_property
    def said(self) -> Administered:
        """What the statement says."""
        return self.predicate(self.form)

    @property
    def call(self) -> CallPlace:
        """The call that the statement is about."""
        said = self.said
        return CallPlace(said.authorization.index, said.invocation_id, self.stated.subject_sha256)

    @property
    def ran(self) -> bool | None:
        """Whether the call ran; None in an erasure."""
        return self.said.ran if isinstance(self.said, Resolved) else None

    @property
    def note(self) -> str:
        """The administrator's words."""
        return self.said.note

    @property
    def summary(self) -> Summary:
        """The columns: the call's id."""
        return Summary(self.kind, self.at, self.said.invocation_id)

    @property
    def words(self) -> str:
        """The administrator's words."""
        return self.note

    def read(self) -> None:
        """Read the statement, about a call of this log."""
        if self.said.authorization.log != LOG:
            raise mismatch("a statement about a call of another log")

    def is_of(self, index: int, invocation_sha256: str) -> bool:
        """Return whether the statement is about the call at this index."""
        call = self.call
        return (index, invocation_sha256) == (call.index, call.invocation_sha256)

    def is_valid(self, trust: TrustDocument, called_at: int) -> bool:
        """Return whether the statement verifies, of a call that was logged ``called_at``.

        The admin key must also count at the time of the call: an entry with an older time would
        revive a key that has ended.
        """
        try:
            self.verify(trust, max(parse_time(self.at), called_at))
        except (DecodeError, VerificationError):
            return False
        return True

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature, and note the statement for the comparison with the call."""
        found = super().check(log, here)
        log.admin_statements.append((here.index, self))
        return found


class ResolutionEntry(AdministeredEntry):
    """The administrator states whether the tool of a call in doubt ran."""

    kind: ClassVar[str] = "resolution"
    form: ClassVar[type[Administered]] = Resolved

    @classmethod
    def new(cls, admin: Signer, call: CallPlace, *, ran: bool, note: str, at: str) -> Record:
        """Return the entry."""
        return cls.about(admin, call, {"ran": ran, "note": note}, at=at)

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature, and settle the call if it is in doubt."""
        call = log.open_calls.get(self.call.invocation_sha256)
        if call is None or call.place != self.call.index:
            return super().check(log, here)
        found = ByAdministrator.check(self, log, here)
        if call.ran not in (None, self.ran):
            raise mismatch("it contradicts another resolution of the same call")
        call.ran = self.ran
        return found

    def change(self, state: State) -> None:
        """A call that ran does not run again, and one that did not run may."""
        state.resolve(self.call.invocation_sha256, ran=bool(self.ran))


class ErasureEntry(AdministeredEntry):
    """The administrator states that a call's arguments, input and result are erased."""

    kind: ClassVar[str] = "erasure"

    @classmethod
    def new(cls, admin: Signer, call: CallPlace, *, note: str, at: str) -> Record:
        """Return the entry."""
        return cls.about(admin, call, {"note": note}, at=at)

    def change(self, state: State) -> None:
        """The result of the call is not handed out again."""
        state.erase(self.call.invocation_id)


class LostEntries(Declared):
    """The loss of a log that goes on from ``entries``; ``anchored`` is the note of the anchor."""

    entries: int
    anchored: str

    @property
    def anchored_size(self) -> int:
        """The number of entries in the anchor's head; raises ``DecodeError``."""
        return head.parse(self.anchored.encode()).size

    @property
    def words(self) -> str:
        """The loss in words; raises ``DecodeError``."""
        return f"from {self.entries} entries, where its anchor had seen {self.anchored_size}"


class Unanchored(Declared):
    """A log that no anchor vouches for: its number of entries, and the newest one's time."""

    entries: int
    newest: str

    @property
    def words(self) -> str:
        """What is known of the log, and what nobody knows."""
        return (
            f"no anchor vouches for its {self.entries} entries, which end at {self.newest}: nobody "
            "knows whether later ones are lost"
        )


class Adoption(Declared):
    """What an adoption states: what the log lacks from then on, or that no anchor vouches for it.

    Both are None for a copy that lacks nothing.
    """

    lost: LostEntries | None
    unanchored: Unanchored | None
    note: str


class AdoptionEntry(ByAdministrator):
    """The administrator states that the log continues in a copy, or in a state behind its anchor.

    Where the anchor has more entries, or other entries, the statement has the anchor's signed head.
    The log lacks these entries from then on, and ``audit verify`` reports the loss.
    """

    kind: ClassVar[str] = "adoption"
    subject_name: ClassVar[str] = "trust domain"

    @classmethod
    def new(
        cls,
        admin: Signer,
        trust_domain: str,
        *,
        lost: LostEntries | None,
        unanchored: Unanchored | None = None,
        note: str,
        at: str,
    ) -> Record:
        """Return the entry."""
        said = Adoption(lost=lost, unanchored=unanchored, note=note)
        subject = canonical.sha256_hex(trust_domain.encode())
        return cls.signed(admin, subject, said.as_json(), at)

    @cached_property
    def adoption(self) -> Adoption:
        """What the statement says."""
        return self.predicate(Adoption)

    @property
    def words(self) -> str:
        """What is lost, and why the log goes on."""
        said = self.adoption
        known = [one.words for one in (said.lost, said.unanchored) if one is not None]
        return f"the log goes on in this state ({'; '.join(known) or NOTHING}): {said.note}"

    def read(self) -> None:
        """Read the statement, and the head in it."""
        if self.adoption.lost is not None:
            _ = self.adoption.lost.anchored_size

    def require_about(self, trust: TrustDocument) -> None:
        """Raise for another domain's statement, or for a head that no key has signed."""
        self.check_subject(trust.trust_domain)
        if self.adoption.lost is not None:
            note, keys = self.adoption.lost.anchored.encode(), trust.keys_for("log")
            head.verify(note, (own.key for own in keys), trust.log)

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the signature and the head, and note the loss."""
        found = super().check(log, here)
        log.adoptions.append((here.index, self))
        return found

    def change(self, state: State) -> None:
        """Where entries may be lost, what they may have used up is void, and calls are frozen."""
        if self.adoption.lost is not None or self.adoption.unanchored is not None:
            state.void(parse_time(self.at))
