"""One attempt of a call: what is known of it, its request, its journal entry and its end.

``Attempt.close`` carries out an ``Ending``: the outcome in the log, with the page of the journal,
then the record that the enclosing call keeps of its inner calls. The journal makes a call run at
most once where a framework names the call in the same way when it resumes a run
(``CallSite.is_stable``), and where the adapter brings a ``ResultCodec``.

The rows of ``endings.py`` say what each way to end means; ``log_entries.py`` builds the entries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from agentguard.approvals.nested import NestedCalls
from agentguard.audit.entry import LogPlace, Status
from agentguard.call import journal
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.invocation import timestamp
from agentguard.call.journal import JournalEntry
from agentguard.call.masking import Masks
from agentguard.call.options import CallOptions
from agentguard.call.redaction import Redaction
from agentguard.call.releases import Releases, ReleaseSubject
from agentguard.errors import DecodeError, EncodeError
from agentguard.flow import endings, log_entries
from agentguard.flow.decide import Ruling
from agentguard.flow.effects import Do, Effect, Enqueue
from agentguard.flow.endings import Ending
from agentguard.flow.prepare import PreparedCall, effective_time
from agentguard.flow.reported import ReportedError, ReportedResult
from agentguard.signing import canonical

_LOGGER = logging.getLogger("agentguard")

Keeping = Callable[[Any], None]
"""Writes the page of a call in the commit of its outcome (``Journal.keeping``)."""

_FINAL_FOR_THE_REQUEST: Final = frozenset(
    {"approval.altered", "approval.rejected", "approval.expired", "approval.consumed"}
)
"""Reason codes of the refusals after which nobody needs the request for an approval any more."""


@dataclass(slots=True)
class Attempt:
    """One attempt of a call, from the prepared call to the end.

    ``journal_key`` is None where the journal does not keep the call. ``journal_entry`` is what an
    earlier attempt left there, and ``stored_result`` the result in that entry. A reentrant call (a
    sub-agent's, which the framework may begin again) gets its entry when the call is done, so that
    a call that was cut short can be made again. ``invocation_sha256`` is the digest of the signed
    statement, ``place`` the place of the authorization in the log (None until that is known),
    ``started_at`` the time at which the tool began. ``spends_approvals`` says that approvals were
    used up, or may have been. ``around`` are the secrets of the call around, and ``releases`` those
    of this call (None before the tool begins).
    """

    prepared: PreparedCall
    nested_calls: NestedCalls
    options: CallOptions
    journal_key: str | None = None
    journal_name: str | None = None
    journal_entry: JournalEntry | None = None
    stored_result: Any = None
    invocation_sha256: str = ""
    redactions: tuple[Redaction, ...] = ()
    place: LogPlace | None = None
    is_enforced: bool = True
    started_at: str | None = None
    spends_approvals: bool = False
    around: Releases | None = None
    releases: Releases | None = None

    @property
    def invocation_id(self) -> Any:
        """The id of the invocation; None where no random bytes could be had."""
        return self.prepared.predicate["invocation_id"]

    # --- the request for an approval --------------------------------------------------------------

    def removal_after(self, ruling: Ruling) -> Callable[[Any], object] | None:
        """Return what removes the request of a call that is decided for good, else None."""
        prepared = self.prepared
        is_final = ruling.runs or ruling.decision.code in _FINAL_FOR_THE_REQUEST
        if prepared.stored_request is None or prepared.request_key is None or not is_final:
            return None
        return prepared.ports.approvals.removal(prepared.request_key)

    def without_approvals(self, refusal: Decision) -> Decision:
        """Return ``refusal``, which also says what becomes of approvals that may be used up.

        A call in doubt is refused until somebody has found out whether it ran, so no more is said.
        """
        if not self.spends_approvals:
            return refusal
        reason = "the approvals of this call may be used up"
        if refusal.code != "journal.in_doubt":
            reason = f"{reason}: the call, made again, then asks anew"
        return replace(refusal, reasons=(*refusal.reasons, reason))

    # --- the journal ------------------------------------------------------------------------------

    def look_up(self) -> Generator[Effect, Any, None]:
        """Read the call's journal entry; a journal that can't be read refuses the call."""
        prepared = self.prepared
        arguments = prepared.arguments
        if (
            self.options.codec is None
            or prepared.refusal is not None
            or not prepared.invocation.site.is_stable
            or not isinstance(arguments, Arguments)
        ):
            return
        key, store = _key(prepared, arguments), prepared.ports.journal
        try:
            self.journal_entry = yield Do(store.read, key)
            self.journal_name = store.name(key)
        except Exception as error:  # noqa: BLE001  the journal is a port: any failure of it denies
            refusal = Decision.of_exception(error, "storage.failed", "the journal can't be read")
        else:
            self.journal_key = key
            return
        self.journal_entry = None
        self.prepared = prepared._replace(refusal=refusal)

    def load_result(self) -> Decision | None:
        """Load the result of the earlier attempt; return the refusal where that is impossible."""
        stored, codec = self.journal_entry, self.options.codec
        assert stored is not None  # noqa: S101  the caller has seen it
        assert codec is not None  # noqa: S101  without a codec nothing is looked up
        refusal = stored.refusal()
        if refusal is not None or stored.result is None:
            return refusal
        try:
            self.stored_result = journal.read(codec, stored.result)
        except Exception:  # noqa: BLE001  the codec is an adapter's: an unreadable result is refused
            return stored._replace(state="unreplayable").refusal()
        return None

    # --- the end ----------------------------------------------------------------------------------

    def start(self) -> Releases:
        """Note that the tool begins now; return the secrets that the tool may ask for."""
        self.started_at = self._now()
        self.nested_calls.runs(is_journalled=self.journal_key is not None)
        prepared, place = self.prepared, self.place
        assert place is not None  # noqa: S101  the authorization is in the log
        subject = ReleaseSubject(
            self.invocation_id,
            self.invocation_sha256,
            place.index,
            prepared.actor.uri,
            prepared.invocation.tool.name,
            prepared.authority.scope,
            prepared.authority.names,
            prepared.authority.prover,
        )
        self.releases = prepared.ports.secrets.begin(subject, self.around)
        return self.releases

    def ending_of(self, error: BaseException) -> Ending:
        """Return how this attempt ends, whose tool has raised ``error``."""
        if isinstance(error, ReportedError):
            return error.ending
        return endings.ending_of_error(error, self.options, self.nested_calls)

    def ending_of_return(self, result: object) -> Ending:
        """Return how this attempt ends, whose tool has returned ``result``."""
        if isinstance(result, ReportedResult):
            return result.ending
        return endings.ending_of_return(
            self.options,
            self.nested_calls,
            invocation_id=self.invocation_id,
            is_journalled=self.journal_key is not None,
        )

    def close(
        self, ending: Ending, *, result: object = None, error: BaseException | None = None
    ) -> Generator[Effect, Any, None]:
        """Tell the log, the journal and the enclosing call how the attempt has ended.

        The entry of each release of a secret stands in the log before the outcome. Whatever
        interrupts that is raised once the end is on record.
        """
        interrupt: BaseException | None = None
        page: Keeping | None = None
        try:
            try:
                if self.releases is not None and self.releases.end():
                    yield Do(self.releases.settle)
            finally:
                page = self._page(ending, result)
        except BaseException as raised:  # noqa: BLE001  raised again below
            interrupt = raised
        if ending is endings.SUSPENDED:
            self.prepared.listener.suspended()
        elif ending is endings.HANDED_ON:
            self.prepared.listener.handed_on()
        if ending.status is not None:
            yield from self._log(ending, ending.status, result, error, page)
        if self.releases is not None:
            self.releases.forget()
        if ending.is_complete:
            self.nested_calls.ends()
        if interrupt is not None:
            raise interrupt

    def _log(
        self,
        ending: Ending,
        status: Status,
        result: object,
        error: BaseException | None,
        page: Keeping | None,
    ) -> Generator[Effect, Any, None]:
        """Write the outcome, and the page with it; without it the call stays in doubt.

        The agent instance signs the outcome together with its next call, or within 50 ms alone.
        """
        listener, log = self.prepared.listener, self.prepared.ports.log
        stored = self.journal_entry if ending is endings.REPLAYED else None
        replay_of = stored.invocation_id if stored is not None else None
        try:
            outcome, error_type = log_entries.outcome(
                self.prepared,
                self.invocation_sha256,
                self.place,
                status,
                self.redactions,
                result=result,
                error=error,
                started_at=self.started_at if status != "not_run" else None,
                ended_at=self._now(),
                replay_of=replay_of,
                is_suspended=ending.is_suspended,
                masks=self._masks(),
            )
            # another process may continue a journalled call, and then needs a durable outcome
            if self.journal_key is None:
                yield Enqueue(log, outcome)
            else:
                yield Do(partial(log.append, outcome.signed(settles=True), within=page))
            listener.outcome(status, error_type, outcome.attachments, replay_of)
        except Exception:
            listener.outcome("in_doubt")
            # the tool has run, and its caller gets the result
            _LOGGER.exception("an outcome could not be recorded: its call stays in doubt")

    def _result_entry(self, result: object) -> JournalEntry:
        """Return the journal entry of a call that has run.

        A result of which the log redacts or masks a part is not kept in the journal either.
        ``enforced`` is False in the entry of a call that ran while the policy was only observed.
        """
        assert self.options.codec is not None  # noqa: S101  without a codec there is no journal key
        unreplayable = JournalEntry(self.invocation_id, "unreplayable")
        if any(pointer[0] == "result" for pointer in self.redactions):
            return unreplayable
        masks = self._masks()
        try:
            data = journal.written(self.options.codec, result)
            if masks is None or not masks.find(data):
                return JournalEntry(self.invocation_id, "done", data, enforced=self.is_enforced)
        except (EncodeError, DecodeError):
            pass
        except Exception as error:
            # the text of the codec's error may hold a secret that the tool got
            traceback = error if masks is None else None
            message = "a result could not be written for the journal (%s): it is not replayed"
            _LOGGER.error(message, type(error).__name__, exc_info=traceback)  # noqa: TRY400
        return unreplayable

    def _masks(self) -> Masks | None:
        """Return the masks of the secrets that the tool got; None where it got none."""
        held = self.releases.held if self.releases is not None else ()
        return Masks(held) if held else None

    def _page(self, ending: Ending, result: object) -> Keeping | None:
        """Return what keeps the result in the journal; None where it is not or can't be kept."""
        if not ending.has_page or self.journal_key is None:
            return None
        try:
            entry = self._result_entry(result)
            return self.prepared.ports.journal.keeping(self.journal_key, entry)
        except Exception:
            _LOGGER.exception("the result could not be kept: a resumed run is refused the call")
            return None

    def _now(self) -> str:
        now, _refusal = effective_time(self.prepared.ports)
        return timestamp(now)


def _key(prepared: PreparedCall, arguments: Arguments) -> str:
    """Name the call in the journal by all that tells it from another call (64 hex digits)."""
    predicate, authority = prepared.predicate, prepared.authority
    return journal.key(
        {
            "agent": prepared.actor.name,
            "principal": authority.principal,
            "actors": authority.actors,
            "tool": prepared.invocation.tool.digest,
            "arguments": canonical.sha256_hex(arguments.encoded),
            "resource": predicate["resource"],
            "task_id": predicate["task_id"],
            "call_site": predicate["call_site"],
        }
    )
