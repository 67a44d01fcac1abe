"""At most once: what the line does with the journal, where a call may be made again.

That is so where a framework names the call in the same way when it resumes a run
(``CallSite.is_stable``), and where the adapter brings a ``ResultCodec``. Authority and policy are
asked before anything of an earlier attempt is handed out. What a page says stands in
``call/journal.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any, NamedTuple

from agentguard.approvals.nested import NestedCalls
from agentguard.call import journal
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.journal import MAX_RESULT, Page, ResultCodec
from agentguard.errors import AgentguardError, DecodeError, EncodeError
from agentguard.flow.effects import Actor, Begin, Effect, Finish, Forget, Line, Look
from agentguard.flow.prepare import PreparedCall
from agentguard.signing import canonical

_LOGGER = logging.getLogger("agentguard")


class JournalSlot(NamedTuple):
    """Where a call stands in the journal, and what is there of it: None for nothing yet.

    A ``reentrant`` call that was cut short may be made again: there is a page of it once it is
    done. ``name`` is the call's in the log.
    """

    key: str
    codec: ResultCodec
    page: Page | None
    reentrant: bool = False
    name: str = ""

    @property
    def in_the_log(self) -> str | None:
        """The name under which the log says that the call runs once; None where it does not."""
        return self.name if self.page is None and not self.reentrant else None


def look(
    actor: Actor,
    line: Line,
    prepared: PreparedCall,
    codec: ResultCodec | None,
    *,
    reentrant: bool = False,
) -> Generator[Effect, Any, tuple[PreparedCall, JournalSlot | None]]:
    """Return what the journal has of a call; where it can't be read, the call is refused."""
    bound = prepared.arguments
    if (
        codec is None
        or prepared.refusal is not None
        or not prepared.invocation.site.is_stable
        or not isinstance(bound, Arguments)
    ):
        return prepared, None
    key = _key(actor, prepared, bound)
    try:
        page = yield Look(key)
        return prepared, JournalSlot(key, codec, page, reentrant, line.journal.name(key))
    except AgentguardError as error:
        refusal = Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  the journal is a port: any failure of it denies
        refusal = Decision.failed("storage.failed", "the journal can't be read", error)
    return prepared._replace(refusal=refusal), None


def _key(actor: Actor, prepared: PreparedCall, bound: Arguments) -> str:
    predicate, authority = prepared.predicate, prepared.authority
    return journal.key(
        {
            "agent": actor.name,
            "principal": authority.principal,
            "actors": authority.actors,
            "tool": prepared.invocation.tool.digest,
            "arguments": canonical.sha256_hex(bound.encoded),
            "resource": predicate["resource"],
            "task_id": predicate["task_id"],
            "call_site": predicate["call_site"],
        }
    )


def replay(page: Page, codec: ResultCodec) -> tuple[Decision | None, Any]:
    """Return why a call that was made before is refused, or else its result."""
    refusal = page.refusal()
    if refusal is not None or page.result is None:
        return refusal, None
    try:
        return None, codec.loads(page.result)
    except Exception:  # noqa: BLE001  the codec is an adapter's: what it can't read is not handed out
        return page._replace(state="unreplayable").refusal(), None


def begin(kept: JournalSlot | None, invocation_id: str) -> Generator[Effect, Any, Decision | None]:
    """Say that the tool is about to run; return the refusal where another attempt was first."""
    if kept is None or kept.reentrant:
        return None
    try:
        if (yield Begin(kept.key, invocation_id)):
            return None
        reason = "another attempt of this very call has begun: see what became of it"
        return Decision.refused(reason, code="journal.in_doubt")
    except AgentguardError as error:
        return Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  the journal is a port: any failure of it denies
        return Decision.failed("storage.failed", "the journal can't be written", error)


def goes_on(kept: JournalSlot | None, inside: NestedCalls) -> bool:
    """Whether a call that has ended is made again: a hand-over while a call inside waits."""
    if kept is None or not (inside.waits and inside.repeatable):
        return False
    return kept.reentrant or inside.hands_over


def finish(
    kept: JournalSlot | None,
    invocation_id: str,
    result: object,
    inside: NestedCalls,
    *,
    redacted: bool,
    enforced: bool,
) -> Generator[Effect, Any, None]:
    """Keep the result of a call that has run; where that fails, it stays in doubt.

    A hand-over is not complete while a call ``inside`` waits: it is made again, where that runs
    nothing twice. A result of which a part is ``redacted`` in the log is not kept here either; of
    one that was not ``enforced`` the page says so.
    """
    if kept is None:
        return
    if inside.waits:
        if goes_on(kept, inside):
            yield from forget(kept)
            return
        _LOGGER.warning(
            "the call %s has ended while a call waits that its tool has made: it is not made again "
            "when its run goes on, since what its tool has done else would be done twice; let the "
            "tool raise what it is told of the call that waits",
            invocation_id,
        )
    page = Page(invocation_id, "unreplayable")
    try:
        written = kept.codec.dumps(result) if not redacted else b""
        if not redacted and len(written) <= MAX_RESULT:
            page = Page(invocation_id, "done", written, enforced=enforced)
    except (EncodeError, DecodeError):
        pass
    except Exception:
        _LOGGER.exception("a result could not be written for the journal: it is not replayed")
    yield from _write(kept, page)


def cut_short(kept: JournalSlot | None, invocation_id: str) -> Generator[Effect, Any, None]:
    """Say that nobody knows whether the tool ran to its end."""
    page = None if kept is None or kept.reentrant else Page(invocation_id, "unknown")
    yield from _write(kept, page)


def forget(kept: JournalSlot | None) -> Generator[Effect, Any, None]:
    """Let the call be made anew: it has failed, has not run, or was suspended by its framework."""
    yield from _write(kept, None)


def _write(kept: JournalSlot | None, page: Page | None) -> Generator[Effect, Any, None]:
    if kept is None:
        return
    try:
        yield Finish(kept.key, page) if page is not None else Forget(kept.key)
    except Exception:
        _LOGGER.exception("the journal could not be written: a resumed run finds the call in doubt")
