"""The journal: the calls that a resumed run may make again, each at most once.

A framework that resumes a run makes its earlier calls again. A call's journal entry decides what
happens then: the call runs, the stored result is replayed, or the call is denied because nobody
knows whether the tool ran. This module has the values and the protocols. ``flow/attempt.py`` uses
them; ``store/journal.py`` reads them from the log and the pages beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import isawaitable
from typing import Any, Final, Literal, NamedTuple, Protocol

from agentguard.call.decision import Decision
from agentguard.call.plain import discarded
from agentguard.errors import AgentguardError, DecodeError, EncodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64_decode, b64_encode

EntryState = Literal["begun", "unknown", "done", "unreplayable"]

MAX_RESULT: Final = 8 << 20
"""The longest result that the journal stores, in bytes; a longer one is not replayed."""


class ResultCodec(Protocol):
    """Encodes and decodes a framework's results; each adapter has one. No codec uses pickle."""

    def dumps(self, result: Any) -> bytes:
        """Encode a result; raises ``EncodeError`` unless decoding returns an equal result."""

    def loads(self, data: bytes) -> Any:
        """Decode a result; raises ``DecodeError``."""


def dumps_checked(
    write: Callable[[Any], bytes], read: Callable[[bytes], Any], result: Any
) -> bytes:
    """Encode a result with ``write``, and check that the bytes survive ``read`` and ``write``.

    Raises ``EncodeError`` if ``write(read(data))`` differs from the data, or if either function
    raises any exception.
    """
    try:
        data = write(result)
        is_stable = write(read(data)) == data
    except EncodeError:
        raise
    except Exception as error:
        # a value runs code of the application, which may raise anything
        raise EncodeError(f"a result can't be written ({type(error).__name__})") from error
    if not is_stable:
        kind = type(result)
        raise EncodeError(
            f"a {kind.__module__}:{kind.__qualname__} changes when encoded and decoded"
        )
    return data


def written(codec: ResultCodec, result: Any) -> bytes:
    """Encode a result with an adapter's codec; raises ``EncodeError`` and what the codec raises."""
    data: object = codec.dumps(result)
    if not isinstance(data, bytes):
        raise EncodeError(f"the codec returned a {discarded(data)}, not the bytes of a result")
    if len(data) > MAX_RESULT:
        raise EncodeError(f"a result takes more than {MAX_RESULT} bytes")
    return data


def read(codec: ResultCodec, data: bytes) -> Any:
    """Decode a result with an adapter's codec; raises ``DecodeError`` and what the codec raises."""
    result: object = codec.loads(data)
    if isawaitable(result):
        raise DecodeError(f"the codec returned a {discarded(result)}, not the result")
    return result


class JournalEntry(NamedTuple):
    """The journal's record of one call: the invocation, its state, and its ``result`` when done.

    ``enforced`` is False for a call that ran in observe mode, whatever the policy decided.
    """

    invocation_id: str
    state: EntryState
    result: bytes | None = None
    enforced: bool = True

    def refusal(self) -> Decision | None:
        """Return the refusal of the repeated call, or None if its result can be replayed.

        ``journal.in_doubt``: the log has no outcome of the earlier attempt, and an administrator
        may resolve the call. ``journal.cut_short``: the outcome in the log is ``unknown``.
        """
        if self.state == "begun":
            reason = (
                f"an earlier attempt of this call ({self.invocation_id}) has begun, and nobody "
                "knows whether it ran: find out, and say so with agentguard resolve"
            )
            return Decision.refusal(reason, code="journal.in_doubt")
        if self.state == "unknown":
            reason = (
                f"an earlier attempt of this call ({self.invocation_id}) was cut short, and nobody "
                "knows whether it ran: find out, and make it as a new call if it did not"
            )
            return Decision.refusal(reason, code="journal.cut_short")
        if self.state == "unreplayable" or self.result is None:
            reason = (
                f"this call has run already ({self.invocation_id}), and its result can't be given "
                "again: go on without it"
            )
            return Decision.refusal(reason, code="journal.unreplayable")
        return None

    def unapproved(self) -> Decision | None:
        """Return the refusal of a repeated call for which the policy asks for an approval.

        Returns None if the policy was enforced when the call ran.
        """
        if self.enforced:
            return None
        reason = (
            f"this call has run already ({self.invocation_id}), while the policy was only "
            "observed, and nobody had approved it: go on without its result, or make it as a new "
            "call, which asks for the approval and runs once more"
        )
        return Decision.refusal(reason, code="journal.observed")

    def dumps(self) -> bytes:
        """Encode the entry in canonical JSON; ``enforced`` is a member only where it is False."""
        entry: dict[str, JSON] = {
            "invocation_id": self.invocation_id,
            "state": self.state,
            "result": b64_encode(self.result) if self.result is not None else None,
        }
        if not self.enforced:
            entry["enforced"] = False
        return canonical.dumps(entry)

    @classmethod
    def loads(cls, data: bytes) -> JournalEntry:
        """Decode an entry; raises ``DecodeError`` (``journal.malformed``)."""
        try:
            entry: JSON = canonical.loads(data, limit=2 * MAX_RESULT)
            match entry:
                case {
                    "invocation_id": str(invocation_id),
                    "state": "done" | "unreplayable" as state,
                    "result": str() | None as encoded,
                    **others,
                } if not others or (len(others) == 1 and others.get("enforced") is False):
                    result = b64_decode(encoded) if encoded else None
                    return cls(invocation_id, state, result, enforced=not others)
        except AgentguardError as error:
            raise _malformed() from error
        raise _malformed()


class Journal(Protocol):
    """What is known of journalled calls, which all processes share.

    The entries of a call in the log change what is known (``Entry.change``). Each method raises
    ``StorageError``.
    """

    def name(self, key: str) -> str:
        """Return a call's name for the log, from which nobody can guess the key's members."""

    def read(self, key: str) -> JournalEntry | None:
        """Return the entry of a call; None where the call is new."""

    def keeping(self, key: str, entry: JournalEntry) -> Callable[[Any], None]:
        """Return what keeps the result of a call in the commit of its outcome (``AuditLog``)."""


class RunStore(Protocol):
    """The store of adapters' data about runs that may be resumed.

    Each method raises ``StorageError``.
    """

    def read(self, name: str) -> bytes | None:
        """Return the data under ``name``, or None."""

    def write(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, durably, in place of earlier data."""

    def add(self, name: str, data: bytes) -> bool:
        """Store ``data`` under ``name``, durably; return False if ``name`` has data already."""

    def remove(self, name: str) -> None:
        """Remove the data under ``name``, if any."""


def key(members: Mapping[str, object]) -> str:
    """Return a call's key in the journal: the SHA-256 of ``members``, in 64 hex digits.

    The key contains no secret; ``Journal.name`` adds one for the log.
    """
    return canonical.sha256_hex(canonical.dumps_record(members))


def _malformed() -> DecodeError:
    return DecodeError("not an entry of the journal", code="journal.malformed")
