"""One guarded call at the client, as a generator of effects that the usual drivers carry out.

The steps of the call run in the server (``server/served_call.py``). Here are the parts that only
the application's process can do: the span, the look-up of facts, the tool, the result as the
adapter's codec writes it, and what the call around learns of this one. The client asks the server
to authorize the call, runs the tool, and reports how the tool ended.

Fail closed: a server that can't be reached, or whose answer can't be read, is a denial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import ApprovalPending, ApprovalRequest
from agentguard.audit.entry import Attachment
from agentguard.call import journal, redaction
from agentguard.call.arguments import Arguments, encode_result
from agentguard.call.decision import Decision, Denied
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import Invocation
from agentguard.call.masking import Masks
from agentguard.call.options import CallOptions
from agentguard.call.redaction import Redaction
from agentguard.call.releases import Releases
from agentguard.call.tool import FactsInput, facts_in
from agentguard.client import outcome_log
from agentguard.client.facts import LONGEST_NAME, encoded_facts, type_name
from agentguard.delegation.handle import Delegation
from agentguard.errors import AgentguardError, DecodeError, EncodeError
from agentguard.flow import endings
from agentguard.flow.authority import AgentIdentity, Authority
from agentguard.flow.effects import Do, Effect, LookUp, NotRun, Run, Tell
from agentguard.flow.endings import Ending
from agentguard.flow.listener import CallListener
from agentguard.flow.ports import OnRequest, tell
from agentguard.signing import canonical
from agentguard.wire import reports, values
from agentguard.wire.frame import Frame

_LOGGER = logging.getLogger("agentguard")

_UNREAD = "the guard server's answer can't be read"


class Exchange(NamedTuple):
    """How a call talks to the server; each function blocks, and raises ``AgentguardError``.

    ``begin`` sends the call, ``go_on`` the facts, ``end`` how the tool ended (and returns the
    server's answer, None where nobody waits for one). ``read`` returns the delegation in an answer,
    ``known`` one that this process has (which does not block), ``fetch`` another one. ``withdraw``
    has the server end the call with an id, now or with the next request.
    """

    begin: Callable[[Mapping[str, Any], bytes], Frame]
    go_on: Callable[..., Frame]
    end: Callable[[Mapping[str, Any], Sequence[bytes], bool], Frame | None]
    read: Callable[[Frame], Delegation]
    known: Callable[[str], Delegation | None]
    fetch: Callable[[str], Delegation]
    withdraw: Callable[[str, bool], None]


@dataclass(slots=True)
class ClientCall:
    """One call: what is called by whom, what the adapter says of the call, and who is told.

    ``authority`` is what the program's log says of the caller. ``request_id`` (32 hex digits) names
    the call to the server. ``inside`` is the id of the guarded call around this one. ``is_traced``
    says whether anybody receives spans. ``releases`` gives the tool secrets.
    """

    actor: AgentIdentity
    authority: Authority
    invocation: Invocation
    listener: CallListener
    options: CallOptions
    nested_calls: NestedCalls
    exchange: Exchange
    request_id: str
    inside: str | None
    is_traced: bool
    releases: Releases
    on_request: OnRequest | None = None
    _redactions: Sequence[Redaction] = ()
    _invocation_id: str = ""

    # --- the steps ------------------------------------------------------------------------------

    def evaluate(self) -> Generator[Effect, Any, Decision]:
        """Return the decision that the call would get; raises ``ApprovalPending``."""
        answer = yield from self._decided("evaluate")
        return values.read_decision(answer.header.get("decision"))

    def authorize(self) -> Generator[Effect, Any, Evaluation]:
        """Return the policy's signed decision about the call; a failure is a refusal."""
        try:
            answer = yield from self._decided("evaluation")
            decision = values.read_decision(answer.header.get("decision"))
            entry = values.text_or_none(answer.header.get("entry"))
            statement, salt = values.reads("evaluation", lambda: answer.blobs)
        except Denied as denied:
            return Evaluation(denied.decision)
        except AgentguardError as error:
            return Evaluation(_failed(error))
        return Evaluation(decision, entry, statement or None, salt)

    def run(self) -> Generator[Effect, Any, Any]:
        """Run the call if it may run; raises ``Denied`` if not, or ``ApprovalPending``."""
        self.nested_calls.begins(self._site())
        answer = yield from self._decided("authorize")
        if answer.header.get("step") == "replayed":
            self.nested_calls.ends()
            return self._replayed(answer)
        is_journalled = answer.header.get("is_journalled") is not False
        self.nested_calls.runs(is_journalled=is_journalled)
        try:
            self._invocation_id = values.text(answer.header.get("invocation_id"))
            authority = replace(self.authority, lends=(yield from self._lent(answer)))
        except AgentguardError as error:
            yield from self._not_run(Decision.of_error(error))
            raise Denied(_failed(error)) from error
        try:
            result = yield Run(self._invocation_id, authority, self.nested_calls, self.releases)
        except NotRun as not_run:
            yield from self._not_run(not_run.refusal)
            self.nested_calls.ends()
            raise Denied(not_run.refusal) from None
        except BaseException as error:
            ending = endings.ending_of_error(error, self.options, self.nested_calls)
            yield from self._ended(ending, error, (), waits=is_journalled)
            raise
        ending = endings.ending_of_return(
            self.options,
            self.nested_calls,
            invocation_id=self._invocation_id,
            is_journalled=is_journalled and self.options.codec is not None,
        )
        blobs = self._result(ending, result)
        yield from self._ended(ending, result, blobs, waits=is_journalled)
        return result

    # --- before the tool --------------------------------------------------------------------------

    def _decided(self, operation: str) -> Generator[Effect, Any, Frame]:
        """Return the answer of the server once the call is allowed; raises as ``run``."""
        arguments = self.invocation.arguments
        encoded = arguments.encoded if isinstance(arguments, Arguments) else b""
        if not self.is_traced:
            self.listener.begin(self.authority, self.invocation.task_id, None)
        try:
            answer: Frame = yield Do(self.exchange.begin, self._about(operation), encoded)
            while (step := answer.header.get("step")) in ("begin", "asks", "look_up"):
                take = self._look_up if step == "look_up" else self._span
                answer = yield from take(answer.header)
            reports.tell(answer.header.get("reports"), self.listener, self._kept)
            refusal = self._refusal(answer)
        except (AgentguardError, OSError) as error:
            # the server may have the call all the same: it must not wait for an outcome
            is_away = isinstance(error, AgentguardError) and error.code == "server.unreachable"
            yield from self._withdraw(waits=not is_away)
            raise Denied(_failed(error)) from error
        except BaseException:  # interrupted
            yield from self._withdraw(waits=True)
            raise
        if isinstance(refusal, ApprovalPending):
            self.nested_calls.asks(refusal.request.call_site, refusal.request)
            if _is_new(answer.header, refusal.request) and self.on_request is not None:
                yield Tell(tell, "on_request", self.on_request, refusal.request)
        if refusal is not None:
            raise refusal
        return answer

    def _lent(self, answer: Frame) -> Generator[Effect, Any, Delegation | None]:
        """Return the delegation in force while the tool runs; None for none."""
        described = answer.header.get("lends")
        if described is None:
            return None
        if answer.blobs:
            return self.exchange.read(Frame(described, answer.blobs))
        digest = values.text(described.get("id"))
        known = self.exchange.known(digest)
        # the answer that brings the chain may still be on its way to another thread
        return known or (yield Do(self.exchange.fetch, digest))

    def _refusal(self, answer: Frame) -> Denied | ApprovalPending | None:
        """Return why the call does not run now, None where it may; raises ``DecodeError``."""
        header = answer.header
        match header.get("step"):
            case "denied":
                if header.get("waits") is not True:
                    self.nested_calls.ends()
                return Denied(values.read_decision(header.get("decision")))
            case "pending":
                request = values.reads("answer", lambda: ApprovalRequest.loads(answer.blobs[0]))
                return ApprovalPending(request, values.text(header.get("missing")))
            case "run" | "replayed" | "decision" | "evaluation":
                return None
        raise DecodeError(_UNREAD, code="frame.malformed")

    def _about(self, operation: str) -> dict[str, Any]:
        invocation, arguments = self.invocation, self.invocation.arguments
        refusal, site, task_id = invocation.refusal, None, None
        try:
            "".join([text or "" for text in (*invocation.site, invocation.task_id)]).encode()
            site, task_id = values.site(invocation.site), invocation.task_id
        except UnicodeError:  # the server refuses the call, and records the refusal
            pass
        about: dict[str, Any] = {
            "op": operation,
            "request_id": self.request_id,
            "site": site,
            "task_id": task_id,
            "inside": self.inside,
            "refusal": None if refusal is None else values.decision(refusal.shortened()),
            "has_codec": self.options.codec is not None,
            "reentrant": self.options.reentrant,
            "is_traced": self.is_traced,
        }
        if invocation.tool.caller is not None:
            about["caller"] = dict(invocation.tool.caller)
        if not self.options.asks_people:
            about["asks_people"] = False
        if isinstance(arguments, Arguments):
            return {**about, "unbound": arguments.unbound}
        return {**about, "error": values.error(arguments)}

    def _site(self) -> str | None:
        try:
            return self.invocation.site.digest(self.actor.name)
        except (AgentguardError, UnicodeError):  # the server refuses such a call
            return None

    def _span(self, asked: Mapping[str, Any]) -> Generator[Effect, Any, Frame]:
        """Begin the call's span, or name the span of the request, and send the span."""
        if asked["step"] == "asks":
            traceparent = self.listener.asks()
        else:
            principal, actors = values.text(asked.get("principal")), values.texts(asked["actors"])
            authority = Authority(principal, None, frozenset(), actors)
            task_id = values.text_or_none(asked.get("task_id"))
            paused = values.text_or_none(asked.get("paused"))
            traceparent = self.listener.begin(authority, task_id, paused)
        span = {"op": "span", "request_id": self.request_id, "traceparent": traceparent}
        reply: Frame = yield Do(self.exchange.go_on, span)
        return reply

    def _look_up(self, asked: Mapping[str, Any]) -> Generator[Effect, Any, Frame]:
        """Look the application's facts up, and send them; raises what interrupts the look-up."""
        arguments, look_up = self.invocation.arguments, self.invocation.tool.facts
        assert isinstance(arguments, Arguments)  # noqa: S101  the server asks for no other call
        facts_input = FactsInput(
            canonical.loads_object(arguments.encoded),
            agent=self.actor.name,
            agent_id=self.actor.uri,
            principal=values.text(asked.get("principal")),
            task_id=values.text_or_none(asked.get("task_id")),
        )
        answer: dict[str, Any] = {"op": "facts", "request_id": self.request_id}
        interrupt: BaseException | None = None
        blobs: list[bytes] = []
        try:
            assert look_up is not None  # noqa: S101  the server knows which tools have one
            found = yield LookUp(look_up, facts_input)
            about, blobs = encoded_facts(facts_in(found))
            answer |= about
        except Exception as error:
            _LOGGER.exception("the look-up of facts failed: the call is denied (facts.failed)")
            answer["failure"] = type_name(error)
        except BaseException as error:  # noqa: BLE001  raised again once the refusal is on record
            answer |= {"failure": type_name(error), "interrupts": True}
            interrupt = error
        reply: Frame = yield Do(self.exchange.go_on, answer, *blobs)
        if interrupt is not None:
            raise interrupt
        return reply

    # --- after the tool ---------------------------------------------------------------------------

    def _replayed(self, answer: Frame) -> Any:
        """Return the result of an earlier attempt; raises ``Denied`` for one that can't be read."""
        assert self.options.codec is not None  # noqa: S101  the server replays for a codec alone
        try:
            return journal.read(self.options.codec, answer.blobs[0])
        except Exception as error:
            reason = "this call has run already, and its result can't be given again"
            raise Denied(Decision.refusal(reason, code="journal.unreplayable")) from error

    def _not_run(self, refusal: Decision) -> Generator[Effect, Any, None]:
        self.listener.outcome("not_run")
        about = {"not_run": values.decision(refusal)}
        yield from self._report(about, (), waits=True)

    def _withdraw(self, *, waits: bool) -> Generator[Effect, Any, None]:
        try:
            yield Do(self.exchange.withdraw, self.request_id, waits)
        except Exception:
            _LOGGER.exception("the guard server is not told yet that a call does not run")

    def _ended(
        self, ending: Ending, value: object, blobs: Sequence[bytes], *, waits: bool
    ) -> Generator[Effect, Any, None]:
        """Report how the tool ended, and tell the span and the call around."""
        self.releases.end()
        if ending is endings.SUSPENDED:
            self.listener.suspended()
        elif ending is endings.HANDED_ON:
            self.listener.handed_on()
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        is_error = isinstance(value, BaseException) and ending.status != "ok"
        kept = self._copy("result", blobs[0]) if blobs and blobs[0] else ()
        self.listener.outcome(str(ending.status), name if is_error else None, kept)
        about = {
            "ending": _NAMES[ending],
            "type": name[:LONGEST_NAME],
            "has_journal": len(blobs) > 1 and bool(blobs[1]),
        }
        # another process may continue a journalled call, and then needs a durable outcome
        yield from self._report(about, blobs, waits=waits)
        self.releases.forget()
        if ending.is_complete:
            self.nested_calls.ends()

    def _report(
        self, about: Mapping[str, Any], blobs: Sequence[bytes], *, waits: bool
    ) -> Generator[Effect, Any, None]:
        """Report an outcome; without it the call stays in doubt."""
        call = {"call": self._invocation_id, "tool": self.invocation.tool.name}
        header = {"op": "outcome", "request_id": self.request_id, **call, **about}
        try:
            yield Do(self.exchange.end, header, blobs, waits)
        except Exception as error:  # noqa: BLE001  the tool has run: its caller gets the result
            self.listener.outcome("in_doubt")
            outcome_log.warn(header, error)

    def _result(self, ending: Ending, result: object) -> tuple[bytes, bytes]:
        """Return a result as canonical JSON, and as the codec writes it; empty for what is not."""
        encoded = encode_result(result) or b""
        codec = self.options.codec
        if codec is None or not ending.has_page:
            return encoded, b""
        try:
            return encoded, journal.written(codec, result)
        except (EncodeError, DecodeError):
            pass
        except Exception as error:
            # the text of the codec's error may hold a secret that the tool got
            traceback = None if self.releases.held else error
            message = "a result could not be written for the journal (%s): it is not replayed"
            _LOGGER.error(message, type(error).__name__, exc_info=traceback)  # noqa: TRY400
        return encoded, b""

    def _kept(self, redactions: Sequence[Redaction]) -> Sequence[Attachment]:
        """Return the arguments for the span, without what the policy and the server redact."""
        self._redactions = redaction.with_attributes(redactions, self.invocation.tool.attributes)
        arguments = self.invocation.arguments
        return (
            self._copy("arguments", arguments.encoded) if isinstance(arguments, Arguments) else ()
        )

    def _copy(self, role: Literal["arguments", "result"], data: bytes) -> Sequence[Attachment]:
        member = "args" if role == "arguments" else role
        copy = redaction.redact(member, data, self._redactions)
        held = self.releases.held if role == "result" else ()
        return (Attachment(role, "", b"", Masks(held).masked(copy) if held else copy),)


_NAMES: Mapping[Ending, str] = {
    value: name for name, value in vars(endings).items() if isinstance(value, Ending)
}


def _is_new(header: Mapping[str, Any], request: ApprovalRequest) -> bool:
    """Whether this very attempt has made the request."""
    made = [report for report in header.get("reports") or () if report[0] == "requested"]
    return any(ApprovalRequest.loads(one[1].encode()) == request for one in made)


def _failed(error: BaseException) -> Decision:
    if isinstance(error, AgentguardError):
        return Decision.of_error(error)
    return Decision.refusal(f"{_UNREAD} ({type(error).__name__})", code="server.failed")
