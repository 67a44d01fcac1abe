"""One entry of the audit log: the base of all kinds, and what is stored beside an entry.

An entry is canonical JSON ``{kind, at, ...}``. Where somebody other than the log vouches for the
content, the entry embeds that signed statement (log.md). Each kind is one declaration in
``kinds/``: its members, how one is made, the rule that the verifier applies, its effect on later
calls, its words for people, and the columns by which a log is searched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, TypeVar

from agentguard.audit.summary import Summary
from agentguard.errors import DecodeError, EncodeError, VerificationError
from agentguard.identity.trust import TrustDocument, Use, seconds
from agentguard.signing import canonical, declared, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.declared import ABSENT, Absent, Declared
from agentguard.signing.dsse import Envelope, Statement
from agentguard.signing.keys import PublicKey, Signer

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.state import State

Status = Literal["ok", "error", "unknown", "not_run"]
Role = Literal["arguments", "input", "result"]
Mode = Literal["enforce", "observe"]

Commitments = Mapping[str, JSON]
"""The commitments of an entry: SHA-256 (hex) by role, null for no data."""

KINDS: Final[dict[str, type[Entry]]] = {}
"""The declaration of each kind of entry; a class below ``Entry`` adds itself."""

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
)


class Attachment(NamedTuple):
    """Data that is stored beside an entry; ``commitment`` (hex) is SHA-256 of ``salt || data``.

    The commitment is the one in the signed statement or, for a call with redactions, one of the
    entry's ``copies``.
    """

    role: Role
    commitment: str
    salt: bytes
    data: bytes


class Record(NamedTuple):
    """A new entry for the log: the canonical bytes, the summary, the attachments, and the entry.

    What the ``entry`` changes for later calls (``Entry.change``) is changed with it.
    """

    body: bytes
    summary: Summary
    attachments: tuple[Attachment, ...] = ()
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry in a log's storage, with its summary and attachments, none of them verified."""

    index: int
    body: bytes
    summary: Summary | None = None
    attachments: Sequence[Attachment] = ()


LOG: Final = 0
"""The number of the only log."""


class LogPlace(Declared, kw_only=False):
    """The place of a durable entry: the number of the log, which is 0, and the index, from 0."""

    log: int
    index: int


@dataclass(frozen=True, slots=True)
class CallPlace:
    """A call in the log: the index of its authorization, and the invocation's digest (hex)."""

    index: int
    invocation_id: str
    invocation_sha256: str


@dataclass(frozen=True, slots=True)
class Here:
    """The entry that the verifier reads: its index, its time (epoch seconds), and its signer.

    ``signer`` is the key that was found to have signed the statement of a call or an outcome, None
    where nobody has looked yet.
    """

    index: int
    at: int
    signer: PublicKey | None = None


class Content(NamedTuple):
    """The content of an entry that the data beside the entry must agree with.

    ``call`` is the call of an authorization or outcome: the index of the authorization,
    and the digest of the invocation.
    """

    summary: Summary
    commitments: Commitments = MappingProxyType({})
    call: tuple[int, str] | None = None


class Entry(Declared, dict=True):
    """An entry: a kind, and the time ``at`` (RFC 3339); the kinds below add their members."""

    kind: ClassVar[str]
    at: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kind = cls.__dict__.get("kind")
        if kind is not None and KINDS.setdefault(kind, cls) is not cls:
            raise TypeError(f"two declarations of the kind {kind}")

    @property
    def members(self) -> dict[str, JSON]:
        """The members of the kind in the order of the log, which is that of their names."""
        members = canonical.loads_object(canonical.dumps(self.as_json()))
        del members["at"]
        return members

    @property
    def summary(self) -> Summary:
        """The columns beside the entry, by which a log is searched."""
        return Summary(self.kind, self.at)

    @property
    def words(self) -> str | None:
        """What the entry says for people, in one line; None where the columns say all."""
        return None

    def read(self) -> None:
        """Read all that the entry embeds, unverified; raises ``AgentguardError``.

        ``parse_entry`` makes it a ``DecodeError``.
        """

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the entry against the entries before it, and note there what later ones need.

        Raises ``DecodeError`` or ``VerificationError``.
        """
        del log, here
        return Content(self.summary)

    def change(self, state: State) -> None:
        """Make the changes of the entry in the map; raises ``AgentguardError`` where it may not.

        Nothing but the entry and the earlier changes decides (``audit/state.py``).
        """

    def record(
        self, attachments: tuple[Attachment, ...] = (), *, about: Summary | None = None
    ) -> Record:
        """Return the entry for the log; raises ``EncodeError`` (``entry.too_large``).

        ``about`` is the summary where the entry alone does not say it.
        """
        body = canonical.dumps_record({"kind": self.kind, **self.as_json()})
        if len(body) > canonical.MAX_BYTES:
            message = f"an entry of the kind {self.kind} with {len(body)} bytes is too long"
            raise EncodeError(f"{message} to be read again", code="entry.too_large")
        return Record(body, self.summary if about is None else about, attachments, self)


D = TypeVar("D", bound=Declared)
T = TypeVar("T")


class Signed(Entry):
    """An entry that embeds a statement, which the issuer or an administrator has signed.

    ``use`` says whose key signs. ``key_id`` is the key's thumbprint, unverified.
    """

    use: ClassVar[Use]
    subject_name: ClassVar[str]
    statement: dict[str, Any]

    @cached_property
    def envelope(self) -> Envelope:
        """The signed envelope; raises ``DecodeError``, also without a signature."""
        envelope = Envelope.parse(self.statement)
        if not envelope.signatures:
            message = f"the {self.kind} entry is not signed"
            raise DecodeError(message, code="signature.missing")
        return envelope

    @cached_property
    def stated(self) -> Statement:
        """The statement, unverified; raises as ``envelope`` does."""
        return dsse.parse_statement(self.envelope.payload, self.kind)

    @property
    def key_id(self) -> str:
        """The id of the key that is named as the signer's."""
        return self.envelope.signatures[0][0]

    def read(self) -> None:
        """Read the statement."""
        _ = self.stated

    def predicate(self, form: type[D]) -> D:
        """Return the predicate of the statement, unverified; raises as ``envelope`` does."""
        what = f"a statement of the kind {self.kind}"
        return declared.read(form, self.stated.predicate, what, code="entry.malformed")

    def verify(self, trust: TrustDocument, at: int, *, signatures: bool = True) -> PublicKey:
        """Return the key that has signed the statement and counts ``at`` (epoch seconds).

        Raises ``DecodeError`` or ``VerificationError``.
        """
        self.read()
        key = trust.key(self.use, self.key_id, at=at)
        if signatures:
            self.envelope.verify(key)
        return key

    def check_subject(self, name: str) -> None:
        """Check that the statement is about ``name``; raises ``DecodeError``."""
        if self.stated.subject_sha256 != canonical.sha256_hex(name.encode()):
            message = f"a statement of the kind {self.kind} about something else"
            raise DecodeError(message, code="entry.malformed")

    @classmethod
    def signed(
        cls, signer: Signer, subject_sha256: str, predicate: Mapping[str, object], at: str
    ) -> Record:
        """Return the entry of a statement about the subject with this digest (hex)."""
        payload = dsse.statement(cls.kind, subject_sha256, cls.subject_name, predicate)
        return cls(at=at, statement=dsse.seal(payload, signer).as_json()).record()


def time_of(body: bytes) -> str:
    """Return the time of an entry, also of one whose kind or content nobody can read.

    Raises ``DecodeError`` (``json.*``, ``entry.malformed``).
    """
    at = canonical.loads_object(body).get("at")
    if isinstance(at, str):
        return at
    raise DecodeError("an entry has a time", code="entry.malformed")


def parse_time(at: str) -> int:
    """Return an entry's time in seconds since the epoch; raises ``DecodeError``.

    A time without an offset is refused: another machine would read another time.
    """
    if _RFC3339.fullmatch(at) is None:  # fromisoformat reads weeks, and any separator
        raise DecodeError("its time is not RFC 3339", code="entry.malformed")
    try:
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is not None:
            return seconds(moment)
    except (ValueError, OverflowError) as error:
        raise DecodeError("its time is not RFC 3339", code="entry.malformed") from error
    raise DecodeError("its time has no offset", code="entry.malformed")


def present(value: T | Absent) -> T | None:
    """Return a member that an entry may lack; None without it."""
    return None if value is ABSENT else value


def mismatch(problem: str) -> VerificationError:
    """Return the error of an entry that does not agree with another, or with itself."""
    return VerificationError(problem, code="statement.mismatch")
