"""The journal of calls that may be made again when a run goes on: at most once, and replayed.

A framework that resumes a run makes calls again that were made before. What the journal says of
such a call decides whether it runs, whether the result that is kept is handed out in its place, or
whether it is refused because nobody knows what became of it. Here are the values; the line uses
them in ``flow/line.py``, and pages are kept, signed with the log's key, by ``storage/journal.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, Protocol

from agentguard.call.decision import Decision
from agentguard.errors import AgentguardError, DecodeError, EncodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, b64_decode, b64_encode

State = Literal["begun", "unknown", "done", "unreplayable"]

MAX_RESULT: Final = 8 << 20
"""Bytes of a result that is kept; a longer one is not replayed."""


class ResultCodec(Protocol):
    """Writes a framework's results down, and reads them again; each adapter brings one.

    ``dumps`` raises ``EncodeError`` for a result that can't be read again as it was, and ``loads``
    ``DecodeError``. Neither pickles.
    """

    def dumps(self, result: Any) -> bytes:
        """Return the bytes of a result."""

    def loads(self, data: bytes) -> Any:
        """Return the result of these bytes."""


def dumps_checked(
    write: Callable[[Any], bytes], read: Callable[[bytes], Any], result: Any
) -> bytes:
    """Write a result, which has to be written the same once it was read again.

    Raises ``EncodeError`` for one that is not, whatever ``write`` and ``read`` raise.
    """
    try:
        data = write(result)
        same = write(read(data)) == data
    except EncodeError:
        raise
    except Exception as error:
        # values run code of their authors: whatever goes wrong in it, nothing is kept
        raise EncodeError(f"a result can't be written ({type(error).__name__})") from error
    if not same:
        kind = type(result)
        raise EncodeError(f"a {kind.__module__}:{kind.__qualname__} does not come back as it was")
    return data


class Page(NamedTuple):
    """What is known of one call: which invocation has made it, and its ``result`` if it is done.

    One that is not ``enforced`` ran while the policy was only observed, whatever that said of it.
    """

    invocation_id: str
    state: State
    result: bytes | None = None
    enforced: bool = True

    def refusal(self) -> Decision | None:
        """Return why the call is refused, None where its result can be handed out.

        A call ``journal.in_doubt`` has no outcome on record, and may get one (``audit resolve``);
        that of one which was cut short is on record, and says that nobody knows.
        """
        if self.state == "begun":
            reason = (
                f"an earlier attempt of this call ({self.invocation_id}) has begun, and nobody "
                "knows whether it ran: find out, and say so with agentguard audit resolve"
            )
            return Decision.refused(reason, code="journal.in_doubt")
        if self.state == "unknown":
            reason = (
                f"an earlier attempt of this call ({self.invocation_id}) was cut short, and nobody "
                "knows whether it ran: find out, and make it as a new call if it did not"
            )
            return Decision.refused(reason, code="journal.cut_short")
        if self.state == "unreplayable" or self.result is None:
            reason = (
                f"this call has run already ({self.invocation_id}), and its result can't be given "
                "again: go on without it"
            )
            return Decision.refused(reason, code="journal.unreplayable")
        return None

    def unapproved(self) -> Decision | None:
        """Return why a call that needs an approval is refused, None where it had what it needed."""
        if self.enforced:
            return None
        reason = (
            f"this call has run already ({self.invocation_id}), while the policy was only "
            "observed, and nobody had approved it: go on without its result, or make it as a new "
            "call, which asks for the approval and runs once more"
        )
        return Decision.refused(reason, code="journal.observed")

    def dumps(self) -> bytes:
        """Write the page, in canonical form; ``enforced`` is in it only where it is false."""
        page: dict[str, JSON] = {
            "invocation_id": self.invocation_id,
            "state": self.state,
            "result": b64_encode(self.result) if self.result is not None else None,
        }
        if not self.enforced:
            page["enforced"] = False
        return canonical.dumps(page)

    @classmethod
    def loads(cls, data: bytes) -> Page:
        """Read a page; raises ``DecodeError`` (``journal.malformed``)."""
        try:
            page: JSON = canonical.loads(data, limit=2 * MAX_RESULT)
            match page:
                case {
                    "invocation_id": str(invocation_id),
                    "state": "begun" | "unknown" | "done" | "unreplayable" as state,
                    "result": str() | None as result,
                    **others,
                } if not others or (len(others) == 1 and others.get("enforced") is False):
                    kept = b64_decode(result) if result else None
                    return cls(invocation_id, state, kept, enforced=not others)
        except AgentguardError as error:
            raise _malformed() from error
        raise _malformed()


class Journal(Protocol):
    """What became of calls that may be made again; shared by processes.

    Each method raises ``StorageError``.
    """

    def name(self, key: str) -> str:
        """Return a call's name in the log, from which nobody learns what the key is made of."""

    def look(self, key: str) -> Page | None:
        """Return what is known of a call; None for nothing."""

    def begin(self, key: str, invocation_id: str) -> bool:
        """Say, durably, that a call begins; return whether it is the first."""

    def finish(self, key: str, page: Page) -> None:
        """Say what became of a call that has begun."""

    def forget(self, key: str) -> None:
        """Let a call be made anew."""


class Runs(Protocol):
    """What adapters keep of a run that goes on later. Each method raises ``StorageError``."""

    def read(self, name: str) -> bytes | None:
        """Return what was written under ``name``; None for nothing."""

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` there, durably, in place of what was there."""

    def add(self, name: str, data: bytes) -> bool:
        """Put ``data`` there, durably, if nothing is there; return whether it is."""

    def remove(self, name: str) -> None:
        """Remove what is there, if anything is."""


def key(members: Mapping[str, object]) -> str:
    """Name a call in the journal, by all that makes it this call but the salt (64 hex digits)."""
    return canonical.sha256_hex(canonical.dumps_record(members))


def _malformed() -> DecodeError:
    return DecodeError("not a page of the journal", code="journal.malformed")
